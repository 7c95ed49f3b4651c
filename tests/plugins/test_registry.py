"""Plug-ins by name: unknown, contested and broken ones, laziness; every registered one loads, every
config composes."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch

import invdiff
from invdiff.config import build_method, build_operator, compose, protocols
from invdiff.loading.model import is_registered
from invdiff.network import Denoiser
from invdiff.plugins import registry
from invdiff.plugins.registry import KINDS, PluginError, UnknownNameError, call, load, name_of
from invdiff.problem import Operator, make_operator
from invdiff.sampling import Method, make_method

CONFIGS = files("invdiff.configs")


def group(name: str) -> list[str]:
    """The YAML files of a config group."""
    return sorted(
        file.name.removesuffix(".yaml")
        for file in (CONFIGS / name).iterdir()
        if file.name.endswith(".yaml")
    )


def point(
    name: str, value: str, package: str | None = "somebody", kind: str = "guidance"
) -> EntryPoint:
    """An entry point as an installed package would declare it."""
    made = EntryPoint(name, value, f"invdiff.{kind}")
    if package is not None:
        vars(made)["dist"] = type("Package", (), {"name": package})()
    return made


Installed = Callable[..., None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    """Replaces what is installed."""

    def install(*points: EntryPoint) -> None:
        monkeypatch.setattr(
            registry, "entry_points", lambda group: [p for p in points if p.group == group]
        )
        registry._found.cache_clear()

    yield install
    monkeypatch.undo()
    registry._found.cache_clear()


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(
        UnknownNameError,
        match=r"unknown method 'dsp'. Did you mean 'dps'\? Known: .*dps.*none.*repaint",
    ) as error:
        load("guidance", "dsp")
    assert isinstance(error.value, ValueError)
    with pytest.raises(UnknownNameError, match="'heun'. There is the transition of that name"):
        load("guidance", "heun")
    with pytest.raises(UnknownNameError, match="unknown operator 'qqqqq'. Known: blur, "):
        make_operator("qqqqq")
    with pytest.raises(
        ValueError, match="kinds: operators, guidance, transitions, itineraries, schedules, models"
    ):
        invdiff.list_plugins("operator")


def test_two_packages_that_claim_a_name_are_both_named_and_the_others_still_load(
    installed: Installed,
) -> None:
    installed(
        point("dps", "invdiff.guidance.dps:DPS", "invdiff"),
        point("dps", "other_package.dps:Better", "other-package"),
        point("none", "invdiff.guidance.none:none", "invdiff"),
    )
    with pytest.raises(
        PluginError,
        match=r"'dps' is claimed by invdiff \(.*\) and other-package \(other_package.dps:Better\)",
    ):
        load("guidance", "dps")
    assert make_method("none") == Method()
    assert invdiff.list_plugins("guidance")["dps"].count(";") == 1


def test_one_package_found_twice_on_the_path_is_one_claim(installed: Installed) -> None:
    twice = [point("none", "invdiff.guidance.none:none", "invdiff") for _ in range(2)]
    installed(*twice)
    assert make_method("none") == Method()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("no_such_package_here:X", "ModuleNotFoundError"),
        ("invdiff.guidance.dps:Nothing", "AttributeError"),
        ("test_broken_plugin:X", "SyntaxError"),
    ],
)
def test_a_broken_plugin_is_reported_when_asked_for_and_breaks_nothing_else(
    value: str, says: str, installed: Installed, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_broken_plugin.py").write_text("def broken(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed(
        point("broken", value, "careless"), point("none", "invdiff.guidance.none:none", "invdiff")
    )
    assert invdiff.list_plugins("guidance") == {
        "broken": f"careless ({value})",
        "none": "invdiff (invdiff.guidance.none:none)",
    }
    assert make_method("none") == Method()
    with pytest.raises(
        PluginError, match=f"method 'broken' of package careless cannot be loaded: {says}"
    ) as error:
        load("guidance", "broken")
    assert error.value.__cause__ is not None


def test_a_third_party_plugin_is_used_as_ours_are(installed: Installed) -> None:
    installed(
        point("mine", "invdiff.guidance.dps:DPS"),
        point("shrunk", "invdiff.operators.sr:SuperResolution", kind="operators"),
        point("undistributed", "invdiff.guidance.none:none", package=None),
    )
    assert make_method("mine", zeta=0.3).chain[0].zeta == 0.3  # type: ignore[attr-defined]
    assert isinstance(make_operator("shrunk", factor=2), Operator)
    assert invdiff.list_plugins("guidance")["undistributed"].startswith("invdiff ")


def test_names_and_objects_find_each_other() -> None:
    for name in invdiff.list_plugins("operators"):
        assert name_of("operators", load("operators", name)) == name
    with pytest.raises(ValueError, match="not registered"):
        name_of("operators", Denoiser)


def test_parameters_are_checked_against_the_factory() -> None:
    with pytest.raises(
        ValueError,
        match=r"operator 'inpaint' has no parameter 'fractoin'. Did you mean 'fraction'\? It has: "
        r"mask",
    ):
        make_operator("inpaint", fractoin=0.5)
    with pytest.raises(ValueError, match="has no parameter 'shape'"):
        make_operator("inpaint", shape=(3, 8, 8))
    with pytest.raises(ValueError, match="It has: none"):
        call(lambda: None, "method 'x'", {"a": 1})
    with pytest.raises(TypeError, match="is an object already"):
        make_operator(make_operator("denoise"), factor=2)
    with pytest.raises(
        TypeError, match="a registered name, an invdiff Operator or a deepinv Physics, got int"
    ):
        make_operator(3)


@pytest.mark.parametrize(
    "code",
    [
        "import invdiff",
        "import invdiff; [invdiff.list_plugins(k) for k in ('operators', 'guidance', "
        "'models', 'metrics', 'configs')]",
        "from invdiff.commands.main import main\ntry: main(['--help'])\nexcept "
        "SystemExit as e: assert not e.code",
        "from invdiff.commands.main import main\ntry: main(['list'])\nexcept SystemExit "
        "as e: assert not e.code",
    ],
)
def test_listing_imports_neither_torch_nor_any_plugin(code: str) -> None:
    check = (
        "import sys; bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'deepinv', "
        "'diffusers', 'hydra') or m.startswith('invdiff.guidance')]"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{check}; assert not bad, bad[:5]"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in invdiff.list_plugins(kind)]
)
def test_every_registered_plugin_loads_and_is_what_its_group_says(kind: str, name: str) -> None:
    loaded = load(kind, name)
    match kind:
        case "operators":
            made = make_operator(name)
            assert isinstance(made, Operator)
            x = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
            assert torch.equal(made(x), made(x)), "operators are deterministic"
            assert loaded.__doc__
        case "guidance":
            assert isinstance(make_method(name), Method)
            assert sys.modules[loaded.__module__].__doc__, (
                "the module's docstring is the method's documentation"
            )
        case "models" | "metrics":
            assert callable(loaded)
        case "configs":
            assert any(file.name.endswith(".yaml") for file in files(loaded.__name__).iterdir())


@pytest.mark.parametrize(
    ("operator", "method"),
    [
        *((name, "dps") for name in [*invdiff.list_plugins("operators"), *protocols()]),
        *(("inpaint", name) for name in invdiff.list_plugins("guidance")),
    ],
)
def test_every_name_composes_to_something_its_factory_takes(operator: str, method: str) -> None:
    config = compose(operator, [method], "photo64")
    name = config["operator"]["name"]
    assert config["protocol"] == (None if name == operator else operator) and [
        g["name"] for g in config["guidance"]
    ] == [method]
    assert name_of("operators", type(build_operator(config))) == name
    assert build_method(config).transition is not None


@pytest.mark.parametrize("preset", group("preset"))
def test_every_preset_composes_and_belongs_to_a_method_and_an_operator(preset: str) -> None:
    source, method, operator = max(
        (preset.removesuffix(f"_{method}_{operator}"), method, operator)
        for method in invdiff.list_plugins("guidance")
        for operator in invdiff.list_plugins("operators")
        if preset.endswith(f"_{method}_{operator}")
    )
    config = compose(operator, [method], "photo64", source)
    assert config["preset"] == preset
    build_operator(config)
    build_method(config)


def test_defaults_stand_in_the_code_alone() -> None:
    assert set(group("operator")) == set(protocols())
    assert not (CONFIGS / "guidance").is_dir()
    for kind, key in (("operators", "operator"), ("guidance", "guidance")):
        for name in invdiff.list_plugins(kind):
            chosen = (name, ["none"]) if kind == "operators" else ("inpaint", [name])
            composed = compose(*chosen, "photo64", "none")[key]
            node = composed if kind == "operators" else composed[0]
            for parameter, value in inspect.signature(load(kind, name)).parameters.items():
                plain = isinstance(value.default, bool | int | float | str | None)
                if plain and parameter not in ("shape", "state"):
                    assert node[parameter] == value.default


def test_code_in_a_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="_target_"):
        compose("inpaint", ["dps"], "photo64", overrides=["guidance._target_=os.system"])


def test_a_registered_name_wins_over_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo64").mkdir()
    (tmp_path / "mine").mkdir()
    assert (
        is_registered("photo64")
        and not is_registered("./photo64")
        and not is_registered(Path("photo64"))
    )
    assert not is_registered("mine")
    with pytest.raises(UnknownNameError, match="Nor is there a file or folder 'minee' here"):
        invdiff.load_model("minee")


def test_two_packages_that_claim_a_configs_name_are_both_named(installed: Installed) -> None:
    installed(
        point("invdiff", "invdiff.configs", "invdiff", "configs"),
        point("mine", "first.configs", "first", "configs"),
        point("mine", "second.configs", "second", "configs"),
    )
    with pytest.raises(PluginError, match=r"'mine' is claimed by first .* and second .*uninstall"):
        protocols()


def test_a_hydra_application_that_calls_us_goes_on(tmp_path: Path) -> None:
    (tmp_path / "host.yaml").write_text("depth: 3\n")
    (tmp_path / "host.py").write_text(
        """import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_original_cwd
from invdiff.config import compose

@hydra.main(config_path=".", config_name="host", version_base="1.2")
def main(cfg):
    before = HydraConfig.get().job.name
    config = compose("sr", ["dps"], "photo64")
    assert GlobalHydra.instance().is_initialized()
    assert HydraConfig.get().job.name == before == "host"
    print(cfg.depth, config["guidance"][0]["name"], get_original_cwd())

main()
"""
    )
    done = subprocess.run(
        [sys.executable, "host.py", "depth=4"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "dps", str(tmp_path)]
