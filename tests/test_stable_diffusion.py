"""Whole systems from the files of a real client: diffusers builds and saves, we load and compare; and the other way round."""

import dataclasses
import json
import os
import re
import shutil
import time
import warnings
from math import prod
from pathlib import Path

import diffusers
import pytest
import torch
from folder_writer import save_folder, unet_entries, vae_entries, write_tokenizer
from helpers import read_json, refuses
from tiny_pipelines import build as theirs

from ddpm_edu import Cond, Schedule
from ddpm_edu.cli import main
from ddpm_edu.errors import CheckpointError, OptionError
from ddpm_edu.files.folder import Folder, system_config, unet_config, vae_config
from ddpm_edu.files.load import KNOWN, config_of, find, load, load_state, save, where
from ddpm_edu.files.names import to_ours
from ddpm_edu.files.tensors import save_tensors
from ddpm_edu.networks.text import TextConfig
from ddpm_edu.networks.tokenizer import Tokenizer
from ddpm_edu.networks.unet import UNetConfig
from ddpm_edu.networks.vae import VAEConfig
from ddpm_edu.systems.memory import weight_bytes
from ddpm_edu.systems.system import (
    REFINER,
    SD15,
    SD15_INPAINT,
    SD21,
    SDXL,
    SDXL_INPAINT,
    SystemConfig,
    build,
)

NAMES = ("sd", "sd2", "sdxl", "refiner")
SINGLE = read_json("layout_keys.json.gz")["original"]  # {key: shape} of the official single files
TINY = SystemConfig(
    "tiny",
    UNetConfig(channels=16, heads=(2, 2, 4, 4), context=32, groups=8),
    VAEConfig(channels=16, groups=8),
    (TextConfig(32, 12, 2, 64),),
    size=64,
)


@pytest.fixture(scope="module", params=NAMES)
def saved(request, tmp_path_factory):
    """A tiny pipeline of diffusers and the folder it saved."""
    root = tmp_path_factory.mktemp(request.param)
    pipe = theirs(request.param)
    pipe.save_pretrained(root)
    return pipe, root


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sd_folder")
    theirs("sd").save_pretrained(root)
    return root


@pytest.fixture
def folder(sd_folder, tmp_path):
    """A folder of a tiny SD that a test may damage."""
    return shutil.copytree(sd_folder, tmp_path / "model")


def edit(path, **entries):
    path.write_text(
        json.dumps(
            {k: v for k, v in {**json.loads(path.read_text()), **entries}.items() if v != "gone"}
        )
    )


def close(ours, reference):
    """Equal within 1e-5 of the largest number: float32 rounds relative to what it adds up."""
    torch.testing.assert_close(
        ours, reference, atol=1e-5 * max(1, reference.abs().max().item()), rtol=0
    )


@torch.no_grad()
def assert_equal(sd, pipe):
    """The UNet, the VAE and the text encoders of both say the same."""
    g = torch.Generator().manual_seed(1)
    c = sd.config.unet
    x, t = torch.randn(2, 4, 12, 8, generator=g), torch.tensor([3, 801])
    context = torch.randn(2, 77, c.context, generator=g)
    vector = more = None
    if c.vector:  # theirs takes the numbers themselves, ours a vector made of them
        ids = torch.tensor([[64.0, 64, 0, 0, 64, 64], [32, 8, 1, 2, 6, 2.5]])[
            :, : {"sdxl": 6, "refiner": 5}[sd.config.vector]
        ]
        more = {
            "text_embeds": torch.randn(2, sd.config.text[-1].projection, generator=g),
            "time_ids": ids,
        }
        vector = torch.cat(
            [more["text_embeds"], pipe.unet.add_time_proj(ids.flatten()).reshape(2, -1)], 1
        )
    close(
        sd.unet(x, t, Cond(context, vector)),
        pipe.unet(x, t, context, added_cond_kwargs=more).sample,
    )
    close(sd.vae.decode(x), pipe.vae.decode(x).sample)
    picture = torch.rand(1, 3, 16, 24, generator=g) * 2 - 1
    close(sd.vae.encode(picture)[0], pipe.vae.encode(picture).latent_dist.mean)
    cond = sd.text.encode(["a lighthouse at dusk", ""])
    encoders = [(pipe.tokenizer, pipe.text_encoder)] if pipe.text_encoder is not None else []
    if c.vector:
        encoders.append((pipe.tokenizer_2, pipe.text_encoder_2))
    states = []
    for tokenizer, encoder in encoders:
        ids = tokenizer(
            ["a lighthouse at dusk", ""], padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        out = encoder(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2] if c.vector else out[0])
    close(cond.context, torch.cat(states, -1))
    if c.vector:
        close(cond.vector, out[0])


# ---------------------------------------------------------------- plans


def test_parameter_counts():
    counts = {
        "SD 1.5": (859520964, 123060480),
        "SD 2.1": (865910724, 340387840),
        "SDXL base": (2567463684, 123060480 + 694659840),
        "SDXL refiner": (2259526660, 694659840),
    }
    for config in (SD15, SD21, SDXL, REFINER):
        sd = build(config, device="meta")
        parts = [sum(p.numel() for p in part.parameters()) for part in (sd.unet, sd.vae, sd.text)]
        assert parts == [counts[config.name][0], 83653863, counts[config.name][1]], config.name
        assert weight_bytes(config, torch.bfloat16) == 2 * sum(parts)
        assert (
            weight_bytes(config, torch.float16) == 2 * sum(parts) + 2 * 83653863
        )  # the VAE stays in float32


