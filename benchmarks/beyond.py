"""The other plans on the painted digits, figure by figure; the last line is one JSON object.

python benchmarks/beyond.py codes --model painted-dalle       in order, or masked: obeyed, seconds
python benchmarks/beyond.py rerank --model painted-dalle      best of 1, 2 .. 8 by CLIP
python benchmarks/beyond.py masked_steps                      masked in 1, 2 .. 64 steps
python benchmarks/beyond.py cascade                           Imagen's plan: obeyed, seconds
python benchmarks/beyond.py latent                            the latent system, for comparison
python benchmarks/beyond.py few                               1, 2, 4, 8 steps: obeyed, Frechet
python benchmarks/beyond.py thresholds --n 100                x0_hat free, clipped, or by percentile
python benchmarks/beyond.py augmentation                      the noise given to `up`
python benchmarks/beyond.py prior                             unCLIP's prior: pictures retrieved
python benchmarks/beyond.py broken --run imagen_no_noise      trained with a mistake, recorded
"""

import argparse
import time
from dataclasses import asdict, replace
from functools import cache
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from figures import keep, provenance, report

from ddpm_edu import generators, last, load, meanflow
from ddpm_edu.consistency import Consistency, endpoint, objective
from ddpm_edu.datasets.images import from_uint8, mnist, to_uint8
from ddpm_edu.datasets.painted import paint, painted_digits, prompts
from ddpm_edu.diffusion import Dynamic
from ddpm_edu.discrete import (
    autoregressive,
    bound,
    cosine_counts,
    masked,
    masked_loss,
    next_code_loss,
)
from ddpm_edu.metrics.frechet import frechet
from ddpm_edu.metrics.obedience import fidelity
from ddpm_edu.show.few_steps import MODELS as FEW_MODELS
from ddpm_edu.show.few_steps import calls
from ddpm_edu.show.few_steps import drawn as in_few
from ddpm_edu.systems import codes as systems_codes
from ddpm_edu.systems.editing import enlarged
from ddpm_edu.systems.pipeline import draw
from ddpm_edu.systems.prior import draw_embeddings, nearest
from ddpm_edu.training import few_steps, latents
from ddpm_edu.training.cascade import PAINTED_IMAGEN, begin, pixels, train_part
from ddpm_edu.training.codes import MASKGIT, assemble, encode
from ddpm_edu.training.few_steps import PAINTED_FEW, PAINTED_MEANFLOW
from ddpm_edu.training.prior import PAINTED_PRIOR, train_prior
from ddpm_edu.training.train import fit
from ddpm_edu.training.whole_system import last_step, logged


def obeyed(draw, n: int, size: int = 50) -> dict:
    """draw(prompts, seed) -> pictures: shares of n with all five words, and with three, right.

    Of combinations that were seen in training, and of those that were held out.
    """
    found, started = {}, time.process_time()
    for kind, held in (("seen", False), ("held_out", True)):
        texts = prompts(n, seed=1, held=held)
        parts = [draw(texts[k : k + size], k) for k in range(0, n, size)]
        read_as = fidelity(torch.cat(parts), texts)
        found[kind] = {name: round(read_as[name], 4) for name in ("all", "main", "digit")}
    return found | {"cpu_seconds_a_picture": (time.process_time() - started) / (2 * n)}


def codes(args) -> dict:
    """A system of codes: its copies, what it draws, seconds a picture."""
    system = load(args.model or "painted-dalle")
    x, captions = painted_digits("test", args.n, seed=1, held=None)[:]
    with torch.no_grad():
        copies = system.decode(system.encode(x))
    draw = lambda texts, seed: system.draw(texts, seed=seed)
    x = drawn(draw, prompts(args.n, seed=1, held=False))
    return {
        "model": system.config.name,
        "parameters": {"vq": count(system.vq), "gpt": count(system.gpt)},
        "copies": fidelity(copies, captions)["all"],
        "nats_a_code": nats(system, args.n),
        "frechet": from_real(x),
        **obeyed(draw, args.n),
    }


