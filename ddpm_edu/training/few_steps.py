"""Pictures in one to four evaluations: `painted` distilled, a MeanFlow from nothing. Notebook 16.

The student is the teacher's own UNet. It learns where the teacher's guided paths end, first from
noise, then from its own pictures, noised again (consistency.py); distribution_matching.py may
follow. The MeanFlow (meanflow.py) has a smaller UNet, and shares with `painted` only the latents
and the texts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..consistency import Consistency, Paths, endpoint, objective
from ..datasets.painted import painted_digits, prompts
from ..diffusion import Cond, guided, noise
from ..distribution_matching import DistributionMatching
from ..errors import OptionError, whole
from ..files.load import load
from ..meanflow import mean_flow_loss, mean_velocity
from ..networks.tokenizer import unseen
from ..networks.unet import UNetConfig
from ..paths import beside
from ..samplers import SAMPLERS, sampling_times
from ..schedule import Schedule
from ..systems.pipeline import unet_of
from ..systems.system import StableDiffusion, build
from .latents import conditions, distinct, encode
from .recipes import MUON, PAINTED, start_at_zero
from .train import TrainConfig, fit
from .whole_system import last_step

# ---------------------------------------------------------------- a teacher's paths


@torch.no_grad()
def solved_paths(
    teacher: StableDiffusion,
    texts: list[str],
    steps: int,
    guidance: float | None = None,
    *,
    seed: int = 0,
    student: StableDiffusion | None = None,
) -> Paths:
    """One path of the teacher for each text, by its own sampler, and guidance unless given.

    student: then paths begin where its sampler may stand, at any time but the first: its picture
    of the same noise, noised again. There it learns to mend what it drew (Ross et al. 2011,
    arXiv 1011.0686).
    OptionError for steps below 1, and for a teacher that never saw the texts' words in training.
    """
    whole("steps", steps, 1 + (student is not None), teacher.schedule.T, "of the teacher's paths")
    knows(teacher, texts)
    c, (known, row) = teacher.config, distinct(texts)
    cond = conditions(teacher, known)
    scale = c.guidance if guidance is None else guidance
    model = guided(unet_of(teacher), scale, conditions(teacher, [""]))
    times = sampling_times(teacher.schedule, steps, c.sampler, c.spacing)[0]
    shape = c.vae.latent, *[c.size // teacher.vae.factor] * 2
    x, at = torch.empty(len(texts), steps + 1, *shape), torch.empty(len(texts), steps + 1)
    first = torch.arange(len(texts)) % (steps - 1) + 1 if student else torch.zeros(len(texts))
    for k in first.unique().int().tolist():
        for part in (first == k).nonzero()[:, 0].split(250):
            own, seeds = Cond(cond.context[row[part]]), (seed + part).tolist()
            x_t = noise(shape, seeds).to(cond.context)
            if student:
                x_t = again(student, x_t, times[0], times[k], own, seeds)
            how = {"predict": c.predict}
            walk = SAMPLERS[c.sampler](model, teacher.schedule, x_t, times[k:], own, **how)
            points = [x_t] * (k + 1) + [step.x_prev for step in walk]
            x[part] = torch.stack(points, 1).cpu()
            at[part] = torch.tensor([times[k]] * k + times[k:] + [-1])
    return Paths(x, at.round().long(), cond.context.cpu(), row)


def again(student: StableDiffusion, x_T: Tensor, t: float, t_next: float, cond, seeds) -> Tensor:
    """The student's picture of x_T, (B, ...), noised again, to t_next."""
    times = torch.full((len(x_T),), round(t))
    x_0 = endpoint(unet_of(student), student.schedule, x_T, times, cond, student.predict)
    eps = noise(x_T.shape[1:], [seed + 2**40 for seed in seeds]).to(x_T)
    return student.schedule.q_sample(x_0, round(t_next), eps)


def knows(teacher: StableDiffusion, texts: list[str]) -> None:
    """OptionError unless all words of the texts were in the teacher's training."""
    words = frozenset(teacher.meta.get("words", ()))
    new = sorted({word for text in set(texts) for word in unseen(text, words)})
    if new:
        raise OptionError(
            f"teacher = {teacher.config.name} never saw {', '.join(map(repr, new[:5]))} in "
            "training: it is of another data set, choose the one that was trained on these texts"
        )


# ---------------------------------------------------------------- a student


@dataclass(frozen=True)
class FewRecipe:
    """A teacher, its paths, and the student's one to three runs."""

    name: str
    base: str  # the teacher, a source of `load`; the student's file holds only what differs
    texts: Callable  # (n, seed) -> captions
    train: TrainConfig  # on the paths' ends; p_uncond, predict and t_... do not count
    again: TrainConfig | None = None  # then on paths from where the student stands, too
    match: TrainConfig | None = None  # then by distribution matching
    n: int = 4000  # paths, and half as many from where the student stands
    path_steps: int = 8  # evaluations, guided, of the teacher on each
    seed: int = 10**6  # of the first path's noise, far from those that pictures are drawn from
    from_noise: float = 0.25  # share of the batch that starts at the path's beginning
    steps: int = 4  # of the student, unless told otherwise


