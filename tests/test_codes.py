"""A system of codes: codes and pictures, drawing by seeds, its file, reranking, refusals."""

from dataclasses import asdict, replace

import pytest
import torch
from helpers import refuses

from ddpm_edu import CheckpointError, OptionError, ShapeError, load, save
from ddpm_edu.cli import main
from ddpm_edu.datasets.painted import caption, painted_digits, prompts, scenes
from ddpm_edu.files.load import where
from ddpm_edu.metrics.obedience import fidelity
from ddpm_edu.networks.gpt import GPTConfig
from ddpm_edu.networks.tokenizer import train_tokenizer
from ddpm_edu.networks.vae import VAEConfig
from ddpm_edu.networks.vq import VQVAE, VQConfig
from ddpm_edu.systems.codes import CodeConfig, CodeSystem, rerank
from ddpm_edu.training import codes as codes_module
from ddpm_edu.training.codes import (
    CODE_RECIPES,
    DALLE,
    MASKGIT,
    encode,
    objective,
    train_codes,
    train_vq,
)

PROMPTS = ["a large red seven on a blue ground, top left", "a small black one on a white ground"]
TOKENIZER = train_tokenizer([caption(s) for s in scenes()[::7]], 640, 16)
VQ = VQConfig(VAEConfig(channels=4, mult=(1, 1, 1), blocks=1, latent=3, groups=2, scale=1.0), 11)
GPT = GPTConfig(11, 64, TOKENIZER.bpe.get_vocab_size(), 16, 16, 2, 2, columns=8, vectors=3)


def system(causal=True, seed=0):
    torch.manual_seed(seed)
    config = CodeConfig("small", VQ, replace(GPT, causal=causal), steps=4)
    made = CodeSystem(config, TOKENIZER).eval().requires_grad_(False)
    for p in made.gpt.parameters():
        torch.nn.init.normal_(p, std=0.3)
    made.gpt.know(made.vq.codebook.codes)
    return made


@pytest.mark.parametrize("causal", [True, False])
def test_a_picture_depends_on_its_own_seed_and_prompt(causal):
    s = system(causal)
    both = s.draw(PROMPTS, seed=5)
    assert both.shape == (2, 3, 32, 32) and both.abs().max() <= 1
    assert torch.allclose(s.draw(PROMPTS[1:], seed=6), both[1:], atol=1e-5)
    steps = list(s.generate(PROMPTS, seed=5))
    assert len(steps) == (64 if causal else 4) and steps[-1].known.all()
    assert torch.equal(s.decode(steps[-1].codes).clamp(-1, 1), both)
    assert not torch.equal(s.draw(PROMPTS, seed=7), both)


def test_codes_lie_row_by_row_and_are_the_nearest():
    s, x = system(), painted_digits("test", 4)[:][0]
    codes = s.encode(x)
    z = s.vq.vae.encode(x)[0]
    book = s.vq.codebook.codes
    nearest = (z[2, :, 3, 5] - book).square().sum(1).argmin()
    assert codes.shape == (4, 64) and codes[2, 3 * 8 + 5] == nearest
    e = book[codes[2]].T.reshape(1, 3, 8, 8)
    torch.testing.assert_close(s.decode(codes)[2:3], s.vq.vae.decode(e))


def test_the_systems_own_ways_are_taken_and_can_be_changed():
    s = system()
    own = CodeSystem(replace(s.config, top_k=1), TOKENIZER).eval()
    own.load_state_dict(s.state_dict())
    assert torch.equal(own.draw(PROMPTS), s.draw(PROMPTS, top_k=1))
    assert torch.equal(s.draw(PROMPTS, top_k=1), s.draw(PROMPTS, temperature=0))
    guided = CodeSystem(replace(s.config, guidance=9.0), TOKENIZER).eval()
    guided.load_state_dict(s.state_dict())
    assert torch.equal(guided.draw(PROMPTS), s.draw(PROMPTS, guidance=9.0))
    assert not torch.equal(guided.draw(PROMPTS), s.draw(PROMPTS))


@pytest.mark.parametrize("causal", [True, False])
def test_its_file_gives_it_back(tmp_path, causal):
    s, path = system(causal), tmp_path / "x.safetensors"
    save(path, s, {"train": 1})
    back = load(path)
    assert back.config == s.config and back.meta == {"train": 1}
    assert torch.equal(back.draw(PROMPTS), s.draw(PROMPTS))
    save(path, s.vq)
    vq = load(path)
    x = painted_digits("test", 4)[:][0]
    assert isinstance(vq, VQVAE) and torch.equal(vq.encode(x).flatten(1), s.encode(x))
    save(path, s.gpt)
    assert load(path).config == s.gpt.config