@torch.no_grad()
def nats(system, n: int) -> float:
    """-log p(codes | caption) a code, of test pictures; of a masked system its bound, 20 sets."""
    data = encode(system, painted_digits("test", n, seed=1, held=False))
    codes, text = data[torch.arange(n)]
    if system.config.gpt.causal:
        return next_code_loss(system.gpt, codes, text).item()
    gen = torch.Generator().manual_seed(0)
    return bound(system.gpt, codes, text, draws=20, generator=gen).mean().item() / codes.shape[1]


def rerank(args) -> dict:
    """The best of 1, 2, 4 and 8 pictures by CLIP: shares obeyed."""
    system, clip = load(args.model or "painted-dalle"), load("painted_clip")
    texts = prompts(args.n, seed=1, held=False)
    way = lambda part, seed: system.draw(part, seed=seed)
    x = torch.stack([drawn(lambda p, k: way(p, k + 10**6 * i), texts) for i in range(8)], 1)
    best = {k: systems_codes.rerank(x[:, :k], texts, clip)[0] for k in (1, 2, 4, 8)}
    return {f"best of {k}": fidelity(y, texts) for k, y in best.items()}


def masked_steps(args) -> dict:
    """Shares obeyed by steps, and how: in the order of confidence, with noise, in any order."""
    system, texts = load(args.model or "painted-maskgit"), prompts(args.n, seed=1, held=False)
    found = {}
    for steps in (1, 2, 4, 8, 16, 64):
        for shuffle in (0.0, 1.0, 1e6):
            way = lambda p, k: system.draw(p, seed=k, steps=steps, shuffle=shuffle)
            found[f"{steps}, {shuffle:g}"] = fidelity(drawn(way, texts), texts)["all"]
    return found


def drawn(draw, texts, size: int = 50) -> torch.Tensor:
    """draw(prompts, seed) -> pictures, some at a time."""
    return torch.cat([draw(texts[k : k + size], k) for k in range(0, len(texts), size)])


@torch.no_grad()
def seen_by_clip(x) -> torch.Tensor:
    """The embeddings of pictures, (N, 64), whose Gaussians are compared."""
    clip = load("painted_clip")
    return torch.cat([clip.image(part) for part in x.split(250)])


def from_real(x) -> float:
    """Frechet distance, of CLIP's embeddings, to 2,000 real test pictures."""
    return frechet(seen_by_clip(x), real_ones())


@cache
def real_ones() -> torch.Tensor:
    return seen_by_clip(painted_digits("test", 2000, seed=1, held=False)[:][0])


def cascade(args) -> dict:
    """Imagen's plan; "small": the first stage alone, enlarged by cubic curves."""
    model = load(args.model or "painted-imagen")
    texts = prompts(args.n, seed=1, held=False)
    small = drawn(lambda part, seed: last(model.small(part, seeds=seed)).clamp(-1, 1), texts)
    return {
        "model": model.config.name,
        "parameters": {part: count(getattr(model, part)) for part in ("text", "base", "up")},
        "small": {
            "all": fidelity(enlarged(small), texts)["all"],
            "frechet": from_real(enlarged(small)),
        },
        "large": enlarged_by(model, texts, small, model.config.noise)[0],
        **obeyed(lambda texts, seed: model.draw(texts, seeds=seed), args.n),
    }


def latent(args) -> dict:
    """The latent system, in the same columns."""
    sd = load("painted")
    way = lambda texts, seed: draw(sd, texts, seeds=seed, progress=False)
    x = drawn(way, prompts(args.n, seed=1, held=False))
    own = {"parameters": count(sd), "frechet": from_real(x)}
    return {"model": "painted", **own, **obeyed(way, args.n)}


