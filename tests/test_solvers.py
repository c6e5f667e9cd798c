"""Samplers: reference trajectories step by step, exact transport of Gaussian data, order of convergence, diffusers."""

import math

import pytest
import torch
from helpers import affine_map, gaussian_eps, in_turn, mixture_eps, read_json, read_tensors, refuses

from ddpm_edu import (
    SAMPLERS,
    Cond,
    Schedule,
    ScheduleError,
    generators,
    karras_timesteps,
    last,
    noise,
    sample,
    spaced_timesteps,
)
from ddpm_edu.diffusion import ddpm
from ddpm_edu.samplers import (
    dpmpp_2m,
    euler,
    euler_ancestral,
    heun,
    ipndm,
    noise_scale,
    sampling_times,
)

SD = Schedule.sqrt_linear()
TRUTH, REFERENCE = read_json("gmm_trajectories.json"), read_tensors("gmm_trajectories.safetensors")
TOY = {k: torch.tensor(TRUTH["toy"][k], dtype=torch.float64) for k in ("means", "weights")}


def toy(schedule):
    return mixture_eps(schedule, TOY["means"], TOY["weights"], TRUTH["toy"]["component_std"])


# ---------------------------------------------------------------- reference trajectories

CASES = {  # name: sampler, options, coordinates of the reference ("ve": x / sqrt(alpha_bar))
    "ddim_diffusers_leading_eta0": (
        sample,
        dict(end=0),
        "vp",
    ),  # Stable Diffusion's DDIM stops at t = 0 ...
    "ddim_diffusers_leading_eta1": (sample, dict(end=0, eta=1.0), "vp"),
    "ddim_diffusers_trailing_eta0": (sample, dict(end=0), "vp"),
    "ddim_diffusers_leading_offset0_alpha1_eta0": (
        sample,
        dict(end=-1),
        "vp",
    ),  # ... and this one goes to the clean picture
    "euler_diffusers_trailing": (euler, {}, "ve"),
    "heun_diffusers_linspace": (heun, {}, "ve"),
    "dpmpp2m_diffusers_trailing_lof1": (dpmpp_2m, {}, "vp"),
    "ddpm_linear50_full_small": (ddpm, dict(variance="small"), "vp"),
    "ddpm_linear1000_20steps_large": (ddpm, dict(variance="large"), "vp"),
}
WRONG = "ddim_diffusers_leading_offset0_alpha1_eta0"


def run_case(name, **changes):
    """Every x_prev of one case, (steps, 8, 2), in the reference's coordinates; `changes` spoil it on purpose."""
    facts, (sampler, options, coordinates) = TRUTH["cases"][name], CASES[name]
    schedule = (
        Schedule.linear(50 if "linear50" in name else 1000, *facts["beta"])
        if "beta" in facts
        else SD
    )
    times, x_T = list(dict.fromkeys(facts["timesteps"])), REFERENCE["x_T"]
    if coordinates == "ve":  # the reference starts from x_T sigma
        sigma = schedule.sigma_at(times[0])
        x_T = x_T * sigma / (1 + sigma**2) ** 0.5
    out = []
    for step in sampler(
        toy(schedule),
        schedule,
        x_T,
        times,
        generator=in_turn(REFERENCE["noise"]),
        **{**options, **changes},
    ):
        following = times[len(out) + 1] if len(out) + 1 < len(times) else -1
        out.append(
            step.x_prev / schedule.alpha_bar_at(following) ** 0.5
            if coordinates == "ve"
            else step.x_prev
        )
    return torch.stack(out)


def reference(name):
    rows = REFERENCE[name]
    return (
        torch.cat([rows[1::2], rows[-1:]]) if "heun" in name else rows
    )  # Heun's has one row a model call


@pytest.mark.parametrize("name", CASES)
def test_every_step_of_the_reference(name):
    ours, truth = run_case(name), reference(name)
    assert ours.shape == truth.shape
    worst = (ours - truth).abs().amax((1, 2))
    assert worst.max() < 1e-5, f"first bad step: {int((worst >= 1e-5).nonzero()[0])}"


