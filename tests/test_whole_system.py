"""whole_system.py: a whole system trained by two processes, which a stop in the middle does not change by a bit, and its refusals."""

import dataclasses
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from folder_writer import save_folder
from helpers import refuses
from test_devices import Mps
from tiny_recipe import CAPTIONS, LINEAR, TINY, Dots
from train_run import numbers, same

from ddpm_edu.cli import main
from ddpm_edu.errors import CheckpointError, OptionError
from ddpm_edu.files.load import load, save
from ddpm_edu.files.tensors import load_tensors
from ddpm_edu.networks.clip import CLIP, CLIPConfig
from ddpm_edu.networks.tokenizer import train_tokenizer
from ddpm_edu.networks.vae import VAE
from ddpm_edu.systems.pipeline import draw
from ddpm_edu.training import whole_system as module
from ddpm_edu.training.latents import encode
from ddpm_edu.training.recipes import RECIPES
from ddpm_edu.training.resume import Run
from ddpm_edu.training.whole_system import assemble, train_clip, train_system, train_unet, train_vae

PARTS = {"vae": 6, "clip": 5, "unet": 8}  # and the updates of each


def untrained():
    """The parts as they are before their training."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(CAPTIONS, TINY.vocab, TINY.text.length)
    text = dataclasses.replace(TINY.text, vocab=tokenizer.bpe.get_vocab_size())
    return VAE(TINY.vae), CLIP(CLIPConfig(text, size=8, **TINY.vision), tokenizer)


@pytest.fixture(scope="module")
def whole():
    """One run without a stop."""
    return train_system(TINY)


# ---------------------------------------------------------------- a run


@pytest.mark.slow
def test_three_parts_in_two_processes(whole):
    sd, clip, record = whole.sd, whole.clip, whole.record
    for part, updates in PARTS.items():
        assert record[part]["updates"] == updates == len(record[part]["loss"]) and all(
            map(math.isfinite, record[part]["loss"])
        )
    assert (
        record["recipe"] == "tiny"
        and record["seconds"] > 0
        and record["scale"] == pytest.approx(sd.config.vae.scale, abs=1e-5)
    )
    assert (sd.config.size, sd.config.steps, sd.config.guidance, sd.config.spacing, sd.predict) == (
        8,
        4,
        2.0,
        "trailing",
        "v",
    )
    assert not sd.training and not any(p.requires_grad for p in sd.parameters())
    assert sd.meta["words"] == sorted("a red green blue white dot at the top bottom".split())
    assert encode(sd, Dots()).z_0.std().item() == pytest.approx(
        1, abs=1e-4
    )  # what the scale is for
    start = assemble(TINY, *untrained())
    for part in ("vae", "unet", "text"):
        assert not same(numbers(getattr(sd, part)), numbers(getattr(start, part))), part
    ids = clip.ids(CAPTIONS)
    assert (
        torch.equal(sd.text.encode(CAPTIONS).context, clip.text(ids).last)
        and sd.config.text[0].projection == 0
    )


@pytest.mark.slow
def test_it_is_saved_and_draws(whole, tmp_path):
    meta = {**whole.sd.meta, "train": whole.record}
    save(tmp_path / "tiny.safetensors", whole.sd, meta, dtype=torch.int8)
    again = load(tmp_path / "tiny.safetensors")
    assert again.meta["train"] == whole.record and again.config == whole.sd.config
    picture = draw(whole.sd, "a red dot at the top", progress=False)
    assert (
        picture.shape == (1, 3, 8, 8)
        and 0
        <= (draw(again, "a red dot at the top", progress=False) - picture).abs().mean()
        < 0.1 * picture.std()
    )


@pytest.mark.slow
def test_its_folder_is_one_of_diffusers_without_a_word_of_warning(whole, tmp_path, caplog):
    diffusers = pytest.importorskip("diffusers")
    save_folder(whole.sd, tmp_path)
    # A folder does not say how many steps, nor the guidance.
    options = dict(steps=4, guidance=2.0, sampler="ddim", spacing="trailing", progress=False)
    pictures = [draw(sd, CAPTIONS[0], **options) for sd in (load(tmp_path), whole.sd)]
    assert torch.equal(*pictures)
    diffusers.logging.enable_propagation()
    try:
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    finally:
        diffusers.logging.disable_propagation()
    assert not [r.message for r in caplog.records if r.levelname in ("WARNING", "ERROR")]
    texts = ["A Red DOT at the top", "", "red 7 dots!", "红苹果", "a red dot " * 9]
    theirs = pipe.tokenizer(
        texts, padding="max_length", max_length=12, truncation=True, return_tensors="pt"
    ).input_ids
    with pytest.warns(UserWarning, match="only 10 fit"):
        assert torch.equal(whole.sd.text.tokenizer(texts), theirs)


# ---------------------------------------------------------------- a stop in the middle


class Stop(Exception):
    pass


@contextmanager
def stopped_in_the_unet(monkeypatch, each=lambda desc, step: None):
    """What is trained inside stops after the UNet's sixth update; `each` sees every step."""
    real = module.progress

    def stopping(steps, total, desc):
        for step in real(steps, total, desc=desc):
            yield step
            each(desc, step)
            if desc == "UNet" and step.step == 6:
                raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(module, "progress", stopping)
        yield


