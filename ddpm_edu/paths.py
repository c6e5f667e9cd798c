"""Where the course's own files lie, and how a file is replaced in one stroke. Notebook 00."""

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: what a kill leaves behind stays there
    fcntl = None


def data_folder() -> Path:
    """The folder of mnist/, weights/ and tokenizer/: $DDPM_EDU_DATA, or data/ beside ddpm_edu/."""
    beside = Path(__file__).parent.parent / "data"
    return Path(os.environ.get("DDPM_EDU_DATA") or beside).expanduser()


@contextmanager
def replacing(path: Path) -> Iterator[str]:
    """A new file to write to; it takes path's place when the block ends well, else it is removed.

    After an error, or kill -9, the previous file is whole; what a kill leaves is removed by the
    next writer. A link stays one, its target is replaced. Raises OSError.
    """
    path = os.path.realpath(path)
    _remove_leftovers(path)
    part = f"{path}.{secrets.token_hex(4)}.part"
    handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)  # the umask decides
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX)  # held until the writer is done or dead
        yield part
        os.fsync(handle)
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)
        os.close(handle)


def _remove_leftovers(path: str) -> None:
    """Of writers that are dead: nobody holds the lock of their file any more."""
    for part in glob.glob(glob.escape(path) + ".*.part") if fcntl else ():
        try:
            with open(part, "rb") as f:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(part)
        except OSError:  # a living writer's
            continue


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
