"""The creature of notebook 17: what its captions say is painted; CLIP's pictures and the colour reader find it."""

import numpy as np
import torch
from helpers import refuses

from ddpm_edu import load
from ddpm_edu.datasets.emoji import emoji
from ddpm_edu.datasets.zibs import COLOURS, MOODS, Zib, paint_zib, pairs, read_colours, zibs
from ddpm_edu.errors import DataError, OptionError
from ddpm_edu.metrics.prototypes import emoji_order, nearest, prototypes, zib_among


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


def test_zibs_are_found_among_a_hundred():
    """Zibs of other seeds and of new captions; of the emoji that are choices each is its own."""
    among = zib_among(load("emoji_clip"))
    fresh = torch.cat([zibs(40, seed=70)[:][0], zibs(16, seed=71, known=False)[:][0]])
    assert (among(fresh) == 0).double().mean() > 0.95
    order = emoji_order()
    assert torch.equal(among(emoji()[order[:99]][0]), torch.arange(1, 100))
    assert (among(emoji()[order[100:300]][0]) == 0).double().mean() < 0.02


def test_a_prototype_is_the_mean_of_unit_vectors():
    clip, x = load("emoji_clip"), zibs(5)[:][0]
    classes = prototypes(clip, [x[:3], x[3:4]])
    with torch.no_grad():
        features = clip.image(x)
    mean = features[:3].mean(0)
    torch.testing.assert_close(classes[0], mean / mean.norm())
    torch.testing.assert_close(classes[1], features[3])
    assert nearest(clip, x[3:4], classes).item() == 1
    for classes in ([], [x, x[:0]]):
        with refuses(DataError, "classes"):
            prototypes(clip, classes)
