"""Exercises: training. Notebook 04."""

import math

import torch

from .check import Exercise, call


def _pictures(seed, n=4):
    return torch.randn(
        n, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def _model(x_t, t):
    """Stands in for a network: its answer depends on every pixel and on the time."""
    return 0.3 * x_t**2 - 0.1 + t.view(-1, 1, 1, 1) / 20


def _x_t(x_0, t, eps, alpha_bar):
    a = alpha_bar[t].view(-1, 1, 1, 1)
    return a.sqrt() * x_0 + (1 - a).sqrt() * eps


def _loss(model, x_0, t, eps, alpha_bar):
    return ((eps - model(_x_t(x_0, t, eps, alpha_bar), t)) ** 2).mean()


def _loss_no_roots(model, x_0, t, eps, alpha_bar):
    a = alpha_bar[t].view(-1, 1, 1, 1)
    return ((eps - model(a * x_0 + (1 - a) * eps, t)) ** 2).mean()


def _loss_swapped(model, x_0, t, eps, alpha_bar):
    return ((eps - model(_x_t(eps, t, x_0, alpha_bar), t)) ** 2).mean()


def _loss_to_x_0(model, x_0, t, eps, alpha_bar):
    return ((x_0 - model(_x_t(x_0, t, eps, alpha_bar), t)) ** 2).mean()


def _loss_to_x_t(model, x_0, t, eps, alpha_bar):
    x_t = _x_t(x_0, t, eps, alpha_bar)
    return ((x_t - model(x_t, t)) ** 2).mean()


def _loss_clean_input(model, x_0, t, eps, alpha_bar):
    return ((eps - model(x_0, t)) ** 2).mean()


def _loss_unsquared(model, x_0, t, eps, alpha_bar):
    return (eps - model(_x_t(x_0, t, eps, alpha_bar), t)).abs().mean()


def _loss_sum(model, x_0, t, eps, alpha_bar):
    return ((eps - model(_x_t(x_0, t, eps, alpha_bar), t)) ** 2).sum()


def _loss_each(model, x_0, t, eps, alpha_bar):
    return ((eps - model(_x_t(x_0, t, eps, alpha_bar), t)) ** 2).flatten(1).mean(1)


def _rise(k):
    return (1 + k) / (10 + k)


def _ema(d):
    """The average with the decay d(decay, k)."""
    return lambda average, weights, decay, k: torch.lerp(weights, average, d(decay, k))


def _lr(k, steps, peak, warmup):
    return peak * min(1, (k + 1) / max(warmup, 1)) * (1 + math.cos(math.pi * k / steps)) / 2


def _lr_no_rise(k, steps, peak, warmup):
    return _lr(k, steps, peak, 0)


def _lr_from_zero(k, steps, peak, warmup):
    return peak * min(1, k / max(warmup, 1)) * (1 + math.cos(math.pi * k / steps)) / 2


def _lr_no_half(k, steps, peak, warmup):
    return 2 * _lr(k, steps, peak, warmup)


def _lr_whole_turn(k, steps, peak, warmup):
    return peak * min(1, (k + 1) / max(warmup, 1)) * (1 + math.cos(2 * math.pi * k / steps)) / 2


def _lr_unlimited(k, steps, peak, warmup):
    return peak * (k + 1) / max(warmup, 1) * (1 + math.cos(math.pi * k / steps)) / 2


def _lr_rise_only(k, steps, peak, warmup):
    return peak * min(1, (k + 1) / max(warmup, 1))


DIAGNOSIS = {"A": "mix-up", "B": "0 to 1", "C": "fast", "D": "healthy"}
NAMES = ("healthy", "0 to 1", "0 to 255", "blind", "fast", "mix-up")
CLUES = {
    "A": "Patient A: its curve is the same as D's, but it draws noise. So training went alike. "
    "What comes after training?",
    "B": "Patient B: the paper is grey where it should be black, and the loss is the "
    "lowest of all. Which pictures vary less than they should?",
    "C": "Patient C: the curve jumps up and stays above the others, the digits are "
    "foggy. Each update seems to leap too far.",
    "D": "Patient D: look at its digits first. Is anything wrong with them?",
}


def _diagnose(answer):
    if not isinstance(answer, dict) or set(answer) != set("ABCD"):
        return "Answer with a dict: one name for each of the patients A, B, C and D."
    if all(name is ... for name in answer.values()):
        call(lambda: ...)  # not attempted yet
    for patient, name in answer.items():
        if name is not ... and name not in NAMES:
            return (
                f"Patient {patient}: {name!r} is not in the table. The names are: "
                f"{', '.join(NAMES)}."
            )
    return next((CLUES[p] for p in "ABCD" if answer[p] != DIAGNOSIS[p]), "")


ALPHA_BAR = torch.linspace(0.99, 0.01, 10, dtype=torch.float64)
LOSS_CASES = [
    (_model, _pictures(1), torch.tensor([0, 3, 6, 9]), _pictures(2), ALPHA_BAR),
    (_model, _pictures(3, 2), torch.tensor([8, 1]), _pictures(4, 2), ALPHA_BAR),
]
EMA_CASES = [
    (torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 1.0, 0.0]), 0.9, k) for k in (1, 5, 500)
]
LR_CASES = [(k, 100, 0.002, 10) for k in (0, 4, 9, 10, 50, 99)] + [(7, 20, 1.0, 1)]

