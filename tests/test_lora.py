"""LoRA against diffusers and peft, on tiny systems: forward, scaled, two at once, merged, saved, and the files of the
community; then what is refused."""

import copy
import re
from dataclasses import replace

import pytest
import torch
from helpers import read_json, refuses
from original_writer import unet_name
from safetensors.torch import load_file, save_file
from tiny_pipelines import build as theirs

from ddpm_edu import Cond
from ddpm_edu.errors import CheckpointError, OptionError
from ddpm_edu.files.load import load, save
from ddpm_edu.files.lora import kohya_names, load_lora, our_names, save_lora
from ddpm_edu.gpu.fast import speed_up
from ddpm_edu.networks.controlnet import control_net
from ddpm_edu.networks.lora import LoRA, attach, detach, layers, low_rank, merge
from ddpm_edu.systems.system import REFINER, SD15, SD21, SDXL, build

peft = pytest.importorskip("peft")
from diffusers.training_utils import _collate_lora_metadata  # noqa: E402

TOLERANCE = 1e-5
PROMPTS = ["a lighthouse at dusk", "two red foxes"]


PAIRS = {}  # name: a tiny pipeline of diffusers and ours of the same weights


@pytest.fixture(scope="module", params=("sd", "sdxl"))
def name(request, tmp_path_factory):
    root, pipe = tmp_path_factory.mktemp(request.param), theirs(request.param)
    pipe.save_pretrained(root)
    PAIRS[request.param] = pipe, load(root)
    return request.param


@pytest.fixture
def pair(name):
    """Both anew."""
    pipe, sd = PAIRS[name]
    own = {
        k: copy.deepcopy(part) if isinstance(part, torch.nn.Module) else part
        for k, part in pipe.components.items()
    }
    more = {} if name == "sdxl" else {"requires_safety_checker": False}
    return type(pipe)(**own, **more), copy.deepcopy(sd)


def encoders(pipe):
    two = [(pipe.tokenizer, pipe.text_encoder)]
    return two + (
        [(pipe.tokenizer_2, pipe.text_encoder_2)] if hasattr(pipe, "text_encoder_2") else []
    )


@torch.no_grad()
def said_by_ours(sd):
    """The UNet's prediction, the text's context and pooled vector."""
    cond, (x, t, vector, _) = sd.text.encode(PROMPTS), inputs(sd)
    prediction = sd.unet(x, t, Cond(cond.context, vector))
    return [part for part in (prediction, *cond[:2]) if part is not None]


@torch.no_grad()
def said_by_theirs(pipe, sd):
    x, t, _, more = inputs(sd, pipe)
    states, xl = [], len(encoders(pipe)) == 2
    for tokenizer, encoder in encoders(pipe):
        ids = tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
        out = encoder(ids, output_hidden_states=True)
        states.append(out.hidden_states[-2] if xl else out[0])
    context = torch.cat(states, -1)
    prediction = pipe.unet(x, t, context, added_cond_kwargs=more).sample
    return [prediction, context] + ([out[0]] if xl else [])


def inputs(sd, pipe=None):
    g, c = torch.Generator().manual_seed(1), sd.config
    x, t = torch.randn(2, 4, 8, 8, generator=g), torch.tensor([3, 801])
    if not c.vector:
        return x, t, None, None
    pooled, ids = torch.randn(2, c.text[-1].projection, generator=g), torch.rand(2, 6, generator=g)
    from ddpm_edu.networks.unet import timestep_embedding

    numbers = timestep_embedding(64 * ids.flatten(), c.number_dim).view(2, -1)
    return x, t, torch.cat([pooled, numbers], 1), {"text_embeds": pooled, "time_ids": 64 * ids}


def gap(ours, reference):
    """The largest difference, relative to the largest number above 1."""
    pairs = zip(ours, reference, strict=True)
    return max(((a - b).abs().max() / max(1, b.abs().max())).item() for a, b in pairs)


def assert_same(sd, pipe, base):
    """Both say the same, and something else than without a LoRA."""
    ours = said_by_ours(sd)
    assert gap(ours, said_by_theirs(pipe, sd)) < TOLERANCE
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(ours, base, strict=True))


