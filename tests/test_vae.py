"""The VAE: names and sizes of the official ones, parity with the original and diffusers, tiles."""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from folder_writer import to_folder
from helpers import read_json, read_tensors, refuses
from torch import nn
from weight_formula import tiny_weights, weight

from ddpm_edu import DataError, OptionError, ShapeError, generators
from ddpm_edu.files.load import load_state
from ddpm_edu.files.names import to_ours
from ddpm_edu.networks.vae import (
    SD_VAE,
    SDXL_VAE,
    VAE,
    Attention,
    Downsample,
    Upsample,
    VAEConfig,
    decode_tiled,
    kl,
    start_linear,
)

KEYS = read_json("vae_keys.json.gz")
TINY = VAEConfig(channels=32, mult=(1, 1, 2), blocks=1, scale=0.5)
SMALL = VAEConfig(channels=32, mult=(1, 2, 2), blocks=2, groups=8, scale=0.5)


# ------------------------------------------------ the official ones, without their weights


@functools.cache
def shapes_on_meta():
    with torch.device("meta"):
        return {k: list(v.shape) for k, v in VAE(SD_VAE).state_dict().items()}


def on_meta(shapes):
    return {k: torch.empty(s, device="meta") for k, s in shapes.items()}


def shapes_of(state):
    return {k: list(v.shape) for k, v in state.items()}


def test_parameter_count_is_exact():
    assert sum(math.prod(s) for s in shapes_on_meta().values()) == 83_653_863
    assert (SD_VAE.scale, SDXL_VAE.scale) == (0.18215, 0.13025)


@pytest.mark.parametrize("name", [n for n in KEYS if n.startswith("original/")])
@pytest.mark.parametrize("prefix", ["first_stage_model.", ""])
def test_original_keys_fit_one_to_one(name, prefix):
    assert len(KEYS[name]) == 248
    state = {prefix + k.removeprefix("first_stage_model."): s for k, s in KEYS[name].items()}
    assert shapes_of(to_ours("vae", on_meta(state))) == shapes_on_meta()


@pytest.mark.parametrize("name", [n for n in KEYS if n.startswith("folder")])
@pytest.mark.parametrize("four", [False, True], ids=["matrices", "convolutions"])
def test_folder_keys_fit_one_to_one(name, four):
    state = {
        k: [*s, 1, 1] if four and "attentions" in k and len(s) == 2 else s
        for k, s in KEYS[name].items()
    }
    assert len(state) == 248 and shapes_of(to_ours("vae", on_meta(state))) == shapes_on_meta()


@pytest.mark.parametrize("name", [n for n in KEYS if n.startswith("folder/")])
def test_our_keys_go_back_to_a_folder(name):
    assert shapes_of(to_folder("vae", on_meta(shapes_on_meta()))) == KEYS[name]


def test_both_tables_call_the_same_tensor_the_same():
    """Shapes alone cannot tell q from k. The truth files pair original and folder names; the
    tensors here are their numbers."""
    numbered = {k: torch.tensor(float(i)) for i, k in enumerate(KEYS["map"])}
    folder = {theirs: numbered[k] for k, theirs in KEYS["map"].items()}
    ours = to_ours("vae", numbered)
    assert len(ours) == 248 and ours == to_ours("vae", folder)
    assert to_folder("vae", ours) == folder


# ---------------------------------------------------------------- parity with the original code


@functools.cache
def reference():
    return read_tensors("vae_tiny.io.safetensors")


def tiny():
    weights, digest = tiny_weights("tiny_vae", KEYS["tiny"])
    assert digest == KEYS["sha256"]
    model = VAE(TINY)
    load_state(model, to_ours("vae", weights))
    return model.eval().requires_grad_(False)


