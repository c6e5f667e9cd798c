"""What each part of SDXL's training is good for, in miniature: an oracle reads the pictures (notebook 13).

    python benchmarks/sdxl_craft.py shipped       measures load("sdxl-mini") and its refiner
    python benchmarks/sdxl_craft.py pairs --checkpoints FOLDER
                                                  trains each pair (with, without), and measures it:
                                                  writes data/recorded/sdxl_pairs.npz
    python benchmarks/sdxl_craft.py nights        trains on pixels with three kinds of noise, for
                                                  black and white grounds: sdxl_nights.npz

A pair has the same pictures, the same seed and the same number of updates, or the same time. 64 pictures
a point, DPM-Solver++(2M). One thread. The last line printed is one JSON object.
"""

import argparse
import functools
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from figures import provenance
from torch import nn
from torch.nn import functional as F

from ddpm_edu import load
from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.datasets.originals import Originals, captions, cut, originals, paint, parse
from ddpm_edu.datasets.painted import COLOURS
from ddpm_edu.diffusion import Cond, class_cond, guided, last, noise
from ddpm_edu.files.tensors import load_tensors
from ddpm_edu.metrics.cuts import obeyed, read_cuts
from ddpm_edu.metrics.frechet import frechet
from ddpm_edu.networks.unet import SpaceToDepth, UNet
from ddpm_edu.paths import data_folder
from ddpm_edu.samplers import SAMPLERS, sampling_times
from ddpm_edu.schedule import Schedule
from ddpm_edu.systems.pipeline import draw, embed_numbers
from ddpm_edu.systems.system import NUMBERS, StableDiffusion, build
from ddpm_edu.training.cuts import WithText, cuts, encode_cuts, with_ids
from ddpm_edu.training.recipes import MNIST, start_at_zero
from ddpm_edu.training.sdxl import BUCKETS, DENOISE_48, SDXL_RECIPE
from ddpm_edu.training.train import train
from ddpm_edu.training.whole_system import last_step, logged, train_unet

# Asked, of a square original; above 48 the mini gets no sharper.
SIZES = (12, 15, 18, 22, 27, 33, 40, 48)
CROPS = tuple(range(4, 29, 3))  # asked, of the 32 pixels by which an original of 1 : 2 hangs over
UNTRAINED = [(44, 24), (24, 44)]
POINT = 64  # pictures a point


def some(n: int, held: bool | None = False, seed: int = 0, ground: str = "") -> list[str]:
    """n captions drawn by lot."""
    every = [text for text in captions(held) if ground in text]
    return random.Random(seed).choices(every, k=n)


def pictures(sd, texts, size=(32, 32), original=None, steps=10, **options):
    """(N, 3, h, w), POINT at a time; the original is sharp and of the target's shape unless given."""
    original = original or tuple(2 * side for side in size)
    same = dict(size=size, original_size=original, steps=steps, progress=False, **options)
    parts = torch.arange(len(texts)).split(POINT)
    return torch.cat([draw(sd, [texts[k] for k in p], seeds=p.tolist(), **same) for p in parts])


# ---------------------------------------------------------------- what is measured


def rank(values) -> np.ndarray:
    """Equal values share the mean of their ranks."""
    values = np.asarray(values)
    return ((values[:, None] > values).sum(1) + (values[:, None] >= values).sum(1) - 1) / 2


def correlation(a, b) -> float:
    """0 where one of them does not change."""
    return float(np.corrcoef(a, b)[0, 1]) if np.std(a) and np.std(b) else 0.0


def sharpness(sd, sizes=SIZES) -> dict:
    """Asked original size against measured sharpness, and that of real pictures of this size."""
    digits = originals("test", POINT)
    known = [digits.original(i) for i in range(POINT)]
    real = [
        torch.stack([cut(paint(d, o._replace(height=s, width=s)), (32, 32)) for d, o in zip(digits.digits, known)])
        for s in sizes
    ]  # fmt: skip
    data = [read_cuts(x / 127.5 - 1).sharpness.mean().item() for x in real]
    read = [read_cuts(pictures(sd, some(POINT), original=(s, s))).sharpness for s in sizes]
    mean = [r.mean().item() for r in read]
    return {
        "sizes": sizes,
        "sharpness": [round(m, 4) for m in mean],
        "spread": [round(r.std().item(), 4) for r in read],
        "data": [round(m, 4) for m in data],
        "spearman": correlation(rank(sizes), rank(mean)),
    }


