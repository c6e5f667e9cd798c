"""What a busy neighbour costs: one guided step of the emoji model, quiet and beside a process that
spins on one core.

    python benchmarks/busy_neighbour.py                                 # about 3 minutes
    python benchmarks/busy_neighbour.py --spins default 500 --threads 2 --rounds 3

OpenMP's threads wait for each other at the end of every layer. GOMP_SPINCOUNT says how often a
waiting one looks again before it sleeps: one that spins stands in the way of the thread it waits
for as soon as there are more threads than cores. It is read when torch is imported, so each setting
gets a process of its own. Quiet and busy stretches alternate, and medians are compared: what else
runs on the machine is in both. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

SPIN = [sys.executable, "-c", "while True: pass"]


def measure(threads: int, rounds: int, steps: int, batch: int) -> dict:
    """Milliseconds a step, medians over all quiet and all busy stretches, in this process."""
    import torch

    from ddpm_edu import load, noise
    from ddpm_edu.systems.pipeline import prompted

    torch.set_num_threads(threads)
    sd = load("emoji")
    model, side = prompted(sd, ["red apple"] * batch, [""] * batch), sd.config.size // sd.vae.factor
    x, t = noise((sd.config.vae.latent, side, side), range(batch)), torch.full((batch,), 500)

    def stretch() -> list[float]:
        times = []
        for _ in range(steps):
            started = time.perf_counter()
            model(x, t)
            times.append(1000 * (time.perf_counter() - started))
        return times

    found = {"quiet": [], "busy": []}
    with torch.no_grad():
        stretch()
        for _ in range(rounds):
            found["quiet"] += stretch()
            neighbour = subprocess.Popen(SPIN)
            try:
                found["busy"] += stretch()
            finally:
                neighbour.kill()
                neighbour.wait()
    medians = {name: statistics.median(times) for name, times in found.items()}
    shown = {name: round(value, 1) for name, value in medians.items()}
    return shown | {"times_slower": round(medians["busy"] / medians["quiet"], 2)}


def in_a_process(spin: str, threads: int, args) -> dict:
    env = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    if spin != "default":
        env["GOMP_SPINCOUNT"] = spin
    sizes = [f"--rounds={args.rounds}", f"--steps={args.steps}", f"--batch={args.batch}"]
    command = [sys.executable, __file__, f"--one={threads}", *sizes]
    out = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout
    return {"spins": spin, "threads": threads, **json.loads(out.splitlines()[-1])}


def main() -> None:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--spins", nargs="+", default=["default", "0", "500", "1000", "2000", "10000"])
    p.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    p.add_argument("--rounds", type=int, default=3, help="a quiet and a busy stretch each")
    p.add_argument("--steps", type=int, default=8, help="of one stretch")
    p.add_argument("--batch", type=int, default=10)
    p.add_argument("--one", type=int, help=argparse.SUPPRESS)  # threads; what the processes run
    args = p.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.rounds, args.steps, args.batch)))
        return
    rows = []
    for threads in args.threads:
        for spin in args.spins if threads > 1 else args.spins[:1]:  # one thread waits for none
            rows.append(in_a_process(spin, threads, args))
            print(rows[-1], flush=True)
    print(json.dumps({"cores": os.cpu_count(), "batch": args.batch, "rows": rows}))


if __name__ == "__main__":
    main()
