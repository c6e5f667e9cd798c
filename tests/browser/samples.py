"""One cell for every kind of widget: the notebook that the tests open and the benchmark times."""

SETUP = """
import numpy as np
from ddpm_edu.show import plot
from ddpm_edu.show.widgets import Choice, DragPoint, Film, Slider, SliderImage, SliderPicture, Text, Toggle
x = np.linspace(0, 1, 300)
rng = np.random.default_rng(0)
cloud = rng.normal(size=(1500, 2))
"""

# a typical plot: two axes, curves with labels, a cloud of points
SLIDER_PICTURE = """
def draw(axes, t, shape, dark):
    curve, plane = axes
    line, other = plot.curves(curve, x, {"signal": x, "noise": x}, xlabel="t", ylabel="variance", labels=False)
    curve.set_ylim(0, 1)
    dots = plot.plane(plane, cloud)
    def update(t, shape, dark):
        signal = np.exp(-x * t / 200) if shape == "fast" else 1 - x * t / 999
        line.set_ydata(signal)
        other.set_ydata(1 - signal)
        dots.set_offsets(cloud * t / 999)
        dots.set_color("black" if dark else "grey")
    update(t, shape, dark)
    return update
SliderPicture(draw, Slider("t", range(1000), 300), Choice("shape", ["fast", "straight"]), Toggle("dark"), width=8, columns=2,
              alt="Signal and noise at t = {t}", caption="Signal and noise, {shape}.")
"""

# the same without `update`: cleared and drawn again
SLIDER_REDRAW = """
def redraw(ax, sigma):
    plot.curves(ax, x, {"a": np.exp(-x / sigma), "b": 1 - np.exp(-x / sigma)}, xlabel="x")
    ax.set_ylim(0, 1)
SliderPicture(redraw, Slider("sigma", np.geomspace(0.01, 80, 61), 1.0), alt="Curves at sigma = {sigma}", caption="Two curves at sigma = {sigma}.")
"""

SLIDER_IMAGE = """
clean = rng.random((112, 280))
def noisy(t):
    return (255 * (clean * (1 - t / 999) + 0.5 * t / 999)).astype(np.uint8)
SliderImage(noisy, Slider("t", range(1000), 300), alt="Forty squares at t = {t}", caption="x_t at t = {t}.")
"""

FILM = """
frames = np.stack([np.roll(np.tile((4 * np.arange(56)).astype(np.uint8), (28, 1)), k, axis=1) for k in range(150)])
Film(frames, [f"t = {k}" for k in range(150)], label="a ramp that moves", caption="Left to right.", start=0, autoplay=False)
"""

FILM_RGB = """
Film(rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8), label="coloured noise", caption="Coloured noise, again and again.", loop=True, start=0, autoplay=False)
"""

DRAG_POINT = """
def trace(xy):
    s = np.linspace(0, 1, 25)[:, None]
    return {"straight": xy * (1 - s), "curved": xy * (1 - s) ** 2 + np.sin(3 * s) * [0.5, 0]}
DragPoint(cloud, trace, start=(1, -1), alt="A cloud and two paths to the origin", caption="Drag the black point.")
"""

BROKEN = """
def fails(t):
    if t > 500:
        raise RuntimeError("t is too large for this picture")
    return np.full((8, 8), t % 256, np.uint8)
SliderImage(fails, Slider("t", range(1000), 100), alt="Grey {t}", caption="It fails above 500.")
"""

TEXT = """
import time, warnings
def letters(prompt, t):
    if "zebra" in prompt:
        warnings.warn("words never seen in training: 'zebra'")
    if prompt == "slow":
        time.sleep(1.5)
    if prompt == "fail":
        raise RuntimeError("no picture of that")
    return np.tile(np.frombuffer(prompt.encode().ljust(60)[:60], np.uint8), (20, 1)) + np.uint8(t)
SliderImage(letters, Text("prompt", "a red seven", label="what to draw", other="a green two"), Slider("t", range(9)), alt="{prompt}, {t}", caption="It draws: {prompt}.")
"""

PREDICT = """
from ddpm_edu.show.widgets import predict, predictions
fig, ax = plot.axes(4, 2)
ax.plot(x)
predict("Which way does the line go?", ["up", "down"], "up", "It rises from 0 to 1.",
        picture=plot.figure(fig, alt="The line of the question", caption="From 0 to 1."))
"""

QUIZ = """
predict("Which numbers are prime?", ["prime", "not prime"], ["not prime", "prime", "prime"], "1 is none.",
        items=["1", "2", "3"])
"""

# image-to-image with the painted system: 6 of 8 steps, each with guidance
PAD = """
import torch
from ddpm_edu import last, load
from ddpm_edu.datasets.painted import COLOURS
from ddpm_edu.show.widgets import Pad
from ddpm_edu.systems import decode, image_to_image
torch.set_num_threads(2)
sd, blue = load("painted"), torch.tensor([70, 30, 250])[None, :, None, None] / 127.5 - 1
def become(picture, mask, strength):
    steps = image_to_image(sd, "a large red seven on a blue ground, centre", picture, strength=strength, steps=8)
    return plot.tile(decode(sd, last(steps)))
Pad(become, Slider("strength", [0.5, 0.75, 1.0], 0.75), picture=blue.repeat(1, 1, 32, 32), colors=COLOURS, alt="A digit", caption="Draw a digit.")
"""

STILL = """
fig, ax = plot.axes(5, 2)
ax.plot(x)
plot.figure(fig, alt="A rising line", caption="It rises.")
"""

ALL = [
    SETUP,
    SLIDER_PICTURE,
    SLIDER_REDRAW,
    SLIDER_IMAGE,
    FILM,
    FILM_RGB,
    DRAG_POINT,
    BROKEN,
    TEXT,
    PREDICT,
    QUIZ,
    STILL,
]