def place(sd) -> dict:
    """Asked crop against where the digit lies, down and across; whole digits at (0, 0)."""
    result = {}
    for axis, name in enumerate(("down", "across")):
        original, asked, found, means = ((96, 48), (48, 96))[axis], [], [], []
        for crop in CROPS:
            at = (crop, 0) if axis == 0 else (0, crop)
            read = read_cuts(pictures(sd, some(POINT), original=original, crop=at))
            seen = read.ink != read.ground
            where = read.place[seen, axis].tolist()
            asked += [crop] * len(where)
            found += where
            means.append(round(float(np.mean(where)), 2) if where else None)
        result[name] = {"mean": means, "correlation": correlation(asked, found)}
    whole = read_cuts(pictures(sd, some(4 * POINT))).whole
    return {"crops": CROPS, **result, "whole": whole.double().mean().item()}


def by_bucket(sd, n: int = POINT) -> dict:
    """Prompts obeyed in each bucket, and in two shapes that were never trained."""
    shares = {}
    for size in (*BUCKETS, *UNTRAINED):
        texts = some(n)
        x = pictures(sd, texts, size=size)
        shares["{}x{}".format(*size)] = {
            "obeyed": obeyed(x, texts).double().mean().item(),
            "whole": read_cuts(x).whole.double().mean().item(),
        }
    return shares


def brightness(sd, **options) -> dict:
    """Mean of pictures on black and on white grounds, and how far from the data's.

    As a share of the way from black to white.
    """
    result = {}
    for ground in ("black", "white"):
        texts = some(POINT, ground=f"on a {ground}")
        x = pictures(sd, texts, **options)
        real = data_on(ground)
        result[ground] = {
            "mean": x.mean().item(),
            "data": real.mean().item(),
            "off": abs(x.mean().item() - real.mean().item()) / 2,
        }
    return result


@functools.cache
def data_on(ground: str) -> torch.Tensor:
    """Sharp square pictures of the training data on this ground."""
    every = originals("train", 6000)
    own = [
        i
        for i in range(len(every))
        if every.original(i).ground == ground and min(every.original(i)[3:5]) >= 32
    ]
    data = cuts(every, BUCKETS)
    own = torch.tensor([i for i in own if BUCKETS[data.bucket[i]] == (32, 32)])
    return data[own][0]


def details(x: torch.Tensor) -> torch.Tensor:
    """What a blur of 5 x 5 pixels takes away, in patches of 4 x 4: (N, 3, h, w) -> (patches, 48)."""
    fine = x - F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    patches = F.unfold(fine, 4, stride=4).transpose(1, 2).flatten(0, 1)
    return patches[patches.abs().amax(1) > 0.1]  # flat ground has none


def refined(base, refiner, n: int = 256, steps: int = 30) -> dict:
    """Details of pictures by the base alone and with the refiner, as many evaluations each."""
    data = cuts(originals("test", 4000, held=None), BUCKETS)
    large = data.originals.sizes().min(1).values >= 48
    own = (large & (data.bucket == BUCKETS.index((32, 32)))).nonzero()[:n, 0]
    real, texts, result = details(data[own][0]), some(n, held=None), {}
    for name, other in (("base", None), ("refiner", refiner)):
        x = pictures(base, texts, steps=steps, refiner=other)
        result[name] = {
            "frechet": frechet(details(x), real),
            "obeyed": obeyed(x, texts).double().mean().item(),
            "sharpness": read_cuts(x).sharpness.mean().item(),
        }
    result["lower"] = 1 - result["refiner"]["frechet"] / result["base"]["frechet"]
    return result


def obedience(base, refiner, n: int = 500) -> dict:
    """Prompts obeyed, of combinations in training and held out, in 30 steps with the refiner."""
    result = {}
    for name, held in (("seen", False), ("held_out", True)):
        texts = some(n, held)
        x = pictures(base, texts, steps=30, refiner=refiner)
        result[name] = obeyed(x, texts).double().mean().item()
    started = time.perf_counter()
    draw(base, texts[0], refiner=refiner, steps=30, progress=False)
    return {**result, "seconds_a_picture": round(time.perf_counter() - started, 2)}


# ---------------------------------------------------------------- pairs

SQUARE = [(32, 32)]
# Each is trained on squares, from the shipped base, for --updates, but for what is said here.
# start: another one to go on from; "stage_2" is the recipe's after its squares, out of a folder of
# checkpoints; "" a UNet with random weights, the shipped VAE and encoders.
TRIALS = {
    "sizes": {},
    "no_sizes": {"sizes": False},
    "frozen": {"share": 0.4},
    "along": {"share": 0.4, "along": True},
    "small": {"start": "", "share": 0.8, "shapes": [(16, 16)]},
    "stages": {"start": "small", "share": 0.25},
    "direct": {"start": "", "as_long_as": ("small", "stages")},
    "squares": {"start": "stage_2", "share": 0.3},
    "buckets": {"start": "stage_2", "share": 0.3, "shapes": BUCKETS},
}


