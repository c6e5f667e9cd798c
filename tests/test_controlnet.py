"""ControlNets: they start as nothing, count as the official ones do, and refuse what does not fit."""

import pytest
import torch
from helpers import refuses

from ddpm_edu import Cond, OptionError, ShapeError
from ddpm_edu.gpu.fast import FastUNet
from ddpm_edu.networks.controlnet import (
    SD15_CONTROL,
    SDXL_CONTROL,
    ControlNet,
    ControlNetConfig,
    control_net,
)
from ddpm_edu.networks.unet import UNet, UNetConfig

TINY = UNetConfig(
    channels=32, mult=(1, 2), depth=(0, 1), middle=1, heads=(2, 2), context=6, blocks=1, groups=8
)
XL = UNetConfig(
    **{**vars(TINY), "vector": 10, "mult": (1, 2, 2), "depth": (0, 1, 2), "heads": (2,) * 3}
)


def inputs(config, b=2, side=8, seed=0):
    """x_t, t, cond and a hint of 2 pixels a latent pixel."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(shape, generator=g)
    vector = normal(b, config.vector) if config.vector else None
    hint = torch.rand((b, 3, 2 * side, 2 * side), generator=g) * 2 - 1
    return normal(b, 4, side, side), torch.tensor([3, 900][:b]), Cond(normal(b, 5, 6), vector), hint


def pair(config, **changes):
    """A UNet and a new ControlNet for it."""
    torch.manual_seed(0)
    unet = UNet(config).eval()
    return unet, control_net(unet, widths=(8, 16), **changes)


def stirred(net):
    """The same, its zero convolutions no longer zero."""
    torch.manual_seed(1)
    for name, p in net.named_parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return net


@pytest.mark.parametrize("config", [TINY, XL])
@pytest.mark.parametrize("changes", [{}, {"depth": None, "middle": 0}])
def test_a_new_one_changes_nothing_and_an_update_does(config, changes):
    if "depth" in changes:
        changes = {**changes, "depth": (0,) * len(config.mult)}
    unet, net = pair(config, **changes)
    x_t, t, cond, hint = inputs(config)
    plain = unet(x_t, t, cond)
    residuals = net(x_t, t, cond, hint)
    assert len(residuals) == len(config.skips()) + 1
    assert torch.equal(unet(x_t, t, cond, residuals), plain)
    unet(x_t, t, cond, residuals).square().mean().backward()
    moved = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {n for n, _ in net.named_parameters() if n.startswith("zero")}
    assert not torch.equal(unet(x_t, t, cond, stirred(net)(x_t, t, cond, hint)), plain)


@pytest.mark.parametrize("config", [TINY, XL])
def test_its_encoder_is_the_unets(config):
    unet, net = pair(config)
    own, theirs = net.state_dict(), unet.state_dict()
    copied = own.keys() & theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in copied)
    new = {name.partition(".")[0] for name in own.keys() - theirs.keys()}
    assert new == {"hint", "zeros", "zero_mid"}
    left = {name.partition(".")[0] for name in theirs.keys() - own.keys()}
    assert left == {"up", "norm_out", "conv_out"}
    x_t, t, cond, hint = inputs(config)
    h, skips, _ = unet.encode(x_t, t, cond.context, cond.vector)
    again, same, _ = net.encode(x_t, t, cond.context, cond.vector)
    assert torch.equal(h, again) and all(map(torch.equal, skips, same))
    assert [skip.shape[1] for skip in skips] == config.skips()


def test_what_the_hint_shows_is_seen_where_it_is():
    """The hint's encoder keeps places: a far corner changes no residual of the first layer."""
    unet, net = pair(TINY)
    x_t, t, cond, hint = inputs(TINY, side=16)
    other = hint.clone()
    other[:, :, 24:, 24:] = 1
    with torch.no_grad():
        a, b = (stirred(net)(x_t, t, cond, h)[0] for h in (hint, other))
    assert torch.equal(a[:, :, :9, :9], b[:, :, :9, :9]) and not torch.equal(a, b)


@pytest.mark.parametrize(
    "config, parameters", [(SD15_CONTROL, 361_279_120), (SDXL_CONTROL, 1_251_014_160)]
)
def test_parameter_count_is_exact(config, parameters):
    with torch.device("meta"):
        net = ControlNet(config)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert config.factor == 8


def test_a_fast_twin_takes_residuals():
    unet, net = pair(TINY)
    x_t, t, cond, hint = inputs(TINY)
    with torch.no_grad():
        residuals = stirred(net)(x_t, t, cond, hint)
        fast = FastUNet(unet)(x_t, t, cond, residuals)
        assert torch.allclose(fast, unet(x_t, t, cond, residuals), atol=1e-5)
        assert not torch.allclose(fast, unet(x_t, t, cond), atol=1e-3)


def test_a_compiler_takes_it_in_one_piece():
    unet, net = pair(TINY)
    x_t, t, cond, hint = inputs(TINY)
    traced = torch.compile(unet.trunk, fullgraph=True, dynamic=False, backend="eager")
    with torch.no_grad():
        residuals = stirred(net)(x_t, t, cond, hint)
        out = traced(x_t, t, cond.context, cond.vector, *residuals)
        assert torch.allclose(out, unet(x_t, t, cond, residuals), atol=1e-6)


@pytest.mark.parametrize(
    "change, name",
    [
        (lambda x, t, c, h: (x, t, c, h[:, :1]), "hint"),
        (lambda x, t, c, h: (x, t, c, h[:, :, :8]), "hint"),
        (lambda x, t, c, h: (x, t, c, h[:1]), "hint"),
        (lambda x, t, c, h: (x, t, c, None), "hint"),
        (lambda x, t, c, h: (x[:, :3], t, c, h), "x_t"),
        (lambda x, t, c, h: (x, t[:1], c, h), "t"),
        (lambda x, t, c, h: (x, t, Cond(), h), "cond.context"),
    ],
)
def test_refuses_what_does_not_fit(change, name):
    _, net = pair(TINY)
    with refuses(ShapeError, name):
        net(*change(*inputs(TINY)))


@pytest.mark.parametrize("wrong", [{"hint": 0}, {"widths": ()}, {"widths": (16, 0)}])
def test_refuses_a_plan_that_is_none(wrong):
    with refuses(OptionError, next(iter(wrong))):
        ControlNetConfig(**{**vars(TINY), **wrong})
