"""The report of a list of checks: the outcome of each, as text, as plain data, or as an error."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from invdiff.plugins.registry import check_names
from invdiff.testing.randomness import seeded

TINY = 1e-30


class Skip(Exception):
    """A check that does not apply; says why."""


class CheckFailed(AssertionError):
    """Checks failed that were not expected to.

    Attributes:
        report: all of them.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(f"\n{report}")
        self.report = report


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check.

    Attributes:
        status: ``"passed"``, ``"failed"``, ``"skipped"``; ``"expected"``, a failure that was
            declared; ``"unexpected"``, a pass where a failure was declared.
        saw: figures and tolerances, or why it failed or was skipped.
        reason: the declared one of an expected failure.
        seconds: how long it took.
    """

    check: str
    status: str
    saw: str
    reason: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        word = {
            "passed": "ok",
            "failed": "FAILED",
            "skipped": "skipped",
            "expected": "fails as declared",
            "unexpected": "PASSES NOW",
        }
        reason = f" (declared: {self.reason})" if self.reason else ""
        return f"{self.check:16}  {word[self.status]:7}  {self.saw}{reason}"


@dataclass(frozen=True)
class Report:
    """The outcomes of all checks of one plug-in."""

    kind: str
    name: str
    outcomes: tuple[Outcome, ...]

    def of(self, status: str) -> list[Outcome]:
        """The outcomes of one status."""
        return [outcome for outcome in self.outcomes if outcome.status == status]

    @property
    def ok(self) -> bool:
        """Whether nothing failed that was not expected to."""
        return not self.of("failed")

    @property
    def summary(self) -> str:
        """One line: how many checks ended how."""
        statuses = dict.fromkeys(outcome.status for outcome in self.outcomes)
        return f"{self.kind} {self.name}: " + ", ".join(
            f"{len(self.of(status))} {status}" for status in statuses
        )

    def __str__(self) -> str:
        return "\n".join([self.summary, *(f"  {outcome}" for outcome in self.outcomes)])

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "kind": self.kind,
            "name": self.name,
            "ok": self.ok,
            "checks": [asdict(outcome) for outcome in self.outcomes],
        }


@dataclass(frozen=True)
class Plan:
    """Checks that are about to be run on one plug-in.

    Args:
        checks: name -> function that returns what it saw, raises :class:`Skip`, or anything else
            where it fails.
        expected: check -> why it is known to fail.
        only: names of the checks to run; None: all.
    """

    kind: str
    name: str
    checks: Mapping[str, Callable[[], str]]
    expected: Mapping[str, str]
    only: Sequence[str] | None = None

    def __post_init__(self) -> None:
        for names in (self.expected, self.only or ()):
            check_names(f"the kit for {self.kind}", names, list(self.checks))

    def outcomes(self) -> Iterator[Outcome]:
        """Runs the checks one after the other. None sees the global random state, nor what another
        left behind."""
        for name, check in self.checks.items():
            if self.only is not None and name not in self.only:
                continue
            begun = time.perf_counter()
            # Toy problems make plug-ins warn of sizes and steps, which is right and of no use here.
            with seeded(0), torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                status, saw = _run(check)
            reason = self.expected.get(name, "")
            status = (
                {"failed": "expected", "passed": "unexpected"}.get(status, status)
                if reason
                else status
            )
            yield Outcome(name, status, saw, reason, round(time.perf_counter() - begun, 3))

    def report(self) -> Report:
        """Runs the checks.

        Raises:
            CheckFailed: one failed that was not expected to.
        """
        report = Report(self.kind, self.name, tuple(self.outcomes()))
        if not report.ok:
            raise CheckFailed(report)
        for outcome in report.of("unexpected"):
            warnings.warn(
                f"{self.kind} {self.name}: {outcome.check} passes; its expected failure can go",
                stacklevel=3,
            )
        return report


def _run(check: Callable[[], str]) -> tuple[str, str]:
    try:
        return "passed", check()
    except Skip as why:
        return "skipped", str(why)
    except AssertionError as error:
        return "failed", str(error)
    except Exception as error:
        if isinstance(error.__cause__, ImportError):  # a package that it needs is not installed
            return "skipped", str(error)
        return "failed", f"{type(error).__name__}: {error}"


def expect(condition: bool, otherwise: str) -> None:
    """Fails the check, saying what is wrong, unless the condition holds. (``assert`` is silent
    under ``python -O``.)"""
    if not condition:
        raise AssertionError(otherwise)


def plain(record: Any) -> str:
    """A record is plain data that is the same in every process."""
    text = json.dumps(record)
    address = re.search(r"\w+ (object )?at 0x\w+", text)
    expect(
        address is None,
        f"the record holds an object that only this process knows: {address and address[0]}",
    )
    return f"{len(text)} characters of JSON"


def within(what: str, value: float, tolerance: float) -> str:
    """Fails unless ``value <= tolerance``; returns the figures."""
    expect(value <= tolerance, f"{what} is {value:.3g}, tolerance {tolerance:.0e}")
    return f"{what} {value:.1e} <= {tolerance:.0e}"


def distance(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖; inf where shapes differ or a is not finite."""
    if a.shape != b.shape or not bool(a.isfinite().all()):
        return float("inf")
    return float((a - b).norm() / max(float(b.norm()), TINY))
