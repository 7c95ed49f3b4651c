"""Files of ``torch.export`` (``.pt2``): zip archives of a program. Reading one unpickles parts of
it, so it is read only with ``allow_pickle``."""

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
        return bool(names & {"archive_format", "serialized_exported_program.json"})
    return source.file is not None and source.file.suffix.lower() == ".pt2"


def load(
    source: Source,
    *,
    conditions: Sequence[str] | None = None,
    time_scale: float = 1.0,
    **options: Any,
) -> Denoiser:
    """A Denoiser, see :func:`invdiff.loading.exported.denoiser`."""
    return denoiser(Program, source, conditions, time_scale, options)


class Program(Exported):
    """Runs a program of ``torch.export``."""

    kind = "torch.export"
    risk = "reading a torch.export program unpickles parts of it, which can run code"

    def __init__(self, path: Path) -> None:
        program = read_as(path, "torch.export", lambda: torch.export.load(path))
        held = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
        inputs = [_said(str(name), held.get(name)) for name in program.graph_signature.user_inputs]
        super().__init__(path, inputs)
        positional, by_name = program.call_spec.in_spec.children()
        self.keywords = tuple(by_name.context) if by_name.num_leaves else ()
        if positional.num_leaves + by_name.num_leaves != len(inputs) or by_name.num_leaves != len(
            self.keywords
        ):
            raise ValueError(
                f"{path} takes containers of tensors; export a forward(x, t, ...) that "
                "takes tensors"
            )
        self.module = program.module()

    def run(self, args: list[Tensor]) -> Any:
        first = len(self.inputs) - len(self.keywords)
        try:
            return self.module(*args[:first], **dict(zip(self.keywords, args[first:], strict=True)))
        except AssertionError as error:  # its guards
            raise ValueError(
                f"{self.path.name} was not exported for this input: {str(error).splitlines()[0]}"
            ) from error

    def train(self, mode: bool = True) -> Program:
        """As it was exported: there is no other mode in it."""
        return self


def _said(name: str, value: Any) -> Input:
    if not isinstance(value, Tensor):
        return Input(name)
    return Input(name, tuple(n if isinstance(n, int) else None for n in value.shape), value.dtype)