def test_official_configs(tmp_path):
    """The JSON files of the official folders become the presets. Refiner: SDXL's with the numbers that differ."""
    official = read_json("official_configs.json.gz")
    sdxl = official["sdxl_base"]
    refiner = {
        k: dict(v) for k, v in sdxl.items() if not k.startswith(("text_encoder/", "tokenizer/"))
    }
    refiner["model_index.json"] |= {
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "force_zeros_for_empty_prompt": False,
    }
    refiner["unet/config.json"] |= {
        "block_out_channels": [384, 768, 1536, 1536],
        "attention_head_dim": [6, 12, 24, 24],
        "cross_attention_dim": 1280,
        "transformer_layers_per_block": 4,
        "projection_class_embeddings_input_dim": 2560,
        "down_block_types": [
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    }
    for name, files, config in (
        ("sd15", official["sd15"], SD15),
        ("sdxl", sdxl, SDXL),
        ("refiner", refiner, REFINER),
    ):
        for file, entries in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(json.dumps(entries))
        got, schedule = system_config(Folder(tmp_path / name))
        assert got == config
        torch.testing.assert_close(schedule.beta, Schedule.sqrt_linear().beta, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"vector": "sdxl"}, ("vector", "6144|1536|0")),
        ({"vector": "other"}, ("other", "refiner")),
        ({"predict": "score"}, ("score",)),
        ({"text": (TextConfig(64, 2, 2, 64),)}, ("64", "context = 32")),
        ({"vae": VAEConfig(latent=16)}, ("16", "4 channels")),
    ],
)
def test_parts_that_do_not_fit(change, words):
    with refuses(OptionError, *words):
        dataclasses.replace(TINY, **change)


# ---------------------------------------------------------------- folders


def test_loads_what_diffusers_saved(saved):
    pipe, root = saved
    sd = load(root)
    assert_equal(sd, pipe)
    assert not any(p.is_meta or p.requires_grad for p in sd.parameters()) and not sd.training
    assert sd.predict == ("v" if pipe.scheduler.config.prediction_type == "v_prediction" else "eps")
    assert sd.config.vae.scale == pipe.vae.config.scaling_factor and sd.config.size == 64
    assert sd.config.vector == {"sdxl": "sdxl", "refiner": "refiner"}.get(
        root.name.rstrip("0123456789"), ""
    )
    assert sd.config.zero_empty == (sd.config.vector == "sdxl")
    torch.testing.assert_close(sd.schedule.alpha_bar.float(), pipe.scheduler.alphas_cumprod)


def test_loads_shards(saved, tmp_path):
    pipe, _ = saved
    pipe.save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(Folder(tmp_path).weights("unet")) > 2 and len(Folder(tmp_path).weights("vae")) > 1
    assert_equal(load(tmp_path), pipe)


