"""Counting the work of a network, to compare with what a machine could do. Notebooks 07, 11, 14."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def flops(f: Callable, *inputs) -> int:
    """Floating-point operations of products, convolutions and attentions in f(*inputs).

    A multiply-add counts as two. PyTorch counts while f runs; on the meta device nothing is
    computed, and a network of any size takes a second:
    with torch.device("meta"): flops(UNet(config), x_t, t, cond).
    """
    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # not in PyTorch's list
    known = {on_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
    with FlopCounterMode(display=False, custom_mapping=known) as counter, torch.no_grad():
        f(*inputs)
    return counter.get_total_flops()
