"""The picker of steps, and the drawings of a DiT block and of MM-DiT's two kinds of block."""

import numpy as np
import pytest
from helpers import refuses

from ddpm_edu import OptionError
from ddpm_edu.show import plot
from ddpm_edu.show.flow import draw_block, draw_streams, picker
from ddpm_edu.show.widgets import DragPoint

WORDS = {"alt": "{steps} steps", "caption": lambda steps: f"after {steps}"}


def grey(level):
    return np.full((3, 3, 8, 8), level, np.float32)


def a_picker(**options):
    pictures = {"plain": {1: grey(-1), 4: grey(0)}, "distilled": {1: grey(0.5), 4: grey(0.5)}}
    return picker(pictures, **WORDS, **options)


def test_the_picker_shows_each_model_at_the_chosen_steps():
    widget = a_picker(start=4)
    assert widget.values == {"steps": 4} and widget.alt == "4 steps"
    fours = widget.image
    widget.move(steps=1)
    assert widget.caption == "after 1" and widget.image != fours
    widget.move(steps=4)
    assert widget.image == fours


def test_rows_of_the_picker_stand_under_each_other_with_their_names():
    widget = a_picker()
    assert [ax.get_title(loc="left") for ax in widget._ax] == ["plain", "distilled"]
    tops = [ax.images[0].get_array().min() for ax in widget._ax]
    assert tops == [0, 191]  # -1 and 0.5 as bytes


def test_models_with_other_steps_are_refused():
    with refuses(OptionError, "same steps"):
        picker({"a": {1: grey(0), 2: grey(0)}, "b": {1: grey(0)}}, **WORDS)


@pytest.mark.parametrize("draw, words", [(draw_block, "adaLN"), (draw_streams, "attention")])
def test_texts_of_a_drawing_lie_in_their_boxes(draw, words):
    fig, ax = plot.axes(8.4, 2.5)
    draw(ax)
    plot.pixels(fig)
    boxes = [patch.get_window_extent() for patch in ax.patches if hasattr(patch, "get_boxstyle")]
    inside = [text for text in ax.texts if text.get_ha() == "center" and text.get_text() != "+"]
    held = [
        text
        for text in inside
        if any(
            b.x0 <= text.get_window_extent().x0 and text.get_window_extent().x1 <= b.x1
            and b.y0 <= text.get_window_extent().y0 and text.get_window_extent().y1 <= b.y1
            for b in boxes
        )
    ]  # fmt: skip
    assert len(held) == len(boxes) and any(words in text.get_text() for text in held)


def test_a_dragged_path_says_what_its_note_says():
    path = {"way": np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])}
    note = lambda way: f"{len(way)} points"
    widget = DragPoint(None, lambda xy: path, alt="a", caption="c", note=note)
    assert widget.summary.endswith("way ends at (0.00, 0.00), 3 points")
