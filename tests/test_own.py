"""A folder of yours: captions, classes and shapes of its pictures, and models trained on it."""

import json

import numpy as np
import pytest
import torch
from helpers import refuses
from PIL import Image, ImageOps

from ddpm_edu.datasets.buckets import buckets
from ddpm_edu.datasets.own import own_pictures, spoken
from ddpm_edu.errors import DataError, OptionError

SCRIPTS = (  # a red cup, or the like
    "a red cup",
    "красная чашка",
    "红色杯子",
    "赤いカップ",
    "빨간 컵",
    "लाल कप",
    "كوب أحمر",
    "כוס אדומה",
    "κόκκινο φλιτζάνι",
    "ถ้วยสีแดง",
)


def picture(path, seed=0, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(numbers)
    image.save(path)
    return image


def metadata(folder, *rows):
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("red_apple_02", "red apple"),
        ("red apple (2)", "red apple"),
        ("red-apple - Copy (3)", "red-apple"),
        ("red-apple", "red apple"),
        ("t-shirt_red", "t-shirt red"),
        ("0007_cat", "cat"),
        ("3 cats", "3 cats"),
        ("IMG_20410101", ""),
        ("DSC00012", ""),
        ("photo", ""),
        ("photographer", "photographer"),
        ("41", ""),
        ("9f8e7d6c5b", ""),
        ("العربية_١", "العربية"),
        ("e\u0301te\u0301_3", "été"),
    ],
)
def test_what_a_file_name_says(name, says):
    assert spoken(name) == says


def test_captions_in_ten_scripts_three_ways(tmp_path):
    for k, text in enumerate(SCRIPTS):
        picture(tmp_path / "names" / f"{text.replace(' ', '_')}_{k}.png", k)
        picture(tmp_path / "txt" / f"{k:02}.png", k)
        code = ("utf-8", "utf-8-sig", "utf-16")[k % 3]
        (tmp_path / "txt" / f"{k:02}.txt").write_text(text + " \n", encoding=code)
        picture(tmp_path / "rows" / "below" / f"{k:02}.png", k)
    rows = ({"file_name": f"below/{k:02}.png", "text": t} for k, t in enumerate(SCRIPTS))
    metadata(tmp_path / "rows", *rows)
    for folder, source in (("names", "names"), ("txt", "txt"), ("rows", "metadata")):
        own = own_pictures(tmp_path / folder, 8)
        assert own.source == source and sorted(own.captions) == sorted(SCRIPTS)
        k = own.captions.index("红色杯子")
        x_0, captions = own[[k]]
        same = own_pictures(tmp_path / "txt", 8)[[2]][0]
        assert captions == ["红色杯子"] and torch.equal(x_0, same)


def test_sub_folders_are_classes_and_their_captions(tmp_path):
    for k, name in enumerate(("cats", "2 dogs", "cats", "cats")):
        picture(tmp_path / name / f"{k}.png", k)
    own = own_pictures(tmp_path, 8)
    assert own.source == "folders" and own.names == ("2 dogs", "cats")
    assert own.captions == ("2 dogs", "cats", "cats", "cats")
    x_0, cond = own.classes()[torch.tensor([1, 0])]
    assert cond.vector.tolist() == [[0, 1], [1, 0]] and torch.equal(x_0, own[[1, 0]][0])
    picture(tmp_path / "loose.png")
    with refuses(DataError, "loose.png", "sub-folders"):
        own_pictures(tmp_path, 8)
    assert own_pictures(tmp_path, 8, captions="names", default="a pet").labels is None


def test_names_that_say_nothing_are_no_captions(tmp_path):
    for k in range(3):
        picture(tmp_path / f"IMG_{k}.png", k)
    own = own_pictures(tmp_path, 8, default="a photo of a sks dog")
    assert own.source == "none" and own[:][1] == ["a photo of a sks dog"] * 3
    for asked in ("names", "txt", "metadata", "folders"):
        with refuses(DataError, asked, "metadata.jsonl", "cup.txt", "red_cup.png"):
            own_pictures(tmp_path, 8, captions=asked)
    (tmp_path / "IMG_1.txt").write_text("a cat")
    with pytest.warns(UserWarning, match="2 of 3 pictures have no caption .*IMG_0.png"):
        assert own_pictures(tmp_path, 8).captions == ("", "a cat", "")


def test_refused(tmp_path):
    with refuses(DataError, "holds no pictures"):
        own_pictures(tmp_path)
    picture(tmp_path / "a cat.png")
    with refuses(OptionError, "captions"):
        own_pictures(tmp_path, captions="title")
    for row in (
        '{"file_name": "a cat.png"}',
        "[]",
        '{"file_name": 1, "text": "x"}',
        "{",
        "[" * 9999,
    ):
        (tmp_path / "metadata.jsonl").write_text(f"\n{row}\n")
        with refuses(DataError, "metadata.jsonl, line 2"):
            own_pictures(tmp_path)
    metadata(
        tmp_path, {"file_name": "a dog.png", "text": "x"}, {"file_name": "a cat.png", "text": "y"}
    )
    with pytest.warns(UserWarning, match="not there, such as a dog.png"):
        assert own_pictures(tmp_path).captions == ("y",)
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "a cat.txt").write_bytes(b"\xe4\xf6\xfc")
    with refuses(DataError, "a cat.txt", "UTF-8"):
        own_pictures(tmp_path)
    (tmp_path / "a cat.txt").unlink()
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    with pytest.warns(UserWarning, match="1 of 2 pictures cannot be read .*broken.jpg"):
        assert len(own_pictures(tmp_path)) == 1
    with refuses(DataError, "broken.jpg"):
        own_pictures(tmp_path, skip=False)
    (tmp_path / "a cat.png").unlink()
    with refuses(DataError, "1 of 1", "broken.jpg"):
        own_pictures(tmp_path)


def test_each_picture_in_its_bucket_upright_and_cut_around_the_middle(tmp_path):
    sides = [(40, 30), (64, 64), (30, 60), (60, 30), (64, 60)]  # width, height
    images = [picture(tmp_path / f"{k}.png", k, size) for k, size in enumerate(sides)]
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    images[3].save(tmp_path / "3.png", exif=exif)
    images[3] = images[3].transpose(Image.Transpose.ROTATE_270)
    shapes = buckets(32, 8, 2)
    own = own_pictures(tmp_path, 32, shapes=shapes)
    assert [own.shapes[k] for k in own.bucket] == [(24, 40), (32, 32), (40, 24), (40, 24), (32, 32)]
    for k, image in enumerate(images):
        h, w = own.shapes[own.bucket[k]]
        fitted = ImageOps.fit(image, (w, h), Image.Resampling.BICUBIC)
        expected = torch.from_numpy(np.array(fitted)).permute(2, 0, 1) / 127.5 - 1
        torch.testing.assert_close(own[[k]][0][0], expected, atol=1e-6, rtol=0)
    assert own.where([3])[0] == ((60, 30), (4, 0), (40, 24))  # of 48 x 24
    with refuses(DataError, "buckets"):
        own[[0, 1]]
    fewer = own_pictures(tmp_path, 32, shapes=shapes, least=2)  # one alone goes to a neighbour
    assert min(fewer.bucket.bincount()) >= 2 and len(fewer.shapes) == 2
    more = fewer.repeated(7)
    order = more.order(7, torch.Generator())
    assert all(len(set(more.bucket[b].tolist())) == 1 for b in order.split(7))
    assert set(more.files[k] for k in order.tolist()) == set(own.files)