def test_the_deliberately_wrong_case_is_told_apart():
    """Stable Diffusion's DDIM must not reproduce the wrong variant, nor the other way round: ten times the tolerance
    apart at every step (they differ by one in t, at large t a small thing), a thousand times at the end."""
    right = "ddim_diffusers_leading_eta0"
    for ours, truth in ((right, WRONG), (WRONG, right)):
        apart = (run_case(ours) - reference(truth)).abs().amax((1, 2))
        assert apart.min() > 1e-4 and apart[-1] > 1e-2


@pytest.mark.parametrize(
    "name, changes",
    [
        ("ddim_diffusers_leading_eta0", dict(end=-1)),
        ("ddim_diffusers_leading_eta0", dict(eta=0.1)),
        ("ddim_diffusers_leading_eta1", dict(eta=0.9)),
        ("ddpm_linear50_full_small", dict(variance="large")),
        ("ddpm_linear1000_20steps_large", dict(variance="small")),
        ("ddim_diffusers_trailing_eta0", dict(clip=1.0)),
        ("euler_diffusers_trailing", dict(predict="v")),
        ("dpmpp2m_diffusers_trailing_lof1", dict(end=0)),
    ],
    ids=str,
)
def test_a_wrong_option_is_told_apart(name, changes):
    assert (run_case(name, **changes) - reference(name)).abs().max() > 1e-3


# ---------------------------------------------------------------- transport of Gaussian data, exact


def transported(name, schedule, steps, mean, std, **options):
    """(mean, variance) of each x_prev when x_T ~ N(0, 1), and the alpha_bar it belongs to."""
    times = spaced_timesteps(schedule.T, steps)
    offset, slope, fresh = affine_map(
        SAMPLERS[name], schedule, times, gaussian_eps(schedule, mean, std), steps, **options
    )
    alpha_bar = torch.tensor(
        [schedule.alpha_bar_at(t) for t in [*times.tolist()[1:], -1]], dtype=torch.float64
    )
    return offset, slope**2 + fresh, alpha_bar


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("mean, std", [(0.5, 0.5), (-1.0, 1.0), (0.0, 1.5)])
def test_noise_becomes_the_data(name, mean, std):
    """DDPM's linear schedule ends in noise (alpha_bar_T = 4e-5), so N(0, 1) must land on N(mean, std^2) within 2 %."""
    offset, variance, _ = transported(
        name,
        Schedule.linear(),
        250 if name in ("heun", "dpmpp_2m", "ipndm", "pndm") else 1000,
        mean,
        std,
    )
    assert offset[-1].item() == pytest.approx(mean, abs=0.02)
    assert variance[-1].item() ** 0.5 == pytest.approx(std, rel=0.02)


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_small_variance_is_exact_for_one_point(steps):
    """Data in one point: every x_prev has the mean sqrt(alpha_bar) x_0 and the variance 1 - alpha_bar, in any number of steps.
    (x_T ~ N(0, 1) is not quite q(x_T): its error is what the slope carries on, and it is taken off.)"""
    schedule, x_0 = Schedule.linear(50, 1e-3, 0.2), 0.8
    end = schedule.alpha_bar[-1]
    model = gaussian_eps(schedule, x_0, 0.0)
    offset, slope, fresh = affine_map(ddpm, schedule, spaced_timesteps(50, steps), model, steps)
    alpha_bar = torch.tensor(
        [schedule.alpha_bar_at(t) for t in [*spaced_timesteps(50, steps).tolist()[1:], -1]],
        dtype=torch.float64,
    )
    torch.testing.assert_close(
        offset + slope * end.sqrt() * x_0, alpha_bar.sqrt() * x_0, rtol=0, atol=1e-12
    )
    torch.testing.assert_close(slope**2 * (1 - end) + fresh, 1 - alpha_bar, rtol=0, atol=1e-12)
    assert (
        steps == 1
        or (transported("ddpm", schedule, steps, x_0, 0.0, variance="large")[1] - (1 - alpha_bar))
        .abs()
        .max()
        > 1e-3
    )


