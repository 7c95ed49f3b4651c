"""Models of the Hugging Face hub, fetched only when asked for by name: configurations and
safetensors, never code or pickles."""

from __future__ import annotations

import re
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from invdiff.loading import folder
from invdiff.loading.source import Source
from invdiff.network import Denoiser

PATTERNS = (
    "*.json",
    "*diffusion_pytorch_model*.safetensors",
    "text_encoder*/*.safetensors",
    "bert/*.safetensors",
    "tokenizer*/*",
    "README.md",
)
SKIPPED = ("*non_ema*",)
TIMEOUT = 10.0
"""Seconds to wait for the hub's first answer."""

_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(@(?P<revision>[^:@]+))?(:(?P<subfolder>[\w./-]+))?"
)
_FILES = (
    ".py",
    ".safetensors",
    ".pt",
    ".pth",
    ".ckpt",
    ".bin",
    ".pkl",
    ".onnx",
    ".json",
    ".pt2",
    ".ts",
)


class HubId(NamedTuple):
    """``owner/name``, at a revision (branch, tag or commit), in a folder within."""

    repo: str
    revision: str
    subfolder: str


def recognises(source: Source) -> bool:
    """Whether it is written as an id, and nothing of that name is here."""
    given = source.given
    return source.path is None and isinstance(given, str) and parse_hub_id(given) is not None


@wraps(folder.load, assigned=())  # it has the same options
def load(source: Source, **options: Any) -> Denoiser:
    """A Denoiser from a folder of the hub; options as for a folder. Pickles are not downloaded, so
    none are read.

    Raises:
        ValueError: the hub does not answer, or does not have it.
    """
    wanted = parse_hub_id(str(source.given))
    if wanted is None:
        raise ValueError(
            f"{source} is no model of the hub, which is written owner/name[@revision][:subfolder]"
        )
    place = download(wanted)
    denoiser = folder.load(Source(place), **{"name": wanted.repo} | options)
    denoiser.source |= {
        "kind": "model of the Hugging Face hub",
        "id": str(source.given),
        "path": str(place),
    }
    return denoiser


def parse_hub_id(text: str) -> HubId | None:
    """``owner/name[@revision][:subfolder]``; None for what can only be a path."""
    match = _ID.fullmatch(text)
    if (
        match is None
        or match["repo"].endswith(_FILES)
        or ".." in Path(match["subfolder"] or "").parts
    ):
        return None
    return HubId(match["repo"], match["revision"] or "main", (match["subfolder"] or "").strip("/"))


def download(wanted: HubId) -> Path:
    """The local folder of a model of the hub, from its cache where the hub cannot be reached or
    ``HF_HUB_OFFLINE`` is set.

    Raises:
        ValueError: it is unknown, not accessible, or neither reachable nor in the cache.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    patterns = [f"{wanted.subfolder}/{p}" if wanted.subfolder else p for p in PATTERNS]
    reason: Exception | None = None
    try:  # snapshot_download waits for its first answer without end
        HfApi().model_info(wanted.repo, revision=wanted.revision, timeout=TIMEOUT)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(_message(wanted, "the hub does not have it, or not for you")) from error
    except Exception as error:  # whatever the network does: the cache may have it
        reason = error
    try:
        root = Path(
            snapshot_download(
                wanted.repo,
                revision=wanted.revision,
                allow_patterns=patterns,
                ignore_patterns=list(SKIPPED),
                local_files_only=reason is not None,
            )
        )
    except Exception as error:
        why = (
            "HF_HUB_OFFLINE is set"
            if constants.HF_HUB_OFFLINE
            else f"{type(reason or error).__name__}: {reason or error}"
        )
        raise ValueError(
            _message(
                wanted, f"{constants.ENDPOINT} gave nothing ({why}) and the cache does not have it"
            )
        ) from error
    place = root / wanted.subfolder
    if not place.is_dir():
        raise ValueError(
            f"{wanted.repo} has no folder {wanted.subfolder!r} with a configuration or safetensors"
        )
    return place


def _message(wanted: HubId, why: str) -> str:
    return (
        f"no local folder {wanted.repo}, and as a model of the hub, {wanted.repo} at "
        f"revision {wanted.revision!r}: {why}. Download it where there "
        f"is a network (hf download {wanted.repo} --local-dir FOLDER) and give that FOLDER"
    )
