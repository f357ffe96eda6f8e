"""The page to try a row, in a real browser."""

from __future__ import annotations

import json
import socket
import threading
from urllib.request import Request, urlopen

import pytest
from browsers import brightness, requested, show

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
import uvicorn

from recbole_escm2.serve.http.app import make_app
from recbole_escm2.serve.http.service import Limits, Service
from recbole_escm2.serve.http.workers import workers_with

PROBABILITIES = ["pctr", "pcvr", "pctcvr"]


@pytest.fixture(scope="module")
def address(done):
    """Where a server in a thread answers."""
    service = Service(workers_with(1, str(done.folder), None, "cpu", {}), Limits())
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_config=None))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    server.should_exit = True
    thread.join()


def wait(browser, script, *arguments):
    """What a script gives, once it gives something."""
    from selenium.webdriver.support.wait import WebDriverWait

    return WebDriverWait(browser, 60).until(lambda _: browser.execute_script(script, *arguments))


def opened(browser, address, **screen):
    show(browser, address, **screen)
    wait(browser, "return document.querySelector('#fields input')")


def field(browser, name):
    return browser.find_element("css selector", f"#fields [name='{name}']")


def fill(browser, **values):
    for name, value in values.items():
        field(browser, name).clear()
        field(browser, name).send_keys(value)


def scored(browser):
    """Submit, and the three probabilities that the page then shows."""
    browser.execute_script("document.getElementById('probabilities').replaceChildren()")
    browser.find_element("css selector", "button").click()
    wait(browser, "return document.getElementById('pctcvr')")
    return {name: float(browser.find_element("id", name).text) for name in PROBABILITIES}


def answered(address, **row):
    body = json.dumps({"rows": [row]}).encode()
    with urlopen(Request(f"{address}predict", body)) as answer:
        return json.loads(answer.read())["rows"][0]


def text(browser, place):
    return browser.find_element("id", place).text


def in_sight(browser, place):
    """Whether an element begins within the window."""
    script = (
        "const top = document.getElementById(arguments[0]).getBoundingClientRect().top;"
        "return 0 <= top && top < innerHeight"
    )
    return browser.execute_script(script, place)


def test_a_row_is_tried_and_scored_as_a_request_is(browser, address):
    opened(browser, address)
    inputs = browser.find_elements("css selector", "#fields input, #fields textarea")
    names = ["user_id", "item_id", "hour", "age", "category", "tags"]
    assert [own.get_attribute("name") for own in inputs] == names
    assert {own.accessible_name for own in inputs} == {*names}
    fill(browser, user_id="u3", item_id="i7", hour="5", age="33", category="c2", tags="t0\nt2")
    row = {"user_id": "u3", "item_id": "i7", "hour": 5, "age": 33, "category": "c2"}
    expected = answered(address, **row, tags=["t0", "t2"])
    got = scored(browser)
    assert got == pytest.approx({name: expected[name] for name in PROBABILITIES}, rel=1e-3)
    assert text(browser, "validity").startswith("Valid" if expected["valid"] else "Not valid")
    assert text(browser, "unknown") == ""
    browser.find_element("css selector", "summary").click()
    sent = text(browser, "curl").partition("-d '")[2].removesuffix("'")
    assert answered(address, **json.loads(sent)["rows"][0]) == expected
    assert browser.get_log("browser") == []
    asked = {url.removeprefix(address) for url in requested(browser)}
    assert asked == {"", "page.css", "page.js", "model", "predict"}


def test_an_unknown_value_and_a_row_that_is_not_valid_are_told(browser, address, done):
    opened(browser, address)
    fill(browser, user_id="<b>nobody</b>")
    scored(browser)
    assert text(browser, "unknown") == "The training didn't know the value of user_id."
    frame = done.frame
    rows = [
        {"user_id": u, "item_id": i, "hour": "3", "age": a, "category": c, "tags": []}
        for u, i, a, c in frame[["user_id", "item_id", "age", "category"]].head(300).to_numpy()
    ]
    body = json.dumps({"rows": rows}).encode()
    with urlopen(Request(f"{address}predict", body)) as answer:
        valid = [own["valid"] for own in json.loads(answer.read())["rows"]]
    row = rows[valid.index(False)]
    fill(browser, **{name: str(value) for name, value in row.items() if name != "tags"}, tags="")
    scored(browser)
    assert text(browser, "validity").startswith("Not valid: ")
    assert "pcvr is a guess" in text(browser, "validity")


def test_a_wrong_value_is_said_and_marked(browser, address):
    opened(browser, address)
    fill(browser, age="old")
    browser.find_element("css selector", "button").click()
    wait(browser, "return !document.getElementById('error').hidden")
    assert "field 'age': it is no number" in text(browser, "error")
    assert in_sight(browser, "error")
    assert field(browser, "age").get_attribute("aria-invalid") == "true"
    assert field(browser, "user_id").get_attribute("aria-invalid") == "false"
    fill(browser, age="30")
    scored(browser)
    assert text(browser, "error") == ""
    assert field(browser, "age").get_attribute("aria-invalid") == "false"


def test_by_keyboard(browser, address):
    opened(browser, address)
    field(browser, "user_id").send_keys("\ue007")  # Enter
    wait(browser, "return document.getElementById('pctr')")


def test_schemes(browser, address):
    for scheme, is_light in (("light", True), ("dark", False)):
        opened(browser, address, scheme=scheme)
        paper, ink = brightness(browser, "background-color"), brightness(browser, "color")
        assert (paper > 240) if is_light else (paper < 40)
        assert abs(paper - ink) > 150


@pytest.mark.parametrize(("width", "height"), [(360, 740), (1280, 900)])
def test_page_is_no_wider_than_the_screen(browser, address, width, height):
    opened(browser, address, width=width, height=height, mobile=width < 1000)
    scored(browser)
    assert in_sight(browser, "scores")
    browser.execute_script("document.querySelector('details').open = true")
    wide, screen = browser.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth]"
    )
    assert wide <= screen == width
    if width == 360:  # a finger finds each input
        sizes = [own.size for own in browser.find_elements("css selector", "input, button")]
        assert min(size["height"] for size in sizes) >= 36
