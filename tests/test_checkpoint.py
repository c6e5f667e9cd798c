"""Files of weights: atomic to write, safe to read, plain about what is wrong."""

import dataclasses
import io
import json
import lzma
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from random import Random

import pytest
import torch
from helpers import refuses
from safetensors.torch import save as to_bytes
from safetensors.torch import save_file

from ddpm_edu import CheckpointError, Cond, OptionError, Schedule
from ddpm_edu.files.load import describe, load, load_state, save
from ddpm_edu.files.tensors import load_tensors, save_tensors
from ddpm_edu.networks.classifier import Classifier, ClassifierConfig
from ddpm_edu.networks.dit import DiT, DiTConfig
from ddpm_edu.networks.gaussian import GaussianPrior
from ddpm_edu.networks.mlp import MLP
from ddpm_edu.networks.unet import SpaceToDepth, UNet, UNetConfig
from ddpm_edu.networks.unet_classic import ClassicUNet
from ddpm_edu.networks.vae import VAE, VAEConfig

CONFIG = UNetConfig(
    in_channels=4,
    channels=16,
    mult=(1, 2),
    depth=(0, 1),
    middle=0,
    heads=(1, 2),
    vector=3,
    blocks=1,
    groups=4,
)


def unet(seed=0):
    torch.manual_seed(seed)
    return UNet(CONFIG).eval()


# ---------------------------------------------------------------- round trips


def test_tensors_and_meta_come_back(tmp_path):
    tensors = {
        "a": torch.randn(3, 4),
        "b": torch.arange(5),
        "half": torch.randn(2).half(),
        "bytes": torch.tensor([1, 2], dtype=torch.uint8),
        "none": torch.zeros(0, 3),
        "view": torch.randn(4, 6).T,
        "number": torch.tensor(2.5, dtype=torch.float64),
    }
    path = tmp_path / "deep" / "folder" / "x.safetensors"  # folders are made
    save_tensors(path, tensors, {"step": 3, "names": ["ä", "b"]})
    back, meta = load_tensors(path)
    assert meta == {"step": 3, "names": ["ä", "b"]} and back.keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(back[name], value) and back[name].dtype == value.dtype
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]  # nothing left lying about


def test_tied_weights_are_written_twice(tmp_path):
    x = torch.randn(4)
    save_tensors(tmp_path / "x.safetensors", {"a": x, "b": x, "c": x[:2]})
    back, _ = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(back["a"], x) and torch.equal(back["b"], x) and torch.equal(back["c"], x[:2])


def test_a_file_without_our_metadata_loads(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert load_tensors(tmp_path / "x.safetensors")[1] == {}


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0), (torch.float16, 5e-3)])
def test_pretrained_round_trip(folded, dtype, tolerance, tmp_path):
    model = SpaceToDepth(unet(), 2) if folded else unet()
    path = tmp_path / "net.safetensors"
    save(
        path,
        model,
        {"card": "made by a test"},
        schedule=Schedule.cosine(30),
        predict="v",
        dtype=dtype,
    )
    back = load(path)
    assert (
        isinstance(back.model, SpaceToDepth) == folded
        and back.predict == "v"
        and back.meta["card"] == "made by a test"
    )
    assert torch.equal(back.schedule.beta, Schedule.cosine(30).beta)
    assert not back.model.training and all(
        p.dtype == torch.float32 and not p.requires_grad for p in back.model.parameters()
    )
    x, t, cond = (
        torch.randn(2, 1 if folded else 4, 8, 8),
        torch.tensor([0, 20]),
        Cond(vector=torch.eye(3)[:2]),
    )
    with torch.no_grad():
        torch.testing.assert_close(
            back.model(x, t, cond), model(x, t, cond), rtol=0, atol=tolerance
        )
    assert path.stat().st_size < (1.2 if dtype == torch.float32 else 0.7) * 4 * sum(
        p.numel() for p in model.parameters()
    )


