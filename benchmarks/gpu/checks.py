"""check/eager and check/compiled: is what this GPU computes right? A line each, PASS or FAIL.

A check is a function of the Bench that yields (name, error, limit), or (name, text) for what is
only noted; nothing stops the others. References are float64 or float32 on the CPU. With --tiny the
same checks run on a CPU, but for those that need a GPU.
"""

import copy
import dataclasses
import traceback
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ddpm_edu import SAMPLERS, Cond, Schedule, last
from ddpm_edu.errors import ResourceError, SamplingError
from ddpm_edu.gpu.fast import CHANGES, speed_up
from ddpm_edu.gpu.float8 import Float8Linear, fp8
from ddpm_edu.networks.unet import UNet, UNetConfig
from ddpm_edu.networks.vae import VAE, VAEConfig, decode_tiled
from ddpm_edu.systems.pipeline import decode, refine, text_to_image
from ddpm_edu.systems.system import REFINER, SD15, SDXL, build
from ddpm_edu.training.train import TrainConfig, train

from .bench import BF16, F32, Alarm, Bench, kernels, off, tf32

SMALL = dict(channels=32, mult=(1, 2), middle=1, heads=(2, 4), blocks=1, groups=8)
UNETS = {
    "sd": UNetConfig(depth=(1, 0), context=32, **SMALL),
    "sdxl": UNetConfig(depth=(0, 2), context=48, vector=32, **SMALL),
    "class": UNetConfig(depth=(0, 1), vector=16, **SMALL),
    "no attention": UNetConfig(depth=(0, 0), **SMALL | {"middle": 0}),
}
TRAINED = dataclasses.replace(UNETS["no attention"], channels=16)
TINY_VAE = VAEConfig(channels=32, mult=(1, 2, 9), blocks=1)  # a head wider than fast kernels take
SIZES = (16, 16), (8, 24)


def run(checks: list[Callable], bench: Bench) -> dict:
    """{lines, passed, failed?}: every check to its end or its error; an alarm ends all."""
    lines, passed, bad = [], 0, 0

    def say(line):
        lines.append(line)
        print("  " + line, flush=True)

    for check in checks:
        name = check.__name__.replace("_", " ")
        try:
            for what, *found in check(bench):
                good = len(found) == 1 or found[0] <= found[1]  # NaN fails
                passed, bad = passed + good, bad + (not good)
                told = found[0] if len(found) == 1 else f"{found[0]:.2g} (limit {found[1]:.2g})"
                say(f"{'PASS' if good else 'FAIL'} {name}: {what} {told}")
        except Alarm:
            bad += 1
            say(f"FAIL {name}: out of time, and what comes after it was not run")
            break
        except Exception as error:
            bad += 1
            first = (str(error).splitlines() or [""])[0][:300]
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{where.filename.rsplit('/', 1)[-1]}:{where.lineno}"
            say(f"FAIL {name}: {type(error).__name__} at {at}: {first}")
    result = {"lines": lines, "passed": passed}
    return result | ({"failed": f"{bad} of {passed + bad} checks"} if bad else {})


def eager(bench: Bench) -> dict:
    """Everything that needs no compiler."""
    checks = [versions] + ([attention_kernels] if bench.cuda else [])
    checks += [unets, twins, vaes, systems, training_steps, nan_weights]
    checks += [eight_bits, out_of_memory] if bench.cuda else [eight_bits]
    return run(checks, bench)


def compiled(bench: Bench) -> dict:
    """Twins with every change, compiled where there is a GPU."""
    return run([compiled_unet, compiled_vae, compiled_eight_bits], bench)


# ---------------------------------------------------------------- what is here


def versions(bench):
    yield "torch", torch.__version__
    if bench.cuda:
        cudnn = torch.backends.cudnn.version() or 0
        yield "CUDA", torch.version.cuda
        yield (
            "cuDNN (91300 to 91501 crash under graphs: its attention is off below 91502)",
            str(cudnn),
        )


def attention_kernels(bench):
    """Which kernel PyTorch takes by itself for each shape."""
    for pictures, heads, queries, keys, width in bench.setting.attention:
        like = dict(device=bench.setting.device, dtype=bench.setting.dtype)
        q = torch.randn(pictures, heads, queries, width, **like)
        k = torch.randn(pictures, heads, keys, width, **like)
        seen = kernels(lambda: F.scaled_dot_product_attention(q, k, k), bench, 1)["kernels"]
        yield f"{heads}x{queries}x{keys}x{width}", seen[0][0][:80] if seen else "nothing seen"


# ---------------------------------------------------------------- networks against the CPU


def unet(name, seed=0):
    torch.manual_seed(seed)
    return UNet(UNETS[name]).eval().requires_grad_(False)


def asked(config, batch=2, size=SIZES[0], seed=0):
    """(x_t, t, cond) for a UNet of this config, on the CPU."""
    gen = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=gen)
    context = draw(batch, 7, config.context) if config.context else None
    vector = draw(batch, config.vector) if config.vector else None
    t = torch.linspace(3, 950, batch)
    return draw(batch, config.in_channels, *size), t, Cond(context, vector)


