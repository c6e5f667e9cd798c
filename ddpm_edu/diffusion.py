"""The training loss, DDPM and DDIM, and guidance. Notebooks 02, 04 and 05.

A denoiser is any callable (x_t, t, cond) -> prediction: an MLP, a UNet, a formula, or one wrapped
in another. Loops are generators: progress bars, films and early stopping belong to the caller.
DDPM = Ho et al. 2020 (arXiv 2006.11239), DDIM = Song et al. 2020 (arXiv 2010.02502),
guidance = Ho & Salimans 2022 (arXiv 2207.12598).
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .errors import DataError, OptionError, ScheduleError, ShapeError, fits, in_range, one_of, whole
from .schedule import MAX_T, Schedule


class Cond(NamedTuple):
    """What the denoiser knows besides x_t and t. None means nothing of that kind."""

    context: Tensor | None = None  # (B, L, D) tokens for cross-attention
    vector: Tensor | None = None  # (B, V) added to the time: one-hot class, pooled text, sizes
    picture: Tensor | None = None  # (B, C, H, W) channels behind x_t's: mask and masked picture

    def map(self, f: Callable) -> "Cond":
        """f applied to each part that is there."""
        return Cond(*(None if part is None else f(part) for part in self))


Denoiser = Callable[[Tensor, Tensor, Cond], Tensor]


class Step(NamedTuple):
    """One step of a sampler: x_t went in at time t, the model saw x0_hat in it, x_prev came out."""

    t: float
    x_t: Tensor
    x0_hat: Tensor
    eps: Tensor
    x_prev: Tensor


def class_cond(labels, classes: int = 10) -> Cond:
    """Labels (B,) as one-hot rows (B, classes); label -1 is "no class", all zeros.

    Raises DataError outside -1..classes-1.
    """
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ShapeError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}: pass whole numbers, (B,)"
        )
    if len(labels) and not (-1 <= int(labels.min()) and int(labels.max()) < classes):
        raise DataError(
            f"labels run from {labels.min()} to {labels.max()}, but there are {classes} classes: "
            f"allowed are 0 to {classes - 1}, and -1 for no class"
        )
    return Cond(vector=(labels[:, None] == torch.arange(classes, device=labels.device)).float())


# ---------------------------------------------------------------- noise


def generators(seeds: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator a picture: a picture depends on its own seed, not on its batch."""
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def noise(shape: Sequence[int], seeds: Iterable[int]) -> Tensor:
    """Standard normal noise, (len(seeds), *shape) float32, one seed a picture."""
    draws = [torch.randn(*shape, generator=g) for g in generators(seeds)]
    return torch.stack(draws) if draws else torch.empty(0, *shape)


def randn_like(x: Tensor, generator=None) -> Tensor:
    """Standard normal noise shaped like x.

    generator: None, one torch.Generator, a list of one a picture, or a function of x.
    """
    _check_generator(generator, x)
    if callable(generator):
        return generator(x)
    dtype = x.dtype if x.dtype == torch.float64 else torch.float32
    if isinstance(generator, Sequence):
        shape = x.shape[1:]
        draws = [torch.randn(shape, generator=g, dtype=dtype, device=g.device) for g in generator]
        return torch.stack(draws).to(x)
    device = "cpu" if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, dtype=dtype, device=device).to(x)


def _check_generator(generator, x):
    if generator is None or callable(generator) or isinstance(generator, torch.Generator):
        return
    several = generator if isinstance(generator, Sequence) else [generator]
    if not all(isinstance(g, torch.Generator) for g in several):
        raise OptionError(
            f"generator = {generator!r:.80}: pass a torch.Generator, or generators(seeds)"
        )
    if len(several) != len(x):
        raise ShapeError(f"{len(several)} generators for a batch of {len(x)}: pass one a picture")


# ---------------------------------------------------------------- training


