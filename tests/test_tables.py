"""A study's tables: all there, of one piece, read with what is derived from them."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pydantic
import pytest

from advbook.audit.analysis import with_real
from advbook.build import pages, publish
from advbook.studies.bring import bring
from advbook.studies.current import paths_of, read_data, study_tables
from advbook.studies.identity import (
    DATA_FIELDS,
    TRAINING_FIELDS,
    changed_since,
    data_settings,
    digest,
    training_settings,
)
from advbook.studies.schema import ROOT, Study, load_study, make_study
from advbook.studies.tables import in_per_cent, per_cent, read_audit, read_tables
from advlib import metrics
from advlib.data import annotations
from advlib.files import file_hash
from advlib.importing import read_predictions
from advlib.predictions import read_facts, write_predictions
from advlib.recipes import RECIPES, Recipe
from advlib.threat import PROTOCOLS, ThreatModel

CORRUPTED = pd.DataFrame({"corruption": metrics.CORRUPTIONS}).merge(
    pd.DataFrame({"severity": [1, 2, 3, 4, 5]}), how="cross"
)


@pytest.fixture
def small_run(tiny_study, table):
    """A study's tables as its notebooks write them, with made-up predictions."""
    study = dataclasses.replace(tiny_study, methods=["std", "adv"], corruption_images=3)
    names = ["a", "b", "c"]
    data = {"train": {"fingerprint": "train-images", "images": 9}}
    data |= {"test": {"fingerprint": "images", "images": 3}}
    study.runs.mkdir(parents=True)
    record = data | {"class_names": names, "settings": data_settings(study)}
    (study.runs / "data.json").write_text(json.dumps(record))
    (study.runs / "measures.parquet").touch()
    (study.runs / "train").mkdir()
    for method in study.methods:
        (study.runs / "train" / f"{method}-seed0.csv").touch()
        settings = training_settings(study, method, 0, "train-images", "start")
        for benchmark in ("clean", "pgd40"):
            threat = study.threat("pgd40").to_dict() if benchmark == "pgd40" else None
            path = study.runs / "predictions" / benchmark / f"{method}-seed0.parquet"
            facts = {"settings": settings, "threat": threat, "data": "images", "split": "test"}
            write_predictions(table, path, num_classes=3, n_images=3, **facts)
        path = study.runs / "predictions" / "corruptions" / f"{method}-seed0.parquet"
        facts |= {"threat": None, "corruptions": "generated"}
        write_predictions(table.merge(CORRUPTED, how="cross"), path, n_images=3, **facts)
    return study


def read_study(study, source="fresh") -> pd.DataFrame:
    """All tables but the corrupted ones, as one."""
    benchmarks = [name for name in study.benchmarks if name != "corruptions"]
    found = read_tables(study, source, benchmarks)
    return pd.concat([t.assign(benchmark=b, method=m, seed=s) for (b, m, s), t, _ in found])


def test_a_study_is_read_whole(small_run):
    assert read_study(small_run).groupby(["benchmark", "method"]).size().to_dict() == {
        (benchmark, method): 3 for benchmark in ("clean", "pgd40") for method in ("std", "adv")
    }
    facts = {key: known for key, _, known in read_tables(small_run, "fresh")}
    assert facts["pgd40", "adv", 0]["threat"]["eps"] == small_run.eps


def test_corrupted_images_are_read_one_table_at_a_time(small_run):
    found = {key: table for key, table, _ in read_tables(small_run, "fresh", ["corruptions"])}
    assert list(found) == [("corruptions", "std", 0), ("corruptions", "adv", 0)]
    assert all(len(table) == 225 for table in found.values())


