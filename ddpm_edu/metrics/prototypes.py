"""Which of a hundred things is it, when CLIP has no word for one of them? Notebook 17.

CLIP's texts cannot name a new class, but its pictures can: a class is the mean of what CLIP makes
of some of its pictures, and a picture belongs to the class it is nearest to (Snell et al. 2017,
arXiv 1703.05175: prototypes).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.emoji import emoji
from ..datasets.zibs import zibs
from ..errors import DataError
from ..networks.clip import CLIP


@torch.no_grad()
def prototypes(clip: CLIP, classes: list[Tensor]) -> Tensor:
    """(N, P) unit vectors, one a class, of pictures (n, 3, H, W) of each.

    DataError for no classes, or a class without pictures.
    """
    if not classes or not all(len(x) for x in classes):
        raise DataError(f"{len(classes)} classes, and each needs a picture: pass some of each")
    features = clip.image(torch.cat(classes)).split([len(x) for x in classes])
    return F.normalize(torch.stack([f.mean(0) for f in features]), dim=-1)


@torch.no_grad()
def nearest(clip: CLIP, x: Tensor, classes: Tensor) -> Tensor:
    """Of pictures (B, 3, H, W), the index (B,) of the prototype (N, P) with the highest cosine."""
    return (clip.image(x) @ classes.T).argmax(1)


def zib_among(clip: CLIP) -> Callable:
    """f(pictures (B, 3, 64, 64)) -> (B,) of 0 to 99: 0 is a zib, known from the 16 pictures that
    are there for training; k is the emoji `emoji_order()[k - 1]`, known from its picture."""
    x_0, _ = emoji()[emoji_order()[:99]]
    classes = prototypes(clip, [zibs(16)[:][0], *x_0[:, None]])
    return lambda x: nearest(clip, x, classes)


def emoji_order() -> Tensor:
    """The 1,911 emoji in a random order, that of benchmarks/emoji_by_name.py."""
    return torch.randperm(len(emoji()), generator=torch.Generator().manual_seed(0))
