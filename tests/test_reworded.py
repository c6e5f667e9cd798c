"""Captions in other words: what stays, what moves, what is left out."""

import pytest
import torch
from helpers import refuses

from ddpm_edu.datasets.reworded import reworded
from ddpm_edu.datasets.zibs import zibs
from ddpm_edu.errors import OptionError


def test_pictures_stay_with_their_words():
    own = zibs(16)
    many = reworded(own, 8)
    index = torch.tensor([3, 19, 127])
    x_0, captions = many[index]
    assert len(many) == 128 and torch.equal(x_0, own[index % 16][0])
    for k, caption in enumerate(many.captions):
        first, *rest = caption.split(", ")
        zib = own.zibs[k % 16]
        assert first == "zib" and set(rest) <= {zib.mood, f"{zib.colour} hat"}
    assert many.captions == reworded(own, 8).captions != reworded(own, 8, seed=1).captions


def test_parts_come_in_any_order_and_are_left_out():
    """Four ways of two parts, with the shares of drop = 0.3: both 0.49, one 0.42, none 0.09."""
    many = reworded(zibs(16), 200).captions
    parts = [caption.count(", ") for caption in many]
    assert [parts.count(n) / len(many) for n in (2, 1, 0)] == pytest.approx(
        [0.49, 0.42, 0.09], abs=0.03
    )
    both = [caption for caption, n in zip(many, parts) if n == 2]
    assert sum(caption.endswith("hat") for caption in both) / len(both) == pytest.approx(
        0.5, abs=0.05
    )


def test_nothing_is_left_out_unless_asked():
    own = zibs(3)
    every = {frozenset(text.split(", ")) for text in own[:][1]}
    assert {frozenset(text.split(", ")) for text in reworded(own, 5, drop=0).captions} == every
    assert set(reworded(own, 2, drop=1).captions) == {"zib"}
    for bad in (dict(n=0), dict(drop=-0.1), dict(drop=1.5)):
        with refuses(OptionError, next(iter(bad))):
            reworded(own, **bad)
