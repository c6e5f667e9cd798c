"""The process that an entry runs in. Notebook 18.

`python -m ddpm_edu.challenge.entry SOCKET` loads PyTorch once and makes a process a question:
walls (classroom/walls.py) -> the entry's file -> train or sample -> one answer. The judge's
network, its classifier, and the other pictures of the data are never in one of these.
"""

import linecache
import os
import resource
import sys

import torch
from torch import nn

from ..classroom import walls
from ..classroom.learner import main, told
from ..classroom.wire import WireError, decode, encode, receive, send
from ..diffusion import Cond
from .rules import Clock, network

LOADED = (
    "numpy torch torch.testing torch.nn.functional torch._dynamo ddpm_edu.samplers ddpm_edu.flow "
    "ddpm_edu.consistency ddpm_edu.datasets.images ddpm_edu.training.train"
).split()  # before the walls stand, once for all; optimizers need torch._dynamo, which writes
TAIL = 2000  # characters of what an entry prints are kept


class Tail:
    """A stream that keeps the end of what is printed."""

    def __init__(self):
        self.text = ""

    def write(self, text: str) -> int:
        self.text = (self.text + text[-TAIL:])[-TAIL:]
        return len(text)

    def flush(self) -> None:
        pass


def serve(pipe: int, task: dict) -> None:
    """All of one process; it never returns."""
    printed = sys.stdout = sys.stderr = Tail()
    try:
        stand = walls.shut_in(task["memory"], task["seconds"], task["readable"], task["hidden"])
        send(pipe, {"walls": sorted(stand)})
        question = decode(receive(pipe))
        try:
            reply = {"result": encode(answer(pipe, question))}
            send(pipe, reply | {"printed": printed.text})
        except WireError as error:
            if error.name == "ended":
                raise
            send(pipe, {"trouble": [error.name, str(error)], "printed": printed.text})
        except BaseException as error:  # an entry may raise anything
            trouble = list(told(error, question["name"]))
            send(pipe, {"trouble": trouble, "printed": printed.text})
        receive(pipe)  # nobody answers: wait for the end
    except BaseException:
        os._exit(1)


def answer(pipe: int, question: dict):
    """{"train": budget} -> weights; {"evaluations", "x_T", "labels", "seed"} -> pictures."""
    torch.manual_seed(question["seed"])
    name = "train" if "train" in question else "sample"
    function = defined(question["name"], question["source"])[name]
    if name == "train":
        from ..datasets.images import mnist

        net = function(network(), mnist("train"), Clock(question["train"]))
        return dict(net.state_dict()) if isinstance(net, nn.Module) else net
    x_T, labels = question["x_T"], question["labels"]
    return function(remote(pipe), x_T, labels, question["evaluations"])


def defined(name: str, source: str) -> dict:
    """What an entry's file defines; its lines are kept for messages."""
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space = {"__name__": "entry", "__file__": name}
    exec(compile(source, name, "exec"), space)
    return space


def remote(pipe: int):
    """The trained network as a function: the judge runs it."""

    def net(x_t, t, cond=Cond()):
        vector = torch.zeros(len(x_t), 10) if cond.vector is None else cond.vector
        send(pipe, {"call": 1, "arguments": encode((x_t, t, vector))})
        reply = receive(pipe)
        if "failed" in reply:
            raise ValueError(reply["failed"])
        return decode(reply["back"])

    return net


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main(int(sys.argv[1]), serve, LOADED)
