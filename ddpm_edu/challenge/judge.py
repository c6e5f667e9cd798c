"""The judge: runs an entry behind walls, owns the network, counts, looks at pictures. Notebook 18.

    result = judged("entry.py", Rules(seconds=30))

The trained weights come here and stay here. `sample` asks for each evaluation, so that every one
is counted; what is measured is measured here, on numbers, in a process the entry cannot reach.
Whatever an entry does, there is a result: points, or 0 and the cause by name. Causes: judged,
unreadable, syntax error, missing, error, too slow, too much memory, too large, too many
evaluations, wrong weights, wrong shape, not a number, ended, rubbish, judge failed (our mistake).
"""

import datetime
import hashlib
import os
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..classroom.judge import NONSENSE, PACKAGE, Nursery
from ..classroom.wire import WireError, decode, encode, receive, send
from ..datasets.images import from_uint8, to_uint8
from ..diffusion import Cond, noise
from ..errors import OptionError, ResourceError, whole
from ..files.load import load
from ..metrics import frechet as metrics
from ..paths import data_folder
from . import rules as contest
from .results import Result, picture
from .rules import BUDGETS, LARGEST, SHAPE, Rules

FROM_INSIDE = ("error", "too much memory", "too large")  # what an entry's process says of itself


class Out(Exception):
    """An entry is out: (cause, sentence)."""


def judged(
    file,
    rules: Rules = Rules(),
    seed: int | None = None,
    *,
    command: str = "",
    say: Callable = lambda text: None,
    nursery: Nursery | None = None,
) -> Result:
    """Train an entry, draw with it, and count its points.

    seed: of the noise that pictures start from; drawn at random unless given, and written down.
    say: gets a line now and then, and the end of what the entry printed.
    nursery: of `processes`, for several entries; one of its own unless given.
    OptionError for a file that is not there, ResourceError where no process can be made.
    """
    if nursery is None:
        with processes() as own:
            return judged(file, rules, seed, command=command, say=say, nursery=own)
    file = Path(file)
    try:
        source = file.read_bytes()
    except OSError as error:
        remedy = "pass an entry, a Python file"
        raise OptionError(f"{file}: cannot be read ({error.strerror}): {remedy}") from None
    seed = secrets.randbits(40) if seed is None else whole("seed", seed, 0, 2**40)
    facts = about(file, source, rules, seed, command)
    try:
        found = Entry(nursery, file.name, readable(source), rules, seed, say).judged()
    except Out as out:
        return Result(**facts, cause=out.args[0], message=out.args[1][:600])
    except ResourceError:
        raise
    except Exception as error:  # a mistake of ours must not stop the others
        message = f"{type(error).__name__}: {error}"[:300]
        return Result(**facts, cause="judge failed", message=message)
    return Result(**facts, cause="judged", **found)


@contextmanager
def processes() -> Iterator[Nursery]:
    """What makes a process behind walls for each question to an entry. ResourceError on Windows."""
    if not hasattr(os, "fork"):
        raise ResourceError("entries need the walls of Linux or macOS: use WSL or a container")
    with tempfile.TemporaryDirectory(prefix="ddpm-edu-", ignore_cleanup_errors=True) as home:
        nursery = Nursery(Path(home), data_folder(), f"{__package__}.entry")
        try:
            yield nursery
        finally:
            nursery.close()


def about(file: Path, source: bytes, rules: Rules, seed: int, command: str) -> dict:
    """Where and how a result came about."""
    return {
        "entry": clean(file.stem)[:60].replace("\n", " "),
        "sha256": hashlib.sha256(source).hexdigest(),
        "seconds": float(rules.seconds),
        "pictures": rules.pictures,
        "seed": seed,
        "date": datetime.date.today().isoformat(),
        "device": f"{platform.machine()} CPU",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}",
        "command": command,
    }


