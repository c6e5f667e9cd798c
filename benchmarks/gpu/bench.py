"""What every row shares: sizes, systems with random weights, twins, clocks and errors."""

import contextlib
import dataclasses
import gc
import importlib.metadata
import platform
import re
import statistics
import subprocess
import time
from pathlib import Path

import torch

from ddpm_edu import Cond, Schedule, noise
from ddpm_edu.gpu.fast import CHANGES, Graphed, speed_up
from ddpm_edu.gpu.float8 import fp8
from ddpm_edu.gpu.profile import flops
from ddpm_edu.networks.unet import UNet, timestep_embedding
from ddpm_edu.networks.vae import VAE
from ddpm_edu.systems.system import SD15, SDXL

SCHEDULE, GUIDANCE = Schedule.sqrt_linear(), 5.0
BF16, F32 = torch.bfloat16, torch.float32
LIMITS = {BF16: 3e-2, F32: 1e-4, "fp8": 0.2}  # the largest relative error of one call, see `limit`
EAGER = tuple(change for change in CHANGES if change != "compiled")
# What `count` gives, which takes seconds there
FLOPS = {
    "sdxl": (13_522_472_796_160, 10_470_392_594_432),
    "sd15": (1_606_546_882_560, 2_514_518_933_504),
}


class Alarm(BaseException):
    """The row's time is over; not an Exception, so that no `except` on the way swallows it."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is measured: on a GPU the real sizes, with --tiny ones that a CPU does in seconds."""

    device: str = "cuda"
    dtype: torch.dtype = BF16
    steps: int = 30
    few_steps: int = 20  # MLPerf's, for the throughput
    repeats: int = 3
    matmul: int = 8192  # side of the matrices of the roof
    # attention: pictures, heads, queries, keys, width of a head; a guided pair, the VAE's one
    attention: tuple = (
        (2, 10, 4096, 4096, 64),
        (2, 20, 1024, 1024, 64),
        (2, 10, 4096, 77, 64),
        (2, 20, 1024, 77, 64),
        (1, 1, 16384, 16384, 512),
        (2, 8, 4096, 4096, 40),
        (2, 8, 4096, 77, 40),
    )
    # upsample + 3x3: pictures, channels, side before; the UNet's two, the VAE's three
    upsamples: tuple = ((2, 1280, 32), (2, 640, 64), (1, 512, 128), (1, 512, 256), (1, 256, 512))
    hurry: float = 1.0  # times the seconds that a row needs
    patience: float = 5  # seconds that every row may take


TINY = Setting(
    "cpu",
    F32,
    steps=2,
    few_steps=1,
    repeats=1,
    matmul=128,
    attention=((2, 2, 64, 64, 16), (2, 2, 64, 7, 16), (1, 1, 64, 64, 512)),
    upsamples=((1, 32, 8),),
    hurry=0.01,
    patience=120,
)