EXERCISES = {
    "04.1": Exercise(
        reference=_loss,
        cases=LOSS_CASES,
        mistakes=[
            (
                _loss_no_roots,
                "x_t needs square roots: sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps.",
            ),
            (
                _loss_swapped,
                "Picture and noise are swapped in x_t: sqrt(alpha_bar_t) belongs to x_0.",
            ),
            (_loss_to_x_0, "You compare with x_0, but this model guesses eps."),
            (_loss_to_x_t, "You compare with x_t, which the model was given; it should guess eps."),
            (_loss_clean_input, "The model must see the noisy x_t; you gave it the clean x_0."),
            (_loss_unsquared, "That is the mean absolute difference: square it."),
            (_loss_sum, "You added all squares; the loss is their mean."),
            (
                _loss_each,
                'One number a picture is reduction="none". Here take the mean over everything.',
            ),
        ],
        right="With this one function and an optimizer you can train any diffusion model.",
    ),
    "04.2": Exercise(
        reference=_lr,
        cases=LR_CASES,
        mistakes=[
            (
                _lr_no_rise,
                "The fall is right, the warm-up is missing: multiply by min(1, (k + 1) / warmup).",
            ),
            (
                _lr_from_zero,
                "k counts from 0, so the first update must have (k + 1) / warmup, or it does "
                "nothing.",
            ),
            (_lr_no_half, "Twice too high: (1 + cos) runs from 2 to 0, so divide by 2."),
            (
                _lr_whole_turn,
                "2 pi is a whole turn: your rate comes up again at the end. Half a cosine is "
                "cos(pi k / K).",
            ),
            (_lr_unlimited, "After the warm-up the rise must stop: min(1, ...)."),
            (
                _lr_rise_only,
                "The rise is right; the half cosine that brings it down to 0 is missing.",
            ),
        ],
        right="Feel the ground, run, land softly.",
    ),
    "04.3": Exercise(
        reference=_ema(lambda decay, k: min(decay, _rise(k))),
        cases=EMA_CASES,
        mistakes=[
            (
                _ema(lambda decay, k: decay),
                "Right late in the run, but d starts small: min(decay, (1 + k) / (10 + k)).",
            ),
            (
                _ema(lambda decay, k: 1 - min(decay, _rise(k))),
                "The wrong way round: d, close to 1, belongs to the old average, 1 - d to the "
                "new weights.",
            ),
            (
                _ema(lambda decay, k: 1 - decay),
                "The wrong way round: d, close to 1, belongs to the old average. And it starts "
                "small: min(decay, (1 + k) / (10 + k)).",
            ),
            (
                _ema(lambda decay, k: _rise(k)),
                "d may not grow beyond `decay`: take the smaller of the two.",
            ),
            (
                _ema(lambda decay, k: max(decay, _rise(k))),
                "You took the larger d: take the smaller of decay and (1 + k) / (10 + k).",
            ),
            (
                lambda average, weights, decay, k: average + (1 - min(decay, _rise(k))) * weights,
                "The old average must be multiplied by d, or it grows without end.",
            ),
        ],
        right="The average moves 1 - d of the way towards the weights.",
    ),
    "04.4": Exercise(
        test=_diagnose, right="You read curves and pictures together. That is the whole art."
    ),
}
