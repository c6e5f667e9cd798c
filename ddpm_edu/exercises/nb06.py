"""Exercises: the autoencoder. Notebook 06."""

import torch

from .check import Exercise


def _normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------ 06.1  how many times fewer numbers


def _fewer(height, width, f, latent, channels=3):
    return channels * f**2 / latent


# ---------------------------------------------------------------- 06.2  KL to N(0, I)


def _each_number(mean, logvar):
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar)


def _kl(mean, logvar):
    return _each_number(mean, logvar).flatten(1).sum(1)


# ---------------------------------------------------------------- 06.3  the nearest code


def _squared(z, codes):
    """(B, codes, h, w): |z - e|^2 at every place, for every code."""
    return (z[:, None] - codes[:, :, None, None]).square().sum(2)


def _nearest(z, codes):
    return _squared(z, codes).argmin(1)


def _largest_product(z, codes):
    return torch.einsum("bdhw,kd->bkhw", z, codes).argmax(1)


EXERCISES = {
    "06.1": Exercise(
        reference=_fewer,
        cases=[(512, 512, 8, 4), (768, 1024, 16, 32), (64, 64, 8, 8), (28, 28, 2, 1, 1)],
        mistakes=[
            (
                lambda height, width, f, latent, channels=3: channels * f / latent,
                "f counts along one side. It shrinks height and width, so it enters twice.",
            ),
            (
                lambda height, width, f, latent, channels=3: f**2,
                "That is the number of places. Each place has channels: 3 before (or 1), "
                "`latent` after.",
            ),
            (
                lambda height, width, f, latent, channels=3: channels * f**2,
                "A place of the latent holds `latent` numbers, not one.",
            ),
            (
                lambda height, width, f, latent, channels=3: latent / (channels * f**2),
                "Upside down: how many times FEWER numbers is above 1.",
            ),
        ],
        right="Height and width cancel: the ratio depends on f and the channels alone.",
    ),
    "06.2": Exercise(
        reference=_kl,
        cases=[
            (_normal(3, 2, 2, 2), _normal(3, 2, 2, 2, seed=1)),
            (_normal(2, 4, seed=2), 2 * _normal(2, 4, seed=3) - 4),
        ],
        mistakes=[
            (
                lambda mean, logvar: _each_number(mean, logvar).flatten(1).mean(1),
                "The KL of independent numbers is the sum of theirs, not the mean.",
            ),
            (
                lambda mean, logvar: _each_number(mean, logvar).sum(),
                "One number for each picture: sum over everything but the first dimension.",
            ),
            (
                lambda mean, logvar: _each_number(mean, logvar),
                "Those are the KLs of the single numbers. Sum them for each picture.",
            ),
            (
                lambda mean, logvar: _kl(mean, 2 * logvar),
                "logvar is the log of sigma^2 already: exp(logvar) is the variance.",
            ),
            (lambda mean, logvar: -_kl(mean, logvar), "The sign is turned: a KL is never below 0."),
            (lambda mean, logvar: 2 * _kl(mean, logvar), "The half in front is missing."),
        ],
        right="0 where mean = 0 and logvar = 0, and above 0 everywhere else.",
    ),
    "06.3": Exercise(
        reference=_nearest,
        cases=[
            (_normal(2, 3, 4, 5), 2 * _normal(7, 3, seed=1)),
            (_normal(1, 2, 3, 3, seed=2), _normal(5, 2, seed=3) + 1),
        ],
        mistakes=[
            (lambda z, codes: _squared(z, codes).argmax(1), "That is the farthest code."),
            (
                _largest_product,
                "The largest product is not the nearest: a long code wins it from afar. Compare "
                "distances.",
            ),
            (
                lambda z, codes: codes[_nearest(z, codes)].movedim(-1, 1),
                "Those are the codes themselves. Return their numbers, (B, h, w).",
            ),
            (
                lambda z, codes: _nearest(z, codes).flatten(),
                "The right numbers, but keep the places: (B, h, w).",
            ),
        ],
        right="One whole number a place: the picture has become a little text over an alphabet "
        "of codes.",
    ),
}
