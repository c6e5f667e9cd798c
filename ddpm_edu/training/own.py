"""A model of your own pictures, from nothing, in the time that you have. Notebook 17.

    own = suited("my-pictures")              as large as they are worth
    plan = fitted(own, seconds=600)          measured here: the network and its number of updates
    written = train_own(own, plan, "mine.safetensors")       `ddpm-edu train my-pictures/`

Without conditions, or with sub-folders as classes, a UNet of pixels learns. With captions a small
Stable Diffusion does: VAE and CLIP, then a UNet of latents. Its VAE starts from the emoji system's,
which has seen 1,911 drawings and no photograph.
"""

import hashlib
import itertools
import json
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
from ..diffusion import Cond, class_cond, guided, last, noise
from ..errors import CheckpointError, OptionError, multiple, one_of, sizes, warn, whole
from ..files.folder import Folder
from ..files.load import load, save
from ..networks.tokenizer import known_words
from ..networks.unet import SpaceToDepth, UNet, UNetConfig
from ..samplers import SAMPLERS
from ..schedule import Schedule
from ..systems.pipeline import draw
from ..systems.system import StableDiffusion, with_denoiser
from .autoencoder import measure_scale, with_scale
from .latents import Latents, encode
from .recipes import DENOISE, EMOJI, Recipe, start_at_zero
from .train import TrainConfig, TrainStep, train
from .whole_system import (
    assemble,
    checkpoints,
    fit_vae,
    last_step,
    logged,
    machine,
    train_clip,
    train_unet,
)

BY = ("nothing", "class", "caption")  # what a picture is asked for by
GUIDANCE = {"nothing": 1.0, "class": 1.5, "caption": 2.0}
SECONDS = 600.0
ENOUGH = 4000  # updates; where a network gets fewer in the time, a smaller one learns more
PIXELS = {32: (0, 0), 48: (0, 1), 64: (0, 1), 96: (1, 1), 128: (1, 1)}  # channels: depth
LATENTS = (32, 48, 64)  # channels
SHARES = {"vae": 0.25, "clip": 0.15, "unet": 0.6}  # of the time, with captions
SHEET = 16  # pictures that are drawn now and then


@dataclass(frozen=True)
class OwnPlan:
    """What a run is fitted to: these pictures and this machine."""

    by: str  # one of BY
    size: int  # the pictures' area is about size x size
    shapes: tuple[tuple[int, int], ...]  # (h, w) of each bucket
    pictures: str  # a digest of their names and captions
    channels: int  # of the UNet
    updates: int  # of the UNet
    updates_vae: int = 0
    updates_clip: int = 0
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self):
        one_of("OwnPlan.by", self.by, BY)
        sizes(self, size=(16, 256), channels=(8, 1024), updates=(1, 10**9), batch_size=(1, 10**4))
        object.__setattr__(self, "shapes", tuple(map(tuple, self.shapes)))  # JSON has lists

    @property
    def name(self) -> str:
        return f"own-{self.by}"

    def unet(self, classes: int) -> UNetConfig:
        """Of patches of pixels as channels: it works on 16 x 16, or so."""
        return UNetConfig(
            in_channels=3 * self.patch**2,
            channels=self.channels,
            mult=(1, 2),
            depth=PIXELS.get(self.channels, (0, 0)),
            middle=0,
            heads=(4, 4),
            vector=classes,
            blocks=1,
            groups=8,
        )

    @property
    def patch(self) -> int:
        return 4 if self.size >= 64 else 2

    def recipe(self, own: Own) -> Recipe:
        """With captions: the emoji system's, with these pictures and numbers of updates."""
        vae = replace(EMOJI.train_vae, steps=self.updates_vae, lr=3e-3, ema=0.98)
        clip = replace(EMOJI.train_clip, steps=self.updates_clip, batch_size=64)
        return replace(
            EMOJI,
            name=self.name,
            dataset=lambda: own,
            captions=lambda: list(own.captions),
            size=self.size,
            unet=replace(EMOJI.unet, channels=self.channels),
            text=replace(EMOJI.text, length=40),
            train_vae=replace(vae, seed=self.seed),
            train_clip=replace(clip, seed=self.seed),
            train_unet=self.run(),
        )

    def run(self, **changes) -> TrainConfig:
        """Of the UNet. Of pixels it is asked for x_0: v holds all the noise of a patch, which is
        more numbers than a narrow UNet can pass on."""
        changes = {**DENOISE, "predict": "v" if self.by == "caption" else "x_0", **changes}
        return TrainConfig(
            steps=self.updates,
            batch_size=self.batch_size,
            ema=min(0.998, 1 - 5 / max(10, self.updates)),
            t_mean=1.2 if self.by == "caption" else 0.5,
            seed=self.seed,
            save_every=200,
            **changes,
        )