class NoNumbers(nn.Module):
    """A UNet that hears the six numbers as 0, as it did in its training."""

    def __init__(self, unet, config):
        super().__init__()
        self.unet = unet
        self.zeros = embed_numbers(torch.zeros(1, NUMBERS["sdxl"]), config.number_dim)

    def forward(self, x_t, t, cond):
        pooled = cond.vector[:, : -self.zeros.shape[1]]
        numbers = self.zeros.expand(len(pooled), -1)
        return self.unet(x_t, t, Cond(cond.context, torch.cat([pooled, numbers], 1)))


class Trained(NamedTuple):
    """A model of TRIALS, its loss curve, and what it took."""

    sd: StableDiffusion
    loss: list[float]
    updates: int
    seconds: float  # of the processor


def trained(
    name: str,
    before: dict[str, Trained],
    updates: int,
    digits: Originals,
    *,
    start: str = "shipped",
    shapes=SQUARE,
    share: float = 1.0,
    as_long_as: tuple[str, ...] = (),
    sizes: bool = True,
    along: bool = False,
) -> Trained:
    """One of TRIALS. share: of the updates; as_long_as: as many seconds as these."""
    shipped = load("sdxl-mini")
    torch.manual_seed(0)
    sd = build(shipped.config, shipped.schedule)
    if start:
        sd.load_state_dict((before[start].sd if start in before else shipped).state_dict())
    else:
        start_at_zero(sd.unet)
        sd.vae.load_state_dict(shipped.vae.state_dict())
        sd.text.load_state_dict(shipped.text.state_dict())
    sd.text.tokenizer = shipped.tokenizer
    if as_long_as:  # the last of them has updates of the same cost
        like = before[as_long_as[-1]]
        updates = like.updates * sum(before[k].seconds for k in as_long_as) / like.seconds
    run = replace(DENOISE_48, steps=round(share * updates), lr=1e-2, ema=0.99)
    data = cuts(digits, shapes, stray=0.3 if len(shapes) > 1 else 0.0)
    latents, record = encode_cuts(sd, data, sizes), {}
    started, log = time.process_time(), logged(name, run, record)
    if along:
        model = WithText(sd).requires_grad_(True)
        steps = log(train(model, sd.schedule, with_ids(sd, data, latents), run))
        model.load_state_dict(last_step(steps).ema.state_dict())
        sd.eval().requires_grad_(False)
    else:
        train_unet(sd, latents, run, log=log)
    took = time.process_time() - started
    if not sizes:
        sd.unet = NoNumbers(sd.unet, sd.config)
    return Trained(sd, record["loss"], record["updates"], took)


def measured(name: str, one: Trained) -> tuple[dict, np.ndarray]:
    """Figures of one of TRIALS, and eight pictures."""
    sd = one.sd
    result = {"loss": one.loss, "updates": one.updates, "cpu_seconds": round(one.seconds)}
    if "size" in name:
        x = read_cuts(pictures(sd, some(4 * POINT)))
        result |= {"sharpness": sharpness(sd), "place": place(sd)}
        result |= {"asked_sharp": x.sharpness.tolist(), "whole": x.whole.double().mean().item()}
    if name in ("squares", "buckets"):
        result["by_bucket"] = by_bucket(sd)
    for key, held in (("seen", False), ("held_out", True)):
        texts = some(3 * POINT, held)
        result[key] = obeyed(pictures(sd, texts), texts).double().mean().item()
    return result, to_uint8(pictures(sd, some(8))).numpy()


# ---------------------------------------------------------------- night and snow, in pixels

SD = Schedule.sqrt_linear()
NIGHTS = {  # schedule, what is predicted, spacing, offset noise
    "plain": (SD, "eps", "leading", 0.0),
    "offset": (SD, "eps", "leading", 0.3),
    "zero": (SD.zero_terminal_snr(), "v", "trailing", 0.0),
}


class Grounds:
    """Square pictures, each with the number of its ground as a class."""

    def __init__(self, digits: Originals):
        data, names = cuts(digits, SQUARE), list(COLOURS)
        self.x = torch.cat([data[part][0] for part in torch.arange(len(data)).split(500)])
        self.ground = torch.tensor([names.index(parse(c)[2]) for c in digits.captions()])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index) -> tuple[torch.Tensor, Cond]:
        return self.x[index], class_cond(self.ground[index], len(COLOURS))


