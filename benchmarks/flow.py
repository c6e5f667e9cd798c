"""Flow matching, DiT, what is predicted, reflow and the time shift, measured; notebook 16.

    python benchmarks/flow.py parameters   eps, x_0, v, flow and EDM, plain and with min-SNR
    python benchmarks/flow.py dit          a DiT beside a UNet that costs as much an update
    python benchmarks/flow.py reflow       points, then painted-dit, once more on its own pairs
    python benchmarks/flow.py shift        painted-dit, its steps moved to noise
    python benchmarks/flow.py broken       a DiT whose blocks do not start at zero; a wrong sign
    python benchmarks/flow.py obeyed --model NAME      how well a denoiser does, by itself
    python benchmarks/flow.py shipping --out FILE      the DiT of `dit` as it ships

The first five write data/recorded/flow_WHAT.npz. One thread; a run whose file lies in the folder --runs is not
trained again. Seconds are processor seconds. The last line printed is one JSON object.
"""

import argparse
import functools
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from figures import keep, provenance

from ddpm_edu import SAMPLERS, Schedule, guided, last, load, noise, save
from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.datasets.painted import painted_digits
from ddpm_edu.datasets.points import Points, gaussian_mixture
from ddpm_edu.diffusion import Cond
from ddpm_edu.files.load import Pretrained
from ddpm_edu.flow import path, share, shift_of, shifted_timesteps, straightness, velocity
from ddpm_edu.metrics.frechet import features, frechet
from ddpm_edu.metrics.obedience import fidelity
from ddpm_edu.networks.mlp import MLP
from ddpm_edu.networks.unet import UNetConfig
from ddpm_edu.systems.pipeline import decode
from ddpm_edu.training.denoisers import PAINTED_DIT, DenoiserRecipe
from ddpm_edu.training.follow import FEWER
from ddpm_edu.training.latents import Latents, conditions, encode
from ddpm_edu.training.reflow import make_pairs, reflow
from ddpm_edu.training.train import TrainConfig, train
from ddpm_edu.training.whole_system import thin

RUNS = Path(tempfile.gettempdir()) / "ddpm_edu_flow"
POINT, ON_THE_WAY = 50, 150  # pictures drawn at a time; judged before a run's end


# ---------------------------------------------------------------- what all share


@functools.cache
def system():
    return load("painted")


@functools.cache
def latents(folder: Path) -> Latents:
    """Those of the recipe, kept in the folder."""
    file = folder / "latents.pt"
    if not file.exists():
        torch.save(encode(system(), painted_digits(), PAINTED_DIT.n), file)
    return torch.load(file, weights_only=False)


@functools.cache
def asked(n: int) -> tuple:
    """Test pictures, their captions and the Cond of these."""
    x, captions = painted_digits("test", n, seed=1, held=False)[:]
    return x, captions, conditions(system(), captions)


@torch.no_grad()
def drawn(trained, times, n: int, guidance: float = 3.0, sampler: str = "euler") -> torch.Tensor:
    """Pictures by the captions of the test set, from the same noise; guidance 1: none."""
    model, schedule, predict, _ = trained
    x, cond, empty = [], asked(n)[2], conditions(system(), [""])
    model = guided(model, guidance, empty)
    for part in torch.arange(n).split(POINT):
        x_T, own = noise((4, 8, 8), part.tolist()), cond.map(lambda rows: rows[part])
        run = SAMPLERS[sampler](model, schedule, x_T, times, own, predict=predict)
        x.append(decode(system(), last(run)))
    return torch.cat(x)


def judged(x: torch.Tensor) -> dict:
    """Shares right of each word, of "main", of all, and the Frechet distance to test pictures.

    Those of the same captions, in the features of the CIFAR-10 classifier: 32 x 32, in colour.
    """
    real, captions, _ = asked(len(x))
    share_of, classifier = fidelity(x, captions), load("cifar10_classifier")
    distance = frechet(features(classifier, x), features(classifier, real))
    shares = {name: round(share, 4) for name, share in share_of.items() if name != "colours"}
    return {**shares, "frechet": round(distance, 3)}


