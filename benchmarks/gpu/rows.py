"""The rows of the benchmark in order of worth: functions of the Bench that return a dict."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable

import torch

from ddpm_edu import SAMPLERS, guided, last, spaced_timesteps
from ddpm_edu.gpu.fast import CHANGES, KERNELS
from ddpm_edu.gpu.float8 import Float8Linear, to_float8

from . import checks, parts, rivals, training
from .bench import (
    BF16,
    EAGER,
    F32,
    GUIDANCE,
    LIMITS,
    SCHEDULE,
    Bench,
    clock,
    judged,
    kernels,
    off,
    tf32,
    without_graphs,
)

# What is compiled, and the seconds that takes: counted only where this process has not done it yet.
COMPILES = {
    "sdxl unet": 75,
    "sdxl vae": 15,
    "sd15 unet": 32,
    "sd15 vae": 10,
    "sdxl unet of 4": 70,
    "sdxl fp8 unet of 4": 70,
    "sdxl unet of 8": 75,
    "sdxl fp8 unet of 8": 75,
    "sdxl unet gemm": 150,
}
SDXL = "sdxl unet", "sdxl vae"
PLAIN = (
    0.1  # the plain network is off by its rounding alone, the yardstick of the others (Bench.limit)
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement of the list below."""

    key: str  # task/name in the results
    need: float  # seconds, without those of compiling
    measure: Callable[[Bench], dict]
    compiles: tuple[str, ...] = ()  # of COMPILES
    unless: str = ""  # a row that makes this one superfluous

    def seconds(self, bench: Bench) -> float:
        new = [what for what in self.compiles if what not in bench.compiled]
        return bench.setting.hurry * (self.need + sum(COMPILES[what] for what in new))


# ---------------------------------------------------------------- ceilings


def product(bench: Bench, eight_bits: bool = False) -> dict:
    """A large product of random data, not zeros: the roof of this device."""
    n, gen = bench.setting.matmul, torch.Generator(bench.setting.device).manual_seed(0)
    like = dict(device=bench.setting.device, dtype=bench.setting.dtype, generator=gen)
    a, b = (torch.randn(n, n, **like) for _ in range(2))
    if eight_bits:
        if bench.cuda and torch.cuda.get_device_capability() < (8, 9):
            return {"failed": "this GPU has no 8-bit floats: compute capability 8.9 is needed"}
        layer = Float8Linear(b, emulate=not bench.cuda)
        a8, scale = to_float8(a)  # rounding is no part of the roof
        options = dict(scale_a=scale, scale_b=layer.scale, out_dtype=BF16, use_fast_accum=True)
        exact = lambda: torch._scaled_mm(a8, layer.weight.T, **options)
        f = exact if bench.cuda else lambda: layer(a)
    else:
        f = lambda: a @ b
    result = clock(lambda: [f() for _ in range(10)], bench, calls=10)
    return result | {"tflops": 2 * n**3 / result["seconds"] / 1e12}


def copy(bench: Bench) -> dict:
    x = torch.randn(bench.setting.matmul**2 * 8, device=bench.setting.device)
    y = torch.empty_like(x)
    result = clock(lambda: [y.copy_(x) for _ in range(10)], bench, calls=10)
    return result | {"tb_per_s": 2 * x.nbytes / result["seconds"] / 1e12}


# ---------------------------------------------------------------- whole pictures


def ours(unet, vae, inputs, steps):
    """Pictures (B, 3, H, W) in [0, 1]: guided Euler steps, then the VAE one by one."""
    cond, uncond, x_T = inputs
    dtype = cond.context.dtype
    model = guided(lambda x_t, t, cond: unet(x_t.to(dtype), t, cond).float(), GUIDANCE, uncond)
    times = spaced_timesteps(SCHEDULE.T, steps, "leading", 1)
    z = last(SAMPLERS["euler"](model, SCHEDULE, x_T, times, cond))
    with torch.no_grad():
        x = torch.cat([vae.from_latent(one.to(dtype)) for one in z.split(1)])
    return x.div(2).add(0.5).clamp(0, 1)


def networks(bench: Bench, name: str, way: str):
    """(unet, vae): "plain", "graphed_only" (all changes but compiling) or "fast" (all)."""
    if way == "plain":
        return bench.network("unet", name), bench.network("vae", name)
    changes = CHANGES if way == "fast" else EAGER
    return bench.twin("unet", name, changes), bench.twin("vae", name, changes)


def picture(bench: Bench, name: str, way: str, repeats: int | None = None) -> dict:
    """A whole picture at batch 1; `off` is one UNet call's, against float32."""
    unet, vae = networks(bench, name, way)
    draw, inputs, steps = (
        functools.partial(ours, unet, vae),
        bench.inputs(name),
        bench.setting.steps,
    )
    first = seconds_of(lambda: draw(inputs, 2))
    error = bench.off("unet", name, unet)
    result = clock(lambda: draw(inputs, steps), bench, repeats) | {
        "steps": steps,
        "batch": 1,
        "first_call_s": first,
        "off": error,
        "tflop": bench.tflop(name, steps),
    }
    return judged(result, PLAIN if way == "plain" else bench.limit("unet", name))


