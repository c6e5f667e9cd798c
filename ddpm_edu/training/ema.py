"""The averaged copy of a model that samples better than the model itself."""

import copy

import torch
from torch import nn


class EMA:
    """Exponential moving average of the weights: avg <- d avg + (1 - d) weights (Polyak averaging; DDPM appendix B).

    d starts small and rises to `decay`, min(decay, (1 + step) / (10 + step)), so that the random start is soon forgotten.
    `model` is the averaged copy, without gradients.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        d = min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values()))
        own, new = zip(*(p for p in pairs if p[0].is_floating_point()))
        torch._foreach_lerp_(own, new, 1 - d)
        for mine, its in pairs:
            if not mine.is_floating_point():
                mine.copy_(its)  # a counter has no average
