"""A network by its registered name, from a folder or file, or from the Hugging Face hub."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeGuard

from invdiff.network import Denoiser
from invdiff.plugins.registry import UnknownNameError, check_names, list_plugins, load


def check_options(factory: Callable[..., Any], what: str, options: Iterable[str]) -> None:
    """Refuses options that neither a loader nor a :class:`~invdiff.network.Denoiser` has."""
    own = [
        n for n, p in inspect.signature(factory).parameters.items() if p.kind is not p.VAR_KEYWORD
    ]
    general = [n for n in inspect.signature(Denoiser).parameters if n not in ("net", "name")]
    check_names(what, options, list(dict.fromkeys(own + general)))


def is_registered(model: str | Path) -> TypeGuard[str]:
    """Whether a model is meant by its registered name, and not by a path or a hub id. A folder of
    the same name is ``"./photo64"``."""
    if isinstance(model, Path) or "/" in model or "\\" in model:
        return False
    return model in list_plugins("models") or not Path(model).exists()


def load_model(model: str | Path, *, allow_pickle: bool = False, **options: Any) -> Denoiser:
    """A Denoiser by registered name (``"photo64"``), from a diffusers folder, a checkpoint file, or
    a model of the Hugging Face hub.

    Args:
        model: registered name; path of a folder or file; or hub id,
            ``owner/name[@revision][:subfolder]``, the only thing that is ever downloaded.
        allow_pickle: read checkpoints that are pickles, TorchScript or torch.export programs, which
            can run code.
        options: passed to :class:`~invdiff.network.Denoiser` on top of what the checkpoint says,
            e.g. ``dtype``.
    """
    if not is_registered(model):
        from invdiff.loading import open_model

        return open_model(model, allow_pickle=allow_pickle, **options)
    try:
        factory = load("models", model)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error} Nor is there a file or folder {model!r} here.") from None
    check_options(factory, f"model {model!r}", options)
    denoiser = factory(**options)
    denoiser.source |= {"kind": f"registered by {list_plugins('models')[model]}"}
    return denoiser
