"""The result tables that studies have: how pages about all studies read them."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from advbook.studies.places import ROOT
from advbook.studies.schema import Study, load_study
from advbook.studies.tables import read_data

NAMES = dict.fromkeys(("group", "class_name", "predicted_name"), str)


def titled(study: Study, source: str | None) -> Study:
    """The study under the title that pages show: it says where the images are a copy.

    The ``data.json`` of the source, "fresh" or else "committed", says so, if it is there.
    """
    folder = study.runs if source == "fresh" else study.published
    if not (folder / "data.json").is_file():
        return study
    copy = re.search(r"\([^()]*copy\)$", read_data(folder)[study.evaluation_split]["title"])
    if copy is None or copy[0] in study.title:
        return study
    return dataclasses.replace(study, title=f"{study.title} {copy[0]}")


class Shown(NamedTuple):
    """A study as a page shows it, and the folder of its result tables."""

    study: Study
    source: str
    title: str
    folder: Path


def shown_studies(entries: Sequence[str]) -> dict[str, Shown]:
    """The studies of a page, by id; the reader's own run of a study as "<id>:fresh".

    An entry is a study file or id, a colon, and "fresh" or "committed". The first is the headline.
    """
    found = {}
    for entry in entries:
        file, _, source = entry.rpartition(":")
        study = titled(load_study(file), source)
        title = study.title if source == "committed" else f"{study.title}, your run"
        key = study.study if source == "committed" else f"{study.study}:fresh"
        found[key] = Shown(study, source, title, ROOT / "_build" / source / study.study / "results")
    return found


def results(shown: Mapping[str, Shown], name: str) -> pd.DataFrame:
    """One result table of all studies that have it; FileNotFoundError if none has.

    Before the table's columns stand `entry`, the key of `shown`, and `title`. Where it has methods,
    `name` is what pages call the method or the ablation.
    """
    parts = []
    for key, (study, _, title, folder) in shown.items():
        if not (path := folder / f"{name}.csv").is_file():
            continue
        # A class may be called 7, or NA.
        table = pd.read_csv(path, dtype=NAMES, keep_default_na=False, na_values=[""])
        table.insert(0, "entry", key)
        table.insert(1, "title", title)
        if "method" in table:
            names = study.names | study.ablation_names
            table["name"] = table.method.map(names).fillna(table.method)
        parts.append(table)
    if not parts:
        raise FileNotFoundError(
            f"{name}.csv is not there for any of {list(shown)}: `make read` makes it"
        )
    return pd.concat(parts, ignore_index=True)
