"""Training in less memory: what is inside a block is forgotten and computed again. Notebook 17.

Chen et al. 2016 (gradient checkpointing, arXiv 1604.06174): the way back needs what each layer was
given. Kept are only the inputs of blocks; one block at a time is run again for the rest. A third
more time, and memory for one block instead of all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from .unet import ResBlock, TransformerBlock


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Within it the ResBlocks and transformer blocks of `model` are run again on the way back.

    The gradients are the same.
    """
    blocks = [m for m in model.modules() if isinstance(m, (ResBlock, TransformerBlock))]
    for block in blocks:
        again = dict(use_reentrant=False, preserve_rng_state=False)  # nothing in it is by chance
        block.forward = partial(checkpoint, block.forward, **again)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
