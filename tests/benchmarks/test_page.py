"""The HTML leaderboard, in a real browser with the network off."""

import base64
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from invdiff.benchmarks.leaderboard import page
from invdiff.images import read_image, write_image

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs Debian's chromium and chromium-driver"
)
EVIL = "<img src=x onerror=alert(1)>"
CLOSING = "</script><script>alert(2)</script>\u2028&amp;"
IMAGES = ("a", "b", CLOSING)
LEVELS = {"dps": 0.7, EVIL: 0.6, "ddrm": 0.55, "pinv": 0.9, "broken": 0.52}
"""Grey level of the restorations; the truth is grey 0.5."""


def statistic(mean: float | None, rank: int | None = None) -> dict[str, Any]:
    return {"mean": mean, "half": 0.25, "n": 3, "rank": rank}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A table of five rows on three images, as invdiff.benchmarks.leaderboard makes them; psnr 20
    to 24, lpips 0.5 to 0.1."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "pictures").mkdir()

    def picture(name: str, level: float) -> str:
        write_image(folder / "pictures" / name, torch.full((3, 8, 8), level))
        return f"pictures/{name}"

    rows = []
    for i, (label, level) in enumerate(LEVELS.items()):
        cells = []
        for k, image in enumerate(IMAGES[:2] if label == "broken" else IMAGES):
            files = {
                "truth": picture(f"truth-{k}.png", 0.5 + k / 255),
                "measurement": picture(f"y-{k}.png", 0.1 + k / 255),
            }
            files["restoration"] = picture(f"{i}-{k}.png", level + k / 255)
            if label == "dps":
                files |= {
                    "mean": picture(f"mean-{k}.png", 0.45 + k / 255),
                    "std": picture(f"std-{k}.png", 0.2 + k / 255),
                }
            cells.append(
                {
                    "image": image,
                    "seed": 0,
                    "metrics": {"psnr": 20.0 + i + k, "lpips": 0.5 - i / 10},
                    "folder": str(folder),
                    "files": files,
                }
            )
        complete = label != "broken"
        ranks = {"ddrm": 2, "pinv": 1}
        row = {
            "id": f"row{i}",
            "label": label,
            "kind": "baseline" if label == "pinv" else "method",
            "values": {"steps": i},
            "model": None,
        }
        row |= {
            "complete": complete,
            "images": len(cells),
            "of": 3,
            "problems": [] if complete else [f"1 of 3 failed: {EVIL}"],
        }
        row |= {
            "scores": {
                "psnr": statistic(20.0 + i, ranks.get(label)),
                "lpips": statistic(0.5 - i / 10, ranks.get(label)),
            }
        }
        row |= {
            "mean": {"psnr": statistic(26.0)} if label == "dps" else {},
            "spread": {"coverage": statistic(0.8)} if label == "dps" else {},
        }
        row |= {
            "paired": {}
            if label == "dps"
            else {"psnr": {"mean": float(i) / 5, "half": 0.25, "n": 3}}
        }
        free = label == "pinv"
        row |= {
            "cost": {
                "nfe": 0.0 if free else 10.0 * (i + 1),
                "nbe": 0.0,
                "seconds": 0.01 + i,
                "peak_memory_mb": None,
            },
            "environment": {},
            "cells": cells,
        }
        rows.append(row)
    benchmark = {
        "name": f"inpaint {EVIL}",
        "operator": {"name": "inpaint", "fraction": 0.7},
        "sigma": 0.025,
        "gain": 0.0,
    }
    benchmark |= {"images": {"count": 3}, "seeds": [0], "metrics": {}, "hash": "0123456789ab"}
    metrics = [
        {"name": "psnr", "title": "PSNR", "better": "higher"},
        {"name": "lpips", "title": "LPIPS", "better": "lower"},
    ]
    return {
        "format": 1,
        "tables": [{"benchmark": benchmark, "baseline": "dps", "metrics": metrics, "rows": rows}],
    }


