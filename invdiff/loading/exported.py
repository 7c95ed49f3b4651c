"""Networks that were exported as programs: TorchScript, ``torch.export`` and ONNX files.

    TorchScript   a zip archive with ``code/``            .ts, .pt, .pth, whatever its name says
    torch.export  a zip archive of a program              .pt2
    ONNX          run by ONNX Runtime, without gradients  .onnx

Their first two inputs are the state and the time; further ones are conditions. They carry their
architecture and their weights, but not what they predict, so ``predicts``, ``schedule``,
``data_range`` and, where the file does not show them, ``channels`` are asked for.

Reading a ``.pt2`` unpickles parts of it, and TorchScript is a program that may write files when it
runs. Both are therefore read only with ``allow_pickle``, as pickles are. An ONNX graph only
computes.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from invdiff.network import Denoiser, Facts
from invdiff.network.preconditioning import PREDICTS
from invdiff.plugins.registry import check_names, list_plugins

SUFFIXES = {".ts": "TorchScript", ".pt2": "torch.export", ".onnx": "ONNX"}
_ARCHIVES = (".ts", ".pt2", ".pt", ".pth", ".ckpt", ".bin")
_RISK = {
    "TorchScript": "TorchScript is a program, which may write files when it runs",
    "torch.export": "reading a torch.export program unpickles parts of it, which can run code",
}


class Input(NamedTuple):
    """What a file says of one input; None where it does not, or where a size is free."""

    name: str
    shape: tuple[int | None, ...] | None = None
    dtype: torch.dtype | None = None


def kind_of(path: Path) -> str | None:
    """``"TorchScript"``, ``"torch.export"`` or ``"ONNX"``, by what the file holds or else its
    suffix; None for anything else."""
    if path.suffix in _ARCHIVES and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = ["/".join(n.split("/")[1:]) for n in archive.namelist()] + archive.namelist()
        if "constants.pkl" in names and any(n.startswith("code/") for n in names):
            return "TorchScript"
        if "archive_format" in names or "serialized_exported_program.json" in names:
            return "torch.export"
    return SUFFIXES.get(path.suffix)


def load_exported(
    path: str | Path,
    *,
    allow_pickle: bool = False,
    conditions: Sequence[str] | None = None,
    time_scale: float = 1.0,
    **options: Any,
) -> Denoiser:
    """A Denoiser from a TorchScript, ``torch.export`` or ONNX file, whose first two inputs are the
    state and the time.

    Args:
        path: local file.
        allow_pickle: read TorchScript and ``torch.export``, which can do more than compute; only
            for files you trust.
        conditions: what the inputs after the first two are called here, in their order, e.g.
            ``["label"]`` for a network with ``num_classes``; by default as the file calls them.
        time_scale: what the schedule's time is multiplied by before the network sees it, e.g. 1000
            for a flow network that counts so.
        options: of :class:`~invdiff.network.Denoiser`. ``predicts``, ``schedule``, ``data_range``
            (None where there is none) and, unless the file shows them, ``channels`` must be given.

    Raises:
        ValueError: what is missing, all at once; a file that cannot be read; ONNX Runtime is not
            installed.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind is None:
        raise ValueError(
            f"{path} holds no exported network: TorchScript, torch.export (.pt2) or ONNX (.onnx)"
        )
    problems = []
    if kind in _RISK and not allow_pickle:
        problems.append(
            f"{_RISK[kind]}, so if you trust whoever made the file, say allow_pickle=True "
            "(--allow-pickle)"
        )
    needed = (
        "predicts",
        "schedule",
        "data_range",
        *(("channels",) if kind == "TorchScript" else ()),
    )
    problems += _asked([n for n in needed if n not in options])
    if problems:
        raise ValueError(f"{path} ({kind}): {'; and '.join(problems)}")
    if kind != "TorchScript" and options.get("dtype", torch.float32) != torch.float32:
        raise ValueError(
            f"{path} runs in the dtype it was exported in; export it again in another one, "
            "and leave out dtype (--dtype)"
        )

    net = {"TorchScript": _Script, "torch.export": _Program, "ONNX": _Onnx}[kind](path)
    if len(net.inputs) < 2:
        raise ValueError(
            f"{path} takes {len(net.inputs)} inputs; a denoiser takes the state and the "
            "time, then conditions if any"
        )
    net.rename(conditions)
    shape, time_type = net.inputs[0].shape, net.inputs[1].dtype
    found: dict[str, Any] = {"name": path.stem}
    if shape is not None and len(shape) == 4:
        if shape[1] is not None:
            found["channels"] = shape[1] - (options.get("cond_channels") or 0)
        if shape[2] is not None and shape[2] == shape[3]:
            found["image_size"] = shape[2]
    if time_type is not None and not time_type.is_floating_point:
        found["quantize"] = True
    if time_scale != 1.0:
        found["time"] = lambda t: time_scale * t
    if "channels" not in options and "channels" not in found:
        raise ValueError(f"{path} ({kind}): {_asked(['channels'])[0]}")
    denoiser = Denoiser(net, **(found | options))
    if denoiser.num_classes is not None and "label" not in net.conditions:
        raise ValueError(
            f"{path} takes {', '.join(net.conditions) or 'nothing'} besides state and time, "
            "but with num_classes it is given 'label'; "
            "conditions=['label', ...] says which input that is"
        )
    taken = ", ".join(i.name for i in net.inputs)
    denoiser.source |= {
        "kind": f"{kind} file",
        "path": str(path),
        "inputs": taken,
        "needs": ", ".join(net.facts.required) or None,
    }
    return denoiser


