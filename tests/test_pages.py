"""The book as a whole: what is said of every study, and that words and sources resolve."""

import json
import re
import shlex
import shutil

import nbformat
import pandas as pd
import pytest
import yaml

from advbook.build import pages, place, publish
from advbook.studies.places import given_name
from advbook.studies.results import titled
from advbook.studies.schema import ROOT, Study, load_study, make_study
from advbook.studies.tables import results_date
from advlib import __version__

QUICK = "notebooks/studies/fashion_mnist_quick.yaml"
PART = {"study": "committed", "ablations": "committed", "ledger": None, "battery": None}


def study(**values):
    """A small study; its files lie where `monkeypatch` says."""
    known = {"study": "toy", "title": "Toy", "dataset": "digits", "model": "cifar_resnet8"}
    return make_study(
        known | {"pretrain_epochs": 1, "methods": ["std", "adv", "adv_plus"]} | values
    )


def executed(path, parameters=None):
    """A notebook as papermill leaves it, with a caption and a paragraph that name the seeds."""
    v4 = nbformat.v4
    figure = {"name": "fig-x", "caption": "Errors, {{ study_title }}, {{ seeds }}."}
    cells = [
        v4.new_markdown_cell("# Average error\n\nSee {numref}`fig-x`, of {{ seeds }}."),
        v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]}, execution_count=1),
        v4.new_code_cell("a = 2", metadata={"tags": ["injected-parameters"]}, execution_count=2),
        v4.new_code_cell("x", metadata={"mystnb": {"figure": figure}}, execution_count=3),
    ]
    record = {"input_path": f"notebooks/{path.name}", "parameters": parameters or {}}
    nbformat.write(v4.new_notebook(cells=cells, metadata={"papermill": record}), path)
    return path


# ---------------------------------------------------------------- what a page says of itself


def test_a_page_says_the_command_that_makes_it_again(tmp_path):
    given = {"study": "my study.yaml", "seed": 1, "studies": ["a:fresh", "b:committed"]}
    page = place.place_notebook(executed(tmp_path / "n.ipynb", given), tmp_path / "out/n.ipynb")
    text = nbformat.read(page, 4).cells[0].source
    command = re.search(r"```bash\n(papermill .*)\n```", text)[1]
    words = shlex.split(command)
    assert words[:3] == ["papermill", "notebooks/n.ipynb", "out.ipynb"]
    options = dict(zip(words[4::2], words[3::2], strict=True))
    assert options["my study.yaml"] != "-y" and words[words.index("study") + 1] == "my study.yaml"
    lists = yaml.safe_load(words[words.index("-y") + 1])
    assert lists == {"studies": ["a:fresh", "b:committed"]}


def test_a_page_is_dated_by_its_newest_table_and_never_by_today(tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps({"time": "2020-01-31T10:00:00+00:00"}))
    new.write_text(json.dumps({"machine": {"date": "2021-05-04"}}))
    source = executed(tmp_path / "n.ipynb")
    made = [
        place.place_notebook(source, tmp_path / f"{i}/n.ipynb", read=[old, new]).read_bytes()
        for i in range(2)
    ]
    assert made[0] == made[1]
    page = nbformat.reads(made[0].decode(), 4)
    assert f"Version {__version__}, newest table of 2021-05-04" in page.cells[0].source
    assert page.metadata.advbook.date == "2021-05-04"


def test_a_table_of_measured_pixels_dates_nothing(tmp_path):
    pd.DataFrame({"luma": [0.5]}).to_parquet(tmp_path / "measures.parquet")
    assert results_date([tmp_path / "measures.parquet", tmp_path / "train.csv"]) == ""


