"""A whole small system in one file: what comes back draws the same picture, also by way of diffusers."""

import copy
import dataclasses
from pathlib import Path

import pytest
import tokenizers as tk
import torch
from folder_writer import save_folder
from helpers import refuses

from ddpm_edu import last, noise
from ddpm_edu.cli import main
from ddpm_edu.errors import CheckpointError, OptionError
from ddpm_edu.files.load import config_of, find, load, save, where
from ddpm_edu.files.tensors import SMALLEST, load_tensors, save_tensors
from ddpm_edu.networks.text import TextConfig
from ddpm_edu.networks.tokenizer import Tokenizer
from ddpm_edu.networks.unet import UNetConfig
from ddpm_edu.networks.vae import VAEConfig
from ddpm_edu.systems.pipeline import draw, text_to_image
from ddpm_edu.systems.system import SystemConfig, build

CAPTIONS = [
    "a large red seven on a blue ground, top left",
    "a small green one on a white ground, centre",
]
TINY = SystemConfig(
    "tiny",
    UNetConfig(
        channels=32,
        mult=(1, 2),
        depth=(0, 1),
        middle=1,
        heads=(1, 4),
        context=32,
        blocks=1,
        groups=8,
    ),
    VAEConfig(channels=16, mult=(1, 2), groups=8, scale=0.7),
    (TextConfig(32, 2, 2, 64, vocab=300, length=16),),
    size=16,
    spacing="trailing",
    steps=5,
    guidance=3.0,
)


