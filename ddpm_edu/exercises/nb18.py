"""Exercises: counting evaluations, a sampler of k evaluations, the points. Notebook 18."""

import torch

from ..diffusion import class_cond
from .check import Exercise

# ---------------------------------------------------------------- 18.1  counting


def _count(heun=lambda steps: 2 * steps - 1, guided=lambda n: 2 * n, plain=lambda steps: steps):
    """An answer that may forget Heun's last step, or what guidance costs."""

    def answer(sampler, steps, guidance):
        n = heun(steps) if sampler == "heun" else plain(steps)
        return guided(n) if guidance > 1 else n

    return answer


COUNT_CASES = [("ddim", 8, 1.0), ("heun", 5, 1.0), ("dpmpp_2m", 4, 2.0), ("heun", 1, 3.0)]

# ---------------------------------------------------------------- 18.2  a sampler of k evaluations


def _levels(k: int, level: int) -> tuple[float, float, float]:
    """(t, s, n) of the level-th of k + 1 levels, 0 is pure noise, k the picture; t = 1000 u."""
    u = torch.tensor(1 - level / k, dtype=torch.float64)
    return 1000 * u.item(), (u * torch.pi / 2).cos().item(), (u * torch.pi / 2).sin().item()


def _walk(
    x0_hat=lambda x, v, s, n: s * x - n * v,
    eps_hat=lambda x, v, s, n: n * x + s * v,
    forward=lambda x_0, eps, s, n: s * x_0 + n * eps,
    end=0,
    cond=class_cond,
):
    """An answer that may take the wrong x_0 or eps, go on wrongly, or stop early."""

    def answer(net, levels, x_T, labels, evaluations):
        x = x_T
        for i in range(evaluations - end):
            t, s, n = levels(evaluations, i)
            v = net(x, torch.full((len(x),), t), cond(labels))
            x_0, eps = x0_hat(x, v, s, n), eps_hat(x, v, s, n)
            _, s, n = levels(evaluations, i + 1)
            x = forward(x_0, eps, s, n)
        return x

    return answer


def _net(x, t, cond):
    """Not linear in anything, and it knows its class; cond may have come as a plain tuple."""
    which = cond[1].to(x) @ torch.arange(10.0, dtype=x.dtype)
    wide = lambda row: row.to(x).view(-1, *[1] * (x.ndim - 1))
    return (x * (1 + wide(t) / 1000)).sin() + 0.2 * wide(which) * x


def _noise(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


WALK_CASES = [
    (_net, _levels, _noise(1, 3, 1, 4, 4), torch.tensor([7, 1, 4]), 4),
    (_net, _levels, _noise(2, 2, 1, 4, 4), torch.tensor([9, 3]), 1),
]

# ---------------------------------------------------------------- 18.3  the points


def _points(one=lambda a, f: 100 * a / (1 + f), total=lambda parts: sum(parts) / len(parts)):
    """An answer that may count one budget, or all of them, in another way."""
    return lambda accuracy, frechet: total([one(a, f) for a, f in zip(accuracy, frechet)])


POINT_CASES = [
    ([0.5, 0.8, 0.9, 1.0], [9.0, 3.0, 1.0, 0.25]),
    ([0.1, 0.1, 0.1, 0.1], [60.0, 30.0, 30.0, 30.0]),
]

EXERCISES = {
    "18.1": Exercise(
        reference=_count(),
        cases=COUNT_CASES,
        mistakes=[
            (
                _count(guided=lambda n: n),
                "Guidance above 1 asks the network twice each time: with the class and without.",
            ),
            (
                _count(heun=lambda steps: 2 * steps),
                "Heun's last step, to the clean picture, is Euler's: there is no slope at the end. "
                "So it saves one evaluation.",
            ),
            (
                _count(heun=lambda steps: steps),
                "Heun looks at the slope at both ends of a step: two evaluations, one at the end.",
            ),
        ],
        right="What a step costs depends on the sampler; what the judge counts does not.",
    ),
    "18.2": Exercise(
        reference=_walk(),
        cases=WALK_CASES,
        mistakes=[
            (
                _walk(x0_hat=lambda x, v, s, n: s * x + n * v),
                "A sign in x_0 is wrong: v = s eps - n x_0, so s x_t - n v = x_0.",
            ),
            (
                _walk(eps_hat=lambda x, v, s, n: n * x - s * v),
                "A sign in eps is wrong: n x_t + s v = eps.",
            ),
            (
                _walk(end=1),
                "You stop one evaluation early: the last of them leads to the picture itself.",
            ),
            (
                _walk(forward=lambda x_0, eps, s, n: x_0),
                "You go on from the picture, not from the next level: noise it again, with the "
                "eps that the network saw and the next s and n.",
            ),
            (
                _walk(cond=lambda labels: class_cond(-torch.ones_like(labels))),
                "The network is not told which digit is wanted: pass class_cond(labels).",
            ),
        ],
        right="That is DDIM, and an entry's `sample` is hardly more.",
    ),
    "18.3": Exercise(
        reference=_points(),
        cases=POINT_CASES,
        mistakes=[
            (
                _points(one=lambda a, f: 100 * a / f),
                "A perfect distance is 0: divide by 1 + the Frechet distance.",
            ),
            (_points(one=lambda a, f: a / (1 + f)), "Perfect pictures have 100 points, not 1."),
            (_points(total=sum), "The total is the mean of the four, so that 100 is the most."),
            (_points(total=max), "All numbers of evaluations count: take the mean, not the best."),
        ],
        right="Both must be good: digits that can be read, and a cloud like the real one.",
    ),
}
