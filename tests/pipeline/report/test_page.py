"""The page in a real browser: console, network, hovering, untrusted names and layout."""

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
UNTRUSTED_NAMES = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    '"><svg onload=alert(3)>',
    "</script><script>alert(4)</script>",
    "{{ 7*7 }}@x $y$",
)
UNSEEN_NAMES = ("<b onclick=alert(5)>unseen</b>", "unseen-" + 30 * "long", "'unseen'")
LOADED = """document.readyState === 'complete'
    && Bokeh.documents.length > 0 && Bokeh.documents[0].is_idle"""
FIRST_POINT = """(() => {
    const view = Object.values(Bokeh.index)[0] ?? Bokeh.index.roots[0];
    const data = view.model.renderers[0].data_source.data;
    const box = view.canvas_view.el.getBoundingClientRect();
    const scales = [view.frame.x_scale, view.frame.y_scale];
    return [box.x + scales[0].compute(data.x[0]), box.y + scales[1].compute(data.y[0])];
})()"""
TOOLTIPS = """(() => {
    const tooltips = [];
    const walk = root => {
        for (const element of root.querySelectorAll('*')) {
            if (element.matches('.hover')) {
                const image = element.querySelector('img');
                const embedded = element.querySelectorAll('script, svg, img').length;
                const source = image.src.slice(0, 16);
                const width = [image.naturalWidth, image.width];
                tooltips.push([width, source, element.textContent, embedded]);
            }
            if (element.shadowRoot) walk(element.shadowRoot);
        }
    };
    walk(document);
    return tooltips;
})()"""


class Page:
    """One browser tab, driven by the DevTools protocol."""

    def __init__(self, address: str, port: int):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT"
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            target = json.load(response)["webSocketDebuggerUrl"]
        self.socket = websocket.create_connection(target, timeout=20, suppress_origin=True)
        self.events: list[dict[str, Any]] = []
        self.count = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)
        for _ in range(100):
            time.sleep(0.1)
            if self.evaluate(LOADED):
                break

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method. Events that arrive before its response are kept."""
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while (response := json.loads(self.socket.recv())).get("id") != self.count:
            self.events.append(response)
        assert "error" not in response, response
        return response["result"]

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        response = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return response["result"].get("value")

    def resize(self, width: int) -> None:
        """Set the size of the viewport; narrow ones belong to a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    def problems(self) -> list[dict[str, Any]]:
        """Return exceptions, dialogs, and errors and warnings on the console."""
        problems = []
        for event in self.events:
            method, parameters = event.get("method"), event.get("params", {})
            level = ""
            if method == "Log.entryAdded":
                level = parameters["entry"]["level"]
            elif method == "Runtime.consoleAPICalled":
                level = parameters["type"]
            failed = method in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening")
            if failed or level in ("error", "warning", "assert"):
                problems.append(event)
        return problems

    def requests(self) -> set[str]:
        """Return the requested addresses, without data: and blob: URLs."""
        addresses = set()
        for event in self.events:
            if event.get("method") == "Network.requestWillBeSent":
                addresses.add(event["params"]["request"]["url"])
        return {address for address in addresses if not address.startswith(("data:", "blob:"))}


