"""Datasets: what is read is what was published, and what is wrong is said plainly."""

import contextlib
import gzip
import hashlib
import http.server
import io
import lzma
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ddpm_edu.datasets import images as data
from ddpm_edu.datasets.images import ImageDataset, folder
from ddpm_edu.datasets.points import gaussian_mixture, swiss_roll
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
    """The mean picture of a class is nearest to the test pictures of that class: rows, columns and
    labels are in place."""
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
            lzma.decompress((data.data_folder() / "mnist" / f"{name}.xz").read_bytes())
        )
    theirs, ours = MNIST(tmp_path, train=False), data.mnist("test")
    assert torch.equal(theirs.data, ours.images[:, 0]) and torch.equal(theirs.targets, ours.labels)


def test_mnist_takes_at_most_10_MB():
    assert sum(f.stat().st_size for f in (data.data_folder() / "mnist").iterdir()) <= 10e6


def test_mnist_loads_quickly():
    def once():
        started = time.process_time()
        data.mnist()
        return time.process_time() - started

    assert min(once() for _ in range(3)) < 1.2  # processor time; 0.7 s on a quiet machine


def test_unknown_split():
    for load in (data.mnist, data.cifar10):
        with pytest.raises(OptionError, match="split = 'valid' is not known"):
            load("valid")


NAME = "t10k-images-idx3-ubyte"


def test_mnist_missing(mnist_copy):
    (mnist_copy / f"{NAME}.xz").unlink()
    with pytest.raises(DataError, match=rf"{NAME}.xz is missing: restore it with .* DDPM_EDU_DATA"):
        data.mnist("test")
    assert len(data.mnist("train")) == 60000  # the other files are still good


def official(folder, kind):
    """The test digits in this folder as .xz, as they ship, or as .gz, as they were published."""
    path = folder / f"{NAME}.xz"
    if kind == "gz":
        (folder / f"{NAME}.gz").write_bytes(gzip.compress(lzma.decompress(path.read_bytes())))
        path.unlink()
    return folder / f"{NAME}.{kind}"


@pytest.mark.parametrize("kind", ["xz", "gz"])
@pytest.mark.parametrize("left", [0.9, 0])
def test_mnist_cut_short(mnist_copy, kind, left):
    path = official(mnist_copy, kind)
    raw = path.read_bytes()
    path.write_bytes(raw[: max(10, round(left * len(raw)))])
    with pytest.raises(DataError, match=f"{NAME}.{kind} is cut short: restore"):
        data.mnist("test")


@pytest.mark.parametrize("kind", ["xz", "gz"])
@pytest.mark.parametrize("where", [0, 5000])
def test_mnist_corrupted(mnist_copy, where, kind):
    path = official(mnist_copy, kind)
    raw = bytearray(path.read_bytes())
    raw[where : where + 50] = bytes(50)
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"{NAME}.{kind} cannot be read .*: restore"):
        data.mnist("test")


def rewrite(path, change):
    raw = bytearray(lzma.decompress(path.read_bytes()))
    path.write_bytes(lzma.compress(change(raw), preset=0))


def flip_one_bit(raw):
    raw[-1] ^= 1
    return raw


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda raw: raw[:-784], "7,839,232 bytes"),
        (lambda raw: raw[:10], "10 bytes"),
        (lambda raw: b"", "0 bytes"),
        (lambda raw: struct.pack(">I", 2049) + raw[4:], "7,840,016 bytes"),
        (lambda raw: b"<html>" + raw, "7,840,022 bytes"),
        (flip_one_bit, "7,840,016 bytes, md5 [0-9a-f]{32}, official 2646ac647ad5339dbf0828462832"),
    ],
)
def test_mnist_altered(mnist_copy, change, message):
    rewrite(mnist_copy / f"{NAME}.xz", change)
    with pytest.raises(
        DataError, match=f"{NAME}.xz has the wrong content .{message}.*: restore it"
    ):
        data.mnist("test")


def test_mnist_compressed_differently_is_welcome(mnist_copy):
    rewrite(mnist_copy / f"{NAME}.xz", bytes)
    assert len(data.mnist("test")) == 10000


