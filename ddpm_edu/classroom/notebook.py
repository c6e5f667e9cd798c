"""A notebook that was handed in, statement by statement; what an answer needs. All notebooks.

Nothing is run here. Cells may be damaged, split, doubled, turned into text or in
another order: what can be parsed is kept statement by statement, what cannot is remembered.
"""

import ast
import json
import re
import symtable
from dataclasses import dataclass, field
from pathlib import Path

MAX_BYTES = 256 * 2**20
MOST_VERSIONS = 8  # of an answer that are tried


class Unreadable(Exception):
    """A file that is no notebook."""


@dataclass(eq=False)
class Statement:
    """One statement at a cell's top level: its code, and which global names it needs and binds."""

    node: ast.stmt
    cell: int
    needs: set = field(default_factory=set)
    binds: set = field(default_factory=set)  # or changes
    changes: set = field(default_factory=set)
    calls: list = field(default_factory=list)  # ("check" or "use", exercise, expression)


@dataclass
class Script:
    """All statements of a notebook, in order. broken: {name it might bind: (cell, error)}."""

    file: str
    statements: list
    broken: dict
    cells: dict  # {cell: its source}

    def numbers(self) -> set[str]:
        """Which of the course's notebooks it is, by its calls of check, else by its name."""
        called = {name[:2] for part in self.statements for _, name, _ in part.calls}
        return called or set(re.findall(r"^\d\d", self.file))


def read(path: Path) -> Script:
    """Raises Unreadable, with a reason that a teacher can act on."""
    path = Path(path)
    cells = [(1, _text(path))] if path.suffix.lower() == ".py" else _cells(_json(path))
    return _script(path.name, cells)


def _text(path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise Unreadable(f"the file is larger than {MAX_BYTES // 2**20} MiB")
        raw = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"the file cannot be read ({error.strerror})") from None
    if not raw.strip():
        raise Unreadable("the file is empty")
    wide = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    for form in ("utf-16",) if wide else ("utf-8-sig", "latin-1"):
        try:
            return raw.decode(form)
        except UnicodeDecodeError:
            pass
    raise Unreadable("the file is no text")


def _json(path) -> dict:
    text = _text(path)
    try:
        data = json.loads(text)
    except RecursionError:
        raise Unreadable("the file is nested too deeply") from None
    except ValueError as error:
        if re.match(r"\s*<(!doctype|html)", text[:200], re.I):
            raise Unreadable("the file is a web page, not a notebook") from None
        if "<<<<<<< " in text:
            raise Unreadable("the file holds the marks of an unfinished git merge") from None
        at = f"line {getattr(error, 'lineno', '?')}"
        raise Unreadable(f"the file is damaged or cut short: no JSON at {at}") from None
    if not isinstance(data, dict):
        raise Unreadable("the file is JSON, but no notebook")
    return data


def _cells(data) -> list[tuple[int, str]]:
    """[(number, source)] of code cells, and of text cells that are code by accident."""
    cells = data.get("cells")
    if not isinstance(cells, list):  # nbformat 3
        sheets = data.get("worksheets") or [{}]
        first = sheets[0] if isinstance(sheets, list) and isinstance(sheets[0], dict) else {}
        cells = first.get("cells")
    if not isinstance(cells, list):
        raise Unreadable("the file has no cells")
    found = []
    for number, cell in enumerate(cells, 1):
        if not isinstance(cell, dict):
            continue
        source = cell.get("source", cell.get("input", ""))
        if isinstance(source, list):
            source = "".join(part for part in source if isinstance(part, str))
        meta = cell.get("metadata")
        tags = meta.get("tags") if isinstance(meta, dict) else None
        if not isinstance(source, str) or "solution" in (tags if isinstance(tags, list) else []):
            continue
        if cell.get("cell_type") == "code" or _is_code(source):
            found.append((number, source.replace("\r\n", "\n").replace("\r", "\n")))
    return found


