"""Products of 8-bit floats: twice bf16's speed on a GPU that has them, approximate. Notebook 14."""

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..systems.system import StableDiffusion
from .fast import FastUNet, speed_up

E4M3_MAX = 448.0  # the largest number of torch.float8_e4m3fn: 4 bits of exponent, 3 of mantissa


def fp8(model, *, compile: bool | str = True, emulate: bool = False):
    """`speed_up`, and the linear layers of the transformer blocks multiply 8-bit floats (e4m3).

    Every row of an input and of a weight is scaled to the largest 8-bit number, rounded to 3 bits
    of mantissa (a relative error of at most 1/16 a number), multiplied, and scaled back:
    Micikevicius et al. 2022 (arXiv 2209.05433). K and V of the text, convolutions, norms and
    attention itself stay as they are; the 8-bit weights are a copy. For a bf16 model on an NVIDIA
    GPU of compute capability 8.9 or more (Ada, Hopper); emulate=True rounds so anywhere, slowly, to
    measure the error. Raises OptionError where this cannot work.
    """
    twin = speed_up(model, compile=compile)
    unet = twin.unet if isinstance(twin, StableDiffusion) else twin
    _check(model, unet, emulate)
    for block in unet.blocks:
        layers = [(block.attn1, "qkv"), (block.attn1, "out"), (block.ff, "proj"), (block.ff, "out")]
        if unet.config.context:
            layers += [(block.attn2, "q"), (block.attn2, "out")]
        for layer, name in layers:
            linear = getattr(layer, name)
            bias = getattr(linear, "bias", None)
            setattr(layer, name, Float8Linear(linear.weight, bias, emulate))
    unet._settle()
    return twin


def _check(model, unet, emulate):
    if not isinstance(unet, FastUNet):
        raise OptionError(f"model is a {type(model).__name__}: pass a StableDiffusion or a UNet")
    weight = unet.conv_in.weight
    if emulate:
        return
    if not weight.is_cuda or torch.cuda.get_device_capability(weight.device) < (8, 9):
        raise OptionError(
            f"model is on {weight.device}, but fp8 needs an NVIDIA GPU of compute capability "
            "8.9 or more: move it to one, or pass emulate=True to see its error only"
        )
    if weight.dtype != torch.bfloat16:
        raise OptionError(f"model is {weight.dtype}: fp8 needs .to(torch.bfloat16) before")


class Float8Linear(nn.Module):
    """x W^T + b with x and W rounded to e4m3 row by row: (..., K) -> (..., N). See `fp8`."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, emulate: bool = False):
        super().__init__()
        if weight.shape[0] % 16 or weight.shape[1] % 16:
            raise OptionError(
                f"weight is {tuple(weight.shape)}: fp8 needs multiples of 16, use speed_up"
            )
        w8, scale = to_float8(weight.detach())
        self.register_buffer("weight", w8, persistent=False)  # (N, K)
        self.register_buffer("scale", scale.T.contiguous(), persistent=False)  # (1, N)
        self.bias, self.emulate = bias, emulate

    def forward(self, x):
        x8, scale = to_float8(x.flatten(0, -2))
        if self.emulate:
            y = (x8.float() @ self.weight.float().T) * scale * self.scale
            y = (y if self.bias is None else y + self.bias).to(x.dtype)
        else:
            scales = {"scale_a": scale, "scale_b": self.scale, "bias": self.bias}
            fast = {"out_dtype": x.dtype, "use_fast_accum": True}
            y = torch._scaled_mm(x8, self.weight.T, **scales, **fast)
        return y.unflatten(0, x.shape[:-1])


def to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x8, scale) with x ~ x8 * scale: (M, K) -> (M, K) e4m3, (M, 1) float32.

    scale = max |x| / 448 of every row.
    """
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / E4M3_MAX
    return (x / scale).to(torch.float8_e4m3fn), scale
