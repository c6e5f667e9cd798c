"""The recorded trainings of a ControlNet, notebook 10: how well hints are followed on the way.

    python benchmarks/sudden_convergence.py zeros     as the painted-edges that ships began
    python benchmarks/sudden_convergence.py random    the same without zero convolutions
    python benchmarks/sudden_convergence.py shuffled  a mistake: each picture with another's hint

The first 300 updates of the recipe's 2,000. On the way the raw weights draw the same 16 hints from
the same noise, with their captions and without a text, where the hint alone tells. Each run is
written to data/recorded/control_NAME.npz; the last line printed is one JSON object, its card.
"""

import argparse
import copy
import json
import time
from dataclasses import asdict, replace

import numpy as np
import torch
from figures import provenance

from ddpm_edu.datasets.hints import edges
from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.datasets.painted import painted_digits
from ddpm_edu.diffusion import last
from ddpm_edu.files.load import load
from ddpm_edu.metrics.obedience import edge_f1, fidelity
from ddpm_edu.paths import data_folder
from ddpm_edu.systems.control import controlled
from ddpm_edu.systems.pipeline import decode, text_to_image
from ddpm_edu.training.control import PAINTED_EDGES, train_control

MARKS = (*range(0, 150, 10), 150, 200, 250, 300)  # updates after which is drawn
KEPT = (0, 50, 70, 80, 100, 150, 300)  # of which pictures are kept
SHOWN, N = 4, 16  # pictures kept of each kind, hints


def not_zero(net):
    """A ControlNet whose zero convolutions start as any other convolution."""
    for conv in (*net.zeros, net.zero_mid, net.hint[-1]):
        conv.reset_parameters()
    return net


def shuffled(x):
    """The edges of the picture before."""
    return edges(x).roll(1, 0)


RUNS = {
    "zeros": (PAINTED_EDGES, lambda net: net),
    "random": (PAINTED_EDGES, not_zero),
    "shuffled": (replace(PAINTED_EDGES, hint=shuffled), lambda net: net),
}


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
            "loss": round(float(np.mean(self.losses[-50:])), 5) if self.losses else None,
            "colours": round(fidelity(asked, self.texts)["colours"], 4),
        }
        for name, x in (("f1", asked), ("f1_alone", alone)):
            shot[name] = round(edge_f1(x, self.hint).mean().item(), 4)
        self.shots.append(shot)
        if update in KEPT:
            self.pictures.append(to_uint8(torch.cat([asked[:SHOWN], alone[:SHOWN]])).numpy())
        self.drawing += time.process_time() - started
        print(json.dumps(shot), flush=True)

    def draw(self, net, texts, **options):
        denoiser = controlled(self.sd, net, self.hint)
        return decode(self.sd, last(text_to_image(self.sd, texts, denoiser=denoiser, **options)))

    def each(self, steps):
        for step in steps:
            self.losses.append(step.loss)
            yield step
            if step.step in MARKS:
                net = copy.deepcopy(step.model.net).eval().requires_grad_(False)
                self.look(net, step.step)
            if step.step == MARKS[-1]:
                return


def record(name: str) -> dict:
    """Train, write the file, return its card."""
    recipe, start = RUNS[name]
    watch, started = Watch(load(recipe.base)), time.process_time()

    def change(net):
        net = start(net)
        watch.look(copy.deepcopy(net).eval().requires_grad_(False), 0)
        return net

    train_control(recipe, log=watch.each, change=change)
    card = {
        "command": f"python benchmarks/sudden_convergence.py {name}",
        "cpu_seconds": round(time.process_time() - started - watch.drawing),
        **provenance(),
        "train": asdict(recipe.train),
        "texts": watch.texts[:SHOWN],
        "shots": watch.shots,
        "kept": KEPT,
        "loss": [round(loss, 5) for loss in watch.losses],
    }
    shown = {"hints": to_uint8(watch.hint[:SHOWN, :1]), "pictures": np.stack(watch.pictures)}
    path = data_folder() / "recorded" / f"control_{name}.npz"
    np.savez_compressed(path, card=json.dumps(card), **shown)
    return card


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", choices=RUNS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(record(args.run)))
