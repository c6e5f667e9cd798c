"""Names in every layout, one to one; single files taken apart; and what a set of names is called."""

import functools
import itertools

import pytest
import torch
from folder_writer import to_folder
from helpers import read_json, refuses

from ddpm_edu import CheckpointError, Cond
from ddpm_edu.files.load import load_state
from ddpm_edu.files.names import looks_like, split_single_file, to_ours
from ddpm_edu.networks.mlp import MLP
from ddpm_edu.networks.text import CLIP_L, OPEN_CLIP_G, OPEN_CLIP_H, TextEncoder
from ddpm_edu.networks.unet import (
    SD15,
    SD21,
    SDXL_BASE,
    SDXL_REFINER,
    UNet,
    UNetConfig,
    timestep_embedding,
)
from ddpm_edu.networks.vae import SD_VAE, SDXL_VAE, VAE

KEYS = read_json(
    "layout_keys.json.gz"
)  # official: original (whole files), folder (UNets), text and vae (folder), map (UNets, original -> folder)
UNETS = {"sd15": SD15, "sd21": SD21, "sdxl_base": SDXL_BASE, "sdxl_refiner": SDXL_REFINER}
TEXTS = {
    "sd15": {"text": CLIP_L},
    "sd21": {"text": OPEN_CLIP_H},
    "sdxl_base": {"text": CLIP_L, "text_2": OPEN_CLIP_G},
    "sdxl_refiner": {"text": OPEN_CLIP_G},
}
SMALL = UNetConfig(
    channels=8,
    mult=(1, 2),
    depth=(1, 2),
    middle=1,
    heads=(2, 2),
    context=6,
    vector=5,
    blocks=1,
    groups=4,
)


def empty(shapes):
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def shapes(state):
    return {key: tuple(value.shape) for key, value in state.items()}


@functools.cache
def on_meta(name):
    with torch.device("meta"):
        return UNet(UNETS[name])


@functools.cache
def parts(name, ema=True):
    return split_single_file(empty(KEYS["original"][name]), ema)


def listed(name, layout):
    return KEYS[layout][name].items()


# ---------------------------------------------------------------- the official UNets, every name of them


def test_parameters_of_sd21():
    assert sum(p.numel() for p in on_meta("sd21").parameters()) == 865_910_724


@pytest.mark.parametrize("name", UNETS)
def test_unet_from_both_layouts_one_to_one(name):
    own = shapes(on_meta(name).state_dict())
    for state in (parts(name)["unet"], empty(KEYS["folder"][name]), on_meta(name).state_dict()):
        assert len(state) == len(own) and shapes(to_ours("unet", state)) == own
    with_prefix = {f"model.diffusion_model.{k}": v for k, v in parts(name)["unet"].items()}
    assert shapes(to_ours("unet", with_prefix)) == own


@pytest.mark.parametrize("name", UNETS)
def test_unet_to_the_folder_layout(name):
    """Convolutions (O, I, 1, 1) for SD 1.5, matrices for the others, as the official folders have them."""
    back = to_folder("unet", on_meta(name).state_dict(), conv=name == "sd15")
    assert shapes(back) == {k: tuple(v) for k, v in listed(name, "folder")}


@pytest.mark.parametrize("name", KEYS["map"])
def test_both_layouts_mean_the_same_tensor(name):
    """Each original name and the folder name it is known to be become one name here: shapes alone would not tell."""
    original = dict(zip(parts(name)["unet"], to_ours("unet", parts(name)["unet"])))
    folder = dict(zip(KEYS["folder"][name], to_ours("unet", empty(KEYS["folder"][name]))))
    assert len(KEYS["map"][name]) == len(original) == len(set(original.values()))
    assert {k: original[k] for k in original} == {
        k: folder[there] for k, there in KEYS["map"][name].items()
    }


