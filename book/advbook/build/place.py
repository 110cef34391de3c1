"""Place executed notebooks among the book's pages, and write the toc of what is there.

papermill executes the notebooks, outside of Sphinx; this script makes pages of the executed
copies. One notebook may serve several studies, so its title and its labels get the study's name.

    python -m advbook.build.place EXECUTED TARGET --read TABLE ...
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

from advbook.studies.tables import results_date
from advbook.text import as_typed
from advlib import __version__

BOOK = Path(__file__).resolve().parents[2]
GENERATED = BOOK / "generated"

# Labels that belong to one page of one study. Others (of the method page, say) stay as they are.
LOCAL = r"(?:fig|tab|sec)-"
OPTIONAL = "optional"  # the tag of cells that a page has only if one of them shows something
PROVENANCE = "{{ provenance }}"  # where a notebook's text wants its box, if not under the heading


class PlacementError(ValueError):
    """An executed notebook cannot become a page of the book."""


def place_notebook(
    executed: Path | str,
    target: Path | str,
    *,
    study_id: str | None = None,
    study_title: str | None = None,
    source: str = "",
    tables: Iterable[Path | str] = (),
    links: Sequence[str] = (),
    read: Iterable[Path | str] = (),
    made_by: str = "",
    words: Mapping[str, str] = MappingProxyType({}),
    files: str = "",
) -> Path:
    """Make a page of the book from an executed notebook.

    Parameters
    ----------
    executed
        Notebook as papermill left it. It is not changed.
    target
        The page to write, a ``.ipynb`` under ``book/generated``.
    study_id
        Goes before every label that starts with ``fig-``, ``tab-`` or ``sec-``, and before every
        reference to one. ``None`` leaves them.
    study_title
        Ends the page's heading: "Average error: CIFAR-10"; it also replaces ``{{ study_title }}``
        in Markdown and captions.
    source
        Where the page's numbers come from, one or two sentences of Markdown; else what the
        notebook's own metadata say, `advbook.source`. They are shown with the download links, the
        project's version, the date of the tables, and the command that
        makes the page again: under the heading, or where the text says ``{{ provenance }}``.
    tables
        CSV files that the page offers for download, each also as LaTeX. They are copied into
        ``tables/`` beside the page.
    links
        Further downloads, Markdown.
    read
        The tables that the page reads: the newest of them dates it.
    made_by
        How these are made, Markdown for the folded block *Run this yourself*.
    words
        What takes the place of ``{{ name }}`` in Markdown and captions, by name.
    files
        Markdown for the end of the page.

    An optional section (cells with the tag ``optional``) is off the page if it shows nothing.

    Returns
    -------
    Path
        ``target``.

    Raises
    ------
    PlacementError
        If a cell failed or was not run, if the notebook does not begin with a ``# Heading``, or if
        a label of a figure or study starts with none of the three prefixes.
    """
    executed, target = Path(executed), Path(target)
    notebook = _read(executed)
    _check_complete(notebook, executed)
    title = _own_title(notebook, executed)
    source = source or notebook.metadata.get("advbook", {}).get("source", "")
    study_title = as_typed(study_title or "")
    words = {**words, "study_title": study_title}
    read = list(read)
    for cell in notebook.cells:
        _tidy_cell(cell)
    _hide_idle(notebook.cells)
    for cell in notebook.cells:
        _hide_silent(cell)
        _localise_cell(cell, executed, study_id, words)

    links = [f"{{download}}`notebook with all its code <{target.name}>`", *links]
    links += [_place_table(Path(table), target.parent / "tables") for table in tables]
    colon = "" if title.endswith("?") else ":"
    full_title = f"{title}{colon} {study_title}" if study_title else title
    body = notebook.cells[0].source.strip().partition("\n")[2]
    date = results_date(read)
    box = f"{_provenance(source, links, date)}\n\n{_run_yourself(notebook, made_by)}"
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    marked = [cell for cell in texts if PROVENANCE in cell.source]
    for cell in marked:
        cell.source = cell.source.replace(PROVENANCE, box)
    notebook.cells[0].source = "\n\n".join([f"# {full_title}", *([] if marked else [box]), body])

    if files:
        notebook.cells.append(nbformat.v4.new_markdown_cell(files, id="files"))
    # Widget state needs scripts from the network; papermill's record holds paths of this machine.
    for key in ("widgets", "papermill"):
        notebook.metadata.pop(key, None)
    notebook.metadata["advbook"] = {"title": study_title or title, "date": date}
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    return target


def expand_toc(
    template: Path | str = BOOK.parent / "_toc.yml",
    generated_dir: Path | str = GENERATED,
    out: Path | str = BOOK.parent / "_build" / "toc.yml",
    *,
    studies: Sequence[str] = (),
) -> Path:
    """Write the toc that is built: the studies' pages take the place of the template's glob.

    Parameters
    ----------
    template
        The committed ``_toc.yml``; the book's root is its folder. Sections ``glob: <folder>/*``
        stand for the studies.
    generated_dir
        Folder that the glob's own folder stands for.
    out
        The file to write.
    studies
        "<source>/<study>" of each, in this order.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    PlacementError
        If a page that the template names does not exist.
    """
    template, out = Path(template), Path(out)
    toc = yaml.safe_load(template.read_text(encoding="utf-8"))
    pages = [toc["root"]]
    for entry in [entry for part in toc["parts"] for entry in part["chapters"]]:
        if "sections" in entry:
            entry["sections"] = [
                section
                for written in entry["sections"]
                for section in _sections(written, Path(generated_dir), studies)
            ]
        pages += [page["file"] for page in (entry, *entry.get("sections", []))]
        if not entry.get("sections", [None]):
            del entry["sections"]

    for page in pages:
        if not any((template.parent / f"{page}{end}").exists() for end in (".md", ".ipynb")):
            raise PlacementError(
                f"{template.name} names the page {page}, which does not exist; `make book` and "
                "`make read` make those under book/generated."
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    note = f"# Written by advbook.build.pages from {template.name}.\n"
    out.write_text(note + yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    return out


def _sections(written: dict, generated: Path, studies: Sequence[str]) -> list[dict]:
    """A section of the template: itself, or the studies' pages under their own titles."""
    if "glob" not in written:
        return [written]
    base = written["glob"].partition("/*")[0]
    paths = {study: generated / Path(base).name / f"{study}.ipynb" for study in studies}
    return [{"file": f"{base}/{study}", "title": _title(path)} for study, path in paths.items()]