# ---------------------------------------------------------------- fitted to pictures and machine


def suited(folder, captions: str = "auto", size: int | None = None, device: str = "cpu") -> Own:
    """The pictures as large as they are worth: 64 pixels a side, 32 where most are smaller, on a
    GPU up to 128; in buckets, but with captions in squares. Errors: see `own_pictures`."""
    if size is not None:
        whole("size", size, 16, 256, "pixels a side")
        multiple("size", size, "a step", 16)
    own = own_pictures(folder, size or 64, captions=captions)
    if size is None:
        side, most = own.sizes.amin(1).float().median(), 64 if device == "cpu" else 128
        size = next(s for s in (128, 64, 32) if s <= most and (side >= 0.75 * s or s == 32))
    if len(own) == 1:
        warn(f"{folder} holds a single picture: it will be learned by heart, and nothing else")
    shapes = [(size, size)] if by_of(own) == "caption" else buckets(size, 8, 2)
    return own_pictures(folder, size, captions=captions, shapes=shapes, least=OwnPlan.batch_size)


def by_of(own: Own) -> str:
    """What its pictures are asked for by, one of BY. A caption that all share says nothing."""
    if own.source == "folders":
        return "class" if len(own.names) > 1 else "nothing"
    return "caption" if len(set(own.captions)) > 1 else "nothing"


def fitted(
    own: Own, seconds: float = SECONDS, updates: int | None = None, device: str = "cpu"
) -> OwnPlan:
    """The largest network that gets ENOUGH updates in the time, by the pace of a few of them.

    updates: of the UNet (and at most so many of VAE and CLIP), then the smallest network.
    """
    by, (h, w) = by_of(own), own.shapes[0]
    size = max(16, round((h * w) ** 0.5 / 16) * 16)
    plan = OwnPlan(by, size, tuple(own.shapes), digest(own), 32, updates or 1)
    if by == "caption":
        for part, pace in _caption_paces(own, plan, device).items():
            its = max(1, int(SHARES[part] * seconds / pace))
            plan = replace(plan, **{f"updates_{part}": min(its, updates or its)})
        seconds = SHARES["unet"] * seconds
    for channels in () if updates else LATENTS if by == "caption" else PIXELS:
        larger = replace(plan, channels=channels)
        room = int(seconds / _unet_pace(own, larger, device))
        if room < ENOUGH and channels > 32:
            break
        plan = replace(larger, updates=max(1, room))
        if room < 2 * ENOUGH:  # the next one is about twice as slow
            break
    return plan


def timed(paces: list) -> Callable:
    """A `log` that notes the seconds of an update, and ends the run after a few."""

    def log(steps):
        yield next(steps)  # it prepares
        started = time.perf_counter()
        yield from itertools.islice(steps, 2)
        paces.append((time.perf_counter() - started) / 2)

    return log


def _unet_pace(own: Own, plan: OwnPlan, device) -> float:
    """Seconds an update of the plan's UNet; one of latents needs no more than their shapes."""
    paces, plan = [], replace(plan, updates=100)
    if plan.by != "caption":
        train_pixels(own, plan, log=timed(paces), device=device)
        return paces[0]
    recipe, n = plan.recipe(own), plan.batch_size
    side, texts = plan.size // 8, torch.randn(1, recipe.text.length, recipe.text.width)
    z = torch.randn(n, recipe.vae.latent, side, side)
    latents = Latents(z, texts, torch.zeros(n, dtype=torch.long), Cond(texts))
    unet = UNet(recipe.unet).to(device)
    last_step(timed(paces)(train(unet, recipe.schedule(), latents, recipe.train_unet)))
    return paces[0]


def _caption_paces(own: Own, plan: OwnPlan, device) -> dict[str, float]:
    """Seconds an update of VAE and CLIP."""
    recipe, paces = replace(plan, updates_vae=100, updates_clip=100).recipe(_enough(own)), []
    for part in (train_vae, train_clip):
        part(recipe, log=timed(paces), device=device)
    return dict(zip(("vae", "clip"), paces))


def _enough(own: Own) -> Own:
    """For batches of the CLIP."""
    return own.repeated(64)


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


def draw_pixels(model: nn.Module, own: Own, plan: OwnPlan, n: int = SHEET, seed: int = 0):
    """(n pictures, their captions), classes in turn, in the shape that most pictures have."""
    shape = own.shapes[own.bucket.bincount().argmax()]
    labels = torch.arange(n) % len(own.names) if plan.by == "class" else None
    cond = Cond() if labels is None else class_cond(labels, len(own.names))
    like = next(model.parameters())
    x_T = noise((3, *shape), range(seed, seed + n)).to(like.device)
    cond, model = cond.map(lambda c: c.to(like.device)), guided(model, GUIDANCE[plan.by])
    ask = dict(predict="x_0", clip=1.0)
    x = last(SAMPLERS["dpmpp_2m"](model, PIXEL_SCHEDULE, x_T, 20, cond, **ask))
    return x.cpu(), [""] * n if labels is None else [own.names[k] for k in labels.tolist()]


