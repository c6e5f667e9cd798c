"""Judging one submission: questions to its process, answers compared here. All notebooks.

The references and the fresh cases stay in this process. A learner's function is called through
`Remote`, as if it were a function of ours, by `exercises.check.checked`.
"""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import ResourceError
from ..exercises.check import Exercise, checked
from .wire import WireError, decode, encode, receive, send

PACKAGE = Path(__file__).resolve().parent.parent
NONSENSE = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, RecursionError)


@dataclass(frozen=True)
class Limits:
    """seconds: by the clock for one exercise, 10 times as much in all. memory: bytes."""

    seconds: float = 20.0
    memory: int = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """name: right, wrong, not attempted, missing, syntax error, error, too slow, too much memory,
    too large, ended, rubbish, damaged file or grader failed. message: a sentence, no answer."""

    name: str
    message: str = ""


class Nursery:
    """A process that has PyTorch loaded and makes a process a submission, one at a time."""

    def __init__(self, folder: Path, data: Path, module: str = f"{__package__}.learner"):
        """folder: an empty one, where these processes stand. data: the course's own files.
        module: what they run."""
        self.folder, self.data, self.module = folder, data, module
        self.fonts = _fonts()
        self.grader = self.process = None
        self.open = True  # False once and for all when the batch ends

    def _open(self) -> None:
        self.close()
        self.grader, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-B", "-s", "-m", self.module]
        self.process = subprocess.Popen(
            [*command, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=self._environment(),
            cwd=self.folder,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        receive(self.grader.fileno(), time.monotonic() + 300)

    def _environment(self) -> dict:
        """Nothing of ours: a learner's code may read it."""
        one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        home = dict.fromkeys(("HOME", "TMPDIR"), str(self.folder))
        own = {"PYTHONPATH": str(PACKAGE.parent), "DDPM_EDU_DATA": str(self.data)}
        own |= {"MPLBACKEND": "Agg", "MPLCONFIGDIR": str(self.fonts), "LANG": "C.UTF-8"}
        return {"PATH": os.environ.get("PATH", ""), **own, **one, **home}

    def start(self, task: dict) -> int:
        """A new process for this task; the handle to talk to it.

        Raises ResourceError if the machine makes none, WireError when the batch has ended.
        """
        for last in (False, True):
            if not self.open:
                break
            try:
                if self.process is None or self.process.poll() is not None:
                    self._open()
                return self._start(task)
            except (OSError, WireError):
                self.close()
                if last and self.open:
                    remedy = "is there memory left? try fewer --jobs"
                    raise ResourceError(f"no process for a submission can be made: {remedy}")
        raise WireError("ended")

    def _start(self, task) -> int:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            socket.send_fds(self.grader, [json.dumps(task).encode()], [theirs.fileno()])
            receive(self.grader.fileno(), time.monotonic() + 60)
            return os.dup(ours.fileno())

    def stop(self) -> tuple[int, float]:
        """End the submission's process; how it had ended, as Popen.returncode says it, and the
        seconds of processor time that it took."""
        try:
            self.grader.send(b"stop")
            ended = receive(self.grader.fileno(), time.monotonic() + 60)
            return int(ended["status"]), float(ended["seconds"])
        except (OSError, WireError, *NONSENSE):
            self.close()
            return 0, 0.0

    def close(self) -> None:
        if self.process:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except OSError:
                pass
            self.process.wait()
            self.grader.close()
            self.process = None


def _fonts() -> str:
    """A folder where matplotlib has listed the fonts already: learners' processes cannot write."""
    import matplotlib.font_manager

    return matplotlib.get_cachedir()


class Learner:
    """The process of one submission; made again for the next exercise if it had to be ended."""

    def __init__(self, nursery: Nursery, files, limits: Limits, exercises: int):
        self.nursery, self.files, self.limits, self.exercises = nursery, files, limits, exercises
        self.pipe, self.hello, self.number = None, {}, 0

    def start(self, deadline: float) -> None:
        if self.pipe is None:
            self.pipe = self.nursery.start(self._task())
            self.hello = receive(self.pipe, deadline)

    def _task(self) -> dict:
        """What its process must know, and may read."""
        limits, own = self.limits, (self.nursery.data, self.nursery.fonts)
        return {
            "files": [str(file) for file in self.files],
            "memory": limits.memory,
            "seconds": int(2 * limits.seconds * (self.exercises + 1)) + 60,
            "readable": [str(path) for path in (PACKAGE, *own, *self.files)],
            "hidden": [str(PACKAGE / "exercises")],
        }

    def ask(self, question: dict, deadline: float, functions=()) -> dict:
        """The reply to a question; meanwhile the learner's code may call our functions.

        Questions are numbered, so that no reply is taken for another's. Raises WireError.
        """
        self.number += 1
        send(self.pipe, question | {"number": self.number})
        while True:
            reply = receive(self.pipe, deadline)
            if reply.get("number") != self.number:
                raise WireError("rubbish")
            if "call" not in reply:
                return reply
            send(self.pipe, _called(reply, functions))

    def stop(self) -> int:
        if self.pipe is None:
            return 0
        os.close(self.pipe)
        self.pipe = None
        return self.nursery.stop()[0]


def _called(request: dict, functions) -> dict:
    """Run one of our own functions on what a learner's code gave it."""
    try:
        arguments = decode(request["arguments"])
        sizes = [x.numel() for x in arguments if isinstance(x, torch.Tensor)]
        if math.prod(max(n, 1) for n in sizes) > 2**22:  # broadcast, they could fill this memory
            raise ValueError("the tensors are too large")
        return {"back": encode(functions[request["call"]](*arguments))}
    except (*NONSENSE, WireError, MemoryError, ArithmeticError) as error:
        return {"failed": str(error)[:200]}


class Remote:
    """A learner's function, called like one of ours. `trouble`: why it brought no value."""

    def __init__(self, learner: Learner, deadline: float):
        self.learner, self.deadline, self.trouble = learner, deadline, None

    def __call__(self, *arguments):
        functions = []
        question = {"given": encode(arguments, functions)}
        try:
            reply = self.learner.ask(question, self.deadline, functions)
            if reply.get("changed"):
                message = "Your function changes its inputs. Build a new tensor instead."
                reply = {"trouble": ["wrong", message]}
            if "trouble" not in reply:
                return decode(reply["result"])
            self.trouble = _finding(reply["trouble"])
        except WireError as error:
            self.trouble = _ended(self.learner, error)
        except NONSENSE:
            self.learner.stop()
            self.trouble = Finding("rubbish", "The answer cannot be read.")
        raise RuntimeError(self.trouble.name)


def judge(learner: Learner, name: str, exercise: Exercise, handed_out: str) -> Finding:
    """What an answer is worth; of several versions the first that is no empty stub."""
    deadline = None
    first, version, versions = None, 0, 1
    while version < versions:
        question = {"prepare": name, "handed_out": handed_out, "version": version}
        try:
            learner.start(time.monotonic() + 60)
            deadline = deadline or time.monotonic() + learner.limits.seconds
            reply = learner.ask(question, deadline)
            if "trouble" in reply:
                found = _finding(reply["trouble"])
            else:
                versions, kind = min(int(reply["versions"]), 8), str(reply["kind"])
                found = _judged(learner, exercise, kind, deadline)
        except WireError as error:
            found = _ended(learner, error)
        except NONSENSE:
            learner.stop()
            found = Finding("rubbish", "The answer cannot be read.")
        if found.name not in ("not attempted", "missing"):
            return found
        first, version = first or found, version + 1
    return first


def prepared(exercise: Exercise, cases) -> Exercise:
    """With these cases, and answers of its own that are computed once for all students."""
    if exercise.cases is None:
        return exercise
    mistakes = [(_remembered(wrong), hint) for wrong, hint in exercise.mistakes]
    reference = _remembered(exercise.reference)
    return replace(exercise, cases=cases, reference=reference, mistakes=mistakes)


def _remembered(function):
    known = {}

    def answer(*arguments):
        key = json.dumps(encode(arguments, []))
        if key not in known:
            known[key] = function(*arguments)
        return known[key]

    return answer


def _judged(learner, exercise, kind: str, deadline: float) -> Finding:
    if kind == "blank":
        return Finding("not attempted", "The cell is as it was handed out.")
    if exercise.cases is None:
        result = checked(exercise, decode(learner.ask({"value": 1}, deadline)["result"]))
        return _worded(result)
    if kind != "function":
        return Finding("wrong", "The answer is not a function: pass it without calling it.")
    remote = Remote(learner, deadline)
    result = checked(exercise, remote)
    if remote.trouble:
        return remote.trouble
    return _worded(result)


def _worded(result) -> Finding:
    """Without numbers of the reference."""
    if result.status == "right":
        return Finding("right")
    message = re.sub(r": where \S+ was expected, yours is .*$", ".", result.message)
    name = {"wrong": "wrong", "not attempted yet": "not attempted"}[result.status]
    return Finding(name, message[:600])


NAMES = ("wrong", "missing", "syntax error", "error", "too much memory", "too large")


def _finding(trouble) -> Finding:
    """What the learner's process says of itself: never more than a name that brings no points."""
    name, message = (str(part) for part in trouble)
    return Finding(name if name in NAMES else "error", message[:600])


def _ended(learner: Learner, error: WireError) -> Finding:
    """The process does not answer any more, or not as it should: it is ended."""
    status = learner.stop()
    if error.name in ("too slow", "too large", "rubbish"):
        seconds = f"{learner.limits.seconds:g} s"
        text = {"too slow": f"It had not ended after {seconds}.", "too large": "It is too large."}
        return Finding(error.name, text.get(error.name, "The answer cannot be read."))
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return Finding("too slow", "It used up its processor time.")
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    return Finding("ended", f"Your code ended its own process {how}.")
