"""The fast twins compute what the plain models do; what is approximate is off by what it should be.

CUDA itself is not here: on the CPU a twin is not compiled and records no graph. The recording is
tried on a stand-in, and what CUDA alone would take is followed on tensors without numbers.
tests/test_cuda.py is for a machine with a GPU.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import refuses
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_edu import SAMPLERS, Cond, OptionError, Schedule, guided, last, noise, sample
from ddpm_edu.diffusion import remembered
from ddpm_edu.files.tensors import load_tensors, save_tensors
from ddpm_edu.gpu import fast as fast_module
from ddpm_edu.gpu.fast import (
    CHANGES,
    KERNELS,
    MODES,
    Doubling,
    FastUNet,
    FusedCross,
    Graphed,
    WideAttention,
    _compile,
    _on_cuda,
    by_products,
    speed_up,
)
from ddpm_edu.gpu.float8 import Float8Linear, fp8, to_float8
from ddpm_edu.gpu.profile import anatomy, flops, kernels
from ddpm_edu.networks import unet as unet_module
from ddpm_edu.networks import vae as vae_module
from ddpm_edu.networks.unet import SD15, SDXL_BASE, SDXL_REFINER, UNet, UNetConfig
from ddpm_edu.networks.vae import VAE, VAEConfig

CONFIGS = {
    "sd": UNetConfig(
        channels=64, mult=(1, 2), depth=(1, 0), middle=1, heads=(2, 4), context=24, blocks=1
    ),
    "sdxl": UNetConfig(
        channels=64,
        mult=(1, 2),
        depth=(0, 2),
        middle=2,
        heads=(2, 4),
        context=48,
        vector=32,
        blocks=1,
    ),
    "class": UNetConfig(
        channels=64, mult=(1, 2), depth=(0, 1), middle=1, heads=(2, 4), vector=10, blocks=1
    ),
    "no attention": UNetConfig(
        channels=64, mult=(1, 2), depth=(0, 0), middle=0, heads=(2, 4), blocks=1
    ),
}
VAE_CONFIG = VAEConfig(channels=32, mult=(1, 2, 2), blocks=1, scale=0.13025)
SCHEDULE = Schedule.sqrt_linear()


def tiny_vae():
    torch.manual_seed(0)
    return VAE(VAE_CONFIG).eval().requires_grad_(False)


def tiny(name, seed=0):
    torch.manual_seed(seed)
    return UNet(CONFIGS[name]).eval().requires_grad_(False)


def inputs(config, batch=2, seed=0, size=(8, 12)):
    gen = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=gen)
    cond = Cond(
        draw(batch, 7, config.context) if config.context else None,
        draw(batch, config.vector) if config.vector else None,
    )
    return draw(batch, config.in_channels, *size), torch.linspace(3, 950, batch), cond


def difference(a, b):
    return (a - b).abs().max().item() / b.abs().max().item()


class Counter(nn.Module):
    """Counts the calls of a function."""

    def __init__(self, f):
        super().__init__()
        self.f, self.calls = f, 0

    def forward(self, *args):
        self.calls += 1
        return self.f(*args)


# ---------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("changes", [CHANGES[:i] for i in range(len(CHANGES) + 1)], ids=len)
def test_a_twin_computes_the_same(name, changes):
    plain = tiny(name)
    fast = speed_up(plain, changes=changes)
    for batch, size in ((2, (8, 12)), (3, (16, 8)), (1, (5, 7))):
        x, t, cond = inputs(plain.config, batch, size=size)
        assert difference(fast(x, t, cond), plain(x, t, cond)) < 1e-5


def test_every_kind_of_attention_was_exchanged():
    fast = speed_up(tiny("sdxl"))
    assert len(fast.blocks) == 8 and sum(isinstance(m, FusedCross) for m in fast.modules()) == 8
    assert fast.blocks[-1].attn2.stop == sum(len(linear.weight) for linear in fast.crosses)
    assert (
        sum(
            p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
            for p in fast.parameters()
            if p.ndim == 4
        )
        > 5
    )


@pytest.mark.parametrize("mps", [False, True])
def test_channels_lie_last_but_not_on_mps(mps, monkeypatch):
    monkeypatch.setattr(nn.Parameter, "is_mps", mps, raising=False)
    weight = speed_up(tiny("no attention")).conv_out.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == (not mps)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun"])
def test_a_guided_run_ends_in_the_same_latent(sampler):
    plain = tiny("sdxl")
    x_T, cond, uncond = (
        noise((4, 8, 8), [1, 2]),
        inputs(plain.config, seed=1)[2],
        inputs(plain.config, 1, seed=2)[2],
    )
    run = lambda model: last(SAMPLERS[sampler](guided(model, 5.0, uncond), SCHEDULE, x_T, 6, cond))
    assert difference(run(speed_up(plain)), run(plain)) < 1e-5


@pytest.mark.parametrize("changes", [CHANGES[:i] for i in range(len(CHANGES) + 1)], ids=len)
def test_vae_and_its_twin(changes):
    plain = tiny_vae()
    fast = speed_up(plain, changes=changes)
    z, x = torch.randn(2, 4, 6, 5), torch.rand(1, 3, 16, 24) * 2 - 1
    assert difference(fast.from_latent(z), plain.from_latent(z)) < 1e-5
    assert difference(fast.to_latent(x), plain.to_latent(x)) < 1e-5
    assert fast.state_dict().keys() == plain.state_dict().keys()


# ---------------------------------------------------------------- doubling as one convolution


@pytest.mark.parametrize("layer", [unet_module.Upsample, vae_module.Upsample], ids=["unet", "vae"])
@pytest.mark.parametrize("h, w", [(1, 1), (4, 6), (5, 7)])
def test_doubling_is_one_transposed_convolution(layer, h, w):
    torch.manual_seed(0)
    plain = layer(6).double()
    x = torch.randn(2, 6, h, w, dtype=torch.float64)
    size = ((2 * h, 2 * w),) if layer is unet_module.Upsample else ()
    doubled = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.conv2d(doubled, plain.conv.weight, plain.conv.bias, padding=1)
    quick = Doubling(plain)
    assert difference(quick(x, *size), expected) < 1e-10
    assert difference(quick(x, *size), plain(x, *size)) < 1e-10
    assert quick(x, *size).shape == (2, 6, 2 * h, 2 * w)


@pytest.mark.parametrize("size", [(9, 14), (10, 13), (9, 13)])
def test_what_is_not_the_double_is_computed_as_before(size):
    torch.manual_seed(0)
    plain = unet_module.Upsample(6).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    assert torch.equal(Doubling(plain)(x, size), plain(x, size))


def test_whole_networks_with_doubling_in_float64():
    plain = tiny("sd").double()
    quick = speed_up(plain, changes=("transposed",))
    assert sum(isinstance(m, Doubling) for m in quick.modules()) == 1
    for size in ((8, 12), (5, 7), (6, 9)):
        x, t, cond = inputs(plain.config, size=size)
        call = x.double(), t, cond.map(torch.Tensor.double)
        assert difference(quick(*call), plain(*call)) < 1e-10
    plain = tiny_vae().double()
    quick = speed_up(plain, changes=("transposed",))
    assert sum(isinstance(m, Doubling) for m in quick.modules()) == 2
    for size in ((4, 4), (5, 3)):
        z = torch.randn(2, 4, *size, dtype=torch.float64)
        assert difference(quick.decode(z), plain.decode(z)) < 1e-10


@pytest.mark.parametrize("kind", ["unet", "vae"])
def test_summed_weights_follow_the_weights(kind):
    """Written in place: the sum is written where it was, so that a CUDA graph stays good. Moved or
    replaced: summed anew. Never a key of the state dict."""
    plain = tiny("sd") if kind == "unet" else tiny_vae()
    quick = speed_up(plain)
    x, t, cond = inputs(CONFIGS["sd"])
    call = {
        "unet": lambda model, dtype: model(x.to(dtype), t, cond.map(lambda part: part.to(dtype))),
        "vae": lambda model, dtype: model.decode(x.to(dtype)),
    }[kind]
    same = lambda dtype=torch.float32: difference(call(quick, dtype), call(plain, dtype))
    doubling = next(m for m in quick.modules() if isinstance(m, Doubling))
    conv, summed = doubling.conv, doubling.weight
    run, old = getattr(quick, "run", None), call(quick, torch.float32)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            conv.weight.mul_(2)
            assert same() < 1e-5 < difference(call(quick, torch.float32), old)
        assert doubling.weight is summed and getattr(quick, "run", None) is run
    conv.weight.data = conv.weight.data * -1.5
    assert same() < 1e-5 and doubling.weight is not summed
    plain.double()
    assert same(torch.float64) < 1e-12
    assert quick.state_dict().keys() == plain.state_dict().keys()


def test_doubling_saves_five_ninths_of_the_operations():
    plain = unet_module.Upsample(6)
    x = torch.randn(2, 6, 5, 7)
    nine, four = (flops(layer, x, (10, 14)) for layer in (plain, Doubling(plain)))
    assert nine == 2 * 2 * (10 * 14) * 6 * 6 * 9 and 9 * four == 4 * nine


# ---------------------------------------------------------------- attention by products


@pytest.mark.parametrize("rows", [1, 7, 20, 4096])
def test_attention_by_products(rows):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 20, 48, dtype=torch.float64) * 3
    by_hand = (q @ k.transpose(1, 2) / 48**0.5).softmax(-1) @ v
    assert difference(by_products(q, k, v, rows), by_hand) < 1e-10
    assert difference(by_products(q, k, v, rows), F.scaled_dot_product_attention(q, k, v)) < 1e-10


def test_a_vae_with_attention_by_products(monkeypatch):
    plain, calls = tiny_vae().double(), []
    quick = speed_up(plain, changes=("products",))
    assert sum(isinstance(m, WideAttention) for m in quick.modules()) == 2
    counted = lambda *args: (calls.append(1), by_products(*args, rows=9))[1]
    monkeypatch.setattr(fast_module, "by_products", counted)
    z = torch.randn(2, 4, 5, 4, dtype=torch.float64)
    x = torch.randn(2, 3, 16, 8, dtype=torch.float64)
    assert torch.equal(quick.decode(z), plain.decode(z)) and not calls  # on the CPU as before
    monkeypatch.setattr(fast_module, "_too_wide", lambda x: True)
    assert difference(quick.decode(z), plain.decode(z)) < 1e-10 and len(calls) == 1
    assert difference(quick.encode(x)[0], plain.encode(x)[0]) < 1e-10 and len(calls) == 2


class Operations(TorchDispatchMode):
    """Notes each operation, and the types of what came out."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.found.append((func, out.dtype, tuple(out.shape)))
        return out


