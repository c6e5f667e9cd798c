"""Where the course's own files lie, and how a file is replaced in one stroke. Notebook 00."""

import glob
import gzip
import hashlib
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import DataError

try:
    import fcntl
except ImportError:  # Windows: what a kill leaves behind stays there
    fcntl = None


def data_folder() -> Path:
    """The folder of mnist/, weights/ and tokenizer/: $DDPM_EDU_DATA, or data/ beside ddpm_edu/."""
    beside = Path(__file__).parent.parent / "data"
    return Path(os.environ.get("DDPM_EDU_DATA") or beside).expanduser()


def shipped(name: str, checksum: str) -> bytes:
    """The bytes of a file of the data folder, unpacked (.gz, .xz), with this sha256 or md5.

    DataError for a file that is missing, cut short, unreadable or altered.
    """
    path, room = data_folder() / name, name.partition("/")[0]
    kind = "md5" if len(checksum) == 32 else "sha256"
    try:
        raw = _unpacked(path.read_bytes(), name)
        found = hashlib.new(kind, raw, usedforsecurity=False).hexdigest()
        if found == checksum:
            return raw
        cause = f"has the wrong content ({len(raw):,} bytes, {kind} {found}, official {checksum})"
    except FileNotFoundError:
        cause = "is missing"
    except EOFError:
        cause = "is cut short"
    except ImportError:
        cause = "needs lzma, which this Python was built without; a .gz in its place is welcome"
    except (OSError, zlib.error) as error:
        cause = f"cannot be read ({error})"
    raise DataError(
        f"{path} {cause}: restore it with `git checkout -- data/{room}`, or point DDPM_EDU_DATA to "
        f"a folder that holds {room}/ (data/README.md says where to get it)"
    )


def _unpacked(raw: bytes, name: str) -> bytes:
    if not name.endswith(".xz"):
        return gzip.decompress(raw) if name.endswith(".gz") else raw
    from lzma import FORMAT_XZ, LZMAError, decompress  # a few Pythons have none

    try:
        return decompress(raw, FORMAT_XZ)
    except LZMAError as error:
        raise (EOFError if "ended before" in str(error) else OSError)(error) from None


def beside(path, ending: str) -> Path:
    """NAME.safetensors, or NAME.safetensors.xz, or NAME.x -> the same with NAME and this ending."""
    path = Path(path)
    name, dot, kind = path.name.partition(".safetensors")
    if not dot:
        return path.with_stem(path.stem + ending)
    return path.with_name(f"{name}{ending}{dot}{kind}")


@contextmanager
def replacing(path: Path) -> Iterator[str]:
    """A new file to write to; it takes path's place when the block ends well, else it is removed.

    After an error, or kill -9, the previous file is whole; what a kill leaves is removed by the
    next writer. A link stays one, its target is replaced. Raises OSError.
    """
    path = os.path.realpath(path)
    _remove_leftovers(path)
    room, lock = _room(path)  # a folder, as some writers have temporary files of their own
    part = os.path.join(room, os.path.basename(path))
    try:
        open(part, "xb").close()
        rights = os.stat(part).st_mode  # as the umask decides; some writers forget it
        yield part
        os.chmod(part, rights)
        with open(part, "rb") as f:
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        shutil.rmtree(room, ignore_errors=True)
        if fcntl:
            os.close(lock)


def _room(path: str) -> tuple[str, int]:
    """A folder beside path to write in, locked until its writer is done or dead."""
    while True:
        room = f"{path}.{secrets.token_hex(4)}.part"
        os.mkdir(room)
        if not fcntl:
            return room, 0
        try:
            lock = os.open(room, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(room):
                return room, lock
            os.close(lock)
        except FileNotFoundError:  # taken for a leftover before it was locked
            continue


def _remove_leftovers(path: str) -> None:
    """Of writers that are dead: nobody holds the lock of their folder any more."""
    for room in glob.glob(glob.escape(path) + ".*.part") if fcntl else ():
        try:
            lock = os.open(room, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(room) if os.path.isdir(room) else os.unlink(room)
        except OSError:  # a living writer's
            pass
        finally:
            os.close(lock)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time: the others wait at this line. The lock ends with its process, and
    leaves no file; where folders cannot be locked (Windows, some networks) there is none."""
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except (AttributeError, OSError):
        pass
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
