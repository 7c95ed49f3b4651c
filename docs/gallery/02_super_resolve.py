# %% [markdown]
# # Super-resolve by 4
#
# Bicubic downsampling by 4 has an exact singular value decomposition, which
# [DDRM](../../guidance/ddrm.py) samples in: 20 evaluations of the network are
# enough.

# %%
from torchvision.transforms.functional import resize, to_pil_image

import invdiff
from invdiff.benchmarks.metrics import lpips
from invdiff.images import grid, sample_photo

x, _ = sample_photo(64)
operator = invdiff.make_operator("sr", factor=4)
measurement = operator.measure(x, sigma=0.025, seed=0)
denoiser = invdiff.load_model("photo64")

# %%
method = invdiff.make_method("ddrm", eta=0.5)
result = invdiff.solve(measurement, denoiser, method, steps=20, seed=0)
bicubic = resize(
    measurement.y, [64, 64], interpolation=3, antialias=True
).clamp(0, 1)
for name, image in {"bicubic": bicubic, "ddrm": result.x}.items():
    print(f"{name}: LPIPS {lpips(image, x).item():.3f}")

# %%
panels = {"truth": x[0], "bicubic": bicubic[0], "restored": result.x[0]}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=192))
