"""A network by its registered name, or from a source that a loader recognises."""

from __future__ import annotations

import os
from typing import Any, TypeGuard

from invdiff.loading import python_file
from invdiff.loading.source import Source, check_options, loader_of
from invdiff.network import Denoiser
from invdiff.network.preconditioning import spelled
from invdiff.plugins.registry import UnknownNameError, list_plugins, load
from invdiff.schedules import make_schedule


def is_registered(model: Any) -> TypeGuard[str]:
    """Whether a model is meant by its registered name, and not by a path, a hub id or an object. A
    folder of the same name is ``"./photo64"``."""
    if not isinstance(model, str) or "/" in model or "\\" in model:
        return False
    if python_file.parse(model) is not None:
        return False
    return model in list_plugins("models") or not os.path.exists(model)


def load_model(
    model: Any, *, loader: str | None = None, allow_pickle: bool = False, **options: Any
) -> Denoiser:
    """A Denoiser by registered name (``"photo64"``), or from a folder, a file, a model of the
    Hugging Face hub or an object, by the loader that recognises it.

    Args:
        model: registered name; path of a folder or file; hub id,
            ``owner/name[@revision][:subfolder]``, the only thing that is ever downloaded
            (configurations and safetensors, never code or pickles); or an object such as a
            denoiser of deepinv.
        loader: registered name of the loader, where several recognise the model.
        allow_pickle: read checkpoints that are pickles, TorchScript or torch.export programs, which
            can run code.
        options: of the loader, and of :class:`~invdiff.network.Denoiser` on top of what the
            checkpoint says, e.g. ``dtype``. ``channels_last`` is on unless it is given: with
            it a step took 0.55 to 0.97 of the time, at every size that was measured.

    Raises:
        ValueError: nothing is there, no loader or more than one recognises it, the hub does not
            answer, or the checkpoint is not understood.

    Examples:
        >>> import invdiff
        >>> invdiff.load_model("photo64").channels
        3
    """
    if "schedule" in options:
        options["schedule"] = make_schedule(options["schedule"])
    if "predicts" in options:
        options["predicts"] = spelled(options["predicts"])
    options = {"channels_last": True} | options
    if loader is None and is_registered(model):
        return _registered(model, options)
    source = Source(model, allow_pickle)
    chosen = loader_of(source, loader)
    if not getattr(chosen, "CHECKS_OPTIONS", False):
        check_options(chosen.load, f"model {str(source)!r}", options)
    return chosen.load(source, **options)


def _registered(model: str, options: dict[str, Any]) -> Denoiser:
    try:
        factory = load("models", model)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error} Nor is there a file or folder {model!r} here.") from None
    check_options(factory, f"model {model!r}", options)
    denoiser = factory(**options)
    denoiser.source |= {"kind": f"registered by {list_plugins('models')[model]}"}
    return denoiser
