# %% [markdown]
# # Phase retrieval
#
# Only magnitudes of a Fourier transform are measured. An image and its mirror
# image have the same magnitudes, so some samples come out turned:
# [DAPS](../../guidance/daps.py) draws several, and the residual says which
# fit.

# %%
from torchvision.transforms.functional import to_pil_image

import invdiff
from invdiff.guidance.cfg import CFG
from invdiff.images import grid

denoiser = invdiff.load_model("digits32")
x = invdiff.generate(
    denoiser, shape=(1, 1, 32, 32), method=CFG(label=3, w=2.0), steps=30, seed=0
).x
operator = invdiff.make_operator("phase_retrieval")
measurement = operator.measure(x, sigma=0.05, seed=0)
print("image", tuple(x.shape[1:]), "measured", tuple(measurement.y.shape[1:]))

# %%
method = invdiff.make_method("daps")
result = invdiff.solve(
    measurement, denoiser, method, steps=20, num_samples=3, seed=0
)
misfit = [measurement.norm(sample).item() for sample in result.samples]
for k, value in enumerate(misfit):
    print(f"sample {k}: residual {value:.2f}")

# %%
best = min(range(3), key=lambda k: misfit[k])
panels = {"truth": x[0], "magnitudes": measurement.y[0].clamp(0, 1)}
panels |= {
    f"{k}{' (best)' if k == best else ''}": s[0]
    for k, s in enumerate(result.samples)
}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=160))
