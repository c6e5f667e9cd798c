"""unCLIP's prior, trained by the same `train` on CLIP's embeddings of pictures. Notebook 15."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..datasets.painted import painted_digits
from ..diffusion import Cond
from ..files.load import Pretrained, load
from ..networks.clip import CLIP
from ..networks.prior import Prior, PriorConfig
from ..schedule import Schedule
from ..systems.prior import caption_cond
from .latents import distinct, in_pieces
from .train import TrainConfig, train
from .whole_system import last_step


@dataclass(frozen=True)
class PriorRecipe:
    """The CLIP whose embeddings are drawn, sizes and the run."""

    name: str
    clip: str  # a source of `load`
    dataset: Callable  # () -> dataset[index] -> (x_0, captions)
    prior: PriorConfig
    train: TrainConfig
    n: int = 30000  # pictures


# unCLIP asks for x_0, too (section 2.2, eq. 2).
PAINTED_PRIOR = PriorRecipe(
    "painted-prior",
    "painted_clip",
    painted_digits,
    PriorConfig(width=64),
    TrainConfig(steps=1500, batch_size=64, lr=1e-2, ema=0.995, predict="x_0", optimizer="muon"),
)
PRIOR_RECIPES = {PAINTED_PRIOR.name: PAINTED_PRIOR}


@dataclass(frozen=True, eq=False)
class Embeddings:
    """embeddings[index] -> (x_0 (B, P), Cond(context, vector)); a dropped caption is that of ""."""

    x_0: Tensor  # (N, P), see `Prior.standard`
    texts: Cond  # of M captions
    row: Tensor  # (N,): which of them is a picture's
    uncond: Cond

    def __len__(self) -> int:
        return len(self.x_0)

    def __getitem__(self, index) -> tuple[Tensor, Cond]:
        return self.x_0[index], self.texts.map(lambda x: x[self.row[index]])


@torch.no_grad()
def embeddings(prior: Prior, clip: CLIP, dataset, n: int) -> Embeddings:
    """The first n pictures and their captions through CLIP; `prior` learns the mean of them."""
    captions, z = [], []
    for part in torch.arange(min(n, len(dataset))).split(500):
        x_0, own = dataset[part]
        z.append(clip.image(x_0))
        captions += own
    z = torch.cat(z)
    texts, row = distinct(captions)
    read = lambda piece: caption_cond(clip, piece)
    prior.measure(z)
    return Embeddings(prior.standard(z), in_pieces(read, texts), row, read([""]))


def train_prior(
    recipe: PriorRecipe, checkpoint=None, log: Callable = iter, device="cpu"
) -> Pretrained:
    """Algorithm 1 on embeddings; resumable like every run."""
    clip, schedule = load(recipe.clip), Schedule.cosine()
    torch.manual_seed(recipe.train.seed)
    prior = Prior(recipe.prior)
    data = embeddings(prior, clip, recipe.dataset(), recipe.n)
    prior.to(device)
    step = last_step(log(train(prior, schedule, data, recipe.train, checkpoint=checkpoint)))
    prior = step.ema.cpu().eval().requires_grad_(False)
    return Pretrained(prior, schedule, recipe.train.predict, {"embeds": recipe.clip})
