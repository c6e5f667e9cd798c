"""The recorded training runs of notebook 04: losses, and digits and their scores on the way.

    python benchmarks/training_runs.py                    all of them, about half an hour of one core
    python benchmarks/training_runs.py plain blind        some of them

Every run of digits has the network and the batch of recipes.SMALL. Time is processor time of one
thread, drawing not counted: a busy neighbour changes nothing. Each run is written to
data/recorded/NAME.npz, read back by ddpm_edu.show.recorded.run; the last line printed is one JSON object.
"""

import argparse
import copy
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from figures import provenance
from torch import nn

from ddpm_edu import SAMPLERS, class_cond, generators, guided, last, load, noise
from ddpm_edu.datasets.images import ImageDataset, cifar10, mnist, to_uint8
from ddpm_edu.metrics.frechet import accuracy, features, frechet, frechet_to_real
from ddpm_edu.paths import data_folder
from ddpm_edu.training.recipes import CIFAR10, SMALL, Recipe
from ddpm_edu.training.train import TrainConfig, train
from ddpm_edu.training.whole_system import thin

# Algorithms 1 and 2 of DDPM: eps, uniform t, the usual optimizer, ancestral sampling. The plain run
# has its constant rate and its average, too (appendix B).
PLAIN = TrainConfig(batch_size=32, lr=2e-3, ema=0.99)
SHORT = 1200  # updates of every short run


@dataclass(frozen=True)
class Plan:
    """One run to record."""

    config: TrainConfig
    marks: tuple  # where pictures are drawn: updates
    seconds: tuple = ()  # or seconds of processor time; the last mark of all ends the run
    recipe: Recipe = SMALL
    guidance: float = SMALL.guidance
    steps: int = 20  # evaluations of a picture
    half: bool = False  # digits of 14 x 14: a short run gets far
    raw: bool = False  # draw with the raw weights as well
    scale: tuple[float, float] = (1, 0)  # pictures arrive as a x_0 + b
    blind: bool = False  # the UNet always reads t = 0
    misread: str = ""  # draw once more, with a sampler that takes the answer for this


def short(plan: Plan, **changes) -> Plan:
    return replace(plan, config=replace(plan.config, **changes))


def constant(config: TrainConfig) -> TrainConfig:
    """The same with a rate that does not fall: the first moments of a very long run."""
    return replace(config, steps=10**6)


