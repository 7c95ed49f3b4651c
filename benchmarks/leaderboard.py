"""Tables from records of grids: one for each benchmark, a row for each method, means over images
with their intervals.

A table is plain data (what ``invdiff leaderboard --format json`` writes and the HTML page shows):

benchmark  the cells' benchmark, and its ``hash``
baseline   label of the row that others are compared with, or None
metrics    ``{"name", "better"}``, better ``"higher"``, ``"lower"`` or None: such as consistency,
           which is not ranked
rows       the complete ones first, by the first metric that is ranked

and a row: ``id``, ``label``, ``method`` (its label in the suite), ``kind``, ``values``, ``model``;
``complete``, ``images`` of them finished, ``of``, ``problems``; ``scores``, ``mean``
(of the posterior mean) and ``spread`` (of the samples), for each figure ``{"mean", "half", "n",
"rank"}``; ``paired``, the differences of ranked metrics to the baseline, ``{"mean", "half", "n"}``;
``cost``; ``environment``, with a list where cells differ; ``cells``, those with a result.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from invdiff.benchmarks.harness import Record, digest
from invdiff.benchmarks.records import FIGURES, benchmark_hash, merged
from invdiff.benchmarks.statistics import decimals, interval, paired, per_image
from invdiff.benchmarks.tables import markdown as table_of

Table = dict[str, Any]
Row = dict[str, Any]
Values = dict[tuple[int, int], float]
"""By image and seed."""

SECTIONS = dict(zip(("scores", "mean", "spread"), FIGURES, strict=True))
"""Of a row, and the part of a result that each is about."""
COSTS = {"nfe": "NFE", "nbe": "NBE", "seconds": "s per sample", "peak_memory_mb": "peak MB"}


def tables(
    records: Iterable[Record],
    baseline: str | None = None,
    benchmark: str | None = None,
    metrics: Sequence[str] | None = None,
) -> list[Table]:
    """A table for each benchmark.

    Args:
        records: of grids, as the harness returns or
            :func:`~invdiff.benchmarks.records.read_records` reads them.
        baseline: label of the row that the others are compared with, image by image.
        benchmark: only the one whose hash begins so.
        metrics: only these, in this order.

    Raises:
        ValueError: two benchmarks of one name; a baseline, benchmark or metric that does not exist;
            records that :func:`~invdiff.benchmarks.records.merged` finds at odds.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(benchmark_hash(record["cell"]), []).append(record)
    if benchmark is not None:
        if len(chosen := [name for name in groups if name.startswith(benchmark)]) != 1:
            there = ", ".join(
                f"{name} ({group[0]['cell']['benchmark']['name']})"
                for name, group in groups.items()
            )
            raise ValueError(
                f"{len(chosen)} benchmarks have a hash that begins with {benchmark!r}; "
                f"there are {there}"
            )
        groups = {chosen[0]: groups[chosen[0]]}
    _refuse_mixing({name: group[0]["cell"]["benchmark"] for name, group in groups.items()})
    found = [_table(name, merged(group), baseline, metrics) for name, group in groups.items()]
    if baseline is not None and all(table["baseline"] is None for table in found):
        known = dict.fromkeys(row["label"] for table in found for row in table["rows"])
        raise ValueError(
            f"no row is called {baseline!r} (--baseline); there are {', '.join(map(repr, known))}"
        )
    return found


def add_set_scores(table: Table, which: Sequence[str], weights: Path | None) -> None:
    """Adds scores of whole sets (:func:`~invdiff.benchmarks.scoring.set_scores`), of the
    restorations against the truths, to the complete rows.

    They are computed from the pictures, of 8 bits, one sample of each cell.

    Raises:
        ValueError: the extra, the weights or pictures are missing.
    """
    from invdiff.benchmarks.scoring import set_scores
    from invdiff.images import read_image

    better = {"fid": "lower", "kid": "lower", "is": "higher"}
    table["metrics"] += [{"name": name, "better": better[name]} for name in which]
    for row in table["rows"]:
        if row["complete"]:
            files = [
                [Path(cell["folder"]) / cell["files"][what] for cell in row["cells"]]
                for what in ("restoration", "truth")
            ]
            restored, truth = ([read_image(file, channels=3) for file in of] for of in files)
            found = set_scores(restored, truth, which, weights)
            row["scores"] |= {
                name: {"mean": found[name], "half": None, "n": len(restored), "rank": None}
                for name in which
            }
    for name in which:
        scores = [
            row["scores"][name]
            for row in table["rows"]
            if row["scores"].get(name, {}).get("mean") is not None
        ]
        for rank, score in enumerate(
            sorted(scores, key=lambda s: s["mean"], reverse=better[name] == "higher")[:2], 1
        ):
            score["rank"] = rank


