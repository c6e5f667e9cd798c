"""Unpacking what a class handed in: the zip of a learning platform, by student. All notebooks.

    collect(Path("Assignment 1.zip"), Path("submissions")) -> submissions/STUDENT/NOTEBOOK

Names in the zip are only read, never used as paths. A zip that tries to leave its folder, to be
absolute, or to fill the disk is refused whole; a student's own zip inside it, or a single file that
would become too large, is only left out.
"""

import io
import itertools
import os
import re
import secrets
import shutil
import stat
import unicodedata
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ..errors import DataError, OptionError

MAX_FILE, MAX_ALL, MAX_FILES = 256 * 2**20, 8 * 2**30, 20_000
MAX_RATIO, SURE = 200, 2**24  # a bomb is packed 1,000-fold; below 16 MiB it may be one line, often
WANTED = (".ipynb", ".py")

# How platforms name a file: (name of the platform, pattern of its path in the zip).
PLATFORMS = (
    ("Brightspace", r"\d+-\d+ - (?P<student>[^/]+?) - [^/]*\d{4}[^/]*/(?P<file>.+)"),
    ("Moodle", r"(?P<student>[^/]+?)_(?P<id>\d+)_assignsubmission_[a-z]+_?/?(?P<file>.+)"),
    ("Blackboard", r"[^/]*?_(?P<student>[^/_]+)_attempt_[\d-]+_(?P<file>[^/]+)"),
    ("Canvas", r"(?P<student>[^/_]+)_(?:LATE_|late_)?(?P<id>\d+)_\d+_(?P<file>[^/]+)"),
    ("Sakai", r"(?:[^/]+/)?(?P<student>[^/]+?)\s*\((?P<id>[^)/]+)\)/(?:[^/]+/)*(?P<file>[^/]+)"),
    ("Google Classroom", r"(?P<student>[^/]+?) - (?P<file>[^/]+)"),
    ("a folder a student", r"(?P<student>[^/]+)/(?P<file>.+)"),
)