def randomize(tensors, seed, size=0.2):
    g = torch.Generator().manual_seed(seed)
    for w in tensors:
        w.data.copy_(size * torch.randn(w.shape, generator=g))


def parts(pipe):
    """The networks that a LoRA changes, as diffusers calls them, and how kohya's names begin there."""
    xl = hasattr(pipe, "text_encoder_2")
    found = {
        "unet": (pipe.unet, "lora_unet_"),
        "text_encoder": (pipe.text_encoder, "lora_te1_" if xl else "lora_te_"),
    }
    return found | ({"text_encoder_2": (pipe.text_encoder_2, "lora_te2_")} if xl else {})


def kohya(name, seed, rank, alpha=1.5, original=False):
    """{name: tensor} of a LoRA of every Linear and convolution, named after diffusers' own modules. original: the UNet in
    the names of SDXL's first code, as kohya's scripts train it."""
    state, g, sd = {}, torch.Generator().manual_seed(seed), PAIRS[name][1]
    for part, (model, start) in parts(PAIRS[name][0]).items():
        modules = {
            k: m
            for k, m in model.named_modules()
            if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))
        }
        ours = our_names([f"unet.{k}" for k in modules], sd) if part == "unet" else {}
        for layer, m in modules.items():
            if layer.startswith("add_embedding") and not original:
                continue  # which diffusers reads in the original names only
            if original and part == "unet":
                layer = unet_name(
                    ours[f"unet.{layer}"].removeprefix("unet.") + ".weight"
                ).removesuffix(".weight")
            elif part != "unet" and not layer.startswith("text_"):
                layer = (
                    f"text_model.{layer}"  # as in all files; transformers 5.6 took the shell off
                )
            out, into, *kernel = m.weight.shape
            key = start + layer.replace(".", "_")
            state[f"{key}.lora_down.weight"] = 0.2 * torch.randn(rank, into, *kernel, generator=g)
            state[f"{key}.lora_up.weight"] = 0.2 * torch.randn(
                out, rank, *[1] * len(kernel), generator=g
            )
            state[f"{key}.alpha"] = torch.tensor(alpha)
    return state


def written(path, state):
    save_file(state, path)
    return path


def test_files_of_diffusers(name, pair, tmp_path):
    """peft's names, alpha in the metadata, ranks and alphas of their own for some layers."""
    pipe, sd = pair
    base = said_by_ours(sd)
    layers = [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "conv1",
        "conv_shortcut",
        "time_emb_proj",
    ]
    told = {"rank_pattern": {"conv1": 2}, "alpha_pattern": {"to_q": 7.0}}
    pipe.unet.add_adapter(peft.LoraConfig(r=3, lora_alpha=5, target_modules=layers, **told))
    for part, (model, _) in parts(pipe).items():
        if part != "unet":
            model.add_adapter(
                peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "out_proj", "fc1"])
            )
        randomize([w for k, w in model.named_parameters() if "lora_" in k], 5)
    states = {
        part: peft.get_peft_model_state_dict(model) for part, (model, _) in parts(pipe).items()
    }
    metadata = _collate_lora_metadata({part: model for part, (model, _) in parts(pipe).items()})
    pipe.save_lora_weights(
        tmp_path, **{f"{k}_lora_layers": state for k, state in states.items()}, **metadata
    )
    attach(sd, load_lora(tmp_path / "pytorch_lora_weights.safetensors", sd))
    assert_same(sd, pipe, base)


