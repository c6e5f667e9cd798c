"""The `ddpm-edu` command, run as a person would, on a tiny model."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ddpm_edu import Schedule
from ddpm_edu.cli import main
from ddpm_edu.datasets.images import mnist
from ddpm_edu.files.load import save
from ddpm_edu.files.tensors import load_tensors, save_tensors
from ddpm_edu.networks.unet import UNet, UNetConfig
from ddpm_edu.show.png import grid
from ddpm_edu.training.recipes import RECIPES


@pytest.fixture
def tiny(tmp_path):
    torch.manual_seed(0)
    unet = UNet(
        UNetConfig(
            in_channels=1,
            channels=16,
            mult=(1, 1),
            depth=(0, 0),
            middle=0,
            heads=(1, 1),
            vector=10,
            blocks=1,
            groups=4,
        )
    )
    path = tmp_path / "tiny.safetensors"
    save(
        path, unet, {"shape": [1, 8, 8], "guidance": 1.5}, schedule=Schedule.cosine(50), predict="v"
    )
    return path


def sample(tiny, out, *more):
    return main(
        ["sample", "--model", str(tiny), "--out", str(out), "--steps", "3", "--zoom", "1", *more]
    )


def test_sample_writes_the_grid_and_its_settings(tiny, tmp_path, capsys):
    out = tmp_path / "a.png"
    assert sample(tiny, out, "--labels", "0123", "--columns", "2") == 0
    picture = Image.open(out)
    assert picture.size == (16, 16) and picture.mode == "L"
    info = json.loads(picture.info["ddpm_edu"])
    assert info["labels"] == "0123" and info["guidance"] == 1.5 and info["steps"] == 3
    assert "4 pictures" in capsys.readouterr().out


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_a_picture_depends_on_its_own_seed_and_label_only(tiny, tmp_path, sampler):
    """Picture 7 of eight is picture 0 of a run that begins with its seed."""
    sample(
        tiny, tmp_path / "many.png", "--labels", "01234567", "--columns", "8", "--sampler", sampler
    )
    sample(tiny, tmp_path / "one.png", "--labels", "7", "--seed", "7", "--sampler", sampler)
    many = Image.open(tmp_path / "many.png").crop((56, 0, 64, 8))
    pairs = zip(
        many.get_flattened_data() if hasattr(many, "get_flattened_data") else many.getdata(),
        list(Image.open(tmp_path / "one.png").convert("L").tobytes()),
    )
    assert max(abs(a - b) for a, b in pairs) <= 1  # float32 rounding may tip one of 255 levels


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--steps", "0"], ("steps", "0")),
        (["--steps", "51"], ("steps", "50")),
        (["--guidance", "nan"], ("guidance", "nan")),
        (["--guidance", "-1"], ("guidance",)),
        (["--sampler", "magic"], ("magic", "heun")),
        (["--labels", "1a"], ("labels", "1a")),
        (["--labels", ""], ("labels",)),
        (["--columns", "0"], ("columns",)),
        (["--zoom", "1000000000"], ("zoom",)),
        (["--seed", "1" + "0" * 20], ("seed",)),
        (["--seed", "1" + "0" * 400], ("seed",)),
        (["--model", "n" * 300], ("no such file",)),
        (["--model", "nobody"], ("nobody", "no such file")),
        (["--model", "mnits"], ("mnits", "did you mean mnist?")),
        (["--model", ""], ("source = ''", "pass a name or a path")),
    ],
)
def test_bad_options_are_one_line_and_write_nothing(tiny, tmp_path, capsys, arguments, words):
    out = tmp_path / "bad.png"
    assert sample(tiny, out, *arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("ddpm-edu: ") and "\n" not in message and not out.exists()
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "change",
    [
        {"shape": None},
        {"shape": [1, -8, 8]},
        {"shape": ["a"]},
        {"shape": [1, 8.0, 8]},
        {"classes": "cats"},
        {"classes": [1, 2]},
        {"config": {"in_channels": -1}},
    ],
    ids=str,
)
def test_altered_metadata_of_a_model(tiny, tmp_path, capsys, change):
    tensors, meta = load_tensors(tiny)
    (meta if "config" in change else meta["meta"]).update(change)
    save_tensors(tmp_path / "odd.safetensors", {k: v.clone() for k, v in tensors.items()}, meta)
    assert sample(tmp_path / "odd.safetensors", tmp_path / "a.png") == 2
    assert "no plan of a model" in capsys.readouterr().err and not (tmp_path / "a.png").exists()


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as Unix does")
def test_a_picture_that_cannot_be_finished_leaves_the_former_one(tiny, tmp_path):
    """No file may grow past 1,024 bytes: the new picture fails, the old one stays whole."""
    out = tmp_path / "mine.png"
    out.write_bytes(b"old" * 2000)
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); "
        "from ddpm_edu.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-B",
            "-c",
            code,
            "sample",
            "--model",
            tiny,
            "--out",
            out,
            "--steps",
            "2",
            "--zoom",
            "4",
        ],
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and "could not be written" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert out.read_bytes() == b"old" * 2000 and {p.name for p in tmp_path.iterdir()} == {
        "tiny.safetensors",
        "mine.png",
    }


def test_unwritable_picture(tiny, tmp_path, capsys):
    assert sample(tiny, tmp_path / "no_folder" / "a.png") == 2
    assert "does not exist" in capsys.readouterr().err


# ---------------------------------------------------------------- txt2img


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    """A tiny system of random weights, saved as a folder."""
    pytest.importorskip("transformers")
    from folder_writer import save_folder

    from ddpm_edu.networks.text import TextConfig
    from ddpm_edu.networks.vae import VAEConfig
    from ddpm_edu.systems.system import SystemConfig, build

    torch.manual_seed(0)
    unet = UNetConfig(
        channels=64, mult=(1, 2), depth=(0, 1), middle=1, heads=(2, 4), context=32, blocks=1
    )
    folder = tmp_path_factory.mktemp("system")
    save_folder(
        build(
            SystemConfig(
                "tiny",
                unet,
                VAEConfig(channels=16, mult=(1, 1, 2, 2), blocks=1, groups=8),
                (TextConfig(32, 2, 4, 64),),
                size=64,
            )
        ),
        folder,
    )
    return folder


def txt2img(system, out, *more):
    return main(
        [
            "txt2img",
            "a lighthouse 🗼 at dusk",
            "--model",
            str(system),
            "--out",
            str(out),
            "--device",
            "cpu",
            "--steps",
            "2",
            *more,
        ]
    )


def test_txt2img_writes_the_picture_that_draw_draws_and_its_settings(system, tmp_path, capsys):
    from ddpm_edu.datasets.images import to_uint8
    from ddpm_edu.files.load import load
    from ddpm_edu.systems.pipeline import draw

    out = tmp_path / "a.png"
    assert (
        txt2img(
            system,
            out,
            "--size",
            "72x56",
            "--seed",
            "3",
            "--negative",
            "blurry",
            "--guidance",
            "4",
            "--sampler",
            "euler",
            "--zoom",
            "1",
        )
        == 0
    )
    picture = Image.open(out)
    assert picture.size == (72, 56) and picture.mode == "RGB"
    info = json.loads(picture.info["ddpm_edu"])
    told = {
        "prompt": "a lighthouse 🗼 at dusk",
        "negative": "blurry",
        "seed": 3,
        "steps": 2,
        "sampler": "euler",
        "guidance": 4.0,
        "model": str(system),
    }
    assert told.items() <= info.items() and info["torch"] == torch.__version__ and "version" in info
    same = to_uint8(
        draw(
            load(system),
            told["prompt"],
            negative="blurry",
            seeds=3,
            steps=2,
            sampler="euler",
            guidance=4.0,
            size=(56, 72),
            progress=False,
        )
    )
    assert picture.tobytes() == same[0].permute(1, 2, 0).numpy().tobytes()
    said = capsys.readouterr()
    assert (
        "72x56" in said.out
        and "GiB" in said.err
        and [p.name for p in tmp_path.iterdir()] == ["a.png"]
    )


def test_txt2img_counts_pictures_and_seeds_up(system, tmp_path):
    assert txt2img(system, tmp_path / "a.png", "--count", "2", "--seed", "5") == 0
    assert txt2img(system, tmp_path / "b.png", "--seed", "6") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a_1.png", "a_2.png", "b.png"]
    one, two, same = (Image.open(tmp_path / f"{name}.png") for name in ("a_1", "a_2", "b"))
    assert json.loads(two.info["ddpm_edu"])["seed"] == 6
    far = lambda a, b: max(abs(i - j) for i, j in zip(a.tobytes(), b.tobytes()))
    assert far(two, same) <= 1 < far(one, two)


def test_txt2img_fast_draws_the_same(system, tmp_path):
    assert (
        txt2img(system, tmp_path / "a.png") == 0
        and txt2img(system, tmp_path / "b.png", "--fast") == 0
    )
    a, b = (Image.open(tmp_path / name).tobytes() for name in ("a.png", "b.png"))
    assert max(abs(i - j) for i, j in zip(a, b)) <= 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--steps", "0"], ("steps", "0")),
        (["--steps", "1001"], ("steps", "1000")),
        (["--guidance", "nan"], ("guidance", "nan")),
        (["--guidance", "-1"], ("guidance",)),
        (["--sampler", "magic"], ("magic", "heun")),
        (["--size", "511"], ("511", "504", "512")),
        (["--size", "0"], ("size", "0")),
        (["--size", "1000000"], ("size", "8192")),
        (["--size", "a"], ("size", "a")),
        (["--size", "64x"], ("64x",)),
        (["--size", "64x64x64"], ("64x64x64",)),
        (["--seed", "-1"], ("seed", "-1")),
        (["--count", "0"], ("count", "0")),
        (["--handover", "2"], ("handover",)),
        (["--device", "abacus"], ("abacus", "cpu")),
    ],
)
def test_txt2img_refuses_before_it_loads(tmp_path, capsys, monkeypatch, arguments, words):
    import ddpm_edu.files.load as stable_diffusion

    monkeypatch.setattr(stable_diffusion, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    out = tmp_path / "bad.png"
    assert txt2img("sd15", out, *arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("ddpm-edu: ") and "\n" not in message and not out.exists()
    assert all(word in message for word in words), message


def test_txt2img_with_loras_and_a_word(system, tmp_path):
    """Two of them add up; what is drawn is what `draw` draws with them."""
    from ddpm_edu.datasets.images import to_uint8
    from ddpm_edu.files.embedding import load_embedding
    from ddpm_edu.files.load import load
    from ddpm_edu.files.lora import save_lora
    from ddpm_edu.networks.lora import attach, low_rank
    from ddpm_edu.systems.pipeline import draw

    sd = load(system)
    lora = low_rank(sd, 2)
    for change in lora.changes:
        torch.nn.init.normal_(change.up.weight, std=0.5)
    file, word = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_lora(file, lora, sd)
    save_tensors(word, {"<my-cat>": torch.randn(2, 32)})
    command = ["txt2img", "a <my-cat>", "--model", str(system), "--device", "cpu", "--steps", "2"]
    more = ["--lora", f"{file}:0.5", "--lora", f"{file}:0.25", "--embedding", str(word)]
    for name, options in (
        ("plain", []),
        ("word", more[4:]),
        ("all", more),
        ("fast", [*more, "--fast"]),
    ):
        out = str(tmp_path / f"{name}.png")
        assert main([*command, *options, "--zoom", "1", "--out", out]) == 0
    pictures = {
        name: Image.open(tmp_path / f"{name}.png") for name in ("plain", "word", "all", "fast")
    }
    assert json.loads(pictures["all"].info["ddpm_edu"])["lora"] == [f"{file}:0.5", f"{file}:0.25"]
    assert "lora" not in json.loads(pictures["plain"].info["ddpm_edu"])
    pixels = {name: np.asarray(picture).astype(int) for name, picture in pictures.items()}
    load_embedding(word, sd)
    attach(sd, lora, 0.75)
    same = to_uint8(draw(sd, "a <my-cat>", steps=2, progress=False))[0].permute(1, 2, 0).numpy()
    assert abs(pixels["all"] - same).max() <= 1 and abs(pixels["fast"] - same).max() <= 1
    assert abs(pixels["plain"] - pixels["word"]).max() > 1 < abs(pixels["word"] - same).max()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--lora", "gone.safetensors"], ("gone.safetensors: no such file",)),
        (["--lora", "gone.safetensors:0.5"], ("gone.safetensors: no such file",)),
        (["--lora", "x.safetensors:nan"], ("x.safetensors:nan", "weight")),
        (["--lora", "x.safetensors:abc"], ("abc is no number", "FILE:0.7")),
        (["--lora", "C:\\gone\n\x1b[31m.safetensors"], ("C:\\gone\\n\\x1b[31m", "no such file")),
        (["--lora", "x.safetensors:500"], ("weight", "100")),
        (["--lora", "x.safetensors"], ("SDXL base", "SD 1.5", "do not fit")),
        (["--embedding", "x.safetensors"], ("no embedding", "LoRA")),
        (["--embedding", "e.safetensors"], ("1024", "SD 2", "768")),
    ],
)
def test_txt2img_refuses_loras_and_words_before_it_loads(
    tmp_path, capsys, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    matrices = {
        f"{key}.lora_down.weight": torch.ones(2, 2048),
        f"{key}.lora_up.weight": torch.ones(1280, 2),
    }
    save_tensors("x.safetensors", matrices)
    save_tensors("e.safetensors", {"<a>": torch.ones(1, 1024)})
    test_txt2img_refuses_before_it_loads(tmp_path, capsys, monkeypatch, arguments, words)


# ---------------------------------------------------------------- edit


@pytest.fixture
def photo(tmp_path):
    """A picture file whose sides are no multiples of 8."""
    pixels = np.random.default_rng(0).integers(0, 256, (52, 61, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def edited(photo, *more):
    out = photo.with_name("a.png")
    return main(["edit", str(photo), "a cat", "--out", str(out), "--device", "cpu", *more]), out


def test_edit_redraws_a_picture_in_its_own_size(system, photo, capsys):
    from ddpm_edu.datasets.images import to_uint8
    from ddpm_edu.files.load import load
    from ddpm_edu.systems.pipeline import edit

    how = ["--strength", "0.5", "--negative", "dogs", "--seed", "3", "--steps", "4"]
    code, out = edited(photo, "--model", str(system), *how)
    assert code == 0 and "61x52, " in capsys.readouterr().out
    picture = Image.open(out)
    info = json.loads(picture.info["ddpm_edu"])
    told = dict(prompt="a cat", negative="dogs", strength=0.5, steps=4, seed=3, mask=None)
    assert told.items() <= info.items() and info["picture"] == str(photo)
    how = dict(strength=0.5, negative="dogs", seeds=3, steps=4, progress=False)
    same = to_uint8(edit(load(system), "a cat", photo, **how))[0].permute(1, 2, 0).numpy()
    assert picture.size == (61, 52) and np.array_equal(np.asarray(picture), same)


def test_edit_leaves_what_is_outside_of_the_mask(system, photo):
    hole = np.zeros((52, 61), np.uint8)
    hole[10:40, 20:30] = 255
    Image.fromarray(hole).save(photo.with_name("m.png"))
    mask = ["--mask", str(photo.with_name("m.png")), "--model", str(system), "--steps", "2"]
    code, out = edited(photo, *mask)
    a, b = (np.asarray(Image.open(place)).astype(int) for place in (photo, out))
    assert code == 0 and (a == b)[hole == 0].all() and (a != b)[hole > 0].mean() > 0.9


def test_edit_follows_the_edges(photo, monkeypatch):
    """By the system's own ControlNet, or the official one; a new one adds nothing yet."""
    import ddpm_edu.files.load as loading
    from ddpm_edu.networks.controlnet import control_net

    asked, load = [], loading.load
    painted = load("painted")

    def fake(name, **kind):
        asked.append(name)
        return control_net(painted.unet, widths=(4, 4, 8)) if "-" in name else painted

    monkeypatch.setattr(loading, "load", fake)
    monkeypatch.setattr(loading, "shipped", lambda: ["painted", "painted-edges"])
    for control, name in (("edges", "painted-edges"), ("strokes", "sd15-control-scribble")):
        model = name.split("-")[0]
        code, out = edited(photo, "--control", control, "--steps", "2", "--model", model)
        assert code == 0 and asked == [model, name]
        assert json.loads(Image.open(out).info["ddpm_edu"])["control"] == control
        asked.clear()
    code, plain = edited(photo, "--strength", "1", "--steps", "2")
    assert np.array_equal(np.asarray(Image.open(plain)), np.asarray(Image.open(out)))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--strength", "nan"], ("strength", "nan")),
        (["--strength", "1.5"], ("strength",)),
        (["--mask", "nowhere.png"], ("mask", "nowhere.png")),
        (["--steps", "0"], ("steps",)),
        (["--upscale", "--mask", "m.png"], ("--upscale", "--mask")),
        (["--device", "abacus"], ("abacus",)),
        (["--count", "0"], ("count",)),
        (["--model", "emoji", "--upscale"], ("--upscale", "painted-upscale")),
        (["--model", "mnist_classifier"], ("Classifier",)),
        (["--strength", "0", "--model", "painted"], ("strength", "nothing to do", "more steps")),
        (["--control", "strokes", "--model", "painted"], ("--control strokes", "painted-edges")),
        (["--control", "edges", "--model", "emoji"], ("--control edges", "emoji", "painted-edges")),
    ],
)
def test_edit_refuses(photo, capsys, arguments, words):
    code, out = edited(photo, *arguments)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2 and message.startswith("ddpm-edu: ") and not out.exists()
    assert all(word in message for word in words), message


