"""Where each word looks: the cross-attention of a UNet's forward passes, recorded. Notebook 09.

with recording(unet) as maps:
    ...                            # any number of forward passes, such as a whole sampling
heat = word_maps(maps, (64, 64))   # (L, 64, 64): how much each place looked at each token

Hertz et al. 2022 (arXiv 2208.01626); Tang et al. 2022 (DAAM, arXiv 2210.04885).
"""

from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import OptionError, checked_prompts
from ..networks.tokenizer import Tokenizer, clean, clip_tokenizer
from ..networks.unet import Attention, SpatialTransformer


class AttentionMap(NamedTuple):
    """One cross-attention in one forward pass."""

    layer: str  # its name in the UNet
    size: tuple[int, int]  # (h, w) of its grid; its pixels are numbered row by row
    weights: Tensor  # (B, N = h w, L), mean over the heads; the L of a pixel sum to 1


@torch.no_grad()
def attention_weights(attention: Attention, x: Tensor, context: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) of each head, float32.

    x (B, N, C), context (B, L, D) -> (B, heads, N, L).
    """
    q, k = (
        z.float().unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for z in (attention.q(x), attention.k(context))
    )
    return (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)


@contextmanager
def recording(unet: nn.Module):
    """A list that fills with an `AttentionMap` of each cross-attention in each forward pass.

    The maps are computed from the very inputs of the real pass, beside it: what the UNet returns
    does not change. They lie on the CPU, N L numbers a picture. Raises OptionError for a model
    without cross-attention.
    """
    maps, handles, sizes = [], [], {}

    def note_size(transformer, args):
        sizes[transformer] = tuple(args[0].shape[2:])

    def note_map(layer, transformer):
        def hook(attention, args):
            weights = attention_weights(attention, *args).mean(1).cpu()
            maps.append(AttentionMap(layer, sizes[transformer], weights))

        return hook

    for name, module in unet.named_modules():
        if isinstance(module, SpatialTransformer):
            blocks = [
                (i, block.attn2) for i, block in enumerate(module.blocks) if hasattr(block, "attn2")
            ]
            handles += [module.register_forward_pre_hook(note_size) for _ in blocks[:1]]
            handles += [
                attn.register_forward_pre_hook(note_map(f"{name}.blocks.{i}.attn2", module))
                for i, attn in blocks
            ]
    if not handles:
        raise OptionError(
            f"this {type(unet).__name__} has no cross-attention: pass a UNet that reads text"
        )
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def word_maps(maps: list[AttentionMap], size, row: int = 0) -> Tensor:
    """The mean of the maps, each resized to `size` (H, W): (L, H, W), which sum to 1 over L.

    row: which picture of the batch. Under guidance the batch is [with the prompt, without it]: the
    first half is the prompt's. Pass the maps of some layers or steps for these alone. Raises
    OptionError for no maps or no such row.
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    if not maps:
        raise OptionError("there are no maps: run the UNet inside `with recording(unet) as maps`")
    if not all(0 <= row < len(m.weights) for m in maps):
        rows = min(len(m.weights) for m in maps)
        raise OptionError(f"row = {row}: the batches have {rows} rows, the first is 0")
    total = 0
    for m in maps:
        grid = m.weights[row].T.unflatten(1, m.size)  # (L, h, w)
        total = total + F.interpolate(grid[None], size, mode="bilinear", antialias=True)[0]
    return total / len(maps)


class Sharing:
    """A switch: while `on`, every second picture of a batch attends as the one before it does."""

    on = True


@contextmanager
def shared_attention(unet: nn.Module, kinds=("attn1", "attn2")):
    """Prompt-to-prompt: rows 1, 3, 5, ... of each batch use the attention of rows 0, 2, 4, ...

    with shared_attention(unet) as switch:
        ...                        # sample with prompts [old, new, old, new, ...]
        switch.on = False          # from here on each attends for itself

    kinds: "attn1", the places among themselves; "attn2", the places and the words. A picture takes
    over where the other looks, and reads there what its own prompt says (Hertz et al. 2022). Both
    must have as many tokens, and equal noise. OptionError for a model without such attention.
    """
    switch = Sharing()
    changed = [
        module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.rpartition(".")[2] in kinds
    ]
    if not changed:
        raise OptionError(f"this {type(unet).__name__} has no {' or '.join(kinds)}: pass a UNet")

    def forward(attention, x, context=None):
        context = x if context is None else context
        A = attention_weights(attention, x, context).to(x)  # (B, heads, N, L)
        if switch.on:
            A = A[torch.arange(len(A)) // 2 * 2]
        v = attention.v(context).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        return attention.out((A @ v).transpose(1, 2).flatten(2))

    try:
        for module in changed:
            module.forward = partial(forward, module)
        yield switch
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def token_words(
    prompt: str, tokenizer: Tokenizer | None = None, pad: str = "eot"
) -> list[tuple[str, list[int]]]:
    """[(word, its places among the L tokens)], in order, the start token's first.

    The last are the end token's and the padding's.  tokenizer: None for CLIP's own.  pad: as in
    `Tokenizer.__call__`. What does not fit is left out.
    """
    tokenizer = tokenizer or clip_tokenizer()
    text, room = clean(checked_prompts(prompt)[0]), tokenizer.length - 2
    ids, begins = (z[:room] for z in tokenizer.pieces(text, special=pad == "eot"))
    pieces = list(map(tokenizer.bpe.id_to_token, ids))
    words = []
    for i, begin in enumerate(begins):
        fresh = (
            not i
            or pieces[i - 1].endswith("</w>")
            or ids[i - 1] in tokenizer.special.values()
            or (begin > begins[i - 1] and text[begin - 1].isspace())
        )
        words += [(begin, [])] if fresh else []
        words[-1][1].append(i + 1)
    starts = [begin for begin, _ in words] + [len(text)]
    if len(ids) == room and words:  # perhaps cut: the last word ends where the next space is
        starts[-1] = (text + " ").find(" ", starts[-2])
    start, end = tokenizer.special
    named = [(text[a:b].strip(), places) for (a, places), b in zip(words, starts[1:])]
    return [(start, [0]), *named, (end, list(range(len(ids) + 1, tokenizer.length)))]
