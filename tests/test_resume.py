"""Going on with a training run: bit for bit, from nothing but its own checkpoint, and with several processes as with one."""

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import refuses
from torch import nn
from train_run import CONFIG, SCHEDULE, Points, new_model, numbers, run, same, sums

from ddpm_edu import CheckpointError, Cond, Schedule
from ddpm_edu.files.load import save
from ddpm_edu.files.tensors import load_tensors, save_tensors
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
    first = run(config, stop=10, checkpoint=file)
    model = new_model(seed=5)
    torch.manual_seed(77)
    second = run(config, model, checkpoint=file)
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
    """Another process takes up the checkpoint of this one: bit for bit the run without a stop."""
    script, file = Path(__file__).with_name("train_run.py"), tmp_path / "c.safetensors"
    whole = run()
    first = run(stop=10, checkpoint=file)
    command = [sys.executable, script, tmp_path / "second", "--checkpoint", file]
    subprocess.run(command, check=True, timeout=200)
    second = json.loads((tmp_path / "second.0").read_text())
    assert [s.loss for s in first] + second["losses"] == [s.loss for s in whole]
    assert [second["model"], second["ema"]] == [sums(whole[-1].model), sums(whole[-1].ema)]


def test_a_run_by_the_clock_goes_on_by_the_clock(tmp_path):
    """Half a second of ten is left."""
    file = tmp_path / "run.safetensors"
    config = TrainConfig(steps=1, seconds=10.0, batch_size=4, save_every=1)
    run(config, stop=3, checkpoint=file)
    tensors, meta = load_tensors(file)
    tensors = {k: v.clone() for k, v in tensors.items()}
    save_tensors(file, tensors, {**meta, "elapsed": 9.5})
    started = time.perf_counter()
    more = run(config, checkpoint=file)
    assert more[0].step == 4 and 0.4 < time.perf_counter() - started < 6
    over(file, config, more[-1])


def test_save_every_and_the_last_step(tmp_path):
    file, config = tmp_path / "run.safetensors", dataclasses.replace(CONFIG, save_every=8)
    saved = [
        load_tensors(file)[1]["step"] if file.exists() else None
        for _ in train(new_model(), SCHEDULE, Points(), config, checkpoint=file)
    ]
    assert saved == [None] * 7 + [8] * 8 + [16] * 4 + [20]
    assert load_tensors(file)[1]["kind"] == "training"


class Interrupted(MLP):
    """Somebody presses Ctrl-C while the network computes for the `when`-th time."""

    def __init__(self, when=(), **sizes):
        super().__init__(**sizes)
        self.calls, self.when = 0, when

    def forward(self, x_t, t, cond=Cond()):
        self.calls += 1
        for _ in range(self.when.count(self.calls)):
            signal.raise_signal(signal.SIGINT)
        return super().forward(x_t, t, cond)


def test_control_c_ends_the_update_saves_and_says_so(tmp_path):
    file = tmp_path / "run.safetensors"
    whole = run(model=new_model(kind=Interrupted))
    with pytest.raises(KeyboardInterrupt, match=f"saved after step 7 to {file}"):
        run(model=new_model(kind=Interrupted, when=[7]), checkpoint=file)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rest = run(model=new_model(seed=3, kind=Interrupted), checkpoint=file)
    assert [s.loss for s in rest] == [s.loss for s in whole[7:]]
    assert same(numbers(rest[-1].ema), numbers(whole[-1].ema))


@pytest.mark.parametrize("options", [{}, {"checkpoint": "run.safetensors"}], ids=str)
def test_control_c_at_once(options, tmp_path, monkeypatch):
    """Without a checkpoint; or the second time: then the last checkpoint stays."""
    monkeypatch.chdir(tmp_path)
    model = new_model(kind=Interrupted, when=[13] * (1 + len(options)))
    with pytest.raises(KeyboardInterrupt) as caught:
        run(model=model, **options)
    assert not str(caught.value) and model.calls == 13
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if options:
        assert load_tensors("run.safetensors")[1]["step"] == 10


@pytest.mark.parametrize(
    "wrapped", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")]
)
def test_a_wrapped_model_is_saved_as_the_one_inside(wrapped, tmp_path):
    """Compiled or parallel at first, plain when it goes on: and its average is a plain model."""
    file = tmp_path / "run.safetensors"
    whole = run(model=new_model(kind=MLP))
    first = run(model=wrapped(new_model(kind=MLP)), stop=10, checkpoint=file)
    assert type(first[0].ema) is MLP
    rest = run(model=new_model(seed=3, kind=MLP), checkpoint=file)
    assert [s.loss for s in first + rest] == pytest.approx([s.loss for s in whole], rel=1e-5)
    torch.testing.assert_close(numbers(rest[-1].ema), numbers(whole[-1].ema))


HEADS = dict(in_channels=1, channels=16, mult=(1,), depth=(1,), middle=0, groups=4, blocks=1)


