"""Where the tasks of a benchmark run: on this machine, in a Ray cluster, as jobs of SLURM.

A launcher is a callable (suite, tasks, folder, context) that yields each task with its records, see
:data:`~invdiff.benchmarks.harness.Launcher`. What is registered in the entry-point group
``invdiff.launchers`` makes one: it takes the number of workers and options of its own.

Workers get plain data and the suite. A task whose worker dies, as when memory runs out or a node is
lost, is evaluated once more; the second time it is recorded as failed, and the others go on. When a
run ends or is interrupted, so do its workers.
"""

from invdiff.benchmarks.launchers.make import make_launcher

__all__ = ["make_launcher"]
