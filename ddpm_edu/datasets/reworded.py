"""A few pictures whose captions come in other words each time. Notebook 17.

Sixteen captions are soon known by heart, as wholes. Of "zib, smiling, red hat" the first part stays
where it is; the others come in any order, and each is left out now and then: so each part has to
say what it says alone, and a new combination of them is understood.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import in_range, whole


@dataclass(frozen=True, eq=False)
class Reworded:
    """`dataset[index]` -> (x_0, captions: list of B): every picture n times, see `reworded`."""

    dataset: object  # of (x_0, captions)
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, index) -> tuple[Tensor, list[str]]:
        index = torch.arange(len(self))[index]
        x_0, _ = self.dataset[index % len(self.dataset)]
        return x_0, [self.captions[i] for i in index.tolist()]


def reworded(dataset, n: int = 16, *, drop: float = 0.3, seed: int = 0) -> Reworded:
    """Every picture of `dataset` n times, with captions of its own each time.

    drop: how often a part of a caption, from comma to comma, is left out; never the first one.
    """
    whole("n", n, 1, 10_000, "times")
    in_range("drop", drop, 0, 1)
    random = np.random.default_rng(seed)
    texts = dataset[torch.arange(len(dataset))][1]
    captions = [_other_words(text, drop, random) for _ in range(n) for text in texts]
    return Reworded(dataset, tuple(captions))


def _other_words(caption: str, drop: float, random: np.random.Generator) -> str:
    first, *rest = caption.split(", ")
    kept = [part for part in random.permutation(rest).tolist() if random.random() >= drop]
    return ", ".join([first, *kept])
