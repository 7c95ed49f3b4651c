"""The global random states: kept from the checks, and watched by them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

Generators = dict[str, object]


def generators() -> Generators:
    """The state of every global generator, comparable."""
    legacy = np.random.get_state(legacy=False)
    assert isinstance(legacy, dict)
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (legacy["state"]["key"].tobytes(), legacy["state"]["pos"]),
        "random": random.getstate(),
    }


def moved(before: Generators) -> list[str]:
    """The global generators that were drawn from or seeded since."""
    return [name for name, state in generators().items() if state != before[name]]


def seed_all(seed: int) -> None:
    """Seeds every global generator."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every global generator seeded inside, and as it was afterwards."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seed_all(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])
