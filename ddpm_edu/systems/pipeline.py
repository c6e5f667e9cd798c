"""Text to picture, picture to picture: condition, noise -> latent, latent -> picture. Notebook 09.

Nothing here is new: a condition for the UNet, guidance around it, one of SAMPLERS. Sizes are
(height, width) in pixels. Guidance = Ho & Salimans 2022 (arXiv 2207.12598), SDXL = Podell et al.
2023 (arXiv 2307.01952), pictures out of pictures = Meng et al. 2021 (SDEdit, arXiv 2108.01073).
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..diffusion import Cond, Denoiser, Step, check_interval, generators, guided, last, randn_like
from ..errors import OptionError, SamplingError, ShapeError, checked_prompts, in_range, warn, whole
from ..networks.unet import timestep_embedding
from ..networks.vae import decode_tiled
from ..samplers import FEW_STEPS, SAMPLERS, karras_clock, noise_scale, sampling_times
from ..schedule import Schedule
from .arguments import (
    dense,
    drawable,
    kind_of,
    loaded,
    not_too_large,
    one_each,
    same_latents,
    size_of,
    spelt_out,
    two,
    weight,
)
from .editing import Kept, enlarged, faithful, hollow, noised, on_grid, sharpening, with_noise
from .guard import make_room, watched, within_memory
from .pictures import grown, mask_of, padded, picture_and_mask, picture_of
from .system import StableDiffusion

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
    size = size_of(drawable(sd, begins=True), size)
    walk = plan_walk(sd, steps, sampler, spacing).before(handover)
    model = prompted(sd, prompts, negative, guidance, size, **more)
    shape = len(prompts), sd.config.vae.latent, *(side // sd.vae.factor for side in size)
    gens = generators(seeds)
    x_T = walk.scale * randn_like(torch.empty(shape, device=weight(sd.unet).device), gens)
    return walk.run(sd, model, x_T, gens)


def image_to_image(
    sd: StableDiffusion,
    prompts,
    picture,
    *,
    strength: float,
    negative="",
    seeds=0,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    spacing: str | None = None,
    handover: float = 1.0,
    **more,
) -> Iterator[Step]:
    """SDEdit: noise the latent of a picture up to times[k], then walk times[k:].

    picture: any, see `picture_of`; one for all prompts, or a tensor of one each. Sides that are no
    multiples of 8 are padded, see `padded`.  strength: the share of the steps that is walked, up to
    1; the lower, the more stays.  The rest: see `text_to_image`.
    """
    prompts, negative, seeds = one_each(prompts, negative, seeds)
    gens = generators(seeds)
    x = padded(picture_of(picture)[0], drawable(sd).vae.factor)
    walk = plan_walk(sd, steps, sampler, spacing).last(strength).before(handover)
    model = prompted(sd, prompts, negative, guidance, x.shape[2:], **more)
    z_0 = encode(sd, x, gens)
    x_t = noised(sd.schedule, z_0, randn_like(z_0, gens), walk.times[0])
    return walk.run(sd, model, x_t, gens)


def inpaint(
    sd: StableDiffusion,
    prompts,
    picture,
    mask,
    *,
    strength: float = 1.0,
    negative="",
    seeds=0,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    spacing: str | None = None,
    **more,
) -> Iterator[Step]:
    """Paint anew where the mask is 1 (at least 1/2), and keep the rest of the latent.

    A UNet of 4 channels: at every time all outside of the mask is replaced by the picture's latent
    with the noise of that time, see `Kept`. One of 9 sees mask and masked picture beside x_t,
    see `hollow`, and returns the rest as it understands it: what is outside the mask is then only
    nearly the picture's, see `edit`.
    picture, mask: any of one size, see `picture_of`, `mask_of`.  strength: 1 starts from noise
    alone; below, see `image_to_image`.  The rest: see `text_to_image`. OptionError for a mask that
    is nowhere 1.
    """
    prompts, negative, seeds = one_each(prompts, negative, seeds)
    gens = generators(seeds)
    drawable(sd, takes=("text", "inpainting"))
    x, mask = picture_and_mask(picture, mask)
    if len(mask) not in (1, len(prompts)):
        raise ShapeError(f"{len(mask)} masks for {len(prompts)} prompts: pass one, or as many")
    x, mask = (padded(part, sd.vae.factor) for part in (x, mask))
    walk = plan_walk(sd, steps, sampler, spacing).last(strength)
    own = kind_of(sd.config) == "inpainting"  # it sees the hole
    shape = len(prompts), sd.config.vae.latent, *(side // sd.vae.factor for side in x.shape[2:])
    z_0 = None if own and strength == 1 else encode(sd, x, gens)
    eps = randn_like(torch.empty(shape, device=weight(sd.unet).device), gens)
    x_t = walk.scale * eps if strength == 1 else noised(sd.schedule, z_0, eps, walk.times[0])
    beside = hollow(lambda x: encode(sd, x, gens), x, mask) if own else None
    model = prompted(sd, prompts, negative, guidance, x.shape[2:], **more, picture=beside)
    if own:
        return walk.run(sd, model, x_t, gens)
    kept = Kept(sd.schedule, z_0, eps, on_grid(mask, z_0))
    steps = walk.run(sd, model, x_t, gens, kept.around(walk.times[0]))
    return kept.steps(steps, walk.times)


def upscale(
    sd: StableDiffusion,
    prompts,
    picture,
    *,
    noise: float = 0.0,
    negative="",
    seeds=0,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    spacing: str | None = None,
    **more,
) -> Iterator[Step]:
    """Latents of the picture twice as large, from noise, beside that of the enlarged picture.

    noise: how much of it is put into what is enlarged, 0 to 1, see `with_noise`: the UNet was told
    so in training, and knows how far to trust it. More for pictures that are damaged (by JPEG, say)
    and for new details. Cascaded diffusion: Ho et al. 2021 (arXiv 2106.15282).
    picture: any, see `picture_of`.  The rest: see `text_to_image`.
    """
    prompts, negative, seeds = one_each(prompts, negative, seeds)
    gens = generators(seeds)
    drawable(sd, takes=("enlarging",))
    in_range("noise", noise, 0, 1, "in what is enlarged")
    x = padded(enlarged(picture_of(picture)[0]), sd.vae.factor)
    walk = plan_walk(sd, steps, sampler, spacing)
    z = encode(sd, x, gens)
    beside = with_noise(z, noise, randn_like(z, gens))
    model = sharpening(more.pop("denoiser", None) or unet_of(sd), sd.schedule)
    more |= dict(picture=beside, noise=noise, denoiser=model)
    model = prompted(sd, prompts, negative, guidance, x.shape[2:], **more)
    return walk.run(sd, model, walk.scale * randn_like(z, gens), gens)


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
    factor = drawable(refiner, "refiner").vae.factor
    if size is None and isinstance(base, Tensor) and base.ndim == 4:
        size = tuple(side * factor for side in base.shape[2:])
    size = size_of(refiner, size)
    shape = len(prompts), refiner.config.vae.latent, *(side // factor for side in size)
    if isinstance(base, Tensor) or not isinstance(base, Iterable):
        dense("base", base, shape, "these prompts and this size take")
    walk = plan_walk(refiner, steps, sampler, spacing).after(handover)
    model = prompted(refiner, prompts, negative, guidance, size, **more)
    gens = generators(seed ^ 2**31 for seed in seeds)  # other noise than the base's

    def both(x):
        for step in () if isinstance(x, Tensor) else x:
            x = getattr(step, "x_prev", step)
            dense("base", x, shape, "these prompts and this size take")
            yield step
        dense("base", x, shape, "these prompts and this size take")  # it may have had no step
        x = x.to(weight(refiner.unet).device, torch.float32)
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
    denoiser: Denoiser | None = None,
    picture: Tensor | None = None,
    noise: float = 0.0,
) -> Denoiser:
    """sd's UNet as a Denoiser that knows its text: (x_t, t, whatever) -> prediction, guided.

    guidance: the scale, up to 1 none; rescale, interval: see `guided`; the system's own unless
    given.  original_size, crop (top, left), target_size, aesthetic (scores of prompt and negative
    prompt): what SDXL and its refiner are told, see `condition`; the sizes are `size` unless given.
    They are only numbers: a crop may lie outside. A target of another aspect than `size` is warned
    of: no picture of training was told so.
    denoiser: what takes the UNet's place, such as one that a ControlNet steers.
    picture: what goes in beside x_t, see `Cond`.  noise: how much of it is in there, see `upscale`.
    """
    c, size = sd.config, size_of(sd, size)
    guidance = in_range("guidance", c.guidance if guidance is None else guidance, 0, 100)
    in_range("rescale", rescale, 0, 1, "0 is plain guidance")
    if c.vector == "step" and guidance > 1:
        raise OptionError(
            f"guidance = {guidance:g}: {c.name} has its guidance built in, leave it out"
        )
    interval = c.interval if interval is None else interval
    check_interval(interval, sd.schedule.T - 1)
    scores = two("aesthetic", aesthetic, in_range, 0, 10)
    told = {
        "original_size": size if original_size is None else original_size,
        "crop": crop,
        "target_size": size if target_size is None else target_size,
    }
    for name, pair in told.items():
        two(name, pair, whole, int(name != "crop"), 2**16)
    (h, w), (height, width) = told["target_size"], size
    if c.vector == "sdxl" and abs(math.log(h * width / (w * height))) > OTHER_ASPECT:
        warn(
            f"target_size = ({h}, {w}) has another aspect than the picture, ({height}, {width}): "
            f"{c.name} is told of a shape that it does not draw; pass target_size=None for its own"
        )
    texts = [spelt_out(sd, text) for text in checked_prompts(prompts)]
    empty = dict(told, score=scores[1], noise=noise, zero_empty=c.zero_empty)

    model = denoiser or unet_of(sd)
    cond = within_memory(lambda: condition(sd, texts, **told, score=scores[0], noise=noise))
    cond = cond._replace(picture=picture)
    if guidance > 1:
        uncond = within_memory(lambda: condition(sd, checked_prompts(negative), **empty))
        model = guided(model, guidance, uncond, rescale=rescale, interval=interval)
    if c.vector == "step":
        return lambda x_t, t, own: model(x_t, t, cond._replace(vector=own.vector))
    return lambda x_t, t, _=None: model(x_t, t, cond)


def condition(
    sd: StableDiffusion,
    texts: list[str],
    *,
    original_size,
    crop,
    target_size,
    score: float = 6.0,
    noise: float = 0.0,
    zero_empty: bool = False,
) -> Cond:
    """The texts as a Cond for sd.unet; SDXL's vector = pooled text ++ cosines and sines of numbers.

    Numbers of SDXL (section 2.2), in pixels: original height, width, crop top, left, then target
    height, width (base) or the aesthetic score (refiner). An upscaler's vector is one number alone,
    1000 noise, of what it enlarges.  zero_empty: an empty text is zeros, its
    pooled text too, as SDXL base was trained. ShapeError if the encoders' width is not the UNet's.
    """
    cond, c = sd.text.encode(texts), sd.config
    if zero_empty:
        full = torch.tensor([bool(text.strip()) for text in texts], device=cond.context.device)
        cond = cond.map(lambda part: part * full.view(-1, *[1] * (part.ndim - 1)))
    context, vector = cond.context, None
    if c.vector:
        told = {
            "sdxl": (*original_size, *crop, *target_size),
            "refiner": (*original_size, *crop, score),
            "upscaler": (1000 * noise,),
            "step": (0,),
        }
        numbers = embed_numbers(torch.tensor([told[c.vector]]), c.number_dim)
        vector = numbers.to(context.device).expand(len(texts), -1)
        if c.vector not in ("upscaler", "step"):
            vector = torch.cat([cond.vector, vector], dim=1)
    for name, part in (("context", context), ("vector", vector)):
        takes, width = getattr(c.unet, name), 0 if part is None else part.shape[-1]
        if width != takes:
            raise ShapeError(
                f"{c.name}: the text makes cond.{name} {width} wide, its UNet takes {takes}: "
                "the text encoders belong to another system"
            )
    return Cond(context, vector).map(lambda part: part.to(weight(sd.unet)))


def embed_numbers(numbers: Tensor, dim: int) -> Tensor:
    """(B, n) -> (B, n dim): `dim` cosines and sines of each number, one number after the other."""
    return timestep_embedding(numbers.flatten(), dim).reshape(len(numbers), -1)


def unet_of(sd: StableDiffusion) -> Denoiser:
    """The UNet with float32 outside, whatever type it computes in."""
    dtype = weight(sd.unet).dtype
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

    def run(self, sd, model, x, gens, around=lambda model: model) -> Iterator[Step]:
        """The Steps from x, which has the noise of the first time; sd is the owner of `model`.

        around: what is done to each x_t before the model sees it, as a wrapper of the Denoiser.
        """
        make_room(sd, x)
        if self.karras:
            model = karras_clock(model, self.schedule, self.sampler)
        model = around(model)
        steps = (SAMPLERS | FEW_STEPS)[self.sampler](
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
            raise OptionError(
                f"{name} = {value} leaves none of {len(self.times)} times to visit: there is "
                "nothing to do, choose another or more steps"
            )
        return self._replace(times=times, end=end)


def plan_walk(sd: StableDiffusion, steps=None, sampler=None, spacing=None) -> Walk:
    """How sd walks, by its own config unless given: see `samplers.sampling_times`."""
    c = sd.config
    end = c.end if sampler in (None, c.sampler) else None
    sampler, spacing = sampler or c.sampler, spacing or c.spacing
    if (c.vector == "step") != (sampler == "mean_flow"):
        told = "is asked for whole steps" if c.vector == "step" else "was not trained for it"
        raise OptionError(f"sampler = {sampler!r}: {c.name} {told}, use {c.sampler!r}")
    steps = c.steps if steps is None else steps
    at = sampling_times(sd.schedule, steps, sampler, spacing, offset=c.offset, end=end)
    scale = noise_scale(sd.schedule, at[0][0], sampler, spacing)
    return Walk(sd.schedule, sampler, *at, scale, spacing.endswith("karras"))


# ---------------------------------------------------------------- pictures and latents


def encode(sd: StableDiffusion, x: Tensor, gens: list[torch.Generator]) -> Tensor:
    """A latent (B, 4, H/8, W/8) float32 of a picture x (B or 1, 3, H, W), drawn from q(z | x)."""
    if len(x) not in (1, len(gens)):
        raise ShapeError(f"{len(x)} pictures for {len(gens)} prompts: pass one, or as many")
    x = x.to(weight(_sound(sd))).expand(len(gens), -1, -1, -1)
    with torch.no_grad():
        parts = [
            within_memory(lambda: sd.vae.to_latent(one, [gen]))
            for one, gen in zip(x.split(1), gens)
        ]
    return torch.cat(parts).float().to(weight(sd.unet).device)


def decode(sd: StableDiffusion, z: Tensor, tiled: bool | None = None) -> Tensor:
    """Pictures (B, 3, H, W) float32 in [-1, 1] of latents z (B, 4, H/8, W/8), one at a time.

    The VAE runs in float32 or bfloat16; one in float16 is turned into float32, for good, because
    SDXL's overflows.  tiled: see `decode_tiled`; None decides by the size. A VAE that is not the
    system's own is warned of: another scale, other colours. SamplingError for a picture of one
    colour or with NaN.
    """
    own, here = loaded(sd).config.vae.scale, sd.vae.config.scale
    dense("z", z, ("B", sd.vae.config.latent, "h", "w"), "this VAE decodes")
    if own != here:
        warn(
            f"the VAE in place has the scale {here:g}, but {sd.config.name} was trained on latents "
            f"of a VAE with {own:g}: they mean something else to it, expect wrong colours or noise"
        )
    like = weight(_sound(sd))
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


def _sound(sd):
    """The VAE, never in float16."""
    if weight(sd.vae).dtype == torch.float16:
        sd.vae.float()
    return sd.vae


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
        same_latents(sd, drawable(refiner, "refiner"))
        steps = text_to_image(sd, prompts, handover=handover, **options)
        steps = refine(refiner, prompts, steps, handover=handover, **options)
    total = options.get("steps") or sd.config.steps
    z = last(tqdm(steps, total=total, desc="drawing", disable=not progress))
    return decode(refiner or sd, z, tiled)


# ---------------------------------------------------------------- pictures edited

STRENGTH = 0.6  # of an edit without a mask


def edit(
    sd: StableDiffusion,
    prompts,
    picture,
    *,
    mask=None,
    strength: float | None = None,
    progress: bool = True,
    **options,
) -> Tensor:
    """A picture edited: (B, 3, H, W) in [-1, 1], as large as it was, twice as large if enlarged.

    With a mask `inpaint`, with an upscaler `upscale`, else `image_to_image`; then `decode`. What
    lies outside of the mask is the picture's own, to the last bit; where it is soft, both are
    blended. Without one the mask is what is transparent, where something is by half. What is
    enlarged without noise keeps the given picture's means, see `faithful`. OptionError for a
    picture of more than 16 times the pixels of training.
    strength: 1 with a mask, else 0.6, unless given.  options: see there, denoiser, too.
    """
    from tqdm.auto import tqdm

    kind, (x, alpha) = kind_of(loaded(sd).config), picture_of(picture)
    not_too_large(sd, x.shape[2:], kind)
    if mask is None and alpha is not None and kind != "enlarging" and (alpha <= 0.5).any():
        mask = 1 - alpha
    soft = None if mask is None else mask_of(mask, x.shape[2:])
    share = strength if strength is not None else STRENGTH if soft is None else 1.0
    if kind == "enlarging":
        if soft is not None or strength is not None:
            raise OptionError(f"mask, strength: {sd.config.name} enlarges, leave them out")
        share, steps = 1.0, upscale(sd, prompts, picture, **options)
    elif soft is not None:
        hole = grown(soft, sd.vae.factor)
        steps = inpaint(sd, prompts, picture, hole, strength=share, **options)
    elif kind == "inpainting":
        raise OptionError(f"mask = None: {sd.config.name} paints into a mask, pass one")
    else:
        steps = image_to_image(sd, prompts, picture, strength=share, **options)
    total = int(share * (options.get("steps") or sd.config.steps))
    z = last(tqdm(steps, total=total, desc="editing", disable=not progress))
    height, width = (side * (2 if kind == "enlarging" else 1) for side in x.shape[2:])
    out = decode(sd, z)[:, :, :height, :width].cpu()
    if kind == "enlarging":
        return out if options.get("noise") else faithful(out, x)
    return out if soft is None else soft * out + (1 - soft) * x
