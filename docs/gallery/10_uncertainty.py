# %% [markdown]
# # How sure is it?
#
# Several samples of the posterior have a mean and a spread. Whether the
# spread is that of the posterior depends on the method: [how right the
# methods are](../exactness.md) is measured.

# %%
from torchvision.transforms.functional import to_pil_image

import invdiff
from invdiff.benchmarks.metrics import psnr
from invdiff.images import error_map, grid, sample_photo, std_map

x, _ = sample_photo(64)
operator = invdiff.make_operator("inpaint", mask="box", size=0.4)
measurement = operator.measure(x, sigma=0.025, seed=0)
denoiser = invdiff.load_model("photo64")

# %%
method = invdiff.make_method("dps", zeta=8)
result = invdiff.solve(
    measurement, denoiser, method, steps=30, num_samples=4, seed=0
)
print(f"one sample {psnr(result.x, x).item():.1f} dB")
print(f"mean of four {psnr(result.mean, x).item():.1f} dB")

# %% [markdown]
# The spread is where pixels are missing, and so is the error:

# %%
missing = (operator.bind((3, 64, 64))(x * 0 + 1) == 0).float()
for name, image in {
    "spread": result.std,
    "error": (result.mean - x).abs(),
}.items():
    inside = (image * missing).sum() / missing.sum()
    outside = (image * (1 - missing)).sum() / (1 - missing).sum()
    print(f"{name}: {inside:.3f} in the box, {outside:.3f} elsewhere")

# %%
panels = {
    "measured": measurement.y[0],
    "one": result.samples[0][0],
    "another": result.samples[1][0],
    "mean": result.mean[0],
    "spread": std_map(result.std)[0],
    "error": error_map(result.mean, x)[0],
}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=160))
