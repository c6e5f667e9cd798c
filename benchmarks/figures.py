"""What beyond.py and editing.py share: each figure by its name, as one line of JSON."""

import datetime
import json
import platform

import torch


def report(ways: dict, args, script: str) -> None:
    """Print what ways[args.what](args) gives, with the command, date, version and device."""
    torch.set_num_threads(1)
    result = ways[args.what](args)
    about = {
        "command": f"python benchmarks/{script} {args.what} --n {args.n}",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
    }
    print(json.dumps(about | result))
