"""Faster samplers: the way from noise to picture as an equation, and ways to solve it. Notebook 05.

All take the arguments and options of `diffusion.sample` and yield its Steps. x_t is always as DDPM
scales it, x_t = s x_0 + n eps with s = sqrt(alpha_bar_t), n = sqrt(1 - alpha_bar_t). Seen as
x_bar = x_t / s it obeys d x_bar / d sigma = eps(x_t, t) with sigma = n / s (DDIM eq. 14). The
solvers of that equation are written in s and n here, so that they hold at s = 0 too, where sigma is
infinite.
"""

import math
from collections.abc import Callable

from .diffusion import (
    SPACINGS,
    Step,
    begin,
    ddpm,
    karras_timesteps,
    randn_like,
    sample,
    spaced_timesteps,
    visit,
)
from .errors import in_range, one_of, whole
from .schedule import Schedule


def euler(
    model,
    schedule,
    x_T,
    timesteps,
    cond=None,
    *,
    s_churn=0.0,
    s_min=0.0,
    s_max=math.inf,
    s_noise=1.0,
    generator=None,
    **options,
):
    """Euler: x_bar + (sigma_prev - sigma) eps = x_0 + sigma_prev eps. Equal to DDIM with eta = 0.

    s_churn > 0 adds noise before each step, where sigma lies in [s_min, s_max]: up to the time with
    sigma (1 + min(s_churn / steps, sqrt(2) - 1)), at most the schedule's last (Karras et al. 2022,
    arXiv 2206.00364, Algorithm 2; its s_noise scales that noise). t and x_t of a Step are then
    those that the model saw.
    """
    in_range("s_churn", s_churn, 0, 1e6, "0 adds no noise, 40 of 50 steps are much")
    in_range("s_min", s_min, 0, 1e6, "the smallest sigma where noise is added")
    in_range("s_max", s_max, 0, math.inf, "the largest sigma where noise is added")
    in_range("s_noise", s_noise, 0, 2, "1 is the noise that belongs to the time")
    options = dict(options, generator=generator)
    path, look = begin(model, schedule, x_T, timesteps, cond, **options)
    gamma = min(s_churn / len(path), 2**0.5 - 1)

    def steps(x):
        for t, t_prev in path:
            if gamma and s_min <= (sigma := schedule.sigma_at(t)) <= min(s_max, 1e6):
                s = schedule.signal_noise(t)[0]
                t = schedule.time_at(sigma * (1 + gamma)).item()
                ratio = schedule.signal_noise(t)[0] / s  # alpha_bar falls by ratio^2
                z = s_noise * randn_like(x, generator)
                x = ratio * x + max(1 - ratio**2, 0.0) ** 0.5 * z
            x0_hat, eps = look(x, t)
            s, n = schedule.signal_noise(t_prev)
            x_prev = s * x0_hat + n * eps
            yield Step(t, x, x0_hat, eps, x_prev)
            x = x_prev

    return steps(x_T)


def euler_ancestral(model, schedule, x_T, timesteps, cond=None, *, eta=1.0, **options):
    """Euler to sigma_down, then noise of size sigma_up, where their squares add to sigma_prev^2.

    sigma_up = eta sqrt(sigma_prev^2 (sigma^2 - sigma_prev^2) / sigma^2): eta = 1 keeps the
    marginals as DDPM does. s_prev sigma_up is DDIM's sigma, so this is `sample`.
    """
    return sample(model, schedule, x_T, timesteps, cond, eta=eta, **options)


def heun(model, schedule, x_T, timesteps, cond=None, **options):
    """Heun: look at the slope at both ends and take the mean (Karras et al. 2022, Algorithm 1).

    Two model calls a step. The last step, to sigma = 0, is Euler's: the clean picture has no slope.
    """
    path, look = begin(model, schedule, x_T, timesteps, cond, **options)

    def steps(x):
        for t, t_prev in path:
            x0_hat, eps = look(x, t)
            x_prev = along(schedule, t, t_prev, x0_hat, eps, eps)
            if t_prev > -1:
                mean = (eps + look(x_prev, t_prev)[1]) / 2
                x_prev = along(schedule, t, t_prev, x0_hat, eps, mean)
            yield Step(t, x, x0_hat, eps, x_prev)
            x = x_prev

    return steps(x_T)


def along(schedule, t, t_prev, x_0, eps, slope):
    """x at t_prev on a straight line in sigma: x_bar + (sigma_prev - sigma) slope, times s_prev.

    With x_bar = x_0 + sigma eps that is s_prev x_0 + n_prev eps + (n_prev - s_prev sigma)
    (slope - eps). The factor multiplies every error of the slope. Near pure noise, in a step from
    sigma = 20,000 or infinity, it has no bound: beyond 100 the line follows eps, as Euler does.
    """
    (s, n), (s_prev, n_prev) = schedule.signal_noise(t), schedule.signal_noise(t_prev)
    x_prev = s_prev * x_0 + n_prev * eps
    if slope is eps or s_prev * n > 100 * s:
        return x_prev
    return x_prev + (n_prev - s_prev * n / s) * (slope - eps)


