"""Flow matching as a member of the family: one loss, one set of samplers, exact conversions, the likelihood's closed form."""

import math

import pytest
import torch
from helpers import refuses

from ddpm_edu import (
    SAMPLERS,
    DataError,
    OptionError,
    Schedule,
    ScheduleError,
    ShapeError,
    last,
    loss,
    noise,
)
from ddpm_edu.flow import log_likelihood, share, velocity, with_divergence

PLAIN = Schedule.flow()
EPS = Schedule.linear()  # does not end in pure noise


def pair(*shape):
    torch.manual_seed(0)
    return torch.randn(2, *shape, dtype=torch.float64)


@pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
def test_the_straight_path(shift):
    """x_t / (s + n) is (1 - u) x_0 + u eps at every step; u is even, and shifted as SD 3's paper says."""
    schedule, (x_0, eps) = Schedule.flow(50, shift), pair(3, 4)
    for t in range(50):
        even = (t + 1) / 50
        u = shift * even / (1 + (shift - 1) * even)
        assert share(schedule, t) == pytest.approx(u, abs=1e-9)
        s, n = schedule.signal_noise(t)
        x_t = schedule.q_sample(x_0, t, eps)
        torch.testing.assert_close(x_t / (s + n), (1 - u) * x_0 + u * eps, rtol=0, atol=1e-9)
    assert share(schedule, -1) == 0 and schedule.alpha_bar[-1] == 0


def test_the_shift_multiplies_sigma():
    """Esser et al.: a shift of 3 is sigma three times as large, log SNR lower by 2 log 3."""
    ratio = Schedule.flow(100, 3).sigma[:-1] / Schedule.flow(100).sigma[:-1]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 3), rtol=1e-8, atol=0)


@pytest.mark.parametrize("predict", ["eps", "x_0", "v", "flow"])
@pytest.mark.parametrize("t", [0, 400, 998, torch.tensor([3, 997])])
def test_every_prediction_gives_every_other(predict, t):
    (x_0, eps), names = pair(2, 5), ("eps", "x_0", "v", "flow")
    x_t, target = PLAIN.q_sample(x_0, t, eps), lambda name: PLAIN.target(x_0, eps, t, name)
    x0_hat, eps_hat = PLAIN.split(x_t, target(predict), t, predict)
    for name in names:
        torch.testing.assert_close(
            PLAIN.target(x0_hat, eps_hat, t, name), target(name), rtol=0, atol=1e-8
        )
    assert torch.equal(target("flow"), eps - x_0)


@pytest.mark.parametrize("t", [-1, 999])
def test_flow_holds_at_both_ends(t):
    """Where "eps" says nothing of x_0 (pure noise) and "x_0" nothing of eps (clean)."""
    x_0, eps = pair(2, 5)
    s, n = PLAIN.signal_noise(t)
    back = PLAIN.split(s * x_0 + n * eps, eps - x_0, t, "flow")
    torch.testing.assert_close(back[0], x_0, rtol=0, atol=1e-12)
    torch.testing.assert_close(back[1], eps, rtol=0, atol=1e-12)


def test_the_loss_is_flow_matching_s():
    """E |(eps - x_0) - model|^2 (Lipman et al.), the model asked at x_t = x_u (s + n)."""
    x_0, eps = pair(6, 4)
    t, seen = torch.tensor([0, 9, 99, 500, 900, 999]), []

    def model(x_t, t, cond):
        seen.append(x_t)
        return torch.tanh(x_t)

    value = loss(model, PLAIN, x_0, t=t, eps=eps, predict="flow")
    u = (t + 1).double()[:, None] / 1000
    x_u = (1 - u) * x_0 + u * eps
    x_t = x_u / ((1 - u) ** 2 + u**2).sqrt()
    torch.testing.assert_close(seen[0], x_t, rtol=0, atol=1e-9)
    torch.testing.assert_close(value, ((eps - x_0 - torch.tanh(x_t)) ** 2).mean())