# What is in the file ------------------------------------------------------------------------------


def content(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_every_picture_is_embedded_once_and_no_path_is_told(data: dict[str, Any]) -> None:
    html = page.render(data, page.read_picture)
    cells = [cell for row in data["tables"][0]["rows"] for cell in row["cells"]]
    different = {page.read_picture(cell, kind) for cell in cells for kind in cell["files"]}
    embedded = [base64.b64decode(uri.partition(",")[2]) for uri in content(html)["pictures"]]
    assert len(embedded) == len(different) and set(embedded) == different
    assert cells[0]["folder"] not in html
    assert content(html)["tables"][0]["rows"][1]["label"] == EVIL


def test_only_the_first_images_have_pictures(data: dict[str, Any]) -> None:
    table = data["tables"][0]
    shuffled = {
        **table,
        "rows": [
            row | {"cells": row["cells"][:: 1 if i == 0 else -1]}
            for i, row in enumerate(table["rows"])
        ],
    }
    for row in content(page.render({"tables": [shuffled]}, page.read_picture, pictures=1))[
        "tables"
    ][0]["rows"]:
        assert [cell["image"] for cell in row["cells"]] == list(
            IMAGES[: len(row["cells"])]
        )  # in the order of the first row
        assert [bool(cell["pictures"]) for cell in row["cells"]] == [True, False, False][
            : len(row["cells"])
        ]
    assert content(page.render(data, page.read_picture, pictures=0))["pictures"] == []
    with pytest.raises(ValueError, match="at least 0"):
        page.render(data, page.read_picture, pictures=-1)


def test_markup_cannot_leave_the_data(data: dict[str, Any]) -> None:
    html = page.render(data, page.read_picture)
    assert len(re.findall("<script", html)) == 2 and "\u2028" not in html and EVIL not in html
    assert "innerHTML" not in html and "http" not in html.replace("http-equiv", "").replace(
        "http://www.w3.org/2000/svg", ""
    )


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../outside.png", "outside this folder"),
        ("/etc/hostname", "outside this folder"),
        ("text.png", "no PNG"),
    ],
)
def test_a_record_cannot_bring_other_files_into_the_page(
    tmp_path: Path, name: str, told: str
) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    write_image(tmp_path / "outside.png", torch.zeros(3, 4, 4))
    (folder / "text.png").write_text("secret")
    with pytest.raises(ValueError, match=told):
        page.read_picture({"folder": str(folder), "files": {"truth": name}}, "truth")
    assert (
        page.read_picture({"folder": str(folder), "files": {"truth": "gone.png"}}, "truth") is None
    )
    assert page.read_picture({"folder": None, "files": {"truth": "gone.png"}}, "truth") is None


def test_what_is_no_json_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        page.render(
            {"tables": [{**data["tables"][0], "baseline": float("nan")}]}, page.read_picture
        )


# In the browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    quiet = [
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    profile = f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"
    for flag in [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--force-prefers-reduced-motion",
        *quiet,
        "--window-size=1400,1000",
        profile,
    ]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield driver
    driver.quit()


@pytest.fixture
def shown(chromium: Any, data: dict[str, Any], tmp_path: Path) -> Iterator[Any]:
    """The page, newly opened and without votes; nothing may have been complained about or asked of
    a network in the end."""
    page.write(data, tmp_path / "index.html")
    chromium.get_log("browser")
    chromium.get(f"file://{tmp_path}/index.html")
    chromium.execute_script("localStorage.clear()")
    yield chromium
    assert chromium.get_log("browser") == []
    assert (
        chromium.execute_script(
            "return performance.getEntriesByType('resource').map(e => e.name).filter(n => "
            "!n.startsWith('data:'))"
        )
        == []
    )


def every(driver: Any, selector: str) -> list[Any]:
    return driver.find_elements("css selector", selector)


