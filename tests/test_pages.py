"""The book as a whole: what is said of every study, and that words and sources resolve."""

import dataclasses
import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from advbook.build import pages, place
from advbook.charts import errors as charts
from advbook.claims import claims
from advbook.claims import front as overview
from advbook.studies.schema import ROOT, Study, make_study
from advbook.studies.tables import results_date
from advlib import __version__
from advlib.predictions import write_predictions

QUICK = "notebooks/studies/fashion_mnist_quick.yaml"
ABOUT_ALL = ("verdict", "claims", "table_check", "cost", "benchmark", "study_index", "not_run")
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
    import shlex

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


@pytest.mark.parametrize(
    "seeds, words",
    [(0, "networks brought, not trained here"), (1, "one seed"), (3, "the first of 3 seeds")],
)
def test_captions_say_which_seed_they_show(tmp_path, seeds, words):
    page = place.place_notebook(
        executed(tmp_path / "n.ipynb"), tmp_path / "o/n.ipynb", study_title="Toy", seeds=seeds
    )
    cells = nbformat.read(page, 4).cells
    assert cells[3].metadata.mystnb.figure.caption == f"Errors, Toy, {words}."
    assert cells[0].source.endswith(f"of {words}.")


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
    """Its prose too; one that shows something stays whole."""
    v4 = nbformat.v4
    tags = {"tags": ["optional"]}
    shown = v4.new_output("display_data", {"text/plain": "shown"})
    cells = [v4.new_markdown_cell("# Title")]
    for outputs in ([], [shown]):
        cells += [v4.new_markdown_cell("## Section", metadata=tags)]
        cells += [v4.new_code_cell("x", execution_count=1, metadata=tags, outputs=outputs)]
        cells += [v4.new_code_cell("y", execution_count=1, metadata=tags)]
        cells += [v4.new_markdown_cell("Between.")]
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    page = nbformat.read(place.place_notebook(tmp_path / "n.ipynb", tmp_path / "o/n.ipynb"), 4)
    hidden = ["remove-cell" in cell.metadata.get("tags", []) for cell in page.cells]
    assert hidden == [False, True, True, True, False, False, False, False, False]


def test_a_caption_says_how_many_images_its_tables_hold(tmp_path):
    path = executed(tmp_path / "n.ipynb")
    path.write_text(path.read_text(encoding="utf-8").replace("{{ seeds }}.", "{{ images }}."))
    tables = {n: tmp_path / f"{n}.parquet" for n in (1000, 500)}
    for n_images, table in tables.items():
        row = {"file_name": [str(i) for i in range(n_images)], "label": 0}
        row |= {"predicted_class": 0, "predicted_probability": 0.5}
        write_predictions(pd.DataFrame(row), table, n_images=n_images)
    options = {"study_title": "Toy", "read": [tables[1000]]}
    page = nbformat.read(place.place_notebook(path, tmp_path / "o/n.ipynb", **options), 4)
    assert page.cells[3].metadata.mystnb.figure.caption == "Errors, Toy, 1,000 images."
    for read in ([], tables.values()):
        with pytest.raises(place.PlacementError, match="number of images"):
            place.place_notebook(path, tmp_path / "o/n.ipynb", read=read)


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


