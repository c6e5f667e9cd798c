"""Imagen's plan: dynamic thresholding, both stages, what the second one is told, the file, the run, refusals."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import refuses

from ddpm_edu import (
    SAMPLERS,
    CheckpointError,
    Cond,
    OptionError,
    Schedule,
    ShapeError,
    last,
    load,
    save,
)
from ddpm_edu.cli import main
from ddpm_edu.datasets.painted import painted_digits, prompts
from ddpm_edu.diffusion import Dynamic
from ddpm_edu.files.tensors import load_tensors
from ddpm_edu.metrics.frechet import psnr
from ddpm_edu.metrics.obedience import fidelity
from ddpm_edu.networks.unet import SpaceToDepth
from ddpm_edu.systems.cascade import Cascade, embed_noise
from ddpm_edu.systems.editing import enlarged
from ddpm_edu.training import cascade as module
from ddpm_edu.training.cascade import (
    PAINTED_IMAGEN,
    begin,
    halved,
    noised_ones,
    pixels,
    train_cascade,
)

PROMPT = "a large red seven on a blue ground, top left"
TINY = replace(
    PAINTED_IMAGEN,
    up=replace(PAINTED_IMAGEN.up, channels=8),
    train_base=replace(PAINTED_IMAGEN.train_base, steps=3, batch_size=8, save_every=2),
    train_up=replace(PAINTED_IMAGEN.train_up, steps=3, batch_size=8, save_every=2),
    n=48,
)


@pytest.fixture(scope="module")
def cascade():
    """Random weights everywhere, so that nothing is 0."""
    made = begin(TINY)
    torch.manual_seed(1)
    for part in (*(made.base.model.get_submodule(name) for name in TINY.learns), made.up):
        for p in part.parameters():
            torch.nn.init.normal_(p, std=0.1)
    return made


# ---------------------------------------------------------------- dynamic thresholding


def test_dynamic_thresholding_by_hand():
    """Each picture by its own percentile; one that is inside [-1, 1] stays what it is."""
    x = torch.linspace(-4, 4, 101).expand(2, 101).clone()
    x[1] /= 8
    held = Dynamic(0.5)(x)
    assert held[0].abs().max() == 1 and torch.equal(held[1], x[1])
    torch.testing.assert_close(held[0], (x[0] / 2).clamp(-1, 1))  # half of them within 2
    torch.testing.assert_close(Dynamic(1.0)(x)[0], x[0] / 4)  # only divided
    assert torch.equal(Dynamic(0.9)(x.view(2, 1, 1, 101)).view(2, 101), Dynamic(0.9)(x))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_holds_x0_hat(name):
    """A model that answers far outside of the pictures: without `clip` it leaves them, with it not."""
    schedule, wild = Schedule.cosine(100), lambda x_t, t, cond: 3 * torch.ones_like(x_t)
    x_T = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    run = lambda clip: list(
        SAMPLERS[name](
            wild, schedule, x_T, 5, predict="x_0", clip=clip, generator=[torch.Generator()] * 2
        )
    )
    assert max(step.x0_hat.abs().max() for step in run(None)) == 3
    for step in run(Dynamic()):
        assert torch.equal(step.x0_hat, torch.ones_like(x_T))
        s, n = schedule.signal_noise(step.t)
        torch.testing.assert_close(s * step.x0_hat + n * step.eps, step.x_t, rtol=0, atol=1e-5)


@pytest.mark.parametrize("percentile", [-0.1, 1.5, None, "all", True])
def test_refused_percentiles(percentile):
    with refuses(OptionError, "percentile"):
        Dynamic(percentile)


# ---------------------------------------------------------------- drawing


def test_a_picture_depends_on_its_own_prompt_and_seed(cascade):
    both = cascade.draw(
        [PROMPT, "a small pink two on a black ground, centre"], seeds=[5, 9], steps=3
    )
    alone = cascade.draw([PROMPT], seeds=5, steps=3)
    assert both.shape == (2, 3, 32, 32) and both.abs().max() <= 1
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-4)


def test_the_second_stage_sees_the_enlarged_picture_and_is_told_its_noise(cascade, monkeypatch):
    seen = []

    def spy(x_t, t, cond):
        seen.append(cond)
        return torch.zeros_like(x_t)

    monkeypatch.setattr(cascade.up, "forward", spy)
    small = F.avg_pool2d(painted_digits("test", 2)[:][0], 2)
    texts = [PROMPT] * 2
    for noise in (0.0, 0.4):
        last(cascade.large(texts, small, noise=noise, steps=2, guidance=1.0))
    clean, noisy = seen[0], seen[-1]
    assert torch.equal(clean.picture, enlarged(small))
    rest = noisy.picture - (1 - 0.4**2) ** 0.5 * clean.picture
    assert rest.std().item() == pytest.approx(0.4, rel=0.05)
    told = [embed_noise(torch.full((2,), n), 16) for n in (0.0, 0.4)]
    assert torch.equal(clean.vector, told[0]) and torch.equal(noisy.vector, told[1])
    assert torch.equal(clean.context, cascade.text.encode(texts).context)


def test_guidance_drops_the_text_and_keeps_the_picture(cascade, monkeypatch):
    seen = []

    def spy(x_t, t, cond):
        seen.append(cond)
        return torch.zeros_like(x_t)

    monkeypatch.setattr(cascade.up, "forward", spy)
    last(cascade.large(PROMPT, torch.zeros(1, 3, 16, 16), noise=0.3, steps=1, guidance=2.0))
    (cond,) = seen
    assert torch.equal(cond.picture[0], cond.picture[1])
    torch.testing.assert_close(cond.context[1:], cascade.text.encode([""]).context)
    assert torch.equal(cond.vector, embed_noise(torch.tensor([0.3, 0.3]), 16))


def test_space_to_depth_folds_the_picture_too():
    class Spy(torch.nn.Module):
        def forward(self, x, t, cond):
            return cond.picture

    x, picture = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    assert torch.equal(SpaceToDepth(Spy(), 2)(x, torch.zeros(2), Cond(picture=picture)), picture)
    with refuses(ShapeError, "cond.picture"):
        SpaceToDepth(Spy(), 2)(x, torch.zeros(2), Cond(picture=torch.zeros(2, 3, 4, 4)))


@pytest.mark.parametrize(
    "options, error, word",
    [
        (dict(prompts=[]), OptionError, "prompts"),
        (dict(prompts=PROMPT, seeds=[1, 2, 3], steps=0), OptionError, "steps"),
        (dict(prompts=PROMPT, steps=2.5), OptionError, "steps"),
        (dict(prompts=PROMPT, guidance=-1), OptionError, "guidance"),
        (dict(prompts=PROMPT, clip=-1), OptionError, "clip"),
        (dict(prompts=PROMPT, clip="dynamic"), OptionError, "clip"),
        (dict(prompts=PROMPT, sampler="best"), OptionError, "sampler"),
    ],
)
def test_refused_at_the_call(cascade, options, error, word):
    with refuses(error, word):
        cascade.small(**options)


def test_refused_small_pictures_and_noise(cascade):
    small = torch.zeros(1, 3, 16, 16)
    with refuses(ShapeError, "small"):
        cascade.large(PROMPT, torch.zeros(1, 3, 8, 8))
    with refuses(ShapeError, "small"):
        cascade.large([PROMPT] * 2, small)
    for noise in (-0.1, 2, float("nan"), "much"):
        with refuses(OptionError, "noise"):
            cascade.large(PROMPT, small, noise=noise)


@pytest.mark.parametrize(
    "part, change", [("base", {"vector": 3}), ("up", {"in_channels": 12}), ("up", {"vector": 0})]
)
def test_parts_that_do_not_fit(cascade, part, change):
    c = cascade.config
    with refuses(OptionError, part):
        replace(c, **{part: replace(getattr(c, part), **change)})


# ---------------------------------------------------------------- the file


def test_the_file_holds_what_differs(cascade, tmp_path):
    """The text encoder is the base system's; nothing else of it is taken."""
    path = tmp_path / "x.safetensors"
    save(path, cascade, cascade.meta, base="painted", dtype=torch.int8)
    names = load_tensors(path)[0]
    assert {name.partition(".")[0] for name in names} == {"base", "up", "schedule"}
    parts = tuple(f"base.model.{part}." for part in TINY.learns)
    assert all(name.startswith(parts) for name in names if name.startswith("base"))
    again = load(path)
    assert isinstance(again, Cascade) and again.config == cascade.config
    own, text = again.state_dict(), load("painted").text.state_dict()
    assert {n.partition(".")[0] for n in own} == {"base", "up", "text"}
    assert all(torch.equal(own[f"text.{name}"], w) for name, w in text.items())
    inner = load("painted").unet.mid.state_dict()
    assert all(torch.equal(own[f"base.model.mid.{name}"], w) for name, w in inner.items())
    for name, w in cascade.state_dict().items():
        torch.testing.assert_close(own[name], w, rtol=0, atol=w.abs().max().item() / 200)
    assert torch.equal(again.schedule.beta, cascade.schedule.beta)
    x, y = (made.draw(PROMPT, steps=2) for made in (again, load(path)))
    assert torch.equal(x, y)