def moved(call, device, dtype=F32):
    x, t, cond = call
    return x.to(device, dtype), t.to(device), cond.map(lambda part: part.to(device, dtype))


def apart(a, b) -> float:
    """max |a - b| / max |b|; |a - b| / |b| where a is 16-bit, as rounding has long tails."""
    if a.element_size() == 2:
        return off(a, b)
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return ((a - b).abs().max() / b.abs().max()).item()


def unets(bench):
    """float32 and bf16 here against float64 on the CPU."""
    for name, config in UNETS.items():
        model, call = unet(name), asked(config)
        right = model.double()(*moved(call, "cpu", torch.float64))
        for dtype, limit in ((F32, 1e-4), (BF16, 3e-2)):
            with tf32(False):
                here = copy.deepcopy(model).to(bench.setting.device, dtype)
                error = apart(here(*moved(call, bench.setting.device, dtype)), right)
            yield f"{name} {dtype}", error, limit


def twins(bench):
    """Twins of every prefix of the changes, nothing compiled, and of every kind of UNet."""
    device = bench.setting.device
    every = len(CHANGES)
    for n in range(every + 1) if bench.cuda else (every,):  # tests/test_fast.py: the rest
        changes = tuple(change for change in CHANGES[:n] if change != "compiled")
        if n and changes == tuple(change for change in CHANGES[: n - 1] if change != "compiled"):
            continue
        plain = unet("sdxl").to(device)
        with tf32(False):
            fast = speed_up(copy.deepcopy(plain), changes=changes)
            yield from same(fast, plain, device, 1e-4, "+".join(changes) or "none")
    for name in UNETS if bench.cuda else ():
        plain = unet(name).to(device)
        with tf32(False):
            fast = speed_up(copy.deepcopy(plain), compile=False)
            call = moved(asked(UNETS[name]), device)
            yield f"{name}, all changes", apart(fast(*call), plain(*call)), 1e-4


def same(fast, plain, device, limit, name, dtype=F32, ways=(False, True)):
    """The twin against the plain network, in the ways a twin can go wrong."""
    config, results = plain.config, []
    for size in SIZES:
        call = moved(asked(config, size=size), device, dtype)
        results.append((fast(*call), plain(*call)))
    again = moved(asked(config, size=SIZES[0], seed=1), device, dtype)  # another x_t and prompt
    results.append((fast(*again), plain(*again)))
    yield f"{name}: sizes, kept results, a second prompt", max(apart(*r) for r in results), limit
    for assign in ways:  # written over, then other tensors in their place
        other = unet("sdxl", seed=1 + assign).to(device, dtype).state_dict()
        for model in (fast, plain):
            model.load_state_dict(other, assign=assign)
        how = "replaced" if assign else "overwritten"
        yield f"{name}: weights {how}", apart(fast(*again), plain(*again)), limit


def vaes(bench):
    """Decode, encode and tiles, plain and twin, float32 and bf16, against float64 on the CPU."""
    torch.manual_seed(0)
    vae, device = VAE(TINY_VAE).eval().requires_grad_(False).double(), bench.setting.device
    z, x = torch.randn(1, 4, 12, 8).double(), torch.rand(1, 3, 48, 32).double() * 2 - 1
    ways = {
        "decode": lambda v, z, x: v.from_latent(z),
        "encode": lambda v, z, x: v.to_latent(x),
        "tiled": lambda v, z, x: decode_tiled(v, z, tile=8, overlap=4),
    }
    for dtype, limit in ((F32, 1e-4), (BF16, 3e-2)):
        with tf32(False):
            here = copy.deepcopy(vae).to(device, dtype)
            for kind, model in (("plain", here), ("twin", speed_up(here, compile=False))):
                for way, call in ways.items():
                    error = apart(
                        call(model, z.to(device, dtype), x.to(device, dtype)), call(vae, z, x)
                    )
                    yield f"{way}, {kind}, {dtype}", error, limit


# ---------------------------------------------------------------- systems, training, errors


def tiny(config):
    """A system of the same kind with random weights, small enough for seconds."""
    text = tuple(
        dataclasses.replace(
            c, width=32, layers=2, heads=4, hidden=64, projection=16 if c.projection else 0
        )
        for c in config.text
    )
    numbers = {"": 0, "sdxl": 16 + 6 * 8, "refiner": 16 + 5 * 8}[config.vector]
    plan = UNetConfig(depth=(0, 1), context=32 * len(text), vector=numbers, **SMALL)
    vae = dataclasses.replace(config.vae, channels=32, blocks=1)
    torch.manual_seed(0)
    return build(dataclasses.replace(config, unet=plan, vae=vae, text=text, size=64, number_dim=8))


