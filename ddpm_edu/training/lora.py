"""A LoRA trained beside a frozen UNet: Algorithm 1, but only A and B learn. Notebook 17.

data = encode(sd, pictures)                  latents and texts, worked out once
for step in train_lora(sd, data, TrainConfig(steps=300, lr=1e-3), rank=4):
    ...
lora = step.ema.lora                         attach(sd, lora), save_lora("mine.safetensors", ...)
"""

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..diffusion import Cond
from ..networks.lora import ATTENTION, LoRA, attach, detach, low_rank
from ..networks.recompute import recomputing
from ..networks.unet import UNet
from ..systems.system import StableDiffusion
from .train import TrainConfig, TrainStep, train


class Learning(nn.Module):
    """A UNet that stays as it is, with a LoRA attached that learns; called like the UNet.

    recompute: blocks are run again on the way back, which takes less memory, see `recomputing`.
    """

    def __init__(self, unet: UNet, lora: LoRA, recompute: bool = False):
        super().__init__()
        self.lora, self.recompute = lora, recompute
        self.frozen = [unet]  # in a list: its weights are none of those that learn, or are saved

    def forward(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        unet = self.frozen[0]
        dtype = unet.norm_out.weight.dtype
        with recomputing(unet) if self.recompute else nullcontext():
            return unet(x_t.to(dtype), t, cond.map(lambda part: part.to(dtype))).float()

    def __deepcopy__(self, memo):
        """An average of it needs A and B of its own, and shares the weights that do not learn."""
        memo |= {id(w): w for w in self.frozen[0].parameters() if not w.requires_grad}
        unet, lora = copy.deepcopy((self.frozen[0], self.lora), memo)
        return Learning(unet, lora, self.recompute)


def train_lora(
    sd: StableDiffusion,
    dataset,
    config: TrainConfig,
    rank: int = 4,
    *,
    alpha: float | None = None,
    where: str = ATTENTION,
    recompute: bool = False,
    checkpoint=None,
) -> Iterator[TrainStep]:
    """Algorithm 1 for a new LoRA of sd's UNet, on latents; one TrainStep an update.

    step.model.lora is what learns, step.ema.lora its average; both can draw: step.ema is called
    like sd.unet. When the run is over, or given up, sd is as it was before.
    dataset: of latents and Conds, see `encode`.  rank, alpha, where: see `low_rank`.  config: its
    `predict` is sd's.  checkpoint: see `train`; it holds A and B alone.
    """
    sd.unet.requires_grad_(False)
    torch.manual_seed(config.seed)
    lora = low_rank(sd, rank, alpha, where)
    attach(sd, lora)
    try:
        model, config = Learning(sd.unet, lora, recompute), replace(config, predict=sd.predict)
        yield from train(model, sd.schedule, dataset, config, checkpoint=checkpoint)
    finally:
        detach(sd, lora)