def _is_code(source: str) -> bool:
    """Whether a text cell is a cell of code that was turned into text."""
    if not re.search(r"^(def \w+\(.*:|check\(|\w+ = )", source, re.M):
        return False
    return _parsed(source) is not None


# ---------------------------------------------------------------- statements


def _parsed(source: str):
    """The statements of a source, or None."""
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _plain(source: str) -> str:
    """Without the lines that are IPython's own; a cell that is no Python becomes empty."""
    if _parsed(source) is not None:
        return source
    if match := re.match(r"\s*%%(\w+).*\n?", source):
        keep = match[1] in ("time", "timeit", "capture", "prun")
        source = "\n" * match[0].count("\n") + source[match.end() :] if keep else ""
    source = re.sub(r"^(\s*)[%!?].*$", r"\1pass", source, flags=re.M)
    source = re.sub(r"^(\s*)[\w.]+\?{1,2}$", r"\1pass", source, flags=re.M)
    return re.sub(r"^(\s*\w+ *= *)[%!].*$", r"\1None", source, flags=re.M)


def _script(file: str, cells) -> Script:
    cells = [(number, _plain(source)) for number, source in cells]
    script = Script(file, [], {}, dict(cells))
    done = []  # (number, source, statements), the last one open to be joined with the next
    for number, source in cells:
        body = _parsed(source)
        if body is None and done and (joined := _joined(done[-1], source)):
            done[-1] = joined
        elif body is not None and done and done[-1][2] is None:
            both = _joined(done[-1], source)
            done[-1:] = [both] if both else [done[-1], (number, source, body)]
        else:
            done.append((number, source, body))
    for number, source, body in done:
        script.cells[number] = source
        for node in _pieces(number, source, script.broken) if body is None else body:
            script.statements.append(_statement(node, number))
    imports = [s for s in script.statements if isinstance(s.node, (ast.Import, ast.ImportFrom))]
    modules = {name for statement in imports for name in statement.binds}
    for statement in script.statements:
        if statement not in imports:
            statement.binds -= statement.changes & modules  # torch.set_printoptions(), say
    return script


def _joined(before, source: str):
    """A cell that somebody split in the middle: both halves parsed as one, or None."""
    number, first, _ = before
    both = first.rstrip("\n") + "\n" + source
    body = _parsed(both)
    return None if body is None else (number, both, body)


def _pieces(number: int, source: str, broken: dict):
    """The statements around an error of syntax; names in the broken part go into `broken`."""
    lines = source.split("\n")
    starts = [i for i, line in enumerate(lines) if re.match(r"[^\s#)\]}]", line)] or [0]
    kept = []
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        piece = "\n" * start + "\n".join(lines[start:end])
        body = _parsed(piece)
        if body is not None:
            kept += body
            continue
        name = re.match(r"(?:async )?(?:def|class)\s+(\w+)|(\w+)\s*=|(?:check|use)\(", lines[start])
        if name:
            broken[name[1] or name[2] or "check"] = (number, _error(source, piece))
    return kept


def _error(source: str, piece: str) -> str:
    for text in (piece, source):
        try:
            ast.parse(text)
        except SyntaxError as error:
            line = (error.text or "").strip()[:80]
            return f"{error.msg} in line {error.lineno}: {line}"
        except (ValueError, RecursionError, MemoryError) as error:
            return str(error)[:80]
    return "it cannot be parsed"


def _statement(node: ast.stmt, cell: int) -> Statement:
    made = Statement(node, cell)
    try:
        made.needs, made.binds = _names(ast.unparse(node))
        walk = list(ast.walk(node))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return made
    for part in walk:
        if isinstance(part, ast.Call) and len(part.args) == 2 and not part.keywords:
            name = getattr(part.func, "id", getattr(part.func, "attr", ""))
            exercise = getattr(part.args[0], "value", None)
            if name in ("check", "use") and isinstance(exercise, str):
                made.calls.append((name, exercise.strip(), part.args[1]))
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        targets = [node.value.func]  # parts.append(3) changes parts
    for target in targets:
        while isinstance(target, (ast.Attribute, ast.Subscript)):
            target = target.value
            if isinstance(target, ast.Name):
                made.changes.add(target.id)
    made.binds |= made.changes
    return made


