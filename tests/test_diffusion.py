"""Conditions, noise, the loss, timesteps, guidance: what the samplers are made of."""

import math
import re

import pytest
import torch
from helpers import gaussian_eps, read_json, refuses

from ddpm_edu import (
    SAMPLERS,
    Cond,
    DataError,
    OptionError,
    Schedule,
    ScheduleError,
    ShapeError,
    class_cond,
    generators,
    guided,
    karras_timesteps,
    last,
    loss,
    noise,
    spaced_timesteps,
)
from ddpm_edu.diffusion import randn_like, visit

SD = Schedule.sqrt_linear()
FACTS = read_json("schedule_facts.json")["timesteps"]
NAN = float("nan")


def zero(x_t, t, cond):
    return torch.zeros_like(x_t)


# ---------------------------------------------------------------- conditions and noise


def test_class_cond_is_one_hot_and_minus_one_is_nothing():
    expected = torch.tensor([[0, 0, 1.0], [0, 0, 0], [1, 0, 0]])
    assert torch.equal(class_cond([2, -1, 0], classes=3).vector, expected)
    assert class_cond(torch.tensor([], dtype=torch.long)).vector.shape == (0, 10)


@pytest.mark.parametrize(
    "labels, error, words",
    [
        ([0, 10], DataError, ("0 to 10", "10 classes", "-1 for no class")),
        ([-2], DataError, ("-2", "allowed")),
        ([0.5], ShapeError, ("whole numbers",)),
        ([[1]], ShapeError, (r"\(1, 1\)", r"\(B,\)")),
        (3, ShapeError, (r"\(B,\)",)),
        ([True], ShapeError, ("bool",)),
    ],
)
def test_bad_labels(labels, error, words):
    with refuses(error, *words):
        class_cond(labels)


def test_a_seed_gives_its_picture_in_any_company():
    batch = noise((3, 4, 4), [5, 6, 7])
    for i, seed in enumerate([5, 6, 7]):
        assert torch.equal(batch[i], noise((3, 4, 4), [seed])[0])
    assert not torch.equal(batch[0], batch[1])
    assert noise((2,), []).shape == (0, 2)


def test_noise_is_standard_normal():
    from scipy.stats import kstest

    assert kstest(noise((8,), range(1000)).flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    "generator",
    [lambda: torch.Generator().manual_seed(3), lambda: generators([3, 4]), lambda: None],
)
def test_noise_is_drawn_on_the_cpu_whatever_the_device(generator, monkeypatch):
    """The picture lives on the meta device, which has no numbers: the draw itself must still be a CPU draw."""
    devices, randn = [], torch.randn
    monkeypatch.setattr(
        torch,
        "randn",
        lambda *a, **k: devices.append(str(k.get("device", "cpu"))) or randn(*a, **k),
    )
    drawn = randn_like(torch.empty(2, 3, device="meta"), generator())
    assert drawn.device.type == "meta" and set(devices) == {"cpu"}


def test_randn_like_follows_type_and_generator():
    a, b = (
        randn_like(torch.empty(2, 3, dtype=torch.float16), generators([1, 2])) for _ in range(2)
    )
    assert a.dtype == torch.float16 and torch.equal(a, b)
    with refuses(ShapeError, "3 generators", "batch of 2", "one a picture"):
        randn_like(torch.empty(2, 3), generators([1, 2, 3]))


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("predict", ["eps", "x_0", "v", "flow"])
@pytest.mark.parametrize("t", [0, 300, 999])
def test_loss_of_the_exact_denoiser_is_its_analytic_minimum(predict, t):
    """Data N(m, s^2): the smallest loss is Var(target | x_t). With x_t = a x_0 + b eps and target = c x_0 + d eps, jointly
    normal: Var(target) - Cov(target, x_t)^2 / Var(x_t). 200,000 samples, 5 standard errors (a square of a normal has
    variance 2 v^2)."""
    m, s, n = 0.4, 0.7, 200_000
    exact_eps = gaussian_eps(SD, m, s)
    ab = SD.alpha_bar[t].item()
    a, b = math.sqrt(ab), math.sqrt(1 - ab)
    c, d = {"eps": (0, 1), "x_0": (1, 0), "v": (-b, a), "flow": (-1, 1)}[predict]
    minimum = c * c * s * s + d * d - (a * c * s * s + b * d) ** 2 / (a * a * s * s + b * b)

    def model(x_t, times, cond):
        eps = exact_eps(x_t, times[:1], cond)
        return c * (x_t - b * eps) / a + d * eps

    g = torch.Generator().manual_seed(t)
    x_0 = m + s * torch.randn(n, 1, generator=g, dtype=torch.float64)
    got = loss(model, SD, x_0, t=torch.full((n,), t), predict=predict, generator=g).item()
    assert abs(got - minimum) < 5 * minimum * (2 / n) ** 0.5
    worse = loss(
        lambda *z: model(*z) + 0.1, SD, x_0, t=torch.full((n,), t), predict=predict, generator=g
    ).item()
    assert worse > minimum + 0.005