class Bench:
    """A setting, the seconds left, the folders of results, and what was made or compiled."""

    def __init__(self, setting: Setting, deadline: float, folders=()):
        self.setting, self.deadline, self.folders = setting, deadline, [Path(f) for f in folders]
        self.made, self.compiled = {}, set()

    def left(self) -> float:
        return self.deadline - time.time()

    @property
    def cuda(self) -> bool:
        return self.setting.device == "cuda"

    def keep(self, key, make):
        """make(), once."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def drop(self) -> None:
        """Forget every network, twin and compiled kernel, and give their memory back."""
        self.made = {k: v for k, v in self.made.items() if k[0] in ("truth", "plain error")}
        self.compiled.clear()
        torch.compiler.reset()
        self.tidy()

    def tidy(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    # ------------------------------------------------------------ networks

    def plan(self, name):
        """The SystemConfig of "sdxl" or "sd15"; the tiny stand-in keeps the topology."""
        config = {"sdxl": SDXL, "sd15": SD15}[name]
        if self.cuda:
            return config
        c, sdxl, change = config.unet, config.vector, dataclasses.replace
        unet = change(
            c,
            channels=32,
            groups=8,
            mult=(1, 2),
            depth=c.depth[:2],
            middle=c.depth[1],
            heads=(2, 4),
            context=32,
            vector=16 + 6 * 32 if sdxl else 0,  # the pooled text and six numbers
            blocks=1,
        )
        text = change(config.text[0], width=32, heads=4, projection=16 if sdxl else 0)
        vae = change(config.vae, channels=16, blocks=1, groups=8)
        return change(config, unet=unet, vae=vae, text=(text,), size=64, number_dim=32)

    def network(self, part, name, dtype=None, use="plain"):
        """The UNet ("unet") or VAE ("vae") of a system.

        Twins rearrange the weights that they share with their model: theirs are another `use`.
        """
        kind, config = {"unet": UNet, "vae": VAE}[part], getattr(self.plan(name), part)
        dtype = dtype or self.setting.dtype
        make = lambda: random_network(kind, config, dtype, self.setting.device)
        return make() if use == "once" else self.keep((part, name, dtype, use), make)

    def twin(self, part, name, changes=CHANGES, **options):
        """speed_up of a network, once for each set of changes and options, of the same weights."""
        model = self.network(part, name, use="twin")
        make = lambda: speed_up(model, changes=changes, **options)
        return self.keep(("twin", part, name, changes, *options.items()), make)

    def eight_bits(self, name):
        model = self.network("unet", name, use="twin")
        return self.keep(("fp8", name), lambda: fp8(model, emulate=not self.cuda))

    # ------------------------------------------------------------ inputs and errors

    def inputs(self, name, batch=1, dtype=None):
        """(cond, uncond, x_T (B, 4, H/8, W/8)): random numbers for what the text encoders give."""
        config, device = self.plan(name), self.setting.device
        c, side, gen = config.unet, config.size // 8, torch.Generator().manual_seed(1)
        sizes = torch.tensor([config.size, config.size, 0, 0, config.size, config.size])
        numbers = timestep_embedding(sizes, config.number_dim).flatten()[None]

        def cond():
            context, vector = torch.randn(1, 77, c.context, generator=gen), None
            if c.vector:
                pooled = torch.randn(1, c.vector - numbers.numel(), generator=gen)
                vector = torch.cat([pooled, numbers], 1)
            to = lambda x: x.to(device, dtype or self.setting.dtype)
            return Cond(context, vector).map(lambda x: to(x.expand(batch, *x.shape[1:])))

        return cond(), cond(), noise((4, side, side), range(batch)).to(device)

    def tflop(self, name, steps=0, pictures=1, decode=True) -> float:
        """10^12 operations of that many guided steps of each picture, and of decoding it."""
        step, decoding = (
            FLOPS[name] if self.cuda else self.keep(("flops", name), lambda: count(self.plan(name)))
        )
        return pictures * (steps * step + decode * decoding) / 1e12

    def call(self, name, batch=1, dtype=None):
        """What a guided step asks the UNet: (x_t, t, cond), every picture with both conditions."""
        cond, uncond, x = self.inputs(name, batch, dtype)
        both = Cond(*(a if a is None else torch.cat([a, b]) for a, b in zip(cond, uncond)))
        t = torch.full((2 * batch,), 500.0, device=x.device)
        return torch.cat([x, x]).to(both.context.dtype), t, both

    def latent(self, name, dtype=None):
        """z (1, 4, H/8, W/8) for the VAE."""
        x = self.inputs(name)[2] * self.plan(name).vae.scale
        return x.to(dtype or self.setting.dtype)

    @torch.no_grad()
    def truth(self, part, name):
        """One call of the float32 network, no tf32, on the CPU: the reference of all errors."""

        def make():
            with tf32(False):
                model = self.network(part, name, F32, use="once")
                if part == "unet":
                    return model(*self.call(name, 1, F32)).cpu()
                return model.from_latent(self.latent(name, F32)).cpu()

        key = ("truth", part, name)
        if key not in self.made:
            self.made[key] = make()
            self.tidy()  # the float32 network goes
        return self.made[key]

    @torch.no_grad()
    def off(self, part, name, model, dtype=None):
        """|model - truth| / |truth| of one call."""
        truth = self.truth(part, name)
        if part == "unet":
            return off(model(*self.call(name, 1, dtype)), truth)
        return off(model.from_latent(self.latent(name, dtype)), truth)

    def plain_error(self, part, name) -> float:
        """How far the plain network in the setting's type is off: what rounding alone does."""
        make = lambda: self.off(part, name, self.network(part, name))
        return self.keep(("plain error", part, name), make)

    def limit(self, part, name, kind=None) -> float:
        """A fast network that is further off is wrong: LIMITS, or some times what rounding does.

        140 layers of random weights in bf16 are off by about 0.03 however they are computed;
        8-bit products, with four bits less, by several times that.
        """
        times = 8 if kind == "fp8" else 1.5
        return max(LIMITS[kind or self.setting.dtype], times * self.plain_error(part, name))


