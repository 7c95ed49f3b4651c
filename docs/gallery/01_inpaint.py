# %% [markdown]
# # Inpaint missing pixels
#
# 70 % of the pixels of a photograph are lost;
# [DiffPIR](../../guidance/diffpir.py) fills them in without a gradient
# through the network.

# %%
from torchvision.transforms.functional import to_pil_image

import invdiff
from invdiff.benchmarks.metrics import lpips, psnr
from invdiff.images import error_map, grid, sample_photo

x, _ = sample_photo(64)
operator = invdiff.make_operator("inpaint", fraction=0.7)
measurement = operator.measure(x, sigma=0.025, seed=0)
denoiser = invdiff.load_model("photo64")

# %% [markdown]
# `lmbda` says how far the prior outweighs the measurement, `zeta` how much
# fresh noise there is in a step. The values are those that were
# [measured](../measurements.md) to be best for this network.

# %%
method = invdiff.make_method("diffpir", lmbda=0.3, zeta=1.0)
result = invdiff.solve(measurement, denoiser, method, steps=50, seed=0)
print(f"PSNR {psnr(result.x, x).item():.1f} dB")
print(f"LPIPS {lpips(result.x, x).item():.3f}")
print(f"{result.nfe:g} evaluations forward, {result.nbe:g} backward")

# %%
panels = {
    "truth": x[0],
    "measured": measurement.y[0],
    "restored": result.x[0],
    "error": error_map(result.x, x)[0],
}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=192))
