"""data.py: what it reads is what was published, and what is wrong with a file or an array is said plainly."""

import gzip
import hashlib
import io
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_edu.datasets import images as data
from ddpm_edu.datasets.images import ImageDataset
from ddpm_edu.errors import DataError, OptionError, ShapeError


@pytest.fixture
def offline(monkeypatch):
    """Every attempt to reach the network fails at once."""

    def refuse(*args, **kwargs):
        raise OSError("the network is unreachable (test)")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def mnist_copy(tmp_path, monkeypatch):
    """A private copy of the MNIST files that a test may damage."""
    folder = shutil.copytree(data.data_folder() / "mnist", tmp_path / "mnist")
    monkeypatch.setenv("DDPM_EDU_DATA", str(tmp_path))
    return folder


# ---------------------------------------------------------------- MNIST


def test_mnist_is_whole():
    train, test = data.mnist(), data.mnist("test")
    assert train.images.shape == (60000, 1, 28, 28) and test.images.shape == (10000, 1, 28, 28)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.long
    assert train.labels.bincount().tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]  # the published counts
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_mnist_pictures_show_their_labels():
    """The mean picture of a class is nearest to the test pictures of that class: rows, columns and labels are in place."""
    train, test = data.mnist(), data.mnist("test").subset(1000)
    means = torch.stack([train.images[train.labels == k].float().mean(0) for k in range(10)])
    nearest = torch.cdist(test.images.float().flatten(1), means.flatten(1)).argmin(1)
    assert (
        nearest == test.labels
    ).float().mean() > 0.75  # a nearest-mean classifier reaches about 0.8


def test_mnist_agrees_with_torchvision(tmp_path):
    from torchvision.datasets import MNIST

    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in data.MNIST_MD5:
        (raw / name).write_bytes(
            gzip.decompress((data.data_folder() / "mnist" / f"{name}.gz").read_bytes())
        )
    theirs, ours = MNIST(tmp_path, train=False), data.mnist("test")
    assert torch.equal(theirs.data, ours.images[:, 0]) and torch.equal(theirs.targets, ours.labels)


def test_mnist_takes_at_most_12_MB():
    assert sum(f.stat().st_size for f in (data.data_folder() / "mnist").iterdir()) <= 12e6


def test_mnist_loads_quickly():
    def once():
        started = time.process_time()
        data.mnist()
        return time.process_time() - started

    assert min(once() for _ in range(3)) < 1.2  # processor time; 0.3 s on a quiet machine


def test_unknown_split():
    for load in (data.mnist, data.cifar10):
        with pytest.raises(OptionError, match="'valid' is not known: choose 'train' or 'test'"):
            load("valid")


NAME = "t10k-images-idx3-ubyte"


def test_mnist_missing(mnist_copy):
    (mnist_copy / f"{NAME}.gz").unlink()
    with pytest.raises(DataError, match=rf"{NAME}.gz is missing: restore it with .* DDPM_EDU_DATA"):
        data.mnist("test")
    assert len(data.mnist("train")) == 60000  # the other files are still good


def test_mnist_gzip_cut_short(mnist_copy):
    path = mnist_copy / f"{NAME}.gz"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=f"{NAME}.gz is cut short: restore"):
        data.mnist("test")


@pytest.mark.parametrize("where", [0, 5000])
def test_mnist_gzip_corrupted(mnist_copy, where):
    path = mnist_copy / f"{NAME}.gz"
    raw = bytearray(path.read_bytes())
    raw[where : where + 50] = bytes(50)
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"{NAME}.gz cannot be read .*: restore"):
        data.mnist("test")


def rewrite(path, change):
    raw = bytearray(gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(change(raw), 1))


def flip_one_bit(raw):
    raw[-1] ^= 1
    return raw


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda raw: raw[:-784],
            "is cut short .its header promises 7840000 numbers, it holds 7839216",
        ),
        (lambda raw: raw[:10], "is cut short"),
        (lambda raw: b"", "is not an idx file of 3 axes .it starts with nothing"),
        (
            lambda raw: struct.pack(">I", 2049) + raw[4:],
            "is not an idx file of 3 axes .it starts with 00000801",
        ),
        (lambda raw: b"<html>" + raw, "is not an idx file"),
        (
            flip_one_bit,
            "has the wrong content .md5 [0-9a-f]{32}, official 2646ac647ad5339dbf082846283269ea",
        ),
    ],
)
def test_mnist_altered(mnist_copy, change, message):
    rewrite(mnist_copy / f"{NAME}.gz", change)
    with pytest.raises(DataError, match=f"{NAME}.gz {message}.*: restore it with"):
        data.mnist("test")


