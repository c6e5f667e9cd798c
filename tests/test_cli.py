"""The `ddpm-edu` command, run as a person would, on a tiny model."""
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from ddpm_edu import Schedule
from ddpm_edu.checkpoint import save_pretrained
from ddpm_edu.cli import grid, main
from ddpm_edu.unet import UNet, UNetConfig


@pytest.fixture
def tiny(tmp_path):
    torch.manual_seed(0)
    unet = UNet(UNetConfig(in_channels=1, channels=16, mult=(1, 1), depth=(0, 0), middle=0, heads=(1, 1), vector=10, blocks=1, groups=4))
    path = tmp_path / "tiny.safetensors"
    save_pretrained(path, unet, Schedule.cosine(50), "v", {"shape": [1, 8, 8], "guidance": 1.5})
    return path


def sample(tiny, out, *more):
    return main(["sample", "--model", str(tiny), "--out", str(out), "--steps", "3", "--zoom", "1", *more])


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
    sample(tiny, tmp_path / "many.png", "--labels", "01234567", "--columns", "8", "--sampler", sampler)
    sample(tiny, tmp_path / "one.png", "--labels", "7", "--seed", "7", "--sampler", sampler)
    many = Image.open(tmp_path / "many.png").crop((56, 0, 64, 8))
    pairs = zip(many.get_flattened_data() if hasattr(many, "get_flattened_data") else many.getdata(),
                list(Image.open(tmp_path / "one.png").convert("L").tobytes()))
    assert max(abs(a - b) for a, b in pairs) <= 1  # float32 rounding may tip one of 255 levels


@pytest.mark.parametrize("arguments, words", [
    (["--steps", "0"], ("steps", "0")), (["--steps", "51"], ("steps", "50")), (["--guidance", "nan"], ("guidance", "nan")),
    (["--guidance", "-1"], ("guidance",)), (["--sampler", "magic"], ("magic", "heun")), (["--labels", "1a"], ("labels", "1a")),
    (["--labels", ""], ("labels",)), (["--columns", "0"], ("columns",)), (["--model", "nobody"], ("nobody", "no such weights"))])
def test_bad_options_are_one_line_and_write_nothing(tiny, tmp_path, capsys, arguments, words):
    out = tmp_path / "bad.png"
    assert sample(tiny, out, *arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("ddpm-edu: ") and "\n" not in message and not out.exists()
    assert all(word in message for word in words), message


def test_unwritable_picture(tiny, tmp_path, capsys):
    assert sample(tiny, tmp_path / "no_folder" / "a.png") == 2
    assert "could not be written" in capsys.readouterr().err


def test_train_writes_a_model_that_sample_reads(tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    assert main(["train", "minute", "--seconds", "1", "--out", str(out)]) == 0
    assert main(["sample", "--model", str(out), "--labels", "3", "--steps", "2", "--out", str(tmp_path / "three.png")]) == 0
    assert Image.open(tmp_path / "three.png").size == (112, 112)


def test_unknown_recipe_and_device(capsys):
    assert main(["train", "imagenet"]) == 2 and "mnist" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["train", "mnist", "--device", "cuda"]) == 2 and "no GPU" in capsys.readouterr().err


def test_models_lists_what_ships(capsys):
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "mnist_judge" in out and "MiB" in out


def test_student_refuses_to_overwrite_and_broken_files(tmp_path, capsys):
    broken = tmp_path / "x.ipynb"
    broken.write_text("{}")
    assert main(["student", str(broken), "--out", str(tmp_path / "s")]) == 2 and "x.ipynb" in capsys.readouterr().err
    assert main(["student", str(broken), "--out", str(tmp_path)]) == 2 and "originals" in capsys.readouterr().err


def test_help_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "ddpm_edu.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "student" in done.stdout


def test_grid_by_hand():
    x = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1)
    assert grid(x, 2, 1).tolist() == [[0, 1], [2, 0]]
    assert grid(x.expand(3, 3, 1, 1), 3, 2).shape == (2, 6, 3)
