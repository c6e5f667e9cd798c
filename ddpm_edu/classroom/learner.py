"""The processes that learners' code runs in. All notebooks.

`python -m ddpm_edu.classroom.learner SOCKET` loads PyTorch once, then makes a process a submission:
start -> fork -> walls (see walls.py) -> read the notebooks -> answer, until it is stopped. No
reference, no seed and no mark is ever in one of these: `ddpm_edu.exercises` is an empty stand-in
here, its files cannot be opened, and what is compared is compared by the grader.
"""

import ast
import importlib
import json
import linecache
import os
import resource
import signal
import socket
import sys
import traceback
import types
from pathlib import Path

from . import notebook, walls
from .wire import WireError, decode, encode, receive, send

LOADED = (
    "numpy torch torch.testing torch.nn.functional matplotlib.pyplot matplotlib.font_manager "
    "ddpm_edu.diffusion ddpm_edu.samplers ddpm_edu.systems.pipeline ddpm_edu.show.plot"
).split()  # before the walls stand, once for all


def main(handle: int, serve=None, loaded=LOADED) -> None:
    """Obey the grader: {"start": ...} makes a process, {"stop": 1} ends it, whole.

    serve(pipe, task) is that process, `_serve` unless given, and never returns.
    """
    grader, serve = socket.socket(fileno=handle), serve or _serve
    stand_in()
    for name in loaded:
        importlib.import_module(name)
    send(handle, {"ready": 1})
    child = None
    while True:
        try:
            data, handles, *_ = socket.recv_fds(grader, 2**16, 1)
        except OSError:
            return
        if not data:
            return
        if handles:
            child = os.fork()
            if child == 0:
                os.setsid()
                grader.close()
                serve(handles[0], json.loads(data))
            os.close(handles[0])
            send(handle, {"started": child})
        elif child:
            send(handle, _stopped(child))
            child = None


def _stopped(child: int) -> dict:
    """Kill the process and its group. status: how it had ended, an exit status, or minus a signal.
    seconds: of processor time that it took."""
    for kill in (os.killpg, os.kill):
        try:
            kill(child, signal.SIGKILL)
        except OSError:
            pass
    _, status, used = os.wait4(child, 0)
    return {"status": os.waitstatus_to_exitcode(status), "seconds": used.ru_utime + used.ru_stime}


def stand_in() -> None:
    """Modules that a notebook imports `check` and `use` from; they check nothing."""
    room = types.ModuleType("ddpm_edu.exercises")
    room.__path__ = []
    room.check = types.ModuleType("ddpm_edu.exercises.check")
    room.check.check = lambda name, answer: None
    room.check.use = lambda name, answer: answer
    sys.modules[room.__name__], sys.modules[room.check.__name__] = room, room.check


def _serve(pipe: int, task: dict) -> None:
    """Everything from here on happens in the process of one submission; it never returns."""
    try:
        stand = walls.shut_in(task["memory"], task["seconds"], task["readable"], task["hidden"])
        scripts, problems = [], {}
        for file in task["files"]:
            try:
                scripts.append(notebook.read(file))
            except notebook.Unreadable as error:
                problems[Path(file).name] = str(error)
            except MemoryError:
                problems[Path(file).name] = "the file needs too much memory"
        called = sorted(
            {name for s in scripts for part in s.statements for _, name, _ in part.calls}
        )
        send(pipe, {"walls": sorted(stand), "problems": problems, "called": called})
        answers = Answers(pipe, scripts)
        while True:
            answers.obey(receive(pipe))
    except BaseException:
        os._exit(1)


class Trouble(Exception):
    """What went wrong, by name, and in a sentence."""


class Answers:
    """A learner's answers: {"prepare": exercise}, then {"given": arguments} again and again."""

    def __init__(self, pipe, scripts):
        self.pipe, self.scripts, self.value, self.number = pipe, scripts, None, 0

    def obey(self, message: dict) -> None:
        self.number = message["number"]
        try:
            if "prepare" in message:
                reply = self.prepare(message["prepare"], message["handed_out"], message["version"])
            elif "given" in message:
                reply = self.answer(message["given"])
            else:
                reply = {"result": encode(self.value)}
        except Trouble as trouble:
            reply = {"trouble": list(trouble.args)}
        except WireError as error:
            if error.name == "ended":
                raise
            reply = {"trouble": [error.name, str(error)]}
        except BaseException as error:  # a learner's code may raise anything
            reply = {"trouble": list(told(error))}
        send(self.pipe, reply | {"number": self.number})

    def prepare(self, exercise: str, handed_out: str, version: int) -> dict:
        """Run what the answer to an exercise needs, and keep the answer."""
        self.value = None
        found = notebook.versions(self.scripts, exercise, handed_out)
        if version < len(found):
            self.value = _run(found[version])
        elif version == 0:
            raise Trouble(*_missing(self.scripts, exercise, handed_out))
        blank = self.value is None or self.value is ...
        kind = "blank" if blank else "function" if callable(self.value) else "value"
        return {"versions": len(found), "kind": kind, "type": type(self.value).__name__[:40]}

    def answer(self, given) -> dict:
        arguments = decode(given, self.remote)
        before = encode(arguments, [])
        result = encode(self.value(*arguments))
        return {"result": result, "changed": encode(arguments, []) != before}

    def remote(self, number: int):
        """A function that the grader runs: it is an argument of the learner's function."""

        def function(*arguments):
            call = {"call": number, "arguments": encode(arguments), "number": self.number}
            send(self.pipe, call)
            reply = receive(self.pipe)
            if "failed" in reply:
                raise ValueError(reply["failed"])
            return decode(reply["back"])

        return function


def _run(version: notebook.Version):
    """The value of an answer. An error on the way there is named only if the answer lacks it."""
    space = {"__name__": "__main__", "display": lambda *_, **__: None, "get_ipython": lambda: None}
    first = None
    for number, source in version.script.cells.items():
        lines = source.splitlines(keepends=True)
        linecache.cache[f"cell {number}"] = (len(source), None, lines, f"cell {number}")
    for statement in version.statements:
        module = ast.Module([statement.node], type_ignores=[])
        try:
            exec(compile(module, f"cell {statement.cell}", "exec"), space)
        except (Exception, SystemExit) as error:
            first = first or error
    try:
        code = compile(ast.Expression(version.expression), "check", "eval")
        return eval(code, space)
    except NameError as error:
        raise Trouble(*told(first or error)) from None


def _missing(scripts, exercise: str, handed_out: str) -> tuple[str, str]:
    for script in scripts:
        for name in (handed_out, "check"):
            if name in script.broken:
                cell, message = script.broken[name]
                return "syntax error", f"cell {cell}: {message}"
    wanted = f", and nothing is called {handed_out}" if handed_out else ""
    return "missing", f"no cell calls check({exercise!r}, ...){wanted}"


def told(error: BaseException, file: str = "cell ") -> tuple[str, str]:
    """(name, sentence with the learner's line); file: how the names of their files begin."""
    try:
        message = str(error)
    except BaseException:
        message = ""
    if isinstance(error, MemoryError) or "can't allocate memory" in message:
        return "too much memory", "Your code asked for more memory than there is."
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(file)]
    place = ""
    if frames:
        at = frames[-1]
        place = f" (line {at.lineno} of {at.filename}: {at.line})"[:160]
    kind = type(error).__name__[:40]
    return "error", f"Your code stopped with {kind}: {message[:200]}{place}"


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main(int(sys.argv[1]))