@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_large_variance_is_exact_for_standard_normal_data(steps):
    """Data N(0, 1): x_t is N(0, 1) at every t. Only the last step, which adds no noise, falls short, by 1 - alpha."""
    schedule = Schedule.linear(50, 1e-3, 0.2)
    offset, variance, alpha_bar = transported("ddpm", schedule, steps, 0.0, 1.0, variance="large")
    expected = torch.ones(steps, dtype=torch.float64)
    expected[-1] = schedule.alpha_bar[int(spaced_timesteps(50, steps)[-1])]
    torch.testing.assert_close(variance, expected, rtol=0, atol=1e-12)
    assert offset.abs().max() == 0
    assert (
        steps == 1
        or (transported("ddpm", schedule, steps, 0.0, 1.0)[1][:-1] - 1).abs().max() > 1e-3
    )


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_keeps_the_marginals_of_one_point(eta):
    """DDIM's family is built so that q(x_t | x_0) stays what it was, for every eta (Song et al., lemma 1)."""
    schedule, x_0 = Schedule.cosine(40), -0.6
    times = spaced_timesteps(40, 13)
    offset, slope, fresh = affine_map(
        sample, schedule, times, gaussian_eps(schedule, x_0, 0.0), 13, eta=eta
    )
    end = schedule.alpha_bar[-1]
    alpha_bar = torch.tensor(
        [schedule.alpha_bar_at(t) for t in [*times.tolist()[1:], -1]], dtype=torch.float64
    )
    torch.testing.assert_close(
        offset + slope * end.sqrt() * x_0, alpha_bar.sqrt() * x_0, rtol=0, atol=1e-9
    )
    torch.testing.assert_close(slope**2 * (1 - end) + fresh, 1 - alpha_bar, rtol=0, atol=1e-9)


def test_ancestral_euler_keeps_the_marginals_of_one_point():
    schedule, x_0 = SD, 0.9
    times = karras_timesteps(schedule, 12)
    offset, slope, fresh = affine_map(
        euler_ancestral, schedule, times, gaussian_eps(schedule, x_0, 0.0), 12
    )
    end, alpha_bar = (
        schedule.alpha_bar[-1],
        torch.tensor(
            [schedule.alpha_bar_at(t) for t in [*times.tolist()[1:], -1]], dtype=torch.float64
        ),
    )
    torch.testing.assert_close(
        offset + slope * end.sqrt() * x_0, alpha_bar.sqrt() * x_0, rtol=0, atol=1e-7
    )  # t in float32
    torch.testing.assert_close(slope**2 * (1 - end) + fresh, 1 - alpha_bar, rtol=0, atol=1e-7)


# ---------------------------------------------------------------- order of convergence

MEAN, STD = 0.5, 0.8


def ode_error(sampler, steps, spacing, **options):
    """|x - exact| at sigma = 0.5, started at sigma = 8: the probability-flow ODE of N(m, s^2) keeps
    (x_bar - m) / sqrt(s^2 + sigma^2) constant."""
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    sigmas = {"sigma": 8 + u * (0.5 - 8), "log sigma": 8 * (0.5 / 8) ** u}[spacing]
    grid = [0.0, *SD.sigma.tolist()]
    times = []
    for sigma in sigmas.tolist():  # invert sigma_at
        right = next(i for i, s in enumerate(grid) if s >= sigma - 1e-12)
        times.append(right - 2 + (sigma - grid[right - 1]) / (grid[right] - grid[right - 1]))
    x_T = torch.tensor([[1.3]], dtype=torch.float64)
    out = (
        last(sampler(gaussian_eps(SD, MEAN, STD), SD, x_T, times[:-1], end=times[-1], **options))
        / SD.alpha_bar_at(times[-1]) ** 0.5
    )
    start = x_T / SD.alpha_bar_at(times[0]) ** 0.5
    exact = MEAN + (start - MEAN) * ((STD**2 + 0.25) / (STD**2 + 64)) ** 0.5
    return (out - exact).abs().item()


