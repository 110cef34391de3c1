"""The finished parts of an evaluation, which survive an interruption."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from advlib.files import set_aside
from advlib.parquet import read_table, write_parquet


def parts_of(n_images: int, part: int, processes: int = 1) -> list[range]:
    """The positions of all images in parts of `part` at most; each process gets about as many."""
    if processes > 1:
        rounds = -(-n_images // (processes * part))
        part = -(-n_images // (processes * rounds))
    return [range(start, min(start + part, n_images)) for start in range(0, n_images, part)]


def kept(
    path: Path, make: Callable[[], pd.DataFrame], names: Sequence[str] | None = None
) -> pd.DataFrame:
    """The rows that an earlier run kept (`kept_rows`), or those that `make` returns, now kept."""
    found = kept_rows(path, names)
    return read_table(write_parquet(make(), path)) if found is None else found


def kept_rows(path: Path, names: Sequence[str] | None = None) -> pd.DataFrame | None:
    """The rows in a file of `kept`, or None; a file that is damaged is set aside.

    So is one that does not hold the images of these names in their order, once per network.
    """
    if not path.is_file():
        return None
    try:
        table = read_table(path)
        if names is not None:
            times, rest = divmod(len(table), max(1, len(names)))
            if rest or not times or list(table.file_name) != list(names) * times:
                raise OSError("its rows are not those of the images, in their order")
        return table
    except (OSError, AttributeError) as error:
        set_aside(path, error.__cause__ or error)
        return None
