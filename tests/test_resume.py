"""Going on with a training run: bit for bit, from nothing but its own checkpoint, and with several processes as with one."""

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import refuses
from train_run import CONFIG, SCHEDULE, Points, new_model, numbers, run, same

from ddpm_edu import CheckpointError, Schedule
from ddpm_edu.files.checkpoint import load_tensors, save_pretrained, save_tensors
from ddpm_edu.networks.mlp import MLP
from ddpm_edu.networks.unet import SpaceToDepth, UNet, UNetConfig
from ddpm_edu.training.train import TrainConfig, train

# ---------------------------------------------------------------- going on from a checkpoint


def over(file, config, end):
    """A finished run has nothing left to do: it yields its last step, `end`, once more, without a loss, and changes nothing."""
    content = file.read_bytes()
    (step,) = run(config, new_model(seed=6), checkpoint=file)
    assert (
        (step.step, step.lr) == (end.step, 0)
        and math.isnan(step.loss)
        and file.read_bytes() == content
    )
    assert same(numbers(step.model), numbers(end.model)) and same(
        numbers(step.ema), numbers(end.ema)
    )


@pytest.mark.parametrize(
    "options",
    [{}, dict(optimizer="muon", t_distribution="logit_normal", weight_decay=0.01)],
    ids=str,
)
def test_resume_is_bit_equal(options, tmp_path):
    """20 steps in one go, or 10 and then 10 more with everything built anew, other weights and another global seed."""
    file, config = tmp_path / "run.safetensors", dataclasses.replace(CONFIG, **options)
    whole = run(config)
    first = run(config, stop=10, checkpoint=file, save_every=10)
    model = new_model(seed=5)
    torch.manual_seed(77)
    second = run(config, model, checkpoint=file, save_every=10)
    assert [s.step for s in second] == list(range(11, 21))
    assert [s.loss for s in first + second] == [s.loss for s in whole]
    assert [s.lr for s in first + second] == [s.lr for s in whole]
    assert same(numbers(second[-1].model), numbers(whole[-1].model)) and same(
        numbers(second[-1].ema), numbers(whole[-1].ema)
    )
    assert second[-1].model is model
    over(file, config, whole[-1])


@pytest.mark.slow
def test_resume_in_a_new_process(tmp_path):
    script = Path(__file__).with_name("train_run.py")
    for name, extra in (
        ("whole", []),
        ("first", ["--checkpoint", tmp_path / "c.safetensors", "--stop", "10"]),
        ("second", ["--checkpoint", tmp_path / "c.safetensors"]),
    ):
        subprocess.run([sys.executable, script, tmp_path / name, *extra], check=True, timeout=200)
    whole, first, second = (
        json.loads((tmp_path / f"{n}.0").read_text()) for n in ("whole", "first", "second")
    )
    assert first["losses"] + second["losses"] == whole["losses"]
    assert (second["model"], second["ema"]) == (whole["model"], whole["ema"])


def test_a_run_by_the_clock_goes_on_by_the_clock(tmp_path):
    file, config = tmp_path / "run.safetensors", TrainConfig(steps=1, seconds=1.0, batch_size=4)
    for step in train(new_model(), SCHEDULE, Points(), config, checkpoint=file, save_every=1):
        if load_tensors(file)[1]["elapsed"] > 0.5:
            break
    started = time.perf_counter()
    more = run(config, checkpoint=file)
    assert more and more[0].step == step.step + 1 and time.perf_counter() - started < 0.9
    over(file, config, more[-1])


def test_save_every_and_the_last_step(tmp_path):
    file = tmp_path / "run.safetensors"
    saved = [
        load_tensors(file)[1]["step"] if file.exists() else None
        for _ in train(new_model(), SCHEDULE, Points(), CONFIG, checkpoint=file, save_every=8)
    ]
    assert saved == [None] * 7 + [8] * 8 + [16] * 4 + [20]
    assert load_tensors(file)[1]["kind"] == "training"


HEADS = dict(in_channels=1, channels=16, mult=(1,), depth=(1,), middle=0, groups=4, blocks=1)


class Pictures(Points):
    def __getitem__(self, index):
        return self.x[index].view(-1, 1, 1, 2).repeat(1, 1, 2, 1), None


def unchanged(file, model, words, config=CONFIG, schedule=SCHEDULE, dataset=None):
    """The checkpoint is refused with these words; file, weights and the global random state stay as they were."""
    before, content, state = numbers(model), file.read_bytes(), torch.get_rng_state()
    with refuses(CheckpointError, file.name, *words):
        train(model, schedule, dataset or Points(), config, checkpoint=file)
    assert (
        same(numbers(model), before)
        and file.read_bytes() == content
        and torch.equal(torch.get_rng_state(), state)
    )


@pytest.fixture
def halfway(tmp_path):
    file = tmp_path / "run.safetensors"
    run(stop=10, checkpoint=file, save_every=10)
    return file


@pytest.mark.parametrize(
    "change",
    [
        dict(steps=30),
        dict(lr=1e-3),
        dict(batch_size=8),
        dict(predict="v"),
        dict(seed=1),
        dict(ema=0.9),
        dict(p_uncond=0.5),
    ],
    ids=str,
)
def test_another_config_is_refused(change, halfway):
    name, value = next(iter(change.items()))
    unchanged(
        halfway,
        new_model(),
        ("another run", f"{name} was .*, now {value}", "same settings", "another file name"),
        dataclasses.replace(CONFIG, **change),
    )


