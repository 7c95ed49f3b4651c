"""Networks exported as TorchScript, torch.export and ONNX, schedules by name, and few-step
networks."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import invdiff
from invdiff import Denoiser, generate, load_model, make_operator, schedules, solve
from invdiff.commands.main import main
from invdiff.images import write_image
from invdiff.plugins.registry import list_plugins, load
from invdiff.sampling import Method
from invdiff.transitions import DDIM, Renoise

pytestmark = pytest.mark.usefixtures("one_thread")

READ: dict[str, Any] = {
    "predicts": "eps",
    "schedule": "linear",
    "data_range": (-1.0, 1.0),
    "channels": 3,
}
FREE = {"x": {0: "B", 2: "H", 3: "W"}, "t": {0: "B"}}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        k = torch.arange(self.conv.weight.numel() + 3, dtype=torch.float32)
        nn.utils.vector_to_parameters(torch.sin(k) / 4, self.parameters())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(x) * torch.cos(t / 1000).view(-1, 1, 1, 1)


class Classes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        return self.net(x, t) + class_labels.view(-1, 1, 1, 1)


def example(batch: int = 2, size: int = 8) -> tuple[Tensor, Tensor]:
    return torch.linspace(-1, 1, batch * 3 * size * size).view(
        batch, 3, size, size
    ), torch.linspace(3, 800, batch)


def quietly(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def script(folder: Path, net: nn.Module | None = None, name: str = "net.ts") -> Path:
    quietly(lambda: torch.jit.script((net or Net()).eval()).save(folder / name))
    return folder / name


def program(folder: Path, net: nn.Module | None = None, free: bool = True, **cond: Tensor) -> Path:
    axes = (
        {name: {d: torch.export.Dim(s) for d, s in dims.items()} for name, dims in FREE.items()}
        if free
        else None
    )
    quietly(
        lambda: torch.export.save(
            torch.export.export(
                (net or Net()).eval(), example(2 if free else 1), cond, dynamic_shapes=axes
            ),
            folder / "net.pt2",
        )
    )
    return folder / "net.pt2"


def onnx(
    folder: Path,
    net: nn.Module | None = None,
    free: bool = True,
    inputs: tuple[Tensor, ...] | None = None,
) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    names = ["x", "t", "class_labels"][: len(inputs or example())]
    axes = {n: FREE.get(n, {0: "B"}) for n in names} if free else {}
    args = inputs or example(2 if free else 1)
    quietly(
        lambda: torch.onnx.export(
            (net or Net()).eval(),
            args,
            str(folder / "net.onnx"),
            dynamo=False,
            input_names=names,
            output_names=["out"],
            dynamic_axes=axes,
        )
    )
    return folder / "net.onnx"


KINDS: dict[str, Callable[..., Path]] = {
    "TorchScript": script,
    "torch.export": program,
    "ONNX": onnx,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_network_is_equal_to_the_original(kind: str, tmp_path: Path) -> None:
    path, net = KINDS[kind](tmp_path), Net()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        denoiser = load_model(path, allow_pickle=kind != "ONNX", **READ)
    own, level = Denoiser(net, **READ), schedules.linear()(400)
    for batch, size in ((2, 8), (3, 11)):
        x, _ = example(batch, size)
        torch.testing.assert_close(denoiser(x, level).x0, own(x, level).x0)
    assert (denoiser.name, denoiser.channels, denoiser.source["kind"]) == ("net", 3, f"{kind} file")
    assert denoiser.hash is not None and len(denoiser.hash) == 64 and denoiser.to("cpu") is denoiser
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    measurement = make_operator("inpaint", mask="box").measure(x, sigma=0.05)
    for method in ("replace", "repaint"):
        torch.testing.assert_close(
            *(solve(measurement, d, method, steps=3).x for d in (denoiser, own))
        )
    if kind == "ONNX":
        with pytest.raises(
            ValueError, match="net gives no gradient.*ONNX.*use a method that needs none"
        ):
            solve(measurement, denoiser, "dps", steps=3)
    else:
        torch.testing.assert_close(
            *(solve(measurement, d, "dps", steps=3).x for d in (denoiser, own))
        )


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_does_not_say_is_asked_for_at_once(kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path)
    with pytest.raises(
        ValueError,
        match="predicts= .*schedule= .*data_range= .*model.predicts=eps model.schedule=linear",
    ) as caught:
        load_model(path)
    assert ("--allow-pickle" in str(caught.value)) == (kind != "ONNX")
    assert ("channels=" in str(caught.value)) == (kind == "TorchScript"), (
        "the other files show them"
    )
    if kind != "ONNX":
        with pytest.raises(ValueError, match="if you trust.*allow_pickle=True"):
            load_model(path, **READ)
    rest = {k: v for k, v in READ.items() if k != "schedule"}
    with pytest.raises(ValueError, match="please give schedule= ") as caught:
        load_model(path, allow_pickle=True, **rest)
    assert "predicts=" not in str(caught.value)
    with pytest.raises(ValueError, match="no parameter 'shedule'.*Did you mean 'schedule'"):
        load_model(path, allow_pickle=True, shedule="linear", **rest)


def test_torchscript_is_recognised_by_what_it_holds_and_may_write_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason why it is treated as a pickle."""

    class Writes(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            torch.save(x, "written")
            return x

    monkeypatch.chdir(tmp_path)
    path = script(tmp_path, Writes(), "net.pt")
    with pytest.raises(ValueError, match="TorchScript is a program, which may write files"):
        load_model(path, **READ)
    assert not Path("written").exists()
    load_model(path, allow_pickle=True, **READ)(example()[0], schedules.linear()(3))
    assert Path("written").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_labels_go_to_the_input_that_is_named(kind: str, tmp_path: Path) -> None:
    labels = torch.tensor([0, 2])
    if kind == "torch.export":
        path = program(tmp_path, Classes(), free=False, class_labels=labels[:1])
    else:
        path = (
            script(tmp_path, Classes())
            if kind == "TorchScript"
            else onnx(tmp_path, Classes(), inputs=(*example(), labels))
        )
    options = {"allow_pickle": True, **READ, "num_classes": 3, "null_label": False}
    with pytest.raises(
        ValueError, match=r"takes class_labels besides state and time.*conditions=\['label', ...\]"
    ):
        load_model(path, **options)
    with pytest.raises(ValueError, match=r"has 1 inputs after state and time \(class_labels\)"):
        load_model(path, **options, conditions=["label", "text"])
    denoiser = load_model(path, **options, conditions=["label"])
    x, level = example()[0], schedules.linear()(400)
    own = Denoiser(
        lambda x, t, label: Classes()(x, t, label), **READ, num_classes=3, null_label=False
    )
    torch.testing.assert_close(
        denoiser(x, level, label=labels).eps, own(x, level, label=labels).eps
    )
    assert denoiser.required == () and load_model(path, allow_pickle=True, **READ).required == (
        "class_labels",
    )


@pytest.mark.parametrize("kind", ["torch.export", "ONNX"])
def test_fixed_sizes(kind: str, tmp_path: Path) -> None:
    """Batches are cut to what was exported, larger images need tiles, and say so."""
    path = KINDS[kind](tmp_path, free=False)
    denoiser, own, level = (
        load_model(path, allow_pickle=True, **READ),
        Denoiser(Net(), **READ),
        schedules.linear()(400),
    )
    x, _ = example(3)
    torch.testing.assert_close(denoiser(x, level).x0, own(x, level).x0)
    assert denoiser.image_size == 8
    smaller = example(1, 8)[0][..., :6, :]  # filled up by reflection
    torch.testing.assert_close(
        denoiser(smaller, level).x0, Denoiser(Net(), **READ, multiple=8)(smaller, level).x0
    )
    with pytest.raises(ValueError, match="exported for 1 x 3 x 8 x 8 and got .*model.tile=8"):
        denoiser(example(1, 16)[0], level)
    large, tiles = example(1, 20)[0], {"tile": 8, "tile_overlap": 2}
    cut, expected = (
        load_model(path, allow_pickle=True, **READ, **tiles),
        Denoiser(Net(), **READ, **tiles),
    )
    torch.testing.assert_close(cut(large, level).x0, expected(large, level).x0)
    assert isinstance(invdiff.self_check(denoiser), list)
    with pytest.raises(ValueError, match="leave out dtype"):
        load_model(path, allow_pickle=True, **READ, dtype=torch.bfloat16)


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    quietly(lambda: torch.export.save(torch.export.export(Net().eval(), example(4)), path))
    denoiser, own, level = (
        load_model(path, allow_pickle=True, **READ),
        Denoiser(Net(), **READ),
        schedules.linear()(400),
    )
    for images in (1, 4, 6):
        x, _ = example(images)
        torch.testing.assert_close(denoiser(x, level).x0, own(x, level).x0)


def test_whole_numbers_and_scalars_as_times(tmp_path: Path) -> None:
    class Table(Net):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x, t.float())

    seen = load_model(onnx(tmp_path, Table(), inputs=(example()[0], torch.tensor([3, 4]))), **READ)
    assert seen.quantize
    x, schedule = example()[0], schedules.linear()
    torch.testing.assert_close(
        seen(x, schedule(400)).eps, Denoiser(Net(), **READ)(x, schedule(400)).eps
    )
    (tmp_path / "scalar").mkdir()
    scalar = load_model(
        onnx(tmp_path / "scalar", inputs=(example()[0], torch.tensor(3.0)), free=False), **READ
    )
    torch.testing.assert_close(
        scalar(x, schedule(400)).eps, Denoiser(Net(), **READ)(x, schedule(400)).eps
    )