def few(args) -> dict:
    """Few-step models and DPM-Solver++ of their teacher, by steps, to data/recorded/few_steps.npz.

    With --model that model alone, and nothing is kept.  held_out: of 200 combinations that were
    kept from training.
    """
    started = time.perf_counter()
    texts = {held: prompts(n, seed=1, held=held) for held, n in ((False, args.n), (True, 200))}
    found = {}
    for name in [args.model] if args.model else FEW_MODELS:
        sd = load(name)
        own = {"parameters": count(sd.unet), "calls_a_step": calls(sd)}
        for steps in (1, 2, 4, 8):
            began = time.process_time()
            x = in_few(sd, texts[False], steps)
            seconds = (time.process_time() - began) / args.n
            read_as, held = fidelity(x, texts[False]), in_few(sd, texts[True], steps)
            own[steps] = {
                "all": round(read_as["all"], 4),
                "main": round(read_as["main"], 4),
                "held_out": round(fidelity(held, texts[True])["all"], 4),
                "frechet": round(from_real(x), 4),
                "cpu_ms_a_picture": round(1000 * seconds, 1),
            }
        found[sd.config.name] = own
    if not args.model:
        written("few_steps", f"few --n {args.n}", started, found, {}, n=args.n)
    return {"n": args.n, **found}


def count(model) -> int:
    return sum(p.numel() for p in model.parameters())


HELD = {"none": None, "static": 1.0, "dynamic": Dynamic()}


def thresholds(args) -> dict:
    """Guidance by what holds x0_hat, with Imagen's own sampler, DDPM: shares of pictures obeyed.

    outside: the share of the small picture's numbers beyond [-1, 1] before the last clamp.
    """
    model, texts = load(args.model or "painted-imagen"), prompts(args.n, seed=1, held=False)
    found = {}
    for scale in (1.0, 3.0, 8.0):
        for name, clip in HELD.items():
            options = dict(guidance=scale, clip=clip, sampler="ddpm", steps=25)
            x = drawn(lambda part, seed: last(model.small(part, seeds=seed, **options)), texts)
            read_as = fidelity(enlarged(x.clamp(-1, 1)), texts)
            found[f"{name}, {scale:g}"] = {
                "all": read_as["all"],
                "colours": read_as["colours"],
                "outside": (x.abs() > 1.01).double().mean().item(),
            }
    return {"n": args.n, **found}


def augmentation(args) -> dict:
    """Drawn small pictures enlarged with more and more noise: obeyed, and Frechet distance."""
    model, texts = load(args.model or "painted-imagen"), prompts(args.n, seed=1, held=False)
    small = drawn(lambda part, seed: last(model.small(part, seeds=seed)).clamp(-1, 1), texts)
    return {f"noise {noise:g}": enlarged_by(model, texts, small, noise)[0] for noise in LEVELS}


LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)


def enlarged_by(model, texts, small, noise) -> tuple[dict, torch.Tensor]:
    ups = [
        last(model.large(texts[k : k + 50], small[k : k + 50], noise=noise, seeds=k)).clamp(-1, 1)
        for k in range(0, len(texts), 50)
    ]
    x = torch.cat(ups)
    return {"all": fidelity(x, texts)["all"], "frechet": from_real(x)}, x


@torch.no_grad()
def prior(args) -> dict:
    """Captions of test pictures; which of 2,000 real ones is nearest to what is drawn?

    text: to the caption's own embedding.  another: to that of another picture of this caption.
    cosine: to the picture whose caption it is.  frechet: to the embeddings of all 2,000.
    """
    model, clip = load(args.model or "painted-prior"), load("painted_clip")
    found = {"parameters": count(model.model)}
    for kind, held in (("seen", False), ("held_out", True)):
        data = painted_digits("test", 2000, seed=1, held=held)
        gallery, n = seen_by_clip(data[:][0]), args.n
        texts, scenes = data.captions(slice(n)), data.scenes()
        started = time.process_time()
        ways = {
            "text": clip.words(texts),
            "prior": draw_embeddings(model, clip, texts, best_of=1),
            "prior, best of 2": draw_embeddings(model, clip, texts),
            "prior, best of 16": draw_embeddings(model, clip, texts, best_of=16),
            "another": seen_by_clip(others(scenes[:n])),
        }
        found[f"{kind}_cpu_seconds"] = time.process_time() - started
        for name, z in ways.items():
            found[f"{kind}, {name}"] = retrieved(z, data, gallery)
    return found