@pytest.mark.parametrize(
    "change, said",
    [
        ({"eps": 0.05}, "another threat: run `make book STUDY=digits`"),
        ({"lr": 0.5}, "another lr: run"),
        ({"seeds": [0, 1]}, "is missing: run `make book STUDY=digits`"),
        ({"test_images": 50}, "data.json is of other images"),
        ({"train_images": 640}, "data.json is of other images"),
        ({"corruption_images": 50}, "another n_images: run"),
        ({"corruptions": "published"}, "another corruptions: run"),
        ({"evaluation_split": "holdout", "holdout_images": 10}, "data.json is of other images"),
    ],
)
def test_tables_of_another_setting_are_refused(small_run, change, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read_study(dataclasses.replace(small_run, **change), "fresh")


def test_networks_of_another_start_are_refused(small_run, tmp_path):
    """Of the pretrained network that is there now, or of the file of weights as it is now."""
    first = small_run.runs / "train/pretrained-seed0.json"
    first.write_text('{"checkpoint_hash": "start"}')
    assert len(read_study(small_run, "fresh"))
    first.write_text('{"checkpoint_hash": "trained again"}')
    with pytest.raises(ValueError, match="another pretrained network: run"):
        read_study(small_run, "fresh")
    study = dataclasses.replace(small_run, weights=str(tmp_path / "w.pt"), pretrain_epochs=0)
    (tmp_path / "w.pt").write_text("as it was")
    for start in (file_hash(tmp_path / "w.pt"), {"weights": file_hash(tmp_path / "w.pt")}):
        settings = training_settings(study, "adv", 0, "data", start)
        assert not changed_since(study, "adv", settings, small_run.runs)
    (tmp_path / "w.pt").write_text("as it is")
    assert changed_since(study, "adv", settings, small_run.runs) == [study.weights]
    (tmp_path / "w.pt").unlink()  # what was trained outlives it
    assert not changed_since(study, "adv", settings, small_run.runs)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"data": "others"}, "another data: run"),
        ({"split": "holdout"}, "another split: run"),
        ({"threat": {"eps": 1}}, "another threat: run"),
    ],
)
def test_tables_of_other_images_are_refused(small_run, table, change, said):
    path = small_run.runs / "predictions/clean/std-seed0.parquet"
    facts = {k: read_facts(path)[k] for k in ("settings", "threat", "data", "split")}
    write_predictions(table, path, **(facts | change))
    with pytest.raises(ValueError, match=said):
        read_study(small_run, "fresh")


def test_tables_of_a_network_that_was_trained_again_are_refused(small_run, table):
    run = small_run.runs / "train/std-seed0.json"
    run.write_text(json.dumps({"checkpoint_hash": "new"}))
    for path in small_run.runs.glob("predictions/*/std-seed0.parquet"):
        write_predictions(read_predictions(path), path, **read_facts(path), checkpoint_hash="old")
    with pytest.raises(ValueError, match="a network trained before this one: run `make book"):
        read_study(small_run, "fresh")


def test_a_cut_table_is_refused(small_run, table):
    path = small_run.runs / "predictions/clean/std-seed0.parquet"
    facts = {k: read_facts(path)[k] for k in ("settings", "threat", "data", "split")}
    write_predictions(table.iloc[:2], path, **facts)
    with pytest.raises(ValueError, match="another n_images"):
        read_study(small_run, "fresh")


def test_a_study_without_tables_says_what_to_run(tiny_study):
    with pytest.raises(FileNotFoundError, match="make book STUDY=digits"):
        read_study(tiny_study, "fresh")


@pytest.fixture
def small_audit(small_run, table):
    """The battery of the same study, and one ablation."""
    ablations = {"new": {"method": "adv_plus", "delta": 0.2}}
    study = dataclasses.replace(small_run, ablations=ablations, battery_images=2)
    (study.runs / "train" / "new-seed0.csv").touch()
    for method in (*study.methods, "new"):
        settings = training_settings(study, method, 0, "train-images", "start")
        facts = {"settings": settings, "data": "images", "split": "test"}
        threat = study.threat("pgd40").to_dict()
        attacked = pd.concat([table[:2].assign(attack=name) for name in ("pgd40", "noise")])
        path = study.runs / "audit" / "battery" / f"{method}-seed0.parquet"
        how = {"threat": threat, "subset": 2, "strength": "standard"}
        write_predictions(attacked, path, n_images=2, **how, **facts)
        for benchmark, own in (("clean", None), ("pgd40", threat)):
            path = study.runs / "predictions" / benchmark / f"{method}-seed0.parquet"
            write_predictions(table, path, n_images=3, threat=own, **facts)
    return study