def test_half_precision_files(tmp_path):
    """Files in float16: read as float32 they are the same numbers; half precision prefers them where both stand."""
    pipe = theirs("sdxl")
    pipe.save_pretrained(tmp_path)
    half = theirs("sdxl", seed=1).to(torch.float16)
    half.save_pretrained(tmp_path / "half", variant="fp16")
    assert_equal(load(tmp_path / "half"), half.to(torch.float32))
    for file in (tmp_path / "half").rglob("*.fp16.safetensors"):
        shutil.copy(file, tmp_path / file.relative_to(tmp_path / "half"))
    assert_equal(load(tmp_path), pipe)
    sd = load(tmp_path, dtype=torch.float16)
    assert (
        {p.dtype for p in sd.unet.parameters()}
        == {p.dtype for p in sd.text.parameters()}
        == {torch.float16}
    )
    assert {p.dtype for p in sd.vae.parameters()} == {torch.float32}  # never in float16
    torch.testing.assert_close(
        sd.unet.conv_in.weight.float(), half.unet.conv_in.weight, atol=0, rtol=0
    )
    torch.testing.assert_close(
        sd.vae.encoder.conv_in.weight, pipe.vae.encoder.conv_in.weight, atol=0, rtol=0
    )
    assert {p.dtype for p in load(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_non_ema_weights(folder):
    plain, other = folder / "unet" / "diffusion_pytorch_model.safetensors", theirs("sd", seed=5)
    other.unet.save_pretrained(folder / "unet", variant="non_ema")
    assert plain.is_file()
    torch.testing.assert_close(
        load(folder, ema=False).unet.conv_in.weight, other.unet.conv_in.weight
    )
    assert not torch.equal(load(folder).unet.conv_in.weight, other.unet.conv_in.weight)


def test_more_input_channels(tmp_path):
    """An inpainting UNet takes nine channels and returns four."""
    from tiny_pipelines import unet

    pipe = theirs("sd")
    config = {**unet(32).config, "in_channels": 9}
    pipe.unet = diffusers.UNet2DConditionModel.from_config(config).eval()
    pipe.save_pretrained(tmp_path)
    sd = load(tmp_path)
    x, context = torch.randn(1, 9, 8, 8), torch.randn(1, 77, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            sd.unet(x, torch.tensor([7]), Cond(context)),
            pipe.unet(x, 7, context).sample,
            atol=1e-5,
            rtol=0,
        )


def test_another_schedule(folder):
    edit(
        folder / "scheduler" / "scheduler_config.json",
        beta_schedule="linear",
        beta_start=0.0001,
        beta_end=0.02,
        num_train_timesteps=500,
        prediction_type="v_prediction",
        _class_name="DDIMScheduler",
    )
    sd = load(folder)
    assert sd.predict == "v"
    torch.testing.assert_close(sd.schedule.beta, Schedule.linear(500).beta)


@pytest.mark.parametrize(
    "file, entries, words",
    [
        ("unet/config.json", {"class_embed_type": "timestep"}, ("class_embed_type", "timestep")),
        ("unet/config.json", {"addition_embed_type": "image"}, ("addition_embed_type", "image")),
        (
            "unet/config.json",
            {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]},
            ("down_block_types", "AttnDownBlock2D"),
        ),
        (
            "unet/config.json",
            {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]},
            ("up_block_types",),
        ),
        ("unet/config.json", {"mid_block_type": None}, ("mid_block_type", "None")),
        ("unet/config.json", {"block_out_channels": [64, 96]}, ("block_out_channels", "96")),
        ("unet/config.json", {"block_out_channels": []}, ("unet.config.json",)),
        ("unet/config.json", {"block_out_channels": [64, "128"]}, ("unet.config.json",)),
        ("unet/config.json", {"attention_head_dim": [2, 3]}, ("heads = 3",)),
        ("unet/config.json", {"attention_head_dim": [2]}, ("attention_head_dim",)),
        (
            "unet/config.json",
            {"transformer_layers_per_block": [[1], [1]]},
            ("transformer_layers_per_block",),
        ),
        ("unet/config.json", {"cross_attention_dim": [32, 64]}, ("cross_attention_dim",)),
        ("unet/config.json", {"norm_num_groups": 0}, ("unet.config.json", "groups")),
        (
            "unet/config.json",
            {"addition_embed_type": "text_time"},
            ("projection_class_embeddings_input_dim",),
        ),
        (
            "unet/config.json",
            {"attention_head_dim": [2, 4], "cross_attention_dim": 48},
            ("context = 48", "32"),
        ),
        ("unet/config.json", {"time_cond_proj_dim": 64}, ("time_cond_proj_dim", "64")),
        ("vae/config.json", {"shift_factor": 0.1}, ("shift_factor", "0.1")),
        ("vae/config.json", {"use_quant_conv": False}, ("use_quant_conv",)),
        ("vae/config.json", {"scaling_factor": "big"}, ("scaling_factor", "big")),
        ("vae/config.json", {"scaling_factor": 0}, ("scale = 0",)),
        ("vae/config.json", {"latent_channels": 16}, ("16", "4 channels")),
        ("text_encoder/config.json", {"hidden_act": "relu"}, ("hidden_act", "relu")),
        ("text_encoder/config.json", {"num_attention_heads": 5}, ("heads = 5",)),
        (
            "scheduler/scheduler_config.json",
            {"beta_schedule": "sigmoid"},
            ("beta_schedule", "sigmoid"),
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            ("FlowMatch",),
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "EDMEulerScheduler"},
            ("_class_name", "EDMEulerScheduler"),
        ),
        (
            "scheduler/scheduler_config.json",
            {"beta_end": 7},
            ("scheduler_config.json", "beta|0 and 1|between"),
        ),
        ("tokenizer/tokenizer_config.json", {"pad_token": "[PAD]"}, ("pad_token", "PAD")),
        (
            "model_index.json",
            {"unet": ["diffusers", "UNet3DConditionModel"]},
            ("unet", "UNet3DConditionModel"),
        ),
        (
            "model_index.json",
            {"unet": "gone", "transformer": ["diffusers", "SD3Transformer2DModel"]},
            ("unet", "another kind"),
        ),
        ("model_index.json", {"text_encoder": [None, None]}, ("no text encoder",)),
        (
            "model_index.json",
            {"text_encoder": ["transformers", "T5EncoderModel"]},
            ("text_encoder", "T5EncoderModel"),
        ),
    ],
)
def test_configs_that_cannot_be(folder, file, entries, words):
    edit(folder / file, **entries)
    with refuses(CheckpointError, *words):
        load(folder)


def test_a_missing_scale(folder, tmp_path):
    """SD 1.5's own config is older than the entry; SDXL's must have it."""
    edit(folder / "vae" / "config.json", scaling_factor="gone")
    assert load(folder).config.vae.scale == 0.18215
    theirs("sdxl").save_pretrained(tmp_path / "sdxl")
    edit(tmp_path / "sdxl" / "vae" / "config.json", scaling_factor="gone")
    with refuses(CheckpointError, "scaling_factor", "0.13025"):
        load(tmp_path / "sdxl")


@pytest.mark.parametrize("numbers", [4, 7])
def test_a_vector_of_neither_kind(tmp_path, numbers):
    theirs("sdxl").save_pretrained(tmp_path)
    edit(tmp_path / "unet" / "config.json", projection_class_embeddings_input_dim=24 + numbers * 8)
    with refuses(
        CheckpointError, "projection_class_embeddings_input_dim", str(24 + numbers * 8), "refiner"
    ):
        load(tmp_path)