def _title(path: Path) -> str:
    """What the table of contents calls a placed page."""
    return nbformat.read(path, as_version=4).metadata["advbook"]["title"]


def _read(path: Path) -> nbformat.NotebookNode:
    """The notebook, as any run on the same tables leaves it.

    Paths of this machine that lie in the project become relative to it, of those that papermill was
    given from elsewhere the name is left, and a home is "~"; the random ids of Altair's charts,
    pandas' tables and papermill's cell are numbered, and addresses in memory are dropped.
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
    for cell in notebook.cells:
        if "injected-parameters" in _tags(cell):
            cell["id"] = "injected-parameters"
    return notebook


def _own_title(notebook: nbformat.NotebookNode, path: Path) -> str:
    first = notebook.cells[0] if notebook.cells else None
    heading = re.match(r"\s*# +(.+)", first.source) if first is not None else None
    if heading is None or first.cell_type != "markdown":
        raise PlacementError(
            f"{path} must begin with a Markdown cell whose first line is '# Title'."
        )
    return heading[1].strip()


def _check_complete(notebook: nbformat.NotebookNode, path: Path) -> None:
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                raise PlacementError(
                    f"{path}: cell {number} failed with {output.ename}: {output.evalue}. "
                    "Mend it and run the notebook again; the book shows complete runs only."
                )
        if cell.source.strip() and cell.execution_count is None:
            raise PlacementError(
                f"{path}: cell {number} was not run. Execute the notebook with papermill first."
            )


def _tidy_cell(cell: nbformat.NotebookNode) -> None:
    """Drop what belongs to the run and not to the page: stderr, widgets, papermill's times."""
    for key in ("papermill", "execution"):
        cell.metadata.pop(key, None)
    widget = "application/vnd.jupyter.widget-view+json"
    if cell.cell_type == "code":
        kept = [o for o in cell.outputs if o.get("name") != "stderr"]
        cell.outputs = [o for o in kept if widget not in o.get("data", {})]


def _hide_idle(cells: Sequence[nbformat.NotebookNode]) -> None:
    """Take optional sections off the page, not out of the file, if no cell of one shows anything.

    A section is a run of optional cells; a Markdown cell among them begins another one.
    """
    sections: list[list] = [[]]
    for cell in cells:
        if OPTIONAL not in _tags(cell) or cell.cell_type == "markdown":
            sections.append([])
        if OPTIONAL in _tags(cell):
            sections[-1].append(cell)
    for section in sections:
        if not any(cell.get("outputs") for cell in section):
            for cell in section:
                cell.metadata["tags"] = [*_tags(cell), "remove-cell"]


