"""A user's own predictions, checked and written as the prediction tables of a study."""

import hashlib
import json
import re

import pandas as pd

from advbook.studies.identity import data_settings
from advbook.studies.places import named_file
from advbook.studies.views import group_of
from advlib.data import annotations
from advlib.files import file_hash, replacing
from advlib.importing import check_label_order, read_predictions, without_clean
from advlib.metrics import correct, counted, mean_corruption_error
from advlib.predictions import COLUMNS, write_predictions


def bring(study) -> None:
    """Read the files of ``study.predictions``, check them, and write the study's tables.

    Rows with a corruption are the benchmark "corruptions", rows with an attack the benchmark of
    that name, all others the clean one. Corruptions beyond the 15 of mCE are left out, which is
    printed, as is the place of each file. ``dataset: imagenet`` joins the validation labels by file
    name; with ``dataset: none`` the files have a column ``label``.

    Raises FileNotFoundError or ValueError if a file is not there, breaks the contract
    (`advlib.importing.read_predictions`), looks as if its classes were in another order, is about
    other images than the first file, or holds other benchmarks than the study names.
    """
    tables = {}
    for name, given in study.predictions.items():
        path = named_file(given)
        print(f"{name}: {path}")
        table = read_predictions(path, "imagenet" if study.dataset == "imagenet" else None)
        try:
            parts = _benchmarks(study, table)
            check_label_order(parts["clean"])
        except ValueError as error:
            raise ValueError(f"{given}: {error}") from error
        tables[name] = path, parts
    first = study.methods[0]
    for name, (_, parts) in tables.items():
        for benchmark, part in parts.items():
            both = f"{study.predictions[name]} and {study.predictions[first]}"
            check_same_images(part, tables[first][1][benchmark], f"{both} ({benchmark})")
    class_names = _class_names(study, [parts["clean"] for _, parts in tables.values()])
    group_of(study, class_names)  # refuses groups of other classes
    images = images_of(tables[first][1]["clean"])
    title = "ImageNet" if study.dataset == "imagenet" else study.title
    judged = any("correct" in parts["clean"] for _, parts in tables.values())
    for name, (path, parts) in tables.items():
        facts = {"study": study.study, "method": name, "seed": 0, "settings": {}, "threat": None}
        facts |= {"brought": study.predictions[name], "checkpoint_hash": file_hash(path)}
        facts |= {"data": fingerprint(images), "data_title": title, "split": study.evaluation_split}
        facts |= {"device": None, "dtype": None, "num_classes": len(class_names)}
        for benchmark, part in parts.items():
            if judged:  # then every table says it, so that they can be joined
                part = part.assign(correct=correct(part))
            place = study.runs / "predictions" / benchmark / f"{name}-seed0.parquet"
            write_predictions(part, place, n_images=part.file_name.nunique(), **facts)
    record = {"title": title, "images": len(images), "classes": len(class_names)}
    record |= {"found in": "the brought files", "fingerprint": fingerprint(images)}
    record = {study.evaluation_split: record, "class_names": class_names}
    with replacing(study.runs / "data.json") as path:
        text = json.dumps(record | {"settings": data_settings(study)}, indent=1)
        path.write_text(text, encoding="utf-8")


def _benchmarks(study, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each benchmark, with the columns that belong to it."""
    if "method" in table or ("seed" in table and table.seed.nunique() > 1):
        raise ValueError("it holds several methods or seeds: give each network a file of its own")
    kept = list(COLUMNS)
    if "correct" in table:
        table, kept = table.assign(correct=correct(table)), [*kept, "correct"]
    nothing = pd.Series(None, index=table.index, dtype=object)
    columns = (table.get(column, nothing) for column in ("corruption", "attack"))
    corruption, attack = map(without_clean, columns)
    if (both := corruption.notna() & attack.notna()).any():
        raise ValueError(
            f"{table.file_name[both].iloc[0]!r} has a corruption and an attack in one row: leave "
            "one of them empty"
        )
    parts = {"clean": table.loc[corruption.isna() & attack.isna(), kept]}
    for name in map(str, attack.dropna().unique()):
        if name in ("real", "corruptions") or not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise ValueError(
                f"the attack {name!r}: a name is of letters, digits, '.', '-' and '_', and rows "
                "that were not attacked have none"
            )
        parts[name] = table.loc[attack == name, [*kept, "attack"]]
    if corruption.notna().any():
        rows = counted(table[corruption.notna()])
        if further := sorted(set(corruption.dropna()) - set(rows.corruption)):
            print(f"Left out, since they are none of the 15 of mCE: {', '.join(map(str, further))}")
        given = rows.get("severity", nothing[rows.index]).astype(object)
        severity = pd.to_numeric(given, errors="coerce")
        if len(odd := given[~severity.isin(range(1, 6))]):
            raise ValueError(
                "the column severity holds a whole number, 1 to 5, wherever corruption is set, got "
                f"{odd.iloc[0]!r}; of a clean image leave corruption empty"
            )
        rows = rows.assign(severity=severity.astype(int))
        parts["corruptions"] = rows[[*kept, "corruption", "severity"]]
        mean_corruption_error(parts["corruptions"])  # names what is missing
    parts = {name: part.reset_index(drop=True) for name, part in parts.items() if len(part)}
    if lacking := [name for name in study.benchmarks if name not in parts]:
        raise ValueError(
            f"no rows for {', '.join(lacking)}, which the study needs (rows without corruption and "
            f"attack are the clean ones); there are rows for {', '.join(parts)}"
        )
    if beyond := [name for name in parts if name not in study.benchmarks]:
        raise ValueError(
            f"rows for {', '.join(beyond)}, which the study does not name: list attacks under "
            "`attacks`, and set `corruptions: published` for corrupted images"
        )
    return parts


def images_of(table: pd.DataFrame) -> dict[str, int]:
    """The label of each image that a prediction table is about, by its file name."""
    once = table.drop_duplicates("file_name")
    return dict(zip(once.file_name, once.label.tolist(), strict=True))


def fingerprint(images: dict[str, int]) -> str:
    """What brought images are recognised by: a hash of their names and labels."""
    listing = "".join(f"{name}\t{label}\n" for name, label in sorted(images.items()))
    return hashlib.sha256(listing.encode()).hexdigest()


def check_same_images(table: pd.DataFrame, other: pd.DataFrame, what: str) -> None:
    """Raise ValueError, with ``what`` they are, unless two tables have the same labelled images."""
    if odd := sorted(images_of(table).items() ^ images_of(other).items()):
        raise ValueError(
            f"{what} are not about the same images with the same labels: {len(odd)} differ, such "
            f"as {odd[0]}"
        )


def _class_names(study, tables: list[pd.DataFrame]) -> list[str]:
    if study.dataset == "imagenet":
        return annotations.imagenet_classes().class_name.tolist()
    ends = {
        column: (min(t[column].min() for t in tables), max(t[column].max() for t in tables))
        for column in ("label", "predicted_class")
    }
    names = study.class_names or [f"class {i}" for i in range(1 + int(ends["label"][1]))]
    hint = (
        "if not every class is a label here, as in a part of ImageNet's, list the names of all as "
        "class_names; if classes are counted from 1, subtract 1"
    )
    for column, (_, high) in ends.items():
        if high >= len(names):
            raise ValueError(f"{column} goes to {high}, and there are {len(names)} classes: {hint}")
    if min(low for low, _ in ends.values()) > 0 and not study.class_names:
        raise ValueError(f"no label and no prediction is class 0: {hint}")
    return names