def test_time_scale(tmp_path: Path) -> None:
    options = READ | {"predicts": "velocity", "schedule": {"name": "flow", "shift": 3.0}}
    x, level = example()[0], schedules.flow()(0.4)
    scaled = load_model(script(tmp_path), allow_pickle=True, time_scale=1000.0, **options)
    assert scaled.schedule == schedules.flow(3.0)
    torch.testing.assert_close(
        scaled(x, level).x0, Denoiser(Net(), **options, time=lambda t: 1000 * t)(x, level).x0
    )


@pytest.mark.parametrize("name", ["net.ts", "net.pt2", "net.onnx"])
def test_broken_files(name: str, tmp_path: Path) -> None:
    if name == "net.onnx":
        pytest.importorskip("onnxruntime")
    (tmp_path / name).write_bytes(b"not a network")
    with pytest.raises(ValueError, match=f"{name} cannot be read as"):
        load_model(tmp_path / name, allow_pickle=True, **READ)


def test_without_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install onnxruntime.*\[onnx\]"):
        load_model(tmp_path / "net.onnx", **READ)


# The command line ---------------------------------------------------------------------------------


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    script(tmp_path)
    says = [
        "model.predicts=eps",
        "model.schedule.name=linear",
        "model.schedule.beta_end=0.03",
        "model.data_range=[-1,1]",
        "model.channels=3",
    ]
    assert main(["info", "net.ts", "--json", "--no-check", *says]) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert main(["info", "net.ts", "--json", "--no-check", "--allow-pickle", *says]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["kind"] == "TorchScript file" and facts["sigma/alpha"][1] == pytest.approx(
        float(schedules.linear(beta_end=0.03)(999).ratio), 1e-4
    )
    assert facts["reading"] == "not checked (--no-check)"
    run = [
        "generate",
        "--model",
        "net.ts",
        "--size",
        "8",
        "--num-samples",
        "1",
        "--steps",
        "2",
        "--quiet",
        *says,
    ]
    assert main([*run, "--output", "a", "--allow-pickle", "--no-check"]) == 0
    assert (tmp_path / "a" / "grid.png").is_file() and "warning" not in capsys.readouterr().err
    for override in (
        "model.allow_pickle=true",
        "++model.allow_pickle=true",
        "model={allow_pickle:true}",
    ):
        assert main([*run, "--output", "b", override]) == 2
        assert capsys.readouterr().err.startswith("invdiff generate: error: ")
    assert not (tmp_path / "b").exists()


def wrongly_configured(folder: Path) -> Path:
    """A copy of photo64 whose scheduler says that it predicts v."""
    shutil.copytree(Path(invdiff.load_model("photo64").source["path"]), folder / "copy")
    file = folder / "copy" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "v_prediction"}))
    return folder / "copy"


