"""The fast twins compute what the plain models do; what is approximate is off by what it should be; work is counted right.

CUDA itself is not here: on the CPU a twin is not compiled and records no graph, and the recording is tried on a stand-in.
"""

import pytest
import torch
import torch.nn.functional as F
from helpers import refuses
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_edu import SAMPLERS, Cond, OptionError, Schedule, guided, last, noise, sample
from ddpm_edu.diffusion import remembered
from ddpm_edu.files.checkpoint import load_tensors, save_tensors
from ddpm_edu.gpu.fast import CHANGES, FastUNet, FusedCross, Graphed, _compile, flops, speed_up
from ddpm_edu.gpu.float8 import Float8Linear, fp8, to_float8
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
SCHEDULE = Schedule.sqrt_linear()


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


def test_vae_and_its_twin():
    torch.manual_seed(0)
    plain = VAE(VAEConfig(channels=32, mult=(1, 2, 2), blocks=1, scale=0.13025)).eval()
    fast = speed_up(plain)
    z, x = torch.randn(2, 4, 6, 5), torch.rand(1, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        assert difference(fast.from_latent(z), plain.from_latent(z)) < 1e-5
        assert difference(fast.to_latent(x), plain.to_latent(x)) < 1e-5
    assert fast.state_dict().keys() == plain.state_dict().keys()


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
    assert storages(fast) == storages(plain)
    assert sum(storages(fast).values()) == sum(value.nbytes for value in before.values())
    save_tensors(tmp_path / "fast.safetensors", fast.state_dict())
    loaded = load_tensors(tmp_path / "fast.safetensors")[0]
    assert all(torch.equal(loaded[name], value) for name, value in before.items())


def test_other_weights_are_noticed():
    """Loading into the plain model, moving it to another type, replacing one matrix: the twin follows."""
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
    """A twin, and how often K and V of the text were computed: products with the one stacked matrix."""
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
    every_step = speed_up(tiny("sdxl"), changes=("channels_last", "fused"))
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


@pytest.mark.slow
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
def test_the_decoder_is_one_graph_too(monkeypatch):
    plain = (
        VAE(VAEConfig(channels=32, mult=(1, 2), blocks=1, scale=0.13025))
        .eval()
        .requires_grad_(False)
    )
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, mode, **options: compile(f, backend="eager", **options)
    )
    z, x = torch.randn(1, 4, 6, 5), torch.randn(1, 3, 8, 8)
    assert difference(_compile(plain.decoder.forward, "default")(z), plain.decoder(z)) < 1e-5
    assert difference(_compile(plain.encoder.forward, "default")(x), plain.encoder(x)) < 1e-5
    torch.compiler.reset()


class Recorder(Graphed):
    """`Graphed` with a recording that is a plain function of the same fixed addresses."""

    def _record(self, inputs):
        held = [x if x is None else torch.full_like(x, float("nan")) for x in inputs]
        result = torch.empty_like(self.f(*inputs))

        class Graph:
            replay = staticmethod(lambda: result.copy_(self.f(*held)))

        return Graph, held, result


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
    """Notes each copy of a tensor from one device to another: on a GPU the CPU waits for these. (Reading a number off the
    meta device, which a GPU would have to be waited for too, raises by itself.)"""

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
    """The latent on another device than the schedule (meta stands in for a GPU), guided, with noise made there."""
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
    """e4m3 has 3 bits of mantissa: a number is off by at most 1/16 of itself, or half a smallest step (2^-10 of scale)."""
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
    """The emulation against PyTorch's own 8-bit product, which this CPU has too."""
    torch.manual_seed(0)
    w, b, x = torch.randn(48, 32), torch.randn(48).bfloat16(), torch.randn(2, 5, 32).bfloat16()
    emulated, real = (Float8Linear(w, b, emulate)(x) for emulate in (True, False))
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


def test_refusals():
    plain = tiny("sd")
    with refuses(OptionError, "8.9", "cpu", "emulate"):
        fp8(plain)
    with refuses(OptionError, "multiples of 16"):
        fp8(
            UNet(UNetConfig(channels=40, mult=(1,), depth=(1,), heads=(2,), blocks=1, groups=8)),
            emulate=True,
        )
    with refuses(OptionError, "VAE", "UNet"):
        fp8(VAE(VAEConfig(channels=32, mult=(1,), blocks=1)), emulate=True)
    with refuses(OptionError, "Linear", "UNet"):
        speed_up(nn.Linear(2, 2))
    with refuses(OptionError, "twin", "came from"):
        speed_up(speed_up(plain))
    with refuses(OptionError, "turbo", "channels_last"):
        speed_up(plain, changes=("turbo",))
    with refuses(OptionError, "cached", "fused"):
        speed_up(plain, changes=("cached",))
    with refuses(OptionError, "reduce-overhead", "max-autotune"):
        speed_up(plain, compile="reduce-overhead")


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


@pytest.mark.parametrize("config, side, tera", [(SDXL_BASE, 128, 13.52)], ids=["sdxl"])
def test_flops_of_a_guided_step(config, side, tera):
    """SDXL at 1024 x 1024: the published figure."""
    assert flops(*call(config, 2, side)) == pytest.approx(tera * 1e12, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("config, side", [(SD15, 64), (SDXL_REFINER, 128)], ids=["sd15", "refiner"])
def test_flops_against_a_count_by_hand(config, side):
    """Every convolution and linear layer from the shapes that go through it, attention as 4 N L C: counted by hooks."""
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
    fast = speed_up(unet)
    text = sum(2 * 77 * linear.weight.numel() for linear in fast.crosses)
    with torch.no_grad():
        fast(x, t, cond)
    assert flops(unet, x, t, cond) - flops(fast, x, t, cond) == text > 0
