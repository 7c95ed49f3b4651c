"""Networks that were exported as programs: what files of TorchScript, ``torch.export`` and ONNX
have in common.

Their first two inputs are the state and the time; further ones are conditions. They carry their
architecture and their weights, but not what they predict, so ``predicts``, ``schedule``,
``data_range`` and, where the file does not hold them, ``channels`` are asked for. Files that can do
more than compute are read only with ``allow_pickle``, as pickles are.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from invdiff.loading.source import Source
from invdiff.network import Denoiser, Facts
from invdiff.network.preconditioning import PREDICTS
from invdiff.plugins.registry import check_names, list_plugins


class Input(NamedTuple):
    """One input as a file describes it; None where it does not, or where a size is free."""

    name: str
    shape: tuple[int | None, ...] | None = None
    dtype: torch.dtype | None = None


def denoiser(
    made: type[Exported],
    source: Source,
    conditions: Sequence[str] | None,
    time_scale: float,
    options: Mapping[str, Any],
) -> Denoiser:
    """A Denoiser from an exported network, whose first two inputs are the state and the time.

    Args:
        made: the class that runs such a file.
        source: the file.
        conditions: names given here to the inputs after the first two, in their order, e.g.
            ``["label"]`` for a network with ``num_classes``; by default those in the file.
        time_scale: what the schedule's time is multiplied by to give the network's time input, e.g.
            1000 for a flow network that counts so.
        options: of :class:`~invdiff.network.Denoiser`. ``predicts``, ``schedule``, ``data_range``
            (None where there is none) and, unless the file holds them, ``channels`` must be given.

    Raises:
        ValueError: what is missing, all at once; a file that cannot be read.
    """
    path = source.file
    assert path is not None
    _refuse(made, path, source.allow_pickle, options)
    net = made(path)
    if len(net.inputs) < 2:
        raise ValueError(
            f"{path} takes {len(net.inputs)} inputs; a denoiser takes the state and the "
            "time, then conditions if any"
        )
    net.rename(conditions)
    found = _found(net, options.get("cond_channels") or 0)
    if time_scale != 1.0:
        found["time"] = lambda t: time_scale * t
    if "channels" not in options and "channels" not in found:
        raise ValueError(f"{path} ({made.kind}): {_asked(['channels'])[0]}")
    denoiser = Denoiser(net, **(found | dict(options)))
    if denoiser.num_classes is not None and "label" not in net.conditions:
        raise ValueError(
            f"{path} takes {', '.join(net.conditions) or 'nothing'} besides state and time, "
            "but with num_classes it is given 'label'; "
            "conditions=['label', ...] says which input that is"
        )
    denoiser.source = {
        "kind": f"{made.kind} file",
        "path": str(path),
        "inputs": ", ".join(i.name for i in net.inputs),
        "needs": ", ".join(net.facts.required) or None,
    }
    return denoiser


def _refuse(
    made: type[Exported], path: Path, allow_pickle: bool, options: Mapping[str, Any]
) -> None:
    """Refuses what may not be read, and what must be given, before the file is read."""
    problems = []
    if made.risk is not None and not allow_pickle:
        problems.append(
            f"{made.risk}, so if you trust whoever made the file, say allow_pickle=True "
            "(--allow-pickle)"
        )
    needed = ["predicts", "schedule", "data_range"] + (["channels"] if not made.traced else [])
    problems += _asked([n for n in needed if n not in options])
    if problems:
        raise ValueError(f"{path} ({made.kind}): {'; and '.join(problems)}")
    if made.traced and options.get("dtype", torch.float32) != torch.float32:
        raise ValueError(
            f"{path} runs in the dtype it was exported in; export it again in another one, "
            "and leave out dtype (--dtype)"
        )


def _found(net: Exported, cond_channels: int) -> dict[str, Any]:
    """Options of a Denoiser that the file shows."""
    shape, time_type = net.inputs[0].shape, net.inputs[1].dtype
    found: dict[str, Any] = {"name": net.path.stem}
    if shape is not None and len(shape) == 4:
        if shape[1] is not None:
            found["channels"] = shape[1] - cond_channels
        if shape[2] is not None and shape[2] == shape[3]:
            found["image_size"] = shape[2]
    if time_type is not None and not time_type.is_floating_point:
        found["quantize"] = True
    return found


def _asked(missing: Sequence[str]) -> list[str]:
    """One sentence that asks for all that is missing, or none."""
    what = {
        "predicts": f"predicts= ({', '.join(PREDICTS)})",
        "schedule": f"schedule= ({', '.join(list_plugins('schedules'))})",
        "data_range": "data_range= of its images (such as (-1, 1); None if it has none)",
        "channels": "channels= of its images (None if it has none)",
    }
    if not missing:
        return []
    examples = {"predicts": "eps", "schedule": "linear", "data_range": "[-1,1]", "channels": "3"}
    flags = " ".join(f"model.{n}={examples[n]}" for n in missing)
    return [
        "it does not say everything that is needed, please give "
        f"{', '.join(what[n] for n in missing)}; on the command line {flags}"
    ]


class Exported(nn.Module):
    """An exported network under our calling convention ``net(x, t, **conditions)``.

    Attributes:
        inputs: what the file says of them, state and time first.
        kind: of file, for messages.
        risk: why reading such a file needs permission; None if it does not.
        traced: the file holds the shapes of its inputs and runs in one dtype.
        conditions: names of the inputs after these; optional: those of them that have a default.
    """

    kind: ClassVar[str]
    risk: ClassVar[str | None] = None
    traced: ClassVar[bool] = True

    def __init__(
        self, path: Path, inputs: Sequence[Input] = (), optional: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.path, self.inputs, self.optional = path, tuple(inputs), frozenset(optional)
        self.conditions = tuple(i.name for i in self.inputs[2:])

    def rename(self, conditions: Sequence[str] | None) -> None:
        """Says what the inputs after the first two are called here."""
        if conditions is None:
            return
        names = [conditions] if isinstance(conditions, str) else list(conditions)
        if len(names) != len(self.conditions):
            theirs = ", ".join(self.conditions) or "none"
            raise ValueError(
                f"{self.path} has {len(self.conditions)} inputs after state and time "
                f"({theirs}), got conditions={names}"
            )
        self.optional = frozenset(
            n for n, theirs in zip(names, self.conditions, strict=True) if theirs in self.optional
        )
        self.conditions = tuple(names)

    @property
    def facts(self) -> Facts:
        """The facts in its file, which identifies it: weights may be anywhere in a program."""
        shape = self.inputs[0].shape
        size = None
        if shape is not None and len(shape) == 4 and shape[2] is not None and shape[3] is not None:
            size = shape[2], shape[3]
        required = tuple(n for n in self.conditions if n != "label" and n not in self.optional)
        return Facts(self.conditions, required, fixed_size=size, file=self.path)

    def run(self, args: list[Tensor]) -> Any:
        """The program's output for its inputs in order."""
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        check_names(self.path.name, cond, self.conditions)
        given = [x, t]
        for name in self.conditions:
            if name not in cond:
                if name in self.optional:
                    break
                raise ValueError(f"{self.path.name} cannot run without {name}")
            given.append(cond[name])
        self._check(x)
        batch = None if self.inputs[0].shape is None else self.inputs[0].shape[0]
        if batch is None or batch == len(x):
            return self._output(given)
        missing = -len(x) % batch  # of the last part, filled up with its last entries
        parts = zip(
            *(
                _parts(v, batch, missing) if v.ndim and len(v) == len(x) else repeat(v)
                for v in given
            ),
            strict=False,
        )
        return torch.cat([self._output(list(part)) for part in parts])[: len(x)]

    def _check(self, x: Tensor) -> None:
        shape = self.inputs[0].shape
        if shape is None:
            return
        if len(shape) != x.ndim or any(
            n not in (None, m) for n, m in zip(shape[1:], x.shape[1:], strict=True)
        ):
            wanted = " x ".join("any" if n is None else str(n) for n in shape)
            tile = (
                f", or model.tile={shape[-1]} for larger images"
                if len(shape) == 4 and shape[-1] and shape[-1] == shape[-2]
                else ""
            )
            raise ValueError(
                f"{self.path.name} was exported for {wanted} and got {tuple(x.shape)}; "
                f"export it with free sizes{tile}"
            )

    def _output(self, given: list[Tensor]) -> Tensor:
        args = [_fitted(value, said) for value, said in zip(given, self.inputs, strict=False)]
        out = self.run(args)
        if isinstance(out, dict):
            out = next(iter(out.values()))
        return out[0] if isinstance(out, tuple | list) else out


def _parts(value: Tensor, batch: int, missing: int) -> tuple[Tensor, ...]:
    """A batch in parts of ``batch``, with the last entry repeated where some are missing."""
    return (
        torch.cat([value, value[-1:].expand(missing, *value.shape[1:])]).split(batch)
        if missing
        else value.split(batch)
    )


def _fitted(value: Any, said: Input) -> Any:
    """A value in the dtype and with the number of dimensions that the file asks for; all entries of
    a time are equal."""
    if not isinstance(value, Tensor):
        return value
    if said.shape is not None and value.ndim == 1:
        if len(said.shape) == 0:
            value = value[0]
        elif said.shape == (1,):
            value = value[:1]
        elif len(said.shape) > 1:
            value = value.view(-1, *(1,) * (len(said.shape) - 1))
    return value if said.dtype is None else value.to(said.dtype)


def read_as(path: Path, kind: str, read: Callable[[], Any]) -> Any:
    """The result of ``read``, whose errors name the file."""
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated")
            return read()
    except Exception as error:  # three readers, each with errors of its own
        lines = str(error).strip().splitlines() or [""]
        raise ValueError(
            f"{path} cannot be read as {kind}, is it complete? {type(error).__name__}: {lines[0]}"
        ) from error