@pytest.mark.slow
def test_a_wrong_reading_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(wrongly_configured(tmp_path))
    monkeypatch.setattr("invdiff.commands.common.HINT_AFTER", 0.0)
    assert main(["info", folder, "--json"]) == 0
    told = capsys.readouterr()
    assert (
        "WARNING: copy denoises" in json.loads(told.out)["reading"]
        and "with predicts='eps' by" in told.out
    )
    assert "--no-check skips this" in told.err
    asked: list[str] = []
    monkeypatch.setattr(
        "invdiff.commands.common.self_check",
        lambda denoiser: asked.append(denoiser.predicts) or [f"{denoiser.name} is read wrongly"],
    )
    write_image(
        tmp_path / "x.png", torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    )
    end = ["--steps", "1", "--quiet", "--overwrite", "--output", str(tmp_path / "out")]
    solve_it = ["solve", "--input", str(tmp_path / "x.png"), "--method", "replace", *end]
    make_it = ["generate", "--size", "8", "--num-samples", "1", *end]
    for run, checked in (
        ([*solve_it, "--model", folder], ["v"]),
        ([*make_it, "--model", folder], ["v"]),
        ([*make_it, "--model", folder, "--no-check"], []),
        (
            [*make_it, "--model", "photo64"],
            [],
        ),  # what is registered is trusted, unless it is read otherwise
        ([*make_it, "--model", "photo64", "model.predicts=x0"], ["x0"]),
    ):
        asked.clear()
        assert main(run) == 0
        assert asked == checked
        assert ("is read wrongly (--no-check skips" in capsys.readouterr().err) == bool(checked)


