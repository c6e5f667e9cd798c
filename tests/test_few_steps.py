"""Few-step models: what each objective asks for, against closed forms on a Gaussian; how they train and are drawn."""

from dataclasses import replace

import pytest
import torch
from helpers import refuses

from ddpm_edu import (
    SAMPLERS,
    CheckpointError,
    Cond,
    DataError,
    OptionError,
    Schedule,
    ShapeError,
    guided,
    last,
    load,
    noise,
    save,
)
from ddpm_edu.consistency import Consistency, Paths, consistency_loss, endpoint
from ddpm_edu.datasets.painted import prompts
from ddpm_edu.distribution_matching import DistributionMatching, matching_gradient, matching_loss
from ddpm_edu.files.tensors import load_tensors, save_tensors
from ddpm_edu.meanflow import mean_flow_loss, mean_velocity, total_derivative
from ddpm_edu.networks.unet import UNet, UNetConfig
from ddpm_edu.samplers import FEW_STEPS, sampling_times
from ddpm_edu.systems.pipeline import draw
from ddpm_edu.training import few_steps
from ddpm_edu.training.few_steps import (
    PAINTED_FEW,
    PAINTED_MEANFLOW,
    guided_velocity,
    mean_flow_system,
    solved_paths,
    train_few,
    train_mean_flow,
)

COSINE, FLOW = Schedule.cosine(), Schedule.flow(16)
MEAN, STD = 0.7, 0.4  # of the data, one number: all below is known in closed form


def spread(schedule, t):
    """(s, mean and standard deviation of x_t), each (B, 1)."""
    s = schedule.alpha_bar[t].sqrt()[:, None]
    return s, s * MEAN, (s**2 * STD**2 + 1 - s**2).sqrt()


def exact_end(schedule=COSINE):
    """The denoiser whose x0_hat is where the ODE's path through x_t ends: predict = "v"."""

    def model(x_t, t, cond):
        s, mean, std = spread(schedule, t.long())
        x_0 = MEAN + STD / std * (x_t - mean)
        return (s * x_t - x_0) / (1 - s**2).sqrt()

    return model


def on_path(z, t):
    """The point at time t of the path that starts z standard deviations off the mean."""
    _, mean, std = spread(COSINE, t.clamp(min=0))
    return torch.where((t >= 0)[:, None], mean + std * z, MEAN + STD * z)


# ---------------------------------------------------------------- consistency


def points(n=200):
    gen = torch.Generator().manual_seed(0)
    z = torch.randn(n, 1, generator=gen, dtype=torch.float64)
    t = torch.randint(1, 1000, (n,), generator=gen)
    s = (torch.rand(n, generator=gen) * (t + 1)).long() - 1
    return z, t, s


@pytest.mark.parametrize("to_the_end", [False, True])
def test_the_consistency_function_is_the_minimum(to_the_end):
    """On a Gaussian the loss of the known function is 0; of one that is off it is the square of how much."""
    z, t, s = points()
    s = torch.full_like(s, -1) if to_the_end else s
    model, given = exact_end(), (COSINE, on_path(z, t), t, on_path(z, s), s)
    assert consistency_loss(model, model, *given) < 1e-10
    n = (1 - COSINE.alpha_bar).sqrt()
    off = lambda x_t, t, cond: model(x_t, t, cond) + 0.1 / n[t.long()][:, None]  # x0_hat - 0.1
    assert consistency_loss(off, model, *given).item() == pytest.approx(0.01, abs=1e-5)


def test_ddim_is_consistent_with_itself_only():
    """The mean of what is behind x_t, which a denoiser predicts, is not the end of a path."""

    def denoiser(x_t, t, cond):
        s, mean, std = spread(COSINE, t.long())
        x_0 = MEAN + s * STD**2 / std**2 * (x_t - mean)
        return (s * x_t - x_0) / (1 - s**2).sqrt()

    z, t, s = points()
    given = (COSINE, on_path(z, t), t, on_path(z, s), s)
    assert consistency_loss(denoiser, denoiser, *given) > 0.01


def test_the_boundary():
    x, model = torch.randn(3, 1), lambda x, t, cond: torch.full_like(x, 7.0)
    t = torch.tensor([-1, 5, -1])
    out = endpoint(model, COSINE, x, t, Cond())
    assert torch.equal(out[[0, 2]], x[[0, 2]]) and out[1] != x[1]


def test_no_gradient_goes_through_the_target():
    z, t, s = points(8)
    a, b = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))
    with_ = lambda p: lambda x, t, cond: exact_end()(x, t, cond) + p
    consistency_loss(with_(a), with_(b), COSINE, on_path(z, t), t, on_path(z, s), s).backward()
    assert a.grad is not None and b.grad is None


