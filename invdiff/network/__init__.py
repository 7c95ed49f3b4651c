"""Any pretrained diffusion network as one function ``(x_t, level) -> Prediction``."""

from invdiff.network.classifier import NoisyClassifier
from invdiff.network.clock import OfLevel
from invdiff.network.denoiser import Denoiser
from invdiff.network.evaluate import Evaluations, count_evaluations
from invdiff.network.latent import Autoencoder
from invdiff.network.prediction import Prediction
from invdiff.network.protocol import Facts

__all__ = [
    "Autoencoder",
    "Denoiser",
    "Evaluations",
    "Facts",
    "NoisyClassifier",
    "OfLevel",
    "Prediction",
    "count_evaluations",
]