def test_mnist_as_published_is_welcome(mnist_copy, monkeypatch):
    """A .gz goes before the .xz, and needs no lzma, which a few Pythons lack."""
    monkeypatch.setitem(sys.modules, "lzma", None)
    with pytest.raises(DataError, match=f"{NAME}.xz needs lzma.*.gz in its place"):
        data.mnist("test")
    monkeypatch.undo()
    monkeypatch.setenv("DDPM_EDU_DATA", str(mnist_copy.parent))
    for name in (NAME, "t10k-labels-idx1-ubyte"):
        raw = lzma.decompress((mnist_copy / f"{name}.xz").read_bytes())
        (mnist_copy / f"{name}.gz").write_bytes(gzip.compress(raw, 1))
    monkeypatch.setitem(sys.modules, "lzma", None)
    assert len(data.mnist("test")) == 10000


def test_importing_reads_and_fetches_nothing():
    code = (
        "import sys; opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append((event, str(args[0]))) if "
        "event in ('open', 'socket.connect', 'socket.getaddrinfo') else None)\n"
        "import ddpm_edu.datasets.images, ddpm_edu.metrics.frechet\n"
        "bad = [e for e in opened if e[0] != 'open' or e[1].endswith(('.gz', '.xz', '.npz', "
        "'.safetensors'))]\n"
        "assert not bad, bad\n"
        "assert any(e[0] == 'open' for e in opened)"
    )  # the hook did hear something
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- CIFAR-10


def test_cifar10_absent(tmp_path, monkeypatch, offline):
    monkeypatch.setenv("DDPM_EDU_CIFAR10", str(tmp_path))
    with pytest.raises(DataError) as error:
        data.cifar10()
    for part in (
        str(tmp_path),
        "cifar10(download=True)",
        "DDPM_EDU_CIFAR10",
        "mnist",
        "painted_digits",
    ):
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


def archive_of(batches):
    """The tar.gz of the batches, as its publisher packs it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.add(batches, batches.name)
    return out.getvalue()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server of this machine in place of the publisher's: site.answer(handler, archive)
    answers."""
    from torchvision.datasets import CIFAR10

    source = tmp_path / "source"
    source.mkdir()
    archive = archive_of(fake_cifar10(source, monkeypatch))

    class Site:
        asked = 0
        answer = staticmethod(lambda handler, archive: whole_answer(handler, archive))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            Site.asked += 1
            Site.answer(self, archive)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar.tar.gz")
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield Site
        server.shutdown()