@pytest.mark.parametrize(
    "gone, words",
    [
        ("model_index.json", ("model_index.json", "no such file")),
        ("unet/config.json", ("unet.config.json", "no such file")),
        (
            "unet/diffusion_pytorch_model.safetensors",
            ("unet: no weights", "diffusion_pytorch_model.safetensors", "config.json"),
        ),
        ("vae", ("vae",)),
        ("text_encoder/model.safetensors", ("text_encoder: no weights",)),
        ("scheduler/scheduler_config.json", ("scheduler_config.json",)),
    ],
)
def test_files_that_are_missing(folder, gone, words):
    (shutil.rmtree if (folder / gone).is_dir() else lambda p: p.unlink())(folder / gone)
    with refuses(CheckpointError, *words):
        load(folder)


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", ("not readable as JSON",)),
        ("[1]", ("list",)),
        ("", ("JSON",)),
        ("[" * 100000, ("JSON",)),
    ],
)
def test_a_config_that_is_none(folder, content, words):
    (folder / "unet" / "config.json").write_text(content)
    with refuses(CheckpointError, "unet.config.json", *words):
        load(folder)


def test_weights_of_another_part(folder):
    shutil.copy(
        folder / "vae" / "diffusion_pytorch_model.safetensors",
        folder / "unet" / "diffusion_pytorch_model.safetensors",
    )
    with refuses(CheckpointError, "UNet", "missing", "looks like the VAE"):
        load(folder)


def test_a_pickle_is_refused(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(theirs("sd").unet.state_dict(), weights.with_suffix(".bin"))
    weights.unlink()
    with refuses(CheckpointError, "pickle"):
        load(folder)


@pytest.fixture
def shards(folder):
    theirs("sd").unet.save_pretrained(folder / "unet", max_shard_size="500KB")
    return folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"


def test_a_missing_shard(shards):
    files = Folder(shards.parent.parent).weights("unet")
    files[1].unlink()
    with refuses(CheckpointError, f"1 of {len(files)} shards missing", files[1].name):
        load(shards.parent.parent)


@pytest.mark.parametrize(
    "name",
    [
        "../../secret.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "..\\x.safetensors",
        "C:x.safetensors",
        "",
    ],
)
def test_a_shard_outside_its_folder(shards, name):
    (shards.parent.parent.parent / "secret.safetensors").write_bytes(b"secret")
    entries = json.loads(shards.read_text())
    entries["weight_map"]["conv_in.bias"] = name
    shards.write_text(json.dumps(entries))
    with refuses(CheckpointError, "outside its folder", "refused"):
        load(shards.parent.parent)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}])
def test_an_index_that_is_none(shards, weight_map):
    edit(shards, weight_map=weight_map)
    with refuses(CheckpointError, "weight_map"):
        load(shards.parent.parent)


def test_the_same_tensor_in_two_shards(shards):
    first, second = Folder(shards.parent.parent).weights("unet")[:2]
    shutil.copy(first, second)
    with refuses(CheckpointError, "another shard"):
        load(shards.parent.parent)


# ---------------------------------------------------------------- single files


def sparse(path, shapes, dtype="BF16", meta=None):
    """A safetensors file of these shapes, full of zeros that take no room on the disk."""
    header, at = {"__metadata__": meta} if meta else {}, 0
    for name, shape in shapes.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [at, at := at + 2 * prod(shape)],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with open(path, "r+b") as f:
        f.truncate(8 + len(text) + at)


@pytest.mark.parametrize(
    "name, config",
    [
        ("sd15", SD15),
        pytest.param("sd21", SD21, marks=pytest.mark.slow),
        pytest.param("sdxl_base", SDXL, marks=pytest.mark.slow),
        ("sdxl_refiner", REFINER),
    ],
)
def test_official_single_files(tmp_path, name, config):
    """Names and shapes of the official files fill the whole system, one to one; no number is read."""
    path = tmp_path / next(iter(next(k.files for k in KNOWN.values() if k.config is config)))
    sparse(path, SINGLE[name])
    assert config_of(path) == config
    sd = load(path, device="meta", dtype=torch.bfloat16)
    assert sd.config == config


WIDE = {"model.diffusion_model.input_blocks.0.0.weight": [320, 9, 3, 3]}


@pytest.mark.parametrize(
    "name, config",
    [("sd15", SD15_INPAINT), pytest.param("sdxl_base", SDXL_INPAINT, marks=pytest.mark.slow)],
)
def test_inpainting_single_files(tmp_path, name, config):
    """Those of the base but for the first layer; the file needs no name that is known."""
    path = tmp_path / "model.safetensors"
    sparse(path, {**SINGLE[name], **WIDE})
    assert config_of(path) == config
    sd = load(path, device="meta", dtype=torch.bfloat16, ema=False)  # averaged ones are of the base
    assert sd.config == config


@pytest.mark.parametrize("name", ["sd15-inpaint", "sdxl-inpaint"])
def test_inpainting_systems_are_known(name):
    known = KNOWN[name]
    assert known.hub.count("/") == 1 and "inpainting" in known.hub
    assert (known.config.unet.in_channels, known.config.unet.out_channels) == (9, 4)
    assert config_of(name) == known.config and len(where(name)) == 2 + len(known.files)


def test_more_channels_for_something_else(tmp_path):
    """InstructPix2Pix."""
    name = "model.diffusion_model.input_blocks.0.0.weight"
    sparse(tmp_path / "model.safetensors", {**SINGLE["sd15"], name: [320, 8, 3, 3]})
    unet = config_of(tmp_path / "model.safetensors").unet
    assert (unet.in_channels, unet.out_channels) == (8, 4)


