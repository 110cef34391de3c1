"""Files that are written whole or not at all, and what the machine allows."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

_NO_ROOM = [
    os.strerror(number)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
]


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A partial file that takes the place of `path` when the block ends without an error.

    Until then `path` is as it was, also after a kill or a loss of power. Each process has a partial
    file of its own. What a killed one has left is removed a day later, with the next writing.

    Raises OSError, with the folder, if it cannot be written to: it is full, or read-only.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                if time.time() - left.stat().st_mtime > 86400:
                    left.unlink()
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except Exception as error:  # safetensors has an error of its own for a full disk
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)  # it takes up the little that is left
        said = next((said for said in _NO_ROOM if said in str(error)), None)
        if said is None:
            raise
        raise OSError(
            f"{path.name} cannot be written to {path.parent} ({said}), and what was there is kept: "
            "make room, or choose another folder (for runs by the environment variable ADVLIB_RUNS)"
        ) from error


def set_aside(path: Path, why: object) -> None:
    """Rename a damaged file to ``….damaged``, so that it is made anew, and say so."""
    aside = path.with_name(f"{path.name}.damaged")
    os.replace(path, aside)
    warnings.warn(
        f"{path} is damaged ({why}): set aside as {aside.name}, and made anew", stacklevel=3
    )


AGAIN = "restore it (`git checkout`), or delete it if a study made it, and run that again"


def read_json(path: str | Path) -> dict:
    """The facts in a JSON file; OSError, with the way out, where it holds none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} is damaged ({error}): {AGAIN}") from error
    if not isinstance(found, dict):
        raise OSError(f"{path} is damaged (it holds {str(found)[:20]}, no facts): {AGAIN}")
    return found


def file_hash(path: str | Path) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def usable_cores() -> int:
    """The CPU cores that this process may use: in a cluster's job, fewer than the machine has."""
    limited = hasattr(os, "sched_getaffinity")  # on Linux
    return len(os.sched_getaffinity(0)) if limited else os.cpu_count() or 1