def test_consistency_refuses():
    x, t = torch.zeros(2, 1), torch.tensor([5, 9])
    model = exact_end()
    refuses(OptionError, "s must be", lambda: consistency_loss(model, model, COSINE, x, t, x, t))
    refuses(ShapeError, "x_s", lambda: consistency_loss(model, model, COSINE, x, t, x[:1], t - 1))
    at = torch.tensor([[9, 5, -1]] * 3)
    paths = torch.zeros(3, 3, 1), at, torch.zeros(1, 2, 4), torch.zeros(3)
    for wrong in ([9, 5, 0], [5, 9, -1], [9, -1, -1]):
        wrong = torch.tensor([wrong] * 3)
        refuses(DataError, "times", lambda: Paths(paths[0], wrong, *paths[2:]))
    refuses(DataError, "no paths", lambda: Paths(paths[0][:0], *paths[1:]))
    refuses(ShapeError, "times", lambda: Paths(paths[0], at[:, 1:], *paths[2:]))
    both = Paths(*paths) + Paths(*paths)
    assert len(both) == 6 and both.row.tolist() == [0, 0, 0, 1, 1, 1]
    for option in ({"skip": -1}, {"decay": 2.0}, {"from_noise": -0.1}):
        net = torch.nn.Linear(1, 1)
        refuses(OptionError, [*option][0], lambda: Consistency(net, COSINE, **option))


# ---------------------------------------------------------------- distribution matching


def gaussian_denoiser(mean, std):
    """predict = "v" of data N(mean, std^2)."""

    def model(x_t, t, cond):
        s = COSINE.alpha_bar[t.long()].sqrt()[:, None]
        var = s**2 * std**2 + 1 - s**2
        x_0 = mean + s * std**2 / var * (x_t - s * mean)
        return (s * x_t - x_0) / (1 - s**2).sqrt()

    return model


def test_the_matching_gradient_is_that_of_the_divergence():
    """Teacher N(0, 1), student N(m, 1): n^2 / s (score of the student - of the teacher) = s m everywhere, over |x - x0_hat|."""
    gen = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(64, 1, generator=gen, dtype=torch.float64) for _ in range(2))
    t = torch.randint(20, 980, (64,), generator=gen)
    m = 0.5
    teacher, fake = gaussian_denoiser(0.0, 1.0), gaussian_denoiser(m, 1.0)
    g = matching_gradient(teacher, fake, COSINE, x + m, t, eps)
    s, n = COSINE.alpha_bar[t].sqrt()[:, None], (1 - COSINE.alpha_bar[t]).sqrt()[:, None]
    x_t = s * (x + m) + n * eps
    scores = (m * s - x_t) - (-x_t)  # of N(s m, 1) and N(0, 1)
    wanted = n**2 / s * scores / (x + m - s * x_t).abs().clamp(min=1e-4)
    torch.testing.assert_close(g, wanted, rtol=1e-5, atol=1e-8)
    assert matching_gradient(teacher, teacher, COSINE, x, t, eps).abs().max() == 0
    x = x.requires_grad_()
    matching_loss(x, g).backward()
    torch.testing.assert_close(x.grad, g / g.numel())


def small_unet(vector=0, seed=0):
    torch.manual_seed(seed)
    return UNet(
        UNetConfig(
            in_channels=2,
            channels=8,
            mult=(1, 2),
            depth=(0, 1),
            middle=1,
            heads=(1, 2),
            context=6,
            vector=vector,
            blocks=1,
            groups=4,
        )
    )


def test_each_network_learns_from_its_own_terms():
    """With no difference of teacher and fake, and no regression, the student gets no gradient; the fake always does."""
    net, teacher = small_unet(), small_unet(seed=1)
    x, times = torch.randn(4, 3, 2, 4, 4), torch.tensor([[900, 400, -1]] * 4)
    cond = Cond(torch.randn(4, 3, 6))
    gen = torch.Generator().manual_seed(0)
    model = DistributionMatching(net, teacher, teacher, COSINE, regression=0.0)
    model(x, times, cond, gen).backward()
    size = lambda part: sum(
        p.grad.abs().sum().item() for p in part.parameters() if p.grad is not None
    )
    assert size(model.student) == 0 and size(model.fake) > 0
    assert all(p.grad is None for p in teacher.parameters())
    model = DistributionMatching(net, teacher, net, COSINE)
    model(x, times, cond, gen).backward()
    assert size(model.student) > 0
    assert not any(name.startswith("teacher") for name, _ in model.named_parameters())


