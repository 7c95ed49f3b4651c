"""Where the tasks of a benchmark run: on this machine, in a Ray cluster, as jobs of SLURM.

Workers get plain data (the suite's name, tasks, folder and context) and import the suite
themselves. A task whose worker dies, as when memory runs out or a node is lost, is evaluated once
more; the second time it is recorded as failed, and the others go on. When a run ends or is
interrupted, so do its workers.
"""

from invdiff.benchmarks.launchers.make import make_launcher

__all__ = ["make_launcher"]
