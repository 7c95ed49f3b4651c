# %% [markdown]
# # Tutorial
#
# From a photograph to a method of your own, with what ships in the package. This page was made by
# running `docs/tutorial.py`, cell by cell: half a minute of one core, 28 s user and 1 s system by
# `time OMP_NUM_THREADS=1 python docs/tutorial.py`.
#
# ## A problem
#
# A photograph, `(B, C, H, W)` in [0, 1], and an operator: super-resolution by 2, with a little
# noise.

# %%
import torch
from torchvision.transforms.functional import to_pil_image

import invdiff
from invdiff.benchmarks.metrics import lpips, psnr
from invdiff.images import error_map, grid, sample_photo, std_map

x, name = sample_photo(64)
operator = invdiff.make_operator("sr", factor=2)
measurement = operator.measure(x, sigma=0.05, seed=0)


def show(**panels):
    return to_pil_image(grid([p[0] for p in panels.values()], labels=list(panels), height=192))


show(truth=x, measurement=measurement.y, pinv=operator.pinv(measurement.y).clamp(0, 1))

# %% [markdown]
# The pseudo-inverse fits y, noise and all. A prior knows better what photographs look like.
#
# ## The prior
#
# `photo64` is a small network that ships in the package. A [network of your
# own](loading-your-checkpoint.md) is loaded by the same call.

# %%
denoiser = invdiff.load_model("photo64")
denoiser

# %% [markdown]
# It gives an estimate of the clean image from a noisy one, at any level `(alpha, sigma)`:

# %%
level = denoiser.schedule(torch.tensor(250))
noisy = level.alpha * (2 * x - 1) + level.sigma * torch.randn(
    x.shape, generator=torch.Generator().manual_seed(0)
)
with torch.no_grad():
    prediction = denoiser(noisy.float(), level)
show(x_t=(noisy.float() + 1) / 2, x0=(prediction.x0 + 1) / 2)

# %% [markdown]
# ## Two methods
#
# [DPS](../guidance/dps.py) follows the gradient of the residual through the network;
# [DiffPIR](../guidance/diffpir.py) solves with the operator instead and needs no backward pass. On
# the command line their values come from presets; here we say them.

# %%
dps = invdiff.make_method("dps", zeta=8)
diffpir = invdiff.make_method("diffpir", lmbda=1.0, zeta=0.3)
results = {
    "dps": invdiff.solve(measurement, denoiser, dps, steps=50, seed=0),
    "diffpir": invdiff.solve(measurement, denoiser, diffpir, steps=50, seed=0),
}
show(truth=x, **{label: result.x for label, result in results.items()})


# %%
def score(results):
    for label, result in results.items():
        quality = f"PSNR {psnr(result.x, x).item():.2f} dB, LPIPS {lpips(result.x, x).item():.3f}"
        print(
            f"{label:8} {quality}, {result.nfe:.0f} evaluations forward, {result.nbe:.0f} backward"
        )


score(results)

# %% [markdown]
# ## Several answers
#
# The measurement does not tell everything. Samples of the posterior differ where it is silent, and
# their mean is closer to the truth than any of them.

# %%
several = invdiff.solve(measurement, denoiser, diffpir, steps=50, seed=0, num_samples=6)
several.samples.shape

# %%
show(one=several.x, mean=several.mean, std=std_map(several.std), error=error_map(several.mean, x))

# %%
print(
    f"one sample {psnr(several.x, x).item():.2f} dB, mean of six "
    f"{psnr(several.mean, x).item():.2f} dB"
)

# %% [markdown]
# ## A method of your own
#
# A guidance is a frozen dataclass of hyperparameters. It may call the network, and returns the
# prediction it wants. This one moves the estimate by what the pseudo-inverse makes of the residual,
# and trusts the measurement the more, the noisier the state still is: r is the state's noise
# sigma/alpha, the measurement's noise counts lmbda times. No gradient passes the network.

# %%
from dataclasses import dataclass

from invdiff import Guidance


@dataclass(frozen=True)
class Pull(Guidance):
    """x0 <- x0 + r² / (r² + lmbda sigma²) A†(y − A x0)."""

    lmbda: float = 4.0

    requires = invdiff.LinearOperator

    def __call__(self, denoise, x_t, step, measurement):
        p = denoise(x_t, step.t)
        r = step.t.sigma / step.t.alpha
        gain = r**2 / (r**2 + self.lmbda * measurement.sigma**2)
        return p.move(gain * measurement.operator.pinv(measurement.residual(p.x0)))


results["pull"] = invdiff.solve(measurement, denoiser, Pull(), steps=50, seed=0)
score(results)

# %% [markdown]
# `p.move` derives eps again from the moved estimate; `p.move_x0` would keep it. Which noise levels
# are visited, and how the next state is drawn, is not the guidance's business, so it runs under
# every schedule, transition and itinerary. With fresh noise on the estimate in each step
# (`Renoise`), errors of earlier steps are forgotten:

# %%
from invdiff.transitions import DDIM, Renoise

results["renoise"] = invdiff.solve(
    measurement, denoiser, Pull(), steps=50, seed=0, transition=Renoise()
)
results["ddim 20"] = invdiff.solve(
    measurement, denoiser, Pull(), steps=20, seed=0, transition=DDIM(1.0)
)
score(results)

# %%
show(truth=x, **{label: result.x for label, result in results.items()})

# %% [markdown]
# Does it keep the promises that a method makes (noise of its own, images independent of their
# batch, every schedule, ...)? The plug-in kit asks:

# %%
from invdiff.testing import check_guidance

print(
    check_guidance(
        Pull(), only=["shapes", "finite", "batch", "own_noise", "global_rng", "networks"]
    )
)

# %% [markdown]
# To give it a name of its own, `invdiff new-plugin pull --kind guidance` starts a package: [Writing
# a plug-in](writing-a-plugin.md). To compare it with the others on many images, see [Running a
# leaderboard](leaderboard.md).