@pytest.mark.parametrize("width, sides", [(256, ()), (288, (4096, 4096, 1024))])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_which_attention_the_vae_takes_on_cuda(width, sides, dtype, monkeypatch):
    """Tensors without numbers that say they are on a GPU: the path is CUDA's, and no more."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: v)  # asks the driver
    with FakeTensorMode(), torch.device("cuda"):
        layer = vae_module.Attention(width, 32)
        for name, weight in layer.state_dict().items():
            parent, _, last = name.rpartition(".")
            setattr(layer.get_submodule(parent), last, nn.Parameter(weight.to(dtype)))
        x = torch.empty(1, width, 96, 96, dtype=dtype)
        with torch.no_grad(), Operations() as noted:
            out = WideAttention(layer)(x)
    assert out.shape == x.shape and out.dtype == dtype
    wide = [row for row in noted.found if row[2][1:2] and row[2][2:] == (9216,)]
    products = [row for row in wide if "bmm" in str(row[0])] if sides else []
    assert [row[2][1] for row in products] == list(sides)
    if sides:
        op = torch.ops.aten.bmm.dtype if dtype == torch.bfloat16 else torch.ops.aten.bmm.default
        assert {row[:2] for row in products} == {(op, torch.float32)}
        assert {row[1] for row in wide if "softmax" in str(row[0])} == {torch.float32}


@pytest.mark.slow
def test_a_whole_system_and_its_twin():
    from ddpm_edu.systems.system import SD15 as system
    from ddpm_edu.systems.system import StableDiffusion

    with torch.device("meta"):
        sd = StableDiffusion(system)
    fast = speed_up(sd)
    assert (
        isinstance(fast, StableDiffusion)
        and isinstance(fast.unet, FastUNet)
        and type(sd.unet) is UNet
    )
    assert fast.text is sd.text and fast.schedule is sd.schedule and fast.config is sd.config
    assert fast.state_dict().keys() == sd.state_dict().keys()


# ---------------------------------------------------------------- the same weights


def test_plain_and_twin_share_weights_and_keys(tmp_path):
    plain = tiny("sdxl")
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    fast = speed_up(plain)
    for state in (plain.state_dict(), fast.state_dict()):
        assert list(state) == list(before)
        assert all(torch.equal(state[name], value) for name, value in before.items())
    storages = lambda model: {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes()
        for p in (*model.parameters(), *model.buffers())
    }
    summed = {m.weight.data_ptr(): m.weight.nbytes for m in fast.doublings}
    assert storages(fast) == storages(plain) | summed and len(summed) == 1
    assert sum(storages(plain).values()) == sum(value.nbytes for value in before.values())
    save_tensors(tmp_path / "fast.safetensors", fast.state_dict())
    loaded = load_tensors(tmp_path / "fast.safetensors")[0]
    assert all(torch.equal(loaded[name], value) for name, value in before.items())


def test_other_weights_are_noticed():
    """Loading into the plain model, moving it, replacing one matrix: the twin follows."""
    plain = tiny("sdxl")
    fast = speed_up(plain)
    x, t, cond = inputs(plain.config)
    old = fast(x, t, cond)
    plain.load_state_dict(tiny("sdxl", seed=1).state_dict())  # written in place
    assert (
        difference(fast(x, t, cond), plain(x, t, cond)) < 1e-5 < difference(fast(x, t, cond), old)
    )
    block = fast.blocks[0]
    block.attn1.q.weight.data = block.attn1.q.weight * 2  # replaced
    block.attn2.v.weight.data = block.attn2.v.weight * 2
    assert difference(fast(x, t, cond), plain(x, t, cond)) < 1e-5
    for model in (fast, plain):  # other tensors in the place of the stacked ones
        model.load_state_dict(tiny("sdxl", seed=2).state_dict(), assign=True)
    assert difference(fast(x, t, cond), plain(x, t, cond)) < 1e-5
    plain = tiny("sdxl")
    fast = speed_up(plain)
    plain.double()
    x, t, cond = x.double(), t, cond.map(torch.Tensor.double)
    assert difference(fast(x, t, cond), plain(x, t, cond)) < 1e-12


def test_two_twins_of_one_model_do_not_disturb_each_other():
    plain = tiny("sd")
    x, t, cond = inputs(plain.config)
    a, b = speed_up(plain), speed_up(plain, changes=("fused",))
    assert a.blocks[0].attn1.qkv.weight.data_ptr() == b.blocks[0].attn1.qkv.weight.data_ptr()
    for twin in (a, b, a):
        assert difference(twin(x, t, cond), plain(x, t, cond)) < 1e-5


def test_an_optimizer_keeps_its_hold_on_the_weights():
    plain = tiny("sd").requires_grad_(True)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    fast = speed_up(plain)
    x, t, cond = inputs(plain.config)
    plain(x, t, cond).square().mean().backward()
    optimizer.step()
    assert not fast(x, t, cond).requires_grad
    assert difference(fast(x, t, cond), plain(x, t, cond).detach()) < 1e-5


# ---------------------------------------------------------------- the text's K and V, once a prompt


@pytest.fixture
def counted(monkeypatch):
    """A twin, and how often K and V of the text were computed: products with the one matrix."""
    fast, calls = speed_up(tiny("sdxl")), []
    linear = F.linear
    width = fast.blocks[-1].attn2.stop
    monkeypatch.setattr(
        F,
        "linear",
        lambda x, w, b=None: (calls.append(1) if len(w) == width else None, linear(x, w, b))[1],
    )
    return fast, calls


def test_k_and_v_are_computed_once_a_run(counted):
    fast, calls = counted
    x_T, cond, uncond = (
        noise((4, 8, 8), [1, 2]),
        inputs(fast.config, seed=1)[2],
        inputs(fast.config, seed=2)[2],
    )
    results = [last(sample(guided(fast, 5.0, uncond), SCHEDULE, x_T, 6, cond)) for _ in range(2)]
    assert len(calls) == 2  # `guided` puts both conditions together anew in each run
    assert torch.equal(*results)
    every_step = speed_up(tiny("sdxl"), changes=[c for c in CHANGES if c != "cached"])
    assert torch.equal(
        last(sample(guided(every_step, 5.0, uncond), SCHEDULE, x_T, 6, cond)), results[0]
    )


def test_k_and_v_follow_the_prompt(counted):
    fast, calls = counted
    plain = tiny("sdxl")
    x, t, cond = inputs(plain.config)
    for step, change in enumerate(
        (
            lambda c: c,
            lambda c: c.map(torch.clone),
            lambda c: inputs(plain.config, seed=3)[2],
            lambda c: c.map(lambda part: part.mul_(1.5)),
        )
    ):  # written in place: the same object, other numbers
        cond = change(cond)
        expected = plain(x, t, cond)
        del calls[:]
        assert difference(fast(x, t, cond), expected) < 1e-5
        assert torch.equal(fast(x, t, cond), fast(x, t, cond)) and len(calls) == 1, step
    bigger = inputs(plain.config, batch=4)
    assert difference(fast(*bigger), plain(*bigger)) < 1e-5
    assert len(calls) == 2


def test_remembered_forgets_where_it_must():
    f = Counter(lambda a, b: a + 1 if b is None else a + b)
    g = remembered(f)
    a, b = torch.zeros(2), torch.ones(2)
    with torch.no_grad():
        assert g(a, b) is g(a, b) and f.calls == 1
        g(a, None), g(a, None)
        assert f.calls == 2
        a += 1
        assert g(a, None).tolist() == [2, 2] and f.calls == 3
    assert g(a, None) is not g(a, None) and f.calls == 5  # gradients: a graph must be fresh
    with torch.inference_mode():
        c = torch.zeros(2)
        g(c, None)
        c += 1
        assert g(c, None).tolist() == [2, 2]


def test_guided_still_trains_through_a_learned_uncond():
    uncond = Cond(vector=torch.zeros(1, 3, requires_grad=True))
    model = guided(lambda x, t, cond: x * cond.vector, 2.0, uncond)
    for _ in range(2):
        model(torch.ones(2, 3), torch.zeros(2), Cond(vector=torch.ones(2, 3))).sum().backward()
    assert uncond.vector.grad.tolist() == [[-4.0] * 3]


# ---------------------------------------------------------------- compiling and recording


@pytest.mark.parametrize(
    "name",
    [
        "no attention",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd", "sdxl", "class")),
    ],
)
def test_the_network_is_one_graph_for_the_compiler(name, monkeypatch):
    """fullgraph=True raises at the first thing that torch.compile could not put into one piece."""
    fast = speed_up(tiny(name))
    graphs = []
    compile = torch.compile

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(
        torch, "compile", lambda f, mode, **options: compile(f, backend=backend, **options)
    )
    if name == "sdxl":  # an attention kernel of one's choice must not break the graph
        fast = speed_up(tiny(name), cross="cudnn")
    run = _compile(fast.trunk, "default")
    for batch in (2, 2, 3):
        x, t, cond = inputs(fast.config, batch)
        with torch.no_grad():
            context = (
                fast.text(cond.context, *(w.weight for w in fast.crosses)) if fast.crosses else None
            )
            assert difference(run(x, t, context, cond.vector), fast(x, t, cond)) < 1e-5
    assert len(graphs) == 2  # one a batch size
    torch.compiler.reset()


@torch.no_grad()
def test_the_twin_takes_what_is_beside_x_t():
    torch.manual_seed(0)
    config = UNetConfig(**{**CONFIGS["sd"].__dict__, "in_channels": 9, "out_channels": 4})
    unet, x, picture = UNet(config).eval(), torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8)
    t, cond = torch.tensor([3.0, 950.0]), Cond(torch.randn(2, 7, 24), picture=picture)
    assert difference(speed_up(unet)(x, t, cond), unet(x, t, cond)) < 1e-5


@pytest.mark.full
def test_compiled_kernels_compute_the_same():
    fast = speed_up(tiny("sdxl"))
    x, t, cond = inputs(fast.config)
    with torch.no_grad():
        context = fast.text(cond.context, *(w.weight for w in fast.crosses))
        assert (
            difference(
                _compile(fast.trunk, "default")(x, t, context, cond.vector), fast(x, t, cond)
            )
            < 1e-5
        )
    torch.compiler.reset()


@pytest.mark.slow
def test_the_vae_is_one_graph_too(monkeypatch):
    """With the attention it has on CUDA."""
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, mode, **options: compile(f, backend="eager", **options)
    )
    monkeypatch.setattr(fast_module, "_too_wide", lambda x: True)
    plain = tiny_vae()
    twin = speed_up(plain)
    z, x = torch.randn(1, 4, 6, 5), torch.randn(1, 3, 8, 8)
    for part, input in (("decoder", z), ("encoder", x)):
        run = _compile(getattr(twin, part).forward, "default")
        assert difference(run(input), getattr(plain, part)(input)) < 1e-5
    torch.compiler.reset()


def test_modes_of_torch_compile(monkeypatch):
    """Mode "gemm" times matrix products and nothing else; torch.compile knows all the options."""
    given = []
    compile = torch.compile
    torch_compile = lambda f, **options: (given.append(options), compile(f, **options))[1]
    monkeypatch.setattr(torch, "compile", torch_compile)
    for mode in MODES:
        _compile(lambda x: x, mode)  # raises for options that there are not
    assert all(options["fullgraph"] and options["dynamic"] is False for options in given)
    assert "options" not in given[0] and given[1]["options"]["max_autotune_gemm"]
    assert given[1]["options"]["max_autotune_conv_backends"] == "ATEN"
    modes = [speed_up(tiny("sd"), compile=mode).mode for mode in (True, False, "gemm")]
    assert modes == ["default", "", "gemm"]
    assert speed_up(tiny("sd"), changes=("fused",)).mode == ""


@pytest.mark.parametrize("cross", KERNELS)
def test_the_kernel_of_cross_attention_may_be_chosen(cross, monkeypatch):
    fast, plain = speed_up(tiny("sdxl"), cross=cross), tiny("sdxl")
    x, t, cond = inputs(plain.config)
    cuda, seen = torch.backends.cuda, {}
    attention = F.scaled_dot_product_attention

    def note(q, k, v):
        allowed = [name for name in KERNELS if getattr(cuda, f"{name}_sdp_enabled")()]
        seen.setdefault(k.shape[2], set()).add(tuple(allowed))
        return attention(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    before = [getattr(cuda, f"{name}_sdp_enabled")() for name in KERNELS]
    assert difference(fast(x, t, cond), plain(x, t, cond)) < 1e-5
    assert seen.pop(7) == {(cross,), ("flash", "cudnn")}  # the twin, the plain model
    assert set().union(*seen.values()) == {("flash", "cudnn")}  # self-attention
    assert [getattr(cuda, f"{name}_sdp_enabled")() for name in KERNELS] == before


@pytest.mark.parametrize("version, off", [(None, True), (91501, True), (91900, False)])
def test_an_old_cudnn_attends_to_nothing_in_a_graph(version, off, monkeypatch):
    told = []
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", told.append)
    monkeypatch.setattr(fast_module, "Graphed", lambda f: f)
    with FakeTensorMode():
        x = torch.empty(2, device="cuda")
    run = _on_cuda(lambda x: x, "", True)
    assert run(x) is run(x) is x and told == [False] * off
    del told[:]
    assert _on_cuda(lambda x: x, "", False)(x) is x and not told


class Recorder(Graphed):
    """`Graphed` with a recording that is a plain function of the same fixed addresses."""

    def _record(self, inputs):
        held = [x if x is None else torch.full_like(x, float("nan")) for x in inputs]
        result = torch.empty_like(self.f(*inputs))

        class Graph:
            replay = staticmethod(lambda: result.copy_(self.f(*held)))

        return Graph, held, result


def test_a_recording_copies_an_input_only_if_it_changed():
    f = Recorder(lambda x, y: x + y)
    x, y = torch.ones(3), torch.full((3,), 10.0)
    with torch.no_grad():
        assert f(x, y).tolist() == [11] * 3
        held = next(iter(f.recorded.values()))[1]
        held[1].fill_(20)  # only a copy would make good for it
        assert f(x, y).tolist() == f(x.clone(), y).tolist() == [21] * 3
        y += 1  # written to
        assert f(x, y).tolist() == [12] * 3
        y.data = torch.full((3,), 30.0)  # another place
        assert f(x, y).tolist() == [31] * 3
        assert f(x, torch.full((3,), 50.0)).tolist() == [51] * 3
        assert f(x, y).tolist() == [31] * 3  # back to the one before
    with torch.inference_mode():
        z = torch.ones(3)
        assert f(x, z).tolist() == [2] * 3
        z += 1  # an inference tensor does not say so
        assert f(x, z).tolist() == [3] * 3


def test_a_recording_reads_new_inputs_and_its_results_may_be_kept():
    fast = speed_up(tiny("sd"))
    fast.run = Recorder(fast.trunk)
    plain = tiny("sd")
    kept = []
    for seed, batch, mode in (
        (0, 2, torch.inference_mode),
        (1, 2, torch.no_grad),
        (2, 4, torch.enable_grad),
        (3, 2, torch.no_grad),
    ):
        with mode():
            call = inputs(fast.config, batch, seed)
            kept.append((fast(*call), plain(*call)))
    assert all(difference(a, b) < 1e-5 for a, b in kept)
    assert len(fast.run.recorded) == 2
    fast.double()  # a recording reads the weights where they were: it must go
    x, t, cond = inputs(fast.config)
    call = x.double(), t, cond.map(torch.Tensor.double)
    assert difference(fast(*call), plain.double()(*call)) < 1e-12 and not isinstance(
        fast.run, Recorder
    )


class Crossings(TorchDispatchMode):
    """Notes each copy of a tensor from one device to another: on a GPU the CPU waits for these.

    Reading a number off the meta device, which a GPU would be waited for too, raises by itself.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in (*args, out) if isinstance(x, torch.Tensor)}
        if (
            func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
            and len(devices) > 1
        ):
            self.found.append(func)
        return out


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_never_waits_for_the_device(sampler):
    """The latent on another device than the schedule (meta stands in for a GPU), guided."""
    with torch.device("meta"):
        x_T, cond, uncond = (
            torch.empty(2, 4, 8, 8),
            Cond(torch.empty(2, 7, 24)),
            Cond(torch.empty(1, 7, 24)),
        )
        unet = speed_up(UNet(CONFIGS["sd"]))
    SCHEDULE.sigma, SCHEDULE.snr  # worked out once, not in the loop
    for model, predict, clip in ((unet, "eps", None), (lambda x, t, cond: x * 0.5, "v", 1.0)):
        with Crossings() as crossings:
            x = last(
                SAMPLERS[sampler](
                    guided(model, 5.0, uncond),
                    SCHEDULE,
                    x_T,
                    3,
                    cond,
                    predict=predict,
                    clip=clip,
                    generator=torch.empty_like,
                )
            )
        assert x.is_meta and crossings.found == []
    with Crossings() as crossings:
        torch.zeros(3).to("meta")
    assert len(crossings.found) == 1