def test_mnist_compressed_differently_is_welcome(mnist_copy):
    rewrite(mnist_copy / f"{NAME}.gz", bytes)
    assert len(data.mnist("test")) == 10000


def test_importing_reads_and_fetches_nothing():
    code = (
        "import sys; opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append((event, str(args[0]))) if event in ('open', 'socket.connect', 'socket.getaddrinfo') else None)\n"
        "import ddpm_edu.datasets.images, ddpm_edu.metrics.frechet\n"
        "bad = [e for e in opened if e[0] != 'open' or e[1].endswith(('.gz', '.npz', '.safetensors'))]\n"
        "assert not bad, bad\n"
        "assert any(e[0] == 'open' for e in opened)"
    )  # the hook did hear something
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- CIFAR-10


def test_cifar10_absent(tmp_path, monkeypatch, offline):
    monkeypatch.setenv("DDPM_EDU_CIFAR10", str(tmp_path))
    with pytest.raises(DataError) as error:
        data.cifar10()
    for part in (str(tmp_path), "cifar10(download=True)", "DDPM_EDU_CIFAR10"):
        assert part in str(error.value)


def test_cifar10_offline(tmp_path, offline):
    with pytest.raises(
        DataError, match="could not be downloaded to .*unreachable.*DDPM_EDU_CIFAR10"
    ):
        data.cifar10(root=tmp_path, download=True)


def test_cifar10_default_folder_is_in_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("DDPM_EDU_CIFAR10", raising=False)
    monkeypatch.setenv("DDPM_EDU_DATA", str(tmp_path))
    with pytest.raises(DataError, match=str(tmp_path / "cifar10")):
        data.cifar10()