def retrieved(z, data, gallery) -> dict:
    """How well the pictures nearest to z (n, 64) obey the first n captions of `data`.

    gallery: the embeddings of its pictures.
    """
    scenes = data.scenes()
    pairs = [(scenes[i], asked) for i, asked in zip(nearest(z, gallery).tolist(), scenes)]
    return {
        "all": float(np.mean([a == b for a, b in pairs])),
        "digit": float(np.mean([a.digit == b.digit for a, b in pairs])),
        "cosine": (z * gallery[: len(z)]).sum(1).mean().item(),
        "frechet": frechet(z, gallery),
    }


def others(scenes) -> torch.Tensor:
    """Other digits of MNIST, painted as these scenes."""
    real = mnist("test")
    pick = [int((real.labels == s.digit).nonzero()[i % 800]) for i, s in enumerate(scenes)]
    return from_uint8(paint(real.images[pick, 0], scenes))


# ---------------------------------------------------------------- recorded trainings

HALF = replace(PAINTED_IMAGEN.train_up, steps=450)  # of the updates of what ships


def imagen_no_noise(log) -> tuple[dict, dict]:
    """`up` trained on clean small pictures alone, which those that the base draws are not.

    real: small pictures made of real ones.  drawn, rough: by the base, in its own steps and in 3.
    """
    ship, recipe = load("painted-imagen"), replace(PAINTED_IMAGEN, most_noise=0.0, train_up=HALF)
    model = begin(recipe)
    train_part(model, "up", recipe, pixels(model, recipe.dataset(), recipe.n), log=log)
    x, texts = painted_digits("test", 200, seed=1, held=False)[:]
    base = lambda steps: drawn(
        lambda part, seed: last(ship.small(part, seeds=seed, steps=steps)).clamp(-1, 1), texts
    )
    figures, shown = {}, {}
    for of, small in {"real": F.avg_pool2d(x, 2), "drawn": base(None), "rough": base(3)}.items():
        shown[f"{of}, small"] = small
        for name, net, noise in ("ship", ship, ship.config.noise), ("broken", model, 0.0):
            figures[f"{of}, {name}"], shown[f"{of}, {name}"] = enlarged_by(net, texts, small, noise)
    return figures, {k: to_uint8(y[:4]).numpy() for k, y in shown.items() if k[:4] != "real"}


def prior_eps(log) -> tuple[dict, dict]:
    """The same short run twice: asked for x_0, as unCLIP does, and for eps.

    At the first time next to nothing of x_0 is in x_t: what is wrong in eps is divided by that.
    """
    gallery = painted_digits("test", 2000, seed=1, held=False)
    z, texts, figures = seen_by_clip(gallery[:][0]), gallery.captions(slice(500)), {}
    for name, predict, watch in ("good", "x_0", iter), ("broken", "eps", log):
        recipe = replace(PAINTED_PRIOR, train=replace(SHORT_PRIOR, predict=predict), n=10000)
        found = train_prior(recipe, log=watch)
        x = draw_embeddings(found, load("painted_clip"), texts, best_of=1)
        figures[name] = retrieved(x, gallery, z)
    return figures, {}


SHORT_PRIOR = replace(PAINTED_PRIOR.train, steps=400)


SHORT = replace(MASKGIT.train, steps=200)
FROM_ORDER = replace(MASKGIT.train, steps=600)


def codes_leak(log) -> tuple[dict, dict]:
    """painted-dalle, 200 updates more without the causal mask: a place sees the very code asked for."""
    ship = load("painted-dalle")
    broken = further(ship, SHORT, lambda gpt, codes, text, _: next_code_loss(gpt, codes, text), log)
    anew = {"cached": False}  # without a mask all tokens change: nothing can be kept
    how = {"ship": (autoregressive, ship.gpt, {}), "broken": (autoregressive, broken, anew)}
    return drawn_codes(ship, how)


