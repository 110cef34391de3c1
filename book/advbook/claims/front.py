"""The book as a whole: its studies, and what of them was not run."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from advbook.studies.places import given_name, tables_folder
from advbook.studies.results import titled
from advbook.studies.schema import Study, load_study
from advbook.studies.tables import audit_paths, table_paths

PARTS = {  # of a study, as `book` is given them, and what pages call them
    "study": "training and evaluation",
    "ablations": "ablations",
    "ledger": "switches of the attack",
    "battery": "the battery of attacks",
}


def book_studies(book: Mapping[str, Mapping]) -> dict[str, tuple[Study, dict]]:
    """The studies of the book by id, and the tables that each part of them shows.

    Parameters
    ----------
    book : mapping
        Study file -> {part of `PARTS`: "fresh", "committed" or None}. Null means: not run.
    """
    found = {}
    for file, sources in book.items():
        study = titled(load_study(file), sources.get("study"))
        found[study.study] = study, dict(sources)
    return found


def not_run(book: Mapping[str, Mapping]) -> pd.DataFrame:
    """The parts of the book's studies that no table here is of, and the command that runs each.

    Parameters
    ----------
    book : mapping
        As `book_studies` takes it.

    Returns
    -------
    DataFrame
        study (id), title, part (a key of `PARTS`), command.
    """
    rows = []
    for file, (study, sources) in zip(book, book_studies(book).values(), strict=True):
        for part, source in sources.items():
            if source is None:
                what = "book" if part == "study" else "audit"
                command = f"make {what} STUDY={given_name(study, file)}"
                rows.append((study.study, study.title, part, command))
    return pd.DataFrame(rows, columns=["study", "title", "part", "command"])


def tables_shown(study: Study, sources: Mapping[str, str | None]) -> list[Path]:
    """The prediction tables behind a study's pages, its audit's among them.

    Parameters
    ----------
    study : advbook.studies.schema.Study
    sources : mapping
        Part -> "fresh", "committed" or None, as in `book_studies`.
    """
    paths = {}
    for part, source in sources.items():
        if source is not None:
            folder = tables_folder(study, source)
            paths |= (
                table_paths(study, folder) if part == "study" else audit_paths(study, folder, part)
            )
    return [path for path, key in paths.items() if key]