def test_every_page_of_a_study_says_that_its_images_are_a_copy(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(place, "GENERATED", tmp_path / "generated")
    keywords = {"generated": tmp_path / "generated"}
    monkeypatch.setattr(
        pages, "place_study", lambda *a, **k: place.place_study(*a, **(k | keywords))
    )
    chapters = [executed(tmp_path / f"{name}.ipynb") for name in ("average_error", "ledger")]
    read = {"average_error": [planted.runs / "data.json"], "ledger": []}
    audit = {"ledger": "fresh", "battery": None}
    pages.place_pages(planted, "fresh", audit, chapters, [chapters[0]], QUICK, read)
    made = [p for p in (tmp_path / "generated").rglob("*") if p.suffix in (".md", ".ipynb")]
    assert len(made) == 5
    for path in made:
        assert "Toy (JPEG copy)" in path.read_text(encoding="utf-8"), path
    chapter = (tmp_path / "generated/toy/average_error.ipynb").read_text(encoding="utf-8")
    assert "Errors, Toy (JPEG copy), the first of 3 seeds." in chapter
    assert "copy of the official ones" in chapter


def test_a_title_that_says_it_already_says_it_once(planted):
    twice = overview.titled(overview.titled(planted, "fresh"), "fresh")
    assert twice.title == "Toy (JPEG copy)"


def test_official_images_are_no_copy():
    assert overview.book_studies({QUICK: PART})["fashion_mnist_quick"][0].title == (
        "Fashion-MNIST, shortened"
    )


# ---------------------------------------------------------------- commands of a study


def test_a_chapter_says_what_makes_its_own_tables(planted):
    """Not more: the factors need no attack; and in an order in which each finds what it reads."""
    factors = pages._made_by(planted, "mine.yaml", "factors")
    assert "evaluate_pgd" not in factors and "evaluate_clean" in factors
    text = pages._made_by(planted, "mine.yaml", "average_error")
    order = ["data", "train", "evaluate_clean", "evaluate_pgd", "evaluate_corruptions"]
    places = [text.index(f"notebooks/{name}.ipynb") for name in order]
    assert places == sorted(places)
    assert "for seed in 0 1 2; do" in text and "STUDY=mine.yaml" in text
    audit = pages._made_by(planted, "mine.yaml", "battery")
    assert (
        "make audit" in audit and "for seed in 0; do\n  papermill notebooks/evaluate_bat" in audit
    )


def test_commands_quote_the_file_of_a_study(planted):
    text = pages._made_by(planted, "my study.yaml", "training")
    assert "-p study 'my study.yaml'\n" in text and "STUDY='my study.yaml'" in text
    brought = make_study({"study": "own", "dataset": "none", "predictions": "a.csv"})
    assert "-f 'my study.yaml'\n" in pages._made_by(brought, "my study.yaml", "average_error")


def test_the_commands_are_those_of_notebooks_that_there_are():
    quick = overview.book_studies({QUICK: PART})["fashion_mnist_quick"][0]
    for chapter in pages.CHAPTERS:
        text = pages._made_by(quick, QUICK, chapter)
        for name in re.findall(r"papermill (\S+)", text):
            assert (ROOT / name).is_file(), name
        body = re.search(r"```bash\n(.*)```", text, flags=re.S)[1]
        assert body.count("; do for") == body.count("done; done")


# ---------------------------------------------------------------- the pages about all studies


def test_what_was_not_run_names_each_part_and_its_command():
    book = {QUICK: PART, "notebooks/studies/imagenet.yaml": dict.fromkeys(PART)}
    table = overview.not_run(book)
    assert table.groupby("study").part.apply(list).to_dict() == {
        "fashion_mnist_quick": ["ledger", "battery"],
        "imagenet": ["study", "ablations", "ledger", "battery"],
    }
    command = table.set_index(["study", "part"]).command
    assert command["imagenet", "study"] == "make book STUDY=imagenet"
    assert command["imagenet", "battery"] == "make audit STUDY=imagenet"


def test_a_study_elsewhere_is_named_by_its_file(tmp_path):
    path = tmp_path / "own.yaml"
    shutil.copy(ROOT / QUICK, path)
    # Not by its path: whose home it lies in belongs on no page.
    command = overview.not_run({str(path): {"study": None}}).command.item()
    assert command == "make book STUDY=own.yaml"


def test_the_headline_gives_one_seed_its_interval_and_several_their_mean():
    rows = [("std", "clean", seed, value) for seed, value in enumerate((0.1, 0.2, 0.3))]
    errors = pd.DataFrame(rows, columns=["method", "benchmark", "seed", "value"])
    errors = errors.assign(low=errors.value - 0.01, high=errors.value + 0.01)
    errors = pd.concat([errors, errors.assign(method="adv", value=0.5)])
    own = study(methods=["std", "adv"], seeds=[0, 1, 2])
    table = overview.headline(own, errors).set_index(["method", "seeds"]).Clean
    assert table["Std", "0"].startswith("10.00 [9.00")
    assert table["Std", "0, 1, 2"] == "20.00\u00a0±\u00a010.00"
    one = overview.headline(study(methods=["std", "adv"]), errors[errors.seed == 0])
    assert one.seeds.tolist() == ["0", "0"]


def test_the_cover_shows_the_readers_own_run_then_the_largest_study():
    large, small = study(study="large"), study(study="small")
    other = study(study="other", methods=["std", "adv"])
    shown = {"small": (small, "committed", 100), "large": (large, "committed", 200)}
    assert overview.lead(shown) == "large"
    assert overview.lead(shown | {"own": (small, "fresh", 10)}) == "own"
    assert overview.lead({"other": (other, "fresh", 900), **shown}) == "large"


def asked(seeds=1, **by_study):
    """What the cover's answer is made from: PGD-40 error and clean SD, as value, low, high."""
    papers = {"pgd40": -0.3762, "sd_clean": -0.0102, "widens_clean": 0.0213}
    rows, verdicts = [], []
    for name, measured in by_study.items():
        for claim, (value, low, high) in zip(papers, (*measured, (0.1, 0.05, 0.15)), strict=True):
            key = {"study": name, "variant": "adversarial batches", "claim": claim}
            row = {"absent": "", "paper": papers[claim], "value": value, "low": low, "high": high}
            row |= {"expected": papers[claim], "sign": int(np.sign(papers[claim]))}
            row |= {"before": "adv", "after": "adv_plus", "error_before": np.nan}
            row |= {"error_after": np.nan}
            rows.append(key | row | {"sd": 0.001, "n_seeds": seeds})
            held = low > 0 if claim == "widens_clean" else high < 0
            clear = claims.HOLDS if seeds > 1 else claims.ALIKE
            verdicts.append(key | {"verdict": clear if held else claims.OPEN})
    studies = {name: study(study=name, title=f"Title {name}", seeds=[*range(seeds)])
               for name in by_study}  # fmt: skip
    errors = [(m, c, e) for m, pair in (("Std", (0.1, 0.05)), ("Adv", (0.9, 0.06)))
              for c, e in zip(("Shirt", "Bag"), pair, strict=True)]  # fmt: skip
    errors = pd.DataFrame(errors, columns=["method", "class_name", "error"]).assign(n_images=400)
    classes = dict.fromkeys(by_study, errors.assign(benchmark="Clean images"))
    return pd.DataFrame(rows), pd.DataFrame(verdicts), studies, classes


OPEN = (0.001, -0.004, 0.006)  # leaves out a fall of 0.0102
LOWER = (-0.02, -0.03, -0.01)
TORN = (0.0, -0.02, 0.02)


@pytest.mark.parametrize(
    "found, opening",
    [
        ({"a": (OPEN, OPEN)}, "Not found here"),
        ({"a": (LOWER, LOWER)}, "Found here, in sign, in one training"),
        ({"a": (LOWER, OPEN)}, "Found here in part, in one training"),
        (
            {"a": (OPEN, OPEN), "b": (OPEN, OPEN)},
            "Not found here, in either of 2 studies (1 data set)",
        ),
        ({"a": (OPEN, OPEN), "b": (LOWER, LOWER)}, "Found here in part, in one training"),
        ({"a": (LOWER, OPEN), "b": (LOWER, OPEN)}, "Found here in part, in 2 single trainings"),
        ({"a": (OPEN, TORN)}, "Not found here"),
    ],
)
def test_the_answer_follows_the_intervals(found, opening):
    said, figures, _, hurt = overview.answer(*asked(**found))
    excluded = all(sd == OPEN for _, sd in found.values())
    tail = "; an effect of the paper's size is excluded" + " everywhere" * (len(found) > 1)
    tail += " (with one seed: in that training)"
    assert said == f"{opening}, with adversarial batches, every image attacked{tail * excluded}."
    assert hurt.startswith("**What else is seen**, in one training a study. ")
    assert hurt.count("Shirt goes from") == len(found)
    rows = figures.set_index("study")["The error under PGD-40"]
    assert rows.pop("the paper, on ImageNet") == "−37.62"
    for (name, (robust, _)), cell in zip(found.items(), rows, strict=True):
        assert cell.startswith("lower: −" if robust[2] < 0 else "no clear change: 0.10 [−0.40,"), (
            name
        )
        # Of the PGD-40 error it always is; where both are, the opening says it.
        assert cell.endswith("size is excluded") == (not excluded)


def test_the_answer_names_both_halves_of_the_claim_and_the_class_that_pays():
    _, figures, _, hurt = overview.answer(*asked(seeds=3, a=(OPEN, LOWER)))
    row = figures.iloc[1]
    assert row.study == "[Title a](a/index.md)"
    assert row["The error under PGD-40"].startswith("no clear change: 0.10 [−0.40,")
    assert "<br>3\u00a0seeds [−0.15,\u00a00.35]<br>" in row["The error under PGD-40"]
    assert row["The class-wise SD on clean images"].startswith("lower: −2.00 [")
    assert hurt.startswith(
        "**What does hold.** Adversarial training itself hurts classes unequally"
    )
    assert hurt.endswith(
        ": on Title a Shirt goes from 10.00 to 90.00 %, Bag goes from 5.00 to 6.00 % "
        "(seed 0, 400 images a class)."
    )
    comparisons, judged, *others = asked(a=(OPEN, LOWER))
    judged.loc[judged.claim == "widens_clean", "verdict"] = claims.OPEN
    assert overview.answer(comparisons, judged, *others)[3] == ""


def test_one_training_is_no_answer_beside_a_study_of_several():
    comparisons, judged, studies, classes = asked(seeds=3, a=(OPEN, OPEN), b=(OPEN, OPEN))
    studies["b"] = dataclasses.replace(studies["b"], seeds=[0])
    of_b = (judged.study == "b") & (judged.claim == "widens_clean")
    judged.loc[judged.claim == "widens_clean", "verdict"] = claims.FAILS
    judged.loc[of_b, "verdict"] = claims.ALIKE
    assert overview.answer(comparisons, judged, studies, classes)[3] == ""
    judged.loc[judged.claim == "widens_clean", "verdict"] = claims.HOLDS
    judged.loc[of_b, "verdict"] = claims.ALIKE
    said = overview.answer(comparisons, judged, studies, classes)[3]
    assert "on Title a " in said and "on Title b " not in said


@pytest.mark.parametrize("verdict", [claims.CEILING, claims.ABSENT])
def test_the_answer_leaves_out_what_says_nothing(verdict):
    comparisons, judged, *others = asked(seeds=3, a=(LOWER, LOWER))
    judged.loc[judged.claim == "sd_clean", "verdict"] = verdict
    if verdict == claims.ABSENT:  # as where a class has one image
        comparisons.loc[comparisons.claim == "sd_clean", "absent"] = "too few images for it"
    said, figures, *_ = overview.answer(comparisons, judged, *others)
    assert said.startswith("Found here, in sign, with adversarial batches")
    assert figures.iloc[0]["The class-wise SD on clean images"] == "−1.02"  # the paper's
    assert figures.iloc[1]["The class-wise SD on clean images"].startswith(verdict)


def test_the_answer_tells_where_the_other_reading_holds():
    comparisons, judged, *others = asked(a=(OPEN, OPEN), b=(OPEN, LOWER))
    mixed = {"variant": "mixed batches"}
    both = [pd.concat([table, table.assign(**mixed)]) for table in (comparisons, judged)]
    _, _, said, _ = overview.answer(*both, *others)
    assert said == (
        "With mixed batches, clean images beside the attacked (asked in 2 studies), the error "
        "under PGD-40 neither falls nor rises clearly; the class-wise SD on clean images falls on "
        "Title b "
        "(−2.00 [−3.00,\u00a0−1.00] points, one seed), does neither clearly on the other."
    )


@pytest.mark.parametrize(
    "verdicts, said",
    [
        ([claims.CEILING] * 2, "cannot be tested (ceiling) on 2 studies"),
        ([claims.OPEN, claims.CEILING], "does neither clearly on 1 study, cannot be tested"),
        ([claims.ABSENT] * 2, "the class-wise SD on clean images was not measured."),
    ],
)
def test_the_other_reading_says_what_was_not_told(verdicts, said):
    comparisons, judged, *others = asked(a=(OPEN, OPEN), b=(OPEN, OPEN))
    mixed = [table.assign(variant="mixed batches") for table in (comparisons, judged)]
    of_sd = mixed[1].claim == "sd_clean"
    mixed[1].loc[of_sd, "verdict"] = verdicts
    if claims.ABSENT in verdicts:
        mixed[0].loc[of_sd.to_numpy(), "absent"] = "no attack"
    both = [pd.concat(pair) for pair in zip((comparisons, judged), mixed, strict=True)]
    assert said in overview.answer(*both, *others)[2]


def test_without_both_methods_there_is_no_answer():
    comparisons, *others = asked(a=(OPEN, OPEN))
    said, figures, _, hurt = overview.answer(comparisons.assign(absent="no Adv⁺"), *others)
    assert said.startswith("No study here attacks both Adv and Adv⁺")
    assert figures.empty and hurt == ""


def test_the_cover_counts_the_claims_and_names_those_that_do_not_hold():
    _, judged, studies, _ = asked(a=(LOWER, OPEN))
    judged.loc[judged.claim == "sd_clean", "verdict"] = claims.FAILS
    (line,) = overview.counts(judged, studies)
    assert line.startswith(
        "**Title a**: of 15 claims, 0 hold in sign, 1 does not hold, 2 as claimed in one training"
    )
    assert line.endswith("What does not hold: Label augmentation lowers the class-wise SD, clean.")


def test_the_cover_shows_a_class_of_any_name():
    """The table holds the error of all classes, too, under a name that a class may have."""
    rows = [("error", "all classes", 0.3), ("mean", "all classes", 0.4)]
    rows += [("error", "all classes", 0.1), ("error", "error", 0.5)]
    rows = pd.DataFrame(rows, columns=["statistic", "group", "value"])
    rows = pd.concat([rows.assign(method=method) for method in ("std", "adv")])
    shown = overview.class_errors(study(), rows.assign(benchmark="clean", seed=0, n_images=9))
    assert shown.class_name.tolist() == ["all classes", "error"] * 2
    assert shown.error.tolist() == [0.1, 0.5] * 2


@pytest.mark.parametrize("n_classes", [2, 1000])
def test_the_cover_picture_and_its_words(n_classes):
    rows = [
        (method, benchmark, f"class {i}", 1.0 if method == "Std" else i / n_classes)
        for method in ("Std", "Adv")
        for benchmark in ("Clean images", "Attacked images")
        for i in range(n_classes)
    ]
    table = pd.DataFrame(rows, columns=["method", "benchmark", "class_name", "error"])
    said = charts.in_words(table)
    assert f"to {(n_classes - 1) / n_classes:.0%} (class {n_classes - 1})" in said
    spec = charts.class_lines(table, said).to_dict()
    assert spec["description"] == said
    data = next(iter(spec["datasets"].values()))
    labelled = {(row["benchmark"], row["label"]) for row in data if row["label"]}
    assert len(labelled) == 4  # the easiest and the hardest in each panel


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


@pytest.mark.parametrize("name", [*pages.CHAPTERS, *ABOUT_ALL])
def test_a_chapter_opens_with_its_question_and_closes_with_what_was_found(name):
    notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", 4)
    cells = [c.source for c in notebook.cells if c.cell_type == "markdown"]
    assert "**The question.**" in cells[0]
    headings = re.findall(r"^## (.+)", "\n".join(cells), flags=re.M)
    assert headings[-1] == "What was found"


def test_no_caption_of_a_study_is_fixed_to_one_seed():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "")
            if "{{ study_title }}" in caption:
                assert ", one seed" not in caption, f"{path.name}: write {{{{ seeds }}}}"


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


