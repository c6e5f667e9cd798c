"""Where the course's own files lie, and how a file is replaced in one stroke. Notebook 00."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def data_folder() -> Path:
    """The folder of mnist/, weights/ and tokenizer/: $DDPM_EDU_DATA, or data/ beside ddpm_edu/."""
    beside = Path(__file__).parent.parent / "data"
    return Path(os.environ.get("DDPM_EDU_DATA") or beside).expanduser()


@contextmanager
def replacing(path: Path) -> Iterator[str]:
    """A new file to write to; it takes path's place when the block ends well, else it is removed.

    After an error, or kill -9, the previous file is whole. Raises OSError.
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time: the others wait at this line. The lock ends with its process, and
    leaves no file; where folders cannot be locked (Windows, some networks) there is none."""
    handle = None
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
