"""Which studies the book shows, from which tables, and the page of each."""

import argparse
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from advbook.build.place import GENERATED, place_notebook, write_toc
from advbook.commands import plainly
from advbook.studies.current import paths_of, study_tables
from advbook.studies.identity import HOW
from advbook.studies.places import ROOT, STUDIES, find_study, given_name, shown_path, tables_folder
from advbook.studies.results import titled
from advbook.studies.schema import Study, load_study
from advbook.text import as_code, as_typed, note_html, one_line

DEFAULT = "fashion_mnist_quick"
LARGE = 5_000_000  # bytes: larger tables are not offered, larger checkpoints not published


def from_root(path: Path) -> str:
    """A path as the pipeline gives it: from the project's root where it lies inside.

    Pages show `advbook.studies.places.shown_path`.
    """
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def parts_of(study: Study) -> tuple[str, ...]:
    """The parts that a study's tables come in: each is made, published and shown whole."""
    samples = ("samples",) if "gallery" not in study.unavailable else ()
    return ("study", *samples, *study.audits)


def outdated(study: Study, folder: Path, part: str) -> str:
    """Why a folder does not hold every table of a part, made with the present settings; or "".

    Raises OSError for a broken file.
    """
    try:
        study_tables(study, folder, part)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return ""


def left_out(shown: Mapping[tuple[str, str], Sequence[str]]) -> list[str]:
    """Why published tables that are there are not in the book: a sentence per part not `shown`."""
    reasons = []
    for study in map(load_study, sorted(STUDIES.glob("*.yaml"))):
        folder, known = study.published, shown.get((study.study, "committed"), ())
        for part in (part for part in parts_of(study) if part not in known):
            tables = paths_of(study, folder)
            if part == "study":  # a folder may hold weights and their logs alone
                paths = {path for path, key in tables.items() if key}
            else:  # an ablation's tables stand among the methods' own
                paths = {*paths_of(study, folder, part)} - {*tables, folder / "data.json"}
            if any(path.is_file() for path in paths) and (why := outdated(study, folder, part)):
                reasons.append(f"Not in the book, {study.title}, {part}: {why}.")
    return reasons


def check_ids(one: tuple[Study, str], other: tuple[Study, str]) -> None:
    """Refuse two study files with one id: each would write over the other's runs and tables.

    A copy elsewhere with the same settings stays allowed: it is the same study (`pipeline.plan`).
    """
    (study, file), (known, place) = one, other
    if study.study != known.study or file == place:
        return
    ignored = (*HOW, "note")  # what `advbook.studies.parameters` lets differ, too
    settings = [{k: v for k, v in s.to_dict().items() if k not in ignored} for s in (study, known)]
    within = all((ROOT / path).parent == STUDIES for path in (file, place))
    if within or settings[0] != settings[1]:
        raise ValueError(
            f"{file} and {place} both say `study: {study.study}`, so one would write over the "
            "other's runs and tables: give one of them another id."
        )


def studies_of_book(running: str | None) -> list[tuple[Study, str]]:
    """Every study and the file it comes from; first that of the file `running`, if one is run.

    Raises ValueError if two studies have the same title, or two files the same id (`check_ids`).
    """
    files = [STUDIES / f"{DEFAULT}.yaml", *sorted(STUDIES.glob("*.yaml"))]
    if running is not None:
        files.insert(0, find_study(running))
    found, titles = {}, {}
    for file in files:
        study = load_study(file)
        if study.study in found:
            check_ids((study, from_root(file)), found[study.study])
            continue
        found[study.study] = study, from_root(file)
        if (other := titles.setdefault(one_line(study.title), file)) != file:
            raise ValueError(
                f"{other} and {file} have the same title, {study.title!r}: change the title in one "
                "of them, since pages tell studies apart by it."
            )
    return list(found.values())


def tables_shown(study: Study, making: Sequence[str] | None) -> dict[str, list[str]]:
    """The parts of a study that the book shows, by source, "committed" and "fresh".

    A run of the reader's own stands beside the published tables and takes nothing from them. Parts
    that are in the making will be there; None: the book is only read, and shows published tables
    alone.
    """
    found = {"committed": [p for p in parts_of(study) if not outdated(study, study.published, p)]}
    if making is not None:
        parts = parts_of(study)
        found["fresh"] = [p for p in parts if p in making or not outdated(study, study.runs, p)]
    return {source: parts for source, parts in found.items() if parts}


