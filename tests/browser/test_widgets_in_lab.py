"""Every kind of widget in a real JupyterLab: moved by keyboard and by mouse, its pixels compared, its speed measured."""

import os
import statistics

import numpy as np
import pytest
import samples
from labdriver import (
    after,
    behaved,
    drawn,
    film_rate,
    latencies,
    new_page,
    open_and_run,
    picture,
    standing,
    widget,
    write_notebook,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def opened(lab, browser):
    """The sample notebook, run once; yields {kind: [root, ...]} and checks at the end that the page behaved."""
    url, root = lab
    write_notebook(root / "samples.ipynb", *samples.ALL)
    with new_page(browser) as page:
        open_and_run(page, url, "samples.ipynb")
        page.locator(".ddpm-widget").nth(len(samples.ALL) - 3).wait_for()
        yield page
        behaved(page)


def test_lab_shows_the_live_widget_instead_of_its_still_picture(opened):
    assert opened.locator(".ddpm-widget").count() == 10
    assert (
        opened.locator('.jp-OutputArea-output img[src^="data:"]').count() == 1
    )  # only the plain figure


def test_a_still_figure_keeps_its_alt_text_and_caption(opened):
    figure = opened.locator("figure:not(.ddpm-widget)")
    assert figure.get_by_role("img", name="A rising line").is_visible()
    assert figure.inner_text().strip() == "It rises."


@pytest.mark.parametrize(
    "kind, nth, name",
    [("slider-picture", 0, "t"), ("slider-picture", 1, "sigma"), ("slider-image", 0, "t")],
)
def test_a_slider_by_keyboard_and_by_mouse(opened, kind, nth, name):
    root = widget(opened, kind, nth)
    slider = root.locator(f'input[type=range][data-name="{name}"]')
    seen = [picture(root)]
    slider.focus()
    for key in "PageUp", "ArrowRight", "End", "Home":
        seen.append(after(root, lambda: opened.keyboard.press(key)))
        assert root.evaluate("root => root.contains(document.activeElement)"), (
            f"{key} took the focus away"
        )
    box = slider.bounding_box()
    opened.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2)
    opened.mouse.down()
    seen.append(
        after(
            root,
            lambda: opened.mouse.move(
                box["x"] + 0.7 * box["width"], box["y"] + box["height"] / 2, steps=4
            ),
        )
    )
    opened.mouse.up()
    assert len(set(seen)) == len(seen), "two positions of the slider show the same picture"


def test_menu_and_switch_redraw_too(opened):
    root = widget(opened, "slider-picture")
    seen = [
        picture(root),
        after(root, lambda: root.locator("select").select_option("straight")),
        after(root, lambda: root.locator("[type=checkbox]").click()),
    ]
    assert len(set(seen)) == 3
    assert "straight" in root.locator("figcaption").inner_text()


def test_alt_text_and_names_follow_the_slider(opened):
    root = widget(opened, "slider-picture")
    slider = root.get_by_role("slider", name="t", exact=True)
    slider.focus()
    after(root, lambda: opened.keyboard.press("End"))
    assert root.locator("img").get_attribute("alt") == "Signal and noise at t = 999"
    assert slider.get_attribute("aria-valuetext") == "999"
    image = widget(opened, "slider-image")
    assert image.get_by_role("img").get_attribute("aria-label").startswith("Forty squares at t = ")
    for root in opened.locator(".ddpm-widget").all():
        assert all(
            root.locator("[role=img], img, svg.ddpm-plane").evaluate_all(
                "nodes => nodes.map(n => (n.alt || n.getAttribute('aria-label') || '').length > 5)"
            )
        )


def test_focus_can_be_seen(opened):
    root = widget(opened, "slider-image")
    root.locator("input").focus()
    opened.keyboard.press("ArrowRight")
    assert root.locator("input").evaluate("n => getComputedStyle(n).outlineWidth") == "3px"


def test_events_that_pile_up_end_with_the_last_one(opened):
    root = widget(opened, "slider-picture", 1)
    moves = 40
    count = drawn(root)
    root.evaluate(
        """(root, moves) => { const input = root.querySelector('input');
        for (let i = 0; i <= moves; i++) { input.value = i; input.dispatchEvent(new Event('input')); } }""",
        moves,
    )
    opened.wait_for_timeout(1500)
    shown = root.locator("output").inner_text()
    assert root.locator("img").get_attribute("alt") == f"Curves at sigma = {shown}"
    assert drawn(root) - count < moves / 2, "old positions were drawn although newer ones waited"