def errors(model, dtype=torch.float64):
    """{what: largest difference from the original's output}, run in this precision."""
    io, out = reference(), "out64" if dtype == torch.float64 else "out"
    model, image, noise = model.to(dtype), io["in/image"].to(dtype), io["in/noise"].to(dtype)
    mean, logvar = model.encode(image)
    ours = {
        "moments": model.quant(model.encoder(image)),
        "mean": mean,
        "logvar": logvar,
        "std": (0.5 * logvar).exp(),
        "kl": kl(mean, logvar),
        "sample": model.to_latent(image, lambda m: noise) / TINY.scale,
        "dec": model.from_latent(io["in/z"].to(dtype) * TINY.scale),
    }
    return {
        k: ((v - io[f"{out}/{k}"]).abs() / io[f"{out}/{k}"].abs().clamp(min=1)).max().item()
        for k, v in ours.items()
    }


def test_parity_with_the_original():
    assert max(errors(tiny(), torch.float32).values()) < 1e-5
    assert max(errors(tiny()).values()) < 1e-6


def eps_of_the_unet(model):
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-5


def attend_with_two_heads(self, x):
    h = self.norm(x).flatten(2).transpose(1, 2)
    q, k, v = (z.unflatten(-1, (2, -1)).transpose(1, 2) for z in (self.q(h), self.k(h), self.v(h)))
    return x + self.out(
        F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    ).transpose(1, 2).unflatten(2, x.shape[2:])


SPOILED = {
    "downsampling pads as the UNet's": lambda p: p.setattr(
        Downsample,
        "forward",
        lambda self, x: self.conv(F.pad(x, (1, 1, 1, 1)))[
            ..., : x.shape[2] // 2, : x.shape[3] // 2
        ],
    ),
    "downsampling pads left and above": lambda p: p.setattr(
        Downsample, "forward", lambda self, x: self.conv(F.pad(x, (1, 0, 1, 0)))
    ),
    "bilinear upsampling": lambda p: p.setattr(
        Upsample,
        "forward",
        lambda self, x: self.conv(F.interpolate(x, scale_factor=2, mode="bilinear")),
    ),
    "two heads": lambda p: p.setattr(Attention, "forward", attend_with_two_heads),
    "GroupNorm's eps of the UNet": None,
}


@pytest.mark.parametrize("how", SPOILED)
def test_the_parity_test_can_fail(how, monkeypatch):
    model = tiny()
    SPOILED[how](monkeypatch) if SPOILED[how] else eps_of_the_unet(model)
    assert max(errors(model).values()) > 2e-6


# ---------------------------------------------------------------- parity with diffusers


def theirs_of(config):
    from diffusers import AutoencoderKL

    levels = len(config.mult)
    return (
        AutoencoderKL(
            block_out_channels=[config.channels * m for m in config.mult],
            layers_per_block=config.blocks,
            latent_channels=config.latent,
            norm_num_groups=config.groups,
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
        )
        .eval()
        .requires_grad_(False)
    )


def assert_same(ours, theirs, sizes, tolerance):
    for height, width in sizes:  # of the latent
        x, z = (
            torch.rand(2, 3, height * ours.factor, width * ours.factor) * 2 - 1,
            torch.randn(2, 4, height, width),
        )
        dist = theirs.encode(x).latent_dist
        for a, b in zip(
            (*ours.encode(x), kl(*ours.encode(x)), ours.decode(z)),
            (dist.mean, dist.logvar, dist.kl(), theirs.decode(z).sample),
        ):
            assert ((a - b).abs() / b.abs().clamp(min=1)).max() < tolerance, (height, width)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        VAEConfig(channels=16, mult=(1, 2, 3, 4), blocks=1, groups=4),
        VAEConfig(channels=16, mult=(1,), blocks=3, groups=2),
    ],
    ids=lambda c: str(c.mult),
)
def test_parity_with_diffusers_both_ways(config):
    torch.manual_seed(0)
    theirs, ours = theirs_of(config), VAE(config).eval().requires_grad_(False)
    load_state(ours, to_ours("vae", theirs.state_dict()))
    assert_same(ours, theirs, [(4, 6), (3, 5), (1, 1)], 2e-5)
    trained, theirs = VAE(config).eval().requires_grad_(False), theirs_of(config)
    theirs.load_state_dict(to_folder("vae", trained.state_dict()), strict=True)
    assert_same(trained, theirs, [(3, 5)], 2e-5)


