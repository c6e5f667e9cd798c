"""Opening a notebook changes nothing: no dot in its tab, no question whether to save."""

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