def some(captions, n: int = SHEET) -> list[str]:
    """n captions, different ones first, then once more."""
    texts = list(dict.fromkeys(captions))
    return [texts[k % len(texts)] for k in range(n)]


def draw_captions(sd: StableDiffusion, texts: list[str], seed: int = 0):
    """(pictures, texts), one a text."""
    seeds = list(range(seed, seed + len(texts)))
    return draw(sd, texts, seeds=seeds, progress=False).float().cpu(), texts


# ---------------------------------------------------------------- trained

PIXEL_SCHEDULE = Schedule.cosine()


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
) -> OwnPlan:
    """`ddpm-edu train FOLDER`: the plan that was followed, after saying what it is.

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
    return plan


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
    """Follow the plan and write the model, for `load`, `ddpm-edu sample` or `txt2img`.

    checkpoint: a folder; a run that stopped goes on from what is there.  watch: called with a
    `Seen` now and then.
    """
    captioned = plan.by == "caption"
    parts = ("vae", "clip", "unet") if captioned else ("unet",)
    files, record, started = checkpoints(plan, checkpoint, parts), {}, time.perf_counter()
    train_it = _train_captions if captioned else _train_pixels
    model, meta, how = train_it(own, plan, files, record, watch, device, dtype)
    card = {**asdict(plan), **record, **machine(plan.name, started, device), "number": len(own)}
    save(out, model, {**meta, "train": card}, dtype=torch.float16, **how)
    return Path(out)


def train_pixels(
    own: Own, plan: OwnPlan, checkpoint=None, log: Callable = iter, device="cpu", dtype="float32"
) -> TrainStep:
    """Algorithm 1 on pixels, by class or by nothing: the last step."""
    torch.manual_seed(plan.seed)
    unet = start_at_zero(UNet(plan.unet(len(own.names) if plan.by == "class" else 0)))
    model, data = SpaceToDepth(unet, plan.patch).to(device), own.repeated(plan.batch_size)
    run = plan.run(dtype=dtype)
    steps = train(model, PIXEL_SCHEDULE, data.classes(), run, checkpoint=checkpoint)
    return last_step(log(steps))


def train_vae(recipe: Recipe, checkpoint=None, log: Callable = iter, device="cpu"):
    """The emoji system's VAE goes on with these pictures, and gets their scale."""
    vae, own = load("emoji").vae.requires_grad_(True), recipe.dataset()
    vae = fit_vae(vae, recipe.losses, recipe.train_vae, own, checkpoint, log, device)
    return with_scale(vae, measure_scale(vae, own))


def _train_pixels(own, plan, files, record, watch, device, dtype):
    each = watched(watch, plan.updates, lambda step: draw_pixels(step.ema, own, plan))
    log = logged("UNet", plan.run(), record, each)
    step = train_pixels(own, plan, files["unet"], log, device, dtype)
    shape = own.shapes[own.bucket.bincount().argmax()]
    meta = {"shape": [3, *shape], "guidance": GUIDANCE[plan.by], "sampler": "dpmpp_2m", "clip": 1.0}
    meta["classes"] = list(own.names) if plan.by == "class" else []
    return step.ema.cpu(), meta, {"schedule": PIXEL_SCHEDULE, "predict": "x_0"}


def _train_captions(own, plan, files, record, watch, device, dtype):
    recipe, record["scale"] = plan.recipe(_enough(own)), None
    log = lambda part, run, **more: logged(part, run, record.setdefault(part, {}), **more)
    vae = train_vae(recipe, files["vae"], log("vae", recipe.train_vae), device)
    clip = train_clip(recipe, files["clip"], log("clip", recipe.train_clip), device)
    sd = assemble(recipe, vae.cpu(), clip.cpu()).to(device)
    sd.meta = {"words": sorted(known_words(own.captions))}
    record["scale"], run = round(vae.config.scale, 5), replace(recipe.train_unet, dtype=dtype)
    sheet = lambda step: draw_captions(_with_unet(sd, step.ema), some(own.captions))
    each = watched(watch, plan.updates, sheet)
    latents = encode(sd, own.repeated(plan.batch_size))
    train_unet(sd, latents, run, files["unet"], log("unet", run, each=each))
    return sd.cpu(), sd.meta, {}


def _with_unet(sd: StableDiffusion, unet: nn.Module) -> StableDiffusion:
    return with_denoiser(sd, (unet, sd.schedule, sd.predict, {}))
