"""Files that are written whole or not at all, and what the machine allows."""

import contextlib
import hashlib
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


def file_hash(path: str | Path) -> str:
    """The first 16 hex digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def usable_cores() -> int:
    """The CPU cores that this process may use: in a cluster's job, fewer than the machine has."""
    limited = hasattr(os, "sched_getaffinity")  # on Linux
    return len(os.sched_getaffinity(0)) if limited else os.cpu_count() or 1