def words():
    """A tokenizer of byte pairs learnt from the captions, 300 tokens with start and end."""
    bpe = tk.Tokenizer(tk.models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = tk.pre_tokenizers.Sequence(
        [
            tk.pre_tokenizers.Split(
                tk.Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True
            ),
            tk.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.train_from_iterator(
        CAPTIONS * 9,
        tk.trainers.BpeTrainer(
            vocab_size=298,
            end_of_word_suffix="</w>",
            show_progress=False,
            initial_alphabet=tk.pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    bpe.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return Tokenizer(bpe, length=16)


@pytest.fixture(scope="module")
def sd():
    torch.manual_seed(0)
    tokenizer = words()
    text = dataclasses.replace(TINY.text[0], vocab=tokenizer.bpe.get_vocab_size())
    sd = build(dataclasses.replace(TINY, text=(text,)))
    sd.text.tokenizer = tokenizer
    return sd


@pytest.fixture
def file(sd, tmp_path):
    save(tmp_path / "tiny.safetensors", sd, {"colours": ["red"], "accuracy": 0.5}, dtype=torch.int8)
    return tmp_path / "tiny.safetensors"


def picture(sd, **options):
    return draw(sd, CAPTIONS[0], seeds=1, progress=False, **options)


def test_file_and_back(sd, file):
    again = load(file)
    assert again.meta == {"colours": ["red"], "accuracy": 0.5} and sd.meta == {}
    assert (
        again.config == sd.config
        and hash(again.config)
        and torch.equal(again.schedule.beta, sd.schedule.beta)
    )
    assert not again.training and not any(
        p.requires_grad or p.is_meta or p.dtype != torch.float32 for p in again.parameters()
    )
    assert torch.equal(again.text.tokenizer(CAPTIONS), sd.text.tokenizer(CAPTIONS))
    for (name, w), back in zip(sd.state_dict().items(), again.state_dict().values(), strict=True):
        step = (
            w.abs().flatten(1).amax(1) / 127
            if w.ndim > 1 and w.numel() >= SMALLEST
            else 2**-10 * w.abs().amax()
        )
        assert (
            (back - w).abs().flatten(1 if w.ndim > 1 else 0).amax(-1) <= 0.51 * step + 1e-7
        ).all(), name
    before, after = picture(sd), picture(again)
    assert (
        before.std() > 0.02 and 0 < (after - before).abs().mean() < 0.05 * before.std()
    )  # rounded, and the same picture
    assert file.stat().st_size < 0.5 * 4 * sum(p.numel() for p in sd.parameters())


def test_its_own_steps_guidance_and_spacing(sd):
    assert torch.equal(picture(sd), picture(sd, steps=5, guidance=3.0, spacing="trailing"))
    for other in ({"guidance": 7.5}, {"spacing": "leading"}, {"steps": 6}):
        assert not torch.equal(picture(sd), picture(sd, **other))
    assert len(list(text_to_image(sd, "red", sampler="euler"))) == 5


def test_its_own_interval(sd, tmp_path):
    young = copy.copy(sd)
    young.config = dataclasses.replace(sd.config, interval=(300, 999))
    assert torch.equal(picture(young), picture(sd, interval=(300, 999))) and not torch.equal(
        picture(young), picture(sd)
    )
    assert torch.equal(picture(young, interval=(0, 999)), picture(sd))
    save(tmp_path / "young.safetensors", young, dtype=torch.int8)
    assert load(tmp_path / "young.safetensors").config.interval == (300, 999)


def test_file_to_folder_is_exact(file, tmp_path):
    sd = load(file)
    save_folder(sd, tmp_path / "folder")
    again = load(tmp_path / "folder")
    own = {name: getattr(sd.config, name) for name in ("name", "steps", "guidance", "end")}
    assert dataclasses.replace(again.config, **own) == sd.config
    again.config = sd.config  # how it is sampled that layout does not say
    assert torch.equal(picture(again), picture(sd))


def test_diffusers_draws_the_same_latents(file, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    sd = load(file)
    save_folder(sd, tmp_path / "folder")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "folder")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    ours = last(text_to_image(sd, CAPTIONS[0], sampler="ddim", seeds=1))
    theirs = pipe(
        prompt=CAPTIONS[0],
        height=16,
        width=16,
        latents=noise((4, 8, 8), [1]),
        num_inference_steps=5,
        guidance_scale=3.0,
        output_type="latent",
    ).images
    assert (ours - theirs).abs().max() < 1e-4 * max(1, theirs.abs().max()) and theirs.std() > 0.1


def test_known_by_its_name(sd, file, tmp_path, monkeypatch, capsys):
    (tmp_path / "weights").mkdir()
    shipped = file.rename(tmp_path / "weights" / "tiny.safetensors")
    monkeypatch.setenv("DDPM_EDU_DATA", str(tmp_path))
    assert find("tiny") == shipped and where("tiny") == [shipped] and config_of("tiny") == sd.config
    assert find(".") == Path(".") and find("/") == Path("/")
    assert load("tiny").meta["accuracy"] == 0.5
    with refuses(CheckpointError, "nothing", "Shipped with the course: tiny"):
        load("nothing")
    assert main(["models"]) == 0 and "tiny" in capsys.readouterr().out  # without a card
    out = tmp_path / "x.png"
    assert (
        main(["txt2img", CAPTIONS[0], "--model", "tiny", "--device", "cpu", "--out", str(out)]) == 0
    )
    assert "5 steps, guidance 3" in capsys.readouterr().out and out.is_file()
    shipped.write_bytes(b"broken")
    with refuses(CheckpointError, "tiny.safetensors"):
        load("tiny")


@pytest.fixture
def shipped_tiny(file, tmp_path, monkeypatch):
    """The system as one that ships."""
    (tmp_path / "weights").mkdir()
    file.rename(tmp_path / "weights" / "tiny.safetensors")
    monkeypatch.setenv("DDPM_EDU_DATA", str(tmp_path))
    return load("tiny")


def wider(sd):
    """A system that differs in its UNet's first layer, which takes five more channels."""
    config = dataclasses.replace(sd.config.unet, in_channels=9, out_channels=4)
    other = build(dataclasses.replace(sd.config, name="other", unet=config), sd.schedule)
    other.vae, other.text = sd.vae, sd.text
    state = sd.unet.state_dict()
    other.unet.load_state_dict(state | {"conv_in.weight": torch.randn(32, 9, 3, 3)})
    return other


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, None])
def test_a_file_of_what_differs(shipped_tiny, tmp_path, dtype):
    """The rest is the base's, to the last bit."""
    path, other = tmp_path / "other.safetensors", wider(shipped_tiny)
    save(path, other, base="tiny", dtype=dtype)
    kept = {name for name in load_tensors(path)[0] if not name.endswith(".scale")}
    assert kept == {"unet.conv_in.weight", "schedule.beta"}
    again = load(path)
    assert again.config == other.config and again.tokenizer(CAPTIONS).equal(
        shipped_tiny.tokenizer(CAPTIONS)
    )
    own = other.state_dict()
    for name, w in again.state_dict().items():
        off = (w - own[name]).abs().max()
        assert off == 0 if "unet.conv_in.weight" != name else off < 0.02


def test_a_clip_without_the_text_side_of_its_system():
    """Both ship; of the text, the CLIP's file holds its projection alone."""
    for name in ("emoji", "painted"):
        names = load_tensors(find(f"{name}_clip"))[0].keys()
        text = {k.removesuffix(".scale") for k in names if k.startswith("text.")}
        assert text == {"text.text_projection.weight"}
        encoder, clip = load(name).text.encoders[0].state_dict(), load(f"{name}_clip")
        assert encoder and all(clip.text.state_dict()[k].equal(w) for k, w in encoder.items())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t, m: m.update(base="nothing"), ("base", "nothing", "not in")),
        (lambda t, m: m.update(base=["tiny"]), ("base",)),
        (lambda t, m: m.pop("base"), ("1 tensors are there",)),
        (lambda t, m: t.update(surplus=torch.ones(2)), ("surplus",)),
    ],
)
def test_damaged_files_of_what_differs(shipped_tiny, tmp_path, change, words):
    path = tmp_path / "other.safetensors"
    save(path, wider(shipped_tiny), base="tiny")
    tensors, meta = load_tensors(path)
    tensors = {k: v.clone() for k, v in tensors.items()}
    change(tensors, meta)
    save_tensors(path, tensors, meta)
    with refuses(CheckpointError, "other.safetensors", *words):
        load(path)
    with refuses(OptionError, "base", "tiny"):
        save(path, shipped_tiny, base="fox")