@pytest.mark.parametrize(
    "sampler, spacing, order, options",
    [
        (euler, "sigma", 1, {}),
        (sample, "sigma", 1, {}),
        (heun, "sigma", 2, {}),
        (dpmpp_2m, "log sigma", 2, {}),
        (ipndm, "sigma", 1, dict(order=1)),
        (ipndm, "sigma", 2, dict(order=2)),
    ],
    ids=lambda v: getattr(v, "__name__", str(v)),
)
def test_order_of_convergence(sampler, spacing, order, options):
    errors = [ode_error(sampler, n, spacing, **options) for n in (80, 160, 320)]
    for coarse, fine in zip(errors, errors[1:]):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25), errors
    assert errors[-1] < 0.02


def test_higher_order_is_worth_it():
    by_order = [ode_error(ipndm, 40, "log sigma", order=k) for k in (1, 2)]
    assert (
        ode_error(heun, 20, "log sigma") < ode_error(euler, 40, "log sigma") / 3
    )  # the same number of model calls
    assert (
        ode_error(dpmpp_2m, 40, "log sigma") < ode_error(euler, 40, "log sigma") / 5
        and by_order[1] < by_order[0] / 2
    )


# ---------------------------------------------------------------- Adams-Bashforth, written again


def adams_bashforth(k):
    """Weights of k slopes, newest first: integrate the Lagrange polynomials through 0, -1, ... over [0, 1]."""
    import sympy as sp

    x, nodes = sp.symbols("x"), [-i for i in range(k)]
    return [
        float(
            sp.integrate(sp.prod([(x - m) / sp.Integer(n - m) for m in nodes if m != n]), (x, 0, 1))
        )
        for n in nodes
    ]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm_is_adams_bashforth(order):
    times = spaced_timesteps(1000, 15)
    sigmas = [SD.sigma_at(t) for t in times.tolist()] + [0.0]
    model, x, slopes = toy(SD), REFERENCE["x_T"] / SD.alpha_bar[999].sqrt(), []
    for i, step in enumerate(ipndm(model, SD, REFERENCE["x_T"], times, order=order)):
        t = times[i : i + 1]
        slopes.insert(0, model(x * SD.alpha_bar_at(t.item()) ** 0.5, t, Cond()))
        weights = adams_bashforth(min(order, i + 1))
        x = x + (sigmas[i + 1] - sigmas[i]) * sum(w * s for w, s in zip(weights, slopes))
        torch.testing.assert_close(
            step.x_prev / (1 + sigmas[i + 1] ** 2) ** -0.5, x, rtol=0, atol=1e-9
        )


def test_four_slopes_integrate_a_cubic_exactly():
    """On equal steps in sigma, once four slopes are there; three of them do not."""
    sigmas = torch.linspace(2.0, 0.5, 11, dtype=torch.float64)
    grid = SD.sigma
    times = [
        int(i := torch.searchsorted(grid, s))
        - 1
        + ((s - grid[i - 1]) / (grid[i] - grid[i - 1])).item()
        for s in sigmas
    ]
    cubic, integral = (lambda s: 4 * s**3 - 3 * s**2 + 1), (lambda s: s**4 - s**3 + s)

    def increments(order):
        x = [
            s.x_t / SD.alpha_bar_at(s.t) ** 0.5
            for s in ipndm(
                lambda x, t, c: torch.full_like(x, cubic(SD.sigma_at(t[0].item()))),
                SD,
                torch.zeros(1, 1, dtype=torch.float64),
                times[:-1],
                end=times[-1],
                order=order,
            )
        ]
        return torch.cat(x).flatten().diff()[3:]

    exact = integral(sigmas).diff()[3:-1]
    assert (
        increments(4) - exact
    ).abs().max() < 1e-5  # t, a float32 for the model, is what limits it
    assert (increments(3) - exact).abs().max() > 1e-4


# ---------------------------------------------------------------- equalities between samplers


