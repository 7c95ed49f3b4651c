"""TorchScript files: zip archives with ``code/``, whatever their names are. TorchScript is a
program that may write files when it runs, so it is read only with ``allow_pickle``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.loading.checkpoint_file import zip_names
from invdiff.loading.exported import Exported, Input, denoiser, read_as
from invdiff.loading.source import Source
from invdiff.network import Denoiser


def recognises(source: Source) -> bool:
    """Whether it is such an archive, or a damaged one by its name."""
    names = source.once(zip_names)
    if names:
        return "constants.pkl" in names and any(n.startswith("code/") for n in names)
    return source.file is not None and source.file.suffix.lower() == ".ts"


def load(
    source: Source,
    *,
    conditions: Sequence[str] | None = None,
    time_scale: float = 1.0,
    **options: Any,
) -> Denoiser:
    """A Denoiser, see :func:`invdiff.loading.exported.denoiser`."""
    return denoiser(Script, source, conditions, time_scale, options)


class Script(Exported):
    """Runs TorchScript."""

    kind = "TorchScript"
    risk = "TorchScript is a program, which may write files when it runs"
    traced = False

    def __init__(self, path: Path) -> None:
        module = read_as(path, "TorchScript", lambda: torch.jit.load(path, map_location="cpu"))
        arguments = module.forward.schema.arguments[1:]
        super().__init__(
            path,
            [Input(a.name) for a in arguments],
            [a.name for a in arguments if a.has_default_value()],
        )
        self.module = module

    def run(self, args: list[Tensor]) -> Any:
        return self.module(*args)