# ---------------------------------------------------------------- mean flow


def marginal(u):
    return (1 - u) * MEAN, ((1 - u) ** 2 * STD**2 + u**2).sqrt()


def exact_velocity(z, u):
    """E[eps - x_0 | z_u] = d mean / du + (d std / du) / std (z - mean)."""
    mean, std = marginal(u)
    return -MEAN + (u - (1 - u) * STD**2) / std**2 * (z - mean)


def exact_mean_velocity(x_t, t, cond):
    """The model: a step along the known path, divided by its length; the velocity where that is 0."""
    u = (t + 1)[:, None] / FLOW.T
    r, z = u - cond.vector, x_t * ((1 - u) ** 2 + u**2).sqrt()
    (mean, std), (mean_r, std_r) = marginal(u), marginal(r)
    step = z - (mean_r + std_r / std * (z - mean))
    length = (u - r).clamp(min=1e-9)
    return torch.where(u - r > 1e-9, step / length, exact_velocity(z, u))


def drawn(n=400):
    gen = torch.Generator().manual_seed(0)
    real = lambda: torch.randn(n, 1, generator=gen, dtype=torch.float64)
    a, b = torch.rand(2, n, generator=gen, dtype=torch.float64)
    return MEAN + STD * real(), real(), torch.maximum(a, b).clamp(min=0.05), torch.minimum(a, b)


@pytest.mark.parametrize("apart", [True, False])
def test_the_mean_velocity_is_the_minimum(apart):
    """With the velocity of the flow for v, the known U has loss 0, and one that is off its square."""
    x_0, eps, u, r = drawn()
    r = r if apart else u
    z = (1 - u)[:, None] * x_0 + u[:, None] * eps
    given = dict(velocity=exact_velocity(z, u[:, None]), power=0.0)
    assert mean_flow_loss(exact_mean_velocity, FLOW, x_0, eps, u, r, **given) < 1e-10
    off = lambda x, t, cond: exact_mean_velocity(x, t, cond) + 0.1
    value = mean_flow_loss(off, FLOW, x_0, eps, u, r, **given)
    assert value.item() == pytest.approx(0.01, abs=1e-5)


def test_without_the_derivative_it_would_be_the_velocity():
    """Far from the mean velocity: what the derivative is there for."""
    x_0, eps, u, r = drawn()
    z = (1 - u)[:, None] * x_0 + u[:, None] * eps
    v = exact_velocity(z, u[:, None])
    U = mean_velocity(exact_mean_velocity, FLOW, z, u, r, Cond())
    dU = total_derivative(exact_mean_velocity, FLOW, z, u, r, v, Cond())
    torch.testing.assert_close(U, v - (u - r)[:, None] * dU, rtol=0, atol=1e-5)
    assert (U - v).square().mean() > 0.01


@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_the_sampler_walks_the_path_exactly(steps):
    """In any number of steps, as the mean velocity says it."""
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    x = last(FEW_STEPS["mean_flow"](exact_mean_velocity, FLOW, x_T, steps))
    torch.testing.assert_close(x, MEAN + STD * x_T, rtol=0, atol=1e-6)


def test_the_derivative_runs_through_our_attention():
    """Of a UNet with self- and cross-attention, against central differences."""
    net = small_unet(vector=1).double()
    gen = torch.Generator().manual_seed(0)
    z, v = (torch.randn(3, 2, 4, 4, generator=gen, dtype=torch.float64) for _ in range(2))
    u, r = torch.tensor([0.9, 0.5, 0.3]).double(), torch.tensor([0.1, 0.5, 0.0]).double()
    cond, h = Cond(torch.randn(3, 3, 6, generator=gen, dtype=torch.float64)), 1e-3
    got = total_derivative(net, FLOW, z, u, r, v, cond)
    ahead, behind = (mean_velocity(net, FLOW, z + k * v, u + k, r, cond) for k in (h, -h))
    wanted = ((ahead - behind) / (2 * h)).detach()
    assert (got[1] == 0).all()  # r = u: not needed
    torch.testing.assert_close(got[[0, 2]], wanted[[0, 2]], rtol=0, atol=2e-3)
    assert wanted.abs().max() > 0.05


def test_mean_flow_refuses():
    x, u = torch.zeros(2, 1), torch.tensor([0.2, 0.5])
    run = lambda u, r, **how: mean_flow_loss(exact_mean_velocity, FLOW, x, x, u, r, **how)
    refuses(OptionError, "r is the later", lambda: run(u, u + 0.1))
    refuses(OptionError, "r is the later", lambda: run(u + 0.6, u))
    refuses(OptionError, "power", lambda: run(u, u, power=-1.0))


