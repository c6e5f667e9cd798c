"""A whole Stable Diffusion from random weights: VAE, CLIP and UNet, each trained on what the ones before it learned.

    1. VAE: pictures to small latents and back              (vae_loss.py; needs pictures only)
    2. CLIP: a tokenizer and a text encoder that knows what captions mean   (clip.py; in parallel with 1)
    3. UNet: denoises latents, told the text                (train.py, on latents worked out once: latents.py)

The classes are those of the full-size models; a `Mini` is nothing but sizes and three training runs.
"""

import dataclasses
import datetime
import json
import math
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ..errors import CheckpointError, OptionError, check_writable, in_range
from ..files.folder import Folder
from ..files.load import load_state
from ..files.tensors import load_tensors
from ..networks import clip as clip_module
from ..networks.clip import CLIP, CLIPConfig
from ..networks.text import TextConfig
from ..networks.tokenizer import known_words, train_tokenizer
from ..networks.unet import UNetConfig
from ..networks.vae import VAE, VAEConfig
from ..paths import replacing
from ..schedule import Schedule
from ..systems.system import NUMBERS, StableDiffusion, SystemConfig, build
from ..training import autoencoder as vae_loss
from .autoencoder import Autoencoder, LossWeights, measure_scale, with_scale
from .latents import Latents, encode
from .recipes import thin
from .train import TrainConfig, fit, progress, train


@dataclass(frozen=True)
class Mini:
    """A plan: data, sizes and one run a part.

    pictures: () -> dataset, dataset[index] -> (x_0, captions).  captions: () -> all texts the tokenizer learns its words from.
    text: its vocab is replaced by what the captions need.  clip: the vision side, as CLIPConfig takes it.
    vocab: most tokens.  latents: how many pictures the UNet sees (0: all).  shares: of the wall time that go to VAE and CLIP,
    side by side, where a total of seconds is asked for.  steps, guidance, interval: what suits the result,
    see SystemConfig.
    """

    name: str
    pictures: Callable
    captions: Callable
    vae: VAEConfig
    text: TextConfig
    clip: dict
    unet: UNetConfig
    train_vae: TrainConfig
    train_clip: TrainConfig
    train_unet: TrainConfig
    size: int
    weights: LossWeights = LossWeights()
    vocab: int = 1024
    latents: int = 0
    shares: tuple[float, float] = (0.25, 0.25)
    steps: int = 10
    guidance: float = 3.0
    interval: tuple[int, int] | None = None


# ---------------------------------------------------------------- the three parts


def train_vae(mini: Mini, config: TrainConfig, checkpoint=None, log: Callable = list) -> VAE:
    """Part 1. log: what runs the generator of steps, such as `progress`."""
    torch.manual_seed(config.seed)
    pictures = mini.pictures()
    model = Autoencoder(VAE(mini.vae), mini.weights)
    vae = _last(
        fit(model, pictures, config, vae_loss.objective, checkpoint=checkpoint), log
    ).ema.vae
    return with_scale(vae, measure_scale(vae, pictures))


def train_clip(mini: Mini, config: TrainConfig, checkpoint=None, log: Callable = list) -> CLIP:
    """Part 2: the tokenizer, then both encoders."""
    torch.manual_seed(config.seed)
    tokenizer = train_tokenizer(mini.captions(), mini.vocab, mini.text.length)
    text = dataclasses.replace(mini.text, vocab=tokenizer.bpe.get_vocab_size())
    clip = CLIP(CLIPConfig(text, size=mini.size, **mini.clip), tokenizer)
    steps = fit(clip, mini.pictures(), config, clip_module.objective(clip), checkpoint=checkpoint)
    return _last(steps, log).ema


