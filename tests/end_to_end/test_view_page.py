"""The live page in a browser: the picture moves, numbers change, a swap shows up, nothing complains."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the extra `view` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `view` is not installed")

HERE = Path(__file__).resolve().parent


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


devtools = load(HERE / "devtools.py")
page = load(HERE.parent / "runtime" / "view_rig.py").page

pytestmark = [
    pytest.mark.skipif(devtools.chromium() is None, reason="no chromium here"),
    pytest.mark.slow,
]
TOKEN = "the-token-of-these-tests"
CANDIDATE = {
    "mode": "shadow", "bundle": "tiny-candidate", "stage": "running", "why": "", "rules": {}, "decision": {},
    "comparison": {
        "frames": 1210, "current": {"frames": 1210, "confidence": 0.97, "p50_ms": [1.0, 0.9, 1.1]},
        "candidate": {"frames": 1210, "confidence": None, "p50_ms": None}, "agreement": [0.993, 0.98, 0.997],
        "confidence_shift": None, "p50_ratio": [1.1, 1.0, None],
    },
}  # fmt: skip
DRIFT = {"verdict": "alarm", "alarm": True, "brightness": {"psi": 0.7, "histogram": [9, 4, 3, 2, 1, 0, 0, 0]}}
# What the picture looks like just now, as a number.
PIXELS = """(() => {
  const image = document.getElementById("picture"), canvas = document.createElement("canvas");
  if (!image.naturalWidth) return "";
  [canvas.width, canvas.height] = [32, 24];
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, 32, 24);
  return context.getImageData(0, 0, 32, 24).data.join();
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = devtools.Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def fresh(browser):
    browser.open("about:blank")
    browser.complaints.clear()
    browser.size(1280, 900)
    return browser


def text(selector):
    return f"(document.querySelector('{selector}')?.textContent ?? '')"


def test_the_picture_moves_numbers_change_and_a_swap_shows_up(fresh, bundle, make_bundle):
    other = make_bundle(seed=7)
    with page(bundle, extra={"candidate": CANDIDATE, "drift": DRIFT}) as (rig, view):
        fresh.open(view.url)
        fresh.wait_for(text("#status") + " === 'Running'")
        seen = fresh.wait_for(PIXELS)
        for _ in range(3):
            fresh.wait_for(f"{PIXELS} !== {seen!r}")
            seen = fresh.evaluate(PIXELS)
        numbers = "[...document.querySelectorAll('#figures dd')].map((cell) => cell.textContent).join()"
        before = fresh.wait_for(numbers)
        fresh.wait_for(f"{numbers} !== {before!r}")
        fresh.wait_for("document.querySelectorAll('#latency polygon').length >= 5")
        fresh.wait_for("document.querySelectorAll('#results tr').length > 5")
        assert rig.models[0].identity in fresh.evaluate(text("#headline"))
        assert "99.3" in fresh.evaluate(text("#candidate"))
        assert "alarm" in fresh.evaluate(text("#parts"))
        assert fresh.evaluate("document.querySelectorAll('#parts .bars rect').length") == 8
        rig.swap(other)
        fresh.wait_for(f"{text('#headline')} === {rig.models[1].identity!r}")
        versions = fresh.wait_for(f"{text('#versions')}.includes('earlier') && {text('#versions')}")
        assert rig.models[0].identity in versions
        assert rig.models[1].identity in versions
    assert fresh.complaints == []


def test_commands_need_the_token_that_the_address_brought(fresh, bundle, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    done = []
    with page(bundle, extra={"candidate": CANDIDATE}, token_file=str(tmp_path / "token")) as (rig, view):
        rig.commands.update({name: lambda _, name=name: done.append(name) or {} for name in ("promote", "record")})
        fresh.open(view.url)
        fresh.wait_for(text("#actions") + ".includes('?token=TOKEN')")
        assert fresh.evaluate("document.querySelectorAll('#main button, #actions button').length") == 0
        fresh.open(view.url + "?token=" + TOKEN)
        fresh.wait_for("document.querySelectorAll('#candidate button').length === 1")
        assert TOKEN not in fresh.evaluate("location.href")
        assert TOKEN not in fresh.evaluate("document.cookie + document.documentElement.outerHTML")
        fresh.evaluate("window.confirm = () => true; document.querySelector('#candidate button').click()")
        fresh.evaluate("document.querySelector('#actions button').click()")
        fresh.wait_for(text("#status") + " === 'Running'")
        deadline = time.monotonic() + 60
        while len(done) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert sorted(done) == ["promote", "record"]
    assert fresh.complaints == []


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_every_screen_in_light_and_dark(fresh, bundle, width, scheme, tmp_path):
    with page(bundle, extra={"candidate": CANDIDATE, "drift": DRIFT}) as (_, view):
        fresh.size(width, 800, mobile=width < 700)
        fresh.scheme(scheme)
        fresh.open(view.url)
        fresh.wait_for("document.querySelectorAll('#results tr').length > 5")
        fresh.wait_for("document.getElementById('picture').naturalWidth")
        assert fresh.evaluate("document.documentElement.scrollWidth <= innerWidth")
        ground = fresh.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, ground[4:-1].split(","))) > 380) is (scheme == "light")
        (tmp_path / f"page-{width}-{scheme}.png").write_bytes(fresh.screenshot())
    assert fresh.complaints == []


def test_one_of_several_models_is_chosen(fresh, bundle):
    models = {"finder": {"state": "running"}, "reader": {"state": "failed: device lost"}}
    with page(bundle, extra={"models": models}, lanes=("finder", "reader")) as (_, view):
        fresh.open(view.url)
        fresh.wait_for("document.querySelectorAll('#lanes button').length === 2")
        fresh.wait_for("document.getElementById('picture').src.endsWith('stream/finder.mjpg')")
        assert "failed: device lost" in fresh.wait_for(text("#models"))
        fresh.evaluate("document.querySelectorAll('#lanes button')[1].click()")
        fresh.wait_for("document.getElementById('picture').src.endsWith('stream/reader.mjpg')")
        fresh.wait_for("document.querySelector('#lanes button[aria-current=true]').textContent === 'reader'")
        fresh.wait_for("document.getElementById('picture').naturalWidth > 0")
        fresh.wait_for("document.querySelectorAll('#results tr').length > 5")
    assert fresh.complaints == []


def test_a_server_that_goes_away_is_said(fresh, bundle):
    with page(bundle) as (_, view):
        fresh.open(view.url)
        fresh.wait_for(text("#status") + " === 'Running'")
    fresh.wait_for(text("#status") + " === 'No connection'")


def test_it_can_be_read_without_its_script(fresh, bundle):
    with page(bundle) as (_, view):
        fresh.command("Emulation.setScriptExecutionDisabled", value=True)
        try:
            fresh.open(view.url)
            deadline = time.monotonic() + 60
            while not view._app.streams:  # the picture's connection: the browser shows what noscript holds
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            fresh.command("Emulation.setScriptExecutionDisabled", value=False)
        fresh.wait_for("document.querySelector('noscript img.plain')?.naturalWidth > 0")
        assert "Charts and tables need JavaScript" in fresh.evaluate("document.body.innerText")
    assert fresh.complaints == []