def test_an_audit_is_read_with_the_methods_it_is_compared_with(small_audit):
    battery, facts = read_audit(small_audit, "fresh", "battery")
    assert battery.groupby(["method", "attack"]).size().to_dict() == {
        (m, a): 2 for m in ("std", "adv") for a in ("pgd40", "noise")
    }
    assert facts["battery", "adv", 0]["subset"] == 2
    ablations, _ = read_audit(small_audit, "fresh", "ablations")
    assert set(ablations.method) == {"std", "adv", "new"}
    assert set(ablations.benchmark) == {"clean", "pgd40"}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"battery_images": 3}, "another subset: run `make audit STUDY=digits`"),
        ({"eps": 0.05}, "another threat"),
        ({"test_images": 50}, "data.json is of other images"),
    ],
)
def test_a_battery_of_another_setting_is_refused(small_audit, change, said):
    with pytest.raises(ValueError, match=said):
        read_audit(dataclasses.replace(small_audit, **change), "fresh", "battery")


def test_each_part_is_published_whole_and_none_that_is_published_is_lost(
    small_audit, tmp_path, monkeypatch
):
    monkeypatch.setattr(Study, "published", property(lambda self: tmp_path / "results/small"))
    file = tmp_path / "small.yaml"
    values = small_audit.to_dict() | {"study": "small", "autoattack_width": 0.1}
    file.write_text(json.dumps(values))
    shutil.copytree(small_audit.runs, small_audit.runs.with_name("small"))
    study = load_study(file)
    (study.runs / "audit/autoattack").mkdir()
    shutil.copy(study.runs / "audit/battery/adv-seed0.parquet", study.runs / "audit/autoattack")
    publish.publish(str(file))  # AutoAttack was begun: it stays out until each network has met it
    battery = [f"audit/battery/{method}-seed0.parquet" for method in study.methods]
    found = {str(path.relative_to(study.published)) for path in study.published.rglob("*.*")}
    assert found >= {"data.json", "train/new-seed0.csv", "predictions/clean/adv-seed0.parquet"}
    assert found >= set(battery) and not any("autoattack" in path for path in found)
    assert pages.tables_shown(study, None) == {"committed": ["study", "ablations", "battery"]}
    facts = {"folder": "adv-seed0-x", "checkpoint_hash": "h"}
    for place in (study.runs, study.published):
        (place / "train/adv-seed0.json").write_text(json.dumps(facts))
    weights = study.published / "models/adv-seed0-x/checkpoint.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"of the same network")  # which the run has no more
    with monkeypatch.context() as patch:  # these tables name no network
        patch.setattr(publish, "outdated", lambda *part: part[2] == "autoattack")
        publish.publish(str(file))
    for place in (study.runs, study.published):
        (place / "train/adv-seed0.json").unlink()
    assert weights.is_file()
    (study.runs / battery[0]).unlink()
    with pytest.raises(SystemExit, match="published tables would be lost: .*std-seed0.parquet is"):
        publish.publish(str(file))
    assert (study.published / battery[0]).is_file()


def test_an_ablation_of_another_recipe_is_refused(small_audit):
    ablations = {"new": {"method": "adv_plus", "delta": 0.3}}
    with pytest.raises(ValueError, match="another delta"):
        read_audit(dataclasses.replace(small_audit, ablations=ablations), "fresh", "ablations")
    ablations = small_audit.ablations | {"more": {"method": "adv", "lr": 0.5}}
    with pytest.raises(FileNotFoundError, match="more-seed0.*make audit"):
        read_audit(dataclasses.replace(small_audit, ablations=ablations), "fresh", "ablations")


