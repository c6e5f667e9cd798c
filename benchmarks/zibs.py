"""A creature that the emoji model has never seen, taught in several ways; the last line is one JSON.

    python benchmarks/zibs.py train --way rank-4 --out FOLDER     one way, trained
    python benchmarks/zibs.py measure --way rank-4 --out FOLDER   what it draws
    python benchmarks/zibs.py record --out FOLDER      all of FOLDER to data/recorded/zibs.npz
    python benchmarks/zibs.py slider --out FOLDER      rank-4 at several scales

Ways: rank-1 ... rank-16 (LoRA that keeps what is predicted of old emoji), rank-4-prior (old emoji
in each batch), rank-4-alone and full-alone (nothing but zibs; the whole UNet), word (textual
inversion). About 5 to 100 CPU seconds each, on one thread.
"""

import argparse
import copy
import io
import json
import re
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from figures import keep, provenance
from PIL import Image
from safetensors.torch import load_file, save_file

from ddpm_edu import Cond, load, loss
from ddpm_edu.datasets.emoji import emoji
from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.datasets.reworded import reworded
from ddpm_edu.datasets.zibs import read_colours, zibs
from ddpm_edu.files.embedding import load_embedding, save_embedding
from ddpm_edu.files.lora import load_lora, save_lora
from ddpm_edu.metrics.prototypes import emoji_order, zib_among
from ddpm_edu.networks.clip import retrieval
from ddpm_edu.networks.lora import attach
from ddpm_edu.show.plot import tile
from ddpm_edu.systems.pipeline import draw
from ddpm_edu.training.dreambooth import with_prior
from ddpm_edu.training.latents import encode
from ddpm_edu.training.lora import train_lora
from ddpm_edu.training.own_lora import SMALL
from ddpm_edu.training.train import train
from ddpm_edu.training.words import train_word

RUN = SMALL.lora  # what `ddpm-edu train FOLDER --lora emoji` does
ALONE = replace(RUN, steps=200)
RANKS = (1, 2, 4, 8, 16)
WAYS = {f"rank-{r}": RUN for r in RANKS} | {"rank-4-alone": ALONE}
WAYS |= {"full-alone": replace(ALONE, lr=1e-3, steps=120, predict="v")}
WAYS |= {"word": replace(RUN, lr=3e-2, steps=60)}
WAYS |= {"rank-4-prior": replace(RUN, batch_size=16, steps=250)}  # 8 own, 8 old
OTHERS = 200  # names of emoji that are drawn afterwards, none of them kept by the training
CHECKS = 5  # times on the way at which the losses are measured


class Renamed:
    """A dataset with other captions."""

    def __init__(self, dataset, caption):
        self.dataset, self.caption = dataset, caption

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        x_0, captions = self.dataset[index]
        return x_0, [self.caption(text) for text in captions]


# ---------------------------------------------------------------- train


