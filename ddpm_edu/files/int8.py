"""Weights in 8 bits or less on disk: a quarter of float32, half of float16. In memory they are float32 again.

Every row of a large tensor (a filter, an output of a linear layer) has its own scale, so that a row of small weights
keeps its digits beside a row of large ones: Krishnamoorthi 2018 (arXiv 1806.08342), symmetric, per channel.
"""

import math
import zlib

import torch
from torch import Tensor

from ..errors import CheckpointError

SMALLEST = 8192  # elements: smaller tensors (norms, biases) weigh little and stay finer
MOST_HALF = 60000.0  # a little below the largest float16, 65504


def pack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """{name: tensor} for a file: a large floating tensor w becomes int8 `name` and float32 `name.scale` (rows,).

    w ~ scale q, scale = max |w| / 127 of every row of the first dimension, q = round(w / scale) in -127..127: wrong by at
    most scale / 2. Large is two dimensions and SMALLEST elements. Other floating tensors become float16, or float32 where
    that would overflow; whole numbers stay. Raises CheckpointError if a `name.scale` is taken, or a tensor is int8 already.
    """
    packed = {}
    for name, w in state.items():
        if w.dtype == torch.int8:
            raise CheckpointError(
                f"{name} is int8 already: a packed state cannot be packed again, unpack it first"
            )
        if not w.is_floating_point():
            packed[name] = w
        elif w.ndim < 2 or w.numel() < SMALLEST:
            packed[name] = w.to(
                torch.float16 if not w.numel() or w.abs().max() <= MOST_HALF else torch.float32
            )
        else:
            if f"{name}.scale" in state:
                raise CheckpointError(
                    f"{name}.scale is a tensor of its own: there is no room for the scales of {name}, rename it"
                )
            w = w.detach().float()
            scale = w.abs().flatten(1).amax(1) / 127
            packed[name] = (
                (w / _rows(scale.clamp(min=torch.finfo(torch.float32).tiny), w))
                .round()
                .to(torch.int8)
            )
            packed[f"{name}.scale"] = scale
    return packed


def squeeze(packed: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every int8 tensor as the bytes of zlib (Huffman coding: small numbers are the most frequent), its shape beside it.

    Saves a tenth of bell-shaped weights, and all of the rows that are zero. `unpack` takes the result as well.
    """
    out = {}
    for name, q in packed.items():
        if q.dtype == torch.int8:
            out[f"{name}.shape"] = torch.tensor(q.shape)
            q = torch.frombuffer(
                bytearray(zlib.compress(q.contiguous().numpy().tobytes(), 9)), dtype=torch.uint8
            )
        out[name] = q
    return out


def _expand(state, source):
    """The inverse of `squeeze`."""
    shapes = {
        name.removesuffix(".shape"): shape
        for name, shape in state.items()
        if name.endswith(".shape") and name.removesuffix(".shape") in state
    }
    out = {name: x for name, x in state.items() if name.removesuffix(".shape") not in shapes}
    for name, shape in shapes.items():
        try:
            size = math.prod(shape.tolist())
            raw = zlib.decompressobj().decompress(
                state[name].numpy().tobytes(), size + 1
            )  # never more than it says
            out[name] = torch.frombuffer(bytearray(raw), dtype=torch.int8).view(shape.tolist())
        except (zlib.error, RuntimeError, TypeError, ValueError, OverflowError) as e:
            raise CheckpointError(
                f"{source}: {name} cannot be expanded ({e}): the file is damaged, get it again"
            ) from e
    return out


def unpack(state: dict[str, Tensor], source="the state") -> dict[str, Tensor]:
    """The inverse of `pack`, and of `squeeze`, up to rounding: all floating tensors in float32. A state that is not packed is only converted.

    Raises CheckpointError, naming `source` and the tensor, for int8 without scales, scales that are none, or bytes that do not expand.
    """
    state = _expand(state, source)
    scales = {f"{name}.scale" for name, q in state.items() if q.dtype == torch.int8}
    return {
        name: _whole(name, q, state.get(f"{name}.scale"), source)
        if q.dtype == torch.int8
        else q.float()
        if q.is_floating_point()
        else q
        for name, q in state.items()
        if name not in scales
    }


def _whole(name, q, scale, source):
    if scale is None:
        raise CheckpointError(
            f"{source}: {name} is int8, but there is no {name}.scale beside it: the file is damaged, get it again"
        )
    if not scale.is_floating_point() or q.ndim < 2 or scale.shape != q.shape[:1]:
        raise CheckpointError(
            f"{source}: {name}.scale is {tuple(scale.shape)} {scale.dtype}, but {name} of shape {tuple(q.shape)} needs "
            "one float a row: the file is damaged, get it again"
        )
    if not (scale.isfinite() & (scale >= 0)).all():
        raise CheckpointError(
            f"{source}: {name}.scale holds NaN, infinity or negative numbers: the training diverged or the file is damaged, use another one"
        )
    return q.float().mul_(_rows(scale.float(), q))


def _rows(scale, w):
    """(rows,) as (rows, 1, ...), to be multiplied with w."""
    return scale.view(-1, *[1] * (w.ndim - 1))
