"""Schedule: every formula against algebra (sympy), grid Bayes, walks, known numbers and diffusers."""

import math

import pytest
import sympy as sp
import torch
from helpers import read_json, refuses

from ddpm_edu import OptionError, Schedule, ScheduleError, ShapeError

BETAS = [
    sp.Rational(1, 50),
    sp.Rational(1, 9),
    sp.Rational(1, 4),
    sp.Rational(2, 5),
    sp.Rational(7, 10),
]
EXACT = Schedule(torch.tensor([float(b) for b in BETAS], dtype=torch.float64))
FACTS = read_json("schedule_facts.json")
ALL = {"linear": Schedule.linear(), "cosine": Schedule.cosine(), "sd": Schedule.sqrt_linear()}


def one(value):
    return torch.tensor([[float(value)]], dtype=torch.float64)


def pair(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2))


# ---------------------------------------------------------------- q(x_t | x_0)


def merged():
    """(coefficient of x_0, variance) after each step, by merging Gaussians: c <- sqrt(a) c, v <- a v + (1 - a)."""
    c, v = sp.Integer(1), sp.Integer(0)
    for beta in BETAS:
        c, v = sp.sqrt(1 - beta) * c, (1 - beta) * v + beta
        yield c, sp.nsimplify(v)


def test_closed_form_follows_by_induction():
    """If x_{t-1} = sqrt(A) x_0 + sqrt(1 - A) e, one more step gives sqrt(a A) x_0 and the variance 1 - a A, for any a, A."""
    a, A = sp.symbols("a A", positive=True)
    assert sp.simplify(sp.sqrt(a) * sp.sqrt(A) - sp.sqrt(a * A)) == 0
    assert sp.expand(a * (1 - A) + (1 - a) - (1 - a * A)) == 0


@pytest.mark.parametrize("t", range(5))
def test_q_sample_is_the_merged_gaussian(t):
    c, v = list(merged())[t]
    assert EXACT.q_sample(one(1), t, one(0)).item() == pytest.approx(float(c), abs=1e-14)
    assert EXACT.q_sample(one(0), t, one(1)).item() ** 2 == pytest.approx(float(v), abs=1e-14)
    assert EXACT.alpha_bar[t].item() == pytest.approx(float(c**2), abs=1e-14)
    assert EXACT.snr[t].item() == pytest.approx(float(c**2 / v), rel=1e-13)
    assert EXACT.sigma[t].item() == pytest.approx(float(sp.sqrt(v) / c), rel=1e-13)


def test_walks_of_single_steps_end_where_the_jump_ends():
    """10,000 walks by q_step, mean and variance within 5 standard errors of the closed form, at four times."""
    from scipy.stats import kstest

    schedule, n, x_0 = Schedule.linear(50, 1e-3, 0.2), 10_000, 1.7
    g = torch.Generator().manual_seed(1)
    x = torch.full((n,), x_0, dtype=torch.float64)
    for t in range(50):
        x = schedule.q_step(x, t, torch.randn(n, generator=g, dtype=torch.float64))
        if t in (0, 9, 24, 49):
            mean, var = schedule.alpha_bar[t].sqrt() * x_0, 1 - schedule.alpha_bar[t]
            assert abs(x.mean() - mean) < 5 * (var / n).sqrt()
            assert abs(x.var() - var) < 5 * var * (2 / n) ** 0.5
            assert kstest(((x - mean) / var.sqrt()).numpy(), "norm").pvalue > 1e-3


