"""How executed notebooks become pages; test_site.py opens the pages."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import yaml

from advbook.build import place
from advbook.build import sphinx as advbook
from advbook.studies.tables import styled

ROOT = Path(__file__).resolve().parent.parent

# ---------------------------------------------------------------- placing notebooks


@pytest.fixture
def executed(tmp_path):
    """A small notebook as papermill leaves it, with one of everything that the placer handles."""
    v4 = nbformat.v4
    figure = {"name": "fig-error", "caption": "Errors of {{ study_title }}."}
    cells = [
        v4.new_markdown_cell(
            "# Average error\n\nSee {numref}`fig-error`.\n\n"
            "## Two\n\n{{ study_title }}, {{ other }}, {{ seed }}"
        ),
        v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]}, execution_count=1),
        v4.new_code_cell("seed = 1", metadata={"tags": ["injected-parameters"]}, execution_count=2),
        v4.new_code_cell(
            "chart",
            metadata={"mystnb": {"figure": figure}, "papermill": {"duration": 1}},
            execution_count=3,
            outputs=[
                v4.new_output("stream", name="stderr", text="a warning"),
                v4.new_output("display_data", {"text/markdown": "{numref}`fig-error`"}),
                v4.new_output(
                    "display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "0"}}
                ),
            ],
        ),
    ]
    notebook = v4.new_notebook(cells=cells, metadata={"widgets": {}, "papermill": {}})
    path = tmp_path / "average_error.ipynb"
    nbformat.write(notebook, path)
    return path


def placed(path, **options):
    """The cells of the page that `place_notebook` makes, and its metadata."""
    target = path.parent / "generated" / "page.ipynb"
    place.place_notebook(path, target, **options)
    page = nbformat.read(target, as_version=4)
    return page.cells, page.metadata


def rewrite(path, change):
    """Change a notebook on disk."""
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


def test_figures_get_the_study(executed):
    words = {"seed": "{{ study_title }}"}  # nothing in a word is read again
    cells, _ = placed(executed, study_id="toy", study_title="Toy", words=words)
    assert cells[0].source.endswith("## Two\n\nToy, {{ other }}, {{ study_title }}")
    figure = cells[3].metadata.mystnb.figure
    assert figure == {"name": "toy-fig-error", "caption": "Errors of Toy."}
    cells, _ = placed(executed)
    assert cells[3].metadata.mystnb.figure["name"] == "fig-error"


def test_heading_names_the_study_and_the_source(executed):
    cells, metadata = placed(
        executed, study_id="toy", study_title="Toy", source="A fresh run, on this machine."
    )
    lines = cells[0].source.splitlines()
    assert lines[0] == "# Average error: Toy"
    assert "A fresh run, on this machine." in lines
    assert "{download}`notebook with all its code <page.ipynb>`" in cells[0].source
    assert "\n## Two\n" in cells[0].source  # the text goes on
    assert metadata["advbook"]["title"] == "Toy"  # what the table of contents calls it


def test_what_belongs_to_the_run_is_dropped(executed):
    before = executed.read_bytes()
    cells, metadata = placed(executed)
    assert "widgets" not in metadata and "papermill" not in metadata
    assert "papermill" not in cells[3].metadata
    assert [list(output.data) for output in cells[3].outputs] == [["text/markdown"]]
    assert executed.read_bytes() == before


def test_paths_of_this_machine_become_relative(executed):
    rewrite(executed, lambda n: n.cells[2].update(source=f"output = '{ROOT}/runs/toy'"))
    cells, _ = placed(executed)
    assert cells[2].source == "output = 'runs/toy'"


def test_a_file_from_elsewhere_is_shown_by_its_name(executed):
    def given(notebook):
        notebook.metadata["papermill"] = {
            "input_path": "notebooks/a.ipynb",
            "parameters": {"study": "/srv/some body/mine.yaml", "note": "a\n::::\n# b"},
        }
        notebook.cells[2].source = "study = '/srv/some body/mine.yaml'"
        notebook.cells[1].source = f"file = '{Path.home()}/x/y.csv'"

    rewrite(executed, given)
    cells, _ = placed(executed)
    assert [cell.source for cell in cells[1:3]] == ["file = '~/x/y.csv'", "study = 'mine.yaml'"]
    assert "-p study mine.yaml" in cells[0].source and "some body" not in cells[0].source
    assert "\n# b" not in cells[0].source  # the note would have ended the block with the command


def test_random_ids_are_numbered(executed):
    chart, table = f"altair-viz-{'0a' * 16}", "T_b4d1d"
    shown = f'<table id="{table}"><td id="{table}_row0"></table><div id="{chart}">#{chart} {{}}'
    rewrite(executed, lambda n: n.cells[2].update(id="random"))
    output = nbformat.v4.new_output(
        "display_data", {"text/html": shown, "text/plain": "A at 0x7f0a12b4c3d2"}
    )
    rewrite(executed, lambda n: n.cells[3].update(outputs=[output]))
    cells, _ = placed(executed)
    html = cells[3].outputs[0].data["text/html"]
    assert html.count("altair-viz-1") == 2 and html.count('"styled-table-2') == 2
    assert cells[3].outputs[0].data["text/plain"] == "A"
    assert cells[2].id == "injected-parameters"


def test_tables_are_offered_as_csv_and_latex(executed):
    table = executed.parent / "error.csv"
    table.write_text("method,value\nadv_plus,0.5\n")
    cells, _ = placed(executed, tables=[table])
    (folder,) = (executed.parent / "generated").glob("*-tables")
    assert pd.read_csv(folder / "error.csv").value.tolist() == [0.5]
    assert r"adv\_plus & 0.5" in (folder / "error.tex").read_text()
    assert f"{{download}}`error.csv <{folder.name}/error.csv>`" in cells[0].source


def test_pages_in_one_folder_offer_their_own_tables(executed):
    for study in ("mine", "other"):
        table = executed.parent / study / "error.csv"
        table.parent.mkdir()
        table.write_text(f"method,value\n{study},0.5\n")
        place.place_notebook(executed, executed.parent / f"generated/{study}.ipynb", tables=[table])
    for study in ("mine", "other"):
        placed_table = executed.parent / f"generated/{study}-tables/error.csv"
        assert pd.read_csv(placed_table).method.tolist() == [study]


def fail(notebook):
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    notebook.cells[3].outputs = [nbformat.from_dict(error)]


@pytest.mark.parametrize(
    "change, message",
    [
        (fail, "cell 3 failed or was not run"),
        (lambda n: n.cells[3].update(execution_count=None), "cell 3 failed or was not run"),
        (lambda n: n.cells[0].update(source="No heading"), "must begin with"),
    ],
)
def test_what_cannot_be_a_page_is_refused(executed, change, message):
    rewrite(executed, change)
    with pytest.raises(ValueError, match=message):
        placed(executed)
    assert not (executed.parent / "generated" / "page.ipynb").exists()


def test_the_pages_of_studies_take_the_place_of_the_glob(executed, tmp_path, monkeypatch):
    generated = tmp_path / "book" / "generated"
    monkeypatch.setattr(place, "BOOK", tmp_path / "book")
    monkeypatch.setattr(place, "GENERATED", generated)
    for source, title in (("committed", "Toy"), ("fresh", "Toy, your run")):
        target = generated / "studies" / source / "toy.ipynb"
        place.place_notebook(executed, target, study_title=title, study_id=f"{source}-toy")
    template = tmp_path / "_toc.yml"
    glob = [{"glob": "book/generated/studies/*"}]
    chapters = [{"file": "book/index", "sections": glob}, {"file": "book/glossary"}]
    chapters += [{"file": "book/generated/zoo"}]
    (generated / "zoo.ipynb").touch()
    template.write_text(yaml.safe_dump({"root": "book/index", "parts": [{"chapters": chapters}]}))
    studies, out = ["fresh/toy", "committed/toy"], tmp_path / "_build/toc.yml"
    place.write_toc(studies, ["zoo"])
    assert not (generated / "zoo.ipynb").exists()  # of the last build, which had such a study
    first, second = yaml.safe_load(out.read_text())["parts"][0]["chapters"]
    assert first["sections"] == [
        {"file": "book/generated/studies/fresh/toy", "title": "Toy, your run"},
        {"file": "book/generated/studies/committed/toy", "title": "Toy"},
    ]
    assert second == {"file": "book/glossary"}
    place.write_toc(studies[1:])
    assert not (generated / "studies/fresh/toy.ipynb").exists()  # of a study that is gone


def test_columns_of_words_are_marked_and_those_of_numbers_are_not():
    frame = pd.DataFrame(
        {
            ("", "change"): ["Std → Adv", "Adv → Adv⁺"],
            ("Clean", "error"): ["12.34 [11.90, 12.78]", "–"],
            ("Clean", "p"): ["1e-05", "0.2"],
            ("Clean", "lose"): ["none", "3"],
        }
    )
    rows = re.findall(r"<tr.*?</tr>", advbook.mend_table(frame.to_html(), 1), flags=re.S)
    places = [["data-words" in cell for cell in re.findall(r"<t[hd]\b[^>]*>", row)] for row in rows]
    assert places[0] == [False] * 3  # a header of several columns stands over them
    assert places[1:] == [[False, True, False, False, True]] * 3


def test_a_negative_number_gets_a_minus_sign():
    """A class that is called -1 reads as it was typed."""
    frame = pd.DataFrame({"class": ["<a> & b", "-1"], "points": [-13.62, 1e-05], "p": "1e-05"})
    context = {"body": styled(frame, precision=2).to_html()}
    advbook.mend_markup(None, "page", "page.html", context, None)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", context["body"])
    assert cells == ["&lt;a&gt; &amp; b", "−13.62", "1e-05", "-1", "0.00", "1e-05"]


def test_published_tables():
    table = pd.read_csv(ROOT / "results/paper/published.csv")
    values = table.set_index(["benchmark", "statistic", "method"]).value
    assert len(table) == 9 + 18 and values.between(0, 1).all()
    assert values["pgd40", "error", "adv_plus"] == 0.3270
    assert values["clean", "sd", "adv"] == 0.1778


UNLISTED = {  # what no script of a user's needs
    *(f"advlib.data.{name}" for name in ("batches", "corrupting", "decoding", "fetch")),
    *(f"advlib.data.{name}" for name in ("folders", "vision")),
    *(f"advbook.build.{name}" for name in ("closure", "pages", "place", "publish", "sphinx")),
    *(f"pipeline.{name}" for name in ("gpus", "jobs", "lab", "locked", "preflight")),
    "advbook.commands",
    "advbook.studies.card",
    "advbook.studies.checks",
    "advbook.studies.parts",
}


def test_the_reference_is_made_without_torch():
    """Each of its modules first, as a page of its own, where torch and others are mocked."""
    mocked = re.search(r"autodoc_mock_imports: \[(.*)\]", (ROOT / "_config.yml").read_text())[1]
    pages = [path.read_text() for path in (ROOT / "book/reference").glob("*.md")]
    modules = re.findall(r"automodule:: (\S+)", "".join(pages))
    own = {
        ".".join(path.relative_to(base).with_suffix("").parts)
        for base, room in ((ROOT, "advlib"), (ROOT / "book", "advbook"), (ROOT, "pipeline"))
        for path in (base / room).rglob("[!_]*.py")
    }
    assert own - set(modules) == UNLISTED and len(set(modules)) == len(modules)
    code = (
        "import importlib, sys; from unittest.mock import MagicMock\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'book')!r}]\n"
        "from advbook.build import sphinx as advbook; from sphinx.ext.autodoc.mock import mock\n"
        "advbook.setup(MagicMock())\n"
        f"with mock({mocked.split(', ')!r}):\n"
        f"    for name in {modules!r}:\n"
        "        importlib.import_module(name)\n"
        "assert not hasattr(sys.modules.get('torch'), '__version__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_foot_of_a_page_has_the_day_of_the_newest_table(tmp_path):
    for name, date in (("index", "2021-05-04"), ("toy/ledger", "2021-06-01"), ("cost", "")):
        page = nbformat.v4.new_notebook(metadata={"advbook": {"title": name, "date": date}})
        path = tmp_path / "book/generated" / f"{name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(page, path)
    context = {"pathto": lambda page: f"{page}.html"}
    advbook.stamp(SimpleNamespace(srcdir=tmp_path), "index", "page.html", context, None)
    assert ", results of 2021-06-01 " in context["theme_extra_footer"]
