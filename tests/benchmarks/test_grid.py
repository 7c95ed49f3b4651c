"""``invdiff bench`` on images: the grid, what makes rows comparable, resuming, reproducing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import invdiff.zoo
from invdiff.benchmarks import baselines, frontier, harness, records, scoring
from invdiff.benchmarks.dataset import Dataset
from invdiff.benchmarks.grid import Grid, evaluate, networks, plan
from invdiff.benchmarks.launchers import make_launcher
from invdiff.benchmarks.leaderboard import markdown, tables
from invdiff.benchmarks.leaderboard.sets import add_set_scores
from invdiff.commands.arguments import make_parser
from invdiff.commands.bench import configure
from invdiff.commands.main import main
from invdiff.config import compose, compose_suite, override_value
from invdiff.images import read_image
from invdiff.problem import Measurement
from invdiff.sampling import NonFiniteError
from invdiff.solving.recommend import Measured

GRID = Grid("grid")
UNTIMED = ("seconds", "peak_memory_mb")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files, one of another shape."""
    folder = tmp_path_factory.mktemp("photos")
    for name, (height, width) in {"a": (96, 80), "b": (96, 80), "c": (64, 72)}.items():
        rows, columns = np.mgrid[0:height, 0:width]
        image = np.stack([rows * 2, columns * 3, 255 - rows * (ord(name) % 3)], axis=-1).astype(
            np.uint8
        )
        image[20:50, 30:50] = (200, 30, 60)
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def configured(photos: Path, *overrides: str, **entries: Any) -> dict[str, Any]:
    """A small grid: two images of 32x32, random inpainting, DPS and the pseudo-inverse."""
    given = [
        f"images.source={override_value(str(photos))}",
        "images.crop=64",
        "images.size=32",
        "images.names=[a,b]",
        *overrides,
    ]
    config = compose_suite("quick", given)
    small = {
        "operators": {"inpaint": None},
        "methods": {"dps": {"steps": 3, "zeta": 1.0}},
        "baselines": {"pinv": None},
    }
    return config | small | {"metrics": ["psnr"]} | entries


def run(config: dict[str, Any], folder: Path, workers: int = 1) -> list[harness.Record]:
    return harness.run(
        GRID,
        GRID.tasks(config),
        GRID.context(config),
        folder,
        make_launcher("local", workers),
        progress=False,
    )


def untimed(record: harness.Record) -> dict[str, Any]:
    return record["cell"] | {
        "result": {k: v for k, v in record["result"].items() if k not in UNTIMED}
    }


# Images -------------------------------------------------------------------------------------------