# ---------------------------------------------------------------- writing is all or nothing


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork (not on Windows)")
def test_kill_9_during_saving_leaves_a_whole_file(tmp_path):
    """40 kills at random moments: the file always loads, before and after, whole, and never an
    older one. What kills left shows that they hit in the middle of writing."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("save_and_die.py"), tmp_path, "40"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["loaded"] >= 80 and result["interrupted"] >= 3 and result["saves"] >= 1, result
    assert result["left"] == 0  # the next save removes what a kill left


def test_rights_and_links_of_what_is_written(tmp_path):
    """As for any new file, less the umask; a link goes on pointing to the file."""
    path, link = tmp_path / "x.safetensors", tmp_path / "link.safetensors"
    link.symlink_to(path)
    before = os.umask(0o027)
    try:
        save_tensors(link, {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o640


def test_an_error_while_writing_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(2)})
    before = path.read_bytes()

    def full_disk(tensors, name, metadata):
        Path(name).write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ddpm_edu.files.tensors.save_file", full_disk)
    with refuses(CheckpointError, "x.safetensors", "could not be written", "No space", "writable"):
        save_tensors(path, {"a": torch.zeros(2)})
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.safetensors").mkdir()
    for path in (tmp_path / "file" / "x.safetensors", tmp_path / "folder.safetensors"):
        with refuses(CheckpointError, path.name, "could not be written", "folder writable"):
            save_tensors(path, {"a": torch.ones(2)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.safetensors"]


def test_what_a_kill_left_goes_with_the_next_save(tmp_path):
    """A dead writer holds no lock; a living one, here this process, keeps its file."""
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "run[1].safetensors"  # a name that globbing would take for a pattern
    for name in ("run[1].safetensors.0a1b2c3d.part", "run[1].safetensors.living.part", "x.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run[1].safetensors").write_bytes(b"half")
    living = os.open(tmp_path / "run[1].safetensors.living.part", os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    save_tensors(path, {"a": torch.ones(2)})
    os.close(living)
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["run[1].safetensors", "run[1].safetensors.living.part", "x.part"]


@pytest.mark.skipif(os.name != "posix", reason="permissions and links as Unix has them")
def test_the_umask_decides_and_links_stay(tmp_path):
    before = os.umask(0o027)
    try:
        save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o640
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "x.safetensors")
    save_tensors(tmp_path / "link.safetensors", {"a": torch.zeros(3)})
    assert (tmp_path / "link.safetensors").is_symlink()
    assert load_tensors(tmp_path / "x.safetensors")[0]["a"].shape == (3,)


# ---------------------------------------------------------------- reading is safe


class Payload:
    """Unpickling this makes a file: the proof that code ran."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def pickles(marker):
    buffer = io.BytesIO()
    torch.save({"w": Payload(marker)}, buffer)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as z:
        z.writestr("archive/data.pkl", pickle.dumps(Payload(marker)))
    return {
        "torch": buffer.getvalue(),
        "zip": zipped.getvalue(),
        "protocol 2": pickle.dumps(Payload(marker), protocol=2),
        "protocol 4": pickle.dumps(Payload(marker), protocol=4),
    }


@pytest.mark.parametrize("kind", ["torch", "zip", "protocol 2", "protocol 4"])
@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_a_pickle_never_runs(kind, name, tmp_path):
    marker, path = tmp_path / "it ran", tmp_path / name
    path.write_bytes(pickles(marker)[kind])
    with refuses(CheckpointError, name, "pickle", "refused", "safetensors file of the same model"):
        load_tensors(path)
    assert not marker.exists()
    if kind == "protocol 2":
        pickle.loads(path.read_bytes())
        assert marker.exists()  # the payload is a live one


