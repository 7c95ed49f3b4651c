"""Figures for papers, by Matplotlib (extra ``[plot]``): pictures with insets, and quality against
cost."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from invdiff.benchmarks.leaderboard.page import read_picture
from invdiff.benchmarks.leaderboard.rank import SIGN
from invdiff.benchmarks.leaderboard.types import Cell, Row, Table
from invdiff.files import write_atomically
from invdiff.images import read_image

IMAGES = 4
"""That are shown, where nobody says how many."""
SHARE = 4
"""An inset shows a window of a fourth of the image, enlarged twice."""
WIDTH = 1.1
"""Inches of a picture."""


def write(tables: Sequence[Table], path: Path, images: int = IMAGES) -> None:
    """Writes a PDF with two pages for each table: the first images, a row for each method with the
    truth and the measurement above, and quality against cost.

    The inset of an image shows the window in which the methods' errors differ most, the same one
    for all.

    Raises:
        ValueError: Matplotlib is not installed; the file is no PDF.
    """
    if path.suffix.lower() != ".pdf":
        raise ValueError(f"--figure writes a PDF, got {path.name}; call it {path.stem}.pdf")
    try:
        from matplotlib.backends.backend_pdf import PdfPages
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(f"--figure needs Matplotlib: pip install 'invdiff[plot]' ({error})") from (
            error
        )
    content = io.BytesIO()
    with PdfPages(content, metadata={"CreationDate": None}) as pages:
        for table in tables:
            for draw in (_pictures, _costs):
                figure = Figure()
                if draw(figure, table, images):
                    pages.savefig(figure, bbox_inches="tight")
        if not pages.get_pagecount():
            raise ValueError("there is nothing to draw: no row is complete")
    write_atomically(path, content.getvalue())


def _pictures(figure: Any, table: Table, images: int) -> bool:
    """Rows × images; whether there are any."""
    rows = [row for row in table["rows"] if row["complete"]]
    places = list(dict.fromkeys((c["image"], c["seed"]) for r in rows for c in r["cells"]))[:images]
    lines: list[tuple[str, list[Tensor | None]]] = []
    for kind in ("truth", "measurement"):
        lines.append((kind, [_first(rows, place, kind) for place in places]))
    lines += [(r["label"], [_first([r], place, "restoration") for place in places]) for r in rows]
    lines = [(name, own) for name, own in lines if any(x is not None for x in own)]
    if not lines or lines[0][0] != "truth":
        return False
    figure.set_size_inches(WIDTH * len(places), WIDTH * len(lines))
    axes = figure.subplots(len(lines), len(places), squeeze=False)
    figure.subplots_adjust(wspace=0.03, hspace=0.03)
    for k in range(len(places)):
        restored = [own[k] for _, own in lines if _ not in ("truth", "measurement")]
        window = inset(lines[0][1][k], [x for x in restored if x is not None])
        for i, (name, own) in enumerate(lines):
            axis = axes[i][k]
            axis.set(xticks=[], yticks=[])
            if k == 0:
                axis.set_ylabel(name, fontsize=7)
            if (x := own[k]) is not None:
                _draw(axis, x, window)
    return True


def _first(rows: Sequence[Row], place: tuple[str, int], kind: str) -> Tensor | None:
    """The first picture of this kind that a row has of an image and seed, (3, H, W)."""
    for row in rows:
        for cell in row["cells"]:
            if (cell["image"], cell["seed"]) == place and (x := _read(cell, kind)) is not None:
                return x
    return None


def _read(cell: Cell, kind: str) -> Tensor | None:
    if read_picture(cell, kind) is None:
        return None
    return read_image(Path(cell["folder"] or "") / cell["files"][kind], channels=3)[0]


def inset(truth: Tensor | None, restored: Sequence[Tensor]) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of the window in which the errors of restorations differ most:
    where the standard deviation between them, of the mean absolute error, is largest; None without
    two restorations of the truth's size.

    Args:
        truth: (C, H, W).
        restored: (C, H, W) each.
    """
    alike = [x for x in restored if truth is not None and x.shape == truth.shape]
    if truth is None or len(alike) < 2:
        return None
    errors = torch.stack([(x - truth).abs().mean(0) for x in alike])
    height, width = (max(1, n // SHARE) for n in truth.shape[1:])
    means = functional.avg_pool2d(errors[:, None], (height, width), stride=1)[:, 0]
    top, left = divmod(int(means.std(0).argmax()), means.shape[-1])
    return top, left, height, width


def _draw(axis: Any, x: Tensor, window: tuple[int, int, int, int] | None) -> None:
    axis.imshow(x.permute(1, 2, 0).numpy(), interpolation="nearest")
    height, width = x.shape[1:]
    if window is None or window[0] + window[2] > height or window[1] + window[3] > width:
        return
    top, left, tall, wide = window
    from matplotlib.patches import Rectangle

    frame = Rectangle((left - 0.5, top - 0.5), wide, tall, fill=False, lw=0.8, ec="#ffcc00")
    axis.add_patch(frame)
    # In the corner that is farthest from what it shows.
    right, low = left + wide / 2 < width / 2, top + tall / 2 < height / 2
    own = axis.inset_axes([0.5 * right, 0 if low else 0.5, 0.5, 0.5])
    part = x[:, top : top + tall, left : left + wide]
    own.imshow(part.permute(1, 2, 0).numpy(), interpolation="nearest")
    own.set(xticks=[], yticks=[])
    for spine in own.spines.values():
        spine.set(color="#ffcc00", linewidth=0.8)


def _costs(figure: Any, table: Table, images: int) -> bool:
    """Quality against evaluations, a panel for each ranked metric; whether there are any."""
    metrics = [m for m in table["metrics"] if m["better"] in SIGN]
    rows = [r for r in table["rows"] if r["complete"] and r["cost"]["nfe"] is not None]
    if not metrics or not rows:
        return False
    figure.set_size_inches(3.3 * len(metrics), 2.6)
    for axis, metric in zip(
        figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
    ):
        for row in rows:
            score = row["scores"].get(metric["name"])
            if score is None or score["mean"] is None:
                continue
            cost = (row["cost"]["nfe"] or 0) + (row["cost"]["nbe"] or 0)
            marker = "D" if row["kind"] == "baseline" else "o"
            axis.errorbar(
                cost, score["mean"], score["half"] or 0, fmt=marker, ms=3.5, lw=0.7, capsize=2
            )
            axis.annotate(
                row["label"],
                (cost, score["mean"]),
                (4, 3),
                textcoords="offset points",
                fontsize=6,
                parse_math=False,
            )
        arrow = "↑" if metric["better"] == "higher" else "↓"
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlabel("network evaluations per sample", fontsize=8)
        axis.set_ylabel(f"{metric['title']} {arrow}", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return True