BEST = replace(SMALL.train_unet, steps=SHORT, seconds=0, predict="v")
IDEAS = Plan(replace(PLAIN, steps=SHORT), (SHORT,), half=True)
EMA = Plan(BEST, (SHORT // 4, SHORT // 2, SHORT), half=True, raw=True)
HEALTHY = Plan(replace(BEST, predict="x_0"), (SHORT,), half=True)
RUNS = {
    "plain": Plan(
        replace(constant(PLAIN), ema=0.999), (0,), (60, 300, 600, 900), guidance=1.0, steps=50
    ),
    # what each idea buys: the same number of updates, one more idea each
    "adamw": IDEAS,
    "v": short(IDEAS, predict="v"),
    "times": short(IDEAS, predict="v", t_distribution="logit_normal"),
    "muon": EMA,
    # the same as the last, with a rate that stays high
    "constant": replace(EMA, config=constant(BEST)),
    # sick runs: "healthy" with one mistake each
    "healthy": replace(HEALTHY, misread="eps"),
    "zero_to_one": replace(HEALTHY, scale=(0.5, 0.5)),
    "zero_to_255": replace(HEALTHY, scale=(127.5, 127.5)),
    "blind": replace(HEALTHY, blind=True),
    "fast": short(HEALTHY, lr=30 * BEST.lr),
    "photos": Plan(
        constant(CIFAR10.train_unet),
        (0,),
        (60, 180, 360),
        replace(CIFAR10, parts=0, unet=replace(CIFAR10.unet, in_channels=12)),
        guidance=CIFAR10.guidance,
    ),
}


def halved(digits: ImageDataset) -> ImageDataset:
    """The same digits, 14 x 14."""
    parts = [F.avg_pool2d(digits[i][0], 2) for i in torch.arange(len(digits)).split(5000)]
    return ImageDataset(torch.cat(parts), digits.labels)


def doubled(x: torch.Tensor) -> torch.Tensor:
    """28 x 28 again, as the classifier wants them: (B, 1, 14, 14) -> (B, 1, 28, 28)."""
    return F.interpolate(x, scale_factor=2, mode="bilinear").clamp(-1, 1)


class Rescaled:
    """A dataset whose pictures arrive as a x_0 + b."""

    def __init__(self, dataset, a: float, b: float):
        self.dataset, self.a, self.b = dataset, a, b

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        x_0, cond = self.dataset[index]
        return self.a * x_0 + self.b, cond


class Blind(nn.Module):
    """A network that always reads t = 0."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x_t, t, cond):
        return self.model(x_t, torch.zeros_like(t), cond)


class Scorer:
    """Draws n pictures, always from the same noise, and scores them."""

    def __init__(self, plan: Plan, shape, n: int = 200):
        self.plan, self.shape, self.labels = plan, shape, torch.arange(n) % 10
        name = "cifar10_classifier" if plan.recipe.name == "cifar10" else "mnist_classifier"
        self.classifier = load(name)
        if plan.half:
            some = halved(mnist("train"))[torch.arange(5000)][0]
            self.real = features(self.classifier, doubled(some))

    def __call__(self, model, predict: str = "") -> tuple[np.ndarray, dict]:
        plan, n = self.plan, len(self.labels)
        x = last(
            SAMPLERS["ddpm"](
                guided(model.eval(), plan.guidance),
                plan.recipe.schedule(),
                noise(self.shape, range(n)),
                plan.steps,
                class_cond(self.labels),
                predict=predict or plan.config.predict,
                clip=1.0,
                generator=generators(range(10**6, 10**6 + n)),
            )
        ).nan_to_num()
        pictures = to_uint8(x.clamp(-1, 1))
        shown = pictures.float() / 127.5 - 1
        shown = doubled(shown) if plan.half else shown
        kept = 40 if self.shape[0] == 1 else 10  # of photographs fewer
        return pictures[:kept].numpy(), self.scores(shown, self.labels)

    def scores(self, shown, labels) -> dict:
        right = accuracy(self.classifier, shown, labels)
        if self.plan.half:
            distance = frechet(features(self.classifier, shown), self.real)
        else:
            distance = frechet_to_real(self.classifier, shown)
        return {"right": right, "frechet": round(distance, 4)}

    def reference(self) -> dict:
        """The scores of as many real test pictures."""
        test = cifar10("test") if self.plan.recipe.name == "cifar10" else mnist("test")
        x, labels = test[torch.arange(len(self.labels))][0], test.labels[: len(self.labels)]
        if self.plan.half:
            x = doubled(F.avg_pool2d(x, 2))
        return self.scores(x, labels)


def record(name: str, plan: Plan) -> tuple[dict, dict[str, np.ndarray]]:
    """Train by the plan. Returns the card and the arrays of the file that `write` makes."""
    dataset = cifar10("train") if plan.recipe.name == "cifar10" else mnist("train")
    dataset = halved(dataset) if plan.half else dataset
    model = plan.recipe.model(dataset)
    model = Blind(model) if plan.blind else model
    score = Scorer(plan, dataset[torch.zeros(1, dtype=torch.long)][0].shape[1:])
    snapshots, pictures, losses, drawing = [], {"ema": [], "raw": [], "misread": []}, [], 0.0

    def snapshot(updates, ema, raw):
        shot = {"updates": updates, "seconds": round(time.process_time() - started - drawing, 1)}
        kinds = [("ema", ema, ""), ("raw", raw, ""), ("misread", ema, plan.misread)]
        for kind, net, predict in (
            kinds[:1] + kinds[1:2] * plan.raw + kinds[2:] * bool(plan.misread)
        ):
            drawn, shot[kind] = score(copy.deepcopy(net), predict)
            pictures[kind].append(drawn)
        snapshots.append(shot)
        print(name, shot, flush=True)

    def timed(*args):
        before = time.process_time()
        snapshot(*args)
        return time.process_time() - before

    def finish():
        return card_of(name, plan, model, losses, snapshots, score), {
            **{kind: np.stack(kept) for kind, kept in pictures.items() if kept},
            "losses": np.array(thin(losses), dtype=np.float32),
        }

    started = time.process_time()
    if 0 in plan.marks:
        drawing += timed(0, model, model)
    left = list(plan.seconds)
    data = Rescaled(dataset, *plan.scale) if plan.scale != (1, 0) else dataset
    for step in train(model, plan.recipe.schedule(), data, plan.config):
        losses.append(step.loss)
        late = left and time.process_time() - started - drawing >= left[0]
        if step.step in plan.marks or late:
            left = left[1:] if late else left
            drawing += timed(step.step, step.ema, step.model)
            write(name, *finish())  # a run that is cut off leaves what it has
        if step.step == plan.marks[-1] or (plan.seconds and not left):
            break
    return finish()


def card_of(name, plan, model, losses, snapshots, score) -> dict:
    return {
        "command": f"python benchmarks/training_runs.py {name}",
        **provenance(),
        "train": asdict(plan.config),
        "guidance": plan.guidance,
        "evaluations": plan.steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "real": score.reference(),
        "every": max(1, -(-len(losses) // 200)),  # updates between two kept losses
        "snapshots": snapshots,
    }


def write(name: str, card: dict, arrays: dict) -> Path:
    path = data_folder() / "recorded" / f"{name}.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, card=json.dumps(card), **arrays)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)}; all")
    args = parser.parse_args()
    if unknown := set(args.names) - set(RUNS):
        parser.error(f"no such run: {', '.join(sorted(unknown))}; choose from {', '.join(RUNS)}")
    torch.set_num_threads(1)
    result = {"benchmark": "training_runs"}
    for name in args.names or RUNS:
        card, arrays = record(name, RUNS[name])
        result[name] = card["snapshots"][-1] | {"bytes": write(name, card, arrays).stat().st_size}
    print(json.dumps(result))
