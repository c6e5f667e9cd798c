"""What every sampler promises: exact step counts, steps that follow each other, the same picture in any batch."""

import pytest
import torch
from helpers import gaussian_eps, mixture_eps, read_json, read_tensors, refuses

from ddpm_edu import (
    SAMPLERS,
    OptionError,
    Schedule,
    generators,
    karras_timesteps,
    last,
    noise,
    spaced_timesteps,
)
from ddpm_edu.diffusion import SPACINGS, visit
from ddpm_edu.samplers import euler, noise_scale, sampling_times

SD = Schedule.sqrt_linear()
TOY = {
    k: torch.tensor(v, dtype=torch.float64)
    for k, v in read_json("gmm_trajectories.json")["toy"].items()
    if k != "denoiser"
}
REFERENCE = read_tensors("gmm_trajectories.safetensors")


def toy(schedule):
    return mixture_eps(schedule, TOY["means"], TOY["weights"], TOY["component_std"].item())


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
def test_exactly_that_many_steps(name, spacing):
    schedule = Schedule.linear(81, 1e-3, 0.1)
    for steps in (1, 3, 9, 27, 81):
        times = (
            karras_timesteps(schedule, steps)
            if spacing == "karras"
            else spaced_timesteps(81, steps, spacing)
        )
        out = list(
            SAMPLERS[name](gaussian_eps(schedule, 0.0, 1.0), schedule, torch.ones(1, 1), times)
        )
        assert [s.t for s in out] == times.tolist() and out[-1].x_prev.isfinite().all()
        for a, b in zip(out, out[1:]):
            assert b.x_t is a.x_prev


@pytest.mark.parametrize("name", SAMPLERS)
def test_all_thousand_steps_and_a_number_means_trailing(name):
    model = gaussian_eps(Schedule.linear(), 0.0, 1.0)
    out = list(SAMPLERS[name](model, Schedule.linear(), torch.ones(1, 1), 1000))
    assert len(out) == 1000 and out[-1].t == 0 and out[-1].x_prev.isfinite().all()
    assert [s.t for s in SAMPLERS[name](model, Schedule.linear(), torch.ones(1, 1), 4)] == [
        999,
        749,
        499,
        249,
    ]


@pytest.mark.parametrize("name", SAMPLERS)
def test_model_calls_a_step(name):
    calls = []
    model = lambda x, t, c: calls.append(t) or torch.zeros_like(x)
    last(SAMPLERS[name](model, SD, torch.ones(2, 3), 10))
    assert len(calls) == {"heun": 19, "pndm": 11}.get(name, 10)
    assert all(t.shape == (2,) and t.dtype == torch.float32 for t in calls)


@pytest.mark.parametrize("name", SAMPLERS)
def test_x0_hat_and_eps_are_two_views_of_x_t(name):
    for clip in (None, 0.7):
        for s in SAMPLERS[name](
            toy(SD), SD, REFERENCE["x_T"], 7, clip=clip, generator=generators(range(8))
        ):
            ab = SD.alpha_bar_at(s.t)
            torch.testing.assert_close(
                ab**0.5 * s.x0_hat + (1 - ab) ** 0.5 * s.eps, s.x_t, rtol=0, atol=1e-9
            )
            assert clip is None or s.x0_hat.abs().max() <= clip


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_batch_does_not_change_a_picture(name):
    """Bit for bit with a model that works number by number; the UNet's convolutions may sum in another order: 1e-4."""
    from ddpm_edu.networks.unet import UNet, UNetConfig

    torch.manual_seed(0)
    unet = UNet(
        UNetConfig(
            in_channels=1,
            channels=8,
            mult=(1, 2),
            depth=(0, 1),
            middle=0,
            heads=(1, 2),
            blocks=1,
            groups=4,
        )
    ).eval()
    elementwise = lambda x, t, c: torch.tanh(x) * t[:, None, None, None] / 1000
    stochastic = dict(eta=0.7) if name in ("ddim", "euler_ancestral") else {}
    for model, tolerance in ((elementwise, 0), (unet, 1e-4)):
        draw = lambda seeds: last(
            SAMPLERS[name](
                model,
                SD,
                noise((1, 8, 8), seeds),
                5,
                clip=1.0,
                generator=generators([s + 100 for s in seeds]),
                **stochastic,
            )
        )
        batch = draw([1, 2, 3])
        for i, seed in enumerate([1, 2, 3]):
            torch.testing.assert_close(batch[i : i + 1], draw([seed]), rtol=0, atol=tolerance)
        assert (batch[0] - batch[1]).abs().max() > 0.01


