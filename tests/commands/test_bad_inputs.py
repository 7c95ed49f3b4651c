"""A generator of bad inputs over all commands: each run ends well, or is refused with one line and
leaves nothing behind."""

from __future__ import annotations

import inspect
import os
import pickle
import random
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from invdiff.commands.main import LONGEST, main
from invdiff.images import write_image
from invdiff.plugins.registry import list_plugins, load

NUMBERS = (
    *("", "-1", "0", "nan", "inf", "-inf", "1e308", "1e-320", "9" * 60, "1.5", "0x10", "10**9"),
    *("x", "\u0663", "[1]", "1,5", "{a:1}", "None", "true", "[heun]"),
)
NAMES = (
    "",
    "..",
    "../x",
    "a" * 300,
    "class",
    "my-op",
    "None",
    "true",
    "9",
    "\u00fc",
    "a b",
    "a\0b",
)
PATHS = (
    *("nowhere.png", "empty.png", "text.png", "cut.png", "object.npy", "nan.npy", "complex.npy"),
    *(
        "line.npy",
        "negative.npy",
        "zero.npy",
        "large.npy",
        "code.pt",
        "rubbish.pt",
        "x.safetensors",
    ),
    *("rubbish.safetensors", "folder", "open.json", "pipe", "a\0b.png", "/dev/null", "*.nope"),
    *("http://localhost/y.png", "~/nowhere.png", "a" * 5000),
)
STEP = ("--method", "ddnm", "--steps", "1")
SOLVE = ("solve", "--input", "a.png", *STEP)
PARTS = 80
SECONDS = 60


class Code:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("code of a file was run",))


def cases() -> Iterator[tuple[str, ...]]:
    """Command lines."""
    for flag in ("steps", "seed", "num-samples", "sigma", "batch-size", "image-id", "mask-grow"):
        yield from ((*SOLVE, f"--{flag}={value}") for value in NUMBERS)
    for flag in ("device", "dtype", "preset", "label", "budget", "model", "operator", "upscale"):
        yield from ((*SOLVE, f"--{flag}={value}") for value in NUMBERS)
    for path in PATHS:
        yield ("solve", "--input", path, *STEP)
        yield ("solve", "--measurement", path, "--operator", "denoise", *STEP)
        yield ("solve", "--measurement", "a.png", "--mask", path, *STEP)
        yield (*SOLVE, "--operator", "blur", f"operator.kernel={path}")
        yield (*SOLVE, "--model", path)
        yield (*SOLVE, "--output", path)
        yield ("info", path)
        yield ("leaderboard", path)
        yield ("leaderboard", "validate", path)
        yield ("bench", "--reproduce", path)
    for kind, group in (("operators", "operator"), ("guidance", "guidance")):
        for name in list_plugins(kind):
            for parameter in inspect.signature(load(kind, name)).parameters:
                chosen = random.Random(name + parameter).sample(NUMBERS, 4)
                operator, method = (name, "none") if kind == "operators" else ("inpaint", name)
                start = ("solve", "--input", "a.png", "--operator", operator, "--method", method)
                yield from (
                    (*start, "--steps", "1", f"{group}.{parameter}={value}") for value in chosen
                )
    for key in ("transition", "itinerary", "model.schedule", "model.predicts", "model.data_range"):
        yield from ((*SOLVE, f"{key}={value}") for value in NUMBERS)
    for key in ("model.tile", "model.clip", "gain", "upscale.factor", "operator", "guidance"):
        yield from ((*SOLVE, f"{key}={value}") for value in NUMBERS)
    for flag in ("size", "num-samples", "steps", "label", "interpolate", "seed"):
        for value in (*NUMBERS, "100000x100000", "0x0", "3x", "64x64x64"):
            yield ("generate", "--num-samples", "1", "--steps", "1", f"--{flag}={value}")
    for name in NAMES:
        yield ("new-plugin", name, "--kind", "operator")
        yield ("check", name)
        yield ("list", "guidance", name)
    start = ("bench", "--input", "a.png", "--operator", "inpaint", *STEP)
    for flag in ("seeds", "num-samples", "batch-size", "sigma", "workers", "suite", "launcher"):
        yield from ((*start, f"--{flag}={value}") for value in NUMBERS)


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one good picture and many bad files."""
    monkeypatch.chdir(tmp_path)
    x = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "a.png", x)
    Path("empty.png").write_bytes(b"")
    Path("text.png").write_text("hello")
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:200])
    np.save("object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name, array in (
        ("nan", np.full((24, 24), np.nan)),
        ("complex", np.ones((5, 5)) * 1j),
        ("line", np.ones(5)),
        ("negative", -np.ones((5, 5))),
        ("zero", np.zeros((5, 5))),
        ("large", np.ones((200, 200))),
    ):
        np.save(f"{name}.npy", array)
    Path("code.pt").write_bytes(pickle.dumps(Code()))
    Path("rubbish.pt").write_bytes(b"PK\x03\x04rubbish")
    Path("x.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    Path("rubbish.safetensors").write_bytes(b"rubbish")
    Path("open.json").write_text("{")
    Path("folder").mkdir()
    os.mkfifo("pipe")
    return tmp_path


def ends_well(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str | None:
    """What is wrong about the way in which a command line ends."""
    quiet = ["--quiet"] if arguments[0] in ("solve", "generate", "bench") else []
    before = set(Path().iterdir())
    signal.alarm(SECONDS)
    try:
        code: int | str | None = main([*arguments, *quiet])
    except SystemExit as error:
        code = error.code
    except (Exception, Hangs) as error:
        return f"traceback: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    lines = capsys.readouterr().err.splitlines()
    said = [line for line in lines if not line.startswith("invdiff: warning")]
    made = set(Path().iterdir()) - before
    held = [path for path in made if path.is_file() or any(path.rglob("*"))]
    for path in made:
        shutil.rmtree(path)
    if code not in (0, 2):
        return f"exit code {code}"
    if code == 2 and (len(said) != 1 or len(said[0]) > LONGEST + 100):
        return f"says {len(said)} lines: {' '.join(said)[:500]}"
    # A grid keeps the records of what it found out, failures included.
    if code == 2 and held and arguments[0] != "bench":
        return f"is refused, but leaves {held[0]}"
    return None


class Hangs(BaseException):
    """Nothing that a command catches."""


def hang(*_: object) -> None:
    raise Hangs


def test_there_are_enough() -> None:
    assert len(set(cases())) > 1000


@pytest.mark.parametrize(
    "part", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, PARTS))]
)
def test_bad_inputs(part: int, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signal.signal(signal.SIGALRM, hang)
    chosen = list(cases())[part::PARTS]
    found = {arguments: ends_well(arguments, capsys) for arguments in chosen}
    wrong = [
        f"{' '.join(a[:70] for a in arguments)}: {problem}"
        for arguments, problem in found.items()
        if problem is not None
    ]
    assert not wrong, "\n".join(wrong)
