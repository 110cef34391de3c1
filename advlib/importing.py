"""Predictions made elsewhere: Parquet, CSV, ImageNet's labels, classes in another order."""

import csv
import gzip
import io
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from advlib.metrics.tables import require
from advlib.parquet import whole
from advlib.predictions import COLUMNS, MORE_COLUMNS, TEXT, check_predictions

CLEAN = ("", "none", "clean")  # as a condition: a row about a clean image
# No file is called "", but one may have any of the other names.
MISSING = ["", *"NA N/A NaN nan null NULL None <NA>".split()]


def read_predictions(path: str | Path, dataset: str | None = None) -> pd.DataFrame:
    """Read and check a prediction table: ours (Parquet) or anybody's (CSV, also gzipped).

    Parameters
    ----------
    path : path
        Ends in ``.parquet``, ``.csv`` or ``.csv.gz``; holds the columns `COLUMNS` in any order. Of
        others, `MORE_COLUMNS` are kept. A CSV is UTF-8 or UTF-16, compressed or not, whatever its
        ending says. A corruption called "none" or "clean" means a clean image.
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
    with whole(path) as file:
        schema = file.schema_arrow
    _check_once(schema.names)
    text = [
        f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)
    ]
    columns = [c for c in (*COLUMNS, *MORE_COLUMNS) if c in schema.names]
    with whole(path, read_dictionary=text) as file:
        arrow = file.read(columns=columns)
        arrow.validate(full=True)
    for i, field in enumerate(arrow.schema):
        if pa.types.is_integer(field.type) and field.name not in TEXT:
            arrow = arrow.set_column(i, field.name, arrow.column(i).cast(pa.int32()))
        elif field.name == "predicted_probability" and pa.types.is_floating(field.type):
            arrow = arrow.set_column(i, field.name, arrow.column(i).cast(pa.float32()))
        elif pa.types.is_binary(field.type):  # as some writers call text
            arrow = arrow.set_column(i, field.name, arrow.column(i).cast(pa.string()))
    table = arrow.to_pandas(ignore_metadata=True)  # else a column may come back as an index
    # Names that are numbers become text, as from CSV.
    numbers = [c for c in TEXT if c in table and c not in text]
    return table.assign(**{c: table[c].map(str, na_action="ignore") for c in numbers})


def _check_once(names: list[str]) -> None:
    """Raise ValueError if a column that is read occurs twice."""
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
    """The table in a CSV file with this first line."""
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
    """A column of conditions with missing values for clean rows, whatever they were called."""
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
    require(table, ["file_name"])
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
