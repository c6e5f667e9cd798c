"""A folder of yours: captions, classes and shapes of its pictures, and models trained on it."""

import json

import numpy as np
import pytest
import torch
from helpers import refuses
from PIL import Image, ImageOps
from torch.nn import functional as F

from ddpm_edu import load
from ddpm_edu.cli import main
from ddpm_edu.datasets.buckets import buckets
from ddpm_edu.datasets.images import folder
from ddpm_edu.datasets.own import own_pictures, spoken
from ddpm_edu.errors import CheckpointError, DataError, OptionError
from ddpm_edu.systems.pipeline import condition
from ddpm_edu.training import own as own_room
from ddpm_edu.training.own import begun, fitted, latents, suited, train_own, train_parts

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
    for place, source in (("names", "names"), ("txt", "txt"), ("rows", "metadata")):
        own = own_pictures(tmp_path / place, 8)
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
    assert own.labels.tolist() == [0, 1, 1, 1] and own.at(torch.tensor([3, 0, 3])).captions == (
        "cats",
        "2 dogs",
        "cats",
    )
    picture(tmp_path / "loose.png")
    with refuses(DataError, "loose.png", "sub-folders"):
        own_pictures(tmp_path, 8)
    assert own_pictures(tmp_path, 8, captions="names", default="a pet").labels is None


def test_classes_that_sound_alike_keep_the_names_of_their_folders(tmp_path):
    for k, name in enumerate(("cat_1", "cat_2", "dog_1")):
        picture(tmp_path / name / f"{k}.png", k)
    assert own_pictures(tmp_path, 8).names == ("cat_1", "cat_2", "dog")


def test_captions_hold_no_control_characters_and_no_broken_rows(tmp_path):
    for k in range(3):
        picture(tmp_path / f"{k}.png", k)
    texts = ("a\u2028b", "\x1b[31mred\x07 cup", "half \ud800 a pair")
    rows = ('{"file_name": "%d.png", "text": "%s"}' % (k, t) for k, t in enumerate(texts))
    written = "\n".join(rows).replace("\x1b", "\\u001b").replace("\x07", "\\u0007")
    (tmp_path / "metadata.jsonl").write_bytes(written.replace("\ud800", "\\ud800").encode())
    assert own_pictures(tmp_path, 8).captions == ("a b", "[31mred cup", "half a pair")


def test_a_text_in_utf_16_without_its_mark_is_named(tmp_path):
    picture(tmp_path / "0.png")
    (tmp_path / "0.txt").write_bytes("a red cup".encode("utf-16-le"))
    with refuses(DataError, "0.txt", "zero bytes", "UTF-8"):
        own_pictures(tmp_path, 8)


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


def test_pictures_of_any_kind_are_read_as_folder_reads_them(tmp_path):
    """Every mode, transparent, animated, one pixel, a long one, turned by EXIF, in odd files."""
    base = picture(tmp_path / "a.png")
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"):
        suffix = "tif" if mode in ("CMYK", "F") else "png"
        image = base.convert("L").convert("F") if mode == "F" else base.convert(mode)
        image.save(tmp_path / f"mode {mode[0]}{len(mode)}.{suffix}")
    glass = base.convert("RGBA")
    glass.putalpha(100)
    glass.save(tmp_path / "glass.webp", lossless=True)
    base.save(tmp_path / "film.gif", save_all=True, append_images=[base.rotate(90)])
    picture(tmp_path / "dot.bmp", 1, (1, 1))
    picture(tmp_path / "long.png", 1, (900, 3))
    exif = Image.Exif()
    exif[0x0112] = 8
    base.save(tmp_path / "turned.JPG", exif=exif)
    own, plain = own_pictures(tmp_path, 16, skip=False), folder(tmp_path, 16)
    assert len(own) == 14 and torch.equal(own[:][0], plain[:][0])
    assert own.sizes[own.files.index("turned.JPG")].tolist() == [20, 16]


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
    common = own.most_common()
    assert common.files == ("2.png", "3.png") and common.shapes == [(40, 24)]
    assert torch.equal(common[:][0], own[[2, 3]][0])
    pressed, _ = own.squares(32)[[2, 3]]
    expected = F.interpolate(common[:][0], (32, 32), mode="bilinear", antialias=True)
    assert torch.equal(pressed, expected) and torch.equal(own.squares(32)[[1]][0], own[[1]][0])


# ---------------------------------------------------------------- trained


@pytest.fixture
def classes(tmp_path):
    """Six pictures of two classes."""
    for k in range(6):
        picture(tmp_path / "pets" / ("cats" if k % 2 else "red dogs") / f"{k}.png", k)
    return tmp_path / "pets"


@pytest.fixture
def captioned(tmp_path):
    for k, text in enumerate(SCRIPTS):
        picture(tmp_path / "cups" / f"{text}.png", k)
    return tmp_path / "cups"


