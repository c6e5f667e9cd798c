"""How much memory a system takes, found out before it runs: a rehearsal. Notebooks 11, 14, 17.

Tensors on the meta device have shapes and no numbers, so a pass over them costs next to nothing; it
allocates what the real one would, in the same order, and somebody only has to count.
"""

import functools
import weakref
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..diffusion import Cond
from ..errors import whole
from ..networks.lora import attach, low_rank
from ..networks.recompute import recomputing
from ..networks.unet import UNet
from .system import SystemConfig, build


def weight_bytes(config: SystemConfig, dtype=torch.float32) -> int:
    """Bytes of all weights, exactly: counted on the meta device."""
    return held(build(config, device="meta", dtype=dtype))


def held(sd) -> int:
    """Bytes of the weights of a system that is there."""
    return sum(p.nbytes for p in sd.parameters())


def memory_needed(
    config: SystemConfig, dtype=torch.float32, size=None, batch: int = 1, guidance: bool = True
) -> int:
    """Bytes to draw `batch` pictures at once: the weights, exactly, and the widest moment.

    size: pixels, one side or (height, width); the system's own unless given. The widest moment is
    one UNet call (on 2 batch pictures with guidance) or decoding one picture in one piece, as
    `widest_moment` counts it; the libraries' own work space comes on top.
    """
    size = _checked(config, size, batch)
    return _memory(config, dtype, size, batch * (2 if guidance else 1))


def _checked(config, size, batch) -> tuple[int, int]:
    """(height, width) of a size, the system's own for None."""
    height, width = (size, size) if isinstance(size, int) else size or (config.size, config.size)
    for side in (height, width):
        whole("size", side, 8, 8192, "pixels a side")
    whole("batch", batch, 1, 1024, "pictures at once")
    return height, width


@functools.lru_cache
def _memory(config, dtype, size, batch):
    sd = build(config, device="meta", dtype=dtype)
    return held(sd) + widest_moment(sd, size, batch)


def lora_memory(
    config: SystemConfig,
    rank: int = 16,
    dtype=torch.bfloat16,
    size=None,
    batch: int = 1,
    recompute: bool = True,
) -> int:
    """Bytes to train a LoRA of the UNet's attention on latents and texts that are there already.

    The UNet's weights in `dtype`; of A and B in float32 the weights, their average and the two
    averages of Adam; and the widest moment of a forward and a backward pass, gradients with it.
    recompute: blocks are run again on the way back, see `recomputing`.
    """
    with torch.device("meta"):
        unet = UNet(config.unet).to(dtype).requires_grad_(False)
        lora = low_rank(unet, rank)
    learned, weights = held(lora), held(unet)
    attach(unet, lora)
    sides = [side // config.vae.factor for side in _checked(config, size, batch)]
    inputs = unet_inputs(unet, sides, batch, config.text[0].length)

    def update():
        with recomputing(unet) if recompute else nullcontext():
            torch.autograd.backward(unet(*inputs).float().square().mean())

    return weights + 4 * learned + peak_bytes(update, gradients=True)


def peak_bytes(run, gradients: bool = False) -> int:
    """The most bytes alive at once, of all that `run()` allocates on the meta device.

    Attention counts as its result alone, as a fused kernel does it, without the (N, N) matrix; what
    libraries take for themselves (cuDNN's work space, the allocator's rounding) is not counted.
    """
    attention = _FusedAttention()
    with torch.set_grad_enabled(gradients), torch.device("meta"), attention, _Count() as count:
        run()
    return count.peak


def widest_moment(sd, size, batch: int) -> int:
    """Bytes of one call of sd.unet on `batch` pictures, or of decoding one: whichever are more.

    sd: a StableDiffusion on the meta device.  size: (height, width) in pixels.
    """
    sides = [side // sd.vae.factor for side in size]
    inputs = unet_inputs(sd.unet, sides, batch, sd.config.text[0].length)
    z = next(sd.vae.parameters()).new_empty(1, sd.config.vae.latent, *sides)
    return max(peak_bytes(lambda: sd.unet(*inputs)), peak_bytes(lambda: sd.vae.decode(z)))


def unet_inputs(unet: UNet, sides, batch: int, tokens: int) -> tuple[Tensor, Tensor, Cond]:
    """x_t, t and cond for a call of this UNet, beside its weights; sides: of the latent."""
    c, like = unet.config, next(unet.parameters())
    vector = like.new_empty(batch, c.vector) if c.vector else None
    cond = Cond(like.new_empty(batch, tokens, c.context) if c.context else None, vector)
    return like.new_empty(batch, c.in_channels, *sides), like.new_empty(batch), cond


class _Count(TorchDispatchMode):
    """Adds a new storage's bytes when an operation returns it, takes them off when it dies."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs))
        given = {id(t.untyped_storage()) for t in leaves if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.is_meta:
                storage = t.untyped_storage()  # a view shares its source's
                if id(storage) not in given and storage not in self.seen:
                    self.seen.add(storage)
                    self._add(storage.nbytes())
                    weakref.finalize(storage, self._add, -storage.nbytes()).atexit = False
        return out

    def _add(self, size):
        self.now += size
        self.peak = max(self.peak, self.now)


class _Fused(torch.autograd.Function):
    """What a fused kernel keeps for the way back: its inputs, its result, a number a row."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, gradient):
        return tuple(map(torch.empty_like, ctx.saved_tensors[:3]))


SDPA = F.scaled_dot_product_attention


def _attention(q, k, v, *_, **__):
    kept = torch.is_grad_enabled()
    return _Fused.apply(q, k, v) if kept else q.new_empty(*q.shape[:-1], v.shape[-1])


class _FusedAttention(TorchFunctionMode):
    """Two ways to the same: a mode sees every call but those in blocks that are run again in a
    backward pass; these look the function up by its name."""

    def __enter__(self):
        F.scaled_dot_product_attention = _attention
        return super().__enter__()

    def __exit__(self, *error):
        F.scaled_dot_product_attention = SDPA
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = _attention if func is SDPA else func
        return func(*args, **(kwargs or {}))