def place_study(
    executed: Path | str, *, file: str, source: str, tables: Iterable[Path | str] = ()
) -> Path:
    """Place the page with all tables of a study: ``studies/<source>/<study>.ipynb``.

    ``executed`` is ``notebooks/study.ipynb`` as papermill left it; ``tables`` are those that it
    reads, which the page offers for download where they are not too large.
    """
    study = titled(load_study(file), source)
    name, path = given_name(study, file), Path(executed)
    target = GENERATED / "studies" / source / f"{study.study}.ipynb"
    command = as_code(f"make book STUDY={name}")
    own = f"A run on the machine that built this book ({command})."
    came = f"Tables that came with the project. {command} makes tables of your own."
    note = f"\n\n````{{raw}} html\n{note_html(study.note)}\n````" if study.note else ""
    return place_notebook(
        path,
        target,
        study_id=f"{source}-{study.study}",
        study_title=study.title + (", your run" if source == "fresh" else ""),
        words={"first_seed": str(study.seeds[0])},
        source=(own if source == "fresh" else came) + note,
        tables=sorted((path.parent / "results").glob("*.csv")),
        read=tables,
        made_by=_made_by(study, file, name),
        files=_files(study, source, map(Path, tables)),
    )


def _made_by(study: Study, file: str, name: str) -> str:
    """What makes a study's tables, as Markdown."""
    if study.predictions:
        path = shlex.quote(shown_path(file))
        command = f"papermill notebooks/bring_your_own.ipynb out.ipynb -f {path}"
        return f"This makes the tables that it reads:\n\n```bash\n{command}\n```"
    text = f"{as_code(f'make book STUDY={name}')} makes the tables that it reads"
    if study.audits:
        text += f", and {as_code(f'make audit STUDY={name}')} those of its audit"
    return f"{text}. Each step runs one notebook: {{doc}}`/book/run`."


def _files(study: Study, source: str, tables: Iterable[Path]) -> str:
    """The prediction tables behind the page, as Markdown: each once, to be downloaded."""
    groups, folder = {}, tables_folder(study, source)
    for path in dict.fromkeys(ROOT / path for path in tables):
        name = path.relative_to(folder)
        link = f"`{name.name}`"
        if path.is_relative_to(ROOT) and path.is_file() and path.stat().st_size < LARGE:
            link = f"{{download}}`{name.name} </{path.relative_to(ROOT)}>`"
        groups.setdefault(str(name.parent), []).append(link)
    rows = [
        f"| {'' if group == '.' else as_typed(group)} | {' · '.join(links)} |"
        for group, links in groups.items()
    ]
    return "\n".join(
        [
            "## The predictions behind these tables\n",
            "Each Parquet file has one row per image and condition. Its metadata name the network, "
            "the images, the threat model and the versions. Training logs are CSV.\n",
            ":::{admonition} Show the files\n:class: dropdown run-yourself\n",
            "| folder | tables |\n|---|---|",
            *rows,
            ":::",
        ]
    )


def report(start: float, folders: list[Path], environment: str) -> None:
    """Say where the book is and how long each step took."""
    installed = ROOT / environment / "install-seconds"
    if installed.is_file() and installed.stat().st_mtime > start - 600:
        print(f"{float(installed.read_text()):8.0f} s  install")
    files = {path: path.stat().st_mtime for f in folders for path in f.glob("**/benchmarks/*.tsv")}
    for path in sorted(files, key=files.get):
        if files[path] > start:
            print(f"{pd.read_table(path).s.sum():8.0f} s  {path.stem}")
    book = ROOT / "_build/html/index.html"
    if book.is_file() and book.stat().st_mtime > start:  # a run may be asked for one table alone
        print(f"The book: {book}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: ``study`` places a study's page, ``toc`` writes the table of contents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("study", help="place the page of a study")
    one.add_argument("executed", type=Path)
    one.add_argument("--file", required=True)
    one.add_argument("--source", required=True, choices=("fresh", "committed"))
    one.add_argument("--tables", type=Path, nargs="*", default=[])
    toc = commands.add_parser("toc", help="write the table of contents")
    toc.add_argument("entries", nargs="*", metavar="SOURCE/STUDY")
    toc.add_argument("--without", nargs="*", default=[], metavar="PAGE")
    options = vars(parser.parse_args(arguments))
    {"study": place_study, "toc": write_toc}[options.pop("command")](**options)


if __name__ == "__main__":
    with plainly("pages.py"):
        main()
