"""widgets, the kernel's half: what moves, what is drawn, what stays in a saved notebook, what is refused. The page's half: tests/browser."""

import base64
import io
import re
import warnings
from typing import NamedTuple

import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_edu.errors import DataError, OptionError, ShapeError
from ddpm_edu.show import plot
from ddpm_edu.show.widgets import (
    Choice,
    CodeFilm,
    Compare,
    DragPoint,
    Film,
    Pad,
    PointFilm,
    Slider,
    SliderImage,
    SliderPicture,
    Text,
    Toggle,
    Turner,
    freeze,
    predict,
    predictions,
)

VIEW = "application/vnd.jupyter.widget-view+json"
WORDS = {"alt": "a", "caption": "c"}


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def grey(t):
    return np.full((4, 6), t, np.uint8)


def a_film(**options):
    return Film(
        np.arange(40, dtype=np.uint8)[:, None, None] + np.zeros((40, 5, 7), np.uint8),
        label="film",
        caption="c",
        **options,
    )


def a_drag(trace=lambda xy: {"home": np.linspace(xy, [0, 0], 4)}, **options):
    return DragPoint([[0, 0], [1, 1]], trace, **{**WORDS, **options})


# ------------------------------------------------------------ sliders


def test_draw_gets_the_chosen_objects_themselves():
    seen = []
    widget = SliderImage(
        lambda **values: (seen.append(values), grey(0))[1],
        Slider("t", range(1000), 300),
        Slider("sigma", np.geomspace(0.01, 100, 5), 0.9),
        Choice("name", ["linear", "cosine"], "cosine"),
        Toggle("clip", True),
        **WORDS,
    )
    assert seen == [{"t": 300, "sigma": pytest.approx(1.0), "name": "cosine", "clip": True}]
    assert type(seen[0]["t"]) is int and type(seen[0]["sigma"]) is float and seen[0]["clip"] is True
    widget.move(t=5, clip=False)
    assert seen[-1] == {**seen[0], "t": 5, "clip": False} and widget.values == seen[-1]


def test_slider_image_sends_the_pixels():
    picture = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    widget = SliderImage(lambda t: np.roll(picture, t), Slider("t", [0, 1]), **WORDS)
    assert widget.shape == [4, 6, 3] and widget.image == picture.tobytes()
    widget.move(t=1)
    assert widget.image == np.roll(picture, 1).tobytes()
    assert (decode(widget.still())[:: widget.scale, :: widget.scale] == np.roll(picture, 1)).all()


def test_a_move_from_the_page_redraws_and_counts():
    widget = SliderImage(
        grey, Slider("t", range(256), 3), alt="level {t}", caption=lambda t: f"twice {2 * t}"
    )
    assert (widget.drawn, widget.alt, widget.caption) == (1, "level 3", "twice 6")
    widget.set_state({"position": {"t": 200}})  # what the page sends
    assert (widget.drawn, widget.alt, widget.caption) == (2, "level 200", "twice 400")
    assert set(widget.image) == {200}


def test_slider_picture_redraws_cleared_axes():
    def draw(ax, k):
        ax.plot([0, k], [0, 1])
        ax.set(xlim=(0, 9), ylim=(0, 1))

    widget = SliderPicture(draw, Slider("k", range(1, 9)), width=3, height=2, **WORDS)
    first = widget.image
    assert decode(first).shape == (200, 300, 3)
    widget.move(k=5)
    assert (decode(widget.image) != decode(first)).any() and len(widget._ax.lines) == 1
    widget.move(k=1)
    assert (decode(widget.image) == decode(first)).all(), (
        "coming back gives another picture: something was left on the axes"
    )


def test_update_is_called_instead_of_draw_and_shows_the_same():
    calls = []

    def plain(ax, k):
        ax.set(xlim=(0, 9), ylim=(0, 1))
        return ax.plot([0, k], [0, 1])[0]

    def with_update(ax, k):
        line = plain(ax, k)
        calls.append("draw")
        return lambda k: (calls.append("update"), line.set_xdata([0, k]))

    slider = Slider("k", range(1, 9))
    quick = SliderPicture(with_update, slider, **WORDS)
    slow = SliderPicture(lambda ax, k: (plain(ax, k), None)[1], slider, **WORDS)
    for widget in quick, slow:
        widget.move(k=7)
    assert calls == ["draw", "update"]
    assert (decode(quick.image) == decode(slow.image)).all()