def test_files_of_peft_and_of_older_diffusers(name, pair, tmp_path):
    """Saved by peft alone, alpha and its root in a JSON file beside; the same under older names of the layers."""
    pipe, sd = pair
    base, layers = said_by_ours(sd), ["to_q", "to_k", "to_v", "to_out.0"]
    config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=layers)
    model = peft.get_peft_model(pipe.unet, config)
    randomize([w for k, w in model.named_parameters() if "lora_" in k], 9)
    model.save_pretrained(tmp_path)
    lora = load_lora(tmp_path / "adapter_model.safetensors", sd)
    attach(sd, lora)
    assert gap(said_by_ours(sd)[:1], said_by_theirs(pipe, sd)[:1]) < TOLERANCE
    assert gap(said_by_ours(sd)[:1], base[:1]) > 1e-3
    state, old = load_file(tmp_path / "adapter_model.safetensors"), {}
    for key, w in state.items():
        layer, side = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key).groups()
        block, attention, projection = re.fullmatch(
            r"(.+)\.(attn\d)\.(to_\w+?)(?:\.0)?", layer
        ).groups()
        side = {"A": "down", "B": "up"}[side]
        old[f"unet.{block}.{attention}.processor.{projection}_lora.{side}.weight"] = w
    again = load_lora(written(tmp_path / "old.safetensors", old), sd)
    assert again.names == lora.names
    assert all(torch.equal(a.up.weight, b.up.weight) for a, b in zip(again.changes, lora.changes))
    place = "text_encoder.text_model.encoder.layers.1"
    more = half(f"{place}.self_attn", down="to_out_lora.down", up="to_out_lora.up", out=32)
    more |= half(
        f"{place}.mlp.fc1", down="lora_linear_layer.down", up="lora_linear_layer.up", out=64
    )
    text = load_lora(written(tmp_path / "text.safetensors", more), sd)
    start = "text.encoders.0.text_model.encoder.layers.1"
    assert set(text.names) == {f"{start}.self_attn.out_proj", f"{start}.mlp.fc1"}


@pytest.mark.parametrize("original", [False, True])
def test_files_of_kohya(name, pair, tmp_path, original):
    """Convolutions and text encoders too, alpha in tensors; SDXL's UNet in either names, SD 1's in diffusers' only."""
    pipe, sd = pair
    original = original and name == "sdxl"
    base, file = (
        said_by_ours(sd),
        written(tmp_path / "a.safetensors", kohya(name, 1, 4, original=original)),
    )
    pipe.load_lora_weights(file)
    attach(sd, load_lora(file, sd))
    assert_same(sd, pipe, base)


def test_alphas_that_differ(name, pair, tmp_path):
    """Folded into B for diffusers, which mixes them up; a missing one is the rank."""
    pipe, sd = pair
    base, state = said_by_ours(sd), kohya(name, 2, 4)
    folded = {k: w.clone() for k, w in state.items() if not k.endswith("alpha")}
    for i, key in enumerate([key for key in state if key.endswith(".alpha")]):
        state[key] = torch.tensor(float(i % 3))
        if i % 3 == 2:
            del state[key]
        else:
            folded[key.replace("alpha", "lora_up.weight")] *= i % 3 / 4
    pipe.load_lora_weights(folded)
    attach(sd, load_lora(written(tmp_path / "a.safetensors", state), sd))
    assert_same(sd, pipe, base)


def test_two_at_once_scaled_merged_and_detached(name, pair, tmp_path):
    pipe, sd = pair
    base, before = said_by_ours(sd), copy.deepcopy(sd.state_dict())
    loras = []
    for adapter, seed in (("a", 3), ("b", 4)):
        file = written(tmp_path / f"{adapter}.safetensors", kohya(name, seed, 2 + seed))
        pipe.load_lora_weights(file, adapter_name=adapter)
        loras.append(load_lora(file, sd))
    pipe.set_adapters(["a", "b"], [0.7, -0.4])
    attach(sd, loras[0], 0.7)
    attach(sd, loras[1], -0.4)
    assert_same(sd, pipe, base)
    loras[1].scale = 0.3  # the slider
    pipe.set_adapters(["a", "b"], [0.7, 0.3])
    assert_same(sd, pipe, base)
    both = said_by_ours(sd)
    merged = copy.deepcopy(sd)
    merge(merged)
    assert list(merged.state_dict()) == list(before)
    pipe.fuse_lora(adapter_names=["a", "b"])
    pipe.unload_lora_weights()
    assert_same(merged, pipe, base)
    assert gap(said_by_ours(merged), both) < TOLERANCE
    detach(sd, loras[1])
    loras[0].scale = 0
    assert gap(said_by_ours(sd), base) == 0
    detach(sd)
    assert all(torch.equal(w, before[k]) for k, w in sd.state_dict().items())


