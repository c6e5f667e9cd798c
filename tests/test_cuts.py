"""Cuts in buckets, and their latents with SDXL's numbers beside the text. Notebook 13."""

from dataclasses import replace

import pytest
import torch
from helpers import refuses

from ddpm_edu import Schedule
from ddpm_edu.datasets.buckets import buckets
from ddpm_edu.datasets.originals import WIDEST, caption, excess, originals
from ddpm_edu.errors import DataError, OptionError, ScheduleError
from ddpm_edu.metrics.cuts import aesthetic
from ddpm_edu.networks.text import TextConfig
from ddpm_edu.networks.unet import UNetConfig
from ddpm_edu.networks.vae import VAEConfig
from ddpm_edu.systems.pipeline import condition
from ddpm_edu.systems.system import SystemConfig, build
from ddpm_edu.training.cuts import WithText, cuts, encode_cuts, with_ids
from ddpm_edu.training.resume import Run
from ddpm_edu.training.train import TrainConfig, train

SHAPES = buckets(32, 4, WIDEST)
SHORT = dict(layers=2, heads=2, hidden=32, vocab=300, length=12)
TINY = SystemConfig(
    "tiny SDXL",
    UNetConfig(
        in_channels=4, channels=8, mult=(1, 2), depth=(0, 1), middle=1, heads=(2, 2), context=40,
        vector=24 + 6 * 8, blocks=1, groups=4,
    ),
    VAEConfig(channels=8, mult=(1, 1, 1), blocks=1, groups=4),
    (TextConfig(width=16, **SHORT), TextConfig(width=24, projection=24, pad="!", **SHORT)),
    layer="penultimate",
    vector="sdxl",
    number_dim=8,
    zero_empty=True,
)  # fmt: skip


def letters(texts, pad):
    """A tokenizer for the test: one token a word, 1 begins, 299 ends."""
    rows = []
    for text in texts:
        ids = [1, *(2 + sum(map(ord, word)) % 290 for word in text.split()), 299]
        rows.append(ids + [299 if pad == "eot" else 0] * (12 - len(ids)))
    return torch.tensor(rows)


@pytest.fixture(scope="module")
def data():
    return cuts(originals("train", 400), SHAPES)


@pytest.fixture(scope="module")
def sd():
    torch.manual_seed(0)
    sd = build(TINY)
    sd.text.tokenizer = letters
    return sd


@pytest.fixture(scope="module")
def latents(sd, data):
    return encode_cuts(sd, data)


def batch(data, size=8, seed=0):
    return data.order(size, torch.Generator().manual_seed(seed))[:size]


def test_a_batch_has_the_shape_of_its_bucket(data):
    for seed in range(4):
        index = batch(data, seed=seed)
        x_0, captions = data[index]
        shape = SHAPES[data.bucket[index[0]]]
        assert x_0.shape == (8, 3, *shape)
        assert captions == [caption(data.originals.original(i)) for i in index.tolist()]


def test_crops_fill_what_hangs_over(data):
    places = data.where(torch.arange(len(data)))
    over = torch.tensor([excess(p.original, p.target) for p in places])
    assert (data.crop >= 0).all() and (data.crop <= over).all()
    assert (data.crop == over)[over > 0].any() and (data.crop == 0)[over > 0].any()
    square = cuts(data.originals, [(32, 32)])
    assert square.crop.max() > 30 > data.crop.max()


def test_a_batch_of_two_buckets_is_refused(data, latents):
    mixed = torch.stack([(data.bucket == k).nonzero()[0, 0] for k in (0, 3)])
    for refusing in (data, latents):
        with pytest.raises(DataError, match="buckets"):
            refusing[mixed]


def test_latents_and_conditions_are_what_sampling_uses(sd, data, latents):
    index = batch(data, seed=2)
    z_0, cond = latents[index]
    x_0, captions = data[index]
    assert torch.allclose(z_0, sd.vae.to_latent(x_0), atol=1e-5)
    for k, (text, place) in enumerate(zip(captions, data.where(index))):
        numbers = dict(original_size=place.original, crop=place.crop, target_size=place.target)
        one = condition(sd, [text], **numbers, zero_empty=True)
        none = condition(sd, [""], **numbers, zero_empty=True)
        dropped = latents.uncond(index[k : k + 1])
        assert torch.allclose(cond.context[k], one.context[0], atol=1e-5)
        assert torch.allclose(cond.vector[k], one.vector[0], atol=1e-5)
        assert torch.allclose(dropped.context, none.context)
        assert torch.allclose(dropped.vector, none.vector, atol=1e-6)
        assert not dropped.vector[0, :24].any() and dropped.vector[0, 24:].any()


