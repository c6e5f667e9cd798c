"""The rules of the challenge: what is fixed, what is free, and how points are counted. Notebook 18.

An entry is one Python file of at most 16 KB with two functions:

    def train(net, data, clock):              # -> net, or its state_dict
        net    network(), with random weights: net(x_t, t, cond) -> (B, 1, 28, 28)
        data   MNIST's 60,000 digits for training: data[index] -> (x_0 (B, 1, 28, 28), cond)
        clock  clock.done() grows from 0 to 1 with the processor time: stop there

    def sample(net, x_T, labels, evaluations):      # -> pictures (N, 1, 28, 28) in [-1, 1]
        net          the trained network, which the judge runs, and counts
        x_T          N(0, I), (N, 1, 28, 28)
        labels       (N,) the digits that are wanted, class_cond(labels) is their cond
        evaluations  1, 2, 4 or 8: how often each picture may be evaluated. A call of `net` with B
                     pictures counts B; guidance asks twice a step, so it costs twice.

Schedule, loss, optimizer, sampler, and what the network's output means, are free. `sample` runs in
a new process each time, which holds no weights and sees no data: all it has is `net`.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import in_range, sizes, whole
from ..networks.unet import SpaceToDepth, UNet
from ..training.recipes import SMALL, start_at_zero

BUDGETS = (1, 2, 4, 8)  # evaluations a picture
SHAPE = (1, 28, 28)
LARGEST = 16_000  # bytes of an entry's file: code, no weights


@dataclass(frozen=True)
class Rules:
    """What an entry may use."""

    # of training, on two cores: 2 x seconds of processor time, whatever else the machine does
    seconds: float = 30.0
    pictures: int = 1000  # drawn with each number of evaluations, as many of each digit
    sampling: float = 10.0  # processor seconds of `sample` itself, the network is not counted
    patience: float = 5.0  # by the clock on the wall, as many times the processor time
    memory: int = 2 * 2**30  # bytes, besides those that PyTorch needs

    def __post_init__(self):
        in_range("seconds", self.seconds, 0.5, 3600, "of training, on two cores")
        in_range("sampling", self.sampling, 0.5, 3600)
        in_range("patience", self.patience, 1, 1000)
        sizes(self, memory=(2**20, 2**45))
        whole("pictures", self.pictures, 100, 10_000, "the Frechet distance needs some")

    @property
    def budget(self) -> float:
        """Processor seconds for training."""
        return 2 * self.seconds


def network() -> nn.Module:
    """The network of every entry: notebook 04's UNet, 73,364 parameters.

    (x_t (B, 1, 28, 28), t (B,), Cond(vector (B, 10))) -> (B, 1, 28, 28); its answer is 0 at first.
    """
    return SpaceToDepth(start_at_zero(UNet(SMALL.unet)), SMALL.patch)


class Clock:
    """Processor time of this process, which a busy neighbour does not use up."""

    def __init__(self, budget: float):
        self.budget = budget

    def used(self) -> float:
        """Seconds of processor time, of all threads."""
        return time.process_time()

    def done(self) -> float:
        """The share of the budget that is used: train while it is below 1."""
        return self.used() / self.budget


def labels_of(n: int) -> Tensor:
    """(n,) 0, 1, ..., 9, 0, 1, ...: as many of each digit."""
    return torch.arange(n) % 10


def points(scores: dict) -> float:
    """Mean over the budgets of 100 accuracy / (1 + Frechet distance): 100 for perfect pictures.

    scores: {evaluations: {"accuracy", "frechet"}}.
    """
    return sum(of_one(score) for score in scores.values()) / len(scores)


def of_one(score: dict) -> float:
    """The points of one number of evaluations."""
    return 100 * score["accuracy"] / (1 + score["frechet"])
