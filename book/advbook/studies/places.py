"""Where things lie: study files, their runs and tables, and the files that they name."""

import shlex
from pathlib import Path

from advbook.studies.checks import check_choice
from advbook.studies.views import to_make
from advbook.text import one_line
from advlib.files import file_hash

ROOT = Path(__file__).resolve().parents[3]
STUDIES = ROOT / "notebooks" / "studies"


def _located(given: str | Path) -> Path | None:
    """The file at a path from the project's root, or else from the working directory."""
    path = Path(given).expanduser()
    places = [place for place in (ROOT / path, path) if place.is_file()]
    if len(places) > 1 and file_hash(places[0]) != file_hash(places[1]):
        raise ValueError(
            f"there are two files {given}, which differ, in the project's folder and in the "
            "working directory: give the whole path of the one that is meant"
        )
    return places[0] if places else None


def find_study(name: str | Path) -> Path:
    """The file of a study given by its id or by the path of its file.

    Raises FileNotFoundError, listing the studies there are, and ValueError for what is neither.
    """
    if not isinstance(name, str | Path) or not str(name):
        raise ValueError(f"study is an id or the path of a study file, got {name!r}")
    if (own := STUDIES / f"{name}.yaml").is_file():
        return own
    if path := _located(name):
        return path
    known = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
    raise FileNotFoundError(
        f"no study {str(name)!r}: expected one of {known}, or the path of a study file"
    )


def named_file(given: str) -> Path:
    """A file that the study names, from the project's root or from the working directory.

    Raises FileNotFoundError if it is at neither place, ValueError if another file is at each.
    """
    if path := _located(given):
        return path
    raise FileNotFoundError(
        f"there is no file {given}: give its path from the project's folder, or the whole path"
    )


def data_root(study) -> Path | None:
    """`data_dir`, relative to the project's root whatever the working directory."""
    return None if study.data_dir is None else ROOT / Path(study.data_dir).expanduser()


def tables_folder(study, source: str) -> Path:
    """The folder that pages read: all "fresh" tables or all "committed" ones.

    Raises FileNotFoundError, with the command that makes them, if it is not there.
    """
    check_choice("source", source, ("fresh", "committed"))
    folder = study.runs if source == "fresh" else study.published
    if not folder.is_dir():
        other, there = ("committed", study.published), ("fresh", study.runs)
        other, there = other if source == "fresh" else there
        read = f", or read the {other} ones: source = {other!r}" if there.is_dir() else ""
        raise FileNotFoundError(
            f"the study {study.study!r} has no {source} tables in {folder}: {to_make(study)}{read}"
        )
    return folder


def shown_path(path: Path | str) -> str:
    """A path as pages give it: from the project's folder, or the name alone of what lies elsewhere.

    So no page tells whose home that is.
    """
    whole = (ROOT / Path(path).expanduser()).resolve()
    return one_line(whole.relative_to(ROOT) if whole.is_relative_to(ROOT) else whole.name)


def given_name(study, file: Path | str) -> str:
    """What commands on pages call a study: its id, or its file (`shown_path`) if that has none."""
    own = STUDIES / f"{study.study}.yaml"
    known = own.resolve() == (ROOT / file).resolve()
    return study.study if known else shlex.quote(shown_path(file))