def dpmpp_2m(model, schedule, x_T, timesteps, cond=None, **options):
    """DPM-Solver++(2M): a straight line through the last two x0_hat, exact in sigma.

    With lambda = log(s / n), h the step in lambda, h_before the one before it:
    D = x0_hat + h / (2 h_before) (x0_hat - x0_hat_before),
    x_prev = n_prev / n x_t + (s_prev - s n_prev / n) D (Lu et al. 2022, arXiv 2211.01095, Alg. 2),
    and n_prev / n x_t = s n_prev / n x0_hat + n_prev eps. First and last step are first order.
    """
    path, look = begin(model, schedule, x_T, timesteps, cond, **options)
    lam = lambda s, n: -math.inf if s == 0 else math.log(s / n)

    def steps(x):
        x0_before = lam_before = None
        for t, t_prev in path:
            x0_hat, eps = look(x, t)
            (s, n), (s_prev, n_prev) = schedule.signal_noise(t), schedule.signal_noise(t_prev)
            x_prev = s_prev * x0_hat + n_prev * eps
            if x0_before is not None and n_prev > 0:
                r = (lam(s_prev, n_prev) - lam(s, n)) / (lam(s, n) - lam_before)  # h / h_before
                x_prev = x_prev + (s_prev - s * n_prev / n) * r / 2 * (x0_hat - x0_before)
            x0_before, lam_before = x0_hat, lam(s, n)
            yield Step(t, x, x0_hat, eps, x_prev)
            x = x_prev

    return steps(x_T)


