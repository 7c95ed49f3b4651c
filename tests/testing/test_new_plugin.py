"""Packages of plug-ins for real: written by ``new-plugin`` or kept in ``example_plugin``, built,
installed, used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from invdiff.commands.main import main
from invdiff.commands.new_plugin import GROUPS, write

HERE = Path(__file__).parents[1]


def install(site: Path, *packages: Path) -> None:
    """With pip, without a network, into a folder of its own."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run(
        [*pip, "--no-index", "--target", site, *packages], check=True, capture_output=True
    )


def python(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that sees what is installed there, too."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the example package is installed."""
    folder = tmp_path_factory.mktemp("example")
    shutil.copytree(
        HERE / "example_plugin", folder / "source"
    )  # a build leaves files in its source
    install(folder / "site", folder / "source")
    return folder / "site"


@pytest.mark.slow
def test_the_example_is_solved_with(example: Path, tmp_path: Path) -> None:
    done = python(
        example,
        tmp_path,
        *(
            "-m",
            "invdiff",
            "solve",
            "--operator",
            "vignette",
            "--method",
            "pull",
            "--model",
            "grey",
        ),
        *("--steps", "2", "--json", "--quiet", "--output", "out", "operator.strength=0.25"),
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["config"]["operator"] == {"name": "vignette", "strength": 0.25}
    assert record["config"]["guidance"] == [{"name": "pull", "zeta": 0.2}]  # from its YAML
    assert record["run"]["model"] == "grey"
    assert 0 < record["metrics"]["mae"] < 0.5
    assert (tmp_path / "out" / "restored.png").is_file()


@pytest.mark.slow
def test_the_example_passes_every_check(example: Path, tmp_path: Path) -> None:
    done = python(example, tmp_path, "-m", "invdiff", "check", "invdiff_example", "--json")
    assert done.returncode == 0, done.stderr
    plugins = json.loads(done.stdout)["plugins"]
    assert {(p["kind"], p["name"]) for p in plugins} == {
        ("operators", "vignette"),
        ("guidance", "pull"),
        ("models", "grey"),
        ("metrics", "mae"),
    }
    skipped = {
        (p["name"], c["check"]) for p in plugins for c in p["checks"] if c["status"] != "passed"
    }
    # grey is no module and unconditional; pull takes any operator and leaves the transition to the
    # run.
    assert skipped == {
        ("grey", "meta"),
        ("grey", "conditions"),
        ("pull", "refuses"),
        ("pull", "x0_shift"),
    }


@pytest.mark.slow
def test_new_plugins_install_and_pass_their_own_tests(tmp_path: Path) -> None:
    packages = [write(f"my_{kind}", kind, tmp_path / kind) for kind in GROUPS]
    install(tmp_path / "site", *packages)
    tests = [str(package / "tests") for package in packages]
    done = python(
        tmp_path / "site", tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests
    )
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout and " passed" in done.stdout
    solved = python(
        tmp_path / "site",
        tmp_path,
        *(
            "-m",
            "invdiff",
            "solve",
            "--operator",
            "my_operator",
            "--method",
            "my_guidance",
            "--model",
            "my_model",
        ),
        *("--steps", "2", "--json", "--quiet", "--output", "out"),
    )
    assert solved.returncode == 0, solved.stderr
    record = json.loads(solved.stdout)
    assert (
        record["config"]["operator"]["factor"] == 0.5
        and record["config"]["guidance"][0]["zeta"] == 0.1
    )
    assert record["metrics"]["my_metric"] > 0


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        ("dps", "guidance", "the guidance 'dps' exists already, from invdiff"),
        ("My-Method", "guidance", "lower-case letters, digits and _"),
        ("class", "operator", "lower-case letters, digits and _"),
        ("../evil", "metric", "lower-case letters, digits and _"),
    ],
)
def test_names_that_cannot_be(
    name: str, kind: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-plugin", name, "--kind", kind, "--output", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["new-plugin", "mine", "--kind", "metric", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "invdiff check mine" in capsys.readouterr().out
    (tmp_path / "out" / "README.md").write_text("mine")
    assert main(arguments) == 2
    assert "exists; choose another --output" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").read_text() == "mine"