def test_another_schedule_is_refused(halfway):
    unchanged(
        halfway,
        new_model(),
        ("another noise schedule", "another file name"),
        schedule=Schedule.cosine(100),
    )
    unchanged(
        halfway, new_model(), ("another noise schedule",), schedule=Schedule.linear(99, 1e-3, 0.1)
    )


def test_another_model_is_refused(halfway):
    unchanged(halfway, new_model(hidden=32), ("does not fit", "of another shape", "first.weight"))
    unchanged(halfway, new_model(layers=2), ("does not fit", "2 missing .middle.1.bias"))
    unchanged(halfway, new_model(kind=MLP), ("model was .*Dropping.*, now .*MLP",))


def test_equal_shapes_with_other_heads_are_refused(tmp_path):
    file = tmp_path / "run.safetensors"
    unet = lambda heads, factor=1: SpaceToDepth(UNet(UNetConfig(heads=(heads,), **HEADS)), factor)
    run(dataclasses.replace(CONFIG, steps=2), unet(2), Pictures(), checkpoint=file)
    unchanged(
        file,
        unet(4),
        ("heads.*2.*heads.*4",),
        dataclasses.replace(CONFIG, steps=2),
        dataset=Pictures(),
    )
    unchanged(
        file,
        unet(2, 2),
        ("factor.*1.*factor.*2",),
        dataclasses.replace(CONFIG, steps=2),
        dataset=Pictures(),
    )


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t, m: t.pop("ema.first.weight"), ("does not fit", "1 missing .first.weight")),
        (lambda t, m: t.pop("random.generator"), ("missing or damaged", "random.generator")),
        (lambda t, m: t.update({"random.torch": t["random.torch"][:7]}), ("missing or damaged",)),
        (lambda t, m: m.pop("step"), ("missing or damaged", "step")),
        (
            lambda t, m: t.update({"optimizer.0.exp_avg": torch.zeros(3)}),
            ("missing or damaged", "optimizer.0.exp_avg"),
        ),
        (lambda t, m: t.update({"optimizer.99.exp_avg": torch.zeros(3)}), ("missing or damaged",)),
        (lambda t, m: m.pop("config"), ("another run",)),
        (lambda t, m: t["ema.first.weight"].fill_(float("nan")), ("NaN", "ema.first.weight")),
        (lambda t, m: t.pop("optimizer.0.step"), ("missing or damaged", "optimizer.0")),
        (lambda t, m: t.pop("optimizer.0.exp_avg_sq"), ("missing or damaged", "optimizer.0")),
        (lambda t, m: t["optimizer.0.exp_avg"].fill_(float("inf")), ("infinity",)),
        (lambda t, m: m.update(step=-3), ("missing or damaged", "step = -3")),
        (lambda t, m: m.update(elapsed=-1.0), ("elapsed = -1",)),
        (lambda t, m: m.update(config=5), ("another run",)),
        (lambda t, m: t.pop("schedule.beta"), ("another noise schedule",)),
        (lambda t, m: m.pop("kind"), ("not a training checkpoint", "another file name")),
    ],
)
def test_damaged_checkpoints_load_nothing(change, words, halfway):
    tensors, meta = load_tensors(halfway)
    tensors = {k: v.clone() for k, v in tensors.items()}
    change(tensors, meta)
    save_tensors(halfway, tensors, meta)
    unchanged(halfway, new_model(seed=3), words)


def test_other_files_are_refused(halfway, tmp_path):
    halfway.write_bytes(halfway.read_bytes()[:-5])
    unchanged(halfway, new_model(), ("cut short",))
    save_pretrained(
        tmp_path / "net.safetensors", UNet(UNetConfig(heads=(2,), **HEADS)), SCHEDULE, "eps"
    )
    unchanged(tmp_path / "net.safetensors", new_model(), ("not a training checkpoint",))


# ---------------------------------------------------------------- two processes


def launch(out, processes, *extra):
    """`accelerate launch --cpu --num_processes 2` would start one process (it leaves CPU processes to MPI); --multi_gpu
    starts as many as asked for, and train_run.py asks for the CPU."""
    command = (
        [
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            str(processes),
            "--num_machines",
            "1",
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            "0",
        ]
        if processes > 1
        else []
    )
    done = subprocess.run(
        [
            sys.executable,
            *command,
            Path(__file__).with_name("train_run.py"),
            out,
            "--share",
            *extra,
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path):
    """Equal batch, shared. 1e-5: a mean of two means sums in another order. Their weights agree, the average's too."""
    pytest.importorskip(
        "accelerate", reason="accelerate is not installed: pip install 'ddpm-edu[train]'"
    )
    (one,) = launch(tmp_path / "one", 1)
    two = launch(tmp_path / "two", 2)
    assert [r["world"] for r in two] == [2, 2] and len(one["losses"]) == 20
    for rank in two:
        assert rank["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert rank["ema"] == pytest.approx(one["ema"], abs=1e-4) and rank[
            "model"
        ] == pytest.approx(one["model"], abs=1e-4)


@pytest.mark.slow
def test_two_processes_stop_together_by_the_clock(tmp_path):
    """Each has its own clock: if they disagreed on the last step, one would wait for the other for ever."""
    pytest.importorskip(
        "accelerate", reason="accelerate is not installed: pip install 'ddpm-edu[train]'"
    )
    a, b = launch(tmp_path / "clock", 2, "--seconds", "1.0")
    assert a["losses"] == b["losses"] and len(a["losses"]) > 1 and a["model"] == b["model"]