def _asked(missing: Sequence[str]) -> list[str]:
    """One sentence that asks for all that is missing, or none."""
    what = {
        "predicts": f"predicts= ({', '.join(PREDICTS)})",
        "schedule": f"schedule= ({', '.join(list_plugins('schedules'))})",
        "data_range": "data_range= of its images (such as (-1, 1); None if it knows no images)",
        "channels": "channels= of its images (None if it knows no images)",
    }
    if not missing:
        return []
    shown = {"predicts": "eps", "schedule": "linear", "data_range": "[-1,1]", "channels": "3"}
    flags = " ".join(f"model.{n}={shown[n]}" for n in missing)
    return [
        "it does not say everything that is needed, please give "
        f"{', '.join(what[n] for n in missing)}; on the command line {flags}"
    ]


class Exported(nn.Module):
    """An exported network under our calling convention ``net(x, t, **conditions)``.

    Attributes:
        inputs: what the file says of them, state and time first.
        conditions: names of the inputs after these; optional: those of them that have a default.
    """

    def __init__(self, path: Path, inputs: Sequence[Input], optional: Sequence[str] = ()) -> None:
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
        """What its file says; it is identified by that, as weights may be anywhere in a program."""
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


class _Script(Exported):
    def __init__(self, path: Path) -> None:
        module = _read(path, "TorchScript", lambda: torch.jit.load(path, map_location="cpu"))
        arguments = module.forward.schema.arguments[1:]
        super().__init__(
            path,
            [Input(a.name) for a in arguments],
            [a.name for a in arguments if a.has_default_value()],
        )
        self.module = module

    def run(self, args: list[Tensor]) -> Any:
        return self.module(*args)


class _Program(Exported):
    def __init__(self, path: Path) -> None:
        program = _read(path, "torch.export", lambda: torch.export.load(path))
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

    def train(self, mode: bool = True) -> _Program:
        """As it was exported: there is no other mode in it."""
        return self


class _Onnx(Exported):
    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ValueError(
                f"{path} needs ONNX Runtime, which is not installed: pip install "
                "onnxruntime (or onnxruntime-gpu), or invdiff with the "
                "extra [onnx]"
            ) from error
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        usable = onnxruntime.get_available_providers()
        providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in usable]
        session = _read(
            path,
            "ONNX",
            lambda: onnxruntime.InferenceSession(str(path), settings, providers=providers),
        )
        inputs = [
            Input(
                i.name,
                tuple(n if isinstance(n, int) else None for n in i.shape),
                _ONNX_TYPES.get(i.type),
            )
            for i in session.get_inputs()
        ]
        super().__init__(path, inputs)
        self.session = session

    def run(self, args: list[Tensor]) -> Any:
        fed = {
            i.name: a.detach().cpu().contiguous().numpy()
            for i, a in zip(self.inputs, args, strict=True)
        }
        try:
            (out, *_) = self.session.run(None, fed)
        except Exception as error:  # ONNX Runtime has many, none of them public
            raise ValueError(
                f"{self.path.name} failed in ONNX Runtime: {str(error).splitlines()[0]}"
            ) from error
        return torch.from_numpy(out).to(args[0].device)


_ONNX_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}


def _said(name: str, value: Any) -> Input:
    if not isinstance(value, Tensor):
        return Input(name)
    return Input(name, tuple(n if isinstance(n, int) else None for n in value.shape), value.dtype)


def _read(path: Path, kind: str, read: Callable[[], Any]) -> Any:
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