def codes_few_unknown(log) -> tuple[dict, dict]:
    """The same short run twice, from painted-dalle's GPT as painted-maskgit: unknown are
    ceil(64 cos(pi u / 2)) codes, or always 15 %, as of BERT's sentences; drawing starts at all."""

    def run(counts, log):
        def loss(gpt, codes, text, generator):
            count = counts(*codes.shape, generator)
            return masked_loss(gpt, codes, text, count=count, generator=generator)

        return further(ship, FROM_ORDER, loss, log)

    few = lambda batch, places, _: torch.full((batch,), round(0.15 * places))
    ship = load("painted-dalle")
    good, broken = run(cosine_counts, iter), run(few, log)
    return drawn_codes(ship, {"good": (masked, good, {}), "broken": (masked, broken, {})})


def further(ship, config, loss, log):
    """The GPT of `ship`, now without a mask, after `config.steps` updates by loss(gpt, codes, text,
    generator)."""
    system = assemble(replace(MASKGIT, train=config), ship.vq, ship.tokenizer)
    system.gpt.load_state_dict(ship.gpt.state_dict())
    data, gen = encode(system, painted_digits(), 5000), torch.Generator().manual_seed(0)
    objective = lambda gpt, batch, _: loss(gpt, *batch, gen)
    return last_step(log(fit(system.gpt, data, config, objective))).ema.eval()


def drawn_codes(ship, how: dict) -> tuple[dict, dict]:
    """how: {name: (way of drawing, GPT, options)} -> what is obeyed of 100 captions; 12 pictures."""
    texts, found, shown = prompts(100, seed=1), {}, {}
    drawing = dict(temperature=ship.config.temperature, guidance=ship.config.guidance)
    for name, (way, gpt, own) in how.items():
        drawing |= dict(empty=ship.ids([""]), generator=generators(range(len(texts))))
        *_, end = way(gpt, ship.ids(texts), **drawing, **own)
        with torch.no_grad():
            x = ship.decode(end.codes).clamp(-1, 1)
        found[name], shown[name] = fidelity(x, texts)["all"], to_uint8(x[:12]).numpy()
    return {"obeyed": found}, shown


def few_no_stop(log) -> tuple[dict, dict]:
    """Consistency distillation, point by point; broken: the target learns as well, to be easy."""
    teacher, recipe = load("painted"), PAINTED_FEW
    paths = few_steps.first_paths(teacher, replace(recipe, n=400))

    def both_learn(model, batch, generator):
        (x, (times, cond)), rows = batch, torch.arange(len(batch[0]))
        i = torch.randint(x.shape[1] - 1, rows.shape, generator=generator)
        end = lambda k: endpoint(model.student, model.schedule, x[rows, k], times[rows, k], cond)
        return (end(i) - end(i + 1)).square().mean()

    figures, shown = {}, {}
    for name, value in ("good", objective), ("broken", both_learn):
        sd = few_steps.begin(teacher, recipe)
        own = sd.unet.requires_grad_(True)
        model = Consistency(own, teacher.schedule, teacher.predict, skip=1)
        step = last_step(log(fit(model, paths, FEW_BROKEN, value)))
        own.load_state_dict(step.ema.student.state_dict())
        figures[name], shown[name] = by_steps(sd.eval().requires_grad_(False))
    return figures, shown


def meanflow_no_derivative(log) -> tuple[dict, dict]:
    """painted-meanflow goes on to learn for a while, without (u - r) dU/du: U becomes v again."""
    ship, base = load("painted-meanflow"), load("painted")
    recipe = replace(PAINTED_MEANFLOW, train=MEANFLOW_BROKEN, n=4000)
    data = latents.encode(base, recipe.dataset(), recipe.n)
    value = few_steps.mean_flow_objective(recipe, ship.schedule, data.uncond)
    figures, shown = {}, {}
    figures["ship"], shown["ship"] = by_steps(ship)
    with patch.object(meanflow, "total_derivative", lambda model, schedule, z, *_: 0 * z):
        step = last_step(log(fit(ship.unet.requires_grad_(True), data, recipe.train, value)))
    ship.unet.load_state_dict(step.ema.state_dict())
    figures["broken"], shown["broken"] = by_steps(ship.eval().requires_grad_(False))
    return figures, shown


