"""A LoRA, or a new word, of a system from your own pictures. Notebook 17.

    train_own_lora("my-pictures", "emoji", "mine.safetensors")            a minute or two on a CPU
    train_own_lora("my-pictures", "sdxl", "mine.safetensors", rank=16, device="cuda")

The LoRA of a small system that ships keeps what the system predicts of its own training pictures.
Latents and texts are worked out once; then VAE and text encoders leave the GPU. Large systems are
in bfloat16 there, and their blocks are run again on the way back (gradient checkpointing).
"""

import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.utils.data import Subset

from ..datasets.buckets import buckets
from ..datasets.own import Own, own_pictures
from ..datasets.reworded import reworded
from ..errors import DataError, OptionError, ResourceError, check_writable, multiple, warn, whole
from ..files.embedding import save_embedding
from ..files.load import config_of, load
from ..files.lora import save_lora
from ..networks.lora import ATTENTION
from ..networks.tokenizer import clean
from ..systems.arguments import kind_of
from ..systems.memory import lora_memory, memory_needed
from ..systems.system import StableDiffusion, SystemConfig
from .cuts import encode_cuts
from .dreambooth import prior_pictures, with_prior
from .latents import encode
from .lora import train_lora
from .own import draw_captions, some, timed, watched
from .recipes import RECIPES
from .train import TrainConfig
from .whole_system import last_step, logged, machine
from .words import train_word

LARGE = 256  # pixels a side, from which a system is SD, and wants a GPU
PRIOR = 100  # pictures of the class
WORDINGS = 256  # captions of a small system's own pictures, all together, see `reworded`
KEPT = 800  # training pictures of a small system, which it goes on drawing as before


@dataclass(frozen=True)
class Tuning:
    """How systems of one kind learn from a few pictures."""

    lora: TrainConfig
    word: TrainConfig
    rank: int
    where: str  # names of the layers that a LoRA changes
    sheet: int  # pictures that are drawn now and then


# Measured on the emoji system, sixteen pictures of one creature: benchmarks/zibs.py.
SMALL = Tuning(
    TrainConfig(steps=350, batch_size=8, lr=1e-2, warmup=10, ema=0.98, save_every=50),
    TrainConfig(steps=60, batch_size=8, lr=3e-2, warmup=10, ema=0.95, save_every=50),
    rank=4,
    where=r"\battn[12]\.(q|k|v|out)$|\.ff\.|\.proj_(in|out)$",
    sheet=12,
)
BIG = Tuning(
    TrainConfig(steps=1000, batch_size=1, lr=1e-4, warmup=50, ema=0.99, save_every=100),
    TrainConfig(steps=2000, batch_size=1, lr=5e-3, warmup=50, ema=0.99, save_every=100),
    rank=16,
    where=ATTENTION,
    sheet=2,
)


def tuning(config: SystemConfig) -> Tuning:
    return BIG if config.size >= LARGE else SMALL


# ---------------------------------------------------------------- before anything is loaded


def learner(name) -> SystemConfig:
    """The plan of a system that can learn so; OptionError for a refiner, one that edits, ..."""
    config = config_of(name)
    if kind_of(config) != "text" or config.vector in ("refiner", "step"):
        raise OptionError(
            f"{name} is {config.name}, which draws no picture of a text from noise alone, or draws "
            "in few steps: take emoji, painted, sd15, sd2-base, sdxl or the like"
        )
    return config


def say_memory(name, config: SystemConfig, rank: int, size, batch: int, device, dtype) -> None:
    """Before it starts, on standard error; ResourceError where the GPU has less."""
    how = dict(rank=rank, dtype=dtype, size=size, batch=batch, recompute=size >= LARGE)
    train, drawing = (
        lora_memory(config, **how),
        memory_needed(config, dtype, size, tuning(config).sheet),
    )
    kind = str(dtype).removeprefix("torch.")
    print(
        f"{name}: about {_bytes(train)} of memory in {kind} to train a LoRA of rank {rank} "
        f"at {size}x{size}, {_bytes(drawing)} to draw with it",
        file=sys.stderr,
    )
    if str(device).startswith("cuda"):
        there = torch.cuda.get_device_properties(device).total_memory
        if train > there:
            raise ResourceError(
                f"{name} needs {train / 2**30:.1f} GiB to train, and {device} has "
                f"{there / 2**30:.1f}: pass a smaller --size or --rank, or a smaller system"
            )


