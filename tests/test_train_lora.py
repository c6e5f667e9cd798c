"""A LoRA that learns beside a frozen system: what changes and what does not, how it is kept and gone on with."""

from dataclasses import replace

import pytest
import torch
from helpers import refuses
from test_stable_diffusion import TINY

from ddpm_edu import Cond, loss
from ddpm_edu.errors import CheckpointError, DataError
from ddpm_edu.files.lora import load_lora, save_lora
from ddpm_edu.networks.lora import attach, detach, low_rank
from ddpm_edu.networks.unet import UNetConfig
from ddpm_edu.systems.system import build
from ddpm_edu.training.latents import encode
from ddpm_edu.training.lora import Learning, keeping, train_lora
from ddpm_edu.training.train import TrainConfig

LEVELS = dict(channels=16, mult=(1, 2), depth=(0, 1), middle=1, heads=(2, 2), blocks=1, groups=8)
SMALL = replace(TINY, unet=UNetConfig(context=32, **LEVELS))
CONFIG = TrainConfig(steps=6, batch_size=4, lr=3e-2, warmup=1, save_every=2, p_uncond=0.2)


class Pictures:
    """Six of noise, one text for all."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        g = torch.Generator().manual_seed(3)
        return torch.rand(6, 3, 32, 32, generator=g)[index] * 2 - 1, ["a cat"] * len(index)


@pytest.fixture(scope="module")
def sd():
    torch.manual_seed(0)
    return build(SMALL)


@pytest.fixture(scope="module")
def data(sd):
    return encode(sd, Pictures())


def predicted(model, data):
    x, t = (
        torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)),
        torch.tensor([5, 700]),
    )
    with torch.no_grad():
        return model(x, t, data[torch.tensor([0, 1])][1])


def test_only_the_lora_learns_and_the_system_is_as_before(sd, data, tmp_path):
    before = {k: w.clone() for k, w in sd.state_dict().items()}
    base = predicted(sd.unet, data)
    *_, step = train_lora(sd, data, CONFIG, 3)
    assert step.step == 6 and list(sd.state_dict()) == list(before)
    assert all(torch.equal(w, before[k]) for k, w in sd.state_dict().items())
    average = predicted(step.ema, data)
    assert (average - base).abs().max() > 1e-3  # what was learned draws
    shared = {id(w) for w in sd.unet.parameters()}
    frozen = [w for k, w in step.ema.frozen[0].named_parameters() if ".changes." not in k]
    assert {id(w) for w in frozen} == shared  # one copy of the large weights
    save_lora(tmp_path / "mine.safetensors", step.ema.lora, sd)
    again = load_lora(tmp_path / "mine.safetensors", sd)
    attach(sd, again)
    assert torch.equal(predicted(sd.unet, data), average)
    detach(sd)


def test_it_goes_on_from_a_checkpoint_to_the_last_bit(sd, data, tmp_path):
    *_, whole = train_lora(sd, data, CONFIG, 3)
    file = tmp_path / "run.safetensors"
    run = train_lora(sd, data, CONFIG, 3, checkpoint=file)
    for step in run:
        if step.step == 3:  # saved at 2
            run.close()
            break
    assert not any("changes" in k for k in sd.state_dict())  # given up: taken off
    assert file.stat().st_size < 4 * sum(w.numel() for w in sd.unet.parameters()) / 2
    *_, later = train_lora(sd, data, CONFIG, 3, checkpoint=file, recompute=True)
    pairs = zip(whole.ema.lora.parameters(), later.ema.lora.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with refuses(CheckpointError, "run.safetensors"):
        list(train_lora(sd, data, CONFIG, 2, checkpoint=file))
    assert not any("changes" in k for k in sd.state_dict())


def test_a_system_in_bfloat16(data):
    """Its A and B are float32 all the same."""
    torch.manual_seed(0)
    half = build(SMALL, dtype=torch.bfloat16)
    *_, step = train_lora(half, data, CONFIG, 2)
    assert {w.dtype for w in step.ema.lora.parameters()} == {torch.float32}
    assert half.unet.conv_in.weight.dtype == torch.bfloat16 and step.loss == step.loss
    assert predicted(step.ema, data).dtype == torch.float32


def test_a_picture_is_learned(sd, data):
    """In a few dozen updates the loss falls well below that of the frozen system."""
    config = TrainConfig(steps=40, batch_size=6, lr=2e-2, warmup=4, p_uncond=0)
    losses = [step.loss for step in train_lora(sd, data, config, 8, where=r"attn|ff|conv")]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10]), losses
    assert isinstance(data.uncond, Cond)


class Others(Pictures):
    """Other pictures, of another text."""

    def __getitem__(self, index):
        return -super().__getitem__(index)[0], ["a dog"] * len(index)


def change(sd, lora, data) -> float:
    """The mean square of what it changes in predictions of these pictures."""
    g = torch.Generator().manual_seed(5)
    z_0, cond = data[torch.arange(6)]
    x_t, t = z_0 + torch.randn(z_0.shape, generator=g), torch.tensor([5, 100, 300, 500, 700, 900])
    with torch.no_grad():
        before = sd.unet(x_t, t, cond)
        attach(sd, lora)
        after = sd.unet(x_t, t, cond)
        detach(sd)
    return (after - before).square().mean().item()


def test_what_is_kept_changes_less(sd, data):
    config, others = replace(CONFIG, steps=30, batch_size=6, p_uncond=0), encode(sd, Others())
    learn = dict(rank=4, where=r"attn|ff|conv")
    *_, alone = train_lora(sd, data, config, **learn)
    *_, kept = train_lora(sd, data, config, keep=others, **learn)
    moved, held = (change(sd, step.ema.lora, others) for step in (alone, kept))
    assert held < moved / 2, (held, moved)


def test_the_loss_that_keeps(sd, data):
    """By hand, with the same noise: L alone while B is 0; then (L + 3 K) / 4. p_uncond = 1:
    the kept ones have no text."""
    others, config = encode(sd, Others()), replace(CONFIG, p_uncond=1.0)
    lora = low_rank(sd, 2)
    attach(sd, lora)
    try:
        model, batch = Learning(sd.unet, lora), data[torch.arange(4)]
        for learned in (False, True):
            if learned:
                for one in lora.changes:
                    torch.nn.init.normal_(one.up.weight, std=0.3)
            got = keeping(sd, others, config)(model, batch, torch.Generator().manual_seed(2))
            g = torch.Generator().manual_seed(2)
            t, eps = torch.randint(1000, (4,), generator=g), torch.randn(4, 4, 4, 4, generator=g)
            ask = dict(t=t, eps=eps, predict=sd.predict)
            expected = loss(sd.unet, sd.schedule, *batch, **ask)
            z_0, _ = others[torch.randint(6, (2,), generator=g)]
            torch.rand(2, generator=g)
            t, eps = torch.randint(1000, (2,), generator=g), torch.randn(2, 4, 4, 4, generator=g)
            x_t = sd.schedule.q_sample(z_0, t, eps)
            empty = others.uncond.map(lambda part: part.expand(2, *part.shape[1:]))
            after = sd.unet(x_t, t, empty)
            lora.scale = 0.0
            K = (after - sd.unet(x_t, t, empty)).square().mean()
            lora.scale = 1.0
            torch.testing.assert_close(got, (expected + 3 * K) / 4)
            assert (K > 1e-6) == learned
        got.backward()
        assert all(w.grad is not None for w in lora.parameters())
    finally:
        detach(sd, lora)
    with refuses(DataError, "keep"):
        list(train_lora(sd, data, config, 2, keep=replace(others, z_0=others.z_0[:0])))


def test_what_keeps_goes_on_from_a_checkpoint(sd, data, tmp_path):
    how = dict(rank=2, keep=encode(sd, Others()))
    *_, whole = train_lora(sd, data, CONFIG, **how)
    file = tmp_path / "run.safetensors"
    run = train_lora(sd, data, CONFIG, checkpoint=file, **how)
    for step in run:
        if step.step == 3:
            run.close()
            break
    *_, later = train_lora(sd, data, CONFIG, checkpoint=file, **how)
    pairs = zip(whole.ema.lora.parameters(), later.ema.lora.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
