"""A model of your own pictures, from nothing, in the time that you have. Notebook 17.

    own = suited("my-pictures")              as large as they are worth
    plan = fitted(own, seconds=600)          measured here: the network and its numbers of updates
    written = train_own(own, plan, "mine.safetensors")       `ddpm-edu train my-pictures/`

A small Stable Diffusion, all of it from random weights: VAE, CLIP, then a UNet of latents. Where
sub-folders are classes, a picture is asked for by their names; where nothing is told, by no text.
"""

import hashlib
import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..datasets.buckets import buckets
from ..datasets.own import Own, own_pictures
from ..errors import CheckpointError, OptionError, multiple, one_of, sizes, warn, whole
from ..files.folder import Folder
from ..files.load import save
from ..networks.tokenizer import known_words
from ..networks.vae import VAE
from ..systems.pipeline import draw
from ..systems.system import StableDiffusion, with_denoiser
from .autoencoder import measure_scale, with_scale
from .cuts import CutLatents, encode_cuts
from .recipes import FIVE_MINUTES, Recipe
from .train import TrainStep
from .whole_system import assemble, checkpoints, fit_vae, logged, machine, train_clip, train_unet

BY = ("nothing", "class", "caption")  # what a picture is asked for by
GUIDANCE = {"nothing": 1.0, "class": 2.0, "caption": 2.0}
SECONDS = 600.0
ENOUGH = 4000  # updates; where a UNet gets fewer in the time, a narrower one learns more
CHANNELS = (32, 48, 64, 96)  # of the UNet
SHARES = {"vae": 0.25, "clip": 0.07, "unet": 0.68}  # of the time
NO_TEXT = {"clip": 0.0, "unet": 0.75}  # where there is nothing to ask for
PARTS = tuple(SHARES)
TIMED = 4  # updates from which a pace is taken
LEAST = 16  # pictures of a bucket
SAVE_EVERY = 200  # updates between two checkpoints
SHEET = 16  # pictures that are drawn now and then


@dataclass(frozen=True)
class OwnPlan:
    """What a run is fitted to: these pictures and this machine."""

    by: str  # one of BY
    size: int  # the pictures' area is about size x size
    shape: tuple[int, int]  # (h, w) that most of them have; samples are drawn so
    pictures: str  # a digest of their names, captions and shapes
    channels: int  # of the UNet
    updates: int  # of the UNet
    updates_vae: int = 1
    updates_clip: int = 1
    batch_size: int = 48  # of the UNet
    seed: int = 0

    def __post_init__(self):
        one_of("OwnPlan.by", self.by, BY)
        sizes(self, size=(16, 256), channels=(8, 1024), updates=(1, 10**9), batch_size=(1, 10**4))
        object.__setattr__(self, "shape", tuple(self.shape))  # JSON has lists

    @property
    def name(self) -> str:
        return f"own-{self.by}"

    def recipe(self, own: Own) -> Recipe:
        """That of five minutes, with these pictures and numbers of updates. Its VAE folds pixels
        into channels until 16 x 16 or so are left, and works there: latents of 8 x 8 x 8. Its UNet
        is as wide below as above, for half as many updates more."""
        base = FIVE_MINUTES
        run = dict(seed=self.seed, save_every=SAVE_EVERY)
        return replace(
            base,
            name=self.name,
            dataset=lambda: own,
            captions=lambda: list(own.captions),
            vocab=4096,
            text=replace(base.text, length=40),
            size=self.size,
            vae=replace(base.vae, channels=32, mult=(1, 1), latent=8, patch=patch(self.size)),
            unet=replace(base.unet, in_channels=8, channels=self.channels, mult=(1, 1)),
            train_vae=replace(base.train_vae, steps=self.updates_vae, **run),
            train_clip=replace(base.train_clip, steps=self.updates_clip, batch_size=64, **run),
            train_unet=replace(
                base.train_unet,
                steps=self.updates,
                batch_size=self.batch_size,
                lr=1.2e-2,  # for half the batch
                **run,
            ),
            guidance=GUIDANCE[self.by],
            steps=20,
            interval=None,
        )


def patch(size: int) -> int:
    """Side of the squares of pixels that the VAE folds."""
    return 4 if size >= 64 else 2


# ---------------------------------------------------------------- fitted to pictures and machine


def suited(folder, captions: str = "auto", size: int | None = None, device: str = "cpu") -> Own:
    """The pictures as large as they are worth: 64 pixels a side, 32 where most are smaller, on a
    GPU up to 128; in buckets. Errors: see `own_pictures`."""
    if size is not None:
        whole("size", size, 16, 256, "pixels a side")
        multiple("size", size, "a step", 16)
    own = own_pictures(folder, size or 64, captions=captions)
    if size is None:
        side, most = own.sizes.amin(1).float().median(), 64 if device == "cpu" else 128
        size = next(s for s in (128, 64, 32) if s <= most and (side >= 0.75 * s or s == 32))
    if len(own) == 1:
        warn(f"{folder} holds a single picture: it will be learned by heart, and nothing else")
    shapes = buckets(size, 4 * patch(size), 2)  # the VAE halves a side once, and the UNet once more
    return own_pictures(folder, size, captions=captions, shapes=shapes, least=LEAST)