def rival(bench: Bench, name: str, compile: str = "") -> dict:
    """diffusers' picture of the same weights; `off_plain`: from ours after 3 steps, not judged."""
    if why := rivals.missing():
        return {"failed": why}
    draw, inputs, steps = (
        rivals.pipeline(bench, name, compile),
        bench.inputs(name),
        bench.setting.steps,
    )
    first = seconds_of(lambda: draw(inputs, 3))
    distance = off(draw(inputs, 3), ours(*networks(bench, name, "plain"), inputs, 3))
    result = clock(lambda: draw(inputs, steps), bench)
    more = {"steps": steps, "batch": 1, "first_call_s": first, "off_plain": distance}
    return result | more | {"tflop": bench.tflop(name, steps)}


def seconds_of(f) -> float:
    started = time.perf_counter()
    f()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


# ---------------------------------------------------------------- one step, one decoding


def step(bench: Bench, unet, dtype=None):
    """A function of one guided step's model call, at batch 1."""
    cond, uncond, x = bench.inputs("sdxl", 1, dtype)
    kind = cond.context.dtype
    model = guided(lambda x_t, t, cond: unet(x_t.to(kind), t, cond).float(), GUIDANCE, uncond)
    t = torch.full((1,), 500.0, device=x.device)
    return torch.no_grad()(lambda: model(x, t, cond))


def timed_step(bench: Bench, unet, dtype=None, calls: int = 5, **clocked) -> dict:
    one = step(bench, unet, dtype)
    error = bench.off("unet", "sdxl", unet, dtype)
    result = clock(lambda: [one() for _ in range(calls)], bench, calls=calls, **clocked)
    return result | {"off": error, "tflop": bench.tflop("sdxl", 1, decode=False)}


RUNGS = ("float32", "tf32", "bf16", *CHANGES)


def rung(bench: Bench, name: str) -> dict:
    """One guided SDXL step with the changes up to this one."""
    here = {"rung": RUNGS.index(name)}
    if name in ("float32", "tf32"):  # 10 GB of weights, not kept
        with tf32(name == "tf32"):
            unet = bench.network("unet", "sdxl", F32, use="once")
            result = timed_step(bench, unet, F32, calls=2, repeats=1)
        return judged(result | here, LIMITS[F32 if name == "float32" else BF16])
    if name == "bf16":
        result = timed_step(bench, bench.network("unet", "sdxl", BF16), BF16)
        return judged(result | here, PLAIN)
    changes = CHANGES[: CHANGES.index(name) + 1]
    compiled = "compiled" in changes
    unet = bench.twin("unet", "sdxl", CHANGES if compiled else changes)
    if name == "compiled":  # the same compiled code as "graphed", one kernel after the other
        with without_graphs():
            result = timed_step(bench, unet)
    else:
        result = timed_step(bench, unet)
    return judged(result | here, bench.limit("unet", "sdxl"))


def other_step(bench: Bench, mode=True, pdl: bool = False, cross: str | None = None) -> dict:
    """The step another way: `speed_up`'s mode, Triton's dependent launches, a kernel for the text.

    The kernel for attention to the text is compared without compiling, beside sdxl/graphed_only.
    """
    import torch._inductor.config as inductor

    if pdl and not hasattr(inductor.triton, "enable_pdl"):
        return {"failed": "this PyTorch has no torch._inductor.config.triton.enable_pdl"}
    if pdl:
        bench.drop()  # or the code that is compiled already would be taken
    changes = EAGER if cross else CHANGES
    with inductor.patch("triton.enable_pdl", pdl) if pdl else contextlib.nullcontext():
        return timed_step(bench, bench.twin("unet", "sdxl", changes, compile=mode, cross=cross))


def decoding(bench: Bench, way: str) -> dict:
    """One 1024 x 1024 picture out of the VAE."""
    vae, z = networks(bench, "sdxl", way)[1], bench.latent("sdxl")
    error = bench.off("vae", "sdxl", vae)
    f = torch.no_grad()(lambda: vae.from_latent(z))
    result = clock(f, bench, 2 * bench.setting.repeats)
    result |= {"off": error, "tflop": bench.tflop("sdxl")}
    return judged(result, PLAIN if way == "plain" else bench.limit("vae", "sdxl"))


def their_decoding(bench: Bench, compile: bool = False) -> dict:
    if why := rivals.missing():
        return {"failed": why}
    vae, z = rivals.their_vae(bench, "sdxl"), bench.latent("sdxl") / bench.plan("sdxl").vae.scale
    decode = vae.decode
    if compile and bench.cuda:
        vae.to(memory_format=torch.channels_last)
        decode = torch.compile(decode, fullgraph=True)
    f = torch.no_grad()(lambda: decode(z).sample)
    result = clock(f, bench, 2 * bench.setting.repeats)
    result |= {"off": off(f(), bench.truth("vae", "sdxl")), "tflop": bench.tflop("sdxl")}
    return result


