"""Every notebook of the course, run once: all cells, then every control of every widget moved and its picture seen to change.

In a real JupyterLab where there is a chromium, by nbclient otherwise, which moves no widget. The cells tagged nbval-check-output
must print what is stored; seconds and memory are reported (tests/conftest.py). A subset: make test-notebooks ARGS=02
"""

import json
import shutil
import time
import urllib.request
from pathlib import Path

import nbformat
import psutil
import pytest
from labdriver import CHROMIUM, after, behaved, new_page, open_and_run, picture
from run_notebooks import LIMIT_MB, differences, execute, peak_mb

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

# ipywidgets outside our frame: no alt text, not tested
FOREIGN = ", ".join(
    f".widget-{kind}" for kind in ("slider", "dropdown", "checkbox", "toggle-button", "select")
)
CELLS = (
    """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].map(c => c.toJSON())"""
)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=[n.stem for n in NOTEBOOKS])
def test_notebook(notebook, request, tmp_path, record_property):
    stored = nbformat.read(notebook, as_version=4)
    if CHROMIUM:
        lab, browser = request.getfixturevalue("lab"), request.getfixturevalue("browser")
        with new_page(browser) as page:
            try:
                cells, seconds, mb = run_in_lab(notebook, lab, page)
                problems = differences(stored.cells, cells)
                move_widgets(page, notebook.name)
            finally:
                close(lab, page)
            behaved(page)
    else:
        ran = nbformat.read(notebook, as_version=4)
        seconds, mb, _ = execute(ran, tmp_path)
        problems = differences(stored.cells, ran.cells)
    record_property("notebook", [notebook.name, seconds, mb])
    assert not problems, "\n".join(problems)
    assert mb < LIMIT_MB, f"{notebook.name} took {mb:.0f} MB, the limit is {LIMIT_MB}"


def run_in_lab(notebook, lab, page) -> tuple[list, float, float]:
    """(the cells with their new outputs, seconds, peak MB of the kernel)"""
    url, root = lab
    shutil.copy(notebook, root)
    started = time.perf_counter()
    open_and_run(page, url, notebook.name, seconds=600)
    seconds = time.perf_counter() - started
    (kernel,) = kernels(url)
    (process,) = (
        p for p in psutil.process_iter(["cmdline"]) if kernel in " ".join(p.info["cmdline"] or [])
    )
    return page.evaluate(CELLS), seconds, peak_mb(process.pid)


def kernels(url) -> list[str]:
    return [k["id"] for k in json.load(urllib.request.urlopen(url + "/api/kernels", timeout=10))]


def close(lab, page) -> None:
    """Leave the page, then end its kernel: the next notebook needs the memory."""
    page.goto("about:blank")
    for kernel in kernels(lab[0]):
        end = urllib.request.Request(f"{lab[0]}/api/kernels/{kernel}", method="DELETE")
        urllib.request.urlopen(end, timeout=20)


def move_widgets(page, name: str) -> None:
    assert page.locator(FOREIGN).count() == 0, (
        "a plain ipywidgets control: use the widgets of ddpm_edu.show"
    )
    widgets = page.locator(".ddpm-widget")
    widgets.first.wait_for()  # every notebook has something to move
    for i in range(widgets.count()):
        root = widgets.nth(i)
        root.scroll_into_view_if_needed()
        kind = root.get_attribute("data-kind")
        where = f"{name}, widget {i + 1} ({kind})"
        MOVES[kind](page, root, where)
        alert = root.get_by_role("alert")
        assert alert.count() == 0, f"{where}: {alert.inner_text()}"
        caption = root.locator("figcaption").first  # an answer may bring a second
        assert len(caption.inner_text()) > 10