# ---------------------------------------------------------------- approximate


def test_rounding_to_8_bits():
    """3 bits of mantissa: off by at most 1/16 of a number, or half a smallest step, 2^-10 scale."""
    torch.manual_seed(0)
    x = torch.randn(50, 64) * torch.logspace(-6, 4, 50)[:, None]
    x8, scale = to_float8(x)
    assert x8.dtype == torch.float8_e4m3fn and scale.shape == (50, 1)
    off = (x8.float() * scale - x).abs()
    assert (off <= torch.maximum(x.abs() / 16, scale * 2**-10) * 1.0001).all() and off.max() > 0
    assert torch.allclose(x8.float().abs().amax(1), torch.tensor(448.0))
    zero, s = to_float8(torch.zeros(1, 16))
    assert (zero.float() * s == 0).all()
    big, s = to_float8(torch.full((1, 16), 3e38))
    assert torch.isfinite(big.float() * s).all()


def test_the_8_bit_product_is_the_device_s():
    """The emulation against PyTorch's own 8-bit product, which newer ones have for CPUs too."""
    torch.manual_seed(0)
    w, b, x = torch.randn(48, 32), torch.randn(48).bfloat16(), torch.randn(2, 5, 32).bfloat16()
    emulated = Float8Linear(w, b, True)(x)
    try:
        real = Float8Linear(w, b, False)(x)
    except RuntimeError as error:
        assert "per-tensor scaling" in str(error)
        pytest.skip("this PyTorch's CPU takes one scale for a whole matrix; a GPU is needed")
    assert emulated.shape == real.shape == (2, 5, 48) and real.dtype == torch.bfloat16
    assert difference(real.float(), emulated.float()) < 2**-7  # rounded to bf16 at different places
    exact = F.linear(x.float(), w, b.float())
    assert 0.005 < (emulated.float() - exact).norm() / exact.norm() < 0.06


