"""The live page and the playground of the book: python book/live/build.py OUT.

The page draws emoji from words in the reader's browser: the shipped system as three ONNX graphs,
whose weights are the 8-bit rows of its own file, run by onnxruntime-web. That comes from npm, once,
pinned by its checksum; where it cannot be fetched, a page that says so takes its place. The graphs
are kept in book/_build/live. The playground needs neither.
"""

import argparse
import base64
import gzip
import hashlib
import json
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ddpm_edu import Schedule, load
from ddpm_edu.datasets.emoji import emoji
from ddpm_edu.errors import DataError
from ddpm_edu.files import npm
from ddpm_edu.files.load import find
from ddpm_edu.files.tensors import load_tensors, unpack

HERE = Path(__file__).resolve().parent
KEPT = HERE.parent / "_build"
ORT_FILES = {  # in the package: in the page
    "dist/ort.wasm.bundle.min.mjs": "ort.mjs",
    "dist/ort-wasm-simd-threaded.wasm": "ort.bin",
}
CODE = "engine.js", "sampler.js"
PAGE = ("index.html", "page.css", "page.js", "engine.js", "sampler.js")


# ---------------------------------------------------------------- the networks


class TextPart(nn.Module):
    """ids (2, L) -> context (2, L, D)."""

    def __init__(self, sd):
        super().__init__()
        self.text = sd.text.encoders[0].text_model

    def forward(self, ids):
        positions = torch.arange(ids.shape[1])[None]
        return self.text(ids, position_ids=positions).last_hidden_state


class UNetPart(nn.Module):
    """x_t (2, C, H, W), t (2,), context (2, L, D) -> v (2, C, H, W)."""

    def __init__(self, sd):
        super().__init__()
        self.unet = sd.unet

    def forward(self, x_t, t, context):
        return self.unet.trunk(x_t, t, context, None)


class VAEPart(nn.Module):
    """z (1, C, H, W) -> x (1, 3, 8 H, 8 W) in [-1, 1]."""

    def __init__(self, sd):
        super().__init__()
        self.vae = sd.vae

    def forward(self, z):
        return self.vae.from_latent(z).clamp(-1, 1)