@pytest.mark.parametrize(
    "levels, blocks, middle", list(itertools.product((1, 2, 3), (1, 3), (0, 1)))
)
@pytest.mark.parametrize("depth", [(0, 0, 0), (1, 1, 1), (0, 1, 2), (2, 0, 1)], ids=str)
def test_there_and_back_for_any_config(levels, blocks, middle, depth):
    config = UNetConfig(
        channels=8,
        mult=(1, 2, 2)[:levels],
        depth=depth[:levels],
        middle=middle,
        heads=(2,) * levels,
        context=6,
        blocks=blocks,
        groups=4,
    )
    with torch.device("meta"):
        state = UNet(config).state_dict()
    for conv in (False, True):
        there = to_folder("unet", state, conv=conv)
        assert len(there) == len(state) and not there.keys() & {
            k for k in state if not k.startswith("conv_")
        }
        assert all(
            k.split(".")[0]
            in (
                "conv_in",
                "conv_out",
                "conv_norm_out",
                "time_embedding",
                "down_blocks",
                "mid_block",
                "up_blocks",
            )
            for k in there
        )
        assert shapes(to_ours("unet", there)) == shapes(state)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@torch.no_grad()
def test_unet_with_diffusers_both_ways(kind):
    """diffusers' weights loaded by their names give its output here, and ours saved under its names give ours there."""
    from diffusers import UNet2DConditionModel

    sdxl = kind == "sdxl"
    options = (
        {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 5 + 6 * 4,
        }
        if sdxl
        else {}
    )
    down = (
        ("DownBlock2D", "CrossAttnDownBlock2D") if sdxl else ("CrossAttnDownBlock2D", "DownBlock2D")
    )
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=2,
        cross_attention_dim=24,
        down_block_types=down,
        up_block_types=tuple(b.replace("Down", "Up") for b in reversed(down)),
        transformer_layers_per_block=(1, 2) if sdxl else 1,
        attention_head_dim=(2, 4),
        use_linear_projection=sdxl,
        norm_num_groups=16,
        **options,
    ).eval()
    config = UNetConfig(
        channels=32,
        mult=(1, 2),
        depth=(0, 2) if sdxl else (1, 0),
        middle=2 if sdxl else 1,
        heads=(2, 4),
        context=24,
        vector=29 if sdxl else 0,
        groups=16,
    )
    x, t, context, pooled, ids = (
        torch.randn(2, 4, 8, 8),
        torch.tensor([5, 900]),
        torch.randn(2, 7, 24),
        torch.randn(2, 5),
        torch.randn(2, 6),
    )
    added = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}} if sdxl else {}
    vector = (
        torch.cat([pooled, timestep_embedding(ids.flatten(), 4).reshape(2, -1)], 1)
        if sdxl
        else None
    )
    ours = UNet(config).eval()
    load_state(ours, theirs.state_dict())
    torch.testing.assert_close(
        ours(x, t, Cond(context, vector)), theirs(x, t, context, **added).sample, rtol=0, atol=1e-5
    )
    for p in ours.parameters():
        p.add_(0.02 * torch.randn_like(p))
    theirs.load_state_dict(to_folder("unet", ours.state_dict(), conv=not sdxl), strict=True)
    torch.testing.assert_close(
        ours(x, t, Cond(context, vector)), theirs(x, t, context, **added).sample, rtol=0, atol=1e-5
    )


# ---------------------------------------------------------------- whole single files


@pytest.mark.parametrize(
    "name, ema, counts",
    [
        ("sd15", True, {"unet": 686, "vae": 248, "text": 196}),
        ("sd15", False, {"unet": 686, "vae": 248, "text": 196}),
        ("sd21", True, {"unet": 686, "vae": 248, "text": 293}),
        ("sdxl_base", True, {"unet": 1680, "vae": 248, "text": 196, "text_2": 389}),
        ("sdxl_refiner", True, {"unet": 1220, "vae": 248, "text": 389}),
    ],
)
def test_official_files_split(name, ema, counts):
    assert {part: len(state) for part, state in parts(name, ema).items()} == counts


@pytest.mark.parametrize("name", UNETS)
def test_official_files_fit_our_models(name):
    """Every part of the four official files fits its model, none with the place of another."""
    found = parts(name)
    with torch.device("meta"):
        models = {
            "unet": UNet(UNETS[name]),
            "vae": VAE(SD_VAE if name.startswith("sd1") else SDXL_VAE),
        }
        models |= {part: TextEncoder(config) for part, config in TEXTS[name].items()}
    assert models.keys() == found.keys()
    for part, model in models.items():
        load_state(model, found[part])
        if part in ("unet", "vae") or len(TEXTS[name]) == 1:
            load_state(model, empty(KEYS["original"][name]))  # the whole file does too
        for other in found.keys() - {part}:
            with refuses(
                CheckpointError, "does not fit this", "missing|unexpected", "this looks like"
            ):
                load_state(model, found[other])


