"""DiT: parity with diffusers' DiTTransformer2DModel, the count of DiT-XL/2, the start at zero, refusals."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import refuses

from ddpm_edu import Cond, OptionError, Schedule, ShapeError, last, loss, sample
from ddpm_edu.networks.dit import DIT_XL, DiT, DiTConfig, sine_positions

SMALL = DiTConfig(in_channels=3, out_channels=6, patch=2, width=32, depth=3, heads=4, vector=5)
TEXT = DiTConfig(in_channels=3, patch=2, width=32, depth=2, heads=4, context=24)


def shaken(config, seed=0, dtype=torch.float32):
    """A DiT whose every weight is random, also those that start at 0."""
    torch.manual_seed(seed)
    model = DiT(config).to(dtype).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


def like_diffusers(config, size, **options):
    from diffusers import DiTTransformer2DModel

    return DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        sample_size=size,
        patch_size=config.patch,
        num_embeds_ada_norm=config.vector,
        **options,
    ).eval()


def copied(theirs, ours):
    """Ours with the weights of diffusers'. Their last class is "no class": our bias."""
    weights = theirs.state_dict()
    take = lambda name, source: {
        f"{name}.{part}": weights.pop(f"{source}.{part}") for part in ("weight", "bias")
    }
    state = take("patches", "pos_embed.proj")
    for i in range(ours.config.depth):
        block, emb = f"transformer_blocks.{i}", f"transformer_blocks.{i}.norm1.emb"
        for name, source in {
            "attn.q": "attn1.to_q",
            "attn.k": "attn1.to_k",
            "attn.v": "attn1.to_v",
            "attn.out": "attn1.to_out.0",
            "mlp.0": "ff.net.0.proj",
            "mlp.2": "ff.net.2",
            "ada": "norm1.linear",
        }.items():
            state |= take(f"blocks.{i}.{name}", f"{block}.{source}")
        state |= take("time.0", f"{emb}.timestep_embedder.linear_1")
        state |= take("time.2", f"{emb}.timestep_embedder.linear_2")
        table = weights.pop(f"{emb}.class_embedder.embedding_table.weight")
        state |= {"vector.weight": (table[:-1] - table[-1]).T, "vector.bias": table[-1]}
    state |= take("ada_out", "proj_out_1") | take("out", "proj_out_2")
    assert not weights, list(weights)
    ours.load_state_dict(state)
    return ours.eval()


