"""New words (textual inversion) against diffusers, on tiny systems: one and two encoders, several vectors a word, the
files of both; then what is refused."""

import copy
import re
import warnings

import pytest
import torch
from helpers import refuses
from safetensors.torch import load_file, save_file
from tiny_pipelines import build as theirs

from ddpm_edu.errors import CheckpointError, DataError, OptionError, ShapeError
from ddpm_edu.files.embedding import CONVERT, load_embedding, read_embedding, save_embedding
from ddpm_edu.files.load import load, save
from ddpm_edu.networks.tokenizer import train_tokenizer
from ddpm_edu.systems.arguments import spelt_out
from ddpm_edu.systems.system import SDXL_MINI_REFINER, build
from ddpm_edu.systems.words import add_word, vectors_of

TOLERANCE = 1e-5
PROMPTS = ["a photo of <my-cat> on a sofa", "<My-Cat>, <my-cat> and a red fox"]


@pytest.fixture(scope="module", params=("sd", "sdxl"))
def saved(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    theirs(request.param).save_pretrained(root)
    return request.param, root, load(root)


@pytest.fixture
def pair(saved):
    """A tiny pipeline of diffusers and ours of the same weights. Its pooled text is taken at the end token by number, as
    in bugs/06: at the highest id it would be taken at the new word."""
    name, _, sd = saved
    pipe = theirs(name)
    for _, encoder in encoders(pipe):
        encoder.config.eos_token_id = getattr(encoder, "text_model", encoder).eos_token_id = 49407
    return pipe, copy.deepcopy(sd)


def encoders(pipe):
    two = [(pipe.tokenizer, pipe.text_encoder)]
    return two + (
        [(pipe.tokenizer_2, pipe.text_encoder_2)] if hasattr(pipe, "text_encoder_2") else []
    )


@torch.no_grad()
def assert_same(sd, pipe, prompts=PROMPTS):
    cond, states = sd.text.encode(prompts), []
    for tokenizer, encoder in encoders(pipe):
        texts = pipe.maybe_convert_prompt([p.lower() for p in prompts], tokenizer)
        ids = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        out = encoder(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2] if len(encoders(pipe)) == 2 else out[0])
    close = lambda a, b: torch.testing.assert_close(
        a, b, atol=TOLERANCE * max(1, b.abs().max()), rtol=0
    )
    close(cond.context, torch.cat(states, -1))
    if cond.vector is not None:
        close(cond.vector, out[0])


def vectors(sd, n, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(n, encoder.config.width, generator=g) for encoder in sd.text.encoders]


def give(pipe, rows, word):
    """diffusers' own reading, one encoder after the other."""
    for (tokenizer, encoder), tensor in zip(encoders(pipe), rows):
        state = {"emb_params": tensor.clone()}
        pipe.load_textual_inversion(state, token=word, text_encoder=encoder, tokenizer=tokenizer)


@pytest.mark.parametrize("n", [1, 3])
def test_files(pair, tmp_path, n):
    """The prompt's cases, several vectors a word, a second word after the first."""
    pipe, sd = pair
    rows, two = vectors(sd, n), len(encoders(pipe)) == 2
    before = [encoder.config.vocab for encoder in sd.text.encoders]
    state = (
        dict(zip(("clip_l", "clip_g"), rows))
        if two
        else {"<my-cat>": rows[0] if n > 1 else rows[0][0]}
    )
    save_file(state, tmp_path / "<my-cat>.safetensors")
    assert load_embedding(tmp_path / "<my-cat>.safetensors", sd) == "<my-cat>"
    give(pipe, rows, "<my-cat>")
    assert_same(sd, pipe)
    known, new = sd.text.encode(["a photo of a cat on a sofa", PROMPTS[0]]).context
    assert (known - new).abs().max() > 1e-2
    assert [encoder.config.vocab for encoder in sd.text.encoders] == [v + n for v in before]
    assert tuple(encoder.config for encoder in sd.text.encoders) == sd.config.text
    more = vectors(sd, 2, seed=2)
    state = (
        dict(zip(("text_encoders_0", "text_encoders_1"), more)) if two else {"emb_params": more[0]}
    )
    save_file(state, tmp_path / "oilystyle.safetensors")
    assert load_embedding(tmp_path / "oilystyle.safetensors", sd) == "oilystyle"
    give(pipe, more, "oilystyle")
    assert_same(sd, pipe, [*PROMPTS, "<my-cat> in oilystyle"])


def test_a_name_of_its_own_and_many_prompts_full_of_it(pair, tmp_path):
    pipe, sd = pair
    rows = vectors(sd, 30)
    add_word(sd, "my-thing", rows)
    give(pipe, rows, "my-thing")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids = sd.text.ids(["a my-thing and a my-thing and a my-thing"])
    assert any("left out" in str(w.message) for w in caught) and ids[0].shape == (1, 77)
    assert (
        ids[0][0, 2:32].tolist()
        == sd.text.tokenizer.ids_of("my-thing")
        == list(range(49408, 49438))
    )