NO_STUDIES = ("benchmark", "imagenet_models", "leaderboard", "paper", "plan")
RESULTS = sorted(p.name for p in (ROOT / "results").iterdir() if p.name not in NO_STUDIES)
PUBLISHED = [name for name in RESULTS if (ROOT / "results" / name / "predictions").is_dir()]


@pytest.mark.parametrize("study_id", PUBLISHED)
def test_committed_tables_are_those_of_the_study_file(study_id):
    """Else the published book would quietly show the study as not run."""
    study = load_study(study_id)
    tables = read_study(study, "committed")
    runs = len(study.methods) * len(study.seeds)
    n_images = study.test_images or tables.file_name.nunique()
    assert len(tables) == runs * (1 + len(study.attacks)) * n_images
    for _, table, _ in read_tables(study, "committed", ["corruptions"]):
        assert len(table) == 75 * (study.corruption_images or n_images)


@pytest.mark.parametrize("study_id", RESULTS)
def test_a_committed_audit_is_that_of_the_study_file(study_id):
    study = load_study(study_id)
    folder = ROOT / "results" / study_id
    found = [part for part in study.audits if (folder / "audit" / part).is_dir()]
    if any((folder / "train" / f"{name}-seed0.json").is_file() for name in study.ablations):
        found.append("ablations")
    # A study whose training goes on has weights alone.
    assert found or study_id in PUBLISHED or (folder / "models").is_dir()
    for part in found:
        attacked, _ = read_audit(study, "committed", part)
        methods = study.late_epochs if part == "late" else study.methods
        assert len(attacked) and set(attacked.method) >= set(methods)


def _grown(kind):
    """A dataclass with one more field, as a later version may have it."""
    return dataclasses.make_dataclass(
        kind.__name__, [("newer", int, 0)], bases=(kind,), frozen=True
    )


def _fields_added(monkeypatch):
    """Recipe, ThreatModel and Study with a field more, at its default."""
    methods = _grown(Recipe)
    for name, recipe in RECIPES.items():
        monkeypatch.setitem(RECIPES, name, methods(**dataclasses.asdict(recipe)))
    threats = _grown(ThreatModel)
    for name, threat in PROTOCOLS.items():
        monkeypatch.setitem(PROTOCOLS, name, threats(**dataclasses.asdict(threat)))
    monkeypatch.setattr("advbook.studies.schema.ThreatModel", threats)

    @pydantic.dataclasses.dataclass(frozen=True)
    class Grown(Study):
        newer: int = 0

    monkeypatch.setattr("advbook.studies.schema.Study", Grown)
    monkeypatch.setattr("advbook.studies.identity.TRAINING_FIELDS", (*TRAINING_FIELDS, "newer"))
    monkeypatch.setattr("advbook.studies.identity.DATA_FIELDS", (*DATA_FIELDS, "newer"))


