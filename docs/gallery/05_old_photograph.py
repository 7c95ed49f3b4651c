# %% [markdown]
# # An old photograph, with a mask
#
# Scratches were painted white on a photograph, and a mask says where. Only
# what is missing is restored.

# %%
import torch
from torchvision.transforms.functional import to_pil_image

import invdiff
from invdiff.images import grid, sample_photo

x, _ = sample_photo(128)
mask = torch.ones(1, 128, 128)
for k in range(110):
    mask[0, 10 + k // 2 : 12 + k // 2, k + 6] = 0
    mask[0, k + 8, 90 - k // 3 : 92 - k // 3] = 0
scratched = torch.where(mask > 0, x, 0.95)

# %% [markdown]
# The mask is 1 where a pixel is known. On the command line the same is
# `invdiff solve --measurement scratched.png --mask mask.png`, which restores
# only windows around the damage where the photograph is large
# ([masks](../masks.md)).

# %%
inpaint = invdiff.make_operator("inpaint", mask=mask)
measurement = invdiff.Measurement(scratched, inpaint, sigma=0.0)
denoiser = invdiff.load_model("photo64")
method = invdiff.make_method("ddnm")
result = invdiff.solve(measurement, denoiser, method, steps=20, seed=0)
change = ((result.x - x) * mask).abs().max()
print(f"{1 - mask.mean():.1%} of the pixels are missing")
print(f"known pixels changed by at most {change:.4f}")

# %%
panels = {"scratched": scratched[0], "restored": result.x[0], "truth": x[0]}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=256))