@torch.no_grad()
def test_equals_diffusers():
    """The paper's code has one embedding for all blocks and w_k = 10000^(-k / 128); diffusers has one a block (equal
    weights in its files), and 127 in place of 128."""
    torch.manual_seed(1)
    theirs = like_diffusers(SMALL, 8)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    for block in theirs.transformer_blocks:
        block.norm1.emb = theirs.transformer_blocks[0].norm1.emb
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    ours = copied(theirs, DiT(SMALL))
    x, t, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 3, 500, 999]), torch.arange(2, 6)
    one_hot = F.one_hot(labels, 6)[:, :5].float()  # the last label, 5, is "no class": zeros
    out = ours(x, t, Cond(vector=one_hot))
    wanted = theirs(x, timestep=t, class_labels=labels).sample
    assert wanted.std() > 0.5 and wanted.shape == out.shape == (4, 6, 8, 8)
    assert (out - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_the_count_of_the_paper_s_largest():
    """675M in table 1: diffusers' without the copies of its embedding, each 1,152 wide."""
    with torch.device("meta"):
        ours, theirs = DiT(DIT_XL), like_diffusers(DIT_XL, 32)
    count = lambda model: sum(p.numel() for p in model.parameters())
    copies = 27 * count(theirs.transformer_blocks[0].norm1.emb)
    assert count(ours) == count(theirs) - copies == 674_834_720
    # The official file also holds the positions of its 16 x 16 patches.
    assert count(ours) + 16 * 16 * 1152 == 675_129_632


@torch.no_grad()
@pytest.mark.parametrize("config", [SMALL, TEXT], ids=["class", "text"])
def test_the_start(config):
    """adaLN-zero: each block changes nothing, and the output is 0, while the weights within are not."""
    torch.manual_seed(0)
    model = DiT(config)
    x, emb, context = torch.randn(2, 16, 32), torch.randn(2, 32), torch.randn(2, 7, 24)
    for block in model.blocks:
        assert torch.equal(block(x, emb, context), x)
        assert block.attn.q.weight.std() > 0.1 and block.mlp[0].weight.std() > 0.1
    cond = Cond(context if config.context else None, torch.randn(2, 5))
    out = model(torch.randn(2, 3, 8, 8), torch.tensor([1, 2]), cond)
    assert torch.equal(out, torch.zeros(2, config.out_channels or 3, 8, 8))


def test_every_weight_learns():
    """From the start at zero, within three steps, none is left out of the gradient."""
    torch.manual_seed(0)
    config = DiTConfig(**{**TEXT.__dict__, "vector": 5})
    model, schedule = DiT(config), Schedule.cosine(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    cond = Cond(torch.randn(4, 7, 24), torch.eye(5)[:4])
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        loss(model, schedule, torch.randn(4, 3, 4, 8), cond).backward()
        optimizer.step()
    still = [k for k, w in model.state_dict().items() if torch.equal(w, before[k])]
    # softmax does not see what is added to all keys: their bias may stand still
    assert not [k for k in still if not k.endswith(".k.bias")], still


@torch.no_grad()
def test_it_sees_its_condition():
    """Time, class, text, picture and place: a change of each changes the output; a text may be of any length."""
    model = shaken(DiTConfig(5, 3, 2, 32, 2, 4, context=24, vector=5), dtype=torch.float64)
    double = dict(dtype=torch.float64)
    x, t = torch.randn(2, 3, 4, 6, **double), torch.tensor([5.5, 900])
    cond = Cond(
        torch.randn(2, 7, 24, **double), torch.eye(5, **double)[:2], torch.randn(2, 2, 4, 6)
    )
    out = model(x, t, cond)
    assert out.shape == x.shape and out.dtype == torch.float64
    for other in (
        model(x, t + 1, cond),
        model(x, t, cond._replace(context=cond.context[:, :6])),
        model(x, t, cond._replace(vector=torch.zeros(2, 5))),
        model(x, t, cond._replace(picture=torch.zeros(2, 2, 4, 6))),
    ):
        assert (other - out).abs().flatten(1).amax(1).min() > 1e-3
    shifted = model(x.roll(2, -1), t, cond._replace(picture=cond.picture.roll(2, -1)))
    assert (shifted.roll(-2, -1) - out).abs().max() > 1e-3
    alone = torch.cat(
        [model(x[i : i + 1], t[i : i + 1], cond.map(lambda z: z[i : i + 1])) for i in (0, 1)]
    )
    torch.testing.assert_close(alone, out)


def test_positions():
    """Row 2, column 3 of a grid of 4 x 6, by the formula, in float64."""
    w = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    wanted = torch.cat([f(i * w) for i in (3, 2) for f in (torch.sin, torch.cos)])
    where = sine_positions(torch.arange(4), torch.arange(6), 16)
    assert where.shape == (24, 16)
    torch.testing.assert_close(where[2 * 6 + 3].double(), wanted, rtol=0, atol=1e-6)


def test_samplers_run_it():
    x = last(
        sample(
            shaken(TEXT),
            Schedule.cosine(8),
            torch.randn(1, 3, 4, 4),
            4,
            Cond(torch.randn(1, 2, 24)),
            predict="v",
        )
    )
    assert x.shape == (1, 3, 4, 4) and x.isfinite().all()


@pytest.mark.parametrize(
    "config, x, t, cond, words",
    [
        (SMALL, (2, 3, 7, 8), (2,), dict(vector=(2, 5)), ("x_t", "multiples of 2")),
        (SMALL, (2, 3, 8, 9), (2,), dict(vector=(2, 5)), ("x_t", "multiples of 2")),
        (SMALL, (2, 3, 0, 8), (2,), dict(vector=(2, 5)), ("x_t",)),
        (SMALL, (3, 8, 8), (2,), dict(vector=(2, 5)), ("x_t", "B, C, H, W")),
        (SMALL, (2, 4, 8, 8), (2,), dict(vector=(2, 5)), ("x_t", "3")),
        (SMALL, (2, 3, 8, 8), (3,), dict(vector=(2, 5)), ("t has", "one time a picture")),
        (SMALL, (2, 3, 8, 8), (2,), {}, ("cond.vector", "missing")),
        (SMALL, (2, 3, 8, 8), (2,), dict(vector=(2, 4)), ("cond.vector", "5")),
        (
            SMALL,
            (2, 3, 8, 8),
            (2,),
            dict(vector=(2, 5), context=(2, 7, 24)),
            ("reads no text", "DiT"),
        ),
        (TEXT, (2, 3, 8, 8), (2,), {}, ("cond.context", "missing")),
        (TEXT, (2, 3, 8, 8), (2,), dict(context=(2, 7, 23)), ("cond.context", "24")),
        (
            SMALL,
            (2, 3, 8, 8),
            (2,),
            dict(vector=(2, 5), picture=(2, 2, 8, 8)),
            ("cond.picture", "none"),
        ),
    ],
)
def test_wrong_shapes(config, x, t, cond, words):
    with refuses(ShapeError, *words):
        parts = Cond(**{name: torch.zeros(shape) for name, shape in cond.items()})
        DiT(config)(torch.zeros(x), torch.zeros(t), parts)


@pytest.mark.parametrize(
    "name, value",
    [("heads", 3), ("width", 33), ("width", 0), ("patch", 0), ("depth", 513), ("vector", True)],
)
def test_bad_config(name, value):
    with refuses(OptionError, name):
        DiTConfig(**{**SMALL.__dict__, name: value})


def test_a_width_that_four_does_not_divide():
    with refuses(OptionError, "width", "4"):
        DiTConfig(width=30, heads=5)
