"""``invdiff generate``, interpolation and cascades: one run as a process, the rest through main()
and the library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import invdiff
from invdiff.commands.main import main
from invdiff.guidance.cfg import CFG
from invdiff.guidance.sr3 import SR3
from invdiff.images import grid, read_image
from invdiff.noise import seed_of
from invdiff.operators.sr import SuperResolution
from invdiff.solving.cascade import make_upscaler
from invdiff.transitions import DDIM

FAST = ["--steps", "2", "--quiet"]
EIGHT_BITS = 0.5 / 255 + 1e-4  # what a PNG rounds, and what another batch size does


@pytest.fixture(scope="module")
def digits() -> invdiff.Denoiser:
    return invdiff.load_model("digits32")


def generate(folder: Path, *args: str) -> dict:
    """The record of a run."""
    assert main(["generate", "--output", str(folder), *args, *FAST]) == 0
    record = json.loads((folder / "result.json").read_text())
    assert sorted(p.name for p in folder.iterdir()) == sorted([*record["files"], "run.json"])
    return record


def samples(folder: Path, record: dict) -> torch.Tensor:
    return torch.cat([read_image(folder / s["file"]) for s in record["samples"]])


def test_main_job_as_a_process(
    tmp_path: Path, digits: invdiff.Denoiser, monkeypatch, capsys
) -> None:
    """A class by classifier-free guidance: the files are what the library makes of the same
    request."""
    args = [
        "generate",
        "--method",
        "cfg",
        "--label",
        "7",
        "--num-samples",
        "2",
        "--steps",
        "3",
        "guidance.w=4",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "invdiff", *args],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "invdiff-generate-cfg"
    record = json.loads((folder / "result.json").read_text())
    assert sorted(p.name for p in folder.iterdir()) == sorted([*record["files"], "run.json"])
    assert "step" in run.stderr and "invdiff-generate-cfg/grid.png" in run.stdout
    assert (
        record["nfe"] == 6
        and record["labels"] == [7]
        and record["weights"] == digits.hash
        and record["config"]["seed"] == 0
    )
    expected = invdiff.generate(digits, (2, 1, 32, 32), CFG(label=7, w=4.0), steps=3, seed=0).x
    torch.testing.assert_close(samples(folder, record), expected, atol=EIGHT_BITS, rtol=0)

    monkeypatch.chdir(tmp_path)
    assert main(args) == 0 and "--overwrite" in capsys.readouterr().err


def test_all_labels_are_rows_and_each_is_what_its_label_alone_gives(tmp_path: Path) -> None:
    record = generate(
        tmp_path / "all",
        "--label",
        "all",
        "--num-samples",
        "2",
        "--size",
        "16",
        "--batch-size",
        "7",
    )
    assert record["labels"] == list(range(10)) and [s["label"] for s in record["samples"]] == [
        k // 2 for k in range(20)
    ]
    alone = generate(tmp_path / "one", "--label", "3", "--num-samples", "2", "--size", "16")
    every = samples(tmp_path / "all", record)
    torch.testing.assert_close(
        every[6:8], samples(tmp_path / "one", alone), atol=1 / 255 + 1e-4, rtol=0
    )
    assert not torch.equal(every[6:8], every[14:16])  # another label, another image
    width, height = Image.open(tmp_path / "all" / "grid.png").size
    assert height > 4 * width  # ten rows of two


@pytest.mark.parametrize(
    ("args", "nfe", "given_to"),
    [
        (["--method", "none", "--label", "3,5"], 2, "run"),
        (["--method", "classifier", "--label", "3,5"], 2, "method"),
        (
            ["--method", "cfg", "--method", "classifier", "--label", "3,5", "transition.name=ddim"],
            4,
            "method",
        ),
    ],
)
def test_a_label_goes_to_who_takes_it(
    args: list[str], nfe: int, given_to: str, tmp_path: Path
) -> None:
    record = generate(tmp_path / "out", *args, "--num-samples", "1", "--size", "16x24")
    labels = [g.get("label") for g in record["run"]["method"]["guidance"]]
    assert labels == [[3, 5]] * len(labels) and record["run"]["cond"] == (
        {"label": [3, 5]} if given_to == "run" else {}
    )
    assert record["nfe"] == nfe and record["config"]["label"] == "3,5"
    x = samples(tmp_path / "out", record)
    assert x.shape == (2, 1, 16, 24) and not torch.equal(x[0], x[1])


def test_seed_transition_and_pictures(
    tmp_path: Path, digits: invdiff.Denoiser, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        "--num-samples",
        "3",
        "--seed",
        "4",
        "--gif",
        "--trajectory",
        "--json",
        "transition.name=ddim",
        "transition.eta=0.5",
    ]
    record = generate(tmp_path / "out", *args)
    assert json.loads(capsys.readouterr().out) == record and record["labels"] is None
    expected = invdiff.generate(digits, (3, 1, 32, 32), transition=DDIM(0.5), steps=2, seed=4).x
    torch.testing.assert_close(samples(tmp_path / "out", record), expected, atol=EIGHT_BITS, rtol=0)
    assert (
        Image.open(tmp_path / "out" / "trajectory.gif").n_frames == 3
    )  # each step's estimate, and the image
    strip = read_image(tmp_path / "out" / "trajectory.png")
    assert strip.shape[-2] > 5 * 256  # a state and an estimate of three samples


def test_batches_land_on_disk_as_they_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the third batch, the files of the first two are there."""
    from invdiff.network import Denoiser

    calls, evaluate = [], Denoiser.__call__

    def interrupted(self: Denoiser, *args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(Denoiser, "__call__", interrupted)
    out = tmp_path / "out"
    assert (
        main(
            [
                "generate",
                "--num-samples",
                "6",
                "--batch-size",
                "2",
                "--size",
                "16",
                "--output",
                str(out),
                *FAST,
            ]
        )
        == 130
    )
    finished = [f"sample_{k:03d}.png" for k in range(4)]
    assert sorted(p.name for p in out.iterdir()) == ["run.json", *finished]


@pytest.mark.parametrize(
    "what",
    [
        ["--label", "3,5", "--num-samples", "3"],
        pytest.param(["--interpolate", "4", "--num-samples", "3", "--gif"], marks=pytest.mark.slow),
    ],
    ids=["labels", "walk"],
)
def test_several_processes_make_what_one_does(
    what: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What they handed on is gone in the end."""
    alone = generate(tmp_path / "alone", *what)
    spread = generate(tmp_path / "spread", *what, "--workers", "2")
    assert {k: v for k, v in alone.items() if k not in ("seconds", "peak_memory_mb")} == {
        k: v for k, v in spread.items() if k not in ("seconds", "peak_memory_mb")
    }
    x, y = (samples(tmp_path / how, alone) for how in ("alone", "spread"))
    assert (x - y).abs().max() < 1.5 / 255  # the numbers of threads differ
    before = sorted(tmp_path.rglob("*"))
    refused = ["generate", "--output", str(tmp_path / "no"), *FAST, "--workers"]
    assert main([*refused, "2", "--trajectory"]) == 2
    assert "--trajectory" in capsys.readouterr().err
    assert main([*refused, "0"]) == 2
    assert "--workers must be at least 1" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_same_command_again_has_nothing_to_do_and_another_gets_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["generate", "--num-samples", "1", "--size", "16", *FAST]
    assert main(arguments) == 0
    (folder,) = tmp_path.glob("invdiff-*")
    written = (folder / "sample_000.png").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (folder / "sample_000.png").stat().st_mtime_ns == written
    (folder / "sample_000.png").unlink()  # no longer finished
    assert main(arguments) == 0 and (folder / "sample_000.png").exists()
    assert main([*arguments, "--seed", "1"]) == 0
    assert len([*tmp_path.glob("invdiff-*")]) == 2


def test_overwriting_leaves_nothing_of_the_run_before(tmp_path: Path) -> None:
    generate(tmp_path / "out", "--num-samples", "3", "--size", "16")
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    assert (
        main(
            [
                "generate",
                "--num-samples",
                "1",
                "--size",
                "16",
                "--overwrite",
                "--output",
                str(tmp_path / "out"),
                *FAST,
            ]
        )
        == 0
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "grid.png",
        "mine.txt",
        "result.json",
        "run.json",
        "sample_000.png",
    ]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--label", "10", "--method", "classifier"], "classes are 0..9"),
        (["--label", "11"], "classes are 0..9"),
        (["--label", "11", "--method", "none"], "classes are 0..9"),
        (["--label", "seven"], "(3,5,7) or all"),
        (["--label", "3,,5"], "(3,5,7) or all"),
        (["--model", "photo64", "--label", "3"], "not class-conditional"),
        (["--model", "photo64", "--label", "3", "--method", "none"], "not class-conditional"),
        (["--model", "photo64", "--label", "all", "--method", "none"], "not class-conditional"),
        (["--model", "photo64", "--label", "3", "--method", "classifier"], "classifier"),
        (["--model", "sr3x4"], "'sr3'"),
        (["--method", "cfg"], "needs a label"),
        (["--method", "dps"], "restores a measurement"),
        (["--method", "cgf"], "Did you mean 'cfg'"),
        (["--model", "digits23"], "Did you mean 'digits32'"),
        (["--size", "0"], "--size"),
        (["--size", "32x32x32"], "--size"),
        (["--size", "big"], "--size"),
        (["--num-samples", "0"], "num_samples"),
        (["--batch-size", "0"], "batch_size"),
        (["--steps", "0"], "steps"),
        (["--output", ""], "--output is empty"),
        (["guidance.label=3"], "--label"),
        (["--label", "3", "guidance.ww=3"], "Did you mean 'w'"),
        (["sigma=0.1"], "unknown key"),
        (["operator.mask=box"], "unknown key"),
        (["itinerary.name=late_start"], "needs an image"),
        (["--interpolate", "1", "transition.name=ddpm"], "draws no noise"),
        (["--interpolate", "1", "transition.name=ddim", "transition.eta=0.5"], "draws no noise"),
        (["--interpolate", "1", "itinerary.name=jumps", "itinerary.length=1"], "draws no noise"),
        (
            [
                "--interpolate",
                "1",
                "--label",
                "3",
                "--method",
                "classifier",
                "guidance.mean_shift=true",
            ],
            "draws no noise",
        ),
        (["--interpolate", "0"], "twice"),
        (["--interpolate", "1", "--num-samples", "1"], "at least 2"),
        (["--upscale", "sr3"], "enlarges images with 3 channels, but these have 1"),
        (["--upscale", "bicubc"], "known: bicubic"),
        (["--upscale", "bicubic", "upscale.factor=1"], "at least 2"),
        (["--upscale", "bicubic", "upscale.factor=abc"], "is a number"),
        (["--upscale", "bicubic", "upscale.steps=5"], "no model or steps"),
        (["--upscale", "bicubic", "upscale.fator=2"], "Did you mean 'factor'"),
        (["upscale.factor=2"], "add --upscale"),
        (["upscale=sr3"], "use --upscale"),
        (
            ["--model", "photo64", "--upscale", "sr3", "upscale.factor=2"],
            "trained to enlarge by 4, not by 2",
        ),
        (
            ["--model", "photo64", "--upscale", "sr3", "upscale.model=photo64"],
            "not conditioned on an image",
        ),
        (["--model", "photo64", "--upscale", "dps"], "'sr3'"),
        (["--model", "photo64", "--upscale", "sr3", "upscale.steps=0"], "steps"),
    ],
)
def test_bad_requests_say_so_in_one_line_before_sampling(
    args: list[str], expected: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    def sampled(*_: object, **__: object) -> None:
        raise AssertionError("sampling began")

    monkeypatch.setattr("invdiff.solving.run.sample", sampled)
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *args, "--quiet"]) == 2
    err = capsys.readouterr().err.strip()
    assert "\n" not in err and err.startswith("invdiff generate: error: ") and expected in err
    assert list(tmp_path.iterdir()) == []


# Interpolation ------------------------------------------------------------------------------------


def test_interpolation_begins_and_ends_at_the_images_of_its_seeds(tmp_path: Path) -> None:
    size = ["--size", "16", "transition.name=ddim"]
    walk = generate(
        tmp_path / "walk",
        "--seed",
        "3",
        "--interpolate",
        "8",
        "--num-samples",
        "5",
        "--size",
        "16",
        "--gif",
    )
    assert (
        walk["seeds"] == [3, 8]
        and Image.open(tmp_path / "walk" / "interpolation.gif").n_frames == 5
    )
    frames = samples(tmp_path / "walk", walk)
    for position, seed in ((0, "3"), (-1, "8")):
        record = generate(tmp_path / seed, "--seed", seed, "--num-samples", "1", *size)
        torch.testing.assert_close(
            frames[[position]], samples(tmp_path / seed, record), atol=1 / 255 + 1e-4, rtol=0
        )
    steps = (frames[1:] - frames[:-1]).flatten(1).norm(dim=1)
    assert float(steps.max()) < float((frames[0] - frames[-1]).norm())  # it goes there by degrees
    assert float(steps.min()) > 0


def test_interpolated_states_stay_where_noise_lives(digits: invdiff.Denoiser) -> None:
    x_T = invdiff.interpolate(digits, (1, 32, 32), seeds=(0, 1), frames=9, steps=10)
    assert x_T.shape == (9, 1, 32, 32)
    assert (
        float((x_T.flatten(1).std(dim=1) - 1).abs().max()) < 0.06
    )  # a straight line's middle would have 0.71
    one = invdiff.generate(digits, x_T=x_T[:1], steps=10, seed=5).x
    torch.testing.assert_close(
        one, invdiff.generate(digits, (1, 1, 32, 32), transition=DDIM(), steps=10, seed=0).x
    )


# Cascades -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["bicubic", "lanczos"])
def test_resampling_keeps_what_it_enlarges(how: str) -> None:
    ramp = torch.linspace(0.1, 0.9, 12, dtype=torch.float64).expand(2, 3, 10, 12)
    larger = invdiff.upscale(ramp, how, factor=3)
    assert larger.shape == (2, 3, 30, 36) and larger.dtype == torch.float64
    inside = larger[..., 12:24]
    expected = (torch.arange(12, 24, dtype=torch.float64) + 0.5) / 3 - 0.5  # pixel centres
    torch.testing.assert_close(
        inside, (0.1 + 0.8 / 11 * expected).expand_as(inside), atol=2e-3, rtol=0
    )
    level = torch.full((1, 1, 6, 6), 0.501234)
    torch.testing.assert_close(
        invdiff.upscale(level, how), level.repeat(1, 1, 4, 4), atol=1e-5, rtol=0
    )  # not 8 bits
    edge = invdiff.upscale(torch.eye(8)[None, None], how)
    assert float(edge.min()) == 0 and float(edge.max()) <= 1  # both kernels overshoot


def test_sr3_is_solve_with_the_small_images_as_the_measurement() -> None:
    model = invdiff.load_model("sr3x4")
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    larger = invdiff.upscale(x, "sr3", model=model, steps=2, seed=1)
    measurement, seed = invdiff.Measurement(x, SuperResolution(4)), seed_of("upscale", 1)
    expected = invdiff.solve(measurement, model, SR3(), steps=2, seed=seed)
    assert expected.nfe == 2 and torch.equal(larger, expected.x)
    again = make_upscaler("sr3", model=model, steps=2)(x[1:], seed=1, image_ids=[1])
    torch.testing.assert_close(
        again, larger[1:], atol=1e-4, rtol=0
    )  # image k is itself in any batch


def test_a_network_that_does_not_tell_its_factor_takes_any() -> None:
    model = invdiff.load_model("sr3x4", factor=None)
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert invdiff.upscale(x, model=model, factor=2, steps=1).shape == (1, 3, 32, 32)


def test_generate_and_solve_upscale(tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = [
        "--model",
        "photo64",
        "--size",
        "32",
        "--num-samples",
        "2",
        "--batch-size",
        "1",
        "--upscale",
        "sr3",
        "upscale.steps=1",
    ]
    record = generate(out, *args)
    assert {"upscaled_000.png", "upscaled_001.png", "upscaled_grid.png"} <= set(record["files"])
    assert (
        record["upscale"]["model"] == "sr3x4"
        and record["upscale"]["nfe"] == 1
        and record["upscale"]["factor"] == 4
    )
    assert read_image(out / "upscaled_001.png").shape == (1, 3, 128, 128)

    photo = tmp_path / "photo.png"
    read = read_image(out / "upscaled_000.png")[0, :, :32, :40]
    Image.fromarray((read.permute(1, 2, 0) * 255).byte().numpy()).save(photo)
    solved = tmp_path / "solved"
    common = ["solve", "--method", "none", "--input", str(photo), *FAST]
    assert main([*common, "--upscale", "lanczos", "upscale.factor=2", "--output", str(solved)]) == 0
    record = json.loads((solved / "result.json").read_text())
    assert "upscaled.png" in record["files"] and record["upscale"] == {
        "name": "lanczos",
        "factor": 2,
    }
    expected = invdiff.upscale(read_image(solved / "restored.png"), "lanczos", factor=2)
    torch.testing.assert_close(read_image(solved / "upscaled.png"), expected, atol=2 / 255, rtol=0)
    assert (
        main([*common, "--upscale", "sr3", "upscale.factor=2", "--output", str(tmp_path / "no")])
        == 2
    )
    assert not (tmp_path / "no").exists()


def test_rows_of_a_grid_are_labelled_and_may_be_small() -> None:
    panels = [torch.zeros(1, 8, 8)] * 6
    plain, labelled = (
        grid(panels, columns=3, height=16),
        grid(panels, columns=3, height=16, rows=["first", "second"]),
    )
    assert plain.shape == (3, 2 * 16 + 3 * 8, 3 * 16 + 4 * 8)
    beside = labelled[..., : labelled.shape[-1] - plain.shape[-1]]
    assert bool((beside[:, : 8 + 16] < 0.5).any()) and bool(
        (beside[:, 8 + 16 + 8 :] < 0.5).any()
    )  # letters left of each row
    assert torch.equal(labelled[..., -plain.shape[-1] + 8 :], plain[..., 8:])
    with pytest.raises(ValueError, match="each of the 2 rows"):
        grid(panels, columns=3, rows=["one"])