@pytest.mark.parametrize(
    ("pace", "channels", "updates"),
    [(7e-4, 96, 6071), (1.5e-3, 48, 5666), (3e-3, 32, 4250), (1e-1, 32, 127), (1e3, 32, 1)],
)
def test_the_unet_is_the_widest_that_gets_enough_updates(
    monkeypatch, classes, pace, channels, updates
):
    paces = lambda own, plan, device: {"vae": 0.1, "clip": 0.05, "unet": pace * plan.channels}
    monkeypatch.setattr(own_room, "_paces", paces)
    plan = fitted(own_pictures(classes, 16), 600)
    assert (plan.channels, plan.updates, plan.by) == (channels, updates, "class")
    assert (plan.updates_vae, plan.updates_clip) == (1500, 840)


def test_pictures_are_read_as_large_as_they_are_worth(tmp_path):
    for side, expected in ((20, 32), (40, 32), (50, 64), (300, 64)):
        for k in range(2):
            picture(tmp_path / f"{side}" / f"{k}.png", k, (side, side))
        assert suited(tmp_path / f"{side}").shapes == [(expected, expected)]
    assert suited(tmp_path / "300", device="cuda").shapes == [(128, 128)]
    (tmp_path / "300" / "1.png").unlink()
    with pytest.warns(UserWarning, match="single picture"):
        assert len(suited(tmp_path / "300").repeated(16)) == 16
    for size in (8, 40, 512):
        with refuses(OptionError, "size"):
            suited(tmp_path / "20", size=size)


def test_the_pace_of_each_part_is_measured(captioned, classes):
    plan = fitted(own_pictures(captioned, 16), 60, updates=2)
    assert (plan.by, plan.updates, plan.updates_vae, plan.updates_clip) == ("caption", 2, 2, 2)
    plan = fitted(suited(classes, size=16), 0.5)
    assert plan.channels == 32 and 1 <= plan.updates < 500
    nothing = own_pictures(captioned, 16, captions="none")  # no text to learn
    plan = fitted(nothing, 60)
    assert (plan.by, plan.updates_clip) == ("nothing", 1) and plan.updates > 10


def test_train_a_folder_of_classes_and_ask_for_one(classes, tmp_path, capsys):
    (classes / "cats" / "7.jpg").write_bytes(b"\xff\xd8 nothing")
    out = tmp_path / "pets.safetensors"
    train = ["train", str(classes), "--steps", "2", "--size", "16", "--out", str(out)]
    with pytest.warns(UserWarning, match="7.jpg"):
        assert main(train) == 0
    said = capsys.readouterr()
    assert "6 pictures in 2 classes" in said.err and f"txt2img cats --model {out}\n" in said.out
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["pets", "pets-loss.png", "pets-samples.png", "pets.safetensors"]
    told = json.loads(Image.open(tmp_path / "pets-samples.png").text["ddpm_edu"])
    assert (told["step"], told["steps"]) == (2, 2) and told["captions"][:3] == [
        "cats",
        "red dogs",
        "cats",
    ]
    curve = json.loads(Image.open(tmp_path / "pets-loss.png").text["ddpm_edu"])
    sd = load(out)
    assert len(curve["losses"]) == 2 and curve["losses"] == sd.meta["train"]["unet"]["loss"]
    assert sd.meta["words"] == ["cats", "dogs", "red"]
    drawn = str(tmp_path / "a.png")
    draw = ["txt2img", "red dogs", "--model", str(out), "--steps", "2", "--out", drawn]
    assert main([*draw, "--zoom", "1"]) == 0
    assert Image.open(drawn).size == (16, 16)