def cautions(table: Table) -> list[str]:
    """What a reader has to know before comparing rows: where they were not measured alike."""
    what = {
        "processor": "on different processors",
        "threads": "with different numbers of threads",
        "code": "by different versions of the code",
        "torch": "with different versions of torch",
    }
    found = []
    for field, how in what.items():
        lost = "seconds do not compare" + (
            ", and figures may not either" if field in ("code", "torch") else ""
        )
        seen = [
            v if isinstance(v := row["environment"].get(field), list) else [v]
            for row in table["rows"]
        ]
        if (
            len(values := list(dict.fromkeys(str(v) for of in seen for v in of if v is not None)))
            > 1
        ):
            found.append(f"measured {how} ({', '.join(values)}): {lost}")
    return found


def markdown(tables: Sequence[Table]) -> str:
    """Tables as Markdown, with what is missing below each; text of records is escaped."""
    return "\n\n".join(_markdown(table) for table in tables)


def _refuse_mixing(benchmarks: Mapping[str, Mapping[str, Any]]) -> None:
    by_name: dict[str, str] = {}
    for hashed, benchmark in benchmarks.items():
        if (other := by_name.setdefault(benchmark["name"], hashed)) != hashed:
            ours, theirs = _leaves(benchmarks[other]), _leaves(benchmark)
            fields = [k for k in ours | theirs if ours.get(k) != theirs.get(k)]
            told = "; ".join(
                f"{k} {ours.get(k, 'absent')} in {other}, {theirs.get(k, 'absent')} in {hashed}"
                for k in fields[:5]
            )
            raise ValueError(
                f"two benchmarks are called {benchmark['name']!r}, and rows of one do not "
                f"compare with rows of the other: {told}"
                f"{f'; and {len(fields) - 5} more' if len(fields) > 5 else ''}. Choose one "
                f"with --benchmark {other} or --benchmark {hashed}"
            )


def _leaves(value: Any, path: str = "") -> dict[str, str]:
    """Nested mappings as one, with dots between the keys and the values as text."""
    if isinstance(value, dict) and value:
        return {
            k: v
            for key, of in value.items()
            for k, v in _leaves(of, f"{path}.{key}" if path else str(key)).items()
        }
    text = json.dumps(value)
    return {path: text if len(text) <= 60 else f"{text[:60]}..."}


def _table(
    hashed: str, records: Sequence[Record], baseline: str | None, chosen: Sequence[str] | None
) -> Table:
    benchmark = records[0]["cell"]["benchmark"]
    declared = {name: entry.get("better") for name, entry in benchmark["metrics"].items()}
    measured = {
        name
        for r in records
        for name, value in r.get("result", {}).get("metrics", {}).items()
        if value is not None
    }
    names = [*declared, *sorted(measured - declared.keys())]
    better = {name: declared.get(name) for name in names if name in measured or not measured}
    if chosen is not None:
        if unknown := [name for name in chosen if name not in better]:
            raise ValueError(
                f"{benchmark['name']} has no figures of {unknown[0]!r} (--metric); there "
                f"are {', '.join(better)}"
            )
        better = {name: better[name] for name in chosen}
    by_row: dict[str, dict[tuple[int, int], Record]] = {}
    for record in sorted(
        records, key=lambda r: "failure" in r
    ):  # of one image in several batches the first result counts
        cell = record["cell"]
        shared = {k: v for k, v in cell.items() if k not in ("benchmark", "image", "seed", "batch")}
        by_row.setdefault(digest(shared)[:12], {}).setdefault(
            (cell["image"]["index"], cell["seed"]), record
        )
    of_row = {name: list(group.values()) for name, group in by_row.items()}
    images = {i: f"image {i}" for i in range(benchmark["images"]["count"])}
    images |= {image["index"]: image["name"] for r in records for image in r["cell"]["batch"]}
    labels = _labels({name: group[0]["cell"] for name, group in of_row.items()})
    rows = [_row(name, labels[name], group, images, better) for name, group in of_row.items()]
    _rank(rows, better)
    ranked = next((name for name in better if better[name]), None)
    rows.sort(key=lambda row: _order(row, ranked, better))
    reference = _baseline(
        rows, {labels[k]: group[0]["cell"]["label"] for k, group in of_row.items()}, baseline
    )
    by_label = {labels[name]: group for name, group in of_row.items()}
    for row in rows:
        if reference not in (None, row["label"]):
            ours, theirs = by_label[row["label"]], by_label[reference]
            pairs = {
                name: paired(_values(ours, "metrics", name), _values(theirs, "metrics", name))
                for name in better
                if better[name]
            }
            row["paired"] = {name: pair for name, pair in pairs.items() if pair["n"]}
    metrics = [{"name": name, "better": direction} for name, direction in better.items()]
    return {
        "benchmark": benchmark | {"hash": hashed},
        "baseline": reference,
        "metrics": metrics,
        "rows": rows,
    }