def test_a_page_hides_folded_cells_that_show_nothing_and_its_file_keeps_them(tmp_path):
    """Parameters, imports, a table that there is not: neither fold nor caption; all else stays."""
    path = executed(tmp_path / "n.ipynb")
    notebook = nbformat.read(path, 4)
    figure = notebook.cells[3].metadata["mystnb"]["figure"]
    shown = nbformat.v4.new_output("display_data", {"text/plain": "shown"})
    folded = {"tags": ["hide-input"]}
    notebook.cells[3:] = [
        nbformat.v4.new_code_cell("x", execution_count=3, metadata=metadata, outputs=outputs)
        for metadata, outputs in (
            ({**folded, "mystnb": {"figure": figure}}, []),
            (folded, [shown]),
            ({}, []),
        )
    ]
    nbformat.write(notebook, path)
    cells = nbformat.read(place.place_notebook(path, tmp_path / "o/n.ipynb"), 4).cells
    hidden = ["remove-cell" in cell.metadata.get("tags", []) for cell in cells]
    assert hidden == [False, True, True, True, False, False]
    assert [cell.source for cell in cells[1:]] == [c.source for c in notebook.cells[1:]]


def test_an_optional_section_without_anything_to_show_is_off_the_page(tmp_path):
    """Its prose too; one that shows something stays whole, also right after another."""
    v4 = nbformat.v4
    tags = {"tags": ["optional"]}
    shown = v4.new_output("display_data", {"text/plain": "shown"})
    cells = [v4.new_markdown_cell("# Title")]
    for outputs in ([], [shown], []):
        cells += [v4.new_markdown_cell("## Section", metadata=tags)]
        cells += [v4.new_code_cell("x", execution_count=1, metadata=tags, outputs=outputs)]
        cells += [v4.new_code_cell("y", execution_count=1, metadata=tags)]
    cells += [v4.new_markdown_cell("After.")]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    page = nbformat.read(place.place_notebook(tmp_path / "n.ipynb", tmp_path / "o/n.ipynb"), 4)
    hidden = ["remove-cell" in cell.metadata.get("tags", []) for cell in page.cells]
    assert hidden == [False, *[True] * 3, *[False] * 3, *[True] * 3, False]


