"""Start JupyterLab and chromium, open notebooks, move widgets: what the browser tests and benchmarks/widget_latency.py share."""

import base64
import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import nbformat

CHROMIUM = (
    os.environ.get("CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--force-color-profile=srgb",
    "--disable-background-networking",
    "--no-first-run",
]
SETTINGS = {  # no news pop-up; every cell in the page, not only the visible ones
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
# As the Makefile writes it: markdown is shown as a page.
MAKEFILE = (Path(__file__).resolve().parents[2] / "Makefile").read_text(encoding="utf-8")
OVERRIDES = re.search(r"echo '(\{.*\})' \\\n.*default_setting_overrides.json", MAKEFILE)[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def jupyterlab(folder: Path):
    """Start JupyterLab on folder/root; yields its address. Kernels are shut down before the server, or they would outlive it."""
    root, config = folder / "root", folder / "config"
    root.mkdir(exist_ok=True)
    for plugin, value in SETTINGS.items():
        file = config / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    overrides = config / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(exist_ok=True)
    overrides.write_text(OVERRIDES)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = dict(
        os.environ,
        JUPYTER_CONFIG_DIR=str(config),
        JUPYTERLAB_SETTINGS_DIR=str(config / "settings"),
        IPYTHONDIR=str(folder / "ipython"),
        JUPYTERLAB_WORKSPACES_DIR=str(config / "workspaces"),
        JUPYTER_RUNTIME_DIR=str(folder / "runtime"),
    )
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--ServerApp.root_dir={root}",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        "--ServerApp.disable_check_xsrf=True",
        "--expose-app-in-browser",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=root, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_until_up(server, url, folder / "lab.log")
            yield url
            for kernel in json.load(urllib.request.urlopen(url + "/api/kernels", timeout=10)):
                urllib.request.urlopen(
                    urllib.request.Request(f"{url}/api/kernels/{kernel['id']}", method="DELETE"),
                    timeout=20,
                )
        finally:
            server.terminate()
            server.wait(20)


def wait_until_up(server, url: str, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab stopped:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url + "/api/status", timeout=1)
            return
        time.sleep(0.1)
    raise RuntimeError(
        f"JupyterLab did not answer within {seconds:g} s:\n{log.read_text()[-3000:]}"
    )


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextlib.contextmanager
def served(folder: Path):
    """A folder as a web site of this machine; yields its address."""
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextlib.contextmanager
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def new_page(browser, **options):
    """A page that may reach this machine only; `page.outside` and `page.problems` list what it should not have done."""
    context = browser.new_context(viewport={"width": 1250, "height": 1000}, **options)
    outside, problems = [], []

    def gate(route):
        if "127.0.0.1" in route.request.url:
            route.continue_()
        else:
            outside.append(route.request.url)
            route.abort()

    context.route(lambda url: url.startswith("http"), gate)
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.outside, page.problems = outside, problems
    yield page
    context.close()


def behaved(page) -> None:
    """It asked for nothing outside of this machine, and no script of it failed."""
    assert page.outside == [], f"the page asked for something outside: {page.outside}"
    assert page.problems == [], f"errors in the page: {page.problems}"


def widget(page, kind: str, nth: int = 0):
    """The nth widget of a kind, scrolled into view."""
    root = page.locator(f'.ddpm-widget[data-kind="{kind}"]').nth(nth)
    root.scroll_into_view_if_needed()
    return root


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of code cells, not executed."""
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={
                "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
            },
        ),
        path,
    )
    return path


def open_and_run(page, url: str, name: str, seconds: float = 120) -> None:
    """Open a notebook in JupyterLab and run all cells; AssertionError with the message of every cell that failed."""
    page.goto(f"{url}/lab/tree/{name}?reset")
    page.wait_for_function(
        """() => { const panel = window.jupyterapp?.shell.currentWidget;
        return panel?.context?.isReady && panel.sessionContext?.isReady && panel.sessionContext.session?.kernel?.status === 'idle'; }""",
        timeout=seconds * 1000,
    )
    page.set_default_timeout(seconds * 1000)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("""() => { const panel = window.jupyterapp.shell.currentWidget;
        return panel.sessionContext.session.kernel.status === 'idle'
            && [...panel.content.model.cells].every(cell => cell.type !== 'code' || cell.executionState !== 'running'); }""")
    page.set_default_timeout(30_000)
    errors = page.evaluate("""() => [...window.jupyterapp.shell.currentWidget.content.model.cells].filter(cell => cell.type === 'code')
        .flatMap(cell => cell.toJSON().outputs.filter(o => o.output_type === 'error' && !(cell.getMetadata('tags') || []).includes('raises-exception'))
            .map(o => `${o.ename}: ${o.evalue}`))""")
    assert errors == [], f"cells of {name} failed: {errors}"


PIXELS = """root => { const p = root.querySelector('.ddpm-picture, .ddpm-pixels, .ddpm-points'), c = document.createElement('canvas');
    c.width = p.naturalWidth || p.width; c.height = p.naturalHeight || p.height; c.getContext('2d').drawImage(p, 0, 0);
    let h = 2166136261; for (const v of c.getContext('2d').getImageData(0, 0, c.width, c.height).data) h = Math.imul(h ^ v, 16777619);
    return `${c.width}x${c.height}:${h >>> 0}`; }"""


def picture(root):
    """What the widget shows now, as something to compare: a hash of the pixels, or a screenshot of the plane."""
    plane = root.locator(".ddpm-plane")
    return plane.screenshot() if plane.count() else root.evaluate(PIXELS)


def drawn(root) -> int:
    return int(root.get_attribute("data-drawn"))


def after(root, action, seconds: float = 30):
    """Do something to a widget, wait until it has drawn a new picture, and return that; AssertionError if it reports an error instead."""
    count, alert = drawn(root), root.locator(".ddpm-error")
    failed_before = alert.is_visible()
    action()
    root.page.wait_for_function(
        """([root, count, failedBefore]) => !root.hasAttribute('aria-busy')
        && (+root.dataset.drawn > count || !failedBefore && !root.querySelector('.ddpm-error').hidden)""",
        arg=[root.element_handle(), count, failed_before],
        timeout=seconds * 1000,
    )
    assert failed_before or not alert.is_visible(), f"the widget reports: {alert.inner_text()}"
    return picture(root)


LATENCY = """async ([root, name, moves]) => {
    const input = root.querySelector(`input[type=range][data-name="${name}"]`), times = [];
    const next = () => new Promise(done => { const seen = new MutationObserver(() => { seen.disconnect(); requestAnimationFrame(() => done()); });
        seen.observe(root, { attributes: true, attributeFilter: ['data-drawn'] }); });
    for (let i = 0; i < moves; i++) {
        const wait = next(), start = performance.now();
        input.value = Math.round((0.1 + 0.8 * ((i * 7) % moves) / moves) * input.max);
        input.dispatchEvent(new Event('input', { bubbles: true }));
        await wait;
        times.push(performance.now() - start);
        await new Promise(done => setTimeout(done, 60));
    }
    return times; }"""


def latencies(root, name: str, moves: int = 20) -> list[float]:
    """Milliseconds from the slider's event to the frame that shows the new picture, one a move."""
    return root.page.evaluate(LATENCY, [root.element_handle(), name, moves])


def place(root, column: float, row: float) -> tuple[float, float]:
    """Where a pixel of a pad of 32 x 32 is on the screen."""
    box = root.locator(".ddpm-pad").bounding_box()
    return box["x"] + column / 32 * box["width"], box["y"] + row / 32 * box["height"]


def stroke(page, root, *points) -> None:
    """Draw on a pad with the mouse, from one (column, row) to the next."""
    page.mouse.move(*place(root, *points[0]))
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*place(root, *point), steps=4)
    page.mouse.up()
    page.mouse.move(0, 0)


TIMED = """root => {
    root.addEventListener("pointerup", () => { root.up = performance.now(); }, true);
    new MutationObserver(() => requestAnimationFrame(() => { root.took = performance.now() - root.up; }))
        .observe(root, { attributes: true, attributeFilter: ["data-drawn"] }); }"""


def pen_times(root, strokes: int) -> list[float]:
    """Milliseconds from lifting the pen to the frame that shows the pad's new picture, one a stroke."""
    root.evaluate(TIMED)
    times = []
    for k in range(strokes):
        column = 8 + 16 * k / strokes
        after(root, lambda: stroke(root.page, root, (column, 8), (column, 22)))
        root.page.wait_for_timeout(100)
        times.append(round(root.evaluate("root => root.took"), 1))
    return times


def film_rate(root, seconds: float = 2) -> float:
    """Press play and count the frames shown in a second."""
    root.locator(".ddpm-play").click()
    root.page.wait_for_timeout(200)
    rate = root.page.evaluate(
        """([root, seconds]) => new Promise(done => { const first = +root.dataset.drawn, start = performance.now();
        setTimeout(() => done((+root.dataset.drawn - first) * 1000 / (performance.now() - start)), seconds * 1000); })""",
        [root.element_handle(), seconds],
    )
    root.locator(".ddpm-play").click()
    return rate


STATIC = """async ([code, state, buffers]) => {
    const values = { ...state }, listeners = {};
    for (const [name, data] of Object.entries(buffers))
        values[name] = new DataView(Uint8Array.from(atob(data), c => c.charCodeAt(0)).buffer);
    const model = { get: name => values[name], save_changes() {}, off() {}, on: (event, f) => { (listeners[event] ||= []).push(f); },
        set(name, value) { values[name] = value; (listeners['change:' + name] || []).forEach(f => f()); } };
    const module = await import(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })));
    module.default.render({ model, el: document.body }); }"""


def standing(page, widget, names: str):
    """The widget's page code on a stand-in for the saved state, without server and kernel; its root."""
    state = {name: getattr(widget, name) for name in f"caption error note alt {names}".split()}
    buffers = {
        name: base64.b64encode(state.pop(name)).decode()
        for name, value in list(state.items())
        if isinstance(value, bytes)
    }
    page.goto("about:blank")
    page.evaluate(STATIC, [widget._esm, state, buffers])
    return page.locator(".ddpm-widget")