def test_several_axes_and_their_options():
    shapes = []
    SliderPicture(
        lambda ax, k: shapes.append(ax.shape),
        Slider("k", [0, 1]),
        rows=2,
        columns=3,
        sharey=True,
        **WORDS,
    )
    assert shapes == [(2, 3)]


def test_a_failing_move_is_reported_and_the_next_one_heals():
    def render(t):
        if t == 1:
            raise ValueError("no picture at 1")
        return grey(t)

    widget = SliderImage(render, Slider("t", [0, 1, 2]), **WORDS)
    widget.move(t=1)
    assert widget.error == "ValueError: no picture at 1" and set(widget.image) == {0}
    widget.move(t=2)
    assert widget.error == "" and set(widget.image) == {2}


@pytest.mark.parametrize(
    "make",
    [
        lambda *controls: SliderImage(
            lambda prompt, t: grey(len(prompt) + t), *controls, alt="{prompt} at {t}", caption="c"
        ),
        lambda *controls: SliderPicture(
            lambda ax, prompt, t: (ax.set_title(prompt), ax.set_xlim(0, t)),
            *controls,
            alt="{prompt} at {t}",
            caption="c",
        ),
    ],
)
def test_a_text_and_a_slider_together(make):
    widget = make(
        Text("prompt", "a red {seven}", label="words", other="a green two"),
        Slider("t", range(1, 9), 3),
    )
    assert (
        widget.values == {"prompt": "a red {seven}", "t": 3} and widget.alt == "a red {seven} at 3"
    )
    assert widget.controls[0] == {
        "name": "prompt",
        "label": "words",
        "kind": "text",
        "limit": 300,
        "other": "a green two",
    }
    pictures = [widget.image]
    widget.move(prompt="a green two")
    pictures.append(widget.image)
    widget.set_state({"position": {"prompt": "from the page, longer", "t": 5}})
    pictures.append(widget.image)
    assert widget.values == {"prompt": "from the page, longer", "t": 6}
    widget.move(prompt="")
    assert (
        widget.values["prompt"] == "" and widget.error == "" and len({*pictures, widget.image}) == 4
    )
    widget.move(prompt="x" * 300)
    with pytest.raises(OptionError, match="301 characters, at most 300"):
        widget.move(prompt="x" * 301)
    assert widget.values["prompt"] == "x" * 300


def test_warnings_of_a_move_are_a_note_until_a_picture_without_any():
    def render(prompt):
        for word in prompt.split():
            if word == "zebra":
                warnings.warn("words never seen in training: 'zebra'", stacklevel=1)
        if "fail" in prompt:
            raise ValueError("no picture")
        return grey(len(prompt))

    with warnings.catch_warnings(record=True) as leaked:
        widget = SliderImage(render, Text("prompt", "zebra"), **WORDS)
        note = "words never seen in training: 'zebra'"
        assert (widget.note, widget.error) == (note, "")
        widget.move(prompt="seven")
        assert widget.note == ""
        widget.move(
            prompt="a zebra, a zebra zebra"
        )  # said once, and said again though Python has said it before
        assert (widget.note, widget.error, set(widget.image)) == (note, "", {22})
        widget.move(prompt="zebra fail")
        assert (widget.note, widget.error) == (note, "ValueError: no picture")
        widget.move(prompt="two")
        assert (widget.note, widget.error) == ("", "")
    assert leaked == []


