"""Predictions made elsewhere: Parquet, CSV, ImageNet's labels, classes in another order."""

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
_READ = (*COLUMNS, *MORE_COLUMNS)
# No file is called "", but one may have any of the other names.
MISSING = ["", *"NA N/A NaN nan null NULL None <NA>".split()]


def read_predictions(path: str | Path, dataset: str | None = None) -> pd.DataFrame:
    """Read and check a prediction table: ours (Parquet) or anybody's (CSV, also gzipped).

    Parameters
    ----------
    path : path
        Ends in ``.parquet``, ``.csv`` or ``.csv.gz``; holds the columns `COLUMNS` in any order. Of
        others, `MORE_COLUMNS` are kept. A CSV is UTF-8, its columns separated by commas. A
        corruption called "none" or "clean" means a clean image.
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
    FileNotFoundError, ValueError
        If there is no such file; if it cannot be read or breaks the contract (`check_predictions`),
        or with a data set if images are missing, unknown or labelled otherwise.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no prediction table {path}")
    ending = path.name.lower()
    if not ending.endswith((".parquet", ".csv", ".csv.gz")):
        raise ValueError(f"{path}: a prediction table ends in .parquet, .csv or .csv.gz")
    try:
        table = _read_parquet(path) if ending.endswith(".parquet") else _read_csv(path)
        table = _with_clean_rows(table)
        if dataset == "imagenet":
            table = _join_imagenet(table)
        elif "label" not in table:
            raise ValueError("there is no column label: add it, or join it by dataset='imagenet'")
        require(table, COLUMNS)
        for column in ("label", "predicted_class"):
            if pd.api.types.is_float_dtype(table[column]):
                if (table[column] % 1 == 0).all():  # not so for a missing value
                    table[column] = table[column].astype(np.int64)
        sizes = {"num_classes": 1000, "n_images": 50_000} if dataset == "imagenet" else {}
        return check_predictions(table, **sizes)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        said = str(error)
        raise ValueError(said if str(path) in said else f"{path}: {said}") from error


def _read_parquet(path: Path) -> pd.DataFrame:
    with whole(path) as file:
        schema = file.schema_arrow
    _check_once(schema.names)
    strings = (pa.types.is_string, pa.types.is_large_string)
    text = [field.name for field in schema if any(kind(field.type) for kind in strings)]
    with whole(path, read_dictionary=text) as file:
        arrow = file.read(columns=[c for c in _READ if c in schema.names])
        arrow.validate(full=True)
    for i, field in enumerate(arrow.schema):
        if field.name in TEXT and field.name not in text:
            # Numbers, as Python writes them, or bytes, as some writers call text.
            column = arrow.column(i)
            if pa.types.is_floating(field.type):
                column = pa.array(column.to_pandas().map(str, na_action="ignore"), pa.string())
            arrow = arrow.set_column(i, field.name, column.cast(pa.string()))
        elif pa.types.is_integer(field.type):
            arrow = arrow.set_column(i, field.name, arrow.column(i).cast(pa.int32()))
        elif field.name == "predicted_probability" and pa.types.is_floating(field.type):
            arrow = arrow.set_column(i, field.name, arrow.column(i).cast(pa.float32()))
    return arrow.to_pandas(ignore_metadata=True)  # else a column may come back as an index


def _check_once(names: list[str]) -> None:
    """Raise ValueError if a column that is read occurs twice."""
    if twice := [name for name in _READ if names.count(name) > 1]:
        raise ValueError(f"the column {twice[0]} occurs twice: keep one")


def _read_csv(path: Path) -> pd.DataFrame:
    # A file may be called NA or null, so that "missing" is said for each column.
    how = {"encoding": "utf-8-sig", "skipinitialspace": True, "keep_default_na": False}
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, **how).iloc[0].tolist()
    if not set(header) & set(COLUMNS):
        raise ValueError(
            f"the first line is {','.join(header)!r}, expected a header, separated by commas: "
            f"{','.join(COLUMNS)}"
        )
    _check_once(header)
    missing = {name: [""] if name == "file_name" else MISSING for name in header}
    missing |= {"broken_by": []} if "broken_by" in header else {}  # empty: the image stands
    how["na_values"] = missing | {len(header): [""]}  # a comma at the end of a line is no field
    how |= {"dtype": dict.fromkeys(TEXT, str), "index_col": False, "low_memory": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # else the rest is cut off
            table = pd.read_csv(path, **how)
    except pd.errors.ParserWarning:
        raise ValueError(
            "a line has more fields than the header: quote names that hold a comma, and write "
            "decimals with a point"
        ) from None
    return table[[c for c in _READ if c in table]]


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
    for what, odd in {
        "are not those of ImageNet's 50,000 validation images": names[position < 0],
        "of ImageNet's 50,000 validation images are missing": labels.index.difference(names),
    }.items():
        if len(odd):
            raise ValueError(f"{len(odd):,} file names {what}, first {', '.join(odd[:3])}")
    position = position[codes]
    label = labels.to_numpy(np.int32)[position]
    if "label" in table and (odd := table.label.to_numpy() != label).any():
        i = int(odd.argmax())
        raise ValueError(
            f"{odd.sum():,} labels are not ImageNet's: {labels.index[position[i]]} has label "
            f"{table.label.iloc[i]}, expected {label[i]}"
        )
    names = pd.Categorical.from_codes(position, categories=labels.index)
    table = table.assign(file_name=names, label=label)
    return table[[c for c in _READ if c in table]]


def check_label_order(table: pd.DataFrame) -> None:
    """Refuse predictions whose class numbers follow another order than the labels.

    On one half of each class's images, the one-to-one renaming of predicted classes is found that
    makes most of them right; on the other half it is compared with no renaming, over the classes
    it renames. It is taken for the true order if it renames at least a tenth of the classes (and
    at least three, or all), is right more than four times as often and for 10 points more of these
    images, and by more than chance (a z of 4 in McNemar's test).

    So a whole list in another order is found, a shift by one, and a tenth of the classes exchanged;
    not fewer classes, nor the order of a model that would be right for less than some 12 %. It
    needs two images in most classes and some 40 in all. An attack does exchange similar classes, so
    attacked images may trigger it.

    The table holds clean predictions of one model: ``label`` and ``predicted_class``, whole numbers
    from 0. The ValueError has the share of images that the other order makes right, and its name if
    it is a known one: a shift by one (a background class), or numbers sorted as text (1, 10, 100,
    2). Also if the numbers are no places in a list of classes, such as 1440764 (of n01440764).
    """
    from scipy.optimize import linear_sum_assignment

    label, predicted = table.label.to_numpy(np.int64), table.predicted_class.to_numpy(np.int64)
    k = int(max(label.max(), predicted.max())) + 1
    if k > max(10_000, 10 * len(np.unique([label, predicted]))):  # no table of k x k then
        raise ValueError(
            f"the class numbers go to {k - 1}: number the classes 0, 1, 2, … in the order of a list"
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
