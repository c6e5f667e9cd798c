"""CIFAR-10 out of an archive of JPEG bytes, as folders of pictures that `cifar10` reads.

    python benchmarks/unpack_cifar10.py cifar10_jpeg.npz FOLDER;  export DDPM_EDU_CIFAR10=FOLDER

The archive holds, for "train" and "test", all files end to end, where each begins, and the labels.
The last line is one JSON object: how many pictures were written.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from ddpm_edu.datasets.images import CIFAR10_CLASSES


def unpack(archive, folder):
    counts = {}
    with np.load(archive, allow_pickle=False) as file:
        for split in ("train", "test"):
            jpeg, offset, labels = (file[f"{split}_{key}"] for key in ("jpeg", "offset", "label"))
            for name in CIFAR10_CLASSES:
                Path(folder, split, name).mkdir(parents=True, exist_ok=True)
            for i, label in enumerate(labels):
                path = Path(folder, split, CIFAR10_CLASSES[label], f"{i:05}.jpg")
                path.write_bytes(jpeg[offset[i] : offset[i + 1]].tobytes())
            counts[split] = len(labels)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("archive")
    parser.add_argument("folder")
    print(json.dumps(unpack(**vars(parser.parse_args()))))
