"""A stranger's plug-ins of every kind, in one file of a package of its own, used by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

MODULE = '''
from dataclasses import dataclass, replace
from pathlib import Path
import numpy as np
import torch
from invdiff import Denoiser, Guidance, Itinerary, LinearOperator, Transition, schedules
from invdiff.benchmarks.baselines import Baseline
from invdiff.benchmarks.harness import evaluate
from invdiff.benchmarks.suite import Suite
from invdiff.itineraries import Straight
from invdiff.transitions import DDIM


@dataclass(frozen=True)
class Dim(LinearOperator):
    """Darkens the image.

    Args:
        factor: what is left of the light.
    """
    factor: float = 0.5
    def _forward(self, x): return self.factor * x
    def _adjoint(self, y): return self.factor * y


@dataclass(frozen=True)
class Pull(Guidance):
    """Pulls the estimate towards the measurement.

    Args:
        zeta: how far.
    """
    zeta: float = 0.5
    def __call__(self, denoise, x_t, step, measurement):
        p = denoise(x_t, step.t)
        return p.move_x0(self.zeta * measurement.operator.adjoint(measurement.residual(p.x0)))


@dataclass(frozen=True)
class Step(Transition):
    """A DDIM step under another name.

    Args:
        eta: share of the ancestral noise.
    """
    eta: float = 0.0
    def down(self, predict, x_t, step, measurement):
        return DDIM(self.eta).down(predict, x_t, step, measurement)


@dataclass(frozen=True)
class Way(Itinerary):
    """Straight down, without the noisiest level.

    Args:
        skip: how many of the noisiest levels are left out.
    """
    skip: int = 1
    def __call__(self, schedule, steps): return Straight()(schedule, steps + self.skip)[self.skip:]


def schedule(s: float = 0.02):
    """The cosine schedule with another offset.

    Args:
        s: the offset.
    """
    return schedules.cosine(s=s)


class Net(torch.nn.Module):
    factor = 0.1
    def forward(self, x, t): return self.factor * x


def model(**options):
    """A network that predicts a tenth of its input."""
    return Denoiser(Net(), **{"schedule": schedules.linear(), "data_range": (-1, 1),
                              "channels": 3, "name": "tenth"} | options)


class Npz:
    """Networks in .npz files: a factor that they multiply with."""
    def recognises(self, source): return source.file is not None and source.file.suffix == ".npz"
    def load(self, source, gain=1.0, **options):
        net = Net()
        net.factor = gain * float(np.load(source.file)["factor"])
        return Denoiser(net, **{"schedule": schedules.linear(), "data_range": (-1, 1),
                                "channels": 3, "name": source.file.stem} | options)


npz = Npz()


def metric(x, reference):
    """Mean absolute error."""
    return (x - reference).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class Grey(Baseline):
    """Middle grey."""
    def restore(self, measurement, denoiser=None, seed=0, image_ids=None):
        return torch.full((len(measurement), *measurement.image_shape), 0.5)


def launcher(workers=None):
    """One task after the other, in this process."""
    def launch(suite, tasks, folder, context):
        for task in tasks:
            yield task, evaluate(suite, task, folder, context)
    return launch


class Counting(Suite):
    """Counts to n."""
    def tasks(self, config): return [[{"n": n}] for n in range(config["n"])]
    def evaluate(self, task, folder, context): return [{"square": cell["n"] ** 2} for cell in task]
    def report(self, config, records): return str([r["result"]["square"] for r in records])
'''
POINTS = {
    "operators": "Dim",
    "guidance": "Pull",
    "transitions": "Step",
    "itineraries": "Way",
    "schedules": "schedule",
    "models": "model",
    "loaders": "npz",
    "metrics": "metric",
    "baselines": "Grey",
    "launchers": "launcher",
    "suites": "Counting",
}


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, as if it were installed."""
    site = tmp_path_factory.mktemp("site")
    (site / "stranger.py").write_text(MODULE)
    configs = site / "stranger_configs" / "suite"
    configs.mkdir(parents=True)
    (site / "stranger_configs" / "__init__.py").write_text("")
    (configs / "counting.yaml").write_text("# Counts.\nkind: mine\nn: 3\n")
    info = site / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    groups = [f"[invdiff.{kind}]\nmine = stranger:{made}\n" for kind, made in POINTS.items()]
    groups.append("[invdiff.configs]\nstranger = stranger_configs\n")
    (info / "entry_points.txt").write_text("\n".join(groups))
    return site


def invdiff(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "invdiff", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_every_kind_is_listed_and_described(stranger: Path, tmp_path: Path) -> None:
    listed = json.loads(invdiff(stranger, tmp_path, "list", "--json").stdout)
    assert all("mine" in listed[kind] for kind in POINTS if kind != "suites")
    assert "counting" in listed["suites"]
    done = invdiff(stranger, tmp_path, "list", "transitions", "mine")
    assert "A DDIM step under another name." in done.stdout and "eta" in done.stdout


@pytest.mark.slow
def test_pieces_of_a_run_are_used_by_name_in_solve(stranger: Path, tmp_path: Path) -> None:
    run = ["solve", "--operator", "mine", "--method", "mine", "--model", "mine", "--steps", "2"]
    for name, more in {
        "plain": [],
        "transition": ["transition=mine", "itinerary=mine"],
        "parameters": ["transition.name=mine", "transition.eta=0.5", "model.schedule=mine"],
    }.items():
        done = invdiff(stranger, tmp_path, *run, "--output", name, "--quiet", *more)
        assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "parameters" / "result.json").read_text())
    assert "Step" in json.dumps(config) and "Discrete" in json.dumps(config)


@pytest.mark.slow
def test_a_file_of_a_kind_of_ones_own_is_a_model(stranger: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", factor=0.2)
    done = invdiff(stranger, tmp_path, "info", "mine.npz", "--json", "--no-check", "model.gain=2")
    assert done.returncode == 0 and json.loads(done.stdout)["name"] == "mine", done.stderr
    wrong = invdiff(stranger, tmp_path, "info", "mine.npz", "--no-check", "model.gian=2")
    assert "Did you mean 'gain'" in wrong.stderr


@pytest.mark.slow
def test_baselines_launchers_and_suites_are_used_by_name_in_bench(
    stranger: Path, tmp_path: Path
) -> None:
    from invdiff.images import sample_photo, write_image

    photos = tmp_path / "photos"
    photos.mkdir()
    write_image(photos / "a.png", sample_photo(16)[0])
    done = invdiff(
        stranger,
        tmp_path,
        *("bench", "--suite", "photo", "--input", "photos", "--output", "out", "--operator"),
        *("mine", "--baseline", "mine", "--method", "mine", "--model", "mine", "--steps", "2"),
        *(
            "--launcher",
            "mine",
            "metrics=[psnr,mine]",
            "images.crop=16",
            "images.size=16",
            "images.names=null",
        ),
    )
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out" / "results.md").read_text()
    assert table.count("mine") >= 3, table
    counted = invdiff(stranger, tmp_path, "bench", "--suite", "counting", "--output", "counts")
    assert counted.returncode == 0 and "[0, 1, 4]" in counted.stdout, counted.stderr
