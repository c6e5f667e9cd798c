"""Opening a notebook changes nothing: no dot in its tab, no question whether to save. `make lab` opens
on a page that leads on."""

import shutil
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
pytestmark = [pytest.mark.browser, pytest.mark.slow]

OPENED = """() => { const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.context?.isReady && panel.sessionContext?.isReady && panel.sessionContext.session?.kernel?.status === 'idle'; }"""


def test_a_notebook_that_is_opened_is_not_changed(lab, page):
    url, root = lab
    shutil.copy(NOTEBOOKS[1], root)
    page.goto(f"{url}/lab/tree/{NOTEBOOKS[1].name}?reset")
    page.wait_for_function(OPENED, timeout=60_000)
    page.wait_for_timeout(3000)  # JupyterLab writes the kernel's name and language a little later
    assert not page.evaluate("() => window.jupyterapp.shell.currentWidget.context.model.dirty")


def test_the_welcome_page_is_a_page_and_leads_on(lab, page):
    url, root = lab
    for name in ("welcome.md", "map.svg", NOTEBOOKS[0].name):
        shutil.copy(NOTEBOOKS[0].parent / name, root)
    page.goto(f"{url}/lab/tree/welcome.md?reset")
    shown = page.locator(".jp-MarkdownViewer")
    shown.get_by_role("heading", name="Welcome").wait_for(timeout=60_000)
    page.wait_for_function("() => document.querySelector('.jp-MarkdownViewer img')?.naturalWidth")
    shown.get_by_role("link", name="00 Pictures first").first.click()
    page.wait_for_function(OPENED, timeout=60_000)
    assert page.url.endswith(f"/lab/tree/{NOTEBOOKS[0].name}")