def move_panel(page, root, where: str) -> None:
    """Menus, texts and switches first, from the author's starting position; each control goes back to where it was."""
    controls = root.locator(".ddpm-controls")
    for menu in controls.locator("select").all():
        shown, at = picture(root), menu.evaluate("menu => menu.selectedIndex")
        for k in range(menu.locator("option").count()):
            if k != at:
                assert after(root, lambda: menu.select_option(index=k)) != shown, (
                    f"{where}: option {k} of the menu changes nothing"
                )
        after(root, lambda: menu.select_option(index=at))
    for field in controls.locator("input[type=text]").all():
        shown, at = picture(root), field.input_value()
        other = field.get_attribute("placeholder") or f"{at} !"  # the author's second text
        field.fill(other)
        assert after(root, lambda: field.press("Enter"), 120) != shown, (
            f"{where}: the text {field.get_attribute('data-name')} changes nothing when it becomes {other!r}"
        )
        field.fill(at)
        after(root, lambda: field.press("Enter"), 120)
    for switch in controls.locator("input[type=checkbox]").all():
        shown = picture(root)
        assert after(root, switch.click) != shown, (
            f"{where}: the switch {switch.get_attribute('data-name')} changes nothing"
        )
        after(root, switch.click)
    for slider in controls.locator("input[type=range]").all():
        if slider.is_disabled():
            wake(root, slider, where)
        name, at = slider.get_attribute("data-name"), slider.input_value()
        shown = picture(root)
        slider.focus()
        ends = [
            after(root, lambda: page.keyboard.press(key))
            for key in (("End", "Home") if at != slider.get_attribute("max") else ("Home", "End"))
        ]
        assert len({shown, *ends}) > 1 and ends[0] != ends[1], (
            f"{where}: the slider {name} changes nothing by keyboard"
        )
        box = slider.bounding_box()
        page.mouse.move(box["x"] + 8, box["y"] + box["height"] / 2)
        clicked = after(
            root,
            lambda: page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + box["height"] / 2),
        )
        assert clicked != ends[1], f"{where}: the slider {name} changes nothing by mouse"
        if slider.input_value() != at:
            after(
                root,
                lambda: slider.evaluate(
                    "(node, at) => { node.value = at; node.dispatchEvent(new Event('input')); }", at
                ),
            )


def wake(root, slider, where: str) -> None:
    """Choose a menu option at which a switched-off slider plays a part."""
    for menu in root.locator("select").all():
        for k in range(menu.locator("option").count()):
            if k != menu.evaluate("menu => menu.selectedIndex"):
                after(root, lambda: menu.select_option(index=k))
            if slider.is_enabled():
                return
    raise AssertionError(f"{where}: {slider.get_attribute('data-name')} is off at every option")


def move_film(page, root, where: str) -> None:
    slider = root.locator("input[type=range]")
    slider.focus()
    first = picture(root)
    if slider.input_value() == "0":
        other = after(root, lambda: page.keyboard.press("End"))
    else:
        other = after(root, lambda: page.keyboard.press("Home"))
    assert other != first, f"{where}: first and last frame are the same"
    if slider.input_value() != "0":
        after(root, lambda: page.keyboard.press("Home"))
    start = picture(root)
    root.locator(".ddpm-play").click()
    page.wait_for_function("root => +root.dataset.index > 0", arg=root.element_handle())
    assert picture(root) != start, f"{where}: playing shows nothing new"
    if "Pause" in root.locator(".ddpm-play").inner_text():
        root.locator(".ddpm-play").click()


def move_drag_point(page, root, where: str) -> None:
    lines = lambda: root.locator(".ddpm-path").evaluate_all(
        "nodes => nodes.map(n => n.getAttribute('d'))"
    )
    dot, plane = root.locator(".ddpm-dot"), root.locator(".ddpm-plane")
    before, shown = lines(), picture(root)
    assert before, f"{where}: no path to see"
    dot.focus()
    assert (
        after(root, lambda: page.keyboard.press("Shift+ArrowLeft")) != shown and lines() != before
    ), f"{where}: the arrow keys change no path"
    before, at, box = lines(), dot.bounding_box(), plane.bounding_box()
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    page.mouse.down()
    after(
        root,
        lambda: page.mouse.move(
            box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"], steps=5
        ),
    )
    page.mouse.up()
    # Its first answers may be to the first few pixels of the way.
    waited = time.monotonic() + 30
    while lines() == before and time.monotonic() < waited:
        page.wait_for_timeout(50)
    assert lines() != before, f"{where}: dragging changes no path"
    for name in root.locator("input[type=checkbox]").all():
        shown = picture(root)
        after(root, name.click)
        after(root, name.click)
        assert len(lines()) == len(before)


def move_predict(page, root, where: str) -> None:
    assert root.get_attribute("data-done") == "false", f"{where}: the answer shows before a click"
    for row in root.get_by_role("group").all():
        row.locator("button").first.click()
    assert root.get_attribute("data-done") == "true", f"{where}: clicks bring no answer"
    assert len(root.locator(".ddpm-verdict").inner_text()) > 10


