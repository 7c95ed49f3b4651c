"""A text for each row that no other row has."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from invdiff.benchmarks.schema import Network, Row, digest

SHOWN_OF_MODELS = ("dtype", "device", "weights", "options")


def labels_of(cells: Mapping[str, Row]) -> dict[str, str]:
    """Label, the values that tell a row from others of this label, and its model where there are
    several.

    Where that is not enough, what was run tells them apart, such as the number of samples, else
    their id.

    Args:
        cells: by the id of the row.
    """
    models = [cell["model"] for cell in cells.values() if cell["model"] is not None]
    several = models if len({digest(model) for model in models}) > 1 else []
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells.values():
        alike.setdefault(cell["label"], []).append(cell["values"])
    texts = {name: _label(cell, alike[cell["label"]], several) for name, cell in cells.items()}
    every = list(texts.values())
    for text in {text for text in every if every.count(text) > 1}:
        texts |= _told_apart({name: cells[name] for name in texts if texts[name] == text}, text)
    return texts


def _label(cell: Row, alike: list[Mapping[str, Any]], models: list[Network]) -> str:
    """Of a row, from the values of all rows of its label, and the models where there are
    several."""
    parts = [cell["label"]]
    parts += [f"{k}={text_of(cell['values'][k])}" for k in _differing(cell["values"], alike)]
    model = cell["model"]
    if model is not None and models:
        same = [m for m in models if m["name"] == model["name"]]
        given: Mapping[str, Any] = model
        shown = [text_of(given.get(k))[:12] for k in _differing(SHOWN_OF_MODELS, same)]
        parts.append(f"({', '.join([model['name'], *shown])})")
    return " ".join(parts)


def _differing(names: Iterable[str], among: Iterable[Mapping[str, Any]]) -> list[str]:
    """Those of the names whose values are not the same everywhere."""
    return [k for k in names if len({json.dumps(v.get(k), sort_keys=True) for v in among}) > 1]


def _told_apart(cells: Mapping[str, Row], text: str) -> dict[str, str]:
    """A text for each of the rows that would share this one."""
    runs = {name: leaves(cell["run"]) for name, cell in cells.items()}
    first = next(iter(runs.values()))
    scalars = [
        k
        for k in first
        if len({run.get(k) for run in runs.values()}) > 1
        and not any(run.get(k, "").startswith(("[", "{")) for run in runs.values())
    ][:2]
    more = {
        name: " ".join([text, *(f"{k.rpartition('.')[2]}={run.get(k)}" for k in scalars)])
        for name, run in runs.items()
    }
    if len(set(more.values())) == len(more):
        return more
    return {name: f"{text} #{name[:6]}" for name in more}


def leaves(value: Any, path: str = "") -> dict[str, str]:
    """Nested mappings as one, with dots between the keys and the values as text."""
    if isinstance(value, dict) and value:
        return {
            k: v
            for key, of in value.items()
            for k, v in leaves(of, f"{path}.{key}" if path else str(key)).items()
        }
    text = json.dumps(value)
    return {path: text if len(text) <= 60 else f"{text[:60]}..."}


def text_of(value: Any) -> str:
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