def trained(
    recipe: DenoiserRecipe, folder: Path, watch=None, change=lambda model: model, stop=None
) -> tuple:
    """(Pretrained, losses, CPU seconds) of a recipe; trained once, then read from the folder.

    watch(step, Pretrained of its average): called after every update, its time is not counted.
    stop: the update after which the run ends early.
    """
    file = folder / f"{recipe.name}.safetensors"
    if not file.exists():
        data, model, schedule = latents(folder), change(recipe.model()), recipe.schedule()
        losses, seconds = [], -time.process_time()
        for step in train(model, schedule, data, recipe.train):
            losses.append(step.loss)
            if watch:
                seconds += time.process_time()
                watch(step, Pretrained(step.ema, schedule, recipe.train.predict, {}))
                seconds -= time.process_time()
            if step.step == stop:
                break
        seconds += time.process_time()
        meta = {"losses": losses, "seconds": seconds, "date": provenance()["date"]}
        save(file, step.ema, meta, schedule=schedule, predict=recipe.train.predict)
    found = load(file)
    return found, found.meta["losses"], found.meta["seconds"]


def written(args, rows: list | dict, arrays: dict, **more) -> dict:
    """data/recorded/flow_WHAT.npz: a card of JSON, and arrays; pictures as bytes."""
    card = {
        "command": f"python benchmarks/flow.py {args.what} --n {args.n}",
        **provenance(),
        "n": args.n,
        **more,
        "rows": rows,
    }
    return {**card, "bytes": keep(f"flow_{args.what}", card, arrays)}


def as_bytes(x: torch.Tensor, n: int = 4) -> np.ndarray:
    """The first n pictures; files are to be small."""
    return to_uint8(x[:n]).numpy()


# ---------------------------------------------------------------- what is predicted, and weights

SMALL = UNetConfig(
    in_channels=4,
    channels=24,
    mult=(1, 2),
    depth=(0, 1),
    middle=1,
    heads=(4, 4),
    context=64,
    blocks=1,
    groups=8,
)
SMALLEST = replace(SMALL, channels=16)
# On DDPM's linear schedule: on a cosine one, with alpha_bar_T = 2e-9, eps draws nothing; times uniform
SHORT = TrainConfig(steps=200, batch_size=32, ema=0.99, lr=1e-2, optimizer="muon")


def parameterisations() -> dict[str, DenoiserRecipe]:
    """The same UNet, noise, data and updates; EDM's own weight is SNR + 1."""
    recipes = {}
    for asks in ("eps", "x_0", "v", "flow", "edm"):
        for weight in ("none", "min_snr"):
            if (asks, weight) == ("edm", "min_snr"):
                continue  # v with min-SNR, but for the names of times
            own = "snr_plus_1" if asks == "edm" else weight
            run = replace(SHORT, predict="x_0" if asks == "edm" else asks, weight=own)
            name = f"{asks}, {weight}"
            recipes[name] = DenoiserRecipe(
                name, SMALLEST, run, schedule=Schedule.linear, edm=asks == "edm"
            )
    return recipes


def parameters(args) -> dict:
    """eps, x_0, v, flow and EDM, plain and with min-SNR: the same UNet, updates and seed."""
    rows, arrays = [], {}
    for name, recipe in parameterisations().items():
        found, losses, seconds = trained(recipe, args.runs)
        x = drawn(found, 10, args.n, sampler="dpmpp_2m")
        asks, weight = name.split(", ")
        row = {"asks": asks, "weight": weight, "seconds": round(seconds, 1), **judged(x)}
        rows.append(row)
        print(json.dumps(row), flush=True)
        arrays[f"losses, {name}"] = np.float32(thin(losses, 100))
        if weight == "none":
            arrays[f"pictures, {asks}"] = as_bytes(x)
    count = sum(p.numel() for p in found.model.parameters())
    how = {"parameters": count, "sampler": "dpmpp_2m", "steps": 10, "guidance": 3.0}
    return written(args, rows, arrays, train=vars(SHORT) | {"predict": "", "weight": ""}, **how)


