"""The book as a whole: its studies, and what of them was not run."""

from collections.abc import Mapping

import pandas as pd

from advbook.studies.places import given_name
from advbook.studies.results import titled
from advbook.studies.schema import Study, load_study

PARTS = {  # of a study, as `book` is given them, and what pages call them
    "study": "training and evaluation",
    "ablations": "ablations",
    "ledger": "switches of the attack",
    "battery": "the battery of attacks",
}


def book_studies(book: Mapping[str, Mapping]) -> dict[str, tuple[Study, dict]]:
    """The studies of the book by id, and where the tables of each part come from.

    Parameters
    ----------
    book : mapping
        Study file -> {part of `PARTS`: "fresh", "committed" or None}. None means: not run.
    """
    found = {}
    for file, sources in book.items():
        study = titled(load_study(file), sources.get("study"))
        found[study.study] = study, dict(sources)
    return found


def not_run(book: Mapping[str, Mapping]) -> pd.DataFrame:
    """The parts of the book's studies of which there are no tables, and what runs each.

    Returns
    -------
    DataFrame
        study (id), title, part (a key of `PARTS`), command.
    """
    rows = []
    for file, (study, sources) in zip(book, book_studies(book).values(), strict=True):
        for part in [part for part, source in sources.items() if source is None]:
            what = "book" if part == "study" else "audit"
            command = f"make {what} STUDY={given_name(study, file)}"
            rows.append((study.study, study.title, part, command))
    return pd.DataFrame(rows, columns=["study", "title", "part", "command"])
