"""Tables from records of grids: one for each benchmark, a row for each method, means over images
with their intervals.

A table is plain data (what ``invdiff leaderboard --format json`` writes and the HTML page shows):

benchmark  the cells' benchmark, and its ``hash``
baseline   label of the row that others are compared with, or None
metrics    ``{"name", "title", "better"}``, better ``"higher"``, ``"lower"`` or None: such as
           consistency, which is not ranked
rows       the complete ones first, by the first metric that is ranked

and a row: ``id``, ``label``, ``method`` (its label in the suite), ``kind``, ``values``, ``model``;
``complete``, ``images`` of them finished, ``of``, ``problems``; ``scores``, ``mean``
(of the posterior mean) and ``spread`` (of the samples), for each figure ``{"mean", "half", "n",
"rank"}``; ``paired``, the differences of ranked metrics to the baseline, ``{"mean", "half", "n"}``;
``cost``; ``environment``, with a list where cells differ; ``cells``, those with a result.
"""

from invdiff.benchmarks.leaderboard.render import cautions, markdown
from invdiff.benchmarks.leaderboard.table import tables
from invdiff.benchmarks.leaderboard.types import COSTS, SECTIONS, Row, Table

__all__ = ["COSTS", "SECTIONS", "Row", "Table", "cautions", "markdown", "tables"]
