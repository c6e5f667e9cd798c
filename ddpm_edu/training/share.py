"""One run whose every batch is shared by several processes: data parallelism. Notebook 09.

    for step in progress(shared(train, model, schedule, dataset, config, processes=2), steps):
        ...                                          # as with train(model, schedule, ...)

Each process has the weights and works out its part of the batch; the gradient of the whole is the
mean of theirs, for the loss is a mean over pictures:

    grad (1/B) sum_i l_i = (1/n) sum_k grad (n/B) sum_{i in part k} l_i

Then all take the same step, and keep the same weights. Two threads of one process share a layer
instead, and wait for each other after each: for a small network that is hardly quicker than one.
"""

import multiprocessing
import os
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import TrainingError, whole
from .beside import Beside
from .train import TrainConfig


def shared(function: Callable, *args, processes: int | None = None, checkpoint=None) -> Iterator:
    """The steps of function(*args, checkpoint=...), `train` or `fit`, in several processes.

    args: the model first; all are copied for the other processes.
    processes: of one thread each, this one is the first; None: two for a model on the CPU where it
    is `worth_sharing`, else one. The losses of `train` are those of one process, but for rounding.
    What another process raises is raised here.
    """
    if processes is None:
        config = next(arg for arg in args if isinstance(arg, TrainConfig))
        on_cpu = next(args[0].parameters()).device.type == "cpu"
        processes = 2 if on_cpu and worth_sharing(config) else 1
    whole("processes", processes, 1, 64, "that share a batch")
    if processes == 1:
        yield from function(*args, checkpoint=checkpoint)
        return
    room = sum(p.numel() for p in args[0].parameters() if p.requires_grad)
    rows = torch.zeros(processes, room).share_memory_()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        file = Path(folder, "run.pickle")  # of ours; a pipe would wait until the other one reads
        file.write_bytes(pickle.dumps((function, args, checkpoint)))
        pipes, others = [], []
        for rank in range(1, processes):
            here, there = multiprocessing.Pipe()
            pipes.append(stack.enter_context(here))
            others.append(stack.enter_context(Beside(take_part, rank, rows, there, file)))
            there.close()
        torch.set_num_threads(1)  # until `Beside` ends, which brings back what was before
        try:
            yield from function(*args, checkpoint=checkpoint, accelerator=Share(0, rows, pipes))
            for other in others:
                other.result()
        except Ended:
            for other in others:
                other.result()
            raise


def take_part(rank: int, rows: Tensor, pipe, file: Path) -> None:
    function, args, checkpoint = pickle.loads(file.read_bytes())
    share = Share(rank, rows, [pipe])
    deque(function(*args, checkpoint=checkpoint, accelerator=share), maxlen=0)


def worth_sharing(config: TrainConfig) -> bool:
    """Two cores, an even batch, and a run that is long beside the seconds of starting a process."""
    long = config.seconds >= 20 if config.seconds else config.steps >= 200
    return cores() > 1 and config.batch_size % 2 == 0 and long


def cores() -> int:
    """That this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


class Ended(TrainingError):
    """Another process of the run ended before the run did."""


class Share:
    """What a run asks of an `accelerate.Accelerator`: rows of shared memory hold what is to be
    added up, one row a process; a pipe to the first process says when a row is written."""

    device = torch.device("cpu")

    def __init__(self, rank: int, rows: Tensor, pipes: list):
        self.process_index, self.num_processes = rank, len(rows)
        self.rows, self.pipes = rows, pipes

    def prepare(self, model: nn.Module, optimizer):
        self.trained = [p for p in model.parameters() if p.requires_grad]
        return model, optimizer

    def backward(self, loss: Tensor) -> None:
        """The mean gradient, in all processes."""
        loss.backward()
        grads = [p.grad for p in self.trained if p.grad is not None]
        mean = self.reduce(torch.cat([g.flatten() for g in grads]))
        parts = mean.split([g.numel() for g in grads])
        torch._foreach_copy_(grads, [part.view_as(g) for part, g in zip(parts, grads)])

    def clip_grad_norm_(self, weights, longest: float) -> Tensor:
        return nn.utils.clip_grad_norm_(weights, longest)

    def reduce(self, value: Tensor, how: str = "mean") -> Tensor:
        """The mean over the processes, float32.

        The first process writes its row when all others wait, so nobody still reads the last one.
        """
        rows = self.rows[:, : value.numel()]
        try:
            if self.process_index:
                rows[self.process_index] = value.detach().flatten()
                self.pipes[0].send_bytes(b"written")
                self.pipes[0].recv_bytes()
            else:
                for pipe in self.pipes:
                    pipe.recv_bytes()
                rows[0] = value.detach().flatten()
                rows[0] = rows.mean(0)
                for pipe in self.pipes:
                    pipe.send_bytes(b"added up")
        except (EOFError, ConnectionError) as e:
            raise Ended(f"another process of this training ended before it ({e!r})") from e
        return rows[0].view(value.shape).clone()