def test_fp8_is_off_by_a_few_percent_and_not_more():
    plain = tiny("sdxl")
    x, t, cond = inputs(plain.config)
    eight = fp8(plain, emulate=True)
    off = (eight(x, t, cond) - plain(x, t, cond)).norm() / plain(x, t, cond).norm()
    assert 1e-3 < off < 0.1
    assert sum(isinstance(m, Float8Linear) for m in eight.modules()) == 6 * len(eight.blocks)
    assert (
        difference(speed_up(plain)(x, t, cond), plain(x, t, cond)) < 1e-5
    )  # the plain weights are as they were


ODD = UNetConfig(channels=40, mult=(1,), depth=(1,), heads=(2,), blocks=1, groups=8)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: fp8(tiny("sd")), ("8.9", "cpu", "emulate")),
        (lambda: fp8(UNet(ODD), emulate=True), ("multiples of 16",)),
        (lambda: fp8(tiny_vae(), emulate=True), ("model", "VAE", "UNet")),
        (lambda: speed_up(nn.Linear(2, 2)), ("model", "Linear", "UNet")),
        (lambda: speed_up(speed_up(tiny("sd"))), ("twin", "came from")),
        (lambda: speed_up(tiny("sd"), changes=("turbo",)), ("changes", "turbo", "channels_last")),
        (lambda: speed_up(tiny("sd"), changes=("cached",)), ("changes", "cached", "fused")),
        (lambda: speed_up(tiny("sd"), compile="reduce-overhead"), ("compile", "gemm")),
        (lambda: speed_up(tiny("sd"), cross="math"), ("cross", "flash", "cudnn")),
    ],
)
def test_refusals(call, words):
    with refuses(OptionError, *words):
        call()