def test_a_tensor_too_many_is_refused(cascade, tmp_path):
    path = tmp_path / "x.safetensors"
    cascade.extra = torch.nn.Linear(2, 2)
    save(path, cascade, base="painted")
    del cascade.extra
    with refuses(CheckpointError, "unexpected", "extra"):
        load(path)


# ---------------------------------------------------------------- the run


def test_pictures_and_texts(cascade):
    data = painted_digits("train", 48)
    large = pixels(cascade, data, 48)
    (x_0, cond), index = large[torch.tensor([3, 40])], torch.tensor([3, 40])
    assert torch.equal(x_0, data[index][0])
    torch.testing.assert_close(cond, cascade.text.encode(data.captions(index)))
    small = halved(large)[index][0]
    assert (small - F.avg_pool2d(x_0, 2)).abs().max() <= 1 / 255 + 1e-6  # bytes


def test_what_up_learns_from(cascade):
    """Its own enlarged picture with noise of its level; the level stays where the text is dropped."""
    large = pixels(cascade, painted_digits("train", 48), 48)
    data, index = noised_ones(large, 0.6, 16), torch.arange(48)
    (x_0, cond), level = data[index], data.level
    rest = cond.picture - (1 - level**2).sqrt().view(-1, 1, 1, 1) * enlarged(F.avg_pool2d(x_0, 2))
    torch.testing.assert_close(rest.flatten(1).std(1), level, rtol=0.06, atol=1e-6)
    assert 0 <= level.min() and 0.4 < level.max() <= 0.6 and level.median() < 0.25
    uncond = data.uncond(index)
    assert torch.equal(uncond.vector, cond.vector) and uncond.picture is None
    assert torch.equal(uncond.context, cascade.text.encode([""]).context)
    assert torch.equal(data[index][1].picture, cond.picture)  # the same again
    assert not noised_ones(large, 0.0, 16).level.any()


