"""The `ddpm-edu` command: draw pictures, train what ships, make the students' version of the notebooks."""

import argparse
import json
import os
import sys
from pathlib import Path

from .errors import DdpmEduError, OptionError


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors of the package are one line on standard error and exit status 2."""
    args = parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # a name that this terminal has no letters for
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except DdpmEduError as error:
        print(f"ddpm-edu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(": ".join(filter(None, ("ddpm-edu: stopped", str(stop)))), file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="ddpm-edu", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("sample", help="draw pictures of a class with a model that ships")
    p.add_argument(
        "--model",
        default="mnist",
        help="mnist, cifar10, or a .safetensors file that training wrote (default: mnist)",
    )
    p.add_argument(
        "--labels", default="0123456789", help="classes to draw, one digit each (default: all ten)"
    )
    p.add_argument(
        "--seed",
        type=int,
        default=0,
        help="the first picture's seed; the next ones count up (default: 0)",
    )
    p.add_argument("--steps", type=int, default=20, help="model evaluations (default: 20)")
    p.add_argument(
        "--guidance",
        type=float,
        default=None,
        help="classifier-free guidance scale (default: the model's own)",
    )
    p.add_argument(
        "--sampler",
        default=None,
        help="ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, ipndm (default: the model's own)",
    )
    p.add_argument("--columns", type=int, default=10)
    p.add_argument("--zoom", type=int, default=4, help="screen pixels a pixel (default: 4)")
    p.add_argument("--out", type=Path, default=Path("sample.png"))
    p.set_defaults(run=sample)

    p = commands.add_parser("txt2img", help="draw a picture of a text with Stable Diffusion")
    p.add_argument("prompt", help="what the picture shows")
    p.add_argument(
        "--model",
        default="emoji",
        help="a name that ships, sd15, sd21, sdxl, a folder or a .safetensors file; see `ddpm-edu models` (default: emoji)",
    )
    p.add_argument(
        "--refiner",
        nargs="?",
        const="sdxl-refiner",
        help="let a refiner finish: sdxl-refiner unless a folder or file is named",
    )
    p.add_argument("--negative", default="", help="what it should not show")
    p.add_argument(
        "--steps",
        type=int,
        help="model evaluations (default: the model's own, 30 for the published ones)",
    )
    p.add_argument(
        "--guidance",
        type=float,
        help="1 is none (default: the model's own, 7.5 for the published ones)",
    )
    p.add_argument(
        "--spacing", help="of the times: leading, trailing, linspace (default: the model's own)"
    )
    p.add_argument(
        "--sampler",
        default="dpmpp_2m",
        help="ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, ipndm (default: dpmpp_2m)",
    )
    p.add_argument(
        "--size", help="pixels of a side, or WIDTHxHEIGHT (default: what the model was trained for)"
    )
    p.add_argument(
        "--seed",
        type=int,
        default=0,
        help="the first picture's seed; the next ones count up (default: 0)",
    )
    p.add_argument(
        "--count",
        type=int,
        default=1,
        help="number of pictures; FILE.png becomes FILE_1.png, FILE_2.png ... (default: 1)",
    )
    p.add_argument(
        "--handover",
        type=float,
        default=0.8,
        help="share of the noise times before the refiner (default: 0.8)",
    )
    p.add_argument("--device", help="cpu, cuda or mps (default: the GPU if there is one)")
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="(default: bfloat16 on cuda, float16 on mps, float32 on the CPU)",
    )
    p.add_argument(
        "--fast",
        action="store_true",
        help="exact speed-ups; compiling for a GPU takes minutes the first time",
    )
    p.add_argument(
        "--zoom",
        type=int,
        help="screen pixels a pixel (default: as many as bring a small picture to 256 pixels)",
    )
    p.add_argument("--out", type=Path, default=Path("txt2img.png"))
    p.set_defaults(run=txt2img)

    p = commands.add_parser("train", help="train one of the models that ship, from random weights")
    p.add_argument(
        "name",
        help="minute, mnist or cifar10; painted, emoji or five_minutes: a whole Stable Diffusion",
    )
    p.add_argument(
        "--out",
        type=Path,
        help="where the weights go (default: NAME.safetensors; a system's CLIP: NAME_clip.safetensors)",
    )
    p.add_argument(
        "--checkpoint",
        type=Path,
        help="file to save to on the way, and to go on from; a folder for a whole system",
    )
    p.add_argument(
        "--steps",
        type=int,
        help="updates, instead of the recipe's number; not for a whole system, which has three",
    )
    p.add_argument("--seconds", type=float, help="stop after this much time instead")
    p.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    p.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the network's products: bfloat16 is quicker on a GPU (default: float32)",
    )
    p.set_defaults(run=train)

    p = commands.add_parser("models", help="list the models that ship")
    p.set_defaults(run=models)

    p = commands.add_parser(
        "student", help="copy the notebooks without their solution cells and outputs"
    )
    p.add_argument(
        "notebooks", type=Path, nargs="*", help="notebooks or folders of them (default: notebooks)"
    )
    p.add_argument(
        "--out", type=Path, default=Path("student"), help="folder for the copies (default: student)"
    )
    p.set_defaults(run=student)
    return top


def sample(args) -> None:
    """Draw one picture a label and save the grid as PNG, settings in its metadata."""
    import torch

    from .datasets.images import to_uint8
    from .diffusion import class_cond, generators, guided, last, noise
    from .errors import whole
    from .files.load import Pretrained, load
    from .samplers import SAMPLERS

    if not (args.labels.isascii() and args.labels.isdigit()):
        raise OptionError(
            f"--labels {args.labels!r}: pass digits, one a picture, such as 0123456789"
        )
    whole("--seed", args.seed, 0, 2**63 - 1 - 10**6 - len(args.labels), "the first picture's")
    whole("--zoom", args.zoom, 1, 64, "screen pixels a pixel")
    whole("--columns", args.columns, 1, 10**6, "pictures in a row")
    (path,) = _outputs(args.out, 1)
    loaded = load(args.model)
    if not isinstance(loaded, Pretrained):
        raise OptionError(
            f"--model {args.model} is no denoiser but a {type(loaded).__name__}: "
            "`ddpm-edu txt2img` draws with a whole system"
        )
    model, schedule, predict, meta = loaded
    sampler = args.sampler or meta.get("sampler", "dpmpp_2m")
    if sampler not in SAMPLERS:
        raise OptionError(f"--sampler {sampler} is not known: choose one of {', '.join(SAMPLERS)}")
    labels = torch.tensor([int(digit) for digit in args.labels])
    guidance = meta.get("guidance", 1.0) if args.guidance is None else args.guidance
    seeds = range(args.seed, args.seed + len(labels))
    x_T = noise(meta["shape"], seeds)
    steps = SAMPLERS[sampler](
        guided(model, guidance),
        schedule,
        x_T,
        args.steps,
        class_cond(labels),
        predict=predict,
        clip=meta.get("clip"),
        generator=generators(range(args.seed + 10**6, args.seed + 10**6 + len(labels))),
    )  # other seeds than x_T's
    picture = grid(to_uint8(last(steps)), args.columns, args.zoom)
    write_png(
        path,
        picture,
        {
            "model": args.model,
            "labels": args.labels,
            "seed": args.seed,
            "steps": args.steps,
            "guidance": guidance,
            "sampler": sampler,
        },
    )
    print(
        f"{path}: {len(labels)} pictures, {sampler}, {args.steps} steps, guidance {guidance:g}, seed {args.seed}"
    )


def grid(x, columns: int, zoom: int):
    """uint8 (N, C, H, W) -> numpy (rows * H * zoom, columns * W * zoom[, 3])."""
    import torch

    if columns < 1 or zoom < 1:
        raise OptionError(f"--columns {columns} --zoom {zoom}: both must be at least 1")
    n, c, h, w = x.shape
    columns = min(columns, n)
    x = torch.cat([x, x.new_zeros(-n % columns, c, h, w)])
    x = (
        x.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    )  # (rows*H, columns*W, C)
    x = x.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    return (x[..., 0] if c == 1 else x).numpy()


def _gpu() -> str | None:
    import torch

    there = {"cuda": torch.cuda, "mps": torch.backends.mps}
    return next((name for name, kind in there.items() if kind.is_available()), None)


def txt2img(args) -> None:
    """Load a system, draw, and write one PNG a picture, settings in its metadata. Options are checked before anything is loaded."""
    import torch

    from .datasets.images import to_uint8
    from .errors import check_device
    from .files.load import config_of, load
    from .systems.memory import memory_needed
    from .systems.pipeline import draw

    paths, size = _outputs(args.out, args.count), _check_drawing(args)
    device = check_device(args.device or _gpu() or "cpu")
    usual = {"cpu": "float32", "mps": "float16"}  # not every Mac has bfloat16; mps has no float64
    dtype = getattr(torch, args.dtype or usual.get(device.split(":")[0], "bfloat16"))
    for name in filter(None, (args.model, args.refiner)):
        guidance = config_of(args.model).guidance if args.guidance is None else args.guidance
        gib = memory_needed(config_of(name), dtype, size, args.count, guidance != 1) / 2**30
        print(
            f"{name}: about {gib:.1f} GiB of memory for weights and drawing in {str(dtype).removeprefix('torch.')}",
            file=sys.stderr,
        )
    sd = load(args.model, device=device, dtype=dtype)
    refiner = load(args.refiner, device=device, dtype=dtype) if args.refiner else None
    if args.fast:
        from .gpu.fast import speed_up

        sd, refiner = speed_up(sd), refiner and speed_up(refiner)
    own = {
        name: getattr(sd.config, name) if getattr(args, name) is None else getattr(args, name)
        for name in ("steps", "guidance", "spacing")
    }
    options = {"negative": args.negative, **own, "sampler": args.sampler, "handover": args.handover}
    seeds = list(range(args.seed, args.seed + args.count))
    pictures = draw(sd, args.prompt, size=size, seeds=seeds, refiner=refiner, **options)
    zoom = args.zoom or max(1, 256 // pictures.shape[-1])
    for path, picture, seed in zip(paths, to_uint8(pictures), seeds):
        write_png(
            path,
            grid(picture[None].cpu(), 1, zoom),
            {
                "prompt": args.prompt,
                "seed": seed,
                **options,
                "model": args.model,
                "refiner": args.refiner,
                "device": device,
                "dtype": str(dtype),
            },
        )
        print(
            f"{path}: {picture.shape[2]}x{picture.shape[1]}{f' shown {zoom}-fold' if zoom > 1 else ''}, {args.sampler}, {own['steps']} steps, guidance {own['guidance']:g}, seed {seed}"
        )


def _check_drawing(args):
    """The size as `draw` takes it, after a look at all that would be refused anyway, minutes later, with a model in memory."""
    from .errors import in_range, whole
    from .schedule import Schedule
    from .systems.pipeline import picture_size, sampling_times

    sampling_times(
        Schedule.sqrt_linear(),
        1 if args.steps is None else args.steps,
        args.sampler,
        "leading" if args.spacing is None else args.spacing,
    )
    in_range(
        "--guidance",
        1 if args.guidance is None else args.guidance,
        0,
        100,
        "1 is no guidance, 5 to 8 are usual",
    )
    in_range("--handover", args.handover, 0, 1, "share of the noise times before the refiner")
    whole("--seed", args.seed, 0, 2**63 - 1 - args.count, "the first picture's")
    if args.zoom is not None:
        whole("--zoom", args.zoom, 1, 64, "screen pixels a pixel")
    if args.size is None:
        return None
    try:
        width, height = (
            map(int, args.size.lower().split("x"))
            if "x" in args.size.lower()
            else [int(args.size)] * 2
        )
    except ValueError:
        raise OptionError(
            f"--size {args.size}: pass pixels, such as 512, or WIDTHxHEIGHT, such as 768x512"
        ) from None
    return picture_size((height, width))


def _outputs(out: Path, count: int) -> list[Path]:
    """The files to write, after a look whether they can be: nobody wants to hear it after the drawing."""
    if not 1 <= count <= 1024:
        raise OptionError(f"--count {count}: pass a whole number from 1 to 1024")
    if out.suffix.lower() != ".png":
        raise OptionError(f"--out {out}: pass a file name that ends in .png")
    if not os.path.isdir(out.parent) or not os.access(out.parent, os.W_OK):
        raise OptionError(
            f"--out {out}: there is no folder {out.parent.resolve()} that can be written to: make it first"
        )
    paths = [out] if count == 1 else [out.with_stem(f"{out.stem}_{i}") for i in range(1, count + 1)]
    for path in paths:
        if os.path.isdir(path):
            raise OptionError(f"--out {path} is a folder: name a file")
    return paths


def write_png(path: Path, picture, meta: dict) -> None:
    """A numpy picture as PNG with `meta` and the versions as JSON in its text chunk "ddpm_edu", all or nothing."""
    import torch
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from . import __version__
    from .paths import replacing

    info = PngInfo()
    info.add_text(
        "ddpm_edu", json.dumps({**meta, "version": __version__, "torch": torch.__version__})
    )
    try:
        with replacing(path) as part, open(part, "wb") as file:
            Image.fromarray(picture).save(file, format="png", pnginfo=info)
    except (OSError, ValueError) as error:
        raise OptionError(f"--out {path}: could not be written ({error})") from error


def train(args) -> None:
    """Follow a recipe and write the averaged weights."""
    from .training.whole_system import follow

    out = args.out or Path(f"{args.name}.safetensors")
    if out.suffix != ".safetensors":
        raise OptionError(f"--out {out}: pass a file name that ends in .safetensors")
    options = {name: getattr(args, name) for name in ("checkpoint", "steps", "seconds", "device")}
    written = follow(args.name, out, **options, dtype=args.dtype)
    print(f"{', '.join(map(str, written))}: written")


def models(args) -> None:
    """What ships, then the published systems that `txt2img` knows: name, size, title, and where each is or is looked for."""
    from .files.load import KNOWN, where
    from .paths import data_folder

    for path in sorted((data_folder() / "weights").glob("*.safetensors")):
        card = path.with_suffix(".md")
        title = (
            next(
                iter(card.read_text(encoding="utf-8", errors="replace").splitlines()), "no card"
            ).lstrip("# ")
            if os.path.isfile(card)
            else "no card"
        )
        print(f"{path.stem:16} {path.stat().st_size / 2**20:5.1f} MiB  {title}\n{'':16} {path}")
    for name, known in KNOWN.items():
        size = next(iter(known.files.values())) / 2**30
        print(
            f"\n{name:16} {size:5.1f} GiB  {known.config.name}, {known.config.size}x{known.config.size} pixels; hub name {known.hub}"
        )
        places = where(name)
        for place in places:
            print(f"{'':16} {'found' if place.exists() else 'looked for'}: {place}")


def student(args) -> None:
    """Copy notebooks, dropping cells tagged `solution` and all outputs; what is left still runs from top to bottom. All are read first."""
    from .paths import replacing

    sources = args.notebooks or [Path("notebooks")]
    files = [f for s in sources for f in (sorted(s.glob("*.ipynb")) if os.path.isdir(s) else [s])]
    if not files:
        raise OptionError(
            f"no notebooks in {', '.join(map(str, sources))}: name notebooks, or a folder that holds some"
        )
    copies = {}
    for file in files:
        target = args.out / file.name
        if target.resolve() == file.resolve():
            raise OptionError(f"--out {args.out} is the folder of the originals: name another one")
        if target in copies:
            raise OptionError(f"two notebooks are called {file.name}: copy them to two folders")
        if os.path.exists(target):
            raise OptionError(
                f"{target} is there already, perhaps with somebody's answers: name another --out, or remove it"
            )
        try:
            notebook = json.loads(file.read_text(encoding="utf-8"))
            notebook["cells"] = [
                bare(cell)
                for cell in notebook["cells"]
                if "solution" not in cell["metadata"].get("tags", [])
            ]
            copies[target] = (json.dumps(notebook, indent=1, ensure_ascii=False) + "\n").encode()
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise OptionError(f"{file}: not a notebook that can be read ({error})") from error
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        for target, text in copies.items():
            with replacing(target) as part:
                Path(part).write_bytes(text)
            print(target)
    except OSError as error:
        raise OptionError(
            f"--out {args.out}: cannot be written to ({error}): name another folder"
        ) from error


def bare(cell: dict) -> dict:
    """A cell without outputs and execution count."""
    return {**cell, "outputs": [], "execution_count": None} if cell["cell_type"] == "code" else cell


if __name__ == "__main__":
    sys.exit(main())
