"""Run by test_checkpoint.py: save in an endless loop in a child, read the file all the while, kill -9 the child at a random
moment, read it once more; many times.

    python save_and_die.py FOLDER ROUNDS        last line: one JSON object {"loaded": ..., "interrupted": ...}
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from ddpm_edu.files.tensors import load_tensors, save_tensors

torch.set_num_threads(1)
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
path = folder / "run.safetensors"


def state(k):
    return {
        f"w{i}": torch.full((200_000,), float(k)) for i in range(4)
    }  # 3 MB: long enough to be hit in the middle


def save_forever(k):
    while True:
        k += 1
        save_tensors(path, state(k), {"k": k})


def read(last, alone):
    """The number in the file: the same in every tensor, and never below the last one seen. While somebody saves, the
    metadata may be one save older than the tensors: safetensors opens the file once for each."""
    tensors, meta = load_tensors(path)
    k = int(tensors["w0"][0])
    assert (
        k >= last
        and all((t == k).all() for t in tensors.values())
        and (meta["k"] == k or not alone)
    ), (last, k, meta)
    return k


save_tensors(path, state(0), {"k": 0})
random.seed(0)
last = loaded = interrupted = 0
for _ in range(rounds):
    child = os.fork()
    if child == 0:
        try:
            save_forever(last)
        finally:
            os._exit(1)
    end = time.perf_counter() + random.uniform(0.005, 0.08)
    try:
        while time.perf_counter() < end:
            last, loaded = read(last, alone=False), loaded + 1
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself: saving failed"
    last, loaded = read(last, alone=True), loaded + 1
    interrupted += bool(list(folder.glob("*.part")))
save_tensors(path, state(last), {"k": last})
left = len(list(folder.iterdir())) - 1
print(json.dumps({"loaded": loaded, "saves": last, "interrupted": interrupted, "left": left}))