def test_a_convolution_of_three(name, pair, tmp_path):
    """LyCORIS puts k x k among the r channels, between two of 1x1: the same as one matrix of its product."""
    _, sd = pair
    state, g = kohya(name, 6, 4), torch.Generator().manual_seed(7)
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    down, up = (state[f"{key}.lora_{side}.weight"] for side in ("down", "up"))
    state |= {
        f"{key}.lora_down.weight": down[:, :, :1, :1].clone(),
        f"{key}.lora_mid.weight": torch.randn(4, 4, 3, 3, generator=g),
    }
    lora = load_lora(written(tmp_path / "a.safetensors", state), sd)
    x = torch.randn(1, down.shape[1], 5, 5, generator=g)
    h = torch.nn.functional.conv2d(x, down[:, :, :1, :1])
    h = torch.nn.functional.conv2d(h, state[f"{key}.lora_mid.weight"], padding=1)
    h = torch.nn.functional.conv2d(h, up) * 1.5 / 4
    torch.testing.assert_close(
        dict(lora.items())["unet.down.0.0.conv1"](x), h, atol=1e-5, rtol=1e-5
    )


def test_ours_is_read_by_diffusers(name, pair, tmp_path):
    """New, with random B, of all attention and the text's layers; and again by us, to the last bit."""
    pipe, sd = pair
    base = said_by_ours(sd)
    lora = low_rank(sd, 3, 1.5, where=r"attn\d?\.(q|k|v|out)(_proj)?$|mlp|ff|unet.*(conv1|proj)")
    attach(sd, lora, 0.8)
    assert gap(said_by_ours(sd), base) < 2e-6  # B is 0; strides differ, and sums are rounded
    randomize([change.up.weight for change in lora.changes], 8)
    save_lora(tmp_path / "mine.safetensors", lora, sd, {"word": "<my-cat>"})
    pipe.load_lora_weights(tmp_path / "mine.safetensors", adapter_name="mine")
    pipe.set_adapters("mine", 0.8)
    assert_same(sd, pipe, base)
    ours = said_by_ours(sd)
    detach(sd, lora)
    again = load_lora(tmp_path / "mine.safetensors", sd)
    attach(sd, again, 0.8)
    assert gap(said_by_ours(sd), ours) < 2e-6 and again.meta["word"] == "<my-cat>"


def test_only_a_and_b_learn(pair):
    _, sd = pair
    lora = low_rank(sd, 2)
    attach(sd, lora)
    x, t, vector, _ = inputs(sd)
    sd.unet(x, t, Cond(sd.text.encode(PROMPTS).context, vector)).square().mean().backward()
    learns = {name for name, w in sd.named_parameters() if w.requires_grad}
    assert learns == {k for k, _ in sd.named_parameters() if ".changes." in k}
    assert all(change.up.weight.grad.abs().sum() > 0 for change in lora.changes)
    assert all(change.down.weight.grad.abs().sum() == 0 for change in lora.changes)  # while B is 0


@pytest.mark.parametrize("plan", (SD15, SD21, SDXL, REFINER), ids=lambda plan: plan.name)
def test_names_of_the_published_systems(plan):
    """Each layer has a name in a file, and is found under it; so it is in the original names."""
    sd = build(plan, device="meta")
    names = kohya_names(sd)
    assert set(names) == {name for name, _ in layers(sd) if not name.startswith("vae.")}
    assert our_names(names.values(), sd) == {theirs: ours for ours, theirs in names.items()}
    published = {"SD 1.5": "sd15", "SDXL base": "sdxl_base", "SDXL refiner": "sdxl_refiner"}
    if plan.name in published:
        short = lambda k: "lora_unet_" + k.removesuffix(".weight").replace(".", "_")
        pairs = read_json("layout_keys.json.gz")["map"][published[plan.name]].items()
        twins = {short(folder): short(original) for original, folder in pairs}
        theirs = {ours: k for ours, k in names.items() if ours.startswith("unet.")}
        originals = our_names([twins[k] for k in theirs.values()], sd)
        assert originals == {twins[k]: ours for ours, k in theirs.items()}


