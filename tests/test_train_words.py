"""Textual inversion: what of a system learns when a word does."""

import copy

import pytest
import torch
from helpers import refuses
from test_stable_diffusion import TINY
from tiny_sdxl import random_pair

from ddpm_edu.errors import DataError, OptionError
from ddpm_edu.files.embedding import load_embedding, save_embedding
from ddpm_edu.systems.system import build
from ddpm_edu.systems.words import vectors_of
from ddpm_edu.training.train import TrainConfig
from ddpm_edu.training.words import LearningWord, train_word

CONFIG = TrainConfig(steps=5, batch_size=3, lr=1e-2, warmup=1)
TABLE = "embeddings.token_embedding.weight"


class Pictures:
    """Four of noise, with the new word in each caption."""

    def __init__(self, word="<my-cat>"):
        self.word = word

    def __len__(self):
        return 4

    def __getitem__(self, index):
        g = torch.Generator().manual_seed(3)
        return torch.rand(4, 3, 32, 32, generator=g)[index] * 2 - 1, [f"a red {self.word}"] * len(
            index
        )


@pytest.fixture(scope="module", params=("one encoder", "two"))
def systems(request):
    torch.manual_seed(0)
    return build(TINY) if request.param == "one encoder" else random_pair()["base"]


@pytest.fixture
def sd(systems):
    return copy.deepcopy(systems)


def test_only_the_rows_of_the_word_change(sd, tmp_path):
    before = {k: w.clone() for k, w in sd.state_dict().items()}
    fresh, prompt = copy.deepcopy(sd), ["a <my-cat> on a red ground"]
    *_, step = train_word(sd, Pictures(), "<my-cat>", CONFIG, start="red", tokens=2)
    ids = sd.text.tokenizer.ids_of("<my-cat>")
    for name, w in sd.state_dict().items():
        kept = w[: len(before[name])] if name.endswith(TABLE) else w
        kept = torch.cat([kept[: ids[0]], before[name][ids[0] :]]) if name.endswith(TABLE) else kept
        assert torch.equal(kept, before[name]), name
    learned = vectors_of(sd, ids)
    assert all(map(torch.equal, learned, step.ema.vectors)) and len(learned[0]) == 2
    start = vectors_of(sd, [sd.tokenizer(["red"])[0, 1].item()])
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(learned, start))
    assert all((a[0] - a[1]).abs().max() > 1e-4 for a in learned)
    save_embedding(tmp_path / "word.safetensors", sd, "<my-cat>")
    load_embedding(tmp_path / "word.safetensors", fresh)
    assert torch.equal(fresh.text.encode(prompt).context, sd.text.encode(prompt).context)


def test_while_it_learns_the_text_is_read_with_its_vectors(sd):
    run = train_word(sd, Pictures(), "<my-cat>", CONFIG, start="red")
    next(run)
    model = LearningWord(sd, sd.text.tokenizer.ids_of("<my-cat>"))
    prompts = ["a <my-cat>", "a red fox"]
    with torch.no_grad():
        for rows in model.vectors:
            rows += torch.linspace(-1, 1, rows.shape[1])  # a norm takes away what all share
        cond = model.cond(sd.text.ids(prompts))
        plain = sd.text.encode(prompts)
    assert torch.equal(cond.context[1], plain.context[1])
    assert (cond.context[0] - plain.context[0]).abs().max() > 1e-3
    for encoder, rows in zip(sd.text.encoders, model.vectors):
        encoder.add_rows(model.ids, rows, encoder.config.end)
    assert torch.equal(sd.text.encode(prompts).context, cond.context)


def test_refused(sd):
    with refuses(OptionError, "start"):
        next(train_word(sd, Pictures(), "<my-cat>", CONFIG, start=""))
    with refuses(DataError, "a red cat", "new word"):
        next(train_word(sd, Pictures("cat"), "<my-cat>", CONFIG, start="red"))
    with refuses(OptionError, "was not added"):  # nothing is half-done
        sd.text.tokenizer.ids_of("<my-cat>") if sd.config.vector else save_embedding(
            "x", sd, "<my-cat>"
        )
