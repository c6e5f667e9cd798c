"""Originals, buckets, and what is read back from their cuts. Notebook 13."""

import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from ddpm_edu.datasets.buckets import bucket_order, buckets, nearest_bucket
from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.datasets.originals import (
    SIDES,
    WIDEST,
    Original,
    caption,
    captions,
    cut,
    excess,
    originals,
    paint,
    parse,
)
from ddpm_edu.datasets.painted import COLOURS, Scene, held_out
from ddpm_edu.errors import DataError, OptionError, ShapeError
from ddpm_edu.metrics.cuts import aesthetic, obeyed, read_cuts

SQUARE, MINI = (32, 32), buckets(32, 4, WIDEST)


@pytest.fixture(scope="module")
def test_set():
    return originals("test", 6000)


def middle(original, target):
    return tuple((e + 1) // 2 for e in excess(original, target))


def aspects(data):
    sizes = data.sizes().double()
    return (sizes[:, 0] / sizes[:, 1]).log(), sizes.prod(1).sqrt()


# ---------------------------------------------------------------- data


def test_caption_and_parse_are_inverse():
    for digit in range(10):
        original = Original(digit, "red", "black", 20, 30, 0.7)
        assert parse(caption(original)) == (digit, "red", "black")


@pytest.mark.parametrize(
    "text, word",
    [("a red seven", "a red seven"), ("a mauve seven on a red ground", "mauve"), (7, "7"),
     ("a red ten on a blue ground", "ten")],
)  # fmt: skip
def test_other_sentences_are_refused(text, word):
    with pytest.raises(OptionError, match=word):
        parse(text)


def test_picture_i_depends_on_i_and_the_seed_alone():
    few, many = originals("test", 5, seed=3), originals("test", 50, seed=3)
    assert few.original(4) == many.original(4) != originals("test", 5, seed=4).original(4)
    assert torch.equal(few.picture(4), many.picture(4))


def test_sizes_fill_their_range():
    log_aspect, _ = aspects(data := originals("train", 20000))
    assert data.sizes().min() == SIDES[0] and data.sizes().max() >= SIDES[1] - 2
    assert log_aspect.abs().max() < torch.tensor(WIDEST * 1.06).log()  # sides are whole pixels
    share = nearest_bucket(data.sizes(), MINI).bincount(minlength=len(MINI)) / len(data)
    assert len(MINI) == 7 and share.min() > 0.09


def test_held_out_combinations_are_kept_from_training():
    for held in (False, True):
        data = originals("train", 3000, held=held)
        known = (data.original(i) for i in range(len(data)))
        assert all(held_out(Scene(*o[:3], "small", "centre")) == held for o in known)


def test_captions_are_those_of_the_originals():
    """10 digits, 7 x 6 pairs of colours; a tenth is held out."""
    every, train, held = (captions(h) for h in (None, False, True))
    assert len(set(every)) == len(every) == 10 * len(COLOURS) * (len(COLOURS) - 1)
    assert sorted(train + held) == sorted(every) and len(held) == pytest.approx(len(every) / 10, 1)
    for known, h in ((train, False), (held, True)):
        data = originals("train", 3000, held=h)
        assert {caption(data.original(i)) for i in range(len(data))} <= set(known)


def test_a_cut_of_its_own_size_is_the_picture():
    original = Original(3, "white", "black", 40, 56, 0.7)
    picture = paint(originals("test", 1).digits[18], original)
    assert picture.shape == (3, 40, 56)
    assert torch.equal(cut(picture, (40, 56)), picture)


def test_crops_move_through_the_resized_original():
    picture = torch.arange(3 * 20 * 60.0).reshape(3, 20, 60)
    assert excess((20, 60), (20, 20)) == (0, 40) and excess((60, 20), (40, 40)) == (80, 0)
    for left in (0, 7, 40):
        assert torch.equal(cut(picture, (20, 20), (0, left)), picture[:, :, left : left + 20])


@pytest.mark.parametrize("crop", [(1, 0), (0, 41), (0, -1), (0, 1.5)])
def test_a_crop_outside_is_refused(crop):
    with pytest.raises(OptionError, match="crop top" if crop[0] else "crop left"):
        cut(torch.zeros(3, 20, 60), (20, 20), crop)


def test_a_cut_says_where_it_comes_from(test_set):
    x, where = test_set.cut(0, SQUARE, (0, 0))
    assert x.shape == (3, 32, 32) and x.dtype == torch.float32 and x.abs().max() <= 1
    assert where == (tuple(test_set.original(0)[3:5]), (0, 0), SQUARE)


# ---------------------------------------------------------------- buckets


def test_sdxl_buckets():
    """Shapes that appendix I of the paper lists; areas up to 7 % less than 1024 x 1024."""
    shapes = buckets(1024, 64, 4.0)
    listed = {(512, 2048), (576, 1792), (768, 1344), (832, 1216), (1024, 1024), (1344, 768)}
    assert listed <= set(shapes)
    assert all(h % 64 == w % 64 == 0 and 0.93 < h * w / 1024**2 <= 1 for h, w in shapes)
    assert sorted((w, h) for h, w in shapes) == sorted(shapes)


def test_every_shape_is_nearest_to_itself():
    assert nearest_bucket(torch.tensor(MINI), MINI).tolist() == list(range(len(MINI)))
    assert MINI[nearest_bucket(torch.tensor([[500, 500]]), MINI)] == SQUARE


@pytest.mark.parametrize("args, name", [((30, 4, 2.0), "side"), ((32, 4, 0.5), "widest")])
def test_impossible_buckets_are_refused(args, name):
    with pytest.raises(OptionError, match=name):
        buckets(*args)


def test_a_batch_comes_from_one_bucket():
    bucket = torch.randint(5, (1000,), generator=torch.Generator().manual_seed(0))
    orders = [bucket_order(bucket, 8, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    for order in orders:
        assert len(order.unique()) == len(order) >= 1000 - 5 * 7
        batches = bucket[order].reshape(-1, 8)
        assert (batches == batches[:, :1]).all()
    first = bucket[orders[0]][::8]
    assert (first.diff() != 0).any() and first.bincount().min() > 10  # mixed, none forgotten


def test_a_bucket_too_small_for_a_batch_is_named():
    with pytest.raises(DataError, match="bucket 1 has 3 pictures"):
        bucket_order(torch.tensor([0] * 9 + [1] * 3), 4, torch.Generator())


# ---------------------------------------------------------------- read back


@pytest.mark.parametrize("shape", [*MINI, (44, 24), (24, 44)])
def test_real_cuts_are_read_right(test_set, shape):
    log_aspect, side = aspects(test_set)
    own = torch.tensor(shape[0] / shape[1]).log()
    like = (((log_aspect - own).abs() < 0.1) & (side > 34)).nonzero()[:150, 0].tolist()
    known = [test_set.original(i) for i in like]
    x = torch.stack([test_set.cut(i, shape, middle(o[3:5], shape))[0] for i, o in zip(like, known)])
    right = obeyed(x, [caption(o) for o in known]).float().mean()
    assert len(like) > 100 and right > (0.93 if min(shape) == 20 else 0.97)
    assert read_cuts(x).whole.float().mean() > 0.97


def test_sharpness_follows_the_size_of_the_original(test_set):
    log_aspect, side = aspects(test_set)
    square = (log_aspect.abs() < 0.15).nonzero()[:400, 0]
    x = torch.stack([test_set.cut(i, SQUARE, (0, 0))[0] for i in square.tolist()])
    sharpness = read_cuts(x).sharpness
    edges = [12, 16, 20, 24, 28, 34, 44, 60, 97]
    means = [
        sharpness[(side[square] >= a) & (side[square] < b)].mean() for a, b in zip(edges, edges[1:])
    ]
    assert spearmanr(range(8), means).statistic > 0.99 and means[0] < 0.5 * means[-1]


def test_the_aesthetic_score_is_ten_times_the_sharpness(test_set):
    """Bytes or floats; an edge from ground to ink within one pixel has 10, a flat picture 0."""
    x = torch.full((2, 3, 24, 40), -1.0)
    x[0, :, 6:18, 15:25] = 1.0
    assert aesthetic(x)[0] > 9.5 and aesthetic(x)[1] == 0
    x = torch.stack([test_set.cut(i, SQUARE, (0, 0))[0] for i in range(64)])
    assert torch.allclose(aesthetic(x), 10 * read_cuts(x).sharpness, atol=1e-5)
    assert torch.allclose(aesthetic(to_uint8(x)), aesthetic(x), atol=1e-4)
    wider = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    blurred = torch.nn.functional.avg_pool2d(wider, 3, 1)
    assert aesthetic(blurred).mean() < 0.7 * aesthetic(x).mean()


@pytest.mark.parametrize("axis", [0, 1])
def test_the_place_follows_the_crop(test_set, axis):
    log_aspect, _ = aspects(test_set)
    long = ((log_aspect - (0.69 if axis == 0 else -0.69)).abs() < 0.1).nonzero()[:150, 0].tolist()
    generator, expected, places = torch.Generator().manual_seed(0), [], []
    for i in long:
        over = excess(test_set.original(i)[3:5], SQUARE)[axis]
        crop = [0, 0]
        crop[axis] = torch.randint(over + 1, (1,), generator=generator).item()
        expected.append(over / 2 - crop[axis])
        places.append(
            read_cuts(test_set.cut(i, SQUARE, tuple(crop))[0][None]).place[0, axis].item()
        )
    assert pearsonr(expected, places).statistic > 0.95


def test_a_picture_without_a_digit():
    x = torch.full((1, 3, 20, 52), -1.0)
    reading = read_cuts(x)
    assert reading.ink == reading.ground == list(COLOURS).index("black")
    assert not reading.whole and reading.sharpness == 0 and not reading.place.any()
    assert reading.brightness == -1
    assert not obeyed(x, ["a red seven on a black ground"])


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (0, 3, 32, 32)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ShapeError):
        read_cuts(torch.zeros(shape))
