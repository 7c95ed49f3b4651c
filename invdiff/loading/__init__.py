"""Checkpoints of other packages as Denoisers: one module per kind of source."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invdiff.loading.checkpoint import load_checkpoint
from invdiff.loading.deepinv import from_deepinv
from invdiff.loading.exported import load_exported
from invdiff.loading.folder import load_classifier, load_folder
from invdiff.loading.hub import download, parse_hub_id
from invdiff.loading.loader import Folder, Loader, loader_of
from invdiff.loading.model import check_options
from invdiff.loading.scheduler import schedule_of
from invdiff.schedules import make_schedule

if TYPE_CHECKING:
    from invdiff.network import Denoiser

__all__ = [
    "Loader",
    "from_deepinv",
    "load_checkpoint",
    "load_classifier",
    "load_exported",
    "load_folder",
    "open_model",
    "schedule_of",
]


def open_model(source: str | Path, *, allow_pickle: bool = False, **options: Any) -> Denoiser:
    """A Denoiser from a diffusers folder, a checkpoint file, an exported network or a model of the
    Hugging Face hub.

    Args:
        source: path of a folder or a file; or a hub id, ``owner/name[@revision][:subfolder]``,
            which is the only thing that is ever downloaded: configurations and safetensors, never
            code or pickles.
        allow_pickle: read pickles and exported programs, which can run code.
        options: of the loader (``controlnet`` for a folder) and of
            :class:`~invdiff.network.Denoiser`.

    Raises:
        ValueError: nothing is there, the hub does not answer, or the checkpoint is not understood.
    """
    if isinstance(source, str):
        source = source.removeprefix("https://huggingface.co/")
    path, wanted = (
        Path(source).expanduser(),
        parse_hub_id(source) if isinstance(source, str) else None,
    )
    if "schedule" in options:
        options["schedule"] = make_schedule(options["schedule"])
    loader = loader_of(path) if path.exists() else Folder()
    check_options(partial(loader.function, path), f"model {str(source)!r}", options)
    if path.exists():
        return loader.load(path, allow_pickle=allow_pickle, **options)
    if wanted is None:
        raise ValueError(
            f"there is no folder or file {source}, and it is not a model of the hub either, "
            "which is written owner/name[@revision][:subfolder]"
        )
    folder = download(wanted)
    denoiser = load_folder(
        folder, **{"name": wanted.repo} | options
    )  # never with pickles: none are downloaded
    denoiser.source |= {
        "kind": "model of the Hugging Face hub",
        "id": str(source),
        "path": str(folder),
    }
    return denoiser
