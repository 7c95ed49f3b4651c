"""Loaders of kinds of models: each is registered, a stranger's is found, and files are told by
their content."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import invdiff
from invdiff.commands.main import main
from invdiff.loading.adm import ADM, Architecture
from invdiff.loading.source import Source, loader_of
from invdiff.plugins import registry
from invdiff.plugins.registry import UnknownNameError, list_plugins, load
from invdiff.problem.physics import edm_network

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ADM(Architecture(3, 6, 32, (32,), 1, (), head_channels=32)).state_dict()


STATE = tiny()
X = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))

MINE = """
import numpy as np, torch
from invdiff import Denoiser

def recognises(source):
    return source.file is not None and source.file.suffix == ".npz"

def load(source, *, gain=1.0, **options):
    weight = torch.from_numpy(np.load(source.file)["weight"]).float()
    found = {"schedule": "linear", "data_range": (-1, 1), "channels": 3, "name": "mine"}
    return Denoiser(lambda x, t: gain * weight * x, **(found | options))
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Adds loaders, as installed packages would: name, content of the module."""
    added: list[EntryPoint] = []

    def every(group: str) -> list[EntryPoint]:
        return [*entry_points(group=group), *(p for p in added if p.group == group)]

    def install(name: str, content: str, package: str = "somebody") -> None:
        module = f"{package}_{name}"
        (tmp_path / f"{module}.py").write_text(content)
        point = EntryPoint(name, module, "invdiff.loaders")
        vars(point)["dist"] = type("Package", (), {"name": package})()
        added.append(point)
        registry._found.cache_clear()

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "entry_points", every)
    yield install
    for point in added:
        sys.modules.pop(point.module, None)
    monkeypatch.undo()
    registry._found.cache_clear()


def npz(folder: Path) -> Path:
    path = folder / "x.npz"
    np.savez(path, weight=np.array(0.25))
    return path


def test_every_registered_loader_is_one() -> None:
    """And none takes what is not of its kind."""
    names = list_plugins("loaders")
    assert len(names) >= 9
    for name in names:
        loader = load("loaders", name)
        assert loader.recognises(Source("no such thing")) is False
        assert loader.load.__doc__


def test_the_loader_of_somebody_else(
    tmp_path: Path, installed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = npz(tmp_path)
    with pytest.raises(ValueError, match="of no kind that is read here; the installed loaders are"):
        invdiff.load_model(path)
    installed("mine", MINE)
    denoiser = invdiff.load_model(path, gain=2.0, clip=False)
    level = denoiser.schedule(500)
    torch.testing.assert_close(denoiser(X, level).eps, 0.5 * X)
    with pytest.raises(ValueError, match=r"no parameter 'gian'. Did you mean 'gain'\?"):
        invdiff.load_model(path, gian=2.0)
    main(["info", str(path), "--no-check"])
    assert "mine" in capsys.readouterr().out
    assert main(["generate", "--model", str(path), "--steps", "2", "--size", "8x8", "--no-check",
                 "--output", str(tmp_path / "out"), "--method", "none"]) in (0, None)  # fmt: skip
    assert (tmp_path / "out" / "result.json").is_file()


def test_two_that_recognise_one_file_are_named_and_one_is_chosen(
    tmp_path: Path, installed: Any
) -> None:
    path = npz(tmp_path)
    installed("mine", MINE)
    installed("other", MINE.replace('"mine"', '"other"'), package="elsewhere")
    with pytest.raises(
        ValueError,
        match=r"'mine' of somebody \(somebody_mine\) and 'other' of elsewhere .*loader=",
    ):
        invdiff.load_model(path)
    assert invdiff.load_model(path, loader="other").name == "other"
    with pytest.raises(UnknownNameError, match="unknown loader 'othr'. Did you mean 'other'"):
        invdiff.load_model(path, loader="othr")


def test_a_broken_loader_keeps_no_other_from_loading(tmp_path: Path, installed: Any) -> None:
    installed("aaa", "import no_such_module")
    path = tmp_path / "net.pt"
    torch.save(STATE, path)
    assert invdiff.load_model(path, num_heads=1, schedule="linear").channels == 3
    with pytest.raises(ValueError, match="'aaa' of package somebody cannot be loaded"):
        invdiff.load_model(npz(tmp_path))


def test_a_file_is_read_once_for_all_who_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls, read = tmp_path / "net.pt", list[Any](), torch.load
    torch.save(STATE, path)
    monkeypatch.setattr(torch, "load", lambda *a, **k: calls.append(a) or read(*a, **k))
    invdiff.load_model(path, num_heads=1, schedule="linear")
    assert len(calls) == 1
    path.write_bytes(b"\x80\x02 broken")
    with pytest.raises(ValueError, match="plain file of tensors"):
        loader_of(Source(path))
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["net.pth.tar", "NET.PT", "net", "net.weights", "net.pt"])
@pytest.mark.parametrize("how", ["zip", "legacy", "safetensors"])
def test_files_are_told_by_their_content(name: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if how == "safetensors":
        save_file(STATE, path)
    else:
        torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=how == "zip")
    denoiser = invdiff.load_model(path, num_heads=1, schedule="linear")
    assert denoiser.source["kind"] == "guided-diffusion checkpoint"
    assert denoiser.learned_variance and denoiser.channels == 3


@pytest.mark.parametrize("name", ["net", "NET.PT", "net.TS"])
def test_a_program_is_told_by_its_content(name: str, tmp_path: Path) -> None:
    path = tmp_path / name

    def net(x: Tensor, t: Tensor) -> Tensor:
        return x * t.view(-1, 1, 1, 1)

    torch.jit.trace(net, (X, torch.ones(1))).save(str(path))
    with pytest.raises(ValueError, match=r"\(TorchScript\): TorchScript is a program"):
        invdiff.load_model(path)


def test_what_a_file_holds_instead_is_named(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    net = torch.nn.Linear(2, 2)
    optimiser = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    for held in (optimiser.state_dict(), {"optimizer": optimiser.state_dict(), "epoch": 3}):
        torch.save(held, path)
        with pytest.raises(ValueError, match="net.pt: it holds the state of an optimiser and no"):
            invdiff.load_model(path)
    broken = {k: torch.full_like(v, torch.nan) for k, v in STATE.items()}
    torch.save({"model": STATE, "ema": broken}, path)
    with (
        pytest.warns(UserWarning, match="averaged weights 'ema' are used"),
        pytest.raises(ValueError, match="ema: .*not finite.*; those of weights='model' are finite"),
    ):
        invdiff.load_model(path)
    read = invdiff.load_model(path, weights="model", num_heads=1, schedule="linear")
    assert read.source["weights"] == "model"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_named(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}', encoding=encoding)
    with pytest.raises(ValueError, match=r"config.json begins with a byte order mark \(BOM\)"):
        invdiff.load_model(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        invdiff.load_model(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="config.json is no configuration: it holds a list"):
        invdiff.load_model(tmp_path)


def test_an_object_is_a_denoiser() -> None:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)

    denoiser = invdiff.load_model(denoise, sigma_range=(0.01, 10.0), channels=3)
    level = denoiser.schedule.at(0.5)
    torch.testing.assert_close(denoiser(X, level, clip_x0=False).x0, X / 1.25)
    with pytest.raises(ValueError, match=r"sigma_range=\(lowest, highest\)"):
        invdiff.load_model(denoise)
    with pytest.raises(ValueError, match="int is of no kind that is read here"):
        invdiff.load_model(3)


@pytest.mark.parametrize("name", ["n" * 5000, "a/" + "n" * 5000, "a\0b", "a/\0"])
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ValueError, match="unknown model|there is no folder or file"):
        invdiff.load_model(name)


@pytest.mark.parametrize("option", ["preconditioning", "controlnet", "time_scale"])
def test_an_option_of_another_kind_is_refused(option: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(STATE, path)
    with pytest.raises(ValueError, match=f"has no parameter '{option}'"):
        invdiff.load_model(path, **{option: 1})


def saved(kind: str, path: Path) -> dict[str, Any]:
    """Writes a small network of a kind; returns the options it is read with."""
    if kind == "adm":
        torch.save(STATE, path)
        return {"num_heads": 1, "schedule": "linear"}
    if kind == "torchscript":
        net = torch.nn.Conv2d(3, 3, 1)
        torch.jit.trace(Timed(net), (X, torch.ones(1))).save(str(path))
        read = {"predicts": "eps", "schedule": "linear", "data_range": (-1, 1), "channels": 3}
        return read | {"allow_pickle": True}
    settings = {
        **{"img_resolution": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32},
        **{"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": []},
    }
    torch.save(edm_network("ncsn", settings).state_dict(), path)
    return {}


class Timed(torch.nn.Module):
    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x) * torch.cos(t / 1000).view(-1, 1, 1, 1)


@pytest.mark.parametrize("kind", ["adm", "edm", "torchscript"])
def test_another_default_dtype_changes_nothing(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    options = saved(kind, path)
    first = invdiff.load_model(path, **options)
    level = first.schedule.at(0.7)
    expected = first(X, level).x0
    torch.set_default_dtype(torch.float64)
    try:
        again = invdiff.load_model(path, **options)
        assert torch.equal(again(X, level).x0, expected)
        assert again.hash == first.hash
    finally:
        torch.set_default_dtype(torch.float32)