def test_edit_follows_edges_in_a_hole(photo):
    """The UNet that sees the hole is steered by the ControlNet of its base."""
    Image.new("1", (61, 52), 1).save(photo.with_name("m.png"))
    code, out = edited(photo, "--mask", str(photo.with_name("m.png")), *EDGES)
    assert code == 0 and json.loads(Image.open(out).info["ddpm_edu"])["model"] == "painted-inpaint"


EDGES = ["--control", "edges", "--steps", "1"]


def test_edit_refuses_what_would_take_hours(photo, capsys):
    Image.new("RGB", (1200, 900)).save(photo)
    for more in ([], ["--upscale"], EDGES):
        code, out = edited(photo, *more)
        words = "1200 x 900", "32 x 32", "hours", "smaller"
        message = capsys.readouterr().err
        assert code == 2 and all(word in message for word in words) and not out.exists()


def test_edit_names_a_picture_that_is_none(tmp_path, capsys):
    (tmp_path / "page.png").write_text("<html>")
    for name in ("page.png", "nowhere.png"):
        assert edited(tmp_path / name)[0] == 2
        assert name in capsys.readouterr().err


@pytest.mark.parametrize(
    "out, words", [("no_folder/a.png", "does not exist"), ("a.jpg", "ends in .png"), (".", "png")]
)
def test_txt2img_refuses_an_output_before_it_loads(tmp_path, capsys, monkeypatch, out, words):
    import ddpm_edu.files.load as stable_diffusion

    monkeypatch.setattr(stable_diffusion, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    assert txt2img("sd15", tmp_path / out) == 2 and words in capsys.readouterr().err


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="a place where not even root may write")
def test_a_place_where_nobody_writes_is_refused_before_drawing(capsys, monkeypatch):
    import ddpm_edu.files.load as files

    monkeypatch.setattr(files, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    for command in (["txt2img", "a cat"], ["sample"]):
        assert main([*command, "--out", "/proc/a.png"]) == 2
        assert "/proc/a.png cannot be written" in capsys.readouterr().err


def test_an_output_that_is_a_link_to_nowhere_is_refused_at_once(tmp_path):
    from helpers import refuses

    from ddpm_edu.errors import OptionError, check_writable

    (tmp_path / "link.png").symlink_to(tmp_path / "gone" / "x.png")
    with refuses(OptionError, "link.png", "gone"):
        check_writable(tmp_path / "link.png")
    (tmp_path / "gone").mkdir()
    check_writable(tmp_path / "link.png")


def test_txt2img_shows_small_pictures_larger(system, tmp_path, capsys):
    """At 256 pixels or a little less unless told otherwise, each pixel a square."""
    for name, extra in (("own", ()), ("one", ("--zoom", "1")), ("two", ("--zoom", "2"))):
        assert txt2img(system, tmp_path / f"{name}.png", "--size", "72x56", *extra) == 0
    own, one, two = (Image.open(tmp_path / f"{name}.png") for name in ("own", "one", "two"))
    assert (own.size, one.size, two.size) == (
        (216, 168),
        (72, 56),
        (144, 112),
    ) and "72x56 shown 3-fold" in capsys.readouterr().out
    for picture in (own, two):
        assert picture.tobytes() == one.resize(picture.size, Image.Resampling.NEAREST).tobytes()
    assert (
        txt2img(system, tmp_path / "a.png", "--zoom", "0") == 2
        and "--zoom" in capsys.readouterr().err
    )


def test_txt2img_without_a_model_takes_the_emoji_one(system, tmp_path, capsys, monkeypatch):
    from ddpm_edu.files import load as loading

    monkeypatch.setattr(loading, "data_folder", lambda: tmp_path)
    assert main(["txt2img", "a fox", "--out", str(tmp_path / "a.png")]) == 2  # it is not there
    message = capsys.readouterr().err
    assert all(word in message for word in ("emoji", "sd15", "sdxl", "folder", ".safetensors"))
    (tmp_path / "weights").mkdir()
    save(tmp_path / "weights" / "emoji.safetensors", loading.load(system), dtype=torch.int8)
    assert (
        main(
            [
                "txt2img",
                "a fox",
                "--size",
                "64",
                "--steps",
                "2",
                "--device",
                "cpu",
                "--out",
                str(tmp_path / "a.png"),
            ]
        )
        == 0
    )
    assert json.loads(Image.open(tmp_path / "a.png").info["ddpm_edu"])["model"] == "emoji"
    assert (
        main(
            [
                "txt2img",
                "a fox",
                "--model",
                str(tmp_path / "none.safetensors"),
                "--out",
                str(tmp_path / "a.png"),
            ]
        )
        == 2
    )
    assert "none.safetensors" in capsys.readouterr().err


def test_a_png_is_written_all_or_nothing(tmp_path, monkeypatch):
    import numpy as np

    from ddpm_edu import OptionError
    from ddpm_edu.show.png import write_png

    write_png(tmp_path / "a.png", np.zeros((2, 2, 3), np.uint8), {})
    before = (tmp_path / "a.png").read_bytes()

    def half(self, file, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(OptionError, match="disk full"):
        write_png(tmp_path / "a.png", np.ones((2, 2, 3), np.uint8), {})
    assert (tmp_path / "a.png").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_train_writes_a_model_that_sample_reads(tmp_path, monkeypatch, capsys):
    """The recipe `minute` with fewer digits."""
    quick = dataclasses.replace(RECIPES["minute"], dataset=lambda: mnist("test"))
    monkeypatch.setitem(RECIPES, "minute", quick)
    out = tmp_path / "mine.safetensors"
    assert main(["train", "minute", "--seconds", "1", "--out", str(out)]) == 0
    assert (
        main(
            [
                "sample",
                "--model",
                str(out),
                "--labels",
                "3",
                "--steps",
                "2",
                "--out",
                str(tmp_path / "three.png"),
            ]
        )
        == 0
    )
    assert Image.open(tmp_path / "three.png").size == (112, 112)


def test_unknown_recipe_and_device(capsys):
    assert main(["train", "imagenet"]) == 2
    assert re.search("imagenet: no folder of pictures .* mnist", capsys.readouterr().err)
    if not torch.cuda.is_available():
        assert (
            main(["train", "mnist", "--device", "cuda"]) == 2
            and "'cuda' is not here" in capsys.readouterr().err
        )


def test_models_lists_what_ships(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "mnist_classifier" in out and "MiB" in out


def test_student_refuses_to_overwrite_and_broken_files(tmp_path, capsys):
    broken = tmp_path / "x.ipynb"
    broken.write_text("{}")
    assert (
        main(["student", str(broken), "--out", str(tmp_path / "s")]) == 2
        and "x.ipynb" in capsys.readouterr().err
    )
    assert (
        main(["student", str(broken), "--out", str(tmp_path)]) == 2
        and "originals" in capsys.readouterr().err
    )
    good, other = tmp_path / "a" / "n.ipynb", tmp_path / "b" / "n.ipynb"
    for file in (good, other):
        file.parent.mkdir()
        file.write_text(
            json.dumps({"cells": [{"cell_type": "markdown", "metadata": {}, "source": "hello"}]})
        )
    out = tmp_path / "s"
    assert (
        main(["student", str(good), str(other), "--out", str(out)]) == 2
        and "two notebooks" in capsys.readouterr().err
    )
    assert (
        main(["student", str(good), str(broken), "--out", str(out)]) == 2 and not out.exists()
    )  # all or none
    assert (
        main(["student", str(good), "--out", str(broken)]) == 2
        and "cannot be written" in capsys.readouterr().err
    )
    assert main(["student", str(good), "--out", str(out)]) == 0
    (out / "n.ipynb").write_text("my answers")
    assert (
        main(["student", str(good), "--out", str(out)]) == 2
        and "somebody's answers" in capsys.readouterr().err
    )
    assert (out / "n.ipynb").read_text() == "my answers"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--out", "noext"], (".safetensors",)),
        (["--seconds", "0"], ("seconds",)),
        (["--seconds", "nan"], ("seconds",)),
        (["--checkpoint", "."], ("is a folder",)),
    ],
)
def test_train_refuses_before_it_begins(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "minute", *arguments]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words) and not list(tmp_path.iterdir()), message


