"""Tables as Parquet files whose damage is noticed."""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from advlib.files import AGAIN, replacing

_DIGEST = b"advlib-digest"


def write_parquet(
    table: pa.Table | pd.DataFrame, path: str | Path, facts: dict | None = None, **how
) -> Path:
    """Write a table whose damage is noticed (`read_table`), whole or not at all.

    Each page has a checksum; of the rest, the columns, the facts and the number of rows, there is a
    digest. `how` is passed on to pyarrow.
    """
    if isinstance(table, pd.DataFrame):
        table = pa.Table.from_pandas(table, preserve_index=False)
    how = {"compression": "zstd", "write_page_checksum": True} | how
    notes = {} if facts is None else {"advlib": json.dumps(facts)}

    def write(where, rows):
        with pq.ParquetWriter(where, table.schema, **how) as file:
            file.write_table(rows)
            file.add_key_value_metadata(notes)

    draft = io.BytesIO()  # without rows, to learn how Parquet calls these columns
    write(draft, table.slice(0, 0))
    notes[_DIGEST.decode()] = _digest(pq.read_metadata(draft), len(table))
    with replacing(path) as partial:
        write(partial, table)
    return Path(path)


def _digest(metadata: pq.FileMetaData, n_rows: int) -> str:
    columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    columns = [(c.path, c.physical_type, c.logical_type.type) for c in columns]
    notes = sorted((k, v) for k, v in (metadata.metadata or {}).items() if k != _DIGEST)
    return hashlib.sha256(repr((n_rows, columns, notes)).encode()).hexdigest()[:16]


@contextlib.contextmanager
def whole(path: str | Path, **how) -> Iterator[pq.ParquetFile]:
    """An open Parquet file, if it is as it was written; pages are checked as they are read."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, **how) as file:
            digest = (file.metadata.metadata or {}).get(_DIGEST)
            if digest not in (None, _digest(file.metadata, file.metadata.num_rows).encode()):
                raise ValueError("columns, facts or rows are not those that it was written with")
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
