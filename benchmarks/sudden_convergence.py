"""The recorded trainings of a ControlNet, notebook 10: how well hints are followed on the way.

    python benchmarks/sudden_convergence.py zeros     the recipe of painted-edges, as it ships
    python benchmarks/sudden_convergence.py random    without zero convolutions: PyTorch's own start

Every 50 updates the raw weights draw the same 16 hints from the same noise, with their captions and
without a text, where the hint alone tells. Each run is written to data/recorded/control_NAME.npz;
the last line printed is one JSON object, the file's card.
"""

import argparse
import copy
import datetime
import json
import platform
import time
from dataclasses import asdict, replace

import numpy as np
import torch

from ddpm_edu.datasets.hints import edges
from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.datasets.painted import painted_digits
from ddpm_edu.diffusion import last
from ddpm_edu.files.load import load, save
from ddpm_edu.metrics.obedience import edge_f1, fidelity
from ddpm_edu.paths import data_folder
from ddpm_edu.systems.control import controlled
from ddpm_edu.systems.pipeline import decode, text_to_image
from ddpm_edu.training.control import PAINTED_EDGES, train_control
from ddpm_edu.training.whole_system import thin

EVERY, SHOWN, N = 50, 4, 16  # updates between two looks; pictures kept of each; hints


def not_zero(net):
    """A ControlNet whose zero convolutions start as any other convolution."""
    for conv in (*net.zeros, net.zero_mid, net.hint[-1]):
        conv.reset_parameters()
    return net


RUNS = {"zeros": lambda net: net, "random": not_zero}


class Watch:
    """Draws from hints of test digits, and scores, before and during a training."""

    def __init__(self, sd):
        self.sd = sd
        self.x, self.texts = painted_digits("test", N, held=None)[torch.arange(N)]
        self.hint, self.drawing = edges(self.x), 0.0
        self.shots, self.pictures, self.losses = [], [], []

    def look(self, net, update: int) -> None:
        started = time.process_time()
        asked, alone = self.draw(net, self.texts), self.draw(net, [""] * N, guidance=1.0)
        shot = {
            "update": update,
            "loss": round(float(np.mean(self.losses[-EVERY:])), 5) if self.losses else None,
            "colours": round(fidelity(asked, self.texts)["colours"], 4),
        }
        for name, x in (("f1", asked), ("f1_alone", alone)):
            shot[name] = round(edge_f1(x, self.hint).mean().item(), 4)
        self.shots.append(shot)
        self.pictures.append(to_uint8(torch.cat([asked[:SHOWN], alone[:SHOWN]])).numpy())
        self.drawing += time.process_time() - started
        print(json.dumps(shot), flush=True)

    def draw(self, net, texts, **options):
        denoiser = controlled(self.sd, net, self.hint)
        return decode(self.sd, last(text_to_image(self.sd, texts, denoiser=denoiser, **options)))

    def each(self, steps):
        for step in steps:
            self.losses.append(step.loss)
            if step.step % EVERY == 0:
                net = copy.deepcopy(step.model.net).eval().requires_grad_(False)
                self.look(net, step.step)
            yield step


def record(name: str, recipe, weights=None, checkpoint=None) -> dict:
    """Train, write the file, return its card."""
    sd = load(recipe.base)
    watch, started = Watch(sd), time.process_time()

    def change(net):
        net = RUNS[name](net)
        watch.look(copy.deepcopy(net).eval().requires_grad_(False), 0)
        return net

    net = train_control(recipe, sd, checkpoint, watch.each, change)
    card = {
        "command": f"python benchmarks/sudden_convergence.py {name}",
        "cpu_seconds": round(time.process_time() - started - watch.drawing),
        "date": datetime.date.today().isoformat(),
        "device": f"{platform.machine()} CPU, {torch.get_num_threads()} thread",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "train": asdict(recipe.train),
        "texts": watch.texts[:SHOWN],
        "shots": watch.shots,
        "loss": thin(watch.losses),
    }
    shown = {"hints": to_uint8(watch.hint[:SHOWN, :1]), "pictures": np.stack(watch.pictures)}
    folder = data_folder() / "recorded"
    np.savez_compressed(folder / f"control_{name}.npz", card=json.dumps(card), **shown)
    if weights:
        told = {k: card[k] for k in ("train", "cpu_seconds", "device", "date", "loss")}
        save(weights, net, net.meta | told, dtype=torch.int8)
    return card


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", choices=RUNS)
    parser.add_argument("--steps", type=int, help="updates, not the recipe's")
    parser.add_argument("--weights", help="write the averaged ControlNet to this file, in 8 bits")
    parser.add_argument("--checkpoint", help="to save to and go on from")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = PAINTED_EDGES
    if args.steps:
        recipe = replace(recipe, train=replace(recipe.train, steps=args.steps))
    print(json.dumps(record(args.run, recipe, args.weights, args.checkpoint)))