def header(text, data=bytes(8), length=None):
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ENTRY = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
ODD_FILES = {
    "empty": (b"", ("empty", "again")),
    "web page": (
        b"<!DOCTYPE html><html><body>404</body></html>",
        ("web page", "fetch the weights"),
    ),
    "web page, indented": (b"\n  <html>sign in</html>", ("web page",)),
    "web page with a mark": (b"\xef\xbb\xbf<!DOCTYPE html><html>", ("web page", "HTML")),
    "web page of two bytes": ("<!DOCTYPE html>".encode("utf-16"), ("web page", "HTML")),
    "web page after a comment": (b"<!-- error 404 --><html>", ("web page", "HTML")),
    "XML": (b"<?xml version='1.0'?><Error>", ("XML error page",)),
    "XML without a prolog": (b"<Error><Code>AccessDenied</Code></Error>", ("XML error page",)),
    "JSON": (b'{"error":"Repository not found"}', ("JSON", "fetch")),
    "JSON, spaced": (b'{\n "message": "Not Found"\n}', ("JSON", "fetch")),
    "JSON like a header": (b'{"data":{"error":"no"}}', ("JSON", "fetch")),
    "text": (b"Invalid username or password.", ("a text", "error message")),
    "xet pointer": (b"# xet version 0\nfilesize = 5\n", ("Git LFS",)),
    "zip": (b"PK\x03\x04" + bytes(30) + b"weights.bin", ("zip archive", "unpack")),
    "gzip": (b"\x1f\x8b\x08" + bytes(30), ("packed archive", "unpack")),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(30), ("packed archive", "unpack")),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(30), ("GGUF", "safetensors file of the same")),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(30), ("HDF5", "safetensors file of the same")),
    "NumPy": (b"\x93NUMPY\x01\0" + bytes(30), ("NumPy", "safetensors file of the same")),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(30), ("picture",)),
    "pickle, protocol 0": (b"(dp0\nS'a'\np1\nI1\ns.", ("pickle", "refused")),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        ("Git LFS", "git lfs pull"),
    ),
    "random": (bytes(range(7, 250)), ("not a safetensors file", "again")),
    "zeros": (bytes(100), ("not a safetensors file",)),
    "three bytes": (b"abc", ("not a safetensors file",)),
    "no JSON": (header("{oh no, no JSON}"), ("header", "damaged")),
    "endless header": (
        header("{" + ENTRY + "}", length=2**62),
        ("header", "damaged, or made to do harm"),
    ),
    "name twice": (header("{" + ENTRY + "," + ENTRY + "}"), ("header", "damaged")),
    "metadata twice": (
        header('{"__metadata__":{"x":"1","x":"2"},' + ENTRY + "}"),
        ("header", "damaged"),
    ),
    "overlap": (
        header("{" + ENTRY + ',"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'),
        ("header", "damaged"),
    ),
    "same bytes": (
        header("{" + ENTRY + "," + ENTRY.replace('"a"', '"b"') + "}"),
        ("header", "damaged"),
    ),
    "hole": (
        header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'),
        ("header", "damaged"),
    ),
    "data too long": (
        header("{" + ENTRY + "}", bytes(9)),
        ("1 bytes too many", "header", "damaged"),
    ),
    "wrong shape": (header("{" + ENTRY.replace("[2]", "[3]") + "}"), ("header", "damaged")),
    "overflow": (
        header("{" + ENTRY.replace("[2]", "[4611686018427387904,4]") + "}"),
        ("header", "damaged"),
    ),
    "negative": (header("{" + ENTRY.replace("[2]", "[-2]") + "}"), ("header", "damaged")),
    "unknown type": (header("{" + ENTRY.replace("F32", "Q9") + "}"), ("header", "damaged")),
    "offsets backwards": (
        header("{" + ENTRY.replace("[0,8]", "[8,0]") + "}"),
        ("header", "damaged"),
    ),
    "metadata no JSON": (
        header('{"__metadata__":{"ddpm_edu":"{x"},' + ENTRY + "}"),
        ("header", "damaged"),
    ),
    "metadata a list": (
        header('{"__metadata__":{"ddpm_edu":"[1]"},' + ENTRY + "}"),
        ("header", "damaged"),
    ),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_odd_files(kind, tmp_path):
    content, words = ODD_FILES[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with refuses(CheckpointError, "x.safetensors", *words):
        load_tensors(path)


def test_no_line_of_a_text_is_told(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"hunter2:x:0:0:a secret\n")
    with pytest.raises(CheckpointError) as error:
        load_tensors(tmp_path / "x.safetensors")
    assert "hunter2" not in str(error.value) and "secret" not in str(error.value)


def test_the_header_maker_makes_good_files_too(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(header("{" + ENTRY + "}"))
    assert torch.equal(load_tensors(tmp_path / "x.safetensors")[0]["a"], torch.zeros(2))


@pytest.mark.parametrize("length", [0x80, 0x280, 0x480, 0x4B50])
def test_cut_short_says_how_much_is_there(length, tmp_path):
    """Headers of 128, 640, 1152 and 19,280 bytes begin with the bytes of a pickle or of a zip: still a cut file."""
    plain = to_bytes({"w": torch.ones(1000)})
    size = struct.unpack("<Q", plain[:8])[0]
    whole = header(
        plain[8 : 8 + size].rstrip() + b" " * (length - len(plain[8 : 8 + size].rstrip())),
        plain[8 + size :],
    )
    path = tmp_path / "x.safetensors"
    path.write_bytes(whole)
    assert load_tensors(path)[0]["w"].sum() == 1000
    for cut in (9, 8 + length // 2, 8 + length, len(whole) - 1):
        path.write_bytes(whole[:cut])
        expected = 8 + length if cut < 8 + length else len(whole)
        with refuses(CheckpointError, "cut short", f"{cut:,} of {expected:,} bytes", "again"):
            load_tensors(path)


def test_every_cut_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.randn(5), "b": torch.randn(3)}, {"step": 1})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with refuses(CheckpointError, "x.safetensors", "empty|cut short|not a safetensors"):
            load_tensors(path)


def test_missing_files(tmp_path):
    with refuses(CheckpointError, "nothing.safetensors", "no such file"):
        load_tensors(tmp_path / "nothing.safetensors")
    with refuses(CheckpointError, "no such file"):
        load_tensors(tmp_path)
    for name in (tmp_path / "nothing.safetensors", "no_such_model"):
        with refuses(CheckpointError, "no such file", "Shipped with the course"):
            load(name)


def test_the_content_counts_not_the_name(tmp_path):
    for name in ("x.ckpt", "x.bin", "x.png", "x"):
        save_tensors(tmp_path / name, {"a": torch.ones(2)})
        assert torch.equal(load_tensors(tmp_path / name)[0]["a"], torch.ones(2))


# ---------------------------------------------------------------- time and memory


def long_header(path):
    """A file with a true header of 200 MB: one name, spaces."""
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", 200_000_000) + ("{" + ENTRY).encode())
        f.truncate(8 + 200_000_000 + 8)


BAD_FILES = {
    **{kind: lambda path, kind=kind: path.write_bytes(ODD_FILES[kind][0]) for kind in ODD_FILES},
    "header of 200 MB": long_header,
    "deep header": lambda path: path.write_bytes(header('{"a":' + "[" * 1_000_000)),
    "long sound header": lambda path: save_file({"a" * 30_000_000: torch.ones(1)}, path),
    "a gigabyte of nothing": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 10**9),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_quickly(kind, tmp_path):
    path = tmp_path / "x.safetensors"
    BAD_FILES[kind](path)
    start = time.process_time()
    with refuses(CheckpointError, "x.safetensors"):
        load_tensors(path)
    assert time.process_time() - start < 1


def many(count):
    """A sound file of `count` empty tensors, 85 bytes of header each."""
    entry = '"name.%07d.xxxxxxxxxxxx":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return header("{" + ",".join(entry % i for i in range(count)) + "}", b"")


@pytest.mark.parametrize("cut", [0, 1])
def test_a_hundred_thousand_names_are_refused_quickly(cut, tmp_path):
    """25 MB of names, sound or cut by a byte; and 9 MB, which are read before they are counted."""
    path = tmp_path / "x.safetensors"
    for count in (300_000, 100_000):
        whole = many(count)
        path.write_bytes(whole[: len(whole) - cut])
        start = time.process_time()
        with refuses(CheckpointError, "x.safetensors", "header|names|cut short"):
            load_tensors(path)
        assert time.process_time() - start < 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    for read in (load_tensors, load):
        with refuses(CheckpointError, "x.safetensors", "pipe"):
            read(tmp_path / "x.safetensors")


def test_what_is_said_of_long_headers(tmp_path):
    for kind, words in (("header of 200 MB", "200,000,000"), ("long sound header", "30,000,0")):
        BAD_FILES[kind](tmp_path / "x.safetensors")
        with refuses(
            CheckpointError,
            "header would be " + words,
            "far more than any model",
            "damaged, or made to do harm",
        ):
            load_tensors(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_conversion(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "ddpm_edu.files.tensors.PIECE", 100
    )  # the file is opened anew, several times
    tensors = {
        f"t{i}": torch.randn(5, 6).to((torch.float32, torch.float16, torch.bfloat16)[i % 3])
        for i in range(12)
    } | {"n": torch.arange(5), "yes": torch.tensor(True)}
    save_tensors(tmp_path / "x.safetensors", tensors, {"step": 1})
    back, meta = load_tensors(tmp_path / "x.safetensors", dtype=dtype)
    assert meta == {"step": 1} and back.keys() == tensors.keys()
    for k, v in tensors.items():
        assert torch.equal(back[k], v.to(dtype) if v.is_floating_point() else v) and back[
            k
        ].dtype == (dtype if v.is_floating_point() else v.dtype)


PEAK = """
import os, sys, torch
from ddpm_edu.files.load import load_state
from ddpm_edu.files.tensors import load_tensors
from ddpm_edu.networks.unet import UNet, UNetConfig
path, dtype = sys.argv[1], {"None": None, "float32": torch.float32, "float16": torch.float16}[sys.argv[2]]
config = UNetConfig(channels=int(sys.argv[3]), mult=(1, 2, 4), depth=(0, 1, 1), heads=(8, 8, 8), context=768)
def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
with torch.device("meta"):
    model = UNet(config)
torch.ones(10).half().float().aminmax()
if os.path.exists(path):
    base = memory("VmRSS")
    load_state(model, load_tensors(path, dtype=dtype)[0])
    assert all(bool(p.abs().max() < 1e3) for p in model.parameters())
    print((memory("VmHWM") - base) / sum(p.nbytes for p in model.parameters()), sum(p.nbytes for p in model.parameters()))
else:
    state = {k: torch.rand(v.shape).to(dtype) for k, v in model.state_dict().items()}
    from ddpm_edu.files.tensors import save_tensors
    save_tensors(path, state)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc"
)
@pytest.mark.parametrize(
    "stored, wanted",
    [
        ("float16", "float32"),
        *(
            pytest.param(*case, marks=pytest.mark.full)
            for case in (("float32", "None"), ("float16", "None"), ("float32", "float16"))
        ),
    ],
)
def test_peak_memory_is_little_more_than_the_weights(stored, wanted, tmp_path):
    """From a file of 500 MB (or half) into a model on the meta device, all numbers looked at: at most 1.15 times the weights."""

    def run(dtype):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, tmp_path / "x.safetensors", dtype, "192"],
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(stored)
    ratio, size = map(float, run(wanted).split())
    print(f"peak {ratio:.3f} times {size / 1e6:.0f} MB, {stored} to {wanted}")
    assert size > 2e8 and 0.9 < ratio <= 1.15


# ---------------------------------------------------------------- the right weights for the right model


def test_wrong_model_counts_and_names():
    model, before = MLP(), {k: v.clone() for k, v in MLP().state_dict().items()}
    model.load_state_dict(before)
    state = MLP(vector=3).state_dict()
    del state["last.bias"]
    state["first.weight"] = torch.zeros(128, 3)
    with refuses(
        CheckpointError,
        "my file does not fit this MLP",
        "1 missing .last.bias",
        "2 unexpected .vector.bias, vector.weight",
        "1 of another shape .first.weight",
        "another model or config",
    ):
        load_state(model, state, "my file")
    assert all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items()
    )  # nothing was filled


def saved(tmp_path, change):
    """A file of save_pretrained, its tensors and metadata changed, written again."""
    path = tmp_path / "net.safetensors"
    save(path, unet(), schedule=Schedule.linear(10), predict="eps")
    tensors, meta = load_tensors(path)
    tensors = {k: v.clone() for k, v in tensors.items()}
    change(tensors, meta)
    save_tensors(path, tensors, meta)
    return path


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda t, m: t["conv_in.weight"].view(-1)[3:4].fill_(float("nan")),
            ("1 tensors hold NaN", "conv_in.weight", "another"),
        ),
        (lambda t, m: t["conv_in.bias"].fill_(float("inf")), ("NaN or infinity", "conv_in.bias")),
        (lambda t, m: m.pop("config"), ("no plan", "config")),
        (lambda t, m: m.update(config=[1]), ("no plan",)),
        (lambda t, m: m.pop("class"), ("no single file", "course")),
        (lambda t, m: m.update({"class": "VAE"}), ("no plan", "VAE")),
        (lambda t, m: m["config"].update(colour="blue"), ("no plan", "colour")),
        (lambda t, m: m["config"].update(groups=0), ("no plan", "groups")),
        (lambda t, m: m["config"].update(groups=7), ("no plan", "groups")),
        (lambda t, m: m.update(predict="noise"), ("noise", "eps, x_0, v")),
        (
            lambda t, m: m.update(
                **{"class": "SpaceToDepth", "config": {"factor": "two"}, "model": dict(m)}
            ),
            ("no plan",),
        ),
        (lambda t, m: t.pop("schedule.beta"), ("schedule.beta",)),
        (lambda t, m: t["schedule.beta"].fill_(2), ("beta",)),
        (lambda t, m: t.pop("conv_in.bias"), ("does not fit", "1 missing .conv_in.bias")),
        (lambda t, m: m["config"].update(channels=32), ("does not fit", "of another shape")),
    ],
)
def test_damaged_models(change, words, tmp_path):
    with refuses(CheckpointError, "net.safetensors", *words):
        load(saved(tmp_path, change))


def test_an_unchanged_copy_still_loads(tmp_path):
    load(saved(tmp_path, lambda t, m: None))


# ---------------------------------------------------------------- every kind of model


def models():
    torch.manual_seed(0)
    classic = ClassicUNet(channels=8, vector=3, emb=16)
    vae = VAE(VAEConfig(channels=8, mult=(1, 2), groups=4))
    classifier = Classifier(ClassifierConfig(widths=(8, 16)))
    classifier.real_test.cov += torch.rand(16, 16, dtype=torch.float64)
    prior = GaussianPrior(
        SpaceToDepth(unet(), 2), Schedule.cosine(9), (1, 8, 8), classes=3, parts=2, rank=2
    )
    return {
        "MLP": MLP(hidden=16, layers=2, vector=3),
        "ClassicUNet": classic,
        "VAE": vae,
        "Classifier": classifier,
        "UNet": unet(),
        "DiT": DiT(DiTConfig(in_channels=4, width=16, depth=2, heads=2, vector=3)),
        "GaussianPrior": prior,
    }


@pytest.mark.parametrize("kind", models())
def test_what_save_writes_load_reads(kind, tmp_path):
    """As it is, in 8 bits, and as a denoiser with its schedule; float64 stays float64."""
    path, model = tmp_path / "x.safetensors", models()[kind].eval()
    denoiser = kind not in ("VAE", "Classifier")
    how = dict(schedule=Schedule.cosine(9), predict="v") if kind == "GaussianPrior" else {}
    save(path, model, {"card": "a test"}, **how)
    back = load(path)
    inner = back.model if how else back
    assert type(inner) is type(model) and back.meta == {"card": "a test"} and not inner.training
    for (name, w), other in zip(
        model.state_dict().items(), inner.state_dict().values(), strict=True
    ):
        assert w.equal(other) and w.dtype == other.dtype, name
    if denoiser:
        save(path, model, schedule=Schedule.cosine(9), predict="x_0", dtype=torch.int8)
        back = load(path, dtype=torch.bfloat16)
        assert back.predict == "x_0" and torch.equal(back.schedule.beta, Schedule.cosine(9).beta)
        assert {p.dtype for p in back.model.parameters()} == {torch.bfloat16}
        assert describe(back.model) == describe(model)


@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_a_wrapper_is_taken_off(wrap, tmp_path):
    """github.com/huggingface/diffusers#5617: compiled, saved, and nobody could load it."""
    path, model = tmp_path / "x.safetensors", unet()
    for wrapped in (wrap(model), SpaceToDepth(wrap(model), 2), wrap(torch.nn.DataParallel(model))):
        save(path, wrapped, schedule=Schedule.cosine(9), predict="v")
        back = load(path).model
        inner = back.model if isinstance(back, SpaceToDepth) else back
        assert all(map(torch.equal, inner.state_dict().values(), model.state_dict().values()))
    wrapped = {f"_orig_mod.{k}": v for k, v in model.state_dict().items()}
    load_state(unet(1), wrapped)  # and what others saved with the wrapper on


@pytest.mark.parametrize(
    "model, options, word",
    [
        (torch.nn.Linear(2, 2), {}, "Linear"),
        (SpaceToDepth(torch.nn.Linear(2, 2), 2), {}, "Linear"),
        ("mnist", {}, "model"),
        (MLP(), {"meta": [1]}, "meta"),
        (MLP(), {"meta": {"a": {1}}}, "meta"),
        (MLP(), {"schedule": Schedule.cosine(9)}, "predict"),
        (MLP(), {"schedule": Schedule.cosine(9), "predict": "score"}, "predict"),
    ],
)
def test_what_cannot_be_saved(model, options, word, tmp_path):
    with refuses(OptionError, word):
        save(tmp_path / "x.safetensors", model, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", [2, 0, None, "1"])
def test_another_format_is_refused_by_name(version, tmp_path):
    with refuses(CheckpointError, "net.safetensors", f"format = .?{version}", "update"):
        load(saved(tmp_path, lambda t, m: m.update(format=version)))


HARMFUL = {
    "channels": {"channels": 8192, "groups": 32},
    "blocks": {"blocks": 65_536},
    "depth": {"depth": [1024, 1024]},
    "middle": {"middle": 65_536},
    "levels": {"mult": [1] * 5000, "depth": [0] * 5000, "heads": [1] * 5000},
    "context": {"context": 65_536},
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="reads its own peak of memory")
@pytest.mark.parametrize("kind", HARMFUL)
def test_a_harmful_plan_is_compared_before_it_is_built(kind, tmp_path):
    """A small file whose plan asks for gigabytes, or for minutes of building."""
    import resource

    path = saved(tmp_path, lambda t, m: m["config"].update(HARMFUL[kind]))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with refuses(CheckpointError, "net.safetensors"):
        load(path)
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_layers_without_weights_are_not_built(tmp_path):
    save(tmp_path / "x.safetensors", MLP(hidden=16), {})
    tensors, meta = load_tensors(tmp_path / "x.safetensors")
    meta["config"]["layers"] = 60_000
    save_tensors(tmp_path / "y.safetensors", tensors, meta)
    with refuses(CheckpointError, "y.safetensors", "60,000 blocks and layers"):
        load(tmp_path / "y.safetensors")


LITTLE = """
import resource, sys, torch
from ddpm_edu import ResourceError, load
load(sys.argv[1])
now = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (now + 40_000_000, now + 40_000_000))
try:
    load(sys.argv[2])
except ResourceError as e:
    print("ResourceError", e)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits memory as Linux does")
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_memory_that_ends_while_loading(dtype, tmp_path):
    """A limit on the address space stands for a full machine: the need in numbers, three ways out."""
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    save(small, unet())
    wide = dataclasses.replace(CONFIG, channels=400, groups=4)
    save(large, UNet(wide), dtype=None if dtype == torch.float32 else dtype)
    done = subprocess.run(
        [sys.executable, "-c", LITTLE, small, large], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for word in ("ResourceError", "large.safetensors", "GiB", "bfloat16", "smaller", "free memory"):
        assert word in done.stdout, done.stdout


@pytest.mark.slow
def test_two_thousand_mutations_give_nothing_but_checkpoint_errors(tmp_path):
    """Bytes of header and numbers changed, removed and put in: read whole, or refused with a type."""
    path, random = tmp_path / "x.safetensors", Random(0)
    save(path, unet(), {"shape": [4, 8, 8]}, schedule=Schedule.cosine(9), predict="v")
    sound, refused = path.read_bytes(), 0
    head = 8 + struct.unpack("<Q", sound[:8])[0]
    for _ in range(2000):
        raw = bytearray(sound)
        for _ in range(random.choice((1, 1, 2, 8))):
            i = random.randrange(min(head, len(raw)) if random.random() < 0.9 else len(raw))
            what = random.random()
            if what < 0.6:
                raw[i] = random.choice(b'0123456789"{}[],:.-eaTf \xff')
            elif what < 0.8:
                del raw[i : i + random.randrange(1, 9)]
            else:
                raw[i:i] = bytes(random.choice(b'0123456789"-') for _ in range(5))
        path.unlink()
        path.write_bytes(raw)
        try:
            load(path)
        except CheckpointError as error:
            refused += 1
            assert "x.safetensors" in str(error)
    assert refused > 1500


# ---------------------------------------------------------------- packed (.xz)


def test_a_packed_file_is_the_same(tmp_path):
    model, schedule = MLP(2), Schedule.cosine()
    plain, packed = tmp_path / "x.safetensors", tmp_path / "y.safetensors.xz"
    for path in (plain, packed):
        save(path, model, {"seed": 1}, schedule=schedule, predict="v", dtype=torch.int8, levels=31)
    assert packed.read_bytes()[:6] == b"\xfd7zXZ\0" and packed.stat().st_size < plain.stat().st_size
    (a, about), (b, the_same) = load_tensors(plain), load_tensors(packed)
    assert about == the_same and a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert max(q.abs().max() for q in a.values() if q.dtype == torch.int8) == 31
    for source in (packed, tmp_path / "y.safetensors"):  # found without its ending, too
        assert load(source).meta == {"seed": 1}
    assert load_tensors(packed, torch.float16, ["schedule.beta"])[0].keys() == {"schedule.beta"}


def test_a_damaged_packed_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors.xz"
    save(path, MLP(2), schedule=Schedule.cosine(), predict="v")
    content = path.read_bytes()
    for bad in (content[:-9], content[:40], b"", content[:900] + b"\0" * 9 + content[909:], b"{}"):
        path.write_bytes(bad)
        with refuses(CheckpointError, "x.safetensors.xz", "damaged|empty", "fetch"):
            load(path)
    path.write_bytes(lzma.compress(bytes(2**28 + 9)))  # 39 KB that would fill 256 MB
    with refuses(CheckpointError, "x.safetensors.xz", "damaged"):
        load(path)
