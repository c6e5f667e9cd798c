"""Wrong answers of notebook 12 as a student would write them: each must be caught, with the hint that names the mistake."""

import math

import torch
from common import answers

from ddpm_edu.networks.unet import TransformerBlock


def counted(c, d):
    with torch.device("meta"):
        return sum(p.numel() for p in TransformerBlock(c, d, 1).parameters())


def fourier(number, dim):
    k = torch.arange(dim // 2)
    angle = number * torch.exp(-math.log(10000) * k / (dim // 2))
    return torch.cat([angle.cos(), angle.sin()])


def vector(pooled, original_size, crop, target_size, dim=256):
    numbers = (*original_size, *crop, *target_size)
    six = torch.stack([fourier(n, dim) for n in numbers]).reshape(1, -1)
    return torch.cat((pooled, six.repeat(pooled.shape[0], 1)), 1)


def split(times, T, handover):
    n = sum(t >= T * (1 - handover) for t in times)
    return times[:n], times[n:]


RIGHT = {"12.1": counted, "12.2": vector, "12.3": split}


def width_first(pooled, original_size, crop, target_size, dim=256):
    return vector(pooled, original_size[::-1], crop[::-1], target_size[::-1], dim)


def sizes_width_first(pooled, original_size, crop, target_size, dim=256):
    return vector(pooled, original_size[::-1], crop, target_size[::-1], dim)


def text_last(pooled, original_size, crop, target_size, dim=256):
    six = vector(pooled, original_size, crop, target_size, dim)[:, pooled.shape[1] :]
    return torch.cat((six, pooled), 1)


def ratio(pooled, original_size, crop, target_size, dim=256):
    r = target_size[0] / target_size[1]
    return vector(pooled, original_size, crop, (r, r), dim)


def raw_numbers(pooled, original_size, crop, target_size, dim=256):
    six = torch.tensor([float(n) for n in original_size + crop + target_size])
    return torch.hstack([pooled, six.repeat(len(pooled), 1)])


def sin_cos(pooled, original_size, crop, target_size, dim=256):
    six = (
        vector(pooled, original_size, crop, target_size, dim)[:, pooled.shape[1] :]
        .unflatten(1, (6, 2, dim // 2))
        .flip(2)
        .flatten(1)
    )
    return torch.cat((pooled, six), 1)


def no_target(pooled, original_size, crop, target_size, dim=256):
    return vector(pooled, original_size, crop, target_size, dim)[:, : -2 * dim]


def share_of_steps(times, T, handover):
    n = int(len(times) * handover)
    return times[:n], times[n:]


def from_the_wrong_end(times, T, handover):
    n = sum(t >= T * handover for t in times)
    return times[:n], times[n:]


def strictly_above(times, T, handover):
    n = sum(t > T * (1 - handover) for t in times)
    return times[:n], times[n:]


WRONG = [
    ("12.1", lambda c, d: counted(c, c), "D x C"),
    ("12.1", lambda c, d: counted(c, 0), "Cross-attention is missing"),
    ("12.1", lambda c, d: counted(c, d) - (4 * c * c + 4 * c), "GEGLU"),
    ("12.1", lambda c, d: counted(c, d) - 6 * c, "LayerNorms"),
    ("12.1", lambda c, d: counted(c, d) + 6 * c, "no bias"),
    ("12.1", lambda c, d: counted(c, d) - 2 * c, "bias of attention's output"),
    ("12.1", lambda c, d: 18 * c * c + 2 * c * d + 6 * c, "biases are missing"),
    ("12.2", width_first, "vertical number first"),
    ("12.2", sizes_width_first, "(height, width)"),
    ("12.2", text_last, "pooled text comes first"),
    ("12.2", ratio, "ratio"),
    ("12.2", raw_numbers, "plain numbers"),
    ("12.2", sin_cos, "Cosines first"),
    ("12.2", no_target, "six numbers, not four"),
    ("12.2", lambda pooled, *sizes: vector(pooled, *sizes[:3]), "the mini has 16"),
    ("12.3", share_of_steps, "number of steps"),
    ("12.3", from_the_wrong_end, "not at handover T"),
    ("12.3", strictly_above, "still belongs to the base"),
    ("12.3", lambda times, T, handover: split(times, T, handover)[::-1], "other way round"),
]

TestAnswers = answers(RIGHT, WRONG)
