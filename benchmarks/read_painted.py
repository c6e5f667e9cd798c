"""How often real painted digits are read back right, every scene equally likely.

    python benchmarks/read_painted.py [--n 10000] [--split test] [--seed 0]

The last line is one JSON object: the shares of digit, ink, ground, size, place found, of all, and
of the same MNIST digits, unpainted, that the classifier takes for what they are. It needs about a
millisecond a picture.
"""

import argparse
import json

from ddpm_edu import load
from ddpm_edu.datasets import images as data
from ddpm_edu.datasets import painted
from ddpm_edu.metrics import frechet as metrics
from ddpm_edu.metrics import obedience


def measure(n, split, seed):
    dataset, real, classifier = (
        painted.painted_digits(split, n, seed, held=None),
        data.mnist(split),
        load("mnist_classifier"),
    )
    shares = {}
    for start in range(0, n, 500):
        images, captions = (
            dataset.images(slice(start, start + 500)),
            dataset.captions(slice(start, start + 500)),
        )
        for name, share in obedience.fidelity(images, captions, classifier).items():
            shares[name] = shares.get(name, 0) + share * len(images) / n
    unpainted = real.subset(min(n, len(real)))
    return {
        "n": n,
        "split": split,
        **{name: round(share, 6) for name, share in shares.items()},
        "classifier_on_unpainted": round(
            metrics.accuracy(classifier, unpainted[:][0], unpainted.labels), 6
        ),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(measure(**vars(parser.parse_args()))))
