"""How well the models that edit do, figure by figure; the last line is one JSON object.

python benchmarks/editing.py inpainting        another digit into a painted picture
python benchmarks/editing.py upscaling         painted pictures of half the size, enlarged
python benchmarks/editing.py anagrams          a digit, and another one when it is turned: 100 pairs
python benchmarks/editing.py control           pictures drawn from edges and a text
python benchmarks/editing.py broken --run inpaint_leak --out leak.safetensors
python benchmarks/editing.py recorded --run inpaint_leak --model leak.safetensors
"""

import argparse
import itertools
import json
import platform
import time
from dataclasses import asdict, replace

import numpy as np
import torch
import torch.nn.functional as F
from figures import report
from sdxl_craft import details

from ddpm_edu import SAMPLERS, class_cond, guided, last, load, noise, save
from ddpm_edu.datasets.hints import edges
from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.datasets.painted import (
    COLOURS,
    PIXELS,
    PLACES,
    SIZES,
    caption,
    painted_digits,
    random_bits,
    step,
)
from ddpm_edu.metrics.frechet import frechet, psnr
from ddpm_edu.metrics.obedience import edge_f1, fidelity, read
from ddpm_edu.paths import data_folder
from ddpm_edu.systems.control import controlled
from ddpm_edu.systems.editing import enlarged
from ddpm_edu.systems.pipeline import draw, edit, embed_numbers
from ddpm_edu.training.editing import (
    INPAINT,
    UPSCALE,
    EditLatents,
    enlarged_latents,
    train_editing,
    with_holes,
)
from ddpm_edu.training.whole_system import logged, machine


def inpainting(args) -> dict:
    """Test pictures; the box of the digit is masked, another digit is asked for, all else as it is."""
    sd = load(args.model or "painted-inpaint")
    x, asked, mask = other_digits(args.n)
    y = in_parts(sd, [caption(s) for s in asked], x, mask=mask)
    seen = read(y)
    outside = ((y - x).abs() * (1 - mask)).max().item() * 127.5
    right = lambda f: float(np.mean([f(a) == f(b) for a, b in zip(asked, seen)]))
    return {
        "model": sd.config.name,
        "outside_levels": outside,
        "digit": right(lambda s: s.digit),
        "digit_ink_ground": right(lambda s: s[:3]),
        "all": right(lambda s: s),
        "halves": halved(sd, args.n)[0],
    }


def other_digits(n: int) -> tuple:
    """Test pictures, scenes with another digit each, and masks of the box of the digit."""
    data = painted_digits("test", n, seed=1, held=None)
    more = 1 + random_bits(np.arange(n), 2, 20) % 9
    asked = [s._replace(digit=int(s.digit + k) % 10) for s, k in zip(data.scenes(), more)]
    return data[:][0], asked, torch.stack([digit_box(s) for s in asked])


