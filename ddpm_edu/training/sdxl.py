"""SDXL in miniature, base and refiner, from random weights: as SDXL was trained. Notebook 13.

1. VAE: cuts of all buckets to latents and back, then their scale
2. two CLIPs, the second one wider                                       (beside 1)
3. base, stage by stage: small squares, larger squares, buckets
4. refiner: the last fifth of the times, then the VAE's decoder goes on  (beside 3)

Podell et al. 2023 (arXiv 2307.01952), section 2. `ddpm-edu train sdxl-mini` follows SDXL_RECIPE.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from ..datasets.buckets import buckets
from ..datasets.originals import captions, originals
from ..files.load import load_state
from ..networks import clip as clip_module
from ..networks.clip import CLIP, CLIPConfig
from ..networks.tokenizer import known_words, train_tokenizer
from ..networks.vae import VAE
from ..schedule import Schedule
from ..systems.system import SDXL_MINI, SDXL_MINI_REFINER, StableDiffusion, SystemConfig, build
from .autoencoder import LossWeights, only_decoder, with_scale
from .beside import Beside
from .cuts import CutLatents, Cuts, cuts, encode_cuts, middle_cuts
from .recipes import DENOISE, MUON, start_at_zero
from .train import TrainConfig, fit
from .whole_system import checkpoints, fit_vae, last_step, logged, machine, train_unet

SQUARE = [(32, 32)]
BUCKETS = buckets(32, 4, 2.7)  # seven, from (48, 20) to (20, 48)


@dataclass(frozen=True)
class Stage:
    """A part of the base's training: shapes of the pictures, and its run."""

    shapes: list[tuple[int, int]]  # (h, w) in pixels
    run: TrainConfig
    stray: float = 0.0  # share of pictures in a bucket that is not the nearest, see `cuts`


@dataclass(frozen=True)
class SDXLRecipe:
    """Sizes and runs."""

    name: str
    base: SystemConfig
    refiner: SystemConfig
    train_vae: TrainConfig
    train_clip: TrainConfig
    stages: tuple[Stage, ...]
    train_refiner: TrainConfig
    train_decoder: TrainConfig  # the encoder, and with it every latent, stays as it is
    losses: LossWeights = LossWeights()
    vision: dict = field(default_factory=dict)  # the other side of both CLIPs, see CLIPConfig
    n: int | None = None  # originals; None: one for each of MNIST's 60,000 digits
    sizes: bool = True  # whether base and refiner learn where each picture comes from

    def schedule(self) -> Schedule:
        """Stable Diffusion's, rescaled to end in pure noise."""
        return Schedule.sqrt_linear().zero_terminal_snr()

    def cuts(self, stage: Stage) -> Cuts:
        """The training pictures of one stage."""
        return cuts(originals("train", self.n), stage.shapes, stray=stage.stray)


DENOISE_48 = TrainConfig(batch_size=48, ema=0.998, t_mean=0.3, **DENOISE)
SDXL_RECIPE = SDXLRecipe(
    "sdxl-mini",
    SDXL_MINI,
    SDXL_MINI_REFINER,
    train_vae=TrainConfig(steps=6000, batch_size=16, ema=0.99, warmup=20, clip_norm=100.0, **MUON),
    # decay: no norm follows the second-last layer, its numbers would grow
    train_clip=TrainConfig(steps=1500, batch_size=128, ema=0.98, weight_decay=0.1, **MUON),
    stages=(
        Stage([(16, 16)], replace(DENOISE_48, steps=3000)),
        Stage(SQUARE, replace(DENOISE_48, steps=2000, seed=1)),
        Stage(BUCKETS, replace(DENOISE_48, steps=5000, seed=2), stray=0.3),
    ),
    train_refiner=replace(
        DENOISE_48, steps=5000, t_share=0.2, t_distribution="uniform", t_mean=0.0, seed=3
    ),
    train_decoder=TrainConfig(
        steps=6000, batch_size=16, lr=5e-3, optimizer="muon", ema=0.99, clip_norm=100.0, seed=4
    ),
    vision=dict(patch=8, width=64, layers=2, heads=4, hidden=128),
)


# ---------------------------------------------------------------- the parts


def train_vae(recipe: SDXLRecipe, checkpoint=None, log: Callable = iter) -> VAE:
    """Part 1: the averaged VAE; its scale is still 1."""
    torch.manual_seed(recipe.train_vae.seed)
    pictures = recipe.cuts(recipe.stages[-1])
    vae = VAE(recipe.base.vae)
    return fit_vae(vae, recipe.losses, recipe.train_vae, pictures, checkpoint, log, "cpu")


def train_clip(recipe: SDXLRecipe, k: int, checkpoint=None, log: Callable = iter) -> CLIP:
    """Part 2: the CLIP whose text side is encoder k; its pictures are squares."""
    config, text = recipe.train_clip, recipe.base.text[k]
    torch.manual_seed(config.seed + k)
    tokenizer = train_tokenizer(captions(held=False), text.vocab, text.length)
    text = replace(text, projection=recipe.base.text[-1].projection)
    clip = CLIP(CLIPConfig(text, size=recipe.base.size, **recipe.vision), tokenizer)
    pictures = middle_cuts(originals("train", recipe.n), (recipe.base.size,) * 2)
    steps = fit(clip, pictures, config, clip_module.objective(clip), checkpoint=checkpoint)
    return last_step(log(steps)).ema


