"""The noise schedule: how fast a picture turns into noise, and what follows. Notebooks 01 and 02.

Papers count t = 1..T. In code t = 0..T-1 indexes the arrays, so code t is the paper's t + 1, and
t = -1 is the clean picture (alpha_bar = 1). References: DDPM = Ho et al. 2020 (arXiv 2006.11239),
iDDPM = Nichol & Dhariwal 2021 (arXiv 2102.09672), v = Salimans & Ho 2022 (arXiv 2202.00512),
zero terminal SNR = Lin et al. 2023 (arXiv 2305.08891).
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .errors import PREDICTIONS, WEIGHTS, ScheduleError, ShapeError, in_range, one_of

MAX_T = 100_000  # steps; a thousand are usual
NO_SIGNAL = 1e-12  # an alpha_bar below this leaves nothing of the picture that float32 could hold


@dataclass(frozen=True, eq=False)
class Schedule:
    """beta_1..beta_T and what follows from them, kept in float64.

    beta: (T,) tensor, every value between 0 and 1, both excluded, but that beta_T may be 1: then
    alpha_bar_T = 0 and x_T is pure noise (zero terminal SNR). Raises ScheduleError otherwise.
    """

    beta: Tensor

    def __post_init__(self):
        beta = _row("beta", self.beta)
        bad = ~((beta > 0) & (beta < 1))  # written so that NaN is bad too
        bad[-1] &= beta[-1] != 1
        if bad.any():
            t = int(bad.nonzero()[0])
            raise ScheduleError(
                f"beta[{t}] = {beta[t].item():g} is not between 0 and 1: choose one such as 0.02"
            )
        object.__setattr__(self, "beta", beta)
        gone = self.alpha_bar < 1e-300  # smaller numbers lose their digits
        gone[-1] &= beta[-1] != 1
        if gone.any():
            raise ScheduleError(
                f"alpha_bar reaches 0 at t = {int(gone.nonzero()[0])}, before T = {len(beta)}: "
                "choose a smaller beta or fewer steps"
            )

    @classmethod
    def linear(cls, T: int = 1000, start: float = 1e-4, end: float = 0.02) -> "Schedule":
        """beta rises on a straight line from `start` to `end` (DDPM section 4)."""
        return cls(_line(T, start, end))

    @classmethod
    def sqrt_linear(cls, T: int = 1000, start: float = 0.00085, end: float = 0.012) -> "Schedule":
        """sqrt(beta) rises on a straight line: Stable Diffusion's, where it is called "linear"."""
        return cls(_line(T, start, end, 0.5) ** 2)

    @classmethod
    def cosine(cls, T: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> "Schedule":
        """alpha_bar falls like a squared cosine, beta cut off at `max_beta` (iDDPM eq. 17)."""
        u = torch.arange(_count(T) + 1, dtype=torch.float64) / T
        f = torch.cos((u + s) / (1 + s) * torch.pi / 2) ** 2
        return cls((1 - f[1:] / f[:-1]).clamp(max=max_beta))

    @classmethod
    def flow(cls, T: int = 1000, shift: float = 1.0) -> "Schedule":
        """The straight path (1 - u) x_0 + u eps of flow matching, at u = 1/T, 2/T, ..., 1.

        Its length k = sqrt((1 - u)^2 + u^2) divided out, it is x_t = s x_0 + n eps with
        s = (1 - u) / k, n = u / k: one more schedule, which ends in pure noise (Lipman et al. 2022,
        arXiv 2210.02747; rectified flow, Liu et al. 2022, arXiv 2209.03003).
        shift > 1 spends more steps on much noise, as large pictures need: u becomes
        shift u / (1 + (shift - 1) u), so that sigma = u / (1 - u) becomes shift sigma (Esser et al.
        2024, arXiv 2403.03206, eq. 23; SD 3 samples with 3).
        """
        in_range("shift", shift, 1e-3, 1e3, "1 is the plain path, SD 3 samples with 3")
        u = (torch.arange(_count(T), dtype=torch.float64) + 1) / T
        u = shift * u / (1 + (shift - 1) * u)
        u[-1] = 1
        return cls.from_alpha_bar((1 - u) ** 2 / ((1 - u) ** 2 + u**2))

    @classmethod
    def from_alpha_bar(cls, alpha_bar: Tensor) -> "Schedule":
        """The schedule with these alpha_bar, (T,): beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}.

        They must fall strictly, from below 1, and stay above 0; the last one may be 0.
        """
        alpha_bar = _row("alpha_bar", alpha_bar)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
        bad = ~((alpha_bar > 0) & (alpha_bar < previous))
        bad[-1] &= alpha_bar[-1] != 0
        if bad.any():
            t = int(bad.nonzero()[0])
            raise ScheduleError(
                f"alpha_bar[{t}] = {alpha_bar[t].item():g} does not decrease from "
                f"{previous[t].item():g}: it must fall from below 1; all but the last are positive"
            )
        return cls(1 - alpha_bar / previous)

    def zero_terminal_snr(self) -> "Schedule":
        """The same schedule, shifted and stretched to end in pure noise (Lin et al., Algorithm 1).

        With s_t = sqrt(alpha_bar_t): s_t <- (s_t - s_T) s_1 / (s_1 - s_T). For models that predict
        v or x_0: where nothing of the picture is left, eps says nothing about it.
        """
        s = self.alpha_bar.sqrt()
        return Schedule.from_alpha_bar(((s - s[-1]) * s[0] / (s[0] - s[-1])) ** 2)

    @property
    def T(self) -> int:
        """Number of steps."""
        return len(self.beta)

    @cached_property
    def alpha(self) -> Tensor:
        """alpha_t = 1 - beta_t, (T,)."""
        return 1 - self.beta

    @cached_property
    def alpha_bar(self) -> Tensor:
        """alpha_bar_t = alpha_1 * ... * alpha_t, up to t and not to T, (T,) (DDPM section 2)."""
        return self.alpha.cumprod(0)

    @cached_property
    def alpha_bar_prev(self) -> Tensor:
        """alpha_bar_{t-1}, with alpha_bar_0 = 1 before the first step, (T,)."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])

    @cached_property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio alpha_bar_t / (1 - alpha_bar_t), (T,)."""
        return self.alpha_bar / (1 - self.alpha_bar)

    @cached_property
    def sigma(self) -> Tensor:
        """Noise per unit of signal, sqrt((1 - alpha_bar_t) / alpha_bar_t), (T,); infinite at 0."""
        return self.snr**-0.5

    def alpha_bar_at(self, t: float) -> float:
        """alpha_bar at any time in [-1, T-1]: 1 at t = -1 (clean).

        Between two steps sigma is interpolated linearly (1 / sigma, where it ends at infinity).
        """
        t = float(t)
        if not -1 <= t <= self.T - 1:
            raise ScheduleError(
                f"t = {t:g} lies outside this schedule: pass 0 to {self.T - 1}, or -1 for clean"
            )
        low = math.floor(t)
        if t == low:
            return 1.0 if low < 0 else self.alpha_bar[low].item()
        below, above = 0.0 if low < 0 else self.sigma[low].item(), self.sigma[low + 1].item()
        w = t - low
        sigma = below + w * (above - below) if above < math.inf else below / (1 - w)
        return 1 / (1 + sigma**2)

    def signal_noise(self, t: float) -> tuple[float, float]:
        """(s, n) = (sqrt(alpha_bar_t), sqrt(1 - alpha_bar_t)) at any time: x_t = s x_0 + n eps."""
        alpha_bar = self.alpha_bar_at(t)
        return alpha_bar**0.5, (1 - alpha_bar) ** 0.5

    def sigma_at(self, t: float) -> float:
        """sigma = n / s at any time in [-1, T-1]; 0 at t = -1."""
        s, n = self.signal_noise(t)
        return n / s if s else math.inf

    def time_at(self, sigma) -> Tensor:
        """The time whose `sigma_at` is sigma, for a number or a tensor of them, float64."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        grid = torch.cat([torch.zeros(1, dtype=torch.float64), self.sigma])  # at t = -1, 0, 1, ...
        i = torch.searchsorted(grid, sigma).clamp(1, self.T)
        below, above = grid[i - 1], grid[i]
        w = torch.where(above.isinf(), 1 - below / sigma, (sigma - below) / (above - below))
        return i - 2 + w.clamp(max=1)

    def q_step(self, x_prev: Tensor, t, eps: Tensor) -> Tensor:
        """One step, x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps (DDPM eq. 2).

        Shapes as in `q_sample`.
        """
        _same_shape("x_{t-1}", x_prev, "eps", eps)
        s, n = (self.at(c.sqrt(), t, x_prev) for c in (self.alpha, self.beta))
        return s * x_prev + n * eps

    def q_sample(self, x_0: Tensor, t, eps: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps: any t in one jump (DDPM eq. 4).

        x_0, eps: (B, ...); t: a whole number or a (B,) tensor of them, 0..T-1. Returns (B, ...).
        Raises ScheduleError for t outside the schedule, ShapeError where shapes differ.
        """
        _same_shape("x_0", x_0, "eps", eps)
        s, n = self._signal_noise(self._whole(t), x_0)
        return s * x_0 + n * eps

    def posterior(
        self, x_0: Tensor, x_t: Tensor, t, t_prev: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_{t-1} | x_t, x_0) (DDPM eq. 6 and 7).

        mean = [sqrt(alpha_bar_{t-1}) beta_t x_0 + sqrt(alpha_t) (1 - alpha_bar_{t-1}) x_t]
               / (1 - alpha_bar_t)
        variance = beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t), broadcasts over the mean
        For a number t, `t_prev` may name an earlier time than t - 1: the same formulas with
        alpha_t = alpha_bar_t / alpha_bar_{t_prev} and beta_t = 1 - alpha_t jump several steps.
        """
        _same_shape("x_0", x_0, "x_t", x_t)
        if t_prev is None:
            now, before, at = self.alpha_bar, self.alpha_bar_prev, lambda c: self.at(c, t, x_0)
        else:
            if not float(t_prev) < float(t):
                raise ScheduleError(
                    f"t_prev = {t_prev:g} is not earlier than t = {t:g}: pass t_prev < t"
                )
            now, before = (
                torch.tensor(self.alpha_bar_at(s), dtype=torch.float64) for s in (t, t_prev)
            )
            at = lambda c: c.to(x_0.dtype)  # one number on the CPU: reaches a GPU without a wait
        alpha = now / before
        beta = 1 - alpha
        c_0 = before.sqrt() * beta / (1 - now)
        c_t = alpha.sqrt() * (1 - before) / (1 - now)
        return at(c_0) * x_0 + at(c_t) * x_t, at(beta * (1 - before) / (1 - now))

    def target(self, x_0: Tensor, eps: Tensor, t, predict: str = "eps") -> Tensor:
        """What the network is asked for, `predict`: eps, x_0, v or flow.

        v = s eps - n x_0 (s, n: `signal_noise`); flow = eps - x_0, the velocity of the straight
        path of `Schedule.flow`.
        """
        _same_shape("x_0", x_0, "eps", eps)
        c_0, c_eps = _coefficients(predict, *self._signal_noise(self._whole(t), x_0))
        return c_0 * x_0 + c_eps * eps

    def split(
        self, x_t: Tensor, prediction: Tensor, t, predict: str = "eps"
    ) -> tuple[Tensor, Tensor]:
        """(x0_hat, eps_hat) from x_t and the network's prediction: two equations, two unknowns.

        x_t = s x_0 + n eps and prediction = c_0 x_0 + c_eps eps.
        t may be fractional here (a number, or a (B,) tensor of whole numbers).
        Raises ScheduleError for eps where alpha_bar_t is 0, see `can_predict`.
        """
        _same_shape("x_t", x_t, "the prediction", prediction)
        self.can_predict(predict, t)
        s, n = self._signal_noise(t, x_t)
        c_0, c_eps = _coefficients(predict, s, n)
        det = s * c_eps - n * c_0
        return (c_eps * x_t - n * prediction) / det, (s * prediction - c_0 * x_t) / det

    def weight(self, name: str, predict: str = "eps", gamma: float = 5.0) -> Tensor:
        """w(t) / k(t)^2, (T,): what |prediction - target|^2 is multiplied by for a loss
        E w(t) |x0_hat - x_0|^2.

        With x_t held, an error of the prediction is k times that of x0_hat, k = c_0 - c_eps s / n:
        to choose what is predicted is to choose a weight. name: "none" is w = k^2, the plain loss
        (eps: SNR; x_0: 1; v: SNR + 1; flow: (1 + sqrt(SNR))^2). Any prediction with w = "snr",
        "snr_plus_1", "truncated" = max(SNR, 1) (Salimans & Ho 2022), "min_snr" = min(SNR, gamma)
        (Hang et al. 2023, arXiv 2303.09556).
        """
        one_of("weight", name, WEIGHTS)
        in_range("gamma", gamma, 1e-6, 1e6, "5 is usual")
        self.can_predict(predict, self.T - 1)
        c_0, c_eps = _coefficients(predict, self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt())
        k2 = (c_0 - c_eps * self.snr.sqrt()) ** 2
        w = {
            "none": k2,
            "snr": self.snr,
            "snr_plus_1": self.snr + 1,
            "truncated": self.snr.clamp(min=1),
            "min_snr": self.snr.clamp(max=gamma),
        }[name]
        return w / k2

    def can_predict(self, predict: str, t) -> None:
        """Raise ScheduleError for "eps" where alpha_bar_t is 0: (x_t - n eps) / s is 0 / 0."""
        one_of("predict", predict, PREDICTIONS)
        if predict == "eps" and self.alpha_bar[-1] < NO_SIGNAL:
            t = float(torch.as_tensor(t).max())
            if self.alpha_bar_at(t) < NO_SIGNAL:
                raise ScheduleError(
                    f'predict = "eps" cannot be used at t = {t:g}: nothing of the picture is left, '
                    'use "flow", "v" or "x_0", or start at an earlier t'
                )

    def _signal_noise(self, t, x):
        """`signal_noise` of a number t, or (B, 1, ...) tensors of a tensor t."""
        if not (isinstance(t, Tensor) and t.ndim > 0):
            return self.signal_noise(t)
        return self.at(self.alpha_bar.sqrt(), t, x), self.at((1 - self.alpha_bar).sqrt(), t, x)

    def _whole(self, t):
        """t itself, after checking that it holds steps of the schedule only: whole, 0 to T-1."""
        times = torch.as_tensor(t, device="cpu")
        if times.is_floating_point() and bool((times != times.floor()).any()):  # NaN too
            raise ScheduleError(
                f"t = {times.tolist()} is not whole: pass steps of the schedule, 0 to {self.T - 1}"
            )
        if times.numel() and not (times.min() >= 0 and times.max() < self.T):
            raise ScheduleError(
                f"t runs from {times.min():g} to {times.max():g}, outside this schedule: allowed "
                f"are 0 to {self.T - 1}"
            )
        return t

    def at(self, values: Tensor, t, x: Tensor) -> Tensor:
        """values[t] in the type of x, shaped (B, 1, ..., 1), after checking t."""
        t = torch.as_tensor(self._whole(t), device="cpu")
        if t.ndim > 1 or (t.ndim == 1 and len(t) not in (1, len(x))):
            raise ShapeError(
                f"t has shape {tuple(t.shape)} for a batch of {len(x)}: pass one number, or one a "
                f"picture, ({len(x)},)"
            )
        return values[t.long()].to(x).reshape(-1, *[1] * (x.ndim - 1))


def _coefficients(predict, s, n):
    """(c_0, c_eps): prediction = c_0 x_0 + c_eps eps; the formulations differ by these two only."""
    one_of("predict", predict, PREDICTIONS)
    return {"eps": (0.0, 1.0), "x_0": (1.0, 0.0), "v": (-n, s), "flow": (-1.0, 1.0)}[predict]


def _count(T) -> int:
    if isinstance(T, bool) or not isinstance(T, int) or not 1 <= T <= MAX_T:
        raise ScheduleError(
            f"T = {T!r:.40} is not a number of steps: pass a whole number from 1 to {MAX_T}"
        )
    return T


def _line(T, start, end, power=1.0) -> Tensor:
    """T numbers evenly from start^power to end^power, for betas that begin and end there."""
    if not (0 < start < 1 and 0 < end < 1):
        raise ScheduleError(
            f"beta from {start:g} to {end:g}: both ends must lie between 0 and 1, such as 0.012"
        )
    return torch.linspace(start**power, end**power, _count(T), dtype=torch.float64)


def _row(name, values) -> Tensor:
    """A copy of (T,) numbers as float64 on the CPU."""
    values = torch.as_tensor(values)
    if values.ndim != 1 or not 1 <= len(values) <= MAX_T:
        raise ScheduleError(
            f"{name} has shape {tuple(values.shape)}: pass one row of 1 to {MAX_T} numbers, (T,)"
        )
    return values.detach().to("cpu", torch.float64).clone()


def _same_shape(name_a, a, name_b, b):
    if a.shape != b.shape:
        raise ShapeError(
            f"{name_a} has shape {tuple(a.shape)} but {name_b} has {tuple(b.shape)}: they must be "
            "equal"
        )
    if not a.is_floating_point():  # sqrt(alpha_bar) as a whole number is 0
        raise ShapeError(
            f"{name_a} holds whole numbers ({a.dtype}): scale pictures to floats in [-1, 1]"
        )