def test_built_in_guidance():
    """Its fixed point is the guided velocity, 1 / (1 - kappa) times the difference of both."""
    value = {True: 3.0, False: 1.0}
    net = lambda x, t, cond: torch.where(
        cond.context[:, :1, :1, None].expand_as(x) > 0, value[True], value[False]
    )
    cond, uncond = Cond(torch.ones(5, 2, 3)), Cond(torch.zeros(1, 2, 3))
    x, u = torch.zeros(5, 1, 2, 2), torch.full((5,), 0.5)
    kappa = torch.tensor([0.5, 0.5, 0.0, 0.25, 0.5])
    v = guided_velocity(net, FLOW, x, x + 2.0, u, cond, uncond, kappa)
    assert v.flatten(1)[:, 0].tolist() == [3.0, 3.0, 2.0, 2.5, 3.0]


# ---------------------------------------------------------------- runs


def short(recipe):
    run = dict(steps=2, batch_size=4, save_every=1)
    if recipe is PAINTED_MEANFLOW:
        first, train = (replace(r, **run) for r in (recipe.first, recipe.train))
        return replace(recipe, n=16, first=first, train=train)
    run = replace(recipe.train, **run)
    return replace(recipe, n=8, path_steps=2, train=run, again=run, match=run)


@pytest.fixture(scope="module")
def teacher():
    return load("painted")


def test_solved_paths_end_where_the_teacher_draws(teacher):
    texts = prompts(3, 1)
    paths = solved_paths(teacher, texts, 4, seed=5)
    assert (
        paths.x.shape == (3, 5, 4, 8, 8) and paths.times.tolist() == [[999, 749, 499, 249, -1]] * 3
    )
    pictures = draw(teacher, texts, seeds=[5, 6, 7], steps=4, progress=False)
    ours = teacher.vae.from_latent(paths.x[:, -1]).clamp(-1, 1)
    torch.testing.assert_close(ours, pictures, rtol=0, atol=1e-4)


@torch.no_grad()
def test_paths_from_where_the_student_stands(teacher):
    """Each begins at the student's picture, noised to its time, and ends where the teacher goes from there."""
    paths = solved_paths(teacher, prompts(3, 1), 4, seed=5, student=teacher)
    assert paths.times.tolist() == [
        [749] * 2 + [499, 249, -1],
        [499] * 3 + [249, -1],
        [249] * 4 + [-1],
    ]
    x, (times, cond) = paths[torch.arange(3)]
    first = endpoint(
        teacher.unet, teacher.schedule, noise((4, 8, 8), [5, 6, 7]), torch.full((3,), 999), cond
    )
    s = teacher.schedule.alpha_bar[times[:, 0]].sqrt().float().view(-1, 1, 1, 1)
    eps = (x[:, 0] - s * first) / (1 - s**2).sqrt()
    assert eps.std() == pytest.approx(1, abs=0.1) and eps.mean() == pytest.approx(0, abs=0.1)
    model = guided(teacher.unet, 3.0, few_steps.conditions(teacher, [""]))
    one = Cond(cond.context[2:])
    walk = SAMPLERS["dpmpp_2m"](model, teacher.schedule, x[2:, 0], [249], one, predict="v")
    torch.testing.assert_close(last(walk), x[2:, -1], rtol=0, atol=1e-4)


def test_a_teacher_of_other_texts_is_refused(teacher):
    refuses(OptionError, "another data set", lambda: solved_paths(load("emoji"), prompts(2), 4))
    refuses(OptionError, "steps", lambda: solved_paths(teacher, prompts(2), 0))


def test_the_student_is_drawn_in_any_number_of_steps(teacher, tmp_path):
    student = train_few(short(PAINTED_FEW), tmp_path / "run.safetensors")
    assert {f.name for f in tmp_path.iterdir()} == {
        f"run{more}.safetensors" for more in ("", "-again", "-match")
    }
    assert student.config.guidance == 1 and student.config.sampler == "consistency"
    own, same = student.state_dict(), teacher.state_dict()
    changed = {name.partition(".")[0] for name, w in own.items() if not torch.equal(w, same[name])}
    assert changed == {"unet"}
    for steps in (1, 3):
        x = draw(student, prompts(2), steps=steps, progress=False)
        assert x.shape == (2, 3, 32, 32)
    refuses(OptionError, "steps", lambda: draw(student, prompts(2), steps=0, progress=False))


