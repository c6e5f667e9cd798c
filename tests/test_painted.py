"""painted.py and obedience.py: captions and pictures determine each other, and nothing held out is
ever painted for training."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import refuses

from ddpm_edu.datasets import images as data
from ddpm_edu.datasets import painted
from ddpm_edu.datasets.painted import (
    COLOURS,
    PLACES,
    SIZES,
    Scene,
    caption,
    held_out,
    paint,
    painted_digits,
    parse,
    prompts,
    scenes,
)
from ddpm_edu.errors import DataError, OptionError, ShapeError
from ddpm_edu.metrics import obedience

SCENE = Scene(7, "red", "blue", "large", "top left")


@pytest.fixture(scope="module")
def test_set():
    return painted_digits("test", held=None)


@pytest.fixture(scope="module")
def classifier():
    from ddpm_edu.files.load import load

    return load("mnist_classifier")


# ---------------------------------------------------------------- the grammar


def test_captions_read_well_and_back():
    assert caption(SCENE) == "a large red seven on a blue ground, top left"
    every = [caption(scene) for scene in scenes()]
    assert len(set(every)) == 10 * 8 * 7 * 2 * 5 and [parse(text) for text in every] == scenes()


def test_what_is_held_out():
    combinations = {tuple(s[:3]) for s in scenes()}
    held = {tuple(s[:3]) for s in scenes(True)}
    assert (
        len(combinations) == 560
        and len(held) == 56
        and not held & {tuple(s[:3]) for s in scenes(False)}
    )
    for a, b in itertools.combinations(
        range(3), 2
    ):  # any two of the three are seen together in training
        assert {(s[a], s[b]) for s in combinations - held} == {(s[a], s[b]) for s in combinations}
    for k in range(3):  # and every digit, ink and ground is held out sometimes
        assert {s[k] for s in held} == {s[k] for s in combinations}
    assert held_out(Scene(0, "black", "yellow", "small", "centre")) is False  # 0 + 0 + 3 * 5 = 15
    assert held_out(Scene(5, "black", "yellow", "small", "centre")) is True


@pytest.mark.parametrize(
    "scene, words",
    [
        (SCENE._replace(digit=10), ["digit = 10 ", "0 to 9"]),
        (SCENE._replace(digit=-1), ["digit = -1"]),
        (SCENE._replace(digit=7.0), ["digit = 7.0"]),
        (SCENE._replace(digit=True), ["digit = True"]),
        (
            SCENE._replace(ink="mauve"),
            ["ink = 'mauve' is not known: choose one of black, white, red"],
        ),
        (SCENE._replace(ground="mauve"), ["ground = 'mauve'"]),
        (SCENE._replace(ground="red"), ["both red", "two colours"]),
        (SCENE._replace(size="huge"), ["size = 'huge'", "small, large"]),
        (SCENE._replace(place="left"), ["place = 'left'", "top left"]),
        ((7, "red"), ["no scene"]),
    ],
)
def test_unknown_words(scene, words):
    for use in (caption, held_out, lambda s: paint(torch.ones(1, 28, 28, dtype=torch.uint8), [s])):
        with refuses(OptionError, *words):
            use(scene)


@pytest.mark.parametrize(
    "text, words",
    [
        ("a large mauve seven on a blue ground, top left", ["ink = 'mauve'"]),
        ("a large red ten on a blue ground, top left", ["digit = 'ten'", "zero, one"]),
        ("a large red seven on a blue ground, nowhere", ["place = 'nowhere'"]),
        ("a large red seven on a red ground, top left", ["both red"]),
        (
            "a large red seven",
            [
                "'a large red seven' is no caption",
                "write one like 'a large red seven on a blue ground, top left'",
            ],
        ),
        (" a large red seven on a blue ground, top left", ["is no caption"]),
        ("", ["'' is no caption"]),
        (None, ["None is no caption"]),
    ],
)
def test_other_sentences(text, words):
    with refuses(OptionError, *words):
        parse(text)


def test_prompts():
    assert prompts(5, seed=1) == prompts(500, seed=1)[:5] != prompts(5, seed=2)
    assert not any(held_out(parse(p)) for p in prompts(500)) and all(
        held_out(parse(p)) for p in prompts(500, held=True)
    )
    among = [parse(p) for p in prompts(5600, held=None)]
    for values in zip(*among):  # uniform: the rarest word is not far from the commonest
        counts = np.unique(np.array(values), return_counts=True)[1]
        assert counts.min() > 0.8 * counts.max()
    with refuses(OptionError, "n = 0"):
        prompts(0)


def test_colours_differ_for_every_eye():
    """CIELAB distances, also as simulated for missing cones (Machado, Oliveira, Fernandes 2009,
    severity 1)."""
    eyes = {
        "all cones": (np.eye(3), 55),
        "no red": (
            np.array(
                [
                    [0.152286, 1.052583, -0.204868],
                    [0.114503, 0.786281, 0.099216],
                    [-0.003882, -0.048116, 1.051998],
                ]
            ),
            30,
        ),
        "no green": (
            np.array(
                [
                    [0.367322, 0.860646, -0.227968],
                    [0.280085, 0.672501, 0.047413],
                    [-0.011820, 0.042940, 0.968881],
                ]
            ),
            30,
        ),
        "no blue": (
            np.array(
                [
                    [1.255528, -0.076749, -0.178779],
                    [-0.078411, 0.930809, 0.147602],
                    [0.004733, 0.691367, 0.303900],
                ]
            ),
            30,
        ),
    }
    srgb = np.array(list(COLOURS.values())) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ) / np.array([[0.9505], [1], [1.089]])
    for eye, (seen, least) in eyes.items():
        xyz = (linear @ seen.T).clip(0, 1) @ to_xyz.T
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        lab = np.stack(
            [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1
        )
        nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))
        assert nearest > least, (eye, nearest)


# ---------------------------------------------------------------- painting


def block(height=20, width=8):
    """An MNIST picture of a full block."""
    picture = torch.zeros(28, 28, dtype=torch.uint8)
    picture[14 - height // 2 : 14 + height // 2, 14 - width // 2 : 14 + width // 2] = 255
    return picture


@pytest.mark.parametrize("size, side", SIZES.items())
@pytest.mark.parametrize("place, corner", PLACES.items())
def test_paint_puts_ink_where_the_scene_says(size, side, place, corner):
    picture = paint(block()[None], [Scene(1, "yellow", "green", size, place)])[0].long()
    ink, ground = (torch.tensor(COLOURS[c])[:, None, None] for c in ("yellow", "green"))
    where = (picture == ink).all(0).nonzero()
    assert (where.amax(0) - where.amin(0) + 1 - torch.tensor([side, 0.4 * side])).abs().max() <= 2
    assert (
        (where.amax(0) + where.amin(0)) / 2
        - 15.5
        - torch.tensor(corner) * {"small": 8, "large": 4}[size]
    ).abs().max() <= 0.5
    frame = torch.ones(32, 32, dtype=torch.bool)
    frame[1:-1, 1:-1] = False
    assert (picture[:, frame] == ground[:, 0]).all()
    between = (picture >= torch.minimum(ink, ground)) & (picture <= torch.maximum(ink, ground))
    assert between.all()


def test_paint_takes_mnist_as_it_comes():
    real = data.mnist("test").subset(8)
    wanted = [SCENE._replace(digit=int(k)) for k in real.labels]
    assert paint(real.images, wanted).equal(paint(real.images[:, 0], wanted))
    for images, error, words in (
        (real.images[:7], ShapeError, [r"\(7, 28, 28\)", "8 scenes"]),
        (real.images[:, 0, :20], ShapeError, [r"\(8, 20, 28\)"]),
        (real[:][0], DataError, ["float32", "bytes"]),
        (torch.zeros_like(real.images), DataError, ["without ink"]),
    ):
        with refuses(error, *words):
            paint(images, wanted)


# ---------------------------------------------------------------- the dataset


def test_batches(test_set):
    x_0, captions = test_set[torch.tensor([5, 3])]
    assert (
        x_0.shape == (2, 3, 32, 32)
        and x_0.dtype == torch.float32
        and x_0.min() >= -1
        and x_0.max() <= 1
    )
    assert captions == [test_set.captions([5])[0], test_set.captions(3)[0]] == test_set[[5, 3]][1]
    assert x_0.equal(torch.cat([test_set[5][0], test_set[3][0]])) and test_set[2:4][0].equal(
        test_set[[2, 3]][0]
    )
    assert test_set.images([5]).equal(paint(test_set.digits[[5]], test_set.scenes([5])))
    assert test_set[-1][1] == test_set[len(test_set) - 1][1] and test_set[-1][0].equal(
        test_set[len(test_set) - 1][0]
    )
    with pytest.raises(IndexError):
        test_set[len(test_set)]


def test_a_picture_depends_on_index_and_seed_alone():
    few, many, other = (
        painted_digits("test", n, seed) for n, seed in ((20, 3), (25_000, 3), (20, 4))
    )
    assert few.captions() == many.captions(slice(20)) != other.captions() and few[:][0].equal(
        many[:20][0]
    )
    assert (
        many.numbers[:10_000, 0] == many.numbers[10_000:20_000, 0]
    ).all()  # the same digits once more,
    assert (many.numbers[:10_000] == many.numbers[10_000:20_000]).all(
        1
    ).float().mean() < 0.01  # painted anew
    before = torch.random.get_rng_state()
    assert few[0][0].equal(few[0][0]) and torch.random.get_rng_state().equal(before)


def test_training_never_shows_what_is_held_out():
    train, held = painted_digits(), painted_digits("test", held=True)
    assert len(train) == 60_000 and len(held) == 10_000
    combinations = lambda dataset: {tuple(row) for row in dataset.numbers[:, :3].tolist()}
    out = {painted.numbers_of(s)[:3] for s in scenes(True)}
    assert (
        len(combinations(train)) == 504
        and not combinations(train) & out
        and combinations(held) == out
    )
    assert (train.numbers[:, 0] == data.mnist().labels).all()
    for column, values in ((1, 8), (2, 8), (3, 2), (4, 5)):
        counts = train.numbers[:, column].bincount().double()
        assert len(counts) == values and (counts / counts.mean() - 1).abs().max() < 0.05
    with refuses(OptionError, "'valid' is not known"):
        painted_digits("valid")
    with refuses(OptionError, "n = 0"):
        painted_digits("test", 0)


def test_digits_in_pieces_are_those_listed():
    """On the test digits: too short when large means listed, and listed ones are only painted
    small."""
    digits = data.mnist("test").images[:, 0]
    longest = []
    for some in digits.split(2000):
        top, bottom, left, right = painted.extent(painted._boxes(some, SIZES["large"]))
        longest.append(torch.maximum(bottom - top, right - left) + 1)
    assert tuple((torch.cat(longest) < 17).nonzero()[:, 0].tolist()) == painted.IN_PIECES["test"]
    many = painted_digits("test", 30_000)
    assert {
        s.size for k in painted.IN_PIECES["test"] for s in many.scenes([k, k + 10_000, k + 20_000])
    } == {"small"}


# ---------------------------------------------------------------- reading back


def test_real_painted_digits_are_read_right(test_set, classifier):
    found = obedience.fidelity(
        test_set.images(slice(1500)), test_set.captions(slice(1500)), classifier
    )
    assert found["digit"] > 0.99 and found["main"] == found["all"] == found["digit"]
    assert (
        found["ink"] == found["ground"] == found["size"] == found["place"] == found["colours"] == 1
    )


def test_every_pair_of_colours_is_read(classifier):
    """The stroke of one MNIST digit, all 560 combinations of colours, sizes and places."""
    wanted = [s for s in scenes() if s.digit == 7]
    seven = data.mnist("test").images[:1].expand(len(wanted), -1, -1, -1)
    assert obedience.read(paint(seven, wanted), classifier) == wanted


def test_reading_bears_what_generators_do(test_set, classifier):
    """Noise of 24 dB, the error of a small VAE, and values a little outside [-1, 1]."""
    x_0, captions = test_set[:300]
    noisy = 1.05 * x_0 + 0.126 * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    found = obedience.fidelity(noisy, captions, classifier)
    assert (
        found["colours"] > 0.99
        and found["digit"] > 0.97
        and found["size"] > 0.97
        and found["place"] > 0.97
    )


def test_reading_is_not_fooled(test_set, classifier):
    """Pictures beside the wrong captions; no digit at all; each word wrong alone."""
    images, captions = test_set.images(slice(100)), test_set.captions(slice(100))
    assert obedience.fidelity(images, captions[1:] + captions[:1], classifier)["all"] <= 0.02
    plain = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    assert all(s.ink == s.ground == "white" for s in obedience.read(plain, classifier))
    assert (
        obedience.fidelity(plain, ["a small red seven on a white ground, centre"] * 2, classifier)[
            "main"
        ]
        == 0
    )
    picture = paint(data.mnist("test").images[:1], [SCENE])
    for field, value in dict(
        digit=1, ink="pink", ground="cyan", size="small", place="centre"
    ).items():
        found = obedience.fidelity(picture, [caption(SCENE._replace(**{field: value}))], classifier)
        assert {name for name in Scene._fields if found[name] == 0} == {field} and found["all"] == 0


def test_read_refuses(classifier, test_set):
    x_0, captions = test_set[:2]
    with refuses(ShapeError, r"images has shape \(2, 1, 32, 32\)"):
        obedience.read(x_0[:, :1], classifier)
    with refuses(ShapeError, r"\(0, 3, 32, 32\)"):
        obedience.read(x_0[:0], classifier)
    with refuses(DataError, "NaN"):
        obedience.read(x_0 * float("nan"), classifier)
    with refuses(ShapeError, "2 images came with 1 captions"):
        obedience.fidelity(x_0, captions[:1], classifier)
    with refuses(OptionError, "no caption"):
        obedience.fidelity(x_0, ["red apple", captions[1]], classifier)


def test_importing_reads_nothing():
    code = (
        "import sys; opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "
        "'open' else None)\n"
        "import ddpm_edu.metrics.obedience, ddpm_edu.datasets.painted, ddpm_edu.datasets.emoji\n"
        "bad = [name for name in opened if name.endswith(('.gz', '.xz', '.webp', '.safetensors'))]\n"
        "assert opened and not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