@pytest.mark.parametrize(
    "kind, nth, name",
    [("slider-picture", 0, "t"), ("slider-picture", 1, "sigma"), ("slider-image", 0, "t")],
)
def test_slider_to_picture_is_quick(opened, kind, nth, name):
    root = widget(opened, kind, nth)
    latencies(root, name, 3)
    busy = max(1.0, os.getloadavg()[0] / os.cpu_count())  # others may be using this machine too
    median = statistics.median(latencies(root, name, 20))
    print(
        f"{kind} {nth}: median {median:.0f} ms from slider to picture, {busy:.1f} processes a core"
    )
    assert (
        median <= 250 * busy
    )  # a guard; the goal, 100 ms on a quiet machine, is measured by benchmarks/widget_latency.py


def test_an_error_while_drawing_is_shown_and_goes_away(opened):
    root = widget(opened, "slider-image", 1)
    root.locator("input").focus()
    opened.keyboard.press("End")
    root.get_by_role("alert").filter(
        has_text="RuntimeError: t is too large for this picture"
    ).wait_for()
    after(root, lambda: opened.keyboard.press("Home"))
    assert root.get_by_role("alert").count() == 0


def test_a_text_is_drawn_on_enter_and_on_leaving(opened):
    root = widget(opened, "slider-image", 2)
    field = root.get_by_role("textbox", name="what to draw")  # found by its label
    assert (field.get_attribute("maxlength"), field.get_attribute("placeholder")) == (
        "300",
        "a green two",
    )
    seen, count = [picture(root)], drawn(root)
    field.fill("")
    field.press_sequentially("a dozen j's")  # letters that are shortcuts of JupyterLab
    opened.wait_for_timeout(300)
    assert drawn(root) == count and field.input_value() == "a dozen j's", "drawn before Enter"
    assert field.evaluate("n => getComputedStyle(n).outlineWidth") == "3px"
    seen.append(after(root, lambda: field.press("Enter")))
    assert root.get_by_role("img").get_attribute(
        "aria-label"
    ) == "a dozen j's, 0" and field.evaluate("n => n === document.activeElement")
    field.fill("left")
    seen.append(after(root, lambda: field.press("Tab")))
    seen.append(after(root, lambda: opened.keyboard.press("End")))  # the slider, and the text stays
    field.fill("")
    seen.append(after(root, lambda: field.press("Enter")))
    assert len(set(seen)) == 5 and root.get_by_role("img").get_attribute("aria-label") == ", 8"


def test_a_text_that_takes_long_that_warns_and_that_fails(opened):
    root = widget(opened, "slider-image", 2)
    field, note = root.get_by_role("textbox"), root.locator(".ddpm-note")
    field.fill("slow")
    field.press("Enter")
    root.get_by_text("drawing ...").wait_for()
    assert root.get_attribute("aria-busy") == "true"
    root.get_by_text("drawing ...").wait_for(state="hidden")
    field.fill("a zebra")
    after(root, lambda: field.press("Enter"))
    assert (
        note.inner_text() == "words never seen in training: 'zebra'"
        and root.get_by_role("alert").count() == 0
    )
    field.fill("fail")
    field.press("Enter")
    root.get_by_role("alert").filter(has_text="RuntimeError: no picture of that").wait_for()
    assert not note.is_visible()
    field.fill("a red seven")
    after(root, lambda: field.press("Enter"))
    assert root.get_by_role("alert").count() == 0


def test_an_answer_appears_after_the_click_only(opened):
    root = widget(opened, "predict")
    answer, status = (
        root.get_by_role("img", name="The line of the question"),
        root.get_by_role("status"),
    )
    assert answer.count() == 0 and "rises" not in root.inner_text()
    assert "Click your prediction" in root.locator("figcaption").inner_text()
    root.get_by_role("button", name="down").focus()
    opened.keyboard.press("Enter")
    answer.wait_for()
    root.get_by_text("From 0 to 1.", exact=True).wait_for()  # the picture's caption
    assert not root.locator(".ddpm-caption").is_visible()
    status.filter(has_text="It is: up. It rises from 0 to 1.").wait_for()
    assert root.get_by_role("button", name="up").get_attribute("data-truth") == "true"
    assert root.get_by_role("button", name="down").get_attribute("aria-pressed") == "true"
    assert all(node.is_disabled() for node in root.get_by_role("button").all())


def test_a_quiz_answers_when_every_row_has_a_click(opened):
    root = widget(opened, "predict", 1)
    for name in "123":
        assert root.get_attribute("data-done") == "false"
        root.get_by_role("group", name=name).get_by_role("button", name="prime", exact=True).click()
    root.get_by_role("status").filter(has_text="2 of 3 right. 1 is none.").wait_for()