def test_the_mean_flow_trains_and_is_drawn(tmp_path):
    sd = train_mean_flow(short(PAINTED_MEANFLOW), tmp_path / "run.safetensors")
    new = mean_flow_system(PAINTED_MEANFLOW)
    moved = [
        n for n, w in sd.unet.state_dict().items() if not torch.equal(w, new.unet.state_dict()[n])
    ]
    assert "conv_out.weight" in moved
    assert (sd.predict, sd.config.vector, sd.schedule.T) == ("flow", "step", 16)
    assert draw(sd, prompts(2), steps=1, progress=False).shape == (2, 3, 32, 32)
    again = train_mean_flow(short(PAINTED_MEANFLOW)).unet.state_dict()
    assert all(torch.equal(w, again[name]) for name, w in sd.unet.state_dict().items())


def test_recipes_are_followed_from_the_shell():
    assert set(few_steps.FEW_RECIPES) == {"painted-few", "painted-meanflow"}


def test_the_table_counts_what_is_right_and_how_often_a_network_is_asked(monkeypatch):
    """All painted as their captions say: 100 %; a guided system asks twice a step."""
    from ddpm_edu.datasets.images import from_uint8, mnist
    from ddpm_edu.datasets.painted import paint, parse
    from ddpm_edu.show import few_steps as shown

    digits = mnist("test")

    def painted(sd, texts, steps):
        scenes = [parse(text) for text in texts]
        pick = [int((digits.labels == s.digit).nonzero()[0]) for s in scenes]
        x = from_uint8(paint(digits.images[pick, 0], scenes))
        return x if steps > 1 else x.flip(0)

    monkeypatch.setattr(shown, "drawn", painted)
    found = shown.few_steps(4, (1, 2), ("painted",))
    assert found.obeyed["painted"][2] == 1 > found.obeyed["painted"][1]
    assert found.table().head == ["model", "calls a step", "1 step", "2 steps"]
    assert found.table().rows[0][1:] == ["2", "0%", "100%"]
    refuses(OptionError, "n", lambda: shown.few_steps(0))


def test_a_smaller_unet_takes_the_rest_from_its_base(tmp_path):
    """Blocks that the base's UNet has and this one has not are passed over; what is the file's own is not."""
    sd, file = mean_flow_system(PAINTED_MEANFLOW), tmp_path / "small.safetensors"
    save(file, sd, {"words": []}, base="painted")
    back = load(file)
    state = back.state_dict()
    assert all(torch.equal(w, state[name]) for name, w in sd.state_dict().items())
    views, meta = load_tensors(file)
    assert not any(name.startswith(("vae.", "text.")) for name in views)
    save_tensors(file, {**views, "unet.other.weight": torch.zeros(1)}, meta)
    refuses(CheckpointError, "unet.other", lambda: load(file))


def test_what_a_mean_flow_is_not_asked(teacher):
    sd = mean_flow_system(PAINTED_MEANFLOW)
    run = lambda sd, **how: draw(sd, prompts(1), steps=1, progress=False, **how)
    refuses(OptionError, "guidance", lambda: run(sd, guidance=3.0))
    refuses(OptionError, "sampler", lambda: run(sd, sampler="dpmpp_2m"))
    refuses(OptionError, "sampler", lambda: run(teacher, sampler="mean_flow"))


def test_fresh_noise_comes_early():
    times = lambda steps: sampling_times(COSINE, steps, "consistency", "trailing")
    assert times(1) == ([999], -1) and times(4) == ([999, 874, 749, 624], -1)
    assert times(8)[0] == [999, 874, 749, 624, 499, 374, 249, 124]
    assert times(10)[0] == sampling_times(COSINE, 10, "dpmpp_2m", "trailing")[0]


def test_the_consistency_sampler_adds_fresh_noise():
    """x_prev = s_prev x0_hat + n_prev z: on a Gaussian whose end is known, every step has the data's spread."""
    x_T = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gen = torch.Generator().manual_seed(1)
    steps = list(
        FEW_STEPS["consistency"](exact_end(), COSINE, x_T, [999, 500], predict="v", generator=gen)
    )
    s, mean, std = spread(COSINE, torch.tensor([500]))
    assert steps[0].x_prev.mean().item() == pytest.approx(mean.item(), abs=0.02)
    assert steps[0].x_prev.std().item() == pytest.approx(std.item(), abs=0.02)
    assert steps[1].x_prev.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert steps[1].x_prev.std().item() == pytest.approx(STD, abs=0.02)
    assert abs(torch.corrcoef(torch.cat([steps[0].x_prev, x_T], 1).T)[0, 1]) < 0.5