def test_info_of_a_network_that_is_read_rightly_or_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "invdiff.commands.common.self_check", lambda _: []
    )  # test_selfcheck runs it on photo64
    told = ["photo64", "model.predicts=eps"]
    for model, says in (
        (["photo64"], "as its package registers it"),
        (told, "OK"),
        (["sr3x4", "model.clip=true"], "not checked: it needs"),
    ):
        assert main(["info", *model]) == 0
        (line,) = [
            line for line in capsys.readouterr().out.splitlines() if line.startswith("reading ")
        ]
        assert says in line
    assert main(["info", "photo64", "steps=3"]) == 2
    assert "model.key=value" in capsys.readouterr().err


# Schedules by name --------------------------------------------------------------------------------


def test_schedules_by_name() -> None:
    assert schedules.make_schedule({"name": "edm", "sigma_max": 10.0}) == schedules.edm(
        sigma_max=10.0
    )
    for name in list_plugins("schedules"):
        make = load("schedules", name)
        assert type(schedules.make_schedule(name)) is type(make())
    assert Denoiser(lambda x, t: x, schedule="cosine").schedule.t_max == 999
    with pytest.raises(ValueError, match="unknown schedule 'lineer'. Did you mean 'linear'"):
        schedules.make_schedule("lineer")
    with pytest.raises(ValueError, match="'beta_stop'.*Did you mean"):
        schedules.make_schedule({"name": "linear", "beta_stop": 0.1})
    with pytest.raises(TypeError, match="one of invdiff.schedules"):
        Denoiser(lambda x, t: x, schedule=1000)  # type: ignore[arg-type]


# Few-step networks --------------------------------------------------------------------------------

MEAN, STD = torch.tensor([0.7, -0.4]), torch.tensor([0.5, 1.5])


@pytest.mark.parametrize("schedule", [schedules.edm(), schedules.vp(), schedules.linear()])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_consistency_network_samples_exactly_in_few_steps(
    schedule: schedules.Schedule, steps: int
) -> None:
    """Where the data are N(MEAN, STD^2), the probability flow through (x_t, t) begins at m + (x_t /
    alpha - m) s / sqrt(s^2 + (sigma / alpha)^2): one evaluation gives a sample, and fresh noise on
    it a state of the right distribution."""

    def consistency(x: Tensor, t: Tensor) -> Tensor:
        level = schedule(t[0].double())
        spread = STD / (STD**2 + float(level.ratio) ** 2).sqrt()
        return MEAN + (x / float(level.alpha) - MEAN) * spread

    network = Denoiser(consistency, predicts="x0", schedule=schedule)
    result = generate(network, (20_000, 2), Method(transition=Renoise()), steps=steps)
    assert result.nfe == steps
    torch.testing.assert_close(result.x.mean(0), MEAN, atol=0.05, rtol=0)
    torch.testing.assert_close(result.x.std(0), STD, atol=0, rtol=0.03)
    if steps == 4:  # what an ODE solver makes of it: it takes the sample for the posterior mean
        solved = generate(network, (20_000, 2), Method(transition=DDIM()), steps=steps)
        assert not torch.allclose(solved.x.std(0), STD, atol=0, rtol=0.03)