# ---------------------------------------------------------------- copies of the official images


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A study whose data.json says that its images are a copy."""
    monkeypatch.setenv("ADVLIB_RUNS", str(tmp_path / "runs"))
    own = study(seeds=[0, 1, 2])
    folder = own.runs
    folder.mkdir(parents=True)
    title = "Digits (JPEG copy)"
    facts = {split: {"title": title, "images": 5, "classes": 10} for split in ("train", "test")}
    (folder / "data.json").write_text(json.dumps(facts | {"class_names": list("0123456789")}))
    return own


def placed(own, source, tmp_path, **options):
    """The page of a study, from a file of its own."""
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(own.to_dict()))
    options = {"file": str(file), "source": source} | options
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "GENERATED", tmp_path / "generated")
        return pages.place_study(executed(tmp_path / "study.ipynb"), **options)


def test_the_page_of_a_study_says_whose_run_it_is_and_that_its_images_are_a_copy(planted, tmp_path):
    page = placed(planted, "fresh", tmp_path, tables=[planted.runs / "data.json"])
    text = page.read_text(encoding="utf-8")
    assert page.relative_to(tmp_path / "generated").parts == ("studies", "fresh", "toy.ipynb")
    assert "# Average error: Toy (JPEG copy), your run" in text
    assert "Errors, Toy (JPEG copy), your run, " in text and "fresh-toy-fig-x" in text
    assert "`data.json`" in text and "make audit STUDY=toy.yaml" in text


def test_a_title_that_says_it_already_says_it_once(planted):
    twice = titled(titled(planted, "fresh"), "fresh")
    assert twice.title == "Toy (JPEG copy)"


def test_official_images_are_no_copy():
    study = load_study("fashion_mnist_quick")
    assert titled(study, "committed").title == "Fashion-MNIST, shortened"


def test_commands_quote_the_file_of_a_study():
    brought = make_study({"study": "own", "dataset": "none", "predictions": "a.csv"})
    assert "-f 'my study.yaml'\n" in pages._made_by(brought, "my study.yaml", "own")


def test_a_study_elsewhere_is_named_by_its_file(tmp_path):
    path = tmp_path / "own.yaml"
    shutil.copy(ROOT / QUICK, path)
    # Not by its path: whose home it lies in belongs on no page.
    assert given_name(load_study(path), path) == "own.yaml"


# ---------------------------------------------------------------- words and sources


def prose():
    """The text of each page and chapter: Markdown of pages and notebooks, captions included."""
    texts = [path for folder in ("book", "book/reference") for path in (ROOT / folder).glob("*.md")]
    texts = {str(path.relative_to(ROOT / "book")): path.read_text("utf-8") for path in texts}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, 4).cells
        parts = [c.source for c in cells if c.cell_type == "markdown"]
        parts += [c.metadata.get("mystnb", {}).get("figure", {}).get("caption", "") for c in cells]
        texts[path.name] = "\n\n".join(parts)
    return texts


def entries():
    """Key -> fields of each bibliography entry."""
    text = (ROOT / "book/references.bib").read_text(encoding="utf-8")
    found = {}
    for key, body in re.findall(r"^@\w+\{([\w-]+),\n(.*?)^\}", text, flags=re.M | re.S):
        assert key not in found, f"{key} twice"
        found[key] = dict(re.findall(r"^ +(\w+) *= *\{(.*)\},?$", body, flags=re.M))
    return found


def test_every_source_is_cited_and_every_citation_has_a_source():
    cited = {
        key.strip()
        for text in prose().values()
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text)
        for key in keys.split(",")
    }
    assert cited == set(entries())


def test_every_source_says_who_when_and_where():
    for key, fields in entries().items():
        assert {"author", "title", "year"} <= set(fields), key
        assert re.fullmatch(r"(18|19|20)\d\d", fields["year"]), key
        where = {"journal", "booktitle", "institution", "note"} & set(fields)
        assert where or "data sheet" in fields["title"] or "white paper" in fields["title"], key
        if "arXiv" in fields.get("note", ""):
            assert re.search(r"arXiv:\d{4}\.\d{4,5}\b", fields["note"]), key
        assert fields.get("doi", "10.").startswith("10."), key


def test_the_words_of_the_glossary_are_linked_and_explained():
    """Sphinx refuses an unknown word; that a word is used at all, and explained, it does not."""
    glossary = (ROOT / "book/glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^(\S.*)\n  (\S.*)", glossary, flags=re.M)
    assert len(words) >= 35 and len({word for word, _ in words}) == len(words)
    assert all(text.rstrip(" )").endswith(".") for _, text in words)
    linked = {
        re.sub(r".*<(.*)>", r"\1", target)
        for name, text in prose().items()
        if name not in ("glossary.md", "contributing.md")
        for target in re.findall(r"\{term\}`([^`]+)`", text)
    }
    assert linked <= {word for word, _ in words}
    assert len(linked) >= 20


def test_a_page_opens_with_words_and_composes_no_finding():
    """The answer first: a title, and text below it before any code."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        first = nbformat.read(path, 4).cells[0]
        assert first.cell_type == "markdown" and re.match(r"# .+\n\n\S", first.source), path.name
    for name, text in prose().items():
        assert "## What was found" not in text and "**The question.**" not in text, name


# ---------------------------------------------------------------- the table of contents


def test_the_contents_hold_each_kind_of_page_once():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [entry for part in toc["parts"] for entry in part["chapters"]]
    files = [page.get("file") for e in chapters for page in (e, *e.get("sections", []))]
    named = [name for name in files if name]
    assert len(set(named)) == len(named)
    pages_there = [p for folder in ("book", "book/reference") for p in (ROOT / folder).glob("*.md")]
    pages_there = {str(path.relative_to(ROOT).with_suffix("")) for path in pages_there}
    assert pages_there == {name for name in named if "generated" not in name}
    assert toc["root"] == "book/generated/cover"


def test_figures_and_tables_of_all_pages_have_names_of_their_own():
    """Sphinx would warn of two, at the end of a build. Those of a study's page get a prefix."""
    named = []
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found = (cell["metadata"].get("mystnb", {}).get("figure", {}) for cell in cells)
        named += [one["name"] for one in found if one and path.stem != "study"]
    assert len(named) > 50 and len(set(named)) == len(named)


