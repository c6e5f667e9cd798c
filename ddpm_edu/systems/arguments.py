"""What `pipeline` looks at before it starts: prompts, seeds, sizes, systems. Notebook 09."""

import functools
import gzip
import json
import re
import unicodedata
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..errors import OptionError, ShapeError, checked_prompts, fits, warn, whole
from ..networks.tokenizer import unseen
from ..paths import data_folder
from .system import StableDiffusion, SystemConfig

MAX_SIDE = 8192  # pixels: more than any model was trained for, and attention fits nowhere
MOST_TIMES = 4  # a side of what is edited, of a side in training: 256 times the attention


def one_each(prompts, negative, seeds) -> tuple[list[str], list[str], list[int]]:
    """Prompts, negative prompts and seeds, one each a picture."""
    several = isinstance(seeds, Iterable) and not isinstance(seeds, (str, bytes, Tensor))
    many = list(seeds) if several else None
    if isinstance(prompts, str):
        prompts = [prompts] * (1 if many is None else len(many))
    prompts = checked_prompts(prompts)
    if isinstance(negative, str | None):
        negative = [negative or ""] * len(prompts)
    if not isinstance(negative, (list, tuple)):
        raise OptionError(f"negative = {negative!r:.40}: pass a text, or a list of one a picture")
    negative = checked_prompts(negative)
    if many is None:
        whole("seeds", seeds, 0, 2**63 - 1, "the first picture's, or a list of one a picture")
        many = list(range(seeds, seeds + len(prompts)))
    for name, rows in (("negative prompts", negative), ("seeds", many)):
        if len(rows) != len(prompts):
            raise OptionError(
                f"{len(rows)} {name} for {len(prompts)} prompts: pass one for all, or one a picture"
            )
    for seed in many:
        whole("seeds", seed, 0, 2**63 - 1, "one a picture")
    return prompts, negative, many


def spelt_out(sd: StableDiffusion, prompt: str) -> str:
    """The prompt with emoji as their names, for a system that says which words it was trained on.

    Warns of words that it never saw, and draws anyway.
    """
    words = sd.meta.get("words")
    if not words:
        return prompt
    if not prompt.isascii() and (names := _emoji_names()):
        plain = prompt.replace("\ufe0f", "")  # says only: in colour
        longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
        prompt = re.sub(longest_first, lambda match: f" {names[match[0]]} ", plain).strip()
        if prompt != plain:
            read = f"{plain!r:.200} is read {prompt!r:.200}"
            warn(f"{sd.config.name} saw words in training, no emoji: {read}")
    means = lambda word: unicodedata.category(word[0]).startswith(("L", "N", "So"))
    new = [word for word in unseen(prompt, frozenset(words)) if means(word)]
    if new:
        some = ", ".join(f"{word!r:.80}" for word in new[:10])
        warn(f"{sd.config.name} never saw {some} in training: what it draws for it is a guess")
    return prompt


@functools.cache
def _emoji_names() -> dict[str, str]:
    """{"🍎": "red apple"}, as data/emoji lists them; empty where it is not there."""
    try:
        listed = gzip.decompress((data_folder() / "emoji" / "names.json.gz").read_bytes())
        return {row[0].replace("\ufe0f", ""): row[1] for row in json.loads(listed)["emoji"]}
    except (OSError, EOFError, ValueError, LookupError):
        return {}


# ---------------------------------------------------------------- sizes


def size_of(sd, size) -> tuple[int, int]:
    """The size, or the system's own."""
    return picture_size(sd.config.size if size is None else size, sd.vae.factor)


def picture_size(size, factor: int = 8) -> tuple[int, int]:
    """(height, width) in pixels of a size given so, or as one side.

    Raises OptionError unless both are multiples of the VAE's factor, up to MAX_SIDE.
    """
    sides = size if isinstance(size, (tuple, list)) else (size, size)
    for side in two("size", sides, whole, factor, MAX_SIDE):
        if side % factor:
            less = side // factor * factor
            raise OptionError(
                f"size = {side} is no multiple of {factor}: choose {less} or {less + factor}"
            )
    return tuple(sides)


