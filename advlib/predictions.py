"""The prediction table: one row per image and condition, the only source of every error figure."""

import datetime
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from advlib.files import AGAIN
from advlib.metrics.tables import CORRECT_COLUMNS, correct, require
from advlib.parquet import whole, write_parquet

COLUMNS = ("file_name", "label", "predicted_class", "predicted_probability")
CONDITIONS = ("method", "seed", "corruption", "severity", "attack")
MORE_COLUMNS = (*CONDITIONS, *CORRECT_COLUMNS, "linf", "steps_used")
TEXT = ("file_name", "corruption", "attack", "method")
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
    """Predictions of several models, in float32, in one pass over the images.

    Parameters
    ----------
    models : dict of str to nn.Module
        Images in [0, 1] to K or K+M logits; the first K are classes.
    dataset : advlib.data.sets.Images, or a sequence of (x, y) or (x, y, file_name)
    num_classes : int
        K.
    batch_size, workers : int
        Images predicted at once, and how many processes decode image files; 0: this one.
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
        For images, labels or file names that cannot be meant, or a model that gives no logits.
    FloatingPointError
        With the names of model and images, where logits are no numbers.
    """
    import torch

    from advlib.data.batches import evaluation_batches, item_names
    from advlib.labels import check_pixels, class_logits, model_logits
    from advlib.networks.device import autocast, default_device

    device = torch.device(device or default_device())
    models = {k: m.to(device, memory_format=torch.channels_last).eval() for k, m in models.items()}
    outcomes = {name: [] for name in models}
    chosen, labels = [], []
    batches = evaluation_batches(
        dataset, batch_size=batch_size, workers=workers, device=device, indices=indices
    )
    for x, y, index in batches:
        if not chosen:  # in every batch it would take time
            check_pixels(x)
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
        table = pd.DataFrame(dict(zip(COLUMNS, values, strict=True)))
        tables[name] = check_predictions(table, num_classes=num_classes)
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
    require(table, COLUMNS)
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
            f"{len(twice)} images occur twice, {twice.iloc[0]!r} among them: keep one row per "
            "image and condition"
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
        example = str((odd if len(odd) else column).iloc[0])
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


def write_predictions(
    table: pd.DataFrame,
    path: str | Path,
    *,
    num_classes: int | None = None,
    n_images: int | None = None,
    **facts,
) -> Path:
    """Check a table and write it as Parquet, whole or not at all.

    ``predicted_probability``, which no error depends on, is rounded to `DECIMALS` decimals, because
    tables are kept in a repository and so have to be small.

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


def read_facts(path: str | Path) -> dict:
    """The JSON facts stored beside a table by `write_predictions`.

    Raises FileNotFoundError where there is no file, OSError where it is damaged, and ValueError
    where it is a table without facts, such as measured pixels.
    """
    with whole(path) as file:
        stored = (file.metadata.metadata or {}).get(b"advlib")
    try:
        facts = None if stored is None else json.loads(stored)
    except ValueError as error:
        raise OSError(f"{path} cannot be read as a table ({error}): {AGAIN}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path} does not say how it was made, as tables of this project do")
    return facts


def environment() -> dict:
    """The time and the versions of libraries, as stored with every table."""
    versions = {}
    for package in ("advlib", "torch", "torchvision", "numpy", "pandas"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"time": now, "versions": versions}