def test_published_tables_that_no_page_shows_are_named(tmp_path, monkeypatch):
    assert pages.left_out() == []  # of this repository
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results/fashion_mnist_quick", results / "fashion_mnist_quick")
    monkeypatch.setattr(Study, "published", property(lambda self: results / self.study))
    assert pages.left_out() == []
    folder = results / "fashion_mnist_quick"
    (folder / "audit/ledger/adv_mix-seed0.parquet").unlink()
    (line,) = pages.left_out()
    assert line.startswith("Not in the book, Fashion-MNIST, shortened, ledger: ")
    assert "adv_mix-seed0.parquet is missing: run `make audit STUDY=fashion_mnist_quick`" in line
    data = json.loads((folder / "data.json").read_text())
    (folder / "data.json").write_text(json.dumps(data | {"settings": {}}))
    said = pages.left_out()
    assert [line.split(", ")[3].split(":")[0] for line in said] == [
        "all chapters", "samples", "ablations", "ledger", "battery"
    ]  # fmt: skip
    assert "is of other images than the study's" in said[0]
    broken = folder / "predictions/clean/std-seed0.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    (folder / "data.json").write_text(json.dumps(data))
    with pytest.raises(OSError, match="std-seed0.parquet cannot be read as a table"):
        pages.left_out()


