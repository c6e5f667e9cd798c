"""Paths of a flow, how straight they are, and reflow: trained on its own ends a model's paths straighten."""

import math
from dataclasses import replace

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
    noise,
)
from ddpm_edu.cli import main
from ddpm_edu.datasets.points import Points, gaussian_mixture
from ddpm_edu.flow import path, share, shift_of, shifted_timesteps, straightness, velocity
from ddpm_edu.networks import MLP, DiTConfig
from ddpm_edu.systems.pipeline import draw
from ddpm_edu.systems.system import with_denoiser
from ddpm_edu.training import Pairs, TrainConfig, denoisers, make_pairs
from ddpm_edu.training.denoisers import PAINTED_DIT, train_denoiser
from ddpm_edu.training.reflow import reflow
from ddpm_edu.training.train import train

FLOW = Schedule.flow()


def to_a_point(x_t, t, cond):
    """The velocity of data that is one point, (1, 2)."""
    point = torch.tensor([1.0, 2.0], dtype=x_t.dtype)
    s, n = FLOW.signal_noise(t[0].item())
    return (x_t - s * point) / n - point


# ---------------------------------------------------------------- paths


def test_to_one_point_paths_are_straight():
    x = path(velocity(to_a_point, FLOW), noise((2,), range(5)).double(), 10)
    assert x.shape == (11, 5, 2)
    torch.testing.assert_close(x[-1], torch.tensor([1.0, 2.0]).double().expand(5, 2))
    torch.testing.assert_close(straightness(x), torch.zeros(5).double(), rtol=0, atol=1e-20)


def test_straightness_of_a_half_circle():
    """Speed pi all the way, over a distance of 2: pi^2 - 2^2, shared by two numbers."""
    angle = torch.linspace(0, math.pi, 2001, dtype=torch.float64)
    x = torch.stack([angle.cos(), angle.sin()], 1)[:, None]
    assert straightness(x).item() == pytest.approx((math.pi**2 - 4) / 2, abs=1e-5)
    assert straightness(5 * x).item() == pytest.approx(25 * straightness(x).item())


def test_a_straight_line_at_uneven_speed_is_not_straight():
    x = (torch.linspace(0, 1, 1001, dtype=torch.float64) ** 2)[:, None, None].expand(-1, 1, 3)
    assert straightness(x).item() == pytest.approx(1 / 3, abs=1e-5)  # mean of (2u)^2, less 1


def test_a_path_ends_where_euler_does():
    """In these coordinates, in sigma, and as DDIM: one solver."""
    torch.manual_seed(0)
    model, x_T = MLP(2, 8, 1).double(), noise((2,), range(6)).double()
    there = last(SAMPLERS["euler"](model, FLOW, x_T, 10, predict="flow"))
    torch.testing.assert_close(path(velocity(model, FLOW), x_T, 10)[-1], there)


@pytest.mark.parametrize("schedule", [FLOW, Schedule.cosine(), Schedule.flow(500, 2)])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_the_shift_moves_times_not_the_schedule(schedule, shift):
    times = shifted_timesteps(schedule, 4, shift)
    assert times[0] == schedule.T - 1 and (times.diff() < 0).all()
    for i, t in zip((3, 2, 1), times[1:].tolist()):
        u = shift * i / 4 / (1 + (shift - 1) * i / 4)
        assert share(schedule, t) == pytest.approx(u, abs=1e-9)
    plain = (torch.arange(4, 0, -1) * 250 - 1).double()  # of T = 1000
    if shift == 1 and schedule is FLOW:
        torch.testing.assert_close(times, plain)


def test_the_shift_of_a_size():
    """sigma = shift sigma_0 tells m = shift^2 times as many copies of a number as well as sigma_0."""
    assert shift_of(1024 * 1024, 512 * 512) == 2
    shift = shift_of(64, 16)
    std = lambda m, sigma: sigma / m**0.5  # of the mean of m noisy copies
    assert std(64, shift * 0.7) == pytest.approx(std(16, 0.7))


# ---------------------------------------------------------------- reflow


def test_pairs_are_the_model_s_own():
    eps, cond = noise((2,), range(7)), Cond(vector=torch.arange(7.0)[:, None])
    asked = []

    def model(x_t, t, cond):
        asked.append(cond.vector)
        return to_a_point(x_t, t, cond)

    pairs = make_pairs(model, FLOW, eps, 2, cond, batch=4)
    torch.testing.assert_close(pairs.x_0, torch.tensor([1.0, 2.0]).expand(7, 2))
    assert torch.equal(pairs.eps, eps) and torch.equal(asked[-1], cond.vector[4:])
    x_0, (own, rows) = pairs[torch.tensor([5, 2])]
    assert torch.equal(own, eps[[5, 2]]) and rows.vector[:, 0].tolist() == [5, 2]


