"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: Path, content: bytes | str) -> None:
    """Writes to a temporary file beside ``path`` and renames it, so that a killed run leaves no
    half-written file. A file that is replaced keeps its permissions; a new one has the umask's."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)  # else the name may outlive a power failure, and the content not
        known = path.is_file() and not path.is_symlink()
        os.chmod(temporary, path.stat().st_mode & 0o777 if known else 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_array(path: Path, values: Tensor) -> None:
    """The same for the numbers of a tensor, as a file of NumPy (``.npy``)."""
    import numpy as np

    content = io.BytesIO()
    np.save(content, values.detach().cpu().numpy())
    write_atomically(path, content.getvalue())


def _umask() -> int:
    """The process's umask, which can be read only by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
