"""Recipes followed: a whole Stable Diffusion from random weights, VAE, CLIP, UNet. Notebook 09.

1. VAE: pictures to small latents and back                               (autoencoder.py)
2. CLIP: a tokenizer, and a text encoder that knows what captions mean   (beside 1)
3. UNet: denoises latents, reading the text         (latents.py, train.py, two cores: share.py)
4. the VAE's decoder goes on, where the recipe says so
"""

import dataclasses
import datetime
import json
import math
import platform
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import CheckpointError, OptionError, check_writable, in_range
from ..files.folder import Folder
from ..files.load import load_state
from ..files.tensors import load_tensors
from ..networks import clip as clip_module
from ..networks.clip import CLIP, CLIPConfig
from ..networks.tokenizer import known_words, train_tokenizer
from ..networks.vae import VAE, start_linear
from ..paths import replacing
from ..systems.system import NUMBERS, StableDiffusion, SystemConfig, build
from . import autoencoder
from .autoencoder import Autoencoder, LossWeights, measure_scale, only_decoder, with_scale
from .beside import Beside
from .latents import Latents, encode
from .recipes import Recipe, start_at_zero
from .share import shared
from .train import TrainConfig, fit, progress, train

# ---------------------------------------------------------------- the three parts

LISTEN = 3.0  # seconds of a part from which its pace is told

# log: what runs the generator of steps, such as `progress`.


def train_vae(recipe: Recipe, checkpoint=None, log: Callable = iter, device="cpu") -> VAE:
    """Part 1: the averaged VAE, with the scale of its latents."""
    config = recipe.train_vae
    torch.manual_seed(config.seed)
    pictures, vae = recipe.dataset(), VAE(recipe.vae)
    if recipe.vae.linear:
        start_linear(vae, pictures[torch.linspace(0, len(pictures) - 1, 1000).long()][0])
    vae = fit_vae(vae, recipe.losses, config, pictures, checkpoint, log, device)
    return with_scale(vae, measure_scale(vae, pictures))


def train_decoder(
    recipe: Recipe, vae: VAE, checkpoint=None, log: Callable = iter, device="cpu"
) -> VAE:
    """Part 4: the same VAE with a better decoder; its latents stay what they are."""
    vae, config, pictures = only_decoder(vae), recipe.train_decoder, recipe.dataset()
    return fit_vae(vae, recipe.losses, config, pictures, checkpoint, log, device, processes=None)


def fit_vae(
    vae: VAE, losses: LossWeights, config, pictures, checkpoint, log, device, processes=1
) -> VAE:
    """The averaged VAE."""
    given = (Autoencoder(vae, losses).to(device), pictures, config, autoencoder.objective)
    steps = shared(fit, *given, checkpoint=checkpoint, processes=processes)
    return last_step(log(steps)).ema.vae


def train_clip(recipe: Recipe, checkpoint=None, log: Callable = iter, device="cpu") -> CLIP:
    """Part 2: the tokenizer, then both encoders."""
    config = recipe.train_clip
    torch.manual_seed(config.seed)
    tokenizer = train_tokenizer(recipe.captions(), recipe.vocab, recipe.text.length)
    text = dataclasses.replace(recipe.text, vocab=tokenizer.bpe.get_vocab_size())
    clip = CLIP(CLIPConfig(text, size=recipe.size, **recipe.vision), tokenizer).to(device)
    objective = clip_module.objective(clip)
    return last_step(log(fit(clip, recipe.dataset(), config, objective, checkpoint=checkpoint))).ema


def assemble(recipe: Recipe, vae: VAE, clip: CLIP) -> StableDiffusion:
    """A trained VAE, the text side of a trained CLIP, and a UNet that starts by predicting 0.

    Like SD 1.5, the UNet reads every token's state; where it takes a vector, then also the pooled
    text and sizes, like SDXL.
    """
    text, vector = clip.config.text, {}
    if recipe.unet.vector:
        width = (recipe.unet.vector - text.projection) // NUMBERS["sdxl"]
        vector = dict(vector="sdxl", number_dim=width)
    else:
        text = dataclasses.replace(text, projection=0)
    config = SystemConfig(
        recipe.name,
        recipe.unet,
        vae.config,
        (text,),
        predict=recipe.train_unet.predict,
        size=recipe.size,
        spacing="trailing",
        steps=recipe.steps,
        guidance=recipe.guidance,
        interval=recipe.interval,
        **vector,
    )
    torch.manual_seed(recipe.train_unet.seed)
    sd = build(config, recipe.schedule())
    sd.vae.load_state_dict(vae.state_dict())
    load_state(sd.text.encoders[0], clip.text.state_dict())
    sd.text.tokenizer = clip.tokenizer
    start_at_zero(sd.unet)
    return sd


