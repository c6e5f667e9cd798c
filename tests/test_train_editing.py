"""Models that edit: how they begin, what of them learns, and what the upscaler knows beforehand."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import refuses

from ddpm_edu import Cond, OptionError, Schedule, last, load
from ddpm_edu.cli import main
from ddpm_edu.datasets.painted import caption, painted_digits
from ddpm_edu.files.tensors import load_tensors
from ddpm_edu.metrics.frechet import psnr
from ddpm_edu.metrics.obedience import read
from ddpm_edu.systems.editing import BICUBIC, enlarged, faithful, sharpening, with_noise
from ddpm_edu.systems.pipeline import decode, edit, inpaint, text_to_image, upscale
from ddpm_edu.training import editing
from ddpm_edu.training.editing import EDIT_RECIPES, INPAINT, UPSCALE, begin, train_editing
from ddpm_edu.training.latents import encode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import editing as editing_benchmark  # noqa: E402

PROMPT = "a large red seven on a blue ground, top left"


def short(recipe, steps=3):
    run = replace(recipe.train, steps=steps, batch_size=8, save_every=2)
    return replace(recipe, n=64, train=run)


def beside(sd, recipe):
    data = painted_digits("train", 64)
    return recipe.beside(sd, encode(sd, data, 64), data)


@pytest.fixture(scope="module")
def base():
    return load("painted")


# ---------------------------------------------------------------- how they begin


def test_inpainting_begins_as_the_base(base):
    """Whatever it sees beside z_t."""
    sd, x, t = begin(INPAINT), torch.randn(2, 4, 8, 8), torch.tensor([5, 900])
    context = base.text.encode([PROMPT] * 2).context
    wanted = base.unet(x, t, Cond(context))
    assert torch.equal(sd.unet(x, t, Cond(context, picture=torch.randn(2, 5, 8, 8))), wanted)
    assert (sd.config.unet.in_channels, sd.config.unet.out_channels) == (9, 4)


@torch.no_grad()
def test_the_upscaler_begins_with_what_is_known(base):
    """It adds nothing to the mean, so that one step gives the enlarged picture's latent."""
    sd = begin(UPSCALE)
    small = F.avg_pool2d(painted_digits("test", 3)[:][0], 2)
    z = torch.cat([sd.vae.to_latent(x[None]) for x in enlarged(small)])
    model = sharpening(sd.unet, sd.schedule)
    context = base.text.encode([PROMPT] * 3).context
    cond = Cond(context, torch.randn(3, 16), z)
    v = model(torch.randn(3, 4, 8, 8), torch.full((3,), 999), cond)
    assert (-v - z).abs().max() < 0.02  # at pure noise v = -x0_hat


@pytest.mark.parametrize("recipe", EDIT_RECIPES.values(), ids=lambda r: r.name)
def test_only_what_is_named_learns(recipe, base, tmp_path):
    sd, own = train_editing(short(recipe)), base.state_dict()
    changed = {k for k, w in sd.state_dict().items() if k not in own or not torch.equal(w, own[k])}
    parts = {name for name in recipe.trained if any(k.startswith(f"unet.{name}") for k in changed)}
    assert parts == set(recipe.trained)
    assert all(k.removeprefix("unet.").startswith(recipe.trained) for k in changed)
    assert not any(p.requires_grad for p in sd.parameters())


@pytest.mark.parametrize("recipe", EDIT_RECIPES.values(), ids=lambda r: r.name)
def test_a_run_that_stopped_goes_on(recipe, tmp_path):
    """Bit for bit."""

    class Stop(Exception):
        pass

    def stopping(steps):
        for step in steps:
            yield step
            if step.step == 2:
                raise Stop

    recipe, file = short(recipe), tmp_path / "run.safetensors"
    whole = train_editing(recipe).state_dict()
    with pytest.raises(Stop):
        train_editing(recipe, file, stopping)
    again = train_editing(recipe, file).state_dict()
    assert all(torch.equal(again[name], w) for name, w in whole.items())


def test_a_dropped_text_keeps_the_picture_and_its_noise():
    sd = begin(UPSCALE)
    data, index = beside(sd, UPSCALE), torch.tensor([3, 7, 11])
    (_, cond), uncond = data[index], data.uncond(index)
    assert torch.equal(uncond.vector, cond.vector) and cond.vector.shape == (3, 16)
    assert uncond.context.shape[0] == 1 and uncond.picture is None
    assert cond.picture.shape == (3, 4, 8, 8)


