"""Wrong answers of notebook 11 as a student would write them: each must be caught, with the hint that names the mistake."""

import torch
from common import answers

from ddpm_edu.networks.unet import TransformerBlock


def counted(c, d):
    with torch.device("meta"):
        return sum(p.numel() for p in TransformerBlock(c, d, 1).parameters())


def unit_spread(latents):
    scale = latents.flatten().std().reciprocal()
    return scale, latents.mul(scale)


def multiples(T, steps, offset=1):
    return (
        list(range(0, T // steps * steps, T // steps))[::-1]
        if offset == 0
        else [t + offset for t in multiples(T, steps, 0)]
    )


RIGHT = {"11.1": counted, "11.2": unit_spread, "11.3": multiples}


def text_forgotten(c, d):
    return counted(c, c)


def plain_feed_forward(c, d):
    return counted(c, d) - 4 * c * c - 4 * c


def two_norms(c, d):
    return counted(c, d) - 2 * c


def times_the_spread(latents):
    return latents.std(), latents.std() * latents


def by_the_variance(latents):
    scale = 1 / ((latents - latents.mean()) ** 2).mean() * (latents.numel() - 1) / latents.numel()
    return scale, scale * latents


def standardised(latents):
    return 1 / latents.std(), (latents - latents.mean()) / latents.std()


def each_channel(latents):
    scale = torch.stack([1 / latents[:, c].std() for c in range(4)]).view(1, 4, 1, 1)
    return scale, scale * latents


def rising(T, steps, offset=1):
    return [i * (T // steps) + offset for i in range(steps)]


def without_offset(T, steps, offset=1):
    return [i * (T // steps) for i in range(steps)][::-1]


def from_the_end(T, steps, offset=1):
    return [round((steps - i) * T / steps) - 1 for i in range(steps)]


WRONG = [
    ("11.1", text_forgotten, "d x c"),
    ("11.1", plain_feed_forward, "to 8c"),
    ("11.1", two_norms, "three LayerNorms"),
    ("11.2", times_the_spread, "one over the spread"),
    ("11.2", by_the_variance, "That is the variance"),
    ("11.2", standardised, "Only multiply"),
    ("11.2", each_channel, "all channels together"),
    ("11.3", rising, "wrong order"),
    ("11.3", without_offset, "offset is missing"),
    ("11.3", from_the_end, "trailing"),
]

TestAnswers = answers(RIGHT, WRONG)