def test_images_are_centre_squares_averaged_over_areas(photos: Path) -> None:
    x = Dataset(str(photos), ("b",), crop=64, size=32)["b"]
    whole = read_image(photos / "b.png")[..., 16:80, 8:72]
    torch.testing.assert_close(x, whole.view(1, 3, 32, 2, 32, 2).mean((3, 5)))
    assert Dataset(str(photos))["c"].shape == (1, 3, 64, 72) and [
        image["name"] for image in Dataset(str(photos), limit=2).identities()
    ] == ["a", "b"]
    assert Dataset(str(photos), channels=1)["a"].shape == (1, 1, 96, 80)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"names": ("z",)}, "no image z"),
        ({"crop": 90}, "fewer than images.crop=90"),
        ({"crop": 64, "size": 65}, "images.size"),
    ],
)
def test_images_that_are_not_there(photos: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dataset(str(photos), **fields).identities()


def test_two_images_of_one_name_are_refused(photos: Path, tmp_path: Path) -> None:
    for suffix in ("png", "bmp"):
        Image.open(photos / "a.png").save(tmp_path / f"a.{suffix}")
    with pytest.raises(ValueError, match="two images are called a"):
        Dataset(str(tmp_path)).identities()


# The grid -----------------------------------------------------------------------------------------


def test_the_grid_is_every_combination(photos: Path) -> None:
    methods = {
        "dps": {"zeta": [1.0, 2.0], "steps": [2, 3]},
        "chain": {"name": ["ilvr", "dps"], "operators": ["small"]},
    }
    config = configured(
        photos,
        operators={"inpaint": None, "small": {"name": "sr", "factor": 2}},
        methods=methods,
        seeds=[0, 1],
        batch_size=1,
    )
    tasks = GRID.tasks(config)
    cells = [cell for task in tasks for cell in task]
    assert all(len(task) == 1 for task in tasks) and len(cells) == 2 * 2 * (4 + 1 + 4 + 1 + 1)
    assert {cell["benchmark"]["name"] for cell in cells if cell["label"] == "chain"} == {"small"}
    sweep = {tuple(cell["values"].items()) for cell in cells if cell["label"] == "dps"}
    assert len(sweep) == 4 and (("zeta", 2.0), ("steps", 3)) in sweep
    chosen = next(cell for cell in cells if cell["values"] == {"zeta": 2.0, "steps": 3})
    assert chosen["run"]["guidance"][0]["zeta"] == 2.0 and chosen["run"]["steps"] == 3
    assert len({harness.key(cell) for cell in cells}) == len(cells)
    assert all(cell["model"] is None for cell in cells if cell["label"] == "pinv")


def test_what_nobody_set_is_what_solve_would_run(photos: Path) -> None:
    config = configured(photos, methods={"dps": None})
    run = GRID.tasks(config)[0][0]["run"]
    solved = compose("inpaint", ["dps"], "photo64")
    assert {k: run[k] for k in plan.OF_RUN} == {k: solved[k] for k in plan.OF_RUN}


def test_images_of_one_shape_share_batches(photos: Path) -> None:
    config = configured(photos, "images.names=null", "images.crop=null", "images.size=null")
    assert [[cell["image"]["name"] for cell in task] for task in GRID.tasks(config)[:2]] == [
        ["a", "b"],
        ["c"],
    ]


@pytest.mark.parametrize(
    "change, same",
    [
        ({"methods": {"ddnm": None}}, True),
        ({"batch_size": 1}, True),
        ({"sigma": 0.1}, False),
        ({"seeds": [0, 1]}, False),
        ({"metrics": ["psnr", "ssim"]}, False),
        ({"operators": {"inpaint": {"fraction": 0.5}}}, False),
    ],
)
def test_what_makes_rows_comparable(photos: Path, change: dict[str, Any], same: bool) -> None:
    ours, theirs = (
        records.benchmark_hash(GRID.tasks(configured(photos, **given))[0][0])
        for given in ({}, change)
    )
    assert (ours == theirs) == same


def test_a_protocol_brings_its_noise(photos: Path) -> None:
    config = configured(
        photos, operators={"dps_phase_retrieval": None}, methods={"dps": None}, baselines={}
    )
    benchmark = GRID.tasks(config)[0][0]["benchmark"]
    assert benchmark["sigma"] == 0.05 and benchmark["operator"]["name"] == "phase_retrieval"


@pytest.mark.slow
@pytest.mark.parametrize(
    "suite", ["quick", "photo", "sweep", "frontier", "dps_ffhq256", "daps_ffhq256"]
)
def test_every_suite_can_be_composed(photos: Path, suite: str) -> None:
    config = compose_suite(suite, [f"images.source={override_value(str(photos))}"])
    config["images"] |= {"names": ["a"], "crop": 64, "size": 32}
    config["models"] = config["models"] or {"photo64": None}
    for values in filter(None, config["methods"].values()):  # of a sweep the first value, for time
        values |= {
            k: v[0]
            for k, v in values.items()
            if isinstance(v, list) and k not in ("name", "operators")
        }
    labels = {cell["label"] for task in GRID.tasks(config) for cell in task}
    assert labels == {*config["methods"], *config["baselines"]}


# Running ------------------------------------------------------------------------------------------


def test_every_row_sees_the_measurements_that_are_kept(photos: Path, tmp_path: Path) -> None:
    found = run(
        configured(photos, methods={"dps": {"steps": 2}, "ddnm": {"steps": 2, "num_samples": 2}}),
        tmp_path,
    )
    seen = {(r["cell"]["image"]["name"], r["result"]["measurement"]) for r in found}
    assert len(found) == 6 and len(seen) == 2
    (file,) = (tmp_path / "measurements").iterdir()
    kept = Measurement.load(file)
    truth = torch.cat(
        [Dataset(str(photos), ("a", "b"), crop=64, size=32)[name] for name in ("a", "b")]
    )
    assert {kept.select([k]).hash for k in (0, 1)} == {hashed for _, hashed in seen}
    mask = kept.operator.state["mask"]
    assert float(((kept.y - truth) * mask).std()) == pytest.approx(
        0.025 * float(mask.mean()) ** 0.5, rel=0.1
    )
    assert not records.problems([tmp_path])[0]
    several = next(r["result"] for r in found if r["cell"]["label"] == "ddnm")
    assert (
        several["samples"] == 2
        and {"mean", "spread"} <= several.keys()
        and {"mean", "std"} <= several["files"].keys()
    )


def test_an_image_has_its_noise_in_any_batch(photos: Path, tmp_path: Path) -> None:
    together, alone = (run(configured(photos, batch_size=n), tmp_path / str(n)) for n in (2, 1))
    for a in together:
        (b,) = (r for r in alone if all(r["cell"][k] == a["cell"][k] for k in ("image", "label")))
        assert (
            a["result"]["measurement"] == b["result"]["measurement"]
            and a["cell"]["batch"] != b["cell"]["batch"]
        )
        assert a["result"]["metrics"]["psnr"] == pytest.approx(
            b["result"]["metrics"]["psnr"], abs=1e-3
        )


def test_refusals_divergence_and_failures_stop_nobody(photos: Path, tmp_path: Path) -> None:
    methods = {"dps": {"steps": 2, "zeta": 1e38}, "ddrm": {"steps": 2}, "ddnm": {"steps": 2}}
    config = configured(photos, operators={"jpeg": None}, methods=methods, baselines={})
    tasks = GRID.tasks(config)
    tasks[2] = [cell | {"model": cell["model"] | {"weights": "0" * 64}} for cell in tasks[2]]
    found = harness.run(
        GRID, tasks, GRID.context(config), tmp_path, make_launcher("local"), progress=False
    )
    assert (
        "diverged" in found[0]["result"]
        and "refused" in found[2]["result"]
        and "is not the network of this cell" in found[4]["failure"]["error"]
    )
    text = GRID.report(config, found)
    assert "ddrm" in text and "dps" in text


def test_a_record_keeps_what_solve_would_warn_of(photos: Path, tmp_path: Path) -> None:
    own = {"dps": {"steps": 3}, "tuned": {"name": "dps", "steps": 3, "zeta": 1.0}}
    found = run(configured(photos, "images.size=64", methods=own), tmp_path)
    said = {r["cell"]["label"]: r["result"].get("warnings", []) for r in found}
    assert any("is tuned for" in text and "this run has 3" in text for text in said["dps"])
    assert said["pinv"] == [] and not any("is tuned for" in text for text in said["tuned"])
    (table,) = tables(found)
    text = markdown([table])
    assert "| dps zeta" in text or "| dps†" in text and "- dps†: 2 of 2: guidance.zeta=" in text
    assert "pinv†" not in text


def test_an_image_that_diverges_takes_no_other_with_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(configured(photos), tmp_path / "whole")
    plain, seen = evaluate.solve, []

    def fragile(measurement: Measurement, *args: Any, **options: Any) -> Any:
        if 1 in options.get("image_ids", []):
            raise NonFiniteError("image 1 is too much")
        seen.append(options.get("image_ids"))
        return plain(measurement, *args, **options)

    monkeypatch.setattr(evaluate, "solve", fragile)
    first, second, *_ = run(configured(photos), tmp_path / "fragile")
    assert "diverged" in second["result"] and seen[-1] == [0]
    assert first["result"]["metrics"]["psnr"] == pytest.approx(
        whole[0]["result"]["metrics"]["psnr"], abs=1e-3
    )
    assert first["result"]["measurement"] == whole[0]["result"]["measurement"]


def test_an_error_of_a_baseline_is_a_failure_and_no_refusal(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("operands could not be broadcast")

    monkeypatch.setattr(baselines.PseudoInverse, "restore", broken)
    found = run(configured(photos, methods={}, baselines={"pinv": None, "bicubic": None}), tmp_path)
    assert "operands" in found[0]["failure"]["error"] and "refused" in found[2]["result"]


def test_a_network_is_known_by_what_it_is_and_not_by_where(photos: Path, tmp_path: Path) -> None:
    """Records of a folder can be made again with the same folder elsewhere, and not with one that
    is read otherwise."""
    for place in ("here", "there"):
        shutil.copytree(Path(invdiff.zoo.__file__).parent / "photo64", tmp_path / place / "prior")
    config = configured(photos, models={str(tmp_path / "here" / "prior"): None}, baselines={})
    found = run(config, tmp_path / "out")
    assert found[0]["cell"]["model"]["name"] == "prior" and str(tmp_path) not in json.dumps(
        found[0]["cell"]
    )
    file = tmp_path / "out" / f"{harness.key(found[0]['cell'])}.json"
    shutil.rmtree(tmp_path / "here")
    again = [
        "bench",
        "--reproduce",
        str(file),
        "--input",
        str(photos),
        "--quiet",
        "--model",
        str(tmp_path / "there" / "prior"),
    ]
    assert main(again) == 0
    scheduler = tmp_path / "there" / "prior" / "scheduler_config.json"
    scheduler.write_text(
        json.dumps(json.loads(scheduler.read_text()) | {"num_train_timesteps": 500})
    )
    networks.model.cache_clear()
    assert main(again) == 2


def test_flags_go_before_what_the_suite_says_of_one(photos: Path) -> None:
    given = [
        "bench",
        "--method",
        "dps",
        "--method",
        "pigdm",
        "--steps",
        "7",
        "--sigma",
        "0.1",
        "--dtype",
        "float32",
        "--operator",
        "blur",
    ]
    small = ["images.names=[a]", "images.crop=64", "images.size=32", "+operators.blur.sigma=2"]
    args = make_parser().parse_args([*given, "--input", str(photos), *small])
    cells = [
        cell for task in GRID.tasks(configure(args)) for cell in task if cell["kind"] == "method"
    ]
    assert {
        (cell["run"]["steps"], cell["model"]["dtype"], cell["benchmark"]["sigma"]) for cell in cells
    } == {(7, "float32", 0.1)}
    assert cells[0]["benchmark"]["operator"]["sigma"] == 2.0


COMMAND = [
    "bench",
    "--operator",
    "sr",
    "--method",
    "dps",
    "--method",
    "diffpir",
    "--baseline",
    "bicubic",
    "--batch-size",
    "1",
]
SMALL = [
    "images.crop=64",
    "images.size=32",
    "images.names=[a,b]",
    "metrics=[psnr]",
    "methods.dps.steps=[2,3,4]",
    "methods.diffpir.steps=4",
]


@pytest.mark.slow
def test_a_killed_run_goes_on_and_is_equal_to_the_bit(photos: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "--input", str(photos), *SMALL]
    assert main([*command, "--output", str(tmp_path / "whole"), "--quiet"]) == 0
    files = sorted(p.name for p in tmp_path.glob("whole/*.json"))
    assert len(files) == 2 * (3 + 1 + 1)
    for workers in ("1", "2"):
        out = tmp_path / f"out{workers}"
        process = subprocess.Popen(
            [sys.executable, "-m", "invdiff", *command, "--workers", workers, "--output", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 240
        while len(list(out.glob("*.json"))) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kept = {p: p.stat().st_mtime_ns for p in out.glob("*.json")}
        assert main([*command, "--output", str(out), "--quiet"]) == 0
        assert all(p.stat().st_mtime_ns == stamp for p, stamp in kept.items())
        assert files == sorted(p.name for p in out.glob("*.json")) and len(files) > len(kept)
        for name in files:
            a, b = (json.loads((folder / name).read_text()) for folder in (out, tmp_path / "whole"))
            assert untimed(a) == untimed(b)


def _processes_of(folder: Path) -> list[str]:
    """Command lines of processes that name a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it ended meanwhile
            continue
    return [line for line in found if str(folder) in line]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["local", "submitit"])
def test_a_terminated_run_leaves_no_processes_and_goes_on(
    launcher: str, photos: Path, tmp_path: Path
) -> None:
    if launcher == "submitit":
        pytest.importorskip("submitit")
    command = [*COMMAND, "--input", str(photos), *SMALL, "--output", str(tmp_path / "out")]
    option = ["--launcher-option", "cluster=local"] if launcher == "submitit" else []
    where = ["--launcher", launcher, "--workers", "2", *option]
    process = subprocess.Popen(
        [sys.executable, "-m", "invdiff", *command, *where],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("out/*.json"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.terminate()
    assert b"interrupted" in process.communicate(timeout=30)[1] and process.returncode == 130
    deadline = time.monotonic() + 20
    while (left := _processes_of(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == [] and not list(tmp_path.glob("out/jobs/run-*"))
    assert main([*command, "--quiet"]) == 0
    assert records.problems([tmp_path / "out"])[0] == []


def test_more_images_and_seeds_do_not_run_the_old_ones_again(photos: Path, tmp_path: Path) -> None:
    small = configured(photos, "images.names=[a,b]", "batch_size=2")
    large = configured(photos, "images.names=[a,b,c]", "batch_size=2", seeds=[0, 1])
    run(small, tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.json")}
    found = run(large, tmp_path)
    assert len(stamps) == 4 and all(p.stat().st_mtime_ns == t for p, t in stamps.items())
    assert len(found) == len(list(tmp_path.glob("*.json"))) == 12
    (table,) = tables(records.read_records([tmp_path]))
    assert [(row["complete"], row["of"]) for row in table["rows"]] == [(True, 3)] * 2
    again = run(small, tmp_path)  # whose table is of its own images
    assert [row["of"] for row in tables(again)[0]["rows"]] == [2, 2]
    assert records.problems([tmp_path])[0] == []


# The command --------------------------------------------------------------------------------------


def test_a_record_is_reproduced_or_it_is_told(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(configured(photos), tmp_path)
    file = tmp_path / f"{harness.key(found[1]['cell'])}.json"
    again = ["bench", "--reproduce", str(file), "--input", str(photos)]
    assert main(again) == 0
    out, err = capsys.readouterr()
    assert "metrics.psnr" in out and "equal to the bit" in err
    assert main(again[:3]) == 2 and "say where: --input" in capsys.readouterr().err
    wrong = json.loads(file.read_text())
    wrong["result"]["metrics"]["psnr"] += 0.1
    file.write_text(json.dumps(wrong))
    assert main(again) == 2 and "not reproduced: metrics.psnr" in capsys.readouterr().err
    Image.open(photos / "c.png").resize((80, 96)).save(tmp_path / "b.png")
    Image.open(photos / "a.png").save(tmp_path / "a.png")
    assert main([*again[:4], str(tmp_path)]) == 2 and "the image b" in capsys.readouterr().err


def test_records_of_a_folder_are_sampled_and_reproduced(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(configured(photos, methods={}, baselines={"pinv": None, "tv": None}), tmp_path)
    again = ["bench", "--reproduce", str(tmp_path), "--input", str(photos)]
    assert main([*again, "--sample", "2"]) == 0
    said = capsys.readouterr().err
    assert said.count("equal to the bit") == 2
    assert len({key for r in found if (key := harness.key(r["cell"])) in said}) == 2
    for record in found:
        file = tmp_path / f"{harness.key(record['cell'])}.json"
        wrong = json.loads(file.read_text())
        wrong["result"]["metrics"]["psnr"] += 0.1
        file.write_text(json.dumps(wrong))
    assert main([*again, "--sample", "9"]) == 2
    assert "4 of 4 records were not reproduced: " in capsys.readouterr().err
    assert main([*again, "--sample", "0"]) == 2
    assert "--sample must be at least 1, got 0" in capsys.readouterr().err
    assert main(["bench", "--sample", "2", "--output", str(tmp_path)]) == 2
    assert "--sample is of --reproduce FOLDER" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["bench", "--reproduce", str(tmp_path / "empty")]) == 2
    assert "no records with results in" in capsys.readouterr().err


def test_scores_of_sets_are_added_to_complete_rows(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With features that are the mean colour: what the pictures are must reach torchmetrics."""

    def colour(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.float().mean((2, 3)) / 255, images.float().mean((2, 3))

    monkeypatch.setattr(scoring, "inception", lambda weights: colour)
    found = run(configured(photos, methods={"dps": {"steps": 2, "zeta": 1.0}}), tmp_path)
    (table,) = tables(records.read_records([tmp_path]))
    add_set_scores(table, ["fid"], None)
    for row in table["rows"]:
        label = row["label"]
        own = [r["result"]["files"] for r in found if r["cell"]["label"] == label]
        a, b = (
            torch.cat([read_image(tmp_path / files[what]) for files in own])
            .mean((2, 3))
            .double()
            .numpy()
            for what in ("restoration", "truth")
        )
        covariances = [np.cov(x.T) for x in (a, b)]
        shared = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
        frechet = (
            ((a.mean(0) - b.mean(0)) ** 2).sum()
            + np.trace(covariances[0] + covariances[1])
            - 2 * shared
        )
        assert row["scores"]["fid"]["mean"] == pytest.approx(frechet, rel=1e-3, abs=1e-6)
    assert all(row["scores"]["fid"]["rank"] is None for row in table["rows"])
    assert table["metrics"][-1] == {"name": "fid", "title": "FID", "better": "lower"}


def test_a_record_names_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"suite": "antigravity", "cell": {}}))
    assert main(["bench", "--reproduce", str(tmp_path / "r.json")]) == 2
    assert "unknown suite 'antigravity'" in capsys.readouterr().err


def test_flags_choose_rows_and_add_new_ones_with_their_values(photos: Path) -> None:
    def cells(*given: str) -> list[dict[str, Any]]:
        small = [
            "--input",
            str(photos),
            "--operator",
            "inpaint",
            "images.crop=64",
            "images.size=32",
            "images.limit=1",
        ]
        args, rest = make_parser().parse_known_args(["bench", *given, *small])
        args.overrides += rest
        return [cell for task in GRID.tasks(configure(args)) for cell in task]

    (added,) = cells("--method", "mmps", "methods.mmps.iterations=2")
    assert added["run"]["guidance"][0]["iterations"] == 2 and added["image"]["name"] == "a"
    assert [cell["label"] for cell in cells("--baseline", "bicubic")] == [
        "bicubic"
    ]  # which the suite has for sr alone


def test_values_are_kept_and_figures_computed_again(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tampered folder is told from an honest one."""
    config = configured(photos, methods={"ddnm": {"steps": 2, "num_samples": 2}})
    found = run(config, tmp_path)

    def validated() -> str:
        code = main(["leaderboard", "validate", str(tmp_path)])
        said = capsys.readouterr()
        assert code == (0 if "records are valid" in said.out else 2)
        return said.out

    assert "4 recomputed, 0 form only" in validated()
    file = tmp_path / f"{harness.key(found[0]['cell'])}.json"
    honest = file.read_text()

    def tampered(change: Any) -> str:
        record = json.loads(honest)
        change(record["result"])
        file.write_text(json.dumps(record))
        said = validated()
        file.write_text(honest)
        return said

    assert "$.result.metrics.psnr: 39.9, but the values give" in tampered(
        lambda result: result["metrics"].update(psnr=39.9)
    )
    assert "$.result.mean.psnr: 39.9, but the values give" in tampered(
        lambda result: result["mean"].update(psnr=39.9)
    )
    assert "samples: are not the samples whose hash" in tampered(
        lambda result: result.update(restoration="0" * 64)
    )
    other = found[1]["result"]
    swapped = {k: other[k]["restoration"] for k in ("files", "hashes")}
    assert "$.result.files.restoration: does not show the values" in tampered(
        lambda result: [result[k].update(restoration=v) for k, v in swapped.items()]
    )
    picture = tmp_path / found[0]["result"]["files"]["restoration"]
    shutil.copy(tmp_path / other["files"]["restoration"], picture)
    assert "is not the picture whose hash is in the record" in validated()


def test_values_need_not_be_kept(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(configured(photos, lossless=False, methods={}), tmp_path)
    assert main(["leaderboard", "validate", str(tmp_path)]) == 0
    assert "0 recomputed, 2 form only" in capsys.readouterr().out
    assert not list(tmp_path.glob("pictures/*.safetensors"))


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"seeds": [-1]}, "seeds must be a list of whole numbers, at least 0, got \\[-1\\]"),
        ({"seeds": [0, 0]}, "seeds must differ"),
        ({"seeds": "x"}, "seeds must be a list of whole numbers"),
        ({"seeds": [2**70]}, "cannot be recorded: .*more than 64 bits"),
        ({"batch_size": 0}, "batch_size must be a whole number, at least 1, got 0"),
        ({"baselines": {"x" * 1001: {"name": "pinv"}}}, "cannot be recorded: .*label"),
        ({"sigma": 1e7}, "cannot be recorded: .*sigma"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_the_first_cell(
    photos: Path, entries: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        GRID.tasks(configured(photos, **{"methods": {}} | entries))


def test_a_finished_folder_that_cannot_be_written_prints_its_table(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    command = ["bench", "--input", str(photos), "--baseline", "pinv", "--operator", "inpaint"]
    command += ["--output", str(tmp_path), "images.crop=64", "images.size=32"]
    command += ["images.names=[a]", "metrics=[psnr]"]
    assert main(command) == 0
    table = capsys.readouterr().out

    def refused(*_: Any) -> None:
        raise PermissionError("read-only file system")

    for module in ("invdiff.commands.bench", "invdiff.benchmarks.harness"):
        monkeypatch.setattr(f"{module}.write_atomically", refused)
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.out == table and "results.md was not written: read-only" in said.err
    assert "-> " not in said.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--seeds", "-1"], "--seeds must be at least 1"),
        (["--sigma", "-1"], "--sigma must be at least 0"),
        (["sigma=-1"], "sigma and gain must be at least 0"),
        (["images.limit=0"], "images.limit must be at least 1"),
        (["--method", "dsp"], "Did you mean 'dps'"),
        (["--operator", "bluur"], "Did you mean 'blur'"),
        (["--baseline", "pin"], "Did you mean 'pinv'"),
        (["--model", "photo65"], "photo65"),
        (["--input", "nowhere"], "nowhere"),
    ],
)
def test_wrong_requests(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--output", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err


# The frontier -------------------------------------------------------------------------------------


def test_the_frontier_of_two_photographs(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [
        "images.crop=64",
        "images.size=32",
        "images.names=[a,b]",
        "~methods",
        "+methods.dps.steps=[2,4]",
        "+methods.dps.zeta=2",
    ]
    small += ["~operators", "+operators.inpaint.fraction=0.5", "+methods.replace.steps=2"]
    frontier.main(["--input", str(photos), "--output", str(tmp_path), *small])
    assert (tmp_path / "inpaint.png").exists() and len(list(tmp_path.glob("*.json"))) == 9
    assert "| dps | steps 4, zeta 2 |" in capsys.readouterr().out
    rows = [Measured(**row) for row in json.loads((tmp_path / "recommended.json").read_text())]
    assert {(r.method, r.steps, r.evaluations) for r in rows} == {
        ("dps", 2, 4),
        ("dps", 4, 8),
        ("replace", 2, 2),
        (None, 0, 0),
    }
    assert all((r.operator, r.model, r.images) == ("inpaint", "photo64", 2) for r in rows)
    assert [r.values["zeta"] for r in rows if r.method == "dps"] == [2, 2]
    assert all(0 < r.lpips < 1.5 and 3 < r.psnr < 60 for r in rows)


def test_the_front_has_what_nothing_beats() -> None:
    points = [(1, 0.5), (2, 0.4), (3, 0.45), (4, 0.2), (4, 0.3), (5, 0.2)]
    rows = [
        {"cost": {"nfe": cost, "nbe": 0}, "scores": {"lpips": {"mean": lpips}}}
        for cost, lpips in points
    ]
    front = frontier.pareto(rows, frontier.COSTS["evaluations, forward and backward"], "lpips")
    assert [(r["cost"]["nfe"], r["scores"]["lpips"]["mean"]) for r in front] == [
        (1, 0.5),
        (2, 0.4),
        (4, 0.2),
    ]