def test_warnings_of_a_dragged_point_are_a_note_too():
    widget = a_drag(
        lambda xy: (xy[0] > 2 and warnings.warn("far out", stacklevel=1), {"p": [xy, [0, 0]]})[1]
    )
    widget.set_state({"xy": [2.5, 0.0]})
    assert widget.note == "far out" and widget.error == ""
    widget.set_state({"xy": [1.5, 0.0]})
    assert widget.note == ""


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: SliderImage(grey, Text("t", "x" * 301), **WORDS), "301 characters, at most 300"),
        (lambda: SliderImage(grey, Text("t", "abc", limit=2), **WORDS), "3 characters, at most 2"),
        (
            lambda: SliderImage(grey, Text("t", "a", other="abc", limit=2), **WORDS),
            "3 characters, at most 2",
        ),
        (lambda: SliderImage(grey, Text("t", "a", other="a"), **WORDS), "same as the start"),
        (lambda: SliderImage(grey, Text("t", 7), **WORDS), "needed a string"),
        (lambda: SliderImage(grey, Text("t", "a\nb"), **WORDS), "2 lines"),
        (
            lambda: SliderImage(lambda t: grey(0), Text("t"), **WORDS).move(t=None),
            "needed a string",
        ),
        (lambda: SliderImage(grey, Slider("t", [5]), **WORDS), "at least two"),
        (lambda: SliderImage(grey, Slider("t", [3, 2, 1]), **WORDS), "must increase"),
        (lambda: SliderImage(grey, Slider("t", np.linspace(1, 1, 5)), **WORDS), "must increase"),
        (
            lambda: SliderImage(grey, Slider("t", range(10), 10), **WORDS),
            "starts at 10, outside 0 ... 9",
        ),
        (lambda: SliderImage(grey, Slider("t", range(10), float("nan")), **WORDS), "starts at nan"),
        (lambda: SliderImage(grey, Choice("t", [1]), **WORDS), "at least two"),
        (lambda: SliderImage(grey, Choice("t", [1, 2], 3), **WORDS), "not one of"),
        (lambda: SliderImage(lambda: grey(0), **WORDS), "no control"),
        (lambda: SliderImage(grey, Slider("t", [1, 2]), Toggle("t"), **WORDS), "share a name"),
        (lambda: SliderImage(grey, Slider("s", [1, 2]), **WORDS), r"cannot be called as \(s\)"),
        (
            lambda: SliderPicture(grey, Slider("t", [1, 2]), **WORDS),
            r"cannot be called as \(ax, t\)",
        ),
        (lambda: SliderImage(grey, Slider("t", [1, 2]), alt="", caption="c"), "alt is empty"),
        (lambda: SliderImage(grey, Slider("t", [1, 2]), alt="a", caption=" "), "caption is empty"),
        (lambda: SliderImage(grey, Slider("t", [1, 2]), scale=0, **WORDS), "scale is 0"),
        (lambda: SliderImage(grey, Slider("t", [1, 2]), **WORDS).move(t=9), "cannot set t to 9"),
        (lambda: SliderImage(grey, Slider("t", [1, 2]), **WORDS).move(q=1), "cannot set q"),
    ],
)
def test_sliders_refuse(make, message):
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4)),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4), np.uint8),
    ],
)
def test_slider_image_refuses_what_is_no_picture(picture):
    with pytest.raises(ShapeError, match="uint8"):
        SliderImage(lambda t: picture, Slider("t", [0, 1]), **WORDS)


# ------------------------------------------------------------ films


def test_film_takes_arrays_lists_and_tensors():
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    for frames in array, list(array), torch.from_numpy(array), tuple(torch.from_numpy(array)):
        film = Film(frames, "abc", label="l", caption="c")
        assert (
            film.shape == [3, 4, 5, 3]
            and film.frames == array.tobytes()
            and film.captions == ["a", "b", "c"]
        )


def test_a_film_starts_in_the_middle_and_plays_by_itself_unless_told():
    assert (a_film().index, a_film().autoplay) == (20, True)
    assert (a_film(start=3, autoplay=False).index, a_film(autoplay=False).autoplay) == (3, False)


def a_point_film(panels=None, values=range(7), **options):
    points = np.linspace([-3, 3], [3, -3], 5)[:, None] + np.zeros((5, 7, 2))
    return PointFilm(
        panels or {"left": points, "right": -points},
        values=values,
        label="points",
        caption="c",
        **options,
    )


def test_a_point_film_sends_every_place_and_colour():
    film = a_point_film(limits=(-3, 3))
    assert film.shape == [2, 5, 7] and film.titles == ["left", "right"] and film.index == 2
    sent = np.frombuffer(film.frames, "<u2").reshape(2, 5, 7, 2)
    places = (sent / 65535 * 2 - 0.5) * 6 - 3  # the page spans twice the plane
    assert np.allclose(places[0, :, 3], np.linspace([-3, 3], [3, -3], 5), atol=1e-3)
    assert np.allclose(places[1], -places[0], atol=1e-3)
    assert film.groups == sorted(film.groups) and len(set(film.groups)) == 7
    assert max(film.groups) < len(film.colors)