ADAMS_BASHFORTH = {  # weights of the last slopes, the newest first
    1: (1,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def ipndm(model, schedule, x_T, timesteps, cond=None, *, order=4, **options):
    """iPNDM: Adams-Bashforth on eps, the last `order` slopes combined.

    Zhang & Chen 2022 (arXiv 2204.13902), eq. 23. Weights are those of equal steps, as in the paper;
    the first steps use as many slopes as there are.
    """
    whole("order", order, 1, 4, "number of slopes combined")
    path, look = begin(model, schedule, x_T, timesteps, cond, **options)

    def steps(x):
        slopes = []
        for t, t_prev in path:
            x0_hat, eps = look(x, t)
            slopes = [eps, *slopes][:order]
            slope = sum(w * e for w, e in zip(ADAMS_BASHFORTH[len(slopes)], slopes))
            x_prev = along(schedule, t, t_prev, x0_hat, eps, slope)
            yield Step(t, x, x0_hat, eps, x_prev)
            x = x_prev

    return steps(x_T)


def pndm(model, schedule, x_T, timesteps, cond=None, **options):
    """PLMS, the pseudo linear multistep method of PNDM (Liu et al. 2022, arXiv 2202.09778, eq. 12).

    What SD 1.5's own scheduler does: iPNDM of order 4, but that the first step is Heun's, with a
    second look, so that a run makes one model call more than steps.
    """
    path, look = begin(model, schedule, x_T, timesteps, cond, **options)

    def steps(x):
        slopes = []
        for t, t_prev in path:
            x0_hat, eps = look(x, t)
            slopes = [eps, *slopes][:4]
            slope = sum(w * e for w, e in zip(ADAMS_BASHFORTH[len(slopes)], slopes))
            if len(slopes) == 1 and len(path) > 1:
                guess = along(schedule, t, t_prev, x0_hat, eps, eps)
                slope = (eps + look(guess, t_prev)[1]) / 2
            x_prev = along(schedule, t, t_prev, x0_hat, eps, slope)
            yield Step(t, x, x0_hat, eps, x_prev)
            x = x_prev

    return steps(x_T)


def consistency(model, schedule, x_T, timesteps, cond=None, *, generator=None, **options):
    """Multistep consistency sampling: to the end, and back to the next time with fresh noise.

    x_prev = s_prev x0_hat + n_prev z, z ~ N(0, I) (Song et al. 2023, arXiv 2303.01469, Algorithm
    1). For a model whose x0_hat is the end of the path, see consistency.py: one evaluation gives a
    picture, each further one mends it.
    """
    options = dict(options, generator=generator)
    path, look = begin(model, schedule, x_T, timesteps, cond, **options)

    def steps(x):
        for t, t_prev in path:
            x0_hat, eps = look(x, t)
            s, n = schedule.signal_noise(t_prev)
            x_prev = s * x0_hat + n * randn_like(x, generator) if n else x0_hat
            yield Step(t, x, x0_hat, eps, x_prev)
            x = x_prev

    return steps(x_T)


def mean_flow(model, schedule, x_T, timesteps, cond=None, *, predict="flow", end=-1, **options):
    """Euler's step by a model that is told where the step leads: one step may be the whole way.

    z_r = z_u - (u - r) U(z_u, r, u), with U the mean velocity from u to r, the shares of noise at t
    and t_prev (Geng et al. 2025, arXiv 2505.13447, eq. 12); the length u - r of the step is in
    cond.vector, (B, 1). See meanflow.py. In s and n it is `euler`, which follows the velocity at u.
    """
    shares = [n / (s + n) for s, n in map(schedule.signal_noise, _ends(schedule, timesteps, end))]
    lengths = iter(zip(shares, shares[1:]))

    def told(x_t, t, cond):
        u, r = next(lengths)
        return model(x_t, t, cond._replace(vector=x_t.new_full((len(x_t), 1), u - r)))

    told.__wrapped__ = model
    return sample(told, schedule, x_T, timesteps, cond, predict=predict, end=end, **options)


def _ends(schedule, timesteps, end):
    """The times of a walk and where it ends."""
    path = visit(schedule, timesteps, end)
    return [t for t, _ in path] + [path[-1][1]]


WALKS = (*SPACINGS, "leading karras", "trailing karras")  # spacings of `sampling_times`
SAMPLERS: dict[str, Callable] = {
    "ddpm": ddpm,
    "ddim": sample,
    "pndm": pndm,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "ipndm": ipndm,
}
# Not for any denoiser, but for networks that were trained to be asked so.
FEW_STEPS: dict[str, Callable] = {"consistency": consistency, "mean_flow": mean_flow}


# ---------------------------------------------------------------- as Stable Diffusion walks them


def sampling_times(
    schedule: Schedule,
    steps: int,
    sampler: str,
    spacing: str = "leading",
    *,
    offset: int = 1,
    end: float | None = None,
) -> tuple[list[float], float]:
    """(timesteps, end) as Stable Diffusion's own samplers walk.

    "leading" ends at `offset`, as trained. Euler and Heun take "linspace" at fractional times, the
    others round them. DPM-Solver++ counts the end as one of its evenly spaced points, so its grid
    is a little narrower. "leading karras" and "trailing karras" have the ends of those grids.
    end: None is alpha_bar[0] for DDIM and PNDM, the clean picture for the others.
    1000 of 1000 steps leave no room for any of these.
    "consistency" in fewer than 8 steps visits the first of 8 trailing times: fresh noise where
    much is left lets the text decide again, later it spoils more than it mends.
    """
    one_of("sampler", sampler, SAMPLERS | FEW_STEPS)
    one_of("spacing", spacing, WALKS)
    whole("steps", steps, 1, schedule.T, "one model call each, no more than the schedule has")
    grid, T = spacing.removesuffix(" karras").replace("karras", "linspace"), schedule.T
    offset = min(offset, T - 1)
    if sampler == "dpmpp_2m" and grid in ("leading", "linspace") and steps < T:
        times = spaced_timesteps(T, steps + 1, grid, offset).tolist()[:-1]
    else:
        times = spaced_timesteps(T, steps, grid, offset).tolist()
    if sampler == "consistency" and grid == "trailing":
        times = spaced_timesteps(T, max(steps, min(8, T)), grid).tolist()[:steps]
    if in_sigma(sampler) and grid == "linspace" and steps > 1:
        times = [(T - 1) * i / (steps - 1) for i in reversed(range(steps))]
    if spacing.endswith("karras"):
        ends = (T - 1, 0) if sampler == "dpmpp_2m" else (times[0], times[-1])
        times = karras_timesteps(schedule, steps, ends=ends).tolist()
    if end is None:
        end = 0 if sampler in ("ddim", "pndm") else -1
    return times, end if times[-1] > end else -1


def in_sigma(sampler: str) -> bool:
    """Whether the original of this sampler counts noise in sigma."""
    return sampler in ("euler", "euler_ancestral", "heun")


def noise_scale(schedule: Schedule, t: float, sampler: str, spacing: str = "leading") -> float:
    """What N(0, I) is multiplied by to be x_t at the first time t of `sampling_times`.

    x_t is s x_0 + n eps. Samplers that count in sigma leave out s x_0 and start from sigma N(0, I),
    here n N(0, I); with "leading" times and in all other samplers N(0, I) stands for the whole.
    """
    of_both = spacing.startswith("leading") or not in_sigma(sampler)
    return 1.0 if of_both else schedule.signal_noise(t)[1]


def karras_clock(model: Callable, schedule: Schedule, sampler: str) -> Callable:
    """`model`, asked at the time that the originals ask at under "karras" spacing.

    Between two times they find t by log sigma, while `Schedule` goes by sigma: the noise is the
    same, t differs by some hundredths. DPM-Solver++ asks at whole times only.
    """
    growth = schedule.sigma[1:] / schedule.sigma[:-1] - 1

    def asked(x_t, t, cond):
        low = t.floor().clamp(max=schedule.T - 2)
        g = growth.to(t)[low.long()]
        at = low + ((t - low) * g).log1p() / g.log1p()
        return model(x_t, at.round() if sampler == "dpmpp_2m" else at, cond)

    return asked