def test_small_variance_is_ddim_with_eta_one():
    for schedule, steps in ((SD, 10), (Schedule.cosine(60), 60), (Schedule.linear(), 33)):
        a, b = (
            list(
                f(
                    toy(schedule),
                    schedule,
                    REFERENCE["x_T"],
                    steps,
                    generator=generators(range(8)),
                    **o,
                )
            )
            for f, o in ((ddpm, {}), (sample, dict(eta=1.0)))
        )
        for one, other in zip(a, b, strict=True):
            torch.testing.assert_close(one.x_prev, other.x_prev, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "other",
    [
        euler,
        lambda *a, **k: euler_ancestral(*a, eta=0.0, **k),
        lambda *a, **k: ipndm(*a, order=1, **k),
    ],
)
def test_euler_is_ddim_without_noise(other):
    for times in (spaced_timesteps(1000, 12), karras_timesteps(SD, 12)):
        for a, b in zip(
            sample(toy(SD), SD, REFERENCE["x_T"], times),
            other(toy(SD), SD, REFERENCE["x_T"], times),
            strict=True,
        ):
            torch.testing.assert_close(a.x_prev, b.x_prev, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("predict", ["x_0", "v"])
def test_the_formulation_does_not_matter(name, predict):
    """A model that says x_0 or v, but knows the same, draws the same picture."""
    exact = toy(SD)

    def model(x_t, t, cond):
        eps = exact(x_t, t, cond)
        return SD.target(SD.split(x_t, eps, t.long())[0], eps, t.long(), predict)

    a, b = (
        last(SAMPLERS[name](m, SD, REFERENCE["x_T"], 9, predict=p, generator=generators(range(8))))
        for m, p in ((exact, "eps"), (model, predict))
    )
    torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


# ---------------------------------------------------------------- diffusers, with official configs

CONFIGS = {
    name: read_json("official_configs.json.gz")[name]["scheduler/scheduler_config.json"]
    for name in ("sd15", "sdxl_base")
}
CONFIGS["sd21"] = {  # the 768 one: v
    **CONFIGS["sd15"],
    "_class_name": "DDIMScheduler",
    "prediction_type": "v_prediction",
}
SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "pndm": "PNDMScheduler",
}
PREDICT = {"epsilon": "eps", "v_prediction": "v"}


def run_diffusers(scheduler, model, x, seed):
    """Their loop as their pipelines write it, from standard normal x."""
    x = x * scheduler.init_noise_sigma
    knows = scheduler.step.__code__.co_varnames
    extra = {"generator": torch.Generator().manual_seed(seed)} if "generator" in knows else {}
    for t in scheduler.timesteps:
        times = t.float().repeat(len(x))
        prediction = model(scheduler.scale_model_input(x, t), times, Cond())
        x = scheduler.step(prediction, t, x, **extra).prev_sample
    return x


def run_ours(sampler, model, x, steps, spacing, predict, seed=5, schedule=SD):
    times, end = sampling_times(schedule, steps, sampler, spacing)
    x_T = x * noise_scale(schedule, times[0], sampler, spacing)
    how = dict(predict=predict, end=end, generator=torch.Generator().manual_seed(seed))
    return last(SAMPLERS[sampler](model, schedule, x_T, times, **how))


def exact(predict, schedule=SD):
    """The mixture's denoiser in float32, at fractional times too; "v" = s eps - n x_0."""

    def model(x_t, t, cond):
        x = x_t.double()
        eps, (s, n) = toy(schedule)(x, t.double(), cond), schedule.signal_noise(t[0].item())
        return (eps if predict == "eps" else (eps - n * x) / s).to(x_t)

    return model


OWN_STEPS = 20  # of 1000: DDIM and PNDM of diffusers step by T // steps, whatever their times are
CASES_OF_DIFFUSERS = [
    (sampler, spacing, config)
    for sampler in SCHEDULERS
    for spacing in ("leading", "trailing", "linspace")
    for config in CONFIGS
    if not (sampler == "pndm" and config == "sd21")  # see test_pndm_combines_eps_and_not_v
    and not (sampler in ("ddim", "pndm") and spacing == "linspace")  # so not to the next of these
]


