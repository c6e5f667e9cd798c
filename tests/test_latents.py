"""latents.py: what the denoiser is trained on is what VAE and text encoder say, and a dropped text is the encoding of ""."""

import dataclasses
import math

import pytest
import torch
from helpers import refuses
from tiny_recipe import CAPTIONS, TINY, Dots
from torch import nn

from ddpm_edu import Cond
from ddpm_edu.errors import MOST_PROMPTS, DataError, ShapeError
from ddpm_edu.files.load import load, save
from ddpm_edu.networks.clip import CLIP, CLIPConfig
from ddpm_edu.networks.tokenizer import train_tokenizer
from ddpm_edu.networks.vae import VAE
from ddpm_edu.schedule import Schedule
from ddpm_edu.systems.pipeline import condition, draw
from ddpm_edu.training.latents import conditions, encode
from ddpm_edu.training.train import TrainConfig, train
from ddpm_edu.training.whole_system import assemble

POOLED = dataclasses.replace(
    TINY, unet=dataclasses.replace(TINY.unet, vector=TINY.text.projection + 6 * 2)
)


def system(plan=TINY):
    """The tiny system with random weights."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, TINY.vocab, TINY.text.length)
    config = dataclasses.replace(TINY.text, vocab=tokenizer.bpe.get_vocab_size())
    return assemble(
        plan,
        VAE(dataclasses.replace(TINY.vae, scale=1.7)),
        CLIP(CLIPConfig(config, size=8, **TINY.vision), tokenizer),
    )


@pytest.fixture(scope="module")
def sd():
    return system()


@pytest.fixture(scope="module")
def latents(sd):
    return encode(sd, Dots(), batch=7)


def test_they_are_what_vae_and_text_encoder_say(sd, latents):
    x_0, captions = Dots()[torch.arange(48)]
    assert len(latents) == 48 and latents.z_0.shape == (48, 2, 4, 4)
    assert torch.allclose(latents.z_0, 1.7 * sd.vae.encode(x_0)[0], atol=1e-5) and torch.allclose(
        latents.z_0, sd.vae.to_latent(x_0), atol=1e-5
    )
    index = torch.tensor([40, 3, 3, 17])
    z, cond = latents[index]
    assert torch.equal(z, latents.z_0[index]) and cond.vector is None and not z.requires_grad
    assert torch.allclose(
        cond.context, sd.text.encode([captions[i] for i in index]).context, atol=1e-6
    )
    assert (
        cond.context[0] - cond.context[1]
    ).abs().max() > 0.01  # another caption is told otherwise


def test_a_caption_is_encoded_once(sd):
    rows = []
    handle = sd.text.encoders[0].register_forward_pre_hook(
        lambda module, args: rows.append(len(args[0]))
    )
    latents = encode(sd, Dots(), batch=5)
    handle.remove()
    assert sum(rows) == len(CAPTIONS) + 1 and len(latents.contexts) == len(
        CAPTIONS
    )  # and one for ""


def test_a_unet_with_a_vector_is_told_the_pooled_text_and_the_sizes_too():
    """In training what sampling tells it: SDXL's vector."""
    sd = system(POOLED)
    latents, asked = (
        encode(sd, Dots(), batch=7),
        dict(original_size=(8, 8), crop=(0, 0), target_size=(8, 8)),
    )
    index = torch.tensor([40, 3, 17])
    captions, cond = Dots()[index][1], latents[index][1]
    told = condition(sd, captions, **asked)
    for got, want in ((cond, told), (latents.uncond, condition(sd, [""], **asked))):
        assert torch.allclose(got.vector, want.vector, atol=1e-6) and torch.allclose(
            got.context, want.context, atol=1e-6
        )
    assert torch.allclose(
        cond.vector[:, :12], sd.text.encode(captions).vector, atol=1e-6
    ) and cond.vector.shape == (3, 24)
    heard = []
    sd.unet.requires_grad_(True).register_forward_pre_hook(
        lambda module, args: heard.append(args[2])
    )
    next(train(sd.unet, sd.schedule, latents, TrainConfig(steps=1, batch_size=8, p_uncond=1.0)))
    assert torch.allclose(
        heard[0].vector, latents.uncond.vector.expand(8, -1)
    )  # a dropped text is dropped from both