def train_unet(
    sd: StableDiffusion,
    latents: Latents,
    config: TrainConfig,
    checkpoint=None,
    log: Callable = iter,
    processes: int | None = 1,
) -> StableDiffusion:
    """Part 3: Algorithm 1 on latents; sd then holds the averaged weights. processes: `shared`."""
    given = (sd.unet.requires_grad_(True), sd.schedule, latents, config)
    steps = shared(train, *given, checkpoint=checkpoint, processes=processes)
    step = last_step(log(steps))
    sd.unet.load_state_dict(step.ema.state_dict())
    return sd.eval().requires_grad_(False)


def last_step(steps):
    return deque(steps, maxlen=1)[0]


# ---------------------------------------------------------------- all three


class Trained(NamedTuple):
    """What a run gives."""

    sd: StableDiffusion
    clip: CLIP
    record: dict  # updates, seconds, loss curves, machine, for the card


def train_system(
    recipe: Recipe,
    seconds: float | None = None,
    folder=None,
    device: str = "cpu",
    watch: Callable = lambda sd, step: None,
) -> Trained:
    """All parts, on two cores: CLIP beside the VAE, then UNet and decoder, each batch shared.

    seconds: wall time for everything, shared out as the recipe says; then the number of updates is
    what the measured speed allows, and every learning rate falls to 0 in time. None: the recipe's
    own updates, however long they take here.
    watch: called with the system and the TrainStep after every update of the UNet.
    folder: checkpoints go there, and a run that stopped goes on from them. Raises CheckpointError
    if they are of another recipe, OptionError if the folder cannot be written to.
    """
    if seconds is not None and folder is not None:
        raise OptionError(
            "seconds and folder: a run by the clock cannot go on: leave one of them out"
        )
    started = time.perf_counter()
    if seconds is not None:
        in_range("seconds", seconds, 0.1, 10**7, "wall time for all parts")
        for run, share in zip(("train_vae", "train_clip"), recipe.shares):
            recipe = by_clock(recipe, run, share * seconds)
    left = lambda: seconds - (time.perf_counter() - started)
    parts = ("vae", "clip", "unet", *(("decoder",) if recipe.train_decoder else ()))
    files, record = checkpoints(recipe, folder, parts), {part: {} for part in parts}

    with Beside(_train_clip, recipe, files["clip"], device) as other:
        log = logged("VAE", recipe.train_vae, record["vae"], other.attend, recipe.shares[0])
        vae = train_vae(recipe, files["vae"], log, device)
        clip, record["clip"] = other.result()
    sd = assemble(recipe, vae.cpu(), clip).to(device)
    latents = encode(sd, recipe.dataset(), recipe.latents or None)
    if seconds is not None:
        decoder = recipe.shares[2] if recipe.train_decoder else 0
        recipe = by_clock(recipe, "train_unet", left() - decoder * seconds)
    log = logged("UNet", recipe.train_unet, record["unet"], lambda step: watch(sd, step))
    sd = train_unet(sd, latents, recipe.train_unet, files["unet"], log, processes=None).cpu()
    if recipe.train_decoder:
        if seconds is not None:
            recipe = by_clock(recipe, "train_decoder", left())
        log = logged("decoder", recipe.train_decoder, record["decoder"])
        vae = train_decoder(recipe, vae, files["decoder"], log, device).cpu()
    sd.vae.load_state_dict(vae.state_dict())
    sd.meta = {"words": sorted(known_words(recipe.captions()))}
    scale = {"scale": round(vae.config.scale, 5)}
    return Trained(sd, clip, {**record, **scale, **machine(recipe.name, started, device)})


