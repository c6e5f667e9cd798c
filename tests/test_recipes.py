"""recipes.py: the parts fit together and the data is what it should be, before an hour of training."""

import dataclasses
import warnings

import pytest
import torch

from ddpm_edu.datasets.emoji import emoji
from ddpm_edu.datasets.painted import caption, held_out, parse, scenes
from ddpm_edu.diffusion import class_cond
from ddpm_edu.errors import MOST_PROMPTS
from ddpm_edu.files.load import load
from ddpm_edu.networks.tokenizer import known_words, train_tokenizer
from ddpm_edu.networks.unet import SpaceToDepth, UNet
from ddpm_edu.paths import data_folder
from ddpm_edu.training import recipes
from ddpm_edu.training.recipes import (
    EMOJI,
    PAINTED,
    RECIPES,
    Bilingual,
    emoji_names,
    painted_captions,
)


@pytest.fixture(scope="module")
def pictures():
    return emoji()


def test_every_emoji_in_two_languages(pictures):
    both, n = Bilingual(pictures), len(pictures)
    assert len(both) == 2 * n == 3822
    x, names = both[torch.tensor([n + 7, 7, 2 * n - 1, 0])]
    assert names == [
        pictures.chinese[7],
        pictures.names[7],
        pictures.chinese[-1],
        pictures.names[0],
    ]
    expected = pictures[[7, 7, n - 1, 0]][0]
    assert torch.equal(x, expected) and x.shape == (4, 3, 64, 64) and not torch.equal(x[0], x[2])
    assert both[[3]][1] == [pictures.names[3]]


def test_the_captions(pictures, monkeypatch):
    monkeypatch.setattr(recipes, "emoji", lambda: pictures)
    assert (
        emoji_names()
        == [*pictures.names, *pictures.chinese]
        == [Bilingual(pictures)[[i]][1][0] for i in range(3822)]
    )
    texts = painted_captions()
    assert len(set(texts)) == len(texts) == 5040 and not any(
        held_out(parse(text)) for text in texts
    )
    assert known_words(texts) == known_words(
        map(caption, scenes())
    )  # of a held-out combination every word is known


def test_each_word_of_the_painted_digits_is_one_token():
    tokenizer = train_tokenizer(painted_captions(), PAINTED.vocab, PAINTED.text.length)
    assert tokenizer.bpe.get_vocab_size() <= PAINTED.vocab
    for word in known_words(painted_captions()):
        assert len(tokenizer.bpe.encode(word).ids) == 1, word
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no text is too long
        tokenizer(painted_captions()[:MOST_PROMPTS])


@pytest.mark.slow
def test_the_names_of_the_emoji_fit(pictures):
    names = [*pictures.names, *pictures.chinese]
    tokenizer = train_tokenizer(names, EMOJI.vocab, EMOJI.text.length)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(0, len(names), MOST_PROMPTS):
            tokenizer(names[k : k + MOST_PROMPTS])


@pytest.mark.parametrize("name, side", [("painted", 32), ("emoji", 64)])
def test_the_parts_fit_together(name, side):
    """Without weights: a picture becomes a latent that the UNet takes, and both sides of the CLIP meet in one space."""
    from ddpm_edu.diffusion import Cond
    from ddpm_edu.networks.clip import CLIP, CLIPConfig
    from ddpm_edu.systems.system import SystemConfig, build

    plan = RECIPES[name]
    assert plan.name == name and plan.size == side
    text = dataclasses.replace(plan.text, vocab=plan.vocab)
    sd = build(
        SystemConfig(
            name,
            plan.unet,
            plan.vae,
            (dataclasses.replace(text, projection=0),),
            predict=plan.train_unet.predict,
            size=plan.size,
            spacing="trailing",
            steps=plan.steps,
            guidance=plan.guidance,
        ),
        device="meta",
    )
    with torch.device("meta"):
        clip, x = (
            CLIP(CLIPConfig(text, size=plan.size, **plan.vision)),
            torch.zeros(2, 3, side, side),
        )
        z = sd.vae.to_latent(x)
        assert (
            sd.unet(
                z, torch.zeros(2, dtype=torch.long), Cond(torch.zeros(2, text.length, text.width))
            ).shape
            == z.shape
        )
        assert sd.vae.from_latent(z).shape == x.shape
        ids = torch.zeros(2, text.length, dtype=torch.long)
        assert clip.image(x).shape == clip.words(ids).shape == (2, text.projection)
    assert z[0].numel() < x[0].numel() / 6  # smaller than the picture
    assert sum(p.numel() for p in sd.parameters()) < 12e6  # a byte each in the file that ships


def test_the_minute_has_no_head_start():
    """Digits from random weights: nothing is fitted to the data before the first update."""
    model = recipes.MINUTE.model(dataset=None)
    assert isinstance(model, SpaceToDepth) and recipes.MINUTE.parts == 0
    x, t = torch.zeros(2, 1, 28, 28), torch.tensor([0, 999])
    assert torch.equal(model(x, t, class_cond([3, -1])), x)  # its answer to anything is 0


def test_the_digits_that_ship_are_a_plain_network():
    """The recipe's own UNet behind SpaceToDepth, no mixture of Gaussians, in at most 1 MB."""
    path = data_folder() / "weights" / "mnist.safetensors"
    model, _, predict, meta = load("mnist")
    plan, trained = recipes.MNIST, meta["train"]
    assert isinstance(model, SpaceToDepth) and type(model.model) is UNet and plan.parts == 0
    assert model.model.config == plan.unet and model.factor == plan.patch
    assert predict == plan.train_unet.predict and meta["updates"] == plan.train_unet.steps
    assert type(plan.train_unet)(**trained) == plan.train_unet
    assert (meta["guidance"], meta["sampler"]) == (plan.guidance, plan.sampler)
    assert path.stat().st_size <= 1e6
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    parameters = sum(p.numel() for p in model.parameters())
    for text in f"{path.stat().st_size:,}", f"{parameters:,}", f"{meta['updates']:,}", meta["date"]:
        assert text in card