def _tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _hide_silent(cell: nbformat.NotebookNode) -> None:
    """Take a folded cell that shows nothing off the page, and its caption with it.

    The file that the page offers keeps it: parameters, imports, what writes the tables, and what
    gives numbers to sentences (`glue`).
    """
    folded = {"hide-input", "parameters", "injected-parameters"} & set(_tags(cell))
    shown = [o for o in cell.get("outputs", []) if "scrapbook" not in o.get("metadata", {})]
    if cell.cell_type == "code" and folded and not shown:
        cell.metadata["tags"] = [*_tags(cell), "remove-cell"]


def _localise_cell(
    cell: nbformat.NotebookNode,
    path: Path,
    study_id: str | None,
    words: Mapping[str, str],
) -> None:
    """Give the cell's text, outputs, figure name and caption to the study."""

    def text(source: str) -> str:
        return _localise_text(source, path, study_id, words)

    if cell.cell_type == "markdown":
        cell.source = text(cell.source)
        return
    figure = cell.metadata.get("mystnb", {}).get("figure", {})
    if "name" in figure:
        _check_label(figure["name"], path)
        if study_id:
            figure["name"] = f"{study_id}-{figure['name']}"
    if "caption" in figure:
        figure["caption"] = text(figure["caption"])
    elif figure:
        raise PlacementError(f"{path}: the figure {figure.get('name')} needs a caption.")
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "text/markdown" in data:
            data["text/markdown"] = text(data["text/markdown"])


def _localise_text(text: str, path: Path, study_id: str | None, words: Mapping[str, str]) -> str:
    """Prefix labels and references in MyST text, and fill in the words about the study."""
    for name, word in words.items():
        text = re.sub(rf"\{{\{{ *{name} *\}}\}}", lambda _, word=word: word, text)
    if not study_id:
        return text
    for label in re.findall(r"^\(([\w-]+)\)=", text, flags=re.M):
        _check_label(label, path)
    for pattern in (
        rf"^(\()({LOCAL}[\w-]+\)=)",  # (fig-x)=
        rf"(\{{(?:numref|ref)\}}`(?:[^`<]*<)?)({LOCAL})",  # {numref}`fig-x`
        rf"(\]\(#?)({LOCAL}[\w-]+\))",  # [text](#fig-x)
        rf"^(\s*:(?:name|label): *)({LOCAL})",  # an option of a directive
    ):
        text = re.sub(pattern, rf"\g<1>{study_id}-\g<2>", text, flags=re.M)
    return text


def _check_label(label: str, path: Path) -> None:
    if not re.match(LOCAL, label):
        raise PlacementError(
            f"{path}: the label '{label}' must start with fig-, tab- or sec-, so that it can be "
            "told apart from the same label in another study."
        )


def _provenance(source: str, links: Sequence[str] = (), date: str = "") -> str:
    """The box under a page's heading."""
    lines = [":::{admonition} Where these numbers come from", ":class: provenance", "", source]
    tables = f", newest table of {date}" if date else ""
    lines += ["", f"Version {__version__}{tables} ({{doc}}`changelog </book/changelog>`)."]
    if links:
        lines += ["", "Download: " + " · ".join(links)]
    return "\n".join([*lines, ":::"])


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
    command = shlex.join(words)
    return "\n".join(
        [
            "::::{admonition} Run this yourself",
            ":class: dropdown run-yourself",
            "",
            "This page, from the project's folder and with its environment active (`source "
            ".venv/bin/activate` after `make setup`; `.venv-read` after `make read` has no torch, "
            "which chapters do not need):",
            "",
            f"```bash\n{command}\n```",
            "",
            made_by,
            "::::",
        ]
    )


def _place_table(table: Path, folder: Path) -> str:
    """Copy a CSV and write it as LaTeX beside it; return their links."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(table, folder / table.name)
    frame = pd.read_csv(table, keep_default_na=False, na_values=[""])  # a class may be called NA
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
    try:
        place_notebook(**vars(parser.parse_args(arguments)))
    except PlacementError as error:
        parser.exit(1, f"advbook.build.place: {error}\n")


if __name__ == "__main__":
    main()
