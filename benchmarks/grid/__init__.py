"""Operators × methods × models × images × seeds: restorations that are scored against the truth.

Every method sees the same measurements: each is simulated once, kept in ``measurements/`` and
identified by its hash. Images of one shape are restored in batches, always the same ones; image k
has its own noise, whatever batch it is in. A cell is one image restored by one row of the table;
its record is described by ``record.schema.json``.

What a suite of the kind ``grid`` says (``configs/suite/base/grid.yaml`` has the values where it is
silent):

images     of :class:`~invdiff.benchmarks.dataset.Dataset`
operators  label: parameters, with ``name`` where the label is neither an operator nor a protocol
methods    label: values, a list is a sweep over every combination; ``name`` where it is not the
           label (a list is a chain); ``preset``; ``operators``: only under these labels. Values
           that are not given are those of ``invdiff solve`` for this model and operator.
baselines  likewise, of :mod:`invdiff.benchmarks.baselines`
models     label: options of ``load_model``, with ``name`` where it is not the label
"""

from invdiff.benchmarks.grid.suite import Grid

__all__ = ["Grid"]
