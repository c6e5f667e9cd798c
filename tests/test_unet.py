"""UNets: counts and keys of the big ones, parity of tiny ones with the original and diffusers."""

import functools

import pytest
import torch
import torch.nn.functional as F
from helpers import read_json, read_tensors, refuses
from torch import nn
from weight_formula import tiny_weights, u, weight

from ddpm_edu import Cond, OptionError, ShapeError
from ddpm_edu.files.load import load_state
from ddpm_edu.files.names import to_ours
from ddpm_edu.networks import unet as unet_module
from ddpm_edu.networks.unet import (
    SD15,
    SDXL_BASE,
    SDXL_REFINER,
    SpaceToDepth,
    SpatialTransformer,
    UNet,
    UNetConfig,
    timestep_embedding,
)
from ddpm_edu.networks.unet_classic import ClassicUNet, SelfAttention

KEYS = read_json("unet_keys.json.gz")
BIG = {
    "sd15": (SD15, 859_520_964),
    "sdxl_base": (SDXL_BASE, 2_567_463_684),
    "sdxl_refiner": (SDXL_REFINER, 2_259_526_660),
}
TINY = {
    "sd15": UNetConfig(
        channels=32, mult=(1, 2, 1), depth=(1, 1, 0), heads=(4, 4, 4), context=24, blocks=1
    ),
    "sdxl": UNetConfig(
        channels=32,
        mult=(1, 2, 2),
        depth=(0, 1, 2),
        middle=2,
        heads=(2, 4, 4),
        context=56,
        vector=48,
        blocks=1,
    ),
}
SMALL = UNetConfig(
    in_channels=2,
    channels=64,
    mult=(1, 2),
    depth=(0, 1),
    middle=1,
    heads=(2, 4),
    vector=5,
    blocks=1,
)


# ------------------------------------------------ the big ones, without their weights


@functools.cache
def on_meta(name):
    with torch.device("meta"):
        return UNet(BIG[name][0])


@pytest.mark.parametrize("name", BIG)
def test_parameter_count_is_exact(name):
    assert sum(p.numel() for p in on_meta(name).parameters()) == BIG[name][1]


@pytest.mark.parametrize("name", BIG)
def test_original_keys_fit_one_to_one(name):
    original = {key: torch.empty(shape, device="meta") for key, shape in KEYS[name].items()}
    renamed = {k: tuple(v.shape) for k, v in to_ours("unet", original).items()}
    assert len(renamed) == len(original)
    assert renamed == {k: tuple(v.shape) for k, v in on_meta(name).state_dict().items()}


# ---------------------------------------------------------------- parity with the original code


def test_the_weight_formula():
    for check in read_json("formula_check.json"):
        if len(check["shape"]) == 2:
            continue  # a text encoder's embedding table
        values = u(check["key"], check["shape"])
        assert values.flatten()[:4].tolist() == pytest.approx(check["u_first4"], abs=1e-7)
        assert values.flatten()[-1] == pytest.approx(check["u_last"], abs=1e-7)
        assert values.astype("float32").sum(dtype="float64") == pytest.approx(
            check["u_sum_float64"], abs=1e-6
        )
        if not check["key"].startswith("in."):
            assert weight(check["key"], check["shape"]).flatten()[:4].tolist() == pytest.approx(
                check["w_first4"], abs=1e-7
            )


@functools.cache
def reference(name):
    return read_tensors(f"unet_{name}_tiny.io.safetensors")


def tiny(name, **changes):
    """The tiny UNet with its constructed weights; `changes` to the config spoil it on purpose."""
    weights, digest = tiny_weights(f"tiny_{name}", KEYS[f"unet_{name}_tiny"])
    assert digest == KEYS["sha256"][f"unet_{name}_tiny"]
    model = UNet(UNetConfig(**{**TINY[name].__dict__, **changes}))
    load_state(model, weights)
    return model.eval().requires_grad_(False)


def error(name, model, dtype=torch.float64):
    """Largest difference from the original's output, run in this precision (the time embedding
    stays float32)."""
    io = reference(name)
    out = model.to(dtype)(
        io["in/x"].to(dtype),
        io["in/timesteps"],
        Cond(io["in/context"], io.get("in/y")).map(lambda c: c.to(dtype)),
    )
    return (
        (out - io["out/eps" if dtype == torch.float32 else "out/eps_from_float64"])
        .abs()
        .max()
        .item()
    )


@pytest.mark.parametrize("name", TINY)
def test_parity_with_the_original(name):
    assert error(name, tiny(name), torch.float32) < 1e-5
    assert error(name, tiny(name)) < 1e-6


