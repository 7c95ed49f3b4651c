"""No guidance: an unconditional sample of the prior. The measurement is not looked at."""

from __future__ import annotations

from invdiff.sampling import Method


def none() -> Method:
    """Sampling from the prior, with whatever transition and itinerary the run has."""
    return Method()
