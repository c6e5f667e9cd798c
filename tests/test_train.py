"""Training: the numbers of each part by hand, resuming bit for bit, refusals that change nothing, two processes as one."""
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
from torch import nn
from train_run import SCHEDULE, Dropping, Points, new_model

from ddpm_edu import CheckpointError, Cond, DataError, OptionError, Schedule, TrainingError
from ddpm_edu.checkpoint import load_tensors, save_pretrained, save_tensors
from ddpm_edu.mlp import MLP
from ddpm_edu.train import EMA, TrainConfig, progress, train
from ddpm_edu.unet import SpaceToDepth, UNet, UNetConfig

CONFIG = TrainConfig(steps=20, batch_size=16, warmup=5, lr=1e-2)
NAN = float("nan")


def run(config=CONFIG, model=None, dataset=None, stop=10 ** 9, **options):
    steps = []
    for step in train(model or new_model(), SCHEDULE, dataset or Points(), config, **options):
        steps.append(step)
        if step.step == stop:
            break
    return steps


def numbers(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------- what one run does

def test_the_loss_goes_down():
    losses = [s.loss for s in run(dataclasses.replace(CONFIG, steps=300, batch_size=128), new_model(kind=MLP, hidden=64))]
    assert len(losses) == 300 and losses[0] > 0.8 and sum(losses[-30:]) / 30 < 0.3  # 1 is a model that knows nothing


def test_steps_are_counted_from_one_and_seeds_repeat():
    a, b, other = run(), run(), run(dataclasses.replace(CONFIG, seed=1))
    assert [s.step for s in a] == list(range(1, 21)) and a[0].model is a[-1].model
    assert [s.loss for s in a] == [s.loss for s in b] != [s.loss for s in other]
    assert same(numbers(a[-1].ema), numbers(b[-1].ema))


def test_learning_rate_rises_and_falls_to_nothing():
    config = dataclasses.replace(CONFIG, steps=100, warmup=10)
    rates = [s.lr for s in run(config)]
    for i, rate in enumerate(rates):
        assert rate == pytest.approx(1e-2 * min(1, (i + 1) / 10) * (1 + math.cos(math.pi * i / 100)) / 2)
    assert rates[0] == pytest.approx(1e-3) and max(rates) == rates[9] > 0.97e-2 and rates[-1] < 1e-5
    assert config.lr_at(50, 1.0) == 0 and config.lr_at(50, 1.7) == pytest.approx(0, abs=1e-17) and TrainConfig(warmup=0).lr_at(0, 0) == 2e-3


def test_ema_by_hand():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema, average = EMA(model, 0.5), 1.0
    for step, value in enumerate([2.0, -1.0, 4.0, 0.0, 3.0, 5.0, 1.0, 2.0, 8.0, 9.0, 1.0, 0.0], start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update(model, step)
        d = min(0.5, (1 + step) / (10 + step))  # reaches the full 0.5 at step 8
        average = d * average + (1 - d) * value
        assert ema.model.weight.item() == pytest.approx(average, rel=1e-6)
    assert not ema.model.weight.requires_grad and not ema.model.training


def test_ema_copies_what_has_no_average():
    """A BatchNorm counts its batches in whole numbers."""
    model = nn.BatchNorm1d(2)
    ema = EMA(model, 0.9)
    model(torch.randn(4, 2))
    ema.update(model, 1)
    assert ema.model.num_batches_tracked == 1


def test_gradients_are_clipped(monkeypatch):
    """The gradient that reaches the optimizer has at most this length; without the limit it is longer."""
    norms = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a: norms.append(math.sqrt(sum(
        (p.grad ** 2).sum().item() for g in self.param_groups for p in g["params"]))) or step(self, *a))
    run(dataclasses.replace(CONFIG, clip_norm=0.05))
    assert max(norms) < 0.0501
    norms.clear()
    run(dataclasses.replace(CONFIG, clip_norm=1e9))
    assert max(norms) > 0.2


class Spy(MLP):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.seen = []

    def forward(self, x_t, t, cond=Cond()):
        self.seen.append((x_t, t, cond))
        return super().forward(x_t, t, cond)


def spied(config, dataset=None):
    model = new_model(kind=Spy)
    run(config, model, dataset)
    return (torch.cat([s[i] if i < 2 else s[2].vector for s in model.seen]) for i in range(3))


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_conditions_are_dropped_at_this_rate(p):
    """20 x 500 rows, 5 standard errors; a dropped one is all zeros, the others are untouched."""
    *_, vector = spied(dataclasses.replace(CONFIG, batch_size=500, p_uncond=p))
    dropped = (vector == 0).all(1)
    assert (vector.sum(1)[~dropped] == 1).all()
    assert abs(dropped.float().mean().item() - p) <= 5 * math.sqrt(p * (1 - p) / 10_000)


def test_every_picture_once_an_epoch_in_a_new_order():
    class Numbered(Points):
        def __getitem__(self, index):
            seen.extend(index.tolist())
            return super().__getitem__(index)
    seen = []
    run(dataclasses.replace(CONFIG, batch_size=25), dataset=Numbered())  # 500 pictures: 8 epochs of 60 and a bit, batches across their ends
    assert len(seen) == 500
    epochs = [seen[i:i + 60] for i in range(0, 480, 60)]
    assert all(sorted(e) == list(range(60)) for e in epochs) and len({tuple(e) for e in epochs}) == 8
    seen.clear()
    run(dataclasses.replace(CONFIG, steps=1, batch_size=200), dataset=Numbered())  # a batch of more than three epochs
    assert all(sorted(seen[i:i + 60]) == list(range(60)) for i in (0, 60, 120)) and len(seen) == 200


def test_times_are_uniform_and_noise_is_normal():
    x_t, t, _ = spied(dataclasses.replace(CONFIG, batch_size=500))
    counts = torch.bincount(t, minlength=100)
    assert len(counts) == 100 and (counts - 100).abs().max() < 5 * math.sqrt(100)
    assert x_t[t > 95].var().item() == pytest.approx(1, rel=0.2)


def test_logit_normal_times_gather_in_the_middle():
    """t = T sigmoid(normal): below T sigmoid(-1) = 26.9 lies 15.9 % of a normal, in the middle 68.3 %."""
    _, t, _ = spied(dataclasses.replace(CONFIG, batch_size=500, t_distribution="logit_normal"))
    assert 0 <= t.min() and t.max() <= 99
    assert (t < 27).float().mean().item() == pytest.approx(0.159, abs=0.02) and (t >= 73).float().mean().item() == pytest.approx(0.159, abs=0.02)


@pytest.mark.parametrize("predict", ["eps", "x_0", "v"])
def test_the_loss_is_that_of_the_target(predict):
    """A model that always says 0: its loss is the mean square of the target, 1 for eps, the data's for x_0."""
    class Zero(MLP):
        def forward(self, x_t, t, cond=Cond()):
            return super().forward(x_t, t, cond) * 0
    losses = [s.loss for s in run(dataclasses.replace(CONFIG, predict=predict, batch_size=2000), new_model(kind=Zero))]
    data = Points().x.square().mean().item()
    v = (SCHEDULE.alpha_bar + (1 - SCHEDULE.alpha_bar) * data).mean().item()
    assert sum(losses) / 20 == pytest.approx({"eps": 1, "x_0": data, "v": v}[predict], rel=0.02)


def test_seconds_stop_in_time_and_end_with_no_rate():
    started = time.perf_counter()
    steps = run(TrainConfig(seconds=0.7, batch_size=4, warmup=1, lr=1e-2))
    assert 0.7 <= time.perf_counter() - started < 3
    rates = [s.lr for s in steps]
    assert len(steps) > 5 and rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(1e-2, rel=0.01) and rates[-1] < 1e-3


def test_progress_passes_the_steps_on(capsys):
    steps = list(progress(train(new_model(), SCHEDULE, Points(), CONFIG), 20))
    assert [s.step for s in steps] == list(range(1, 21)) and "20/20" in capsys.readouterr().err


# ---------------------------------------------------------------- going on from a checkpoint

@pytest.mark.parametrize("options", [{}, dict(optimizer="muon", t_distribution="logit_normal", weight_decay=0.01)], ids=str)
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
    assert same(numbers(second[-1].model), numbers(whole[-1].model)) and same(numbers(second[-1].ema), numbers(whole[-1].ema))
    assert second[-1].model is model
    assert run(config, checkpoint=file) == []  # a finished run has nothing left to do


@pytest.mark.slow
def test_resume_in_a_new_process(tmp_path):
    script = Path(__file__).with_name("train_run.py")
    for name, extra in (("whole", []), ("first", ["--checkpoint", tmp_path / "c.safetensors", "--stop", "10"]), ("second", ["--checkpoint", tmp_path / "c.safetensors"])):
        subprocess.run([sys.executable, script, tmp_path / name, *extra], check=True, timeout=200)
    whole, first, second = (json.loads((tmp_path / f"{n}.0").read_text()) for n in ("whole", "first", "second"))
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
    assert run(config, checkpoint=file) == []


def test_save_every_and_the_last_step(tmp_path):
    file = tmp_path / "run.safetensors"
    saved = [load_tensors(file)[1]["step"] if file.exists() else None for _ in train(new_model(), SCHEDULE, Points(), CONFIG, checkpoint=file, save_every=8)]
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
    assert same(numbers(model), before) and file.read_bytes() == content and torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def halfway(tmp_path):
    file = tmp_path / "run.safetensors"
    run(stop=10, checkpoint=file, save_every=10)
    return file


@pytest.mark.parametrize("change", [dict(steps=30), dict(lr=1e-3), dict(batch_size=8), dict(predict="v"), dict(seed=1), dict(ema=0.9), dict(p_uncond=0.5)], ids=str)
def test_another_config_is_refused(change, halfway):
    name, value = next(iter(change.items()))
    unchanged(halfway, new_model(), ("another run", f"{name} was .*, now {value}", "same settings", "another file name"), dataclasses.replace(CONFIG, **change))


def test_another_schedule_is_refused(halfway):
    unchanged(halfway, new_model(), ("another noise schedule", "another file name"), schedule=Schedule.cosine(100))
    unchanged(halfway, new_model(), ("another noise schedule",), schedule=Schedule.linear(99, 1e-3, 0.1))


def test_another_model_is_refused(halfway):
    unchanged(halfway, new_model(hidden=32), ("does not fit", "of another shape", "first.weight"))
    unchanged(halfway, new_model(layers=2), ("does not fit", "2 missing .middle.1.bias"))
    unchanged(halfway, new_model(kind=MLP), ("model was .*Dropping.*, now .*MLP",))


def test_equal_shapes_with_other_heads_are_refused(tmp_path):
    file = tmp_path / "run.safetensors"
    unet = lambda heads, factor=1: SpaceToDepth(UNet(UNetConfig(heads=(heads,), **HEADS)), factor)
    run(dataclasses.replace(CONFIG, steps=2), unet(2), Pictures(), checkpoint=file)
    unchanged(file, unet(4), ("heads.*2.*heads.*4",), dataclasses.replace(CONFIG, steps=2), dataset=Pictures())
    unchanged(file, unet(2, 2), ("factor.*1.*factor.*2",), dataclasses.replace(CONFIG, steps=2), dataset=Pictures())


@pytest.mark.parametrize("change, words", [
    (lambda t, m: t.pop("ema.first.weight"), ("does not fit", "1 missing .first.weight")), (lambda t, m: t.pop("random.generator"), ("missing or damaged", "random.generator")),
    (lambda t, m: t.update({"random.torch": t["random.torch"][:7]}), ("missing or damaged",)), (lambda t, m: m.pop("step"), ("missing or damaged", "step")),
    (lambda t, m: t.update({"optimizer.0.exp_avg": torch.zeros(3)}), ("missing or damaged", "optimizer.0.exp_avg")),
    (lambda t, m: t.update({"optimizer.99.exp_avg": torch.zeros(3)}), ("missing or damaged",)), (lambda t, m: m.pop("config"), ("another run",)),
    (lambda t, m: t.pop("schedule.beta"), ("another noise schedule",)), (lambda t, m: m.pop("kind"), ("not a training checkpoint", "another file name"))])
def test_damaged_checkpoints_load_nothing(change, words, halfway):
    tensors, meta = load_tensors(halfway)
    tensors = {k: v.clone() for k, v in tensors.items()}
    change(tensors, meta)
    save_tensors(halfway, tensors, meta)
    unchanged(halfway, new_model(seed=3), words)


def test_other_files_are_refused(halfway, tmp_path):
    halfway.write_bytes(halfway.read_bytes()[:-5])
    unchanged(halfway, new_model(), ("cut short",))
    save_pretrained(tmp_path / "net.safetensors", UNet(UNetConfig(heads=(2,), **HEADS)), SCHEDULE, "eps")
    unchanged(tmp_path / "net.safetensors", new_model(), ("not a training checkpoint",))


# ---------------------------------------------------------------- NaN, empty data, options

class Poisoned(Points):
    """NaN in one picture of 60: with batches of 16 it comes up within the first four steps."""

    def __init__(self):
        super().__init__()
        self.x[7] = NAN


def test_nan_data_stops_at_once_and_keeps_everything(tmp_path):
    file, model, steps = tmp_path / "run.safetensors", new_model(), []
    before = [numbers(model)]
    with refuses(TrainingError, "loss is nan at step [1-4]", "stopped before the update", "last checkpoint is kept", "NaN in the data"):
        for step in train(model, SCHEDULE, Poisoned(), CONFIG, checkpoint=file, save_every=1):
            steps.append(step.step)
            before.append(numbers(model))
            content = file.read_bytes()
    assert len(steps) < 4 and same(numbers(model), before[-1])
    if steps:
        assert file.read_bytes() == content and load_tensors(file)[1]["step"] == steps[-1]
    else:
        assert not file.exists()


def test_an_infinite_gradient_stops_before_the_update():
    """A finite loss whose gradient is not: sqrt at 0."""
    class Steep(MLP):
        def forward(self, x_t, t, cond=Cond()):
            return super().forward(x_t, t, cond) + (self.first.bias * 0).abs().sqrt().sum()
    model = new_model(kind=Steep)
    before = numbers(model)
    with refuses(TrainingError, "gradient is (nan|inf) at step 1", "stopped before the update"):
        run(model=model)
    assert same(numbers(model), before)


def test_empty_dataset():
    with refuses(DataError, "dataset is empty", "at least one"):
        train(new_model(), SCHEDULE, Points(0), CONFIG)


@pytest.mark.parametrize("name, values", [
    ("steps", [0, -1, 2.5, True, NAN, "10"]), ("batch_size", [0, -4, 2.5, NAN]), ("lr", [-1e-3, NAN, math.inf, "1"]), ("warmup", [-1, 0.5]), ("ema", [-0.1, 1.1, NAN]),
    ("p_uncond", [-0.1, 1.1, NAN]), ("clip_norm", [-1, NAN]), ("weight_decay", [-1, NAN]), ("seconds", [-1, NAN]), ("seed", [-1, 0.5, "0"])])
def test_bad_options(name, values):
    for value in values:
        with refuses(OptionError, f"TrainConfig.{name} = ", "pass"):
            TrainConfig(**{name: value})


def test_bad_names():
    for name, value, known in (("predict", "score", "eps, x_0, v"), ("optimizer", "sgd", "adamw, muon"), ("t_distribution", "cosine", "uniform, logit_normal")):
        with refuses(OptionError, name, value, known):
            TrainConfig(**{name: value})


# ---------------------------------------------------------------- two processes

def launch(out, processes, *extra):
    """`accelerate launch --cpu --num_processes 2` would start one process (it leaves CPU processes to MPI); --multi_gpu
    starts as many as asked for, and train_run.py asks for the CPU."""
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no",
               "--dynamo_backend", "no", "--main_process_port", "0"] if processes > 1 else []
    done = subprocess.run([sys.executable, *command, Path(__file__).with_name("train_run.py"), out, "--share", *extra],
                          capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(processes)]


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path):
    """Equal batch, shared. 1e-5: a mean of two means sums in another order. Their weights agree, the average's too."""
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'ddpm-edu[train]'")
    one, = launch(tmp_path / "one", 1)
    two = launch(tmp_path / "two", 2)
    assert [r["world"] for r in two] == [2, 2] and len(one["losses"]) == 20
    for rank in two:
        assert rank["losses"] == pytest.approx(one["losses"], abs=1e-5)
        assert rank["ema"] == pytest.approx(one["ema"], abs=1e-4) and rank["model"] == pytest.approx(one["model"], abs=1e-4)


@pytest.mark.slow
def test_two_processes_stop_together_by_the_clock(tmp_path):
    """Each has its own clock: if they disagreed on the last step, one would wait for the other for ever."""
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'ddpm-edu[train]'")
    a, b = launch(tmp_path / "clock", 2, "--seconds", "1.0")
    assert a["losses"] == b["losses"] and len(a["losses"]) > 1 and a["model"] == b["model"]


def test_a_batch_that_cannot_be_shared():
    class Three:
        process_index, num_processes = 0, 3
    with refuses(OptionError, "batch_size = 16", "3 processes", "multiple"):
        train(new_model(), SCHEDULE, Points(), CONFIG, accelerator=Three())