@pytest.mark.parametrize("name", TINY)
def test_parity_inside(name):
    """The original's activations (first picture, float16) block by block: the first bad name is
    where a mismatch begins."""
    model, io, seen = tiny(name), reference(name), {}
    places = {
        "time_embed": model.time,
        "input_blocks.0": model.conv_in,
        "middle_block": model.mid[-1],
    }
    places |= {f"input_blocks.{i + 1}": blocks[-1] for i, blocks in enumerate(model.down)}
    places |= {f"output_blocks.{i}": blocks[-1] for i, blocks in enumerate(model.up)}
    places |= {"label_emb": model.vector} if name == "sdxl" else {}
    for key, module in places.items():
        module.register_forward_hook(lambda m, args, out, key=key: seen.update({key: out}))
    model(io["in/x"], io["in/timesteps"], Cond(io["in/context"], io.get("in/y")))
    expected = {k.removeprefix("mid/"): v for k, v in io.items() if k.startswith("mid/")}
    assert seen.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(
            seen[key][: len(value)],
            value.float(),
            rtol=1e-3,
            atol=1e-3,
            msg=lambda m, key=key: f"{key}: {m}",
        )


def groupnorms(model, inside_transformers, eps):
    for module in model.modules():
        if isinstance(module, SpatialTransformer) and inside_transformers:
            module.norm.eps = eps
        if isinstance(module, nn.GroupNorm) and not inside_transformers and module.eps == 1e-5:
            module.eps = eps
    return model


def layernorms(model, eps):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
    return model


SPOILED = {
    "half the heads": lambda name, patch: tiny(name, heads=tuple(h // 2 for h in TINY[name].heads)),
    "GroupNorm of the ResBlocks": lambda name, patch: groupnorms(tiny(name), False, 1e-6),
    "GroupNorm of the transformers": lambda name, patch: groupnorms(tiny(name), True, 1e-5),
    "LayerNorm": lambda name, patch: layernorms(tiny(name), 1e-6),
    "sine first": lambda name, patch: (
        patch.setattr(
            unet_module, "timestep_embedding", lambda t, d: timestep_embedding(t, d).roll(d // 2, 1)
        ),
        tiny(name),
    )[1],
    "t + 1": lambda name, patch: (
        patch.setattr(unet_module, "timestep_embedding", lambda t, d: timestep_embedding(t + 1, d)),
        tiny(name),
    )[1],
    "tanh GELU": lambda name, patch: (
        patch.setattr(F, "gelu", functools.partial(F.gelu, approximate="tanh")),
        tiny(name),
    )[1],
}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("how", SPOILED)
def test_the_parity_test_can_fail(name, how, monkeypatch):
    assert error(name, SPOILED[how](name, monkeypatch)) > 1e-6


def test_embeddings():
    io = read_tensors("embeddings.safetensors")
    for key, inputs in (
        ("timestep/emb32", "timestep/t"),
        ("timestep/emb320", "timestep/t"),
        ("timestep/emb384", "timestep/t"),
        ("aesthetic/emb256", "aesthetic/in"),
        ("size/emb512", "size/in"),
    ):
        values, expected = (
            io[inputs].flatten(),
            io[key],
        )  # several numbers: their embeddings one after the other
        dim = expected.numel() // values.numel()
        rounding = (
            1e-6 + 1.2e-7 * values.abs()
        )  # one unit in the last place of the angle t w, a float32
        ours = timestep_embedding(values, dim)
        assert ((ours - expected.reshape(ours.shape)).abs() <= rounding[:, None]).all(), key
    assert (
        timestep_embedding(torch.tensor([3.0]), 7).shape == (1, 7)
        and timestep_embedding(torch.tensor([3.0]), 7)[0, -1] == 0
    )


# ------------------------------------------------ parity with diffusers, odd sizes included

ATTENTION = {
    "attn1.to_q": "attn1.q",
    "attn1.to_k": "attn1.k",
    "attn1.to_v": "attn1.v",
    "attn1.to_out.0": "attn1.out",
    "attn2.to_q": "attn2.q",
    "attn2.to_k": "attn2.k",
    "attn2.to_v": "attn2.v",
    "attn2.to_out.0": "attn2.out",
    "ff.net.0.proj": "ff.proj",
    "ff.net.2": "ff.out",
    "transformer_blocks": "blocks",
    "time_emb_proj": "time",
    "conv_shortcut": "skip",
}


def from_diffusers(state, config):
    """diffusers' names to ours, by walking through both in the order of the forward pass."""
    places = {
        "conv_in": "conv_in",
        "conv_norm_out": "norm_out",
        "conv_out": "conv_out",
        "time_embedding.linear_1": "time.0",
        "time_embedding.linear_2": "time.2",
        "mid_block.resnets.0": "mid.0",
        "mid_block.attentions.0": "mid.1",
        "mid_block.resnets.1": "mid.2",
    }
    i = 0
    for level in range(len(config.mult)):
        for j in range(config.blocks):
            (
                places[f"down_blocks.{level}.resnets.{j}"],
                places[f"down_blocks.{level}.attentions.{j}"],
            ) = f"down.{i}.0", f"down.{i}.1"
            i += 1
        places[f"down_blocks.{level}.downsamplers.0"] = f"down.{i}.0"
        i += 1
    for k in range(len(config.mult)):
        for j in range(config.blocks + 1):
            at = k * (config.blocks + 1) + j
            places[f"up_blocks.{k}.resnets.{j}"], places[f"up_blocks.{k}.attentions.{j}"] = (
                f"up.{at}.0",
                f"up.{at}.1",
            )
        has_attention = config.depth[len(config.mult) - 1 - k] > 0
        places[f"up_blocks.{k}.upsamplers.0"] = f"up.{at}.{2 if has_attention else 1}"
    out = {}
    for key, value in state.items():
        place = max((p for p in places if key.startswith(p + ".")), key=len)
        rest = key[len(place) :]
        for theirs, ours in ATTENTION.items():
            rest = rest.replace(f".{theirs}.", f".{ours}.")
        out[places[place] + rest] = (
            value.flatten(1) if "proj_" in rest and value.ndim == 4 else value
        )
    return out


@pytest.mark.parametrize("linear", [False, True])
def test_parity_with_diffusers(linear):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    theirs = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 128),
        layers_per_block=2,
        cross_attention_dim=24,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4, 8),
        use_linear_projection=linear,
    ).eval()
    config = UNetConfig(
        channels=64,
        mult=(1, 2, 2),
        depth=(0, 1, 2),
        middle=2,
        heads=(2, 4, 8),
        context=24,
        blocks=2,
    )
    ours = UNet(config).eval()
    load_state(ours, from_diffusers(theirs.state_dict(), config))
    for height, width in ((16, 16), (9, 15), (13, 6), (5, 5)):
        x, t, context = (
            torch.randn(2, 4, height, width),
            torch.tensor([0, 741]),
            torch.randn(2, 7, 24),
        )
        with torch.no_grad():
            torch.testing.assert_close(
                ours(x, t, Cond(context)), theirs(x, t, context).sample, rtol=0, atol=2e-5
            )