# ---------------------------------------------------------------- what is refused

ATTENTION = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def half(key=ATTENTION, rank=2, into=32, out=128, down="lora_down", up="lora_up"):
    return {
        f"{key}.{down}.weight": torch.ones(rank, into),
        f"{key}.{up}.weight": torch.ones(out, rank),
    }


REFUSED = {
    "SDXL": (
        half(into=2048),
        "of SDXL base and SD|of SDXL base and",
        "1 of another shape",
        "attn2_to_k",
    ),
    "SD 2": (half(into=1024), "of SD 2 and"),
    "two encoders": (
        half("lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        "1 names of no layer",
        "te2",
    ),
    "no such layer": (half("lora_unet_mid_block_attentions_7_proj_in"), "names of no layer"),
    "FLUX": (half("transformer.single_transformer_blocks.0.attn.to_q"), "FLUX"),
    "a stranger beside": (
        half() | {"bundle_emb.cat.clip_l": torch.ones(2, 32)},
        "names of no layer",
        "bundle_emb",
    ),
    "rank 0": (half(rank=0), "rank 0", "attn2_to_k"),
    "two ranks": (half() | {f"{ATTENTION}.lora_up.weight": torch.ones(128, 3)}, "another shape"),
    "NaN": (half() | {f"{ATTENTION}.lora_up.weight": torch.full((128, 2), torch.nan)}, "NaN"),
    "NaN in alpha": (half() | {f"{ATTENTION}.alpha": torch.tensor(torch.nan)}, "NaN"),
    "whole numbers": ({k: w.int() for k, w in half().items()}, "torch.int32", "floating"),
    "a rank beyond all": (half(rank=70000, into=1, out=1), "rank", "65536"),
    "two notations": (half() | half(down="lora_A", up="lora_B"), "2 names of no layer"),
    "alpha far out": (half() | {f"{ATTENTION}.alpha": torch.tensor(1e9)}, "alpha", "damaged"),
    "two alphas": (half() | {f"{ATTENTION}.alpha": torch.ones(2)}, "alpha", "damaged"),
    "half": ({f"{ATTENTION}.lora_up.weight": torch.ones(128, 2)}, "down missing"),
    "a vector": (
        {
            f"{ATTENTION}.lora_up.weight": torch.ones(2),
            f"{ATTENTION}.lora_down.weight": torch.ones(2),
        },
        "shape",
    ),
    "DoRA": (half() | {f"{ATTENTION}.dora_scale": torch.ones(1)}, "DoRA"),
    "DoRA of peft": (
        half("unet.a.b", down="lora_A", up="lora_B")
        | {"unet.a.b.lora_magnitude_vector": torch.ones(1)},
        "DoRA",
    ),
    "LoHa": ({f"{ATTENTION}.hada_w1_a": torch.ones(2, 2)}, "LoHa"),
    "LoKr": ({f"{ATTENTION}.lokr_w1": torch.ones(2, 2)}, "LoKr"),
    "OFT": ({f"{ATTENTION}.oft_blocks": torch.ones(2, 2)}, "OFT"),
    "IA3": ({f"{ATTENTION}.on_input": torch.ones(1)}, "IA3"),
    "differences": ({f"{ATTENTION}.diff": torch.ones(2, 2)}, "differences"),
    "an embedding": ({"emb_params": torch.ones(2, 32)}, "no LoRA", "textual inversion"),
    "nothing": ({}, "no LoRA", "empty"),
    "endless names": (half(f"lora_unet_{'a' * 9999}"), r"a{100,111}\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_files(tiny_sd, tmp_path, kind):
    state, *words = REFUSED[kind]
    file = written(tmp_path / "x.safetensors", state)
    with refuses(CheckpointError, "x.safetensors", *words):
        load_lora(file, tiny_sd)


def test_damaged_files(tiny_sd, tmp_path):
    file = written(tmp_path / "x.safetensors", half())
    file.write_bytes(file.read_bytes()[:-9])
    with refuses(CheckpointError, "x.safetensors", "cut short"):
        load_lora(file, tiny_sd)
    torch.save(half(), tmp_path / "x.pt")
    with refuses(CheckpointError, "pickle", "convert"):
        load_lora(tmp_path / "x.pt", tiny_sd)
    with refuses(CheckpointError, "no such file"):
        load_lora(tmp_path / "gone.safetensors", tiny_sd)
    for text in ("[]", "{", '{"unet.lora_alpha": "much"}', '{"unet.alpha_pattern": 3}'):
        save_file(
            half("unet.mid_block.x", down="lora_A", up="lora_B"),
            file,
            {"lora_adapter_metadata": text},
        )
        with refuses(CheckpointError, "alpha", "damaged"):
            load_lora(file, tiny_sd)
    peft_file = written(
        tmp_path / "adapter_model.safetensors",
        half("base_model.model.x", down="lora_A", up="lora_B"),
    )
    (tmp_path / "adapter_config.json").write_text("[]")
    with refuses(CheckpointError, "adapter_config.json"):
        load_lora(peft_file, tiny_sd)


@pytest.mark.parametrize("name", ["pytorch_lora_weights", "adapter_model"])
def test_the_folder_that_diffusers_or_peft_saved(tiny_sd, tmp_path, name):
    with refuses(CheckpointError, "no such file", "a folder"):
        load_lora(tmp_path, tiny_sd)
    written(tmp_path / f"{name}.safetensors", half())
    assert len(load_lora(tmp_path, tiny_sd).names) == 1


def test_a_file_of_comfy_and_one_that_changes_nothing(tiny_sd, tmp_path):
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k"
    (name,) = load_lora(written(tmp_path / "a.safetensors", half(key)), tiny_sd).names
    with pytest.warns(UserWarning, match="alpha is 0"):
        lora = load_lora(
            written(tmp_path / "b.safetensors", half() | {f"{ATTENTION}.alpha": torch.zeros(())}),
            tiny_sd,
        )
    assert lora.names == (name,) and lora.changes[0].alpha == 0


def test_refused_arguments(tiny_sd, tmp_path):
    file = written(tmp_path / "a.safetensors", half())
    for other in (None, tiny_sd.unet, speed_up(tiny_sd), load("painted_clip")):
        with refuses(OptionError, "sd (is|denoises)", "UNets"):
            load_lora(file, other)
    for rank in (0, -1, 2.5, True):
        with refuses(OptionError, "rank"):
            low_rank(tiny_sd, rank)
    for where in ("attn9", "(", None):
        with refuses(OptionError, "where", "no name|no regular"):
            low_rank(tiny_sd, 2, where=where)
    for other in (None, {"a": 1}):
        with refuses(OptionError, "pass a LoRA"):
            attach(tiny_sd, other)
    with refuses(OptionError, "at least one"):
        LoRA({})
    lora = low_rank(tiny_sd, 2)
    for scale in (float("nan"), float("inf"), "1"):
        with refuses(OptionError, "scale"):
            attach(tiny_sd, lora, scale)
    attach(tiny_sd, lora)
    with refuses(OptionError, "attached already"):
        attach(tiny_sd, lora)
    with refuses(OptionError, "merge"):
        save(tmp_path / "x.safetensors", tiny_sd)
    with refuses(OptionError, "merge"):
        speed_up(tiny_sd)
    with refuses(OptionError, "merge"):
        control_net(tiny_sd.unet)
    wide = low_rank(build(replace(SD15, unet=replace(SD15.unet, channels=32)), device="meta"), 2)
    with refuses(OptionError, "another model", "not there|is \\("):
        attach(tiny_sd, wide)
    detach(tiny_sd, wide)  # which is not attached: nothing happens
    with refuses(OptionError, "torch.int8"):
        save_lora(tmp_path / "x.safetensors", lora, tiny_sd, dtype=torch.int8)
    lora.changes[0].up.weight.data.fill_(torch.nan)
    with refuses(CheckpointError, "NaN"):
        save_lora(tmp_path / "x.safetensors", lora, tiny_sd)
    assert not (tmp_path / "x.safetensors").exists()
    detach(tiny_sd)