# ---------------------------------------------------------------- DiT

UNET = replace(PAINTED_DIT, name="unet", net=replace(SMALL, channels=28, groups=4))


def dit(args) -> dict:
    """A DiT and a UNet of equal cost an update, by flow: loss, and obeyed on the way.

    The UNet's run ends halfway: up to there both have the same learning rates, so compare the shots.
    """
    rows, arrays, half = {}, {}, PAINTED_DIT.train.steps // 2
    for recipe, stop in ((PAINTED_DIT, None), (UNET, half)):
        found, losses, seconds, shots = watched(recipe, args.runs, stop)
        x = drawn(found, 10, args.n)
        rows[recipe.name] = {
            "parameters": sum(p.numel() for p in found.model.parameters()),
            "seconds": round(seconds, 1),
            "updates": len(losses),
            "seconds_an_update": round(seconds / len(losses), 4),
            "end": judged(x),
            "shots": shots,
        }
        arrays[f"losses, {recipe.name}"] = np.float32(thin(losses))
        arrays[f"pictures, {recipe.name}"] = as_bytes(x, 8)
    how = {"sampler": "euler", "steps": 10, "guidance": 3.0, "n_on_the_way": ON_THE_WAY}
    return written(args, rows, arrays, train=vars(PAINTED_DIT.train), **how)


def watched(recipe, folder: Path, stop=None) -> tuple:
    """`trained`, and how well its average did on the way."""
    shots, file = [], folder / f"{recipe.name}.json"

    def watch(step, now):
        if step.step in marks(recipe.train.steps):
            shots.append({"updates": step.step, **judged(drawn(now, 10, ON_THE_WAY))})
            print(recipe.name, json.dumps(shots[-1]), flush=True)
            file.write_text(json.dumps(shots))

    found = trained(recipe, folder, watch, stop=stop)
    return *found, json.loads(file.read_text())


def marks(steps: int) -> list[int]:
    """Updates after which a run is looked at: steps / 8, / 4, / 2, all."""
    return [steps >> k for k in (3, 2, 1, 0)]


def shipping(args) -> dict:
    """Write the DiT of `dit` as `ddpm-edu train painted-dit` would, to --out."""
    found, losses, seconds, _ = watched(PAINTED_DIT, args.runs)
    train_card = vars(PAINTED_DIT.train) | {
        "updates": len(losses),
        "loss": thin(losses),
        "recipe": PAINTED_DIT.name,
        "seconds": round(seconds),
        "torch": torch.__version__,
        "device": f"{provenance()['device']}, processor seconds",
        "date": found.meta["date"],
    }
    meta = {k: getattr(PAINTED_DIT, k) for k in ("base", "guidance", "steps", "sampler")}
    plan = dict(schedule=found.schedule, predict=found.predict)
    how = dict(dtype=torch.int8, **FEWER)
    save(args.out, found.model, {**meta, "train": train_card}, **plan, **how)
    return {"bytes": Path(args.out).stat().st_size}


def obeyed(args) -> dict:
    """A denoiser of painted's latents: obeyed at several steps and samplers."""
    found, rows = load(args.model), []
    for sampler, steps in (("dpmpp_2m", 10), ("euler", 10), ("euler", 4), ("euler", 20)):
        seconds = time.process_time()
        x = drawn(found, steps, args.n, sampler=sampler)
        seconds = (time.process_time() - seconds) / args.n
        row = {"sampler": sampler, "steps": steps, "seconds_a_picture": round(seconds, 4)}
        rows.append(row | judged(x))
        print(json.dumps(rows[-1]), flush=True)
    return {"model": args.model, "rows": rows}


