"""EDM's preconditioning: unit variance in and out, v by another name, any sampler; and weights of the loss."""

import pytest
import torch
from helpers import refuses

from ddpm_edu import (
    SAMPLERS,
    Cond,
    OptionError,
    Schedule,
    ScheduleError,
    ShapeError,
    last,
    load,
    loss,
    noise,
    save,
)
from ddpm_edu.networks import MLP, Preconditioned, preconditioning
from ddpm_edu.schedule import _coefficients

FLOW, LINEAR = Schedule.flow(), Schedule.linear()


def draws(schedule, sigma_data, t, n=200_000):
    torch.manual_seed(0)
    x_0, eps = torch.randn(2, n, dtype=torch.float64)
    s, noise = schedule.signal_noise(t)
    return sigma_data * x_0, s * sigma_data * x_0 + noise * eps


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("t", [0, 500, 998, 999])
def test_input_and_target_have_unit_variance(sigma_data, t):
    x_0, x_t = draws(FLOW, sigma_data, t)
    c_skip, c_out, c_in = preconditioning(*FLOW.signal_noise(t), sigma_data)
    target = (x_0 - c_skip * x_t) / c_out
    assert (c_in * x_t).std().item() == pytest.approx(1, abs=0.01)
    assert target.std().item() == pytest.approx(1, abs=0.01)
    # c_skip x_t is the best guess of Gaussian data: what is left says nothing more of x_t
    assert (target * x_t * c_in).mean().item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_the_paper_s_own_coefficients(sigma_data):
    """Table 1 of Karras et al., for x = x_t / s and sigma = n / s."""
    for t in (0, 300, 900):
        s, sigma, d = LINEAR.signal_noise(t)[0], LINEAR.sigma_at(t), sigma_data
        c_skip, c_out, c_in = preconditioning(*LINEAR.signal_noise(t), d)
        assert c_skip * s == pytest.approx(d**2 / (sigma**2 + d**2), rel=1e-12)
        assert c_out == pytest.approx(sigma * d / (sigma**2 + d**2) ** 0.5, rel=1e-12)
        assert c_in * s == pytest.approx(1 / (sigma**2 + d**2) ** 0.5, rel=1e-12)


def test_unit_data_make_it_v():
    """sigma_data = 1: x_t - c_out F with F = v is the x0_hat of v, so EDM's target is -v."""
    torch.manual_seed(0)
    x_t, v = torch.randn(2, 5, 3, dtype=torch.float64)
    for t in (0, 250, 999):
        c_skip, c_out, c_in = preconditioning(*FLOW.signal_noise(t))
        wanted = FLOW.split(x_t, v, t, "v")[0]
        torch.testing.assert_close(c_skip * x_t + c_out * -v, wanted, rtol=0, atol=1e-12)
        assert c_in == pytest.approx(1, abs=1e-12)


class Zero(torch.nn.Module):
    """Keeps what it was asked."""

    def forward(self, x_t, t, cond):
        self.asked = x_t, t, cond
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("sigma_data", [0.5, 3.0])
def test_with_its_weight_all_noises_count_alike(sigma_data):
    """Of Gaussian data a network that returns 0 is the best one; its loss is 1 at every t."""
    model = Preconditioned(Zero(), FLOW, sigma_data)
    torch.manual_seed(0)
    x_0 = sigma_data * torch.randn(100_000, 2)
    for t in (5, 400, 999):
        got = loss(model, FLOW, x_0, t=t, predict="x_0", weight=model.weight, generator=None)
        assert got.item() == pytest.approx(1, abs=0.015)


