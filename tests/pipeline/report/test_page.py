"""The page in a real browser: quiet console, no request, images on hovering, untrusted names inert, no sideways scrolling."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import websocket
from factories import QUIET, make_dataset, train_both
from PIL import Image

from pipeline.commands.report import report

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium on this machine; Debian: apt-get install chromium"
)
EVIL = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "</script><script>alert(4)</script>",
    "{{ 7*7 }}@x $y$",
)
HOVERED = """(() => {
    const found = [];
    const walk = node => {
        for (const one of node.querySelectorAll('*')) {
            if (one.matches('.hover')) {
                const image = one.querySelector('img');
                found.push([image.naturalWidth, image.src.slice(0, 16), one.textContent, one.querySelectorAll('script, svg, img').length]);
            }
            if (one.shadowRoot) walk(one.shadowRoot);
        }
    };
    walk(document);
    return found;
})()"""


class Page:
    """One tab, by the DevTools protocol."""

    def __init__(self, address: str, port: int):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT"
        )  # our own browser
        with urllib.request.urlopen(request, timeout=10) as answer:
            target = json.load(answer)["webSocketDebuggerUrl"]
        self.socket = websocket.create_connection(target, timeout=20, suppress_origin=True)
        self.events: list[dict[str, Any]] = []
        self.count = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)
        for _ in range(100):
            time.sleep(0.1)
            if self.evaluate(
                "document.readyState === 'complete' && Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle"
            ):
                break

    def call(self, method: str, **parameters: Any) -> Any:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def evaluate(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get(
            "value"
        )

    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions, errors and warnings on the console, dialogs."""
        bad = []
        for event in self.events:
            method, what = event.get("method"), event.get("params", {})
            level = what["entry"]["level"] if method == "Log.entryAdded" else ""
            level = what["type"] if method == "Runtime.consoleAPICalled" else level
            if method in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening") or level in (
                "error",
                "warning",
                "assert",
            ):
                bad.append(event)
        return bad

    def requests(self) -> set[str]:
        found = (
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        )
        return {url for url in found if not url.startswith(("data:", "blob:"))}


@pytest.fixture(scope="module")
def port(tmp_path_factory) -> Iterator[int]:
    profile = tmp_path_factory.mktemp("profile")
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    command = [
        str(BROWSER),
        *flags.split(),
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told = profile / "DevToolsActivePort"
        for _ in range(200):
            if told.exists() and "\n" in told.read_text():
                break
            time.sleep(0.1)
        yield int(told.read_text().split()[0])
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def browse(port) -> Iterator[Callable[[Path], Page]]:
    """Opens a file in a tab of its own."""
    pages: list[Page] = []

    def opened(path: Path) -> Page:
        pages.append(Page(path.as_uri(), port))
        return pages[-1]

    yield opened
    for page in pages:
        page.socket.close()


@pytest.fixture(scope="module")
def report_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evil")
    data = make_dataset(EVIL, train=12, test=10, noise=110, size=16, channels=3)
    report(*train_both(data, folder), out=folder, context=QUIET, source=data)
    return folder / "report.html"


def test_quiet_and_offline(report_file, browse):
    page = browse(report_file)
    assert page.evaluate("Bokeh.documents[0].is_idle") is True
    assert page.complaints() == []
    assert page.requests() == {report_file.as_uri()}


def test_names_are_inert(report_file, browse):
    page = browse(report_file)
    assert page.evaluate("document.querySelectorAll('script').length") == 2
    assert page.evaluate("document.querySelectorAll('[onerror], [onload]').length") == 0
    text = page.evaluate("document.body.innerText")
    assert all(name in text for name in EVIL)
    assert not [
        event for event in page.events if event.get("method") == "Page.javascriptDialogOpening"
    ]


def test_hovering_shows_the_image(report_file, browse):
    """Moving over a point opens a tooltip with a decoded image and the names as text."""
    page = browse(report_file)
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=1280,
        height=900,
        deviceScaleFactor=1,
        mobile=False,
    )
    page.evaluate("document.getElementById('map').scrollIntoView({block: 'center'})")
    time.sleep(0.5)
    where = page.evaluate("""(() => {
        const view = Object.values(Bokeh.index)[0] ?? Bokeh.index.roots[0];
        const plot = view.model, data = plot.renderers[0].data_source.data;
        const box = view.canvas_view.el.getBoundingClientRect();
        return [box.x + view.frame.x_scale.compute(data.x[0]), box.y + view.frame.y_scale.compute(data.y[0])];
    })()""")
    for step in range(4):
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=where[0] + 3 - step, y=where[1])
        time.sleep(0.2)
    shown = page.evaluate(HOVERED)
    assert shown, "no tooltip"
    width, start, text, elements = shown[0]
    assert width == 16 and start == "data:image/webp;"
    assert any(f"is {name}" in text for name in EVIL)
    assert elements == 1  # the image alone: no name became an element
    assert page.complaints() == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_the_screen_and_has_something_on_it(report_file, browse, width, scheme):
    page = browse(report_file)
    page.call(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=width < 500,
    )
    time.sleep(0.5)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    content = base64.b64decode(page.call("Page.captureScreenshot")["data"])
    pixels = np.asarray(Image.open(BytesIO(content)).convert("L"))
    assert (pixels.mean() > 128) == (scheme == "light")
    assert pixels.std() > 10


def test_it_prints(report_file, browse):
    page = browse(report_file)
    assert base64.b64decode(page.call("Page.printToPDF")["data"]).startswith(b"%PDF")
    assert page.complaints() == []


@pytest.mark.slow
def test_ten_thousand_test_images_make_a_page_below_10_mb_within_a_minute(tmp_path, browse):
    data = make_dataset(tuple(map(str, range(10))), train=30, test=1000, noise=60, size=28)
    paths = train_both(data, tmp_path)
    begun = time.monotonic()
    report(*paths, out=tmp_path, context=QUIET, source=data)
    assert time.monotonic() - begun < 60
    assert (tmp_path / "report.html").stat().st_size < 10_000_000
    page = browse(tmp_path / "report.html")
    assert page.complaints() == []
