"""Exercises: Stable Diffusion, opened. Notebook 11."""

import torch

from .check import Exercise

# ---------------------------------------------------------------- 11.1  parameters of a transformer
# block


def _block(norms=3, self_bias=True, text_both=True, cross_same=False, forward=4):
    """An answer in which parts may be forgotten or mistaken."""

    def parameters(c, d):
        own = 4 * c * c + (c if self_bias else 0)
        reads = c if cross_same else d
        cross = 2 * c * c + (2 if text_both else 1) * reads * c + (0 if text_both else c * c) + c
        feed = (
            (8 * c * c + 8 * c) + (4 * c * c + c)
            if forward == 4
            else (4 * c * c + 4 * c) + (4 * c * c + c)
        )
        return norms * 2 * c + own + cross + feed

    return parameters


# ---------------------------------------------------------------- 11.2  the latent scale


def _latents(seed, spread, shift=0.0):
    return (
        spread
        * torch.randn(
            6, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        + shift
    )


def _scale(latents):
    return 1 / latents.std(), latents / latents.std()


def _per_channel(latents):
    scale = 1 / latents.std((0, 2, 3), keepdim=True)
    return scale, scale * latents


def _centred(latents):
    return 1 / latents.std(), (latents - latents.mean()) / latents.std()


# ---------------------------------------------------------------- 11.3  leading timesteps


def _leading(T, steps, offset=1):
    return [i * (T // steps) + offset for i in reversed(range(steps))]


def _trailing(T, steps, offset=1):
    return [round(T - i * T / steps) - 1 for i in range(steps)]


EXERCISES = {
    "11.1": Exercise(
        reference=_block(),
        cases=[(320, 768), (1280, 768), (64, 24)],
        mistakes=[
            (
                _block(cross_same=True),
                "K and V of the cross-attention read the text: their matrices are d x c, not c x "
                "c.",
            ),
            (_block(text_both=False), "Both K and V read the text; you count only one of them so."),
            (
                _block(norms=2),
                "2c are missing: there are three LayerNorms, one in front of each part, and the "
                "output layers of both attentions have a bias of c.",
            ),
            (
                _block(forward=2),
                "GEGLU makes two numbers for each one it keeps: its first layer goes from c to "
                "8c, not to 4c.",
            ),
            (
                _block(self_bias=False),
                "The output layer of the self-attention has a bias of c numbers.",
            ),
        ],
        right="Sixteen of these sit in SD 1.5's UNet, and the K and V of each are the only "
        "doors for the text.",
    ),
    "11.2": Exercise(
        reference=_scale,
        cases=[(_latents(1, 5.5),), (_latents(2, 0.3, 1.0),)],
        mistakes=[
            (
                lambda latents: (latents.std(), latents * latents.std()),
                "The scale is one over the spread: latents far apart must come closer together.",
            ),
            (
                lambda latents: (1 / latents.var(), latents / latents.var()),
                "That is the variance. The spread is its root.",
            ),
            (
                _centred,
                "Only multiply. Subtracting the mean is not undone by the decoder, which divides "
                "by the scale and no more.",
            ),
            (_per_channel, "One number for all channels together, as SD does."),
            (
                lambda latents: (1 / latents.std(), latents),
                "The scale is right; the second value should be the latents times the scale.",
            ),
        ],
        right="One number, measured once and kept with the weights.",
    ),
    "11.3": Exercise(
        reference=_leading,
        cases=[(1000, 30), (1000, 50, 0), (1000, 7, 1), (100, 10, 1)],
        mistakes=[
            (
                lambda T, steps, offset=1: _leading(T, steps, offset)[::-1],
                "Right times, wrong order: sampling begins with the largest.",
            ),
            (
                lambda T, steps, offset=1: _leading(T, steps, 0),
                "The offset is missing: every time moves up by it.",
            ),
            (
                _trailing,
                "Those are trailing timesteps, which begin at T - 1. Leading ones are multiples "
                "of T // steps, counted from 0.",
            ),
            (
                lambda T, steps, offset=1: [
                    int(i * T / steps) + offset for i in reversed(range(steps))
                ],
                "Take the whole stride T // steps first and multiply then: with 30 steps of 1000 "
                "it is 33, not 33.33.",
            ),
        ],
        right="30 steps begin at 958: the noisiest 41 times of the schedule are never visited.",
    ),
}
