"""The `ddpm-edu` command: draw, train what ships, copy the notebooks for students. Notebook 00."""

import argparse
import json
import os
import re
import secrets
import sys
from functools import partial
from pathlib import Path

from .errors import DdpmEduError, OptionError, check_device, check_writable, in_range, one_of, whole
from .paths import replacing
from .show.png import grid, write_png


def main(argv: list[str] | None = None) -> int:
    """Run one command; an error is one line on standard error and exit status 2."""
    # Before torch is imported: its waiting threads soon sleep, and do not stop their neighbours.
    os.environ.setdefault("GOMP_SPINCOUNT", "500")
    args = parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # for names that this terminal has no letters for
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args.run(args)
        if sys.stdout:  # closed by `>&-`
            sys.stdout.flush()
    except BrokenPipeError:  # `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DdpmEduError, OSError) as error:  # OSError: folders that one may not enter
        print(f"ddpm-edu: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(": ".join(filter(None, ("ddpm-edu: stopped", str(stop)))), file=sys.stderr)
        return 130
    return 0


def _one_line(error: Exception) -> str:
    """Its message; what would move a terminal's cursor, in a name of a file say, is written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))


SAMPLERS = "ddpm, ddim, pndm, euler, euler_ancestral, heun, dpmpp_2m, ipndm"
OWN = "(default: the model's own)"
HINTS = ("edges", "strokes", "blurred")  # see datasets/hints.py


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="ddpm-edu", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(run, about):
        p = commands.add_parser(run.__name__, help=about)
        p.set_defaults(run=run)
        return p.add_argument

    def drawing(add, zoom):
        add("--seed", type=int, default=0, help="of the first picture; the next count up (0)")
        add("--guidance", type=float, help=f"scale, up to 1 is none {OWN}")
        add("--sampler", help=f"{SAMPLERS} {OWN}")
        add("--zoom", type=int, default=zoom, help="screen pixels a pixel")

    add = command(sample, "draw pictures of a class with a model that ships")
    add("--model", default="mnist", help="mnist, cifar10, or a file that training wrote (mnist)")
    about = "classes to draw, one digit each, or names: cats,dogs,cats (all of them; without "
    add("--labels", help=about + "classes ten pictures: 0000 draws four)")
    add("--steps", type=int, default=20, help="model evaluations (20)")
    add("--columns", type=int, default=10)
    add("--out", type=Path, default=Path("sample.png"))
    drawing(add, zoom=4)

    add = command(txt2img, "draw a picture of a text with Stable Diffusion")
    add("prompt", help="what the picture shows")
    add("--model", default="emoji", help="a name of `ddpm-edu models`, a folder or a file (emoji)")
    add("--plan", help="what a single file is, where it does not say so: sd2-base, say")
    add("--refiner", nargs="?", const="", help="let one finish: the model's own, or yours")
    add("--handover", type=float, default=0.8, help="share of the noise before it (0.8)")
    files = dict(action="append", default=[], metavar="FILE")
    about = "of the model; FILE:0.7 for a part of it (1); several add up"
    add("--lora", **files | {"metavar": "FILE[:WEIGHT]"}, help=about)
    add("--embedding", **files, help="of a new word (textual inversion), which the prompt may use")
    add("--negative", default="", help="what it should not show")
    add("--steps", type=int, help=f"model evaluations {OWN}")
    add("--spacing", help=f"of the times: leading, trailing, linspace, karras {OWN}")
    add("--size", help="pixels of a side, or WIDTHxHEIGHT (what the model was trained on)")
    add("--original-size", help="SDXL: as if cut out of a picture of WIDTHxHEIGHT (--size)")
    add("--crop", help="SDXL: as if LEFTxTOP pixels had been cut off (0x0)")
    add("--count", type=int, default=1, help="pictures, FILE_1.png, FILE_2.png ... (1)")
    add("--device", help="cpu, cuda or mps (the GPU if there is one)")
    types = ("float32", "bfloat16", "float16")
    add("--dtype", choices=types, help="(bfloat16 on cuda, float16 on mps, float32 on the CPU)")
    add("--fast", action="store_true", help="exact speed-ups; on a GPU they take minutes once")
    add("--out", type=Path, default=Path("txt2img.png"))
    drawing(add, zoom=None)

    add = command(edit, "change a picture: redraw it, paint into a mask, enlarge it")
    add(
        "picture", type=Path, help="a file; transparent places are its mask, unless --mask is given"
    )
    add("prompt", help="what the result shows")
    own = "(painted; with --mask painted-inpaint, with --upscale painted-upscale)"
    add("--model", help=f"a name of `ddpm-edu models`, a folder or a file {own}")
    add("--mask", type=Path, help="a picture of the same size: what is white is painted anew")
    add("--strength", type=float, help="share of the steps, 1 keeps nothing (0.6; with a mask 1)")
    add("--control", choices=HINTS, help="keep what this finds in the picture, by a ControlNet")
    add("--upscale", action="store_true", help="twice as large")
    add("--negative", default="", help="what it should not show")
    add("--steps", type=int, help=f"model evaluations at strength 1 {OWN}")
    add("--count", type=int, default=1, help="pictures, FILE_1.png, FILE_2.png ... (1)")
    add("--device", help="cpu, cuda or mps (the GPU if there is one)")
    add("--dtype", choices=types, help="(bfloat16 on cuda, float16 on mps, float32 on the CPU)")
    add("--out", type=Path, default=Path("edit.png"))
    drawing(add, zoom=1)

    about = "train one of the models that ship, from random weights, or one of your own pictures"
    add = command(train, about)
    about = "a folder of pictures; or minute, mnist or cifar10; a whole system: painted, emoji, "
    about += "five_minutes or sdxl-mini; one that edits: painted-inpaint, painted-upscale or "
    about += "painted-edges; of notebooks 15 and 16: painted-dalle, -maskgit, -imagen, -prior, "
    about += "-dit, -few or -meanflow"
    add("name", metavar="NAME or FOLDER", help=about)
    about = "of the weights (NAME.safetensors; NAME_clip for a CLIP, NAME-refiner for a refiner)"
    add("--out", type=Path, help=about)
    about = "to save to and go on from; a folder for a whole system, and for your own pictures, "
    add("--checkpoint", type=Path, help=about + "but for a LoRA or a word a file")
    about = "updates, not the recipe's; a whole system has several numbers"
    add("--steps", type=int, help=about)
    about = "stop after this much time instead (from nothing on your own pictures: 600)"
    add("--seconds", type=float, help=about)
    add("--device", default="cpu", help="cpu, cuda or mps (cpu)")
    about = "of the network's products: bfloat16 is quicker on a GPU (float32; of a LoRA on a GPU "
    add("--dtype", choices=("float32", "bfloat16"), help=about + "bfloat16)")
    add = commands.choices["train"].add_argument_group("a folder of pictures").add_argument
    about = "from a metadata.jsonl (file_name, text), a .txt beside each picture, the sub-folders, "
    sources = ("auto", "metadata", "txt", "folders", "names", "none")
    add(
        "--captions",
        choices=sources,
        help=about + "the files' names; auto is the first there (auto)",
    )
    add("--size", type=int, help="pixels of a side (what suits the pictures, or the model)")
    about = "train a LoRA of a model: emoji or painted on a CPU, sd15, sd2-base or sdxl on a GPU"
    add("--lora", metavar="MODEL", help=about)
    add("--rank", type=int, help="of the LoRA (4; of large models 16)")
    add("--caption", help='one caption for all, for --lora or --embedding: "a photo of a sks dog"')
    about = 'DreamBooth: the class, "a photo of a dog", which the LoRA must not forget'
    add("--prior", help=about)
    about = "teach a model a new word (textual inversion)"
    add("--embedding", metavar="MODEL", help=about)
    add("--word", help='the new word, such as "<mine>"')
    add("--start", help="a known word that it begins as, such as cat")

    command(models, "list the models that ship")

    add = command(student, "copy the notebooks without their solution cells and outputs")
    add("notebooks", type=Path, nargs="*", help="notebooks or folders of them (notebooks)")
    add("--out", type=Path, default=Path("student"), help="folder for the copies (student)")

    add = command(slides, "a notebook as slides for a projector, in one file")
    add("notebook", help="a number, such as 03, or a file")
    add("--out", type=Path, help="(03_unet.slides.html)")

    add = command(collect, "unpack what a class handed in: a learning platform's zip, by student")
    add("zip", type=Path, help="of Moodle, Canvas, Blackboard, Brightspace, Sakai, or of folders")
    add("--out", type=Path, default=Path("submissions"), help="a new folder (submissions)")

    add = command(grade, "grade a folder of submissions: a table, and a page a student")
    add("folder", type=Path, help="of one folder or one notebook a student")
    add("--csv", type=Path, default=Path("marks.csv"), help="the table; its pages lie beside it")
    add("--handed-out", type=Path, help="the list that `ddpm-edu student` wrote (FOLDER's own)")
    add("--seed", type=int, help="the secret that the inputs are drawn from (marks/seed.txt)")
    add("--jobs", type=int, default=os.cpu_count(), help="submissions at a time (as many as cores)")
    add("--seconds", type=float, default=20, help="for one exercise; 10 times as many in all (20)")
    add("--memory", type=float, default=2, help="GiB for one submission (2)")

    about = "train and draw within limits: judge entries, or show a class its results (notebook 18)"
    p = commands.add_parser("challenge", help=about, description=about)
    inner = p.add_subparsers(required=True, metavar="COMMAND")

    def contest(run, name, about):
        p = inner.add_parser(name, help=about, description=about)
        p.set_defaults(run=run)
        add = p.add_argument
        add("--seconds", type=float, default=30, help="of training on two cores (30)")
        add("--pictures", type=int, default=1000, help="drawn with 1, 2, 4, 8 evaluations (1000)")
        add("--seed", type=int, help="of the noise they start from (drawn at random)")
        add("--memory", type=float, default=2, help="GiB for an entry (2)")
        about = "wait so many times the processor time by the clock; more on a busy machine (5)"
        add("--patience", type=float, default=5, help=about)
        return add

    add = contest(challenge_run, "run", "judge entries; writes a result beside each")
    add("entries", type=Path, nargs="+", metavar="FILE.py", help="with train and sample")
    add("--out", type=Path, help="folder for the results (where the entry is)")
    add = contest(challenge_board, "board", "write one HTML page with the results of a folder")
    add("folder", type=Path, help="of result files, NAME.json")
    add("--out", type=Path, help="of the page (FOLDER/board.html)")
    add("--rerun", action="store_true", help="judge all NAME.py of the folder first, anew")
    return top


def sample(args) -> None:
    """Draw one picture a label and save the grid as PNG, settings in its metadata."""
    import torch

    from .datasets.images import to_uint8
    from .diffusion import Cond, class_cond, generators, guided, last, noise
    from .files.load import Pretrained, load
    from .samplers import SAMPLERS

    _check(args, columns=(whole, 1, 10**6))
    (path,) = _outputs(args.out, 1)
    loaded = load(args.model)
    if not isinstance(loaded, Pretrained):
        kind, how = type(loaded).__name__, "see `txt2img`"
        if hasattr(loaded, "draw"):
            how = f"in Python load({args.model!r}).draw(prompts) draws with it"
        raise OptionError(f"--model {args.model} is no denoiser but a {kind}: {how}")
    model, schedule, predict, meta = loaded
    if base := meta.get("base"):
        how = f"draw(with_denoiser(load({base!r}), load({args.model!r})), prompts) draws with it"
        raise OptionError(f"--model {args.model} denoises the latents of {base}: in Python {how}")
    if "shape" not in meta:
        kind = type(model).__name__
        raise OptionError(
            f"--model {args.model} draws no pictures, it is a {kind}: use it in Python"
        )
    classes = meta.get("classes", list("0123456789"))
    labels, between = _labels(args.labels, classes), 10**6  # a sampler's own noise: other seeds
    n = len(labels)
    _check(args, seed=(whole, 0, 2**63 - 1 - between - n))
    sampler = one_of("--sampler", args.sampler or meta.get("sampler", "dpmpp_2m"), SAMPLERS)
    guidance = meta.get("guidance", 1.0) if args.guidance is None else args.guidance
    steps = SAMPLERS[sampler](
        guided(model, guidance),
        schedule,
        noise(meta["shape"], range(args.seed, args.seed + n)),
        args.steps,
        class_cond(torch.tensor(labels), len(classes)) if classes else Cond(),
        predict=predict,
        clip=meta.get("clip"),
        generator=generators(range(args.seed + between, args.seed + between + n)),
    )
    options = {"steps": args.steps, "guidance": guidance, "sampler": sampler}
    picture = grid(to_uint8(last(steps)), args.columns, args.zoom)
    said = "".join(map(str, labels)) if len(classes) <= 10 else labels
    told = {"model": args.model, "labels": said, "seed": args.seed, **options}
    write_png(path, picture, told)
    print(f"{path}: {n} pictures, {_short(options)}, seed {args.seed}")


def _labels(text: str | None, classes: list[str]) -> list[int]:
    """Numbers of classes, of digits or of names; without classes as many zeros as pictures."""
    if text is None:
        return list(range(len(classes))) if classes else [0] * 10
    if text.isascii() and text.isdigit():
        labels = [int(digit) for digit in text]
        if not classes or max(labels) < len(classes):
            return labels
    names = [name.strip() for name in text.split(",")]
    if classes and all(name in classes for name in names):
        return [classes.index(name) for name in names]
    last = min(9, len(classes) - 1)
    known = f"digits from 0 to {last}, one a picture, or names: {', '.join(classes[:10])}"
    raise OptionError(f"--labels {text!r}: pass {known if classes else 'a digit for each picture'}")


def txt2img(args) -> None:
    """Load a system, draw, and write one PNG a picture, settings in its metadata."""
    from .files.load import KNOWN, config_of, load, shipped
    from .samplers import WALKS
    from .systems.memory import memory_needed
    from .systems.pipeline import draw
    from .systems.system import PLANS

    paths = _outputs(args.out, args.count)
    _check(args, seed=(whole, 0, 2**63 - 1 - args.count), steps=(whole, 1, 1000))
    _check(args, handover=(in_range, 0, 1), spacing=(one_of, WALKS), plan=(one_of, PLANS))
    plan = PLANS.get(args.plan)
    config = plan or config_of(args.model)
    loras = _loras(args, config)
    size, beside = _size(args.size, config.vae.factor), _told(args, config)
    kind, refiner = _where(args), args.refiner
    if refiner == "":
        own = f"{args.model}-refiner"
        refiner = own if own in (*KNOWN, *shipped()) else "sdxl-refiner"
    plans = {args.model: config} | ({refiner: config_of(refiner)} if refiner else {})
    for name, its in plans.items():
        if name not in shipped():  # these take no memory to speak of
            needed = memory_needed(its, kind["dtype"], size, args.count) / 2**30
            dtype = _said(kind)["dtype"]
            print(f"{name}: about {needed:.1f} GiB of memory in {dtype}", file=sys.stderr)
    sd = load(args.model, config=plan, **kind)
    second = load(refiner, **kind) if refiner else None
    _learned(args, loras, sd, second)
    if args.fast:
        from .gpu.fast import speed_up

        sd, second = speed_up(sd), second and speed_up(second)
    options = {
        name: getattr(sd.config if getattr(args, name) is None else args, name)
        for name in ("steps", "guidance", "sampler", "spacing")
    }
    if refiner:
        options["handover"] = args.handover
    options |= beside
    seeds = list(range(args.seed, args.seed + args.count))
    pictures = draw(
        sd, args.prompt, negative=args.negative, size=size, seeds=seeds, refiner=second, **options
    )
    told = {"prompt": args.prompt, "negative": args.negative, **options, "model": args.model}
    told |= {name: its for name in ("lora", "embedding") if (its := getattr(args, name))}
    _write(args, paths, pictures, seeds, options, {**told, "refiner": refiner, **_said(kind)})


def _loras(args, config) -> list:
    """[(LoRA, scale)] of --lora; these and every --embedding fit, before anything large is read."""
    if not args.lora and not args.embedding:
        return []
    from .files.embedding import load_embedding
    from .files.lora import load_lora
    from .systems.system import build

    plan, loras = build(config, device="meta"), []
    for text in args.lora:
        file, weight = _weighted(text)
        loras.append((load_lora(file, plan), weight))
    for file in args.embedding:
        load_embedding(file, plan)
    return loras


def _weighted(text: str) -> tuple[str, float]:
    """(file, weight) of FILE or FILE:WEIGHT."""
    file, colon, weight = text.rpartition(":")
    if os.path.exists(text) or not colon:
        return text, 1.0
    try:
        weight = float(weight)
    except ValueError:
        if os.path.exists(file):
            raise OptionError(f"--lora {text}: {weight} is no number: pass FILE:0.7") from None
        return text, 1.0  # a colon of the name's own
    return file, in_range(f"--lora {text}: the weight", weight, -100, 100, "1 is all of it")


def _learned(args, loras, sd, refiner) -> None:
    """Merge the LoRAs into sd, which then draws as fast as before, and add the words to both."""
    from .files.embedding import load_embedding
    from .networks.lora import attach, merge

    for lora, weight in loras:
        attach(sd, lora, weight)
    merge(sd)
    for system in filter(None, (sd, refiner)):
        for file in args.embedding:
            load_embedding(file, system)


def edit(args) -> None:
    """Load a system, change a picture, and write one PNG a result, settings in its metadata."""
    from .files.load import load
    from .systems import pipeline
    from .systems.arguments import kind_of, loaded, not_too_large
    from .systems.pictures import mask_of, picture_of

    paths, kind = _outputs(args.out, args.count), _where(args)
    _check(args, seed=(whole, 0, 2**63 - 1 - args.count), steps=(whole, 1, 1000))
    _check(args, strength=(in_range, 0, 1, "1 keeps nothing of the picture"))
    if args.upscale and (args.mask or args.control):
        raise OptionError("--upscale: pass it without --mask and --control")
    x, _ = picture_of(args.picture)
    mask = args.mask and mask_of(args.mask, x.shape[2:])
    name = args.model or "painted" + "-upscale" * args.upscale + "-inpaint" * bool(args.mask)
    sd = loaded(load(name, **kind), f"--model {name}")
    if args.upscale and kind_of(sd.config) != "enlarging":
        raise OptionError(f"--upscale: {sd.config.name} does not enlarge: try painted-upscale")
    not_too_large(sd, x.shape[2:], kind_of(sd.config))  # before its edges are looked for
    given = {"steps": args.steps, "guidance": args.guidance, "sampler": args.sampler}
    options = {key: getattr(sd.config, key) if v is None else v for key, v in given.items()}
    seeds = list(range(args.seed, args.seed + args.count))
    how = dict(mask=mask, strength=args.strength, negative=args.negative, seeds=seeds)
    how |= _steered(args, sd, name, x, kind)
    pictures = pipeline.edit(sd, args.prompt, args.picture, **how, **options)
    told = {"prompt": args.prompt, "negative": args.negative, "picture": str(args.picture)}
    told |= {"mask": args.mask and str(args.mask), "control": args.control}
    told |= {"strength": args.strength}
    _write(args, paths, pictures, seeds, options, {**told, **options, "model": name, **_said(kind)})


def _steered(args, sd, name, x, kind) -> dict:
    """For `edit`: the Denoiser that a ControlNet steers; from noise, unless --strength is given."""
    if not args.control:
        return {}
    from .datasets import hints
    from .files.load import CONTROLS, load, shipped
    from .systems.control import controlled
    from .systems.pictures import padded

    base, official = name.removesuffix("-inpaint"), {"edges": "canny", "strokes": "scribble"}
    names = f"{base}-{args.control}", f"{base}-control-{official.get(args.control)}"
    own = next((own for own in names if own in (*shipped(), *CONTROLS)), None)
    if own is None:
        there = ", ".join((*(own for own in shipped() if own.endswith(HINTS)), *CONTROLS))
        raise OptionError(f"--control {args.control}: {name} has none, only these are: {there}")
    net = load(own, **kind)
    steered = controlled(sd, net, getattr(hints, args.control)(padded(x, sd.vae.factor)))
    return {"denoiser": steered, "strength": 1.0 if args.strength is None else args.strength}


def _where(args) -> dict:
    """device and dtype for `load`, of --device and --dtype."""
    import torch

    device = check_device(args.device or _gpu() or "cpu")
    usual = {"cpu": "float32", "mps": "float16"}  # not every Mac has bfloat16
    dtype = args.dtype or usual.get(device.split(":")[0], "bfloat16")
    return {"device": device, "dtype": getattr(torch, dtype)}


def _said(kind) -> dict:
    """The same as JSON."""
    return {"device": kind["device"], "dtype": str(kind["dtype"]).removeprefix("torch.")}


def _write(args, paths, pictures, seeds, options, told) -> None:
    """One PNG a picture (B, 3, H, W), `told` in its metadata, and a line for each on the screen."""
    from .datasets.images import to_uint8

    zoom = args.zoom or max(1, 256 // pictures.shape[-1])
    for path, picture, seed in zip(paths, to_uint8(pictures), seeds):
        write_png(path, grid(picture[None].cpu(), 1, zoom), {**told, "seed": seed})
        size = f"{picture.shape[2]}x{picture.shape[1]}" + f" shown {zoom}-fold" * (zoom > 1)
        print(f"{path}: {size}, {_short(options)}, seed {seed}")


def _gpu() -> str | None:
    import torch

    there = {"cuda": torch.cuda, "mps": torch.backends.mps}
    return next((name for name, kind in there.items() if kind.is_available()), None)


def _short(options) -> str:
    return f"{options['sampler']}, {options['steps']} steps, guidance {options['guidance']:g}"


def _check(args, **limits) -> None:
    """What would else be refused after loading only: _check(args, steps=(whole, 1, 1000))."""
    from .samplers import SAMPLERS

    limits |= {
        "guidance": (in_range, 0, 100),
        "sampler": (one_of, SAMPLERS),
        "zoom": (whole, 1, 64),
    }
    for name, (check, *limit) in limits.items():
        if getattr(args, name) is not None:
            check(f"--{name}", getattr(args, name), *limit)


def _size(text: str | None, factor: int):
    """(height, width) of 512 or WIDTHxHEIGHT."""
    from .systems.arguments import picture_size

    if text is None:
        return None
    both = f"{text}x{text}" if text.isdecimal() else text
    return picture_size(_pair("--size", both, "512, or WIDTHxHEIGHT, such as 768x512"), factor)


def _told(args, config) -> dict:
    """What SDXL is told of the picture, where it was given."""
    given = {"original_size": args.original_size, "crop": args.crop}
    given = {name: text for name, text in given.items() if text is not None}
    if given and not config.vector:
        raise OptionError(f"--original-size, --crop: {config.name} learned no sizes, SDXL did")
    return {name: _pair(f"--{name.replace('_', '-')}", text) for name, text in given.items()}


def _pair(name: str, text: str, wanted: str = "two numbers, such as 768x512") -> tuple[int, int]:
    """(height, width) of WIDTHxHEIGHT."""
    if not (sides := re.fullmatch(r"(\d{1,9})x(\d{1,9})", text.lower())):
        raise OptionError(f"{name} {text}: pass pixels: {wanted}")
    return int(sides[2]), int(sides[1])


def _outputs(out: Path, count: int) -> list[Path]:
    """The files to write, after a look whether they can be: nobody wants to hear it afterwards."""
    whole("--count", count, 1, 1024, "pictures")
    if out.suffix.lower() != ".png":
        raise OptionError(f"--out {out}: pass a file name that ends in .png")
    paths = [out] if count == 1 else [out.with_stem(f"{out.stem}_{i}") for i in range(1, count + 1)]
    return [check_writable(path) for path in paths]


def train(args) -> None:
    """Follow a recipe, or learn the pictures of a folder, and write what was learned."""
    from .training.follow import follow, known

    own = args.name not in known() and os.path.isdir(args.name)
    out = args.out or Path(f"{os.path.basename(os.path.abspath(args.name))}.safetensors")
    if not out.name.endswith((".safetensors", ".safetensors.xz")):
        raise OptionError(
            f"--out {out}: pass a file name that ends in .safetensors, or in .xz "
            "behind that for a packed file"
        )
    options = {name: getattr(args, name) for name in ("checkpoint", "steps", "seconds", "device")}
    _check_own(args, own)
    if own:
        return _train_own(args, check_writable(out), options)
    if args.name not in known():
        choices = ", ".join(known())
        raise OptionError(f"{args.name}: no folder of pictures is there; the recipes are {choices}")
    written = follow(args.name, out, **options, dtype=args.dtype or "float32")
    print(f"{', '.join(map(str, written))}: written")


NEEDS = {"rank": "lora", "prior": "lora", "word": "embedding", "start": "embedding"}
OF_A_FOLDER = ("captions", "size", "caption", "lora", "embedding", *NEEDS)


def _check_own(args, own: bool) -> None:
    """Options that do not go together, and numbers: before a picture is read."""
    given = [name for name in OF_A_FOLDER if getattr(args, name) is not None]
    if given and not own:
        raise OptionError(f"--{given[0]} is for a folder of pictures: {args.name} is no folder")
    for name in given:
        if name in NEEDS and NEEDS[name] not in given:
            raise OptionError(f"--{name} belongs to --{NEEDS[name]} NAME: pass that, too")
    if args.lora and args.embedding:
        raise OptionError("--lora and --embedding: one is trained at a time, leave one out")
    if args.caption and not (args.lora or args.embedding):
        raise OptionError("--caption belongs to --lora or --embedding NAME: pass one of them")
    if args.embedding and not (args.word and args.start):
        raise OptionError('--embedding: name the new word, and a known one that comes near: --word '
                          '"<mine>" --start cat')  # fmt: skip
    numbers = {"rank": (whole, 1, 1024), "size": (whole, 16, 2048), "steps": (whole, 1, 10**9)}
    numbers["seconds"] = (in_range, 0.1, 10**7)
    for name, (check, *limits) in numbers.items() if own else ():
        if getattr(args, name) is not None:
            check(f"--{name}", getattr(args, name), *limits)


def _train_own(args, out: Path, options: dict) -> None:
    """From nothing, or a LoRA or a word; sheets of samples and the loss as it goes."""
    import torch

    from .show.sheet import Sheet
    from .training import own, own_lora

    check_device(args.device)
    sheet, name = Sheet(out), args.lora or args.embedding
    options |= {"captions": args.captions or "auto", "size": args.size, "watch": sheet}
    if name:
        options |= {"dtype": args.dtype and getattr(torch, args.dtype), "caption": args.caption}
    if args.lora:
        own_lora.train_own_lora(args.name, name, out, rank=args.rank, prior=args.prior, **options)
        how = f"txt2img PROMPT --model {name} --lora {out}"
    elif args.embedding:
        own_lora.train_own_word(args.name, name, out, args.word, start=args.start, **options)
        how = f'txt2img "... {args.word}" --model {name} --embedding {out}'
    else:
        how = own.follow_own(args.name, out, dtype=args.dtype or "float32", **options)
    print(f"{out}: written, with {sheet.samples} and {sheet.curve}; now: ddpm-edu {how}")


def models(args) -> None:
    """What ships, then the published systems: name, size, title, where each is or is looked for."""
    from .files.load import CONTROLS, KNOWN, find, shipped, where

    for name in shipped():
        path, title = find(name), "no card"
        card = path.with_name(f"{name}.md")
        if os.path.isfile(card):
            title = card.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        size = path.stat().st_size / 2**20
        print(f"{name:16} {size:5.1f} MiB  {title.lstrip('# ')}\n{'':16} {path}")
    for name, known in KNOWN.items():
        sizes, side = (
            [f"{size / 2**30:5.1f} GiB" for size in known.files.values()],
            known.config.size,
        )
        about = f"{known.config.name}, {side}x{side} pixels; hub name {known.hub}"
        print(f"\n{name:16} {sizes[0] if sizes else ' a folder'}  {about}")
        for place in where(name):
            print(f"{'':16} {'found' if os.path.exists(place) else 'looked for'}: {place}")
    print("\nControlNets:")
    for name, known in CONTROLS.items():
        found = [str(place) for place in where(name) if os.path.exists(place)]
        print(f"{name:22} hub name {known.hub}", *(f"found: {place}" for place in found[:1]))


def slides(args) -> None:
    """Its pictures, formulas and headings; code is folded."""
    from .classroom.slides import write

    all_of = sorted(Path("notebooks").glob("*.ipynb"))
    found = [file for file in all_of if file.name.startswith(f"{args.notebook}_")]
    notebook = found[0] if len(found) == 1 else Path(args.notebook)
    out = args.out or Path(f"{notebook.stem}.slides.html")
    check_writable(out)
    print(f"{out}: {write(notebook, out)} slides, from {notebook}")


def student(args) -> None:
    """Copy notebooks, dropping cells tagged `solution` and all outputs: all, or none.

    What is left still runs from top to bottom. handed_out.json, for `grade`, lists them.
    """
    sources = args.notebooks or [Path("notebooks")]
    files = [f for s in sources for f in (sorted(s.glob("*.ipynb")) if s.is_dir() else [s])]
    if not files:
        raise OptionError(f"no notebooks in {', '.join(map(str, sources))}: name some")
    copies = {}
    for file in files:
        target = args.out / file.name
        if os.path.realpath(target) == os.path.realpath(file):
            raise OptionError(f"--out {args.out} is the folder of the originals: name another one")
        if target in copies:
            raise OptionError(f"two notebooks are called {file.name}: copy them to two folders")
        if os.path.exists(target):
            cause = "is there already, perhaps with somebody's answers"
            raise OptionError(f"{target} {cause}: name another --out, or remove it")
        copies[target] = _bare(file)
    made = [folder for folder in (args.out, *args.out.parents) if not os.path.exists(folder)]
    done = []
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for target, text in copies.items():
            with replacing(target) as part:
                Path(part).write_bytes(text)
            done.append(target)
        done.append(_list_handed_out(args.out, done))
    except (OSError, KeyboardInterrupt) as error:
        for target in done:
            target.unlink()
        for folder in made:
            if os.path.isdir(folder):
                folder.rmdir()
        if isinstance(error, KeyboardInterrupt):
            raise
        remedy = "name another folder"
        raise OptionError(f"--out {args.out}: cannot be written to ({error}): {remedy}") from error
    print("\n".join(map(str, done)))


def _list_handed_out(folder: Path, copies: list[Path]) -> Path:
    from .classroom import handed_out

    path, made = folder / handed_out.FILE, handed_out.made(copies)
    if path.exists():  # an earlier week's notebooks
        made["notebooks"] = handed_out.read(path)["notebooks"] | made["notebooks"]
    text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
    with replacing(path) as part:
        Path(part).write_text(text, encoding="utf-8")
    return path


def collect(args) -> None:
    """Unpack a learning platform's zip into one folder a student; say what was left out."""
    from .classroom.collect import collect

    for line in collect(args.zip, args.out):
        print(line)


def grade(args) -> None:
    """Grade all submissions, several at a time; what an earlier run graded is kept."""
    from .classroom.grade import grade
    from .classroom.judge import Limits

    whole("--jobs", args.jobs, 1, 256)
    in_range("--seconds", args.seconds, 0.1, 3600)
    in_range("--memory", args.memory, 0.1, 1024, "GiB")
    check_writable(args.csv)
    limits = Limits(args.seconds, int(args.memory * 2**30))
    names = {"handed_out": args.handed_out, "seed": args.seed, "jobs": args.jobs}
    done = grade(args.folder, args.csv, limits=limits, **names)
    print(f"{args.csv}: {len(done)} students, a page each in {args.csv.with_suffix('')}")


def challenge_run(args) -> None:
    """Judge entries, one after the other. Whatever they do, each has a result."""
    _judge(args, args.entries, args.seed, lambda file: args.out or file.parent)


def challenge_board(args) -> None:
    """The board of a folder; with --rerun of its entries, all with one seed."""
    from .challenge.board import board

    out = args.out or args.folder / "board.html"
    if args.rerun:
        entries = sorted(args.folder.glob("*.py"))
        if not entries:
            raise OptionError(f"{args.folder}: there is no entry (NAME.py) to judge in this folder")
        seed = secrets.randbits(40) if args.seed is None else args.seed
        _judge(args, entries, seed, lambda file: args.folder)
    page, left_out = board(args.folder, out, rerun=args.rerun)
    print("\n".join([*left_out, f"{page}: written"]))


def _judge(args, entries, seed, folder) -> None:
    """Results of entries, a line each; all that can be refused is refused before the first."""
    from .challenge.judge import judged, processes
    from .challenge.results import write
    from .challenge.rules import Rules

    in_range("--memory", args.memory, 0.1, 1024, "GiB")
    if seed is not None:
        whole("--seed", seed, 0, 2**40)
    limits = {name: getattr(args, name) for name in ("seconds", "pictures", "patience")}
    rules = Rules(**limits, memory=int(args.memory * 2**30))
    targets = {file: check_writable(folder(file) / f"{file.stem}.json") for file in entries}
    if lost := [str(file) for file in entries if not file.is_file()]:
        raise OptionError(f"{', '.join(lost)}: no such file: pass entries, Python files")
    if len(set(targets.values())) < len(targets):
        raise OptionError("two entries have the same name: give each a name of its own")
    how = f"--seconds {args.seconds:g} --pictures {args.pictures}"
    with processes() as nursery:
        for file, target in targets.items():
            command = f"ddpm-edu challenge run {file.name} {how}"
            say = partial(_say, file.name)
            result = judged(file, rules, seed, command=command, say=say, nursery=nursery)
            write(result, target)
            why = "" if result.cause == "judged" else f", {result.cause}: {result.message}"
            say(f"{result.points:.1f} points{why} -> {target}")


def _say(name: str, text: str) -> None:
    print(f"{name}: {text}", flush=True)


def _bare(file: Path) -> bytes:
    """A notebook without solutions, outputs and execution counts, as JSON."""
    try:
        notebook = json.loads(file.read_text(encoding="utf-8"))
        cells = notebook["cells"]
        cells = [cell for cell in cells if "solution" not in cell["metadata"].get("tags", [])]
        for cell in cells:
            if cell["cell_type"] == "code":
                cell |= {"outputs": [], "execution_count": None}
        notebook["cells"] = cells
        return (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise OptionError(f"{file}: not a notebook that can be read ({error})") from error


if __name__ == "__main__":
    sys.exit(main())