def test_without_sizes_the_numbers_are_those_of_zeros(sd, data):
    blind = encode_cuts(sd, data, sizes=False)
    index = batch(data)
    zeros = condition(
        sd, [""], original_size=(0, 0), crop=(0, 0), target_size=(0, 0), zero_empty=True
    )
    assert torch.allclose(blind[index][1].vector[:, 24:], zeros.vector[0, 24:].expand(8, -1))


def test_a_refiner_learns_the_score_in_place_of_the_target(data):
    """Five numbers, the last how sharp the picture is; its text is the second encoder's."""
    unet = replace(TINY.unet, context=24, vector=24 + 5 * 8)
    config = replace(TINY, unet=unet, text=TINY.text[1:], vector="refiner", zero_empty=False)
    sd = build(config)
    sd.text.tokenizer = letters
    latents, index = encode_cuts(sd, data), batch(data, seed=3)
    x_0, captions = data[index]
    assert latents.numbers.shape == (len(data), 5)
    assert torch.allclose(latents.numbers[index, 4], aesthetic(x_0), atol=1e-5)
    z_0, cond = latents[index]
    for k, (text, place) in enumerate(zip(captions, data.where(index))):
        told = dict(original_size=place.original, crop=place.crop, target_size=(1, 1))
        one = condition(sd, [text], **told, score=latents.numbers[index[k], 4].item())
        assert torch.allclose(cond.context[k], one.context[0], atol=1e-5)
        assert torch.allclose(cond.vector[k], one.vector[0], atol=1e-5)
    empty = sd.text.encode([""])  # a refiner's dropped text is the encoding of "", not zeros
    assert torch.allclose(latents.uncond(index).context[0], empty.context[0], atol=1e-6)


def test_strays_are_a_share_that_goes_to_any_bucket():
    many = originals("train", 3000)
    usual, strays, all_ = (cuts(many, SHAPES, stray=share) for share in (0.0, 0.3, 1.0))
    moved = (strays.bucket != usual.bucket).float().mean().item()
    assert moved == pytest.approx(0.3 * 6 / 7, abs=0.03)  # one of seven stays by chance
    assert (all_.bucket.bincount() / len(many) - 1 / 7).abs().max() < 0.03
    assert torch.equal(strays.bucket, cuts(many, SHAPES, stray=0.3).bucket)
    over = [excess(p.original, p.target) for p in strays.where(torch.arange(len(many)))]
    assert (strays.crop >= 0).all() and (strays.crop <= torch.tensor(over)).all()
    assert strays.crop.double().mean() > 1.5 * usual.crop.double().mean()


@pytest.mark.parametrize(
    "error, words, change",
    [
        (OptionError, "stray", {"stray": 2}),
        (OptionError, "stray", {"stray": -0.1}),
        (OptionError, "stray", {"stray": float("nan")}),
        (OptionError, "at least one", {"shapes": []}),
        (DataError, r"bucket \(4, 64\)", {"shapes": [(4, 64), (32, 32)]}),
    ],
)
def test_cuts_that_cannot_be(data, error, words, change):
    with refuses(error, words):
        cuts(data.originals, **{"shapes": SHAPES, **change})


def test_a_bucket_that_lost_its_pictures_is_named(data, sd):
    with refuses(DataError, r"bucket \(32, 32\)"):
        replace(data, bucket=torch.where(data.bucket == SHAPES.index((32, 32)), 0, data.bucket))


# ---------------------------------------------------------------- training on them


