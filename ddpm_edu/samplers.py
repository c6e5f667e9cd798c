"""Faster samplers: the reverse process as an ordinary differential equation, and five ways to solve it.

All have the signature of `diffusion.sample` and the same coordinates: x_t as DDPM scales it, unit variance.
Inside, x_bar = x_t / sqrt(alpha_bar_t) = x_0 + sigma eps obeys d x_bar / d sigma = eps(x_t, t) (DDIM eq. 14),
so each solver is a rule for one step in sigma. k-diffusion's coordinates are these x_bar.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from .diffusion import Cond, Denoiser, Step, check_call, ddpm, evaluate, randn_like, sample, visit
from .errors import OptionError, in_range, whole
from .schedule import Schedule


def _solver(rule: Callable) -> Callable:
    """Turn a rule for x_bar into a sampler: the loop, the change of coordinates and the checks, written once.

    rule(x_bar, sigma, sigma_next, eps, again, noise, memory, **options) -> x_bar at sigma_next, where
    again(x_bar, t) is one more model call, noise() a fresh N(0, I), memory a list that lives as long as the run.
    """

    def sampler(
        model: Denoiser,
        schedule: Schedule,
        x_T: Tensor,
        timesteps,
        cond: Cond | None = None,
        *,
        predict: str = "eps",
        clip: float | None = None,
        end: float = -1,
        generator=None,
        **options,
    ) -> Iterator[Step]:
        path = visit(schedule, timesteps, end)
        check_call(x_T, cond, predict, clip, generator)
        known = rule.__kwdefaults__ or {}
        for name, value in options.items():
            if name not in known:
                raise OptionError(
                    f"{rule.__name__} has no option {name}: it knows {', '.join(known) or 'none'} besides those of sample()"
                )
            check, *limits = RANGES[name]
            check(name, value, *limits)

        def call(x_bar, t):
            return evaluate(
                model, schedule, x_bar * schedule.alpha_bar_at(t) ** 0.5, t, cond, predict, clip
            )[1]

        def steps(x):
            memory = []
            for t, t_prev in path:
                x0_hat, eps = evaluate(model, schedule, x, t, cond, predict, clip)
                x_bar = rule(
                    x / schedule.alpha_bar_at(t) ** 0.5,
                    schedule.sigma_at(t),
                    schedule.sigma_at(t_prev),
                    eps,
                    partial(call, t=t_prev),
                    partial(randn_like, x, generator),
                    memory,
                    **options,
                )
                x_prev = x_bar * schedule.alpha_bar_at(t_prev) ** 0.5
                yield Step(t, x, x0_hat, eps, x_prev)
                x = x_prev

        return steps(x_T)

    sampler.__name__, sampler.__doc__ = rule.__name__, rule.__doc__
    return sampler


@_solver
def euler(x_bar, sigma, sigma_next, eps, again, noise, memory):
    """Euler: follow the slope for the whole step, x_bar + (sigma_next - sigma) eps. The same as DDIM with eta = 0."""
    return x_bar + (sigma_next - sigma) * eps


@_solver
def euler_ancestral(x_bar, sigma, sigma_next, eps, again, noise, memory, *, eta=1.0):
    """Euler to sigma_down, then fresh noise sigma_up, with sigma_down^2 + sigma_up^2 = sigma_next^2.

    sigma_up = eta sqrt(sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2): eta = 1 keeps the marginals as DDPM does.
    """
    sigma_up = min(sigma_next, eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5)
    sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
    x_bar = x_bar + (sigma_down - sigma) * eps
    return x_bar + sigma_up * noise() if sigma_up > 0 else x_bar


@_solver
def heun(x_bar, sigma, sigma_next, eps, again, noise, memory):
    """Heun: look at the slope at both ends and take the mean (Karras et al. 2022, Algorithm 1): two calls a step.

    The last step, to sigma = 0, is plain Euler: there is no slope at the clean picture.
    """
    guess = x_bar + (sigma_next - sigma) * eps
    if sigma_next == 0:
        return guess
    return x_bar + (sigma_next - sigma) * (eps + again(guess)) / 2


@_solver
def dpmpp_2m(x_bar, sigma, sigma_next, eps, again, noise, memory):
    """DPM-Solver++(2M): a straight line through the last two x0_hat, exact in sigma (Lu et al. 2022, arXiv 2211.01095, Alg. 2).

    With lambda = -log sigma, h the step in lambda, r = h_before / h: D = x0_hat + (x0_hat - x0_hat_before) / (2 r), and
    x_bar_next = sigma_next / sigma x_bar + (1 - sigma_next / sigma) D. First and last step are first order.
    """
    x_0 = x_bar - sigma * eps
    d = x_0
    if memory and sigma_next > 0:
        sigma_before, x_0_before = memory[-1]
        r = math.log(sigma_before / sigma) / math.log(sigma / sigma_next)
        d = x_0 + (x_0 - x_0_before) / (2 * r)
    memory[:] = [(sigma, x_0)]
    return sigma_next / sigma * x_bar + (1 - sigma_next / sigma) * d


@_solver
def ipndm(x_bar, sigma, sigma_next, eps, again, noise, memory, *, order=4):
    """iPNDM: Adams-Bashforth on eps, the last `order` slopes combined (Zhang & Chen 2022, arXiv 2204.13902, eq. 23).

    Weights are those of equal steps, as in the paper; the first steps use as many slopes as there are.
    """
    memory.append(eps)
    del memory[:-order]
    weights = ADAMS_BASHFORTH[len(memory)]
    slope = sum(w * e for w, e in zip(weights, reversed(memory)))
    return x_bar + (sigma_next - sigma) * slope


ADAMS_BASHFORTH = {
    1: (1,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
RANGES = {
    "eta": (in_range, 0, 1, "0 is Euler, 1 adds as much noise as DDPM"),
    "order": (whole, 1, 4, "number of slopes combined"),
}

SAMPLERS: dict[str, Callable] = {
    "ddpm": ddpm,
    "ddim": sample,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "ipndm": ipndm,
}
