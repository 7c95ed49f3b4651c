# %% [markdown]
# # JPEG artefacts
#
# A JPEG file of quality 10 is a nonlinear measurement: blocks of cosine
# coefficients, rounded. [DPS](../../guidance/dps.py) follows its gradient,
# with rounding passed straight through.

# %%
from torchvision.transforms.functional import to_pil_image

import invdiff
from invdiff.benchmarks.metrics import lpips, psnr
from invdiff.images import grid, sample_photo

x, _ = sample_photo(64)
operator = invdiff.make_operator("jpeg", quality=10)
measurement = operator.measure(x, sigma=0.0, seed=0)
denoiser = invdiff.load_model("photo64")

# %%
method = invdiff.make_method("dps", zeta=6)
result = invdiff.solve(measurement, denoiser, method, steps=40, seed=0)
for name, image in {"the file": measurement.y, "restored": result.x}.items():
    scores = psnr(image, x).item(), lpips(image, x).item()
    print(f"{name}: PSNR {scores[0]:.1f} dB, LPIPS {scores[1]:.3f}")

# %% [markdown]
# Of a file of yours the tables are read: `invdiff solve --measurement
# photo.jpg --operator jpeg`.

# %%
panels = {
    "truth": x[0],
    "quality 10": measurement.y[0],
    "restored": result.x[0],
}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=192))