@pytest.mark.slow
def test_a_stop_in_the_middle_changes_nothing(whole, tmp_path, monkeypatch):
    """Stopped in the UNet's training, and once more with the VAE's set back to its middle: bit for bit the run without a stop."""

    def keep(desc, step):
        if desc == "VAE" and step.step == 4:
            shutil.copy(tmp_path / "vae.safetensors", tmp_path / "middle")

    with stopped_in_the_unet(monkeypatch, keep):
        train_system(TINY, folder=tmp_path)
    (tmp_path / "middle").replace(tmp_path / "vae.safetensors")
    assert {part: load_tensors(tmp_path / f"{part}.safetensors")[1]["step"] for part in PARTS} == {
        "vae": 4,
        "clip": 5,
        "unet": 6,
    }
    second = train_system(TINY, folder=tmp_path)
    assert same(numbers(second.sd), numbers(whole.sd)) and same(
        numbers(second.clip), numbers(whole.clip)
    )
    assert second.sd.config == whole.sd.config
    record = second.record
    assert {part: record[part]["updates"] for part in PARTS} == PARTS
    assert [len(record[part]["loss"]) for part in PARTS] == [2, 0, 2] and record["vae"][
        "loss"
    ] == whole.record["vae"]["loss"][4:]


@pytest.mark.slow
def test_a_clip_stopped_in_the_middle(whole, tmp_path, monkeypatch):
    """In this process, where the whole run had another one for it."""

    def stopping(steps):
        for step in steps:
            yield step
            if step.step == 3:
                raise Stop

    with pytest.raises(Stop):
        train_clip(TINY, tmp_path / "clip.safetensors", stopping)
    clip = train_clip(TINY, tmp_path / "clip.safetensors")
    assert (
        same(numbers(clip), numbers(whole.clip))
        and clip.tokenizer.bpe.to_str() == whole.clip.tokenizer.bpe.to_str()
    )


def test_what_is_kept_is_the_average():
    kept, raw = [], []

    def log(steps):
        for step in steps:
            kept[:], raw[:] = [step], [numbers(step.model)]
            yield step

    vae = train_vae(TINY, log=log)
    assert (
        same(numbers(vae), numbers(kept[0].ema.vae))
        and not same(numbers(vae), numbers(kept[0].model.vae))
        and kept[0].step == 6
    )
    clip = train_clip(TINY, log=log)
    assert (
        same(numbers(clip), numbers(kept[0].ema))
        and not same(numbers(clip), raw[0])
        and kept[0].step == 5
    )
    sd = assemble(TINY, vae, clip)
    x, cond = torch.randn(2, 2, 4, 4), sd.text.encode(CAPTIONS[:2])
    assert (
        sd.unet(x, torch.tensor([500, 9]), cond) == 0
    ).all()  # before its training it predicts v = 0
    sd = train_unet(sd, encode(sd, Dots()), TINY.train_unet, log=log)
    assert (
        same(numbers(sd.unet), numbers(kept[0].ema))
        and not same(numbers(sd.unet), raw[0])
        and kept[0].step == 8
    )
    assert sd.unet(x, torch.tensor([500, 9]), cond).abs().max() > 0


