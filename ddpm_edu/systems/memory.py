"""How much memory a system takes, found out before it runs: a rehearsal. Notebooks 11 and 14.

Tensors on the meta device have shapes and no numbers, so a pass over them costs next to nothing; it
allocates what the real one would, in the same order, and somebody only has to count.
"""

import functools
import weakref

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..diffusion import Cond
from ..errors import whole
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
    height, width = (size, size) if isinstance(size, int) else size or (config.size, config.size)
    for side in (height, width):
        whole("size", side, 8, 8192, "pixels a side")
    whole("batch", batch, 1, 1024, "pictures at once")
    return _memory(config, dtype, (height, width), batch * (2 if guidance else 1))


@functools.lru_cache
def _memory(config, dtype, size, batch):
    sd = build(config, device="meta", dtype=dtype)
    return held(sd) + widest_moment(sd, size, batch)


def peak_bytes(run) -> int:
    """The most bytes alive at once, of all that `run()` allocates on the meta device.

    Attention counts as its result alone, as a fused kernel does it, without the (N, N) matrix; what
    libraries take for themselves (cuDNN's work space, the allocator's rounding) is not counted.
    """
    with torch.no_grad(), torch.device("meta"), _FusedAttention(), _Count() as count:
        run()
    return count.peak


def widest_moment(sd, size, batch: int) -> int:
    """Bytes of one call of sd.unet on `batch` pictures, or of decoding one: whichever are more.

    sd: a StableDiffusion on the meta device.  size: (height, width) in pixels.
    """
    h, w = (side // sd.vae.factor for side in size)
    c, like = sd.config.unet, next(sd.unet.parameters())
    vector = like.new_empty(batch, c.vector) if c.vector else None
    cond = Cond(like.new_empty(batch, sd.config.text[0].length, c.context), vector)
    x_t, t = like.new_empty(batch, c.in_channels, h, w), like.new_empty(batch)
    z = next(sd.vae.parameters()).new_empty(1, sd.config.vae.latent, h, w)
    return max(peak_bytes(lambda: sd.unet(x_t, t, cond)), peak_bytes(lambda: sd.vae.decode(z)))


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


class _FusedAttention(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            q, _, v = args[:3]
            return q.new_empty(*q.shape[:-1], v.shape[-1])
        return func(*args, **(kwargs or {}))
