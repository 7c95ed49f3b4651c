"""Pairs of an image and its measurement, which ``invdiff calibrate`` reads: photographs, or the
slices of files of science."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from invdiff import images
from invdiff.images.formats.scan import Scan, find_files, is_scan
from invdiff.problem import LinearOperator, Operator

Pair = tuple[Tensor, Tensor]
"""An image (1, C, H, W) and its measurement, float64."""
MOST = 32
"""Slices of a file that are used: of more, as many evenly spaced ones."""
FLAT = 1e-3
"""Images whose standard deviation is below this share of the largest have no contrast."""


def read_pairs(args: argparse.Namespace, operator: Operator) -> tuple[list[Pair], list[str]]:
    """The pairs, and sentences for the user about what was left out.

    Raises:
        ValueError: files or slices that do not pair, or measurements that the operator does not
            make of such images.
    """
    sharp, measured = find_files(args.input), find_files(args.measurement)
    if len(sharp) != len(measured):
        raise ValueError(
            f"{len(sharp)} images and {len(measured)} measurements are no pairs: give as many of "
            "each, in the same order"
        )
    pairs: list[Pair] = []
    notes: list[str] = []
    for one, other in zip(sharp, measured, strict=True):
        if is_scan(one, args.range) != is_scan(other, args.range):
            raise ValueError(
                f"{one} and {other} are no pair: one is a picture and one a file of science"
            )
        if is_scan(one, args.range):
            found, said = _slices(Scan(one, args.range, args.axes), other, operator)
            notes += said
        else:
            if args.axes is not None:
                raise ValueError(f"--axes is for files of science, and {one} is a picture")
            found = [(_photograph(one), _photograph(other))]
        for x, y in found:
            wanted = operator.bind(tuple(x.shape[1:])).measurement_shape
            if tuple(y.shape[1:]) != wanted and y.shape != x.shape:
                raise ValueError(
                    f"{other} has shape {tuple(y.shape[1:])}, but {operator.kind} gives {wanted} "
                    f"of {one}, {tuple(x.shape[1:])}"
                )
        pairs += found
    return pairs, notes


def _photograph(path: str | Path) -> Tensor:
    return images.read_image(Path(path)).double()


def _slices(scan: Scan, other: str | Path, operator: Operator) -> tuple[list[Pair], list[str]]:
    """The slices of two files in units of the width of the first one's range, which a linear
    operator commutes with."""
    measured = Scan(other, scan.data_range, scan.axes)
    if len(scan) != len(measured):
        raise ValueError(
            f"{scan.path} has {len(scan)} slices and {other} {len(measured)}: they do not pair"
        )
    low, high = scan.range
    if low != 0 and not isinstance(operator, LinearOperator):
        raise ValueError(
            f"{operator.kind}, which is not linear, needs a --range that begins at 0, got "
            f"{low:g},{high:g}"
        )
    x, y = (_real(s.slices) / (high - low) for s in (scan, measured))
    contrast = x.flatten(1).std(1)
    seen = (contrast > FLAT * contrast.max()).nonzero()[:, 0]
    if len(seen) == 0:
        raise ValueError(f"{scan.path} has no contrast, which an operator could be known by")
    kept = seen[torch.linspace(0, len(seen) - 1, min(MOST, len(seen))).round().long()]
    notes = []
    if len(seen) < len(scan):
        notes.append(f"{scan.stem}: slices left out for want of contrast: {len(scan) - len(seen)}")
    if len(kept) < len(seen):
        notes.append(f"{scan.stem}: {MOST} of {len(seen)} slices are used, evenly spaced")
    return [(x[[k]], y[[k]]) for k in kept.tolist()], notes


def _real(slices: Tensor) -> Tensor:
    """Complex numbers as real and imaginary part, float64."""
    parts = torch.cat([slices.real, slices.imag], 1) if slices.is_complex() else slices
    return parts.double()
