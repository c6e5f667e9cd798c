"""Training throughput on MNIST-sized pictures: ours beside the UNets of two well-known courses, in one process.

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/training_throughput.py                    images a second
    python benchmarks/training_throughput.py --quality 60       and each one's digits after 60 s of training

Rivals: diffusers' UNet2DModel with the settings of the Hugging Face course's class-conditional MNIST (unit 2: 1.7 M
parameters, class as four extra channels), and lucidrains' denoising-diffusion-pytorch Unet(dim=32), one channel, no class.
All train on the same batches with their usual optimizer (AdamW; ours as in recipes.SMALL), forward, backward and update.
Each is tried with its numbers in both orders in memory (`train` uses channels_last) and counts with its quicker one. Rounds
alternate, so that a slow moment of the machine hits all alike. The last line printed is one JSON object.
"""

import argparse
import itertools
import json
import platform
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from ddpm_edu import Cond, class_cond, last, load, noise, sample
from ddpm_edu.datasets.images import mnist
from ddpm_edu.diffusion import loss
from ddpm_edu.metrics import frechet as metrics
from ddpm_edu.training.optim import new_optimizer
from ddpm_edu.training.recipes import SMALL
from ddpm_edu.training.train import train

ORDERS = ("contiguous_format", "channels_last")


class HFCourse(nn.Module):
    """The class as an embedding of four numbers, repeated over the picture as extra channels."""

    def __init__(self):
        super().__init__()
        from diffusers import UNet2DModel

        self.embed = nn.Embedding(11, 4)
        self.model = UNet2DModel(
            sample_size=28,
            in_channels=5,
            out_channels=1,
            layers_per_block=2,
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )

    def forward(self, x_t, t, cond=Cond()):
        label = torch.where(cond.vector.sum(1) > 0, cond.vector.argmax(1), 10)
        planes = self.embed(label)[:, :, None, None].expand(-1, -1, *x_t.shape[2:])
        return self.model(torch.cat([x_t, planes], 1), t).sample


class Lucidrains(nn.Module):
    """Knows no classes; 28 is padded to 32, because its three halvings need a multiple of 8."""

    def __init__(self):
        super().__init__()
        from denoising_diffusion_pytorch import Unet

        self.model = Unet(dim=32, channels=1, flash_attn=False)

    def forward(self, x_t, t, cond=Cond()):
        return self.model(F.pad(x_t, (2, 2, 2, 2)), t.float())[..., 2:-2, 2:-2]


def contenders(dataset):
    torch.manual_seed(0)
    ours = SMALL.model(dataset)
    yield "ddpm_edu", ours, new_optimizer(ours, SMALL.train_unet), SMALL.train_unet.predict
    for name, rival in (("hf_course_unet2d", HFCourse), ("lucidrains_unet_dim32", Lucidrains)):
        model = rival()
        yield name, model, torch.optim.AdamW(model.parameters(), lr=1e-3), "eps"


def updates(model, optimizer, schedule, dataset, predict, batch_size, count):
    """Seconds that `count` updates take."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        dataset[torch.randint(len(dataset), (batch_size,), generator=generator)]
        for _ in range(count)
    ]
    started = time.perf_counter()
    for x_0, cond in batches:
        optimizer.zero_grad(set_to_none=True)
        loss(model, schedule, x_0, cond, predict=predict, generator=generator).backward()
        optimizer.step()
    return time.perf_counter() - started


def quality(name, model, schedule, dataset, seconds):
    """Train for `seconds` with our loop (rivals: AdamW at 1e-3, eps), draw 200 digits in 20 DDIM steps, ask the classifier."""
    import dataclasses

    rival = dict(
        lr=1e-3, predict="eps", optimizer="adamw", t_distribution="uniform", batch_size=128
    )
    config = dataclasses.replace(
        SMALL.train_unet, seconds=seconds, **({} if name == "ddpm_edu" else rival)
    )
    for step in train(model, schedule, dataset, config):
        pass
    labels = torch.arange(10).repeat_interleave(20)
    x = last(
        sample(
            step.ema.eval(),
            schedule,
            noise((1, 28, 28), range(200)),
            20,
            class_cond(labels),
            predict=config.predict,
            clip=1.0,
        )
    )
    classifier = load("mnist_classifier")
    return {
        "updates": step.step,
        "right": None if name.startswith("lucid") else metrics.accuracy(classifier, x, labels),
        "frechet": round(metrics.frechet_to_real(classifier, x), 2),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--quality",
        type=float,
        default=0,
        help="seconds of training each before its digits are classified",
    )
    args = parser.parse_args()
    torch.set_num_threads(2)
    dataset, schedule = mnist("train"), SMALL.schedule()
    result = {
        "benchmark": "training_throughput",
        "batch": args.batch,
        "threads": 2,
        "images_per_s": {},
        "memory_order": {},
        "parameters": {},
        "times_ours": {},
    }
    everyone, rates = {}, {}
    for order in ORDERS:
        for name, model, *rest in contenders(dataset):
            everyone[name, order] = model.to(memory_format=getattr(torch, order)), *rest
            result["parameters"][name] = sum(p.numel() for p in model.parameters())
    for _round, (key, (model, optimizer, predict)) in itertools.product(
        range(args.rounds + 1), everyone.items()
    ):
        count = 10 if key[0] == "ddpm_edu" else 1
        rate = (
            count
            * args.batch
            / updates(model, optimizer, schedule, dataset, predict, args.batch, count)
        )
        if _round:  # the first round warms up
            rates.setdefault(key, []).append(rate)
    best = {
        name: max(ORDERS, key=lambda order: statistics.median(rates[name, order]))
        for name in result["parameters"]
    }
    for name, order in best.items():
        values = rates[name, order]
        result["images_per_s"][name] = round(statistics.median(values), 1)
        result["memory_order"][name] = order
        result["times_ours"][name] = round(
            statistics.median(a / b for a, b in zip(rates["ddpm_edu", best["ddpm_edu"]], values)), 1
        )
    if args.quality:
        result["quality"] = {"seconds": args.quality} | {
            name: quality(name, model, schedule, dataset, args.quality)
            for name, model, *_ in contenders(dataset)
        }
    print(json.dumps(result | {"python": platform.python_version(), "torch": torch.__version__}))