def test_official_folders_fit_our_text_encoders_and_vae():
    for name, config in (
        ("sd15__text_encoder", CLIP_L),
        ("sd21__text_encoder", OPEN_CLIP_H),
        ("sdxl_base__text_encoder_2", OPEN_CLIP_G),
    ):
        with torch.device("meta"):
            model = TextEncoder(config)
        for strip in (
            "",
            "text_model.",
        ):  # with that prefix and without, with position_ids and without
            state = {k.removeprefix(strip): v for k, v in empty(KEYS["text"][name]).items()}
            load_state(model, state)
            load_state(
                model,
                {
                    **state,
                    f"{'' if strip else 'text_model.'}embeddings.position_ids": torch.arange(77)[
                        None
                    ],
                },
            )
    with torch.device("meta"):
        load_state(VAE(SD_VAE), empty(KEYS["vae"]))


def single(ema=True):
    """A few names of a single file, each tensor of the UNet filled with its own number, its average with the negative."""
    names = [
        "input_blocks.0.0.bias",
        "input_blocks.1.0.in_layers.0.bias",
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "out.2.bias",
    ]
    state = {
        f"model.diffusion_model.{k}": torch.full((2, 768), i + 1.0) for i, k in enumerate(names)
    }
    state |= {
        "first_stage_model.quant_conv.weight": torch.ones(1),
        "cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.ones(1),
    }
    if ema:
        state |= {
            "model_ema." + k.removeprefix("model.").replace(".", ""): -v
            for k, v in list(state.items())[:4]
        }
    return state


HARMLESS = [
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "cond_stage_model.model.logit_scale",
    "denoiser.sigmas",
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "model_ema.decay",
    "model_ema.num_updates",
]


def test_averaged_weights_are_taken_where_they_are():
    averaged, plain = split_single_file(single()), split_single_file(single(), ema=False)
    assert [v[0, 0].item() for v in averaged["unet"].values()] == [-1, -2, -3, -4]
    assert (
        [v[0, 0].item() for v in plain["unet"].values()]
        == [1, 2, 3, 4]
        == [v[0, 0].item() for v in split_single_file(single(False))["unet"].values()]
    )
    assert averaged["unet"].keys() == plain["unet"].keys() and averaged["vae"].keys() == {
        "quant_conv.weight"
    }
    assert averaged["text"].keys() == {"text_model.final_layer_norm.bias"}
    state = single()
    assert (
        split_single_file(state)["unet"]["out.2.bias"].data_ptr()
        == state["model_ema.diffusion_modelout2bias"].data_ptr()
    )  # no copy


@pytest.mark.parametrize("key", HARMLESS)
def test_harmless_leftovers_are_left_out(key):
    assert shapes_of(split_single_file({**single(False), key: torch.ones(3)})) == shapes_of(
        split_single_file(single(False))
    )


def shapes_of(parts):
    return {part: shapes(state) for part, state in parts.items()}


@pytest.mark.parametrize(
    "key",
    [
        "betas2",
        "my_betas",
        "optimizer.step",
        "model_ema.diffusion_modelnot_there",
        "first_stage.quant_conv.bias",
        "position_ids_2",
    ],
)
def test_anything_else_is_reported(key):
    with refuses(CheckpointError, "1 .", key, "unexpected", "SD 1.5"):
        split_single_file({**single(), key: torch.ones(1)})


def test_incomplete_files():
    state = single()
    del state["model_ema.diffusion_modelout2bias"]
    with refuses(
        CheckpointError,
        "1 .model_ema.diffusion_modelout2bias. of the averages are missing",
        "ema=False",
    ):
        split_single_file(state)
    assert split_single_file(state, ema=False)["unet"]["out.2.bias"][0, 0] == 4
    with refuses(CheckpointError, "no single file", "the UNet of SD 1.5 .folder"):
        split_single_file(empty(KEYS["folder"]["sd15"]))
    with (
        refuses(
            CheckpointError,
            "the state does not fit this TextEncoder",
            "two text encoders",
            "split_single_file",
        ),
        torch.device("meta"),
    ):
        load_state(TextEncoder(CLIP_L), empty(KEYS["original"]["sdxl_base"]))