@pytest.mark.full
@pytest.mark.timeout(600)
def test_full_size_against_diffusers():
    """SD 1.5's UNet whole, weights by the formula, once; the tensors are shared, diffusers' names
    by the walk above."""
    from diffusers import UNet2DConditionModel

    original = {
        key: torch.from_numpy(weight(f"model.diffusion_model.{key}", shape))
        for key, shape in KEYS["sd15"].items()
    }
    with torch.device("meta"):
        ours = UNet(SD15).eval().requires_grad_(False)
        theirs = (
            UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
            .eval()
            .requires_grad_(False)
        )
    load_state(ours, original)
    names, state = (
        from_diffusers({k: torch.empty(1) for k in theirs.state_dict()}, SD15),
        ours.state_dict(),
    )
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(
        {k: state[name].view(shapes[k]) for k, name in zip(shapes, names)}, strict=True, assign=True
    )
    torch.manual_seed(0)
    x, t, context = torch.randn(1, 4, 16, 16), torch.tensor([741]), torch.randn(1, 77, 768)
    eps = ours(x, t, Cond(context))
    torch.testing.assert_close(eps, theirs(x, t, context).sample, rtol=0, atol=1e-4)
    assert eps.std() > 0.1


# ---------------------------------------------------------------- behaviour of every model


def small_models():
    torch.manual_seed(0)
    return {
        "unet": UNet(SMALL),
        "classic": ClassicUNet(2, channels=64, vector=5),
        "folded": SpaceToDepth(UNet(UNetConfig(**{**SMALL.__dict__, "in_channels": 8})), 2),
    }


@pytest.mark.parametrize("name", ["unet", "classic", "folded"])
def test_every_parameter_learns(name):
    model = small_models()[name]
    x = torch.randn(2, 2, 8, 8)
    (model(x, torch.tensor([10, 700]), Cond(vector=torch.randn(2, 5))) ** 2).sum().backward()
    dead = [
        n
        for n, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or p.grad.abs().max() == 0
    ]
    assert not dead