def by_of(own: Own) -> str:
    """What its pictures are asked for by, one of BY. A caption that all share says nothing."""
    if own.source == "folders":
        return "class" if len(own.names) > 1 else "nothing"
    return "caption" if len(set(own.captions)) > 1 else "nothing"


def fitted(
    own: Own, seconds: float = SECONDS, updates: int | None = None, device: str = "cpu"
) -> OwnPlan:
    """The widest UNet that gets ENOUGH updates in the time, by the pace of a few of them.

    updates: of the UNet (and at most so many of VAE and CLIP), then the narrowest.
    """
    h, w = shape = own.shapes[own.bucket.bincount().argmax()]
    by, size, plan = by_of(own), max(16, round((h * w) ** 0.5 / 16) * 16), None
    shares = SHARES | (NO_TEXT if by == "nothing" else {})
    for channels in CHANNELS:
        wider = OwnPlan(by, size, shape, digest(own), channels, 1)
        paces = _paces(own, wider, device)
        room = {part: max(1, int(shares[part] * seconds / paces[part])) for part in PARTS}
        if plan and room["unet"] < ENOUGH:
            break
        vae, clip = (min(room[part], updates or room[part]) for part in ("vae", "clip"))
        plan = replace(wider, updates_vae=vae, updates_clip=clip, updates=updates or room["unet"])
        if updates or plan.updates < 2 * ENOUGH:  # the next one is about twice as slow
            break
    return plan


def _paces(own: Own, plan: OwnPlan, device) -> dict[str, float]:
    """Seconds an update of each part, with some of the pictures."""
    paces, common = {part: [] for part in PARTS}, own.most_common()
    plan = replace(plan, updates=100, updates_vae=100, updates_clip=100)
    some = common.at(torch.arange(min(64, len(common))))
    train_parts(some, plan, log=lambda part, *_: timed(paces[part]), device=device)
    return {part: pace[0] for part, pace in paces.items()}


def timed(paces: list) -> Callable:
    """A `log` that notes the seconds of an update, and ends the run after a few."""

    def log(steps):
        yield next(steps)  # it prepares
        started = time.perf_counter()
        yield from itertools.islice(steps, TIMED)
        paces.append((time.perf_counter() - started) / TIMED)

    return log


