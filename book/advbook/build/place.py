"""Place executed notebooks among the book's pages, and write the toc of what is there.

papermill executes the notebooks, outside of Sphinx; this script makes pages of the executed copies,
and can be told to run papermill first: one process does both in less time than two.

    python -m advbook.build.place EXECUTED TARGET --read TABLE ... --papermill NOTEBOOK EXECUTED ...
"""

import argparse
import json
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import nbformat
import pandas as pd
import yaml

from advbook.commands import plainly
from advbook.studies.results import NAMES
from advbook.studies.tables import results_date
from advbook.text import as_typed
from advlib import __version__

BOOK = Path(__file__).resolve().parents[2]
GENERATED = BOOK / "generated"


def place_notebook(
    executed: Path | str,
    target: Path | str,
    *,
    study_id: str = "",
    study_title: str = "",
    source: str = "",
    tables: Iterable[Path | str] = (),
    read: Iterable[Path | str] = (),
    made_by: str = "",
    words: Mapping[str, str] = MappingProxyType({}),
    files: str = "",
) -> Path:
    """Make a page of the book from an executed notebook, as papermill left it; its path.

    The target is a ``.ipynb`` under ``book/generated``. Of a notebook that has a page per study,
    ``study_id`` goes before the name of every figure and table, and ``study_title`` ends the
    heading ("Average error: CIFAR-10").

    ``source`` says where the page's numbers come from, one or two sentences of Markdown; else the
    notebook's own metadata do, `advbook.source`. This is shown with the downloads, the version, the
    date of the tables, and the command that makes the page again: under the heading, or where the
    text says ``{{ provenance }}``. ``tables`` are CSV files that the page offers for download, each
    also as LaTeX; they are copied into ``tables/`` beside the page. ``read`` are the tables that it
    reads, the newest of which dates it, and ``made_by`` says how they are made: Markdown for the
    folded block *Run this yourself*.

    ``words`` are what takes the place of ``{{ name }}`` in Markdown and captions, by name, and so
    does ``study_title``. ``files`` is Markdown for the end of the page.

    Raises ValueError if a cell failed or was not run, or if the first line is no ``# Heading``.
    """
    executed, target = Path(executed), Path(target)
    notebook = _read(executed)
    first = notebook.cells[0]
    heading = re.match(r"\s*# +(.+)\n?", first.source)
    if heading is None or first.cell_type != "markdown":
        raise ValueError(
            f"{executed} must begin with a Markdown cell whose first line is '# Title'"
        )
    title, body = heading[1].strip(), first.source[heading.end() :]
    study_title, date = as_typed(study_title), results_date(list(read))
    source = source or notebook.metadata.get("advbook", {}).get("source", "")
    links = [f"{{download}}`notebook with all its code <{target.name}>`"]
    # Pages of several studies stand in one folder, and their tables have the same names.
    links += [_place_table(Path(t), target.with_name(f"{target.stem}-tables")) for t in tables]
    box = f"{_provenance(source, links, date)}\n\n{_run_yourself(notebook, made_by)}"
    marked = any("{{ provenance }}" in cell.source for cell in notebook.cells)
    colon = "" if title.endswith("?") else ":"
    head = f"# {title}{colon} {study_title}" if study_title else f"# {title}"
    first.source = "\n\n".join([head, *([] if marked else ["{{ provenance }}"]), body.rstrip()])
    words = {**words, "study_title": study_title, "provenance": box}

    def filled(text):
        return re.sub(r"\{\{ *(\w+) *\}\}", lambda found: words.get(found[1], found[0]), text)

    _hide_idle(notebook.cells)
    for cell in notebook.cells:
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if study_id and figure:
            figure["name"] = f"{study_id}-{figure['name']}"
        if "caption" in figure:
            figure["caption"] = filled(figure["caption"])
        if cell.cell_type == "markdown":
            cell.source = filled(cell.source)
    if files:
        notebook.cells.append(nbformat.v4.new_markdown_cell(files, id="files"))
    # Widget state needs scripts from the network; papermill's record holds paths of this machine.
    for key in ("widgets", "papermill"):
        notebook.metadata.pop(key, None)
    notebook.metadata["advbook"] = {"title": study_title or title, "date": date}
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    return target