def loss(
    model: Denoiser,
    schedule: Schedule,
    x_0: Tensor,
    cond: Cond | None = None,
    *,
    t: Tensor | None = None,
    eps: Tensor | None = None,
    predict: str = "eps",
    weight: str | Tensor = "none",
    generator=None,
    reduction: str = "mean",
) -> Tensor:
    """L_simple = E ||target - model(x_t, t)||^2, mean over all numbers (DDPM eq. 14, Algorithm 1).

    x_0: (B, ...). t: (B,) whole numbers, drawn uniformly unless given; eps likewise from N(0, I).
    predict: what the model outputs, "eps", "x_0", "v" or "flow"; "eps" is refused with a schedule
    that ends in pure noise. weight: of each t, a name that `Schedule.weight` knows, or (T,) numbers
    for the squared error of the prediction. reduction "none" returns one number a picture, (B,).
    """
    _check_cond(cond, x_0)
    one_of("reduction", reduction, ("mean", "none"))
    schedule.can_predict(predict, schedule.T - 1)
    if len(x_0) == 0:
        raise DataError("x_0 holds no pictures: the loss needs a batch of at least one")
    if t is None:
        single = generator if isinstance(generator, torch.Generator) else None
        t = torch.randint(schedule.T, (len(x_0),), generator=single)
    t = torch.as_tensor(t) if torch.as_tensor(t).ndim else torch.full((len(x_0),), t)
    eps = randn_like(x_0, generator) if eps is None else eps
    x_t = schedule.q_sample(x_0, t, eps)
    prediction = model(x_t, t.to(x_0.device), cond or Cond())
    target = schedule.target(x_0, eps, t, predict)
    if prediction.shape != target.shape:
        raise ShapeError(
            f"the model returned {tuple(prediction.shape)} for {tuple(x_t.shape)}: make them equal"
        )
    squared = (prediction - target) ** 2
    if not isinstance(weight, str) or weight != "none":
        squared = schedule.at(_weights(weight, schedule, predict), t, x_0) * squared
    return squared.mean() if reduction == "mean" else squared.flatten(1).mean(1)


def _weights(weight, schedule, predict) -> Tensor:
    """(T,) numbers, given so or by name."""
    if not isinstance(weight, Tensor):
        return schedule.weight(weight, predict)
    fits("weight", weight, (schedule.T,), "of the loss: pass a number for each t,")
    return weight


# ---------------------------------------------------------------- which timesteps to visit

SPACINGS = ("leading", "trailing", "linspace", "sgm_uniform", "karras")


