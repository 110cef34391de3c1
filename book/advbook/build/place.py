"""Place executed notebooks among the book's pages, and write the toc of what is there.

papermill executes the notebooks, outside of Sphinx; this script makes pages of the executed
copies. One notebook may serve several studies, so its title and its labels get the study's name.

    python -m advbook.build.place notebook EXECUTED TARGET --read TABLE ...
    python -m advbook.build.place toc
"""

import argparse
import itertools
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

from advbook.studies.tables import images_read, results_date
from advbook.text import as_typed
from advlib import __version__

BOOK = Path(__file__).resolve().parents[2]
GENERATED = BOOK / "generated"

# The reading order of a study's pages; others follow by name.
CHAPTERS = (
    "data", "training", "average_error", "gallery", "classwise_error", "corruptions", "factors",
    "evaluate_real", "evaluate_imagenet_x", "hard_classes", "groups",
    "class_explorer", "ablations", "ledger", "battery",
)  # fmt: skip

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
    title: str | None = None,
    read: Iterable[Path | str] = (),
    made_by: str = "",
    seeds: int = 1,
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
    title
        Takes the place of the notebook's own heading.
    read
        The tables that the page reads: the newest of them dates it.
    made_by
        How these are made, Markdown for the folded block *Run this yourself*.
    seeds
        How many training seeds the study has. Charts and most tables show the first: it takes the
        place of ``{{ seeds }}`` in Markdown and captions, as "one seed" or "the first of 3 seeds";
        0 for networks that were brought. ``{{ images }}`` becomes how many images the tables of
        ``read`` hold each.

    Consecutive cells with the tag ``optional`` are off the page if none of them shows anything.

    Returns
    -------
    Path
        ``target``.

    Raises
    ------
    PlacementError
        If a cell failed or was not run, if the notebook does not begin with a ``# Heading``, if a
        label starts with none of the three prefixes, or if ``{{ images }}`` has no one answer.
    """
    executed, target = Path(executed), Path(target)
    notebook = _read(executed)
    _check_complete(notebook, executed)
    own_title = _own_title(notebook, executed)
    title = title or own_title
    source = source or notebook.metadata.get("advbook", {}).get("source", "")
    study_title = as_typed(study_title or "")
    words = {"study_title": study_title, "seeds": _seeds_in_words(seeds)}
    read = list(read)
    if re.search(r"\{\{ *images *\}\}", executed.read_text(encoding="utf-8")):
        words["images"] = images_read(read)
        if not words["images"]:
            raise PlacementError(
                f"{executed} says '{{{{ images }}}}', the number of images of the tables that it "
                "reads, but these (--read) are none or differ."
            )
    for cell in notebook.cells:
        _tidy_cell(cell)
    _hide_idle(notebook.cells)
    for cell in notebook.cells:
        _hide_silent(cell)
        _localise_cell(cell, executed, study_id, words)

    links = [f"{{download}}`notebook with all its code <{target.name}>`"]
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

    # Widget state needs scripts from the network; papermill's record holds paths of this machine.
    for key in ("widgets", "papermill"):
        notebook.metadata.pop(key, None)
    notebook.metadata["advbook"] = {"title": title, "date": date}
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)
    return target


def place_study(
    chapters: Sequence[Path | str],
    *,
    study_id: str,
    study_title: str,
    source: str,
    sources: Mapping[str, str] = MappingProxyType({}),
    read: Mapping[str, Iterable[Path | str]] = MappingProxyType({}),
    made_by: Mapping[str, str] = MappingProxyType({}),
    seeds: int = 1,
    summary: str = "",
    files: str = "",
    appendix: Sequence[Path | str] = (),
    tables: Path | str | None = None,
    generated: Path | str = GENERATED,
) -> Path:
    """Replace a study's pages: ``index.md``, its chapters, and ``appendix/`` if there is one.

    Parameters
    ----------
    chapters, appendix
        Executed notebooks; a page is named after its file. Appendix pages carry the file's name in
        their heading, since several come from one template.
    study_id, study_title, source
        As for :func:`place_notebook`.
    sources
        Another source for single chapters, by name.
    read, made_by
        As for :func:`place_notebook`, by chapter.
    seeds
        As for :func:`place_notebook`.
    summary, files
        Markdown of the study's first page, before and after the list of its chapters.
    tables
        A folder; a chapter offers its ``<name>.csv`` and ``<name>-*.csv`` for download.
    generated
        Where the pages go: ``<generated>/<study_id>/``, which is emptied first.

    Returns
    -------
    Path
        The study's ``index.md``.
    """
    folder = Path(generated) / study_id
    shutil.rmtree(folder, ignore_errors=True)
    common = {"study_id": study_id, "study_title": study_title, "source": source, "seeds": seeds}
    every = [path for paths in read.values() for path in paths]
    for path in map(Path, chapters):
        found = sorted(Path(tables).glob("*.csv")) if tables is not None else []
        found = [t for t in found if t.stem == path.stem or t.stem.startswith(f"{path.stem}-")]
        own = common | {"source": sources.get(path.stem, source)}
        # Logs do not say when they were written: such a page has the date of the study.
        dated = results_date(read.get(path.stem, ()))
        own |= {"read": read[path.stem] if dated else every}
        own |= {"made_by": made_by.get(path.stem, "")}
        place_notebook(path, folder / path.name, tables=found, **own)
    for path in map(Path, appendix):
        own = common | {"study_id": f"{study_id}-{path.stem}", "read": every}
        title = f"{_own_title(_read(path), path)} ({as_typed(path.stem)})"
        place_notebook(path, folder / "appendix" / path.name, title=title, **own)

    contents = "```{tableofcontents}\n```\n" if chapters or appendix else ""
    index = folder / "index.md"
    index.parent.mkdir(parents=True, exist_ok=True)
    box = _provenance(source, date=results_date(every))
    text = f"# {as_typed(study_title)}\n\n{box}\n\n{summary}\n\n{contents}\n{files}\n"
    index.write_text(text, encoding="utf-8")
    if appendix:
        (folder / "appendix" / "index.md").write_text(
            f"# Appendix: {as_typed(study_title)}\n\nThe notebooks that made this study's tables, "
            f"as they ran.\n\n{contents}",
            encoding="utf-8",
        )
    return index


def expand_toc(
    template: Path | str = BOOK.parent / "_toc.yml",
    generated_dir: Path | str = GENERATED,
    out: Path | str = BOOK.parent / "_build" / "toc.yml",
    *,
    studies: Sequence[str] = (),
) -> Path:
    """Write the toc that is built: each study's index takes the place of the template's glob.

    Parameters
    ----------
    template
        The committed ``_toc.yml``; the book's root is its folder. An entry
        ``glob: <folder>/*/index`` stands for the studies.
    generated_dir
        Folder that the glob's own folder stands for.
    out
        The file to write.
    studies
        Ids that come first, in this order; others follow by name.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    PlacementError
        If a page that the template names does not exist.
    """
    template, generated_dir, out = Path(template), Path(generated_dir), Path(out)
    toc = yaml.safe_load(template.read_text(encoding="utf-8"))
    pages = [toc["root"]]
    for part in toc["parts"]:
        entries = []
        for entry in part["chapters"]:
            if "glob" in entry:
                entries += _study_entries(generated_dir, entry["glob"], studies)
            else:
                entries.append(entry)
                pages += [page["file"] for page in (entry, *entry.get("sections", []))]
        part["chapters"] = entries
    toc["parts"] = [part for part in toc["parts"] if part["chapters"]]

    for page in pages:
        if not any((template.parent / f"{page}{end}").exists() for end in (".md", ".ipynb")):
            raise PlacementError(
                f"{template.name} names the page {page}, which does not exist; `make book` and "
                "`make read` make those under book/generated."
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    note = f"# Written by advbook.build.place from {template.name}.\n"
    out.write_text(note + yaml.safe_dump(toc, sort_keys=False), encoding="utf-8")
    return out


def _study_entries(generated: Path, pattern: str, studies: Sequence[str]) -> list[dict]:
    """The toc entries of the studies found, their pages as sections."""
    base = pattern.partition("/*")[0]
    found = sorted(path.parent.name for path in generated.glob("*/index.md"))
    ordered = [s for s in studies if s in found] + [s for s in found if s not in studies]
    entries = []
    for study in ordered:
        folder = generated / study
        names = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
        known = [name for name in CHAPTERS if name in names]
        chapters = [names[name] for name in [*known, *(n for n in names if n not in known)]]
        sections = [
            {"file": f"{base}/{study}/{path.stem}", "title": _toc_title(path)} for path in chapters
        ]
        if (folder / "appendix" / "index.md").exists():
            pages = sorted((folder / "appendix").glob("*.ipynb"))
            appendix = f"{base}/{study}/appendix"
            nested = [{"file": f"{appendix}/{path.stem}", "title": path.stem} for path in pages]
            sections.append({"file": f"{appendix}/index", "title": "Appendix", "sections": nested})
        entry = {"file": f"{base}/{study}/index"}
        entries.append(entry | {"sections": sections} if sections else entry)
    return entries