def assemble(mini: Mini, vae: VAE, clip: CLIP) -> StableDiffusion:
    """A system of a trained VAE, the text side of a trained CLIP, and a UNet of random weights that starts by predicting 0.

    Like SD 1.5, the UNet reads every token's state, but where it takes a vector: then also the pooled text and sizes, like SDXL.
    """
    pooled = bool(mini.unet.vector)
    text = clip.config.text if pooled else dataclasses.replace(clip.config.text, projection=0)
    told = (
        dict(vector="sdxl", number_dim=(mini.unet.vector - text.projection) // NUMBERS["sdxl"])
        if pooled
        else {}
    )
    config = SystemConfig(
        mini.name,
        mini.unet,
        vae.config,
        (text,),
        predict=mini.train_unet.predict,
        size=mini.size,
        spacing="trailing",
        steps=mini.steps,
        guidance=mini.guidance,
        interval=mini.interval,
        **told,
    )
    torch.manual_seed(mini.train_unet.seed)
    sd = build(config, Schedule.cosine())
    sd.vae.load_state_dict(vae.state_dict())
    load_state(sd.text.encoders[0], clip.text.state_dict())
    sd.text.tokenizer = clip.tokenizer
    nn.init.zeros_(sd.unet.conv_out.weight)
    nn.init.zeros_(sd.unet.conv_out.bias)
    return sd


def train_unet(
    sd: StableDiffusion,
    latents: Latents,
    config: TrainConfig,
    checkpoint=None,
    log: Callable = list,
) -> StableDiffusion:
    """Part 3: Algorithm 1 on latents; sd then holds the averaged weights."""
    steps = train(sd.unet.requires_grad_(True), sd.schedule, latents, config, checkpoint=checkpoint)
    sd.unet.load_state_dict(_last(steps, log).ema.state_dict())
    return sd.eval().requires_grad_(False)


def _last(steps: Iterable, log: Callable):
    for step in log(steps):
        pass
    return step


# ---------------------------------------------------------------- all three


@dataclass(frozen=True)
class Trained:
    """What a run gives: the system, its CLIP, and a record (updates, seconds, loss curves, machine) for the card."""

    sd: StableDiffusion
    clip: CLIP
    record: dict


def train_mini(mini: Mini, seconds: float | None = None, folder=None) -> Trained:
    """All three parts, the first two at once on a core each.

    seconds: wall time for everything, shared out as the plan says; None: the plan's own updates.  folder: checkpoints go
    there, and a run that stopped goes on from them. Raises CheckpointError if they are of another plan, OptionError if the
    folder cannot be written to.
    """
    if seconds is not None and folder is not None:
        raise OptionError(
            "seconds and folder: a run by the clock cannot go on from a checkpoint, leave one of them out"
        )
    if seconds is not None:
        in_range("seconds", seconds, 0.1, 10**7, "wall time for all three parts")
    started = time.perf_counter()
    file = _files(mini, folder)
    for checkpoint in map(file, ("vae", "clip", "unet")):
        if checkpoint is not None and checkpoint.exists():
            load_tensors(checkpoint)  # a damaged one is better heard of now
    for_vae, for_clip = (
        {} if seconds is None else {"seconds": share * seconds} for share in mini.shares
    )
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        other = pool.submit(
            _clip_alone, mini, dataclasses.replace(mini.train_clip, **for_clip), file("clip")
        )
        torch.set_num_threads(max(1, threads - 1))

        # Once CLIP is done, its core helps the VAE: only where the clock rules, as other threads mean other last bits.
        def attend_to_clip():
            if other.done() and other.exception():
                raise other.exception()  # no need to wait for the VAE
            if other.done() and for_clip:
                torch.set_num_threads(threads)

        try:
            record = {"vae": {}, "clip": {}, "unet": {}}
            vae = train_vae(
                mini,
                dataclasses.replace(mini.train_vae, **for_vae),
                file("vae"),
                _logged("VAE", record["vae"], attend_to_clip),
            )
            clip, record["clip"] = other.result()
        finally:
            torch.set_num_threads(threads)
    sd = assemble(mini, vae, clip)
    pictures = mini.pictures()
    latents = encode(sd, pictures, mini.latents or None)
    rest = (
        {} if seconds is None else {"seconds": max(1.0, seconds - (time.perf_counter() - started))}
    )
    sd = train_unet(
        sd,
        latents,
        dataclasses.replace(mini.train_unet, **rest),
        file("unet"),
        _logged("UNet", record["unet"]),
    )
    sd.meta = {"words": sorted(known_words(mini.captions()))}
    record |= {
        "recipe": mini.name,
        "seconds": round(time.perf_counter() - started),
        "scale": round(vae.config.scale, 5),
        "torch": torch.__version__,
        "device": f"{platform.machine()} CPU, {threads} threads",
        "date": datetime.date.today().isoformat(),
    }
    return Trained(sd, clip, record)


def _clip_alone(mini, config, checkpoint):
    torch.set_num_threads(1)
    record = {}
    clip = train_clip(mini, config, checkpoint, _logged("CLIP", record))
    return clip, record


def _logged(name: str, record: dict, each: Callable = lambda: None) -> Callable:
    """Steps behind a progress bar, with a call of `each` a step; `record` gets their number and the loss curve."""

    def log(steps):
        losses = []
        for step in progress(steps, desc=name):
            each()
            losses += [step.loss] if math.isfinite(step.loss) else []  # NaN: nothing was left to do
            yield step
        record.update(updates=step.step, loss=thin(losses))

    return log


def _files(mini: Mini, folder) -> Callable:
    """name -> the checkpoint of that part, None without a folder, which holds the plan, too."""
    if folder is None:
        return lambda name: None
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OptionError(
            f"the folder for checkpoints, {folder}, cannot be made ({e}): name another one"
        ) from e
    check_writable(folder / "vae.safetensors")
    plan, file = _plan(mini), folder / "plan.json"
    before = Folder(folder).json("plan.json") if file.exists() else {}
    if changed := [
        f"{k} was {before[k]}, now {v}" for k, v in plan.items() if before.get(k, v) != v
    ]:
        raise CheckpointError(
            f"{folder}: the checkpoints there are of another plan ({'; '.join(changed)[:500]}): "
            "go on with the same one, or name another folder to start a new run"
        )
    with replacing(file) as part:
        Path(part).write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")
    return lambda name: folder / f"{name}.safetensors"


def _plan(mini: Mini) -> dict:
    """What the weights depend on, as JSON."""
    entries = {
        k: v
        for k, v in dataclasses.asdict(mini).items()
        if k not in ("shares", "steps", "guidance", "interval")
    }
    return json.loads(
        json.dumps(
            entries,
            default=lambda f: f"{f.__module__}.{getattr(f, '__qualname__', type(f).__name__)}",
        )
    )