def move_unet(page, root, where: str) -> None:
    words = lambda: root.locator(".ddpm-legend").inner_text()
    menu, plane = root.locator("select"), root.locator(".ddpm-unet")
    for k in range(menu.locator("option").count()):
        if k != menu.evaluate("menu => menu.selectedIndex"):
            shown = picture(root)
            assert after(root, lambda: menu.select_option(index=k)) != shown, (
                f"{where}: option {k} changes nothing"
            )
    plane.focus()
    after(root, lambda: page.keyboard.press("ArrowRight"))
    read, shown = words(), picture(root)
    last = plane.locator("g").last
    assert after(root, lambda: last.locator("path").last.hover()) != shown, (
        f"{where}: pointing at a block changes nothing"
    )
    assert words() != read and "parameters" in words()


def drag(page, box, *shares) -> None:
    """Press the mouse at the first place, move it over the others, let it go."""
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in shares]
    page.mouse.move(*places[0])
    page.mouse.down()
    for at in places[1:]:
        page.mouse.move(*at, steps=5)
    page.mouse.up()


def move_pad(page, root, where: str) -> None:
    """A stroke in each of two paints: at least one is none that is there already."""
    seen = [picture(root)]
    box = root.locator(".ddpm-pad").bounding_box()
    for paint, row in (-1, 0.4), (-2, 0.6):
        root.get_by_role("group", name="paints").locator("button").nth(paint).click()
        seen.append(after(root, lambda: drag(page, box, (0.2, row), (0.8, row + 0.1)), 120))
    assert len(set(seen)) > 1, f"{where}: drawing changes nothing"
    root.get_by_role("button", name="Undo").click()
    seen.append(after(root, lambda: root.get_by_role("button", name="Start again").click(), 120))
    move_panel(page, root, where)


def move_compare(page, root, where: str) -> None:
    shown = picture(root)
    drag(page, root.locator(".ddpm-compare").bounding_box(), (0.5, 0.5), (0.2, 0.5))
    assert picture(root) != shown, f"{where}: the handle changes nothing"
    ends = [after(root, lambda: page.keyboard.press(key)) for key in ("Home", "End")]
    assert ends[0] != ends[1], f"{where}: both pictures are the same"


def move_turner(page, root, where: str) -> None:
    move_panel(page, root, where)
    shown, slider = picture(root), root.locator(".ddpm-transport input")
    root.locator(".ddpm-play").click()
    page.wait_for_function("root => root.dataset.at === '1'", arg=root.element_handle())
    assert picture(root) != shown, f"{where}: turned it is the same picture"
    slider.focus()
    assert after(root, lambda: page.keyboard.press("Home")) == shown


def move_playground(page, root, where: str) -> None:
    """A shape is trained on until there are samples, and the time moved: the rest is in test_playground.py."""
    from playwright.sync_api import expect

    view = root.get_by_role("img")
    before = view.screenshot()
    root.get_by_role("button", name="ring").click()
    slider = root.get_by_role("slider")
    expect(slider).not_to_have_attribute("max", "0", timeout=60_000)
    assert view.screenshot() != before, f"{where}: training shows nothing"
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == "t = 100 of 100", (
        f"{where}: no way back in time"
    )


def move_oral(page, root, where: str) -> None:
    """By keyboard to the end: show, rate, and the next one; then one step back."""
    root.get_by_role("button", name="Show the answer").focus()
    asked, n = [], 0
    while root.locator(".ddpm-keys").inner_text() != "all asked":
        asked.append(root.locator(".ddpm-question").inner_text())
        assert root.get_attribute("data-shown") == "false", f"{where}: the answer shows at once"
        page.keyboard.press("Enter")
        assert len(root.locator(".ddpm-verdict").inner_text()) > 40, f"{where}: no answer"
        page.keyboard.press("Tab")  # to "half of it"
        page.keyboard.press("Enter")
        n += 1
        assert n < 40
    assert len(set(asked)) == n and f"knew 0 of {n}" in root.locator(".ddpm-question").inner_text()
    assert "Read again" in root.locator(".ddpm-verdict").inner_text()
    page.keyboard.press("Enter")  # back
    assert root.locator(".ddpm-keys").inner_text() == f"question {n} of {n}"


MOVES = {
    "playground": move_playground,
    "oral": move_oral,
    "pad": move_pad,
    "compare": move_compare,
    "turner": move_turner,
    "unet": move_unet,
    "slider-picture": move_panel,
    "slider-image": move_panel,
    "film": move_film,
    "drag-point": move_drag_point,
    "predict": move_predict,
}