def test_a_reader_who_leaves_and_a_terminal_of_few_letters(tiny, tmp_path):
    """`models | head -1`, and a picture whose name ASCII cannot show."""
    python = [sys.executable, "-m", "ddpm_edu.cli"]
    models = subprocess.Popen(
        [*python, "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    models.stdout.close()
    assert "Traceback" not in models.stderr.read() and models.wait() == 1
    done = subprocess.run(
        [*python, "sample", "--model", tiny, "--steps", "1", "--out", tmp_path / "\u72d0.png"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (
        done.returncode == 0 and "\\u72d0.png" in done.stdout and (tmp_path / "\u72d0.png").exists()
    ), done.stderr


def test_a_terminal_without_output():
    """`>&-`: nothing to print to, and no word about it."""
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m ddpm_edu.cli models >&-"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr


def test_control_c_while_importing(tmp_path):
    """A stand-in for torch that presses it."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, "-m", "ddpm_edu.cli", "txt2img", "a fox", "--out", tmp_path / "a.png"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )
    assert done.returncode == 130 and done.stderr.strip() == "ddpm-edu: stopped"


def test_a_folder_one_may_not_enter(monkeypatch, tmp_path, capsys):
    from ddpm_edu.files import load as files

    def closed(*args, **options):
        raise PermissionError(13, "Permission denied", "/closed/model_index.json")

    monkeypatch.setattr(files, "find", closed)
    assert main(["txt2img", "a fox", "--model", "/closed", "--out", str(tmp_path / "a.png")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("ddpm-edu: ") and "/closed/model_index.json" in message


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files as Unix does")
def test_student_on_a_full_disk_leaves_nothing(tmp_path):
    for name, size in (("a", 10), ("b", 5000)):
        cell = {"cell_type": "markdown", "metadata": {}, "source": "x" * size}
        (tmp_path / f"{name}.ipynb").write_text(json.dumps({"cells": [cell]}))
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)); "
        "from ddpm_edu.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "new" / "student"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, "student", tmp_path, "--out", out],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "cannot be written" in done.stderr and not done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"a.ipynb", "b.ipynb"}


def test_plan_says_what_a_single_file_is(monkeypatch, tmp_path, capsys):
    from ddpm_edu.errors import CheckpointError
    from ddpm_edu.files import load as files
    from ddpm_edu.systems.system import SD2_BASE

    seen = []

    def load(source, **options):
        seen.append(options["config"])
        raise CheckpointError("enough")

    monkeypatch.setattr(files, "load", load)
    command = ["txt2img", "a", "--model", "x.safetensors", "--out", str(tmp_path / "a.png")]
    assert main([*command, "--plan", "sd2-base"]) == 2 and seen == [SD2_BASE]
    assert "GiB" in capsys.readouterr().err and (SD2_BASE.predict, SD2_BASE.size) == ("eps", 512)
    assert main([*command, "--plan", "sd3"]) == 2 and len(seen) == 1
    assert "sd2-base" in capsys.readouterr().err


def test_help_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "ddpm_edu.cli", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "student" in done.stdout


def test_grid_by_hand():
    x = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1)
    assert grid(x, 2, 1).tolist() == [[0, 1], [2, 0]]
    assert grid(x.expand(3, 3, 1, 1), 3, 2).shape == (2, 6, 3)