def test_both_learn_and_the_rest_stays():
    before, made = begin(TINY).state_dict(), train_cascade(TINY)
    changed = {k for k, w in made.state_dict().items() if not torch.equal(w, before[k])}
    parts = tuple(f"base.model.{part}." for part in TINY.learns)
    assert all(k.startswith((*parts, "up.")) for k in changed)
    assert all(any(k.startswith(part) for k in changed) for part in (*parts, "up."))
    assert not any(p.requires_grad for p in made.parameters())


def test_a_run_that_stopped_goes_on(tmp_path):
    """Bit for bit, whichever part it was in."""

    class Stop(Exception):
        pass

    def stopping(part):
        def log(steps):
            for step in steps:
                yield step
                if part == "up" and step.step == 2:
                    raise Stop

        return log

    file, whole = tmp_path / "run.safetensors", train_cascade(TINY).state_dict()
    with pytest.raises(Stop):
        train_cascade(TINY, file, stopping)
    assert (tmp_path / "run_up.safetensors").exists()
    again = train_cascade(TINY, file).state_dict()
    assert all(torch.equal(again[name], w) for name, w in whole.items())


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(module.CASCADE_RECIPES, "painted-imagen", TINY)
    out = tmp_path / "x.safetensors"
    assert main(["train", "painted-imagen", "--out", str(out)]) == 0
    made = load(out)
    assert made.meta["train"]["base"]["updates"] == made.meta["train"]["up"]["updates"] == 3
    assert made.draw(PROMPT, steps=2).shape == (1, 3, 32, 32)
    assert main(["train", "painted-imagen", "--out", str(out), "--steps", "3"]) == 2
    for command in (["sample"], ["txt2img", PROMPT]):  # both say how it draws
        assert main([*command, "--model", str(out), "--out", str(tmp_path / "x.png")]) == 2
        assert ".draw(prompts)" in capsys.readouterr().err


# ---------------------------------------------------------------- the one that ships


@pytest.fixture(scope="module")
def ship():
    return load("painted-imagen")


def test_what_ships_obeys(ship):
    """24 prompts, by the five words read back; all of 500: benchmarks/beyond.py cascade."""
    texts = prompts(24, seed=5, held=False)
    assert fidelity(ship.draw(texts), texts)["all"] >= 0.75
    assert set(ship.meta["train"]) >= {"base", "up", "device", "date", "torch"}


def test_the_second_stage_adds_what_cubic_curves_lack(ship):
    x, texts = painted_digits("test", 12, seed=1)[:]
    small = F.avg_pool2d(x, 2)
    large = last(ship.large(texts, small, noise=0.0))
    assert psnr(x, large).mean() > psnr(x, enlarged(small)).mean() + 1


def test_without_thresholds_strong_guidance_leaves_the_pictures(ship):
    """Numbers beyond [-1, 1] by far; with either threshold none."""
    texts = prompts(6, seed=5, held=False)
    run = lambda clip: last(ship.small(texts, guidance=16.0, clip=clip)).abs().max()
    assert run(None) > 1.5
    assert run(1.0) <= 1.001 and run(Dynamic()) <= 1.001
