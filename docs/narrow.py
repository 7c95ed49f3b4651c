"""What a site must do on a phone: nothing is wider than the screen, but what scrolls by itself."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

WIDTH = 390
"""Pixels of CSS, of a common phone."""
STICKING_OUT = """
const frame = "html,body,main,article,section,[class^=bd-]", found = [];
const scrolls = e => {
  for (let p = e.parentElement; p; p = p.parentElement)
    if (!p.matches(frame) && /auto|scroll/.test(getComputedStyle(p).overflowX)) return true;
};
for (const e of document.querySelectorAll("body *")) {
  if (e.closest("dialog, .bd-sidebar-primary, .bd-sidebar-secondary, .skip-link")) continue;
  const box = e.getBoundingClientRect();
  // What a block holds may be wider than its box.
  const text = e.clientWidth && getComputedStyle(e).overflowX === "visible" ? e.scrollWidth : 0;
  const right = Math.max(box.right, box.left + text);
  if (box.width && box.height && (right > innerWidth + 1 || box.left < -1) && !scrolls(e))
    found.push(`${e.tagName.toLowerCase()}: ${e.textContent.trim().slice(0, 40)}`);
}
return found"""


def browser() -> Any | None:
    """A headless Chromium with a phone's screen; None where selenium, Chromium or its driver is
    missing."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        return None
    if binary is None or driver is None:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": WIDTH, "height": 844, "deviceScaleFactor": 1, "mobile": True},
    )
    return found


def sticking_out(phone: Any, page: Path) -> list[str]:
    """What of a page is beyond the screen's edge and cannot be scrolled to by itself."""
    phone.get(page.resolve().as_uri())
    return phone.execute_script(STICKING_OUT)


def check(site: Path) -> list[str]:
    """A line for every page of a built site that is cut on a phone, but for listings of sources;
    none, and a line that says so, where there is no browser."""
    phone = browser()
    if phone is None:
        print("phone: not looked at, for this needs selenium, chromium and chromedriver")
        return []
    pages = [
        page
        for page in sorted(site.rglob("*.html"))
        if page.relative_to(site).parts[0] not in ("_modules", "_static")
    ]
    try:
        found = {page: sticking_out(phone, page) for page in pages}
    finally:
        phone.quit()
    return [f"{p.relative_to(site)} is cut: {wide[0]}" for p, wide in found.items() if wide]


if __name__ == "__main__":
    sys.exit("\n".join(check(Path(sys.argv[1]))) or 0)