def gaussian(schedule, mean, std):
    """The exact E[eps - x_0 | x_t] for data N(mean, std^2 I), from the joint normal of eps, x_0 and x_t."""

    def model(x_t, t, cond):
        s, n = schedule.signal_noise(t[0].item())
        return -mean + (n - s * std**2) / (s**2 * std**2 + n**2) * (x_t - s * mean)

    return model


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_euler_on_the_straight_path(shift):
    """SAMPLERS["euler"], and "ddim", against x + (u_prev - u) field(x, u) written out."""
    schedule, mean = Schedule.flow(40, shift), torch.tensor([0.7, -2.0], dtype=torch.float64)
    model, x_T = gaussian(schedule, mean, 0.5), noise((2,), range(5)).double()
    x, u = x_T, [shift * i / 8 / (1 + (shift - 1) * i / 8) for i in range(8, -1, -1)]
    for now, before in zip(u, u[1:]):
        posterior = -mean + (now - (1 - now) * 0.25) / ((1 - now) ** 2 * 0.25 + now**2) * (
            x - (1 - now) * mean
        )
        x = x + (before - now) * posterior
    for name in ("euler", "ddim"):
        out = last(SAMPLERS[name](model, schedule, x_T, 8, predict="flow", end=-1))
        torch.testing.assert_close(out, x, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_it(name):
    """Data N(mean, 0.5^2): after 200 steps each sampler has its mean and spread."""
    schedule, mean = Schedule.flow(1000), torch.tensor([0.7, -2.0], dtype=torch.float64)
    x_T = noise((2,), range(2000)).double()
    generator = torch.Generator().manual_seed(0)
    options = {} if name not in ("ddpm", "euler_ancestral") else dict(generator=generator)
    x = last(
        SAMPLERS[name](gaussian(schedule, mean, 0.5), schedule, x_T, 200, predict="flow", **options)
    )
    assert (x.mean(0) - mean).abs().max() < 0.05 and (x.std(0) - 0.5).abs().max() < 0.03


def test_one_point_is_reached_in_one_step():
    """Straight paths need one step: all the data one point, the velocity along each path constant."""
    point = torch.tensor([0.3, -0.6], dtype=torch.float64)
    x_T = noise((2,), range(4)).double()
    x = last(SAMPLERS["euler"](gaussian(PLAIN, point, 0.0), PLAIN, x_T, 1, predict="flow"))
    torch.testing.assert_close(x, point.expand(4, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("std", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("predict", ["flow", "v"])
def test_the_likelihood_of_a_gaussian(std, predict):
    mean = torch.tensor([0.7, -2.0, 0.1], dtype=torch.float64)
    flow = gaussian(PLAIN, mean, std)

    def model(x_t, t, cond):
        if predict == "flow":
            return flow(x_t, t, cond)
        s, n = PLAIN.signal_noise(t[0].item())
        x0_hat, eps = (
            (x_t - n * flow(x_t, t, cond)) / (s + n),
            (x_t + s * flow(x_t, t, cond)) / (s + n),
        )
        return s * eps - n * x0_hat

    x = mean + std * pair(7, 3)[0]
    field = velocity(model, PLAIN, predict)
    wanted = torch.distributions.Normal(mean, std).log_prob(x).sum(1)
    torch.testing.assert_close(log_likelihood(field, x, 100), wanted, rtol=0, atol=1e-6)


def test_the_field_is_the_same_in_any_schedule():
    """The velocity belongs to the data, not to the schedule that the model was trained with."""
    mean, x = torch.tensor([0.7, -2.0], dtype=torch.float64), pair(7, 2)[0]

    def eps_model(x_t, t, cond):
        s, n = EPS.signal_noise(t[0].item())
        return n * (x_t - s * mean) / (s**2 * 0.25 + n**2)

    for u in (0.0123, 0.5, 0.98):
        one = velocity(eps_model, EPS, "eps")(x, u)
        other = velocity(gaussian(PLAIN, mean, 0.5), PLAIN)(x, u)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_divergence_is_the_trace():
    A = pair(4, 4)[0]
    y, div = with_divergence(lambda x, u: u * (x @ A) ** 3, pair(5, 4)[1], 0.5)
    x = pair(5, 4)[1]
    wanted = (0.5 * 3 * (x @ A) ** 2 * A.diagonal()).sum(1)
    torch.testing.assert_close(div, wanted)
    torch.testing.assert_close(y, 0.5 * (x @ A) ** 3)


@pytest.mark.parametrize("shift", [0, -1, math.inf, math.nan, "3", True])
def test_a_shift_that_is_none(shift):
    with refuses(OptionError, "shift"):
        Schedule.flow(10, shift)


def test_refusals():
    x, zero = torch.zeros(2, 3), lambda x_t, t, cond: x_t * 0
    with refuses(ScheduleError, "T = 0"):
        Schedule.flow(0)
    with refuses(OptionError, "predict", "flow, v, eps"):
        velocity(zero, PLAIN, "x_0")
    for u in (-0.1, 1.1, math.nan):
        with refuses(OptionError, "u = "):
            velocity(zero, PLAIN)(x, u)
    with refuses(OptionError, "u = 1", "share of noise"):
        velocity(zero, EPS, "eps")(x, 1)
    with refuses(ScheduleError, "eps", "t = 999"):
        velocity(zero, PLAIN, "eps")(x, 1)
    field = velocity(zero, PLAIN)
    with refuses(OptionError, "steps"):
        log_likelihood(field, x, 0)
    with refuses(ShapeError, "x_0"):
        log_likelihood(field, torch.zeros(2, 3, 4))
    with refuses(DataError, "x_0"):
        log_likelihood(field, torch.zeros(2, 3, dtype=torch.long))
    with refuses(OptionError, "1025"):
        log_likelihood(field, torch.zeros(2, 1025))