@pytest.mark.parametrize("sampler, spacing, config", CASES_OF_DIFFUSERS)
def test_the_same_picture_as_diffusers(sampler, spacing, config):
    """The scale of the first noise, the times, the end and every step: 1e-4 in float32."""
    import diffusers

    entries = {**CONFIGS[config], "timestep_spacing": spacing}
    theirs = getattr(diffusers, SCHEDULERS[sampler]).from_config(entries)
    theirs.set_timesteps(OWN_STEPS)
    predict = PREDICT[entries.get("prediction_type", "epsilon")]
    model, x = exact(predict), REFERENCE["x_T"].float()
    times, _ = sampling_times(SD, OWN_STEPS, sampler, spacing)
    assert list(dict.fromkeys(theirs.timesteps.tolist())) == pytest.approx(times, rel=1e-6)
    ours = run_ours(sampler, model, x, OWN_STEPS, spacing, predict)
    expected = run_diffusers(theirs, model, x, seed=5)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    wrong = {"leading": "trailing", "trailing": "leading", "linspace": "leading"}[spacing]
    apart = run_ours(sampler, model, x, OWN_STEPS, wrong, predict) - expected
    assert apart.abs().max() > 1e-3


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_karras_sigmas_as_diffusers(sampler):
    """Equal sigmas. The time that belongs to one is told to the model a little otherwise (theirs
    interpolates log sigma, and DPM-Solver++ rounds): this model turns it back into sigma, 5e-3."""
    import diffusers

    entries = {**CONFIGS["sdxl_base"], "timestep_spacing": "linspace", "use_karras_sigmas": True}
    theirs = getattr(diffusers, SCHEDULERS[sampler]).from_config(entries)
    theirs.set_timesteps(OWN_STEPS)
    times, _ = sampling_times(SD, OWN_STEPS, sampler, "karras")
    sigmas = list(dict.fromkeys(theirs.sigmas.tolist()))[:-1]
    assert [SD.sigma_at(t) for t in times] == pytest.approx(sigmas, rel=3e-5)
    x = REFERENCE["x_T"].float()
    ours = run_ours(sampler, exact("eps"), x, OWN_STEPS, "karras", "eps")
    expected = run_diffusers(theirs, exact("eps"), x, seed=5)
    torch.testing.assert_close(ours, expected, rtol=0, atol=5e-3 if sampler != "dpmpp_2m" else 3e-2)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 9, 27, 50])
def test_pndm_of_any_length(steps):
    """Its first step is Heun's; one, two and three slopes come before four."""
    from diffusers import PNDMScheduler

    theirs = PNDMScheduler.from_config(CONFIGS["sd15"])
    theirs.set_timesteps(steps)
    model, calls = exact("eps"), []
    counted = lambda x, t, c: calls.append(t[0].item()) or model(x, t, c)
    x = REFERENCE["x_T"].float()
    ours = run_ours("pndm", counted, x, steps, "leading", "eps")
    assert calls == theirs.timesteps.tolist()
    torch.testing.assert_close(ours, run_diffusers(theirs, model, x, 0), rtol=0, atol=1e-4)


def test_pndm_combines_eps_and_not_v():
    """The slope of the equation is eps. diffusers combines v where the model says v, each with the
    latest x: no longer of high order, and further from the limit."""
    from diffusers import PNDMScheduler

    theirs = PNDMScheduler.from_config(CONFIGS["sd21"])
    theirs.set_timesteps(OWN_STEPS)
    x = REFERENCE["x_T"].float()
    expected = run_diffusers(theirs, exact("v"), x, 0)
    ours, by_eps = (run_ours("pndm", exact(p), x, OWN_STEPS, "leading", p) for p in ("v", "eps"))
    torch.testing.assert_close(ours, by_eps, rtol=0, atol=1e-4)
    times, _ = sampling_times(SD, OWN_STEPS, "pndm")
    fine = torch.linspace(times[0], 0, 1001, dtype=torch.float64)[:-1]
    limit = last(heun(toy(SD), SD, REFERENCE["x_T"], fine, end=0))
    assert (ours - limit).abs().max() < (expected - limit).abs().max() / 2


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_clipping_as_diffusers(name):
    import diffusers

    entries = {**CONFIGS["sd15"], "clip_sample": True, "variance_type": "fixed_large"}
    entries |= {"steps_offset": 0} if name == "ddpm" else {}  # no noise at t = 0 only, there
    theirs = getattr(diffusers, SCHEDULERS[name]).from_config(entries)
    theirs.set_timesteps(17)
    x, end = REFERENCE["x_T"].float(), 0 if name == "ddim" else -1
    options = dict(variance="large") if name == "ddpm" else {}
    if name == "ddim":
        step = theirs.step
        theirs.step = lambda *a, **k: step(*a, use_clipped_model_output=True)
    generator = torch.Generator().manual_seed(5)
    times = [float(t) for t in theirs.timesteps]
    how = dict(clip=1.0, end=end, generator=generator, **options)
    ours = last(SAMPLERS[name](exact("eps"), SD, x, times, **how))
    torch.testing.assert_close(ours, run_diffusers(theirs, exact("eps"), x, 5), rtol=0, atol=1e-4)