def test_a_point_far_outside_leaves_the_plane():
    far = np.full((2, 1, 2), 50.0)
    film = a_point_film({"": far}, values=[0], limits=(-1, 1))
    assert (np.frombuffer(film.frames, "<u2") == 65535).all()  # one half plane beyond the edge


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: PointFilm({}, values=[], label="l", caption="c"), OptionError, "panels"),
        (lambda: a_point_film({"a": np.zeros((2, 7))}), ShapeError, "N, B, 2"),
        (
            lambda: a_point_film({"a": np.zeros((2, 7, 2)), "b": np.zeros((3, 7, 2))}),
            ShapeError,
            "same",
        ),
        (lambda: a_point_film({"a": np.full((2, 7, 2), np.nan)}), ShapeError, "NaN"),
        (lambda: a_point_film(values=range(6)), ShapeError, "values"),
        (lambda: a_point_film(fps=0), OptionError, "fps is 0"),
    ],
)
def test_point_films_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


class Pass(NamedTuple):
    codes: torch.Tensor
    known: torch.Tensor
    confidence: torch.Tensor


def some_passes(n, places=6):
    """n passes that find out the same number of codes each, from the first place on."""
    known = [torch.arange(places)[None] < places * (k + 1) // n for k in range(n)]
    return [Pass(torch.arange(places)[None] + 40, k, torch.full((1, places), 0.5)) for k in known]


def a_code_film(slow=6, fast=2, places=6, **options):
    pictures = lambda n: np.arange((n + 1) * 4 * 6 * 3, dtype=np.uint8).reshape(n + 1, 4, 6, 3)
    plans = {name: (some_passes(n, places), pictures(n)) for name, n in (("a", slow), ("b", fast))}
    return CodeFilm(plans, label="codes", caption="c", **{"rows": 2, "start": 1, **options})


def test_a_code_film_sends_what_is_known_after_each_pass():
    film = a_code_film()
    assert film.shape == [2, 7, 2, 3, 4, 6] and film.titles == ["a", "b"]
    sent = np.frombuffer(film.numbers, "<i2").reshape(2, 7, 6)
    assert (sent[:, 0] == -1).all()  # nothing is known before the first pass
    assert ((sent >= 0).sum(2) == [[0, 1, 2, 3, 4, 5, 6], [0, 3, 6, 6, 6, 6, 6]]).all()
    assert (sent[:, -1] == np.arange(6) + 40).all()
    sure = np.frombuffer(film.sure, np.uint8).reshape(2, 7, 6)
    assert ((sure == 128) == (sent >= 0)).all()
    frames = np.frombuffer(film.frames, np.uint8).reshape(2, 7, 4, 6, 3)
    assert (frames[1, 2:] == frames[1, 2]).all() and (frames[0, 6] != frames[0, 5]).any()
    assert film.captions[1] == "pass 1: 1 of 6 codes; 3 of 6 codes"
    assert film.captions[2] == "pass 2: 2 of 6 codes; 6 of 6 codes, done"


@pytest.mark.parametrize(
    "make, error, name",
    [
        (lambda: CodeFilm({}, label="l", caption="c"), OptionError, "plans is empty"),
        (lambda: a_code_film(rows=4), ShapeError, "4 rows"),
        (lambda: a_code_film(fps=0), OptionError, "fps"),
        (
            lambda: CodeFilm({"a": (some_passes(3), np.zeros((3, 4, 4, 3), np.uint8))},
                             rows=2, label="l", caption="c"),
            ShapeError, "3 pictures for 3 passes",
        ),
        (
            lambda: CodeFilm({"a": ([], np.zeros((1, 4, 4, 3), np.uint8))}, label="l", caption="c"),
            OptionError, "no steps",
        ),
        (
            lambda: CodeFilm({"a": ([Pass(*(x.repeat(2, 1) for x in step)) for step in some_passes(2)],
                                    np.zeros((3, 4, 4, 3), np.uint8))}, label="l", caption="c"),
            OptionError, "one picture",
        ),
    ],
)  # fmt: skip
def test_code_films_refuse(make, error, name):
    with pytest.raises(error, match=name):
        make()


def test_controls_that_play_no_part_are_named():
    widget = SliderImage(
        lambda t, kind: grey(t),
        Slider("t", [0, 1]),
        Choice("kind", ["moving", "still"]),
        idle=lambda t, kind: ["t"] if kind == "still" else [],
        **WORDS,
    )
    assert widget.idle == []
    widget.move(kind="still")
    assert widget.idle == ["t"]


def test_still_of_a_film_shows_first_and_last_frame():
    strip = decode(a_film(scale=2).still(count=5))[..., 0]
    assert strip.shape == (10, 5 * 14 + 4 * 4)
    assert [strip[0, k * 18] for k in range(5)] == [0, 10, 20, 29, 39]


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: Film([], label="l", caption="c"), OptionError, "at least one picture"),
        (lambda: Film(np.zeros((3, 4, 4)), label="l", caption="c"), ShapeError, "float64"),
        (
            lambda: Film(np.zeros((4, 4), np.uint8), label="l", caption="c"),
            ShapeError,
            "needed|Needed",
        ),
        (
            lambda: Film(np.zeros((3, 4, 4, 2), np.uint8), label="l", caption="c"),
            ShapeError,
            "Needed",
        ),
        (
            lambda: Film([grey(0), np.zeros((2, 2), np.uint8)], label="l", caption="c"),
            ShapeError,
            "one size",
        ),
        (lambda: a_film(captions=["one"]), OptionError, "1 captions for 40 frames"),
        (lambda: a_film(fps=0), OptionError, "fps is 0"),
        (lambda: a_film(fps=float("nan")), OptionError, "fps is nan"),
        (lambda: a_film(start=40), OptionError, "start is 40"),
        (lambda: Film([grey(0)], label="", caption="c"), OptionError, "label is empty"),
    ],
)
def test_films_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ------------------------------------------------------------ the point to drag