@pytest.mark.slow
def test_by_the_clock():
    """At least the time asked for, however long the second process takes to start; the plan's own updates would take for ever."""
    runs = {
        name: dataclasses.replace(getattr(TINY, name), steps=10**9)
        for name in ("train_vae", "train_clip", "train_unet")
    }
    record = train_system(
        dataclasses.replace(TINY, shares=(0.1, 0.05, 0.1), **runs), seconds=2
    ).record
    assert record["seconds"] >= 2 and all(record[part]["updates"] >= 1 for part in PARTS)
    assert all(1 <= len(record[part]["loss"]) <= 200 for part in PARTS)  # thinned


@pytest.mark.slow
def test_a_decoder_that_goes_on_at_the_end(tmp_path, monkeypatch):
    """Its encoder stays, so latents and UNet do; a stop in the middle changes nothing."""
    whole = train_system(LINEAR)
    assert whole.record["decoder"]["updates"] == len(whole.record["decoder"]["loss"]) == 7
    vae, before = whole.sd.vae, train_vae(LINEAR)
    for part in ("encoder", "quant", "linear_in", "linear_out"):
        assert same(numbers(getattr(vae, part)), numbers(getattr(before, part))), part
    for part in ("decoder", "post_quant"):
        assert not same(numbers(getattr(vae, part)), numbers(getattr(before, part))), part
    with stopped_in_the_unet(monkeypatch):
        train_system(LINEAR, folder=tmp_path)
    again = train_system(LINEAR, folder=tmp_path)
    assert (tmp_path / "decoder.safetensors").exists()
    assert same(numbers(again.sd), numbers(whole.sd))
    save(tmp_path / "whole.safetensors", whole.sd, whole.sd.meta)
    assert load(tmp_path / "whole.safetensors").config == whole.sd.config


@pytest.mark.slow
def test_a_decoder_by_the_clock():
    started = time.perf_counter()
    record = train_system(dataclasses.replace(LINEAR, shares=(0.1, 0.05, 0.1)), seconds=2).record
    assert record["seconds"] >= 2 and record["decoder"]["updates"] >= 1
    assert time.perf_counter() - started < 60


def test_the_time_is_estimated_from_the_pace():
    plan, clock = (dataclasses.replace(TINY.train_vae, steps=900, seconds=s) for s in (0, 60))
    said = module.estimate("VAE", plan, 0.1, share=0.25)
    assert said == "VAE: 900 updates, about 90 s here; all parts together about 6 minutes"
    assert module.estimate("UNet", plan, 0.2) == "UNet: 900 updates, about 3 minutes here"
    assert module.estimate("VAE", clock, 0.1) == "VAE: 60 s, about 600 updates here"


def test_the_estimate_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(module, "LISTEN", 0.0)
    train_vae(TINY, log=module.logged("VAE", TINY.train_vae, {}, share=0.5))
    said = r"VAE: 6 updates, about \d+ s here; all parts"  # a busy machine needs more than 0
    assert len(re.findall(said, capsys.readouterr().err)) == 1


# ---------------------------------------------------------------- the second process

LONG = dataclasses.replace(
    TINY,
    train_vae=dataclasses.replace(TINY.train_vae, steps=10**9),
    train_clip=dataclasses.replace(TINY.train_clip, steps=10**9),
)


