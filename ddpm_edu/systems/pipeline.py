"""Text to picture: text -> condition, noise -> latent by a sampler, latent -> picture. Notebook 09.

Nothing here is new: a condition for the UNet, guidance around it, one of SAMPLERS. Sizes are
(height, width) in pixels. Guidance = Ho & Salimans 2022 (arXiv 2207.12598), SDXL = Podell et al.
2023 (arXiv 2307.01952), pictures out of pictures = Meng et al. 2021 (SDEdit, arXiv 2108.01073).
"""

import functools
import gzip
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..diffusion import Cond, Denoiser, Step, check_interval, generators, guided, last, randn_like
from ..errors import (
    OptionError,
    SamplingError,
    ShapeError,
    checked_prompts,
    fits,
    in_range,
    pixels,
    warn,
    whole,
)
from ..networks.tokenizer import unseen
from ..networks.unet import timestep_embedding
from ..networks.vae import decode_tiled
from ..paths import data_folder
from ..samplers import SAMPLERS, karras_clock, noise_scale, sampling_times
from ..schedule import Schedule
from .guard import make_room, watched, within_memory
from .system import StableDiffusion

MAX_SIDE = 8192  # pixels: more than any model was trained for, and attention fits nowhere
OTHER_ASPECT = 0.05  # difference of the logarithms; two neighbouring buckets of SDXL have 0.12
TILED_FROM = 1536**2  # pixels: larger pictures are decoded in tiles unless told otherwise


