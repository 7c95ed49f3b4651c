"""The four instruments of docs/science.md: their commands as the page has them, in fewer steps, on
what the page's own code makes."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from invdiff.commands.main import main

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.slow
def test_four_instruments_run_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile, fits = pytest.importorskip("tifffile"), pytest.importorskip("astropy.io.fits")
    spec = importlib.util.spec_from_file_location("make_science", DOCS / "make_science.py")
    assert spec and spec.loader
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    monkeypatch.chdir(tmp_path)
    exec(page.data(), {})
    for arguments in page.examples().values():
        steps = arguments.index("--steps") + 1
        fewer = [*arguments[:steps], "2", *arguments[steps + 1 :], "--quiet"]
        assert main(fewer) == 0, arguments

    def result(folder: str) -> dict:
        return json.loads((tmp_path / folder / "result.json").read_text())

    assert list(page.examples()) == ["mosaic", "sharpened", "cells", "stars"]
    assert result("mosaic")["config"]["operator"]["name"] == "deepinv:Demosaicing"
    assert np.isfinite(result("sharpened")["metrics"]["psnr"])
    stack = tifffile.imread("stack.tif")
    with tifffile.TiffFile(tmp_path / "cells" / "stack_restored.tif") as made:
        assert made.series[0].axes == "ZYX"
        pages = made.asarray()
    assert pages.shape == stack.shape == (3, 64, 64) and pages.dtype == np.uint16
    assert pages.max() <= 4095 and pages.std() > 0
    sky, header = fits.getdata(tmp_path / "stars" / "sky_restored.fits", header=True)
    assert sky.shape == (64, 64) and header["BUNIT"] == "photon"
    # The network's range is that of the header, 200 photons.
    assert sky.min() >= 0 and 1 < sky.max() <= 200
    assert result("stars")["config"]["gain"] == 0.005