# ---------------------------------------------------------------- loading


def small(seed=0):
    torch.manual_seed(seed)
    return UNet(SMALL).eval()


@pytest.mark.parametrize("layout", ["ours", "folder", "convolutions"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("meta", [True, False])
def test_a_state_in_any_layout_fills_the_model(layout, dtype, meta):
    state = {k: v.to(dtype) for k, v in small(1).state_dict().items()}
    given = to_folder("unet", state, conv=layout == "convolutions") if layout != "ours" else state
    with torch.device("meta" if meta else "cpu"):
        model = UNet(SMALL)
    load_state(model, given)
    for k, v in model.state_dict().items():
        assert (
            torch.equal(v, state[k].to(v.dtype))
            and v.dtype == (dtype if meta else torch.float32)
            and v.device.type == "cpu"
        )
        assert (
            v.data_ptr() == state[k].data_ptr()
        ) == meta  # on meta the tensors themselves, no copies
    assert all(p.requires_grad for p in model.parameters())
    if dtype == torch.float32:
        x, t, cond = (
            torch.randn(1, 4, 4, 4),
            torch.tensor([3]),
            Cond(torch.randn(1, 2, 6), torch.randn(1, 5)),
        )
        assert torch.equal(model(x, t, cond), small(1)(x, t, cond))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_numbers_are_named_and_nothing_is_filled(dtype, value):
    state = {k: v.to(dtype) for k, v in small(1).state_dict().items()}
    state["mid.1.blocks.0.ff.proj.weight"].view(-1)[-1] = value
    model, before = small(2), small(2).state_dict()
    with refuses(
        CheckpointError, "my file: 1 tensors hold NaN or infinity", "mid.1.blocks.0.ff.proj.weight"
    ):
        load_state(model, to_folder("unet", state), "my file")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_eight_bits_are_looked_at_too():
    with torch.device("meta"):
        model = UNet(SMALL)
    state = {k: v.to(torch.float8_e4m3fn) for k, v in small(1).state_dict().items()}
    load_state(model, state)
    assert model.conv_in.weight.dtype == torch.float8_e4m3fn
    state["conv_in.weight"] = torch.full((8, 4, 3, 3), float("nan")).to(torch.float8_e4m3fn)
    with refuses(CheckpointError, "1 tensors hold NaN", "conv_in.weight"):
        load_state(model, state)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda s: s.pop("conv_in.bias"), ("1 missing .conv_in.bias.",)),
        (lambda s: s.update(extra=torch.ones(1)), ("1 unexpected .extra.",)),
        (
            lambda s: s.update({"conv_in.bias": torch.ones(9)}),
            ("1 of another shape .conv_in.bias.",),
        ),
        (
            lambda s: s.update(
                {
                    "mid_block.resnets.0.time_emb_proj.bias": torch.ones(16),
                    "mid.0.time.bias": torch.ones(16),
                }
            ),
            ("1 tensors are there under two names",),
        ),
        (lambda s: s.update({"conv_in.bias": "a string"}), ("not a plain",)),
        (lambda s: s.clear(), ("missing", "nothing: it is empty")),
    ],
)
def test_what_does_not_fit_fills_nothing(spoil, words):
    state = to_folder("unet", small(1).state_dict())
    spoil(state)
    model, before = small(2), small(2).state_dict()
    with refuses(CheckpointError, "my file", *words):
        load_state(model, state, "my file")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.device("meta"):
        model = UNet(SMALL)
    with refuses(CheckpointError, "my file", *words):
        load_state(model, state, "my file")
    assert all(v.is_meta for v in model.state_dict().values())


@pytest.mark.parametrize("name, other", [(a, b) for a in UNETS for b in UNETS if a != b])
def test_the_wrong_model_is_named(name, other):
    """Whole original files, and UNets from folders."""
    for state in (empty(KEYS["original"][other]), empty(KEYS["folder"][other])):
        with refuses(
            CheckpointError,
            "does not fit this UNet",
            "this looks like (the UNet of )?" + WORDS[other],
        ):
            load_state(on_meta(name), state)


# ---------------------------------------------------------------- in words