def test_pictures_of_two_shapes_that_nothing_is_told_of(tmp_path, capsys):
    for k in range(40):
        picture(tmp_path / "mine" / f"{k}.png", k, (60, 96) if k < 24 else (64, 64))
    out = tmp_path / "mine.safetensors"
    assert main(["train", str(tmp_path / "mine"), "--steps", "1", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "40 pictures (none), 48x80, 64x64" in said.err
    assert f"txt2img '' --model {out} --size 48x80" in said.out
    told = Image.open(tmp_path / "mine-samples.png")
    assert told.size == (4 * 50, 4 * 82) and load(out).config.guidance == 1
    drawn = tmp_path / "a.png"
    draw = ["txt2img", "", "--model", str(out), "--zoom", "1", "--out", str(drawn)]
    assert main([*draw, "--size", "48x80"]) == 0 and Image.open(drawn).size == (48, 80)


def test_of_their_sizes_the_unet_is_told_what_it_is_told_in_drawing(classes):
    """The originals are 20 x 16, and drawn as 16 x 16."""
    own, sd = suited(classes, size=16), []
    plan = fitted(own, updates=1)
    log = lambda part, run, system=None: lambda steps: sd.append(system) or iter(steps)
    train_parts(own, plan, log=log)
    _, cond = latents(sd[-1], own, plan)[torch.tensor([0])]
    size = dict(original_size=(16, 16), crop=(0, 0), target_size=(16, 16))
    expected = condition(sd[-1], [own.captions[0]], **size)
    torch.testing.assert_close(cond.vector, expected.vector)
    torch.testing.assert_close(cond.context, expected.context)


def test_a_run_that_stopped_goes_on_to_the_last_bit(classes, tmp_path, monkeypatch):
    monkeypatch.setattr(own_room, "SAVE_EVERY", 1)
    own = suited(classes, size=16)
    plan = fitted(own, updates=4)
    whole = train_own(own, plan, tmp_path / "whole.safetensors")
    run = tmp_path / "run"

    def stop(seen):
        if seen.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_own(own, plan, tmp_path / "later.safetensors", checkpoint=run, watch=stop)
    assert begun(run, own) == plan and begun(tmp_path / "new", own) is None
    seen = []
    later = train_own(own, plan, tmp_path / "later.safetensors", checkpoint=run, watch=seen.append)
    assert [s.step for s in seen] == [3, 4] and len(seen[-1].losses) == 2
    pairs = zip(load(whole).parameters(), load(later).parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with refuses(CheckpointError, "other updates"):
        begun(run, own, updates=5)
    (classes / "cats" / "1.png").unlink()
    with refuses(CheckpointError, "other pictures"):
        begun(run, suited(classes, size=16))
    (run / "plan.json").write_text('{"by": "colour"}')
    with refuses(CheckpointError, "plan.json"):
        begun(run, own)


def test_train_a_folder_with_captions_in_ten_scripts(captioned, tmp_path, capsys):
    out = tmp_path / "cups.safetensors"
    train = ["train", str(captioned), "--steps", "1", "--size", "16", "--out", str(out)]
    assert main([*train, "--checkpoint", str(tmp_path / "run")]) == 0
    assert f"txt2img 'a red cup' --model {out}" in capsys.readouterr().out
    sd = load(out)
    assert sd.config.size == 16 and {"red", "красная", "红", "빨간"} <= set(sd.meta["words"])
    told = json.loads(Image.open(tmp_path / "cups-samples.png").text["ddpm_edu"])
    assert sorted(told["captions"][:10]) == sorted(SCRIPTS) and len(told["captions"]) == 16
    drawn = tmp_path / "a.png"
    assert (
        main(["txt2img", "красная чашка", "--model", str(out), "--steps", "1", "--out", str(drawn)])
        == 0
    )
    names = {"plan.json", "vae.safetensors", "clip.safetensors", "unet.safetensors"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rank", "4"], ["--rank", "--lora"]),
        (["--lora", "emoji", "--rank", "0"], ["--rank = 0"]),
        (["--lora", "emoji", "--embedding", "emoji"], ["--lora and --embedding"]),
        (["--caption", "a cat"], ["--caption", "--lora"]),
        (["--prior", "a cat", "--embedding", "emoji"], ["--prior", "--lora"]),
        (["--embedding", "emoji"], ["--word", "--start"]),
        (["--embedding", "emoji", "--word", "<a>"], ["--start"]),
        (["--lora", "mnist"], ["mnist", "no whole system"]),
        (["--lora", "painted-inpaint"], ["painted-inpaint"]),
        (["--lora", "nowhere"], ["nowhere"]),
        (["--lora", "emoji", "--size", "60"], ["size = 60"]),
        (
            ["--lora", "emoji", "--seconds", "9", "--checkpoint", "c"],
            ["--seconds and --checkpoint"],
        ),
        (["--lora", "emoji"], ["no caption", "--caption"]),
        (["--steps", "0"], ["--steps = 0"]),
        (["--seconds", "nan"], ["--seconds"]),
        (["--captions", "txt"], ["captions = 'txt'"]),
        (["--out", "x.png"], [".safetensors"]),
        (["--device", "tpu"], ["'tpu'"]),
    ],
)
def test_train_refuses_before_it_begins(tmp_path, monkeypatch, capsys, arguments, words):
    for k in range(2):
        picture(tmp_path / "mine" / f"{k}.png", k)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "mine", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddpm-edu: ") and all(word in error for word in words), error
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_options_of_a_folder_need_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "minute", "--lora", "emoji"]) == 2
    assert "folder of pictures" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["train", "empty"]) == 2 and "no pictures" in capsys.readouterr().err
    (tmp_path / "minute").mkdir()  # a recipe's name wins over a folder
    assert main(["train", "minute", "--caption", "x"]) == 2
    assert main(["train", "./minute"]) == 2 and "no pictures" in capsys.readouterr().err
