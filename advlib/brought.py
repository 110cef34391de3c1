"""A user's own predictions, checked and written as the prediction tables of a study."""

import hashlib
import json

import pandas as pd

from advlib import annotations
from advlib.files import file_hash, replacing
from advlib.predictions import COLUMNS, check_label_order, read_predictions, write_predictions


def bring(study) -> None:
    """Read the files of ``study.predictions``, check them, and write the study's tables.

    Rows with a corruption are the benchmark "corruptions", rows with an attack the benchmark of
    that name, all others the clean one.

    Parameters
    ----------
    study : advlib.study.Study
        With `predictions`. ``dataset: imagenet`` joins the validation labels by file name; with
        ``dataset: none`` the files have a column ``label``.

    Raises
    ------
    FileNotFoundError
        If a file is not there.
    ValueError
        If a file breaks the contract (`advlib.predictions.read_predictions`), looks as if its
        classes were in another order, is about other images than the first file, or holds other
        benchmarks than the study names.
    """
    tables = {}
    for name, given in study.predictions.items():
        path = study.file(given)
        table = read_predictions(path, "imagenet" if study.dataset == "imagenet" else None)
        try:
            parts = _benchmarks(study, table)
            check_label_order(parts["clean"])
        except ValueError as error:
            raise ValueError(f"{given}: {error}") from error
        tables[name] = path, parts
    images = {name: _images(parts["clean"]) for name, (_, parts) in tables.items()}
    first = study.methods[0]
    for name, own in images.items():
        if odd := sorted(own.items() ^ images[first].items()):
            raise ValueError(
                f"{study.predictions[name]} and {study.predictions[first]} are not about the same "
                f"images with the same labels: {len(odd)} differ, such as {odd[0]}"
            )
    class_names = _class_names(study, [parts["clean"] for _, parts in tables.values()])
    listing = "".join(f"{name}\t{label}\n" for name, label in sorted(images[first].items()))
    fingerprint = hashlib.sha256(listing.encode()).hexdigest()
    title = "ImageNet" if study.dataset == "imagenet" else study.title
    for name, (path, parts) in tables.items():
        facts = {"study": study.study, "method": name, "seed": 0, "settings": {}, "threat": None}
        facts |= {"brought": study.predictions[name], "checkpoint_hash": file_hash(path)}
        facts |= {"data": fingerprint, "data_title": title, "split": study.evaluation_split}
        facts |= {"device": None, "dtype": None, "num_classes": len(class_names)}
        for benchmark, part in parts.items():
            place = study.runs / "predictions" / benchmark / f"{name}-seed0.parquet"
            write_predictions(part, place, n_images=part.file_name.nunique(), **facts)
    record = {"title": title, "images": len(images[first]), "classes": len(class_names)}
    record |= {"found in": "the brought files", "fingerprint": fingerprint}
    record = {study.evaluation_split: record, "class_names": class_names}
    with replacing(study.runs / "data.json") as path:
        text = json.dumps(record | {"settings": study.data_settings()}, indent=1)
        path.write_text(text, encoding="utf-8")


def _benchmarks(study, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each benchmark, with the columns that belong to it."""
    nothing = pd.Series(None, index=table.index, dtype=object)
    corruption, attack = (table.get(column, nothing) for column in ("corruption", "attack"))
    parts = {"clean": table.loc[corruption.isna() & attack.isna(), list(COLUMNS)]}
    for name in attack.dropna().unique():
        parts[str(name)] = table.loc[attack == name, [*COLUMNS, "attack"]]
    if corruption.notna().any():
        columns = [*COLUMNS, "corruption", "severity"]
        parts["corruptions"] = table.loc[corruption.notna(), columns]
    parts = {name: part.reset_index(drop=True) for name, part in parts.items() if len(part)}
    if lacking := [name for name in study.benchmarks if name not in parts]:
        raise ValueError(f"no rows for {', '.join(lacking)}, which the study names")
    if beyond := [name for name in parts if name not in study.benchmarks]:
        raise ValueError(
            f"rows for {', '.join(beyond)}, which the study does not name: list attacks under "
            "`attacks`, and set `corruptions: published` for corrupted images"
        )
    return parts


def _images(table: pd.DataFrame) -> dict[str, int]:
    return dict(zip(table.file_name, table.label.tolist(), strict=True))


def _class_names(study, tables: list[pd.DataFrame]) -> list[str]:
    if study.dataset == "imagenet":
        return annotations.imagenet_classes().class_name.tolist()
    number = 1 + max(int(t[c].max()) for t in tables for c in ("label", "predicted_class"))
    names = study.class_names or [f"class {i}" for i in range(number)]
    if len(names) < number:
        raise ValueError(f"class_names has {len(names)} names, the predictions {number} classes")
    return names