def test_loss_draws_t_uniformly_and_eps_normally():
    seen = []
    schedule = Schedule.linear(10, 1e-3, 0.2)
    x_0 = torch.zeros(20_000, 1)
    loss(
        lambda x, t, c: seen.append((x, t)) or x,
        schedule,
        x_0,
        generator=torch.Generator().manual_seed(0),
    )
    x_t, t = seen[0]
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10 and (counts - 2000).abs().max() < 5 * (2000 * 0.9) ** 0.5
    for step in range(10):
        assert x_t[t == step].var().item() == pytest.approx(
            1 - schedule.alpha_bar[step].item(), rel=0.2
        )


def test_loss_reductions_and_what_the_model_gets():
    x_0, eps, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 500, 999])
    seen = []
    rows = loss(
        lambda x, t, c: seen.append((x, t, c)) or zero(x, t, c),
        SD,
        x_0,
        t=t,
        eps=eps,
        reduction="none",
    )
    torch.testing.assert_close(rows, (eps**2).mean((1, 2, 3)))
    torch.testing.assert_close(loss(zero, SD, x_0, t=t, eps=eps), (eps**2).mean())
    assert (
        torch.equal(seen[0][0], SD.q_sample(x_0, t, eps))
        and torch.equal(seen[0][1], t)
        and seen[0][2] == Cond()
    )
    assert torch.equal(
        loss(zero, SD, x_0, t=7, eps=eps), loss(zero, SD, x_0, t=torch.full((3,), 7), eps=eps)
    )
    a, b = (loss(zero, SD, x_0, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)


def test_bad_loss_arguments():
    x = torch.zeros(2, 3)
    with refuses(DataError, "no pictures", "at least one"):
        loss(zero, SD, x[:0])
    with refuses(OptionError, "reduction", "mean", "none"):
        loss(zero, SD, x, reduction="sum")
    with refuses(OptionError, "predict", "eps, x_0, v"):
        loss(zero, SD, x, predict="score")
    with refuses(ShapeError, "model returned", r"\(2, 2\)", r"\(2, 3\)"):
        loss(lambda x, t, c: x[:, :2], SD, x)
    with refuses(ShapeError, r"x_0 has shape \(2, 3\)", "eps"):
        loss(zero, SD, x, eps=x[:, :2])
    with refuses(ShapeError, "batch of 2"):
        loss(zero, SD, x, t=torch.tensor([1, 2, 3]))
    with refuses(ScheduleError, "1000", "0 to 999"):
        loss(zero, SD, x, t=torch.tensor([0, 1000]))
    with refuses(ShapeError, r"cond.vector has 3 rows", "batch of 2"):
        loss(zero, SD, x, class_cond([1, 2, 3]))
    with refuses(OptionError, "cond is a Tensor", "class_cond"):
        loss(zero, SD, x, torch.tensor([1, 2]))


# ---------------------------------------------------------------- timesteps


@pytest.mark.parametrize("steps", FACTS, ids=lambda n: f"{n} steps")
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_as_in_the_reference(steps, spacing):
    """Two deliberate differences. One linspace step starts at pure noise (the reference at t = 0, where there is nothing
    left to denoise); 1000 leading steps with offset 1 stay inside the schedule (the reference asks for t = 1000)."""
    expected = FACTS[steps][f"ddim_{spacing}"]
    ours = spaced_timesteps(
        1000, int(steps), spacing, offset=1 if spacing == "leading" else 0
    ).tolist()
    if (steps, spacing) == ("1", "linspace"):
        assert expected == [0] and ours == [999]
    elif (steps, spacing) == ("1000", "leading"):
        assert expected[0] == 1000 and ours == list(range(999, -1, -1))
    elif "..." in expected:
        cut = expected.index("...")
        assert ours[:cut] + ["..."] + ours[cut - len(expected) + 1 :] == expected and len(
            ours
        ) == int(steps)
    else:
        assert ours == expected


@pytest.mark.parametrize("steps", [n for n in FACTS if "sgm_legacy_ddpm_indices" in FACTS[n]])
def test_sgm_uniform_as_in_sgm(steps):
    ours = spaced_timesteps(1000, int(steps), "sgm_uniform").tolist()
    assert ours == FACTS[steps]["sgm_legacy_ddpm_indices"]


@pytest.mark.parametrize("T", [1, 2, 9, 27, 50, 1000])
@pytest.mark.parametrize(
    "spacing, offset",
    [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0), ("sgm_uniform", 0)],
)
def test_every_step_count_is_exact(T, spacing, offset):
    for steps in range(1, T + 1):
        t = spaced_timesteps(T, steps, spacing, min(offset, T - 1))
        assert t.shape == (steps,) and t.dtype == torch.float64
        assert (
            (t.diff() < 0).all() and t.max() <= T - 1 and t.min() >= 0 and torch.equal(t, t.round())
        )
        if spacing != "leading":
            assert t[0] == T - 1
        elif steps < T:
            assert t[-1] == min(offset, T - 1)


@pytest.mark.parametrize("steps, rho", [(1, 7), (2, 7), (5, 7), (20, 3), (100, 7), (1000, 7)])
def test_karras_timesteps_have_karras_sigmas(steps, rho):
    times = karras_timesteps(SD, steps, rho)
    high, low = SD.sigma[-1].item(), SD.sigma[0].item()
    for i, t in enumerate(times.tolist()):
        u = i / (steps - 1) if steps > 1 else 0
        assert SD.sigma_at(t) == pytest.approx(
            (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho, rel=1e-9
        )
    assert len(visit(SD, times)) == steps and times[0] == 999


@pytest.mark.parametrize("steps", [0, -1, 1001, True, 2.5, NAN, "10", None])
def test_bad_step_counts(steps):
    for call in (lambda: spaced_timesteps(1000, steps), lambda: karras_timesteps(SD, steps)):
        with refuses(OptionError, "steps = ", "1 to 1000", "one model call each"):
            call()


def test_bad_spacing_offset_rho():
    with refuses(OptionError, "spacing", "leading", "trailing", "linspace", "sgm_uniform"):
        spaced_timesteps(1000, 10, "karras")
    with refuses(ScheduleError, "karras", "infinite", "trailing"):
        karras_timesteps(SD.zero_terminal_snr(), 10)
    for offset in (-1, 1000, 0.5, True):
        with refuses(OptionError, "offset", "0 to 999"):
            spaced_timesteps(1000, 10, "leading", offset)
    for rho in (0, -7, NAN, "7"):
        with refuses(OptionError, "rho", "7 is usual"):
            karras_timesteps(SD, 10, rho)


def test_visit_pairs_each_time_with_the_next():
    assert visit(SD, [900, 500.5, 0]) == [(900, 500.5), (500.5, 0), (0, -1)]
    assert visit(SD, [900, 500], end=0) == [(900, 500), (500, 0)]
    assert visit(SD, 2) == [(999, 499), (499, -1)]


BAD_TIMESTEPS = [
    (0, OptionError, ("steps = 0", "1 to 1000")),
    (-1, OptionError, ("steps = -1",)),
    (1001, OptionError, ("steps = 1001", "1 to 1000")),
    (True, OptionError, ("steps = True", "whole number")),
    (2.5, OptionError, ("number of steps", "falling row")),
    ([], OptionError, ("at least one",)),
    ([1, 2], OptionError, ("fall strictly", "noise .* to picture")),
    ([5, 5], OptionError, ("fall strictly",)),
    ([1000, 0], ScheduleError, ("0 to 999",)),
    ([10, -1], ScheduleError, ("0 to 999",)),
    ([NAN], ScheduleError, ("0 to 999",)),
    ([[9, 8]], OptionError, ("shape",)),
]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "timesteps, error, words", BAD_TIMESTEPS, ids=[str(b[0]) for b in BAD_TIMESTEPS]
)
def test_bad_timesteps_are_refused_at_the_call(name, timesteps, error, words):
    """Not at the first next(): nothing here runs the generator."""
    with refuses(error, *words):
        SAMPLERS[name](zero, SD, torch.zeros(1, 2), timesteps)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    "options, error, words",
    [
        (dict(predict="noise"), OptionError, ("predict", "eps, x_0, v")),
        (dict(clip=NAN), OptionError, ("clip", r"\[-1, 1\]")),
        (dict(clip=-1), OptionError, ("clip",)),
        (dict(end=-2), OptionError, ("end = -2",)),
        (dict(end=9), OptionError, ("end = 9", "fall")),
        (dict(end=NAN), OptionError, ("end = nan",)),
        (dict(generator=generators([1, 2])), ShapeError, ("2 generators", "batch of 1")),
        (dict(generator=[7]), OptionError, ("generator", "generators\\(seeds\\)")),
        (dict(generator=7), OptionError, ("generator", "torch.Generator")),
        (dict(cond=class_cond([1, 2])), ShapeError, ("cond.vector", "batch of 1")),
        (dict(cond=Cond(context=torch.zeros(3, 4, 5))), ShapeError, ("cond.context", "batch of 1")),
        (dict(cond=torch.tensor([1])), OptionError, ("cond is a Tensor", "class_cond")),
    ],
    ids=lambda part: re.sub(" at 0x[0-9a-f]+", "", str(part)),
)
def test_bad_options_are_refused_at_the_call(name, options, error, words):
    with refuses(error, *words):
        SAMPLERS[name](zero, SD, torch.zeros(1, 2), [9], **options)


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("ddim", dict(eta=NAN), ("eta = nan", "from 0 to 1")),
        ("ddim", dict(eta=-0.1), ("eta",)),
        ("ddim", dict(eta=1.1), ("eta",)),
        ("ddim", dict(eta="1"), ("eta",)),
        ("euler", dict(s_churn=-1), ("s_churn",)),
        ("euler", dict(s_churn=NAN), ("s_churn",)),
        ("euler", dict(s_min=-1), ("s_min",)),
        ("euler", dict(s_max="5"), ("s_max",)),
        ("euler", dict(s_noise=3), ("s_noise", "from 0 to 2")),
        ("ddim", dict(eta=True), ("eta",)),
        ("euler_ancestral", dict(eta=NAN), ("eta = nan",)),
        ("euler_ancestral", dict(eta=2), ("eta = 2", "from 0 to 1")),
        ("ipndm", dict(order=5), ("order = 5", "1 to 4")),
        ("ipndm", dict(order=0), ("order",)),
        ("ipndm", dict(order=2.5), ("order", "whole number")),
        ("ddpm", dict(variance="middle"), ("variance", "small", "large")),
    ],
    ids=str,
)
def test_bad_options_of_one_sampler(name, options, words):
    with refuses(OptionError, *words):
        SAMPLERS[name](zero, SD, torch.zeros(1, 2), 5, **options)