# ---------------------------------------------------------------- counting


def call(config, batch, side):
    with torch.device("meta"):
        unet = UNet(config)
        cond = Cond(
            torch.empty(batch, 77, config.context),
            torch.empty(batch, config.vector) if config.vector else None,
        )
        return unet, torch.empty(batch, 4, side, side), torch.empty(batch), cond


def test_flops_of_known_operations():
    a = torch.randn(3, 5)
    assert flops(nn.Linear(5, 7), a) == 2 * 3 * 5 * 7
    assert flops(nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 8, 9)) == 2 * (2 * 8 * 9) * 6 * (
        4 * 9
    )
    q = torch.randn(2, 3, 10, 16)
    assert flops(F.scaled_dot_product_attention, q, q, q) == 2 * (2 * 3) * (10 * 10 * 16) * 2


def on_meta(*shape):
    return torch.empty(*shape, device="meta", dtype=torch.bfloat16)


def test_kernels_of_known_operations():
    """Name, F and M, 2 bytes a number: a convolution, a norm, a product and its view, an attention."""
    conv = nn.Conv2d(4, 6, 3, padding=1, device="meta", dtype=torch.bfloat16)
    (kernel,) = kernels(conv, on_meta(2, 4, 8, 9))
    read = 2 * 4 * 8 * 9 + 6 * 4 * 9 + 6
    assert kernel == ("convolution", 2 * (2 * 6 * 8 * 9) * (4 * 9), 2 * (read + 2 * 6 * 8 * 9))
    norm = nn.GroupNorm(2, 4, device="meta", dtype=torch.bfloat16)
    (kernel,) = kernels(norm, on_meta(2, 4, 8, 9))
    statistics = 2 * (2 * 2)  # a mean and a deviation for each picture and group
    assert kernel[1:] == (0, 2 * (2 * (2 * 4 * 8 * 9) + 2 * 4 + statistics))
    (kernel,) = kernels(lambda a, b: (a @ b).T.reshape(-1), on_meta(3, 1), on_meta(1, 1))
    assert kernel == ("mm", 2 * 3, 2 * (3 + 1 + 3))
    q = on_meta(2, 3, 256, 16)
    name, work, moved = kernels(F.scaled_dot_product_attention, q, q, q)[0]
    assert "flash" in name and work == 4 * 6 * 256 * 256 * 16
    assert 4 * q.nbytes < moved < 4.2 * q.nbytes  # q, k, v and the result, not the scores
    q = torch.randn(2, 3, 256, 16)
    assert [kernel.work for kernel in kernels(F.scaled_dot_product_attention, q, q, q)] == [work]