def test_published_tables_that_no_page_shows_are_named(tmp_path, monkeypatch):
    assert pages.left_out({}) == []  # of this repository
    results, quick = tmp_path / "results", "fashion_mnist_quick"
    folder = shutil.copytree(ROOT / "results" / quick, results / quick)
    monkeypatch.setattr(Study, "published", property(lambda self: results / self.study))
    assert pages.left_out({}) == []
    (folder / "audit/ledger/adv_mix-seed0.parquet").unlink()
    (line,) = pages.left_out({})
    assert line.startswith("Not in the book, Fashion-MNIST, shortened, ledger: ")
    assert "adv_mix-seed0.parquet is missing: run `make audit STUDY=fashion_mnist_quick`" in line
    assert pages.left_out({(quick, "committed"): ["study"], (quick, "fresh"): ["ledger"]}) == [line]
    data = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(data | {"settings": {}}))
    said = pages.left_out({})
    assert [line.split(", ")[3].split(":")[0] for line in said] == [
        "study", "samples", "ablations", "ledger", "battery"
    ]  # fmt: skip
    assert "is of other images than the study's" in said[0]
    broken = folder / "predictions/clean/std-seed0.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    (folder / "data.json").write_text(json.dumps(data))
    every = pages.parts_of(load_study(quick))
    assert pages.left_out({(quick, "committed"): every}) == []  # what is shown is not read again
    with pytest.raises(OSError, match="std-seed0.parquet cannot be read as a table"):
        pages.left_out({})


def test_two_studies_with_one_title_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "STUDIES", tmp_path)
    monkeypatch.setattr(pages, "DEFAULT", "one")
    for name in ("one", "two"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(study(study=name).to_dict()))
    with pytest.raises(ValueError, match="have the same title, 'Toy': change the title in one"):
        pages.studies_of_book(None)


def test_two_files_with_one_id_are_refused(tmp_path, monkeypatch):
    """Or the second would write over the runs, and `publish` over the tables, of the first."""
    studies, elsewhere = tmp_path / "studies", tmp_path / "elsewhere"
    studies.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(pages, "STUDIES", studies)
    monkeypatch.setattr(publish, "STUDIES", studies)
    monkeypatch.setattr(pages, "DEFAULT", "toy")
    monkeypatch.setattr(Study, "published", property(lambda self: tmp_path / "results"))
    text = yaml.safe_dump(study().to_dict())
    for path in (studies / "toy.yaml", elsewhere / "toy.yaml"):
        path.write_text(text)
    own = str(elsewhere / "toy.yaml")
    # A copy with the same settings is the same study.
    assert [file for _, file in pages.studies_of_book(own)] == [own]
    (elsewhere / "toy.yaml").write_text(text.replace("epochs: 10", "epochs: 9"))
    said = "both say `study: toy`.*give one of them another id"
    with pytest.raises(ValueError, match=said):
        pages.studies_of_book(own)
    (tmp_path / "results").mkdir()
    with pytest.raises(ValueError, match=said):
        publish.publish(own)
    assert (tmp_path / "results").is_dir()
    shutil.copy(studies / "toy.yaml", studies / "twice.yaml")
    with pytest.raises(ValueError, match=said):
        pages.studies_of_book(None)


def test_a_publication_that_was_killed_is_put_right_by_the_next(tmp_path, monkeypatch):
    """Between two renames the published tables have another name, and no copy."""
    monkeypatch.setattr(publish, "STUDIES", tmp_path)
    monkeypatch.setattr(Study, "published", property(lambda self: tmp_path / "results/toy"))
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(study().to_dict()))
    kept = tmp_path / "results/.toy.old/audit/only_copy"
    kept.parent.mkdir(parents=True)
    kept.touch()
    with pytest.raises(SystemExit, match="Nothing is published"):
        publish.publish(str(tmp_path / "toy.yaml"))
    assert (tmp_path / "results/toy/audit/only_copy").is_file()


def test_restored_weights_leave_out_what_must_be_trained_anew(monkeypatch, tmp_path):
    """Of the last epochs that `late_epochs` asks for no weights are published."""
    monkeypatch.setenv("ADVLIB_RUNS", str(tmp_path))
    publish.restore("fashion_mnist_zoo")
    restored = {path.stem for path in (tmp_path / "fashion_mnist_zoo/train").iterdir()}
    assert restored == {"pretrained-seed0", "group_dro-seed0"}
    for path in (tmp_path / "fashion_mnist_zoo/models").glob("*/checkpoint.safetensors"):
        assert path.read_bytes() == (ROOT / "results" / path.relative_to(tmp_path)).read_bytes()
