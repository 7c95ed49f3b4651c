"""Reading, writing and picturing images: tensors (C, H, W) or (1, C, H, W), float in [0, 1], C is 1
or 3."""

from invdiff.images.kernels import read_kernel
from invdiff.images.masks import read_mask
from invdiff.images.noise import estimate_sigma
from invdiff.images.pictures import (
    HEAT_LIMIT,
    error_map,
    grid,
    phase,
    std_map,
    viewable,
    window_of,
)
from invdiff.images.read import SUFFIXES, ImageError, find_images, read_image, sample_photo
from invdiff.images.write import write_gif, write_image

__all__ = [
    "HEAT_LIMIT",
    "SUFFIXES",
    "ImageError",
    "error_map",
    "estimate_sigma",
    "find_images",
    "grid",
    "phase",
    "read_image",
    "read_kernel",
    "read_mask",
    "sample_photo",
    "std_map",
    "viewable",
    "window_of",
    "write_gif",
    "write_image",
]
