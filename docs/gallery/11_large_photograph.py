# %% [markdown]
# # A large photograph, in tiles
#
# The network sees overlapping windows, which bounds the memory; the state and
# the measurement are those of the whole image, so no seam is to be hidden.

# %%
import torch
import torch.nn.functional as F
from skimage import data
from torchvision.transforms.functional import to_pil_image

import invdiff
from invdiff.images import grid

cat = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None].float() / 255
x = F.avg_pool2d(cat, 2)[..., :144, :208]
measurement = invdiff.make_operator("denoise").measure(x, sigma=0.1, seed=0)
denoiser = invdiff.load_model("photo64", tile=96, tile_overlap=32)

# %%
method = invdiff.make_method("diffpir", lmbda=1.0, zeta=0.3)
result = invdiff.solve(measurement, denoiser, method, steps=15, seed=0)
print(f"{tuple(x.shape[-2:])} pixels in windows of 96")
print(
    f"error {(measurement.y - x).square().mean().sqrt():.3f} before, ", end=""
)
print(f"{(result.x - x).square().mean().sqrt():.3f} after")

# %%
panels = {"measured": measurement.y[0].clamp(0, 1), "restored": result.x[0]}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=240))
