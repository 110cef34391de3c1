"""The prediction table: one row per image and condition, the only source of every error figure."""

import contextlib
import csv
import datetime
import functools
import gzip
import hashlib
import importlib.metadata
import io
import json
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from advlib.files import AGAIN, read_json, replacing, set_aside
from advlib.metrics.tables import CORRECT_COLUMNS, correct

COLUMNS = ("file_name", "label", "predicted_class", "predicted_probability")
CONDITIONS = ("method", "seed", "corruption", "severity", "attack")
MORE_COLUMNS = (*CONDITIONS, *CORRECT_COLUMNS, "linf", "steps_used")
TEXT = ("file_name", "corruption", "attack", "method")
CLEAN = ("", "none", "clean")  # as a condition: a row about a clean image
MISSING = [
    "",
    "NA",
    "N/A",
    "NaN",
    "nan",
    "null",
    "NULL",
    "None",
    "<NA>",
]  # but no file is called ""
DECIMALS = 3  # of the probabilities in the tables that are written


def predict(
    models: dict,
    dataset,
    *,
    num_classes: int,
    batch_size: int = 256,
    device=None,
    workers: int = 0,
    indices=None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """Predictions of several models in one pass over the images, in float32.

    Parameters
    ----------
    models : dict of str to nn.Module
        Images in [0, 1] to K or K+M logits; the first K are classes.
    dataset : advlib.data.sets.Images, or a sequence of (x, y) or (x, y, file_name)
    num_classes : int
        K.
    batch_size, workers : int
    device : optional
        None: CUDA, MPS or the CPU, by availability.
    indices : sequence of int, optional
        Only the images at these positions.
    progress : callable, optional
        Called with the number of images finished.

    Returns
    -------
    dict
        A prediction table under each model's key.

    Raises
    ------
    TypeError, ValueError
        For a data set without images and labels, or a model that gives no logits.
    FloatingPointError
        With the names of model and images, where logits are no numbers.
    """
    import torch

    from advlib.data.batches import item_names
    from advlib.data.sets import evaluation_batches
    from advlib.labels import class_logits, model_logits
    from advlib.networks.device import autocast, default_device

    device = torch.device(device or default_device())
    models = {k: m.to(device, memory_format=torch.channels_last).eval() for k, m in models.items()}
    outcomes = {name: [] for name in models}
    chosen, labels = [], []
    batches = evaluation_batches(
        dataset, batch_size=batch_size, workers=workers, device=device, indices=indices
    )
    for x, y, index in batches:
        chosen += index.tolist()
        labels.append(y)
        for name, model in models.items():
            with torch.no_grad(), autocast(device, torch.float32):
                logits = class_logits(model_logits(model, x), num_classes)
                probabilities = logits.float().softmax(1)
            outcomes[name].append(probabilities.max(1))  # stays on the device: nothing waits
        if progress:
            progress(len(y))
    names, y = item_names(dataset, chosen), torch.cat(labels).cpu().numpy()
    tables = {}
    for name, parts in outcomes.items():
        probability, predicted = (torch.cat(p).cpu().numpy() for p in zip(*parts, strict=True))
        if len(odd := np.flatnonzero(~np.isfinite(probability))):
            of = " ".join(map(str, name)) if isinstance(name, tuple) else name
            raise FloatingPointError(
                f"the network {of!r} gives logits that are no numbers for {len(odd)} of "
                f"{len(names)} images, first {names[odd[0]]!r}: look for weights or pixels that "
                "are no numbers"
            )
        values = (names, y, predicted, probability)
        tables[name] = pd.DataFrame(dict(zip(COLUMNS, values, strict=True)))
    return tables


def check_predictions(
    table: pd.DataFrame, *, num_classes: int | None = None, n_images: int | None = None
) -> pd.DataFrame:
    """Return the table if it keeps the contract.

    Parameters
    ----------
    table : DataFrame
        With `COLUMNS` and, for some benchmarks, ``corruption`` and ``severity`` or ``attack``.
        A missing value there is a condition of its own: the clean images. An optional column
        ``correct`` (booleans) decides what counts as an error (`advlib.metrics.tables.correct`).
    num_classes : int, optional
        K: labels and classes are in [0, K).
    n_images : int, optional
        How many images each condition has.

    Raises
    ------
    ValueError
        For a missing column or value, a missing or duplicated image, conditions of other images
        or labels, a label, class or probability out of range.
    """
    missing = [c for c in COLUMNS if c not in table]
    if missing:
        raise ValueError(f"the prediction table lacks the columns {', '.join(missing)}")
    if not len(table):
        raise ValueError("the prediction table has no rows")
    holes = [c for c in COLUMNS if table[c].isna().any()]
    if holes:
        raise ValueError(f"the prediction table has missing values in {', '.join(holes)}")
    _check_images(table, n_images)
    for column in ("label", "predicted_class"):
        _check_classes(table[column], num_classes)
    probability = table.predicted_probability
    if not pd.api.types.is_numeric_dtype(probability):
        raise ValueError(
            f"predicted_probability holds numbers, got {probability.dtype}, such as "
            f"{probability.iloc[0]!r}"
        )
    low, high = probability.min(), probability.max()
    if not (low >= 0 and high <= 1 + 1e-6):
        raise ValueError(
            f"predicted_probability is in [0, 1], got {low:g} to {high:g}: logits need a softmax, "
            "percentages a division by 100"
        )
    _check_same_labels(table)
    correct(table)  # refuses a column that holds anything but booleans
    return table


def _codes(column: pd.Series) -> tuple[np.ndarray, int]:
    """Int64 numbers of a column's distinct values, 0 for a missing one, and their count."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, count = column.cat.codes.to_numpy(), len(column.cat.categories)
    else:
        codes, values = pd.factorize(column)
        count = len(values)
    return codes.astype(np.int64) + 1, count + 1


def _check_images(table: pd.DataFrame, n_images: int | None) -> None:
    """Each condition holds the same images, each of them once.

    Corrupted images may be a part of the others.
    """
    if "corruption" in table:
        corrupted = table.corruption.notna()
        if corrupted.any() and not corrupted.all():
            _check_images(table[corrupted], n_images)
            names, table = table.file_name[corrupted], table[~corrupted]
            if not (known := names.isin(table.file_name)).all():
                odd = names[~known].unique()
                raise ValueError(
                    f"{len(odd)} corrupted images are not among the clean ones, such as {odd[0]!r}"
                )
    columns = [c for c in CONDITIONS if c in table]
    condition = np.zeros(len(table), np.int64)
    for column in columns:
        codes, count = _codes(table[column])
        condition = condition * count + codes
    condition, kinds = pd.factorize(condition)
    image, count = _codes(table.file_name)
    cell = condition * np.int64(count) + image
    ordered = np.sort(cell)
    if (ordered[1:] == ordered[:-1]).any():
        twice = table.file_name[pd.Series(cell, table.index).duplicated()]
        raise ValueError(
            f"{len(twice)} images occur twice, {twice.iloc[0]!r} among them: keep one row an image "
            "and condition"
        )
    sizes, images = np.bincount(condition), np.count_nonzero(np.bincount(image))
    expected = n_images or sizes.max()
    if (sizes != expected).any():
        odd = np.flatnonzero(sizes != expected)
        odd = odd[sizes[odd].argmin()]
        where = table[columns].iloc[int((condition == odd).argmax())].to_dict()
        raise ValueError(
            f"{sizes[odd]} images in one condition, {expected} expected: images are missing"
            + (f" ({', '.join(f'{k} {v}' for k, v in where.items())})" if columns else "")
        )
    if images != expected:
        raise ValueError(
            f"the {len(kinds)} conditions hold {images} different images, {expected} each: every "
            "condition must hold the same"
        )


def _check_classes(column: pd.Series, num_classes: int | None) -> None:
    """Whole numbers in [0, K)."""
    name = column.name
    if not pd.api.types.is_integer_dtype(column):
        number = pd.to_numeric(column.astype(object), errors="coerce")
        odd = column[~(number % 1 == 0)]
        example = (odd if len(odd) else column).iloc[0]
        raise ValueError(f"{name} holds whole numbers, got {column.dtype}, such as {example!r}")
    low, high = column.min(), column.max()
    if low < 0 or (num_classes is not None and high >= num_classes):
        hint = ""
        if high == num_classes:
            why = "they count from 1" if low == 1 else "is there a background class 0"
            hint = f"; {why}? Then subtract 1"
        raise ValueError(f"{name} is in [0, {num_classes or 'K'}), got {low} to {high}{hint}")


def _check_same_labels(table: pd.DataFrame) -> None:
    """An image has one label in all conditions."""
    image, count = _codes(table.file_name)
    labels = table.label.to_numpy()
    label = np.zeros(count, labels.dtype)
    label[image] = labels
    if (odd := label[image] != labels).any():
        raise ValueError(f"{table.file_name[odd].iloc[0]!r} has different labels in two conditions")


def check_label_order(table: pd.DataFrame) -> None:
    """Refuse predictions whose class numbers follow another order than the labels.

    On one half of each class's images, the one-to-one renaming of predicted classes is found that
    makes most of them right; on the other half it is compared with no renaming, over the classes
    it renames. It is taken for the true order if it renames at least a tenth of the classes (and
    at least three, or all), is right more than four times as often and for 10 points more of these
    images, and by more than chance (a z of 4 in McNemar's test). Since it is judged on images it
    was not fitted to, noise cannot trigger it, and hardly can classes mistaken for others: several
    classes taken for one cannot all be renamed.

    It finds a whole list in another order, a shift by one, and a tenth of the classes exchanged.
    It does not find fewer classes exchanged, or the order of a model that would be right for less
    than some 12 % of the images, and needs two images in most classes and some 40 in all. An
    attack does exchange similar classes, so attacked images may trigger it.

    Parameters
    ----------
    table : DataFrame
        Clean predictions of one model: ``label`` and ``predicted_class``, whole numbers from 0.

    Raises
    ------
    ValueError
        With the share of images that the other order makes right, and its name if it is a known
        one: a shift by one (a background class), or numbers sorted as text (1, 10, 100, 2). Also
        if the numbers are no places in a list of classes, such as 1440764 (of n01440764).
    """
    from scipy.optimize import linear_sum_assignment

    label, predicted = table.label.to_numpy(np.int64), table.predicted_class.to_numpy(np.int64)
    k = int(max(label.max(), predicted.max())) + 1
    # Below, a table of k x k is filled: not with numbers that are no places in a list.
    occur = len(np.unique([label, predicted]))
    if k > max(10_000, 10 * occur):
        raise ValueError(
            f"the class numbers go to {k - 1}, and only {occur} classes occur: number the classes "
            "0, 1, 2, … in the order of one list"
        )
    second = table.groupby("label").cumcount().to_numpy() % 2 == 1
    counts = np.zeros((k, k), np.int32)
    np.add.at(counts, (predicted[~second], label[~second]), 1)
    # Where several renamings are equally good, the one that leaves most classes alone.
    true = linear_sum_assignment(2 * counts + np.eye(k, dtype=np.int32), maximize=True)[1]
    renamed = true != np.arange(k)
    judged = second & renamed[label]
    gained = int((judged & (true[predicted] == label) & (predicted != label)).sum())
    lost = int((judged & (true[predicted] != label) & (predicted == label)).sum())
    right, n = int((judged & (predicted == label)).sum()), int(judged.sum())
    present = np.unique(label)
    enough = min(len(present), max(3, len(present) / 10))
    if (
        renamed[present].sum() < enough
        or gained - lost <= max(3 * right, 0.1 * n)
        or gained - lost <= 4 * np.sqrt(gained + lost)
    ):
        return
    both = [np.mean(order[predicted[second]] == label[second]) for order in (np.arange(k), true)]
    as_text = np.array(sorted(range(k), key=str))
    known = {
        "they are one too high, as after a background class 0: subtract 1": np.arange(-1, k - 1),
        "they are one too low, as after labels that count from 1: add 1": np.arange(1, k + 1),
        "they number the classes sorted as text (1, 10, 100, 2)": as_text,
        "the labels number the classes sorted as text (1, 10, 100, 2)": np.argsort(as_text),
    }
    names = [w for w, order in known.items() if np.mean(order[predicted] == label) > 0.9 * both[1]]
    first = int(np.flatnonzero(renamed)[0])
    raise ValueError(
        f"the predicted classes follow another order than the labels: {both[0]:.1%} of the images "
        f"are right, {both[1]:.1%} after renaming {renamed.sum()} of the {k} classes one to one "
        f"(found on the other images), {first} to {true[first]} among them"
        + (f"; {names[0]}" if names else ": number both in the order of the same list of classes")
    )


def read_predictions(path: str | Path, dataset: str | None = None) -> pd.DataFrame:
    """Read and check a prediction table: ours (Parquet) or anybody's (CSV, also gzipped).

    Parameters
    ----------
    path : path
        Ends in ``.parquet``, ``.csv`` or ``.csv.gz``; holds the columns `COLUMNS` in any order and,
        of others, keeps those of `MORE_COLUMNS`. A CSV is UTF-8 or UTF-16, compressed or not,
        whatever its ending says. A corruption called "none" or "clean" is none.
    dataset : {"imagenet"}, optional
        The images are ImageNet's 50,000 validation images: the label joins by file name, of which
        only the base name counts.

    Returns
    -------
    DataFrame
        Classes are integers, also where the file holds 8.0. From Parquet, in compact types: text
        is categorical, integers are int32, the probability is float32.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be read or breaks the contract (`check_predictions`), or with a data set
        if images are missing, unknown or labelled otherwise.
    """
    if dataset not in (None, "imagenet"):
        raise ValueError(f"dataset is 'imagenet' or None, not {dataset!r}")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no prediction table {path}")
    ending = path.name.lower()
    if not ending.endswith((".parquet", ".csv", ".csv.gz")):
        raise ValueError(f"{path}: a prediction table ends in .parquet, .csv or .csv.gz")
    imagenet = dataset == "imagenet"
    try:
        table = _read_parquet(path) if ending.endswith(".parquet") else _read_csv(path)
        table = _with_clean_rows(table)
        needed = [c for c in COLUMNS if not (imagenet and c == "label")]
        if missing := [c for c in needed if c not in table]:
            hint = "" if missing != ["label"] else ", or join ImageNet's: dataset='imagenet'"
            raise ValueError(
                f"the prediction table lacks the columns {', '.join(missing)}: add them{hint}"
            )
        for column in ("label", "predicted_class"):
            if column in table and pd.api.types.is_float_dtype(table[column]):
                if (table[column] % 1 == 0).all():  # not so for a missing value
                    table[column] = table[column].astype(np.int64)
        if imagenet:
            table = _join_imagenet(table)
            return check_predictions(table, num_classes=1000, n_images=50_000)
        return check_predictions(table)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        said = str(error)
        raise ValueError(said if str(path) in said else f"{path}: {said}") from error


def _read_parquet(path: Path) -> pd.DataFrame:
    with _whole(path) as file:
        schema = file.schema_arrow
    _check_once(schema.names)
    text = [
        f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)
    ]
    columns = [c for c in (*COLUMNS, *MORE_COLUMNS) if c in schema.names]
    with _whole(path, read_dictionary=text) as file:
        arrow = file.read(columns=columns)
        arrow.validate(full=True)
    for i, field in enumerate(arrow.schema):
        if pa.types.is_integer(field.type) and field.name not in TEXT:
            arrow = arrow.set_column(i, field.name, arrow.column(i).cast(pa.int32()))
        elif field.name == "predicted_probability" and pa.types.is_floating(field.type):
            arrow = arrow.set_column(i, field.name, arrow.column(i).cast(pa.float32()))
    table = arrow.to_pandas(ignore_metadata=True)  # else a column may come back as an index
    # Names that are numbers become text, as from CSV.
    numbers = [c for c in TEXT if c in table and c not in text]
    return table.assign(**{c: table[c].map(str, na_action="ignore") for c in numbers})


def _check_once(names: list[str]) -> None:
    """None of the columns that are read occurs twice."""
    for name in (*COLUMNS, *MORE_COLUMNS):
        if names.count(name) > 1:
            raise ValueError(f"the column {name} occurs twice: keep one")


def _read_csv(path: Path) -> pd.DataFrame:
    with open(path, "rb") as file:
        start = file.read(4)
    for magic, what in ((b"PK", "a zip archive, such as Excel's"), (b"PAR1", "a Parquet table")):
        if start.startswith(magic):
            raise ValueError(f"it is {what}, called .csv: save it as CSV, or name it what it is")
    compression = "gzip" if start.startswith(b"\x1f\x8b") else None
    with (gzip.open if compression else open)(path, "rb") as file:
        wide = file.read(2) in (b"\xff\xfe", b"\xfe\xff")  # Excel's "Unicode text"
        file.seek(0)
        encoding = "utf-16" if wide else "utf-8-sig"
        try:
            with io.TextIOWrapper(file, encoding) as text:
                line = text.readline().strip()
            return _parsed(path, line, encoding=encoding, compression=compression)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"it is no UTF-8 text ({error.reason}, byte {error.object[error.start]:#x}): save "
                "it as UTF-8, in Excel as `CSV UTF-8`"
            ) from error


def _parsed(path: Path, line: str, **how) -> pd.DataFrame:
    """A CSV whose first line is this."""
    given = next(csv.reader([line], skipinitialspace=True), [])
    header = [name.strip() for name in given]
    if len(header) == 1 and (found := [s for s in (";", "\t") if s in line]):
        raise ValueError(f"columns are separated by commas, not by {found[0]!r}: {line!r}")
    if not set(header) & set(COLUMNS):
        raise ValueError(f"the first line is {line!r}, expected a header: {','.join(COLUMNS)}")
    _check_once(header)
    named = dict(zip(given, header, strict=True))
    missing = {n: [""] if c == "file_name" else MISSING for n, c in named.items()}
    missing |= {len(given): [""]}  # by place: a comma at the end of each line is no field
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # else the rest is cut off
            table = pd.read_csv(
                path,
                dtype={name: str for name, known in named.items() if known in TEXT},
                keep_default_na=False,  # a file may be called NA or null
                na_values=missing,
                skipinitialspace=True,
                index_col=False,
                low_memory=False,
                **how,
            )
    except pd.errors.ParserWarning:
        raise ValueError(
            "a line has more fields than the header: quote names that hold a comma, and write "
            "decimals with a point"
        ) from None
    table = table.rename(columns=named)
    table = table[[c for c in (*COLUMNS, *MORE_COLUMNS) if c in table]]
    if header != given:  # where spaces stand before the commas of the header, they do below
        table = table.assign(**{c: table[c].str.strip() for c in TEXT if c in table})
    return table


def without_clean(column: pd.Series) -> pd.Series:
    """A column of conditions, in which clean rows are missing values, whatever they were called."""
    clean = [v for v in column.dropna().unique() if str(v).strip().lower() in CLEAN]
    return column.mask(column.isin(clean)) if clean else column


def _with_clean_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows about clean images have neither a corruption nor a severity."""
    if "corruption" in table:
        table = table.assign(corruption=without_clean(table.corruption))
    if "severity" in table:
        clean = table.get("corruption", pd.Series(None, table.index, dtype=object)).isna()
        severity = pd.to_numeric(table.severity[clean].astype(object), errors="coerce")
        if (odd := severity[severity > 0]).size:
            raise ValueError(
                f"severity is {odd.iloc[0]:g} in a row without corruption, of "
                f"{table.file_name[odd.index[0]]!r}: name the corruption, or leave severity empty"
            )
    return table


def _join_imagenet(table: pd.DataFrame) -> pd.DataFrame:
    """The table with base names and with the labels of ImageNet's validation images."""
    from advlib.data.annotations import imagenet_labels

    labels = imagenet_labels()
    if table.file_name.isna().any():
        raise ValueError("the prediction table has missing values in file_name")
    codes, given = pd.factorize(table.file_name)
    names = pd.Index(given).astype("str").str.replace(r".*[/\\]", "", regex=True)
    position = labels.index.get_indexer(names)
    if len(unknown := names[position < 0]):
        raise ValueError(
            f"{len(unknown)} file names are not those of ImageNet's validation images, first "
            f"{unknown[0]!r}, expected such as {labels.index[0]!r}"
        )
    if len(absent := labels.index.difference(names)):
        raise ValueError(
            f"{len(absent)} of ImageNet's {len(labels)} validation images are missing, first "
            + ", ".join(absent[:3])
        )
    position = position[codes]
    label = labels.to_numpy(np.int32)[position]
    if "label" in table and (odd := table.label.to_numpy() != label).any():
        i = int(odd.argmax())
        raise ValueError(
            f"{odd.sum()} labels are not ImageNet's: {labels.index[position[i]]} has label "
            f"{table.label.iloc[i]}, expected {label[i]}"
        )
    names = pd.Categorical.from_codes(position, categories=labels.index)
    table = table.assign(file_name=names, label=label)
    return table[[c for c in (*COLUMNS, *MORE_COLUMNS) if c in table]]


def write_predictions(
    table: pd.DataFrame,
    path: str | Path,
    *,
    num_classes: int | None = None,
    n_images: int | None = None,
    **facts,
) -> Path:
    """Check a table and write it as Parquet, whole or not at all.

    Tables are kept in a repository, so that they are written small: ``predicted_probability`` has
    `DECIMALS` decimals, which no error depends on.

    Parameters
    ----------
    table : DataFrame
    path : path
        Ends in ``.parquet``.
    num_classes, n_images : int, optional
        As in `check_predictions`.
    **facts
        Stored beside the rows as JSON: study, method, seed, checkpoint hash, data fingerprint,
        threat model, device, dtype. Time and library versions are added.
    """
    path = Path(path)
    check_predictions(table, num_classes=num_classes, n_images=n_images)
    table = table.round({"predicted_probability": DECIMALS})
    facts = {**facts, "n_images": int(table.file_name.nunique()), **environment()}
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata()
    # One page a column, so that what conditions have in common is stored once; and no Arrow schema,
    # which would hold the facts a second time.
    how = {"data_page_size": 1 << 30, "max_rows_per_page": len(table), "store_schema": False}
    return write_parquet(arrow, path, facts, compression_level=19, **how)


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


_DIGEST = b"advlib-digest"


def _digest(metadata: pq.FileMetaData, n_rows: int) -> str:
    columns = [metadata.schema.column(i) for i in range(metadata.num_columns)]
    columns = [(c.path, c.physical_type, c.logical_type.type) for c in columns]
    notes = sorted((k, v) for k, v in (metadata.metadata or {}).items() if k != _DIGEST)
    return hashlib.sha256(repr((n_rows, columns, notes)).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _whole(path: str | Path, **how) -> Iterator[pq.ParquetFile]:
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
    """The rows of a table of `write_parquet`.

    Raises
    ------
    OSError
        If the file is missing or damaged, with its path and what to do.
    """
    with _whole(path) as file:
        return file.read(columns=columns).to_pandas()


def read_facts(path: str | Path) -> dict:
    """The JSON facts stored beside a table by `write_predictions`.

    Raises FileNotFoundError where there is no file, OSError where it is damaged, and ValueError
    where it is a table without facts, such as measured pixels.
    """
    with _whole(path) as file:
        stored = (file.metadata.metadata or {}).get(b"advlib")
    try:
        facts = None if stored is None else json.loads(stored)
    except ValueError as error:
        raise OSError(f"{path} cannot be read as a table ({error}): {AGAIN}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path} does not say how it was made, as tables of this project do")
    return facts


def results_date(paths: Iterable[Path | str]) -> str:
    """The day on which the newest of these tables was made, "" if none says it.

    Parameters
    ----------
    paths : iterable of path
        Prediction tables (Parquet) and files of facts (JSON); others are passed over.
    """
    days = [""]
    for path in map(Path, paths):
        if path.suffix == ".parquet":
            try:
                days.append(read_facts(path).get("time", "")[:10])
            except ValueError:
                continue  # a table without facts, such as the measured pixels
        elif path.suffix == ".json":
            text = json.dumps(read_json(path))
            days += re.findall(r'"(?:time|date)": "(\d{4}-\d\d-\d\d)', text)
    return max(days)


def images_read(paths: Iterable[Path | str]) -> str:
    """How many images each of these prediction tables holds, in words; "" if they differ."""
    tables = [path for path in map(Path, paths) if path.suffix == ".parquet"]
    found = {read_facts(path)["n_images"] for path in tables}
    return f"{found.pop():,} images" if len(found) == 1 else ""


def environment() -> dict:
    """Time and versions, as stored with every table."""
    versions = {}
    for package in ("advlib", "torch", "torchvision", "numpy", "pandas"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"time": now, "versions": versions}


def missing_parts(folder: Path, n_images: int, part: int, processes: int = 1) -> list[range]:
    """The positions whose rows no earlier run kept, in parts.

    Parameters
    ----------
    folder : Path
        Of the parts; its name must hold everything that decides them.
    n_images : int
        Of the data set.
    part : int
        Images a part, at most.
    processes : int
        Parts are of such a size that each may take as many images: the first, and every
        `processes`-th after it; the second, and so on.
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
    """All rows that `keep_part` kept, in the order of the images, each image once a network."""
    tables, end = [], 0
    for positions, path in _parts(folder):
        if positions.stop > end:
            table = read_table(path)
            # The images in their order, once or again and again.
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

    So is one that does not hold the images of these names in their order, once or again and again.
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
