"""Metrics of the package pyiqa (extra ``[iqa]``), by its own names: ``pyiqa:niqe``,
``pyiqa:dists``. Those that need no reference are given the restoration alone.

Nothing is downloaded: a metric whose weights are not on this machine is refused with the address
of the file and the place where it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch import Tensor

from invdiff.benchmarks.metrics import rated


@cache
def pyiqa(member: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A metric of pyiqa, as :mod:`invdiff.benchmarks.metrics` describes metrics.

    Args:
        member: its name there, see ``pyiqa.list_models()``.

    Raises:
        ValueError: the extra is not installed, no such metric, or its weights are not here.
    """
    try:
        import pyiqa as package
    except ImportError as error:
        raise ValueError(
            f"pyiqa:{member} needs a package that is not here: pip install 'invdiff[iqa]' ({error})"
        ) from error
    if member not in (known := package.list_models()):
        raise ValueError(f"pyiqa has no metric {member!r}; it has {', '.join(known)}")
    with _offline(member):
        network = package.create_metric(member, device="cpu")
    referenced = network.metric_mode == "FR"

    def metric(x: Tensor, reference: Tensor) -> Tensor:
        images = [v.float().clamp(0, 1).cpu() for v in ((x, reference) if referenced else (x,))]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return network(*images).view(-1).cpu()

    return rated(
        title=member.upper(),
        better="lower" if network.lower_better else "higher",
        backend="pyiqa",
        network=member,
        weights=_hash(network),
    )(metric)


def _hash(network: Any) -> str:
    """SHA-256 of the values of a metric's network; of no weights it is that of nothing."""
    from invdiff.network.weights import weights_hash

    return weights_hash(network)


@contextmanager
def _offline(member: str) -> Iterator[None]:
    """Turns every download into a refusal."""

    def refuse(url: str, target: str = "", *_: Any, **__: Any) -> NoReturn:
        raise _MissingWeights(
            f"the weights of pyiqa:{member} are not here, and are not downloaded by invdiff; get "
            f"{url} and put it to {target}"
        )

    def refuse_hub(repo_id: str, filename: str = "", **_: Any) -> NoReturn:
        refuse(f"{filename} of https://huggingface.co/{repo_id}", "the cache of huggingface_hub")

    with (
        patch("torch.hub.download_url_to_file", refuse),
        patch("pyiqa.utils.download_util.download_url_to_file", refuse),
        patch("huggingface_hub.hf_hub_download", refuse_hub),
    ):
        try:
            yield
        except _MissingWeights:
            raise
        except Exception as error:  # whatever a package that is missing raises
            raise ValueError(
                f"pyiqa:{member} cannot be made: {type(error).__name__}: {error}"
            ) from error


class _MissingWeights(ValueError):
    """The weights of a metric are not on this machine."""
