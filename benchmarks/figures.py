"""What the scripts share: when and on what something was measured; one figure by its name, as
JSON; a recorded run, with its card."""

import datetime
import json
import platform

import numpy as np
import torch

from ddpm_edu.paths import data_folder


def provenance() -> dict[str, str]:
    """For a card: device, date, versions."""
    n = torch.get_num_threads()
    return {
        "device": f"{platform.machine()} CPU, {n} thread{'s' * (n > 1)}",
        "date": datetime.date.today().isoformat(),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def keep(name: str, card: dict, arrays: dict) -> int:
    """data/recorded/NAME.npz of a card and arrays; its bytes."""
    path = data_folder() / "recorded" / f"{name}.npz"
    np.savez_compressed(path, card=json.dumps(card), **arrays)
    return path.stat().st_size


def report(ways: dict, args, script: str) -> None:
    """Print what ways[args.what](args) gives, with the command, date, version and device."""
    torch.set_num_threads(1)
    result = ways[args.what](args)
    command = f"python benchmarks/{script} {args.what} --n {args.n}"
    print(json.dumps({"command": command, **provenance(), **result}))
