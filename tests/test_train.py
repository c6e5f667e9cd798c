"""Training: the numbers of each part by hand, and refusals that change nothing."""

import dataclasses
import math
import time

import pytest
import torch
from helpers import refuses
from torch import nn
from train_run import CONFIG, SCHEDULE, Points, new_model, numbers, run, same

from ddpm_edu import Cond, DataError, OptionError, ResourceError, TrainingError
from ddpm_edu.files.tensors import load_tensors
from ddpm_edu.networks.mlp import MLP
from ddpm_edu.training.optim import EMA, lr_at
from ddpm_edu.training.train import TrainConfig, progress, train

NAN = float("nan")


# ---------------------------------------------------------------- what one run does


def test_the_loss_goes_down():
    losses = [
        s.loss
        for s in run(
            dataclasses.replace(CONFIG, steps=300, batch_size=128),
            new_model(kind=MLP, hidden=64),
            Points(180),
        )
    ]
    assert (
        len(losses) == 300 and losses[0] > 0.8 and sum(losses[-30:]) / 30 < 0.3
    )  # 1 is a model that knows nothing


def test_steps_are_counted_from_one_and_seeds_repeat():
    a, b, other = run(), run(), run(dataclasses.replace(CONFIG, seed=1))
    assert [s.step for s in a] == list(range(1, 21)) and a[0].model is a[-1].model
    assert [s.loss for s in a] == [s.loss for s in b] != [s.loss for s in other]
    assert same(numbers(a[-1].ema), numbers(b[-1].ema))


def test_bfloat16_is_for_the_products_alone():
    """Weights, average and loss stay float32; what goes through the first layer does not."""
    kinds = set()
    model = new_model(kind=MLP)
    model.first.register_forward_hook(lambda layer, x, y: kinds.add(y.dtype))
    low = run(dataclasses.replace(CONFIG, dtype="bfloat16"), model)
    high = run(CONFIG, new_model(kind=MLP))
    assert kinds == {torch.bfloat16}
    for module in (low[-1].model, low[-1].ema):
        assert {w.dtype for w in module.state_dict().values()} == {torch.float32}
    losses = [[step.loss for step in steps] for steps in (low, high)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)


def test_learning_rate_rises_and_falls_to_nothing():
    config = dataclasses.replace(CONFIG, steps=100, warmup=10)
    rates = [s.lr for s in run(config)]
    for i, rate in enumerate(rates):
        assert rate == pytest.approx(
            1e-2 * min(1, (i + 1) / 10) * (1 + math.cos(math.pi * i / 100)) / 2
        )
    assert rates[0] == pytest.approx(1e-3) and max(rates) == rates[9] > 0.97e-2 and rates[-1] < 1e-5
    assert lr_at(50, 1.0, 1e-2, 10) == 0 == pytest.approx(lr_at(50, 1.7, 1e-2, 10))
    assert lr_at(0, 0.0, 2e-3, warmup=0) == 2e-3


def test_ema_by_hand():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema, average = EMA(model, 0.5), 1.0
    for step, value in enumerate(
        [2.0, -1.0, 4.0, 0.0, 3.0, 5.0, 1.0, 2.0, 8.0, 9.0, 1.0, 0.0], start=1
    ):
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
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a: (
            norms.append(
                math.sqrt(
                    sum((p.grad**2).sum().item() for g in self.param_groups for p in g["params"])
                )
            )
            or step(self, *a)
        ),
    )
    run(dataclasses.replace(CONFIG, clip_norm=0.05))
    assert max(norms) < 0.0501
    for no_limit in (1e9, math.inf):
        norms.clear()
        run(dataclasses.replace(CONFIG, clip_norm=no_limit))
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
    run(config, model, dataset or Points(3000))
    return (torch.cat([s[i] if i < 2 else s[2].vector for s in model.seen]) for i in range(3))


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_conditions_are_dropped_at_this_rate(p):
    """20 x 500 rows, 5 standard errors; a dropped one is all zeros, the others are untouched."""
    *_, vector = spied(dataclasses.replace(CONFIG, batch_size=500, p_uncond=p))
    dropped = (vector == 0).all(1)
    assert (vector.sum(1)[~dropped] == 1).all()
    assert abs(dropped.float().mean().item() - p) <= 5 * math.sqrt(p * (1 - p) / 10_000)


