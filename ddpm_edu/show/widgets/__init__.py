"""Sliders and prompts that redraw, films, a point to drag, a pad, questions. All notebooks.

    SliderPicture(draw, Slider("t", range(1000), 300), alt="Noise at t = {t}", caption="Drag t.")
    Film(frames, label="x_t and x0-hat", captions=texts, caption="Noise becomes a digit.")
    CodeFilm({"one by one": (steps, pictures)}, label="Codes", caption="A picture, word by word.")
    Pad(render, picture=x, colors=COLOURS, alt="The new digit", caption="Draw.")
    Playground(points, alt="Points to draw", caption="Draw, and watch a network learn.")
    Compare(old, new, names=("before", "after"), alt="Two digits", caption="Move the handle.")
    Turner(picture, view, names=("six", "nine"), alt="A six or a nine", caption="Turn it.")
    oral([("Why?", "Because.", ["01"])], n=1, seed=0)
    predict("Which is brighter?", ["left", "right"], answer, why="...", picture=picture)

Each widget, shown in a notebook, also leaves a still picture with alt text in the saved file:
readers on GitHub, who have no kernel, see that. Each widget is a pair of short files: film.py for
the kernel, film.js for the page.
"""

from .base import Widget, freeze
from .codes import CodeFilm
from .compare import Compare
from .controls import Choice, Slider, Text, Toggle
from .drag import DragPoint
from .film import Film, PointFilm
from .oral import Oral, oral
from .pad import Pad
from .panel import SliderImage, SliderPicture
from .playground import Playground
from .question import predict, predictions
from .turner import Turner
from .unet import UNetView

__all__ = [
    "SliderPicture",
    "SliderImage",
    "Slider",
    "Choice",
    "Toggle",
    "Text",
    "Film",
    "PointFilm",
    "CodeFilm",
    "DragPoint",
    "Pad",
    "Playground",
    "Compare",
    "Turner",
    "predict",
    "predictions",
    "Oral",
    "oral",
    "UNetView",
    "Widget",
    "freeze",
]
