"""Files of parameters: safetensors, and those that ``torch.save`` writes, whatever their names."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from invdiff.loading.source import Source

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar", ".pkl")
"""Names of such files; others are recognised by their content."""

NVIDIA = (
    "is a pickle of whole objects, as NVIDIA publishes them: it needs their code and runs what it "
    "contains, so it is not read here. Export its weights once in a checkout of their repository: "
    "`import pickle, torch; net = pickle.load(open('network.pkl', 'rb'))['ema']; "
    "torch.save(net.model.state_dict(), 'network.pt')`"
)

POINTER = "is a pointer of Git LFS and not the file itself, which `git lfs pull` fetches"


def read(source: Source) -> Any:
    """The content of a file of parameters, on the CPU; None for other files.

    Raises:
        ValueError: it cannot be read, or only by running code.
    """
    path = source.file
    if path is None or (kind := _kind(path)) is None:
        return None
    if kind == "safetensors":
        return _safetensors(path)
    return _torch(path, source.allow_pickle)


def zip_names(source: Source) -> frozenset[str]:
    """Names of the entries of a zip archive, with and without the folder that all may lie in;
    empty for other files."""
    if source.file is None or not zipfile.is_zipfile(source.file):
        return frozenset()
    with zipfile.ZipFile(source.file) as archive:
        names = archive.namelist()
    return frozenset(names) | frozenset("/".join(n.split("/")[1:]) for n in names)


def _kind(path: Path) -> str | None:
    """``"safetensors"``, ``"torch"`` or None, by the content and else by the name.

    Raises:
        ValueError: it is empty, or something else under the name of such a file.
    """
    with path.open("rb") as file:
        begin = file.read(64)
    suffix = path.suffix.lower()
    if begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") < path.stat().st_size:
        return "safetensors"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = {name.split("/")[-1] for name in archive.namelist()}
        # What torch.jit.save writes has constants as well, and is a program.
        return "torch" if "data.pkl" in inside and "constants.pkl" not in inside else None
    if not begin.startswith((b"\x80", b"PK\3\4")) and suffix not in SUFFIXES:
        return None
    text = begin.lstrip()
    for wrong, what in (
        (not text, "is empty"),
        (text.startswith(b"version https://git-lfs"), POINTER),
        (text.startswith(b"<"), "is a page of the web, no checkpoint; download the file itself"),
        (suffix == ".pkl", NVIDIA),
    ):
        if wrong:
            raise ValueError(f"{path} {what}")
    return "safetensors" if suffix == ".safetensors" else "torch"


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read, is it complete? {error}") from error


def _torch(path: Path, allow_pickle: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not allow_pickle:
            what = f" ({named[1]})" if named else ""
            raise ValueError(
                f"{path} is not a plain file of tensors: it holds other objects{what} or is "
                "damaged. Reading such objects runs code from the "
                "file, so do it only for a file you trust: allow_pickle=True "
                "(--allow-pickle). Whoever made it can save its weights alone, "
                "torch.save(net.state_dict(), path), which anyone can read"
            ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read, is it complete? {_first_line(error)}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling runs any code, which may fail in any way
        raise ValueError(
            f"{path} cannot be unpickled: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
