"""Networks that ship inside the package: weights, model cards and the recipes that trained them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from invdiff.denoiser import Denoiser

FOLDER = Path(__file__).parent


def photo64(**options: Any) -> Denoiser:
    """Unconditional prior for colour photographs of any size, trained on 64x64 crops; see its model card."""
    from invdiff.models import load_folder

    return load_folder(FOLDER / "photo64", **{"channels_last": True} | options)  # 1.2 to 1.6 times as fast on a CPU
