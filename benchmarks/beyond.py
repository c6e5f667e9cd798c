"""The other plans on the painted digits, figure by figure; the last line is one JSON object.

python benchmarks/beyond.py codes --model painted-dalle       in order, or masked: obeyed, seconds
"""

import argparse
import datetime
import json
import platform
import time

import torch

from ddpm_edu import load
from ddpm_edu.datasets.painted import painted_digits, prompts
from ddpm_edu.metrics.obedience import fidelity


def obeyed(draw, n: int, size: int = 50) -> dict:
    """draw(prompts, seed) -> pictures: shares of n with all five words, and with three, right.

    Of combinations that were seen in training, and of those that were held out.
    """
    found, started = {}, time.process_time()
    for kind, held in (("seen", False), ("held_out", True)):
        texts = prompts(n, seed=1, held=held)
        parts = [draw(texts[k : k + size], k) for k in range(0, n, size)]
        read_as = fidelity(torch.cat(parts), texts)
        found[kind] = {name: round(read_as[name], 4) for name in ("all", "main", "digit")}
    return found | {"cpu_seconds_a_picture": (time.process_time() - started) / (2 * n)}


def codes(args) -> dict:
    """A system of codes: its copies, what it draws, seconds a picture."""
    system = load(args.model or "painted-dalle")
    x, captions = painted_digits("test", args.n, seed=1, held=None)[:]
    with torch.no_grad():
        copies = system.decode(system.encode(x))
    draw = lambda texts, seed: system.draw(texts, seed=seed)
    return {
        "model": system.config.name,
        "parameters": sum(p.numel() for p in system.parameters()),
        "copies": fidelity(copies, captions)["all"],
        **obeyed(draw, args.n),
    }


WAYS = {f.__name__: f for f in (codes,)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=WAYS)
    parser.add_argument("--n", type=int, default=500, help="pictures of each kind (500)")
    parser.add_argument("--model", help="a name or a file, not what ships")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = WAYS[args.what](args)
    about = {
        "command": f"python benchmarks/beyond.py {args.what} --n {args.n}",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
    }
    print(json.dumps(about | result))


if __name__ == "__main__":
    main()