def test_masked_pictures_hide_what_is_masked():
    """The latent beside z_t does not change with what lies under the mask."""
    sd = begin(INPAINT)
    holes = beside(sd, INPAINT).picture
    assert holes.shape == (64, 5, 8, 8) and set(holes[:, 0].unique().tolist()) == {0, 1}
    everything = holes[:, 0].flatten(1).all(1).nonzero()[:, 0]
    assert len(everything) > 3  # all masked: grey, whatever it was
    assert (holes[everything, 1:] - holes[everything[:1], 1:]).abs().max() < 1e-5


def test_the_command_writes_what_differs(tmp_path, monkeypatch):
    monkeypatch.setitem(editing.EDIT_RECIPES, "painted-inpaint", short(INPAINT))
    out = tmp_path / "x.safetensors"
    assert main(["train", "painted-inpaint", "--out", str(out), "--steps", "2"]) == 0
    assert out.stat().st_size < 500_000
    assert not any(k.startswith(("vae", "text", "unet.mid")) for k in load_tensors(out)[0])
    sd = load(out)
    assert sd.config.unet.in_channels == 9 and sd.meta["train"]["updates"] == 2
    assert main(["train", "painted-inpaint", "--out", str(tmp_path / "no" / "x.safetensors")]) == 2


# ---------------------------------------------------------------- what the upscaler knows


@pytest.mark.parametrize("t", [0, 100, 500.5, 990])
def test_sharpening_starts_from_the_gaussian_mean(t):
    """Precisions add: s^2 / n^2 of x_t / s, 1 / c^2 of z; a model of zeros returns that mean."""
    schedule, c = Schedule.cosine(), BICUBIC
    x, z = (torch.randn(2, 4, 8, 8, dtype=torch.float64) for _ in range(2))
    s, n = schedule.signal_noise(t)
    wanted = (s / n**2 * x + z / c**2) / (s**2 / n**2 + 1 / c**2)
    std = (s**2 / n**2 + 1 / c**2) ** -0.5
    times = torch.full((2,), float(t))
    for answer in (0.0, 1.5):
        model = lambda x_t, t, cond: torch.full_like(x_t, answer)
        v = sharpening(model, schedule)(x, times, Cond(picture=z))
        x0_hat = s * x - n * v
        torch.testing.assert_close(x0_hat, wanted + answer * std, rtol=0, atol=1e-5)


def test_noise_keeps_the_spread():
    z, eps = torch.randn(2, 50_000).view(2, 1, 5, 10_000)
    z, eps = z[None], eps[None]
    for level in (0, 0.3, 1):
        assert with_noise(z, level, eps).std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(with_noise(z, 0, eps), z) and torch.equal(with_noise(z, 1, eps), eps)
    both = with_noise(z.expand(2, -1, -1, -1), torch.tensor([0.0, 1.0]), eps)
    assert torch.equal(both, torch.cat([z, eps]))


def test_faithful_pictures_have_the_means_of_the_small_one():
    small, y = 0.5 * torch.rand(2, 3, 4, 5), 0.3 * torch.rand(2, 3, 8, 10)
    made = faithful(y, small)
    torch.testing.assert_close(F.avg_pool2d(made, 2), small)
    again = faithful(made, small)
    torch.testing.assert_close(again, made)
    inside = made - F.interpolate(F.avg_pool2d(made, 2), scale_factor=2)
    torch.testing.assert_close(inside, y - F.interpolate(F.avg_pool2d(y, 2), scale_factor=2))


# ---------------------------------------------------------------- in use


@pytest.mark.parametrize("size", [(16, 16), (15, 13), (1, 1)])
def test_upscaling_any_size(size):
    sd, small = begin(UPSCALE), 2 * torch.rand(1, 3, *size) - 1
    y = edit(sd, PROMPT, small, progress=False)
    assert y.shape[2:] == (2 * size[0], 2 * size[1])
    if size != (1, 1):
        assert (F.avg_pool2d(y, 2) - small).abs().mean() < 0.1


def test_an_upscaler_only_enlarges():
    sd, x = begin(UPSCALE), torch.zeros(1, 3, 16, 16) - 1
    mask = torch.ones(1, 1, 16, 16)
    for call in (
        lambda: text_to_image(sd, PROMPT),
        lambda: inpaint(sd, PROMPT, x, mask),
        lambda: edit(sd, PROMPT, x, mask=mask),
        lambda: edit(sd, PROMPT, x, strength=0.5),
        lambda: upscale(sd, PROMPT, x, noise=1.5),
        lambda: upscale(sd, PROMPT, x, noise=float("nan")),
        lambda: upscale(load("painted"), PROMPT, x),
        lambda: edit(begin(INPAINT), PROMPT, x),
    ):
        with refuses(OptionError, "enlarg|noise|mask"):
            call()