def test_dropping_a_condition_keeps_the_picture():
    """What is edited is no text: with every condition dropped it is still there, as it was."""

    class WithPictures(Points):
        def __getitem__(self, index):
            x_0, cond = super().__getitem__(index)
            return x_0, cond._replace(picture=x_0 + 1)

        uncond = Cond(torch.zeros(1, 2))

    model = new_model(kind=Spy)
    run(dataclasses.replace(CONFIG, steps=1, p_uncond=1.0), model, data := WithPictures())
    ((_, _, cond),) = model.seen
    assert (cond.vector == 0).all() and len(cond.picture) == CONFIG.batch_size
    assert all((row == data.x + 1).all(1).any() for row in cond.picture)


def test_every_picture_once_an_epoch_in_a_new_order():
    class Numbered(Points):
        def __getitem__(self, index):
            seen.extend(index.tolist())
            return super().__getitem__(index)

    seen = []
    run(
        dataclasses.replace(CONFIG, batch_size=25), dataset=Numbered()
    )  # 500 pictures: 8 epochs of 60 and a bit, batches across their ends
    assert len(seen) == 500
    epochs = [seen[i : i + 60] for i in range(0, 480, 60)]
    assert (
        all(sorted(e) == list(range(60)) for e in epochs) and len({tuple(e) for e in epochs}) == 8
    )
    seen.clear()
    run(dataclasses.replace(CONFIG, steps=2, batch_size=60), dataset=Numbered())  # all at once
    assert all(sorted(seen[i : i + 60]) == list(range(60)) for i in (0, 60)) and len(seen) == 120


def test_times_are_uniform_and_noise_is_normal():
    x_t, t, _ = spied(dataclasses.replace(CONFIG, batch_size=500))
    counts = torch.bincount(t, minlength=100)
    assert len(counts) == 100 and (counts - 100).abs().max() < 5 * math.sqrt(100)
    assert x_t[t > 95].var().item() == pytest.approx(1, rel=0.2)


def test_logit_normal_times_gather_in_the_middle():
    """t = T sigmoid(normal): below T sigmoid(-1) = 26.9 lies 15.9 % of a normal, in the middle 68.3 %."""
    _, t, _ = spied(dataclasses.replace(CONFIG, batch_size=500, t_distribution="logit_normal"))
    assert 0 <= t.min() and t.max() <= 99
    assert (t < 27).float().mean().item() == pytest.approx(0.159, abs=0.02) and (
        t >= 73
    ).float().mean().item() == pytest.approx(0.159, abs=0.02)


@pytest.mark.parametrize("kind", ["uniform", "logit_normal"])
@pytest.mark.parametrize("share, T", [(0.2, 20), (0.001, 1), (1.0, 100)])
def test_a_share_of_the_times_is_the_least_noisy(kind, share, T):
    """Spread over the first t_share of T = 100 as usual over all: below a half of it lies a half."""
    config = dataclasses.replace(CONFIG, batch_size=500, t_distribution=kind, t_share=share)
    _, t, _ = spied(config)
    assert set(range(3, T - 3)) <= set(t.tolist()) <= set(range(T))
    if T > 1:
        assert (t < T // 2).float().mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("predict", ["eps", "x_0", "v"])
def test_the_loss_is_that_of_the_target(predict):
    """A model that always says 0: its loss is the mean square of the target, 1 for eps, the data's for x_0."""

    class Zero(MLP):
        def forward(self, x_t, t, cond=Cond()):
            return super().forward(x_t, t, cond) * 0

    losses = [
        s.loss
        for s in run(
            dataclasses.replace(CONFIG, predict=predict, batch_size=2000),
            new_model(kind=Zero),
            Points(3000),
        )
    ]
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


# ---------------------------------------------------------------- NaN, empty data, options


class Poisoned(Points):
    """NaN in one picture of 60: with batches of 16 it comes up within the first four steps."""

    def __init__(self):
        super().__init__()
        self.x[7] = NAN


def test_nan_data_stops_at_once_and_keeps_everything(tmp_path):
    file, model, steps = tmp_path / "run.safetensors", new_model(), []
    before = [numbers(model)]
    config = dataclasses.replace(CONFIG, save_every=1)
    with refuses(TrainingError, "picture 7 ", "nan at step [1-4]", "before the update", "kept"):
        for step in train(model, SCHEDULE, Poisoned(), config, checkpoint=file):
            steps.append(step.step)
            before.append(numbers(model))
            content = file.read_bytes()
    assert len(steps) < 4 and same(numbers(model), before[-1])
    if steps:
        assert file.read_bytes() == content and load_tensors(file)[1]["step"] == steps[-1]
    else:
        assert not file.exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    ],
)
def test_memory_that_ends(error):
    class Huge(MLP):
        def forward(self, x_t, t, cond=Cond()):
            raise error

    model = new_model(kind=Huge)
    before = numbers(model)
    with refuses(ResourceError, "memory at step 1", "batch_size than 16", "bfloat16"):
        run(model=model)
    assert same(numbers(model), before)
    error = RuntimeError("another")
    with pytest.raises(RuntimeError, match="another"):
        run(model=model)


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
        run(dataset=Points(0))


