"""Trackers of experiments: each record of a run is logged as it is written, ``invdiff bench --log
NAME``.

A tracker is a class that is made with the name of the run and its folder; it has ``log(step,
name, values)``, and ``close()``, which is called however the run ends.
"""

from invdiff.benchmarks.trackers.base import Tracker, figures, make_tracker

__all__ = ["Tracker", "figures", "make_tracker"]
