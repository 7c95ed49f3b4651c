# %% [markdown]
# # Magnetic resonance, an operator of deepinv
#
# Any `deepinv.physics.Physics` is an operator. Here it is a single-coil scan
# with 1 of 3 lines of k-space; the network is a denoiser of photographs,
# which has never seen a scan: give your own for more than a demonstration.

# %%
from dataclasses import dataclass, field

import deepinv
import torch
from skimage.data import shepp_logan_phantom
from torchvision.transforms.functional import resize, to_pil_image

import invdiff
from invdiff import LinearOperator
from invdiff.benchmarks.metrics import psnr
from invdiff.images import grid

slice_ = torch.from_numpy(shepp_logan_phantom()).float()[None, None]
x = resize(slice_, [64, 64], antialias=True).clamp(0, 1)
lines = torch.rand(64, generator=torch.Generator().manual_seed(0)) < 0.28
lines[28:36] = True
mask = lines.float().expand(1, 1, 64, 64)
print(f"{lines.float().mean():.0%} of the lines are measured")

# %% [markdown]
# The scan measures two channels, the real and the imaginary part; the image
# is real and grey, while the network takes three colours. A few lines join
# them: a linear operator of one's own.

# %%
physics = deepinv.physics.MRI(mask=mask, img_size=(2, 64, 64))


@dataclass(frozen=True, eq=False)
class GreyScan(LinearOperator):
    """k-space of the mean of the colours."""

    scan: deepinv.physics.MRI = field(default_factory=lambda: physics)

    def _forward(self, x):
        grey = x.mean(1, keepdim=True)
        return self.scan.A(torch.cat([grey, torch.zeros_like(grey)], 1))

    def _adjoint(self, y):
        return self.scan.A_adjoint(y)[:, :1].expand(-1, 3, -1, -1) / 3


colour = x.expand(-1, 3, -1, -1).contiguous()
measurement = GreyScan().measure(colour, sigma=0.01, seed=0)
denoiser = invdiff.load_model("photo64")

# %%
method = invdiff.make_method("dps", zeta=6)
result = invdiff.solve(measurement, denoiser, method, steps=40, seed=0)
zero_filled = physics.A_adjoint(measurement.y)[:, :1].clamp(0, 1)
restored = result.x.mean(1, keepdim=True)
for name, image in {"zero-filled": zero_filled, "restored": restored}.items():
    print(f"{name}: PSNR {psnr(image, x).item():.1f} dB")

# %%
panels = {
    "truth": x[0],
    "lines": mask[0],
    "zero-filled": zero_filled[0],
    "restored": restored[0],
}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=192))
