"""Fixtures: one JupyterLab and one chromium for the whole run, a fresh page a test; the book."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock
from labdriver import CHROMIUM, chromium, jupyterlab, new_page

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def lab(tmp_path_factory, browser):
    folder = tmp_path_factory.mktemp("lab")
    with jupyterlab(folder) as url:
        yield url, folder / "root"


@pytest.fixture(scope="session")
def browser():
    if not CHROMIUM:
        message = "no chromium here: install it (Debian: apt-get install chromium) or set CHROMIUM to its path"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with chromium() as started:
        print(f"\nchromium {started.version}")
        yield started


@pytest.fixture
def page(browser):
    with new_page(browser) as opened:
        yield opened
        assert opened.outside == [], f"the page asked for something outside: {opened.outside}"
        assert opened.problems == [], f"errors in the page: {opened.problems}"


@pytest.fixture(scope="session")
def book_folder(tmp_path_factory) -> Path:
    """The built book; the first worker builds it."""
    pytest.importorskip("myst_nb")
    base = tmp_path_factory.getbasetemp()  # a worker has its own, in the run's
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "the-book"
    with FileLock(f"{shared}.lock"):
        if not (shared / "html/index.html").is_file():
            command = [sys.executable, ROOT / "book/build.py", "--out", shared]
            built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            said = built.stdout + built.stderr
            assert built.returncode == 0 and "WARNING" not in said, said
    return shared / "html"


@pytest.fixture(scope="session")
def book(book_folder):
    """The built book's address on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=book_folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
