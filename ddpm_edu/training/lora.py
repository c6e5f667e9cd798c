"""A LoRA trained beside a frozen UNet: Algorithm 1, but only A and B learn. Notebook 17.

data = encode(sd, pictures)                  latents and texts, worked out once
for step in train_lora(sd, data, TrainConfig(steps=300, lr=1e-3), rank=4):
    ...
lora = step.ema.lora                         attach(sd, lora), save_lora("mine.safetensors", ...)

With keep = encode(sd, other pictures) it draws these, and what is like them, as before.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..diffusion import Cond, loss
from ..errors import DataError
from ..networks.lora import ATTENTION, LoRA, attach, detach, low_rank
from ..networks.recompute import recomputing
from ..networks.unet import UNet
from ..systems.system import StableDiffusion
from .latents import Latents
from .resume import dropped, times
from .train import TrainConfig, TrainStep, fit, train


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

    @torch.no_grad()
    def before(self, x_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """What the UNet predicts without the LoRA."""
        scale, self.lora.scale = self.lora.scale, 0.0
        try:
            return self(x_t, t, cond)
        finally:
            self.lora.scale = scale

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
    keep: Latents | None = None,
    recompute: bool = False,
    checkpoint=None,
) -> Iterator[TrainStep]:
    """Algorithm 1 for a new LoRA of sd's UNet, on latents; one TrainStep an update.

    step.model.lora is what learns, step.ema.lora its average; both can draw: step.ema is called
    like sd.unet. When the run is over, or given up, sd is as it was before.
    dataset: of latents and Conds, see `encode`.  rank, alpha, where: see `low_rank`.  config: its
    `predict` is sd's.  keep: other pictures, which are to be drawn as before, see `keeping`; an
    update costs twice as much with them.  checkpoint: see `train`; it holds A and B alone.
    """
    sd.unet.requires_grad_(False)
    torch.manual_seed(config.seed)
    lora = low_rank(sd, rank, alpha, where)
    attach(sd, lora)
    try:
        model, config = Learning(sd.unet, lora, recompute), replace(config, predict=sd.predict)
        if keep is None:
            yield from train(model, sd.schedule, dataset, config, checkpoint=checkpoint)
        else:
            objective = keeping(sd, keep, config)
            yield from fit(model, dataset, config, objective, checkpoint=checkpoint)
    finally:
        detach(sd, lora)


def keeping(sd: StableDiffusion, keep: Latents, config: TrainConfig) -> Callable:
    """objective(model, batch, generator) -> (L + 3 K) / 4 for `fit`: L as ever of own pictures, and
    of half as many others, with texts c of which a share p_uncond is dropped,

        K = E ||v_lora(x_t, c) - v(x_t, c)||^2,

    what the LoRA changes in a prediction v (learning without forgetting: Li & Hoiem 2016, arXiv
    1606.09282). Where it changes nothing K and its gradient are 0, whatever the noise; the loss of
    prior preservation pulls at the weights there all the same. Own texts are never dropped: what is
    drawn without a text is to stay.
    """
    if not len(keep):
        raise DataError("keep holds no pictures: pass some, or None")

    def objective(model: Learning, batch, generator: torch.Generator) -> Tensor:
        x_0, cond = batch
        n, T = len(x_0), sd.schedule.T
        t, eps = times(config, T, n, generator), torch.randn(x_0.shape, generator=generator)
        value = loss(model, sd.schedule, x_0, cond, t=t, eps=eps.to(x_0), predict=config.predict)
        n = max(1, n // 2)
        z_0, cond = keep[torch.randint(len(keep), (n,), generator=generator)]
        kept = torch.rand(n, generator=generator) >= config.p_uncond
        cond = dropped(cond, keep.uncond, kept.to(z_0.device))
        t, eps = times(config, T, n, generator), torch.randn(z_0.shape, generator=generator)
        x_t, t = sd.schedule.q_sample(z_0, t, eps.to(z_0)).to(x_0), t.to(x_0.device)
        cond = cond.map(lambda part: part.to(x_0.device))
        change = model(x_t, t, cond) - model.before(x_t, t, cond)
        return (value + 3 * change.square().mean()) / 4

    return objective