def test_a_system_with_a_vector_is_saved(tmp_path):
    sd = system(POOLED)
    torch.nn.init.normal_(sd.unet.conv_out.weight)
    save(tmp_path / "pooled.safetensors", sd, dtype=torch.int8)
    again = load(tmp_path / "pooled.safetensors")
    drawn = draw(sd, CAPTIONS[:2], seeds=[0, 0], progress=False)
    difference = draw(again, CAPTIONS[:2], seeds=[0, 0], progress=False) - drawn
    assert (
        again.config == sd.config and difference.abs().mean() < 0.1 * drawn.std()
    )  # 8 bits a weight
    assert not torch.equal(drawn[0], drawn[1])


def test_the_first_n(sd, latents):
    few = encode(sd, Dots(), 10, batch=4)
    assert len(few) == 10 and torch.allclose(few.z_0, latents.z_0[:10], atol=1e-6)
    assert len(encode(sd, Dots(), 10**6)) == 48


@pytest.mark.parametrize("n", [0, -1])
def test_none_at_all(sd, n):
    with refuses(DataError, "no pictures", "empty"):
        encode(sd, Dots(), n)


@pytest.mark.parametrize("captions", [["a", "b"], "abcd", None, ["a"] * 6], ids=str)
def test_pictures_and_captions_that_do_not_pair(sd, captions):
    class Odd(Dots):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], captions

    with refuses(ShapeError, "4 pictures", "one text a picture"):
        encode(sd, Odd(), 4)


def test_an_empty_dataset(sd):
    class Empty(Dots):
        def __len__(self):
            return 0

    with refuses(DataError, "no pictures", "empty"):
        encode(sd, Empty())


def test_more_texts_than_one_call_takes(sd):
    texts = [f"a red dot {i}" for i in range(MOST_PROMPTS + 3)]
    contexts = conditions(sd, texts).context
    assert contexts.shape == (MOST_PROMPTS + 3, 12, 16)
    for i in (0, MOST_PROMPTS - 1, MOST_PROMPTS, MOST_PROMPTS + 2):
        assert torch.allclose(contexts[i], sd.text.encode([texts[i]]).context[0], atol=1e-6)


# ---------------------------------------------------------------- dropped texts


class Spy(nn.Module):
    """Notes what it is told."""

    def __init__(self):
        super().__init__()
        self.weight, self.told = nn.Parameter(torch.ones(())), []

    def forward(self, x_t, t, cond=Cond()):
        self.told.append(cond.context)
        return self.weight * x_t


def told(latents, p):
    spy = Spy()
    list(
        train(spy, Schedule.cosine(), latents, TrainConfig(steps=40, batch_size=48, p_uncond=p))
    )  # every picture 40 times
    return torch.cat(spy.told)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_a_dropped_text_is_the_encoding_of_no_words(sd, latents, p):
    """1,920 rows, 5 standard errors; whatever was not dropped is one of the captions' own."""
    empty = sd.text.encode([""]).context
    assert (
        latents.uncond.context.shape == (1, 12, 16)
        and torch.equal(latents.uncond.context, empty)
        and latents.uncond.vector is None
    )
    rows = told(latents, p)
    dropped = (rows == empty).flatten(1).all(1)
    assert abs(dropped.float().mean().item() - p) <= 5 * math.sqrt(p * (1 - p) / 1920)
    own = (rows[~dropped][:, None] == latents.contexts).flatten(2).all(2)
    assert (own.sum(1) == 1).all() and empty.abs().max() > 0.1


def test_without_an_encoding_of_no_words_it_is_zeros(latents):
    class Plain:
        uncond = None
        __len__, __getitem__ = lambda self: len(latents), lambda self, index: latents[index]

    assert (told(Plain(), 1.0) == 0).all()
