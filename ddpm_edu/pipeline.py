"""Text to picture with a whole system: prompt -> condition, noise -> latent by a sampler, latent -> picture by the VAE.

Nothing here is new: a condition for the UNet, guidance around it, one of SAMPLERS, and checks that say what went wrong.
Sizes are (height, width) in pixels, as in SDXL's own numbers. Guidance = Ho & Salimans 2022 (arXiv 2207.12598),
SDXL = Podell et al. 2023 (arXiv 2307.01952).
"""
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from .diffusion import Cond, Denoiser, Step, generators, in_range, last, randn_like, spaced_timesteps, whole
from .errors import OptionError, ResourceError, SamplingError, ShapeError
from .schedule import Schedule
from .solvers import SAMPLERS
from .stable_diffusion import StableDiffusion, memory_needed
from .text import checked_prompts
from .unet import timestep_embedding
from .vae import decode_tiled

MAX_SIDE = 8192         # pixels: more than any model was trained for, and attention no longer fits anywhere
TILED_FROM = 1536 ** 2  # pixels: larger pictures are decoded in tiles unless told otherwise


def text_to_image(sd: StableDiffusion, prompts, *, negative="", steps: int = 30, guidance: float = 7.5, size=None, seeds=0,
                  sampler: str = "dpmpp_2m", spacing: str = "leading", refiner: StableDiffusion | None = None,
                  handover: float = 0.8, rescale: float = 0.0, interval: tuple[float, float] | None = None,
                  original_size=None, crop=(0, 0), target_size=None, aesthetic=(6.0, 2.5)) -> Iterator[Step]:
    """Draw one latent a prompt: yields exactly `steps` Steps of x_t (B, 4, H/8, W/8) float32; the last x_prev is for `decode`.

    prompts: a text, or a list of them, one a picture.  negative: the same; "" is no negative prompt.
    size: one side or (height, width), multiples of 8; the system's own unless given.  seeds: the first picture's, the others
    count up; or a list, one a picture (one prompt is then drawn with each). A picture depends on its own prompt and seed,
    not on the batch.  sampler, spacing: see `sampling_times`.  guidance, rescale, interval: see `steer`.
    refiner: a second system that does what is left when t falls below (1 - handover) T.
    original_size, crop (top, left), target_size, aesthetic (score of prompt and negative prompt): see `condition`.

    Arguments are checked and texts encoded at the call: OptionError, ShapeError. While it runs: ResourceError where memory
    ends, SamplingError at the step that brings NaN or infinity.
    """
    prompts, negative, seeds = _pictures(prompts, negative, seeds)
    size = _size(sd.config.size if size is None else size, sd.vae.factor)
    told = {"original_size": _pair("original_size", original_size or size), "crop": _pair("crop", crop),
            "target_size": _pair("target_size", target_size or size)}
    _check(sd, guidance, rescale, interval, refiner, handover, aesthetic)
    times, end = sampling_times(sd.schedule, steps, sampler, spacing)
    gens = generators(seeds)
    shape = len(prompts), sd.config.vae.latent, size[0] // sd.vae.factor, size[1] // sd.vae.factor
    x_T = randn_like(torch.empty(shape, device=_weight(sd.unet).device), gens)

    def stage(system, times, end) -> Callable:
        """x -> the Steps of one system through its share of the times."""
        cond = within_memory(lambda: condition(system, prompts, **told, score=aesthetic[0]))
        uncond = None if guidance == 1 else within_memory(
            lambda: condition(system, negative, **told, score=aesthetic[1], zero_empty=system.config.zero_empty))
        make_room(system, size, len(prompts), uncond is not None)
        model = steer(denoiser(system), cond, uncond, guidance, rescale, interval)
        return lambda x: SAMPLERS[sampler](model, system.schedule, x, times, predict=system.predict, end=end, generator=gens)

    first = [t for t in times if refiner is None or t >= round((1 - handover) * sd.schedule.T)]
    rest = times[len(first):]
    shares = (sd, first, rest[0] if rest else end), (refiner, rest, end)
    return watched(_in_turn([stage(*share) for share in shares if share[1]], x_T), len(times))


def _in_turn(stages: Iterable[Callable], x: Tensor) -> Iterator[Step]:
    """Each stage goes on from the x where the one before stopped."""
    for stage in stages:
        for step in stage(x):
            yield step
            x = step.x_prev


def sampling_times(schedule: Schedule, steps: int, sampler: str, spacing: str = "leading") -> tuple[list[float], float]:
    """(timesteps, end) as Stable Diffusion's samplers walk: "leading" with offset 1, as trained; "linspace", "trailing".

    DDIM stops at alpha_bar[0] instead of the clean picture. DPM-Solver++ counts the end as one of its evenly spaced points,
    so its grid is a little narrower. 1000 of 1000 steps leave no room for either.
    """
    if sampler not in SAMPLERS:
        raise OptionError(f"sampler = {sampler!r} is not known: choose one of {', '.join(SAMPLERS)}")
    offset = min(1, schedule.T - 1)
    times = spaced_timesteps(schedule.T, steps, spacing, offset)
    if sampler == "dpmpp_2m" and spacing != "trailing" and steps < schedule.T:
        times = spaced_timesteps(schedule.T, steps + 1, spacing, offset)[:-1]
    return times.tolist(), 0 if sampler == "ddim" and times[-1] > 0 else -1