def test_reflow_straightens():
    """Eight Gaussians, a few seconds: straighter paths, and one step does what took many."""
    data, x_T = gaussian_mixture(4000), noise((2,), range(1000))
    config = TrainConfig(
        steps=300, batch_size=128, lr=1e-2, predict="flow", optimizer="muon", ema=0.98
    )
    torch.manual_seed(0)
    model = MLP(2, 48, 2)
    *_, step = train(model, FLOW, Points(data), config)
    before = step.ema
    pairs = make_pairs(before, FLOW, noise((2,), range(10_000, 14_000)), 30)
    *_, step = reflow(model, FLOW, pairs, config)
    after = step.ema
    bent = [straightness(path(velocity(m, FLOW), x_T, 20)).mean() for m in (before, after)]
    assert bent[1] < bent[0] / 4
    near = lambda m: last(SAMPLERS["euler"](m, FLOW, x_T, 1, predict="flow")).norm(dim=1) - 1.4072
    assert near(after).abs().mean() < near(before).abs().mean() / 3


# ---------------------------------------------------------------- a denoiser beside a system


@pytest.fixture(scope="module")
def small():
    net = DiTConfig(in_channels=4, width=16, depth=1, heads=2, context=64)
    run = replace(PAINTED_DIT.train, steps=2, batch_size=4, weight="min_snr")
    return train_denoiser(replace(PAINTED_DIT, net=net, train=run, n=8))


def test_a_system_draws_with_another_denoiser(small):
    sd = load("painted")
    other = with_denoiser(sd, small)
    x = draw(other, "a large red seven on a blue ground, top left", steps=2, progress=False)
    assert x.shape == (1, 3, 32, 32) and x.isfinite().all()
    assert other.unet is small.model and other.predict == "flow" and other.vae is sd.vae
    assert other.schedule.alpha_bar[-1] == 0 and other.config.guidance == 3
    assert sd.predict == "v" and type(sd.unet).__name__ == "UNet"  # as it was


def test_refusals(small):
    with refuses(OptionError, "painted", "emoji"):
        with_denoiser(load("emoji"), small)
    with refuses(OptionError, "steps"):
        path(velocity(to_a_point, FLOW), torch.zeros(1, 2), 0)
    with refuses(OptionError, "start"):
        path(velocity(to_a_point, FLOW), torch.zeros(1, 2), start=0)
    for x in (torch.zeros(3, 2), torch.zeros(1, 3, 2)):
        with refuses(ShapeError, "x has shape"):
            straightness(x)
    for shift in (0, -1, math.inf):
        with refuses(OptionError, "shift"):
            shifted_timesteps(FLOW, 4, shift)
    with refuses(OptionError, "steps"):
        shifted_timesteps(FLOW, 0)
    with refuses(OptionError, "numbers"):
        shift_of(0, 4)
    with refuses(ShapeError, "x_0 and eps"):
        Pairs(torch.zeros(2, 3), torch.zeros(3, 3))
    with refuses(OptionError, "sampler", "euler"):
        make_pairs(to_a_point, FLOW, torch.zeros(2, 2), sampler="ddpm")
    with refuses(ScheduleError, "eps"):
        reflow(MLP(2, 8, 1), FLOW, Pairs(*torch.zeros(2, 3, 2)), TrainConfig(steps=1, batch_size=1))


def test_the_command_writes_a_denoiser(small, tmp_path, monkeypatch, capsys):
    recipe = replace(PAINTED_DIT, net=small.model.config, n=8)
    recipe = replace(recipe, train=replace(recipe.train, batch_size=4))
    monkeypatch.setitem(denoisers.DENOISER_RECIPES, "painted-dit", recipe)
    out = tmp_path / "x.safetensors.xz"
    assert main(["train", "painted-dit", "--out", str(out), "--steps", "2"]) == 0
    model, schedule, predict, meta = load(out)
    assert type(model).__name__ == "DiT" and predict == "flow" and schedule.alpha_bar[-1] == 0
    assert meta["base"] == "painted" and meta["train"]["updates"] == 2
    assert len(model.patches.weight.unique()) <= 63 * 16  # a row has 63 values
    assert main(["sample", "--model", str(out), "--out", str(tmp_path / "x.png")]) == 2
    assert "with_denoiser" in capsys.readouterr().err