def profile(bench: Bench, what: str) -> dict:
    """Milliseconds by kernel name over 3 calls of the fast step, or of the fast VAE."""
    unet, vae = networks(bench, "sdxl", "fast")
    z = bench.latent("sdxl")
    f = step(bench, unet) if what == "step" else torch.no_grad()(lambda: vae.from_latent(z))
    return kernels(f, bench)


# ---------------------------------------------------------------- many pictures


def throughput(bench: Bench, batch: int, eight_bits: bool = False) -> dict:
    """SDXL in a few guided Euler steps: pictures a second; `off` is of the first one's call."""
    unet, vae = networks(bench, "sdxl", "fast")
    if eight_bits:
        unet = bench.eight_bits("sdxl")
    inputs, steps = bench.inputs("sdxl", batch), bench.setting.few_steps
    with torch.no_grad():
        both = unet(*bench.call("sdxl", batch))[
            ::batch
        ]  # the first picture's, with both conditions
    error = off(both, bench.truth("unet", "sdxl"))
    result = clock(lambda: ours(unet, vae, inputs, steps), bench, 2 if bench.cuda else 1)
    result |= {
        "images_per_s": batch / result["seconds"],
        "steps": steps,
        "batch": batch,
        "off": error,
        "tflop": bench.tflop("sdxl", steps, batch),
    }
    return judged(result, bench.limit("unet", "sdxl", "fp8" if eight_bits else None))


# ---------------------------------------------------------------- the list


def all_rows(bench: Bench) -> list[Row]:
    """Every row in order of worth (benchmarks/gpu.md says what each is)."""
    of = functools.partial
    first = [
        Row("check/eager", 25, checks.eager),
        Row("check/compiled", 25, checks.compiled),
        Row("roof/matmul", 2, product),
        Row("roof/matmul_fp8", 2, of(product, eight_bits=True)),
        Row("roof/copy", 2, copy),
        Row("parts/step", 8, parts.step_parts),
        *(Row(key, 0.6, measure) for key, measure in parts.rows(bench)),
        Row("sdxl/plain", 14, of(picture, name="sdxl", way="plain")),
        Row("sdxl/graphed_only", 8, of(picture, name="sdxl", way="graphed_only")),
        Row("sdxl/fast", 20, of(picture, name="sdxl", way="fast", repeats=5), SDXL),
        Row("ladder/graphed", 3, of(rung, name="graphed"), SDXL[:1]),
        Row("profile/step", 4, of(profile, what="step"), SDXL),
        Row("profile/vae", 2, of(profile, what="vae"), SDXL),
        Row("vae/plain", 2, of(decoding, way="plain")),
        Row("vae/fast", 2, of(decoding, way="fast"), SDXL[1:]),
        Row("ladder/compiled", 3, of(rung, name="compiled"), SDXL[:1]),
        Row("ladder/bf16", 2, of(rung, name="bf16")),
        *(
            Row(f"ladder/{change}", 2, of(rung, name=change))
            for change in CHANGES
            if change not in ("compiled", "graphed")
        ),
        Row("sdxl/diffusers", 30, of(rival, name="sdxl")),
        Row("sd15/fast", 5, of(picture, name="sd15", way="fast"), ("sd15 unet", "sd15 vae")),
        Row("sd15/diffusers", 10, of(rival, name="sd15")),
        Row("ladder/tf32", 6, of(rung, name="tf32")),
    ]
    whole = "sdxl/diffusers_compiled"
    second = [
        Row(whole, 115, of(rival, name="sdxl", compile="whole")),
        Row("sdxl/diffusers_regional", 25, of(rival, name="sdxl", compile="regional"), (), whole),
        Row("throughput/bf16_4", 10, of(throughput, batch=4), ("sdxl unet of 4", "sdxl vae")),
        Row(
            "throughput/fp8_4",
            10,
            of(throughput, batch=4, eight_bits=True),
            ("sdxl fp8 unet of 4", "sdxl vae"),
        ),
        Row("sd15/plain", 5, of(picture, name="sd15", way="plain")),
        Row("ladder/float32", 8, of(rung, name="float32")),
        *(Row(f"step/cross_{kernel}", 4, of(other_step, cross=kernel)) for kernel in KERNELS),
        Row("vae/diffusers", 5, their_decoding),
        Row("train/emoji", 45, training.emoji),
        Row("sd15/diffusers_compiled", 50, of(rival, name="sd15", compile="whole")),
        Row("vae/diffusers_compiled", 30, of(their_decoding, compile=True)),
        Row("step/gemm", 5, of(other_step, mode="gemm"), ("sdxl unet gemm",)),
        Row("step/pdl", 80, of(other_step, pdl=True)),
        Row("throughput/bf16_8", 20, of(throughput, batch=8), ("sdxl unet of 8", "sdxl vae")),
        Row(
            "throughput/fp8_8",
            20,
            of(throughput, batch=8, eight_bits=True),
            ("sdxl fp8 unet of 8", "sdxl vae"),
        ),
    ]
    return first + second