def count(config) -> tuple[int, int]:
    """Operations of one guided step and of decoding one picture, counted on the meta device."""
    c, side = config.unet, config.size // 8
    with torch.device("meta"):
        cond = Cond(torch.empty(2, 77, c.context), torch.empty(2, c.vector) if c.vector else None)
        step = flops(UNet(c), torch.empty(2, 4, side, side), torch.empty(2), cond)
        return step, flops(VAE(config.vae).decode, torch.empty(1, 4, side, side))


def random_network(kind, config, dtype, device):
    """Weights N(0, 1 / fan in), norms near 1, small biases: made in float32 and then rounded."""
    with torch.device("meta"):
        model = kind(config)
    model = model.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    gen = torch.Generator(device).manual_seed(0)
    for name, p in model.named_parameters():
        w = torch.randn(p.shape, generator=gen, device=device)
        w *= p[0].numel() ** -0.5 if p.ndim > 1 else 0.05
        p.copy_(w + (p.ndim == 1 and name.endswith("weight")))
    return model


def off(a, b) -> float:
    """|a - b| / |b|"""
    a, b = a.float().cpu(), b.float().cpu()
    return ((a - b).norm() / b.norm()).item()


def judged(result: dict, limit: float) -> dict:
    """The row fails if its error `off` is above the limit or NaN; what was measured is kept."""
    if not result["off"] <= limit:
        result["failed"] = f"off by {result['off']:.2g}, the limit is {limit:.2g}"
    return result


# ---------------------------------------------------------------- clocks


def clock(f, bench: Bench, repeats: int | None = None, calls: int = 1) -> dict:
    """{seconds (median), low, high, repeats, peak_gb} of a call; f() makes `calls` of them."""
    times = []
    f()
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats or bench.setting.repeats):
        if bench.cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            f()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1000 / calls)
        else:
            started = time.perf_counter()
            f()
            times.append((time.perf_counter() - started) / calls)
    peak = {"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if bench.cuda else {}
    spread = {"low": min(times), "high": max(times), "repeats": len(times)}
    return {"seconds": statistics.median(times), **spread, **peak}


def kernel_clock(f, bench: Bench, calls: int = 20) -> float:
    """Seconds of a small f on the GPU alone: `calls` of them as one CUDA graph, no launches."""
    if not bench.cuda:
        return clock(f, bench)["seconds"]
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            f()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            f()
    return clock(graph.replay, bench, 3, calls)["seconds"]


def kernels(f, bench: Bench, calls: int = 3, most: int = 40) -> dict:
    """{total_ms, kernels: [[name, ms, runs]]} of a call: where its milliseconds go."""
    from torch.profiler import DeviceType, ProfilerActivity, profile

    f()
    where = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.cuda else [])]
    with profile(activities=where) as seen:
        for _ in range(calls):
            f()
        if bench.cuda:
            torch.cuda.synchronize()
    own = DeviceType.CUDA if bench.cuda else DeviceType.CPU
    took = "self_device_time_total" if bench.cuda else "self_cpu_time_total"
    events = [e for e in seen.key_averages() if e.device_type == own and getattr(e, took) > 0]
    rows = sorted(([e.key[:160], getattr(e, took) / 1e3 / calls, e.count / calls] for e in events),
                  key=lambda row: -row[1])  # fmt: skip
    return {"total_ms": sum(ms for _, ms, _ in rows), "kernels": rows[:most]}


# ---------------------------------------------------------------- switches


@contextlib.contextmanager
def tf32(allowed: bool):
    """Products of float32 in float32, or with their inputs rounded to tf32's 10 bits."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextlib.contextmanager
def without_graphs():
    """Twins call what they compiled directly: the same code, started kernel by kernel."""
    replay = Graphed.__call__
    Graphed.__call__ = lambda self, *inputs: self.f(*inputs)
    try:
        yield
    finally:
        Graphed.__call__ = replay


# ---------------------------------------------------------------- the machine


def installed(name) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine(bench: Bench) -> dict:
    """What a file of results is of; its rows compare where device, PyTorch, CUDA, cuDNN agree."""
    here = {"tiny": not bench.cuda, "weights": "random", "torch": torch.__version__}
    if not bench.cuda:
        return {"device": f"{platform.machine()} CPU, one thread"} | here
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(ask, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        driver = None
    return {
        "device": torch.cuda.get_device_name(),
        **here,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver or None,
        "triton": installed("triton"),
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9),
    }


def file_name(here: dict) -> str:
    """gpu_sampling_h100_80gb_hbm3 for "NVIDIA H100 80GB HBM3"."""
    device = "tiny" if here["tiny"] else here["device"].lower().replace("nvidia", "")
    return "gpu_sampling_" + re.sub(r"\W+", "_", device).strip("_")