def digit_box(scene) -> torch.Tensor:
    """(1, 32, 32): 1 where the scene's digit may have ink, and a pixel around."""
    mask, pixels = torch.zeros(1, PIXELS, PIXELS), SIZES[scene.size]
    middle = [PIXELS // 2 + step(pixels) * side for side in PLACES[scene.place]]
    rows, columns = (slice(max(0, m - pixels // 2 - 1), m + pixels // 2 + 1) for m in middle)
    mask[:, rows, columns] = 1
    return mask


def halved(sd, n: int) -> tuple[dict, torch.Tensor]:
    """Digits whose lower or right half is masked, painted anew by their own captions.

    read: share with all five words right.  border: mean |y - x| of the masked pixels next to the
    kept ones, in levels: strokes that go on hardly differ there.
    """
    data = painted_digits("test", n, seed=1, held=None)
    x, captions = data[:]
    mask = torch.stack([half(scene, k % 2 == 0) for k, scene in enumerate(data.scenes())])
    y = in_parts(sd, captions, x, mask=mask)
    kept = F.max_pool2d(1 - mask, 3, 1, 1)  # and what is next to it
    border = (kept * mask).expand_as(x) > 0
    right = float(np.mean([a == b for a, b in zip(data.scenes(), read(y))]))
    return {"read": right, "border": ((y - x)[border].abs().mean() * 127.5).item()}, y[:12]


def half(scene, lower: bool) -> torch.Tensor:
    """(1, 32, 32): 1 below, or to the right of, the middle of the scene's digit."""
    row, column = (PIXELS // 2 + step(SIZES[scene.size]) * k for k in PLACES[scene.place])
    mask = torch.zeros(1, PIXELS, PIXELS)
    mask[:, row if lower else 0 :, 0 if lower else column :] = 1
    return mask


def in_parts(sd, prompts, x, size=50, mask=None, **options):
    """`edit` of many pictures, some at a time."""
    out = []
    for k in range(0, len(x), size):
        part = slice(k, k + size)
        own = {} if mask is None else {"mask": mask[part]}
        seeds = list(range(len(x)))[part]
        out.append(edit(sd, prompts[part], x[part], seeds=seeds, progress=False, **own, **options))
    return torch.cat(out)


def upscaling(args) -> dict:
    """Test pictures of half the size enlarged, against bicubic: dB, and the details' distance."""
    sd = load(args.model or "painted-upscale")
    data = painted_digits("test", args.n, seed=1, held=None)
    x, captions = data[:]
    small = F.avg_pool2d(x, 2)
    ways = {"bicubic": enlarged(small), "ours": in_parts(sd, captions, small)}
    found = {"model": sd.config.name}
    for name, y in ways.items():
        found[name] = {
            "psnr": psnr(x, y).mean().item(),
            "psnr_of_all": psnr(x[None], y[None]).item(),
            "details": frechet(details(x), details(y)),
            "read": float(np.mean([a == b for a, b in zip(data.scenes(), read(y))])),
        }
    return found


def control(args) -> dict:
    """Edges of test pictures as hints, with their captions and with other colours; F1 within 1 pixel.

    "without": the same captions with no ControlNet, whose digits lie where the captions say, too.
    """
    sd, net = load("painted"), load(args.model or "painted-edges")
    found = {"model": args.model or "painted-edges"}
    for kind, held in (("seen", False), ("held_out", True)):
        data = painted_digits("test", args.n, seed=1, held=held)
        hint, asked = edges(data[:][0]), other_colours(data.scenes())
        captions = {"own": data.captions(), "other_colours": [caption(s) for s in asked]}
        for name, texts in captions.items():
            found[f"{kind}, {name}"] = followed(from_edges(sd, net, texts, hint), texts, hint)
        plain = from_edges(sd, net, data.captions(), hint, weight=0.0)
        found[f"{kind}, without"] = followed(plain, data.captions(), hint)
    return found


def other_colours(scenes) -> list:
    """The same scenes, ink and ground each another colour."""
    every, random = list(COLOURS), np.random.default_rng(0)
    pick = lambda *taken: str(random.choice([c for c in every if c not in taken]))
    grounds = [pick(s.ground) for s in scenes]
    return [s._replace(ink=pick(s.ink, g), ground=g) for s, g in zip(scenes, grounds)]


def from_edges(sd, net, texts, hint, weight=1.0, size=50):
    """Pictures (N, 3, H, W), some at a time."""
    out = []
    for k in range(0, len(texts), size):
        part = slice(k, k + size)
        steered = controlled(sd, net, hint[part], weight)
        seeds = list(range(len(texts)))[part]
        out.append(draw(sd, texts[part], seeds=seeds, denoiser=steered, progress=False))
    return torch.cat(out)


def followed(x, texts, hint) -> dict:
    """How well pictures follow their hints and captions."""
    f1, read_as = edge_f1(x, hint), fidelity(x, texts)
    return {
        "f1": f1.mean().item(),
        "f1_worst_tenth": f1.quantile(0.1).item(),
        "f1_same_pixel": edge_f1(x, hint, within=0).mean().item(),
        "colours": read_as["colours"],
        "main": read_as["main"],
        "all": read_as["all"],
    }


VIEWS = {  # the view, and the way back
    "quarter turn": (lambda x: x.rot90(1, (2, 3)), lambda x: x.rot90(-1, (2, 3))),
    "half turn": (lambda x: x.flip(2, 3), lambda x: x.flip(2, 3)),
    "flip": (lambda x: x.flip(2), lambda x: x.flip(2)),
}


@torch.no_grad()
def anagrams(args) -> dict:
    """All 100 pairs of digits, four seeds each: both readings right, by the shipped classifier.

    The mean of both predictions (Geng et al. 2023, eq. 1), or one of them in turn, step by step.
    """
    model, schedule, predict, _ = load("mnist")
    reader, guided_ = load("mnist_classifier"), guided(model, 7.0, interval=(150, 999))
    first, second = (torch.arange(100).div(10, rounding_mode="floor"), torch.arange(100) % 10)
    a, b = class_cond(first), class_cond(second)

    def drawn(view, back, seed, mean, steps=10):
        looks = itertools.cycle((0, 1))

        def both(x, t, cond):
            ask = lambda which: back(guided_(view(x), t, b)) if which else guided_(x, t, a)
            return (ask(0) + ask(1)) / 2 if mean else ask(next(looks))

        x_T = noise((1, 28, 28), range(100 * seed, 100 * seed + 100))
        sampler = SAMPLERS["dpmpp_2m" if mean else "ddim"]
        x = last(sampler(both, schedule, x_T, steps, predict=predict)).clamp(-1, 1)
        return (reader(x).argmax(1) == first) & (reader(view(x)).argmax(1) == second)

    found = {}
    for name, (view, back) in VIEWS.items():
        right = torch.stack([drawn(view, back, seed, mean=True) for seed in range(4)])
        other = right[:, first != second].double().mean().item()
        found[name] = {
            "both": right.double().mean().item(),
            "best_of_4": right.any(0).double().mean().item(),
            "both_of_two_different_digits": other,
        }
    in_turn = drawn(*VIEWS["quarter turn"], 0, mean=False, steps=20)
    return found | {"quarter turn, one view a step": in_turn.double().mean().item()}


# ---------------------------------------------------------------- recorded trainings


def leaking(sd, latents, dataset) -> EditLatents:
    """The mistake of who forgets to empty the hole: beside z_t is the picture that is asked for."""
    holes = with_holes(sd, latents, dataset)
    return EditLatents(latents, torch.cat([holes.picture[:, :1], latents.z_0], 1))


def without_noise(sd, latents, dataset) -> EditLatents:
    """What is enlarged is always clean, and so it is told."""
    clean = enlarged_latents(sd, len(latents), dataset)
    return EditLatents(latents, clean, embed_numbers(torch.zeros(len(latents), 1), 16))


RUNS = {  # what is trained, updates, and how it is measured
    "inpaint": (INPAINT, None, lambda sd: halved(sd, 100)),
    "inpaint_leak": (replace(INPAINT, beside=leaking), 300, lambda sd: halved(sd, 100)),
    "upscale": (UPSCALE, None, lambda sd: noisy_ones(sd, 100, 0.2)),
    # it knows no noise, and cannot be told of any
    "upscale_no_noise": (
        replace(UPSCALE, beside=without_noise),
        300,
        lambda sd: noisy_ones(sd, 100, 0.0),
    ),
}


def broken(args) -> dict:
    """Train one of RUNS that makes a mistake, and write it to --out."""
    recipe, steps, _ = RUNS[args.run]
    recipe = replace(recipe, train=replace(recipe.train, steps=steps or recipe.train.steps))
    started, record = time.perf_counter(), {}
    sd = train_editing(recipe, args.checkpoint, logged("UNet", recipe.train, record))
    card = {**asdict(recipe.train), **record, **machine(recipe, started, "cpu")}
    save(args.out, sd, {**sd.meta, "train": card}, dtype=torch.int8, base=recipe.base)
    return {"run": args.run, "loss": record["loss"][-1]}


def recorded(args) -> dict:
    """Losses, figures and pictures of a trained one of RUNS, to data/recorded/NAME.npz."""
    sd = load(args.model)
    figures, x = RUNS[args.run][2](sd)
    train = sd.meta["train"]
    losses = np.array(train["loss"], np.float32)
    card = {
        "command": f"python benchmarks/editing.py recorded --run {args.run}",
        "device": train["device"],
        "date": train["date"],
        "versions": f"Python {platform.python_version()}, torch {train['torch']}",
        "train": {k: v for k, v in train.items() if k != "loss"},
        "every": max(1, -(-train["updates"] // 200)),
        "snapshots": [{"updates": train["updates"], "seconds": train["seconds"], "ema": figures}],
    }
    path = data_folder() / "recorded" / f"{args.run}.npz"
    np.savez_compressed(path, card=json.dumps(card), losses=losses, ema=to_uint8(x).numpy()[None])
    return {"run": args.run, **figures, "bytes": path.stat().st_size}


def noisy_ones(sd, n: int, level: float) -> tuple[dict, torch.Tensor]:
    """dB of clean and of noisy small pictures enlarged; the first 12 noisy ones.

    level: what the model is told of the noisy ones.
    """
    x, captions = painted_digits("test", n, seed=1, held=None)[:]
    small = F.avg_pool2d(x, 2)
    noisy = (small + 0.15 * noise(small.shape[1:], range(n))).clamp(-1, 1)
    y, z = in_parts(sd, captions, small), in_parts(sd, captions, noisy, noise=level)
    found = {"clean": y, "noisy": z, "noisy_bicubic": enlarged(noisy)}
    return {name: psnr(x, made).mean().item() for name, made in found.items()}, z[:12]


WAYS = {f.__name__: f for f in (inpainting, upscaling, anagrams, control, broken, recorded)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=WAYS)
    parser.add_argument("--n", type=int, default=500, help="pictures (500)")
    parser.add_argument("--model", help="a name or a file, not what ships")
    parser.add_argument("--run", choices=RUNS, default="inpaint", help="which training")
    parser.add_argument("--out", help="file for what is trained")
    parser.add_argument("--checkpoint", help="to save to and go on from")
    report(WAYS, parser.parse_args(), "editing.py")


if __name__ == "__main__":
    main()