@pytest.mark.full
def test_full_size_against_diffusers():
    """The weights get diffusers' names by the truth files' map, not by our table; encode 64 x 64
    and 24 x 40, decode the same."""
    original = {k: torch.from_numpy(weight(k, s)) for k, s in KEYS["original/sd15"].items()}
    theirs = theirs_of(SD_VAE)
    theirs.load_state_dict(
        {
            KEYS["map"][k]: v.reshape(KEYS["folder/sd15"][KEYS["map"][k]])
            for k, v in original.items()
        },
        strict=True,
    )
    with torch.device("meta"):
        ours = VAE(SD_VAE).eval().requires_grad_(False)
    load_state(ours, to_ours("vae", original))
    torch.manual_seed(0)
    assert_same(ours, theirs, [(8, 8), (3, 5)], 1e-4)


# ---------------------------------------------------------------- latents


@functools.cache
def small():
    torch.manual_seed(0)
    return VAE(SMALL).eval().requires_grad_(False)


def test_latents_carry_the_scale():
    vae, x = small(), torch.rand(3, 3, 16, 8) * 2 - 1
    mean, logvar = vae.encode(x)
    assert vae.factor == 4 and mean.shape == logvar.shape == (3, 4, 4, 2)
    torch.testing.assert_close(vae.to_latent(x), 0.5 * mean)
    torch.testing.assert_close(vae.from_latent(vae.to_latent(x)), vae.decode(mean))
    torch.testing.assert_close(
        vae.to_latent(x, torch.ones_like), 0.5 * (mean + logvar.div(2).exp())
    )


def test_noise_of_a_latent_belongs_to_its_own_picture():
    vae, x = small(), torch.rand(3, 3, 8, 8) * 2 - 1
    together = vae.to_latent(x, generators([5, 6, 7]))
    torch.testing.assert_close(vae.to_latent(x[1:2], generators([6])), together[1:2])
    assert not torch.allclose(vae.to_latent(x, torch.Generator().manual_seed(1)), vae.to_latent(x))
    with refuses(ShapeError, "2 generators", "batch of 3"):
        vae.to_latent(x, generators([5, 6]))


def test_variance_is_clamped():
    vae = VAE(SMALL).requires_grad_(False)
    vae.quant.weight.zero_()
    for bias, expected in ((100.0, 20), (-100.0, -30), (3.0, 3)):
        vae.quant.bias.fill_(bias)
        assert vae.encode(torch.zeros(1, 3, 8, 8))[1].unique().tolist() == [expected]


def test_kl_against_torch():
    mean, logvar = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    q, p = (
        torch.distributions.Normal(mean, logvar.div(2).exp()),
        torch.distributions.Normal(torch.zeros(1), torch.ones(1)),
    )
    torch.testing.assert_close(
        kl(mean, logvar), torch.distributions.kl_divergence(q, p).sum((1, 2, 3))
    )
    assert kl(torch.zeros(2, 4), torch.zeros(2, 4)).tolist() == [0, 0]
    with refuses(ShapeError, "mean", "logvar", r"\(2, 1\)"):
        kl(torch.zeros(2, 4), torch.zeros(2, 1))


LINEAR = VAEConfig(channels=16, mult=(1, 2), blocks=1, latent=3, groups=8, patch=2, linear=True)


def smooth_pictures(n=300, size=16):
    """Neighbouring pixels resemble each other: a few numbers hold most of a patch."""
    x = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return F.interpolate(x, size, mode="bicubic").clamp(-1, 1)


def test_patches_and_a_linear_path_keep_the_shapes():
    vae, x = VAE(LINEAR), torch.randn(2, 3, 16, 24)
    mean, logvar = vae.encode(x)
    assert vae.factor == 4 and mean.shape == logvar.shape == (2, 3, 4, 6)
    assert vae.decode(mean).shape == x.shape
    with refuses(ShapeError, "multiples of 4"):
        vae.encode(torch.randn(1, 3, 6, 8))
    with refuses(OptionError, "linear = False"):
        start_linear(VAE(SMALL), x)


