"""The command line: a few runs as a process, the rest through main()."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.commands.list import LISTED, describe, names
from invdiff.commands.main import main
from invdiff.config import compose
from invdiff.images import read_image
from invdiff.problem import Measurement, make_operator

FAST = ["--steps", "2", "--quiet"]


def command(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "invdiff", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A 40x48 colour ramp with a square in it."""
    rows, columns = np.mgrid[0:40, 0:48]
    image = np.stack([rows * 6, columns * 5, 255 - rows * 3], axis=-1).astype(np.uint8)
    image[10:20, 10:20] = (200, 30, 30)
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    return path


def error_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line on stderr of a request that must fail with exit code 2."""
    capsys.readouterr()  # what was said before
    assert main(list(args)) == 2
    err = capsys.readouterr().err.strip()
    assert "\n" not in err and err.startswith("invdiff solve: error: ")
    return err


def test_list_describes_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "guidance", "ddrm", "--json"]) == 0
    ddrm = json.loads(capsys.readouterr().out)
    assert (
        ddrm["parameters"]["eta"]["default"] == 0.85
        and "fresh noise" in ddrm["parameters"]["eta"]["text"]
    )
    assert ddrm["summary"].startswith("Denoising diffusion restoration models (Kawar")
    assert ddrm["facts"][:2] == [
        "needs a SpectralOperator",
        "weighs pixels of different sigma in the units of their noise",
    ]
    assert main(["list", "operators", "compose"]) == 0
    compose = capsys.readouterr().out
    assert (
        'parts=["blur", "sr"]' in compose
        and "operator.parts=[{name: blur, sigma: 2}, {name: sr, factor: 4}]"
        in " ".join(compose.split())
    )
    assert main(["list", "presets", "paper_dps_inpaint"]) == 0
    assert "zeta: 0.5" in capsys.readouterr().out
    assert main(["list", "presets", "paper_dps_inpant"]) == 2
    assert "Did you mean 'paper_dps_inpaint'? See invdiff list presets." in capsys.readouterr().err


@pytest.mark.parametrize("kind", LISTED)
def test_everything_that_is_listed_can_be_described(kind: str) -> None:
    for name, origin in names(kind).items():
        described = describe(kind, name)
        assert described["from"] == origin and (described.get("text") or described["summary"]), name
        json.dumps(described, allow_nan=False)
        for parameter, said in described.get("parameters", {}).items():
            assert said["text"], f"{kind} {name}: {parameter} is not documented"


def test_help_and_list_do_not_import_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from invdiff.commands.main import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; assert 'hydra' not in sys.modules"
    )
    listed = subprocess.run(
        [sys.executable, "-c", script, "list"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "dps" in listed and "inpaint" in listed and "photo64" in listed
    as_json = subprocess.run(
        [sys.executable, "-c", script, "list", "guidance", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert json.loads(as_json)["guidance"]["dps"] == "invdiff (invdiff.guidance.dps:DPS)"


def test_main_job_as_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's command, with fewer steps: all files are there and the record tells the truth
    about them."""
    run = command("solve", "--operator", "inpaint", "--method", "dps", "--steps", "4", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    folder = tmp_path / "invdiff-inpaint-dps"
    record = json.loads((folder / "result.json").read_text())
    assert sorted(p.name for p in folder.iterdir()) == sorted([*record["files"], "run.json"])
    assert {
        "restored.png",
        "measurement.png",
        "comparison.png",
        "measurement.safetensors",
        "truth.png",
    } <= set(record["files"])
    assert record["nfe"] == 4 and record["nbe"] == 4
    assert set(record["metrics"]) == {"psnr", "ssim", "lpips", "nmse"}
    restored, truth = read_image(folder / "restored.png"), read_image(folder / "truth.png")
    assert restored.shape == truth.shape == (1, 3, 128, 128)
    psnr = -10 * torch.log10((restored - truth).square().mean())
    assert float(psnr) == pytest.approx(record["metrics"]["psnr"], abs=0.02)  # 8-bit rounding
    assert (
        Measurement.load(folder / "measurement.safetensors").hash == record["measurement"]["hash"]
    )
    assert "step" in run.stderr and "comparison.png" in run.stdout

    monkeypatch.chdir(tmp_path)
    assert main(["solve", "--operator", "inpaint", "--method", "dps", "--steps", "4"]) == 0
    assert "finished before; --overwrite runs it again" in capsys.readouterr().err


@pytest.mark.parametrize("operator", ["inpaint", "blur", "sr", "colorize", "denoise"])
def test_every_operator(operator: str, photo: Path, tmp_path: Path) -> None:
    assert (
        main(
            [
                "solve",
                "--operator",
                operator,
                "--input",
                str(photo),
                "--output",
                str(tmp_path / "out"),
                *FAST,
            ]
        )
        == 0
    )
    assert read_image(tmp_path / "out" / "restored.png").shape == (1, 3, 40, 48)


def test_json_samples_and_gif(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = [
        "solve",
        "--input",
        str(photo),
        "--output",
        str(out),
        "--num-samples",
        "2",
        "--gif",
        "--json",
        "--seed",
        "3",
        "--method",
        "dps",
    ]
    assert (
        main([*args, *FAST, "guidance.zeta=0.25", "transition.name=ddim", "transition.eta=0.5"])
        == 0
    )
    record = json.loads(capsys.readouterr().out)
    assert record["run"]["method"]["guidance"] == [
        {"name": "DPS", "zeta": 0.25, "likelihood": False}
    ]
    assert record["run"]["method"]["transition"] == {"name": "DDIM", "eta": 0.5, "std": None}
    assert record["run"]["seed"] == 3 and record["metrics_of_mean"]["psnr"] > 0
    assert {"mean.png", "std.png", "sample_0.png", "sample_1.png", "trajectory.gif"} <= {
        p.name for p in out.iterdir()
    }


def test_folder_of_images(photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(photo.read_bytes())
    assert (
        main(
            [
                "solve",
                "--method",
                "none",
                "--input",
                str(folder),
                "--output",
                str(tmp_path / "out"),
                *FAST,
            ]
        )
        == 0
    )
    results = {
        n: json.loads((tmp_path / "out" / n / "result.json").read_text()) for n in ("a", "b")
    }
    assert (
        results["a"]["measurement"]["hash"] != results["b"]["measurement"]["hash"]
    )  # image k has noise of its own
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["mean"]["psnr"] == pytest.approx(
        sum(r["metrics"]["psnr"] for r in results.values()) / 2
    )


def test_already_degraded(photo: Path, tmp_path: Path) -> None:
    """A degraded PNG with its mask, and a saved measurement: known pixels stay, nothing is
    simulated."""
    mask = np.full((40, 48), 255, np.uint8)
    mask[12:24, 12:30] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = [
        "--measurement",
        str(photo),
        "--mask",
        str(tmp_path / "mask.png"),
        "--sigma",
        "0",
        "--method",
        "replace",
    ]
    assert main(["solve", *given, "--output", str(tmp_path / "one"), *FAST]) == 0
    restored, known = read_image(tmp_path / "one" / "restored.png"), torch.from_numpy(mask > 0)
    assert torch.equal(restored[..., known], read_image(photo)[..., known])
    assert not torch.equal(restored[..., ~known], read_image(photo)[..., ~known])
    assert "metrics" not in json.loads((tmp_path / "one" / "result.json").read_text())

    make_operator("sr", factor=4).measure(
        torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0)), sigma=0.1
    ).save(tmp_path / "m.safetensors")
    assert (
        main(
            [
                "solve",
                "--measurement",
                str(tmp_path / "m.safetensors"),
                "--output",
                str(tmp_path / "two"),
                *FAST,
            ]
        )
        == 0
    )
    assert read_image(tmp_path / "two" / "restored.png").shape == (1, 3, 40, 48)


def test_mask_keep_black(photo: Path, tmp_path: Path) -> None:
    mask = np.zeros((40, 48), np.uint8)
    mask[:, 24:] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    out = tmp_path / "out"
    assert (
        main(
            [
                "solve",
                "--input",
                str(photo),
                "--mask",
                str(tmp_path / "m.png"),
                "--mask-keep",
                "black",
                "--sigma",
                "0",
                "--output",
                str(out),
                *FAST,
            ]
        )
        == 0
    )
    y = read_image(out / "measurement.png")
    assert torch.equal(y[..., :24], read_image(photo)[..., :24]) and bool((y[..., 24:] == 0).all())


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--operator", "inpant"], "Did you mean 'inpaint'"),
        (["--method", "dsp"], "Did you mean 'dps'"),
        (["--model", "photo46"], "Did you mean 'photo64'"),
        (["--model", "no/such/folder"], "there is no folder or file no/such/folder"),
        (["guidance.zetta=1"], "Did you mean 'zeta'"),
        (["operator.fracton=1"], "Did you mean 'fraction'"),
        (["operator.fraction=2"], "fraction"),
        (["stepz=3"], "stepz"),
        (["nonsense"], "key=value"),
        (["operator._target_=os.system"], "_target_"),
        (["foo=1"], "known: sigma"),
        (["=1"], "key=value"),
        (["++x.y=1"], "unknown key"),
        (["transition.eta=1"], "transition=NAME"),
        (["operator.fraction=null"], "is a number"),
        (["guidance.zeta=-1"], "at least 0"),
        (["--method", "dps", "--method", "dps"], "gradient"),
        (["--input", ""], "--input is empty"),
        (["--device", "meta"], "--device cpu"),
        (["operator=sr"], "--operator"),
        (["guidance.name=repaint"], "--method"),
        (["model.name=x"], "--model"),
        (["model.bogus=1"], "bogus"),
        (["guidance.zeta=abc"], "zeta must be a finite number"),
        (["guidance.n=abc", "--method", "lgd"], "is a number"),
        (["zeta=1"], "the parameter of dps is set by guidance.zeta=1"),
        (["fraction=0.5"], "the parameter of inpaint is set by operator.fraction=0.5"),
        (
            ["label=3", "--method", "cfg", "--method", "dps"],
            "the parameter of cfg is set by --label",
        ),
        (["transition=heun", "transition.foo=1"], "transition 'heun' has no parameter 'foo'"),
        (["guidance.dps.zetta=1"], "Did you mean 'zeta'"),
        (["guidance.ddrm.eta=1"], "is for the method ddrm, but this run has dps"),
        (["guidance.dps.name=x"], "--method"),
        (
            ["--preset", "papr"],
            "Did you mean 'paper'? The presets of method 'dps' with operator 'inpaint': "
            "paper, photo64;",
        ),
        (
            ["--preset", "paper", "--operator", "hdr"],
            "The presets of method 'dps': paper_dps_blur, paper_dps_inpaint,",
        ),
        (["operator.fraction=abc"], "is a number"),
        (["itinerary.name=straight", "itinerary.spacing=[100,500,900]"], "noisy to clean"),
        (
            ["transition.name=predictor_corrector", "transition.predictor=hein"],
            "unknown transition",
        ),
        (["--steps", "0"], "steps"),
        (["--steps", "2000"], "1000"),
        (["--sigma", "-1"], "sigma"),
        (["--batch-size", "many"], "batch"),
        (["--num-samples", "0"], "num_samples"),
        (["--device", "cuda:99"], "--device cpu"),
        (
            ["--preset", "paper", "--method", "none"],
            "The presets of operator 'inpaint': paper_afhq_pnpflow_inpaint,",
        ),
        (["transition.name=ddmp"], "unknown transition"),
        (["--input", "missing.png"], "missing.png"),
        (["--measurement", "missing.safetensors"], "missing.safetensors"),
        (["--operator", "inpaint", "--mask", "missing.png"], "missing.png"),
        (
            [
                "--method",
                "repaint",
                "--method",
                "replace",
                "transition.name=heun",
                "guidance.zeta=1",
            ],
            "zeta",
        ),
    ],
)
def test_bad_requests_say_so_in_one_line_and_write_nothing(
    args: list[str], expected: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    method = [] if "--method" in args else ["--method", "dps"]
    assert expected in error_of(capsys, "solve", *method, *args, "--quiet")
    assert list(tmp_path.iterdir()) == []


def test_unreadable_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    assert "broken.png" in error_of(
        capsys, "solve", "--input", str(tmp_path / "broken.png"), "--output", str(tmp_path / "out")
    )
    assert not (tmp_path / "out").exists()


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "photo64", "--json", "--no-check"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (
        facts["predicts"] == "eps"
        and facts["parameters"] == 4_063_843
        and facts["data range"] == [-1.0, 1.0]
    )


@pytest.mark.slow
def test_interrupted_run_keeps_what_it_finished(photo: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.open(photo).save(folder / "a.png")
    Image.open(photo).resize((480, 400)).save(
        folder / "b.png"
    )  # takes long enough to be caught in the act
    out = tmp_path / "out"
    args = [
        sys.executable,
        "-m",
        "invdiff",
        "solve",
        "--method",
        "dps",
        "--steps",
        "30",
        "--input",
        str(folder),
        "--output",
        str(out),
    ]
    process = subprocess.Popen(args, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (out / "a" / "result.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130 and "interrupted" in stderr and "Traceback" not in stderr
    assert json.loads((out / "a" / "result.json").read_text())["nfe"] == 30
    assert not (out / "b").exists() or not list((out / "b").iterdir())


def test_values_under_the_mask_do_not_matter(photo: Path, tmp_path: Path) -> None:
    """A scratch may have any colour: DPS restores the same photograph."""
    mask = np.full((40, 48), 255, np.uint8)
    mask[10:25, 10:30] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    restored = []
    for value in (0, 255):
        damaged = np.array(Image.open(photo))
        damaged[mask == 0] = value
        Image.fromarray(damaged).save(tmp_path / f"{value}.png")
        given = [
            "--measurement",
            str(tmp_path / f"{value}.png"),
            "--mask",
            str(tmp_path / "mask.png"),
            "--sigma",
            "0.01",
            "--image-id",
            "7",
        ]
        assert main(["solve", *given, "--output", str(tmp_path / f"out{value}"), *FAST]) == 0
        restored.append(read_image(tmp_path / f"out{value}" / "restored.png"))
    assert torch.equal(*restored)


def test_a_saved_measurement_brings_its_operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    make_operator("blur", sigma=1.5).measure(x, sigma=0.07).save(tmp_path / "m.safetensors")
    out = tmp_path / "out"
    assert (
        main(
            ["solve", "--measurement", str(tmp_path / "m.safetensors"), "--output", str(out), *FAST]
            + ["--method", "dps"]
        )
        == 0
    )
    for k in range(2):  # each image of the batch
        config = json.loads((out / f"m_{k}" / "result.json").read_text())["config"]
        assert config["operator"]["name"] == "blur" and config["operator"]["sigma"] == 1.5
        assert config["sigma"] == 0.07 and config["preset"] == "photo64_dps_blur"
    for contradiction in (["--operator", "sr"], ["--sigma", "0.1"], ["operator.sigma=2"]):
        assert "leave out" in error_of(
            capsys,
            "solve",
            "--measurement",
            str(tmp_path / "m.safetensors"),
            *contradiction,
            "--quiet",
        )


def test_files_of_one_name_keep_apart(photo: Path, tmp_path: Path) -> None:
    for folder in ("d1", "d2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.png").write_bytes(photo.read_bytes())
    out = tmp_path / "out"
    assert (
        main(
            [
                "solve",
                "--method",
                "none",
                "--input",
                str(tmp_path / "d*" / "p.png"),
                "--output",
                str(out),
                *FAST,
            ]
        )
        == 0
    )
    assert sorted(p.name for p in out.iterdir()) == [
        "000_p.png",
        "001_p.png",
        "run.json",
        "summary.json",
    ]


def test_one_failing_image_does_not_stop_the_others(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    (folder / "b.png").write_bytes(photo.read_bytes())
    out = tmp_path / "out"
    assert (
        main(["solve", "--operator", "sr", "--input", str(folder), "--output", str(out), *FAST])
        == 2
    )
    assert "1 of 2 images failed: a" in capsys.readouterr().err
    assert [("error" in r) for r in json.loads((out / "summary.json").read_text())["results"]] == [
        True,
        False,
    ]


def test_the_trajectory_is_that_of_one_sample(photo: Path, tmp_path: Path) -> None:
    args = [
        "--num-samples",
        "3",
        "--batch-size",
        "1",
        "--gif",
        "--method",
        "none",
        "--steps",
        "5",
        "--quiet",
    ]
    assert main(["solve", "--input", str(photo), "--output", str(tmp_path / "out"), *args]) == 0
    assert (
        Image.open(tmp_path / "out" / "trajectory.gif").n_frames == 5 + 1
    )  # each step's estimate, and the result


def test_steps_far_from_those_of_the_preset_are_told(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*args: str) -> str:
        given = ["--input", str(photo), "--output", str(tmp_path / "out"), "--overwrite", "--quiet"]
        method = [] if "--method" in args else ["--method", "dps"]
        assert main(["solve", *given, *method, *args]) == 0
        return "\n".join(
            line for line in capsys.readouterr().err.splitlines() if "tuned for" in line
        )

    warning = said("--steps", "2")
    assert (
        "guidance.zeta=10.0 of the preset photo64_dps_inpaint is tuned for 100 steps, and "
        "this run has 2; say --steps 100" in warning
    )
    assert said("--steps", "2", "guidance.zeta=3") == "", "the user's own"
    assert said("--steps", "2", "--preset", "none") == ""
    assert said("--steps", "2", "--method", "diffpir") == "", (
        "whose weights do not depend on the number of steps"
    )


def test_a_restoration_that_does_not_fit_is_told(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*args: str) -> tuple[float | None, str]:
        given = [
            "--input",
            str(photo),
            "--output",
            str(tmp_path / "out"),
            "--overwrite",
            "--quiet",
            "--preset",
            "none",
        ]
        method = [] if "--method" in args else ["--method", "dps"]
        assert main(["solve", *given, *method, *args]) == 0
        return json.loads((tmp_path / "out" / "result.json").read_text())[
            "consistency"
        ], capsys.readouterr().err

    far, warning = run("--steps", "3", "guidance.zeta=0")
    assert (
        far is not None
        and far > 5
        and f"is {far:.1f} times what the noise explains" in warning
        and "guidance.zeta" in warning
    )
    near, silence = run("--steps", "20", "--method", "diffpir")
    assert near is not None and near < 2 and silence == ""
    little, silence = run(
        "--steps", "20", "--sigma", "1e-4", "--method", "diffpir", "guidance.lmbda=1e4"
    )
    assert little is not None and little > 5 and silence == "", (
        "few per cent of y, which little noise explains badly"
    )
    assert run("--steps", "3", "--sigma", "0", "guidance.zeta=0") == (None, ""), (
        "nothing is known of the noise"
    )
    assert run("--steps", "3", "--method", "none")[1] == "", "it does not follow the measurement"


def test_a_preset_of_another_form_is_left_out(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "--input",
        str(photo),
        "--output",
        str(tmp_path / "out"),
        "--overwrite",
        "guidance.likelihood=true",
        "--method",
        "dps",
        *FAST,
    ]
    assert main(["solve", *given]) == 0
    assert (
        "was tuned with guidance.likelihood=false, so its zeta=10.0 is left out"
        in capsys.readouterr().err
    )
    assert json.loads((tmp_path / "out" / "result.json").read_text())["config"]["guidance"] == [
        {"name": "dps", "zeta": None, "likelihood": True}
    ]
    assert main(["solve", *given, "guidance.zeta=0.002"]) == 0
    assert "left out" not in capsys.readouterr().err
    assert (
        json.loads((tmp_path / "out" / "result.json").read_text())["config"]["guidance"][0]["zeta"]
        == 0.002
    )


def test_a_parameter_of_one_method_of_a_chain() -> None:
    config = compose(
        "inpaint",
        ["diffpir", "dps"],
        "photo64",
        overrides=["guidance.zeta=0.5", "guidance.dps.zeta=0.7"],
    )
    assert [g["zeta"] for g in config["guidance"]] == [0.5, 0.7]


def test_a_chain_records_every_method(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = [
        "--method",
        "dps",
        "--method",
        "replace",
        "guidance.zeta=0.7",
        "guidance.variance=large",
        "transition.name=predictor_corrector",
    ]
    assert (
        main(
            [
                "solve",
                "--input",
                str(photo),
                "--output",
                str(out),
                *args,
                "transition.predictor=euler",
                *FAST,
            ]
        )
        == 0
    )
    record = json.loads((out / "result.json").read_text())
    assert record["config"]["guidance"] == [
        {"name": "dps", "zeta": 0.7, "likelihood": False},
        {"name": "replace", "variance": "large"},
    ]
    assert (
        record["run"]["method"]["transition"]["inner"]["predictor"]["name"] == "Euler"
    )  # replace stands around it


def test_known_pixels_stay_with_repaint(photo: Path, tmp_path: Path) -> None:
    mask = np.full((40, 48), 255, np.uint8)
    mask[12:24, 12:30] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    given = [
        "--measurement",
        str(photo),
        "--mask",
        str(tmp_path / "mask.png"),
        "--method",
        "repaint",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(["solve", *given, "--steps", "12", "--quiet"]) == 0
    restored, known = read_image(tmp_path / "out" / "restored.png"), torch.from_numpy(mask > 0)
    assert torch.equal(restored[..., known], read_image(photo)[..., known])


def test_the_output_is_checked_before_any_work(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "afile").write_text("keep me")
    assert "afile is a file" in error_of(
        capsys, "solve", "--input", str(photo), "--output", str(tmp_path / "afile" / "sub"), *FAST
    )
    assert "afile is a file" in error_of(
        capsys,
        "solve",
        "--input",
        str(photo),
        "--output",
        str(tmp_path / "afile"),
        "--overwrite",
        *FAST,
    )
    inside = error_of(
        capsys, "solve", "--input", str(photo), "--output", str(tmp_path), "--overwrite", *FAST
    )
    assert "lies in the output folder" in inside and photo.exists()


def test_masks_that_say_nothing_or_do_not_fit(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (48, 40), 0).save(tmp_path / "black.png")
    assert "--mask-keep" in error_of(
        capsys, "solve", "--input", str(photo), "--mask", str(tmp_path / "black.png"), *FAST
    )
    Image.new("L", (24, 20), 255).save(tmp_path / "small.png")
    args = [
        "solve",
        "--input",
        str(photo),
        "--mask",
        str(tmp_path / "small.png"),
        "--output",
        str(tmp_path / "out"),
        *FAST,
    ]
    assert main(args) == 0
    assert "resized from 20x24 to the image's 40x48" in capsys.readouterr().err
