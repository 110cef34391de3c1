"""Tables as Parquet files whose damage is noticed."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from advlib.files import AGAIN, replacing


def write_parquet(
    table: pa.Table | pd.DataFrame, path: str | Path, facts: dict | None = None, **how
) -> Path:
    """Write a table whose damage is noticed (`read_table`), whole or not at all.

    Each page has a checksum. `how` is passed on to pyarrow.
    """
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    how = {"compression": "zstd", "write_page_checksum": True} | how
    with replacing(path) as partial, pq.ParquetWriter(partial, table.schema, **how) as file:
        file.write_table(table)
        if facts is not None:
            file.add_key_value_metadata({"advlib": json.dumps(facts)})
    return Path(path)


@contextlib.contextmanager
def whole(path: str | Path, **how) -> Iterator[pq.ParquetFile]:
    """An open Parquet file; its pages are checked as they are read."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, **how) as file:
            yield file
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
        raise OSError(f"{path} cannot be read as a table ({said}): {AGAIN}") from error


def read_table(path: str | Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """The rows of a table of `write_parquet`; OSError, with the path, if missing or damaged."""
    with whole(path) as file:
        return file.read(columns=columns).to_pandas()
