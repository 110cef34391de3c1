"""The pipeline on a user's own study file: what it makes, and what it makes again."""

import dataclasses
import fcntl
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from advbook.build import pages
from advbook.studies.schema import load_study
from advlib import metrics
from advlib.importing import read_predictions
from advlib.predictions import read_facts
from advlib.threat import ThreatModel
from conftest import OWN_STUDY, snakemake

RUN = "runs/mine"
PLACED = {"place_study", "toc", "book", "all"}
ANALYSED = ("analyse", "source=fresh, study=mine")


def planned(folder, *config) -> list[tuple[str, str]]:
    """Rules that a dry run would execute, each with its wildcards; pages by their names."""
    done = snakemake(folder, *config, "-n")
    assert done.returncode == 0, done.stdout
    jobs = re.split(r"\n(?:local)?rule (\w+):\n", done.stdout + done.stderr)[1:]
    found = []
    for rule, text in zip(jobs[::2], jobs[1::2], strict=True):
        wildcards = re.search(r"wildcards: (.*)", text)
        named = wildcards[1] if wildcards else ""
        found.append((named.removeprefix("page="), "") if rule == "page" else (rule, named))
    return found


@pytest.fixture
def edited(project):
    """The project, its study file put back after the test."""
    yield project
    (project / "my_study.yaml").write_text(OWN_STUDY)


def test_every_table_names_its_threat_model_and_its_images(project):
    data = json.loads((project / RUN / "data.json").read_text())
    assert data["test"]["images"] == 100
    for method in ("pretrained", "adv", "adv_plus"):
        path = project / RUN / f"predictions/pgd40/{method}-seed0.parquet"
        facts, table = read_facts(path), read_predictions(path)
        assert ThreatModel(**facts["threat"]) == ThreatModel(eps=0.1, steps=40)
        assert facts["data"] == data["test"]["fingerprint"]
        assert len(table) == 100 and table.linf.max() <= 0.1 * (1 + 1e-5)


def test_result_tables_hold_what_the_predictions_say(project):
    results = pd.read_csv(project / "_build/fresh/mine/results/average_error.csv")
    assert len(results) == 9
    for row in results.itertuples():
        path = project / RUN / f"predictions/{row.benchmark}/{row.method}-seed0.parquet"
        table = read_predictions(path)
        wrong = table.label != table.predicted_class  # over all conditions: the mCE
        assert row.value == pytest.approx(wrong.mean()) and row.low <= row.value <= row.high
        assert row.n_images == {"corruptions": 20}.get(row.benchmark, 100)
        assert (row.benchmark == "pgd40") == ("PGD-40" in row.condition)


def test_the_page_of_a_study_has_every_table_that_its_data_allow(project):
    folder = project / "_build/fresh/mine/results"
    made = {path.stem for path in folder.glob("*.csv")}
    assert made >= {"training", "average_error", "classwise_error", "corruptions", "factors"}
    assert made >= {"groups", "class_explorer"}
    assert not made & {"ablations", "ledger", "battery"}
    page = project / "_build/html/book/generated/studies/fresh/mine.html"
    assert "Error of each group of classes" in page.read_text()


def test_the_books_example_leaves_a_readers_own_tables_alone(project):
    """It has a folder of its files and settings, whatever a reader calls a study."""
    assert len(list((project / "runs").glob("brought-*/data.json"))) == 1
    assert not (project / "runs/example").exists()


def test_corruption_tables_say_how_they_were_made(project):
    for method in ("pretrained", "adv", "adv_plus"):
        path = project / RUN / f"predictions/corruptions/{method}-seed0.parquet"
        facts, table = read_facts(path), read_predictions(path)
        assert "imagecorruptions-imaug" in facts["recipe"]["recipe"]
        assert facts["corruptions"] == "generated" and facts["threat"] is None
        assert table.groupby(["corruption", "severity"], observed=True).size().eq(20).all()
        assert len(table) == 75 * 20
    results = pd.read_csv(project / "_build/fresh/mine/results/corruptions.csv")
    each = results[(results.method == "adv_plus") & (results.group == "all")]
    cells = each[each.condition.str.fullmatch(r"\w+ \d")]
    assert len(cells) == 75
    assert cells.value.mean() == pytest.approx(metrics.mean_corruption_error(table))