@pytest.fixture(scope="module")
def port(tmp_path_factory) -> Iterator[int]:
    """Start a browser and return its DevTools port."""
    profile = tmp_path_factory.mktemp("profile")
    command = [
        str(BROWSER),
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = profile / "DevToolsActivePort"
        for _ in range(200):
            if port_file.exists() and "\n" in port_file.read_text():
                break
            time.sleep(0.1)
        yield int(port_file.read_text().split()[0])
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def browse(port) -> Iterator[Callable[[Path], Page]]:
    """Return a function that opens a file in a new tab."""
    pages: list[Page] = []

    def open_page(path: Path) -> Page:
        pages.append(Page(path.as_uri(), port))
        return pages[-1]

    yield open_page
    for page in pages:
        page.socket.close()


@pytest.fixture(scope="module")
def report_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untrusted")
    names = UNTRUSTED_NAMES + UNSEEN_NAMES
    options = {"unseen": UNSEEN_NAMES, "noise": 110, "size": 16, "channels": 3}
    data = make_dataset(names, train=12, test=10, **options)
    report(*train_both(data, folder), out=folder, context=QUIET, source=data)
    return folder / "report.html"


def test_no_problem_on_the_console_and_no_request(report_file, browse):
    page = browse(report_file)
    assert page.evaluate("Bokeh.documents[0].is_idle") is True
    assert page.problems() == []
    assert page.requests() == {report_file.as_uri()}


def test_untrusted_names_are_shown_as_text(report_file, browse):
    page = browse(report_file)
    assert page.evaluate("document.querySelectorAll('script').length") == 3
    assert page.evaluate("document.querySelectorAll('[onerror], [onload], [onclick]').length") == 0
    text = page.evaluate("document.body.innerText")
    assert all(name in text for name in UNTRUSTED_NAMES + UNSEEN_NAMES)
    assert not [
        event for event in page.events if event.get("method") == "Page.javascriptDialogOpening"
    ]


def test_hovering_shows_the_image_and_its_classes(report_file, browse):
    page = browse(report_file)
    page.resize(1280)
    page.evaluate("document.getElementById('map').scrollIntoView({block: 'center'})")
    time.sleep(0.5)
    x, y = page.evaluate(FIRST_POINT)
    for step in range(4):
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + 3 - step, y=y)
        time.sleep(0.2)
    tooltips = page.evaluate(TOOLTIPS)
    assert tooltips, "no tooltip"
    width, source, text, embedded = tooltips[0]
    assert width == [16, 112]  # a small image is enlarged
    assert source == "data:image/webp;"
    assert any(f"true class: {name}" in text for name in UNTRUSTED_NAMES)
    assert embedded == 1  # only the image: no name became an element
    assert page.problems() == []


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_screen(report_file, browse, width, scheme):
    page = browse(report_file)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.call("Emulation.setEmulatedMedia", features=features)
    page.resize(width)
    time.sleep(0.5)
    page.evaluate("document.querySelectorAll('details').forEach(element => element.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    content = base64.b64decode(page.call("Page.captureScreenshot")["data"])
    pixels = np.asarray(Image.open(BytesIO(content)).convert("L"))
    assert (pixels.mean() > 128) == (scheme == "light")
    assert pixels.std() > 10  # the page is not empty


WIDEST_VALUES = """(() => {
    const cells = document.querySelectorAll('table.compared tbody tr')[1].cells;
    cells[2].innerHTML = '\u221244.1<div class="interval">\u221258.5 to \u221226.8</div>';
    cells[3].textContent = '< 0.001';
})()"""
MAIN_CELLS = """[...document.querySelectorAll('table.compared tbody tr')].slice(0, 4)
    .flatMap(row => [...row.cells].slice(0, 4).map(cell => cell.getBoundingClientRect().right))"""


@pytest.mark.parametrize("width", [390, 1280])
def test_a_comparison_fits_the_screen_with_its_main_columns(comparison_page, browse, width):
    page = browse(comparison_page)
    page.resize(width)
    page.evaluate(WIDEST_VALUES)
    time.sleep(0.5)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    heads = "[...document.querySelectorAll('table.compared th')].map(cell => cell.textContent)"
    assert page.evaluate(heads)[:4] == [
        *("network", "classification accuracy", "difference to the best", "adjusted p")
    ]
    edges = page.evaluate(MAIN_CELLS)
    assert len(edges) == 16 and max(edges) <= width
    assert page.problems() == []


def test_a_footnote_opens_its_definition(report_file, browse):
    page = browse(report_file)
    assert page.evaluate("document.querySelector('#definition-1').closest('details').open") is False
    page.evaluate("document.querySelector('a[href=\"#definition-1\"]').click()")
    time.sleep(0.5)
    assert page.evaluate("document.querySelector('#definition-1').closest('details').open") is True


SORT = """(() => {
    const table = document.querySelector('table.classes');
    const header = table.tHead.rows[0].cells[%d];
    header.querySelector('button').click();
    const cells = [...table.tBodies[0].rows].map(row => row.cells[%d]);
    return [header.getAttribute('aria-sort'), table.querySelectorAll('[aria-sort]').length,
        cells.map(cell => cell.dataset.value ?? cell.textContent)];
})()"""


def test_the_table_of_classes_is_sorted_by_its_headers(report_file, browse):
    page = browse(report_file)
    for order, reverse in (("ascending", False), ("descending", True)):
        sort, sorted_columns, values = page.evaluate(SORT % (2, 2))  # precision
        numbers = [float(value) for value in values if value != "\u2013"]
        assert (sort, sorted_columns) == (order, 1)
        assert numbers == sorted(numbers, reverse=reverse) and len(numbers) > 1
    sort, _, names = page.evaluate(SORT % (0, 0))
    assert sort == "ascending" and sorted(names) == sorted(UNTRUSTED_NAMES)
    assert page.problems() == []


def test_the_page_can_be_printed(report_file, browse):
    page = browse(report_file)
    assert base64.b64decode(page.call("Page.printToPDF")["data"]).startswith(b"%PDF")
    assert page.problems() == []


@pytest.mark.slow
def test_ten_thousand_test_images_take_a_minute_and_10_mb(tmp_path, browse):
    data = make_dataset(tuple(map(str, range(10))), train=30, test=1000, noise=60, size=28)
    paths = train_both(data, tmp_path)
    start = time.process_time()  # does not depend on other processes
    report(*paths, out=tmp_path, context=QUIET, source=data)
    assert time.process_time() - start < 60
    assert (tmp_path / "report.html").stat().st_size < 10_000_000
    page = browse(tmp_path / "report.html")
    assert page.problems() == []
