"""The finished parts of an evaluation, which survive an interruption."""

import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from advlib.files import set_aside
from advlib.parquet import read_table, write_parquet


def missing_parts(folder: Path, n_images: int, part: int, processes: int = 1) -> list[range]:
    """The positions of `n_images` whose rows no earlier run kept, in parts of `part` at most.

    The folder's name must hold everything that decides the rows. Parts are of such a size that each
    of several processes may take as many images: the first part, and every `processes`-th after
    it; the second, and so on.
    """
    gaps, end = [], 0
    for positions, _ in [*_parts(folder), (range(n_images, n_images), None)]:
        gaps += [range(end, positions.start)] if positions.start > end else []
        end = max(end, positions.stop)
    if processes > 1:
        missing = sum(map(len, gaps))
        rounds = -(-missing // (processes * part))
        part = -(-missing // (processes * rounds)) if missing else part
    return [range(start, min(start + part, gap.stop)) for gap in gaps for start in gap[::part]]


def check_parts(folder: Path, names: Sequence[str]) -> None:
    """Set finished parts aside that are damaged, or do not hold these images in this order."""
    for positions, path in _parts(folder):
        kept_rows(path, names[positions.start : positions.stop])


def keep_part(folder: Path, positions: range, make: Callable[[range], pd.DataFrame]) -> None:
    """Make the rows of these positions and keep them, unless an earlier run did."""
    path = folder / f"{positions.start:08d}-{positions.stop:08d}.parquet"
    kept(path, functools.partial(make, positions))


def read_parts(folder: Path) -> pd.DataFrame:
    """All rows that `keep_part` kept, in the order of the images, one per image and network."""
    tables, end = [], 0
    for positions, path in _parts(folder):
        if positions.stop > end:
            table = read_table(path)
            # Rows repeat the images once per network.
            table = table[np.arange(len(table)) % len(positions) >= end - positions.start]
            tables.append(table)
            end = positions.stop
    return pd.concat(tables, ignore_index=True)


def _parts(folder: Path) -> list[tuple[range, Path]]:
    """The finished parts, in order."""
    found = []
    for path in folder.glob("*.parquet"):
        if named := re.fullmatch(r"(\d{8})-(\d{8})", path.stem):
            found.append((range(int(named[1]), int(named[2])), path))
    return sorted(found, key=lambda item: (item[0].start, item[0].stop))


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