def test_bad_noise_and_bad_predictions():
    for x_T in (torch.zeros(2, 3, dtype=torch.uint8), torch.tensor(0.0)):
        with refuses(ShapeError, "x_T", r"\(B, \.\.\.\)"):
            SAMPLERS["ddim"](zero, SD, x_T, 5)
    for sampler in SAMPLERS.values():
        with refuses(
            ShapeError, r"x_t has shape \(2, 3\)", r"prediction has \(2, 2\)"
        ):  # known only when the model was called
            last(sampler(lambda x, t, c: x[:, :2], SD, torch.zeros(2, 3), 5))


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_on_another_device_than_the_model(name):
    """Before the first call, through guidance too; the meta device stands in for a GPU."""
    x_T = torch.zeros(1, 3)
    network = torch.nn.Linear(3, 3, device="meta")
    network.forward = lambda x, t, c: pytest.fail("called")
    for model in (network, guided(network, 3.0), guided(guided(network, 2.0), 3.0)):
        with refuses(ShapeError, "x_T is on cpu", "the model is on meta", "move the model"):
            SAMPLERS[name](model, SD, x_T, 5)
    SAMPLERS[name](network, SD, x_T.to("meta"), 5), SAMPLERS[name](zero, SD, x_T.to("meta"), 5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_eps_is_refused_at_the_call_where_the_schedule_ends_in_noise(name):
    schedule, x = SD.zero_terminal_snr(), torch.zeros(1, 3)
    for call in (lambda: SAMPLERS[name](zero, schedule, x, 5), lambda: loss(zero, schedule, x)):
        with refuses(ScheduleError, "eps", "t = 999", '"v" or "x_0"'):
            call()
    assert last(SAMPLERS[name](zero, schedule, x, [998, 500])).isfinite().all()
    assert loss(zero, schedule, x, t=999, predict="v") == 0


def test_last_needs_a_fresh_sampler():
    steps = SAMPLERS["ddim"](zero, SD, torch.ones(1, 2), 3)
    last(steps)
    with refuses(OptionError, "no steps", "fresh"):
        last(steps)


# ---------------------------------------------------------------- guidance


def linear(x_t, t, cond):
    """A model in which every input leaves its mark."""
    return (
        x_t * (1 + t[:, None])
        + cond.vector @ torch.tensor([[1.0, 2], [3, -1], [0.5, 0.5]]) * x_t
        + cond.context.sum((1, 2))[:, None]
    )


@pytest.mark.parametrize("scale", [0, 0.5, 1, 2.0, 7.5])
@pytest.mark.parametrize("given", ["zeros", "one row", "all rows", "vector only"])
def test_guidance_is_two_plain_calls(scale, given):
    g = torch.Generator().manual_seed(0)
    x, t, cond = (
        torch.randn(4, 2, generator=g),
        torch.arange(4.0),
        Cond(torch.randn(4, 5, 6, generator=g), torch.randn(4, 3, generator=g)),
    )
    uncond = {
        "zeros": None,
        "one row": cond.map(lambda c: c[:1] + 1),
        "all rows": cond.map(lambda c: c - 1),
        "vector only": Cond(vector=torch.ones(4, 3)),
    }[given]
    plain = uncond or cond.map(torch.zeros_like)
    plain = Cond(
        *(torch.zeros_like(c) if u is None else u.expand_as(c) for c, u in zip(cond[:2], plain))
    )
    expected = (1 - scale) * linear(x, t, plain) + scale * linear(x, t, cond)
    torch.testing.assert_close(
        guided(linear, scale, uncond)(x, t, cond), expected, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("given", ["no uncond", "another text", "another picture"])
def test_guidance_without_the_text_keeps_the_picture(given):
    """What is beside x_t goes to both halves of the batch, unless uncond has a picture."""
    seen, picture = [], torch.randn(2, 5, 4, 4)
    model = lambda x, t, cond: seen.append(cond) or x
    cond = Cond(torch.ones(2, 3, 6), picture=picture)
    other = {
        "no uncond": None,
        "another text": Cond(torch.zeros(1, 3, 6)),
        "another picture": Cond(picture=torch.zeros(1, 5, 4, 4)),
    }[given]
    guided(model, 3.0, other)(torch.zeros(2, 4, 4, 4), torch.zeros(2), cond)
    without = torch.zeros_like(picture) if given == "another picture" else picture
    assert torch.equal(seen[0].picture, torch.cat([picture, without]))
    assert torch.equal(seen[0].context[2:], torch.zeros(2, 3, 6))


def test_guidance_calls_the_model_once():
    calls = []
    model = guided(lambda x, t, c: calls.append(len(x)) or x, 3.0)
    model(torch.zeros(2, 2), torch.zeros(2), Cond())
    assert calls == [4]
    assert guided(linear, 1) is linear


def test_guidance_below_one_is_between_the_two():
    """0 is the unconditional model; other programs take anything up to 1 for "no guidance"."""
    cond, x, t = Cond(torch.ones(2, 5, 6), torch.ones(2, 3)), torch.ones(2, 2), torch.ones(2)
    none, all_ = linear(x, t, cond.map(torch.zeros_like)), linear(x, t, cond)
    assert torch.equal(guided(linear, 0)(x, t, cond), none) and not torch.equal(none, all_)
    torch.testing.assert_close(guided(linear, 0.25)(x, t, cond), 0.75 * none + 0.25 * all_)


@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (2, 7)])
def test_rescale_gives_back_the_spread(shape):
    """phi = 1: the standard deviation of the conditional prediction, a picture; 1/2: half way."""
    g = torch.Generator().manual_seed(0)
    x, t = torch.randn(shape, generator=g, dtype=torch.float64), torch.full((2,), 5.0)
    row = lambda c: c.vector.mean(1).view(-1, *[1] * (x.ndim - 1))
    model = lambda x, t, c: x + row(c) * x**2
    cond, uncond = (Cond(vector=torch.full((2, 3), v)) for v in (2.0, -1.0))
    plain, full, half = (guided(model, 7.5, uncond, rescale=phi)(x, t, cond) for phi in (0, 1, 0.5))
    std = lambda p: p.flatten(1).std(1)
    torch.testing.assert_close(std(full), std(model(x, t, cond)))
    assert not torch.allclose(std(plain), std(full))
    torch.testing.assert_close(half, (plain + full) / 2)