def one(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def labels(driver: Any) -> list[str]:
    return [button.text for button in every(driver, "main tbody th button")]


def until(condition: Any, seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def press(driver: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


@browser
def test_names_are_shown_as_text(shown: Any) -> None:
    assert labels(shown) == list(LEVELS)  # the order of the data, incomplete rows last
    assert one(shown, "h2").text == f"inpaint {EVIL}"
    assert one(shown, "tr.incomplete summary").text.endswith("1 of 3 failed")
    one(shown, "tr.incomplete summary").click()  # unfolds, and opens no row
    assert EVIL in one(shown, "tr.incomplete .problem:last-child").text
    assert not one(shown, "#viewer").is_displayed()
    assert every(shown, "img[src=x]") == [] and len(every(shown, "script")) == 2
    assert (
        shown.execute_script("return document.querySelector('.pictures').textContent").count(
            "</script><script>alert(2)</script>\u2028&amp;"
        )
        == 1
    )


@browser
def test_best_and_second_best_are_marked_by_more_than_colour(shown: Any) -> None:
    figures = {
        row.get_attribute("data-row"): one(row, "td .figure")
        for row in every(shown, "main tbody tr")
    }
    assert int(figures["row3"].value_of_css_property("font-weight")) >= 600
    assert "underline" in figures["row2"].value_of_css_property("text-decoration-line")
    assert int(figures["row0"].value_of_css_property("font-weight")) == 400
    assert one(shown, "main tbody tr td").text == "20.00 ± 0.25"


@browser
def test_sorts_by_click_and_key(shown: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    head = '[data-column="scores.psnr"]'
    one(shown, head).click()
    assert labels(shown) == [
        "pinv",
        "ddrm",
        EVIL,
        "dps",
        "broken",
    ]  # the best first; incomplete rows stay last
    assert one(shown, f"th:has({head})").get_attribute("aria-sort") == "descending"
    one(shown, head).click()
    assert labels(shown) == ["dps", EVIL, "ddrm", "pinv", "broken"]
    assert one(shown, f"th:has({head})").get_attribute("aria-sort") == "ascending"
    shown.execute_script("document.querySelector('[data-column=\"scores.lpips\"]').focus()")
    press(shown, Keys.ENTER)
    assert labels(shown) == ["pinv", "ddrm", EVIL, "dps", "broken"]
    assert one(shown, f"th:has({head})").get_attribute("aria-sort") == "none"
    press(shown, Keys.ENTER)  # the header keeps the focus
    assert labels(shown)[0] == "dps"
    grid = [name.text for name in every(shown, ".pictures .name")]
    assert grid == ["", "truth", "measurement", *labels(shown)]


@browser
def test_filters(shown: Any) -> None:
    search = one(shown, "#search")
    search.send_keys("D p")
    assert labels(shown) == ["dps"] and one(shown, "#count").text == "1 of 5 rows"
    search.clear()
    search.send_keys("nothing")
    assert labels(shown) == [] and "No row" in one(shown, "main tbody").text
    search.clear()
    search.send_keys(" ")
    one(shown, "input[value=baseline]").find_element("xpath", "..").click()
    assert labels(shown) == ["pinv"]
    one(shown, "input[value='']").find_element("xpath", "..").click()
    one(shown, "#complete").click()
    assert labels(shown) == [label for label in LEVELS if label != "broken"]


@browser
def test_views(shown: Any) -> None:
    one(shown, "input[value=paired]").find_element("xpath", "..").click()
    cells = {row.get_attribute("data-row"): one(row, "td") for row in every(shown, "main tbody tr")}
    assert [cells[f"row{i}"].text for i in (0, 1, 2)] == ["–", "+0.200 ± 0.250", "+0.400 ± 0.250"]
    assert [cells[f"row{i}"].get_attribute("class") for i in (1, 2)] == [
        "unclear",
        "",
    ]  # the first interval holds zero
    one(shown, "input[value=mean]").find_element("xpath", "..").click()
    assert [cell.text for cell in every(shown, "main tbody tr[data-row=row0] td")][:2] == [
        "26.00 ± 0.25",
        "0.800 ± 0.250",
    ]


def error_at(driver: Any) -> list[int]:
    return driver.execute_script(
        "return [...document.querySelector('[data-kind=error] "
        "canvas').getContext('2d').getImageData(3, 3, 1, 1).data]"
    )


@browser
def test_a_row_opens_its_pictures(shown: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    one(shown, "tr[data-row=row1]").click()
    assert one(shown, "#viewer").is_displayed()
    until(lambda: every(shown, "[data-kind=error] canvas[data-painted]"))
    assert [f.get_attribute("data-kind") for f in every(shown, "#panels figure")] == [
        "truth",
        "measurement",
        "restoration",
        "error",
    ]
    assert all(
        i.get_property("naturalWidth") == 8 and "pixels" in i.get_attribute("class")
        for i in every(shown, "#panels img")
    )
    # |153 - 128| / 255 x 4 = 0.39, between the 4th and 5th of ten colours of inferno: 781c6d,
    # a52c60
    assert error_at(shown) == pytest.approx(
        [
            0x78 + 0.53 * (0xA5 - 0x78),
            0x1C + 0.53 * (0x2C - 0x1C),
            0x6D - 0.53 * (0x6D - 0x60),
            255,
        ],
        abs=1.5,
    )
    assert "a (1 of 3)" in one(shown, "#viewer-image").text

    press(shown, Keys.ARROW_RIGHT)
    assert one(shown, "#viewer-image").text == "b (2 of 3)"
    press(shown, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert "3 of 3" in one(shown, "#viewer-image").text
    assert one(shown, "#figures [aria-current] td").text == "23.00"  # psnr of the third image

    every(shown, "#figures tbody button")[
        0
    ].click()  # the row with posterior mean and deviation, same image
    kinds = [f.get_attribute("data-kind") for f in every(shown, "#panels figure")]
    assert (
        kinds == ["truth", "measurement", "restoration", "error", "mean", "std"]
        and "3 of 3" in one(shown, "#viewer-image").text
    )
    until(lambda: every(shown, "[data-kind=error] canvas[data-painted]"))
    assert error_at(shown)[0] > 0xED
    press(shown, Keys.ARROW_RIGHT)  # the focus is on a button that was replaced
    assert "1 of 3" in one(shown, "#viewer-image").text
    one(shown, "#panels [data-kind=truth] .enlarge").click()
    assert one(shown, "#enlarged-image").size["width"] > 600
    assert "pixels" in one(shown, "#enlarged-image").get_attribute("class")
    press(shown, Keys.ESCAPE)
    assert one(shown, "#viewer").is_displayed() and not one(shown, "#enlarged").is_displayed()
    press(shown, Keys.ESCAPE)
    assert not one(shown, "#viewer").is_displayed()

    every(shown, ".pictures button[data-kind=restoration]")[-1].click()
    assert (
        one(shown, "#viewer-row").get_property("value") == "row4"
        and one(shown, "#viewer-image").text == "b (2 of 2)"
    )
    one(shown, "#viewer .close").click()


@browser
def test_the_slider_compares_any_two(shown: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    one(shown, "tr[data-row=row1]").click()
    titles = [option.text for option in Select(one(shown, "#slider-right")).options]
    assert titles == ["truth", "measurement", EVIL, "dps", "ddrm", "pinv", "broken"]
    assert (
        one(shown, "#slide-left").get_attribute("alt") == "measurement"
        and one(shown, "#slide-right").get_attribute("alt") == EVIL
    )

    assert "50%" in one(shown, "#slide-left").value_of_css_property("clip-path")
    one(shown, "#position").send_keys(Keys.ARROW_LEFT)
    assert (
        "50.5%" in one(shown, "#slide-left").value_of_css_property("clip-path")
        and "1 of 3" in one(shown, "#viewer-image").text
    )
    frame = one(shown, "#slide")
    ActionChains(shown).move_to_element(frame).click_and_hold().move_by_offset(
        frame.size["width"] // 4, 0
    ).release().perform()
    assert float(
        one(shown, "#handle").get_attribute("style").removeprefix("left: ").removesuffix("%;")
    ) == pytest.approx(75, abs=1)

    Select(one(shown, "#slider-left")).select_by_visible_text("pinv")
    other = shown.execute_script("return pictures[tables[0].rows[3].cells[0].pictures.restoration]")
    assert one(shown, "#slide-left").get_attribute("src") == other
    press(shown, Keys.ESCAPE)


@browser
def test_plots_show_the_pareto_front(shown: Any) -> None:
    marks = (
        "[{cost: 1, quality: 3}, {cost: 2, quality: 2}, {cost: 2, quality: 5}, {cost: 4, "
        "quality: 5}, {cost: 9, quality: 1}]"
    )
    assert shown.execute_script(
        f'return front({marks}, "higher").map(m => [m.cost, m.quality])'
    ) == [[1, 3], [2, 5]]
    assert shown.execute_script(
        f'return front({marks}, "lower").map(m => [m.cost, m.quality])'
    ) == [[1, 3], [2, 2], [9, 1]]
    assert [len(every(plot, ".mark")) for plot in every(shown, ".plot")] == [
        4,
        4,
    ]  # the complete rows, by evaluations and by seconds
    assert [len(every(plot, ".free")) for plot in every(shown, ".plot")] == [
        1,
        0,
    ]  # no evaluations: no place on a log axis
    shown.execute_script("document.querySelector('.plot [aria-label^=\"ddrm\"]').focus()")
    tip = one(shown, ".plot .tip")
    assert (
        tip.is_displayed()
        and "ddrm" in tip.text
        and "PSNR 22 ± 0.25" in tip.text
        and "NFE 30" in tip.text
    )
    assert shown.execute_script(
        # of means 20 to 23 with intervals of 0.25 each; a wide one must not squeeze them
        "const t = tables[0]; const y = () => [...document.querySelectorAll('.plot:last-child "
        ".mark .point')].map(p => p.getBoundingClientRect().y); const before = y().join();"
        "t.rows[0].scores.psnr.half = 50; plotAll(panels[0]); const after = y().join();"
        "t.rows[0].scores.psnr.half = 0.25; plotAll(panels[0]); return before === after"
    )
    points = [
        one(mark, ".point").get_attribute("cy") for mark in every(shown, ".plot:last-child .mark")
    ]
    one(shown, "select[aria-label=Metric] option[value=lpips]").click()
    assert [
        one(mark, ".point").get_attribute("cy") for mark in every(shown, ".plot:last-child .mark")
    ] != points


@browser
def test_blind_votes_are_counted_kept_and_exported(shown: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    one(shown, ".compare").click()
    dialog = one(shown, "#blind")
    assert len(every(dialog, "#blind-sides img")) == 2
    markup = one(shown, "#blind-trial").get_attribute("outerHTML")
    assert not any(
        text in markup for text in ("dps", "ddrm", "pinv", "broken", "row0")
    )  # nothing tells the names
    one(shown, "#blind-truth").click()
    assert [i.get_attribute("alt") for i in every(dialog, "#blind-sides img")] == [
        "left",
        "truth",
        "right",
    ]
    one(shown, "#blind-truth").click()

    trials = []
    for cast in (
        lambda: one(shown, "[data-choice=left]").click(),
        lambda: press(shown, Keys.ARROW_DOWN),
        lambda: press(shown, Keys.ARROW_RIGHT),
    ):
        trials.append(shown.execute_script("return [blind.trial.left.id, blind.trial.right.id]"))
        cast()
    assert "3 votes" in one(shown, "#blind-count").text
    stored = shown.execute_script(
        "return JSON.parse(localStorage.getItem('invdiff leaderboard 0123456789ab'))"
    )
    assert [vote["choice"] for vote in stored] == ["left", "tie", "right"]
    assert [[vote["left"], vote["right"]] for vote in stored] == trials

    shown.refresh()
    one(shown, ".compare").click()
    assert (
        shown.execute_script("return blind.deck.length + 1") == 10 + 10 + 6 - 3
    )  # pairs of rows on three images, without what was judged
    one(shown, "#blind-result").click()
    tally = {
        row[0]: row[2:]
        for row in (
            [c.text for c in every(r, "th, td")] for r in every(shown, "#blind-table tbody tr")
        )
    }
    winner = list(LEVELS)[int(trials[0][0][3:])]
    assert (
        sum(int(row[0]) for row in tally.values()) == 6
        and sum(int(row[1]) for row in tally.values()) == 2
    )
    assert int(tally[winner][1]) >= 1

    shown.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    one(shown, "#blind-export").click()
    file = tmp_path / "votes-0123456789ab.json"
    until(file.exists)
    exported = json.loads(file.read_text())
    assert (
        exported["votes"] == stored
        and exported["rows"]["row1"] == EVIL
        and exported["benchmark"]["hash"] == "0123456789ab"
    )

    one(shown, "#blind-forget").click()
    shown.switch_to.alert.accept()
    assert "0 votes" in one(shown, "#blind-count").text
    press(shown, Keys.ESCAPE)


@browser
def test_blind_dealing_favours_no_row(shown: Any) -> None:
    """Each pair meets once on each image; sides and the order are fair to five standard
    deviations."""
    rounds = 400
    script = """
        const rows = tables[0].rows.slice(0, 4), decks = [];
        const seen = t => [t.cell.image, t.left.id, t.right.id];
        for (let i = 0; i < arguments[0]; i++)
            decks.push(deal(rows, pictured(tables[0])).map(seen));
        return decks"""
    decks = shown.execute_script(script, rounds)
    pairs = 4 * 3 // 2
    for deck in decks:
        assert (
            len({(image, frozenset(pair)) for image, *pair in deck})
            == len(deck)
            == pairs * len(IMAGES)
        )
    for row in ("row0", "row1", "row2", "row3"):
        left, n = (
            sum(left == row for deck in decks for _, left, _ in deck),
            rounds * 3 * len(IMAGES),
        )
        assert abs(left - n / 2) < 5 * (n / 4) ** 0.5
        first = sum(row in deck[0] for deck in decks)
        assert abs(first - rounds / 2) < 5 * (rounds / 4) ** 0.5


@browser
def test_rates_and_their_intervals(shown: Any) -> None:
    assert shown.execute_script("return wilson(8, 10)") == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert shown.execute_script("return wilson(0, 5)") == pytest.approx([0.0, 0.4345], abs=1e-4)
    votes = [
        {"left": "row0", "right": "row1", "choice": c} for c in ("left", "right", "tie", "left")
    ] + [{"left": "gone", "right": "row1", "choice": "left"}]
    found = shown.execute_script(
        "return tally(tables[0].rows, arguments[0]).map(e => [e.row.id, e.n, e.wins, "
        "e.ties, e.losses, e.rate])",
        votes,
    )
    assert found == [["row0", 4, 2, 1, 1, 0.625], ["row1", 4, 1, 1, 2, 0.375]]


@browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_screenshots(shown: Any, tmp_path: Path, width: int, scheme: str) -> None:
    shown.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    shown.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    until(lambda: shown.execute_script("return innerWidth") == width)
    assert (
        shown.execute_script("return document.documentElement.scrollWidth") <= width
    )  # wide tables scroll by themselves
    shown.save_screenshot(str(tmp_path / "page.png"))
    picture = read_image(tmp_path / "page.png", channels=1)
    assert picture.shape[-2:] == (900, width)
    assert (picture.median() > 0.9) == (scheme == "light") and (picture.median() < 0.2) == (
        scheme == "dark"
    )
    assert picture.std() > 0.02
    shown.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