class Payload:
    """Unpickling this leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def fake_cifar10(folder, monkeypatch):
    """Small batches in the official layout, with torchvision told their sums."""
    from torchvision.datasets import CIFAR10

    batches = folder / "cifar-10-batches-py"
    batches.mkdir()

    def write(name, content):
        (batches / name).write_bytes(raw := pickle.dumps(content))
        return [name, hashlib.md5(raw).hexdigest()]

    rng = np.random.default_rng(0)
    batch = lambda n: {
        "data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
        "labels": rng.integers(0, 10, n).tolist(),
    }
    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}", batch(4)) for i in (1, 2)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(3))])
    name, md5 = write("batches.meta", {"label_names": list(data.CIFAR10_CLASSES)})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})
    return batches


def test_cifar10_reads_the_official_layout(tmp_path, monkeypatch):
    batches = fake_cifar10(tmp_path, monkeypatch)
    dataset = data.cifar10("test", root=tmp_path)
    raw = pickle.loads((batches / "test_batch").read_bytes())
    assert dataset.images.shape == (3, 3, 32, 32) and dataset.labels.tolist() == raw["labels"]
    assert torch.equal(
        dataset.images.flatten(1), torch.from_numpy(raw["data"])
    )  # a row is 1024 reds, greens, blues
    assert len(data.cifar10("train", root=tmp_path)) == 8


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_2", "test_batch", "batches.meta"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_tampered_is_never_unpickled(tmp_path, monkeypatch, offline, name, split):
    batches = fake_cifar10(tmp_path, monkeypatch)
    mark = tmp_path / "the payload ran"
    (batches / name).write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(DataError, match="CIFAR-10 is not in .*damaged"):
        data.cifar10(split, root=tmp_path)
    assert not mark.exists()
    pickle.loads((batches / name).read_bytes()).close()
    assert mark.exists()  # the payload is a live one


def write_jpegs(folder, pictures, **change):
    """A cifar10_jpeg.npz of (N, 3, 32, 32) pictures."""
    files = [io.BytesIO() for _ in pictures]
    for picture, file in zip(pictures, files):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=95)
    files = [file.getvalue() for file in files]
    arrays = {
        "test_jpeg": np.frombuffer(b"".join(files), np.uint8),
        "test_label": np.arange(len(files), dtype=np.uint8) % 10,
        "test_offset": np.cumsum([0] + [len(f) for f in files]),
    }
    np.savez(
        folder / "cifar10_jpeg.npz", **{k: v for k, v in (arrays | change).items() if v is not None}
    )


@pytest.fixture
def pictures():
    """Smooth pictures, which JPEG keeps nearly as they are."""
    ramp = torch.linspace(0, 255, 32)
    return torch.stack(
        [
            torch.stack(
                [ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.full((32, 32), 30.0 * k)]
            )
            for k in range(5)
        ]
    ).to(torch.uint8)


def test_cifar10_jpeg_folder(tmp_path, monkeypatch, pictures):
    write_jpegs(tmp_path, pictures)
    monkeypatch.setenv("DDPM_EDU_CIFAR10", str(tmp_path))
    dataset = data.cifar10("test")
    assert dataset.images.shape == (5, 3, 32, 32) and dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert (dataset.images.float() - pictures.float()).abs().max() < 12


@pytest.mark.parametrize(
    "change",
    [
        dict(test_jpeg=None),
        dict(test_label=None),
        dict(test_jpeg=np.zeros(5000, np.uint8)),
        dict(test_offset=np.array([0, 10, 20, 30, 40, 50])),
        dict(
            test_label=np.array([1, 2, 3, None, 5], dtype=object)
        ),  # numpy would have to unpickle it
    ],
)
def test_cifar10_jpeg_damaged(tmp_path, pictures, change):
    write_jpegs(tmp_path, pictures, **change)
    with pytest.raises(DataError, match="cifar10_jpeg.npz is damaged"):
        data.cifar10("test", root=tmp_path)


def test_cifar10_jpeg_that_is_a_pickle(tmp_path):
    mark = tmp_path / "the payload ran"
    (tmp_path / "cifar10_jpeg.npz").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(DataError, match="cifar10_jpeg.npz is damaged"):
        data.cifar10("test", root=tmp_path)
    assert not mark.exists()


# ---------------------------------------------------------------- ImageDataset


@pytest.fixture
def small():
    images = torch.arange(6 * 3 * 2 * 2).reshape(6, 3, 2, 2).to(torch.uint8)
    return ImageDataset(images, torch.tensor([2, 0, 1, 2, 0, 1]), classes=3)


def test_indexing_gives_pictures_and_condition(small):
    x_0, cond = small[torch.tensor([3, 0])]
    assert x_0.dtype == torch.float32 and x_0.shape == (2, 3, 2, 2)
    assert torch.allclose(x_0, small.images[[3, 0]].float() / 127.5 - 1)
    assert cond.vector.tolist() == [[0, 0, 1], [0, 0, 1]] and cond.context is None
    assert (
        small[[3, 0]][0].equal(x_0) and small[3][0].equal(x_0[:1]) and small[3:4][0].equal(x_0[:1])
    )
    with pytest.raises(IndexError):
        small[6]


def test_float_pictures_stay_as_they_are():
    images = torch.rand(4, 1, 2, 2, dtype=torch.float64) * 2 - 1
    x_0, _ = ImageDataset(images, torch.zeros(4, dtype=torch.int32))[torch.arange(4)]
    assert x_0.equal(images.float())


def test_subsets(small):
    assert len(small) == 6 and small.subset(2).labels.tolist() == [2, 0]
    assert small.subset(torch.tensor([5, 0])).images.equal(small.images[[5, 0]])
    first, rest = small.split(4)
    assert torch.cat([first.images, rest.images]).equal(small.images) and rest.labels.tolist() == [
        0,
        1,
    ]
    assert small.per_class(2).labels.tolist() == [0, 0, 1, 1, 2, 2] and small.per_class(
        1
    ).images.equal(small.images[[1, 2, 0]])
    for wrong in (
        lambda: small.subset(7),
        lambda: small.subset(0),
        lambda: small.split(6),
        lambda: small.per_class(3),
        lambda: small.per_class(0),
    ):
        with pytest.raises(OptionError, match="choose 1 to "):
            wrong()


ZEROS = torch.zeros(3, dtype=torch.long)
BYTES = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    "images, labels, error, message",
    [
        (BYTES[:0], ZEROS[:0], DataError, "the dataset is empty"),
        (BYTES[:, 0], ZEROS, ShapeError, r"must be \(N, C, H, W\)"),
        (
            BYTES.float() + 1.5,
            ZEROS,
            DataError,
            r"run from 1.5 to 1.5: floats must lie in \[-1, 1\]",
        ),
        (BYTES.float() + 255, ZEROS, DataError, "bytes must be uint8"),
        (BYTES.float() - 1.01, ZEROS, DataError, "run from -1.01 to -1.01"),
        (BYTES.float() + float("nan"), ZEROS, DataError, "run from nan"),
        (BYTES.long(), ZEROS, DataError, "type torch.int64: pass uint8"),
        (BYTES, ZEROS[:2], ShapeError, r"shape \(2,\): 3 pictures need labels of shape \(3,\)"),
        (BYTES, ZEROS[:, None], ShapeError, r"shape \(3, 1\)"),
        (BYTES, ZEROS + 10, DataError, "from 10 to 10: with classes = 10 they must lie in 0..9"),
        (BYTES, ZEROS - 1, DataError, "from -1 to -1"),
        (BYTES, ZEROS.float(), DataError, "whole numbers"),
    ],
)
def test_wrong_datasets(images, labels, error, message):
    with pytest.raises(error, match=message):
        ImageDataset(images, labels)


def test_bytes_and_floats():
    every = torch.arange(256).to(torch.uint8)
    x = data.from_uint8(every)
    assert (
        x.dtype == torch.float32
        and x[0] == -1
        and x[-1] == 1
        and torch.allclose(x.diff(), torch.tensor(2 / 255))
    )
    assert data.to_uint8(x).equal(every)
    assert data.to_uint8(torch.tensor([-1.3, 1.2, 0.0])).tolist() == [0, 255, 128]
    with pytest.raises(DataError, match="NaN"):
        data.to_uint8(torch.tensor([0.0, float("nan")]))
    with pytest.raises(DataError, match="takes floats"):
        data.to_uint8(every)
    with pytest.raises(DataError, match="takes uint8"):
        data.from_uint8(x)


# ---------------------------------------------------------------- 2-D toys

TOYS = [data.swiss_roll, data.two_moons, data.gaussian_mixture]


@pytest.mark.parametrize("toy", TOYS)
def test_toys_are_centred_of_unit_scale_and_seeded(toy):
    points = toy(200_000, seed=1)
    assert points.shape == (200_000, 2) and points.dtype == torch.float32
    assert points.mean(0).abs().max() < 0.01
    assert points.square().mean().item() == pytest.approx(1, abs=0.02)
    assert toy(50, seed=3).equal(toy(50, seed=3)) and not toy(50, seed=3).equal(toy(50, seed=4))
    before = torch.random.get_rng_state()
    toy(5)
    assert torch.random.get_rng_state().equal(before)
    with pytest.raises(OptionError, match="n = 0"):
        toy(0)


def test_swiss_roll_lies_on_its_spiral():
    scale = ((9.75 * np.pi**2 - 4 - (2 / (3 * np.pi)) ** 2) / 2) ** 0.5
    x, y = (data.swiss_roll(2000, noise=0).double() * scale + torch.tensor([2, 2 / (3 * np.pi)])).T
    r = torch.hypot(x, y)
    assert r.min() > 1.5 * np.pi - 1e-3 and r.max() < 4.5 * np.pi + 1e-3
    assert torch.allclose(torch.stack([r.cos(), r.sin()]) * r, torch.stack([x, y]), atol=1e-3)


def test_gaussian_mixture_is_the_stated_law():
    points = data.gaussian_mixture(80_000, modes=8, std=0.1).double()
    angle = 2 * np.pi / 8 * torch.arange(8)
    means = (2 * 0.99) ** 0.5 * torch.stack([angle.cos(), angle.sin()], 1).double()
    distance, nearest = torch.cdist(points, means).min(1)
    assert nearest.bincount(minlength=8).float().div(10_000).sub(1).abs().max() < 0.05
    assert distance.square().mean().item() == pytest.approx(2 * 0.1**2, rel=0.02)