def test_the_loss_is_that_of_the_inner_network():
    """w |x0_hat - x_0|^2 = |model - F|^2."""
    torch.manual_seed(0)
    net, x_0, eps = MLP(2, 8, 1), torch.randn(64, 2), torch.randn(64, 2)
    model, t = Preconditioned(net, LINEAR, 0.5), torch.randint(1000, (64,))
    ask = dict(t=t, eps=eps, predict="x_0", reduction="none")
    got = loss(model, LINEAR, x_0, weight=model.weight, **ask)
    x_t = LINEAR.q_sample(x_0, t, eps)
    for i in range(64):
        c_skip, c_out, c_in = preconditioning(*LINEAR.signal_noise(t[i].item()), 0.5)
        c_noise = 250 * torch.tensor(LINEAR.sigma_at(t[i].item())).log().float()
        f = net(c_in * x_t[i : i + 1], c_noise[None])
        wanted = ((f[0] - (x_0[i] - c_skip * x_t[i]) / c_out) ** 2).mean()
        torch.testing.assert_close(got[i], wanted, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_it(sampler):
    """Data N(0, 1/4): the perfect inner network is 0, and pictures have that variance."""
    model = Preconditioned(Zero(), FLOW, 0.5)
    x_T = noise((4,), range(2000))
    steps = 100 if sampler in ("ddpm", "euler_ancestral") else 40
    x = last(SAMPLERS[sampler](model, FLOW, x_T, steps, predict="x_0", generator=None))
    assert x.std().item() == pytest.approx(0.5, abs=0.03)


def test_it_knows_the_condition_and_names_pure_noise():
    model, cond = Preconditioned(Zero(), FLOW), Cond(vector=torch.ones(1, 2))
    model(torch.ones(1, 3), torch.tensor([999.0]), cond)
    x, c_noise, got = model.model.asked
    assert got is cond and c_noise.isfinite().all() and torch.equal(x, torch.ones(1, 3))
    model(torch.ones(1, 3), torch.tensor([498.5]), cond)  # between u = 499/1000 and 500/1000
    assert -0.6 < model.model.asked[1].item() < -0.4  # 250 log(0.998)


def test_it_can_be_saved(tmp_path):
    torch.manual_seed(0)
    model = Preconditioned(MLP(2, 8, 1), FLOW, 0.5)
    save(tmp_path / "edm.safetensors", model, schedule=FLOW, predict="x_0")
    again = load(tmp_path / "edm.safetensors")
    x, t = torch.randn(3, 2), torch.tensor([0, 500, 999])
    assert torch.equal(again.model(x, t), model(x, t)) and again.predict == "x_0"


@pytest.mark.parametrize("sigma_data", [0, -1, float("inf"), "1"])
def test_a_deviation_that_is_none(sigma_data):
    with refuses(OptionError, "sigma_data"):
        Preconditioned(Zero(), FLOW, sigma_data)


# ---------------------------------------------------------------- weights of the loss


def test_plain_losses_in_terms_of_x_0():
    """Salimans & Ho 2022, section 4: eps is weighted by SNR, v by SNR + 1."""
    snr = LINEAR.snr
    for predict, wanted in (
        ("eps", snr),
        ("x_0", torch.ones_like(snr)),
        ("v", snr + 1),
        ("flow", (1 + snr.sqrt()) ** 2),
    ):
        c_0, c_eps = _coefficients(predict, LINEAR.alpha_bar.sqrt(), (1 - LINEAR.alpha_bar).sqrt())
        torch.testing.assert_close((c_0 - c_eps * snr.sqrt()) ** 2, wanted)
        assert torch.equal(LINEAR.weight("none", predict), torch.ones_like(snr))


@pytest.mark.parametrize("name", ["snr", "snr_plus_1", "truncated", "min_snr"])
def test_a_weight_and_a_prediction_are_one_choice(name):
    """The same model, its answer said in four ways: with a named weight all losses are equal."""
    torch.manual_seed(0)
    x_0, eps, guess = torch.randn(3, 6, 2, dtype=torch.float64)
    t = torch.tensor([0, 1, 200, 500, 900, 998])
    losses = []
    for predict in ("eps", "x_0", "v", "flow"):

        def model(x_t, t, cond):
            eps_hat = LINEAR.split(x_t, guess, t, "x_0")[1]
            return LINEAR.target(guess, eps_hat, t, predict)

        ask = dict(t=t, eps=eps, predict=predict, reduction="none")
        losses.append(loss(model, LINEAR, x_0, weight=name, **ask))
    wanted = LINEAR.weight(name, "x_0")[t] * ((guess - x_0) ** 2).mean(1)
    for got in losses:
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=0)


def test_a_plain_loss_is_another_s_weighted_one():
    """eps plain is x_0 with "snr", v plain is x_0 with "snr_plus_1"."""
    torch.testing.assert_close(LINEAR.weight("snr", "eps"), torch.ones(1000, dtype=torch.float64))
    ones = LINEAR.weight("snr_plus_1", "v")
    torch.testing.assert_close(ones, torch.ones(1000, dtype=torch.float64))
    assert torch.equal(Preconditioned(Zero(), FLOW).weight, FLOW.weight("snr_plus_1", "x_0"))


def test_min_snr_as_its_paper_writes_it():
    """Hang et al. 2023, section 3.4: min(SNR, g) / SNR for eps, min(SNR, g) / (SNR + 1) for v."""
    snr = LINEAR.snr
    torch.testing.assert_close(LINEAR.weight("min_snr", "eps"), snr.clamp(max=5) / snr)
    torch.testing.assert_close(LINEAR.weight("min_snr", "v"), snr.clamp(max=5) / (snr + 1))
    torch.testing.assert_close(LINEAR.weight("min_snr", "x_0", 3), snr.clamp(max=3))


def test_refusals():
    x_0, model = torch.zeros(2, 3), lambda x_t, t, cond: x_t
    with refuses(OptionError, "weight", "min_snr"):
        loss(model, LINEAR, x_0, weight="p2")
    with refuses(OptionError, "gamma"):
        LINEAR.weight("min_snr", gamma=0)
    with refuses(ScheduleError, "eps", "t = 999"):
        FLOW.weight("min_snr", "eps")
    with refuses(ShapeError, "weight", "1000"):
        loss(model, LINEAR, x_0, weight=torch.ones(5))
