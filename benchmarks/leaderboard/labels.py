"""A text for each row that no other row has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from invdiff.benchmarks.harness import digest


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


def labels_of(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
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
        parts = [cell["label"], *(f"{k}={text_of(cell['values'][k])}" for k in telling)]
        if several and (model := cell["model"]) is not None:
            same = [m for m in models if m["name"] == model["name"]]
            differing = [
                k
                for k in ("dtype", "device", "weights", "options")
                if len({json.dumps(m.get(k), sort_keys=True) for m in same}) > 1
            ]
            parts.append(
                f"({', '.join([model['name'], *(text_of(model.get(k))[:12] for k in differing)])})"
            )
        texts[name] = " ".join(parts)
    for text in {text for text in texts.values() if list(texts.values()).count(text) > 1}:
        runs = {name: leaves(cells[name]["run"]) for name in texts if texts[name] == text}
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


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
