"""Files that are written whole or not at all, and what the machine allows."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A partial file that takes the place of `path` when the block ends without an error.

    Until then `path` is as it was, also after a kill or a loss of power.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


AGAIN = "restore it (`git checkout`), or delete it and run its study again"


def read_json(path: str | Path) -> dict:
    """The facts in a JSON file.

    Raises OSError, with the way out, where it holds none: cut off, empty, or of another kind.
    """
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
