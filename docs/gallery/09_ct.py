# %% [markdown]
# # Computed tomography, an operator of deepinv
#
# A scan from few angles: `deepinv.physics.Tomography`, behind the same call
# as every other operator. The prior is one of photographs; give a network of
# your own for more than a demonstration.

# %%
from dataclasses import dataclass, field

import deepinv
import torch
from skimage.data import shepp_logan_phantom
from torchvision.transforms.functional import resize, to_pil_image

import invdiff
from invdiff import Operator
from invdiff.benchmarks.metrics import psnr
from invdiff.images import grid

slice_ = torch.from_numpy(shepp_logan_phantom()).float()[None, None]
x = resize(slice_, [64, 64], antialias=True).clamp(0, 1)
scan = deepinv.physics.Tomography(
    angles=30, img_width=64, normalize=True, device="cpu"
)

# %% [markdown]
# The image is grey and the network takes three colours: their mean is
# scanned. `data_gradient` and autograd do the rest, so the adjoint need not
# be written.


# %%
@dataclass(frozen=True, eq=False)
class GreyTomography(Operator):
    """The sinogram of the mean of the colours."""

    scan: deepinv.physics.Tomography = field(default_factory=lambda: scan)

    def _forward(self, x):
        return self.scan.A(x.mean(1, keepdim=True))


colour = x.expand(-1, 3, -1, -1).contiguous()
measurement = GreyTomography().measure(colour, sigma=0.01, seed=0)
print("sinogram", tuple(measurement.y.shape[1:]))
denoiser = invdiff.load_model("photo64")

# %%
method = invdiff.make_method("dps", zeta=6)
result = invdiff.solve(measurement, denoiser, method, steps=40, seed=0)
back_projected = scan.A_dagger(measurement.y).clamp(0, 1)
restored = result.x.mean(1, keepdim=True)
for name, image in {
    "filtered back-projection": back_projected,
    "restored": restored,
}.items():
    print(f"{name}: PSNR {psnr(image, x).item():.1f} dB")

# %%
sinogram = (measurement.y[0] / measurement.y.max()).clamp(0, 1)
sinogram = resize(sinogram, [64, 64], antialias=True)
panels = {
    "truth": x[0],
    "sinogram": sinogram,
    "FBP": back_projected[0],
    "restored": restored[0],
}
to_pil_image(grid(list(panels.values()), labels=list(panels), height=192))