def night(name: str, updates: int, data: Grounds) -> tuple[dict, np.ndarray]:
    """One of NIGHTS: a UNet on pixels, where 3 x 32 x 32 numbers give brightness away.

    The mean of 64 pictures on black and of 64 on white, 30 steps, guidance 3; and 4 of each.
    """
    schedule, predict, spacing, offset_noise = NIGHTS[name]
    torch.manual_seed(0)
    unet = UNet(replace(MNIST.unet, in_channels=12, out_channels=12, vector=len(COLOURS)))
    model = SpaceToDepth(start_at_zero(unet), 2)
    run = replace(MNIST.train_unet, steps=updates, batch_size=32, ema=0.99, predict=predict)
    run = replace(run, t_distribution="uniform", offset_noise=offset_noise)
    started = time.process_time()
    model = last_step(train(model, schedule, data, run)).ema.eval()
    result, shots = {"updates": updates, "cpu_seconds": round(time.process_time() - started)}, []
    offset = int(spacing == "leading")
    times, end = sampling_times(schedule, 30, "ddim", spacing, offset=offset, end=-1)
    for ground in ("black", "white"):
        number = list(COLOURS).index(ground)
        steps = SAMPLERS["ddim"](
            guided(model, 3.0),
            schedule,
            noise((3, 32, 32), range(POINT)),
            times,
            class_cond(torch.full((POINT,), number), len(COLOURS)),
            predict=predict,
            end=end,
        )
        x, real = last(steps).clamp(-1, 1), data.x[data.ground == number]
        off = abs(x.mean().item() - real.mean().item()) / 2
        result[ground] = {"mean": x.mean().item(), "data": real.mean().item(), "off": off}
        shots.append(to_uint8(x[:4]))
    return result, torch.cat(shots).numpy()


def nights(updates: int, originals_n: int) -> dict:
    """All of NIGHTS."""
    data, result, shots = Grounds(originals("train", originals_n)), {}, {}
    for name in NIGHTS:
        result[name], shots[name] = night(name, updates, data)
        print(name, json.dumps(result[name]), flush=True)
    keep("nights", updates, originals_n, result, shots)
    return result


def keep(what: str, updates: int, originals_n: int, result: dict, shots: dict) -> None:
    """As data/recorded/sdxl_WHAT.npz."""
    options = f"--updates {updates} --originals {originals_n}"
    options += " --checkpoints FOLDER" * (what == "pairs")
    card = {
        "command": f"python benchmarks/sdxl_craft.py {what} {options}",
        "updates": updates,
        "originals": originals_n,
        **provenance(),
    }
    file = data_folder() / "recorded" / f"sdxl_{what}.npz"
    np.savez_compressed(file, card=json.dumps({**card, **result}), **shots)


def stage_2(checkpoints: Path) -> Trained:
    """The base that ships as it was before it saw buckets."""
    sd = load("sdxl-mini")
    weights = load_tensors(checkpoints / "stage_2.safetensors")[0]
    ema = {k.removeprefix("ema."): w for k, w in weights.items() if k.startswith("ema.")}
    sd.unet.load_state_dict(ema)
    return Trained(sd, [], SDXL_RECIPE.stages[1].run.steps, 0.0)


def pairs(updates: int, originals_n: int, checkpoints: Path) -> dict:
    """All of TRIALS, and what the training data has."""
    digits = originals("train", originals_n)
    real = read_cuts(cuts(originals("train", 1000), SQUARE)[range(1000)][0])
    result = {
        "data": {"sharpness": real.sharpness.tolist(), "whole": real.whole.double().mean().item()}
    }
    models, shots = {"stage_2": stage_2(checkpoints)}, {}
    for name, change in TRIALS.items():
        models[name] = trained(name, models, updates, digits, **change)
        result[name], shots[name] = measured(name, models[name])
        print(name, json.dumps({k: v for k, v in result[name].items() if k != "loss"}), flush=True)
        keep("pairs", updates, originals_n, result, shots)
    return result


def shipped() -> dict:
    base, refiner = load("sdxl-mini"), load("sdxl-mini-refiner")
    result = {}
    for name, measure in (
        ("obedience", lambda: obedience(base, refiner)),
        ("sharpness", lambda: sharpness(base)),
        ("sharpness up to 96", lambda: sharpness(base, (12, 17, 23, 31, 42, 56, 74, 96))),
        ("place", lambda: place(base)),
        ("by_bucket", lambda: by_bucket(base)),
        ("brightness", lambda: brightness(base)),
        ("brightness, guidance 2", lambda: brightness(base, guidance=2.0)),
        ("brightness, no guidance", lambda: brightness(base, guidance=1.0)),
        ("refined", lambda: refined(base, refiner)),
    ):
        result[name] = measure()
        print(name, json.dumps(result[name]), flush=True)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("shipped", "pairs", "nights"))
    parser.add_argument("--updates", type=int, default=1000, help="of each model")
    parser.add_argument("--originals", type=int, default=10000)
    about = "FOLDER of `ddpm-edu train sdxl-mini --checkpoint FOLDER`, for pairs"
    parser.add_argument("--checkpoints", type=Path, help=about)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "pairs" and not args.checkpoints:
        parser.error("pairs needs --checkpoints")
    runs = {
        "shipped": shipped,
        "pairs": lambda: pairs(args.updates, args.originals, args.checkpoints),
        "nights": lambda: nights(args.updates, args.originals),
    }
    print(json.dumps(runs[args.what]()))
