"""A LoRA and a word of a system from a folder of yours: small systems, and SD's and SDXL's way."""

import json
from dataclasses import replace

import pytest
import tiny_pipelines
import torch
from helpers import refuses
from test_own import metadata, picture
from test_train_lora import SMALL

from ddpm_edu.cli import main
from ddpm_edu.datasets.buckets import buckets
from ddpm_edu.datasets.emoji import emoji
from ddpm_edu.datasets.own import own_pictures
from ddpm_edu.errors import CheckpointError, DataError, OptionError
from ddpm_edu.files.embedding import load_embedding
from ddpm_edu.files.load import load, save
from ddpm_edu.files.lora import load_lora
from ddpm_edu.systems import pipeline
from ddpm_edu.systems.system import build
from ddpm_edu.training import own_lora
from ddpm_edu.training.cuts import encode_cuts
from ddpm_edu.training.latents import conditions
from ddpm_edu.training.own_lora import train_own_lora, train_own_word


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save(path, build(replace(SMALL, steps=2, guidance=1.0)))
    return path


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Samples are one step and two pictures."""
    draw = lambda sd, texts: (pipeline.draw(sd, texts[:2], steps=1, progress=False), texts)
    monkeypatch.setattr(own_lora, "draw_captions", draw)


@pytest.fixture(scope="module", params=("sd", "sd2", "sdxl"))
def folder(request, tmp_path_factory):
    """A system in the official layout."""
    path = tmp_path_factory.mktemp(request.param)
    tiny_pipelines.build(request.param).save_pretrained(path)
    return path


@pytest.fixture
def cats(tmp_path):
    for k, size in enumerate([(64, 64), (64, 60), (96, 48), (96, 50), (64, 64)]):
        picture(tmp_path / "cats" / f"a red cat {k}.png", k, size)
    return tmp_path / "cats"


def test_lora_of_a_small_system_by_the_command(tiny, cats, tmp_path, capsys):
    out = tmp_path / "cats.safetensors"
    train = ["train", str(cats), "--lora", str(tiny), "--steps", "2", "--out", str(out)]
    assert main([*train, "--rank", "3"]) == 0
    said = capsys.readouterr()
    assert "MiB of memory in float32 to train a LoRA of rank 3" in said.err
    assert f"txt2img PROMPT --model {tiny} --lora {out}" in said.out
    assert {p.name for p in tmp_path.iterdir()} == {
        "cats",
        "cats.safetensors",
        "cats-samples.png",
        "cats-loss.png",
    }
    lora = load_lora(out, load(tiny))
    assert {change.rank for change in lora.changes} == {3}
    assert any(change.up.weight.abs().max() > 0 for change in lora.changes)
    card = (
        json.loads(lora.meta["train"])
        if isinstance(lora.meta["train"], str)
        else lora.meta["train"]
    )
    assert card["number"] == 5 and card["steps"] == 2
    drawn = str(tmp_path / "a.png")
    draw = ["txt2img", "a cat", "--model", str(tiny), "--steps", "1", "--out", drawn]
    assert main([*draw, "--lora", str(out)]) == 0
    assert main(["txt2img", "a cat", "--model", "painted", "--lora", str(out), "--out", drawn]) == 2
    assert "do not fit" in capsys.readouterr().err


def test_lora_in_the_time_that_there_is_and_from_a_checkpoint(tiny, cats, tmp_path):
    seen = []
    train_own_lora(cats, tiny, tmp_path / "a.safetensors", seconds=0.3, watch=seen.append)
    assert seen[-1].step == seen[-1].steps < 20
    how = dict(steps=2, checkpoint=tmp_path / "run.safetensors", rank=2)
    train_own_lora(cats, tiny, tmp_path / "b.safetensors", **how)
    train_own_lora(cats, tiny, tmp_path / "c.safetensors", **how)
    b, c = (load_lora(tmp_path / f"{name}.safetensors", load(tiny)) for name in "bc")
    assert all(torch.equal(v, w) for v, w in zip(b.parameters(), c.parameters(), strict=True))
    with refuses(CheckpointError, "run.safetensors"):
        train_own_lora(cats, tiny, tmp_path / "d.safetensors", **{**how, "rank": 3})


def test_a_system_that_ships_keeps_its_own_pictures(cats, tiny, tmp_path, monkeypatch):
    """Of the emoji system, emoji with their names; of one that a learner made, nothing is known."""
    monkeypatch.setattr(own_lora, "KEPT", 5)
    monkeypatch.setattr(own_lora, "encode", lambda sd, pictures: pictures)
    sd, every = load(tiny), emoji()
    assert own_lora._known(sd) is None
    sd.config = replace(sd.config, name="emoji")
    kept = own_lora._known(sd)
    x_0, names = kept[torch.arange(5)]
    assert len(kept) == len(set(names)) == 5
    assert torch.equal(x_0, every[[every.find(name) for name in names]][0])


def test_dreambooth_by_the_command(tiny, cats, tmp_path, monkeypatch):
    """One caption for all, and pictures of the class that the system drew before."""
    monkeypatch.setattr(own_lora, "PRIOR", 6)
    asked = []
    train = own_lora.train_lora

    def spy(sd, data, *rest, **more):
        asked.append(data)
        return train(sd, data, *rest, **more)

    monkeypatch.setattr(own_lora, "train_lora", spy)
    out = str(tmp_path / "b.safetensors")
    command = ["train", str(cats), "--lora", str(tiny), "--steps", "1", "--out", out]
    assert main([*command, "--caption", "a sks cat", "--prior", "a cat"]) == 0
    (data,) = asked
    sd = load(tiny)
    index = torch.tensor([0, len(data.own)])
    contexts = data[index][1].context
    assert len(data.prior) == 6
    torch.testing.assert_close(contexts, conditions(sd, ["a sks cat", "a cat"]).context)


def test_the_way_of_large_systems(folder, cats, tmp_path, monkeypatch, capsys):
    """In buckets, in bfloat16, blocks run again, one picture a batch, VAE and text on the CPU."""
    monkeypatch.setattr(own_lora, "LARGE", 64)
    seen = []
    out = tmp_path / "a.safetensors"
    how = dict(steps=2, rank=2, dtype=torch.bfloat16, size=64, watch=seen.append)
    train_own_lora(cats, folder, out, **how)
    assert "bfloat16 to train a LoRA of rank 2 at 64x64" in capsys.readouterr().err
    lora = load_lora(out, load(folder))
    assert any(change.up.weight.abs().max() > 0 for change in lora.changes)
    assert seen[-1].step == 2 and seen[-1].captions == ["a red cat"] * 2
    assert seen[-1].pictures.isfinite().all()


def test_pictures_in_buckets_and_what_a_system_is_told_of_them(folder, cats):
    sd = load(folder)
    own = own_pictures(cats, 64, shapes=buckets(64, 16, 2))
    data = encode_cuts(sd, own, batch=2)
    assert len(own.shapes) == 2
    for index in (torch.tensor([0, 4]), torch.tensor([2, 3])):
        z_0, cond = data[index]
        torch.testing.assert_close(z_0, sd.vae.to_latent(own[index][0]), atol=1e-5, rtol=1e-4)
        if not sd.config.vector:
            assert cond.vector is None
            expected = conditions(sd, ["a red cat"] * 2).context
            torch.testing.assert_close(cond.context, expected)
    if sd.config.vector:  # a picture as large as the model draws: as in drawing
        _, cond = data[torch.tensor([0])]
        size = dict(original_size=(64, 64), crop=(0, 0), target_size=(64, 64))
        expected = pipeline.condition(sd, ["a red cat"], **size)
        torch.testing.assert_close(cond.vector, expected.vector)
        torch.testing.assert_close(cond.context, expected.context)
        assert not data.uncond(torch.tensor([0])).context.any()  # zeros for no text


def test_a_word_by_the_command(tiny, cats, tmp_path, capsys):
    out = tmp_path / "mine.safetensors"
    train = ["train", str(cats), "--embedding", str(tiny), "--word", "<mine>", "--start", "cat"]
    assert main([*train, "--steps", "2", "--out", str(out)]) == 0
    assert f"--embedding {out}" in capsys.readouterr().out
    sd = load(tiny)
    assert load_embedding(out, sd) == "<mine>"
    draw = ["txt2img", "a <mine>", "--model", str(tiny), "--steps", "1", "--embedding", str(out)]
    assert main([*draw, "--out", str(tmp_path / "a.png")]) == 0
    metadata(cats, {"file_name": "a red cat 0.png", "text": "a <mine> at night"})
    seen = []
    train_own_word(cats, tiny, out, "<mine>", start="cat", steps=1, watch=seen.append)
    assert set(seen[-1].captions) == {"a <mine> at night", "<mine>"}
    with refuses(OptionError, "<mine>"):
        train_own_word(cats, tiny, out, "<mine>", start="cat", caption="a cat")


def test_one_picture_and_none(tiny, cats, tmp_path):
    for k in range(1, 5):
        (cats / f"a red cat {k}.png").unlink()
    with pytest.warns(UserWarning, match="single picture"):
        train_own_lora(cats, tiny, tmp_path / "a.safetensors", steps=1)
    (cats / "a red cat 0.png").rename(cats / "0.png")
    with refuses(DataError, "no caption", "--caption"):
        train_own_lora(cats, tiny, tmp_path / "a.safetensors", steps=1)