def test_a_file_with_another_tokenizer_is_refused(tmp_path):
    s, path = system(), tmp_path / "x.safetensors"
    s.tokenizer = train_tokenizer(PROMPTS, 640, 20)
    save(path, s)
    with refuses(CheckpointError, "tokenizer", "two models"):
        load(path)


def test_reranking_takes_the_nearest_of_each_prompts_own():
    """Of real pictures, one of which is the prompt's, CLIP finds it."""
    clip, data = load("painted_clip"), painted_digits("test", 24, seed=3)
    x, captions = data[:]
    own = [captions[3 * i + i % 3] for i in range(8)]
    best, which = rerank(x.unflatten(0, (8, 3)), own, clip)
    assert (which == torch.arange(8) % 3).double().mean() >= 0.85
    assert torch.equal(best, x.unflatten(0, (8, 3))[torch.arange(8), which])


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda s, m: s.draw(PROMPTS, steps=8), OptionError, ["steps", "64"]),
        (lambda s, m: m.draw(PROMPTS, steps=0), OptionError, ["steps"]),
        (lambda s, m: m.draw(PROMPTS, top_k=3), OptionError, ["top_k"]),
        (lambda s, m: s.draw([]), OptionError, ["prompts"]),
        (lambda s, m: s.draw(PROMPTS, seed=-1), OptionError, ["seed"]),
        (lambda s, m: s.decode(torch.full((1, 64), 11)), OptionError, ["11", "0 to 10"]),
        (lambda s, m: s.decode(torch.zeros(1, 63, dtype=torch.long)), ShapeError, ["64"]),
        (lambda s, m: s.encode(torch.zeros(1, 3, 16, 16)), ShapeError, ["pictures", "32"]),
        (lambda s, m: CodeSystem(s.config).draw(PROMPTS), OptionError, ["tokenizer"]),
        (lambda s, m: replace(s.config, size=16), OptionError, ["places"]),
        (lambda s, m: replace(s.config, vq=replace(VQ, codes=12)), OptionError, ["12", "11"]),
        (
            lambda s, m: rerank(torch.zeros(1, 2, 3, 32, 32), PROMPTS, None),
            ShapeError,
            ["pictures", "2 prompts"],
        ),
    ],
)
def test_refusals(call, error, words):
    with refuses(error, *words):
        call(system(), system(causal=False))


# ---------------------------------------------------------------- training


def short(recipe, **changes):
    """A few updates of the recipe, with a smaller GPT, from a system in a file where it has a base."""
    run = replace(recipe.train, steps=3, batch_size=8, save_every=2)
    book = recipe.train_vq and replace(recipe.train_vq, steps=3, batch_size=8)
    gpt = replace(recipe.gpt, width=16, layers=1, heads=2)
    return replace(recipe, n=64, gpt=gpt, train=run, train_vq=book, **changes)


def test_pictures_become_codes_and_tokens_once():
    s, data = system(), painted_digits("test", 30)
    codes = encode(s, data, batch=7)
    x, captions = data[:]
    found, text = codes[torch.tensor([3, 29])]
    assert torch.equal(found, s.encode(x)[[3, 29]]) and len(codes) == 30
    assert torch.equal(text, s.ids([captions[3], captions[29]]))
    assert len(codes.texts) == len(set(captions))


def test_texts_are_dropped_for_guidance():
    s = system()
    seen = []

    class Watched(torch.nn.Module):
        def forward(self, codes, text):
            seen.append(text)
            return s.gpt(codes, text)

    watched = Watched()
    watched.config, watched.unknown = s.gpt.config, s.gpt.unknown
    batch = torch.zeros(400, 64, dtype=torch.long), s.ids(PROMPTS[:1] * 400)
    objective(s, 0.25)(watched, batch, torch.Generator().manual_seed(0))
    empty = (seen[0] == s.ids([""])).all(1)
    assert 0.15 < empty.double().mean() < 0.35
    assert torch.equal(seen[0][~empty], batch[1][~empty])