def test_drag_point_traces_every_move():
    widget = a_drag(start=(1, -2))
    assert np.allclose(widget.paths["home"], np.linspace([1, -2], [0, 0], 4), atol=1e-4)
    widget.set_state({"xy": [2.0, 2.0]})
    assert widget.paths["home"][0] == [2, 2] and widget.drawn == 2
    assert widget.summary == "start (2.00, 2.00)\nhome ends at (0.00, 0.00)"


def test_drag_point_takes_tensors_and_gives_each_path_its_style():
    widget = a_drag(lambda xy: {str(i): torch.zeros(3, 2) + i for i in range(8)})
    styles = widget.styles.values()
    assert len({s["color"] for s in styles}) == 8 and len({s["dash"] for s in styles}) == 8
    assert decode(widget.still()).shape[:2] == (840, 840)


def test_a_path_that_becomes_nan_is_reported():
    widget = a_drag(lambda xy: {"p": np.full((2, 2), np.nan if xy[0] > 2 else 1.0)})
    widget.set_state({"xy": [2.5, 0.0]})
    assert "NaN" in widget.error and widget.paths == {"p": [[1, 1], [1, 1]]}


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: a_drag(limits=(1, 1)), OptionError, "limits are"),
        (lambda: a_drag(start=(4, 0)), OptionError, "outside the plane"),
        (lambda: a_drag(start=(float("nan"), 0)), OptionError, "outside the plane"),
        (lambda: a_drag(lambda xy: {}), OptionError, "no path"),
        (lambda: a_drag(lambda xy: {"p": [1, 2, 3]}), ShapeError, "path 'p'"),
        (lambda: DragPoint([1, 2], lambda xy: {}, **WORDS), ShapeError, "points"),
        (lambda: a_drag(alt=""), OptionError, "alt is empty"),
    ],
)
def test_drag_points_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ------------------------------------------------------------ the pad, the handle, the turn

SHEET = torch.linspace(-1, 1, 3 * 4 * 6).reshape(1, 3, 4, 6)
SPOT = (torch.arange(24) == 7).float().reshape(1, 1, 4, 6)
INK = {"white": (255, 255, 255), "red": (235, 60, 15)}


def a_pad(render=lambda picture, mask: plot.tile(picture), *controls, **options):
    return Pad(render, *controls, **{"picture": SHEET, "colors": INK, **WORDS, **options})


