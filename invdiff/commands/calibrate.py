"""``invdiff calibrate``: a parameter of an operator from images and their measurements.

    theta = argmin  Σ ‖y − A_theta(x)‖² / m

over the pairs, by L-BFGS through the operator, which is differentiable in its parameters. What lies
beyond the border of a photograph is unknown, so that a blur is compared where it does not reach
there, unless its border is given. The error
is that of the mean of as many independent searches as there are groups of data: the pairs, of more
than eight as many runs of neighbours, or the four quarters of the measurement of a single one.

The slices of a file of science are pairs, in units of the width of its range.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.commands.choice import MODEL
from invdiff.commands.common import configure
from invdiff.commands.folder import check_paths
from invdiff.commands.pairs import Pair, read_pairs
from invdiff.commands.unknown import picture
from invdiff.files import write_array, write_atomically
from invdiff.images import write_image
from invdiff.images.formats import split_part
from invdiff.images.formats.scan import find_files
from invdiff.plugins.registry import load
from invdiff.problem import Operator, make_operator

Parts = Callable[[Tensor], Sequence[Tensor]]
ITERATIONS = 200
GROUPS = 8
"""Searches that the error is found from, at most."""


def run(args: argparse.Namespace) -> None:
    """Writes the file, and for a kernel KERNEL.npy and KERNEL.png beside it.

    Raises:
        ValueError: pairs that do not fit, or a parameter that is not sought.
    """
    check_paths(args, ("input", "measurement", "output"))
    file = Path(args.output or f"{args.operator}.yaml").expanduser()
    bare = argparse.Namespace(**vars(args) | {"model": MODEL, "upscale": None})
    node: dict[str, Any] = configure(bare, args.operator, ["none"], "none")["operator"]
    name = args.parameter or _default(node)
    _check_output(args, file, beside=name == "kernel")
    start, made = _sought(node, name)
    pairs, notes = read_pairs(args, made(start))
    made, start, of = _free(made, start, name, pairs[0][0])
    whole = least_squares(made, start, pairs, lambda r: [r])
    if len(pairs) == 1:
        parts = [least_squares(made, start, pairs, _quarter(k)) for k in range(4)]
    else:
        runs = min(GROUPS, len(pairs))
        ends = [k * len(pairs) // runs for k in range(runs + 1)]
        parts = [
            least_squares(made, start, pairs[first:last], lambda r: [r])
            for first, last in pairwise(ends)
        ]
    whole, values = of(whole), torch.stack([of(part) for part in parts])
    error = values.std(0, correction=1) / len(values) ** 0.5
    if name == "kernel":
        from invdiff.operators.kernel_estimate import onto_simplex

        whole = onto_simplex(whole.view(1, -1)).view_as(whole)
    found = _sought(node, name)[1](whole)
    misfit = sum(float(residual(y, found(x)).square().mean()) for x, y in pairs) / len(pairs)
    said = _write(file, node, name, whole, error, misfit**0.5, len(pairs))
    if not args.quiet:
        print("\n".join([*notes, said]))


def least_squares(
    made: Callable[[Tensor], Operator], start: Tensor, pairs: Sequence[Pair], parts: Parts
) -> Tensor:
    """The parameter that explains some parts of the measurements best."""
    theta = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [theta], max_iter=ITERATIONS, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )
    scale = sum(float(y.var()) for _, y in pairs)

    def loss() -> Tensor:
        optimiser.zero_grad()
        operator = made(theta)
        value = torch.stack(
            [r.square().mean() for x, y in pairs for r in parts(residual(y, operator(x)))]
        ).sum()
        value = value / scale
        value.backward()
        return value

    optimiser.step(loss)
    found = theta.detach()
    if not bool(found.isfinite().all()):
        raise ValueError("the search did not end at a finite value; start it nearer to the truth")
    return found


def residual(y: Tensor, made: Tensor) -> Tensor:
    """y - A(x) where both are: of a photograph, in the middle, which A computes without its
    border."""
    height, width = (min(n, m) for n, m in zip(y.shape[-2:], made.shape[-2:], strict=True))

    def middle(v: Tensor) -> Tensor:
        top, left = (v.shape[-2] - height) // 2, (v.shape[-1] - width) // 2
        return v[..., top : top + height, left : left + width]

    return middle(y) - middle(made)


def _quarter(k: int) -> Parts:
    """One quarter of an image."""

    def part(r: Tensor) -> list[Tensor]:
        rows, columns = r.shape[-2] // 2, r.shape[-1] // 2
        top, left = (k // 2) * rows, (k % 2) * columns
        return [r[..., top : top + rows, left : left + columns]]

    return part


def _check_output(args: argparse.Namespace, file: Path, beside: bool) -> None:
    """Refuses files that ``solve`` would not read, and to lose what is there.

    Args:
        beside: whether an array and a picture are written beside the file.
    """
    if file.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--output is the file of an operator, NAME.yaml, got {file}")
    given = {
        split_part(p)[0].resolve()
        for what in (args.input, args.measurement)
        for p in find_files(what)
    }
    for path in [file, *(file.with_suffix(s) for s in (".npy", ".png") if beside)]:
        if path.resolve() in given:
            raise ValueError(f"{path} is an input and would be replaced; choose another --output")
        if path.exists() and not args.overwrite:
            raise ValueError(f"{path} exists; choose another --output or add --overwrite")


def _default(node: dict[str, Any]) -> str:
    if "kernel" in node and "kernel_size" in node:
        return "kernel"
    raise ValueError(
        f"say which parameter of {node['name']} is sought: --parameter NAME, one that is a number"
    )


def _sought(node: dict[str, Any], name: str) -> tuple[Tensor, Callable[[Tensor], Operator]]:
    """Where the search starts, and the operator of a value."""
    known = inspect.signature(load("operators", node["name"])).parameters
    given = {k: v for k, v in node.items() if k != "name"}
    if "border" in known and given.get("border") is None:
        given["border"] = "valid"
    if name == "kernel" and "kernel_size" in known:
        size = given["kernel_size"] or 15
        start = torch.full((size, size), 1 / size**2, dtype=torch.float64)
    elif name in known and type(given.get(name)) in (int, float):
        start = torch.tensor(float(given[name]), dtype=torch.float64)
    else:
        numbers = [k for k, v in given.items() if type(v) in (int, float)]
        raise ValueError(
            f"{node['name']} has no parameter {name!r} that is a number; it has "
            f"{', '.join(numbers) or 'none'}"
        )
    return start, lambda value: make_operator(node["name"], **given | {name: value})


def _free(
    made: Callable[[Tensor], Operator], start: Tensor, name: str, x: Tensor
) -> tuple[Callable[[Tensor], Operator], Tensor, Callable[[Tensor], Tensor]]:
    """The operator of a number that may be any, where the search for it starts, and the parameter
    of it: its exponential where the operator refuses what is not positive, else itself.

    Raises:
        ValueError: a measurement that does not change smoothly with the parameter.
    """
    with torch.enable_grad():
        try:
            smooth = made(start.clone().requires_grad_())(x).requires_grad
        except TypeError:
            smooth = False
    if not smooth:
        raise ValueError(
            f"what is measured does not change smoothly with {name}, so that the search has no "
            f"direction; try some values: solve --measurement FILE operator.{name}=[...]"
        )
    if start.ndim == 0 and start > 0:
        try:
            made(-start)
        except ValueError:
            return lambda value: made(value.exp()), start.log(), torch.exp
    return made, start, lambda value: value


def _write(
    file: Path,
    node: dict[str, Any],
    name: str,
    value: Tensor,
    error: Tensor,
    misfit: float,
    pairs: int,
) -> str:
    """Writes the file; returns what is said of it."""
    from omegaconf import OmegaConf

    file.parent.mkdir(parents=True, exist_ok=True)
    of = f"{pairs} pair{'s' if pairs > 1 else ' (error from its quarters)'}"
    if value.ndim:
        beside = file.with_suffix(".npy")
        write_array(beside, value)
        write_image(file.with_suffix(".png"), picture(value))
        relative = float(error.norm() / value.norm())
        said = f"{name}: error {100 * relative:.1f} % of its norm, from {of}"
        stored: Any = str(beside.resolve())
    else:
        said = f"{name}: {float(value):.5g} ± {float(error):.2g}, from {of}"
        stored = float(value)
    said += f"; A(x) is off y by {misfit:.4g} (root mean square)"
    text = f"# {said}\n" + OmegaConf.to_yaml(OmegaConf.create(node | {name: stored}))
    write_atomically(file, text)
    return f"{said} -> {file}"