@pytest.mark.parametrize("causal", [True, False])
def test_a_few_updates_learn_and_a_run_that_stopped_goes_on(tmp_path, causal):
    """Bit for bit."""
    file = tmp_path / "start.safetensors"
    save(file, system())
    recipe = short(MASKGIT, start=str(file), base=None, goes_on=False)
    recipe = replace(recipe, gpt=replace(recipe.gpt, codes=11, causal=causal))

    class Stop(Exception):
        pass

    def stopping(steps):
        for step in steps:
            yield step
            if step.step == 2:
                raise Stop

    whole = train_codes(recipe)
    with pytest.raises(Stop):
        train_codes(recipe, tmp_path / "run.safetensors", stopping)
    again = train_codes(recipe, tmp_path / "run.safetensors").state_dict()
    assert all(torch.equal(again[name], w) for name, w in whole.state_dict().items())
    start = load(file).state_dict()
    same = {k for k, w in whole.state_dict().items() if k in start and torch.equal(w, start[k])}
    assert {k for k in start if k.startswith("vq.")} <= same
    assert whole.config.gpt.causal == causal and not any(
        p.requires_grad for p in whole.parameters()
    )
    assert not torch.equal(whole.gpt.logits.weight, torch.zeros(11, 16))


def test_a_gpt_goes_on_from_that_of_its_start(tmp_path):
    """With a learning rate of 0 it is the same, only that it now sees all places."""
    s, file = system(), tmp_path / "start.safetensors"
    save(file, s)
    recipe = replace(MASKGIT, start=str(file), base=None, n=64, gpt=replace(GPT, causal=False))
    recipe = replace(recipe, train=replace(recipe.train, steps=1, batch_size=8, lr=0.0))
    made = train_codes(recipe)
    assert all(torch.equal(w, s.gpt.state_dict()[k]) for k, w in made.gpt.state_dict().items())
    assert not made.config.gpt.causal and s.config.gpt.causal


def test_the_book_starts_from_the_vae_that_ships():
    """After a few updates its copies are already pictures."""
    recipe = short(DALLE)
    run = replace(recipe.train_vq, steps=8, batch_size=16)
    vq, tokenizer = train_vq(replace(recipe, train_vq=run))
    x = painted_digits("test", 50)[:][0]
    codes = vq.encode(x)
    assert (vq.decode(codes) - x).square().mean() < 0.05 < x.square().mean()
    assert codes.unique().numel() > 40 and tokenizer.length == 16


def test_the_command_writes_a_system_that_draws(tmp_path, monkeypatch):
    monkeypatch.setitem(codes_module.CODE_RECIPES, "painted-dalle", short(DALLE))
    out = tmp_path / "x.safetensors.xz"
    assert main(["train", "painted-dalle", "--out", str(out), "--steps", "2"]) == 0
    s = load(out)
    assert s.meta["train"]["updates"] == 2 and s.meta["train"]["vq"]["updates"] == 3
    assert s.draw(PROMPTS[:1]).shape == (1, 3, 32, 32)


# ---------------------------------------------------------------- what ships


SHIPPED = {"painted-dalle": 0.7, "painted-maskgit": 0.65}  # name: least share obeyed


@pytest.fixture(scope="module")
def shipped():
    return {name: load(name) for name in SHIPPED}


def test_copies_of_real_pictures_are_read_right(shipped):
    x, captions = painted_digits("test", 300, seed=2, held=None)[:]
    with torch.no_grad():
        y = shipped["painted-dalle"].decode(shipped["painted-dalle"].encode(x))
    assert fidelity(y, captions)["all"] >= 0.97


@pytest.mark.parametrize("name, least", SHIPPED.items())
def test_captions_are_obeyed(shipped, name, least):
    texts = prompts(60, seed=3)
    assert fidelity(shipped[name].draw(texts, seed=0), texts)["all"] >= least


def test_both_have_one_book_and_small_files(shipped):
    first, second = shipped.values()
    same = second.vq.state_dict()
    assert all(torch.equal(w, same[name]) for name, w in first.vq.state_dict().items())
    assert first.config.gpt.causal and not second.config.gpt.causal
    assert all(where(name)[0].stat().st_size < 900_000 for name in shipped)


@pytest.mark.parametrize("recipe", CODE_RECIPES.values(), ids=lambda r: r.name)
def test_they_were_trained_as_the_recipe_says(shipped, recipe):
    train = shipped[recipe.name].meta["train"]
    own = {k: v for k, v in asdict(recipe.train).items() if k != "seconds"}  # the run's, there
    assert {k: train[k] for k in own} == own
    assert train["updates"] == recipe.train.steps and 100 <= len(train["loss"]) <= 200
    config = shipped[recipe.name].config
    assert (config.temperature, config.guidance) == (recipe.temperature, recipe.guidance)
