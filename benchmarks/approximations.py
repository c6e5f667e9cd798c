"""What is faster because it computes something else: how far off are the pictures? CPU, two minutes.

    python benchmarks/approximations.py

The MNIST network that ships draws the same digits (same noise, same classes, guidance 1.7) in each way. `rms` is the root
mean square difference of pictures in [-1, 1]: "steps" from 250 steps of DDIM; "interval" (guidance at these times t only)
from the same run with guidance throughout, DPM-Solver++(2M) in 20 steps. `passes` is how often the network sees each
picture: a guided step is two. `right` is the share of digits that a classifier takes for the one asked for.
These are errors of this small network; how much a big one minds is for its own pictures to say. The error of 8-bit
products is in gpu_sampling.py, "throughput": this network has no attention. The last line printed is one JSON object.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from figures import provenance

from ddpm_edu import SAMPLERS, class_cond, guided, last, load, noise
from ddpm_edu.metrics import frechet as metrics

STEPS = {
    f"{sampler} {steps}": dict(steps=steps, sampler=sampler)
    for sampler in ("ddim", "heun", "dpmpp_2m", "ipndm")
    for steps in (5, 10, 20)
}
INTERVALS = {
    f"t in {low}..{high}": dict(interval=(low, high))
    for low, high in ((200, 999), (0, 800), (200, 800), (400, 800))
}


def draw(trained, x_T, cond, steps=20, sampler="dpmpp_2m", interval=None):
    """(pictures, passes a picture)"""
    passes = []

    def counted(x_t, t, cond):
        passes.append(len(x_t) / len(x_T))
        return trained.model(x_t, t, cond)

    model = guided(counted, 1.7, interval=interval)
    how = dict(predict=trained.predict, clip=1.0)
    x = last(SAMPLERS[sampler](model, trained.schedule, x_T, steps, cond, **how))
    return x.clamp(-1, 1), sum(passes)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--reference", type=int, default=250, help="steps of the reference")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "approximations.json"
    )
    args = parser.parse_args(argv)
    trained, classifier = load("mnist"), load("mnist_classifier")
    trained.model.eval().requires_grad_(False)
    labels = torch.arange(args.pictures) % 10
    x_T, cond = noise((1, 28, 28), range(args.pictures)), class_cond(labels)
    reference, _ = draw(trained, x_T, cond, args.reference, "ddim")
    base, _ = draw(trained, x_T, cond)
    results = {"steps": {}, "interval": {}}
    for group, jobs, against in (("steps", STEPS, reference), ("interval", INTERVALS, base)):
        for name, job in jobs.items():
            x, passes = draw(trained, x_T, cond, **job)
            results[group][name] = {
                "rms": round((x - against).square().mean().sqrt().item(), 4),
                "passes": passes,
                "right": round(metrics.accuracy(classifier, x, labels), 3),
            }
            print(f"{group:9} {name:16}", results[group][name], flush=True)
    result = {
        "benchmark": "approximations",
        "reference": {
            "right": round(metrics.accuracy(classifier, reference, labels), 3),
            "steps": args.reference,
        },
        "pictures": args.pictures,
        **results,
        **provenance(),
        "command": " ".join(
            ["python benchmarks/approximations.py", *(argv if argv is not None else sys.argv[1:])]
        ),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