def collect(archive: Path, out: Path) -> list[str]:
    """Unpack; lines that say what was found and what was left out. All, or nothing.

    DataError for a zip that is damaged or dangerous, OptionError for a folder that is there.
    """
    if os.path.lexists(out):
        raise OptionError(f"--out {out} is there already: name a new folder, or remove it")
    part = out.with_name(f"{out.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        lines = _unpacked(archive, part)
        os.replace(part, out)
    except OSError as error:
        raise OptionError(f"{error.filename or out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return lines


def _unpacked(archive: Path, part: Path) -> list[str]:
    with _opened(archive, str(archive)) as zipped:
        entries = checked(zipped, archive.name)
        paths = _below_common_folder([entry.filename for entry in entries])
        platform, pattern = _platform([p for p in paths if p.lower().endswith((*WANTED, ".zip"))])
        room, left = Room(), []
        for entry, path in zip(entries, paths):
            match = re.fullmatch(pattern, path, re.S)
            if not match:
                left.append(f"{path}: no student can be told from its name")
                continue
            found = match.groupdict()
            student = room.folder(found["student"], found.get("id"))
            left += _kept(zipped, entry, found["file"], part / student, student, room)
    students = sorted(p.name for p in part.iterdir())
    if not students:
        raise DataError(f"{archive} holds no notebooks ({', '.join(WANTED)}): is it another zip?")
    told = f"students: {len(students)}, notebooks: {room.files}, named as {platform} does"
    return [told, *(f"left out: {line}" for line in left)]


class Room:
    """Bytes and files written so far, and the folders of the students."""

    def __init__(self):
        self.bytes = self.files = 0
        self.folders, self.taken = {}, set()

    def folder(self, student: str, number: str | None = None) -> str:
        """A student's: the name; of the second of two whose names are alike, or become so, with the
        platform's number, or a count, behind it."""
        student = unicodedata.normalize("NFC", student)
        if (student, number) not in self.folders:
            name = clean(student)
            numbered = (f"{name}_{clean(number, 40)}",) if number else ()
            counted = (f"{name} ({n})" for n in itertools.count(2))
            free = (f for f in (name, *numbered) if f.casefold() not in self.taken)
            made = next(free, None) or next(f for f in counted if f.casefold() not in self.taken)
            self.folders[student, number] = made
            self.taken.add(made.casefold())
        return self.folders[student, number]


def _opened(source, name: str) -> zipfile.ZipFile:
    if isinstance(source, Path) and source.exists() and not source.is_file():
        raise DataError(f"{name} is a folder or a pipe: pass the zip of a learning platform")
    try:
        return zipfile.ZipFile(source)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise DataError(f"{name} is no zip that can be read ({error}): download it again") from None


def checked(zipped: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The files of a zip. DataError for one that is dangerous to unpack."""
    entries = [entry for entry in zipped.infolist() if not entry.is_dir()]
    if len(entries) > MAX_FILES:
        raise DataError(f"{name} holds {len(entries):,} files: refused, {MAX_FILES:,} at most")
    for entry in entries:
        path = PurePosixPath(entry.orig_filename.replace("\\", "/"))
        cause = None
        if path.is_absolute() or re.match(r"[A-Za-z]:", str(path)) or ".." in path.parts:
            cause = "leads out of its folder"
        elif "\0" in entry.orig_filename:
            cause = "has a name with a zero byte"
        elif stat.S_ISLNK(entry.external_attr >> 16):
            cause = "is a link"
        elif entry.flag_bits & 1:
            cause = "is encrypted"
        if cause:
            raise DataError(f"{name} is refused: {entry.orig_filename!r:.80} {cause}")
    if sum(entry.file_size for entry in entries if not _is_bomb(entry)) > MAX_ALL:
        raise DataError(f"{name} is refused: unpacked it has more than {MAX_ALL // 2**30} GiB")
    return [e for e in entries if not _litter(e.filename)]


def _is_bomb(entry) -> bool:
    return entry.file_size > max(SURE, MAX_RATIO * entry.compress_size)


def _litter(path: str) -> bool:
    parts = path.split("/")
    return "__MACOSX" in parts or any(p.startswith(".") for p in parts) or not parts[-1]


def _below_common_folder(paths: list[str]) -> list[str]:
    """Without the one folder that everything may lie in, if students' folders lie in it."""
    while paths and all(p.count("/") >= 2 for p in paths):
        first = paths[0].partition("/")[0]
        if any(p.partition("/")[0] != first for p in paths):
            break
        paths = [p.partition("/")[2] for p in paths]
    return paths


def _platform(paths: list[str]) -> tuple[str, str]:
    """The first platform that names nearly all notebooks so."""
    for name, pattern in PLATFORMS:
        fits = [p for p in paths if re.fullmatch(pattern, p, re.S)]
        if fits and len(fits) >= 0.8 * len(paths):
            return name, pattern
    return "nobody we know", r"(?=(?P<file>[^/]+$))(?P<student>.+)\.\w+"


def clean(name: str, longest: int = 160) -> str:
    """A name that is one part of a path on every system, with letters of any language; at most
    `longest` bytes of it."""
    name = unicodedata.normalize("NFC", name).strip()
    name = re.sub(r'[<>:"/\\|?*\x00-\x1f\x7f]+', "_", name)
    name = re.sub(r"^(?i:con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", "_", name)
    name = name.strip(". ").encode(errors="replace")[:longest].decode(errors="ignore")
    return name.rstrip(". ") or "unnamed"


def _kept(zipped, entry, file: str, folder: Path, student: str, room: Room, depth=0) -> list[str]:
    """Write one file, or what a student's zip holds; lines about what was left out."""
    stem, dot, suffix = PurePosixPath(file).name.rpartition(".")
    name = f"{clean(stem)}.{clean(suffix, 10)}" if dot else clean(suffix)
    if _is_bomb(entry):
        packed = f"{entry.compress_size:,} bytes become {entry.file_size:,}"
        return [f"{student}: {name} is a bomb: {packed}"]
    if name.lower().endswith(".zip") and depth == 0:
        try:
            inner = _opened(io.BytesIO(_bytes(zipped, entry, room)), name)
            with inner:
                lines = []
                for e in checked(inner, name):
                    lines += _kept(inner, e, e.filename, folder, student, room, depth=1)
                return lines
        except DataError as error:
            return [f"{student}: {error}"]
    if not name.lower().endswith(WANTED):
        return [f"{student}: {name}, no notebook"]
    if room.files >= MAX_FILES:
        raise DataError(f"more than {MAX_FILES:,} files: refused")
    raw = _bytes(zipped, entry, room)
    folder.mkdir(exist_ok=True)
    path, number = folder / name, 1
    while path.exists():  # handed in twice under one name
        number += 1
        path = folder / f"{Path(name).stem} ({number}){Path(name).suffix}"
    path.write_bytes(raw)
    room.files += 1
    return []


def _bytes(zipped, entry, room: Room) -> bytes:
    """Unpacked, counted while it is read: what a zip says of its sizes may be a lie."""
    parts, size = [], 0
    try:
        with zipped.open(entry) as stream:
            while chunk := stream.read(2**20):
                parts.append(chunk)
                size += len(chunk)
                room.bytes += len(chunk)
                if size > MAX_FILE or room.bytes > MAX_ALL:
                    raise DataError(f"{entry.filename!r:.80} is refused: it is too large unpacked")
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise DataError(f"{entry.filename!r:.80} is damaged ({error}): ask for it again") from None
    return b"".join(parts)