def _names(source: str) -> tuple[set, set]:
    """The global names that a source needs, and those that it binds."""
    top = symtable.symtable(source, "cell", "exec")
    needs = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    binds = {
        s.get_name()
        for s in top.get_symbols()
        if s.is_assigned() or s.is_imported() or s.is_namespace()
    }
    tables = list(top.get_children())
    while tables:
        table = tables.pop()
        tables += table.get_children()
        needs |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
    return needs, binds


# ---------------------------------------------------------------- the answer to an exercise


@dataclass
class Version:
    """One way in which a notebook answers: an expression, and the statements to run before it."""

    script: Script
    expression: ast.expr
    statements: list


def versions(scripts: list[Script], exercise: str, handed_out: str = "") -> list[Version]:
    """What is given to check(exercise, ...), the most likely first.

    handed_out: the expression in the notebook that was handed out, where the call is gone. Of a
    function that is defined several times, the one that the call sees comes first.
    """
    found, seen, number = [], set(), exercise[:2]
    for script in sorted(scripts, key=lambda s: not s.file.startswith(number)):
        by_name = handed_out if number in (script.numbers() or [number]) else ""
        for at, expression in _places(script, exercise, by_name):
            name = getattr(expression, "id", None)
            for chosen in _definitions(script, name, at) if name else [None]:
                whole = script.statements[chosen].node if chosen is not None else expression
                mark = ast.dump(whole)
                if mark not in seen:
                    seen.add(mark)
                    needed = _needed(script, {name} if name else _loads(expression), at, chosen)
                    found.append(Version(script, expression, needed))
    return found[:MOST_VERSIONS]


def _places(script: Script, exercise: str, handed_out: str):
    """(index of the statement, expression): calls of check, the last first, then of use."""
    calls = [
        (kind, at, expression)
        for at, statement in enumerate(script.statements)
        for kind, name, expression in statement.calls
        if name == exercise
    ]
    for wanted in ("check", "use"):
        yield from ((at, e) for kind, at, e in reversed(calls) if kind == wanted)
    if handed_out:
        yield len(script.statements), ast.parse(handed_out, mode="eval").body


def _definitions(script: Script, name: str, at: int) -> list[int]:
    """Statements that bind a name: those before the call, the last first, then those after it."""
    all_of = [
        i
        for i, s in enumerate(script.statements)
        if name in s.binds and not any(kind == "use" for kind, *_ in s.calls)
    ]
    return [i for i in reversed(all_of) if i < at] + [i for i in all_of if i >= at]


def _loads(expression) -> set:
    return _names(ast.unparse(expression))[0]


def _needed(script: Script, names: set, at: int, chosen: int | None) -> list[Statement]:
    """The statements before the call that the names depend on, in order; of the answer's own name
    only the definition chosen."""
    kept, todo, known = set(), list(names), set()
    while todo:
        name = todo.pop()
        if name in known:
            continue
        known.add(name)
        all_of = [i for i, s in enumerate(script.statements) if name in s.binds]
        before = [i for i in all_of if i < at and not script.statements[i].calls]
        of_name = before or all_of[:1]
        if chosen is not None and name in script.statements[chosen].binds and name in names:
            own = script.statements[chosen].needs & {name}  # f = wrapped(f)
            of_name = [i for i in all_of if i < chosen and own] + [chosen]
        for i in of_name:
            kept.add(i)
            todo += script.statements[i].needs
    stars = {i for i, s in enumerate(script.statements) if _is_star(s.node)}
    return [script.statements[i] for i in sorted(kept | stars)]


def _is_star(node) -> bool:
    return isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
