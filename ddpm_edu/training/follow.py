"""`ddpm-edu train NAME`: a recipe followed from the shell, and the weights written. Notebook 09."""

import dataclasses
import time
from pathlib import Path

import torch

from ..errors import OptionError, check_device, check_writable, in_range, one_of
from ..files.load import save
from ..paths import beside
from .cascade import CASCADE_RECIPES, train_cascade
from .codes import CODE_RECIPES, train_codes
from .control import CONTROL_RECIPES, train_control
from .denoisers import DENOISER_RECIPES, train_denoiser
from .editing import EDIT_RECIPES, train_editing
from .few_steps import FEW_RECIPES, MeanFlowRecipe, train_few, train_mean_flow
from .prior import PRIOR_RECIPES, train_prior
from .recipes import RECIPES
from .sdxl import SDXL_RECIPE, train_sdxl
from .share import shared
from .train import train
from .whole_system import last_step, logged, machine, train_system

SHARES = {"base": 0.75, "up": 0.25}  # of a cascade's seconds
FEWER = {"levels": 31}  # of a weight in the file, above 0 and below; see `save`
BESIDE = (  # recipes, what learns, the run, how it is saved
    (CONTROL_RECIPES, "ControlNet", train_control, {}),
    (EDIT_RECIPES, "UNet", train_editing, {}),
    (DENOISER_RECIPES, "denoiser", train_denoiser, FEWER),
    (PRIOR_RECIPES, "prior", train_prior, FEWER),
    (FEW_RECIPES, "UNet", train_few, FEWER),
)


def known() -> list[str]:
    """The names of recipes."""
    others = [n for recipes, *_ in BESIDE for n in recipes]
    return [*RECIPES, SDXL_RECIPE.name, *CASCADE_RECIPES, *CODE_RECIPES, *others]


