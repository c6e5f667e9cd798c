"""A small training run for test_train.py and test_resume.py, also as its own process: resumed, or shared by several.

[accelerate launch ...] train_run.py OUT.json [--share] [--checkpoint FILE] [--stop N] [--seconds S]
"""

import argparse
import dataclasses
import json
import os
import sys

import torch
from torch import nn

from ddpm_edu import Cond, Schedule
from ddpm_edu.networks.mlp import MLP
from ddpm_edu.training.train import TrainConfig, train

SCHEDULE = Schedule.linear(100, 1e-3, 0.1)


class Points:
    """Points on two circles, with the circle as a one-hot vector."""

    def __init__(self, n=60):
        angle = torch.arange(n) * 2.399963
        self.label = torch.arange(n) % 2
        self.x = (1 + self.label[:, None]) / 2 * torch.stack([angle.cos(), angle.sin()], 1)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], Cond(vector=nn.functional.one_hot(self.label[index], 2).float())


class Dropping(MLP):
    """Draws from the global generator in every call, as dropout does: resuming must restore that one too."""

    def forward(self, x_t, t, cond=Cond()):
        return super().forward(nn.functional.dropout(x_t, 0.1, self.training), t, cond)


def new_model(seed=0, kind=Dropping, **sizes):
    torch.manual_seed(seed)
    return kind(**{"hidden": 16, "layers": 1, "vector": 2, **sizes})


CONFIG = TrainConfig(steps=20, batch_size=16, warmup=5, lr=1e-2, save_every=10)


def run(config=CONFIG, model=None, dataset=None, stop=10**9, **options):
    """The steps of one run, up to step `stop`."""
    steps, model = [], new_model() if model is None else model
    dataset = Points() if dataset is None else dataset
    for step in train(model, SCHEDULE, dataset, config, **options):
        steps.append(step)
        if step.step == stop:
            break
    return steps


def numbers(module):
    """A copy of all weights."""
    return {k: v.clone() for k, v in module.state_dict().items()}


def sums(module):
    """One number a weight."""
    return [v.double().sum().item() for v in module.state_dict().values()]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("out")
    args.add_argument("--share", action="store_true")
    args.add_argument("--checkpoint")
    args.add_argument("--stop", type=int, default=10**9)
    args.add_argument("--seconds", type=float, default=0.0)
    args = args.parse_args()
    torch.set_num_threads(1)
    accelerator, rank = None, 0
    if args.share:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        rank = accelerator.process_index
    # each process starts from other weights on purpose: rank 0's must win; no dropout, which would differ by process
    model = new_model(rank, MLP if args.share else Dropping)
    config = dataclasses.replace(CONFIG, seconds=args.seconds)
    steps = run(config, model, stop=args.stop, checkpoint=args.checkpoint, accelerator=accelerator)
    weights = {"model": sums(steps[-1].model), "ema": sums(steps[-1].ema)}
    with open(f"{args.out}.{rank}", "w") as f:
        json.dump(
            {
                "losses": [s.loss for s in steps],
                "world": accelerator.num_processes if accelerator else 1,
                **weights,
            },
            f,
        )
    if accelerator:
        accelerator.end_training()
        sys.stdout.flush()
        os._exit(0)  # gloo's threads may abort a process that unwinds while they still run


if __name__ == "__main__":
    main()