def _bytes(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def tuning_pictures(
    folder,
    config: SystemConfig,
    size: int,
    *,
    caption: str | None = None,
    captions: str = "auto",
    default: str = "",
    square: bool = False,
    batch: int = 1,
) -> Own:
    """Pictures for a system, each with a text; in buckets, where it has seen some or is large.

    caption: the text of all of them; default: of those without one. DataError where one has none.
    """
    step = config.vae.factor * 2 ** (len(config.unet.mult) - 1)
    whole("size", size, step, 2048, "pixels a side")
    multiple("size", size, "a step", step)
    square = square or not (size >= LARGE or config.vector == "sdxl")
    shapes = [(size, size)] if square else buckets(size, step, 2)
    texts = (
        dict(captions="none", default=caption)
        if caption
        else dict(captions=captions, default=default)
    )
    own = own_pictures(folder, size, shapes=shapes, least=batch, **texts)
    if not all(own.captions):
        n = own.captions.count("")
        raise DataError(
            f'{folder}: {n} of {len(own)} pictures have no caption: pass --caption "a photo of a '
            'sks dog" for all of them, put a .txt beside each, or name the files by what they show'
        )
    if len(own) == 1:
        warn(f"{folder} holds a single picture: it will be learned as it is, ground and all")
    return own


# ---------------------------------------------------------------- a LoRA


def train_own_lora(
    folder,
    name,
    out,
    *,
    rank: int | None = None,
    caption: str | None = None,
    captions: str = "auto",
    prior: str | None = None,
    size: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    checkpoint=None,
    watch: Callable | None = None,
) -> Path:
    """Train a LoRA of the system `name` on the pictures of a folder, and write it to `out`.

    rank, steps, size: the system's own unless given.  seconds: as many updates as the pace of the
    first ones allows.  caption, captions: see `tuning_pictures`.  prior: DreamBooth's text of the
    class; the system draws PRIOR pictures of it first, which it goes on learning.  dtype: of the
    weights that do not learn, bfloat16 on a GPU.  checkpoint: a file to go on from.  watch: called
    with a `Seen` now and then.
    """
    config, dtype = learner(name), dtype or _usual(device)
    how, size = tuning(config), size or config.size
    rank = how.rank if rank is None else whole("rank", rank, 1, 1024, "4 to 64 are usual")
    _refuse(out, checkpoint, seconds)
    batch = how.lora.batch_size
    texts = dict(caption=caption, captions=captions)
    square = prior is not None
    own = tuning_pictures(folder, config, size, batch=batch, square=square, **texts)
    say_memory(name, config, rank, size, batch, device, dtype)
    sd, started, record = load(name, device=device, dtype=dtype), time.perf_counter(), {}
    data = _data(sd, own.repeated(batch), prior, size)
    keep = None if prior or size >= LARGE else _known(sd)
    learn = dict(rank=rank, where=how.where, keep=keep, recompute=size >= LARGE)
    again = lambda run, **more: train_lora(sd, data, run, **learn, **more)
    with _only_unet(sd, device):
        run = _steps(how.lora, steps, seconds, lambda run, log: last_step(log(again(run))))
        asked = some(own.captions, how.sheet - bool(prior)) + [prior] * bool(prior)
        each = watched(watch, run.steps, lambda step: _sheet(sd, asked, device))
        step = last_step(logged("LoRA", run, record, each)(again(run, checkpoint=checkpoint)))
    card = {**asdict(run), **record, **machine(f"own LoRA of {config.name}", started, device)}
    card |= {"rank": rank, "number": len(own), "prior": prior}
    save_lora(out, step.ema.lora.cpu(), sd, {"train": card})
    return Path(out)


def _usual(device) -> torch.dtype:
    return torch.float32 if str(device) == "cpu" else torch.bfloat16


def _refuse(out, checkpoint, seconds) -> None:
    for path in (out, checkpoint):
        if path is not None:
            check_writable(path)
    if seconds is not None and checkpoint is not None:
        raise OptionError(
            "--seconds and --checkpoint: their updates are counted anew each time: pass --steps"
        )


def _data(sd: StableDiffusion, own: Own, prior: str | None, size: int):
    """Latents and texts, worked out once."""
    batch = max(1, 250 * 64**2 // size**2)
    if prior is None and size < LARGE and not sd.config.vector:
        return encode(sd, reworded(own, max(1, WORDINGS // len(own))), batch=batch)
    if prior is None:
        return encode_cuts(sd, own, batch=batch)
    how = dict(batch=max(1, batch // 10), size=size)
    drawn = prior_pictures(sd, prior, PRIOR, seed=10**6, **how)
    return with_prior(*(encode_cuts(sd, pictures, batch=batch) for pictures in (own, drawn)))


def _known(sd: StableDiffusion):
    """KEPT of the pictures that sd was trained on; None where they do not ship."""
    recipe = RECIPES.get(sd.config.name)
    if recipe is None:
        return None
    pictures = recipe.dataset()
    some = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:KEPT]
    return encode(sd, Subset(pictures, some))


def _steps(run: TrainConfig, steps, seconds, measure: Callable) -> TrainConfig:
    """The run with its number of updates: given, or what the time allows."""
    if seconds is not None:
        measure(replace(run, steps=100), timed(paces := []))
        steps = max(1, int(seconds / paces[0]))
    return run if steps is None else replace(run, steps=steps)


@contextmanager
def _only_unet(sd: StableDiffusion, device) -> Iterator[None]:
    """Within it VAE and text encoders are on the CPU."""
    try:
        for part in (sd.vae, sd.text):
            part.to("cpu")
        yield
    finally:
        for part in (sd.vae, sd.text):
            part.to(device)


def _sheet(sd, texts: list[str], device):
    """(pictures, texts) with what learns; where memory ends, a warning."""
    for part in (sd.vae, sd.text):
        part.to(device)
    try:
        return draw_captions(sd, texts)
    except ResourceError as e:
        warn(f"no samples are drawn, the training goes on ({e})")
        return torch.ones(1, 3, 8, 8), [""]
    finally:
        for part in (sd.vae, sd.text):
            part.to("cpu")


# ---------------------------------------------------------------- a word


def train_own_word(
    folder,
    name,
    out,
    word: str,
    *,
    start: str,
    caption: str | None = None,
    captions: str = "auto",
    size: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    checkpoint=None,
    watch: Callable | None = None,
) -> Path:
    """Textual inversion: teach the system `name` a word for the pictures, and write its vectors.

    start: a known word that comes near.  caption: holds the word, unless given only the word
    itself, of SD "a photo of" it; captions that hold it already stay.  The rest: `train_own_lora`.
    """
    config, dtype = learner(name), dtype or _usual(device)
    how, size = tuning(config), size or config.size
    if caption is not None and clean(word) not in clean(caption):
        raise OptionError(f"caption = {caption!r:.80} does not hold the new word: put {word} in")
    _refuse(out, checkpoint, seconds)
    about = caption or (f"a photo of {word}" if size >= LARGE else word)
    texts = dict(caption=caption) if caption else dict(captions=captions, default=about)
    own = tuning_pictures(folder, config, size, square=True, **texts)
    own = replace(
        own, captions=tuple(c if clean(word) in clean(c) else about for c in own.captions)
    )
    sd, started, record = load(name, device=device, dtype=dtype), time.perf_counter(), {}
    data = own.repeated(how.word.batch_size)

    def again(run, sd=sd, **more):
        return train_word(sd, data, word, run, start=start, **more)

    probe = lambda run, log: last_step(log(again(run, copy.deepcopy(sd))))
    run = _steps(how.word, steps, seconds, probe)
    each = watched(watch, run.steps, lambda step: draw_captions(sd, some(own.captions, how.sheet)))
    last_step(logged("word", run, record, each)(again(run, checkpoint=checkpoint)))
    card = {**asdict(run), **record, **machine(f"own word of {config.name}", started, device)}
    save_embedding(out, sd, word, {"train": {**card, "start": start, "number": len(own)}})
    return Path(out)