def text_to_image(
    sd: StableDiffusion,
    prompts,
    *,
    negative="",
    seeds=0,
    size=None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    spacing: str | None = None,
    handover: float = 1.0,
    **more,
) -> Iterator[Step]:
    """One latent a prompt: yields a Step of x_t (B, 4, H/8, W/8) float32 a time; then `decode`.

    prompts, negative: a text, or a list of one a picture.  seeds: the first picture's, the others
    count up; or a list, one a picture (one prompt is then drawn with each). A picture depends on
    its own prompt and seed, not on the batch.  size: one side or (height, width), multiples of 8.
    size, steps, guidance, sampler, spacing: the system's own (see SystemConfig) unless given.
    handover: below 1, stop where t falls below T - handover T, for a refiner to go on.
    more: see `prompted`.

    Arguments are checked and texts encoded at the call: OptionError, ShapeError. While it runs:
    ResourceError where memory ends, SamplingError at the step that brings NaN or infinity.
    """
    prompts, negative, seeds = one_each(prompts, negative, seeds)
    size = _size(_system(sd, begins=True), size)
    walk = plan_walk(sd, steps, sampler, spacing).before(handover)
    model = prompted(sd, prompts, negative, guidance, size, **more)
    shape = len(prompts), sd.config.vae.latent, *(side // sd.vae.factor for side in size)
    gens = generators(seeds)
    x_T = walk.scale * randn_like(torch.empty(shape, device=_weight(sd.unet).device), gens)
    return walk.run(sd, model, x_T, gens)


def image_to_image(
    sd: StableDiffusion,
    prompts,
    picture: Tensor,
    *,
    strength: float,
    negative="",
    seeds=0,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    spacing: str | None = None,
    **more,
) -> Iterator[Step]:
    """SDEdit: noise the latent of a picture up to times[k], then walk times[k:].

    picture: (B, 3, H, W) in [-1, 1], or (1, 3, H, W) for all prompts.  strength: the share of the
    steps that is walked, up to 1; the lower, the more stays.  The rest: see `text_to_image`.
    """
    prompts, negative, seeds = one_each(prompts, negative, seeds)
    gens = generators(seeds)
    z_0 = encode(_system(sd), picture, gens)
    size = tuple(side * sd.vae.factor for side in z_0.shape[2:])
    walk = plan_walk(sd, steps, sampler, spacing).last(strength)
    model = prompted(sd, prompts, negative, guidance, size, **more)
    s, n = sd.schedule.signal_noise(walk.times[0])
    x = s * z_0 + n * randn_like(z_0, gens)  # q_sample(z_0, times[k]), whole or not
    return walk.run(sd, model, x, gens)


def refine(
    refiner: StableDiffusion,
    prompts,
    base: Iterable[Step] | Tensor,
    *,
    handover: float = 0.8,
    negative="",
    seeds=0,
    size=None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    spacing: str | None = None,
    **more,
) -> Iterator[Step]:
    """Pass on the Steps of a base that stops at `handover`, then walk the rest of the times.

        same = dict(steps=30, handover=0.8)
        refine(refiner, prompt, text_to_image(base, prompt, **same), **same)

    base: its Steps, or the latent with which it stopped, (B, 4, H/8, W/8), whose size is then meant
    unless given. Give base and refiner the same options: see `text_to_image`.
    """
    prompts, negative, seeds = one_each(prompts, negative, seeds)
    factor = _system(refiner, "refiner").vae.factor
    if size is None and isinstance(base, Tensor) and base.ndim == 4:
        size = tuple(side * factor for side in base.shape[2:])
    size = _size(refiner, size)
    shape = len(prompts), refiner.config.vae.latent, *(side // factor for side in size)
    if isinstance(base, Tensor) or not isinstance(base, Iterable):
        _holds("base", base, shape, "these prompts and this size take")
    walk = plan_walk(refiner, steps, sampler, spacing).after(handover)
    model = prompted(refiner, prompts, negative, guidance, size, **more)
    gens = generators(seed ^ 2**31 for seed in seeds)  # other noise than the base's

    def both(x):
        for step in () if isinstance(x, Tensor) else x:
            x = getattr(step, "x_prev", step)
            _holds("base", x, shape, "these prompts and this size take")
            yield step
        _holds("base", x, shape, "these prompts and this size take")  # it may have had no step
        x = x.to(_weight(refiner.unet).device, torch.float32)
        yield from walk.run(refiner, model, x, gens)

    return both(base)


# ---------------------------------------------------------------- how the UNet is asked


def prompted(
    sd: StableDiffusion,
    prompts,
    negative="",
    guidance: float | None = None,
    size=None,
    *,
    rescale: float = 0.0,
    interval: tuple[int, int] | None = None,
    original_size=None,
    crop=(0, 0),
    target_size=None,
    aesthetic=(6.0, 2.5),
) -> Denoiser:
    """sd's UNet as a Denoiser that knows its text: (x_t, t, whatever) -> prediction, guided.

    guidance: the scale, up to 1 none; rescale, interval: see `guided`; the system's own unless
    given.  original_size, crop (top, left), target_size, aesthetic (scores of prompt and negative
    prompt): what SDXL and its refiner are told, see `condition`; the sizes are `size` unless given.
    They are only numbers: a crop may lie outside. A target of another aspect than `size` is warned
    of: no picture of training was told so.
    """
    c, size = sd.config, _size(sd, size)
    guidance = in_range("guidance", c.guidance if guidance is None else guidance, 0, 100)
    in_range("rescale", rescale, 0, 1, "0 is plain guidance")
    interval = c.interval if interval is None else interval
    check_interval(interval, sd.schedule.T - 1)
    scores = _pair("aesthetic", aesthetic, in_range, 0, 10)
    told = {
        "original_size": size if original_size is None else original_size,
        "crop": crop,
        "target_size": size if target_size is None else target_size,
    }
    for name, pair in told.items():
        _pair(name, pair, whole, int(name != "crop"), 2**16)
    (h, w), (height, width) = told["target_size"], size
    if c.vector == "sdxl" and abs(math.log(h * width / (w * height))) > OTHER_ASPECT:
        warn(
            f"target_size = ({h}, {w}) has another aspect than the picture, ({height}, {width}): "
            f"{c.name} is told of a shape that it does not draw; pass target_size=None for its own"
        )
    texts = [spelt_out(sd, text) for text in checked_prompts(prompts)]
    empty = dict(told, score=scores[1], zero_empty=c.zero_empty)

    model = denoiser(sd)
    cond = within_memory(lambda: condition(sd, texts, **told, score=scores[0]))
    if guidance > 1:
        uncond = within_memory(lambda: condition(sd, checked_prompts(negative), **empty))
        model = guided(model, guidance, uncond, rescale=rescale, interval=interval)
    return lambda x_t, t, _=None: model(x_t, t, cond)


def condition(
    sd: StableDiffusion,
    texts: list[str],
    *,
    original_size,
    crop,
    target_size,
    score: float = 6.0,
    zero_empty: bool = False,
) -> Cond:
    """The texts as a Cond for sd.unet; SDXL's vector = pooled text ++ cosines and sines of numbers.

    Numbers (SDXL section 2.2), in pixels: original height, width, crop top, left, then target
    height, width (base) or the aesthetic score (refiner).  zero_empty: an empty text is zeros, its
    pooled text too, as SDXL base was trained. ShapeError if the encoders' width is not the UNet's.
    """
    cond, c = sd.text.encode(texts), sd.config
    if zero_empty:
        full = torch.tensor([bool(text.strip()) for text in texts], device=cond.context.device)
        cond = cond.map(lambda part: part * full.view(-1, *[1] * (part.ndim - 1)))
    context, vector = cond.context, None
    if c.vector:
        last = target_size if c.vector == "sdxl" else (score,)
        numbers = embed_numbers(torch.tensor([[*original_size, *crop, *last]]), c.number_dim)
        vector = torch.cat([cond.vector, numbers.to(context.device).expand(len(texts), -1)], dim=1)
    for name, part in (("context", context), ("vector", vector)):
        takes, width = getattr(c.unet, name), 0 if part is None else part.shape[-1]
        if width != takes:
            raise ShapeError(
                f"{c.name}: the text makes cond.{name} {width} wide, its UNet takes {takes}: "
                "the text encoders belong to another system"
            )
    return Cond(context, vector).map(lambda part: part.to(_weight(sd.unet)))


def embed_numbers(numbers: Tensor, dim: int) -> Tensor:
    """(B, n) -> (B, n dim): `dim` cosines and sines of each number, one number after the other."""
    return timestep_embedding(numbers.flatten(), dim).reshape(len(numbers), -1)


def denoiser(sd: StableDiffusion) -> Denoiser:
    """The UNet with float32 outside, whatever type it computes in."""
    dtype = _weight(sd.unet).dtype
    return lambda x_t, t, cond: sd.unet(x_t.to(dtype), t, cond).float()


# ---------------------------------------------------------------- the way down the noise


class Walk(NamedTuple):
    """A solver of SAMPLERS and the times that it visits."""

    schedule: Schedule
    sampler: str
    times: list[float]
    end: float  # where the last step leads
    scale: float  # of the first noise
    karras: bool  # the UNet is asked near by these times, see `karras_clock`

    def run(self, sd, model, x, gens) -> Iterator[Step]:
        """The Steps from x, which has the noise of the first time; sd is the owner of `model`."""
        make_room(sd, x)
        if self.karras:
            model = karras_clock(model, self.schedule, self.sampler)
        steps = SAMPLERS[self.sampler](
            model, self.schedule, x, self.times, predict=sd.predict, end=self.end, generator=gens
        )
        return watched(steps, len(self.times))

    def before(self, handover: float) -> "Walk":
        """The times down to T - handover T."""
        k = self._handover(handover)
        end = self.times[k] if k < len(self.times) else self.end
        return self._part("handover", handover, self.times[:k], end)

    def after(self, handover: float) -> "Walk":
        """The rest of the times."""
        times = self.times[self._handover(handover) :]
        return self._part("handover", handover, times, self.end)

    def last(self, strength: float) -> "Walk":
        """This share of the times, from the end."""
        steps = int(len(self.times) * in_range("strength", strength, 0, 1, "1 is from noise"))
        return self._part("strength", strength, self.times[len(self.times) - steps :], self.end)

    def _handover(self, share):
        T = self.schedule.T
        limit = round(T - in_range("handover", share, 0, 1, "the first system's share") * T)
        return sum(t >= limit for t in self.times)

    def _part(self, name, value, times, end):
        if not times:
            raise OptionError(f"{name} = {value} leaves no time to visit: there is nothing to do")
        return self._replace(times=times, end=end)


def plan_walk(sd: StableDiffusion, steps=None, sampler=None, spacing=None) -> Walk:
    """How sd walks, by its own config unless given: see `samplers.sampling_times`."""
    c = sd.config
    end = c.end if sampler in (None, c.sampler) else None
    sampler, spacing = sampler or c.sampler, spacing or c.spacing
    steps = c.steps if steps is None else steps
    at = sampling_times(sd.schedule, steps, sampler, spacing, offset=c.offset, end=end)
    scale = noise_scale(sd.schedule, at[0][0], sampler, spacing)
    return Walk(sd.schedule, sampler, *at, scale, spacing.endswith("karras"))


# ---------------------------------------------------------------- pictures and latents


def encode(sd: StableDiffusion, picture: Tensor, gens: list[torch.Generator]) -> Tensor:
    """A latent (B, 4, H/8, W/8) float32 of a picture (B or 1, 3, H, W), drawn from q(z | x)."""
    channels = sd.config.vae.in_channels
    _holds("picture", picture, ("B", channels, "H", "W"), "image_to_image takes")
    pixels("picture", picture, beyond=0.1)
    if len(picture) not in (1, len(gens)):
        raise ShapeError(f"{len(picture)} pictures for {len(gens)} prompts: pass one, or as many")
    x = picture.to(_weight(_sound(sd)), copy=False).expand(len(gens), -1, -1, -1)
    with torch.no_grad():
        parts = [
            within_memory(lambda: sd.vae.to_latent(one, [gen]))
            for one, gen in zip(x.split(1), gens)
        ]
    return torch.cat(parts).float().to(_weight(sd.unet).device)


def decode(sd: StableDiffusion, z: Tensor, tiled: bool | None = None) -> Tensor:
    """Pictures (B, 3, H, W) float32 in [-1, 1] of latents z (B, 4, H/8, W/8), one at a time.

    The VAE runs in float32 or bfloat16; one in float16 is turned into float32, for good, because
    SDXL's overflows.  tiled: see `decode_tiled`; None decides by the size. A VAE that is not the
    system's own is warned of: another scale, other colours. SamplingError for a picture of one
    colour or with NaN.
    """
    own, here = _loaded(sd).config.vae.scale, sd.vae.config.scale
    _holds("z", z, ("B", sd.vae.config.latent, "h", "w"), "this VAE decodes")
    if own != here:
        warn(
            f"the VAE in place has the scale {here:g}, but {sd.config.name} was trained on latents "
            f"of a VAE with {own:g}: they mean something else to it, expect wrong colours or noise"
        )
    like = _weight(_sound(sd))
    if tiled is None:
        tiled = z.shape[-2:].numel() * sd.vae.factor**2 > TILED_FROM
    run = (lambda z: decode_tiled(sd.vae, z)) if tiled else sd.vae.from_latent
    with torch.no_grad():
        x = [within_memory(lambda: run(one.to(like))).float().clamp(-1, 1) for one in z.split(1)]
    x = torch.cat(x)
    levels = (x * 127.5).round().flatten(1)
    for i, (low, high) in enumerate(zip(levels.amin(1).tolist(), levels.amax(1).tolist())):
        if not low < high:  # NaN too
            raise SamplingError(
                f"picture {i} holds {'NaN' if low != low else 'one colour only'}: the weights are "
                "broken or overflow; load the system in float32 or bfloat16"
            )
    return x


def draw(
    sd: StableDiffusion,
    prompts,
    *,
    refiner: StableDiffusion | None = None,
    handover: float = 0.8,
    tiled: bool | None = None,
    progress: bool = True,
    **options,
) -> Tensor:
    """`text_to_image`, with a refiner `refine`, and `decode`: pictures (B, 3, H, W) in [-1, 1]."""
    from tqdm.auto import tqdm

    if refiner is None:
        steps = text_to_image(sd, prompts, **options)
    else:
        _same_latents(sd, _system(refiner, "refiner"))
        steps = text_to_image(sd, prompts, handover=handover, **options)
        steps = refine(refiner, prompts, steps, handover=handover, **options)
    total = options.get("steps") or sd.config.steps
    z = last(tqdm(steps, total=total, desc="drawing", disable=not progress))
    return decode(refiner or sd, z, tiled)


# ---------------------------------------------------------------- arguments


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
            warn(f"{sd.config.name} saw words in training, no emoji: {plain!r} is read {prompt!r}")
    means = lambda word: unicodedata.category(word[0]).startswith(("L", "N", "So"))
    new = [word for word in unseen(prompt, frozenset(words)) if means(word)]
    if new:
        warn(
            f"{sd.config.name} never saw {', '.join(map(repr, new))} in training: what it draws "
            "for it is a guess"
        )
    return prompt


@functools.cache
def _emoji_names() -> dict[str, str]:
    """{"🍎": "red apple"}, as data/emoji lists them; empty where it is not there."""
    try:
        listed = gzip.decompress((data_folder() / "emoji" / "names.json.gz").read_bytes())
        return {row[0].replace("\ufe0f", ""): row[1] for row in json.loads(listed)["emoji"]}
    except (OSError, EOFError, ValueError, LookupError):
        return {}


def _size(sd, size):
    return picture_size(sd.config.size if size is None else size, sd.vae.factor)


def picture_size(size, factor: int = 8) -> tuple[int, int]:
    """(height, width) in pixels of a size given so, or as one side.

    Raises OptionError unless both are multiples of the VAE's factor, up to MAX_SIDE.
    """
    sides = size if isinstance(size, (tuple, list)) else (size, size)
    for side in _pair("size", sides, whole, factor, MAX_SIDE):
        if side % factor:
            less = side // factor * factor
            raise OptionError(
                f"size = {side} is no multiple of {factor}: choose {less} or {less + factor}"
            )
    return tuple(sides)


def _pair(name, value, check, *limits):
    """`value`, two numbers, after `check` (whole or in_range) of each."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        hint = ", (height, width)" if name.endswith("size") else ""
        raise OptionError(f"{name} = {value!r:.40}: pass two numbers{hint}")
    for number in value:
        check(name, number, *limits)
    return value


def _loaded(sd, name="sd") -> StableDiffusion:
    """sd, after a look whether it is one and has weights."""
    if not isinstance(sd, StableDiffusion):
        it = f"{sd!r:.80}".partition("\n")[0]
        raise OptionError(f'{name} = {it}: pass a StableDiffusion, such as load("sd15")')
    if gone := [part for part in ("unet", "vae", "text") if getattr(sd, part) is None]:
        raise OptionError(f"{name}.{gone[0]} is None: load or build the whole system")
    if _weight(sd.unet).is_meta:
        raise OptionError(f"{name} is on the meta device, without weights: load it on the CPU")
    return sd


def _holds(name, x, shape, whose) -> None:
    """ShapeError unless the tensor x has this shape and, off the meta device, numbers."""
    fits(name, x, shape, whose)
    if x.layout != torch.strided:
        raise ShapeError(f"{name} is {x.layout}: {whose} dense ones, pass {name}.to_dense()")
    if x.is_meta:
        raise ShapeError(f"{name} is on the meta device, where it has no numbers: {whose} them")


def _system(sd, name="sd", begins=False) -> StableDiffusion:
    """sd, after a look whether it can draw; begins: from nothing but noise."""
    _loaded(sd, name)
    takes, latent = sd.config.unet.in_channels, sd.config.vae.latent
    if takes != latent:
        kind = {2 * latent + 1: "inpainting", 2 * latent: "instruct-pix2pix"}.get(
            takes, "something else"
        )
        raise OptionError(
            f"{name} = {sd.config.name} is a model for {kind}: its UNet takes {takes} channels, "
            f"{takes - latent} of them besides the {latent} of a latent, which a text does not give"
        )
    if begins and sd.config.vector == "refiner":
        raise OptionError(
            f"{name} = {sd.config.name} is a refiner: draw with a base first, or use image_to_image"
        )
    return sd


def _same_latents(sd, refiner):
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


def _sound(sd):
    """The VAE, never in float16."""
    if _weight(sd.vae).dtype == torch.float16:
        sd.vae.float()
    return sd.vae


def _weight(model):
    return next(model.parameters())
