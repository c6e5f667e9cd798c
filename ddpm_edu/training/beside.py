"""A function in a process of its own, beside this one: how two parts use two cores. Notebook 09.

    with Beside(train_clip, recipe) as other:
        vae = train_vae(recipe)
        clip = other.result()

Two processes of one thread each wait for nobody: a neighbour that wants a core costs them its fair
share, where two threads of one process would wait for each other after every layer.
"""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable

import torch

from ..errors import TrainingError


class Beside:
    """function(*args) in a process of its own that ends when this block, or this process, does.

    Inside the block this process has one thread less."""

    def __init__(self, function: Callable, *args):
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe(duplex=False)
        self.process = context.Process(target=_run, args=(there, function, args), daemon=True)
        self.process.start()
        there.close()
        self.name = getattr(function, "__name__", "it").strip("_")
        self.answer, self.threads = None, torch.get_num_threads()

    def __enter__(self):
        torch.set_num_threads(max(1, self.threads - 1))
        return self

    def __exit__(self, *_):
        torch.set_num_threads(self.threads)
        if self.answer is None and self.process.is_alive():  # else it is on its way out
            os.kill(self.process.pid, signal.SIGINT)  # it saves its checkpoint
            self.process.join(20)
            self.process.kill()

    def attend(self, step=None) -> None:
        """Raises what the function raised: no need to wait for anything else."""
        if self.answer is None and self.pipe.poll():
            self.result()

    def result(self):
        """What the function returned, once it does."""
        if self.answer is None:
            try:
                self.answer = pickle.loads(self.pipe.recv_bytes())
            except EOFError:
                self.process.join()
                raise TrainingError(
                    f"the process beside this one, {self.name}, ended (exit code "
                    f"{self.process.exitcode}): was it killed for memory? A run with checkpoints "
                    "goes on from them"
                ) from None
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def _run(pipe, function, args):
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()  # a Ctrl-C is for the other process, which passes it on
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(1)
    try:
        answer = function(*args)
    except BaseException as e:
        answer = e
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is on its way out
    pipe.send_bytes(pickle.dumps(answer))
