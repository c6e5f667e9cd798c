"""Hints: lines lie where the colour changes; and how well a picture follows them is counted."""

import pytest
import torch
from helpers import refuses

from ddpm_edu import DataError, OptionError, ShapeError
from ddpm_edu.datasets.hints import blurred, edges, strokes
from ddpm_edu.datasets.painted import painted_digits
from ddpm_edu.metrics.obedience import edge_f1


def halves(left=(-1, -1, -1), right=(1, 1, 1), at=8, side=16):
    """A picture of two colours, the right one from column `at`."""
    x = torch.tensor(left, dtype=torch.float32)[None, :, None, None].repeat(1, 1, side, side)
    x[:, :, :, at:] = torch.tensor(right, dtype=torch.float32)[:, None, None]
    return x


@pytest.mark.parametrize(
    "colours", [((-1, -1, -1), (1, 1, 1)), ((1, -1, 0), (-1, 1, 0)), ((0, 0, 0.1), (0, 0, -0.1))]
)
def test_a_step_is_a_line(colours):
    """Both sides of a sharp step are equally steep; a blurred one has its line in the middle."""
    there = edges(halves(*colours))[0] > 0
    assert there[:, :, 7:9].all() and not there[:, :, :7].any() and not there[:, :, 9:].any()
    soft = halves(*colours)
    soft[:, :, :, 8] = soft[:, :, :, [0, -1]].mean(-1)
    there = edges(soft)[0] > 0
    assert there[:, :, 8].all() and there.sum() == 3 * 16
    turned = edges(soft.mT)[0] > 0
    assert torch.equal(turned, there.mT)


def test_flat_pictures_have_none_and_faint_edges_are_passed_over():
    assert (edges(torch.zeros(2, 3, 8, 8)) == -1).all()
    x = halves(at=4)
    x[:, :, :, 12:] = 0.8  # a tenth of the other step
    assert not (edges(x)[:, :, :, 10:] > 0).any()
    assert (edges(x, threshold=0.05)[:, :, :, 11:13] > 0).all()


def test_one_picture_does_not_change_another():
    x = painted_digits("test", 4)[:][0]
    together, alone = edges(x), torch.cat([edges(one) for one in x.split(1)])
    assert torch.equal(together, alone) and together.shape == x.shape
    assert torch.equal(edges(x.flip(3)), together.flip(3))
    assert set(together.unique().tolist()) == {-1.0, 1.0}
    grey = x.mean(1, keepdim=True)
    assert torch.equal(edges(grey), edges(grey.expand(-1, 3, -1, -1)))


def test_strokes_hold_the_edges_and_are_broader():
    x = painted_digits("test", 4)[:][0]
    thin, broad = edges(x) > 0, strokes(x) > 0
    assert (broad | ~thin).all() and broad.sum() > 1.5 * thin.sum()


def test_blurred_keeps_colours_and_no_shapes():
    x = halves((1, -1, 0), (-1, 0, 1), at=16, side=32)
    soft = blurred(x)
    assert torch.equal(soft[:, :, :, 0], x[:, :, :, 0])
    assert torch.equal(soft[:, :, :, -1], x[:, :, :, -1])
    assert (soft[:, :, :, 15] - soft[:, :, :, 16]).abs().max() < 0.3
    flat = torch.full((1, 1, 9, 13), 0.25)
    assert torch.allclose(blurred(flat), flat.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("hint", [edges, strokes, blurred])
@pytest.mark.parametrize(
    "error, x",
    [
        (ShapeError, torch.zeros(3, 8, 8)),
        (DataError, torch.full((1, 3, 8, 8), float("nan"))),
        (DataError, torch.full((1, 3, 8, 8), 255.0)),
        (DataError, torch.zeros(1, 3, 8, 8, dtype=torch.uint8)),
    ],
)
def test_hints_refuse(hint, error, x):
    with refuses(error, "x"):
        hint(x)


def test_options_are_checked():
    x = torch.zeros(1, 3, 8, 8)
    for call, name in (
        (lambda: edges(x, 2.0), "threshold"),
        (lambda: strokes(x, float("nan")), "threshold"),
        (lambda: blurred(x, 0), "size"),
        (lambda: blurred(x, 9), "size"),
    ):
        with refuses(OptionError, name):
            call()


# ---------------------------------------------------------------- how well they are followed


def test_f1_of_a_picture_against_its_own_edges():
    x = painted_digits("test", 50)[:][0]
    hint = edges(x)
    assert (edge_f1(x, hint) == 1).all() and (edge_f1(x, hint, within=0) == 1).all()
    near = edge_f1(x.roll(1, 3), hint)
    assert (near > 0.97).all() and (edge_f1(x.roll(1, 3), hint, within=0) < 0.9).all()
    assert edge_f1(x.roll(1, 0), hint).mean() < 0.5  # another digit, elsewhere


def test_f1_counts_both_ways():
    x = halves(at=4)
    x[:, :, :, 12:] = -1  # edges at 4 and at 12
    hint = edges(x)
    half = hint.clone()
    half[:, :, :, 8:] = -1
    assert edge_f1(x, half).item() == pytest.approx(2 / 3)  # precision 1/2, recall 1
    assert edge_f1(halves(at=4), hint).item() == pytest.approx(2 / 3)  # precision 1, recall 1/2
    assert edge_f1(torch.zeros_like(x), hint).item() == 0
    assert edge_f1(x, hint[:, :1]).item() == 1
    with refuses(ShapeError, "hint"):
        edge_f1(x, hint[:, :, :8])