def test_a_film_by_keyboard_mouse_and_play(opened):
    root = widget(opened, "film")
    slider = root.get_by_role("slider", name="a ramp that moves")
    slider.focus()
    seen = [picture(root), after(root, lambda: opened.keyboard.press("ArrowRight"))]
    assert root.locator(".ddpm-legend").inner_text() == "t = 1"
    box = slider.bounding_box()
    seen.append(
        after(
            root,
            lambda: opened.mouse.click(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2),
        )
    )
    button = root.get_by_role("button", name="Play: a ramp that moves")
    button.focus()
    seen.append(after(root, lambda: opened.keyboard.press("Space")))
    root.get_by_role("button", name="Pause: a ramp that moves").click()
    assert len(set(seen)) == 4
    assert "frame" in root.get_by_role("img").get_attribute("aria-label")


def test_films_play_at_thirty_frames_a_second(opened):
    root = widget(opened, "film")
    root.get_by_role("slider").focus()
    opened.keyboard.press("Home")
    rate = film_rate(root)
    print(f"film: {rate:.1f} frames a second")
    assert 24 <= rate <= 33


def test_a_coloured_film_loops(opened):
    root = widget(opened, "film", 1)
    assert after(
        root, lambda: (root.get_by_role("slider").focus(), opened.keyboard.press("End"))
    ) != after(root, lambda: opened.keyboard.press("Home"))
    opened.keyboard.press("End")
    root.locator(".ddpm-play").click()
    opened.wait_for_timeout(400)
    root.locator(".ddpm-play").click()
    assert 0 < int(root.get_attribute("data-index")) < 39


def paths(root) -> dict:
    return dict(
        root.locator(".ddpm-path").evaluate_all(
            "nodes => nodes.map(n => [n.dataset.name, n.getAttribute('d')])"
        )
    )


def test_a_drag_point_by_keyboard_and_mouse(opened):
    root = widget(opened, "drag-point")
    dot = root.get_by_role("slider", name="start point")
    first, before = paths(root), picture(root)
    assert list(first) == ["straight", "curved"]
    dot.focus()
    assert after(root, lambda: opened.keyboard.press("Shift+ArrowRight")) != before
    second = paths(root)
    assert all(second[name] != first[name] for name in first)
    assert dot.get_attribute("aria-valuetext") == "x 1.40, y -1.00"
    box = root.locator(".ddpm-plane").bounding_box()
    at = dot.bounding_box()
    opened.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    opened.mouse.down()
    after(
        root,
        lambda: opened.mouse.move(
            box["x"] + box["width"] / 4, box["y"] + box["height"] / 4, steps=6
        ),
    )
    opened.mouse.up()
    opened.wait_for_function(
        "root => /x -1.5., y 1.5|x -1.49, y 1.5|x -1.50, y 1.49/.test(root.querySelector('.ddpm-dot').getAttribute('aria-valuetext'))",
        arg=root.element_handle(),
    )
    root.locator(".ddpm-legend").filter(has_text="straight ends at (0.00, 0.00)").wait_for()
    assert paths(root)["straight"] not in (first["straight"], second["straight"])


def test_paths_can_be_hidden_and_the_point_cannot_leave(opened):
    root = widget(opened, "drag-point")
    shown = picture(root)
    assert after(root, lambda: root.get_by_label("curved").uncheck()) != shown
    assert list(paths(root)) == ["straight"]
    after(root, lambda: root.get_by_label("curved").check())
    root.get_by_role("slider").focus()
    for _ in range(20):
        opened.keyboard.press("Shift+ArrowLeft")
    opened.wait_for_timeout(300)
    assert root.get_by_role("slider").get_attribute("aria-valuetext").startswith("x -3.00")


def test_drag_point_by_touch(lab, browser):
    url, root = lab
    write_notebook(root / "touch.ipynb", samples.SETUP, samples.DRAG_POINT)
    with new_page(browser, has_touch=True) as page:
        open_and_run(page, url, "touch.ipynb")
        plane = widget(page, "drag-point")
        before, box = paths(plane), plane.locator(".ddpm-plane").bounding_box()
        after(plane, lambda: page.touchscreen.tap(box["x"] + 60, box["y"] + 60))
        assert paths(plane) != before


def test_a_film_needs_no_kernel(page):
    from ddpm_edu.show.widgets import Film

    film = Film(
        (np.arange(60)[:, None, None] * 4 + np.zeros((60, 8, 8))).astype(np.uint8),
        label="brighter",
        caption="Up.",
        loop=True,
    )
    root = standing(page, film, "shape captions label index fps scale loop frames")
    first = picture(root)
    root.get_by_role("slider").focus()
    assert after(root, lambda: page.keyboard.press("End")) != first
    assert film_rate(root, 1) > 20