def test_the_readers_own_study_comes_first_then_those_of_most_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "STUDIES", tmp_path)
    monkeypatch.setattr(pages, "DEFAULT", "one")
    known = {"dataset": "digits", "model": "cifar_resnet8", "pretrain_epochs": 1}
    known["methods"] = ["std", "adv"]
    for name, seeds in {"one": [0], "three": [0, 1, 2], "unrun": [0, 1, 2, 3]}.items():
        text = yaml.safe_dump(known | {"study": name, "seeds": seeds})
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(pages, "is_current", lambda study, folder: study.study != "unrun")

    def order(running):
        return [(s.study, source) for s, _, source in pages.studies_of_book(running)]

    read = [("three", "committed"), ("one", "committed"), ("unrun", None)]
    assert order(None) == read
    monkeypatch.setattr(pages, "is_current", lambda s, f: s.study != "unrun" and f == s.published)
    running = str(tmp_path / "one.yaml")
    assert order(running) == [("one", "fresh"), ("three", "committed"), ("unrun", None)]
    copy = (
        (tmp_path / "three.yaml").read_text().replace("study: three", "study: four\ntitle: three")
    )
    (tmp_path / "four.yaml").write_text(copy)
    with pytest.raises(ValueError, match="have the same title, 'three': change the title in one"):
        pages.studies_of_book(None)