def follow(
    name: str,
    out: Path,
    *,
    checkpoint=None,
    steps: int | None = None,
    seconds: float | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> list[Path]:
    """Train the recipe of this name, write the averaged weights to `out`; returns what it wrote.

    A whole system's CLIP goes to OUT_clip.safetensors, SDXL's refiner to OUT-refiner.safetensors.
    checkpoint: a file, of a whole system a folder. All that can be refused is refused before the
    training.
    """
    one_of("recipe", name, known())
    check_device(device)
    if seconds is not None:
        in_range("seconds", seconds, 0.1, 10**7, "of training")
    if name == SDXL_RECIPE.name:
        own = {"steps": None, "seconds": None, "device": "cpu", "dtype": "float32"}
        given = dict(steps=steps, seconds=seconds, device=device, dtype=dtype)
        changed = [f"--{option}" for option in own if given[option] != own[option]]
        return _follow_sdxl(out, checkpoint, changed)
    if name in CASCADE_RECIPES:
        return _follow_cascade(name, out, checkpoint, steps, seconds, dtype, device)
    changes = {"steps": steps, "seconds": seconds, "dtype": dtype}
    if name in CODE_RECIPES:
        return _follow_codes(name, out, checkpoint, changes, device)
    if any(name in recipes for recipes, *_ in BESIDE):
        return _follow_beside(name, out, checkpoint, changes, device)
    recipe = RECIPES[name]
    runs = [run for run in ("train_vae", "train_clip", "train_unet") if getattr(recipe, run)]
    changes = {run: dataclasses.replace(getattr(recipe, run), dtype=dtype) for run in runs}
    recipe = dataclasses.replace(recipe, **changes)
    check_writable(out)
    if recipe.vae is None:
        return _follow_pixels(recipe, out, checkpoint, steps, seconds, device)
    clip = check_writable(beside(out, "_clip"))
    if steps is not None:
        raise OptionError(
            "--steps: a whole system is three runs: pass --seconds for all of them together"
        )
    trained = train_system(recipe, seconds, checkpoint, device)
    card = {"train": trained.record}
    save(clip, trained.clip, card, dtype=torch.int8)
    save(out, trained.sd, {**trained.sd.meta, **card}, dtype=torch.int8)
    return [out, clip]


def _follow_pixels(recipe, out, checkpoint, steps, seconds, device) -> list[Path]:
    config = _run(recipe.train_unet, out, checkpoint, {"steps": steps, "seconds": seconds})
    dataset, started, record = recipe.dataset(), time.perf_counter(), {}
    model, schedule = recipe.model(dataset).to(device), recipe.schedule()
    run = shared(train, model, schedule, dataset, config, checkpoint=checkpoint)
    step = last_step(logged("UNet", config, record)(run))
    meta = {
        "shape": list(dataset[torch.zeros(1, dtype=torch.long)][0].shape[1:]),
        "guidance": recipe.guidance,
        "sampler": recipe.sampler,
        "clip": 1.0,
        "train": dataclasses.asdict(config),
        **record,
        **machine(recipe.name, started, device),
    }
    plan = {"schedule": schedule, "predict": config.predict}
    save(out, step.ema.cpu(), meta, **plan, dtype=torch.int8)
    return [out]


def _follow_beside(name, out, checkpoint, changes, device) -> list[Path]:
    """A model that is trained beside a system that ships."""
    recipes, part, run, how = next(way for way in BESIDE if name in way[0])
    recipe, how = recipes[name], dict(how)
    if isinstance(recipe, MeanFlowRecipe):
        run = train_mean_flow
    if recipes is EDIT_RECIPES or recipes is FEW_RECIPES:  # the file holds what differs
        how["base"] = recipe.base
    recipe = dataclasses.replace(recipe, train=_run(recipe.train, out, checkpoint, changes))
    started, record = time.perf_counter(), {}
    log = logged(part, recipe.train, record)
    model = run(recipe, checkpoint, log, device)
    card = {**dataclasses.asdict(recipe.train), **record, **machine(recipe.name, started, device)}
    save(out, model, {**model.meta, "train": card}, dtype=torch.int8, **how)
    return [out]


def _follow_cascade(name, out, checkpoint, steps, seconds, dtype, device) -> list[Path]:
    """Two runs; the file holds what differs from the system whose texts are read."""
    if steps is not None:
        raise OptionError(
            "--steps: a cascade is two runs: pass --seconds for both of them together"
        )
    recipe, started, record = CASCADE_RECIPES[name], time.perf_counter(), {}
    runs = {"base": recipe.train_base, "up": recipe.train_up}
    for part, share in SHARES.items():
        own = seconds and share * seconds
        runs[part] = _run(runs[part], out, checkpoint, {"seconds": own, "dtype": dtype})
        record[part] = {}
    recipe = dataclasses.replace(recipe, **{f"train_{part}": run for part, run in runs.items()})
    log = lambda part: logged(part, runs[part], record[part])
    cascade = train_cascade(recipe, checkpoint, log, device)
    card = {part: dataclasses.asdict(runs[part]) | record[part] for part in runs}
    card |= machine(recipe.name, started, device)
    how = {"dtype": torch.int8, "base": recipe.source, **FEWER}
    save(out, cascade, {**cascade.meta, "train": card}, **how)
    return [out]


def _follow_codes(name, out, checkpoint, changes, device) -> list[Path]:
    """A book, where the recipe has a run for it, then the GPT, which the changes are for."""
    recipe, started, record, book = CODE_RECIPES[name], time.perf_counter(), {}, {}
    recipe = dataclasses.replace(recipe, train=_run(recipe.train, out, checkpoint, changes))
    log = logged("GPT", recipe.train, record)
    log_vq = recipe.train_vq and logged("VQ", recipe.train_vq, book)
    system = train_codes(recipe, checkpoint, log, device, log_vq=log_vq)
    card = {**dataclasses.asdict(recipe.train), **record, **machine(recipe.name, started, device)}
    if book:
        card["vq"] = {**dataclasses.asdict(recipe.train_vq), **book}
    how = {"dtype": torch.int8, "base": recipe.base, **FEWER}
    save(out, system, {**system.meta, "train": card}, **how)
    return [out]


def _run(config, out, checkpoint, changes):
    """The run with these changes, after a look whether its files can be written."""
    for path in (out, checkpoint):
        if path is not None:
            check_writable(path)
    return dataclasses.replace(config, **{k: v for k, v in changes.items() if v is not None})


def _follow_sdxl(out, checkpoint, changed) -> list[Path]:
    if changed:
        raise OptionError(
            f"{', '.join(changed)}: {SDXL_RECIPE.name} is eight runs, each of its own number of "
            "updates, in float32 on the CPU: leave the option out"
        )
    refiner = beside(out, "-refiner")
    for path in (out, refiner):
        check_writable(path)
    trained = train_sdxl(SDXL_RECIPE, checkpoint)
    for path, sd in ((out, trained.base), (refiner, trained.refiner)):
        save(path, sd, {**sd.meta, "train": trained.record}, dtype=torch.int8)
    return [out, refiner]
