# %% [markdown]
# # Deblur, the kernel unknown
#
# Nobody knows how wide this blur was. Restorations with several widths are
# compared by how well they predict pixels that were held out of the
# measurement, and the width that predicts best is taken.
#
# ## A blurred photograph
#
# The truth is used for nothing but the figures at the end.

# %%
import torch
from torchvision.transforms.functional import to_pil_image

import invdiff
from invdiff.images import grid, sample_photo

x, _ = sample_photo(64)
y = invdiff.make_operator("blur", sigma=1.5).measure(x, sigma=0.01, seed=0).y
denoiser = invdiff.load_model("photo64")

# %% [markdown]
# ## One width after the other
#
# One pixel in ten is held out: the operator is a blur, followed by a mask.

# %%
known = (
    torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) > 0.1
).float()
keep = invdiff.make_operator("inpaint", mask=known)
method = invdiff.make_method("dps", zeta=8)


def held_out(sigma):
    blur = invdiff.make_operator("blur", sigma=sigma)
    measurement = invdiff.Measurement(y * known, keep @ blur, sigma=0.01)
    result = invdiff.solve(measurement, denoiser, method, steps=20, seed=0)
    error = ((blur(result.x) - y) * (1 - known)).square().sum()
    return result.x, (error / (3 * (1 - known).sum())).sqrt().item()


tried = {sigma: held_out(sigma) for sigma in (0.8, 1.5, 2.5)}
for sigma, (_, error) in tried.items():
    print(f"sigma {sigma}: held-out pixels are missed by {error:.4f}")
best = min(tried, key=lambda sigma: tried[sigma][1])
print(f"taken: {best}")

# %%
panels = {"truth": x[0], "measured": y[0]}
panels |= {f"sigma {sigma}": image[0] for sigma, (image, _) in tried.items()}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=192))
