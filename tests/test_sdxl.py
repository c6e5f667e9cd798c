"""sdxl.py: eight short trainings which a stop in the middle of any does not change by a bit; and
`ddpm-edu train sdxl-mini`, `ddpm-edu txt2img --model sdxl-mini --refiner`."""

import functools
import json
import math
import pickle
from dataclasses import replace

import pytest
import torch
from helpers import refuses
from PIL import Image
from tiny_sdxl import TINY_SDXL, UPDATES, random_pair
from train_run import numbers, same

from ddpm_edu.cli import main
from ddpm_edu.datasets.images import to_uint8
from ddpm_edu.errors import CheckpointError
from ddpm_edu.files import load as loading
from ddpm_edu.files.load import load, save
from ddpm_edu.files.tensors import load_tensors
from ddpm_edu.networks.vae import VAE
from ddpm_edu.systems.pipeline import draw
from ddpm_edu.training import follow, sdxl, whole_system
from ddpm_edu.training.cuts import encode_cuts
from ddpm_edu.training.sdxl import assemble, train_sdxl

PARTS = {  # each part's checkpoint, and what its progress bar is called
    "clip_1": "CLIP 1",
    "clip_2": "CLIP 2",
    "vae": "VAE",
    "refiner": "refiner",
    "decoder": "decoder",
    "stage_1": "stage_1",
    "stage_2": "stage_2",
}
ONE = replace(TINY_SDXL.train_clip, steps=1)
PROMPT = "a red seven on a blue ground"


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """MNIST is unpacked for each part: here once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdxl, "originals", functools.cache(sdxl.originals))
        yield


class Here:
    """`Beside` without another process: what it is given goes through pickle all the same."""

    def __init__(self, function, *args):
        self.answer = pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(args)))))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def attend(self, step=None):
        pass

    def result(self):
        return self.answer


@pytest.fixture(scope="module")
def whole():
    """One run without a stop."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdxl, "Beside", Here)
        return train_sdxl(TINY_SDXL)


def both(trained):
    return numbers(trained.base) | {f"refiner.{k}": v for k, v in numbers(trained.refiner).items()}


# ---------------------------------------------------------------- a run


def test_what_a_run_gives(whole):
    base, refiner, record = whole
    for part in PARTS:
        assert record[part]["updates"] == len(record[part]["loss"]) == UPDATES
        assert all(map(math.isfinite, record[part]["loss"]))
    assert same(numbers(base.vae), numbers(refiner.vae))
    assert same(numbers(base.text.encoders[1]), numbers(refiner.text.encoders[0]))
    assert base.config.vae.scale == refiner.config.vae.scale == pytest.approx(record["scale"], 1e-4)
    for sd in (base, refiner):
        assert sd.schedule.alpha_bar[-1] == 0 and sd.predict == "v"
        assert sd.unet.conv_out.weight.any() and not any(p.requires_grad for p in sd.parameters())
        assert {"red", "seven", "ground"} <= set(sd.meta["words"])
    options = dict(refiner=refiner, size=(24, 40), steps=6, progress=False)
    assert draw(base, PROMPT, **options).shape == (1, 3, 24, 40)


class Stop(Exception):
    pass


def test_a_stop_in_the_middle_of_each_part_changes_nothing(whole, tmp_path, monkeypatch):
    """Seven stops, one in each part, each after its third of four updates; then to the end."""
    real, bars = whole_system.progress, []
    monkeypatch.setattr(sdxl, "Beside", Here)

    def stopping(steps, total, desc):
        for step in real(steps, total, desc=desc):
            yield step
            if desc not in bars and step.step == 3:
                bars.append(desc)
                raise Stop

    monkeypatch.setattr(whole_system, "progress", stopping)
    for _ in PARTS:
        with pytest.raises(Stop):
            train_sdxl(TINY_SDXL, tmp_path)
        stopped = list(PARTS)[list(PARTS.values()).index(bars[-1])]
        assert load_tensors(tmp_path / f"{stopped}.safetensors")[1]["step"] == 2
    assert sorted(bars) == sorted(PARTS.values())
    assert same(both(train_sdxl(TINY_SDXL, tmp_path)), both(whole))


def test_checkpoints_of_another_recipe_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sdxl, "Beside", lambda *args: pytest.fail("something was trained"))
    folder = tmp_path / "run"
    whole_system.checkpoints(TINY_SDXL, folder, tuple(PARTS))
    for change in ({"sizes": False}, {"stages": TINY_SDXL.stages[:1]}, {"n": 90}):
        with refuses(CheckpointError, "another recipe", next(iter(change))):
            train_sdxl(replace(TINY_SDXL, **change), folder)


# ---------------------------------------------------------------- parts


@pytest.fixture
def start():
    """A base with a VAE and text encoders of random weights, before its first stage."""
    torch.manual_seed(0)
    vae = VAE(TINY_SDXL.base.vae)
    clips = [sdxl.train_clip(replace(TINY_SDXL, train_clip=ONE), k) for k in (0, 1)]
    return assemble(TINY_SDXL.base, TINY_SDXL.schedule(), vae, clips)


def test_latents_get_a_standard_deviation_of_one(start):
    data = TINY_SDXL.cuts(TINY_SDXL.stages[-1])
    before = encode_cuts(start, data)
    flat = lambda latents: torch.cat([z.flatten() for z in latents.z_0])
    after, std = sdxl.unit_latents(start, before), flat(before).std().item()
    assert std != pytest.approx(1, abs=0.1) and flat(after).std().item() == pytest.approx(1, 1e-5)
    assert start.config.vae.scale == start.vae.config.scale == pytest.approx(1 / std)
    for one, other in zip(encode_cuts(start, data).z_0, after.z_0):
        assert torch.allclose(one, other, atol=1e-4)