# ---------------------------------------------------------------- churn

CHURN = dict(s_churn=8.0, s_min=0.05, s_max=5.0, s_noise=1.007)


def churned_by_hand(model, schedule, x_bar, times, noises, s_churn, s_min, s_max, s_noise):
    """Karras et al. 2022, Algorithm 2, in x_bar and without its second-order lines 7 to 9."""
    sigmas = [schedule.sigma_at(t) for t in times] + [0.0]
    grid = torch.cat([torch.zeros(1, dtype=torch.float64), schedule.sigma])
    for i in range(len(times)):
        gamma = min(s_churn / len(times), 2**0.5 - 1) if s_min <= sigmas[i] <= s_max else 0
        hat = min(sigmas[i] * (1 + gamma), schedule.sigma[-1].item())
        if gamma:
            x_bar = x_bar + (hat**2 - sigmas[i] ** 2) ** 0.5 * s_noise * next(noises)
        right = int(torch.searchsorted(grid, hat))
        t = right - 2 + (hat - grid[right - 1]) / (grid[right] - grid[right - 1])
        eps = model(x_bar / (1 + hat**2) ** 0.5, t[None], Cond())
        x_bar = x_bar + (sigmas[i + 1] - hat) * eps
    return x_bar


@pytest.mark.parametrize("steps", [4, 12])
def test_churn_is_algorithm_2(steps):
    times, x_T = karras_timesteps(SD, steps).tolist(), REFERENCE["x_T"]
    noises = lambda: iter(noise((8, 2), range(20)).double())
    x_bar = x_T / SD.signal_noise(times[0])[0]
    by_hand = churned_by_hand(toy(SD), SD, x_bar, times, noises(), **CHURN)
    draws = noises()
    run = list(euler(toy(SD), SD, x_T, times, generator=lambda x: next(draws), **CHURN))
    torch.testing.assert_close(run[-1].x_prev, by_hand, rtol=0, atol=1e-5)  # t is float32
    moved = [step.t > t for step, t in zip(run, times)]
    assert moved == [0.05 <= SD.sigma_at(t) <= 5 for t in times] and any(moved)
    assert (run[-1].x_prev - last(euler(toy(SD), SD, x_T, times))).abs().max() > 1e-3


