"""What a step is made of: its products, convolutions, attentions, norms, each timed alone."""

from collections import Counter

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ddpm_edu.gpu.fast import WIDEST_HEAD, Doubling, by_products, speed_up
from ddpm_edu.networks.unet import UNet
from ddpm_edu.networks.vae import Upsample

from .bench import Bench, kernel_clock, off

OPERATIONS = {
    F.linear: "product",
    F.conv2d: "convolution",
    F.conv_transpose2d: "transposed convolution",
    F.scaled_dot_product_attention: "attention",
    F.group_norm: "GroupNorm",
    F.layer_norm: "LayerNorm",
    F.silu: "SiLU",
    F.gelu: "GELU",
    F.interpolate: "upsample",
}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


class Census(TorchFunctionMode):
    """Counts calls of OPERATIONS: {(function, arguments, options): times}, tensors as Shapes."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in OPERATIONS:
            told = tuple(map(_shape, args)), tuple((k, _shape(v)) for k, v in kwargs.items())
            self.calls[function, *told] += 1
        return function(*args, **kwargs)


class Shape(tuple):
    """Where a tensor was."""


def _shape(x):
    if isinstance(x, torch.Tensor):
        return Shape(x.shape)
    return tuple(x) if isinstance(x, list | tuple) else x


def census(bench: Bench, name: str) -> Counter:
    """The operations of one guided step of the fast twin, counted on the meta device.

    The text's K and V are worked out by the first call, as for the first of 30 steps: not counted.
    """
    config = bench.plan(name)
    like = lambda x: None if x is None else torch.empty_like(x, device="meta")
    x_t, t, cond = bench.call(name)
    x_t, t, cond = like(x_t), like(t), cond.map(like)
    with torch.device("meta"), torch.no_grad():
        twin = speed_up(UNet(config.unet).to(bench.setting.dtype), compile=False)
        twin(x_t, t, cond)
        with Census() as seen:
            twin(x_t, t, cond)
    return seen.calls


def step_parts(bench: Bench, name: str = "sdxl") -> dict:
    """Each operation of a guided step alone, and their sum: nothing fused, no gaps."""
    rows = []
    for (function, shapes, options), times in census(bench, name).items():
        gen = torch.Generator(bench.setting.device).manual_seed(0)
        args, kwargs = (
            [_made(v, bench, gen, function) for v in shapes],
            {k: _made(v, bench, gen, function) for k, v in options},
        )
        row = {
            "part": OPERATIONS[function],
            "shapes": " ".join("x".join(map(str, s)) for s in shapes if isinstance(s, Shape)),
            "times": times,
        }
        try:
            row["ms"] = 1e3 * kernel_clock(lambda: function(*args, **kwargs), bench)
        except RuntimeError as error:
            row["failed"] = str(error).splitlines()[0][:200]
        rows.append(row)
    cost = lambda row: row["times"] * row.get("ms", 0)
    kinds = {kind: sum(cost(r) for r in rows if r["part"] == kind) for kind in OPERATIONS.values()}
    return {
        "seconds": sum(map(cost, rows)) / 1e3,
        "ms": {kind: ms for kind, ms in kinds.items() if ms},
        "parts": sorted(rows, key=cost, reverse=True),
    }


def _made(spec, bench, gen, function):
    if not isinstance(spec, Shape):
        return spec
    x = torch.randn(spec, device=bench.setting.device, dtype=bench.setting.dtype, generator=gen)
    pixels = len(spec) == 4 and function is not F.scaled_dot_product_attention
    return x.to(memory_format=torch.channels_last) if pixels else x


@torch.no_grad()
def upsample(bench: Bench, pictures: int, channels: int, side: int) -> dict:
    """Twice the size and a 3x3 convolution: in two steps, and as one transposed convolution."""
    like = dict(device=bench.setting.device, dtype=bench.setting.dtype)
    layer = Upsample(channels).to(**like, memory_format=torch.channels_last)
    x = torch.randn(pictures, channels, side, side, **like).to(memory_format=torch.channels_last)
    one, two = Doubling(layer), layer
    ways = {
        "two_steps": kernel_clock(lambda: two(x), bench),
        "transposed": kernel_clock(lambda: one(x), bench),
    }
    return {"seconds": min(ways.values()), "ways": ways, "off": off(one(x), two(x))}


def attention(bench: Bench, pictures, heads, queries, keys, width) -> dict:
    """One shape through every kernel that takes it; `default` is PyTorch's own choice."""
    gen = torch.Generator(bench.setting.device).manual_seed(0)
    q, k, v = (
        torch.randn(pictures, heads, n, width, generator=gen, device=bench.setting.device)
        .to(bench.setting.dtype)
        for n in (queries, keys, keys)
    )  # fmt: skip
    plain = lambda: F.scaled_dot_product_attention(q, k, v)
    ways, refused = {"default": kernel_clock(plain, bench)}, {}
    named = BACKENDS if bench.cuda else {"flash": BACKENDS["flash"]}
    calls = {way: lambda b=b: _with(b, plain) for way, b in named.items()}
    if width > WIDEST_HEAD:
        calls["products"] = lambda: by_products(q[:, 0], k[:, 0], v[:, 0])
    for way, call in calls.items():
        try:
            ways[way] = kernel_clock(call, bench)
        except RuntimeError as error:
            refused[way] = str(error).splitlines()[0][:200]
    best = min(ways, key=ways.get)
    flop = 4 * pictures * heads * queries * keys * width
    return {"seconds": ways[best], "best": best, "tflop": flop / 1e12, "ways": ways} | (
        {"refused": refused} if refused else {}
    )


def _with(backend, call):
    with sdpa_kernel(backend):
        return call()


def shape_name(*numbers) -> str:
    """10x4096x64 (heads, tokens, width) for self-attention, 10x4096x77x64 for other keys."""
    _, heads, queries, keys, width = numbers
    return "x".join(map(str, (heads, queries, *([keys] if keys != queries else []), width)))


def rows(bench: Bench):
    """(key, function) of every shape of the setting."""
    for numbers in bench.setting.attention:
        yield f"attention/{shape_name(*numbers)}", lambda b, n=numbers: attention(b, *n)
    for numbers in bench.setting.upsamples:
        name = "x".join(map(str, numbers))
        yield f"upsample/{name}", lambda b, n=numbers: upsample(b, *n)
