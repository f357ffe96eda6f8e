"""The page in a real browser."""

import io
from dataclasses import replace

import numpy as np
import pytest
from browsers import brightness, requested, show
from PIL import Image
from studies import realistic, study_of

from recbole_escm2.report.page import page

COLUMNS = ["CTR_AUC", "CVR_AUC", "CVR_PCOC", "IEB"]
ODD = "<script>document.title = 'taken'</script>"


@pytest.fixture(scope="module")
def study():
    return replace(realistic(seeds=(1, 2, 3)), columns=COLUMNS)


@pytest.fixture(scope="module")
def address(study, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page(study), encoding="utf-8")
    return file.as_uri()


def column(browser, place):
    return browser.execute_script(
        "return [...document.querySelectorAll('#table tbody tr')].map("
        "row => row.cells[arguments[0]].dataset.order)",
        place,
    )


def heading(browser, place):
    return browser.find_elements("css selector", "#table thead th")[place]


class TestSorting:
    @pytest.fixture(autouse=True)
    def shown(self, browser, address):
        show(browser, address)

    def test_by_click_best_first_then_worst_then_as_it_was(self, browser, study):
        before = column(browser, 0)
        button = heading(browser, 2).find_element("css selector", "button")
        assert "CTR_AUC" in button.text
        button.click()
        means = {row.label: study.table[row.label]["CTR_AUC"].sample.mean for row in study.rows}
        assert column(browser, 0) == sorted(means, key=means.get, reverse=True)
        assert heading(browser, 2).get_attribute("aria-sort") == "descending"
        assert "CTR_AUC ↑, best first" in browser.find_element("id", "sorted").text
        button.click()
        assert column(browser, 0) == sorted(means, key=means.get)
        assert heading(browser, 2).get_attribute("aria-sort") == "ascending"
        button.click()
        assert column(browser, 0) == before
        assert heading(browser, 2).get_attribute("aria-sort") == "none"

    @pytest.mark.parametrize("key", ["\ue007", " "])
    def test_by_keyboard(self, browser, key):
        names = [h.text for h in browser.find_elements("css selector", "#table thead th")]
        place = next(n for n, name in enumerate(names) if name.startswith("IEB"))
        reached = browser.execute_script(
            "const found = [...document.querySelectorAll('a, button, [tabindex], summary')];"
            "const button = document.querySelectorAll('#table thead button')[arguments[0]];"
            "found[found.indexOf(button) - 1].focus(); return document.activeElement !== button",
            place,
        )
        assert reached
        browser.switch_to.active_element.send_keys("\ue004")  # Tab
        focused = browser.switch_to.active_element
        assert focused.text.startswith("IEB")
        focused.send_keys(key)
        distances = [float(order) for order in column(browser, place)]
        assert distances == sorted(distances)
        assert distances != sorted(distances, reverse=True)
        assert heading(browser, place).get_attribute("aria-sort") == "ascending"

    def test_sorting_one_column_clears_the_others(self, browser):
        for place in (2, 3):
            heading(browser, place).find_element("css selector", "button").click()
        states = [
            th.get_attribute("aria-sort")
            for th in browser.find_elements("css selector", "#table thead th")
        ]
        assert sum(state != "none" for state in states) == 1


def test_rows_without_a_value_stay_last(browser, tmp_path):
    values = {
        "low": {"CTR_AUC": [0.6]},
        "none": {"CTR_LogLoss": [0.3]},
        "high": {"CTR_AUC": [0.9]},
    }
    file = tmp_path / "report.html"
    file.write_text(page(study_of(values, "low")), encoding="utf-8")
    show(browser, file.as_uri())
    button = heading(browser, 1).find_element("css selector", "button")
    for expected in (["high", "low", "none"], ["low", "high", "none"], ["low", "none", "high"]):
        button.click()
        assert column(browser, 0) == expected