def drawn_on(pad, **more) -> dict:
    """What the page sends after a stroke: row 1 red, and marked in its first pixel."""
    sheet = np.frombuffer(pad.sheet, np.uint8).reshape(4, 6, 4).copy()
    sheet[1, :, :3], sheet[1, 0, 3] = INK["red"], 1
    return {"sheet": memoryview(sheet.tobytes()), "asked": pad.asked + 1, **more}


def test_a_pad_gives_what_was_drawn_and_marked():
    pad = a_pad(mask=SPOT, picture=SHEET)
    assert (pad.picture - SHEET).abs().max() <= 1 / 255 and torch.equal(pad.mask, SPOT)
    before = pad.picture
    pad.set_state(drawn_on(pad))
    red = torch.tensor(INK["red"]) / 127.5 - 1
    assert torch.allclose(pad.picture[0, :, 1], red[:, None].expand(3, 6))
    assert torch.equal(pad.picture[:, :, 2:], before[:, :, 2:])
    assert pad.mask.nonzero().tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]


def test_render_gets_drawing_mask_and_controls_once_a_request():
    seen = []

    def render(picture, mask, t):
        seen.append((picture, mask, t))
        return plot.tile(-picture)

    pad = a_pad(render, Slider("t", [0, 1, 2]), alt="at {t}")
    pad.set_state(drawn_on(pad, position={"t": 2}))  # both have moved, and it is drawn once
    assert len(seen) == 2 and seen[1][2] == 2 and (pad.drawn, pad.alt) == (2, "at 2")
    assert torch.equal(seen[1][0], pad.picture) and torch.equal(seen[1][1], pad.mask)
    assert pad.image == plot.tile(-pad.picture).tobytes() and pad.answered == pad.asked == 1
    pad.move(t=1)
    assert seen[2][2] == 1 and len(seen) == 3 and pad.answered == pad.asked == 2


def test_a_pad_whose_render_fails_has_answered_too():
    def render(picture, mask):
        if mask.any():
            raise ValueError("nothing may be marked")
        return plot.tile(picture)

    pad = a_pad(render)
    pad.set_state(drawn_on(pad))
    assert pad.error == "ValueError: nothing may be marked" and pad.answered == pad.asked == 1


def test_a_saved_pad_shows_both_pictures_and_says_that_drawing_needs_a_kernel():
    pad = a_pad(mask=SPOT, cell=10)
    page = pad.page()
    assert "needs a running kernel" in page and 'alt="Draw here' in page
    shown = decode(pad.still())[2 * 24 :: 20, ::20]  # twice the screen's pixels
    assert (shown[:4, :6] == plot.tile(SHEET)).all(-1).sum() == 23  # the marked one is striped


@pytest.mark.parametrize(
    "options, error, name",
    [
        ({"picture": SHEET[0]}, ShapeError, "picture"),
        ({"picture": SHEET[:, :1]}, ShapeError, "picture"),
        ({"picture": SHEET.numpy()}, ShapeError, "picture"),
        ({"picture": SHEET * 2}, DataError, "picture"),
        ({"picture": (SHEET > 0).byte()}, DataError, "picture"),
        ({"picture": SHEET / 0}, DataError, "picture"),
        ({"mask": SPOT[:, :, 1:]}, ShapeError, "mask"),
        ({"mask": SPOT / 2}, DataError, "mask"),
        ({"colors": {}}, OptionError, "colors"),
        ({"colors": {str(k): (k, k, k) for k in range(11)}}, OptionError, "colors"),
        ({"colors": {str(k): (k, k, k) for k in range(9)}, "mask": SPOT}, OptionError, "colors"),
        ({"colors": {"red": "#ff0000"}}, OptionError, "colors"),
        ({"colors": [1]}, OptionError, "colors"),
        ({"colors": {"red": 3}}, OptionError, "colors"),
        ({"colors": {"red": (256, 0, 0)}}, OptionError, "colors"),
        ({"colors": {"red": (1.0, 0, 0)}}, OptionError, "colors"),
        ({"brush": 0}, OptionError, "brush"),
        ({"brush": 7}, OptionError, "brush"),
        ({"cell": 0}, OptionError, "cell"),
        ({"names": ("", "b")}, OptionError, "names"),
        ({"names": ("a",)}, OptionError, "names"),
        ({"alt": ""}, OptionError, "alt"),
        ({"render": lambda picture: None}, OptionError, "<lambda>"),
        ({"render": lambda picture, mask: picture}, ShapeError, "render's picture"),
    ],
)
def test_pads_refuse(options, error, name):
    with pytest.raises(error, match=f"^{name}"):
        a_pad(**options)