def test_churn_keeps_the_marginals_of_one_point():
    """With s_noise = 1 the noise added is what belongs to the later time."""
    times, x_0, steps = spaced_timesteps(1000, 15), 0.9, 15
    model = gaussian_eps(SD, x_0, 0.0)
    how = dict(s_churn=6.0, s_max=10.0)
    offset, slope, fresh = affine_map(euler, SD, times, model, steps, skip=1, **how)
    end = SD.alpha_bar[-1]
    ab = torch.tensor([SD.alpha_bar_at(t) for t in [*times.tolist()[1:], -1]]).double()
    torch.testing.assert_close(
        offset + slope * end.sqrt() * x_0, ab.sqrt() * x_0, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(slope**2 * (1 - end) + fresh, 1 - ab, rtol=0, atol=1e-6)
    assert fresh[1:-1].min() > 1e-3


# ---------------------------------------------------------------- the end of the schedule


def ending(alpha_bar):
    """Stable Diffusion's schedule, rescaled to end in pure noise, with another last alpha_bar."""
    values = SD.zero_terminal_snr().alpha_bar.clone()
    values[-1] = alpha_bar
    return Schedule.from_alpha_bar(values)


def gaussian(schedule, mean, std, predict):
    """The exact denoiser of N(mean, std^2) in any formulation, without a division by s."""

    def model(x_t, t, cond):
        s, n = schedule.signal_noise(t[0].item())
        residual = (x_t - s * mean) / (s * s * std**2 + n * n)
        x_0, eps = mean + s * std**2 * residual, n * residual
        return {"eps": eps, "x_0": x_0, "v": s * eps - n * x_0}[predict]

    return model


ENDS = {
    "cosine": Schedule.cosine(),
    "zero": ending(0.0),
    "1e-20": ending(1e-20),
    "1e-10": ending(1e-10),
    "cosine to zero": Schedule.cosine().zero_terminal_snr(),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("end, predict", [(e, p) for e in ENDS for p in ("eps", "v", "x_0")])
def test_the_end_of_the_schedule(name, end, predict, monkeypatch):
    """Float32 agrees with float64, and noise becomes the data.

    eps in float32 holds x_0 only to about 1e-7 / s, however it is solved: 3e-4 for the cosine
    schedule, which ends at s = 5e-5; v and x_0 hold it at any s."""
    schedule, mean, std = ENDS[end], 0.5, 0.6
    if predict == "eps" and schedule.alpha_bar[-1] < 1e-12:
        with refuses(ScheduleError, "eps", "t = 999", '"v" or "x_0"'):
            SAMPLERS[name](None, schedule, torch.zeros(1, 1), 60, predict="eps")
        return
    model, randn = gaussian(schedule, mean, std, predict), torch.randn
    monkeypatch.setattr(  # the same noise for both types
        torch, "randn", lambda *a, dtype=None, **k: randn(*a, **k).to(dtype or torch.float32)
    )
    x_T = noise((1,), range(50)).double()
    for steps in (10, 30, 60):
        how = [dict(predict=predict, generator=generators(range(50))) for _ in range(2)]
        double = last(SAMPLERS[name](model, schedule, x_T, steps, **how[0]))
        single = last(SAMPLERS[name](model, schedule, x_T.float(), steps, **how[1]))
        assert (single.double() - double).abs().max() < (3e-4 if predict == "eps" else 1e-5), steps
    times = spaced_timesteps(1000, 60)
    offset, slope, fresh = affine_map(SAMPLERS[name], schedule, times, model, 60, predict=predict)
    assert offset[-1].item() == pytest.approx(mean, abs=0.05)
    assert (slope[-1] ** 2 + fresh[-1]).item() ** 0.5 == pytest.approx(std, rel=0.1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_zero_is_the_limit(name):
    """alpha_bar = 0 is drawn as alpha_bar = 1e-24 is, for v."""
    limit, zero = (
        last(
            SAMPLERS[name](
                gaussian(schedule, 0.5, 0.6, "v"),
                schedule,
                noise((1,), range(50)).double(),
                25,
                predict="v",
                generator=generators(range(50)),
            )
        )
        for schedule in (ending(1e-24), ending(0.0))
    )
    torch.testing.assert_close(limit, zero, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "euler", "euler_ancestral", "dpmpp_2m"])
def test_a_zero_terminal_schedule_as_diffusers(sampler):
    """Rescaled betas, v, trailing: Lin et al. 2023. Their last alpha_bar is 0, or 2^-24 in sigma."""
    import diffusers

    entries = {**CONFIGS["sd21"], "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    theirs = getattr(diffusers, SCHEDULERS[sampler]).from_config(entries)
    theirs.set_timesteps(OWN_STEPS)
    schedule, x = SD.zero_terminal_snr(), REFERENCE["x_T"].float()
    model = lambda x, t, c: gaussian(schedule, 0.5, 0.6, "v")(x.double(), t, c).float()
    ours = run_ours(sampler, model, x, OWN_STEPS, "trailing", "v", schedule=schedule)
    torch.testing.assert_close(ours, run_diffusers(theirs, model, x, 5), rtol=0, atol=1e-4)