def test_guidance_only_within_the_interval():
    rows = []

    def model(x_t, t, cond):
        rows.append((t[0].item(), len(x_t)))
        return x_t * t[:, None] + cond.vector

    denoise = guided(model, 7.5, Cond(vector=-torch.ones(2, 2)), interval=(100, 200))
    x, cond = torch.ones(2, 2), Cond(vector=torch.ones(2, 2))
    for t in (99, 100, 200, 201):
        times = torch.full((2,), float(t))
        plain = torch.equal(denoise(x, times, cond), x * t + cond.vector)
        assert plain == (t in (99, 201))
    assert rows == [(99, 2), (100, 4), (200, 4), (201, 2)]


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(rescale=1.1), ("rescale", "0 to 1")),
        (dict(rescale=NAN), ("rescale",)),
        (dict(interval=(200, 100)), ("interval", "upside down")),
        (dict(interval=(100,)), ("interval", "two times")),
        (dict(interval=5), ("interval", "two times")),
        (dict(interval=(0, NAN)), ("interval",)),
        (dict(interval=(-1, 5)), ("interval",)),
    ],
    ids=str,
)
def test_bad_guidance_options(options, words):
    with refuses(OptionError, *words):
        guided(zero, 2.0, **options)


@pytest.mark.parametrize("scale", [NAN, -1, 101, math.inf, "2", None, True])
def test_bad_guidance_scale(scale):
    with refuses(OptionError, "guidance scale", "from 0 to 100", "1 is no guidance"):
        guided(zero, scale)


def test_bad_uncond():
    with refuses(ShapeError, r"uncond.vector has shape \(2, 4\)", r"cond.vector \(2, 3\)", "equal"):
        guided(linear, 2, Cond(vector=torch.zeros(2, 4)))(
            torch.zeros(2, 2), torch.zeros(2), Cond(torch.zeros(2, 5, 6), torch.zeros(2, 3))
        )