def a_compare(before=grey(9), after=np.zeros((8, 12, 3), np.uint8), **options):
    return Compare(before, after, **{"names": ("small", "large"), **WORDS, **options})


def test_compare_shows_two_sizes_in_one_place():
    widget = a_compare()
    assert (widget.width, widget.height, widget.at) == (144, 96, 0.5)
    assert widget.shapes == [[4, 6, 1], [8, 12, 3]]
    shown = decode(widget.still())
    assert (shown[-1, 0] == 9).all() and (shown[-1, -1] == 0).all()


def test_a_still_of_wide_pictures_has_one_under_the_other():
    widget = a_compare(np.full((2, 50), 9, np.uint8), np.zeros((2, 50), np.uint8), scale=10)
    shown = decode(widget.still())
    assert widget.still_width() == 500 and shown.shape == (2 * 88, 1000, 3)
    assert (shown[2 * 43, :] == 9).all() and (shown[-1] == 0).all()


SQUARE = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def tiles(x):
    """Four tiles in another order."""
    a, b, c, d = (t for half in x.chunk(2, 2) for t in half.chunk(2, 3))
    return torch.cat([torch.cat([c, a], 3), torch.cat([d, b], 3)], 2)


@pytest.mark.parametrize(
    "view, motion",
    [
        (lambda x: x.rot90(1, (2, 3)), "turn 90"),
        (lambda x: x.rot90(2, (2, 3)), "turn 180"),
        (lambda x: x.rot90(-1, (2, 3)), "turn 270"),
        (lambda x: x.flip(2), "flip"),
        (lambda x: x.flip(3), "mirror"),
        (tiles, "permute"),
    ],
)
def test_a_turner_moves_the_pixels_as_its_view_does(view, motion):
    turner = Turner(SQUARE, view, names=("a", "b"), **WORDS)
    moved = view(torch.from_numpy(SQUARE).permute(2, 0, 1)[None])[0].permute(1, 2, 0)
    assert turner.motion == motion and (turner.second == moved.numpy()).all()


@pytest.mark.parametrize(
    "make, error, name",
    [
        (lambda: a_compare(grey(9).astype(float)), ShapeError, "before"),
        (lambda: a_compare(after=np.zeros((8, 11), np.uint8)), ShapeError, "after"),
        (lambda: a_compare(start=1.1), OptionError, "start"),
        (lambda: a_compare(start=float("nan")), OptionError, "start"),
        (lambda: a_compare(scale=0), OptionError, "scale"),
        (lambda: a_compare(names=("small", " ")), OptionError, "names"),
        (lambda: a_turner(SQUARE / 255), ShapeError, "picture"),
        (lambda: a_turner(view=lambda x: x[..., :4]), ShapeError, "view"),
        (lambda: a_turner(grey(9), view=lambda x: x.rot90(1, (2, 3))), ShapeError, "view"),
        (lambda: a_turner(view=lambda x: -x), OptionError, "view"),
        (lambda: a_turner(view=lambda x: x * 0), OptionError, "view"),
        (lambda: a_turner(names=("", "b")), OptionError, "names"),
        (lambda: a_turner(names="ab"), OptionError, "names"),
        (lambda: Turner(SQUARE, 7, names=("a", "b"), **WORDS), OptionError, "the function"),
        (
            lambda: Turner(lambda k: SQUARE, tiles, Slider("k", [1, 2]), names=("a", "b"), **WORDS),
            OptionError,
            "tiles",
        ),
    ],
)
def test_compare_and_turner_refuse(make, error, name):
    with pytest.raises(error, match=f"^{name}"):
        make()


def a_turner(picture=SQUARE, view=tiles, **options):
    return Turner(picture, view, **{"names": ("a", "b"), **WORDS, **options})


# ------------------------------------------------------------ questions


@pytest.fixture
def nothing_asked(monkeypatch):
    monkeypatch.setattr("ddpm_edu.show.widgets.question.ASKED", {})