def _committed_runs():
    for path in sorted((ROOT / "results").glob("*/train/*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def test_a_new_field_with_a_default_leaves_every_committed_run_current(monkeypatch):
    """Of a method, a threat model or a study: neither folder names nor comparisons change."""
    _fields_added(monkeypatch)
    for run in _committed_runs():
        study, was = load_study(run["study"]), run["settings"]
        began = (was["seed"], was["data"], was["start"], was.get("consulted"))
        now = training_settings(study, run["method"], *began)
        assert json.loads(json.dumps(now)) == was
        assert run["folder"].endswith(digest(now))
    for name in RESULTS:
        study, folder = load_study(name), ROOT / "results" / name
        assert type(study.threat("pgd40")).__name__ == "ThreatModel" and study.newer == 0
        if name in PUBLISHED:
            assert study_tables(study, folder)
        for part in study.audits:
            if (folder / "audit" / part).is_dir():
                assert study_tables(study, folder, part)


def test_a_new_field_counts_once_it_is_set(monkeypatch, small_run):
    _fields_added(monkeypatch)
    study = make_study(small_run.to_dict())
    assert len(study_tables(study, small_run.runs)) == 6
    with pytest.raises(ValueError, match="other images"):
        study_tables(dataclasses.replace(study, newer=1), small_run.runs)
    monkeypatch.setattr("advbook.studies.identity.DATA_FIELDS", DATA_FIELDS)
    with pytest.raises(ValueError, match="another newer"):
        study_tables(dataclasses.replace(study, newer=1), small_run.runs)
    recipe = dataclasses.replace(RECIPES["adv"], newer=1)
    monkeypatch.setitem(RECIPES, "adv", recipe)
    with pytest.raises(ValueError, match="another newer"):
        study_tables(study, small_run.runs)


def test_the_default_study_and_its_audit_are_published():
    assert "fashion_mnist_quick" in PUBLISHED
    study = load_study("fashion_mnist_quick")
    for part in set(study.audits) - {"ablations"}:  # read above, as far as they are there
        assert (study.published / "audit" / part).is_dir()
    runs = {path.stem for path in (study.published / "train").glob("*.json")}
    assert runs >= {f"{name}-seed{seed}" for name, seed in study.ablation_runs}


def test_zero_has_no_sign():
    assert per_cent(0.0004, 1, "+") == per_cent(-0.0004, 1, "+") == "0.0"
    assert per_cent(0.001, 1, "+") == "+0.1"


def test_a_value_is_shown_with_its_interval():
    row = pd.Series({"value": 0.12345, "low": 0.1, "high": 0.2})
    assert in_per_cent(row).split() == ["12.35", "[10.00,", "20.00]"]
    assert in_per_cent(row, digits=1).split() == ["12.3", "[10.0,", "20.0]"]
    assert in_per_cent(row.replace({0.1: float("nan")}), digits=3) == "12.345"


def test_one_number_is_printed_alike_however_it_was_summed():
    share = 463 / 4000  # 11.575 %: the last bit of a sum decides how plain formatting rounds it
    assert {per_cent(v) for v in (share, 0.1 + share - 0.1, np.mean([share] * 7))} == {"11.58"}
    assert per_cent(-share) == "−11.58" and per_cent(share, sign="+") == "+11.58"
    assert per_cent(-0.00001) == "0.00" and per_cent(1) == "100.00" and per_cent(0.5, 0) == "50"


# What is read without torch, and some of it without more.
READERS = """
import sys

import advlib.data.annotations as a
a.imagenet_x(), a.real_label_sets()
assert not {"torch", "PIL", "imagenet_x", "matplotlib"} & sys.modules.keys()

from advbook.charts import pictures
from advbook.studies.samples import read_samples
from advbook.studies.schema import load_study
read_samples(load_study("fashion_mnist_quick"), "committed")
assert not {"torch", "PIL"} & sys.modules.keys()

from advbook.zoo import leaderboard as zoo
zoo.read_records(zoo.FOLDER)
assert "torch" not in sys.modules
"""


def test_reading_needs_no_torch():
    """The book is read and rebuilt without it: only what runs networks may import it."""
    running = ["advlib.attacks", "advlib.networks", "advlib.checkpoints", "advlib.distributed"]
    running += ["advlib.labels", "advlib.train", "advbook.studies.runs", "advbook.studies.evaluate"]
    running += [f"advlib.data.{n}" for n in ("batches", "decoding", "folders")]
    running += [f"advlib.data.{n}" for n in ("images", "sets", "vision")]
    running += ["advlib.objectives", "advlib.offsets", "advlib.steps", "advbook.studies.launch"]
    running += ["advbook.audit.battery", "advbook.audit.predictions", "advbook.widgets"]
    places = ((ROOT, "advlib"), (ROOT / "book", "advbook"), (ROOT, "pipeline"))
    modules = {
        ".".join(path.relative_to(base).with_suffix("").parts)
        for base, room in places
        for path in (base / room).rglob("[!_]*.py")
    }
    modules = {m for m in modules if not m.startswith(tuple(running))} - {
        "pipeline.plan",
        "pipeline.probe",
    }
    assert {"advlib.metrics.errors", "advlib.data.annotations", "advbook.claims.claims"} < modules
    assert {"advbook.claims.table_check", "advbook.charts.base"} < modules
    # The readers first: some of these modules import what those do without.
    code = f"{READERS}import advlib, {', '.join(sorted(modules))}; advlib.metrics, advlib.RECIPES, "
    code += "advlib.ThreatModel; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- a user's own predictions ---------------------------------------------------------------------


@pytest.fixture
def brought(table, tmp_path):
    """Two models' predictions of the same images, with attacked and corrupted rows."""
    corrupted = table.merge(CORRUPTED, how="cross")
    rows = pd.concat([table, table.assign(attack="pgd40"), corrupted])
    rows.to_csv(tmp_path / "a.csv", index=False)
    rows.assign(predicted_class=rows.label).to_csv(tmp_path / "b.csv", index=False)
    files = {"a": str(tmp_path / "a.csv"), "b": str(tmp_path / "b.csv")}
    settings = {"attacks": ["pgd40"], "corruptions": "published"}
    return make_study({"study": "own", "dataset": "none", "predictions": files, **settings})


def test_brought_predictions_become_the_tables_of_a_study(brought):
    bring(brought)
    tables = read_study(brought, "fresh")
    assert tables.groupby(["benchmark", "method"]).size().to_dict() == {
        (benchmark, model): 3 for benchmark in ("clean", "pgd40") for model in ("a", "b")
    }
    assert (
        tables[tables.method == "b"].predicted_class == tables[tables.method == "b"].label
    ).all()
    ((_, corrupted, facts), _) = read_tables(brought, "fresh", ["corruptions"])
    assert (
        len(corrupted) == 225 and "attack" not in corrupted and facts["brought"].endswith("a.csv")
    )
    assert list(paths_of(brought, brought.runs))[0].name == "data.json"


def test_what_one_file_says_is_correct_is_said_of_every_table(brought, tmp_path):
    rows = pd.read_csv(tmp_path / "a.csv").assign(correct=0)
    rows.to_csv(tmp_path / "a.csv", index=False)
    bring(brought)
    errors = metrics.error(read_study(brought, "fresh"), ["benchmark", "method"])
    assert errors.set_index(["benchmark", "method"])["error"].to_dict() == {
        (benchmark, model): model == "a" for benchmark in ("clean", "pgd40") for model in ("a", "b")
    }


def test_tables_under_other_class_names_are_refused(brought):
    bring(brought)
    names = read_data(brought.runs)["class_names"]
    assert len(read_study(dataclasses.replace(brought, class_names=names), "fresh"))
    with pytest.raises(ValueError, match="other class_names than the study's: run"):
        read_study(dataclasses.replace(brought, class_names=names[::-1]), "fresh")


def test_the_fifteen_corruptions_of_mce_count_and_no_others(brought, tmp_path, capsys):
    """Downloads hold 19: the four more are left out of every mean, and a line says so."""
    bring(brought)
    before = {key[1]: table for key, table, _ in read_tables(brought, "fresh", ["corruptions"])}
    assert "Left out" not in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "a.csv")
    more = rows[rows.corruption == "fog"].assign(corruption="speckle_noise", predicted_class=0)
    pd.concat([rows, more]).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match="made with another .*a.csv: run `make book STUDY=own`"):
        read_study(brought, "fresh")  # the tables are those of the file as it was
    bring(brought)
    assert (
        "Left out, since they are none of the 15 of mCE: speckle_noise" in capsys.readouterr().out
    )
    for key, table, _ in read_tables(brought, "fresh", ["corruptions"]):
        pd.testing.assert_frame_equal(table, before[key[1]])
    nineteen = read_predictions(tmp_path / "a.csv").query("corruption.notna()")
    error = metrics.mean_corruption_error(before["a"])
    assert metrics.summarise(nineteen, n_resamples=9).value[0] == pytest.approx(error)
    assert metrics.mean_corruption_error(nineteen) == pytest.approx(error)
    one = nineteen[nineteen.corruption == "speckle_noise"]  # asked for by name, it is told
    assert metrics.bootstrap(one, "error").value == pytest.approx(2 / 3)