WORDS = {
    "sd15": "SD 1.5",
    "sd21": "SD 2",
    "sdxl_base": "SDXL base",
    "sdxl_refiner": "the SDXL refiner",
}


@pytest.mark.parametrize("name", UNETS)
def test_looks_like_the_official_ones(name):
    whole, unet, folder = empty(KEYS["original"][name]), parts(name)["unet"], KEYS["folder"][name]
    assert (
        looks_like(whole) == looks_like(KEYS["original"][name]) == f"{WORDS[name]} (a single file)"
    )
    assert looks_like(unet) == f"the UNet of {WORDS[name]} (original names)"
    assert (
        looks_like(folder)
        == looks_like(empty(folder))
        == f"the UNet of {WORDS[name]} (folder names)"
    )
    assert (
        looks_like(on_meta(name).state_dict())
        == f"the UNet of {WORDS[name]} (names of this course)"
    )


def test_looks_like_other_parts():
    assert looks_like(parts("sd15")["vae"]) == "the VAE of SD or SDXL (original names)"
    assert looks_like(KEYS["vae"]) == "the VAE of SD or SDXL (folder names)"
    with torch.device("meta"):
        assert (
            looks_like(VAE(SD_VAE).state_dict()) == "the VAE of SD or SDXL (names of this course)"
        )
    for name, words in (
        ("sd15__text_encoder", "CLIP-L"),
        ("sd21__text_encoder", "OpenCLIP-H"),
        ("sdxl_base__text_encoder_2", "OpenCLIP-bigG"),
    ):
        assert looks_like(KEYS["text"][name]).startswith(f"the text encoder {words} (")
    for name, words in (
        ("sd15", "CLIP-L"),
        ("sd21", "OpenCLIP-H"),
        ("sdxl_refiner", "OpenCLIP-bigG"),
    ):
        assert looks_like(parts(name)["text"]).startswith(f"the text encoder {words} (")
    inpainting = {
        **KEYS["original"]["sd15"],
        "model.diffusion_model.input_blocks.0.0.weight": [320, 9, 3, 3],
    }
    assert looks_like(inpainting) == ("SD 1.5 with 9 input channels (inpainting) (a single file)")


@pytest.mark.parametrize(
    "keys, words",
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"], "a LoRA"),
        (["unet.up_blocks.0.attentions.0.to_q.lora.down.weight"], "a LoRA"),
        (["base_model.model.x.lora_A.weight"], "a LoRA"),
        (["down_blocks.0.attentions.0.attn1.processor.to_q_lora.down.weight"], "a LoRA"),
        (
            [
                "control_model.input_blocks.0.0.weight",
                "model.diffusion_model.input_blocks.0.0.weight",
            ],
            "a ControlNet",
        ),
        (
            ["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
            "a ControlNet",
        ),
        (["model.diffusion_model.joint_blocks.0.x"], "SD 3"),
        (["double_blocks.0.img_attn.qkv.weight"], "FLUX"),
        (["emb_params"], "a textual inversion"),
        (["visual.conv1.weight", "transformer.resblocks.0.ln_1.bias"], "a whole CLIP"),
        (["schedule.beta", "model.conv_in.weight"], "course"),
        (["schedule.beta", "random.generator", "model.conv_in.weight"], "a training checkpoint"),
        (list(MLP().state_dict()), "the MLP of this course"),
        (["a", "b", "c", "d"], r"nothing known here (first names: a, b, c)"),
        ([], "empty"),
    ],
    ids=str,
)
def test_looks_like_strangers(keys, words):
    assert words in looks_like({k: torch.ones(1) for k in keys})


def test_looks_like_models_of_this_course():
    assert (
        looks_like(
            UNet(
                UNetConfig(channels=8, mult=(1,), depth=(0,), middle=0, heads=(1,), groups=4)
            ).state_dict()
        )
        == "the UNet of a model without text (names of this course)"
    )
    assert (
        looks_like(small().state_dict())
        == "the UNet of no known model, context 6 wide (names of this course)"
    )


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64, torch.complex64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_weights_that_are_no_floating_numbers_are_refused(dtype, device):
    with torch.device(device):
        model = MLP()
    state = MLP().state_dict()
    name = next(iter(state))
    with refuses(CheckpointError, name, str(dtype)):
        load_state(model, {**state, name: state[name].to(dtype)})