def test_one_time_a_picture_equals_one_after_the_other():
    x_0, eps = pair(4, 3, 2, 2)
    t = torch.tensor([0, 999, 5, 500])
    for f in (
        ALL["sd"].q_sample,
        ALL["sd"].q_step,
        lambda x, t, e: ALL["sd"].posterior(x, e, t)[0],
        lambda x, t, e: ALL["sd"].target(x, e, t, "v"),
        lambda x, t, e: ALL["sd"].split(x, e, t, "v")[0],
    ):
        rows = torch.cat([f(x_0[i : i + 1], int(t[i]), eps[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(f(x_0, t, eps), rows, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- q(x_{t-1} | x_t, x_0)


def square_completed(t, before):
    """Mean (as a function of x_0, x_t) and variance from log q(x_t | x_s) + log q(x_s | x_0), a parabola in x_s, s = before."""
    x_0, x_s, x_t = sp.symbols("x_0 x_s x_t")
    alpha = sp.prod([1 - b for b in BETAS[before + 1 : t + 1]])
    c, v = list(merged())[before]
    log_q = -((x_t - sp.sqrt(alpha) * x_s) ** 2) / (2 * (1 - alpha)) - (x_s - c * x_0) ** 2 / (
        2 * v
    )
    a, b, _ = sp.Poly(sp.expand(log_q), x_s).all_coeffs()
    return sp.lambdify((x_0, x_t), -b / (2 * a)), float(-1 / (2 * a))


@pytest.mark.parametrize("t, before", [(1, 0), (2, 1), (3, 2), (4, 3), (4, 0), (3, 1)])
def test_posterior_is_the_completed_square(t, before):
    mean, variance = square_completed(t, before)
    ours = EXACT.posterior(one(0.7), one(-1.3), t, None if before == t - 1 else before)
    assert ours[0].item() == pytest.approx(float(mean(0.7, -1.3)), abs=1e-13)
    assert ours[1].item() == pytest.approx(variance, abs=1e-14)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("t", [1, 10, 500, 999])
def test_posterior_on_a_grid(name, t):
    """Bayes by brute force: prior times likelihood on 20,001 points, normalised; mean and variance by sums."""
    schedule, x_0 = ALL[name], 0.8
    x_t = schedule.q_sample(one(x_0), t, one(-0.6)).item()
    mean, variance = (v.item() for v in schedule.posterior(one(x_0), one(x_t), t))
    x = torch.linspace(
        mean - 12 * variance**0.5, mean + 12 * variance**0.5, 20_001, dtype=torch.float64
    )
    prior = -((x - schedule.alpha_bar[t - 1].sqrt() * x_0) ** 2) / (
        2 * (1 - schedule.alpha_bar[t - 1])
    )
    likelihood = -((x_t - schedule.alpha[t].sqrt() * x) ** 2) / (2 * schedule.beta[t])
    p = (prior + likelihood).softmax(0)
    assert (p * x).sum().item() == pytest.approx(mean, abs=1e-6)
    assert (p * (x - mean) ** 2).sum().item() == pytest.approx(variance, rel=1e-4)


def test_posterior_before_the_first_step_is_the_clean_picture():
    x_0, x_t = pair(2, 3)
    mean, variance = EXACT.posterior(x_0, x_t, 0)
    torch.testing.assert_close(mean, x_0)
    assert variance.abs().max() == 0
    torch.testing.assert_close(EXACT.posterior(x_0, x_t, 4, -1)[0], x_0)


# ---------------------------------------------------------------- eps, x_0, v, flow


@pytest.mark.parametrize("predict", ["eps", "x_0", "v", "flow"])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("t", [0, 400, 999, torch.tensor([3, 998])])
def test_split_undoes_target(predict, name, t):
    x_0, eps = pair(2, 5)
    x_t = ALL[name].q_sample(x_0, t, eps)
    back = ALL[name].split(x_t, ALL[name].target(x_0, eps, t, predict), t, predict)
    # x_0 from eps (and eps from x_0) divides by sqrt(alpha_bar), 5e-5 at the end of the cosine schedule
    torch.testing.assert_close(back[0], x_0, rtol=0, atol=1e-10)
    torch.testing.assert_close(back[1], eps, rtol=0, atol=1e-10)


def test_target_names_what_it_says():
    x_0, eps = pair(2, 5)
    assert torch.equal(EXACT.target(x_0, eps, 2, "eps"), eps) and torch.equal(
        EXACT.target(x_0, eps, 2, "x_0"), x_0
    )


def test_v_is_the_speed_on_the_circle():
    """With alpha_bar = cos^2 phi: x_t = cos(phi) x_0 + sin(phi) eps and v = d x_t / d phi (Salimans & Ho, appendix D)."""
    x_0, eps = pair(1, 5)
    for t in range(5):
        phi = torch.acos(EXACT.alpha_bar[t].sqrt()).requires_grad_()
        jacobian = torch.autograd.functional.jacobian(
            lambda p: torch.cos(p) * x_0 + torch.sin(p) * eps, phi
        )
        torch.testing.assert_close(EXACT.target(x_0, eps, t, "v"), jacobian, rtol=0, atol=1e-12)


def test_fractional_time_splits_with_interpolated_sigma():
    schedule = ALL["sd"]
    x_0, eps = pair(2, 5)
    sigma = 0.25 * schedule.sigma[10].item() + 0.75 * schedule.sigma[11].item()
    x_t = (x_0 + sigma * eps) / (1 + sigma**2) ** 0.5
    torch.testing.assert_close(schedule.split(x_t, eps, 10.75, "eps")[0], x_0)
    assert schedule.sigma_at(10.75) == pytest.approx(sigma)
    assert schedule.alpha_bar_at(-0.5) == pytest.approx(
        1 / (1 + (schedule.sigma[0].item() / 2) ** 2)
    )


@pytest.mark.parametrize("name", [*ALL, "zero"])
def test_time_at_undoes_sigma_at(name):
    schedule = ALL["sd"].zero_terminal_snr() if name == "zero" else ALL[name]
    times = [-1.0, -0.3, 0.0, 0.5, 1.0, 499.0, 700.25, 997.5, 998.0, 998.75]
    sigmas = torch.tensor([schedule.sigma_at(t) for t in times], dtype=torch.float64)
    assert (sigmas.diff() > 0).all()
    assert schedule.time_at(sigmas).tolist() == pytest.approx(times, abs=1e-6)
    assert schedule.time_at(sigmas[3]).item() == pytest.approx(0.5)
    assert schedule.time_at(schedule.sigma[-1]).item() == 999


def test_signal_and_noise_are_a_circle():
    for t in (-1, 0, 0.5, 300, 999):
        s, n = ALL["sd"].signal_noise(t)
        assert s**2 + n**2 == pytest.approx(1) and s**2 == pytest.approx(ALL["sd"].alpha_bar_at(t))


# ---------------------------------------------------------------- pure noise at the end

ZERO = ALL["sd"].zero_terminal_snr()


@pytest.mark.parametrize("name", ALL)
def test_rescaled_betas_as_in_diffusers(name):
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    ours, plain = ALL[name].zero_terminal_snr(), ALL[name]
    torch.testing.assert_close(ours.beta, rescale_zero_terminal_snr(plain.beta), rtol=0, atol=1e-9)
    assert ours.alpha_bar[-1] == 0 and ours.snr[-1] == 0 and ours.sigma[-1] == math.inf
    assert ours.beta[-1] == 1 and ours.beta[0].item() == pytest.approx(plain.beta[0].item())
    assert (ours.alpha_bar.diff() < 0).all() and plain.alpha_bar[-1] > 0


def test_all_ways_to_a_schedule_that_ends_in_pure_noise():
    for schedule in (
        Schedule(torch.tensor([0.1, 0.5, 1.0])),
        Schedule.from_alpha_bar(torch.tensor([0.9, 0.45, 0.0])),
    ):
        assert schedule.alpha_bar.tolist() == pytest.approx([0.9, 0.45, 0.0])
        assert schedule.signal_noise(2) == (0, 1) and schedule.sigma_at(2) == math.inf
    assert Schedule(torch.tensor([1.0])).alpha_bar.tolist() == [0]


def test_formulas_where_nothing_is_left():
    """x_T is the noise; the posterior forgets it and noises x_0; v and x_0 give x_0 back."""
    x_0, eps = pair(2, 5)
    for t in (999, torch.tensor([999, 999])):
        assert torch.equal(ZERO.q_sample(x_0, t, eps), eps)
        assert torch.equal(ZERO.target(x_0, eps, t, "v"), -x_0)
        for predict in ("v", "x_0"):
            back = ZERO.split(eps, ZERO.target(x_0, eps, t, predict), t, predict)
            assert torch.equal(back[0], x_0) and torch.equal(back[1], eps)
        mean, variance = ZERO.posterior(x_0, eps, t)
        torch.testing.assert_close(mean, ZERO.alpha_bar[998].sqrt() * x_0)
        torch.testing.assert_close(variance.max(), 1 - ZERO.alpha_bar[998])
    mean, variance = ZERO.posterior(x_0, eps, 999, 500)
    torch.testing.assert_close(mean, ZERO.alpha_bar[500].sqrt() * x_0)
    torch.testing.assert_close(variance, 1 - ZERO.alpha_bar[500])


@pytest.mark.parametrize("end", [0.0, 1e-20, 1e-13])
@pytest.mark.parametrize("t", [999, 998.9999999999, torch.tensor([3, 999])])
def test_eps_is_refused_where_nothing_is_left(end, t):
    alpha_bar = ZERO.alpha_bar.clone()
    alpha_bar[-1] = end
    schedule, x = Schedule.from_alpha_bar(alpha_bar), torch.zeros(2, 3)
    with refuses(ScheduleError, "eps", "nothing of the picture", '"v" or "x_0"', "earlier t"):
        schedule.split(x, x, t, "eps")
    assert schedule.split(x, x, 998, "eps")[0].isfinite().all()


def test_between_the_last_time_and_infinity():
    """1 / sigma is interpolated there."""
    low = ZERO.sigma[998].item()
    assert ZERO.sigma_at(998.75) == pytest.approx(4 * low)
    assert ZERO.alpha_bar_at(998.75) == pytest.approx(1 / (1 + 16 * low**2))


# ---------------------------------------------------------------- known numbers


def test_stable_diffusion_ends_with_seven_percent_signal():
    assert ALL["sd"].alpha_bar[-1].sqrt().item() == pytest.approx(0.0683, abs=5e-5)


@pytest.mark.parametrize(
    "ours, facts",
    [
        ("sd", "sd_scaled_linear"),
        ("linear", "ddpm_linear_1e-4_0.02"),
        ("cosine", "cosine_squaredcos_cap_v2"),
    ],
)
def test_published_numbers(ours, facts):
    schedule, facts = ALL[ours], FACTS[facts]
    for name, attribute in (
        ("alphas_cumprod", "alpha_bar"),
        ("sigmas", "sigma"),
        ("betas", "beta"),
    ):
        for t, value in facts.get(name, {}).items():
            assert getattr(schedule, attribute)[int(t)].item() == pytest.approx(value, rel=2e-6), (
                name,
                t,
            )
    if "betas_first_last" in facts:
        assert schedule.beta[[0, -1]].tolist() == pytest.approx(
            facts["betas_first_last"], rel=1e-12
        )


@pytest.mark.parametrize(
    "ours, theirs, T",
    [
        (Schedule.linear(), dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02), 1000),
        (
            Schedule.sqrt_linear(),
            dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
            1000,
        ),
        (Schedule.cosine(), dict(beta_schedule="squaredcos_cap_v2"), 1000),
        (Schedule.cosine(37), dict(beta_schedule="squaredcos_cap_v2"), 37),
    ],
)
def test_betas_agree_with_diffusers(ours, theirs, T):
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(num_train_timesteps=T, **theirs)  # float32 inside
    torch.testing.assert_close(ours.beta, theirs.betas.double(), rtol=1e-4, atol=2e-7)


def test_everything_is_float64_and_consistent():
    for schedule in ALL.values():
        for name in ("beta", "alpha", "alpha_bar", "alpha_bar_prev", "snr", "sigma"):
            value = getattr(schedule, name)
            assert (
                value.dtype == torch.float64
                and value.shape == (schedule.T,)
                and value.isfinite().all()
            ), name
        assert (schedule.alpha_bar.diff() < 0).all() and (schedule.sigma.diff() > 0).all()
        torch.testing.assert_close(
            Schedule.from_alpha_bar(schedule.alpha_bar).beta, schedule.beta, rtol=1e-9, atol=1e-12
        )


def test_results_keep_the_type_of_the_picture():
    for dtype in (torch.float16, torch.float32, torch.float64):
        x = torch.zeros(2, 3, dtype=dtype)
        for out in (
            ALL["sd"].q_sample(x, torch.tensor([1, 2]), x),
            ALL["sd"].q_sample(x, 1, x),
            *ALL["sd"].posterior(x, x, 5),
            *ALL["sd"].posterior(x, x, 5, 2),
            *ALL["sd"].split(x, x, 5),
        ):
            assert out.dtype == dtype


def test_the_argument_is_not_shared():
    beta = torch.full((3,), 0.1, dtype=torch.float64)
    schedule = Schedule(beta)
    beta[0] = 0.9
    assert schedule.beta[0].item() == pytest.approx(0.1)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "beta, words",
    [
        ([0.1, 0.0, 0.1], (r"beta\[1\]", "between 0 and 1")),
        ([1.0, 0.1], (r"beta\[0\] = 1",)),
        ([0.1, 1.01], (r"beta\[1\] = 1.01",)),
        ([0.1, -0.2], (r"beta\[1\] = -0.2",)),
        ([0.1, float("nan")], (r"beta\[1\] = nan",)),
        ([], ("shape", r"\(T,\)")),
        ([[0.1]], (r"\(1, 1\)",)),
        (0.1, ("shape",)),
        ([0.01] * 100_001, ("shape", "100000")),
        ([0.9] * 400, ("alpha_bar reaches 0 at t = 300", "smaller beta")),
    ],
)
def test_bad_beta(beta, words):
    with refuses(ScheduleError, *words):
        Schedule(torch.tensor(beta))


@pytest.mark.parametrize(
    "alpha_bar, words",
    [
        ([0.9, 0.9], (r"alpha_bar\[1\]", "not decrease", "must fall")),
        ([0.5, 0.6], (r"alpha_bar\[1\]",)),
        ([1.0, 0.5], (r"alpha_bar\[0\]",)),
        ([0.9, 0.0, 0.0], (r"alpha_bar\[1\]", "positive")),
        ([0.9, 0.5, -1e-9], (r"alpha_bar\[2\]",)),
        ([0.9, float("nan")], (r"alpha_bar\[1\] = nan",)),
        ([], ("shape",)),
        ([[0.9]], ("shape",)),
    ],
)
def test_bad_alpha_bar(alpha_bar, words):
    with refuses(ScheduleError, *words):
        Schedule.from_alpha_bar(torch.tensor(alpha_bar))


@pytest.mark.parametrize("make", [Schedule.linear, Schedule.cosine, Schedule.sqrt_linear])
@pytest.mark.parametrize(
    "T", [0, -1, 2.5, True, "10", float("nan"), None, 100_001, 2 * 10**8, 10**12, 10**400]
)
def test_bad_T(make, T):
    with refuses(ScheduleError, "T = ", "whole number", "1000"):
        make(T)


@pytest.mark.parametrize("make", [Schedule.linear, Schedule.sqrt_linear])
@pytest.mark.parametrize(
    "start, end", [(-0.1, 0.02), (1e-4, 1.0), (float("nan"), 0.02), (0.0, 0.02)]
)
def test_bad_ends(make, start, end):
    with refuses(ScheduleError, "beta", "between 0 and 1"):
        make(10, start, end)


FORMULAS = {
    "q_sample": lambda x, t: EXACT.q_sample(x, t, x),
    "q_step": lambda x, t: EXACT.q_step(x, t, x),
    "posterior": lambda x, t: EXACT.posterior(x, x, t),
    "target": lambda x, t: EXACT.target(x, x, t, "v"),
}


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
@pytest.mark.parametrize(
    "t, error, words",
    [
        (5, ScheduleError, ("outside", "0 to 4")),
        (-1, ScheduleError, ("outside", "0 to 4")),
        (1.5, ScheduleError, ("not whole",)),
        (float("nan"), ScheduleError, ("not whole",)),
        (torch.tensor([0, 5]), ScheduleError, ("0 to 5", "allowed are 0 to 4")),
        (torch.tensor([-1, 0]), ScheduleError, ("-1 to 0",)),
        (torch.tensor([0.0, 1.5]), ScheduleError, ("1.5", "not whole")),
        (torch.tensor([0, 1, 2]), ShapeError, (r"\(3,\)", "batch of 2", "one a picture")),
        (torch.tensor([[0], [1]]), ShapeError, (r"\(2, 1\)",)),
    ],
)
def test_bad_t(formula, t, error, words):
    with refuses(error, *words):
        formula(torch.zeros(2, 3), t)


@pytest.mark.parametrize("t", [-1.5, 4.5, float("nan"), float("inf")])
def test_alpha_bar_at_outside(t):
    with refuses(ScheduleError, "outside", "0 to 4", "clean"):
        EXACT.alpha_bar_at(t)


def test_posterior_goes_backwards_in_time_only():
    for t_prev in (3, 4):
        with refuses(ScheduleError, "t_prev", "not earlier", "t_prev < t"):
            EXACT.posterior(one(0), one(0), 3, t_prev)


def test_bad_shapes_types_and_names():
    x, y = torch.zeros(2, 3), torch.zeros(2, 4)
    for call in (
        lambda: EXACT.q_sample(x, 0, y),
        lambda: EXACT.q_step(x, 0, y),
        lambda: EXACT.posterior(x, y, 0),
        lambda: EXACT.split(x, y, 0),
        lambda: EXACT.target(x, y, 0),
    ):
        with refuses(ShapeError, r"\(2, 3\)", r"\(2, 4\)", "must be equal"):
            call()
    with refuses(ShapeError, "whole numbers", "uint8", r"floats in \[-1, 1\]"):
        EXACT.q_sample(x.byte(), torch.tensor([0, 1]), x)
    for call in (lambda: EXACT.target(x, x, 0, "noise"), lambda: EXACT.split(x, x, 0, "x0")):
        with refuses(OptionError, "predict", "eps, x_0, v"):
            call()