@pytest.mark.parametrize(
    "kind", ["tensor", "array", "list", "pairs", "bytes", "labels", "fake", "dict"]
)
def test_other_datasets_are_named(kind):
    """Plain arrays and datasets of pairs: refused with the class that takes them."""
    from torch.utils.data import TensorDataset
    from torchvision.datasets import FakeData

    x, labels = torch.randn(20, 2), torch.zeros(20, dtype=torch.long)
    dataset = {
        "tensor": x,
        "array": x.numpy(),
        "list": list(x),
        "pairs": list(zip(x, labels)),
        "bytes": TensorDataset(x.byte(), labels),
        "labels": TensorDataset(x, labels),
        "fake": FakeData(20, (1, 4, 4)),
        "dict": {"images": x, "labels": labels},
    }[kind]
    for given in (dataset, [dataset]):
        config = TrainConfig(steps=1, batch_size=min(4, len(given)))
        with pytest.raises(
            DataError, match=rf"dataset, a {type(given).__name__}.*ImageDataset\.of"
        ):
            next(train(new_model(), SCHEDULE, given, config))


def test_a_batch_larger_than_the_dataset():
    run(dataclasses.replace(CONFIG, steps=1, batch_size=60))
    with refuses(OptionError, "TrainConfig.batch_size = 61", "at most 60"):
        run(dataclasses.replace(CONFIG, batch_size=61))


@pytest.mark.parametrize(
    "name, values",
    [
        ("steps", [0, -1, 2.5, True, NAN, "10"]),
        ("batch_size", [0, -4, 2.5, NAN]),
        ("lr", [-1e-3, NAN, math.inf, "1"]),
        ("warmup", [-1, 0.5]),
        ("ema", [-0.1, 1.1, NAN]),
        ("p_uncond", [-0.1, 1.1, NAN]),
        ("clip_norm", [0, 0.0, -1, NAN, True, "1"]),
        ("weight_decay", [-1, NAN]),
        ("t_share", [0, 0.0, 2, -0.2, NAN]),
        ("offset_noise", [-0.1, NAN]),
        ("seconds", [-1, NAN]),
        ("seed", [-1, 0.5, "0"]),
        ("save_every", [0, 0.5]),
    ],
)
def test_bad_options(name, values):
    for value in values:
        with refuses(OptionError, f"TrainConfig.{name} = ", "pass"):
            TrainConfig(**{name: value})


def test_bad_names():
    for name, value, known in (
        ("predict", "score", "eps, x_0, v"),
        ("optimizer", "sgd", "adamw, muon"),
        ("t_distribution", "cosine", "uniform, logit_normal"),
        ("dtype", "float16", "float32, bfloat16"),
    ):
        with refuses(OptionError, f"TrainConfig.{name}", value, *known.split(", ")):
            TrainConfig(**{name: value})


def test_a_batch_that_cannot_be_shared():
    class Three:
        process_index, num_processes = 0, 3

    with refuses(OptionError, "batch_size = 16", "3 processes", "multiple"):
        run(accelerator=Three())