def _toc_title(path: Path) -> str:
    """The page's title without the study's."""
    return nbformat.read(path, as_version=4).metadata.get("advbook", {}).get("title", path.stem)


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
    """Take runs of optional cells off the page, not out of the file, if none shows anything."""
    for optional, run in itertools.groupby(cells, lambda cell: OPTIONAL in _tags(cell)):
        run = list(run)
        if optional and not any(cell.get("outputs") for cell in run):
            for cell in run:
                cell.metadata["tags"] = [*_tags(cell), "remove-cell"]


def _seeds_in_words(seeds: int) -> str:
    if seeds == 0:
        return "networks brought, not trained here"
    return "one seed" if seeds == 1 else f"the first of {seeds} seeds"


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
    for label in re.findall(r"^\(([\w-]+)\)=", text, flags=re.M):
        _check_label(label, path)
    for name, word in words.items():
        text = re.sub(rf"\{{\{{ *{name} *\}}\}}", lambda _, word=word: word, text)
    if not study_id:
        return text
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
    """The command line: ``notebook`` or ``toc``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)

    one = commands.add_parser("notebook", help="place one executed notebook")
    one.add_argument("executed", type=Path)
    one.add_argument("target", type=Path)
    one.add_argument("--id", dest="study_id")
    one.add_argument("--title", dest="study_title")
    one.add_argument("--tables", type=Path, nargs="*", default=[])
    one.add_argument("--read", type=Path, nargs="*", default=[])
    one.add_argument("--made-by", default="")

    toc = commands.add_parser("toc", help="write the toc of what is there")
    toc.add_argument("--studies", nargs="*", default=[], help="ids that come first, in this order")

    options = vars(parser.parse_args(arguments))
    command = {"notebook": place_notebook, "toc": expand_toc}[options.pop("command")]
    try:
        command(**options)
    except PlacementError as error:
        parser.exit(1, f"advbook.build.place: {error}\n")


if __name__ == "__main__":
    main()