def test_a_stage_goes_on_from_the_averages_of_the_one_before(start):
    first, averages = [], []

    def log(k):
        def watch(steps):
            for step in steps:
                if step.step == 1:
                    first.append(numbers(step.model))
                yield step
            averages.append(numbers(step.ema))

        return watch

    quiet = replace(TINY_SDXL.stages[1], run=replace(TINY_SDXL.stages[1].run, lr=0.0))
    recipe = replace(TINY_SDXL, stages=(TINY_SDXL.stages[0], quiet))
    before = numbers(start.unet)
    sd = sdxl.train_base(recipe, start, log=log)
    assert not same(first[0], before) and not same(averages[0], before)
    assert same(first[1], averages[0]) and same(numbers(sd.unet), averages[1])
    assert not any(p.requires_grad for p in sd.parameters()) and not sd.training


# ---------------------------------------------------------------- from the shell


@pytest.mark.slow
def test_train_writes_both_and_processes_give_the_same(whole, tmp_path, monkeypatch, capsys):
    """With real processes, checkpoints beside; the command once more finds all of it done."""
    monkeypatch.setattr(follow, "SDXL_RECIPE", TINY_SDXL)
    out, run = tmp_path / "mini.safetensors", tmp_path / "run"
    assert main(["train", "sdxl-mini", "--out", str(out), "--checkpoint", str(run)]) == 0
    assert "mini.safetensors, " in (said := capsys.readouterr().out) and "mini-refiner" in said
    for sd, name in ((whole.base, "mini"), (whole.refiner, "mini-refiner")):
        save(tmp_path / "wanted.safetensors", sd, dtype=torch.int8)
        written = load(tmp_path / f"{name}.safetensors")
        assert same(numbers(written), numbers(load(tmp_path / "wanted.safetensors")))
        assert written.config == sd.config and written.meta["train"]["vae"]["updates"] == UPDATES


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--seconds", "60"], ("--seconds", "eight runs", "leave")),
        (["--steps", "10"], ("--steps", "eight runs")),
        (["--steps", "10", "--dtype", "bfloat16"], ("--steps, --dtype",)),
        (["--out", "nowhere/x.safetensors"], ("nowhere", "does not exist")),
        (["--checkpoint", "file"], ("checkpoints", "file")),
    ],
)
def test_train_refuses_at_once(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sdxl, "Beside", lambda *args: pytest.fail("something was trained"))
    (tmp_path / "file").touch()
    assert main(["train", "sdxl-mini", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and all(word in message for word in words), message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_recipe_lists_this_one(capsys):
    assert main(["train", "sdxl"]) == 2
    assert "minute, mnist" in (said := capsys.readouterr().err) and "sdxl-mini" in said


# ---------------------------------------------------------------- drawing from the shell


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A data folder where a base and a refiner of random weights ship."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "weights").mkdir()
    for name, sd in random_pair().items():
        suffix = "-refiner" if name == "refiner" else ""
        save(folder / "weights" / f"sdxl-mini{suffix}.safetensors", sd)
    return folder


def test_txt2img_with_the_refiner_of_the_model(weights, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "data_folder", lambda: weights)
    out = tmp_path / "a.png"
    more = "--model sdxl-mini --refiner --size 24x40 --original-size 90x34 --crop 8x3 --steps 5"
    more += f" --zoom 1 --seed 4 --out {out} --device cpu"
    assert main(["txt2img", PROMPT, *more.split()]) == 0
    picture = Image.open(out)
    told = json.loads(picture.info["ddpm_edu"])
    assert told["model"] == "sdxl-mini" and told["refiner"] == "sdxl-mini-refiner"
    assert told["original_size"] == [34, 90] and told["crop"] == [3, 8]
    same = dict(size=(40, 24), original_size=(34, 90), crop=(3, 8), steps=5, seeds=4)
    pair = load("sdxl-mini"), load("sdxl-mini-refiner")
    wanted = to_uint8(draw(pair[0], PROMPT, refiner=pair[1], progress=False, **same))
    assert picture.size == (24, 40)
    assert picture.tobytes() == wanted[0].permute(1, 2, 0).numpy().tobytes()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--model sdxl-mini --size 22x40", ("size = 22", "20 or 24")),  # steps of four
        ("--model sdxl-mini --crop 8", ("--crop 8", "two numbers")),
        ("--model sdxl-mini --original-size 0x40", ("original_size = 0", "1 to 65536")),
        ("--model sdxl-mini --original-size 1000000x1000000", ("original_size = 1000000",)),
        ("--model sd15 --crop 8x8", ("--crop", "SD 1.5")),
        ("--model sdxl-mini-refiner", ("refiner", "base first")),
    ],
)
def test_txt2img_refuses(weights, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(loading, "data_folder", lambda: weights)
    out = tmp_path / "a.png"
    assert main(["txt2img", PROMPT, *arguments.split(), "--out", str(out), "--device", "cpu"]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words) and not out.exists(), message


def test_a_model_without_a_refiner_of_its_own_takes_sdxls(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "data_folder", lambda: weights)
    monkeypatch.setattr(loading.hub, "snapshot", lambda hub, *more: pytest.fail(hub))
    command = ["txt2img", "a fox", "--model", "sdxl", "--refiner", "--out", str(tmp_path / "a.png")]
    with pytest.raises(pytest.fail.Exception, match="stable-diffusion-xl-base"):
        main(command)
    assert "sdxl-refiner: about" in capsys.readouterr().err