# ---------------------------------------------------------------- what the UNet is told, and how it is asked

def condition(sd: StableDiffusion, texts: list[str], *, original_size, crop, target_size, score: float = 6.0,
              zero_empty: bool = False) -> Cond:
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
        numbers = torch.tensor([*original_size, *crop, *(target_size if sd.config.vector == "sdxl" else (score,))])
        numbers = timestep_embedding(numbers, sd.config.number_dim).flatten().to(cond.vector)
        vector = torch.cat([cond.vector, numbers.expand(len(texts), -1)], dim=1)
    for name, part, width in (("context", context, sd.config.unet.context), ("vector", vector, sd.config.unet.vector)):
        if (0 if part is None else part.shape[-1]) != width:
            raise ShapeError(f"{sd.config.name}: the text gives cond.{name} {0 if part is None else part.shape[-1]} numbers wide, but "
                             f"its UNet takes {width}: the text encoders belong to another system")
    return Cond(context, vector).map(lambda part: part.to(_weight(sd.unet)))


def denoiser(sd: StableDiffusion) -> Denoiser:
    """The UNet with float32 outside, whatever type it computes in."""
    dtype = _weight(sd.unet).dtype
    return lambda x_t, t, cond: sd.unet(x_t.to(dtype), t, cond).float()