def test_what_cannot_be_saved(sd, tmp_path):
    own = load_like(sd)
    own.text.tokenizer = lambda prompts, pad: torch.zeros(len(prompts), 16, dtype=torch.long)
    with refuses(OptionError, "tokenizer"):
        save(tmp_path / "x.safetensors", own, dtype=torch.int8)
    for meta, words in (([1], ("meta", "dict")), ("x", ("meta", "dict")), ({"a": {1}}, ("JSON",))):
        with refuses(OptionError, *words):
            save(tmp_path / "x.safetensors", sd, meta, dtype=torch.int8)
    own = load_like(sd)
    own.vae.decoder.conv_in.bias.data.fill_(float("nan"))
    with refuses(CheckpointError, "NaN", "vae.decoder.conv_in.bias"):
        save(tmp_path / "x.safetensors", own, dtype=torch.int8)
    assert not list(tmp_path.iterdir())


def load_like(sd):
    return build(sd.config)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t, m: m.update({"class": "other"}), ("no plan", "other")),
        (lambda t, m: m.pop("config"), ("no plan", "config")),
        (lambda t, m: m["config"].update(colour=1), ("no plan", "colour")),
        (lambda t, m: m["config"]["unet"].update(groups=7), ("no plan", "groups")),
        (lambda t, m: m["config"].update(text=3), ("no plan",)),
        (lambda t, m: m["config"].update(spacing="odd"), ("spacing", "odd")),
        (lambda t, m: m.update(config=[1]), ("no plan",)),
        (lambda t, m: m.update(meta=3), ("meta",)),
        (lambda t, m: m["meta"].update(words=5), ("words", "texts")),
        (lambda t, m: m["meta"].update(words=[["a"]]), ("words", "texts")),
        (
            lambda t, m: m["config"]["unet"].update(in_channels=-4, out_channels=4),
            ("in_channels", "-4"),
        ),
        (lambda t, m: m["config"]["unet"].update(blocks=10**9), ("blocks",)),
        (lambda t, m: m.update(tokenizer=3), ("tokenizer",)),
        (lambda t, m: m["tokenizer"].update(json="/etc/passwd"), ("no JSON",)),
        (lambda t, m: m["tokenizer"].update(json="{}"), ("tokenizer",)),
        (lambda t, m: m["tokenizer"].update(length=9), ("rows of 9", "16")),
        (lambda t, m: t.pop("schedule.beta"), ("schedule.beta",)),
        (lambda t, m: t["schedule.beta"].fill_(2), ("beta",)),
        (lambda t, m: t.pop("vae.encoder.conv_in.bias"), ("vae", "1 missing")),
        (lambda t, m: t.update(other=torch.ones(2)), ("other",)),
        (lambda t, m: t["unet.conv_in.bias"].fill_(float("nan")), ("NaN", "unet.conv_in.bias")),
        (
            lambda t, m: t.pop(next(k for k in t if k.startswith("unet") and k.endswith(".scale"))),
            ("int8", "scale"),
        ),
    ],
)
def test_damaged_files(file, change, words):
    tensors, meta = load_tensors(file)
    tensors = {k: v.clone() for k, v in tensors.items()}
    change(tensors, meta)
    save_tensors(file, tensors, meta)
    with refuses(CheckpointError, "tiny.safetensors", *words):
        load(file)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"spacing": "odd"}, ("odd", "leading")),
        ({"steps": 0}, ("steps",)),
        ({"guidance": -1}, ("guidance",)),
        *[
            ({"interval": pair}, ("interval",))
            for pair in (5, (1,), (9, 5), (-1, 5), (0.5, 5), (1, float("nan")))
        ],
    ],
)
def test_what_suits_nothing(change, words):
    with refuses(OptionError, *words):
        dataclasses.replace(TINY, **change)