def readable(source: bytes) -> str:
    """An entry's text; Out unless it defines both functions."""
    if len(source) > LARGEST:
        raise Out("too large", f"{len(source):,} bytes: an entry has at most {LARGEST:,}.")
    try:
        text = source.decode()
        tree = compile(text, "entry", "exec", flags=0x400)  # ast.PyCF_ONLY_AST: nothing is run
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        kind = "unreadable" if isinstance(error, UnicodeError) else "syntax error"
        raise Out(kind, f"{type(error).__name__}: {error}") from None
    names = {getattr(node, "name", None) for node in tree.body}
    lacking = [name for name in ("train", "sample") if name not in names]
    if lacking:
        raise Out("missing", f"The file defines no function {' and no function '.join(lacking)}.")
    return text


class Entry:
    """One entry on its way through the judge."""

    def __init__(self, nursery, name: str, source: str, rules: Rules, seed: int, say: Callable):
        self.nursery, self.rules, self.say, self.seed = nursery, rules, say, seed
        self.about = {"name": name, "source": source, "seed": seed}
        self.walls = set()

    def judged(self) -> dict:
        """{"points", "scores", "trained", "walls", "picture"}."""
        net, trained = self.trained()
        classifier = load("mnist_classifier")
        scores, rows = {}, []
        for n in BUDGETS:
            x = self.drawn(net, n)
            scores[n] = score(classifier, x)
            rows.append(x[:10])
            self.say(f"{n} evaluations: {scores[n]['accuracy']:.1%} right, "
                     f"Frechet {scores[n]['frechet']:.2f}")  # fmt: skip
        return {
            "points": round(contest.points(scores), 2),
            "scores": scores,
            "trained": round(trained, 1),
            "walls": sorted(self.walls),
            "picture": picture(torch.cat(rows)),
        }

    def trained(self):
        """The judge's own network with the entry's weights, and the processor seconds it took."""
        question, budget = self.about | {"train": self.rules.budget}, self.rules.budget
        weights, seconds = self.ask(question, budget)
        if seconds > 1.02 * budget + 2:  # a last update may end
            raise Out("too slow", f"{seconds:.0f} processor seconds, {budget:g} are allowed.")
        return with_weights(contest.network(), weights), seconds

    def drawn(self, net, evaluations: int) -> torch.Tensor:
        """The pictures, as 8 bits a pixel show them."""
        n = self.rules.pictures
        labels = contest.labels_of(n)
        x_T = noise(SHAPE, range(self.seed, self.seed + n))
        counted = Counted(net, evaluations * n)
        question = self.about | {"x_T": x_T, "labels": labels, "evaluations": evaluations}
        try:
            x, _ = self.ask(question, self.rules.sampling, counted)
        finally:  # whatever it makes of the refusal
            if counted.over:
                allowed = f"{counted.most:,} are allowed ({evaluations} for each of {n} pictures)"
                raise Out("too many evaluations", f"{counted.over:,} were asked for, {allowed}.")
        return checked(x, (n, *SHAPE))

    def ask(self, question: dict, seconds: float, network: Callable | None = None):
        """(answer, processor seconds) of a new process behind the walls. Raises Out.

        The kernel ends it long after `seconds`: for that it counts in ticks, which on a busy
        machine run some percent fast.
        """
        seconds = int(1.25 * seconds) + 3
        deadline = time.monotonic() + self.rules.patience * seconds + 5
        pipe, reply, trouble = self.nursery.start(self.task(question, seconds)), {}, None
        try:
            self.walls = set(map(str, receive(pipe, deadline)["walls"]))
            send(pipe, encode(question))
            reply = receive(pipe, deadline)
            while "call" in reply:
                send(pipe, network(decode(reply["arguments"])))
                reply = receive(pipe, deadline)
            answer = decode(reply["result"]) if "result" in reply else None
        except WireError as error:
            trouble = error
        except NONSENSE:
            trouble = WireError("rubbish")
        finally:
            os.close(pipe)
            status, used = self.nursery.stop()
        if trouble:
            raise ended(trouble, status)
        if isinstance(reply.get("printed"), str) and reply["printed"].strip():
            self.say("it printed: " + clean(reply["printed"][-2000:]).strip())
        if "trouble" in reply:
            raise Out(*of_itself(reply["trouble"]))
        return answer, used

    def task(self, question: dict, seconds: int) -> dict:
        """What a process may use and read: when training, the digits for training."""
        data = sorted(data_folder().glob("mnist/train-*")) if "train" in question else []
        return {
            "memory": self.rules.memory,
            "seconds": seconds,
            "readable": [str(path) for path in (PACKAGE, *data)],
            "hidden": [str(PACKAGE / "exercises"), str(PACKAGE / "challenge" / "entries")],
        }


