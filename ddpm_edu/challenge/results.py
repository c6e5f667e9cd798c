"""Results of the challenge as files: one JSON an entry, checked when it is read. Notebook 18."""

import base64
import dataclasses
import io
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from ..datasets.images import from_uint8, to_uint8
from ..errors import DataError, OptionError
from ..paths import replacing
from .rules import BUDGETS

FORMAT = 1
LARGEST = 200_000  # bytes of a file
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Result:
    """What the judge found."""

    entry: str  # the file's name without .py
    sha256: str  # of the file
    seconds: float  # of training that were allowed, on two cores
    pictures: int  # drawn with each number of evaluations
    seed: int  # of the noise that they start from
    date: str
    device: str
    versions: str
    command: str
    cause: str  # "judged", or why there are no points
    message: str = ""  # the cause in a sentence
    points: float = 0.0
    scores: dict = field(default_factory=dict)  # {evaluations: {"accuracy", "frechet"}}
    trained: float = 0.0  # processor seconds
    walls: list = field(default_factory=list)  # that stood around the entry, see classroom/walls.py
    picture: str = ""  # PNG in base64: digits 0 to 9 for each number of evaluations


def picture(x: torch.Tensor) -> str:
    """(len(BUDGETS) * 10, 1, 28, 28) in [-1, 1] -> PNG in base64: rows of ten, 16 greys."""
    from PIL import Image

    rows = to_uint8(x)[:, 0].reshape(len(BUDGETS), 10, 28, 28).permute(0, 2, 1, 3)
    grey = Image.fromarray(np.ascontiguousarray(rows.reshape(-1, 280).numpy()))
    out = io.BytesIO()
    grey.quantize(16, dither=Image.Dither.NONE).save(out, format="png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def pictures(result: Result) -> dict[int, torch.Tensor]:
    """{evaluations: digits 0 to 9 (10, 1, 28, 28) in [-1, 1]} of a result that has a picture."""
    from PIL import Image

    sheet = np.array(Image.open(io.BytesIO(base64.b64decode(result.picture))).convert("L"))
    rows = torch.from_numpy(sheet).reshape(len(BUDGETS), 28, 10, 28).permute(0, 2, 1, 3)
    return {n: from_uint8(row[:, None]) for n, row in zip(BUDGETS, rows)}


def write(result: Result, path) -> Path:
    """One JSON file, all or nothing. OptionError where it cannot be written."""
    text = json.dumps({"challenge": FORMAT} | dataclasses.asdict(result), indent=1)
    try:
        with replacing(path) as part:
            Path(part).write_text(text + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OptionError(f"{path}: the result could not be written ({error})") from error
    return Path(path)


def read(path) -> Result:
    """A result, each field of the kind and in the range that the judge writes; else DataError."""
    path = Path(path)
    try:
        if not path.is_file():  # one waits for a pipe for ever
            raise ValueError("no file")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"more than {LARGEST:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict) or found.pop("challenge", None) != FORMAT:
            raise ValueError(f'no "challenge": {FORMAT}')
        scores = found.get("scores")
        if isinstance(scores, dict):
            found["scores"] = {int(n): score for n, score in scores.items()}
        return checked(Result(**found))
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        cause = f"no result of a challenge ({error!s:.120})"
        raise DataError(f"{path.name}: {cause}: judge the entry again") from None


def checked(result: Result) -> Result:
    """ValueError unless each field can be what a judge wrote."""
    for one in dataclasses.fields(Result):
        value = getattr(result, one.name)
        kind = (int, float) if one.type is float else one.type
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{one.name} is {value!r:.40}")
        if isinstance(value, (int, float)) and not 0 <= value < math.inf:
            raise ValueError(f"{one.name} = {value!r:.40}")
    if not re.fullmatch("[0-9a-f]{64}", result.sha256):
        raise ValueError("sha256 is none")
    if not (re.fullmatch(r"[^/\\]{1,60}", result.entry) and result.entry.isprintable()):
        raise ValueError("entry is no name")
    if result.picture and not base64.b64decode(result.picture, validate=True).startswith(PNG):
        raise ValueError("picture is no PNG")
    judged = result.cause == "judged"
    if list(result.scores) != (list(BUDGETS) if judged else []) or result.points > 100 * judged:
        raise ValueError("scores, points and cause do not fit")
    for score in result.scores.values():
        if not (0 <= score["accuracy"] <= 1 and 0 <= score["frechet"] < math.inf):
            raise ValueError(f"a score of {score!r:.60}")
    return result


def collected(folder) -> tuple[list[Result], list[str]]:
    """(the results of a folder, best first; a sentence for each file that is none).

    OptionError for a folder that is not there, or holds no result.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise OptionError(f"{folder}: there is no such folder: pass one of result files (.json)")
    results, broken = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            results.append(read(path))
        except DataError as error:
            broken.append(str(error))
    if not results:
        found = f"only: {'; '.join(broken)[:300]}" if broken else "none"
        how = "`ddpm-edu challenge run` writes them, `board --rerun` does so for all entries"
        raise OptionError(f"{folder}: no result that can be read ({found}): {how}")
    return sorted(results, key=lambda r: (-r.points, r.entry)), broken
