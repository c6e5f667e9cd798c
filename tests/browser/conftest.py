"""Fixtures: one JupyterLab and one chromium for the whole run, a fresh page a test."""

import os

import pytest
from labdriver import CHROMIUM, chromium, jupyterlab, new_page


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