class Counted:
    """The network for an entry: each picture of each call is counted, none is run too many."""

    def __init__(self, net, most: int):
        self.net, self.most, self.count, self.over = net, most, 0, 0

    @torch.no_grad()
    def __call__(self, arguments) -> dict:
        """(x_t, t, vector) -> {"back": prediction} or {"failed": why}."""
        x_t, t, vector = arguments
        sizes = {"x_t": (x_t, SHAPE), "t": (t, ()), "cond.vector": (vector, (10,))}
        for name, (part, shape) in sizes.items():
            if not isinstance(part, torch.Tensor) or part.shape != (len(x_t), *shape):
                return {"failed": f"{name} must have shape {('B', *shape)}"}
            if not torch.isfinite(part).all():
                return {"failed": f"{name} holds NaN or infinity"}
        if self.count + len(x_t) > self.most:
            self.over = self.count + len(x_t)
            return {"failed": f"{self.over} evaluations, {self.most} are allowed"}
        self.count += len(x_t)
        x_t, t, vector = (part.float() for part in (x_t, t, vector))
        parts = zip(*(part.split(250) for part in (x_t, t, vector)))
        out = [self.net(x, at, Cond(vector=v)) for x, at, v in parts]
        return {"back": encode(torch.cat(out) if out else x_t)}


# ---------------------------------------------------------------- what an entry gives


def with_weights(net, weights):
    """The network with these weights, which must be its own in name, shape and kind."""
    own = net.state_dict()
    if not isinstance(weights, dict) or weights.keys() != own.keys():
        raise Out("wrong weights", "train must return net, or its state_dict with all its names.")
    for name, value in own.items():
        given = weights[name]
        if not isinstance(given, torch.Tensor) or given.shape != value.shape:
            raise Out("wrong weights", f"{name} must have shape {tuple(value.shape)}.")
        if not given.is_floating_point():
            raise Out("wrong weights", f"{name} is {given.dtype}, not floats.")
        if not torch.isfinite(given.float()).all():
            raise Out("not a number", f"The weight {name} holds NaN or infinity.")
    net.load_state_dict({name: weights[name].float() for name in own})
    return net.eval().requires_grad_(False)


def checked(x, shape: tuple) -> torch.Tensor:
    """Pictures as shown, of the right shape and finite; else Out."""
    if not isinstance(x, torch.Tensor) or x.shape != shape or not x.is_floating_point():
        what = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__
        raise Out("wrong shape", f"sample returned {what}, not floats of shape {shape}.")
    if not torch.isfinite(x).all():
        raise Out("not a number", "The pictures hold NaN or infinity.")
    return from_uint8(to_uint8(x.float().clamp(-1, 1)))


def score(classifier, x: torch.Tensor) -> dict:
    """Accuracy, and Frechet distance to the digits for training."""
    labels = contest.labels_of(len(x))
    return {
        "accuracy": round(metrics.accuracy(classifier, x, labels), 4),
        "frechet": round(metrics.frechet_to_real(classifier, x), 4),
    }


def of_itself(trouble) -> tuple[str, str]:
    """What an entry's process says of itself: a cause that brings no points, and a sentence."""
    try:
        name, message = (clean(str(part)) for part in trouble)
    except NONSENSE:
        name, message = "rubbish", "The answer cannot be read."
    return (name if name in FROM_INSIDE else "error"), message


def ended(error: WireError, status: int) -> Out:
    """Why a process does not answer any more."""
    if error.name == "too slow":
        return Out("too slow", "It had not ended long after its time.")
    if error.name in ("too large", "rubbish"):
        return Out(error.name, "The answer is too large, or cannot be read.")
    if status in (-24, -9):  # SIGXCPU, SIGKILL
        return Out("too slow", "It used up its processor time.")
    how = f"by signal {-status}" if status < 0 else f"with status {status}"
    return Out("ended", f"It ended its own process {how}.")


def clean(text: str) -> str:
    """Without the characters that a terminal takes for commands."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