def test_two_files_with_one_id_are_refused(tmp_path, monkeypatch):
    """Or the second would write over the runs, and `publish` over the tables, of the first."""
    studies, elsewhere = tmp_path / "studies", tmp_path / "elsewhere"
    studies.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(pages, "STUDIES", studies)
    monkeypatch.setattr(pages, "DEFAULT", "toy")
    monkeypatch.setattr(Study, "published", property(lambda self: tmp_path / "results"))
    text = yaml.safe_dump(study().to_dict())
    for path in (studies / "toy.yaml", elsewhere / "toy.yaml"):
        path.write_text(text)
    own = str(elsewhere / "toy.yaml")
    # A copy with the same settings is the same study.
    assert [file for _, file, _ in pages.studies_of_book(own)] == [own]
    (elsewhere / "toy.yaml").write_text(text.replace("epochs: 10", "epochs: 9"))
    said = "both say `study: toy`.*give one of them another id"
    with pytest.raises(ValueError, match=said):
        pages.studies_of_book(own)
    (tmp_path / "results").mkdir()
    with pytest.raises(ValueError, match=said):
        pages.publish(own)
    assert (tmp_path / "results").is_dir()
    shutil.copy(studies / "toy.yaml", studies / "twice.yaml")
    with pytest.raises(ValueError, match=said):
        pages.studies_of_book(None)