def steer(model: Denoiser, cond: Cond, uncond: Cond | None, scale: float = 7.5, rescale: float = 0.0, interval=None) -> Denoiser:
    """`model` told `cond`, with classifier-free guidance uncond + scale (cond - uncond) in one batched call; None is without.

    rescale = phi gives phi of the way back to the spread of the conditional prediction, per picture: times
    phi std(cond) / std(guided) + 1 - phi (Lin et al. 2023, arXiv 2305.08891, eq. 15 and 16).
    interval = (low, high): guidance at low <= t <= high only, elsewhere the plain model at half the price
    (Kynkaanniemi et al. 2024, arXiv 2404.07724).
    """
    if uncond is None:
        return lambda x_t, t, _: model(x_t, t, cond)
    both = Cond(*(None if part is None else torch.cat([part, other]) for part, other in zip(cond, uncond)))

    def denoise(x_t, t, _):
        if interval is not None and not interval[0] <= t[0] <= interval[1]:
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
    tiled: see `vae.decode_tiled`; None decides by the size. Raises SamplingError for a picture of one colour or with NaN.
    """
    if _weight(sd.vae).dtype == torch.float16:
        sd.vae.float()
    if tiled is None:
        tiled = z[0, 0].numel() * sd.vae.factor ** 2 > TILED_FROM
    run = (lambda z: decode_tiled(sd.vae, z)) if tiled else sd.vae.from_latent
    with torch.no_grad():
        x = torch.cat([within_memory(lambda: run(one.to(_weight(sd.vae)))).float().clamp(-1, 1) for one in z.split(1)])
    levels = (x * 127.5).round().flatten(1)
    for i, (low, high) in enumerate(zip(levels.amin(1).tolist(), levels.amax(1).tolist())):
        if not low < high:  # NaN too
            raise SamplingError(f"picture {i} holds {'NaN' if low != low else 'one colour only'}, so it is not returned: the weights are broken "
                                "or overflow in their type; load the system in float32 or bfloat16")
    return x


def draw(sd: StableDiffusion, prompts, *, tiled: bool | None = None, progress: bool = True, **options) -> Tensor:
    """`text_to_image` with a progress bar, then `decode`: pictures (B, 3, H, W) float32 in [-1, 1]. Options are theirs."""
    from tqdm.auto import tqdm
    options.setdefault("steps", 30)
    steps = text_to_image(sd, prompts, **options)
    z = last(tqdm(steps, total=options["steps"], desc="drawing", disable=not progress))
    return decode(options.get("refiner") or sd, z, tiled)


# ---------------------------------------------------------------- memory, and steps that go wrong

def make_room(sd: StableDiffusion, size: tuple[int, int], pictures: int, guidance: bool) -> None:
    """On a GPU that is short of memory, move the text encoders to the CPU, where they then work; warn if that is too little."""
    weight = _weight(sd.unet)
    if weight.device.type != "cuda":
        return
    held = sum(p.numel() * p.element_size() for p in sd.parameters())
    needed = memory_needed(sd.config, weight.dtype, size, pictures, guidance) - held
    if needed > free_memory(weight.device):
        sd.text.to("cpu")
        torch.cuda.empty_cache()
    if needed > (free := free_memory(weight.device)):
        warnings.warn(f"about {needed / 2**30:.1f} GiB will be needed and {free / 2**30:.1f} GiB are free: {WAYS_OUT}", stacklevel=4)


WAYS_OUT = "choose a smaller size, fewer pictures at a time, bfloat16 instead of float32, or decode with tiled=True"


def within_memory(call: Callable):
    """call(), with running out of memory told as ResourceError, after everything that call had allocated is free again."""
    try:
        return call()
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        said = str(error).splitlines()[0] if str(error) else "out of memory"
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in said:
            raise
    torch.cuda.empty_cache()  # outside of `except`: the error itself holds on to the tensors of its frames
    raise ResourceError(f"out of memory ({said}): {WAYS_OUT}. The models are still loaded and can be used")


def watched(steps: Iterator[Step], total: int) -> Iterator[Step]:
    """Pass Steps on and stop at one that is not finite. On a GPU the answer is read one step later, so that nothing waits."""
    asked, number = [], 0
    while (step := within_memory(lambda: next(steps, None))) is not None:
        number += 1
        asked.append((f"step {number} of {total} (t = {step.t:g})", _finite(step.x_prev)))
        while len(asked) > step.x_prev.is_cuda:
            _require(*asked.pop(0))
        yield step
    for question in asked:
        _require(*question)


def _finite(x):
    """A function that says whether x is finite: on a GPU it waits for x, and not for what was started since."""
    flag, done = x.isfinite().all().to("cpu", non_blocking=True), torch.cuda.Event() if x.is_cuda else None
    if done:
        done.record()
    return lambda: (done is None or done.synchronize() is None) and bool(flag)


def _require(where, finite):
    if not finite():
        raise SamplingError(f"NaN or infinity came up in {where}: float16 overflows easily, use bfloat16 or float32; "
                            "in float32 the weights are broken or guidance is far too large")


def free_memory(device) -> int:
    """Bytes that can still be allocated on a GPU, those included that torch keeps but does not use."""
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


# ---------------------------------------------------------------- arguments

def _pictures(prompts, negative, seeds) -> tuple[list[str], list[str], list[int]]:
    """Prompts, negative prompts and seeds, one each a picture."""
    many = list(seeds) if isinstance(seeds, Iterable) and not isinstance(seeds, (str, bytes)) else None
    if isinstance(prompts, str):
        prompts = [prompts] * (1 if many is None else len(many))
    for name, texts in (("prompts", prompts), ("negative", negative)):
        if not isinstance(texts, (str, list, tuple)) and not (name == "negative" and texts is None):
            raise OptionError(f"{name} = {texts!r:.80}: pass a string, or a list of strings, one a picture")
    negative = [negative or ""] * len(prompts) if isinstance(negative, str | None) else list(negative)
    if many is None:
        whole("seeds", seeds, 0, 2 ** 63 - 1, "the first picture's seed, or a list of one a picture")
        many = list(range(seeds, seeds + len(prompts)))
    for name, rows in (("negative prompts", negative), ("seeds", many)):
        if len(rows) != len(prompts):
            raise OptionError(f"{len(rows)} {name} for {len(prompts)} prompts: pass one for all of them, or one a picture")
    for seed in many:
        whole("seeds", seed, 0, 2 ** 63 - 1, "one a picture")
    return checked_prompts(prompts), checked_prompts(negative), many


def _size(size, factor) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else size
    if not isinstance(sides, (list, tuple)) or len(sides) != 2:
        raise OptionError(f"size = {size!r}: pass one side in pixels, or (height, width)")
    for side in sides:
        whole("size", side, factor, MAX_SIDE, f"pixels, a multiple of {factor}")
        if side % factor:
            raise OptionError(f"size = {side} is no multiple of {factor}: choose {side // factor * factor} or {side // factor * factor + factor}")
    return tuple(sides)


def _pair(name, value) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise OptionError(f"{name} = {value!r}: pass two numbers of pixels, vertical first")
    for side in value:
        whole(name, side, 0, 2 ** 16, "pixels, vertical first")
    return tuple(value)


def _check(sd, guidance, rescale, interval, refiner, handover, aesthetic) -> None:
    in_range("guidance", guidance, 0, 100, "1 is no guidance, 5 to 8 are usual")
    in_range("rescale", rescale, 0, 1, "0 is plain guidance")
    in_range("handover", handover, 0, 1, "the first system's share of the noise times")
    for name, pair, top in (("aesthetic", aesthetic, 10), ("interval", interval or (0, 0), sd.schedule.T - 1)):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise OptionError(f"{name} = {pair!r}: pass two numbers")
        for number in pair:
            in_range(name, number, 0, top, "two numbers: times t, low and high" if name == "interval" else "of prompt and negative prompt")
    if interval and interval[0] > interval[1]:
        raise OptionError(f"interval = {interval!r} is upside down: pass the lower t first")
    if refiner is not None and (refiner.config.vae.latent, refiner.config.vae.scale) != (sd.config.vae.latent, sd.config.vae.scale):
        raise OptionError(f"{refiner.config.name} cannot go on from {sd.config.name}: their latents differ (channels or scale)")


def _weight(model):
    return next(model.parameters())