def write_toc(entries: Sequence[str], without: Sequence[str] = ()) -> None:
    """Write the toc that is built: the studies' pages take the place of the template's glob.

    Pages of studies that are not among the entries, "<source>/<study>" each, are removed, and so
    are pages by question ``without`` a study to show.
    """
    for path in GENERATED.glob("studies/*/*.*"):
        if f"{path.parent.name}/{path.stem}" not in entries:
            path.unlink()
    for name in without:
        (GENERATED / f"{name}.ipynb").unlink(missing_ok=True)
    toc = yaml.safe_load((BOOK.parent / "_toc.yml").read_text(encoding="utf-8"))
    for part in toc["parts"]:
        there = [page for page in part["chapters"] if Path(page["file"]).name not in without]
        part["chapters"] = there
        for page in there:
            if "glob" in page.get("sections", [{}])[0]:
                folder = page["sections"][0]["glob"].removesuffix("/*")
                page["sections"] = []
                for entry in entries:
                    text = (GENERATED / f"studies/{entry}.ipynb").read_text(encoding="utf-8")
                    title = json.loads(text)["metadata"]["advbook"]["title"]
                    page["sections"].append({"file": f"{folder}/{entry}", "title": title})
    out = BOOK.parent / "_build/toc.yml"
    out.parent.mkdir(parents=True, exist_ok=True)
    note = "# Written by advbook.build.pages from _toc.yml.\n"
    out.write_text(note + yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")


def _read(path: Path) -> nbformat.NotebookNode:
    """The notebook, as any run on the same tables leaves it.

    Paths of this machine that lie in the project become relative to it, of those that papermill was
    given from elsewhere the name is left, and a home is "~"; the random ids of Altair's charts,
    pandas' tables and papermill's cell are numbered, and addresses in memory are dropped. So are
    stderr, widgets and papermill's times.
    """
    text = path.read_text(encoding="utf-8")
    record = json.loads(text)["metadata"].get("papermill", {}).get("parameters", {})
    given = json.dumps(record, ensure_ascii=False)
    folders = [f"{BOOK.parent}/", *re.findall(r'"((?:/[^/"\\]+)+/)[^/"\\]+', given)]
    for folder in dict.fromkeys(folders):
        text = text.replace(folder, "")
    if (home := str(Path.home())) != "/":
        text = re.sub(rf"(?<![\w./-]){re.escape(home)}/", "~/", text)
    charts = re.findall(r"altair-viz-[0-9a-f]{32}", text)
    tables = re.findall(r'<table id=\\"(T_[0-9a-f]{5})\b', text)
    for number, name in enumerate(dict.fromkeys([*charts, *tables]), 1):
        text = text.replace(name, f"{name.rpartition('-')[0] or 'styled-table'}-{number}")
    notebook = nbformat.reads(re.sub(r" at 0x[0-9a-f]{8,}", "", text), as_version=4)
    for number, cell in enumerate(notebook.cells):
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in _tags(cell):
            cell["id"] = "injected-parameters"
        if cell.cell_type != "code":
            continue
        failed = any(output.output_type == "error" for output in cell.outputs)
        if failed or (cell.source.strip() and cell.execution_count is None):
            raise ValueError(
                f"{path}: cell {number} failed or was not run. Run the notebook with papermill "
                "again; the book shows complete runs only."
            )
        widget = "application/vnd.jupyter.widget-view+json"
        kept = [o for o in cell.outputs if o.get("name") != "stderr"]
        cell.outputs = [o for o in kept if widget not in o.get("data", {})]
    return notebook


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _hide_idle(cells: Sequence[nbformat.NotebookNode]) -> None:
    """Take cells off the page that show nothing there; the file that the page offers keeps them.

    These are folded cells (parameters, imports, what writes tables or gives numbers to sentences by
    `glue`), their captions with them, and the cells with the tag ``optional`` from one Markdown
    cell to the next.
    """
    sections: list[list] = [[]]
    for cell in cells:
        if cell.cell_type == "markdown":
            sections.append([])
        if "optional" in _tags(cell):
            sections[-1].append(cell)
        folded = {"hide-input", "parameters", "injected-parameters"} & set(_tags(cell))
        shown = [o for o in cell.get("outputs", []) if "scrapbook" not in o.get("metadata", {})]
        if cell.cell_type == "code" and folded and not shown:
            cell.metadata["tags"] = [*_tags(cell), "remove-cell"]
    for section in sections:
        if not any(cell.get("outputs") for cell in section):
            for cell in section:
                cell.metadata["tags"] = [*_tags(cell), "remove-cell"]


def _provenance(source: str, links: Sequence[str], date: str) -> str:
    """The box under a page's heading."""
    tables = f", newest table of {date}" if date else ""
    return (
        f":::{{admonition}} Where these numbers come from\n:class: provenance\n\n{source}\n\n"
        f"Version {__version__}{tables} ({{doc}}`changelog </book/changelog>`).\n\n"
        f"Download: {' · '.join(links)}\n:::"
    )


def _run_yourself(notebook: nbformat.NotebookNode, made_by: str) -> str:
    """The folded block with the command that papermill was given; "" without papermill's record."""
    record = notebook.metadata.get("papermill", {})
    if not record.get("input_path"):
        return ""
    words = ["papermill", record["input_path"], "out.ipynb"]
    for name, value in record.get("parameters", {}).items():
        # In one line, or the text would end the block that it stands in.
        plain = isinstance(value, str | int | float) and len(str(value).splitlines()) < 2
        words += ["-p", name, str(value)] if plain else ["-y", json.dumps({name: value})]
    return (
        "::::{admonition} Run this yourself\n:class: dropdown run-yourself\n\n"
        "This page, from the project's folder and with its environment active (`source "
        ".venv/bin/activate` after `make setup`; `.venv-read` after `make read` has no torch, "
        f"which chapters do not need):\n\n```bash\n{shlex.join(words)}\n```\n\n{made_by}\n::::"
    )


def _place_table(table: Path, folder: Path) -> str:
    """Copy a CSV and write it as LaTeX beside it; return their links."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(table, folder / table.name)
    # A class may be called 007, or NA.
    frame = pd.read_csv(table, dtype=NAMES, keep_default_na=False, na_values=[""])
    latex = frame.to_latex(index=False, na_rep="", escape=True, longtable=len(frame) > 40)
    (folder / f"{table.stem}.tex").write_text(latex, encoding="utf-8")
    return (
        f"{{download}}`{table.name} <{folder.name}/{table.name}>` "
        f"({{download}}`LaTeX <{folder.name}/{table.stem}.tex>`)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: make a page of an executed notebook."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("executed", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--tables", type=Path, nargs="*", default=[])
    parser.add_argument("--read", type=Path, nargs="*", default=[])
    parser.add_argument("--papermill", nargs=argparse.REMAINDER, help="run it first, with these")
    options = vars(parser.parse_args(arguments))
    if words := options.pop("papermill"):
        from papermill.cli import papermill

        papermill(words, standalone_mode=False)
    place_notebook(**options)


if __name__ == "__main__":
    with plainly("advbook.build.place"):
        main()
