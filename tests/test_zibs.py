"""The creature of notebook 17: what its captions say is painted, and the probe and the colour reader find it."""

import numpy as np
import pytest
import torch
from helpers import refuses

from ddpm_edu import load
from ddpm_edu.datasets.emoji import emoji
from ddpm_edu.datasets.zibs import COLOURS, MOODS, Zib, paint_zib, pairs, read_colours, zibs
from ddpm_edu.errors import OptionError, ShapeError
from ddpm_edu.metrics.probe import emoji_order, features, probe, zib_probe


def test_pictures_and_captions():
    own = zibs(16)
    x, captions = own[torch.tensor([0, 5])]
    assert x.shape == (2, 3, 64, 64) and x.abs().max() <= 1 and len(own) == 16
    assert captions == [own.zibs[0].caption, own.zibs[5].caption]
    assert all(colour in text for (colour, _), text in zip(pairs(True), own[:][1]))
    assert torch.equal(own.images, zibs(16).images)
    assert not torch.equal(own.images, zibs(16, seed=1).images)


def test_new_prompts_are_of_no_training_picture():
    assert len(pairs(True)) == 16 and len(pairs(False)) == 8
    assert not set(pairs(True)) & set(pairs(False))
    assert {colour for colour, _ in pairs(True)} == {colour for colour, _ in pairs(False)}
    assert not set(zibs(16)[:][1]) & set(zibs(8, known=False)[:][1])


def test_every_part_of_a_zib_is_seen():
    """Each number of a Zib changes its picture, and so does each mood."""
    plain = Zib("red", "smiling")
    painted = [paint_zib(plain._replace(**{part: 1.0})) for part in ("lean", "high", "look")]
    painted += [paint_zib(plain._replace(mood=mood)) for mood in MOODS[1:]]
    assert all(np.abs(p.astype(int) - paint_zib(plain)).mean() > 0.3 for p in painted)
    with refuses(OptionError, "colour", "grey"):
        paint_zib(Zib("grey", "smiling"))
    with refuses(OptionError, "mood"):
        paint_zib(Zib("red", "bored"))


def test_colours_are_read():
    for known in (True, False):
        own = zibs(16, seed=9, known=known)
        assert read_colours(own[:][0]) == [zib.colour for zib in own.zibs]
    assert set(read_colours(zibs(16)[:][0])) == set(COLOURS)


def test_the_probe_knows_zibs_from_emoji():
    """On zibs and emoji that it was not fitted to."""
    is_zib = zib_probe(load("emoji_clip"))
    assert is_zib(zibs(24, seed=70)[:][0]).double().mean() > 0.9
    assert is_zib(emoji()[emoji_order()[:100]][0]).double().mean() < 0.06


def test_a_probe_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    yes, no = torch.randn(50, 3, generator=generator) + 4, torch.randn(400, 3, generator=generator)
    found = probe(yes, no, alarms=0.05)
    assert found(yes).double().mean() > 0.95
    assert found(no).double().mean() == pytest.approx(0.05, abs=0.01)
    with refuses(ShapeError, "yes"):
        probe(yes, no[:, :2])


def test_features_do_not_depend_on_the_batch():
    clip, x = load("emoji_clip"), zibs(5)[:][0]
    assert torch.allclose(features(clip, x), features(clip, x, batch=2), atol=1e-5)
