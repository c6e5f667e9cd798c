"""JavaScript libraries from npm, pinned, none committed, for book and slides. All notebooks.

Kept beside the environment, so each is fetched once. Run as a program it fetches them all
(`make install` does, so that `make book` and `ddpm-edu slides` need no network).
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

SHELF = Path(sys.prefix) / "share/ddpm-edu/npm"
# name: (version, the sha512 that npm calls integrity)
PINS = {
    "mathjax": (
        "3.2.2",
        "Bt+SSVU8eBG27zChVewOicYs7Xsdt40qm4+UpHyX7k0/O9NliPc+x77k1/FEsPsjKPZGJvtRZM1vO+geW0OhGw==",
    ),
    "onnxruntime-web": (
        "1.30.0",
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    ),
    "reveal.js": (
        "5.2.1",
        "r7//6mIM5p34hFiDMvYfXgyjXqGRta+/psd9YtytsgRlrpRzFv4RbH76TXd2qD+7ZPZEbpBDhdRhJaFgfQ7zNQ==",
    ),
    "axe-core": (
        "4.14.1",
        "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    ),
}


def package(name: str) -> Path | None:
    """The folder with one of PINS; None, and a line on standard error, where it cannot be had.

    A tarball with another checksum is thrown away.
    """
    version, sha512 = PINS[name]
    folder = SHELF / f"{name}-{version}"
    if folder.is_dir():
        return folder
    try:
        return fetched(f"{name}@{version}", sha512, folder)
    except (OSError, subprocess.SubprocessError, tarfile.TarError) as problem:
        print(f"{name}@{version} cannot be had from npm: {problem}", file=sys.stderr)
        return None


def fetched(spec: str, sha512: str, folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        subprocess.run(
            ["npm", "pack", spec, "--silent", "--ignore-scripts"],
            cwd=scratch,
            check=True,
            capture_output=True,
            timeout=300,
        )
        (tarball,) = Path(scratch).glob("*.tgz")
        found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
        if found != sha512:
            raise OSError(f"its sha512 is {found}, pinned is {sha512}")
        with tarfile.open(tarball) as archive:
            archive.extractall(scratch, filter="data")
        if not folder.exists():  # another process may have been quicker
            shutil.move(Path(scratch, "package"), folder)
    return folder


if __name__ == "__main__":
    for library in sys.argv[1:] or PINS:
        print(f"{library}: {package(library) or 'missing'}")