def test_a_point_film_plays_once_when_first_seen(page):
    from ddpm_edu.show.widgets import PointFilm

    points = np.linspace([-2, -2], [2, 2], 40)[:, None] + np.random.default_rng(0).normal(
        size=(1, 50, 2), scale=0.3
    )
    film = PointFilm({"a": points, "b": -points}, values=range(50), label="up", caption="Up.")
    names = "shape captions label index fps loop autoplay titles colors groups side trail"
    root = standing(page, film, names + " trail_every frames")
    page.wait_for_function("root => +root.dataset.index == 39", arg=root.element_handle())
    root.get_by_role("button", name="Play: up").wait_for()
    last = picture(root)  # it has played to the end by itself, and stands there
    slider = root.get_by_role("slider")
    slider.focus()
    assert after(root, lambda: page.keyboard.press("Home")) != last
    speed = root.locator(".ddpm-speed")
    speed.click()
    assert speed.inner_text() == "0.5×"


def test_a_film_waits_when_the_reader_wants_no_motion(browser):
    from ddpm_edu.show.widgets import Film

    film = Film(np.arange(40, dtype=np.uint8)[:, None, None] + np.zeros((1, 8, 8), np.uint8),
                label="l", caption="c")  # fmt: skip
    with new_page(browser, reduced_motion="reduce") as page:
        root = standing(page, film, "shape captions label index fps scale loop autoplay frames")
        page.wait_for_timeout(600)
        assert root.get_attribute("data-index") == "20"


def test_codes_appear_and_a_place_tells_its_code_by_mouse_and_by_key(page):
    from types import SimpleNamespace

    from ddpm_edu.show.widgets import CodeFilm

    codes = np.arange(16)[None] + 100

    def plan(n):
        known = [np.arange(16)[None] < 16 * (k + 1) // n for k in range(n)]
        steps = [SimpleNamespace(codes=codes, known=k, confidence=0.25 + 0 * codes) for k in known]
        return steps, np.random.default_rng(0).integers(0, 256, (n + 1, 8, 8, 3), dtype=np.uint8)

    film = CodeFilm({"one": plan(16), "four": plan(4)}, label="codes", caption="Two plans.",
                    start=3, autoplay=False)  # fmt: skip
    root = standing(page, film, "shape captions label index fps loop autoplay titles cell "
                    "numbers sure frames")  # fmt: skip
    words, reading = root.locator(".ddpm-legend"), root.locator(".ddpm-reading")
    assert (
        words.inner_text() == "pass 3: 3 of 16 codes; 12 of 16 codes" and not reading.inner_text()
    )
    slider, shown = root.get_by_role("slider"), picture(root)
    slider.focus()
    assert after(root, lambda: page.keyboard.press("ArrowRight")) != shown
    assert words.inner_text() == "pass 4: 4 of 16 codes; 16 of 16 codes, done"
    box = root.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + 13, box["y"] + 26 + 13)
    assert "row 1, column 1:" in reading.inner_text() and "code 100" in reading.inner_text()
    assert "chosen in pass 1, probability 0.25" in reading.inner_text()
    page.mouse.move(0, 0)
    stage = root.get_by_role("group", name="codes")
    stage.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        after(root, lambda key=key: page.keyboard.press(key))
    assert "row 2, column 2: one: not yet; four: code 105" in reading.inner_text()


def test_a_block_of_a_unet_is_touched_by_mouse_and_by_key(page):
    import torch

    from ddpm_edu.networks.unet import UNet, UNetConfig
    from ddpm_edu.show.unet import follow
    from ddpm_edu.show.widgets import UNetView

    config = UNetConfig(1, channels=8, mult=(1, 2), depth=(0, 1), heads=(1, 1), groups=4)
    blocks = follow(UNet(config), torch.zeros(1, 1, 8, 8), torch.zeros(1))
    view = UNetView({"one": blocks, "two": blocks[:8]}, caption="Touch it.")
    root = standing(page, view, "networks shown block colors")
    words, plane = root.locator(".ddpm-legend"), root.locator(".ddpm-unet")
    assert words.inner_text().startswith("first (1 of 14)")
    shown = picture(root)
    assert after(root, lambda: plane.locator("g").nth(4).locator("path").last.hover()) != shown
    assert words.inner_text().startswith(blocks[4].name)
    page.mouse.move(0, 0)
    plane.focus()
    after(root, lambda: page.keyboard.press("ArrowRight"))
    assert words.inner_text().startswith(blocks[5].name)
    after(root, lambda: page.keyboard.press("End"))
    assert plane.get_attribute("aria-valuenow") == "14"
    after(root, lambda: root.locator("select").select_option(index=1))
    assert words.inner_text().startswith("first (1 of 8)") and plane.locator("g").count() == 8