class TestDetails:
    def panel(self, browser):
        found = browser.find_element("id", "panel")
        return found.text if found.is_displayed() else ""

    def test_click_shows_interval_and_seeds_and_escape_hides_them(self, browser, address, study):
        show(browser, address)
        cell = browser.find_elements("css selector", "#table td.value")[1]
        cell.click()
        own = study.table["DeepFM"]["CVR_AUC"].sample
        shown = self.panel(browser)
        assert f"{own.low:.4f} to {own.high:.4f}" in shown
        for seed, value in own.values.items():
            assert f"seed {seed}" in shown
            assert f"{value:.4f}" in shown
        browser.find_element("tag name", "body").send_keys("\ue00c")
        assert self.panel(browser) == ""

    def test_hover(self, browser, address):
        from selenium.webdriver import ActionChains

        show(browser, address)
        rows = browser.find_elements("css selector", "#table tbody tr")
        metric = rows[1].find_element("css selector", "td.value")  # those of costs come last
        ActionChains(browser).move_to_element(metric).perform()
        assert "95 % interval" in self.panel(browser)
        title = browser.find_element("css selector", "h1")
        ActionChains(browser).move_to_element(title).perform()
        assert self.panel(browser) == ""

    def test_tap_on_a_phone_stays_within_the_screen(self, browser, address):
        show(browser, address, 360, 740, mobile=True)
        browser.find_elements("css selector", "#table td.value")[0].click()
        assert self.panel(browser)
        box = browser.find_element("id", "panel").rect
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


def shades(browser):
    """The darkest and the lightest shade of the first picture, as it is on the screen."""
    image = browser.find_element("css selector", "img.figure").screenshot_as_png
    grey = np.asarray(Image.open(io.BytesIO(image)).convert("L"))
    return np.percentile(grey, [0.1, 99.9])


def test_schemes(browser, address):
    seen = {}
    for scheme in ("light", "dark"):
        show(browser, address, scheme=scheme)
        page = brightness(browser, "background-color"), brightness(browser, "color")
        seen[scheme] = *page, *shades(browser)
    light_paper, light_ink, light_low, light_high = seen["light"]
    dark_paper, dark_ink, dark_low, dark_high = seen["dark"]
    assert light_paper > 240
    assert dark_paper < 40
    assert light_paper - light_ink > 150
    assert dark_ink - dark_paper > 150
    # drawings have the shades of the page
    assert abs(light_high - light_paper) < 10
    assert abs(light_low - light_ink) < 25
    assert abs(dark_low - dark_paper) < 10
    assert abs(dark_high - dark_ink) < 25


@pytest.mark.parametrize(("width", "height"), [(360, 740), (768, 1024), (1280, 900)])
def test_page_is_no_wider_than_the_screen(browser, address, width, height):
    show(browser, address, width, height, mobile=width < 1000)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    wide, screen = browser.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth]"
    )
    assert wide <= screen == width
    if width == 360:  # the table is wider, and scrolls by itself
        own, visible = browser.execute_script(
            "const s = document.querySelector('.scroll'); return [s.scrollWidth, s.clientWidth]"
        )
        assert own > visible


def test_asks_for_nothing_but_itself_and_has_no_errors(browser, address):
    show(browser, address)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    heading(browser, 2).find_element("css selector", "button").click()
    assert requested(browser) == [address]
    assert browser.get_log("browser") == []


def test_odd_label_does_nothing(browser, tmp_path):
    file = tmp_path / "report.html"
    study = study_of({ODD: {"CTR_AUC": [0.7, 0.8]}, "b": {"CTR_AUC": [0.6, 0.75]}}, ODD)
    file.write_text(page(study), encoding="utf-8")
    show(browser, file.as_uri())
    assert browser.title == "A study"
    assert browser.find_element("css selector", "#table tbody th").text.startswith(ODD)
    browser.find_element("css selector", "#table td.value").click()
    assert browser.title == "A study"
    assert browser.get_log("browser") == []


def test_policy_stops_a_script_that_gets_in(browser, address, tmp_path):
    """The policy is of use: without it this test's script would run."""
    file = tmp_path / "report.html"
    study = study_of({"a": {"CTR_AUC": [0.7]}}, "a")
    file.write_text(page(study).replace("</main>", f"{ODD}</main>"), encoding="utf-8")
    show(browser, file.as_uri())
    assert browser.title == "A study"
    assert any("Content Security Policy" in e["message"] for e in browser.get_log("browser"))
