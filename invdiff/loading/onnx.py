"""ONNX files (``.onnx``), run by ONNX Runtime, without gradients. An ONNX graph only computes, so
reading one needs no permission."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.loading.exported import Exported, Input, denoiser, read_as
from invdiff.loading.source import Source
from invdiff.network import Denoiser

TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}


def recognises(source: Source) -> bool:
    """Whether it is such a file, by its name."""
    return source.file is not None and source.file.suffix.lower() == ".onnx"


def load(
    source: Source,
    *,
    conditions: Sequence[str] | None = None,
    time_scale: float = 1.0,
    **options: Any,
) -> Denoiser:
    """A Denoiser, see :func:`invdiff.loading.exported.denoiser`."""
    return denoiser(Onnx, source, conditions, time_scale, options)


class Onnx(Exported):
    """Runs a graph in ONNX Runtime."""

    kind = "ONNX"

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
        session = read_as(
            path,
            "ONNX",
            lambda: onnxruntime.InferenceSession(str(path), settings, providers=providers),
        )
        inputs = [
            Input(
                i.name,
                tuple(n if isinstance(n, int) else None for n in i.shape),
                TYPES.get(i.type),
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