def not_too_large(sd, size, kind: str) -> None:
    """OptionError for a picture of far more pixels than sd was trained on: it would take hours."""
    own, times = sd.config.size, MOST_TIMES // (2 if kind == "enlarging" else 1)
    (height, width), most = size, own * times
    if height * width > most**2:
        raise OptionError(
            f"picture is {width} x {height} pixels, and {sd.config.name} draws {own} x {own}: "
            f"attention would take hours, make it smaller, up to about {most} x {most}, or choose "
            "a larger system"
        )


def two(name: str, value, check: Callable, *limits):
    """`value`, two numbers, after `check` (whole or in_range) of each."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        hint = ", (height, width)" if name.endswith("size") else ""
        raise OptionError(f"{name} = {value!r:.40}: pass two numbers{hint}")
    for number in value:
        check(name, number, *limits)
    return value


# ---------------------------------------------------------------- systems


def loaded(sd, name="sd") -> StableDiffusion:
    """sd, after a look whether it is one and has weights."""
    if not isinstance(sd, StableDiffusion):
        it = f"{sd!r:.80}".partition("\n")[0]
        raise OptionError(f'{name} = {it}: pass a StableDiffusion, such as load("sd15")')
    if gone := [part for part in ("unet", "vae", "text") if getattr(sd, part) is None]:
        raise OptionError(f"{name}.{gone[0]} is None: load or build the whole system")
    if weight(sd.unet).is_meta:
        raise OptionError(f"{name} is on the meta device, without weights: load it on the CPU")
    return sd


def dense(name, x, shape, whose) -> None:
    """ShapeError unless the tensor x has this shape and, off the meta device, numbers."""
    fits(name, x, shape, whose)
    if x.layout != torch.strided:
        raise ShapeError(f"{name} is {x.layout}: {whose} dense ones, pass {name}.to_dense()")
    if x.is_meta:
        raise ShapeError(f"{name} is on the meta device, where it has no numbers: {whose} them")


def drawable(sd, name="sd", begins=False, takes=("text",)) -> StableDiffusion:
    """sd, after a look whether it can draw so; begins: from nothing but noise.

    takes: the kinds of models, see `kind_of`, that will do.
    """
    loaded(sd, name)
    kind, said = kind_of(sd.config), f"{name} = {sd.config.name}"
    if kind not in takes:
        beside = sd.config.unet.in_channels - sd.config.vae.latent
        ways = {
            "text": "load one that was trained for it",
            "inpainting": "use inpaint or edit",
            "enlarging": "use upscale or edit",
        }
        remedy = ways.get(kind, f"{beside} channels of its UNet are for what is not given here")
        wanted = " or ".join({"text": "drawing from a text"}.get(k, k) for k in takes)
        raise OptionError(f"{said} is a model for {kind}, not for {wanted}: {remedy}")
    if begins and sd.config.vector == "refiner":
        raise OptionError(f"{said} is a refiner: draw with a base first, or use image_to_image")
    return sd


def kind_of(config: SystemConfig) -> str:
    """What a system is for, by its UNet's channels besides those of a latent."""
    latent, beside = config.vae.latent, config.unet.in_channels - config.vae.latent
    if config.vector == "upscaler":
        return "enlarging"
    return {0: "text", latent + 1: "inpainting", latent: "instruct-pix2pix"}.get(
        beside, "something else"
    )


def same_latents(sd, refiner) -> None:
    """OptionError unless channels, scale and pixels a latent pixel are equal.

    The scale, 1 / the standard deviation of a VAE's latents, tells trained VAEs apart. One of equal
    numbers but other weights cannot be told from one that was mended, and passes.
    """
    numbers = "{0.latent} channels, scale {0.scale:.6g}, {0.factor} pixels a latent pixel"
    a, b = (numbers.format(s.config.vae) for s in (sd, refiner))
    if a != b:
        raise OptionError(
            f"{refiner.config.name} cannot go on from {sd.config.name}: their latents differ ({b}; "
            f"{a}). Take the refiner that was trained with this base"
        )


def weight(model) -> Tensor:
    """The first of a network's weights: its type and device are those of all."""
    return next(model.parameters())