def test_predictions_are_counted_once_a_question(nothing_asked):
    ask = lambda: predict("Larger?", ["1/2", "1/3"], "1/2", "Halves are.")
    first, quiz = ask(), predict("Even?", ["yes", "no"], ["yes", "no"], "2 is.", items=["2", "3"])
    assert repr(predictions()) == "3 questions asked, no prediction made yet."
    first.set_state({"chosen": [1]})
    assert (
        first.right == 0 and repr(predictions()) == "0 of 1 predictions right (2 not answered yet)."
    )
    quiz.set_state({"chosen": [0, -1]})
    assert quiz.right is None
    quiz.set_state({"chosen": [0, 1]})
    assert quiz.right == 2 and repr(predictions()) == "2 of 3 predictions right."
    ask().set_state({"chosen": [0]})  # the cell was run again
    assert repr(predictions()) == "3 of 3 predictions right."


def test_a_saved_question_folds_its_answer_and_picture():
    picture = plot.image_grid(np.zeros((1, 1, 4, 4)), alt="One square", caption="Grey.")
    page = predict("a < b?", ["yes", "no"], "no", "b is <b>small</b>.", picture=picture).page()
    before, after = page.split("<details>")
    assert "a &lt; b?" in before and "yes / no?" in before and "small" not in before
    assert after.startswith("<summary>") and after.endswith("</details>")
    assert "<b>no.</b> b is &lt;b&gt;small&lt;/b&gt;." in after and 'alt="One square"' in after


@pytest.mark.parametrize(
    "question, options, answer, why, items, name",
    [
        ("", ["a", "b"], "a", "w", None, "question"),
        ("q", ["a", "b"], "a", " ", None, "why"),
        ("q", ["a", "a"], "a", "w", None, "options"),
        ("q", ["a", "b"], "c", "w", None, "answer"),
        ("q", ["a", "b"], ["a"], "w", ["x", "y"], "answer"),
        ("q", ["a", "b"], ["a", "c"], "w", ["x", "y"], "answer"),
    ],
)
def test_predict_refuses(question, options, answer, why, items, name):
    with pytest.raises(OptionError, match=f"^{name} "):
        predict(question, options, answer, why, items=items)


# ------------------------------------------------------------ saved notebooks


@pytest.mark.parametrize(
    "make",
    [
        a_film,
        a_point_film,
        a_code_film,
        a_drag,
        a_compare,
        a_turner,
        lambda: SliderImage(grey, Slider("t", [0, 1]), **WORDS),
        lambda: SliderPicture(lambda ax, t: None, Slider("t", [0, 1]), **WORDS),
    ],
)
def test_every_widget_leaves_a_still_picture_beside_its_view(make):
    widget = make()
    bundle, _ = widget._repr_mimebundle_()
    assert bundle[VIEW]["model_id"] == widget.model_id
    source = re.search(r'src="data:image/(?:png|webp);base64,([^"]+)"', bundle["text/html"]).group(
        1
    )
    assert (decode(base64.b64decode(source)) == decode(widget.still())).all()
    assert f'alt="{widget.alt}"' in bundle["text/html"] and widget.alt in bundle["text/plain"]


def test_an_executed_notebook_holds_the_still_picture_and_freeze_keeps_only_that(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    cell = """
import numpy as np
from ddpm_edu.show.widgets import Film
Film(np.zeros((3, 8, 8), np.uint8), label="black", caption="c")"""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell), nbformat.v4.new_markdown_cell("text")]
    )
    nbclient.NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    data = notebook.cells[0].outputs[0].data
    assert {VIEW, "text/html", "text/plain"} <= set(data)
    notebook.metadata["widgets"] = {"stale": True}
    freeze(notebook)
    assert "widgets" not in notebook.metadata
    assert set(notebook.cells[0].outputs[0].data) == {"text/html", "text/plain"}
    assert 'alt="black: a film of 3 frames"' in notebook.cells[0].outputs[0].data["text/html"]
    nbformat.validate(notebook)


def test_tile_makes_frames():
    x = torch.zeros(6, 1, 8, 8)
    film = Film(
        [np.concatenate([plot.tile(x, 3), plot.tile(x, 3)], axis=1)] * 2, label="l", caption="c"
    )
    assert film.shape == [2, 17, 52, 1]