def test_the_own_study_stands_beside_the_published_ones(project):
    home = (project / "_build/html/book/generated/cover.html").read_text()
    assert "studies/fresh/mine.html" in home and "studies/committed/cifar10.html" in home
    own = (project / "_build/html/book/generated/studies/fresh/mine.html").read_text()
    assert "A run on the machine that built this book" in own
    costs = (project / "_build/html/book/generated/costs.html").read_text()
    assert ", your run" in costs
    assert "Your own run stands beside the published studies" in home


def test_pages_hold_no_path_of_this_machine(project):
    for page in (project / "book/generated").rglob("*.ipynb"):
        assert str(project) not in page.read_text(), page


def test_a_second_run_does_nothing(project):
    assert planned(project) == []


def test_an_analysis_begins_without_the_tables_of_the_last(project):
    """Else pages would show an audit, or corruptions, that the study no longer has."""
    done = snakemake(project, "-n", "-p", "-R", "analyse")
    assert f"rm -rf {Path('_build/fresh/mine/results')} && " in done.stdout + done.stderr


def test_delta_reruns_adv_plus_alone(edited):
    (edited / "my_study.yaml").write_text(OWN_STUDY + "delta: 0.2\n")
    plan = planned(edited)
    trained = [wildcards for rule, wildcards in plan if rule == "train"]
    attacked = [wildcards for rule, wildcards in plan if rule == "evaluate_attack"]
    assert trained == ["method=adv_plus, seed=0"]
    assert attacked == ["attack=pgd40, method=adv_plus, seed=0"]
    assert ANALYSED in plan


@pytest.mark.parametrize("old, new", [("500", "600"), ("Round", "Curved")])
def test_more_resamples_or_other_groups_redo_the_analysis_alone(edited, old, new):
    (edited / "my_study.yaml").write_text(OWN_STUDY.replace(old, new))
    plan = planned(edited)
    heavy = {"data", "train", "evaluate_clean", "evaluate_attack", "evaluate_corruptions"}
    assert not heavy & {rule for rule, _ in plan}
    assert [pair for pair in plan if pair[0] == "analyse"] == [ANALYSED]


def test_other_test_images_train_nothing(edited):
    (edited / "my_study.yaml").write_text(OWN_STUDY.replace("test_images: 100", "test_images: 50"))
    rules = {rule for rule, _ in planned(edited)}
    assert {"data", "evaluate_clean", "evaluate_attack"} <= rules and "train" not in rules


def test_a_lost_table_is_made_again_without_training(edited):
    table = edited / RUN / "predictions/pgd40/adv-seed0.parquet"
    kept = table.with_suffix(".kept")
    shutil.move(table, kept)
    rules = {rule for rule, _ in planned(edited)}
    shutil.move(kept, table)
    assert "evaluate_attack" in rules and "train" not in rules


def test_an_audit_trains_the_ablations_and_attacks_every_network(edited):
    ablation = "ablations: {new: {method: adv_plus, delta: 0.2}}\n"
    (edited / "my_study.yaml").write_text(OWN_STUDY + ablation)
    assert "train" not in {rule for rule, _ in planned(edited)}  # without the audit
    plan = planned(edited, "mode=audit")
    own = "method=new, seed=0"
    assert [w for rule, w in plan if rule == "train"] == [own]
    assert [w for rule, w in plan if rule == "evaluate_attack"] == [f"attack=pgd40, {own}"]
    methods = {f"method={m}, seed=0" for m in ("pretrained", "adv", "adv_plus")}
    assert {w for rule, w in plan if rule == "evaluate_battery"} == methods
    assert {w for rule, w in plan if rule == "evaluate_ledger"} == {*methods, own}
    assert ANALYSED in plan


