"""The prediction table: one row per image and condition, the only source of every error figure."""

import datetime
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from advlib.metrics.tables import correct, require
from advlib.parquet import whole, write_parquet

COLUMNS = ("file_name", "label", "predicted_class", "predicted_probability")
CONDITIONS = ("method", "seed", "corruption", "severity", "attack")
MORE_COLUMNS = (*CONDITIONS, "correct", "linf", "steps_used", "broken_by", "drawn")
TEXT = ("file_name", "corruption", "attack", "method", "broken_by")
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
    workers : int
        How many processes decode image files; 0: this one.
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
    TypeError, ValueError, FloatingPointError
        For images, labels or file names that cannot be meant, or a model that gives no logits; with
        the names of model and images, where logits are no numbers.
    """
    import torch

    from advlib.attacks.pgd import classify
    from advlib.data.batches import evaluation_batches, item_names
    from advlib.labels import check_pixels
    from advlib.networks.device import default_device

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
            # What it finds stays on the device: nothing waits.
            outcomes[name].append(classify(model, x, num_classes, len(x)))
        if progress:
            progress(len(y))
    names, y = item_names(dataset, chosen), torch.cat(labels).cpu().numpy()
    tables = {}
    for name, parts in outcomes.items():
        predicted, probability = (torch.cat(p).cpu().numpy() for p in zip(*parts, strict=True))
        if len(odd := np.flatnonzero(~np.isfinite(probability))):
            raise FloatingPointError(
                f"the network {name!r} gives logits that are no numbers for {len(odd)} of "
                f"{len(names)} images, first {names[odd[0]]!r}: look for such weights or pixels"
            )
        values = (names, y, predicted, probability)
        table = pd.DataFrame(dict(zip(COLUMNS, values, strict=True)))
        tables[name] = check_predictions(table, num_classes=num_classes)
    return tables


def check_predictions(
    table: pd.DataFrame, *, num_classes: int | None = None, n_images: int | None = None
) -> pd.DataFrame:
    """Return the table if it keeps the contract, else raise ValueError.

    It has `COLUMNS` and, for some benchmarks, ``corruption`` and ``severity`` or ``attack``: a
    missing value there is a condition of its own, the clean images. Each condition holds the same
    images (`n_images`, if given), each once and with one label. Labels and classes are in [0, K),
    K = `num_classes`, probabilities in [0, 1]. An optional column ``correct`` (booleans) decides
    what counts as an error (`advlib.metrics.tables.correct`).
    """
    require(table, COLUMNS)
    _check_images(table, n_images)
    for column in ("label", "predicted_class"):
        _check_classes(table[column], num_classes)
    probability = table.predicted_probability
    numeric = pd.api.types.is_numeric_dtype(probability)
    odd = probability[~probability.between(0, 1 + 1e-6)] if numeric else probability
    if len(odd):
        raise ValueError(
            f"predicted_probability holds numbers in [0, 1], got such as {str(odd.iloc[0])!r}: "
            "logits need a softmax, percentages a division by 100"
        )
    labels = table[["file_name", "label"]].drop_duplicates()
    if (odd := labels.file_name.duplicated()).any():
        raise ValueError(
            f"{labels.file_name[odd].iloc[0]!r} has different labels in two conditions"
        )
    correct(table)  # refuses a column that holds anything but booleans
    return table


def _check_images(table: pd.DataFrame, n_images: int | None) -> None:
    """Each condition holds the same images, each of them once.

    Corrupted images may be a part of the others.
    """
    if "corruption" in table:
        corrupted = table.corruption.notna()
        if corrupted.any() and not corrupted.all():
            _check_images(table[corrupted], None)  # of them may be fewer
            names, table = table.file_name[corrupted], table[~corrupted]
            if not (known := names.isin(table.file_name)).all():
                odd = names[~known].unique()
                raise ValueError(
                    f"{len(odd)} corrupted images are not among the clean ones, such as {odd[0]!r}"
                )
    columns = [c for c in CONDITIONS if c in table]
    if (twice := table.duplicated([*columns, "file_name"])).any():
        raise ValueError(
            f"{twice.sum()} images occur twice, {table.file_name[twice].iloc[0]!r} among them: "
            "keep one row per image and condition"
        )
    keys = columns or np.zeros(len(table))
    sizes = table.groupby(keys, dropna=False, observed=True, sort=False).size()
    expected, images = n_images or sizes.max(), table.file_name.nunique()
    if len(odd := sizes[sizes != expected]):
        key = odd.index.to_frame(index=False).iloc[odd.argmin()] if columns else {}
        where = ", ".join(f"{column} {value}" for column, value in key.items())
        raise ValueError(
            f"{odd.min()} images in one condition, {expected} expected: images are missing"
            + (f" ({where})" if where else "")
        )
    if images != expected:
        raise ValueError(
            f"the {len(sizes)} conditions hold {images} different images, {expected} each: every "
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


def write_predictions(
    table: pd.DataFrame,
    path: str | Path,
    *,
    num_classes: int | None = None,
    n_images: int | None = None,
    **facts,
) -> Path:
    """Check a table and write it as Parquet, whole or not at all.

    ``predicted_probability``, which no error depends on, is rounded to `DECIMALS` decimals: tables
    are kept in a repository and have to be small. The facts are stored beside the rows as JSON:
    study, method, seed, checkpoint hash, data fingerprint, threat model, device, dtype. Time and
    library versions are added. Other arguments and errors are those of `check_predictions`.
    """
    path = Path(path)
    check_predictions(table, num_classes=num_classes, n_images=n_images)
    table = table.round({"predicted_probability": DECIMALS})
    facts = {**facts, "n_images": int(table.file_name.nunique()), **environment()}
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata()
    # One page a column, so that what conditions have in common is stored once; names that differ
    # in a digit are smaller without a dictionary. An Arrow schema would repeat the facts.
    how = {"data_page_size": 1 << 30, "max_rows_per_page": len(table), "store_schema": False}
    how["use_dictionary"] = [name for name in arrow.schema.names if name != "file_name"]
    return write_parquet(arrow, path, facts, compression_level=19, **how)


def read_facts(path: str | Path) -> dict:
    """The facts stored beside a table by `write_predictions`.

    Raises OSError where the file is missing or damaged, ValueError where it holds no facts.
    """
    with whole(path) as file:
        facts = json.loads((file.metadata.metadata or {}).get(b"advlib", b"null"))
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