def train_few(
    recipe: FewRecipe, checkpoint=None, log: Callable = iter, device="cpu"
) -> StableDiffusion:
    """The student. checkpoint: a file for the first run; the others' have -again, -match."""
    teacher = load(recipe.base).to(device)
    file = lambda run: checkpoint and beside(checkpoint, f"-{run}")
    paths = first_paths(teacher, recipe)
    student = distilled(begin(teacher, recipe), paths, recipe, recipe.train, checkpoint, log)
    if recipe.again:
        paths = paths + later_paths(teacher, student, recipe)
        student = distilled(student, paths, recipe, recipe.again, file("again"), log)
    if recipe.match:
        student = matched(teacher, student, paths, recipe.match, file("match"), log)
    return student


def first_paths(teacher: StableDiffusion, recipe: FewRecipe) -> Paths:
    texts = recipe.texts(recipe.n, recipe.train.seed)
    return solved_paths(teacher, texts, recipe.path_steps, seed=recipe.seed)


def later_paths(teacher: StableDiffusion, student: StableDiffusion, recipe: FewRecipe) -> Paths:
    texts, seed = recipe.texts(recipe.n // 2, recipe.train.seed + 1), recipe.seed + recipe.n
    return solved_paths(teacher, texts, recipe.path_steps, seed=seed, student=student)


def begin(teacher: StableDiffusion, recipe: FewRecipe) -> StableDiffusion:
    """The teacher's copy, which is asked once a step: guidance is built in."""
    how = dict(name=recipe.name, guidance=1.0, interval=None, sampler="consistency")
    config = replace(teacher.config, **how, steps=recipe.steps)
    student = build(config, teacher.schedule)
    student.load_state_dict(teacher.state_dict())
    student.text.tokenizer, student.meta = teacher.tokenizer, {"words": teacher.meta["words"]}
    return student.to(next(teacher.unet.parameters()).device)


def distilled(
    student: StableDiffusion,
    paths: Paths,
    recipe: FewRecipe,
    config: TrainConfig,
    checkpoint=None,
    log: Callable = iter,
    **how,
) -> StableDiffusion:
    """The same student after a run on `Consistency`; how: its skip and decay."""
    own = student.unet.requires_grad_(True)
    how = {"from_noise": recipe.from_noise, **how}
    model = Consistency(own, student.schedule, student.predict, **how)
    return _run(student, model, paths, config, checkpoint, log)


def matched(
    teacher, student, paths: Paths, config: TrainConfig, checkpoint=None, log: Callable = iter
) -> StableDiffusion:
    """The same student after a run on `DistributionMatching`."""
    own = student.unet.requires_grad_(True)
    looks = guided(unet_of(teacher), teacher.config.guidance, conditions(teacher, [""]))
    model = DistributionMatching(own, looks, teacher.unet, teacher.schedule, teacher.predict)
    return _run(student, model, paths, config, checkpoint, log)


def _run(student, model, paths, config, checkpoint, log):
    step = last_step(log(fit(model, paths, config, objective, checkpoint=checkpoint)))
    student.unet.load_state_dict(step.ema.student.state_dict())
    return student.eval().requires_grad_(False)


# ---------------------------------------------------------------- a MeanFlow


@dataclass(frozen=True)
class MeanFlowRecipe:
    """Latents and texts of a system that ships, a UNet of its own, and its two runs."""

    name: str
    base: str  # whose VAE and text encoder are used; a source of `load`
    dataset: Callable  # () -> dataset[index] -> (x_0, captions)
    unet: UNetConfig  # vector = 1, the length of a step
    first: TrainConfig  # with r = u everywhere, plain flow matching: cheap, and most is learned
    train: TrainConfig  # the mean velocity
    T: int = 16  # of the schedule: a derivative by t bears few, slow times only
    apart: float = 0.35  # share of the batch with r < u; the others learn the velocity, r = u
    from_noise: float = 0.4  # share of those with u = 1, where every drawing starts
    kappa: float = 0.0  # guidance built in: 1 / (1 - kappa); 0: none
    power: float = 0.5  # see `mean_flow_loss`
    n: int = 12000  # pictures
    steps: int = 4


def train_mean_flow(
    recipe: MeanFlowRecipe, checkpoint=None, log: Callable = iter, device="cpu"
) -> StableDiffusion:
    """From random weights: flow matching, then Geng et al.'s Algorithm 1, on latents.

    checkpoint: a file for the second run; the first one's has -first in its name.
    """
    sd = mean_flow_system(recipe).to(device)
    latents = encode(sd, recipe.dataset(), recipe.n)
    unet = sd.unet.requires_grad_(True)
    plain = replace(recipe, train=recipe.first, apart=0.0, kappa=0.0)
    early = checkpoint and beside(checkpoint, "-first")
    for run, file in ((plain, early), (recipe, checkpoint)):
        value = mean_flow_objective(run, sd.schedule, latents.uncond)
        steps = fit(unet, latents, run.train, value, checkpoint=file)
        unet.load_state_dict(last_step(log(steps)).ema.state_dict())
    return sd.eval().requires_grad_(False)


def mean_flow_system(recipe: MeanFlowRecipe) -> StableDiffusion:
    """The base with a new UNet, which answers 0 to anything."""
    base = load(recipe.base)
    how = dict(predict="flow", vector="step", number_dim=1, guidance=1.0, interval=None)
    config = replace(
        base.config,
        name=recipe.name,
        unet=recipe.unet,
        steps=recipe.steps,
        sampler="mean_flow",
        **how,
    )
    torch.manual_seed(recipe.train.seed)
    sd = build(config, Schedule.flow(recipe.T))
    sd.vae, sd.text, sd.meta = base.vae, base.text, {"words": base.meta["words"]}
    start_at_zero(sd.unet)
    return sd


def mean_flow_objective(recipe: MeanFlowRecipe, schedule: Schedule, uncond: Cond) -> Callable:
    """The loss for `train.fit`: u logit-normal with t_mean; where r < u, both uniform.

    Texts are dropped as p_uncond says.
    """

    def value(unet, batch, generator):
        (x_0, cond), c = batch, recipe.train
        n, device = len(x_0), x_0.device
        u = r = (torch.randn(n, generator=generator) + c.t_mean).sigmoid()
        pair, (apart, begins) = torch.rand(2, 2, n, generator=generator)
        apart = apart < recipe.apart
        later = torch.where(begins < recipe.from_noise, 1.0, pair.amax(0))
        u = torch.where(apart, later, u).to(device)
        r = torch.where(apart, pair.amin(0), r).to(device)
        eps = torch.randn(x_0.shape, generator=generator).to(device)
        keep = (torch.rand(n, generator=generator) >= c.p_uncond).to(device)
        cond = chosen(keep, cond, uncond)
        v = guided_velocity(unet, schedule, x_0, eps, u, cond, uncond, recipe.kappa * keep)
        return mean_flow_loss(unet, schedule, x_0, eps, u, r, cond, velocity=v, power=recipe.power)

    return value


def chosen(keep: Tensor, cond: Cond, uncond: Cond) -> Cond:
    """Texts (B, L, D) where keep (B,), elsewhere the empty one (1, L, D)."""
    return Cond(torch.where(keep.view(-1, 1, 1), cond.context, uncond.context))


@torch.no_grad()
def guided_velocity(unet, schedule, x_0, eps, u, cond: Cond, uncond: Cond, kappa: Tensor) -> Tensor:
    """eps - x_0 + kappa (U(z_u, u, u) - U(z_u, u, u) without a text), kappa (B,): (B, ...).

    A network that learns it has guidance 1 / (1 - kappa) built in, and draws without asking twice
    (appendix B.1 of the paper, omega = 1).
    """
    v, wide = eps - x_0, lambda a: a.view(-1, *[1] * (x_0.ndim - 1))
    if not bool(kappa.any()):
        return v
    z = (1 - wide(u)) * x_0 + wide(u) * eps
    both = Cond(torch.cat([cond.context, uncond.context.expand_as(cond.context)]))
    twice = (torch.cat([part, part]) for part in (z, u, u))
    with_text, without = mean_velocity(unet, schedule, *twice, both).chunk(2)
    return v + wide(kappa) * (with_text - without)


# ---------------------------------------------------------------- recipes

RUN = TrainConfig(batch_size=40, ema=0.98, warmup=20, **(MUON | {"lr": 5e-3}))
PAINTED_FEW = FewRecipe(
    "painted-few",
    "painted",
    prompts,
    replace(RUN, steps=400, seed=16),
    again=replace(RUN, steps=250, seed=17),
)
PAINTED_MEANFLOW = MeanFlowRecipe(
    "painted-meanflow",
    "painted",
    painted_digits,
    replace(PAINTED.unet, channels=32, depth=(0, 1), vector=1),
    replace(RUN, steps=2000, batch_size=48, lr=1e-2, ema=0.99, t_mean=0.5),
    replace(RUN, steps=500, batch_size=32, lr=5e-3, ema=0.99, t_mean=0.5),
    kappa=0.5,
)
FEW_RECIPES = {r.name: r for r in (PAINTED_FEW, PAINTED_MEANFLOW)}
