"""What is installed: complete, importable under its own name only, with its data; the wheel holds
what the checkout holds."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAPPED = ("benchmarks", "configs", "guidance", "operators")


def pages() -> list[Path]:
    """The Markdown files of the checkout, without those of an environment that lies in it."""
    environments = [file.parent for file in ROOT.glob("*/pyvenv.cfg")]
    outside = {"node_modules", "build", *(folder.name for folder in environments)}
    return [p for p in sorted(ROOT.rglob("*.md")) if p.relative_to(ROOT).parts[0] not in outside]


def modules() -> list[str]:
    """Every module of the checkout, under the name it must import by."""
    found = []
    for folder, package in [("invdiff", "invdiff"), *((m, f"invdiff.{m}") for m in MAPPED)]:
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "invdiff" and parts[0] in MAPPED:
                continue  # the links
            found.append(".".join([package, *(p for p in parts if p != "__init__")]))
    return sorted(set(found))


@pytest.mark.parametrize("name", modules())
def test_every_module_is_installed(name: str) -> None:
    importlib.import_module(name)


def test_listed_packages_are_complete() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    with_code = {m.rsplit(".", 1)[0] if "." in m and not _is_package(m) else m for m in modules()}
    assert set(listed) == with_code


def _is_package(name: str) -> bool:
    return hasattr(importlib.import_module(name), "__path__")


def test_data_files_are_installed() -> None:
    assert files("invdiff").joinpath("py.typed").is_file()
    for name in (
        "config.json",
        "scheduler_config.json",
        "diffusion_pytorch_model.safetensors",
        "README.md",
    ):
        assert files("invdiff.zoo").joinpath("photo64", name).is_file()
    checked_in = sorted(
        str(p.relative_to(ROOT / "configs")) for p in (ROOT / "configs").rglob("*.yaml")
    )
    for name in checked_in:
        assert files("invdiff.configs").joinpath(*Path(name).parts).is_file()


def test_weights_stay_small() -> None:
    sizes = {p: p.stat().st_size for p in (ROOT / "invdiff" / "zoo").rglob("*.safetensors")}
    assert sum(sizes.values()) <= 40e6
    assert (
        sizes[ROOT / "invdiff" / "zoo" / "photo64" / "diffusion_pytorch_model.safetensors"] <= 12e6
    )


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_folders_refuse_to_be_top_level(name: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode != 0 and f"invdiff.{name}" in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("editable", [False, True])
def test_wheel_and_editable_install(editable: bool, tmp_path: Path) -> None:
    """Built from a clean copy and installed into an environment of its own, beside this one's
    dependencies."""
    source, env = tmp_path / "source", tmp_path / "env"
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    names = tracked or [
        str(p.relative_to(ROOT))
        for p in ROOT.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and "venv" not in p.parts
    ]
    for name in names:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "venv", env], check=True)
    # The dependencies come from the environment that runs the tests; the package under test does
    # not.
    site = next((env / "lib").glob("python*/site-packages"))
    deps = tmp_path / "deps"
    deps.mkdir()
    for outer in (Path(p) for p in sys.path if p.endswith("site-packages")):
        for entry in outer.iterdir():
            if "invdiff" not in entry.name and not (deps / entry.name).exists():
                (deps / entry.name).symlink_to(entry)
    (site / "deps.pth").write_text(str(deps))
    pip = [
        env / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--ignore-installed",
    ]
    subprocess.run([*pip, "setuptools>=80"], check=True, capture_output=True)
    subprocess.run(
        [*pip, "--no-build-isolation", *(["-e"] if editable else []), str(source)],
        check=True,
        capture_output=True,
    )
    script = (
        "import invdiff, invdiff.guidance.dps, invdiff.operators, invdiff.configs, json;"
        "print(json.dumps([invdiff.__file__, invdiff.guidance.dps.__file__, "
        "invdiff.list_plugins('guidance')]))"
    )
    out = subprocess.run(
        [env / "bin" / "python", "-c", script],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    package, module, plugins = json.loads(out)
    assert Path(package).is_relative_to(source if editable else env) and Path(
        module
    ).is_relative_to(source if editable else env)
    assert "dps" in plugins


@pytest.mark.slow
def test_wheel_content(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert all(n.startswith(("invdiff/", "invdiff-")) for n in names)
    for module in modules():
        path = module.replace(".", "/")
        assert f"{path}.py" in names or f"{path}/__init__.py" in names


def test_model_cards_point_to_what_is_installed() -> None:
    for card in (ROOT / "invdiff" / "zoo").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)", card.read_text()):
            inside = (card.parent / target).resolve().is_relative_to(ROOT / "invdiff")
            assert target.startswith("http") or inside, f"{card}: {target}"


@pytest.mark.parametrize(
    "page",
    pages(),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_links_of_the_documentation_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "page",
    [p.relative_to(ROOT).as_posix() for p in pages()],
)
def test_pages_have_no_dead_links_and_no_gaps(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} points to {target}"
    assert not re.findall(r"^[A-Z0-9]+_[A-Z_]+$", text, flags=re.MULTILINE), (
        "a placeholder was left"
    )
