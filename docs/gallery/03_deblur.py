# %% [markdown]
# # Deblur, the kernel known
#
# A motion blur is undone by [DPS](../../guidance/dps.py), which needs nothing
# of the operator but that it is differentiable, and by
# [DiffPIR](../../guidance/diffpir.py), which solves with it.

# %%
from torchvision.transforms.functional import to_pil_image

import invdiff
from invdiff.benchmarks.metrics import lpips
from invdiff.images import grid, sample_photo

x, _ = sample_photo(64)
operator = invdiff.make_operator("blur", kernel="motion", kernel_size=15)
measurement = operator.measure(x, sigma=0.01, seed=0)
denoiser = invdiff.load_model("photo64")

# %%
methods = {
    "dps": invdiff.make_method("dps", zeta=8),
    "diffpir": invdiff.make_method("diffpir", lmbda=1.0, zeta=0.6),
}
results = {
    name: invdiff.solve(measurement, denoiser, method, steps=20, seed=0)
    for name, method in methods.items()
}
for name, result in results.items():
    cost = f"{result.nfe:g} + {result.nbe:g} evaluations"
    print(f"{name}: LPIPS {lpips(result.x, x).item():.3f}, {cost}")

# %%
panels = {"truth": x[0], "measured": measurement.y[0]}
panels |= {name: result.x[0] for name, result in results.items()}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=192))