def assemble(
    config: SystemConfig, schedule: Schedule, vae: VAE, clips: list[CLIP], seed: int = 0
) -> StableDiffusion:
    """A base or a refiner of trained parts, with a UNet that starts by predicting 0."""
    torch.manual_seed(seed)
    sd = build(replace(config, vae=vae.config), schedule)
    sd.vae.load_state_dict(vae.state_dict())
    for encoder, clip in zip(sd.text.encoders, clips[-len(config.text) :]):
        load_state(encoder, clip.text.state_dict())
    sd.text.tokenizer = clips[-1].tokenizer
    sd.meta = {"words": sorted(known_words(captions(held=False)))}
    start_at_zero(sd.unet)
    return sd


def unit_latents(sd: StableDiffusion, latents: CutLatents) -> CutLatents:
    """Both get the scale that gives these latents a standard deviation of 1."""
    std = torch.cat([z.flatten() for z in latents.z_0]).std().item()
    with_scale(sd.vae, sd.vae.config.scale / std)
    sd.config = replace(sd.config, vae=sd.vae.config)
    return replace(latents, z_0=[z / std for z in latents.z_0])


def train_base(
    recipe: SDXLRecipe,
    sd: StableDiffusion,
    files: list | None = None,
    log: Callable = lambda stage: iter,
) -> StableDiffusion:
    """Part 3: each stage goes on from the averaged weights of the one before."""
    for k, stage in enumerate(recipe.stages):
        latents = encode_cuts(sd, recipe.cuts(stage), recipe.sizes)
        train_unet(sd, latents, stage.run, files and files[k], log(k))
    return sd


def train_refiner(
    recipe: SDXLRecipe, sd: StableDiffusion, checkpoint=None, log: Callable = iter
) -> StableDiffusion:
    """Part 4: as the base's last stage, but only the least noisy times."""
    latents = encode_cuts(sd, recipe.cuts(recipe.stages[-1]), recipe.sizes)
    return train_unet(sd, latents, recipe.train_refiner, checkpoint, log)


def train_decoder(recipe: SDXLRecipe, vae: VAE, checkpoint=None, log: Callable = iter) -> VAE:
    """Part 4, too: the same VAE with a better decoder."""
    pictures, config = recipe.cuts(recipe.stages[-1]), recipe.train_decoder
    return fit_vae(only_decoder(vae), recipe.losses, config, pictures, checkpoint, log, "cpu")


# ---------------------------------------------------------------- all of them


class TrainedSDXL(NamedTuple):
    """What a run gives."""

    base: StableDiffusion
    refiner: StableDiffusion
    record: dict  # updates, seconds, loss curves, machine, for the card


def train_sdxl(recipe: SDXLRecipe, folder=None) -> TrainedSDXL:
    """All parts: the CLIPs beside the VAE, the refiner beside the base, each a process on one core.

    folder: checkpoints go there, and a run that stopped goes on from them. Raises CheckpointError
    if they are of another recipe, OptionError if the folder cannot be written to.
    """
    started, schedule = time.perf_counter(), recipe.schedule()
    stages = [f"stage_{k + 1}" for k in range(len(recipe.stages))]
    parts = ("vae", "clip_1", "clip_2", *stages, "refiner", "decoder")
    files, record = checkpoints(recipe, folder, parts), {part: {} for part in parts}
    with Beside(_train_clips, recipe, files) as other:
        log = logged("VAE", recipe.train_vae, record["vae"], other.attend)
        vae = train_vae(recipe, files["vae"], log)
        clips, curves = other.result()
    record |= curves
    base = assemble(recipe.base, schedule, vae, clips)
    unit_latents(base, encode_cuts(base, recipe.cuts(recipe.stages[-1])))
    refiner = assemble(recipe.refiner, schedule, base.vae, clips, seed=1)
    with Beside(_train_refiner, recipe, base.vae, clips, files) as other:
        each = lambda step: other.attend()
        log = lambda k: logged(stages[k], recipe.stages[k].run, record[stages[k]], each)
        train_base(recipe, base, [files[stage] for stage in stages], log)
        weights, vae, curves = other.result()
    record |= curves
    refiner.unet.load_state_dict(weights)
    for sd in (base, refiner):
        sd.vae.load_state_dict(vae.state_dict())
    scale = {"scale": round(base.vae.config.scale, 5)}
    return TrainedSDXL(base, refiner, {**record, **scale, **machine(recipe.name, started, "cpu")})


def _train_clips(recipe, files):
    clips, record = [], {"clip_1": {}, "clip_2": {}}
    for k, part in enumerate(record):
        log = logged(f"CLIP {k + 1}", recipe.train_clip, record[part])
        clips.append(train_clip(recipe, k, files[part], log))
    return clips, record


def _train_refiner(recipe, vae, clips, files):
    record = {"refiner": {}, "decoder": {}}
    sd = assemble(recipe.refiner, recipe.schedule(), vae, clips, seed=1)
    log = logged("refiner", recipe.train_refiner, record["refiner"])
    unet = train_refiner(recipe, sd, files["refiner"], log).unet
    log = logged("decoder", recipe.train_decoder, record["decoder"])
    return unet.state_dict(), train_decoder(recipe, vae, files["decoder"], log), record
