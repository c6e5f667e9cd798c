"""Class-conditional MNIST from random weights in S seconds of wall time, then 1,000 digits.

    python benchmarks/mnist_minute.py --seconds 60 --save digits.npz
    python benchmarks/mnist_minute.py --seconds 0 --save digits.npz       the weights that ship instead

The clock starts before the network is built and stops when training ends; loading the data, the classifier and drawing the
digits are not part of it. Writes images (uint8, N x 28 x 28) and labels; the last line printed is one JSON object.
"""

import argparse
import dataclasses
import json
import platform
import time

import numpy as np
import torch
import tqdm.auto  # noqa: F401  its import takes a second that is not training

from ddpm_edu import SAMPLERS, class_cond, generators, guided, last, load, noise
from ddpm_edu.datasets.images import mnist, to_uint8
from ddpm_edu.metrics import frechet as metrics
from ddpm_edu.training.optim import new_optimizer
from ddpm_edu.training.recipes import MINUTE
from ddpm_edu.training.share import shared
from ddpm_edu.training.train import progress, train


def draw(model, schedule, predict, labels, guidance, steps, sampler, clip):
    """One digit a label, seed i for picture i; 250 at a time."""
    parts = []
    for some in torch.arange(len(labels)).split(250):
        x_T, cond = noise((1, 28, 28), some), class_cond(labels[some])
        parts.append(
            last(
                SAMPLERS[sampler](
                    guided(model, guidance),
                    schedule,
                    x_T,
                    steps,
                    cond,
                    predict=predict,
                    clip=clip,
                    generator=generators(some + 10**6),
                )
            )
        )  # other seeds than x_T's
    return torch.cat(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=60, help="training time; 0 takes the shipped weights"
    )
    parser.add_argument("--save", default="mnist_minute.npz")
    parser.add_argument(
        "--steps", type=int, default=20, help="model evaluations a digit, at most 20 for the goal"
    )
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the recipe's)")
    parser.add_argument("--sampler", choices=list(SAMPLERS), help="(default: the recipe's)")
    parser.add_argument("--threads", type=int, default=2, help="that draw")
    parser.add_argument("--processes", type=int, default=2, help="that share each batch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    dataset = mnist("train")
    result = {"benchmark": "mnist_minute", "seconds": args.seconds, "updates": 0}
    if args.seconds:
        started = time.perf_counter()
        model, schedule = MINUTE.model(dataset), MINUTE.schedule()
        # PyTorch's first optimizer takes a second to import, which is part of the time, too
        new_optimizer(model, MINUTE.train_unet)
        left = args.seconds - (time.perf_counter() - started)
        config = dataclasses.replace(MINUTE.train_unet, seconds=left)
        given = (model, schedule, dataset, config)
        for step in progress(shared(train, *given, processes=args.processes)):
            pass
        trained = time.perf_counter() - started
        model, predict, meta = step.ema, config.predict, {"clip": 1.0}
        meta |= {k: getattr(MINUTE, k) for k in ("guidance", "sampler")}
        result |= {
            "trained_s": round(trained, 2),
            "updates": step.step,
            "images_per_s": round(step.step * config.batch_size / trained),
        }
    else:
        model, schedule, predict, meta = load("mnist")
    guidance = meta["guidance"] if args.guidance is None else args.guidance
    sampler = args.sampler or meta["sampler"]

    labels = torch.arange(10).repeat_interleave(100)
    started = time.perf_counter()
    x = draw(model.eval(), schedule, predict, labels, guidance, args.steps, sampler, meta["clip"])
    result |= {
        "sampling_s": round(time.perf_counter() - started, 1),
        "steps": args.steps,
        "guidance": guidance,
        "sampler": sampler,
    }
    images = to_uint8(x)[:, 0].numpy()
    np.savez_compressed(args.save, images=images, labels=labels.numpy())

    classifier = load("mnist_classifier")
    shown = torch.from_numpy(images).float()[:, None] / 127.5 - 1  # as saved, 8 bits a pixel
    test = mnist("test")
    shuffled = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    drawn = torch.cat([shuffled[test.labels[shuffled] == c][:100] for c in range(10)])
    real = test[drawn][0]
    result |= {
        "right": metrics.accuracy(classifier, shown, labels),
        "frechet": round(metrics.frechet_to_real(classifier, shown), 3),
        "real": {
            "right": metrics.accuracy(classifier, real, test.labels[drawn]),
            "frechet": round(metrics.frechet_to_real(classifier, real), 3),
        },
        "parameters": sum(p.numel() for p in model.parameters()),
        "threads": args.threads,
        "processes": args.processes,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    print(json.dumps(result))
