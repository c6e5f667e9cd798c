"""The `ddpm-edu` command: draw pictures, train what ships, make the students' version of the notebooks."""
import argparse
import json
import sys
from pathlib import Path

from .errors import DdpmEduError, OptionError


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors of the package are one line on standard error and exit status 2."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except DdpmEduError as error:
        print(f"ddpm-edu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ddpm-edu: stopped", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="ddpm-edu", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("sample", help="draw pictures of a class with a model that ships")
    p.add_argument("--model", default="mnist", help="mnist, cifar10, or a .safetensors file that training wrote (default: mnist)")
    p.add_argument("--labels", default="0123456789", help="classes to draw, one digit each (default: all ten)")
    p.add_argument("--seed", type=int, default=0, help="the first picture's seed; the next ones count up (default: 0)")
    p.add_argument("--steps", type=int, default=20, help="model evaluations (default: 20)")
    p.add_argument("--guidance", type=float, default=None, help="classifier-free guidance scale (default: the model's own)")
    p.add_argument("--sampler", default=None, help="ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, ipndm (default: the model's own)")
    p.add_argument("--columns", type=int, default=10)
    p.add_argument("--zoom", type=int, default=4, help="screen pixels a pixel (default: 4)")
    p.add_argument("--out", type=Path, default=Path("sample.png"))
    p.set_defaults(run=sample)

    p = commands.add_parser("train", help="train one of the models that ship, from random weights")
    p.add_argument("name", help="mnist or cifar10")
    p.add_argument("--out", type=Path, help="where the weights go (default: NAME.safetensors here)")
    p.add_argument("--checkpoint", type=Path, help="file to save to on the way, and to go on from")
    p.add_argument("--steps", type=int, help="instead of the recipe's number of updates")
    p.add_argument("--seconds", type=float, help="stop after this much time instead")
    p.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    p.set_defaults(run=train)

    p = commands.add_parser("models", help="list the models that ship")
    p.set_defaults(run=models)

    p = commands.add_parser("student", help="copy the notebooks without their solution cells and outputs")
    p.add_argument("notebooks", type=Path, nargs="*", help="notebooks or folders of them (default: notebooks)")
    p.add_argument("--out", type=Path, default=Path("student"), help="folder for the copies (default: student)")
    p.set_defaults(run=student)
    return top


def sample(args) -> None:
    """Draw one picture a label and save the grid as PNG, settings in its metadata."""
    import torch
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from . import __version__
    from .checkpoint import load_pretrained
    from .data import to_uint8
    from .diffusion import class_cond, generators, guided, last, noise
    from .solvers import SAMPLERS

    if not (args.labels.isascii() and args.labels.isdigit()):
        raise OptionError(f"--labels {args.labels!r}: pass digits, one a picture, such as 0123456789")
    model, schedule, predict, meta = load_pretrained(args.model)
    sampler = args.sampler or meta.get("sampler", "dpmpp_2m")
    if sampler not in SAMPLERS:
        raise OptionError(f"--sampler {sampler} is not known: choose one of {', '.join(SAMPLERS)}")
    labels = torch.tensor([int(digit) for digit in args.labels])
    guidance = meta.get("guidance", 1.0) if args.guidance is None else args.guidance
    seeds = range(args.seed, args.seed + len(labels))
    x_T = noise(meta["shape"], seeds)
    steps = SAMPLERS[sampler](guided(model, guidance), schedule, x_T, args.steps, class_cond(labels), predict=predict, clip=meta.get("clip"),
                              generator=generators(range(args.seed + 10 ** 6, args.seed + 10 ** 6 + len(labels))))  # other seeds than x_T's
    picture = grid(to_uint8(last(steps)), args.columns, args.zoom)
    info = PngInfo()
    info.add_text("ddpm_edu", json.dumps({"model": args.model, "labels": args.labels, "seed": args.seed, "steps": args.steps,
                                          "guidance": guidance, "sampler": sampler, "version": __version__, "torch": torch.__version__}))
    try:
        Image.fromarray(picture).save(args.out, pnginfo=info)
    except (OSError, ValueError) as error:
        raise OptionError(f"--out {args.out}: could not be written ({error})") from error
    print(f"{args.out}: {len(labels)} pictures, {sampler}, {args.steps} steps, guidance {guidance:g}, seed {args.seed}")


def grid(x, columns: int, zoom: int):
    """uint8 (N, C, H, W) -> numpy (rows * H * zoom, columns * W * zoom[, 3])."""
    import torch
    if columns < 1 or zoom < 1:
        raise OptionError(f"--columns {columns} --zoom {zoom}: both must be at least 1")
    n, c, h, w = x.shape
    columns = min(columns, n)
    x = torch.cat([x, x.new_zeros(-n % columns, c, h, w)])
    x = x.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)     # (rows*H, columns*W, C)
    x = x.repeat_interleave(zoom, 0).repeat_interleave(zoom, 1)
    return (x[..., 0] if c == 1 else x).numpy()


def train(args) -> None:
    """Follow a recipe and write the averaged weights."""
    from .recipes import recipe, run
    out = args.out or Path(f"{args.name}.safetensors")
    run(recipe(args.name), out, checkpoint=args.checkpoint, steps=args.steps, seconds=args.seconds, device=args.device)
    print(f"{out}: written")


def models(args) -> None:
    """One line a model: name, where it is, size, parameters, what its card says."""
    from .checkpoint import data_folder
    for path in sorted((data_folder() / "weights").glob("*.safetensors")):
        card = path.with_suffix(".md")
        title = card.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") if card.exists() else "no card"
        print(f"{path.stem:16} {path.stat().st_size / 2 ** 20:5.1f} MiB  {title}\n{'':16} {path}")


def student(args) -> None:
    """Copy notebooks, dropping cells tagged `solution` and all outputs; what is left still runs from top to bottom."""
    sources = args.notebooks or [Path("notebooks")]
    files = [f for s in sources for f in (sorted(s.glob("*.ipynb")) if s.is_dir() else [s])]
    if not files:
        raise OptionError(f"no notebooks in {', '.join(map(str, sources))}: name notebooks, or a folder that holds some")
    for file in files:
        if (args.out / file.name).resolve() == file.resolve():
            raise OptionError(f"--out {args.out} is the folder of the originals: name another one")
        try:
            notebook = json.loads(file.read_text(encoding="utf-8"))
            notebook["cells"] = [bare(cell) for cell in notebook["cells"] if "solution" not in cell["metadata"].get("tags", [])]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OptionError(f"{file}: not a notebook that can be read ({error})") from error
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / file.name).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(args.out / file.name)


def bare(cell: dict) -> dict:
    """A cell without outputs and execution count."""
    return {**cell, "outputs": [], "execution_count": None} if cell["cell_type"] == "code" else cell


if __name__ == "__main__":
    sys.exit(main())