def test_an_audit_of_a_study_that_was_never_run_runs_it_first(edited):
    (edited / "runs").rename(edited / "away")
    try:
        plan = planned(edited, "mode=audit")
    finally:
        (edited / "away").rename(edited / "runs")
    assert {"train", "evaluate_attack", "evaluate_ledger", "evaluate_battery"} <= {
        r for r, _ in plan
    }
    assert ANALYSED in plan


def test_a_book_that_is_only_read_shows_no_fresh_tables():
    study = load_study("fashion_mnist_quick")
    committed = {"committed": ["study", "samples", "ablations", "ledger", "battery"]}
    assert pages.tables_shown(study, None) == pages.tables_shown(study, []) == committed
    shutil.copytree(study.published, study.runs, ignore=shutil.ignore_patterns("models"))
    assert pages.tables_shown(study, None) == committed
    both = committed | {"fresh": committed["committed"]}
    assert pages.tables_shown(study, []) == both
    # An audit of other settings is not the study's, whichever of the two it is.
    other = dataclasses.replace(study, ledger_images=500)
    left = [part for part in committed["committed"] if part != "ledger"]
    assert pages.tables_shown(other, None) == {"committed": left}
    # What is being made will be there.
    assert pages.tables_shown(other, ["ledger"])["fresh"] == committed["committed"]
    # Of a study that only its audit shows, each part stands for itself.
    assert pages.tables_shown(load_study("imagenet_sample"), None) == {"committed": ["ledger"]}


def test_a_build_that_fails_leaves_the_last_book(project):
    index, made = project / "_build/html/index.html", project / "_build/html/.buildinfo"
    config, before = project / "_config.yml", index.read_bytes()
    kept = [shutil.copy2(path, project.parent / path.name) for path in (config, made)]
    try:
        config.write_text("title: [\n")
        assert snakemake(project).returncode != 0
        assert index.read_bytes() == before
    finally:
        for path, copy in zip((config, made), kept, strict=True):
            shutil.copy2(copy, path)


def test_a_study_is_run_by_one_pipeline_at_a_time(project):
    with open(project / RUN / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = snakemake(project, "-R", "toc", stops=True)
        assert planned(project) == []  # looking is allowed
    assert done.returncode != 0 and "is being run already" in done.stdout + done.stderr


def test_a_published_study_that_was_edited_is_named(project):
    """Its text would be about other numbers."""
    file = project / "notebooks/studies/cifar10.yaml"
    text = file.read_text()
    try:
        file.write_text(text + "\nepochs: 3\n")
        done = snakemake(project, "-n")
    finally:
        file.write_text(text)
    assert done.returncode != 0
    assert "the book's text is about cifar10 as it is published" in done.stdout + done.stderr


def test_a_brace_in_the_name_of_the_runs_is_named(project):
    done = snakemake(project, "-n", runs=project.parent / "{runs}")
    assert done.returncode != 0
    assert "{runs}/mine has a brace in its name" in done.stdout + done.stderr


def test_a_bad_study_file_stops_before_any_work(edited):
    (edited / "my_study.yaml").write_text(OWN_STUDY + "epoch: 3\n")
    done = snakemake(edited, stops=True)
    assert done.returncode != 0
    assert "unknown parameter 'epoch': did you mean 'epochs'" in done.stdout + done.stderr


def test_a_key_that_is_code_is_refused_before_papermill_pastes_it(edited):
    study = "study: mine\ndataset: none\npredictions: some.csv\n"
    (edited / "my_study.yaml").write_text(study + "\"open('ran', 'w'); x\": 1\n")
    done = snakemake(edited, stops=True)
    assert done.returncode != 0 and not (edited / "ran").exists()
    assert "unknown parameter \"open('ran', 'w'); x\"" in done.stdout + done.stderr