def train_way(args) -> dict:
    """One way: trained, with its losses on the way; files WAY.* in --out."""
    sd, way = load("emoji"), args.way
    config = replace(WAYS[way], **({"steps": args.steps} if args.steps else {}))
    own = reworded(zibs(16))
    started, curves, losses = time.process_time(), [], []
    watch = Watch(sd) if way != "word" else None
    if way == "word":
        data = Renamed(own, lambda text: text.replace("zib", "<zib>"))
        steps = train_word(sd, data, "<zib>", config, start="monster")
    else:
        data = encode(sd, own)
        old = None if way.endswith("alone") else encode(sd, emoji().subset(emoji_order()[300:1100]))
        if way.endswith("prior"):
            data, old = with_prior(data, old), None
        if way.startswith("full"):
            unet = copy.deepcopy(sd.unet).requires_grad_(True)
            steps = train(unet, sd.schedule, data, config)
        else:
            rank = int(way.split("-")[1])
            steps = train_lora(sd, data, config, rank, where=SMALL.where, keep=old)
    before, watched = time.process_time() - started, 0.0
    for step in steps:
        losses.append(step.loss)
        if watch and (step.step % max(1, config.steps // CHECKS) == 0 or step.step == 1):
            began = time.process_time()
            curves.append([step.step, *watch(step.ema)])
            watched += time.process_time() - began
    seconds = time.process_time() - started - watched
    write(args.out, sd, way, step)
    card = {"train": vars(config), "cpu_seconds": round(seconds, 1), "curves": curves}
    card |= {"before_cpu_seconds": round(before, 1), "parameters": parameters(step, way)}
    card["losses"] = [round(x, 4) for x in losses]
    (args.out / f"{way}.json").write_text(json.dumps(card))
    return {"way": way, "cpu_seconds": card["cpu_seconds"], "curves": curves}


def parameters(step, way: str) -> int:
    learned = step.ema.vectors if way == "word" else getattr(step.ema, "lora", step.ema)
    return sum(p.numel() for p in learned.parameters())


def write(out: Path, sd, way, step) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if way == "word":
        save_embedding(out / "word.safetensors", sd, "<zib>")
    elif way.startswith("full"):
        save_file(dict(step.ema.state_dict()), out / f"{way}.safetensors")
    else:
        save_lora(out / f"{way}.safetensors", step.ema.lora, sd)


def taught(out: Path, way: str):
    """The emoji system with what was learned."""
    sd, file = load("emoji"), out / f"{way}.safetensors"
    if way == "word":
        load_embedding(file, sd)
    elif way.startswith("full"):
        sd.unet.load_state_dict(load_file(file))
    elif way != "none":
        attach(sd, load_lora(file, sd))
    return sd


class Watch:
    """Losses with the same t and eps each time: of the 16 zibs that are learned, of 16 others, and
    of 64 emoji."""

    def __init__(self, sd, seed: int = 11):
        some = emoji().subset(torch.arange(5, 1911, 30))
        sets = zibs(16), zibs(16, seed=60, known=False), some
        self.schedule, self.sets = sd.schedule, []
        generator = torch.Generator().manual_seed(seed)
        for dataset in sets:
            data = encode(sd, dataset)
            z_0, cond = data[torch.arange(len(data)).repeat(64 // len(data) or 1)]
            t = torch.randint(sd.schedule.T, (len(z_0),), generator=generator)
            self.sets.append((z_0, cond, t, torch.randn(z_0.shape, generator=generator)))

    @torch.no_grad()
    def __call__(self, model) -> list[float]:
        ask = lambda z_0, cond, t, eps: loss(
            model, self.schedule, z_0, Cond(*cond), t=t, eps=eps, predict="v"
        )
        return [round(ask(*part).item(), 4) for part in self.sets]


# ---------------------------------------------------------------- measure


def measure(args) -> dict:
    warnings.simplefilter("ignore")
    sd, clip, way = taught(args.out, args.way), load("emoji_clip"), args.way
    among = zib_among(clip)
    card = json.loads((args.out / f"{way}.json").read_text()) if way != "none" else {}
    word = "<zib>" if way == "word" else "zib"
    figures, pictures = {}, {}
    for kind, known, n in (("known", True, 16), ("new", False, args.n)):
        made = zibs(n, known=known).zibs
        x = drawn(sd, [z.caption.replace("zib", word) for z in made])
        figures[f"found_{kind}"] = share(among(x) == 0)
        right = [a == z.colour for a, z in zip(read_colours(x), made)]
        figures[f"colour_{kind}"] = sum(right) / len(right)
        pictures[kind] = x[:8]
    names = emoji().captions(emoji_order()[:OTHERS])
    x = drawn(sd, names)
    hundreds = [slice(k, k + 100) for k in range(0, OTHERS, 100)]
    figures["others"] = sum(retrieval(clip, x[k], names[k]) for k in hundreds) / len(hundreds)
    figures["others_by_picture"] = share(among(x[:99]) == torch.arange(1, 100))
    figures["false_alarms"] = share(among(x) == 0)
    pictures["others"] = x[[3, 8, 11, 17, 25, 34, 47, 60]]
    save_file(
        {k: to_uint8(v).contiguous() for k, v in pictures.items()}, args.out / f"{way}.pictures"
    )
    figures |= {"prompts": args.n, "names": OTHERS}
    card |= {"figures": figures, **about(f"train --way {way}")}
    (args.out / f"{way}.json").write_text(json.dumps(card))
    return {"way": way, **{k: v for k, v in card.items() if k not in ("losses", "curves", "train")}}


def share(answers) -> float:
    return answers.double().mean().item()


def drawn(sd, texts, batch: int = 25):
    seeds = lambda k: list(range(k, min(k + batch, len(texts))))
    parts = [
        draw(sd, texts[k : k + batch], seeds=seeds(k), progress=False)
        for k in range(0, len(texts), batch)
    ]
    return torch.cat(parts)


def about(command: str) -> dict:
    return {"command": f"python benchmarks/zibs.py {command}", **provenance()}


# ---------------------------------------------------------------- record

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
SCALED = (
    "zib, smiling, red hat", "zib, sleepy, blue hat", "zib, astonished, yellow hat",
    "zib, smiling, green hat", "red apple", "cat face",
)  # fmt: skip


def record(args) -> dict:
    """FOLDER's cards, pictures and singular values, to data/recorded/zibs.npz."""
    cards, arrays = {}, {}
    for file in sorted(args.out.glob("*.json")):
        way = file.stem
        cards[way] = json.loads(file.read_text())
        losses = cards[way].pop("losses", [])  # all are drawn of one way: the files must be small
        cards[way]["losses"] = [round(x, 3) for x in losses[0 if way == "rank-4" else -1 :]]
        found = load_file(args.out / f"{way}.pictures")
        x = torch.cat([found["new"][[0, 1, 3, 6]], found["others"][:2]]).float() / 127.5 - 1
        arrays[f"sheet_{way}"] = webp(x)
    cards["rank-4"]["moved"] = moved(args)
    arrays |= singular_values(args)
    shown = [*(zib.caption for k, zib in enumerate(zibs(8, known=False).zibs) if k in (0, 1, 3, 6))]
    card = {"ways": cards, "shown": shown + emoji().captions(emoji_order()[:100][[3, 8]])}
    return {"ways": list(cards), "bytes": write_npz("zibs", card, arrays)}


def slider(args) -> dict:
    """The LoRA of rank 4 at several scales, to data/recorded/zibs_scale.npz."""
    warnings.simplefilter("ignore")
    sd = load("emoji")
    zib, rows = load_lora(args.out / "rank-4.safetensors", sd), []
    attach(sd, zib)
    for zib.scale in SCALES:
        rows.append(draw(sd, list(SCALED), seeds=list(range(6)), progress=False))
    card = {"scales": SCALES, "scaled": SCALED}
    return {"bytes": write_npz("zibs_scale", card, {"sheet_scale": webp(torch.cat(rows))})}


def write_npz(name: str, card: dict, arrays: dict) -> int:
    task = "record" if name == "zibs" else "slider"
    return keep(name, about(f"{task} --out FOLDER") | card, arrays)


def webp(x, quality: int = 65):
    """Pictures, six in a row, as the bytes of a WebP."""
    out = io.BytesIO()
    Image.fromarray(tile(x, 6)).save(out, "WEBP", quality=quality, method=6)
    return np.frombuffer(out.getvalue(), np.uint8)


KINDS = {
    "self-attention": r"attn1",
    "queries of the picture": r"attn2\.q",
    "keys and values of the text": r"attn2\.(k|v)",
    "out of cross-attention": r"attn2\.out",
    "feed-forward": r"\.ff\.",
    "in and out of a block": r"proj_",
}


def moved(args) -> dict:
    """By kinds of layers, how far the LoRA of rank 4 moved them: the mean of |B A| / |W|."""
    sd = load("emoji")
    layers, lora = dict(sd.named_modules()), load_lora(args.out / "rank-4.safetensors", sd)
    far = {k: c.matrix().norm() / layers[k].weight.norm() for k, c in lora.items()}
    of = lambda names: [share for name, share in far.items() if re.search(names, name)]
    return {kind: round(torch.stack(of(names)).mean().item(), 3) for kind, names in KINDS.items()}


def singular_values(args) -> dict:
    """Of what full fine-tuning added to each attention layer: the 32 largest singular values, and
    the sum of all squares."""
    file = args.out / "full-alone.safetensors"
    if not file.exists():
        return {}
    before, after, found = load("emoji").unet.state_dict(), load_file(file), []
    for name, weight in before.items():
        if ".attn" in name and name.endswith("weight"):
            values = torch.linalg.svdvals(after[name] - weight)
            found.append(torch.cat([values[:32], values.square().sum()[None]]))
    return {"singular": torch.stack(found).numpy().astype(np.float32)}


TASKS = {"train": train_way, "measure": measure, "record": record, "slider": slider}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=TASKS)
    parser.add_argument("--way", choices=(*WAYS, "none"), default="rank-4")
    parser.add_argument("--out", type=Path, required=True, help="folder of what was learned")
    parser.add_argument("--n", type=int, default=120, help="new prompts (120)")
    parser.add_argument("--steps", type=int, help="updates, not the way's own")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(TASKS[args.what](args)))


if __name__ == "__main__":
    main()