@pytest.mark.parametrize(
    "name, noisy",
    [
        ("ddpm", True),
        ("ddim", False),
        ("euler", False),
        ("euler_ancestral", True),
        ("heun", False),
        ("dpmpp_2m", False),
        ("ipndm", False),
        ("pndm", False),
    ],
)
def test_which_samplers_draw_noise(name, noisy):
    a, b = (
        last(SAMPLERS[name](toy(SD), SD, REFERENCE["x_T"], 6, generator=generators([s] * 8)))
        for s in (1, 2)
    )
    assert torch.equal(a, b) != noisy


def test_samplers_take_fractional_times_and_the_tail_of_a_path():
    """Stopping at t = 400.5 and going on from there is the whole path: what img2img and the refiner need."""
    times = [900.25, 700.0, 400.5, 100.0]
    whole = list(euler(toy(SD), SD, REFERENCE["x_T"], times))
    first = last(euler(toy(SD), SD, REFERENCE["x_T"], times[:2], end=400.5))
    torch.testing.assert_close(first, whole[1].x_prev)
    torch.testing.assert_close(last(euler(toy(SD), SD, first, times[2:])), whole[-1].x_prev)


def test_no_gradients_are_kept():
    weight = torch.ones(1, requires_grad=True)
    for sampler in SAMPLERS.values():
        assert not last(sampler(lambda x, t, c: x * weight, SD, torch.ones(1, 2), 4)).requires_grad


@pytest.mark.parametrize(
    "name, option", [(name, "orders") for name in SAMPLERS] + [("ddim", "order")]
)
def test_an_option_that_a_sampler_does_not_have(name, option):
    """Refused at the call, not at the first step."""
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}'"):
        SAMPLERS[name](toy(SD), SD, REFERENCE["x_T"], 4, **{option: 3})


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_sampling_times_are_as_many_as_asked(sampler, spacing):
    for steps in (1, 2, 3, 9, 27, 30, 999, 1000):
        times, end = sampling_times(SD, steps, sampler, spacing)
        assert len(times) == steps and len(visit(SD, times, end)) == steps
        if spacing != "leading":
            assert times[0] == pytest.approx(999)
        assert noise_scale(SD, times[0], sampler, spacing) in (1, SD.signal_noise(times[0])[1])


@pytest.mark.parametrize("T", [1, 2, 50])
def test_sampling_times_of_a_short_schedule(T):
    for sampler in SAMPLERS:
        for spacing in SPACINGS:
            assert len(sampling_times(Schedule.linear(T, 1e-3, 0.2), T, sampler, spacing)[0]) == T


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((SD, 5, "plms"), ("sampler", "'plms'", "pndm", "euler")),
        ((SD, 5, None), ("sampler", "euler")),
        ((SD, 5, "euler", "simple"), ("spacing", "'simple'", "karras", "sgm_uniform")),
        ((SD, 0, "euler"), ("steps = 0", "1 to 1000")),
        ((SD, "30", "dpmpp_2m"), ("steps", "whole number")),
        ((SD, 1001, "pndm", "karras"), ("steps = 1001",)),
    ],
    ids=lambda value: str(value[1:]),
)
def test_bad_sampling_times(arguments, words):
    with refuses(OptionError, *words):
        sampling_times(*arguments)