def digest(own: Own) -> str:
    """Of names, captions and shapes."""
    told = [own.files, own.captions, own.shapes, own.bucket.tolist()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def begun(folder, own: Own, **asked) -> OwnPlan | None:
    """The plan of the run that `folder` has checkpoints of; None if there is none.

    asked: fields that must be as they were, None for any. CheckpointError for other pictures or
    options.
    """
    file = folder and Path(folder) / "plan.json"
    if not file or not file.exists():
        return None
    entries = Folder(folder).json(file.name)
    try:
        plan = OwnPlan(**{field.name: entries[field.name] for field in fields(OwnPlan)})
    except (KeyError, TypeError, OptionError) as e:
        raise CheckpointError(
            f"{file}: no plan of a run on own pictures ({e!s:.80}): name another folder"
        ) from None
    asked = {name: value for name, value in asked.items() if value is not None}
    now = {"pictures": digest(own), **asked}
    if changed := [name for name, value in now.items() if value != getattr(plan, name)]:
        raise CheckpointError(
            f"{folder}: the run there has other {', '.join(changed)}: go on with the same pictures "
            "and options, or name another folder to start anew"
        )
    return plan


# ---------------------------------------------------------------- a look now and then


class Seen(NamedTuple):
    """What `watch` gets ten times a run, and once early."""

    step: int
    steps: int  # of the whole run
    losses: list[float]  # of the updates so far, of those of an earlier process none
    pictures: Tensor  # (N, 3, h, w) in [-1, 1]
    captions: list[str]  # what each was asked for by


def watched(watch: Callable | None, steps: int, sheet: Callable) -> Callable:
    """each(step), for `logged`: watch(Seen) now and then; sheet(step) -> (pictures, captions)."""
    moments = {max(1, steps * k // 10) for k in range(1, 11)} | {max(1, steps // 50)}
    losses = []

    def each(step: TrainStep) -> None:
        losses.append(step.loss)
        if watch and step.step in moments:
            watch(Seen(step.step, steps, losses, *sheet(step)))

    return each


def some(captions, n: int = SHEET) -> list[str]:
    """n captions, different ones first, then once more."""
    texts = list(dict.fromkeys(captions))
    return [texts[k % len(texts)] for k in range(n)]


def draw_captions(sd: StableDiffusion, texts: list[str], seed: int = 0, size=None):
    """(pictures, texts), one a text."""
    seeds = list(range(seed, seed + len(texts)))
    return draw(sd, texts, size=size, seeds=seeds, progress=False).float().cpu(), texts


# ---------------------------------------------------------------- trained


def follow_own(
    folder,
    out,
    *,
    captions: str = "auto",
    size: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    checkpoint=None,
    watch: Callable | None = None,
) -> str:
    """`ddpm-edu train FOLDER`, after saying what it will do: the command that draws from `out`.

    steps: updates of the UNet.  seconds: SECONDS unless given; a run that goes on keeps its plan.
    """
    own = suited(folder, captions, size, device)
    plan = begun(checkpoint, own, updates=steps)
    minutes = f"about {(seconds or SECONDS) / 60:.3g} minutes here"
    about = "as before" if plan else "" if steps else minutes
    plan = plan or fitted(own, seconds or SECONDS, steps, device)
    kinds = {"nothing": "", "class": f" in {len(own.names)} classes", "caption": " with captions"}
    shapes = ", ".join(f"{w}x{h}" for h, w in own.shapes[:4])
    print(
        f"{len(own)} pictures{kinds[plan.by]} ({own.source}), {shapes}; a UNet {plan.channels} "
        f"wide, {plan.updates:,} updates of {plan.batch_size} pictures" + (about and f", {about}"),
        file=sys.stderr,
    )
    how = dict(checkpoint=checkpoint, device=device, dtype=dtype, watch=watch)
    train_own(own, plan, out, **how)
    (h, w), prompt = plan.shape, shlex.quote(asked_for(own, plan).captions[0])
    return f"txt2img {prompt} --model {out}" + (f" --size {w}x{h}" if h != w else "")


def train_own(
    own: Own,
    plan: OwnPlan,
    out,
    *,
    checkpoint=None,
    device: str = "cpu",
    dtype: str = "float32",
    watch: Callable | None = None,
) -> Path:
    """Follow the plan and write the system, for `load` and `ddpm-edu txt2img`.

    checkpoint: a folder; a run that stopped goes on from what is there.  watch: called with a
    `Seen` now and then.
    """
    files, record, started = checkpoints(plan, checkpoint, PARTS), {}, time.perf_counter()
    texts = some(asked_for(own, plan).captions)

    def log(part, run, sd=None):
        sheet = lambda step: draw_captions(_with_unet(sd, step.ema), texts, size=plan.shape)
        each = watched(watch, plan.updates, sheet) if sd else lambda step: None
        return logged(part, run, record.setdefault(part, {}), each)

    sd = train_parts(own, plan, files, log, device, dtype)
    record["scale"] = round(sd.vae.config.scale, 5)
    card = {**asdict(plan), **record, **machine(plan.name, started, device), "number": len(own)}
    save(out, sd, {**sd.meta, "train": card}, dtype=torch.float16)
    return Path(out)


def train_parts(
    own: Own,
    plan: OwnPlan,
    files=None,
    log: Callable = lambda *_: iter,
    device="cpu",
    dtype="float32",
) -> StableDiffusion:
    """VAE, CLIP, UNet, one after the other.

    files: {part: its checkpoint}.  log(part, run, system, of the UNet only): see `train_vae`.
    """
    own, files = asked_for(own, plan), files or dict.fromkeys(PARTS)
    recipe = plan.recipe(own.repeated(64))
    vae = train_vae(recipe, files["vae"], log("vae", recipe.train_vae), device)
    squares = replace(recipe, dataset=lambda: own.repeated(64).squares(plan.size))
    clip = train_clip(squares, files["clip"], log("clip", recipe.train_clip), device)
    sd = assemble(recipe, vae.cpu(), clip.cpu()).to(device)
    sd.meta = {"words": sorted(known_words(own.captions))}
    run = replace(recipe.train_unet, dtype=dtype)
    train_unet(sd, latents(sd, own, plan), run, files["unet"], log("unet", run, sd))
    return sd.cpu()


def asked_for(own: Own, plan: OwnPlan) -> Own:
    """With the texts that the model learns: none, where they would tell nothing apart."""
    return replace(own, captions=("",) * len(own)) if plan.by == "nothing" else own


def train_vae(recipe: Recipe, checkpoint=None, log: Callable = iter, device="cpu") -> VAE:
    """From random weights, on pictures of one bucket a batch; the scale is the largest bucket's."""
    own, run = recipe.dataset(), recipe.train_vae
    torch.manual_seed(run.seed)
    vae = fit_vae(VAE(recipe.vae), recipe.losses, run, own, checkpoint, log, device)
    return with_scale(vae, measure_scale(vae, own.most_common()))


def latents(sd: StableDiffusion, own: Own, plan: OwnPlan) -> CutLatents:
    """Through VAE and text encoder; of their sizes the UNet is told what it is told in drawing."""
    shown = replace(own, sizes=torch.tensor(own.shapes)[own.bucket])
    return encode_cuts(sd, shown.repeated(plan.batch_size))


def _with_unet(sd: StableDiffusion, unet: nn.Module) -> StableDiffusion:
    return with_denoiser(sd, (unet, sd.schedule, sd.predict, {}))
