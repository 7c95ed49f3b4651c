"""Checks of baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invdiff.benchmarks.baselines import Baseline
from invdiff.problem import Measurement, make_operator
from invdiff.testing.imports import importing
from invdiff.testing.operators import photos
from invdiff.testing.priors import prior
from invdiff.testing.randomness import generators, moved
from invdiff.testing.report import Skip, distance, expect, within

SHAPE = (3, 32, 44)
PROBLEMS: dict[str, dict[str, Any]] = {
    "inpaint": {"fraction": 0.3},
    "sr": {"factor": 2},
    "denoise": {},
    "blur": {"sigma": 1.0},
}


@dataclass(frozen=True)
class Case:
    """A baseline under test, and the module whose import is tried."""

    baseline: Baseline
    module: str

    def measurements(self, images: int = 2) -> dict[str, Measurement]:
        """Those of the kit's problems that it declares to take."""
        found = {}
        for name, parameters in PROBLEMS.items():
            operator = make_operator(name, **parameters).bind(SHAPE)
            if self.baseline.requires is None or isinstance(operator, self.baseline.requires):
                found[name] = operator.measure(photos(images, *SHAPE).float(), sigma=0.05)
        return found

    def restored(self, measurement: Measurement, ids: list[int] | None = None) -> Tensor | None:
        """Its images; None where it says that the measurement does not fit."""
        denoiser = prior(3) if self.baseline.network else None
        try:
            return self.baseline(measurement, denoiser, seed=0, image_ids=ids)
        except ValueError:
            return None


def shapes(case: Case) -> str:
    """Images of the measurement's shape, float32 in [0, 1], or a refusal."""
    ran = []
    for name, m in case.measurements().items():
        x = case.restored(m)
        if x is None:
            continue
        expected = (len(m), *m.image_shape)
        expect(x.shape == expected, f"of {name} it makes {tuple(x.shape)}, expected {expected}")
        expect(x.dtype == torch.float32, f"it makes {x.dtype}")
        ran.append(name)
    if not ran:
        raise Skip("it takes none of the kit's problems")
    return f"restores {', '.join(ran)}"


def batch(case: Case) -> str:
    """An image alone is restored as it is in a batch."""
    worst, ran = 0.0, 0
    for m in case.measurements(3).values():
        together = case.restored(m)
        if together is None:
            continue
        alone = case.restored(m.select([2]), [2])
        if alone is None:
            raise AssertionError("it refuses an image alone that it restores in a batch")
        worst, ran = max(worst, distance(alone, together[2:])), ran + 1
    if not ran:
        raise Skip("it takes none of the kit's problems")
    return within("alone from in a batch of 3", worst, 1e-3)


def repeatable(case: Case) -> str:
    """The same seed makes the same images, and no global generator is advanced."""
    for m in case.measurements().values():
        before = generators()
        first, again = case.restored(m), case.restored(m)
        expect(not moved(before), f"it advances the global generator of {moved(before)}")
        same = first is again if first is None or again is None else torch.equal(first, again)
        expect(same, "two runs with one seed differ")
    return "equal to the bit"


def imports(case: Case) -> str:
    """Importing its module does nothing else."""
    return importing(case.module)


CHECKS: dict[str, Callable[[Case], str]] = {
    f.__name__: f for f in (shapes, batch, repeatable, imports)
}