@pytest.mark.parametrize("recipe", ["base", INPAINT], ids=["4 channels", "9 channels"])
def test_edit_pastes_exactly_and_cuts_back(recipe, base):
    """Of any size, soft masks too, several pictures at once, alpha as the mask."""
    sd = base if recipe == "base" else begin(recipe)
    x = 2 * torch.rand(2, 3, 27, 35) - 1
    mask = torch.zeros(2, 1, 27, 35)
    mask[0, 0, 3:20, 5:18], mask[1, 0, :, 20:] = 1, 0.6
    y = edit(sd, [PROMPT] * 2, x, mask=mask, steps=3, progress=False)
    assert y.shape == x.shape and torch.equal(
        y[(mask == 0).expand_as(x)], x[(mask == 0).expand_as(x)]
    )
    assert ((y - x).abs() * mask).flatten(1).amax(1).min() > 0.1
    alone = edit(sd, PROMPT, x[1:], mask=mask[1:], steps=3, seeds=1, progress=False)
    torch.testing.assert_close(alone, y[1:], rtol=0, atol=1e-4)
    see_through = torch.cat([x[:1], 1 - mask[:1]], 1)
    by_alpha = edit(sd, PROMPT, see_through, steps=3, progress=False)
    on_white = torch.where(mask[:1] > 0, torch.ones(1), x[:1])
    wanted = edit(sd, PROMPT, on_white, mask=mask[:1], steps=3, progress=False)
    torch.testing.assert_close(by_alpha, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("recipe", ["base", INPAINT], ids=["4 channels", "9 channels"])
def test_one_pixel(recipe, base):
    sd, x = (
        base if recipe == "base" else begin(recipe),
        torch.tensor([0.9, -0.3, -0.9]).view(1, 3, 1, 1),
    )
    for how in [dict(mask=torch.ones(1, 1))] + [dict(strength=0.5)] * (recipe == "base"):
        y = edit(sd, PROMPT, x, steps=4, progress=False, **how)
        assert y.shape == (1, 3, 1, 1) and y.isfinite().all()


def test_masks_of_all_and_of_nothing(base):
    x, ones = painted_digits("test", 1)[:][0], torch.ones(1, 1, 32, 32)
    y = edit(base, PROMPT, x, mask=ones, steps=10, guidance=3.0, progress=False)
    drawn = decode(base, last(text_to_image(base, PROMPT, steps=10, guidance=3.0)))
    assert psnr(y, drawn).item() < 60  # another seed's noise, the same kind of picture
    for empty in (0 * ones, 0.4 * ones):
        with refuses(OptionError, "mask is nowhere 1"):
            edit(base, PROMPT, x, mask=empty, progress=False)


def test_steps_of_an_inpainting_look_blended(base):
    """Outside of the mask each x_prev is the picture's latent with the noise of its time."""
    x, mask = painted_digits("test", 1)[:][0], torch.zeros(1, 1, 32, 32)
    mask[:, :, 8:24, 8:24] = 1
    steps = list(inpaint(base, PROMPT, x, mask, steps=6))
    assert [s.x_prev.equal(t.x_t) for s, t in zip(steps, steps[1:])] == [True] * 5
    out = (F.interpolate(mask, (8, 8)) == 0).expand_as(steps[0].x_t)
    z_0, eps = steps[-1].x_prev, []
    for step in steps[1:]:
        s, n = base.schedule.signal_noise(step.t)
        eps.append((step.x_t - s * z_0)[out] / n)
        assert torch.equal(step.x0_hat[out], z_0[out])
    assert all(torch.allclose(e, eps[0], rtol=0, atol=1e-3) for e in eps)


def test_what_ships_paints_what_is_asked_for():
    """A sample of benchmarks/editing.py inpainting."""
    sd = load("painted-inpaint")
    x, asked, mask = editing_benchmark.other_digits(40)
    y = editing_benchmark.in_parts(sd, [caption(scene) for scene in asked], x, mask=mask)
    assert sum(a == b for a, b in zip(asked, read(y))) >= 36
    assert torch.equal(y[(mask == 0).expand_as(x)], x[(mask == 0).expand_as(x)])


def test_what_ships_enlarges_better_than_cubic_curves():
    """A sample of benchmarks/editing.py upscaling; told of noise, it takes it away."""
    figures = editing_benchmark.noisy_ones(load("painted-upscale"), 40, 0.2)[0]
    x = painted_digits("test", 40, seed=1, held=None)[:][0]
    plain = psnr(x, enlarged(F.avg_pool2d(x, 2))).mean().item()
    assert figures["clean"] > plain + 3 and figures["noisy"] > figures["noisy_bicubic"] + 1