def by_clock(recipe: Recipe, run: str, seconds: float) -> Recipe:
    """The recipe with a run that lasts so long, whatever its number of updates."""
    config = dataclasses.replace(getattr(recipe, run), seconds=max(1.0, seconds))
    return dataclasses.replace(recipe, **{run: config})


def _train_clip(recipe, checkpoint, device):
    record = {}
    log = logged("CLIP", recipe.train_clip, record)
    return train_clip(recipe, checkpoint, log, device).cpu(), record


def logged(
    name: str,
    config: TrainConfig,
    record: dict,
    each: Callable = lambda step: None,
    share: float = 1.0,
) -> Callable:
    """Steps behind a progress bar; `each` is called with every step, record gets number and losses.

    share: of this part in the time of all. From its speed both are estimated, and said.
    """
    from tqdm.auto import tqdm

    def log(steps):
        losses, total = [], None if config.seconds else config.steps
        first = said = None
        for step in progress(steps, total, desc=name):
            each(step)
            first = first or (time.perf_counter(), step.step)  # that one waited for the data
            took, updates = time.perf_counter() - first[0], step.step - first[1]
            if not said and updates and took > LISTEN:
                pace = took / updates
                said = estimate(name, config, pace, share)
                tqdm.write(said, file=sys.stderr)
            losses += [step.loss] if math.isfinite(step.loss) else []  # NaN: nothing was left
            yield step
        record.update(updates=step.step, loss=thin(losses))

    return log


def estimate(name: str, config: TrainConfig, pace: float, share: float = 1.0) -> str:
    """What a part will take, or get done, at `pace` seconds an update; share: as in `logged`."""
    if config.seconds:
        updates = config.seconds / pace
        return f"{name}: {config.seconds:.0f} s, about {updates:,.0f} updates here"
    took = config.steps * pace
    whole = f"; all parts together about {_minutes(took / share)}" if share < 1 else ""
    return f"{name}: {config.steps:,} updates, about {_minutes(took)} here{whole}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{seconds / 60:.0f} minutes"


def thin(losses: list[float], points: int = 200) -> list[float]:
    """The curve as at most `points` means of equal stretches: small enough for a file's card."""
    width = max(1, -(-len(losses) // points))
    parts = (losses[i : i + width] for i in range(0, len(losses), width))
    return [round(sum(part) / len(part), 5) for part in parts]


def machine(name: str, started: float, device: str) -> dict:
    where = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    if device != "cpu":
        where = torch.cuda.get_device_name(device) if "cuda" in device else device
    return {
        "recipe": name,
        "seconds": round(time.perf_counter() - started),
        "torch": torch.__version__,
        "device": where,
        "date": datetime.date.today().isoformat(),
    }


def checkpoints(recipe, folder, parts: tuple[str, ...]) -> dict:
    """{part: its checkpoint}, None without a folder; there the recipe is kept, too."""
    if folder is None:
        return dict.fromkeys(parts)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OptionError(
            f"the folder for checkpoints, {folder}, cannot be made ({e}): name another one"
        ) from e
    files = {part: check_writable(folder / f"{part}.safetensors") for part in parts}
    for file in files.values():
        if file.exists():
            load_tensors(file)  # a damaged one is refused now
    plan, file = _plan(recipe), folder / "plan.json"
    before = Folder(folder).json(file.name) if file.exists() else plan
    changed = [f"{k} was {before.get(k)}, now {v}" for k, v in plan.items() if before.get(k) != v]
    if changed:
        raise CheckpointError(
            f"{folder}: the checkpoints there are of another recipe ({'; '.join(changed)[:500]}): "
            "go on with the same one, or name another folder to start a new run"
        )
    with replacing(file) as part:
        Path(part).write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    return files


def _plan(recipe: Recipe) -> dict:
    """What the weights depend on, as JSON."""
    later = ("shares", "steps", "guidance", "sampler", "interval")
    entries = {k: v for k, v in dataclasses.asdict(recipe).items() if k not in later}
    name = lambda f: f"{f.__module__}.{getattr(f, '__qualname__', type(f).__name__)}"
    return json.loads(json.dumps(entries, default=name))