def _labels(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A text for each row that no other has: label, the values that tell it from rows of this
    label, and its model where there are several.

    Where that is not enough, what was run tells them apart, such as the number of samples, else
    their id.
    """
    models = [cell["model"] for cell in cells.values() if cell["model"] is not None]
    several = len({digest(model) for model in models}) > 1
    texts = {}
    for name, cell in cells.items():
        alike = [c["values"] for c in cells.values() if c["label"] == cell["label"]]
        telling = [
            k
            for k in cell["values"]
            if len({json.dumps(v.get(k), sort_keys=True) for v in alike}) > 1
        ]
        parts = [cell["label"], *(f"{k}={_text(cell['values'][k])}" for k in telling)]
        if several and (model := cell["model"]) is not None:
            same = [m for m in models if m["name"] == model["name"]]
            differing = [
                k
                for k in ("dtype", "device", "weights", "options")
                if len({json.dumps(m.get(k), sort_keys=True) for m in same}) > 1
            ]
            parts.append(
                f"({', '.join([model['name'], *(_text(model.get(k))[:12] for k in differing)])})"
            )
        texts[name] = " ".join(parts)
    for text in {text for text in texts.values() if list(texts.values()).count(text) > 1}:
        runs = {name: _leaves(cells[name]["run"]) for name in texts if texts[name] == text}
        fields = [
            k for k in next(iter(runs.values())) if len({run.get(k) for run in runs.values()}) > 1
        ]
        scalars = [
            k
            for k in fields
            if not any(run.get(k, "").startswith(("[", "{")) for run in runs.values())
        ][:2]
        more = {
            name: " ".join([text, *(f"{k.rpartition('.')[2]}={run.get(k)}" for k in scalars)])
            for name, run in runs.items()
        }
        texts |= (
            more
            if len(set(more.values())) == len(more)
            else {name: f"{text} #{name[:6]}" for name in more}
        )
    return texts


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _values(records: Sequence[Record], part: str, name: str) -> Values:
    """A figure by image and seed, where there is one."""
    found = {
        (r["cell"]["image"]["index"], r["cell"]["seed"]): r.get("result", {})
        .get(part, {})
        .get(name)
        for r in records
    }
    return {k: v for k, v in found.items() if v is not None}


def _row(
    name: str,
    label: str,
    records: Sequence[Record],
    images: Mapping[int, str],
    better: Mapping[str, str | None],
) -> Row:
    cell, by_cell = (
        records[0]["cell"],
        {(r["cell"]["image"]["index"], r["cell"]["seed"]): r for r in records},
    )
    measured = [r for r in records if "metrics" in r.get("result", {})]
    done = {(r["cell"]["image"]["index"], r["cell"]["seed"]) for r in measured}
    seeds = cell["benchmark"]["seeds"]
    row: Row = {"id": name, "label": label, "method": cell["label"]} | {
        k: cell[k] for k in ("kind", "values", "model")
    }
    row |= {"complete": len(done) == len(images) * len(seeds)}
    row |= {"images": sum(all((i, s) in done for s in seeds) for i in images), "of": len(images)}
    row["problems"] = _problems(
        {(i, s): by_cell.get((i, s)) for i, s in product(images, seeds)}, images, better
    )
    for section, part in SECTIONS.items():
        names = [
            n
            for n in better
            if part == "metrics" or any(n in r["result"].get(part, {}) for r in measured)
        ]
        if part == "spread":
            names = list(dict.fromkeys(n for r in measured for n in r["result"].get(part, {})))
        row[section] = {
            n: interval(per_image(_values(records, part, n))) | {"rank": None} for n in names
        }
    row |= {
        "paired": {},
        "cost": _cost([r["result"] for r in measured]),
        "environment": _environment(records),
    }
    row["cells"] = [
        {
            "image": r["cell"]["image"]["name"],
            "seed": r["cell"]["seed"],
            "metrics": r["result"]["metrics"],
        }
        | {"files": r["result"].get("files", {}), "folder": _folder(r)}
        for r in sorted(measured, key=lambda r: (r["cell"]["image"]["index"], r["cell"]["seed"]))
    ]
    return row


def _folder(record: Record) -> str | None:
    """What the names of its pictures are relative to; None of a record that was not read from a
    file."""
    return str(Path(record["file"]).parent) if "file" in record else None


def _problems(
    expected: Mapping[tuple[int, int], Record | None],
    images: Mapping[int, str],
    better: Mapping[str, str | None],
) -> list[str]:
    """What keeps a row from being complete, one line for each reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for (image, _), record in expected.items():
        for reason in _reasons(record, better):
            reasons.setdefault(reason, []).append(images[image])
    lines = []
    for (what, why), names in reasons.items():
        distinct = list(dict.fromkeys(names))
        which = (
            ""
            if len(names) == len(expected)
            else f" ({', '.join(distinct[:3])}{', ...' if len(distinct) > 3 else ''})"
        )
        lines.append(f"{len(names)} of {len(expected)} {what}{which}{': ' if why else ''}{why}")
    return lines


def _reasons(record: Record | None, better: Mapping[str, str | None]) -> list[tuple[str, str]]:
    if record is None:
        return [("missing", "")]
    if "failure" in record:
        return [("failed", _without_paths(record["failure"]["error"]))]
    result = record["result"]
    if stopped := [(k, _without_paths(result[k])) for k in ("refused", "diverged") if k in result]:
        return stopped
    return [
        (f"without {name}", "")
        for name in better
        if better[name] and result["metrics"].get(name) is None
    ]


def _without_paths(text: str) -> str:
    """One line, with the folders of absolute paths left out: they are of the machine that ran, and
    tables get published."""
    return re.sub(r"(?<![\w.:/])(?:/[^\s/'\"]+)+/(?=[^\s/'\"])", ".../", " ".join(text.split()))


def _cost(results: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over the cells; of memory the largest."""
    given = {name: [r[name] for r in results if r.get(name) is not None] for name in COSTS}
    return {
        name: (max if name == "peak_memory_mb" else fmean)(values) if values else None
        for name, values in given.items()
    }


def _environment(records: Sequence[Record]) -> dict[str, Any]:
    """Of all cells: a value where they agree, the list of values where they do not."""
    names = dict.fromkeys(name for r in records for name in r["environment"])
    seen = {
        name: list(dict.fromkeys(r["environment"].get(name) for r in records)) for name in names
    }
    return {name: values[0] if len(values) == 1 else values for name, values in seen.items()}


def _rank(rows: Sequence[Row], better: Mapping[str, str | None]) -> None:
    """Marks the best and the second best, to the printed digits: what looks equal shares its
    rank."""
    for section, (name, direction) in product(("scores", "mean"), better.items()):
        column = [row[section][name] for row in rows if name in row[section]]
        digits, sign = (
            decimals(score["mean"] for score in column),
            {"higher": -1, "lower": 1}.get(direction or ""),
        )
        whole = [
            row
            for row in rows
            if row["complete"] and name in row[section] and _everywhere(row, section, name)
        ]
        printed = (
            sorted(sign * round(row[section][name]["mean"], digits) for row in whole)
            if sign
            else []
        )
        for row in whole if sign else []:
            rank = 1 + printed.index(sign * round(row[section][name]["mean"], digits))
            row[section][name]["rank"] = rank if rank <= 2 else None


def _everywhere(row: Row, section: str, name: str) -> bool:
    """Whether each image, and each of its seeds, has the figure; it may be undefined for some."""
    return row[section][name]["n"] == row["of"] and all(
        cell["metrics"].get(name) is not None for cell in row["cells"]
    )


def _order(row: Row, ranked: str | None, better: Mapping[str, str | None]) -> tuple[Any, ...]:
    mean = row["scores"][ranked]["mean"] if ranked and row["complete"] else None
    sign = -1 if ranked and better[ranked] == "higher" else 1
    return (not row["complete"], mean is None, sign * (mean or 0), row["label"])


def _baseline(rows: Sequence[Row], plain: Mapping[str, str], wanted: str | None) -> str | None:
    """The label of the row that is meant, by its label in the table or, where that is one row's
    alone, in the suite."""
    if wanted is None or wanted in plain:
        return wanted
    meant = [label for label in (row["label"] for row in rows) if plain[label] == wanted]
    if len(meant) > 1:
        raise ValueError(
            f"--baseline {wanted!r} could be any of {len(meant)} rows; give one of "
            f"{', '.join(map(repr, meant))}"
        )
    return meant[0] if meant else None


def _markdown(table: Table) -> str:
    benchmark, rows = table["benchmark"], table["rows"]
    operator = ", ".join(
        f"{k} {_text(v)}" for k, v in benchmark["operator"].items() if k != "name" and v is not None
    )
    noise = f"sigma {benchmark['sigma']:g}" + (
        f", gain {benchmark['gain']:g}" if benchmark["gain"] else ""
    )
    seeds, count = len(benchmark["seeds"]), benchmark["images"]["count"]
    said = [
        f"{benchmark['operator']['name']}{f' ({operator})' if operator else ''}",
        noise,
        f"{count} image{'s' * (count > 1)}, {seeds} seed{'s' * (seeds > 1)}",
    ]
    shown = table_of([{_escaped(k): v for k, v in line.items()} for line in _lines(table)])
    legend = (
        "Means over images ± 95 % intervals (Student t); **best** and *second best* of the "
        "complete rows."
    )
    if table["baseline"] is not None:
        legend += (
            f" Δ: difference to {_escaped(table['baseline'])} on the same images and noise; "
            "better or worse where its interval excludes 0."
        )
    notes = [
        f"{row['label']}: {problem}" for row in rows for problem in row["problems"]
    ] + cautions(table)
    parts = [
        f"## {_escaped(benchmark['name'])} (`{benchmark['hash']}`)",
        f"{_escaped('; '.join(said))}.",
        shown,
        legend,
    ]
    return "\n\n".join(
        [*parts, *(["\n".join(f"- {_escaped(note)}" for note in notes)] if notes else [])]
    )


def _lines(table: Table) -> list[dict[str, str]]:
    """The cells of the Markdown table; columns that no row has something in are left out."""
    rows, better = table["rows"], {m["name"]: m["better"] for m in table["metrics"]}
    arrow = {"higher": " ↑", "lower": " ↓"}
    lines: list[dict[str, str]] = [{"method": _escaped(row["label"])} for row in rows]
    if any(row["images"] < row["of"] for row in rows):
        for line, row in zip(lines, rows, strict=True):
            line["images"] = (
                str(row["of"]) if row["complete"] else f"{row['images']} of {row['of']}"
            )
    for section, title in {
        "scores": "{}",
        "paired": "Δ {}",
        "mean": "mean's {}",
        "spread": "{}",
    }.items():
        names = dict.fromkeys(name for row in rows for name in row[section])
        for name in names:
            column = [row[section].get(name) for row in rows]
            of = (
                section if section != "paired" else "scores"
            )  # a difference has the digits of what differs
            digits = decimals(row[of][name]["mean"] for row in rows if name in row[of])
            if (
                name.removesuffix("_calibrated") in names
                and name.endswith("_calibrated")
                or all(not s or s["mean"] is None for s in column)
            ):
                continue
            for line, row, score in zip(lines, rows, column, strict=True):
                text = _score(score, digits, "+" if section == "paired" else "")
                if (
                    section == "paired" and score and row["complete"]
                ):  # images that are missing may be the hard ones
                    text += _verdict(score, better[name])
                if target := row[section].get(f"{name}_calibrated"):
                    text += f" (calibrated {_score(target | {'half': None}, digits)})"
                line[
                    title.format(name)
                    + arrow.get(better.get(name) or "", "") * (section in ("scores", "mean"))
                ] = text
    for name, title in COSTS.items():
        for line, row in zip(lines, rows, strict=True):
            value = row["cost"][name]
            line[title] = (
                ""
                if value is None
                else f"{value:.0f}"
                if name == "peak_memory_mb"
                else f"{value:.3g}"
                if name == "seconds"
                else f"{value:g}"
            )
    return lines


def _score(score: Mapping[str, Any] | None, digits: int, sign: str = "") -> str:
    if score is None or score["mean"] is None:
        return ""
    text = f"{score['mean']:{sign}.{digits}f}" + (
        f" ± {score['half']:.{digits}f}" if score["half"] is not None else ""
    )
    mark = {1: "**", 2: "*"}.get(score.get("rank") or 0, "")
    return f"{mark}{text}{mark}"


def _verdict(pair: Mapping[str, Any], better: str | None) -> str:
    if pair["half"] is None or abs(pair["mean"]) <= pair["half"]:
        return ""
    return " (better)" if (pair["mean"] > 0) == (better == "higher") else " (worse)"


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, within a cell of a table too."""
    return re.sub(
        r"[\\`*|\[\]]",
        r"\\\g<0>",
        " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;"),
    )