def long_run(folder):
    """(a process that trains for ever, its other process), once both have saved."""
    code = (
        "from pathlib import Path; from test_whole_system import LONG, train_system; "
        f"train_system(LONG, folder=Path({str(folder)!r}))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", code]
    run = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    files = [folder / "vae.safetensors", folder / "clip.safetensors"]
    while not all(file.exists() for file in files):
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.1)
    children = psutil.Process(run.pid).children(recursive=True)
    return run, max(children, key=lambda child: child.memory_info().rss)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_second_process_ends_with_the_first(how, tmp_path):
    run = stop_long_run(how, tmp_path)
    if how == signal.SIGINT:
        text = run.stderr.read()
        if "saved after step" not in text:  # it fell between two updates: 1 in 200 does
            text = stop_long_run(how, tmp_path / "again").stderr.read()
        assert "saved after step " in text and "vae.safetensors" in text


def stop_long_run(how, folder):
    run, other = long_run(folder)
    run.send_signal(how)  # to the first alone
    assert run.wait(15) and not psutil.wait_procs([other], 5)[1]
    for part in ("vae", "clip"):  # whole
        assert load_tensors(folder / f"{part}.safetensors")[1]["step"] > 0
    return run


@pytest.mark.slow
def test_the_first_process_hears_of_the_end_of_the_second(tmp_path):
    run, other = long_run(tmp_path)
    other.kill()
    assert run.wait(15) and "TrainingError" in (text := run.stderr.read()) and "-9" in text


@pytest.mark.slow
def test_an_error_of_the_second_process_stops_the_first():
    clip = dataclasses.replace(TINY.train_clip, batch_size=49)
    with refuses(OptionError, "batch_size = 49", "at most 48"):
        train_system(dataclasses.replace(LONG, train_clip=clip))


@pytest.mark.slow
@pytest.mark.parametrize("vector", [0, TINY.text.projection + 6 * 2])
def test_data_and_latents_follow_to_another_device(vector, monkeypatch):
    """The meta device stands for a GPU: it holds no numbers, but refuses what lies elsewhere. So
    whatever is read as a number is left out here: losses, gradients' lengths, the latents' scale."""
    monkeypatch.setattr(Run, "_finite", lambda self, name, value: 0.0)
    monkeypatch.setattr(Run, "_no_nan", lambda self, x_0, index: None)
    monkeypatch.setattr(module, "measure_scale", lambda vae, pictures: 1.0)
    recipe = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, vector=vector))
    for part in ("train_vae", "train_clip", "train_unet"):
        config = dataclasses.replace(getattr(recipe, part), steps=2)
        recipe = dataclasses.replace(recipe, **{part: config})
    with Mps():  # and refuses float64 and noise made there
        vae = train_vae(recipe, device="meta")
        clip = train_clip(recipe, device="meta")
    assert {p.device.type for m in (vae, clip) for p in m.parameters()} == {"meta"}
    sd = assemble(recipe, *untrained()).to("meta")
    with Mps():
        latents = encode(sd, Dots())
    assert latents.z_0.is_meta and latents.contexts.is_meta and latents.uncond.context.is_meta
    assert vector == 0 or latents.vectors.is_meta
    with Mps():
        sd = train_unet(sd, latents, recipe.train_unet)
    assert {p.device.type for p in sd.parameters()} == {"meta"}


# ---------------------------------------------------------------- refusals


class Untouched(Dots):
    def __init__(self):
        raise AssertionError("training began")


REFUSED = dataclasses.replace(TINY, dataset=Untouched)