# ---------------------------------------------------------------- reflow

STEPS = (1, 2, 4, 8)
TOY = TrainConfig(steps=1000, batch_size=256, lr=5e-3, predict="flow", optimizer="muon", ema=0.99)
REFLOW = replace(PAINTED_DIT.train, steps=700, batch_size=32, lr=4e-3, ema=0.99)


def toy() -> tuple[dict, dict]:
    """Eight Gaussians: paths, straightness, and how far one to eight steps end from the data."""
    torch.manual_seed(0)
    model, schedule = MLP(2, 64, 3), Schedule.flow()
    for step in train(model, schedule, Points(gaussian_mixture(8000)), TOY):
        pass
    models = {"before": step.ema}
    pairs = make_pairs(step.ema, schedule, noise((2,), range(10_000, 18_000)), 50)
    for step in reflow(model, schedule, pairs, TOY):
        pass
    models["after"], x_T, rows, arrays = step.ema, noise((2,), range(2000)), {}, {}
    real = gaussian_mixture(2000, seed=5)
    for name, model in models.items():
        ways = path(velocity(model, schedule), x_T, 50)
        ends = [last(SAMPLERS["euler"](model, schedule, x_T, k, predict="flow")) for k in STEPS]
        rows[name] = {
            "straightness": straightness(ways).mean().item(),
            "distance": [round(energy(x, real), 5) for x in ends],
        }
        arrays[f"paths, {name}"] = ways[::2, :60].numpy().astype(np.float16)
        arrays[f"one step, {name}"] = ends[0][:300].numpy().astype(np.float16)
    return rows, arrays


def energy(x, y) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'|, the energy distance of two sets of points; 0 if alike."""
    mean = lambda a, b: torch.cdist(a.double(), b.double()).mean()
    return (2 * mean(x, y) - mean(x, x) - mean(y, y)).item()


def second_flow(args) -> dict:
    """painted-dit on points, then on its own guided pairs: obeyed after few steps, straightness."""
    rows, arrays = {}, {}
    rows["points"], arrays = toy()
    print(json.dumps(rows), flush=True)
    first = load(args.model or "painted-dit")
    second, losses, seconds = reflowed(first, args)
    ways = {
        "before, guided": (first, 3.0),
        "before, not guided": (first, 1.0),
        "after": (second, 1.0),
    }
    for name, (found, scale) in ways.items():
        results = []
        for steps in STEPS:
            x = drawn(found, steps, args.n, scale)
            evaluations = steps * (1 if scale == 1 else 2)
            results.append({"steps": steps, "evaluations": evaluations, **judged(x)})
            if steps in (1, 4):
                arrays[f"pictures, {name}, {steps}"] = as_bytes(x)
        rows[name] = {"straightness": bent(found, scale), "results": results}
        print(name, json.dumps(rows[name]), flush=True)
    arrays["losses, after"] = np.float32(thin(losses, 100))
    how = {"pairs": PAIRS, "seconds": round(seconds, 1), "train": vars(REFLOW)}
    return written(args, rows, arrays, **how)


PAIRS = 4000


def reflowed(first, args) -> tuple:
    """The model after a second flow; its pairs: captions of the training pictures, other noise."""
    file = args.runs / "reflow.safetensors"
    if not file.exists():
        data = latents(args.runs)
        cond = Cond(data.contexts[data.row[:PAIRS]])
        model = guided(first.model, 3.0, data.uncond)
        eps = noise((4, 8, 8), range(10**6, 10**6 + PAIRS))
        seconds = -time.process_time()
        pairs = make_pairs(model, first.schedule, eps, 8, cond, sampler="dpmpp_2m")
        print("pairs", seconds + time.process_time(), flush=True)
        losses, model = [], first.model.requires_grad_(True)
        for step in reflow(model, first.schedule, pairs, REFLOW):
            losses.append(step.loss)
        meta = {"losses": losses, "seconds": seconds + time.process_time()}
        save(file, step.ema, meta, schedule=first.schedule, predict="flow")
        first.model.load_state_dict(load(args.model or "painted-dit").model.state_dict())
    found = load(file)
    return found, found.meta["losses"], found.meta["seconds"]


