"""What all commands of the project share: how they end on bad input."""

import contextlib
import os
import sys
from collections.abc import Iterator

from advlib.data.fetch import DataError


@contextlib.contextmanager
def plainly(program: str) -> Iterator[None]:
    """Bad input ends a command with its sentence alone; a traceback is for errors of ours."""
    try:
        yield
    except (ValueError, OSError, DataError) as error:
        if under_torchrun():
            raise  # its message goes to the process that started torchrun
        sys.exit(f"{program}: {error}")


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ
