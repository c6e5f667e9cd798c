"""Text to picture with a whole system: prompt -> condition, noise -> latent by a sampler, latent -> picture by the VAE.

Nothing here is new: a condition for the UNet, guidance around it, one of SAMPLERS, and checks that say what went wrong.
Sizes are (height, width) in pixels, as in SDXL's own numbers. Guidance = Ho & Salimans 2022 (arXiv 2207.12598),
SDXL = Podell et al. 2023 (arXiv 2307.01952).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..diffusion import Cond, Denoiser, Step, generators, last, randn_like
from ..errors import OptionError, SamplingError, ShapeError, checked_prompts, in_range, whole
from ..networks.tokenizer import unseen
from ..networks.unet import timestep_embedding
from ..networks.vae import decode_tiled
from ..samplers import SAMPLERS, sampling_times
from .guard import make_room, watched, within_memory
from .system import StableDiffusion

MAX_SIDE = (
    8192  # pixels: more than any model was trained for, and attention no longer fits anywhere
)
TILED_FROM = 1536**2  # pixels: larger pictures are decoded in tiles unless told otherwise


def text_to_image(
    sd: StableDiffusion,
    prompts,
    *,
    negative="",
    steps: int | None = None,
    guidance: float | None = None,
    size=None,
    seeds=0,
    sampler: str = "dpmpp_2m",
    spacing: str | None = None,
    refiner: StableDiffusion | None = None,
    handover: float = 0.8,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
    original_size=None,
    crop=(0, 0),
    target_size=None,
    aesthetic=(6.0, 2.5),
) -> Iterator[Step]:
    """Draw one latent a prompt: yields exactly `steps` Steps of x_t (B, 4, H/8, W/8) float32; the last x_prev is for `decode`.

    prompts: a text, or a list of them, one a picture.  negative: the same; "" is no negative prompt.
    size: one side or (height, width), multiples of 8; the system's own unless given.  seeds: the first picture's, the others
    count up; or a list, one a picture (one prompt is then drawn with each). A picture depends on its own prompt and seed,
    not on the batch.  steps, guidance, spacing, interval: the system's own (see SystemConfig) unless given.  sampler, spacing: see `sampling_times`.  guidance, rescale, interval: see `steer`.
    refiner: a second system that does what is left when t falls below T - handover T.
    original_size, crop (top, left), target_size, aesthetic (score of prompt and negative prompt): see `condition`.

    Arguments are checked and texts encoded at the call: OptionError, ShapeError. While it runs: ResourceError where memory
    ends, SamplingError at the step that brings NaN or infinity.
    """
    _is_system("sd", sd)
    if refiner is not None:
        _is_system("refiner", refiner)
    steps, guidance, spacing, interval = (
        own if told is None else told
        for told, own in (
            (steps, sd.config.steps),
            (guidance, sd.config.guidance),
            (spacing, sd.config.spacing),
            (interval, sd.config.interval),
        )
    )
    prompts, negative, seeds = _pictures(prompts, negative, seeds)
    _say_unseen(sd, prompts)
    size = picture_size(sd.config.size if size is None else size, sd.vae.factor)
    told = {
        "original_size": size if original_size is None else original_size,
        "crop": crop,
        "target_size": size if target_size is None else target_size,
    }
    for name, pair in told.items():
        _two(name, pair, whole, 0, 2**16, "pixels, vertical first")
    _check(sd, refiner, guidance, rescale, interval, handover, aesthetic)
    times, end = sampling_times(sd.schedule, steps, sampler, spacing)
    gens = generators(seeds)
    shape = len(prompts), sd.config.vae.latent, size[0] // sd.vae.factor, size[1] // sd.vae.factor
    x_T = randn_like(torch.empty(shape, device=_weight(sd.unet).device), gens)

    def stage(system, times, end) -> Callable:
        """x -> the Steps of one system through its share of the times."""
        cond = within_memory(lambda: condition(system, prompts, **told, score=aesthetic[0]))
        uncond = (
            None
            if guidance == 1
            else within_memory(
                lambda: condition(
                    system,
                    negative,
                    **told,
                    score=aesthetic[1],
                    zero_empty=system.config.zero_empty,
                )
            )
        )
        make_room(system, size, len(prompts), uncond is not None)
        model = steer(denoiser(system), cond, uncond, guidance, rescale, interval)
        return lambda x: SAMPLERS[sampler](
            model, system.schedule, x, times, predict=system.predict, end=end, generator=gens
        )

    first = [
        t for t in times if refiner is None or t >= round(sd.schedule.T - handover * sd.schedule.T)
    ]
    rest = times[len(first) :]
    shares = (sd, first, rest[0] if rest else end), (refiner, rest, end)
    return watched(_in_turn([stage(*share) for share in shares if share[1]], x_T), len(times))


def _in_turn(stages: Iterable[Callable], x: Tensor) -> Iterator[Step]:
    """Each stage goes on from the x where the one before stopped."""
    for stage in stages:
        for step in stage(x):
            yield step
            x = step.x_prev


# ---------------------------------------------------------------- what the UNet is told, and how it is asked


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
    """The texts as a Cond for sd.unet; SDXL's vector = pooled text ++ the cosines and sines of each number it is told.

    Numbers (SDXL section 2.2), in pixels: original height, width, crop top, left, then target height, width (base) or the
    aesthetic score (refiner).  zero_empty: an empty text is zeros, its pooled text too, as SDXL base was trained.
    Raises ShapeError if the encoders' width is not the UNet's.
    """
    cond = sd.text.encode(texts)
    if zero_empty:
        told = torch.tensor([bool(text.strip()) for text in texts], device=cond.context.device)
        cond = cond.map(lambda part: part * told.view(-1, *[1] * (part.ndim - 1)))
    context, vector = cond.context, None
    if sd.config.vector:
        numbers = torch.tensor(
            [*original_size, *crop, *(target_size if sd.config.vector == "sdxl" else (score,))]
        )
        numbers = timestep_embedding(numbers, sd.config.number_dim).flatten().to(context.device)
        vector = torch.cat([cond.vector, numbers.expand(len(texts), -1)], dim=1)
    for name, part, takes in (
        ("context", context, sd.config.unet.context),
        ("vector", vector, sd.config.unet.vector),
    ):
        if (width := 0 if part is None else part.shape[-1]) != takes:
            raise ShapeError(
                f"{sd.config.name}: the text gives cond.{name} {width} numbers wide, but its UNet takes {takes}: "
                "the text encoders belong to another system"
            )
    return Cond(context, vector).map(lambda part: part.to(_weight(sd.unet)))


def denoiser(sd: StableDiffusion) -> Denoiser:
    """The UNet with float32 outside, whatever type it computes in."""
    dtype = _weight(sd.unet).dtype
    return lambda x_t, t, cond: sd.unet(x_t.to(dtype), t, cond).float()


def steer(
    model: Denoiser,
    cond: Cond,
    uncond: Cond | None,
    scale: float = 7.5,
    rescale: float = 0.0,
    interval=None,
) -> Denoiser:
    """`model` told `cond`, with classifier-free guidance uncond + scale (cond - uncond) in one batched call; None is without.

    rescale = phi gives phi of the way back to the spread of the conditional prediction, per picture: times
    phi std(cond) / std(guided) + 1 - phi (Lin et al. 2023, arXiv 2305.08891, eq. 15 and 16).
    interval = (low, high): guidance at low <= t <= high only, elsewhere the plain model at half the price
    (Kynkaanniemi et al. 2024, arXiv 2404.07724).
    """
    if uncond is None:
        return lambda x_t, t, _: model(x_t, t, cond)
    both = Cond(
        *(None if part is None else torch.cat([part, other]) for part, other in zip(cond, uncond))
    )

    def denoise(x_t, t, _):
        if (
            interval and not interval[0] <= t[0].item() <= interval[1]
        ):  # a wait for the GPU, cheaper than the second half of the batch
            return model(x_t, t, cond)
        positive, negative = model(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        prediction = negative + scale * (positive - negative)
        if rescale:
            prediction = (rescale * _std(positive) / _std(prediction) + 1 - rescale) * prediction
        return prediction

    return denoise


def _std(x):
    return x.flatten(1).std(1)[:, None, None, None]


# ---------------------------------------------------------------- latent to picture


def decode(sd: StableDiffusion, z: Tensor, tiled: bool | None = None) -> Tensor:
    """Pictures (B, 3, H, W) float32 in [-1, 1] of latents z (B, 4, H/8, W/8), one at a time, so that memory is one picture's.

    The VAE runs in float32 or bfloat16; one that is float16 is turned into float32, for good, because SDXL's overflows.
    tiled: see `vae.decode_tiled`; None decides by the size. A VAE that is not the system's own is warned of: another scale, other
    colours, or noise (SDXL's under SD 1.5, say). Raises SamplingError for a picture of one colour or with NaN.
    """
    own, here = sd.config.vae.scale, sd.vae.config.scale
    if own != here:
        warnings.warn(
            f"the VAE in place has the scale {here:g}, but {sd.config.name} was trained on latents of a VAE with {own:g}: "
            "the latents mean something else to it, expect wrong colours or noise",
            stacklevel=2,
        )
    if _weight(sd.vae).dtype == torch.float16:
        sd.vae.float()
    if tiled is None:
        tiled = z.shape[-2:].numel() * sd.vae.factor**2 > TILED_FROM
    run = (lambda z: decode_tiled(sd.vae, z)) if tiled else sd.vae.from_latent
    with torch.no_grad():
        x = torch.cat(
            [
                within_memory(lambda: run(one.to(_weight(sd.vae)))).float().clamp(-1, 1)
                for one in z.split(1)
            ]
        )
    levels = (x * 127.5).round().flatten(1)
    for i, (low, high) in enumerate(zip(levels.amin(1).tolist(), levels.amax(1).tolist())):
        if not low < high:  # NaN too
            raise SamplingError(
                f"picture {i} holds {'NaN' if low != low else 'one colour only'}, so it is not returned: the weights are broken "
                "or overflow in their type; load the system in float32 or bfloat16"
            )
    return x


def draw(
    sd: StableDiffusion, prompts, *, tiled: bool | None = None, progress: bool = True, **options
) -> Tensor:
    """`text_to_image` with a progress bar, then `decode`: pictures (B, 3, H, W) float32 in [-1, 1]. Options are theirs."""
    from tqdm.auto import tqdm

    steps = text_to_image(sd, prompts, **options)
    z = last(
        tqdm(
            steps,
            total=options.get("steps") or sd.config.steps,
            desc="drawing",
            disable=not progress,
        )
    )
    return decode(options.get("refiner") or sd, z, tiled)


# ---------------------------------------------------------------- arguments


def _pictures(prompts, negative, seeds) -> tuple[list[str], list[str], list[int]]:
    """Prompts, negative prompts and seeds, one each a picture."""
    many = (
        list(seeds) if isinstance(seeds, Iterable) and not isinstance(seeds, (str, bytes)) else None
    )
    if isinstance(prompts, str):
        prompts = [prompts] * (1 if many is None else len(many))
    for name, texts in (("prompts", prompts), ("negative", negative)):
        if not isinstance(texts, (str, list, tuple)) and not (name == "negative" and texts is None):
            raise OptionError(
                f"{name} = {texts!r:.80}: pass a string, or a list of strings, one a picture"
            )
    negative = (
        [negative or ""] * len(prompts) if isinstance(negative, str | None) else list(negative)
    )
    if many is None:
        whole("seeds", seeds, 0, 2**63 - 1, "the first picture's seed, or a list of one a picture")
        many = list(range(seeds, seeds + len(prompts)))
    for name, rows in (("negative prompts", negative), ("seeds", many)):
        if len(rows) != len(prompts):
            raise OptionError(
                f"{len(rows)} {name} for {len(prompts)} prompts: pass one for all of them, or one a picture"
            )
    for seed in many:
        whole("seeds", seed, 0, 2**63 - 1, "one a picture")
    return checked_prompts(prompts), checked_prompts(negative), many


def _say_unseen(sd, prompts) -> None:
    """A warning for words that were in no caption of the training, where the system says which were; it draws anyway."""
    words = sd.meta.get("words")
    new = (
        dict.fromkeys(
            word
            for prompt in prompts
            for word in unseen(prompt, frozenset(words))
            if word[0].isalnum()
        )
        if words
        else ()
    )
    if new:
        warnings.warn(
            f"{sd.config.name} never saw {', '.join(map(repr, new))} in training: what it draws for it is a guess",
            stacklevel=3,
        )


def _two(name, value, check, *limits) -> tuple:
    """`value` as a pair, after `check` (whole or in_range) of each number."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise OptionError(f"{name} = {value!r}: pass two numbers ({limits[-1]})")
    for number in value:
        check(name, number, *limits)
    return tuple(value)


def picture_size(size, factor: int = 8) -> tuple[int, int]:
    """(height, width) of a size given so, or as one side. Raises OptionError unless both are multiples of factor up to MAX_SIDE."""
    sides = (size, size) if isinstance(size, int) else size
    for side in _two(
        "size",
        sides,
        whole,
        factor,
        MAX_SIDE,
        f"pixels, multiples of {factor}: one side, or (height, width)",
    ):
        if side % factor:
            raise OptionError(
                f"size = {side} is no multiple of {factor}: choose {side // factor * factor} or {side // factor * factor + factor}"
            )
    return tuple(sides)


def _check(sd, refiner, guidance, rescale, interval, handover, aesthetic) -> None:
    in_range("guidance", guidance, 0, 100, "1 is no guidance, 5 to 8 are usual")
    in_range("rescale", rescale, 0, 1, "0 is plain guidance")
    in_range("handover", handover, 0, 1, "the first system's share of the noise times")
    _two("aesthetic", aesthetic, in_range, 0, 10, "scores of prompt and negative prompt")
    if interval is not None:
        low, high = _two(
            "interval", interval, in_range, 0, sd.schedule.T - 1, "times t, the lower first"
        )
        if low > high:
            raise OptionError(f"interval = {interval!r} is upside down: pass the lower t first")
    if refiner and (refiner.config.vae.latent, refiner.config.vae.scale) != (
        sd.config.vae.latent,
        sd.config.vae.scale,
    ):
        raise OptionError(
            f"{refiner.config.name} cannot go on from {sd.config.name}: their latents differ (channels or scale)"
        )


def _is_system(name, sd) -> None:
    if not isinstance(sd, StableDiffusion):
        raise OptionError(f'{name} = {sd!r:.80}: pass a StableDiffusion, such as load("sd15")')
    if _weight(sd.unet).is_meta:
        raise OptionError(
            f"{name} is on the meta device, where it has no weights: load or build it on cpu or cuda"
        )


def _weight(model):
    return next(model.parameters())
