"""What stays the same over the steps of a sampler is worked out once."""
from collections.abc import Callable

import torch


def remembered(f: Callable) -> Callable:
    """f, computed again only if one of its tensors (or None) is another one or was written to since.

    What depends on the prompt alone is so worked out once a run, not once a step. With gradients nothing is remembered.
    """
    memory = []

    def call(*tensors):
        if torch.is_grad_enabled() or any(x is not None and x.is_inference() for x in tensors):
            return f(*tensors)  # a graph is good for one backward; inference tensors do not tell when they are written to
        versions = [x if x is None else x._version for x in tensors]
        if not memory or memory[1] != versions or any(a is not b for a, b in zip(memory[0], tensors)):
            memory[:] = tensors, versions, f(*tensors)
        return memory[2]
    return call