def few_ways(log) -> tuple[dict, dict]:
    """Three distillations of the same 750 paths, short runs, each from the teacher or the first.

    ends: where the paths end.  points: from point to point, by a slow copy (consistency
    distillation).  matching: what "ends" gave, moved to where the teacher finds more.
    """
    teacher, recipe = load("painted"), PAINTED_FEW
    paths = few_steps.first_paths(teacher, replace(recipe, n=750))
    own = lambda: few_steps.begin(teacher, recipe)
    run, last_run = FEW_WAYS, replace(FEW_WAYS, steps=50, lr=2e-3)
    made = {"ends": few_steps.distilled(own(), paths, recipe, run, None, log)}
    figures, shown = {}, {}
    figures["ends"], shown["ends"] = by_steps(made["ends"])
    points = few_steps.distilled(own(), paths, recipe, run, None, log, skip=1)
    figures["points"], shown["points"] = by_steps(points)
    matching = few_steps.matched(teacher, made["ends"], paths, last_run, None, log)
    figures["matching"], shown["matching"] = by_steps(matching)
    return figures, shown


def by_steps(sd) -> tuple[dict, np.ndarray]:
    """Of 200 pictures in 1, 2 and 4 steps; the first 12 of one step."""
    texts, figures = prompts(200, seed=1, held=False), {}
    for steps in (1, 2, 4):
        x = in_few(sd, texts, steps)
        figures[str(steps)] = {"all": fidelity(x, texts)["all"], "frechet": from_real(x)}
        shown = to_uint8(x[:12]).numpy() if steps == 1 else shown
    return figures, shown


FEW_WAYS = replace(PAINTED_FEW.train, steps=80)
FEW_BROKEN = replace(PAINTED_FEW.train, steps=60)
MEANFLOW_BROKEN = replace(PAINTED_MEANFLOW.train, steps=120, lr=5e-3)
RUNS = {  # what is trained, and its plan
    "few_ways": (few_ways, FEW_WAYS),
    "few_no_stop": (few_no_stop, FEW_BROKEN),
    "meanflow_no_derivative": (meanflow_no_derivative, MEANFLOW_BROKEN),
    "codes_leak": (codes_leak, SHORT),
    "codes_few_unknown": (codes_few_unknown, FROM_ORDER),
    "imagen_no_noise": (imagen_no_noise, HALF),
    "prior_eps": (prior_eps, replace(SHORT_PRIOR, predict="eps")),
}


def broken(args) -> dict:
    """Train one of RUNS that makes a mistake, beside the one that ships: data/recorded/RUN.npz."""
    (run, config), record, started = RUNS[args.run], {}, time.perf_counter()
    figures, shown = run(logged(args.run, config, record))
    shown["losses"] = np.float32(record.pop("loss"))
    command = f"broken --run {args.run}"
    size = written(args.run, command, started, figures, shown, train=asdict(config) | record)
    return {"run": args.run, "bytes": size, **figures}


def written(name, command, started, figures, arrays, **more) -> int:
    """data/recorded/NAME.npz, with a card; its bytes."""
    card = {
        "command": f"python benchmarks/beyond.py {command}",
        **provenance(),
        "seconds": round(time.perf_counter() - started),
        **more,
        "figures": figures,
    }
    return keep(name, card, arrays)


FIGURES = (codes, rerank, masked_steps, cascade, latent, few, thresholds, augmentation, prior)
WAYS = {f.__name__: f for f in (*FIGURES, broken)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=WAYS)
    parser.add_argument("--n", type=int, default=500, help="pictures of each kind (500)")
    parser.add_argument("--model", help="a name or a file, not what ships")
    parser.add_argument("--run", choices=RUNS, default="imagen_no_noise", help="of `broken`")
    report(WAYS, parser.parse_args(), "beyond.py")


if __name__ == "__main__":
    main()