def test_kernels_and_flops_count_the_same_work():
    unet, *rest = call(SDXL_BASE, 1, 64)
    heard = kernels(unet, *rest)
    assert sum(kernel.work for kernel in heard) == flops(unet, *rest) > 1e12
    assert 1000 < len(heard) < 3000 and all(kernel.moved > 0 for kernel in heard)


@pytest.mark.parametrize("config, side, tera", [(SDXL_BASE, 128, 13.52)], ids=["sdxl"])
def test_flops_of_a_guided_step(config, side, tera):
    """SDXL at 1024 x 1024: the published figure."""
    assert flops(*call(config, 2, side)) == pytest.approx(tera * 1e12, rel=0.02)


def test_an_anatomy_has_every_parameter_and_operation_once():
    """Against PyTorch's own counter; and SDXL has no transformer block at its finest level."""
    unet, *rest = call(SDXL_BASE, 1, 64)
    rows = anatomy(unet, *rest)
    parameters, work = map(sum, zip(*rows.values()))
    assert parameters == sum(p.numel() for p in unet.parameters()) and work == flops(unet, *rest)
    transformers = {level for level, kind in rows if kind == "transformer blocks"}
    assert transformers == {1, 2, "middle"}
    assert {level for level, _ in rows} == {0, 1, 2, "middle", "rest"}
    assert not any(module._forward_hooks for module in unet.modules())


@pytest.mark.slow
@pytest.mark.parametrize("config, side", [(SD15, 64), (SDXL_REFINER, 128)], ids=["sd15", "refiner"])
def test_flops_against_a_count_by_hand(config, side):
    """Convolutions and linear layers by the shapes that go through, attention as 4 N L C."""
    unet, *rest = call(config, 1, side)
    total = 0

    def count(module, args, out):
        nonlocal total
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            total += 2 * out.numel() * module.weight[0].numel()
        elif hasattr(module, "heads"):
            x, context = args[0], args[1] if len(args) > 1 else args[0]
            total += 4 * x.shape[0] * x.shape[1] * context.shape[1] * x.shape[2]

    for module in unet.modules():
        module.register_forward_hook(count)
    unet(*rest)
    assert flops(*call(config, 1, side)) == total


def test_the_twin_saves_the_text_products():
    unet, x, t, cond = call(SDXL_BASE, 1, 64)
    fast = speed_up(unet, changes=("fused", "cached"))
    text = sum(2 * 77 * linear.weight.numel() for linear in fast.crosses)
    with torch.no_grad():
        fast(x, t, cond)
    assert flops(unet, x, t, cond) - flops(fast, x, t, cond) == text > 0