def systems(bench):
    """Tiny SD 1.5, SDXL with refiner: every sampler, guided and not, against the CPU."""
    kinds = (("sd15", SD15, None), ("sdxl + refiner", SDXL, REFINER))
    for name, config, second in kinds if bench.cuda else kinds[1:]:
        on_cpu, refiner = tiny(config), second and tiny(second)
        with tf32(False):
            here, refiner_here = (
                system and copy.deepcopy(system).to(bench.setting.device)
                for system in (on_cpu, refiner)
            )
            for sampler in SAMPLERS if bench.cuda else ("euler",):  # there: CPU against CPU
                error = 0
                for guidance in (1.0, 5.0) if bench.cuda else (5.0,):
                    run = dict(steps=3, guidance=guidance, seeds=1, sampler=sampler)
                    z, right = (
                        last(drawn(sd, r, **run))
                        for sd, r in ((here, refiner_here), (on_cpu, refiner))
                    )
                    error = max(error, apart(z, right))
                yield f"{name}, {sampler}", error, 1e-3
            yield f"{name}, decode", apart(decode(here, right.to(z)), decode(on_cpu, right)), 1e-3


def drawn(sd, refiner, **run):
    """The Steps of a picture, the second half of the noise by a refiner where there is one."""
    if refiner is None:
        return text_to_image(sd, "a red seven", **run)
    run["handover"] = 0.5
    return refine(refiner, "a red seven", text_to_image(sd, "a red seven", **run), **run)


class Dots:
    """64 random pictures, for a few steps of training."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        x = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        return x[index], Cond()


def training_steps(bench):
    """30 updates here and on the CPU: the first losses agree, and the loss falls."""
    losses = []
    for device in dict.fromkeys((bench.setting.device, "cpu")):  # a CPU once
        torch.manual_seed(0)
        model = UNet(TRAINED).to(device)
        config = TrainConfig(steps=30, batch_size=16, lr=1e-3, warmup=5)
        with tf32(False):
            steps = train(model, Schedule.sqrt_linear(), Dots(), config)
            losses.append([update.loss for update in steps])
    here, there = losses[0], losses[-1]
    yield "first 5 losses", max(abs(a - b) / b for a, b in zip(here[:5], there[:5])), 1e-3
    yield "last 10 losses below the first 10, by", sum(here[-10:]) / sum(here[:10]), 1.0


def nan_weights(bench):
    """Weights that become NaN after the second step: the error names the third."""
    sd = tiny(SD15).to(bench.setting.device)
    steps = text_to_image(sd, "a red seven", steps=6, sampler="euler")
    try:
        for i, _ in enumerate(steps):
            if i == 1:
                with torch.no_grad():
                    sd.unet.conv_out.weight.fill_(torch.nan)
    except SamplingError as error:
        yield "named step 3", 0.0 if "step 3 of 6" in str(error) else 1.0, 0.5
    else:
        yield "no error was raised", 1.0, 0.5


def eight_bits(bench):
    """The GPU's 8-bit product against the same rounding by hand; a UNet of them against bf16."""
    gen, device = torch.Generator().manual_seed(0), bench.setting.device
    x, w = (torch.randn(256, 128, generator=gen).to(device) for _ in range(2))
    if bench.cuda:
        x, w = x.to(BF16), w.to(BF16)
        by_hand = Float8Linear(w, emulate=True)(x)
        yield "one layer against emulated", apart(Float8Linear(w)(x), by_hand), 2**-7
    model = unet("sdxl").to(device, BF16)
    call = moved(asked(UNETS["sdxl"]), device, BF16)
    twin = fp8(copy.deepcopy(model), compile=False, emulate=not bench.cuda)
    yield "a UNet against bf16", apart(twin(*call), model(*call)), 0.2


def out_of_memory(bench):
    """A picture that cannot fit: the typed error, and then a picture that does."""
    sd = tiny(SD15).to("cuda")
    bench.tidy()
    torch.cuda.set_per_process_memory_fraction(0.005)
    try:
        decode(sd, torch.zeros(1, 4, 512, 512, device="cuda"), tiled=False)
        yield "4096 x 4096 fitted", 1.0, 0.5
    except ResourceError:
        yield "ResourceError", 0.0, 0.5
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    z = last(text_to_image(sd, "a red seven", steps=2))
    yield "a picture after it", 0.0 if z.isfinite().all() else 1.0, 0.5


# ---------------------------------------------------------------- compiled


def compiled_unet(bench):
    """The real thing in small: every change, bf16, compiled."""
    device = bench.setting.device
    plain = unet("sdxl").to(device, BF16)
    fast = speed_up(copy.deepcopy(plain))
    yield from same(fast, plain, device, 3e-2, "bf16", BF16, ways=(False,))


def compiled_vae(bench):
    torch.manual_seed(0)
    device = bench.setting.device
    vae = VAE(TINY_VAE).eval().requires_grad_(False).to(device, BF16)
    z = torch.randn(1, 4, 16, 16).to(device, BF16)
    yield "decode", apart(speed_up(copy.deepcopy(vae)).from_latent(z), vae.from_latent(z)), 3e-2


def compiled_eight_bits(bench):
    device = bench.setting.device
    plain = unet("sdxl").to(device, BF16)
    twin = fp8(copy.deepcopy(plain), emulate=not bench.cuda)
    call = moved(asked(UNETS["sdxl"]), device, BF16)
    yield "a UNet against bf16", apart(twin(*call), plain(*call)), 0.2
