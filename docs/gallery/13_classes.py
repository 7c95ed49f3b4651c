# %% [markdown]
# # Classes
#
# [Classifier-free guidance](../../guidance/cfg.py) draws the class that it is
# asked for, and stands in front of a method that restores: the upper half of
# a digit decides nothing, the label does.

# %%
from torchvision.transforms.functional import to_pil_image

import invdiff
from invdiff.guidance.cfg import CFG
from invdiff.images import grid

denoiser = invdiff.load_model("digits32")
three = invdiff.generate(
    denoiser, shape=(1, 1, 32, 32), method=CFG(label=3, w=2.0), steps=30
).x
half = invdiff.make_operator("inpaint", mask="half")
measurement = half.measure(three, sigma=0.02, seed=0)

# %%
results = {
    label: invdiff.solve(
        measurement,
        denoiser,
        [CFG(label=label, w=2.0), "repaint"],
        steps=30,
        seed=0,
    )
    for label in (3, 8, 5)
}

# %%
panels = {"truth": three[0], "measured": measurement.y[0]}
panels |= {f"label {label}": result.x[0] for label, result in results.items()}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=160))
