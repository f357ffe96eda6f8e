"""Pages in a real browser: started, shown on screens of several sizes, looked at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def started(profile: Path) -> Iterator[Any]:
    """A browser that runs until it is asked for again; skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (BROWSER and DRIVER):
        pytest.skip("needs chromium and chromedriver on the PATH")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def show(
    browser: Any,
    address: str,
    width: int = 1280,
    height: int = 900,
    scheme: str = "light",
    mobile: bool = False,
) -> None:
    """Open a page on a screen of a size, with a preferred colour scheme and an empty log."""
    browser.get("about:blank")  # so that the browser's own first page asks for nothing more
    browser.get_log("performance"), browser.get_log("browser")
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.get(address)


def brightness(browser: Any, what: str) -> float:
    """That of a colour of the page, 0 to 255."""
    colour = browser.execute_script(
        f"return getComputedStyle(document.body).getPropertyValue('{what}')"
    )
    return sum(int(part) for part in colour.strip("rgb()").split(",")[:3]) / 3


def requested(browser: Any) -> list[str]:
    """What the page has asked for since it was shown, but for what stands in it."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith("data:")]
