# %% [markdown]
# # A method of one's own
#
# A guidance is a frozen dataclass of hyperparameters that changes the
# prediction. This one runs beside DPS at once, under every schedule,
# transition and itinerary, and the plug-in kit checks what it promises.

# %%
from dataclasses import dataclass

from torchvision.transforms.functional import to_pil_image

import invdiff
from invdiff import Guidance
from invdiff.benchmarks.metrics import lpips
from invdiff.images import grid, sample_photo
from invdiff.testing import check_guidance


@dataclass(frozen=True)
class Pull(Guidance):
    """x0 <- x0 + r² / (r² + lmbda sigma²) A†(y − A x0)."""

    lmbda: float = 4.0

    requires = invdiff.LinearOperator

    def __call__(self, denoise, x_t, step, measurement):
        p = denoise(x_t, step.t)
        r = step.t.sigma / step.t.alpha
        gain = r**2 / (r**2 + self.lmbda * measurement.sigma**2)
        return p.move(
            gain * measurement.operator.pinv(measurement.residual(p.x0))
        )


# %%
x, _ = sample_photo(64)
measurement = invdiff.make_operator("sr", factor=2).measure(
    x, sigma=0.05, seed=0
)
denoiser = invdiff.load_model("photo64")
results = {
    "pull": invdiff.solve(measurement, denoiser, Pull(), steps=30, seed=0),
    "renoised": invdiff.solve(
        measurement, denoiser, Pull(), steps=30, seed=0, transition="renoise"
    ),
}
for name, result in results.items():
    print(f"{name}: LPIPS {lpips(result.x, x).item():.3f}")
print(check_guidance(Pull(), only=["shapes", "finite", "batch", "own_noise"]))

# %% [markdown]
# A name of its own, for the command line and for tables: [Writing a
# plug-in](../writing-a-plugin.md).

# %%
panels = {"truth": x[0], "measured": measurement.y[0]}
panels |= {name: result.x[0] for name, result in results.items()}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=192))