def original(sd):
    """The system in SD 1.5's single-file names, by asking which original name becomes which of ours."""
    out = {}
    for prefix, kind, part in (
        ("model.diffusion_model.", "unet", sd.unet),
        ("first_stage_model.", "vae", sd.vae),
        ("cond_stage_model.", "text", sd.text.encoders[0]),
    ):
        keys = [k for k in SINGLE["sd15"] if k.startswith(prefix)]
        names = to_ours(
            kind, {k.removeprefix(prefix): torch.tensor([i]) for i, k in enumerate(keys)}
        )
        own = part.state_dict()
        assert names.keys() == own.keys()
        for name, i in names.items():
            x, shape = own[name], SINGLE["sd15"][keys[i]]
            out[keys[i]] = x[:, :, None, None] if len(shape) == 4 and x.ndim == 2 else x
    return out


def test_a_single_file_fills_the_system(tmp_path):
    torch.manual_seed(3)
    sd, path = build(TINY), tmp_path / "tiny.safetensors"
    state = original(sd)
    save_tensors(
        path, {**state, "model_ema.decay": torch.tensor(0.9), "alphas_cumprod": torch.zeros(1000)}
    )
    got = load(path, config=TINY)
    assert all(
        torch.equal(a, b)
        for a, b in zip(sd.state_dict().values(), got.state_dict().values(), strict=True)
    )
    with refuses(CheckpointError, "context 32 wide", "number of heads", "config="):
        load(path)
    with refuses(CheckpointError, "UNet", "another shape"):
        load(
            path,
            config=dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, channels=128)),
        )


def test_averaged_weights(tmp_path):
    torch.manual_seed(4)
    sd, path = build(TINY), tmp_path / "tiny.safetensors"
    state = original(sd)
    ema = {
        "model_ema." + k.removeprefix("model.").replace(".", ""): v + 1
        for k, v in state.items()
        if k.startswith("model.diffusion")
    }
    save_tensors(path, {**state, **ema})
    assert torch.equal(load(path, config=TINY).unet.conv_in.weight, sd.unet.conv_in.weight + 1)
    assert torch.equal(
        load(path, config=TINY, ema=False).unet.conv_in.weight, sd.unet.conv_in.weight
    )


@pytest.mark.parametrize(
    "drop, words",
    [
        ("cond_stage_model.", ("no weights of text_encoder", "unet", "vae")),
        ("first_stage_model.", ("no weights of vae",)),
        ("model.diffusion_model.middle_block.0.", ("missing", "mid.0")),
    ],
)
def test_a_single_file_with_parts_missing(tmp_path, drop, words):
    save_tensors(
        tmp_path / "part.safetensors",
        {k: v for k, v in original(build(TINY)).items() if not k.startswith(drop)},
    )
    with refuses(CheckpointError, *words):
        load(tmp_path / "part.safetensors", config=TINY)


def test_nan_in_a_file(tmp_path):
    state = original(build(TINY))
    state["model.diffusion_model.out.2.bias"][1] = float("nan")
    save_tensors(tmp_path / "nan.safetensors", state)
    with refuses(CheckpointError, "NaN", "conv_out.bias"):
        load(tmp_path / "nan.safetensors", config=TINY)


def test_files_of_another_kind(tmp_path, sd_folder):
    save_tensors(tmp_path / "lora.safetensors", {"lora_unet_mid.lora_up.weight": torch.zeros(2, 2)})
    with refuses(CheckpointError, "LoRA"):
        load(tmp_path / "lora.safetensors")
    with refuses(CheckpointError, "no single file", "looks like the UNet"):
        load(sd_folder / "unet" / "diffusion_pytorch_model.safetensors")
    for part, kind in (("unet", "UNet2DConditionModel"), ("text_encoder", "CLIPTextModel")):
        with refuses(CheckpointError, "one part of a system", kind, "model_index.json"):
            load(sd_folder / part)
    (tmp_path / "empty.safetensors").touch()
    with refuses(CheckpointError, "empty"):
        load(tmp_path / "empty.safetensors")
    for nothing in (tmp_path / "no.safetensors", "nobody", "./a/b/c"):
        with refuses(CheckpointError, "no such file", "sd15"):
            load(nothing)
    with refuses(OptionError, "dtype"):
        load(sd_folder, dtype=torch.int8)


# ---------------------------------------------------------------- reports and faults


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """A tiny SDXL, in its folder and loaded."""
    root = tmp_path_factory.mktemp("xl")
    theirs("sdxl").save_pretrained(root)
    return root, load(root)


def marked(sd, path, *marks):
    """The system as one file in our own names behind the original prefixes, with marks beside."""
    prefixes = ("model.diffusion_model.", "first_stage_model.", "conditioner.embedders.0.")
    state = {
        prefix + k: v
        for prefix, part in zip((*prefixes, "conditioner.embedders.1."), sd.parts().values())
        for k, v in part.state_dict().items()
    }
    save_tensors(path, state | {mark: torch.tensor([]) for mark in marks})
    return path


