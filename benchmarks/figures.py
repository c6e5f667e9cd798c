"""What the scripts share: when and on what something was measured; one figure by its name, as JSON."""

import datetime
import json
import platform

import torch


def provenance() -> dict[str, str]:
    """For a card: device, date, versions."""
    n = torch.get_num_threads()
    return {
        "device": f"{platform.machine()} CPU, {n} thread{'s' * (n > 1)}",
        "date": datetime.date.today().isoformat(),
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
    }


def report(ways: dict, args, script: str) -> None:
    """Print what ways[args.what](args) gives, with the command, date, version and device."""
    torch.set_num_threads(1)
    result = ways[args.what](args)
    command = f"python benchmarks/{script} {args.what} --n {args.n}"
    print(json.dumps({"command": command, **provenance(), **result}))