def test_classes_that_are_no_label_ask_for_the_names_of_all(table, tmp_path):
    """A part of ImageNet has 200 of 1,000 classes: nothing is to be subtracted then."""
    rows = table.assign(label=[6, 11, 71], predicted_class=[6, 11, 999])
    rows.to_csv(tmp_path / "a.csv", index=False)
    given = {"study": "own", "dataset": "none", "predictions": str(tmp_path / "a.csv")}
    with pytest.raises(ValueError, match="goes to 999, and there are 72 .* names of all as class"):
        bring(make_study(given))
    bring(make_study(given | {"class_names": [f"c{i}" for i in range(1000)]}))


def test_rows_without_an_attack_may_say_so(brought, tmp_path):
    rows = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    rows["attack"] = rows.attack.replace("", "Clean")
    rows.to_csv(tmp_path / "a.csv", index=False)
    bring(brought)
    assert set(read_study(brought, "fresh").benchmark) == {"clean", "pgd40"}


def test_severity_goes_from_one(brought, tmp_path):
    rows = pd.read_csv(tmp_path / "a.csv")
    rows.assign(severity=rows.severity - 1).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match="got 0.*; of a clean image leave corruption empty"):
        bring(brought)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"attacks": []}, "rows for pgd40, which the study does not name"),
        ({"attacks": ["pgd40", "fgsm"]}, "no rows for fgsm"),
        ({"corruptions": "none"}, "set `corruptions: published`"),
        ({"class_names": ["x", "y"]}, "label goes to 2, and there are 2 classes"),
        ({"groups": {"g": ["class 0", "class 1"]}}, "groups lacks: class 2"),
        ({"groups": {"g": ["zebra"]}}, "groups names classes that there are not: zebra"),
    ],
)
def test_benchmarks_are_those_that_the_study_names(brought, change, said):
    with pytest.raises(ValueError, match=said):
        bring(dataclasses.replace(brought, **change))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"attack": "a", "corruption": "fog", "severity": 1}, "'a' has a corruption and an attack"),
        ({"attack": "real"}, "the attack 'real': a name is"),
        ({"attack": "pgd 40/a"}, "the attack 'pgd 40/a': a name is"),
        ({"attack": "pgd40"}, "no rows for clean, which the study needs"),
        ({"predicted_class": 9}, "predicted_class goes to 9, and there are 3 classes"),
        ({"label": [1, 2, 3], "predicted_class": [1, 2, 3]}, "subtract 1"),
        (
            {"label": [0, 1, 1440764]},
            "a.csv: the class numbers go to 1440764: number the classes 0, 1, 2",
        ),
        ({"method": "a"}, "several methods or seeds: give each network a file of its own"),
        ({"corruption": "fog"}, "a.csv: the column severity holds .* got nan"),
    ],
)
def test_clean_files_that_cannot_be_meant(table, tmp_path, change, said):
    table.assign(**change).to_csv(tmp_path / "a.csv", index=False)
    settings = {"study": "own", "dataset": "none", "predictions": str(tmp_path / "a.csv")}
    with pytest.raises(ValueError, match=said):
        bring(make_study(settings))