def test_training_takes_batches_of_one_bucket_and_goes_on_bit_for_bit(sd, latents, tmp_path):
    """Nine updates cross into a second epoch."""
    config = TrainConfig(steps=9, batch_size=40, predict="v", offset_noise=0.1, save_every=4)
    run = lambda **more: train(build(TINY).unet.requires_grad_(True), sd.schedule, latents, **more)
    torch.manual_seed(1)
    whole = list(run(config=config))
    torch.manual_seed(1)
    for step in run(config=config, checkpoint=tmp_path / "run.safetensors"):
        if step.step == 6:
            break
    rest = list(run(config=config, checkpoint=tmp_path / "run.safetensors"))
    assert [step.step for step in rest] == [5, 6, 7, 8, 9]
    assert [step.loss for step in rest] == [step.loss for step in whole[4:]]
    assert len(latents.order(40, torch.Generator())) // 40 < 9


def test_a_dropped_text_keeps_its_numbers(sd, latents):
    """p_uncond = 1: the denoiser sees no text, but each picture's own numbers."""
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x_t, t, cond):
            seen.append(cond)
            return x_t * self.weight

    list(train(Spy(), sd.schedule, latents, TrainConfig(steps=1, batch_size=8, p_uncond=1.0)))
    assert not seen[0].context.any() and not seen[0].vector[:, :24].any()
    assert len(seen[0].vector[:, 24:].unique(dim=0)) > 1


def test_offset_noise_is_shared_by_the_pixels_of_a_channel(sd, latents):
    """Variance 1 + s^2 of a pixel, and s^2 of covariance with each other one of its channel."""
    plain, offset = (
        Run(build(TINY).unet, latents, TrainConfig(batch_size=40, offset_noise=s), None)
        for s in (0.0, 0.5)
    )
    x_0 = torch.zeros(40, 4, 8, 8)
    a, b = (torch.cat([run.noise(x_0) for _ in range(100)]) for run in (plain, offset))
    assert a.var().item() == pytest.approx(1, abs=0.01)
    assert b.var().item() == pytest.approx(1.25, abs=0.02)
    for eps, wanted in ((a, 1 / 64), (b, 1 / 64 + 0.25)):
        assert eps.mean((2, 3)).var().item() == pytest.approx(wanted, rel=0.05)
    across = b.mean((2, 3))
    assert abs(torch.corrcoef(across.T)[0, 1].item()) < 0.06  # channels do not share it


@pytest.mark.parametrize("offset_noise", [0.0, 0.1])
def test_eps_and_a_schedule_down_to_pure_noise_are_refused(latents, tmp_path, offset_noise):
    """With v the same run goes on, offset noise or not."""
    schedule = Schedule.sqrt_linear().zero_terminal_snr()
    config = TrainConfig(steps=1, batch_size=8, predict="eps", offset_noise=offset_noise)
    model, file = build(TINY).unet.requires_grad_(True), tmp_path / "run.safetensors"
    before = model.conv_in.weight.clone()
    with refuses(ScheduleError, "eps", "v"):
        next(train(model, schedule, latents, config, checkpoint=file))
    assert torch.equal(model.conv_in.weight, before) and not file.exists()
    step = next(train(model, schedule, latents, replace(config, predict="v"), checkpoint=file))
    assert step.loss > 0 and file.exists()


def test_text_encoders_that_learn_along_start_as_the_frozen_ones_and_move(data):
    torch.manual_seed(0)
    sd = build(TINY, Schedule.sqrt_linear().zero_terminal_snr())
    sd.text.tokenizer = letters
    frozen, along = encode_cuts(sd, data), with_ids(sd, data, encode_cuts(sd, data))
    model, index = WithText(sd), batch(data)
    (z, known), (same, ids) = frozen[index], along[index]
    t = torch.full((len(index),), 700)
    assert torch.equal(z, same) and ids.context.shape == (len(index), 2, 12)
    torch.testing.assert_close(model(z, t, ids), sd.unet(z, t, known))
    dropped = model(z, t, along.uncond(index)), sd.unet(z, t, frozen.uncond(index))
    torch.testing.assert_close(*dropped)
    assert (dropped[0] - model(z, t, ids)).abs().max() > 1e-4
    before = {name: w.clone() for name, w in sd.text.state_dict().items()}
    model.requires_grad_(True)
    run = TrainConfig(steps=2, batch_size=8, predict="v", p_uncond=0.5, warmup=0)
    for step in train(model, sd.schedule, along, run):
        assert step.loss > 0
    moved = {name for name, w in sd.text.state_dict().items() if not torch.equal(w, before[name])}
    assert {name.split(".")[1] for name in moved} == {"0", "1"}