@pytest.mark.parametrize("marks", [(), ("v_pred",), ("v_pred", "ztsnr")])
@pytest.mark.parametrize("known", ["eps", "v"])
def test_marks_are_heeded(xl, tmp_path, marks, known):
    """github.com/AUTOMATIC1111/stable-diffusion-webui#16567: read as eps, the model draws noise."""
    config = dataclasses.replace(xl[1].config, predict=known)
    path = marked(xl[1], tmp_path / "x.safetensors", *marks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sd = load(path, config=config)
    assert sd.predict == ("v" if marks else known)
    assert torch.equal(sd.unet.conv_in.weight, xl[1].unet.conv_in.weight)
    assert (sd.schedule.alpha_bar[-1] == 0) == ("ztsnr" in marks) == bool(caught)
    if "ztsnr" in marks:
        assert sd.config.spacing == "trailing" and "ztsnr" in str(caught[0].message)


@pytest.mark.parametrize("mark", ["edm_mean", "edm_vpred.sigma_max"])
def test_marks_that_cannot_be_followed(xl, tmp_path, mark):
    with refuses(CheckpointError, "x.safetensors", mark, "EDM"):
        load(marked(xl[1], tmp_path / "x.safetensors", mark), config=xl[1].config)


@pytest.mark.parametrize(
    "kind",
    [
        "FlowMatchEulerDiscreteScheduler",
        "EDMDPMSolverMultistepScheduler",
        "EDMEulerScheduler",
        "CMStochasticIterativeScheduler",
        "ScoreSdeVeScheduler",
        "LCMScheduler",
        "TCDScheduler",
        ["DDIMScheduler"],
        None,
    ],
)
def test_a_scheduler_of_another_kind_is_refused_by_name(folder, kind):
    """github.com/huggingface/diffusers#10638: its betas mean nothing, every picture is noise."""
    edit(folder / "scheduler" / "scheduler_config.json", _class_name=kind)
    with refuses(CheckpointError, "_class_name", re.escape(str(kind))):
        load(folder)


@pytest.mark.parametrize("steps", [0, -1, 10**12, 200_000_000, "1000", 1e3])
def test_a_schedule_of_no_length(folder, steps):
    edit(folder / "scheduler" / "scheduler_config.json", num_train_timesteps=steps)
    with refuses(CheckpointError, "scheduler_config.json", re.escape(str(steps))):
        load(folder)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_new_word_of_textual_inversion(name, old, tmp_path):
    """github.com/huggingface/diffusers#10754: the word's id lies above the end token's, where the
    pooled text is taken. old: the tokenizer's files as transformers 4 wrote them."""
    pipe = theirs(name)
    for suffix in ("", "_2") if name == "sdxl" else ("",):
        encoder = getattr(pipe, f"text_encoder{suffix}")
        getattr(pipe, f"tokenizer{suffix}").add_tokens(["<my-cat>"])
        encoder.resize_token_embeddings(49409)
        encoder.config.eos_token_id = 49407
        getattr(encoder, "text_model", encoder).eos_token_id = 49407
    pipe.save_pretrained(tmp_path)
    for file in tmp_path.glob("tokenizer*/tokenizer.json") if old else ():
        file.unlink()
        write_tokenizer(file.parent, "!" if file.parent.name.endswith("2") else "eot")
        (file.parent / "added_tokens.json").write_text(json.dumps({"<my-cat>": 49408}))
    sd, words = load(tmp_path), ["a photo of <my-cat> on a sofa"]
    assert sd.config.text[-1].end == 49407 and sd.text.tokenizer(words)[0, 4] == 49408
    encoders = [(pipe.tokenizer, pipe.text_encoder)]
    if name == "sdxl":
        encoders.append((pipe.tokenizer_2, pipe.text_encoder_2))
    with torch.no_grad():
        for tokenizer, encoder in encoders:
            options = dict(padding="max_length", max_length=77, return_tensors="pt")
            out = encoder(tokenizer(words, **options).input_ids, output_hidden_states=True)
    close(sd.text.encode(words).vector if name == "sdxl" else sd.text.encode(words).context, out[0])
    save(tmp_path / "x.safetensors", sd)  # and in our own file
    assert load(tmp_path / "x.safetensors").text.tokenizer(words).equal(sd.text.tokenizer(words))


def test_a_tokenizer_of_more_words_than_its_encoder(folder):
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<my-cat>": 49408}))
    with refuses(CheckpointError, "tokenizer", "49,409 words", "49,408"):
        load(folder)
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<my-cat>": "many"}))
    with refuses(CheckpointError, "tokenizer"):
        load(folder)


@pytest.mark.skipif(not hasattr(Path, "symlink_to"), reason="needs links")
@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "unet/config.json",
        "model_index.json",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
        "vae",
    ],
)
def test_a_link_out_of_the_folder_is_refused(folder, tmp_path, name):
    secret = tmp_path / "secret"
    (folder / name).rename(secret)
    (folder / name).symlink_to(secret)
    with refuses(CheckpointError, "link out of the model's folder", "refused"):
        load(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(folder / name)  # a circle
    with refuses(CheckpointError, name.split("/")[0], "link|no such file|layout"):
        load(folder)


def test_a_shard_that_is_a_link_and_the_links_of_the_hub(shards, tmp_path):
    root = shards.parent.parent
    files = Folder(root).weights("unet")
    for file in files:  # as the hub's cache has them: blobs beside snapshots
        (tmp_path / "hub" / "blobs").mkdir(parents=True, exist_ok=True)
        file.rename(tmp_path / "hub" / "blobs" / file.name)
    place = tmp_path / "hub" / "snapshots" / "abc"
    shutil.copytree(root, place)
    for file in files:
        (place / "unet" / file.name).symlink_to(tmp_path / "hub" / "blobs" / file.name)
        (root / "unet" / file.name).symlink_to(tmp_path / "hub" / "blobs" / file.name)
    assert_equal(load(place), theirs("sd"))
    with refuses(CheckpointError, "link out of the model's folder"):
        load(root)


def test_json_of_any_size_and_pipes(folder):
    config = folder / "unet" / "config.json"
    with open(config, "r+b") as f:
        f.truncate(200_000_000)
    with refuses(CheckpointError, "unet.config.json", "30,000,000 bytes"):
        load(folder)
    config.unlink()
    os.mkfifo(config)
    with refuses(CheckpointError, "unet.config.json", "no regular file"):
        load(folder)


def test_an_empty_folder_lists_the_layout(tmp_path):
    words = ("model_index.json", "unet", "vae", "text_encoder", "scheduler", "nothing")
    with refuses(CheckpointError, *words):
        load(tmp_path)


HARMFUL = {
    "unet": {"block_out_channels": [8192, 16384]},
    "vae": {"block_out_channels": [8192] * 4},
    "text_encoder": {"num_hidden_layers": 65_536},
    "unet blocks": {"layers_per_block": 65_536},
    "unet depth": {"transformer_layers_per_block": [1, 1024]},
    "vae blocks": {"layers_per_block": 65_536},
    "text_encoder feed-forward": {"intermediate_size": 32768},
}


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_harmful_plan_is_compared_before_it_is_built(folder, kind):
    import resource

    edit(folder / kind.split()[0] / "config.json", **HARMFUL[kind])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with refuses(CheckpointError, kind.split()[0]):
        load(folder)
    assert time.process_time() - start < 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize(
    "state, words",
    [
        ({"lora_unet_mid.lora_up.weight": torch.zeros(2, 2)}, "LoRA"),
        ({"unet.mid.attn1.to_q.lora_A.weight": torch.zeros(2, 2)}, "LoRA"),
        ({"lora_te_text_model.hada_w1_a": torch.zeros(2, 2)}, "LoRA"),
        ({"emb_params": torch.zeros(2, 768)}, "textual inversion"),
        ({"<my-cat>": torch.zeros(768)}, "textual inversion"),
        ({"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}, "textual inversion"),
        ({"control_model.input_blocks.0.0.weight": torch.zeros(2)}, "ControlNet"),
        ({"image_proj.norm.weight": torch.zeros(2)}, "adapter"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, "FLUX"),
    ],
)
def test_what_is_no_model_is_named_everywhere(state, words, tmp_path, capsys):
    save_tensors(path := tmp_path / "x.safetensors", state)
    for ask in (load, config_of, lambda p: load(p, config=TINY)):
        with refuses(CheckpointError, "x.safetensors", words):
            ask(path)
    with refuses(CheckpointError, words):
        load_state(build(TINY, device="meta").unet, state, path)
    for command in ("sample", "txt2img"):
        more = ["a cat"] if command == "txt2img" else []
        assert main([command, *more, "--model", str(path), "--out", str(tmp_path / "a.png")]) == 2
        assert words in capsys.readouterr().err


def test_a_name_of_another_kind_is_named(tmp_path, capsys):
    out = ["--out", str(tmp_path / "a.png")]
    for name, kind in ("mnist", "SpaceToDepth"), ("cifar10", "GaussianPrior"):
        with refuses(CheckpointError, name, kind, "sample"):
            config_of(name)
    for command, word in (
        (["txt2img", "a cat", "--model", "mnist"], "SpaceToDepth"),
        (["txt2img", "a cat", "--model", "cifar10"], "GaussianPrior"),
        (["sample", "--model", "emoji"], "txt2img"),
        (["sample", "--model", "mnist_classifier"], "Classifier"),
    ):
        assert main(command + out) == 2 and word in capsys.readouterr().err


@pytest.mark.parametrize(
    "meta, predict, size, silent",
    [
        ({}, "v", 768, False),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v", 768, True),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, "eps", 512, True),
        ({"modelspec.prediction_type": "epsilon"}, "eps", 768, True),
    ],
)
def test_sd2_base_or_768_is_heeded_or_said_aloud(tmp_path, meta, predict, size, silent):
    path = tmp_path / "model.safetensors"
    sparse(path, SINGLE["sd21"], meta=meta)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = config_of(path)
    assert (config.predict, config.size, not caught) == (predict, size, silent)
    assert silent or "SD2_BASE" in str(caught[0].message)


# ---------------------------------------------------------------- known and hub names


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of huggingface_hub, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("DDPM_EDU_DATA", str(tmp_path / "data"))
    return tmp_path / "hub"


def put(cache, repo, folder):
    """A model in the cache, as huggingface_hub lays it out."""
    root = cache / ("models--" + repo.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc123")
    return shutil.copytree(folder, root / "snapshots" / "abc123")


def test_hub_name_from_the_cache(hub_cache, sd_folder, monkeypatch):
    monkeypatch.delenv("DDPM_EDU_DATA")  # the tokenizer
    put(hub_cache, "somebody/tiny-sd", sd_folder)
    assert_equal(load("somebody/tiny-sd"), theirs("sd"))


def test_offline_says_where_it_looked(hub_cache, sd_folder):
    with refuses(
        CheckpointError,
        "somebody/tiny-sd",
        "models--somebody--tiny-sd",
        "HF_HUB_OFFLINE",
        "safetensors",
    ):
        load("somebody/tiny-sd")
    with refuses(
        CheckpointError,
        *(str(place).replace("\\", ".") for place in where("sd15")),
        "HF_HUB_OFFLINE",
    ):
        load("sd15")
    root = put(hub_cache, "somebody/half", sd_folder)
    (root / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with refuses(CheckpointError, "incomplete", "snapshots"):
        load("somebody/half")


def test_known_name_from_the_data_folder(hub_cache, tmp_path):
    places = where("sdxl")
    assert places[
        0
    ] == tmp_path / "data" / "models" / "sdxl" and "stable-diffusion-xl-base-1.0" in str(places[-1])
    places[1].parent.mkdir(parents=True)
    sparse(places[1], SINGLE["sdxl_base"])
    assert find("sdxl") == places[1]
    assert load("sdxl", device="meta", dtype=torch.bfloat16).config == SDXL
    with refuses(OptionError, "sd16", "sd15"):
        where("sd16")


FILES = [
    "model_index.json",
    "README.md",
    "v1-5-pruned.safetensors",
    "scheduler/scheduler_config.json",
    "tokenizer/vocab.json",
    "safety_checker/model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "text_encoder/config.json",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.fp16.json",
    "text_encoder/model.fp16-00001-of-00001.safetensors",
]


def test_only_needed_files_are_fetched(hub_cache, monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def fetch(repo, allow_patterns=None, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not there")
        asked.append((repo, set(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo: FILES)
    always = {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
    }
    full = {
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        *(f for f in FILES if "00002" in f or f.endswith("index.json")),
    }
    assert find("somebody/model") == tmp_path
    assert asked.pop() == ("somebody/model", always | full)
    find("sd15", torch.float16)
    half = {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        *(f for f in FILES if "text" in f and "fp16" in f),
    }
    assert asked.pop() == (KNOWN["sd15"].hub, always | half)
    find("somebody/model", ema=False)
    assert (
        "unet/diffusion_pytorch_model.non_ema.safetensors" in asked[-1][1]
        and "unet/diffusion_pytorch_model.safetensors" not in asked[-1][1]
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, repo: ["a.gguf"])
    with refuses(CheckpointError, "model_index.json", "somebody/other"):
        load("somebody/other")


# ---------------------------------------------------------------- saving

CLASSES = {
    "sd": diffusers.StableDiffusionPipeline,
    "sd2": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
    "refiner": diffusers.StableDiffusionXLImg2ImgPipeline,
}


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_loads_what_we_save(name, tmp_path):
    """With other weights than it ever wrote: ours, as after training."""
    theirs(name).save_pretrained(tmp_path / "theirs")
    torch.manual_seed(7)
    sd = build(*system_config(Folder(tmp_path / "theirs")))
    save_folder(sd, tmp_path / "ours")
    pipe = CLASSES[name].from_pretrained(tmp_path / "ours")
    assert_equal(sd, pipe)
    again = load(tmp_path / "ours")
    assert dataclasses.replace(again.config, name=sd.config.name) == sd.config
    assert all(
        torch.equal(a, b)
        for a, b in zip(sd.state_dict().values(), again.state_dict().values(), strict=True)
    )
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod, sd.schedule.alpha_bar.float())
    assert pipe.scheduler.config.prediction_type == (
        "v_prediction" if sd.predict == "v" else "epsilon"
    )
    assert not list(tmp_path.rglob("*.part"))


def test_saved_tokenizer_files_are_the_official_ones(tmp_path):
    import hashlib

    write_tokenizer(tmp_path, "eot")
    sums = {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        for name in ("vocab.json", "merges.txt")
    }
    assert sums == {
        "vocab.json": "e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349",
        "merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
    }


def test_words_of_your_own(tmp_path):
    import tokenizers

    words = ["[pad]", "red", "blue", "circle", "[begin]", "[end]"]
    bpe = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[pad]")
    )
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    sd = build(dataclasses.replace(TINY, text=(TextConfig(32, 2, 2, 64, vocab=6, length=5),)))
    sd.text.tokenizer = Tokenizer(bpe, "[begin]", "[end]", 5)
    save_folder(sd, tmp_path)
    again = load(tmp_path)
    assert again.config.text == sd.config.text
    close(
        again.text.encode(["red circle", "blue"]).context,
        sd.text.encode(["red circle", "blue"]).context,
    )
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    with refuses(CheckpointError, "tokenizer"):
        load(tmp_path)


def test_configs_survive_both_ways():
    for config in (SD15, SD21, SDXL, REFINER, TINY):
        assert unet_config(json.loads(json.dumps(unet_entries(config.unet, 256)))) == config.unet
        assert vae_config(json.loads(json.dumps(vae_entries(config.vae)))) == config.vae


def test_two_encoders_without_a_vector(tmp_path):
    """Both texts side by side, as in SDXL, and nothing added to the time: no layout of a known one."""
    sd = theirs("sd")
    sd.save_pretrained(tmp_path)
    shutil.copytree(tmp_path / "text_encoder", tmp_path / "text_encoder_2")
    shutil.copytree(tmp_path / "tokenizer", tmp_path / "tokenizer_2")
    index = tmp_path / "model_index.json"
    edit(index, text_encoder_2=["transformers", "CLIPTextModel"])
    with refuses(CheckpointError, "model_index.json", "64", "32"):
        load(tmp_path)
    from tiny_pipelines import unet

    unet(64).save_pretrained(tmp_path / "unet")
    got = load(tmp_path)
    assert list(got.parts()) == ["unet", "vae", "text_encoder", "text_encoder_2"]
