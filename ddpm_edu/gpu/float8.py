"""Matrix products of 8-bit floats: about twice the speed of bf16 on a GPU that has them, and approximate."""

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..systems.system import StableDiffusion
from .fast import FastUNet, speed_up

E4M3_MAX = 448.0  # the largest number of torch.float8_e4m3fn: 4 bits of exponent, 3 of mantissa


def fp8(model, *, compile: bool | str = True, emulate: bool = False):
    """`speed_up`, and the linear layers of the transformer blocks multiply 8-bit floats (e4m3): approximate.

    Every row of an input and of a weight is scaled to the largest 8-bit number, rounded to 3 bits of mantissa (a
    relative error of at most 1/16 a number), multiplied, and scaled back: Micikevicius et al. 2022 (arXiv 2209.05433).
    K and V of the text, convolutions, norms and attention itself stay as they are. For a bf16 model on an NVIDIA GPU
    of compute capability 8.9 or more (Ada, Hopper); emulate=True does the same rounding anywhere, slowly, to measure
    the error. The 8-bit weights are a copy. Raises OptionError where this cannot work.
    """
    twin = speed_up(model, compile=compile)
    unet = twin.unet if isinstance(twin, StableDiffusion) else twin
    if not isinstance(unet, FastUNet):
        raise OptionError(
            f"a {type(model).__name__} has no transformer blocks: pass a StableDiffusion or a UNet"
        )
    weight = unet.conv_in.weight
    if not emulate:
        if not weight.is_cuda or torch.cuda.get_device_capability(weight.device) < (8, 9):
            raise OptionError(
                f"fp8 needs an NVIDIA GPU of compute capability 8.9 or more, but the model is on {weight.device}: "
                "move it to one, leave fp8 out, or pass emulate=True to see its error only"
            )
        if weight.dtype != torch.bfloat16:
            raise OptionError(
                f"fp8 starts from bfloat16, but the model is {weight.dtype}: convert it with .to(torch.bfloat16) first"
            )
    for block in unet.blocks:
        pairs = [(block.attn1, "qkv"), (block.attn1, "out"), (block.ff, "proj"), (block.ff, "out")]
        for layer, name in pairs + (
            [(block.attn2, "q"), (block.attn2, "out")] if unet.config.context else []
        ):
            linear = getattr(layer, name)
            if linear.weight.shape[0] % 16 or linear.weight.shape[1] % 16:
                raise OptionError(
                    f"a linear layer is {tuple(linear.weight.shape)}: fp8 needs multiples of 16, use `speed_up` for this model"
                )
            setattr(
                layer, name, Float8Linear(linear.weight, getattr(linear, "bias", None), emulate)
            )
    unet._settle()
    return twin


class Float8Linear(nn.Module):
    """x W^T + b with x and W rounded to e4m3 row by row: (..., K) -> (..., N). See `fp8`."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, emulate: bool = False):
        super().__init__()
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
            y = torch._scaled_mm(
                x8,
                self.weight.T,
                scale_a=scale,
                scale_b=self.scale,
                bias=self.bias,
                out_dtype=x.dtype,
                use_fast_accum=True,
            )
        return y.unflatten(0, x.shape[:-1])


def to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(x8, scale) with x ~ x8 * scale, scale = max |x| / 448 of every row: (M, K) -> (M, K) e4m3, (M, 1) float32."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / E4M3_MAX
    return (x / scale).to(torch.float8_e4m3fn), scale
