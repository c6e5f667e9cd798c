"""Exercises: the UNet. Notebook 03."""

import math

import torch
import torch.nn.functional as F

from ..diffusion import noise
from ..networks.unet import ResBlock, UNet, UNetConfig, timestep_embedding
from .check import Exercise


def squared_distance(g, d):
    """||e(t) - e(t + g)||^2 = sum_k 2 - 2 cos(omega_k g), measured on the embedding itself at t =
    0."""
    e = timestep_embedding(torch.tensor([0, g]), d).double()
    return (e[0] - e[1]).square().sum().item()


def _distance(term, steps=lambda d: d // 2):
    """A wrong answer: the sum of term(omega_k g) over d/2 clocks, with omega_k = 10000^(-k /
    steps(d))."""
    return lambda g, d: sum(term(10000 ** (-k / steps(d)) * g) for k in range(d // 2))


def res_block_parameters(c_in, c_out, emb):
    """Counted on the block itself."""
    with torch.device("meta"):
        return sum(p.numel() for p in ResBlock(c_in, c_out, emb, groups=1).parameters())


def channels_up(channels, mult, blocks):
    """Read off the UNet itself."""
    with torch.device("meta"):
        none = (0,) * len(mult)
        net = UNet(
            UNetConfig(
                channels=channels,
                mult=mult,
                depth=none,
                middle=0,
                heads=(1,) * len(mult),
                blocks=blocks,
                groups=1,
            )
        )
    return [stage[0].conv1.in_channels for stage in net.up]


def _walk(order=-1, first=True, downsampled=True, concat=True, width_changes=True):
    """channels_up with one thing wrong."""

    def count(channels, mult, blocks):
        copies, width = [channels] * first, channels
        for level, m in enumerate(mult):
            copies += [width] * (downsampled and level > 0)
            width = channels * m
            copies += [width] * blocks
        enter = []
        for m in reversed(mult):
            for _ in range(blocks + 1):
                copy = copies.pop(order) if copies else 0
                enter.append(width + copy * concat)
                width = channels * m if width_changes else width
        return enter

    return count


def _softmax_attention(scale, axis):
    return lambda q, k, v: (q @ k.transpose(-2, -1) * scale(q.shape[-1])).softmax(axis) @ v


_SIZES = [(32, 32, 128), (32, 64, 128), (640, 320, 1280), (1, 8, 4)]
_NETS = [(32, (1, 2, 2), 1), (320, (1, 2, 4, 4), 2), (64, (1, 3), 2)]
_QKV = [
    tuple(noise(shape, [seed + i])[0].expand(2, *shape).clone() * (1 + i) for i in range(3))
    for seed, shape in ((0, (4, 5, 8)), (9, (1, 6, 3)))
]

EXERCISES = {
    "03.1": Exercise(
        squared_distance,
        [(1, 64), (20, 64), (400, 16), (0, 8)],
        tolerance=1e-3,
        mistakes=[
            (
                _distance(lambda a: 1 - math.cos(a)),
                "A factor 2 is missing: cos^2 + sin^2 = 1 appears twice, once for a and once for "
                "b.",
            ),
            (
                _distance(lambda a: 2 + 2 * math.cos(a)),
                "The sign of the cosine is wrong: the mixed terms come with a minus. Test: at g "
                "= 0 the distance must be 0.",
            ),
            (
                _distance(lambda a: 2 - 2 * math.sin(a)),
                "cos a cos b + sin a sin b is cos(a - b), a cosine. Test: at g = 0 the distance "
                "must be 0.",
            ),
            (
                _distance(lambda a: 2 - 2 * math.cos(a), lambda d: d),
                "The speeds are off: omega_k = 10000^(-k / (d/2)), with half the length in the "
                "exponent.",
            ),
            (
                _distance(lambda a: 1 - 2 * math.cos(a) + math.cos(a) ** 2),
                "These are the cosines alone. Each clock has a sine too: add (sin a - sin b)^2.",
            ),
            (
                lambda g, d: squared_distance(g, d) ** 0.5,
                "This is the distance; asked is its square. Leave out the root.",
            ),
            (
                lambda g, d: squared_distance(g, d) / (d // 2),
                "This is the mean over the clocks; the squared length is their sum.",
            ),
        ],
        right="The distance between two times depends on the gap alone.",
    ),
    "03.2": Exercise(
        res_block_parameters,
        _SIZES,
        tolerance=1e-9,
        mistakes=[
            (
                lambda a, b, e: res_block_parameters(a, b, e) - (a + 1) * b * (a != b),
                "The 1x1 convolution of the shortcut is missing: it is there when c_in and c_out "
                "differ.",
            ),
            (
                lambda a, b, e: res_block_parameters(a, b, e) + (a + 1) * b * (a == b),
                "There is no 1x1 convolution when c_in equals c_out: the shortcut is then the "
                "input itself.",
            ),
            (
                lambda a, b, e: res_block_parameters(a, b, e) - 2 * a - 2 * b,
                "The norms are missing: each has a weight and a bias for every channel.",
            ),
            (
                lambda a, b, e: res_block_parameters(a, b, e) - a - b,
                "Each norm has a weight AND a bias for every channel.",
            ),
            (
                lambda a, b, e: res_block_parameters(a, b, e) + 2 * a - 2 * b,
                "The second norm comes after the first convolution: it works on c_out channels.",
            ),
            (
                lambda a, b, e: res_block_parameters(a, b, e) - (e + 1) * b,
                "The linear layer for the time is missing: emb numbers in, one number a channel "
                "out.",
            ),
            (
                lambda a, b, e: res_block_parameters(a, b, e) - b,
                "One bias is missing: the linear layer of the time (or a convolution) has one "
                "for each channel it makes.",
            ),
            (
                lambda a, b, e: res_block_parameters(a, b, e) - (3 + (a != b)) * b,
                "The biases are missing: each convolution and the linear layer has one number "
                "for each channel it makes.",
            ),
            (
                lambda a, b, e: res_block_parameters(a, b, e) - 9 * b * b + 9 * a * b,
                "The second convolution takes what the first one made: c_out channels in, c_out "
                "channels out.",
            ),
        ],
        right="The two 3x3 convolutions hold most of them.",
    ),
    "03.3": Exercise(
        channels_up,
        _NETS,
        mistakes=[
            (
                _walk(order=0),
                "You take the copies first in, first out. It is a stack: the last copy goes to "
                "the first block on the way up.",
            ),
            (
                _walk(concat=False),
                "This is the data alone. The copy is put beside it: add its channels.",
            ),
            (
                _walk(first=False),
                "The copy of conv_in is missing: it is the first on the stack and meets the last "
                "block.",
            ),
            (
                _walk(downsampled=False),
                "The copies of the downsampled tensors are missing: one between two levels, as "
                "wide as the level above.",
            ),
            (
                _walk(width_changes=False),
                "After each block on the way up the data is as wide as that level, channels * "
                "mult[level].",
            ),
            (
                lambda c, m, b: channels_up(c, m, b)[::-1],
                "These are the right numbers in the wrong order: the way up starts at the bottom.",
            ),
        ],
        right="Data plus copy, at every block.",
    ),
    "03.4": Exercise(
        F.scaled_dot_product_attention,
        _QKV,
        mistakes=[
            (_softmax_attention(lambda d: 1, -1), "The scores are not divided by sqrt(d)."),
            (
                _softmax_attention(lambda d: 1 / d, -1),
                "Divide the scores by sqrt(d), the root, not by d.",
            ),
            (
                _softmax_attention(lambda d: d**-0.5, -2),
                "The softmax runs over the wrong axis: for each asking pixel (a row) the weights "
                "over the answering pixels (the last axis) add up to 1.",
            ),
            (
                lambda q, k, v: q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 @ v,
                "The softmax is missing: scores must become weights that add up to 1.",
            ),
            (
                lambda q, k, v: F.scaled_dot_product_attention(q, k, v) + q,
                "Return the attention alone. The residual is added outside.",
            ),
            (
                lambda q, k, v: F.scaled_dot_product_attention(k, q, v),
                "Queries and keys have changed places: rows are the pixels that ask.",
            ),
        ],
        right="All heads and pictures in one go.",
    ),
}