@pytest.mark.parametrize("name", ["unet", "classic"])
@torch.no_grad()
def test_time_and_vector_change_the_output(name):
    """At 64 channels, two or more a group: with one channel a group, GroupNorm cancels every
    shift of a channel."""
    model = small_models()[name].eval()
    x, vector = torch.randn(1, 2, 8, 8), torch.zeros(1, 5)
    base = model(x, torch.tensor([100]), Cond(vector=vector))
    assert base.shape == x.shape
    assert (model(x, torch.tensor([101]), Cond(vector=vector)) - base).abs().max() > 1e-4
    assert (model(x, torch.tensor([100.5]), Cond(vector=vector)) - base).abs().max() > 1e-5
    assert (model(x, torch.tensor([100]), Cond(vector=vector + 1)) - base).abs().max() > 1e-3


@torch.no_grad()
def test_classic_attention_has_two_residuals():
    """With both of its branches silenced, nothing is left but x itself."""
    torch.manual_seed(0)
    block, x = SelfAttention(16), torch.randn(2, 16, 3, 5)
    assert (block(x) - x).abs().max() > 0.01
    for layer in (block.attention.out_proj, block.mlp[-1]):
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    assert torch.equal(block(x), x)


@torch.no_grad()
def test_context_reaches_its_own_picture_only():
    model = tiny("sd15")
    x, context = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 24)
    base = model(x, torch.tensor([5, 5]), Cond(context))
    context[1] += 1
    moved = (model(x, torch.tensor([5, 5]), Cond(context)) - base).abs().amax((1, 2, 3))
    assert moved[0] == 0 and moved[1] > 1e-3
    order = torch.randperm(7)  # tokens are a set: attention does not see their order
    torch.testing.assert_close(
        model(x, torch.tensor([5, 5]), Cond(context[:, order])),
        model(x, torch.tensor([5, 5]), Cond(context)),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", ["unet", "classic"])
@pytest.mark.parametrize("height, width", [(8, 8), (9, 15), (28, 28), (13, 8)])
@torch.no_grad()
def test_odd_sizes(name, height, width):
    x = torch.randn(1, 2, height, width)
    out = small_models()[name](x, torch.tensor([3]), Cond(vector=torch.zeros(1, 5)))
    assert out.shape == x.shape and out.isfinite().all()


def test_out_channels_and_depth_zero():
    model = UNet(
        UNetConfig(
            in_channels=3,
            out_channels=6,
            channels=32,
            mult=(1,),
            depth=(0,),
            middle=0,
            heads=(1,),
            blocks=1,
        )
    )
    assert model(torch.randn(2, 3, 5, 5), torch.tensor([0, 1])).shape == (2, 6, 5, 5)


# ---------------------------------------------------------------- space to depth


def test_space_to_depth_is_exact():
    x, t = torch.randn(2, 3, 6, 10), torch.zeros(2)
    seen = []

    class Spy(nn.Module):
        def forward(self, x, t, cond):
            seen.append(x)
            return x

    assert torch.equal(SpaceToDepth(Spy(), 2)(x, t), x)
    for c in range(3):
        for i in range(2):
            for j in range(
                2
            ):  # channel c, row i, column j of each patch becomes channel 4 c + 2 i + j
                assert torch.equal(seen[0][:, 4 * c + 2 * i + j], x[:, c, i::2, j::2])
    with refuses(ShapeError, r"SpaceToDepth\(2\)", "multiples of 2"):
        SpaceToDepth(Spy(), 2)(torch.zeros(1, 1, 7, 8), t)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "x, t, cond, words",
    [
        ((2, 3, 8, 8), (2,), {}, (r"\(2, 3, 8, 8\)", r"\(B, 2, H, W\)")),
        ((2, 8, 8), (2,), {}, ("x_t",)),
        ((2, 2, 8, 8), (1,), {}, ("t has shape", "one time a picture")),
        ((2, 2, 8, 8), (2, 1), {}, ("t has shape",)),
        (
            (2, 2, 8, 8),
            (2,),
            dict(vector=(2, 4)),
            ("vector", r"\(2, 5\)", "zeros for no condition"),
        ),
        ((2, 2, 8, 8), (2,), dict(vector=(3, 5)), ("vector",)),
        ((2, 2, 8, 8), (2,), dict(vector=None), ("vector",)),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["unet", "classic"])
def test_wrong_shapes(name, x, t, cond, words):
    parts = {"vector": (2, 5), **cond}
    with refuses(ShapeError, *words):
        small_models()[name](
            torch.zeros(x),
            torch.zeros(t),
            Cond(**{k: v and torch.zeros(v) for k, v in parts.items()}),
        )


@pytest.mark.parametrize("context", [None, (2, 7, 23), (3, 7, 24), (2, 24)])
def test_wrong_context(context):
    with refuses(ShapeError, "cond.context", r"\(2, tokens, 24\)"):
        tiny("sd15")(
            torch.zeros(2, 4, 8, 8), torch.zeros(2), Cond(context and torch.zeros(context))
        )


@torch.no_grad()
def test_a_text_for_a_model_without_text():
    """It would be ignored. Labels may be: a model without classes is trained on data that has
    them."""
    x, t = torch.zeros(2, 2, 8, 8), torch.zeros(2)
    with refuses(ShapeError, r"\(2, 7, 24\)", "reads no text", "build it with context"):
        UNet(SMALL)(x, t, Cond(torch.zeros(2, 7, 24), torch.zeros(2, 5)))
    model = UNet(UNetConfig(**{**SMALL.__dict__, "vector": 0})).eval()
    assert torch.equal(model(x, t, Cond(vector=torch.ones(2, 10))), model(x, t))


def test_classic_needs_eight_pixels():
    with refuses(ShapeError, "at least 8"):
        small_models()["classic"](
            torch.zeros(1, 2, 7, 8), torch.zeros(1), Cond(vector=torch.zeros(1, 5))
        )


@pytest.mark.parametrize(
    "name, value",
    [
        ("channels", 20),  # no multiple of groups
        ("heads", (3, 4)),  # no divisor of the width
        ("depth", (1,)),
        ("mult", ()),
        ("heads", (0, 4)),
        ("groups", 0),
        ("channels", -64),
        ("channels", 8192),  # harmful plans are refused before anything is built
        ("blocks", 65_536),
        ("middle", 65_536),
        ("depth", (0, 65_536)),
        ("mult", (1,) * 9),
        ("depth", (0, 33)),
        ("vector", True),
        ("context", 1.5),
    ],
)
def test_bad_config(name, value):
    with refuses(OptionError, {"channels": "channels|width of level 0"}.get(name, name)):
        UNetConfig(**{**SMALL.__dict__, name: value})


@torch.no_grad()
def test_a_picture_goes_in_behind_x_t():
    """With the weights for its channels at 0 it changes nothing, else it does; dtype follows x_t."""
    model = editing(9).eval()
    t, vector = torch.tensor([3, 900]), torch.randn(2, 5)
    x, picture = torch.randn(2, 4, 6, 10), torch.randn(2, 5, 6, 10)
    whole = model(torch.cat([x, picture], 1), t, Cond(vector=vector))
    out = model(x, t, Cond(vector=vector, picture=picture.double()))
    assert out.shape == x.shape and torch.equal(out, whole)
    model.conv_in.weight[:, 4:] = 0
    assert torch.equal(
        model(x, t, Cond(vector=vector, picture=picture)),
        model(x, t, Cond(vector=vector, picture=picture + 1)),
    )


@pytest.mark.parametrize(
    "x, picture, words",
    [
        ((2, 4, 8, 8), (2, 4, 8, 8), ("cond.picture", r"\(2, 5, 8, 8\)", "inpainting")),
        ((2, 4, 8, 8), (1, 5, 8, 8), ("cond.picture", r"\(2, 5, 8, 8\)")),
        ((2, 4, 8, 8), (2, 5, 8, 4), ("cond.picture", r"\(2, 5, 8, 8\)")),
        ((2, 9, 8, 8), (2, 5, 8, 8), ("cond.picture", "pass none")),
        ((2, 8, 8), (2, 5, 8, 8), ("x_t",)),
    ],
)
def test_wrong_pictures(x, picture, words):
    with refuses(ShapeError, *words):
        editing(9)(
            torch.zeros(x), torch.zeros(2), Cond(None, torch.zeros(2, 5), torch.zeros(picture))
        )


def editing(channels):
    """A UNet with channels besides those of a latent."""
    return UNet(UNetConfig(**{**SMALL.__dict__, "in_channels": channels, "out_channels": 4}))


@pytest.mark.parametrize("channels, kind", [(9, "inpainting"), (8, "InstructPix2Pix")])
def test_other_kinds_of_models_are_named(channels, kind):
    """What takes more than a latent says what it is, before the first layer."""
    with refuses(ShapeError, "x_t", f"{channels} input channels", kind, "cond.picture"):
        editing(channels)(torch.zeros(1, 4, 8, 8), torch.zeros(1), Cond(vector=torch.zeros(1, 5)))


def test_many_transformer_blocks_together_are_refused():
    with refuses(OptionError, "transformer blocks", "512"):
        UNetConfig(**{**SMALL.__dict__, "depth": (32, 32), "blocks": 8})
