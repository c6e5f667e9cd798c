"""Counting a network's work, to compare with what a machine could do. Notebooks 07, 11, 12, 14."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

from ..networks.unet import SpatialTransformer, UNet

FLASH = torch.ops.aten._scaled_dot_product_flash_attention


def attention_flops(q: Tensor, k: Tensor, v: Tensor, *_, **__) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


attention_flops._get_raw = True  # PyTorch hands over tensors, not their shapes
# Not in PyTorch's own list of formulas:
ON_CPU = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}


def flops(f: Callable, *inputs) -> int:
    """Floating-point operations of products, convolutions and attentions in f(*inputs).

    A multiply-add counts as two. PyTorch counts while f runs; on the meta device nothing is
    computed, and a network of any size takes a second:
    with torch.device("meta"): flops(UNet(config), x_t, t, cond).
    """
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter, torch.no_grad():
        f(*inputs)
    return counter.get_total_flops()


# ---------------------------------------------------------------- level by level


def layer_flops(layer: nn.Module, inputs: tuple, out: Tensor) -> int:
    """FLOPs of one layer: 2 (outputs) (entries of a row of its weight) of a convolution or a linear
    layer, 4 N L C of an attention, whose linear layers are counted by themselves."""
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        return 2 * out.numel() * layer.weight[0].numel()
    x, context = (*inputs, inputs[0])[:2]  # Attention.forward(x, context=None)
    return 4 * x.shape[0] * x.shape[1] * context.shape[1] * x.shape[2]


def anatomy(unet: UNet, *inputs) -> dict[tuple[int | str, str], list[int]]:
    """{(level, kind): [parameters, FLOPs]} of unet(*inputs).

    level: 0 (the finest) and on, "middle", or "rest" (time, text vector, first and last layer);
    kind: "transformer blocks" or "convolutions". Each layer's FLOPs are `layer_flops`.
    """
    rows, hooks = defaultdict(lambda: [0, 0]), []

    def add(row, layer, given, out):
        row[1] += layer_flops(layer, given, out)

    for level, block in places(unet):
        kind = "transformer blocks" if isinstance(block, SpatialTransformer) else "convolutions"
        row = rows[level, kind]
        row[0] += sum(p.numel() for p in block.parameters())
        for layer in block.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)) or hasattr(layer, "heads"):
                hooks.append(layer.register_forward_hook(partial(add, row)))
    try:
        with torch.no_grad():
            unet(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(rows)


def places(unet: UNet) -> Iterator[tuple[int | str, nn.Module]]:
    """(level, block) of all blocks. A down- or upsampler belongs to the list that it is in."""
    levels, n = range(len(unet.config.mult)), unet.config.blocks
    down = [level for level in levels for _ in range(n + (level > 0))]
    up = [level for level in reversed(levels) for _ in range(n + 1)]
    for blocks, level in (*zip(unet.down, down), (unet.mid, "middle"), *zip(unet.up, up)):
        yield from ((level, block) for block in blocks)
    for name, part in unet.named_children():
        if name not in ("down", "mid", "up"):
            yield "rest", part


# ---------------------------------------------------------------- kernel by kernel


class Kernel(NamedTuple):
    """One operation that the machine is asked for."""

    name: str  # PyTorch's
    work: int  # F, floating-point operations; those of norms, sums and activations count as 0
    moved: int  # M, bytes of the tensors it reads and writes


def kernels(f: Callable, *inputs) -> list[Kernel]:
    """The operations of f(*inputs) in their order, without views, which move nothing.

    On the meta device nothing is computed. An attention counts as the one fused kernel that a GPU
    runs, so that the N x N scores are not moved.
    """
    with torch.no_grad(), FusedAttention(), Listener() as heard:
        f(*inputs)
    return heard.kernels


class Listener(TorchDispatchMode):
    """Between `with` and its end, writes down every operation that PyTorch carries out."""

    def __init__(self):
        super().__init__()
        self.kernels: list[Kernel] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        read, wrote = tensors((args, kwargs)), tensors(out)
        homes = [{id(x.untyped_storage()) for x in xs} for xs in (read, wrote)]
        if not homes[0] & homes[1]:  # else a view of its input
            formula = (flop_registry | ON_CPU).get(op.overloadpacket, lambda *_, **__: 0)
            work = formula(*args, **(kwargs or {}), out_val=out)
            moved = sum(x.nbytes for x in read + wrote)
            self.kernels.append(Kernel(op.overloadpacket.__name__, work, moved))
        return out


class FusedAttention(TorchFunctionMode):
    """On the meta device PyTorch would take attention apart; here it is one kernel."""

    def __torch_function__(self, f, types, args=(), kwargs=None):
        if f is F.scaled_dot_product_attention and args[0].is_meta:
            return FLASH(*args[:3])[0]
        return f(*args, **(kwargs or {}))


def tensors(tree) -> list[Tensor]:
    """The tensors of any nest of tuples, lists and dicts."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
