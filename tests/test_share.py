"""share.py: a run whose batches are shared by two processes gives what one gives, and ends as one ends."""

import dataclasses
import time

import psutil
import pytest
import torch
from helpers import refuses
from train_run import CONFIG, SCHEDULE, Points, new_model, numbers, same

from ddpm_edu.errors import OptionError, TrainingError
from ddpm_edu.networks.mlp import MLP
from ddpm_edu.training import share
from ddpm_edu.training.share import Share, shared, worth_sharing
from ddpm_edu.training.train import train

pytestmark = pytest.mark.slow  # each starts a process


def steps_of(processes, config=CONFIG, dataset=None, model=None, **options):
    """A run without dropout, whose chance would be each process's own."""
    model = new_model(kind=MLP) if model is None else model
    given = (model, SCHEDULE, dataset or Points(), config)
    return shared(train, *given, processes=processes, **options)


class Failing(Points):
    """Its last pictures cannot be read; one of them is in the second half of the first batch."""

    def __getitem__(self, index):
        if (torch.as_tensor(index)[:1] == self.bad).any():
            raise OSError("picture lost")
        return super().__getitem__(index)

    def __init__(self, n=60):
        super().__init__(n)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(CONFIG.seed * 1_000_003))
        self.bad = order[8]


class Dying(Failing):
    """The process that reads that picture is killed."""

    def __getitem__(self, index):
        if (torch.as_tensor(index)[:1] == self.bad).any():
            psutil.Process().kill()
        return super().__getitem__(index)


def test_two_processes_give_what_one_gives(tmp_path):
    """Losses, weights and average to rounding; and bit for bit after a stop."""
    one, two = list(steps_of(1)), list(steps_of(2, checkpoint=tmp_path / "whole.safetensors"))
    assert [s.loss for s in two] == pytest.approx([s.loss for s in one], abs=1e-5)
    for part in ("model", "ema"):
        a, b = (numbers(getattr(steps[-1], part)) for steps in (one, two))
        assert all(torch.allclose(a[k], b[k], atol=1e-4) for k in a)
    file, threads = tmp_path / "run.safetensors", torch.get_num_threads()
    halfway = dataclasses.replace(CONFIG, save_every=5)
    for step in steps_of(2, halfway, checkpoint=file):
        if step.step == 10:
            break
    *_, last = steps_of(2, halfway, checkpoint=file)
    assert last.step == 20 and same(numbers(last.ema), numbers(two[-1].ema))
    assert torch.get_num_threads() == threads


def test_they_stop_together_by_the_clock_and_leave_nothing_behind():
    config, before = dataclasses.replace(CONFIG, seconds=6.0), set(psutil.Process().children())
    *_, last = steps_of(2, config)
    assert last.step >= 1
    run = steps_of(2)
    next(run)
    run.close()  # a learner who breaks off
    for _ in range(100):
        if set(psutil.Process().children()) <= before:
            return
        time.sleep(0.1)
    pytest.fail(f"still there: {set(psutil.Process().children()) - before}")


def test_what_fails_in_the_other_process_fails_here():
    with pytest.raises(OSError, match="picture lost"):
        list(steps_of(2, dataset=Failing()))
    with refuses(TrainingError, "take_part", "exit code -9", "memory"):
        list(steps_of(2, dataset=Dying()))


def test_one_process_where_two_would_not_pay(monkeypatch):
    monkeypatch.setattr(share, "cores", lambda: 2)
    long = dataclasses.replace(CONFIG, steps=1000)
    assert worth_sharing(long) and worth_sharing(dataclasses.replace(CONFIG, seconds=60.0))
    assert not worth_sharing(CONFIG) and not worth_sharing(dataclasses.replace(long, batch_size=15))
    assert not worth_sharing(dataclasses.replace(long, seconds=5.0))
    monkeypatch.setattr(share, "cores", lambda: 1)
    assert not worth_sharing(long)
    with refuses(OptionError, "processes = 0", "share a batch"):
        next(steps_of(0))


def test_the_mean_is_that_of_all_rows():
    class Written:
        def recv_bytes(self):
            return b""

        def send_bytes(self, _):
            pass

    rows = torch.stack([torch.zeros(6), torch.arange(6.0), torch.ones(6)])
    first = Share(0, rows, [Written(), Written()])
    mean = first.reduce(torch.full((2, 3), 2.0))
    assert torch.equal(mean, (3 + torch.arange(6.0)).view(2, 3) / 3)
    assert first.num_processes == 3
