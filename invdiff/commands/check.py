"""``invdiff check NAME``: the plug-in kit on what is installed."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import EntryPoint

from invdiff.plugins.registry import find
from invdiff.testing.plans import KINDS, plan
from invdiff.testing.report import Outcome, Report


def run(args: argparse.Namespace) -> None:
    """Checks the plug-ins one after the other and prints what each check saw, as lines or, at the
    end, as JSON.

    Raises:
        ValueError: nothing to check has that name; checks failed that were not declared to.
    """
    found = [(kind, point) for kind, point in find(args.name) if kind in KINDS]
    if not found:
        raise ValueError(f"nothing of {args.name!r} is of a kind that is checked")
    lines = sys.stderr if args.json else sys.stdout
    reports = []
    for k, (kind, point) in enumerate(found, start=1):
        print(f"{kind} {point.name}  ({k} of {len(found)})", file=lines, flush=True)
        reports.append(_report(kind, point, quiet=args.json))
    failed = [
        f"{report.name} {outcome.check}" for report in reports for outcome in report.of("failed")
    ]
    if args.json:
        print(
            json.dumps(
                {"ok": not failed, "plugins": [report.as_dict() for report in reports]}, indent=2
            )
        )
    else:
        print(
            f"{len(reports)} plug-ins, {sum(len(report.outcomes) for report in reports)} "
            f"checks: {_count(reports)}"
        )
    if failed:
        raise ValueError(f"{len(failed)} checks failed: {', '.join(failed)}")


def _report(kind: str, point: EntryPoint, quiet: bool) -> Report:
    """All that was seen of one plug-in, each line printed when it is known."""
    outcomes = []
    try:
        for outcome in plan(kind, point.name).outcomes():
            outcomes.append(outcome)
            if not quiet:
                print(f"  {outcome}", flush=True)
    except Exception as error:  # it cannot even be made; the others are checked all the same
        outcomes.append(Outcome("made", "failed", f"{type(error).__name__}: {error}"))
        if not quiet:
            print(f"  {outcomes[-1]}", flush=True)
    return Report(kind, point.name, tuple(outcomes))


def _count(reports: list[Report]) -> str:
    statuses = [outcome.status for report in reports for outcome in report.outcomes]
    words = {"expected": "failed as declared", "unexpected": "passed though declared to fail"}
    return ", ".join(
        f"{statuses.count(status)} {words.get(status, status)}"
        for status in dict.fromkeys(statuses)
    )