def test_seconds_and_folder(tmp_path):
    with refuses(OptionError, "seconds and folder", "leave one"):
        train_system(REFUSED, seconds=5, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "new", "/proc/new"):
        with refuses(OptionError, "folder", "cannot be made", "name another"):
            train_system(REFUSED, folder=folder)

    def refused(**where):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    with refuses(OptionError, str(tmp_path), "cannot be written", "Permission denied"):
        train_system(REFUSED, folder=tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"name": "other"}, ("name was tiny, now other",)),
        ({"captions": Dots}, ("captions was .*captions, now .*Dots",)),
        ({"vocab": 530}, ("vocab was 540, now 530",)),
        (
            {"train_unet": dataclasses.replace(TINY.train_unet, steps=9)},
            ("train_unet", "'steps': 9"),
        ),
        ({"vae": dataclasses.replace(TINY.vae, channels=16)}, ("vae was", "'channels': 16")),
    ],
    ids=str,
)
def test_another_plan_is_refused_at_once(change, words, tmp_path, monkeypatch):
    """And nothing there is lost; the same plan goes on, also with other wishes for sampling."""
    file = module.checkpoints(TINY, tmp_path, ("vae", "clip", "unet"))["vae"]
    train_vae(TINY, file)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"plan.json", "vae.safetensors"}
    with refuses(CheckpointError, str(tmp_path), "another recipe", "name another folder", *words):
        train_system(dataclasses.replace(TINY, **change), folder=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert (
        module.checkpoints(
            dataclasses.replace(TINY, steps=20, guidance=1.0, shares=(0.5, 0.4, 0.1)),
            tmp_path,
            ("vae", "clip", "unet"),
        )["vae"]
        == file
    )


def test_checkpoints_without_a_plan_are_checked_too(tmp_path):
    train_vae(TINY, tmp_path / "vae.safetensors")
    before = (tmp_path / "vae.safetensors").read_bytes()
    with refuses(CheckpointError, "vae.safetensors", "batch_size was 8, now 4"):
        config = dataclasses.replace(TINY.train_vae, batch_size=4)
        train_vae(dataclasses.replace(TINY, train_vae=config), tmp_path / "vae.safetensors")
    assert (tmp_path / "vae.safetensors").read_bytes() == before


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "a"], ids=str)
def test_seconds_that_are_none(seconds):
    with refuses(OptionError, "seconds"):
        train_system(REFUSED, seconds)


@pytest.mark.parametrize("name", ["vae", "clip", "unet"])
def test_a_damaged_checkpoint_is_heard_of_at_once(name, tmp_path):
    (tmp_path / f"{name}.safetensors").write_text("<html>not here</html>")
    with refuses(CheckpointError, f"{name}.safetensors", "web page"):
        train_system(REFUSED, folder=tmp_path)


def test_a_damaged_plan(tmp_path):
    (tmp_path / "plan.json").write_text("{")
    with refuses(CheckpointError, "plan.json"):
        train_system(REFUSED, folder=tmp_path)


# ---------------------------------------------------------------- from the shell


@pytest.mark.slow
def test_the_command_writes_the_system_and_its_clip(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    out = tmp_path / "tiny.safetensors"
    assert main(["train", "tiny", "--out", str(out), "--checkpoint", str(tmp_path / "folder")]) == 0
    sd = load(out)
    meta = sd.meta
    clip = load(tmp_path / "tiny_clip.safetensors")
    assert (
        meta["train"]["recipe"] == clip.meta["train"]["recipe"] == "tiny" and "red" in meta["words"]
    )
    step = load_tensors(tmp_path / "folder" / "unet.safetensors")[1]["step"]
    assert step == 8 and clip.tokenizer.bpe.to_str() == sd.text.tokenizer.bpe.to_str()
    assert draw(sd, CAPTIONS[0], progress=False).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    "more, words",
    [
        (("--steps", "5"), ("--steps", "--seconds")),
        (("--device", "xpu:9"), ("device = 'xpu:9'", "'cpu'")),
        (("--out", "/nowhere/x.safetensors"), ("/nowhere",)),
        (("--seconds", "5", "--checkpoint", "x"), ("seconds and folder",)),
    ],
)
def test_what_the_command_refuses(more, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(RECIPES, "tiny", REFUSED)
    assert main(["train", "tiny", *more]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words) and not list(tmp_path.iterdir())
