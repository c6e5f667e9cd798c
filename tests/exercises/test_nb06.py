"""Wrong answers of notebook 06 as a student would write them: each must be caught, with the hint that names the mistake."""

import torch
from common import answers
from torch.distributions import Normal, kl_divergence


def count_both(height, width, f, latent, channels=3):
    return (channels * height * width) / (latent * (height // f) * (width // f))


def from_torch(mean, logvar):
    each = kl_divergence(
        Normal(mean, (logvar / 2).exp()), Normal(torch.zeros_like(mean), torch.ones_like(mean))
    )
    return each.reshape(len(mean), -1).sum(dim=1)


def by_cdist(z, codes):
    b, d, h, w = z.shape
    return torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, d), codes).argmin(dim=1).reshape(b, h, w)


RIGHT = {"06.1": count_both, "06.2": from_torch, "06.3": by_cdist}


def f_once(height, width, f, latent, channels=3):
    return channels * height * width / (latent * height * width / f)


def places_only(height, width, f, latent, channels=3):
    return (height * width) / ((height // f) * (width // f))


def one_number_a_place(height, width, f, latent, channels=3):
    return channels * height * width / ((height // f) * (width // f))


def upside_down(height, width, f, latent, channels=3):
    return latent * (height // f) * (width // f) / (channels * height * width)


def averaged(mean, logvar):
    each = (mean.pow(2) + torch.exp(logvar) - logvar - 1) / 2
    return each.reshape(len(each), -1).mean(-1)


def whole_batch(mean, logvar):
    return ((mean.pow(2) + torch.exp(logvar) - logvar - 1) / 2).sum()


def took_it_for_log_sigma(mean, logvar):
    return (
        ((mean.pow(2) + torch.exp(logvar) ** 2 - 2 * logvar - 1) / 2).reshape(len(mean), -1).sum(-1)
    )


def sign_turned(mean, logvar):
    return 0.5 * (1 + logvar - mean**2 - logvar.exp()).reshape(len(mean), -1).sum(-1)


def no_half(mean, logvar):
    return (mean**2 + logvar.exp() - 1 - logvar).reshape(len(mean), -1).sum(-1)


def farthest(z, codes):
    b, d, h, w = z.shape
    return torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, d), codes).argmax(dim=1).reshape(b, h, w)


def best_match(z, codes):
    return (z.permute(0, 2, 3, 1) @ codes.T).argmax(-1)


def the_codes(z, codes):
    return codes[by_cdist(z, codes)].permute(0, 3, 1, 2)


WRONG = [
    ("06.1", f_once, "enters twice"),
    ("06.1", places_only, "number of places"),
    ("06.1", one_number_a_place, "not one"),
    ("06.1", upside_down, "Upside down"),
    ("06.2", averaged, "not the mean"),
    ("06.2", whole_batch, "One number for each picture"),
    ("06.2", took_it_for_log_sigma, "is the variance"),
    ("06.2", sign_turned, "never below 0"),
    ("06.2", no_half, "half"),
    ("06.3", farthest, "farthest"),
    ("06.3", best_match, "a long code wins"),
    ("06.3", the_codes, "Return their numbers"),
]

TestAnswers = answers(RIGHT, WRONG)