def test_no_linear_autoencoder_is_better_than_the_one_it_starts_with():
    """Against the singular values of the patches in numpy, and against other linear maps."""
    x = smooth_pictures()
    vae = start_linear(VAE(LINEAR), x)
    with torch.no_grad():
        z = vae.linear_in(x)
        error = (vae.linear_out(z) - x).square().mean().item()
        mean, logvar = vae.encode(x)
    patches = F.pixel_unshuffle(x, 4).permute(0, 2, 3, 1).reshape(-1, 48).double().numpy()
    values = np.linalg.svd(patches - patches.mean(0), compute_uv=False) ** 2
    best = values[3:].sum() / patches.size
    assert best <= error + 1e-6 and error == pytest.approx(best, rel=0.02)
    assert error < 0.5 * x.var().item()
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(z.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        q = np.linalg.qr(rng.normal(size=(48, 3)))[0]
        rest = patches - patches.mean(0)
        assert ((rest - rest @ q @ q.T) ** 2).mean() > error
    # The network adds nothing to the picture yet, and next to nothing to the latents.
    assert torch.equal(vae.decode(z), vae.linear_out(z)) and (mean - z).abs().max() < 0.5
    assert (logvar + 4).abs().max() < 0.5
    frozen = {name for name, p in vae.named_parameters() if not p.requires_grad}
    assert frozen == {
        f"linear_{end}.{part}" for end in ("in", "out") for part in ("weight", "bias")
    }


def test_every_parameter_learns():
    """All but the keys' bias: it adds the same number to every score of a query, which softmax
    does not see."""
    torch.manual_seed(0)
    vae, x = VAE(SMALL), torch.rand(2, 3, 16, 16) * 2 - 1
    mean, logvar = vae.encode(x)
    z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
    ((vae.decode(z) - x).abs().mean() + 1e-6 * kl(mean, logvar).mean()).backward()
    dead = [
        n
        for n, p in vae.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or p.grad.abs().max() < 1e-12
    ]
    assert set(dead) <= {"encoder.mid.1.k.bias", "decoder.mid.1.k.bias"}


# ---------------------------------------------------------------- tiles


class Repeat:
    """A "VAE" that only sees its own pixel, so that tiles lose nothing, or (tones) one that
    paints the n-th tile with tone n."""

    factor, config = 4, VAEConfig(latent=3)

    def __init__(self, tones=None):
        self.sizes, self.tones = [], tones

    def from_latent(self, z):
        self.sizes.append(tuple(z.shape[2:]))
        out = z.repeat_interleave(4, 2).repeat_interleave(4, 3)
        return out if self.tones is None else torch.full_like(out, self.tones[len(self.sizes) - 1])


@pytest.mark.parametrize(
    "height, width, tile, overlap",
    [(20, 33, 8, 3), (8, 8, 8, 7), (5, 40, 16, 0), (17, 16, 16, 15), (9, 1, 4, 1), (40, 40, 1, 0)],
)
def test_weights_of_the_tiles_add_up_to_one(height, width, tile, overlap):
    z, vae = torch.randn(2, 3, height, width), Repeat()
    torch.testing.assert_close(
        decode_tiled(vae, z, tile, overlap), Repeat().from_latent(z), rtol=0, atol=2e-6
    )
    assert max(max(size) for size in vae.sizes) <= tile  # memory: never more than a tile at once
    step = tile - overlap
    assert len(vae.sizes) <= math.prod(
        1 + math.ceil(max(0, side - tile) / step) for side in (height, width)
    )


def test_tones_of_neighbouring_tiles_blend_without_a_seam():
    """Tile after tile of tones 0 and 1: a step of 1 without overlap, at most 1 / (4 overlap) a
    pixel with it."""
    z = torch.zeros(1, 3, 8, 20)
    for overlap, step in (
        (0, 1),
        (2, 1 / 8),
        (4, 1 / 16),
    ):  # 8 + 12, 8 + 6 + 6 and 8 + 4 + 4 + 4 columns
        x = decode_tiled(Repeat(tones=[0.0, 1, 0, 1, 0]), z, 8, overlap)
        assert x.min() >= 0 and x.max() == 1 and (x == 0).any()
        assert x.diff(dim=3).abs().max() == pytest.approx(step, rel=1e-4), overlap
        assert x.diff(dim=2).abs().max() == 0


def test_one_tile_is_exact():
    vae, z = small(), torch.randn(2, 4, 6, 9) * 0.5
    assert torch.equal(decode_tiled(vae, z, 9, 3), vae.from_latent(z))
    assert torch.equal(decode_tiled(vae, z), vae.from_latent(z))
    vae = VAE(SMALL).bfloat16().requires_grad_(False)
    assert torch.equal(decode_tiled(vae, z.bfloat16()), vae.from_latent(z.bfloat16()))


def test_tiles_of_a_real_decoder_are_close():
    """Approximate, since GroupNorm and attention see one tile: nearer with larger tiles, and with
    an overlap."""
    torch.manual_seed(0)
    vae, z = small(), torch.randn(1, 4, 36, 44) * 0.5
    whole = vae.from_latent(z)
    off = {
        (tile, overlap): (decode_tiled(vae, z, tile, overlap) - whole).abs().mean().item()
        / whole.std().item()
        for tile, overlap in ((12, 0), (12, 6), (24, 0), (24, 12))
    }
    assert 0 < off[24, 12] < off[12, 6] < off[12, 0] and off[24, 12] < off[24, 0], off
    assert off[24, 12] < 0.15, off


@pytest.mark.parametrize(
    "tile, overlap, name",
    [(8, 8, "overlap"), (8, -1, "overlap"), (0, 0, "tile"), (8.0, 0, "tile"), (True, 0, "tile")],
)
def test_bad_tiles(tile, overlap, name):
    with refuses(OptionError, f"{name} = "):
        decode_tiled(small(), torch.zeros(1, 4, 4, 4), tile, overlap)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "shape",
    [
        (1, 3, 17, 16),
        (1, 3, 16, 18),
        (1, 4, 16, 16),
        (3, 16, 16),
        (1, 3, 0, 16),
        (1, 1, 16, 16),
        (0, 3, 16, 16),
    ],
    ids=str,
)
def test_wrong_pictures(shape):
    for call in (small().encode, small().to_latent):
        with refuses(ShapeError, r"\(B, 3, H, W\)", "multiples of 4", "resize"):
            call(torch.zeros(shape))


def test_bytes_are_no_picture():
    for call in (small().encode, small().to_latent):
        with refuses(DataError, "uint8", "from_uint8"):
            call(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with refuses(OptionError, "generator = 3"):
        small().to_latent(torch.zeros(1, 3, 16, 16), 3)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (4, 4, 4), (1, 4, 0, 4), (1, 8, 4, 4)], ids=str)
def test_wrong_latents(shape):
    for call in (small().decode, small().from_latent, functools.partial(decode_tiled, small())):
        with refuses(ShapeError, "z has shape", r"\(B, 4, h, w\)"):
            call(torch.zeros(shape))


@pytest.mark.parametrize(
    "name, value",
    [
        ("channels", 20),  # no multiple of groups
        ("channels", 8192),
        ("mult", ()),
        ("mult", (1, 0)),
        ("blocks", 0),
        ("blocks", 65_536),
        ("latent", True),
        ("groups", 1.5),
        ("scale", 0),
        ("scale", math.nan),
        ("scale", math.inf),
        ("scale", "0.18215"),
        ("scale", None),
    ],
)
def test_bad_config(name, value):
    with refuses(OptionError, f"{name}|width of level 0 = {value}" if value == 20 else name):
        VAEConfig(**{**SMALL.__dict__, name: value})