def whole_answer(handler, body, promised=None, status=200):
    handler.send_response(status)
    handler.send_header("Content-Length", str(promised or len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def left_in(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


WHOLE = ["batches.meta", "data_batch_1", "data_batch_2", "test_batch"]


def test_cifar10_download(site, tmp_path):
    dataset = data.cifar10("test", tmp_path / "a", download=True)
    assert len(dataset) == 3 and dataset.names == data.CIFAR10_CLASSES and site.asked == 1
    assert left_in(tmp_path / "a") == WHOLE
    data.cifar10("train", tmp_path / "a", download=True)
    assert site.asked == 1
    (tmp_path / "a" / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"damaged")
    assert len(data.cifar10("train", tmp_path / "a", download=True)) == 8 and site.asked == 2


def drip(handler, archive):
    handler.send_response(200)
    handler.end_headers()
    with contextlib.suppress(OSError):
        for k in range(100):
            handler.wfile.write(archive[k : k + 1])
            time.sleep(0.1)


@pytest.mark.parametrize(
    "answer, cause",
    [
        (lambda h, a: whole_answer(h, b"<html>please log in</html>"), "md5"),
        (lambda h, a: whole_answer(h, a[:-100]), "md5"),
        (lambda h, a: whole_answer(h, a[:500], promised=len(a)), "md5"),
        (lambda h, a: whole_answer(h, a + b"x"), "md5"),
        (lambda h, a: whole_answer(h, b"gone", status=404), "404"),
        (lambda h, a: h.connection.close(), "[Rr]emote|reset|closed"),
        (lambda h, a: time.sleep(3), "timed out"),
        (drip, "not done after 1"),
    ],
    ids="page short broken longer missing closed silent drip".split(),
)
def test_cifar10_download_that_fails(site, tmp_path, monkeypatch, answer, cause):
    monkeypatch.setattr(data, "STALL", 1)
    monkeypatch.setattr(data, "LONGEST", 1)
    site.answer, started = staticmethod(answer), time.monotonic()
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "cifar-10-python.tar.gz").write_bytes(b"left by an earlier run")
    with pytest.raises(DataError, match=f"could not be downloaded to .*{cause}.*painted_digits"):
        data.cifar10(root=folder, download=True)
    assert left_in(folder) == [] and time.monotonic() - started < 2.8
    site.answer = staticmethod(whole_answer)
    assert len(data.cifar10(root=folder, download=True)) == 8


def test_cifar10_two_at_once_fetch_once(site, tmp_path):
    def slowly(handler, archive):
        time.sleep(0.5)
        whole_answer(handler, archive)

    site.answer = staticmethod(slowly)
    with ThreadPoolExecutor() as pool:  # the lock holds between threads as between processes
        both = list(pool.map(lambda _: data.cifar10(root=tmp_path / "a", download=True), range(2)))
    assert [len(d) for d in both] == [8, 8] and site.asked == 1
    assert left_in(tmp_path / "a") == WHOLE


def test_cifar10_archive_that_lies_there(site, tmp_path, offline):
    """Fetched by other means: no network is needed, and the file stays."""
    (tmp_path / "a").mkdir()
    archive = tmp_path / "a" / "cifar-10-python.tar.gz"
    archive.write_bytes(archive_of(tmp_path / "source" / "cifar-10-batches-py"))
    from torchvision.datasets import CIFAR10

    CIFAR10.tgz_md5 = hashlib.md5(archive.read_bytes()).hexdigest()  # the fixture sets it back
    assert len(data.cifar10(root=tmp_path / "a", download=True)) == 8 and archive.exists()


def test_cifar10_from_pictures(tmp_path):
    for split in ("train", "test"):
        for k, name in enumerate(data.CIFAR10_CLASSES):
            (tmp_path / split / name).mkdir(parents=True)
            save(np.full((32, 32, 3), 20 * k), tmp_path / split / name / "0.png")
    dataset = data.cifar10("test", tmp_path)
    assert dataset.labels.tolist() == list(range(10)) and dataset.names == data.CIFAR10_CLASSES
    assert dataset.images[:, 0, 0, 0].tolist() == [20 * k for k in range(10)]
    shutil.rmtree(tmp_path / "train" / "cat")
    with pytest.raises(DataError, match="train has the classes"):
        data.cifar10("train", tmp_path)


# ---------------------------------------------------------------- a folder of pictures


def save(array, path, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array).astype(np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def quarters(h=40, w=40):
    """Red, green; blue, yellow."""
    x = np.zeros((h, w, 3), np.uint8)
    x[: h // 2, : w // 2] = 255, 0, 0
    x[: h // 2, w // 2 :] = 0, 255, 0
    x[h // 2 :, : w // 2] = 0, 0, 255
    x[h // 2 :, w // 2 :] = 255, 255, 0
    return x


def corners(picture):
    """The colours of the four quarters' centres of (3, H, W)."""
    h, w = picture.shape[1:]
    return [
        tuple(picture[:, y, x].tolist()) for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)
    ]


RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def near(found, wanted, tolerance=12):
    assert np.abs(np.array(found) - np.array(wanted)).max() <= tolerance, (found, wanted)


@pytest.mark.parametrize(
    "name, mode, options",
    [
        ("x.png", "RGB", {}),
        ("x.png", "P", {}),
        ("x.png", "RGBA", {}),
        ("x.jpg", "RGB", dict(quality=95, subsampling=0)),
        ("x.jpg", "CMYK", dict(quality=95)),
        ("X.JPEG", "YCbCr", dict(quality=95, subsampling=0)),
        ("x.gif", "P", {}),
        ("x.bmp", "RGB", {}),
        ("x.webp", "RGB", dict(lossless=True)),
        ("x.tif", "CMYK", {}),
        ("x.tiff", "RGBA", dict(compression="tiff_lzw")),
        ("x.ppm", "RGB", {}),
        ("x.tga", "RGBA", {}),
        ("png under a wrong name.jpg", "RGB", dict(format="PNG")),
    ],
)
@pytest.mark.parametrize("size", [8, 40, 64])
def test_folder_reads_any_mode_and_size(tmp_path, name, mode, options, size):
    save(quarters(), tmp_path / name, mode, **options)
    dataset = folder(tmp_path, size)
    assert dataset.images.shape == (1, 3, size, size) and dataset.images.dtype == torch.uint8
    near(corners(dataset.images[0]), [RED, GREEN, BLUE, YELLOW])
    x_0, cond = dataset[0]
    assert x_0.min() >= -1 and cond.vector is None
    grey = folder(tmp_path, size, channels=1)
    assert grey.images.shape == (1, 1, size, size)
    near(grey.images[0, 0, size // 4, size // 4].item(), 76)  # 0.299 * 255


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("values", [[0, 30000, 65535], [0, 100, 200]])
def test_folder_reads_16_bits(tmp_path, suffix, values):
    """Pillow's own conversion would clip all above 255."""
    array = np.repeat(np.array(values, np.uint16)[None], 3, 0)
    Image.fromarray(array).save(tmp_path / f"x.{suffix}")
    found = folder(tmp_path, 3, channels=1).images[0, 0, 1].tolist()
    near(found, [round(v / 257) for v in values], 1)


def test_folder_reads_32_bits_where_their_range_is_plain(tmp_path):
    Image.fromarray(np.full((3, 3), 0.5, np.float32)).save(tmp_path / "unit.tif")
    Image.fromarray(np.full((3, 3), 128, np.int32)).save(tmp_path / "whole.tif")
    near(folder(tmp_path, 3).images.flatten().tolist(), 128, 1)
    Image.fromarray(np.full((3, 3), np.nan, np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(DataError, match="nan.tif"):
        folder(tmp_path, 3)


def test_folder_lays_the_transparent_on_white(tmp_path):
    x = np.dstack([quarters(), np.full((40, 40), 255, np.uint8)])
    x[:20, :, 3], x[20:, 20:, 3] = 0, 128
    save(x, tmp_path / "a.png")
    save(x, tmp_path / "b.webp", lossless=True)
    palette = Image.fromarray(quarters()).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "c.png", transparency=palette.getpixel((0, 0)))
    a, b, c = folder(tmp_path, 40).images
    near(corners(a), [(255,) * 3, (255,) * 3, BLUE, (255, 255, 127)], 2)
    near(corners(b), corners(a), 2)
    near(corners(c), [(255,) * 3, GREEN, BLUE, YELLOW], 2)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_folder_turns_pictures_upright(tmp_path, orientation, suffix):
    """Against Pillow's own exif_transpose."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(quarters(60, 40))
    image.save(
        tmp_path / f"x.{suffix}", exif=exif, **(dict(lossless=True) if suffix == "webp" else {})
    )
    right = ImageOps.exif_transpose(Image.open(tmp_path / f"x.{suffix}")).convert("RGB")
    right = np.asarray(ImageOps.fit(right, (16, 16))).transpose(2, 0, 1)
    near(corners(folder(tmp_path, 16).images[0]), corners(torch.tensor(right)), 16)


def test_folder_cuts_or_pads_to_a_square(tmp_path):
    x = np.full((30, 90, 3), 100, np.uint8)
    x[:, :30], x[:, 60:] = (255, 0, 0), (0, 0, 255)
    save(x, tmp_path / "wide.png")
    save(x.transpose(1, 0, 2), tmp_path / "xtall.png")
    cut, padded = folder(tmp_path, 30).images, folder(tmp_path, 30, pad=True).images
    assert (cut == 100).all()  # the middle third only
    wide, tall = padded
    assert (wide[:, :10] == 255).all() and (wide[:, 20:] == 255).all()
    near(wide[:, 15, 2].tolist(), RED), near(wide[:, 15, 27].tolist(), BLUE)
    near(tall[:, 2, 15].tolist(), RED), near(tall[:, 27, 15].tolist(), BLUE)


def test_folder_takes_the_first_frame(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (250, 10, 30)]
    for name in ("x.gif", "x.webp", "x.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    near(folder(tmp_path, 8).images.flatten().tolist(), 250)


def test_folder_of_classes(tmp_path):
    for k, name in enumerate(
        ["dog/b.png", "dog/old/a.png", "cat/z.png", "ant/10.png", "ant/9.png"]
    ):
        save(np.full((4, 4, 3), k), tmp_path / name)
    save(np.zeros((4, 4, 3)), tmp_path / "dog/.hidden.png")
    save(np.zeros((4, 4, 3)), tmp_path / ".cache/x.png")
    (tmp_path / "dog/notes.txt").write_text("about dogs")
    (tmp_path / "empty").mkdir()
    dataset = folder(tmp_path, 4)
    assert dataset.names == ("ant", "cat", "dog") and dataset.classes == 3
    assert dataset.labels.tolist() == [0, 0, 1, 2, 2]
    assert dataset.images[:, 0, 0, 0].tolist() == [3, 4, 2, 0, 1]
    assert dataset[0][1].vector.tolist() == [[1, 0, 0]]
    assert folder(tmp_path, 4).images.equal(dataset.images)
    os.symlink(tmp_path, tmp_path / "dog/circle")
    os.symlink(tmp_path / "cat", tmp_path / "dog/link")  # each place is read once
    assert len(folder(tmp_path, 4)) == 5
    save(np.zeros((4, 4, 3)), tmp_path / "loose.png")
    with pytest.raises(
        DataError, match="1 pictures .loose.png. beside the sub-folders ant, cat, dog"
    ):
        folder(tmp_path, 4)


def test_folder_names_what_cannot_be_read(tmp_path):
    for k in range(8):
        save(quarters(), tmp_path / f"good{k}.png")
    whole = (tmp_path / "good0.png").read_bytes()
    jpeg = save(np.random.default_rng(0).integers(0, 256, (64, 64, 3)), tmp_path / "g.jpg")
    broken = {
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": jpeg.read_bytes()[:1500],
        "empty.jpg": b"",
        "page.png": b"<html>not found</html>",
        "phone.heic": b"\0\0\0\x18ftypheic",
        "noise.gif": b"GIF89a" + bytes(range(256)),
        "bomb.png": png_header(60_000, 60_000),
        "zero.png": png_header(0, 5),
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    os.symlink(tmp_path / "nowhere", tmp_path / "dangling.png")
    os.mkfifo(tmp_path / "pipe.png")  # no picture; to open it would wait for ever
    broken["dangling.png"] = b""
    with pytest.raises(DataError, match="10 of 19 pictures cannot be read") as error:
        folder(tmp_path, 8)
    first = sorted(broken)[:5]
    assert all(name in str(error.value) for name in first) and "skip=True" in str(error.value)
    with pytest.warns(UserWarning, match="10 of 19 .*left out") as caught:
        dataset = folder(tmp_path, 8, skip=True)
    assert len(dataset) == 9 and len(caught) == 1
    for name in ("g.jpg", *(f"good{k}.png" for k in range(8))):
        (tmp_path / name).unlink()
    with pytest.raises(DataError, match="10 of 10"):
        folder(tmp_path, 8, skip=True)


def png_header(w, h):
    """A PNG that promises w x h pixels and holds few."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_folder_reads_hostile_but_whole_pictures(tmp_path):
    save(np.full((1, 1, 3), 77), tmp_path / "a.png")
    save(np.full((1, 30_000, 3), 77), tmp_path / "b.png")  # scaled whole it would take gigabytes
    save(np.full((30_000, 1, 3), 77), tmp_path / "c.png")
    bad = Image.fromarray(np.full((9, 9, 3), 77, np.uint8))
    bad.save(tmp_path / "d.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"junk" * 9, quality=100)
    for pad in (False, True):
        images = folder(tmp_path, 16, pad=pad).images
        assert images.shape == (4, 3, 16, 16)
        near(images[:, :, 7, 7].flatten().tolist(), 77, 3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_folder_survives_any_bytes(tmp_path, suffix):
    """Pictures with some bytes changed or the end cut off: read, or refused by name."""
    path, rng = tmp_path / f"x.{suffix}", np.random.default_rng(0)
    whole = save(rng.integers(0, 256, (24, 30, 3)), path).read_bytes()
    read = refused = 0
    for _ in range(60):
        raw = bytearray(whole)
        for where in rng.integers(0, rng.choice([64, len(raw)]), rng.choice([1, 2, 8])):
            raw[where] = rng.integers(256)
        path.write_bytes(raw[: rng.integers(len(raw))] if rng.random() < 0.2 else raw)
        try:
            assert folder(tmp_path, 16).images.shape == (1, 3, 16, 16)
            read += 1
        except DataError as error:
            assert path.name in str(error)
            refused += 1
    assert refused and (read or suffix == "png")  # PNG has checksums


@pytest.mark.slow
def test_folder_reads_100_megapixels(tmp_path):
    Image.new("L", (10_000, 10_000), 200).save(tmp_path / "x.jpg")
    Image.new("1", (10_000, 10_000), 1).save(tmp_path / "x.png")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own, from 89 megapixels
        images = folder(tmp_path, 32).images
    near(images[:, 0, 5, 5].tolist(), [200, 255])


def test_folder_options(tmp_path):
    save(quarters(), tmp_path / "x.png")
    for options in (
        dict(size=0),
        dict(size=1.5),
        dict(size="8"),
        dict(channels=2),
        dict(size=5000),
    ):
        with pytest.raises(OptionError, match=next(iter(options))):
            folder(tmp_path, **options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").write_text("")
    for path, words in (
        (tmp_path / "nowhere", "nowhere cannot be read"),
        (tmp_path / "x.png", "cannot be read"),
        (tmp_path / "other", "holds no pictures .only readme.txt"),
    ):
        with pytest.raises(DataError, match=words):
            folder(path)


def test_a_system_learns_from_a_folder(tmp_path):
    """The dataset is what `train` takes, with and without classes."""
    from ddpm_edu.networks.unet import UNet, UNetConfig
    from ddpm_edu.schedule import Schedule
    from ddpm_edu.training.train import TrainConfig, train

    for k in range(4):
        save(quarters(), tmp_path / f"{'ab'[k % 2]}/{k}.png")
    for path, vector in ((tmp_path, 2), (tmp_path / "a", 0)):
        plan = dict(channels=16, mult=(1,), depth=(0,), middle=0, heads=(1,), blocks=1, groups=8)
        model = UNet(UNetConfig(3, vector=vector, **plan))
        config = TrainConfig(steps=2, batch_size=2)
        steps = list(train(model, Schedule.cosine(100), folder(path, 8), config))
        assert len(steps) == 2 and np.isfinite(steps[-1].loss)


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
        with pytest.raises(OptionError, match="(which|n) = .* from 1 to "):
            wrong()


ZEROS = torch.zeros(3, dtype=torch.long)
BYTES = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)


def one_wrong(i, value):
    x = torch.full((3, 1, 4, 4), -0.5)
    x[i, 0, 2, 1] = value
    return x


@pytest.mark.parametrize(
    "images, labels, error, message",
    [
        (BYTES[:0], ZEROS[:0], DataError, "images are empty"),
        (BYTES[:, 0], ZEROS, ShapeError, "images have shape"),
        (torch.zeros(3, 8, 8, 3), ZEROS, ShapeError, r"images .*permute\(0, 3, 1, 2\)"),
        (
            BYTES.float() + 1.5,
            ZEROS,
            DataError,
            r"images run from 1.5 to 1.5, first in images\[0\]",
        ),
        (BYTES.float() + 255, ZEROS, DataError, "images run .*from_uint8"),
        (BYTES.float() - 1.01, ZEROS, DataError, "images run from -1.01 to -1.01"),
        (BYTES.float() + float("nan"), ZEROS, DataError, "images run from nan"),
        (one_wrong(2, 1.5), ZEROS, DataError, r"images\[2\]"),
        (one_wrong(1, float("nan")), ZEROS, DataError, r"images\[1\]"),
        (BYTES.long(), ZEROS, DataError, "images have type torch.int64"),
        (BYTES.numpy().astype(object), ZEROS, DataError, "images: a ndarray"),
        ([[1, 2], [3]], ZEROS, DataError, "images: a list"),
        ("digits", ZEROS, DataError, "images: a str"),
        (BYTES, ZEROS[:2], ShapeError, r"labels have shape \(2,\): 3 pictures need \(3,\)"),
        (BYTES, ZEROS[:, None], ShapeError, r"labels have shape \(3, 1\)"),
        (BYTES, ZEROS + 10, DataError, r"labels\[0\] = 10: pass 0..9"),
        (BYTES, torch.tensor([0, 9, 12]), DataError, r"labels\[2\] = 12: pass"),
        (BYTES, ZEROS - 1, DataError, r"labels\[0\] = -1"),
        (BYTES, ZEROS.float(), DataError, "labels have type torch.float32"),
        (BYTES, ["cat", "dog", "cat"], DataError, "labels: a list"),
    ],
)
def test_wrong_datasets(images, labels, error, message):
    with pytest.raises(error, match=message):
        ImageDataset(images, labels)


@pytest.mark.filterwarnings("error")
def test_arrays_and_lists_are_taken():
    images, labels = np.arange(96, dtype=np.uint8).reshape(2, 3, 4, 4), [1, 0]
    right = ImageDataset(torch.from_numpy(images), torch.tensor(labels))
    for given in (
        ImageDataset(images, np.array(labels, np.uint8)),
        ImageDataset(list(images), labels),
        ImageDataset([torch.from_numpy(x) for x in images], tuple(labels)),
        ImageDataset.of([(torch.from_numpy(x), k) for x, k in zip(images, labels)]),
        ImageDataset.of(
            [(Image.fromarray(x.transpose(1, 2, 0)), k) for x, k in zip(images, labels)]
        ),
    ):
        assert given.images.equal(right.images) and given.labels.equal(right.labels)
        assert given[1][0].equal(right[1][0]) and given[1][1].vector.equal(right[1][1].vector)
    x_0, cond = ImageDataset(images)[[0, 1]]
    assert x_0.equal(right[:][0]) and cond.vector is cond.context is None
    with pytest.raises(OptionError, match="per_class"):
        ImageDataset(images).per_class(1)


def test_datasets_of_pairs(tmp_path):
    """torchvision's own digits, and what is no pair, of another size, or straight from ToTensor."""
    from torchvision.datasets import FakeData
    from torchvision.transforms import ToTensor

    fake = FakeData(4, (3, 8, 8), 5)
    dataset = ImageDataset.of(fake, 5)
    assert dataset.images.shape == (4, 3, 8, 8) and dataset.images.dtype == torch.uint8
    assert dataset.labels.tolist() == [int(fake[i][1]) for i in range(4)]
    assert np.array_equal(dataset.images[2].permute(1, 2, 0).numpy(), np.asarray(fake[2][0]))
    with pytest.warns(UserWarning, match=r"images have no number below 0.*2 \* x - 1") as caught:
        ImageDataset.of(FakeData(4, (3, 8, 8), 5, ToTensor()), 5)
    assert caught[0].filename == __file__
    picture = torch.zeros(1, 4, 4, dtype=torch.uint8)
    for pairs, error, name in (
        ([(picture, 0), picture], DataError, r"pairs\[1\] is a Tensor"),
        ([(picture, 0), (picture[:, :3], 0)], ShapeError, r"pairs\[1\] .*\(1, 3, 4\)"),
        ([], DataError, "images|ShapeError"),
    ):
        with pytest.raises((error, ShapeError), match=name):
            ImageDataset.of(pairs)


def test_pictures_in_0_1_are_warned_of_once():
    digits = data.mnist("test").subset(16)
    zero_one = digits.images.float() / 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = ImageDataset(zero_one * 2 - 1, digits.labels)
        ImageDataset(torch.zeros(2, 1, 4, 4))  # one grey
        bright = (zero_one * 2 - 1).flatten(1).mean(1).argmax()
        dataset.subset([int(bright)])
    with pytest.warns(UserWarning, match=r"\[0, 1\] instead of \[-1, 1\]") as caught:
        dataset = ImageDataset(zero_one, digits.labels)
    assert len(caught) == 1 and caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset.subset(4), dataset.split(3), dataset[:]


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
    with pytest.raises(DataError, match="x has type"):
        data.to_uint8(every)
    with pytest.raises(DataError, match="images have type"):
        data.from_uint8(x)


# ---------------------------------------------------------------- points

TOYS = [swiss_roll, gaussian_mixture]


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
    x, y = (swiss_roll(2000, noise=0).double() * scale + torch.tensor([2, 2 / (3 * np.pi)])).T
    r = torch.hypot(x, y)
    assert r.min() > 1.5 * np.pi - 1e-3 and r.max() < 4.5 * np.pi + 1e-3
    assert torch.allclose(torch.stack([r.cos(), r.sin()]) * r, torch.stack([x, y]), atol=1e-3)


def test_gaussian_mixture_is_the_stated_law():
    points = gaussian_mixture(80_000, modes=8, std=0.1).double()
    angle = 2 * np.pi / 8 * torch.arange(8)
    means = (2 * 0.99) ** 0.5 * torch.stack([angle.cos(), angle.sin()], 1).double()
    distance, nearest = torch.cdist(points, means).min(1)
    assert nearest.bincount(minlength=8).float().div(10_000).sub(1).abs().max() < 0.05
    assert distance.square().mean().item() == pytest.approx(2 * 0.1**2, rel=0.02)