def graphs(sd, packed: dict) -> dict[str, bytes]:
    """{part: an ONNX graph} of a system, with the int8 rows and scales of its file."""
    c = sd.config
    latent = c.vae.latent, *[c.size // sd.vae.factor] * 2
    length, width = c.text[0].length, c.text[0].width
    x_t, context = torch.zeros(2, *latent), torch.zeros(2, length, width)
    parts = {
        "text": (TextPart, {"ids": torch.zeros(2, length, dtype=torch.long)}, "context"),
        "unet": (UNetPart, {"x_t": x_t, "t": torch.zeros(2), "context": context}, "v"),
        "vae": (VAEPart, {"z": torch.zeros(1, *latent)}, "x"),
    }
    out = {}
    for name, (part, inputs, output) in parts.items():
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, of other libraries
            exported = torch.onnx.export(
                part(sd).eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=[output],
                dynamo=True,
                verbose=False,
            )
        out[name] = in_8_bits(exported.model_proto, packed).SerializeToString()
    return out


def in_8_bits(model, packed: dict):
    """The graph with each large weight as int8 and scale behind a DequantizeLinear, w = scale q.

    Which weight an initializer is, or its transpose, is told by its numbers: an exporter renames.
    """
    from onnx import helper, numpy_helper

    known = {}
    for name, w in unpack(packed).items():
        if packed[name].dtype == torch.int8:
            known[_key(w)] = name, False
            known |= {_key(w.T): (name, True)} if w.ndim == 2 else {}
    nodes, kept = [], []
    for initializer in model.graph.initializer:
        name, turned = known.get(_key(numpy_helper.to_array(initializer)), (None, False))
        if name is None:
            kept.append(initializer)
            continue
        q, scale = packed[name].numpy(), packed[f"{name}.scale"].float().numpy()
        q_name, scale_name = f"{initializer.name}.q", f"{initializer.name}.scale"
        kept += [
            numpy_helper.from_array(q.T.copy() if turned else q, q_name),
            numpy_helper.from_array(scale, scale_name),
        ]
        inputs, axis = [q_name, scale_name], int(turned)
        nodes.append(helper.make_node("DequantizeLinear", inputs, [initializer.name], axis=axis))
    nodes += model.graph.node
    del model.graph.initializer[:], model.graph.node[:], model.graph.value_info[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    return model


def _key(w) -> bytes:
    w = np.ascontiguousarray(w)
    return hashlib.sha256(str(w.shape).encode() + w.tobytes()).digest()


def settings(sd) -> dict:
    """What the page must know besides: the tokenizer, the names, sizes and defaults."""
    c, bpe = sd.config, json.loads(sd.tokenizer.bpe.to_str())["model"]
    if not torch.equal(sd.schedule.beta, Schedule.cosine(sd.schedule.T).beta):
        raise DataError(f"{c.name}: sampler.js draws with a cosine schedule, this one is another")
    if (c.predict, c.sampler, c.spacing) != ("v", "dpmpp_2m", "trailing"):
        raise DataError(f"{c.name}: sampler.js knows v, dpmpp_2m and trailing times only")
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"])
    shown = emoji()
    return {
        "T": sd.schedule.T,
        "steps": c.steps,
        "guidance": c.guidance,
        "latent": [c.vae.latent, *[c.size // sd.vae.factor] * 2],
        "size": c.size,
        "length": c.text[0].length,
        "width": c.text[0].width,
        "tokens": sorted(bpe["vocab"], key=bpe["vocab"].get),
        "merges": list(pairs),
        "words": sd.meta["words"],
        "names": list(zip(shown.characters, shown.names, shown.chinese)),
    }


# ---------------------------------------------------------------- onnxruntime-web


def onnxruntime() -> dict[str, bytes]:
    """{name in the page: bytes}. OSError where the package cannot be had."""
    folder = npm.package("onnxruntime-web")
    if folder is None:
        raise OSError("no npm, or no network")
    parts = {ours: (folder / theirs).read_bytes() for theirs, ours in ORT_FILES.items()}
    return parts | {"ort.bin": zipped(parts["ort.bin"])}


# ---------------------------------------------------------------- the pages

ABSENT = """<!doctype html><html lang="en"><meta charset="utf-8">
<title>Draw emoji from words</title>
<p>This book was built without the network, so the page that draws emoji is not in it.</p></html>
"""


def live(out: Path) -> None:
    """The page and what it runs, in `out`; disk.js holds all of it once more, for a book that is
    opened from the disk. OSError where onnxruntime-web cannot be had."""
    parts = onnxruntime()
    networks = exported()
    shutil.copytree(networks, out, dirs_exist_ok=True)
    for name in PAGE:
        shutil.copy(HERE / name, out)
    for name, raw in parts.items():
        (out / name).write_bytes(raw)
    names = sorted(file.name for file in out.iterdir() if file.suffix in (".bin", ".json", ".mjs"))
    disk = {name: base64.b64encode((out / name).read_bytes()).decode() for name in [*names, *CODE]}
    (out / "disk.js").write_text(f"window.DISK = {json.dumps(disk)};", encoding="utf-8")


def exported() -> Path:
    """The folder with graphs and settings of the system that ships, made if need be."""
    source = find("emoji")
    key = hashlib.sha256(source.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]
    folder = KEPT / "live" / key
    if folder.is_dir():
        return folder
    sd, (packed, _) = load("emoji"), load_tensors(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        new = Path(scratch) / key
        new.mkdir()
        for name, graph in graphs(sd, packed).items():
            (new / f"{name}.bin").write_bytes(zipped(graph))
        text = json.dumps(settings(sd), ensure_ascii=False, separators=(",", ":"))
        (new / "settings.json").write_text(text, encoding="utf-8")
        if not folder.exists():  # another process may have been quicker
            new.rename(folder)
    return folder


def zipped(raw: bytes) -> bytes:
    return gzip.compress(raw, 9, mtime=0)


def playground(out: Path) -> None:
    """The widget of notebook 02 as a plain script, which a page opened from the disk may load."""
    from ddpm_edu.show.widgets import Playground

    script = Playground._esm.replace("export default { render };", "").replace("export ", "")
    script = f"window.playground = (() => {{\n{script}\nreturn alone; }})();\n"
    (out / "playground.js").write_text(script, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to write to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    playground(out)
    try:
        live(out)
    except OSError as problem:
        (out / "index.html").write_text(ABSENT, encoding="utf-8")
        print(f"The live page is left out: onnxruntime-web cannot be had ({problem})")


if __name__ == "__main__":
    main()