def test_saved_and_read_again(pair, tmp_path):
    """By diffusers, by us, and within the system's own file and folder."""
    pipe, sd = pair
    fresh, rows = copy.deepcopy(sd), vectors(sd, 2)
    ids = add_word(sd, "<my-cat>", rows)
    assert all(map(torch.equal, vectors_of(sd, ids), rows))
    save_embedding(tmp_path / "any.safetensors", sd, "<my-cat>", {"steps": 100})
    state = load_file(tmp_path / "any.safetensors")
    keys = ("clip_l", "clip_g") if len(state) == 2 else ("<my-cat>",)
    for (tokenizer, encoder), key in zip(encoders(pipe), keys):
        token, tensor = "<my-cat>" if key.startswith("clip") else None, state[key]
        pipe.load_textual_inversion(
            {key: tensor}, token=token, text_encoder=encoder, tokenizer=tokenizer
        )
    assert_same(sd, pipe)
    assert load_embedding(tmp_path / "any.safetensors", fresh) == "<my-cat>"
    assert_same(fresh, pipe)
    save(tmp_path / "sd.safetensors", sd)
    assert_same(load(tmp_path / "sd.safetensors"), pipe)
    pipe.save_pretrained(tmp_path / "folder")
    assert_same(load(tmp_path / "folder"), pipe)


def test_a_refiner_takes_the_second(tmp_path):
    sd = build(SDXL_MINI_REFINER, device="meta")
    save_file(
        {"clip_l": torch.ones(1, 32), "clip_g": torch.ones(1, 64)}, tmp_path / "x.safetensors"
    )
    sd.text.tokenizer = train_tokenizer(["a red cat"] * 3, 572, 16)
    assert load_embedding(tmp_path / "x.safetensors", sd, "<x>") == "<x>"
    assert sd.config.text[0].end == sd.text.tokenizer.end


def test_a_system_that_lists_its_words_does_not_warn(tmp_path):
    sd = load("painted")
    add_word(sd, "<my-cat>", vectors(sd, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert spelt_out(sd, "a <my-cat>").startswith("a")
    with pytest.warns(UserWarning, match="never saw 'dog'"):
        spelt_out(sd, "a dog")


# ---------------------------------------------------------------- what is refused

REFUSED = {
    "too wide": ({"<a>": torch.ones(2, 768)}, "768", "CLIP-L", "32"),
    "of SDXL": (
        {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)},
        "768 .*and 1280",
        "32",
    ),
    "two words": ({"<a>": torch.ones(32), "<b>": torch.ones(32)}, "no embedding of one word"),
    "a picture": ({"<a>": torch.ones(3, 32, 32)}, "no embedding"),
    "no vector": ({"<a>": torch.ones(0, 32)}, "no embedding"),
    "whole numbers": ({"<a>": torch.ones(1, 32, dtype=torch.int64)}, "no embedding"),
    "NaN": ({"<a>": torch.full((1, 32), torch.nan)}, "NaN"),
    "spaces": ({"my cat": torch.ones(1, 32)}, "spaces", "another word"),
    "known": ({"cat": torch.ones(1, 32)}, "token already", "another word"),
    "too many": ({"<a>": torch.ones(76, 32)}, "76", "75"),
    "a LoRA": (
        {
            "lora_unet_x.lora_up.weight": torch.ones(2, 2),
            "lora_unet_x.lora_down.weight": torch.ones(2, 2),
        },
        "LoRA",
    ),
    "nothing": ({}, "empty"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_files(tiny_sd, tmp_path, kind):
    state, *words = REFUSED[kind]
    before = tiny_sd.config, tiny_sd.text.tokenizer
    save_file(state, tmp_path / "x.safetensors")
    with refuses(CheckpointError, "x.safetensors", *words):
        load_embedding(tmp_path / "x.safetensors", tiny_sd)
    assert (tiny_sd.config, tiny_sd.text.tokenizer) == before


def test_a_word_that_a_small_vocabulary_knows_only_as_a_whole(tmp_path):
    """That of the emoji has "cat" at the end of a word and nowhere else: it keeps its meaning."""
    with refuses(OptionError, "cat is a token already"):
        load("emoji").text.tokenizer.with_word("cat")


def test_damaged_files(tiny_sd, tmp_path):
    file = tmp_path / "x.safetensors"
    save_file({"<a>": torch.ones(2, 32)}, file)
    file.write_bytes(file.read_bytes()[:-5])
    with refuses(CheckpointError, "cut short"):
        read_embedding(file)
    state = {"<a>": torch.full((1, 32), 2.0, requires_grad=True)}
    save_file({"<a>": torch.ones(2, 32)}, tmp_path / "learned_embeds.safetensors")
    assert read_embedding(tmp_path)[0] == "<a>"
    for x in state, {"string_to_token": {"*": 265}, "string_to_param": state, "name": "a"}:
        torch.save(x, tmp_path / "x.pt")
        with refuses(CheckpointError, "pickle", "convert"):
            read_embedding(tmp_path / "x.pt")
        code = (
            CONVERT.split('"')[1]
            .replace("IN.pt", f"{tmp_path}/x.pt")
            .replace("WORD", f"{tmp_path}/a")
        )
        exec(code, {})
        word, rows = read_embedding(tmp_path / "a.safetensors")
        assert word == "a" and rows[0].eq(2).all()


def test_refused_arguments(tiny_sd, tmp_path):
    for word in ("", "two words", 3, None, "cat"):
        with refuses(OptionError, "word"):
            add_word(tiny_sd, word, vectors(tiny_sd, 1))
    with refuses(ShapeError, "2 kinds", "1 text encoders"):
        add_word(tiny_sd, "<a>", vectors(tiny_sd, 1) * 2)
    for rows in (torch.ones(1, 31), torch.ones(32), torch.ones(1, 32).int(), torch.ones(0, 32)):
        with pytest.raises((ShapeError, OptionError)):
            add_word(tiny_sd, "<a>", [rows])
    with refuses(DataError, "NaN"):
        add_word(tiny_sd, "<a>", [torch.full((1, 32), torch.inf)])
    with refuses(OptionError, "not added", re.escape("<a>")):
        save_embedding(tmp_path / "x.safetensors", tiny_sd, "<a>")