def test_named_classes_need_not_all_occur(table, tmp_path):
    table.assign(label=[1, 2, 1], predicted_class=2).to_csv(tmp_path / "a.csv", index=False)
    study = make_study(
        {
            "study": "own",
            "dataset": "none",
            "predictions": str(tmp_path / "a.csv"),
            "class_names": ["x", "y", "z"],
        }
    )
    bring(study)
    assert read_data(study.runs)["class_names"] == ["x", "y", "z"]


def test_a_missing_corruption_is_named_with_its_file(brought, tmp_path):
    rows = pd.read_csv(tmp_path / "b.csv")
    rows[rows.corruption != "fog"].to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(ValueError, match="b.csv: missing from the corruption table: .*fog"):
        bring(brought)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.assign(severity=t.severity + 0.5), r"a.csv: the column severity .* got 1\.5"),
        (lambda t: t.assign(severity=t.severity.where(t.severity != 5)), "whole number.* got nan"),
        (
            lambda t: pd.concat([t.assign(seed=0), t.assign(seed=1)]),
            "a.csv: it holds several methods or seeds: give each",
        ),
    ],
)
def test_severities_and_seeds_that_cannot_be_meant(brought, tmp_path, change, said):
    change(pd.read_csv(tmp_path / "a.csv")).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match=said):
        bring(brought)


