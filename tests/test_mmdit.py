"""MM-DiT: SD 3 medium and FLUX.1 dev counted on the meta device, tiny ones equal to diffusers', refusals."""

import re

import pytest
import torch
from helpers import refuses

from ddpm_edu import Cond, OptionError, ShapeError
from ddpm_edu.networks.mmdit import FLUX_DEV, SD3_MEDIUM, MMDiT, MMDiTConfig

TINY_SD3 = MMDiTConfig(3, 2, 32, 3, 0, 4, context=24, vector=20, grid=12)
TINY_FLUX = MMDiTConfig(
    3, 2, 32, 2, 2, 2, context=24, vector=20, qk_norm=1, guided=1, grid=0, rope=(4, 6, 6)
)


def like_diffusers(c):
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    same = dict(
        attention_head_dim=c.width // c.heads,
        num_attention_heads=c.heads,
        num_layers=c.double,
        joint_attention_dim=c.context,
        pooled_projection_dim=c.vector,
    )
    if not c.grid:
        channels = c.in_channels * c.patch**2
        return FluxTransformer2DModel(
            in_channels=channels,
            num_single_layers=c.single,
            guidance_embeds=True,
            axes_dims_rope=c.rope,
            **same,
        ).eval()
    return SD3Transformer2DModel(
        sample_size=c.grid * c.patch // 3,
        patch_size=c.patch,
        in_channels=c.in_channels,
        out_channels=c.in_channels,
        caption_projection_dim=c.width,
        pos_embed_max_size=c.grid,
        **same,
    ).eval()


NAMES = [  # diffusers' names -> ours, in this order
    (r"^time_text_embed\.timestep_embedder\.", "time."),
    (r"^time_text_embed\.guidance_embedder\.", "guidance."),
    (r"^time_text_embed\.text_embedder\.", "vector."),
    (r"\.linear_1\.", ".0."),
    (r"\.linear_2\.", ".2."),
    (r"^(context_embedder)\.", "text."),
    (r"^(pos_embed\.proj|x_embedder)\.", "patches."),
    (r"^norm_out\.linear\.", "ada_out."),
    (r"^proj_out\.", "out."),
    (r"^single_transformer_blocks\.(\d+)\.norm\.linear\.", r"singles.\1.ada."),
    (r"^single_transformer_blocks\.(\d+)\.proj_mlp\.", r"singles.\1.mlp."),
    (r"^single_transformer_blocks\.(\d+)\.proj_out\.", r"singles.\1.out."),
    (r"^single_transformer_blocks\.", "singles."),
    (r"^transformer_blocks\.(\d+)\.norm1\.linear\.", r"doubles.\1.picture.ada."),
    (r"^transformer_blocks\.(\d+)\.norm1_context\.linear\.", r"doubles.\1.text.ada."),
    (r"^transformer_blocks\.(\d+)\.attn\.to_out\.0\.", r"doubles.\1.picture.out."),
    (r"^transformer_blocks\.(\d+)\.attn\.to_add_out\.", r"doubles.\1.text.out."),
    (r"^transformer_blocks\.(\d+)\.attn\.add_(.)_proj\.", r"doubles.\1.text.attn.\2."),
    (r"^transformer_blocks\.(\d+)\.attn\.norm_added_(.)\.", r"doubles.\1.text.attn.norm_\2."),
    (r"^transformer_blocks\.(\d+)\.attn\.", r"doubles.\1.picture.attn."),
    (r"^transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.", r"doubles.\1.picture.mlp.0."),
    (r"^transformer_blocks\.(\d+)\.ff\.net\.", r"doubles.\1.picture.mlp."),
    (r"^transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj\.", r"doubles.\1.text.mlp.0."),
    (r"^transformer_blocks\.(\d+)\.ff_context\.net\.", r"doubles.\1.text.mlp."),
    (r"\.to_(.)\.", r".\1."),
]


def renamed(theirs, c):
    """Diffusers' weights under our names. Two of its layers give scale before shift; FLUX packs a patch channel by channel."""
    state, halves = {}, [f"doubles.{c.double - 1}.text.ada."] * (not c.single) + ["ada_out."]
    for name, w in theirs.state_dict().items():
        if name == "pos_embed.pos_embed":  # the table of sines
            continue
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        if name.startswith(tuple(halves)):
            w = torch.cat(w.chunk(2)[::-1])
        if not c.grid and name == "patches.weight":
            w = w.unflatten(1, (c.in_channels, c.patch, c.patch))
        if not c.grid and name.startswith("out."):
            w = w.unflatten(0, (c.in_channels, -1)).transpose(0, 1).flatten(0, 1)
        state[name] = w
    return state


@pytest.mark.parametrize(
    "config, count", [(SD3_MEDIUM, 2_028_328_000), (FLUX_DEV, 11_901_408_320)], ids=["sd3", "flux"]
)
def test_counts_and_keys(config, count):
    """Every weight of diffusers' model, built with the published config, has its place and shape in ours."""
    with torch.device("meta"):
        ours, theirs = MMDiT(config), like_diffusers(config)
        wanted = {name: w.shape for name, w in renamed(theirs, config).items()}
    assert {name: w.shape for name, w in ours.state_dict().items()} == wanted
    assert sum(p.numel() for p in ours.parameters()) == count


@torch.no_grad()
@pytest.mark.parametrize("config", [TINY_SD3, TINY_FLUX], ids=["sd3", "flux"])
def test_equals_diffusers(config):
    torch.manual_seed(0)
    theirs, ours = like_diffusers(config), MMDiT(config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    ours.load_state_dict(renamed(theirs, config))
    x, t = torch.randn(2, 3, 6, 8), torch.tensor([250.0, 900.0])
    context, vector = torch.randn(2, 5, 24), torch.randn(2, 20)
    out = ours(x, t, Cond(context, vector), **({} if config.grid else dict(guidance=2.0)))
    if config.grid:
        wanted = theirs(x, context, vector, t).sample
    else:
        tokens = torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        places = torch.tensor([[0.0, i, j] for i in range(3) for j in range(4)])
        wanted = theirs(
            tokens, context, vector, t / 1000, places, torch.zeros(5, 3), torch.full((2,), 2.0)
        ).sample
        wanted = wanted.transpose(1, 2).unflatten(2, (3, 4))
        wanted = torch.nn.functional.pixel_shuffle(wanted, 2)
    assert wanted.std() > 0.3 and out.shape == wanted.shape == x.shape
    assert (out - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    "x, context, words",
    [
        ((1, 3, 7, 8), (1, 5, 24), ("x_t", "multiples of 2")),
        ((1, 4, 8, 8), (1, 5, 24), ("x_t", "3")),
        ((1, 3, 8, 26), (1, 5, 24), ("x_t", "4 x 13 patches", "at most 12")),
        ((1, 3, 8, 8), (1, 5, 23), ("cond.context", "24")),
    ],
)
def test_wrong_shapes(x, context, words):
    with refuses(ShapeError, *words):
        MMDiT(TINY_SD3)(
            torch.zeros(x), torch.zeros(1), Cond(torch.zeros(context), torch.zeros(1, 20))
        )


@pytest.mark.parametrize(
    "name, value",
    [("heads", 3), ("double", 0), ("rope", (4, 6, 4)), ("rope", (16,)), ("qk_norm", 2)],
)
def test_bad_config(name, value):
    with refuses(OptionError, name):
        MMDiTConfig(**{**TINY_FLUX.__dict__, name: value})
