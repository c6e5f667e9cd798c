"""Where the files that come with the course lie, and how a file is replaced in one stroke."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OptionError


def data_folder() -> Path:
    """The folder that holds `mnist/`, `weights/` and `tokenizer/`: $DDPM_EDU_DATA, or `data/` beside the package."""
    return Path(
        os.path.expanduser(os.environ.get("DDPM_EDU_DATA") or Path(__file__).parent.parent / "data")
    )


@contextmanager
def replacing(path: Path) -> Iterator[str]:
    """A new file beside `path` to write to; it takes path's place when the block ends well, and is removed when not.

    Whoever is interrupted, by an error or by kill -9, finds the previous file whole. Raises OSError.
    """
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".part")
    os.close(handle)
    try:
        yield part
        with open(part, "rb") as f:
            os.fsync(f.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)


def check_writable(path: Path) -> None:
    """Raise OptionError unless a file can be written at `path`: to be asked before the hours of training, not after."""
    folder, is_folder = Path(path).absolute().parent, os.path.isdir
    if is_folder(path) or not is_folder(folder) or not os.access(folder, os.W_OK):
        cause = (
            "is a folder"
            if is_folder(path)
            else f"lies in {folder}, "
            + ("which cannot be written to" if is_folder(folder) else "which does not exist")
        )
        raise OptionError(f"{path} {cause}: name another file, or make the folder first")