def bent(found, scale: float, n: int = 100, steps: int = 20) -> float:
    """Mean straightness of a denoiser's paths of latents, 0 for straight ones."""
    cond = asked(n)[2]
    model = guided(found.model, scale, conditions(system(), [""]))
    field = velocity(model, found.schedule, found.predict, cond)
    start = share(found.schedule, found.schedule.T - 1)
    return straightness(path(field, noise((4, 8, 8), range(n)), steps, start)).mean().item()


# ---------------------------------------------------------------- the shift

SHIFTS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def shift(args) -> dict:
    """painted-dit at 4 and 10 Euler steps, moved to noise more and more."""
    found, rows, arrays = load(args.model or "painted-dit"), [], {}
    for steps in (4, 10):
        for by in SHIFTS:
            x = drawn(found, shifted_timesteps(found.schedule, steps, by), args.n)
            rows.append({"steps": steps, "shift": by, **judged(x)})
            if steps == 4:
                arrays[f"pictures, {by:g}"] = as_bytes(x)
            print(json.dumps(rows[-1]), flush=True)
    sizes = {side: shift_of(side**2, 512**2) for side in (256, 512, 1024, 2048)}
    return written(
        args, rows, arrays, shift_of_sides_after_512=sizes, guidance=3.0, sampler="euler"
    )


# ---------------------------------------------------------------- broken


def opened(model):
    """adaLN without its zeros: what opens a block starts as large as any other layer."""
    torch.manual_seed(1)
    for layer in (*(block.ada for block in model.blocks), model.ada_out, model.out):
        torch.nn.init.xavier_uniform_(layer.weight)
    for block in model.blocks:
        torch.nn.init.xavier_uniform_(block.cross.out.weight)
    return model


def broken(args) -> dict:
    """150 updates with and without zeros in what opens a block; and one sign flipped."""
    rows, arrays = {}, {}
    run = replace(PAINTED_DIT.train, steps=150, ema=0.97)
    for name, change in (("zero", lambda model: model), ("open", opened)):
        recipe = replace(PAINTED_DIT, name=f"broken-{name}", train=run)
        found, losses, seconds = trained(recipe, args.runs, change=change)
        x = drawn(found, 10, args.n)
        rows[name] = {"first_loss": losses[0], "seconds": round(seconds, 1), **judged(x)}
        rows[name]["last_loss"] = sum(losses[-50:]) / 50
        arrays[f"losses, {name}"] = np.float32(thin(losses, 100))
        arrays[f"pictures, {name}"] = as_bytes(x)
        print(name, json.dumps(rows[name]), flush=True)
    found = load(args.model or "painted-dit")
    flipped = found._replace(model=lambda x_t, t, cond: -found.model(x_t, t, cond))
    x = drawn(flipped, 10, args.n)
    rows["flipped"], arrays["pictures, flipped"] = judged(x), as_bytes(x)
    return written(args, rows, arrays, train=vars(run))


WAYS = {f.__name__: f for f in (parameters, dit, shipping, obeyed, shift, broken)}
WAYS["reflow"] = second_flow


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=WAYS)
    parser.add_argument(
        "--runs", type=Path, default=RUNS, help=f"folder of what was trained ({RUNS})"
    )
    parser.add_argument("--n", type=int, default=300, help="pictures (300)")
    parser.add_argument("--model", help="a name or a file, not what ships")
    parser.add_argument("--out", help="file for what ships")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print(json.dumps(WAYS[args.what](args)))


if __name__ == "__main__":
    main()