def spaced_timesteps(T: int, steps: int, spacing: str = "trailing", offset: int = 0) -> Tensor:
    """`steps` whole timesteps out of 0..T-1, falling, (steps,) float64.

    "trailing" starts at T-1; "leading" ends at `offset` (Stable Diffusion: 1) and may start well
    below T-1; "linspace" does both (names and flaws: Lin et al. 2023, arXiv 2305.08891, table 2);
    "sgm_uniform" is Stability's own even stride from T-1 down, rounded down.
    """
    whole("steps", steps, 1, T, "one model call each, and no more than the schedule has")
    whole("offset", offset, 0, T - 1, "it shifts the leading timesteps up")
    one_of("spacing", spacing, SPACINGS[:-1])
    i = torch.arange(steps, dtype=torch.float64)
    if spacing == "trailing":
        return ((steps - i) * T / steps).round() - 1
    if spacing == "sgm_uniform":
        return ((steps - i) * (T - 1) / steps).floor()
    if spacing == "leading":
        first = i.flip(0) * (T // steps)
        return first + min(offset, T - 1 - int(first[0]))  # 1000 of 1000 steps leave no room
    return (i * ((T - 1) / (steps - 1))).round().flip(0) if steps > 1 else i + T - 1


def karras_timesteps(
    schedule: Schedule, steps: int, rho: float = 7.0, ends: tuple[float, float] | None = None
) -> Tensor:
    """Fractional timesteps whose sigmas fall as in Karras et al. 2022 (arXiv 2206.00364) eq. 5.

    sigma_i = (sigma_max^(1/rho) + i/(steps-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, from
    the sigma at ends[0] to that at ends[1], the schedule's last and first unless given. Returns
    (steps,) float64.
    """
    whole("steps", steps, 1, schedule.T, "one model call each, and no more than the schedule has")
    in_range("rho", rho, 1, 100, "1 is even steps in sigma, 7 is usual")
    if schedule.alpha_bar[-1] == 0:
        raise ScheduleError(
            'spacing = "karras": sigma is infinite at the end of this schedule: choose "trailing"'
        )
    high, low = (schedule.sigma_at(t) ** (1 / rho) for t in ends or (schedule.T - 1, 0))
    u = torch.linspace(0, 1, steps, dtype=torch.float64)
    return schedule.time_at((high + u * (low - high)) ** rho).clamp(0, schedule.T - 1)


def visit(schedule: Schedule, timesteps, end: float = -1) -> list[tuple[float, float]]:
    """Pairs (t, t_prev) a sampler walks through; a whole number means that many trailing timesteps.

    The last t_prev is `end`: -1 is the clean picture; Stable Diffusion's own DDIM stops at 0.
    Raises OptionError or ScheduleError unless timesteps fall strictly, inside the schedule and
    above `end`.
    """
    if isinstance(timesteps, (int, bool)):
        timesteps = spaced_timesteps(schedule.T, timesteps)
    times = torch.as_tensor(timesteps, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) == 0:
        raise OptionError(
            f"timesteps have shape {tuple(times.shape)}: pass a number of steps, or a falling row "
            "of at least one time"
        )
    if not (times >= 0).all() or not (times <= schedule.T - 1).all():
        raise ScheduleError(
            f"timesteps {times.min():g} to {times.max():g}: allowed are 0 to {schedule.T - 1}"
        )
    path = [*times.tolist(), float(end)]
    if not -1 <= path[-1] or any(a <= b for a, b in zip(path, path[1:])):
        raise OptionError(
            f"timesteps {', '.join(f'{t:g}' for t in path[:4])}, ... {path[-2]:g}, end = {end:g}: "
            "they must fall strictly, from noise (large t) to picture, and stay above end"
        )
    return list(zip(path, path[1:]))


# ---------------------------------------------------------------- sampling


@dataclass(frozen=True)
class Dynamic:
    """`clip` by each picture's own range: dynamic thresholding (Imagen, Saharia et al. 2022, 2.3).

    s = that percentile of |x0_hat| in a picture, but at least 1; x0_hat is held in [-s, s] and
    divided by s. Numbers that strong guidance drove beyond 1 come back, and the others with them,
    where static clipping leaves all of them at the edge.
    """

    percentile: float = 0.995  # a share of the picture's numbers, 0 to 1; 1 only divides

    def __post_init__(self):
        in_range("percentile", self.percentile, 0, 1, "0.995 clips one number of 200")

    def __call__(self, x0_hat: Tensor) -> Tensor:
        """x0_hat (B, ...) -> the same shape, in [-1, 1]."""
        size = x0_hat.abs().reshape(len(x0_hat), -1)
        s = size.quantile(self.percentile, dim=1).clamp(min=1).view(-1, *[1] * (x0_hat.ndim - 1))
        return x0_hat.clamp(-s, s) / s


def begin(
    model, schedule, x_T, timesteps, cond=None, *, predict="eps", clip=None, end=-1, generator=None
):
    """What every sampler does at its call: check the arguments of `sample`. Returns (path, look).

    path: the pairs (t, t_prev) of `visit`.  look(x_t, t) -> (x0_hat, eps_hat): one model call; with
    `clip`, x0_hat is held in [-clip, clip], or by a `Dynamic`, and eps_hat follows it.
    Raises OptionError, ShapeError, ScheduleError: at the call, not in the middle of the run.
    """
    path = visit(schedule, timesteps, end)
    if x_T.ndim == 0 or not x_T.is_floating_point():
        raise ShapeError(
            f"x_T is {x_T.dtype} of shape {tuple(x_T.shape)}: pass noise as floats, (B, ...)"
        )
    _check_cond(cond, x_T)
    _same_device(model, x_T)
    schedule.can_predict(predict, path[0][0])
    if not isinstance(clip, Dynamic | None):
        in_range("clip", clip, 0, 1e9, "1 for pictures in [-1, 1], a Dynamic, or None for none")
    _check_generator(generator, x_T)

    @torch.no_grad()
    def look(x_t, t):
        prediction = model(x_t, torch.full((len(x_t),), t, device=x_t.device), cond or Cond())
        x0_hat, eps = schedule.split(x_t, prediction, t, predict)
        if clip is not None:
            x0_hat = clip(x0_hat) if isinstance(clip, Dynamic) else x0_hat.clamp(-clip, clip)
            eps = schedule.split(x_t, x0_hat, t, "x_0")[1]
        return x0_hat, eps

    return path, look


def _check_cond(cond, x):
    if cond is None:
        return
    if not isinstance(cond, Cond):
        raise OptionError(
            f"cond is a {type(cond).__name__}: pass a Cond, such as class_cond(labels)"
        )
    for name, part in zip(Cond._fields, cond):
        if part is not None and len(part) != len(x):
            raise ShapeError(
                f"cond.{name} has {len(part)} rows for a batch of {len(x)}: pass one a picture"
            )


def _same_device(model, x_T):
    """The network inside of wrappers such as `guided` must be where x_T is."""
    network = inspect.unwrap(model)
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    if weight is not None and weight.device != x_T.device:
        raise ShapeError(
            f"x_T is on {x_T.device}, the model is on {weight.device}: move x_T, or move the model"
        )


def ddpm(
    model, schedule, x_T, timesteps, cond=None, *, variance="small", generator=None, **options
):
    """Algorithm 2 of DDPM: draw x_{t-1} from the posterior q(x_{t-1} | x_t, x0_hat).

    variance "small" is the posterior's own beta_t (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t), right
    when the data is one point; "large" is beta_t, right when the data is N(0, I) (section 3.2).
    Where timesteps are skipped, alpha_t spans the gap. Other arguments: see `sample`.
    """
    one_of("variance", variance, ("small", "large"))
    options = dict(options, generator=generator)
    path, look = begin(model, schedule, x_T, timesteps, cond, **options)

    def steps(x):
        for t, t_prev in path:
            x0_hat, eps = look(x, t)
            x_prev, var = schedule.posterior(x0_hat, x, t, t_prev)
            if variance == "large":
                alpha = schedule.alpha_bar_at(t) / schedule.alpha_bar_at(t_prev)
                var = torch.full_like(var, 1 - alpha)
            if t_prev >= 0:  # no noise at the last step
                x_prev = x_prev + var.sqrt() * randn_like(x, generator)
            yield Step(t, x, x0_hat, eps, x_prev)
            x = x_prev

    return steps(x_T)


def sample(
    model: Denoiser,
    schedule: Schedule,
    x_T: Tensor,
    timesteps,
    cond: Cond | None = None,
    *,
    eta: float = 0.0,
    predict: str = "eps",
    clip: float | Dynamic | None = None,
    end: float = -1,
    generator=None,
) -> Iterator[Step]:
    """DDIM (eq. 12 and 16): eta = 0 is deterministic, eta = 1 is DDPM with the small variance.

    x_prev = sqrt(alpha_bar_prev) x0_hat + sqrt(1 - alpha_bar_prev - sigma^2) eps + sigma z,
    sigma = eta sqrt((1 - alpha_bar_prev) / (1 - alpha_bar_t)) sqrt(1 - alpha_bar_t/alpha_bar_prev).

    x_T: (B, ...) noise. timesteps: a number of steps or a falling row of times. predict: what the
    model outputs. clip: hold x0_hat in [-clip, clip], or see `Dynamic`. end: see `visit`.
    generator: see `randn_like`. Yields one Step a model call. Arguments are checked at the call:
    see `begin`.
    """
    in_range("eta", eta, 0, 1, "0 is deterministic, 1 adds as much noise as DDPM")
    options = dict(predict=predict, clip=clip, end=end, generator=generator)
    path, look = begin(model, schedule, x_T, timesteps, cond, **options)

    def steps(x):
        for t, t_prev in path:
            x0_hat, eps = look(x, t)
            now, before = schedule.alpha_bar_at(t), schedule.alpha_bar_at(t_prev)
            sigma = eta * ((1 - before) / (1 - now) * (1 - now / before)) ** 0.5
            x_prev = before**0.5 * x0_hat + max(1 - before - sigma**2, 0.0) ** 0.5 * eps
            if sigma > 0:
                x_prev = x_prev + sigma * randn_like(x, generator)
            yield Step(t, x, x0_hat, eps, x_prev)
            x = x_prev

    return steps(x_T)


def last(steps: Iterable[Step]) -> Tensor:
    """Run a sampler to its end and return the picture, x_prev of the last step."""
    step = None
    for step in steps:
        pass
    if step is None:
        raise OptionError(
            "the sampler gave no steps: pass a fresh one (a generator can be run only once)"
        )
    return step.x_prev


# ---------------------------------------------------------------- guidance


def guided(
    model: Denoiser,
    scale: float,
    uncond: Cond | None = None,
    *,
    rescale: float = 0.0,
    interval: tuple[float, float] | None = None,
) -> Denoiser:
    """Classifier-free guidance: uncond + scale (cond - uncond), in one batched call.

    Ho & Salimans eq. 6 with scale = 1 + w. Scale 1 is the plain conditional model, 0 the
    unconditional one. `uncond`, or a part of it, defaults to zeros (no class), its picture to that
    of `cond`; a single row is repeated.
    rescale = phi gives phi of the way back to the spread of the conditional prediction, a picture:
    times phi std(cond) / std(guided) + 1 - phi (Lin et al. 2023, arXiv 2305.08891, eq. 15 and 16).
    interval = (low, high): guidance at low <= t <= high only, elsewhere the plain model at half the
    price (Kynkaanniemi et al. 2024, arXiv 2404.07724).
    """
    in_range("guidance scale", scale, 0, 100, "1 is no guidance, 2 to 8 are usual")
    in_range("rescale", rescale, 0, 1, "0 is plain guidance")
    low, high = check_interval(interval, MAX_T)
    if scale == 1:
        return model
    n = len(Cond._fields)
    pair = remembered(lambda *parts: Cond(*map(_beside, Cond._fields, parts[:n], parts[n:])))

    def denoise(x_t, t, cond):
        cond = cond or Cond()
        if interval and not low <= t[0].item() <= high:  # waits for a GPU: cheaper than a pass
            return model(x_t, t, cond)
        both = pair(*cond, *(uncond or Cond()))
        with_cond, without = model(torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
        prediction = without + scale * (with_cond - without)
        if rescale:
            ratio = _spread(with_cond) / _spread(prediction)
            prediction = (rescale * ratio + 1 - rescale) * prediction
        return prediction

    denoise.__wrapped__ = model  # where `inspect.unwrap` looks for the network
    return denoise


def check_interval(interval, most) -> tuple:
    """Two times from 0 to `most`, the lower first; None is all of them."""
    if interval is None:
        return 0, most
    if not isinstance(interval, (tuple, list)) or len(interval) != 2:
        raise OptionError(f"interval = {interval!r:.80}: pass two times t, the lower first")
    for t in interval:
        in_range("interval", t, 0, most, "times t, the lower first")
    if interval[0] > interval[1]:
        raise OptionError(f"interval = {interval!r} is upside down: pass the lower t first")
    return interval


def _spread(x):
    """Standard deviation of each picture, (B, 1, ...)."""
    return x.flatten(1).std(1).view(-1, *[1] * (x.ndim - 1))


def _beside(name, cond, uncond):
    """One part of both conditions in one batch; uncond (1, ...) is repeated."""
    if cond is None:
        return None
    if uncond is None:  # without a text it is still the same picture that is edited
        return torch.cat([cond, cond if name == "picture" else torch.zeros_like(cond)])
    if uncond.shape[1:] != cond.shape[1:] or len(uncond) not in (1, len(cond)):
        raise ShapeError(
            f"uncond.{name} has shape {tuple(uncond.shape)} but cond.{name} {tuple(cond.shape)}: "
            "make them equal"
        )
    return torch.cat([cond, uncond.expand_as(cond)])


def remembered(f: Callable) -> Callable:
    """f, computed again only if one of its tensors (or None) is another one or was written to.

    What depends on the prompt alone is so worked out once a run, not once a step. With gradients
    nothing is remembered.
    """
    memory = []

    def call(*tensors):
        # A graph is good for one backward; inference tensors do not tell when they are written to.
        if torch.is_grad_enabled() or any(x is not None and x.is_inference() for x in tensors):
            return f(*tensors)
        versions = [x if x is None else x._version for x in tensors]
        same = memory and memory[1] == versions
        if not same or any(a is not b for a, b in zip(memory[0], tensors)):
            memory[:] = tensors, versions, f(*tensors)
        return memory[2]

    return call
