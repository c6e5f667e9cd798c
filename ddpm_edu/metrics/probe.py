"""A linear probe: does a picture show a class that CLIP has no word for? Notebook 17.

Radford et al. 2021 (arXiv 2103.00020, section 3.2): a linear classifier on CLIP's picture features.
Here it is fitted in one line, by least squares with a small ridge.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..datasets.emoji import emoji
from ..datasets.zibs import zibs
from ..errors import ShapeError
from ..networks.clip import CLIP


def probe(yes: Tensor, no: Tensor, alarms: float = 0.01, ridge: float = 1e-3) -> Callable:
    """f(features (B, D)) -> (B,) bool, from features of the class (N, D) and of all else (M, D).

    beta = argmin mean_yes (x beta - 1)^2 + mean_no (x beta + 1)^2 + ridge, and a threshold that the
    share `alarms` of `no` passes.
    """
    if yes.ndim != 2 or no.ndim != 2 or yes.shape[1] != no.shape[1]:
        raise ShapeError(f"yes {tuple(yes.shape)}, no {tuple(no.shape)}: pass (N, D) and (M, D)")
    middle = torch.cat([yes, no]).mean(0)
    with_one = lambda x: torch.cat([x - middle, x.new_ones(len(x), 1)], dim=1)
    products, target = 0.0, 0.0
    for x, sign in ((with_one(yes), 1.0), (with_one(no), -1.0)):
        products = products + x.T @ x / len(x)
        target = target + sign * x.mean(0)
    ridge = ridge * products.diagonal().mean() * torch.eye(len(target))
    beta = torch.linalg.solve(products + ridge, target)
    threshold = (with_one(no) @ beta).quantile(1 - alarms)
    return lambda x: with_one(x) @ beta > threshold


@torch.no_grad()
def features(clip: CLIP, x: Tensor, batch: int = 250) -> Tensor:
    """What CLIP's vision transformer makes of pictures (B, 3, H, W), before its projection."""
    return torch.cat([clip.vision(part).pooler_output for part in x.split(batch)])


def zib_probe(clip: CLIP) -> Callable:
    """f(pictures (B, 3, 64, 64)) -> (B,) bool: is it a zib?

    Fitted to 144 zibs of other seeds than the training pictures have, and to 1,611 emoji; the
    first 300 of `emoji_order` are left out, to test it.
    """
    made = torch.cat([zibs(96, seed=50)[:][0], zibs(48, seed=51, known=False)[:][0]])
    rest = emoji()[emoji_order()[300:]][0]
    fitted = probe(features(clip, made), features(clip, rest))
    return lambda x: fitted(features(clip, x))


def emoji_order() -> Tensor:
    """The 1,911 emoji in a random order, that of benchmarks/emoji_by_name.py."""
    return torch.randperm(len(emoji()), generator=torch.Generator().manual_seed(0))
