"""Records of a grid as the harness writes them, for the tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from invdiff.benchmarks import harness
from invdiff.files import sha256

IMAGES = ("kodim01", "kodim02", "kodim03")
ENVIRONMENT = {
    "invdiff": "0.1.0",
    "torch": "2.14.1",
    "python": "3.13.1",
    "code": "c0de" * 4,
    "git": None,
    "processor": "abacus",
    "threads": 1,
}
PHOTO64 = {
    "name": "photo64",
    "options": {},
    "weights": "ab" * 32,
    "reading": "0123456789ab",
    "dtype": "float32",
    "device": "cpu",
}


def hashed(*content: Any) -> str:
    return harness.digest(list(content))


def identity(index: int) -> dict[str, Any]:
    return {
        "index": index,
        "name": IMAGES[index],
        "shape": [3, 8, 8],
        "hash": hashed("image", index),
    }


def problem(**changes: Any) -> dict[str, Any]:
    metric = {"version": "1", "range": [0, 1], "crop": 0}
    better = {"psnr": "higher", "lpips": "lower", "consistency": None}
    return {
        "name": "inpaint",
        "operator": {"name": "inpaint", "fraction": 0.7},
        "operator_version": "ab" * 6,
        "sigma": 0.025,
        "gain": 0.0,
        "images": {"source": "files", "count": len(IMAGES), "hash": hashed("images")},
        "seeds": [0],
        "metrics": {
            name: metric | {"implementation": f"module:{name}", "better": direction}
            for name, direction in better.items()
        }
        | {"psnr": metric | {"implementation": "module:psnr", "better": "higher", "title": "PSNR"}},
    } | changes


def record(
    psnr: float | None = 25.0,
    image: int = 0,
    label: str = "dps",
    seed: int = 0,
    values: dict[str, Any] | None = None,
    benchmark: dict[str, Any] | None = None,
    model: dict[str, Any] | None = PHOTO64,
    instead: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
    **result: Any,
) -> dict[str, Any]:
    """Of one cell, as the suites of the kind grid write it; ``instead`` of a result, what else came
    of it."""
    benchmark = benchmark or problem()
    cell = {
        "benchmark": benchmark,
        "image": identity(image),
        "seed": seed,
        "batch": [identity(i) for i in range(len(IMAGES))],
        "label": label,
        "kind": "method" if model else "baseline",
        "values": values or {},
        "run": {"steps": 100},
        "model": model,
    }
    lpips = None if psnr is None else round(1 / psnr, 6)
    measured = {
        "measurement": hashed("measurement", harness.digest(benchmark), image, seed),
        "restoration": hashed("restoration", cell, psnr),
        "metrics": {"psnr": psnr, "lpips": lpips, "consistency": 1.0},
        "samples": 1,
        "nfe": 100.0,
        "nbe": 100.0,
        "seconds": 2.0,
        "peak_memory_mb": 800.0,
        "files": {
            "truth": f"pictures/{identity(image)['hash'][:16]}.png",
            "restoration": f"pictures/{harness.key(cell)}.png",
        },
        "hashes": {"truth": "ab" * 32, "restoration": "ab" * 32},
    }
    made = {
        "format": harness.FORMAT,
        "suite": "grid",
        "cell": cell,
        "environment": ENVIRONMENT | (environment or {}),
    }
    return made | (instead or {"result": measured | result})


def row_of(psnrs: list[float], label: str = "dps", **options: Any) -> list[dict[str, Any]]:
    return [record(psnr, image, label, **options) for image, psnr in enumerate(psnrs)]


def stored(folder: Path, *records: dict[str, Any]) -> Path:
    """Writes records and their pictures as the harness does."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for r in records:
        for what, name in r.get("result", {}).get("files", {}).items():
            Image.new("RGB", (4, 4), len(name)).save(folder / name)
            r["result"].setdefault("hashes", {})[what] = sha256(folder / name)
        (folder / f"{harness.key(r['cell'])}.json").write_text(json.dumps(r, indent=2))
    return folder