class Pictures(Points):
    def __getitem__(self, index):
        return self.x[index].view(-1, 1, 1, 2).repeat(1, 1, 2, 1), None


def unchanged(file, model, words, config=CONFIG, schedule=SCHEDULE, dataset=None):
    """The checkpoint is refused with these words; file, weights and the global random state stay as they were."""
    before, content, state = numbers(model), file.read_bytes(), torch.get_rng_state()
    with refuses(CheckpointError, file.name, *words):
        next(train(model, schedule, dataset or Points(), config, checkpoint=file))
    assert (
        same(numbers(model), before)
        and file.read_bytes() == content
        and torch.equal(torch.get_rng_state(), state)
    )


@pytest.fixture
def halfway(tmp_path):
    file = tmp_path / "run.safetensors"
    run(stop=10, checkpoint=file)
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


def without(*parts):
    def change(tensors, meta):
        names = [name for name in tensors if name.startswith(parts)]
        assert names
        for name in names:
            del tensors[name]

    return change


def with_(**tensors):
    names = {name.replace("__", "."): value for name, value in tensors.items()}
    return lambda tensors, meta: tensors.update(names)


DAMAGES = {
    "a weight of the average": (without("ema.first.weight"), "1 missing .first.weight"),
    "a random state": (without("random.generator"), "random.generator"),
    "half a random state": (with_(random__torch=torch.zeros(7, dtype=torch.uint8)), "damaged"),
    "the schedule": (without("schedule.beta"), "another noise schedule"),
    "the whole optimizer": (without("optimizer."), "36 tensors missing .*optimizer.0"),
    "the optimizer of one weight": (without("optimizer.2."), "3 tensors missing .*optimizer.2"),
    "one entry of the optimizer": (without("optimizer.0.exp_avg_sq"), "optimizer.0.exp_avg_sq"),
    "one count of the optimizer": (without("optimizer.0.step"), "optimizer.0.step"),
    "a misshapen optimizer": (with_(optimizer__0__exp_avg=torch.zeros(3)), "optimizer.0.exp_avg"),
    "an optimizer of more": (with_(optimizer__99__exp_avg=torch.zeros(3)), "damaged"),
    "one more of the optimizer": (with_(optimizer__0__max=torch.zeros(16, 2)), "optimizer.0.max"),
    "NaN": (lambda t, m: t["ema.first.weight"].fill_(float("nan")), "NaN.*ema.first.weight"),
    "infinity": (lambda t, m: t["optimizer.0.exp_avg"].fill_(float("inf")), "infinity"),
    "no step": (lambda t, m: m.pop("step"), "step"),
    "a step below 0": (lambda t, m: m.update(step=-3), "step = -3"),
    "a step past the end": (lambda t, m: m.update(step=10**9), "step = 1000000000 of 20"),
    "half a step": (lambda t, m: m.update(step=9.5), "step = 9.5"),
    "no time": (lambda t, m: m.pop("elapsed"), "elapsed"),
    "a time below 0": (lambda t, m: m.update(elapsed=-1.0), "elapsed = -1"),
    "no list of tensors": (lambda t, m: m.pop("tensors"), "tensors"),
    "no config": (lambda t, m: m.pop("config"), "another run"),
    "another config": (lambda t, m: m.update(config=5), "another run"),
    "no kind": (lambda t, m: m.pop("kind"), "not a training checkpoint"),
    "no format": (lambda t, m: m.pop("format"), "another format"),
    "a newer format": (lambda t, m: m.update(format=2), "another format .2, not 1"),
    "an entry that is new": (lambda t, m: m.update(version=2), "another format .with version"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_load_nothing(damage, halfway):
    change, words = DAMAGES[damage]
    tensors, meta = load_tensors(halfway)
    tensors = {k: v.clone() for k, v in tensors.items()}
    change(tensors, meta)
    save_tensors(halfway, tensors, meta)
    unchanged(halfway, new_model(seed=3), [words])


@pytest.mark.parametrize("lost", ["optimizer.", "optimizer.1.", "optimizer.0.momentum"])
def test_muon_goes_on_with_all_of_its_state(lost, tmp_path):
    file, config = tmp_path / "run.safetensors", dataclasses.replace(CONFIG, optimizer="muon")
    run(config, stop=10, checkpoint=file)
    tensors, meta = load_tensors(file)
    tensors = {k: v.clone() for k, v in tensors.items()}
    without(lost)(tensors, meta)
    save_tensors(file, tensors, meta)
    unchanged(file, new_model(), ["tensors missing", lost], config)


def test_other_files_are_refused(halfway, tmp_path):
    halfway.write_bytes(halfway.read_bytes()[:-5])
    unchanged(halfway, new_model(), ("cut short",))
    model = UNet(UNetConfig(heads=(2,), **HEADS))
    save(tmp_path / "net.safetensors", model, schedule=SCHEDULE, predict="eps")
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