def test_names_that_are_numbers_are_the_same_in_csv_and_parquet(table, tmp_path):
    rows = pd.concat([table, table.assign(attack="1.0")]).assign(file_name=[7, 8, 2**40] * 2)
    rows.to_csv(tmp_path / "a.csv", index=False)
    rows.assign(attack=rows.attack.astype(float)).to_parquet(tmp_path / "b.parquet")
    files = {"a": str(tmp_path / "a.csv"), "b": str(tmp_path / "b.parquet")}
    given = {"study": "own", "dataset": "none", "predictions": files, "attacks": ["1.0"]}
    study = make_study(given)
    bring(study)
    tables = read_study(study, "fresh")
    assert tables.groupby(["benchmark", "method"]).size().to_dict() == {
        (benchmark, model): 3 for benchmark in ("clean", "1.0") for model in ("a", "b")
    }
    assert set(tables.file_name) == {"7", "8", str(2**40)}


def test_corrupted_images_may_be_a_part_of_the_clean_ones(brought, tmp_path):
    for name in ("a", "b"):
        rows = pd.read_csv(tmp_path / f"{name}.csv")
        rows[rows.corruption.isna() | (rows.file_name != "c")].to_csv(
            tmp_path / f"{name}.csv", index=False
        )
    bring(brought)
    for _, table, facts in read_tables(brought, "fresh", ["corruptions"]):
        assert facts["n_images"] == 2 and len(table) == 150


def test_models_are_compared_on_the_same_images(brought, tmp_path):
    other = pd.read_csv(tmp_path / "b.csv").replace({"file_name": {"c": "d"}})
    other.to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(ValueError, match="not about the same images"):
        bring(brought)
    (tmp_path / "b.csv").unlink()
    with pytest.raises(FileNotFoundError, match="there is no file .*b.csv: give its path"):
        bring(brought)


def test_imagenet_predictions_are_judged_by_real_labels_too(tmp_path):
    labels = annotations.imagenet_labels()
    predicted = labels.where(labels.index.str.slice(-6, -5) != "3", (labels + 1) % 1000)
    rows = pd.DataFrame({"file_name": labels.index, "predicted_class": predicted.to_numpy()})
    rows.assign(predicted_probability=0.5).to_csv(tmp_path / "net.csv.gz", index=False)
    study = make_study(
        {"study": "own", "dataset": "imagenet", "predictions": str(tmp_path / "net.csv.gz")}
    )
    assert study.methods == ["net"]
    bring(study)
    tables = {key: table for key, table, _ in read_tables(study, "fresh")}
    real = with_real(study, tables)["real", "net", 0]
    sets = annotations.real_label_sets()
    pairs = zip(rows.file_name, rows.predicted_class, strict=True)
    expected = [guess in sets[name] for name, guess in pairs if sets[name]]
    assert len(real) == 50_000 - 3_163
    assert real.correct.mean() == pytest.approx(sum(expected) / len(expected))
    assert len(read_data(study.runs)["class_names"]) == 1000
