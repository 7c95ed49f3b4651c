"""Files of science: arrays in their own units, with any number of channels and slices, read and
written with their metadata.

One module for each format, registered in the entry-point group ``invdiff.formats`` under the suffix
of its files, without the dot. It has

    read(path, part) -> Volume          part: which of several arrays of the file, or None
    encode(volume, path) -> bytes       a whole file of that name, with the volume's metadata
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from invdiff.files import write_atomically
from invdiff.images.formats.volume import Volume, check_axes
from invdiff.images.read import ImageError
from invdiff.plugins.registry import list_plugins, load

__all__ = ["Volume", "read_volume", "write_volume"]


def read_volume(path: str | Path, axes: str | None = None) -> Volume:
    """Reads an array with its units and metadata.

    Args:
        path: a file, or ``FILE:PART`` where it holds several arrays: the name of a dataset (HDF5),
            a variable (.mat, .npz) or an extension (FITS, by name or number).
        axes: one letter for each dimension of the array: Y and X, C for channels (S for interleaved
            ones), any other for slices; None takes what the file says, or a guess that is said in
            ``Volume.notes``.

    Raises:
        ImageError: a missing or broken file, a format that is not known or whose package is not
            installed, several arrays of which none was chosen, no array.
    """
    file, part = split_part(path)
    if not file.is_file():
        raise ImageError(f"no file at {file}")
    try:
        volume = load("formats", suffix_of(file)).read(file, part)
    except ImageError:
        raise
    except Exception as error:  # the packages raise all sorts on broken files
        raise ImageError(
            f"{file} cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    if axes is not None:
        check_axes(axes, volume.array.shape)
        volume = replace(volume, axes=axes, notes=())
    return volume


def write_volume(path: str | Path, volume: Volume) -> None:
    """Writes an array in the format of the suffix; the file appears whole or not at all.

    The metadata is kept where the volume was read from a file of the same format; another format
    takes the array, its axes and its unit where it can hold them.

    Raises:
        ImageError: a format that is not known or cannot hold the array, or whose package is not
            installed.
    """
    path = Path(path).expanduser()
    if not path.parent.is_dir():
        raise ImageError(f"cannot write {path}: there is no folder {path.parent}; create it first")
    format = load("formats", suffix_of(path))
    if volume.format is not format:
        volume = replace(volume, metadata=None, format=format)
    try:
        content = format.encode(volume, path)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"{path} cannot hold {volume.array.dtype} of shape {volume.array.shape}: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error
    write_atomically(path, content)


def split_part(path: str | Path) -> tuple[Path, str | None]:
    """``FILE:PART`` as the two, and anything else as a file alone."""
    whole = Path(path).expanduser()
    file, colon, part = str(whole).rpartition(":")
    if colon and part and not whole.exists() and Path(file).is_file():
        return Path(file), part
    return whole, None


def suffix_of(path: Path) -> str:
    """The longest ending of the name that is registered, without its dot.

    Raises:
        ImageError: none is.
    """
    known = list_plugins("formats")
    parts = path.name.lower().split(".")[1:]
    for k in range(len(parts)):
        if (suffix := ".".join(parts[k:])) in known:
            return suffix
    raise ImageError(
        f"{path} has no suffix of a known format; known: {', '.join(f'.{k}' for k in known)}"
    )
