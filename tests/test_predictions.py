import dataclasses
import json

import pandas as pd
import pytest
import torch

from advlib import predictions
from advlib.predictions import (
    check_predictions,
    in_parts,
    predict,
    read_facts,
    read_predictions,
    read_study,
    write_predictions,
)
from advlib.study import ROOT, load_study


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "file_name": ["a", "b", "c"],
            "label": [0, 1, 2],
            "predicted_class": [0, 1, 1],
            "predicted_probability": [0.9, 0.8, 0.5],
        }
    )


def test_predictions_are_those_of_the_class_logits(tiny_study, linear_model):
    test = tiny_study.images("test")

    class Fixed(torch.nn.Module):
        """Class 3 among the classes, and a larger transformation logit that must not count."""

        def forward(self, x):
            logits = torch.zeros(len(x), 11)
            logits[:, 3], logits[:, 10] = 2.0, 9.0
            return logits

    tables = predict({"a": Fixed(), "b": Fixed()}, test, num_classes=10, batch_size=30)
    for table in tables.values():
        assert table.file_name.tolist() == test.file_names  # none dropped, in order
        assert table.label.tolist() == test.labels.tolist()
        assert set(table.predicted_class) == {3}
        e2 = torch.tensor(2.0).exp()
        assert table.predicted_probability[0] == pytest.approx(float(e2 / (e2 + 9)))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t.drop(columns="label"), "lacks the columns label"),
        (lambda t: t.iloc[:0], "no rows"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "'a' among them"),
        (lambda t: t.assign(label=[0, 1, 3]), r"label is in \[0, 3\)"),
        (lambda t: t.assign(label=[0.0, 1.0, 2.0]), "label holds whole numbers"),
        (lambda t: t.assign(label=["cat", "dog", "owl"]), "label holds whole numbers"),
        (lambda t: t.assign(predicted_class=[0, -1, 1]), "predicted_class"),
        (lambda t: t.assign(predicted_probability=[0.1, 0.2, 1.2]), r"in \[0, 1\]"),
        (lambda t: t.assign(predicted_probability=[0.1, None, 0.2]), "missing values"),
        (lambda t: pd.concat([t.assign(attack="x"), t.iloc[:2].assign(attack="y")]), "2 images"),
    ],
)
def test_broken_tables_are_refused(table, change, said):
    with pytest.raises(ValueError, match=said):
        check_predictions(change(table), num_classes=3)


def test_missing_images_are_counted(table):
    with pytest.raises(ValueError, match="3 images in one condition, 4 expected"):
        check_predictions(table, n_images=4)


def test_written_tables_are_read_back_with_their_facts(table, tmp_path):
    path = write_predictions(table, tmp_path / "sub/t.parquet", study="s", threat={"eps": 0.1})
    read = read_predictions(path)  # in compact types
    pd.testing.assert_frame_equal(read, table, check_dtype=False, check_categorical=False)
    facts = read_facts(path)
    assert facts["study"] == "s" and facts["threat"] == {"eps": 0.1} and facts["n_images"] == 3
    assert facts["versions"]["torch"] and facts["time"]
    assert [p.name for p in path.parent.iterdir()] == ["t.parquet"]


def test_anybodys_csv_is_read_as_it_is(table, tmp_path):
    table.to_csv(tmp_path / "model.csv.gz", index=False)
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "model.csv.gz"), table)


def test_an_interrupted_evaluation_goes_on(table, tmp_path):
    asked = []

    def make(positions):
        asked.append(list(positions))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return table.iloc[list(positions)]

    with pytest.raises(KeyboardInterrupt):
        in_parts(tmp_path, 3, 1, make)
    whole = in_parts(tmp_path, 3, 1, make)
    pd.testing.assert_frame_equal(in_parts(tmp_path, 3, 2, make), table)  # parts of another size
    asked = asked[:4]
    assert asked == [[0], [1], [1], [2]]
    pd.testing.assert_frame_equal(whole, table)


@pytest.fixture
def small_run(tiny_study, table):
    """A study's tables as its notebooks write them, with made-up predictions."""
    study = dataclasses.replace(tiny_study, methods=["std", "adv"])
    names = ["a", "b", "c"]
    data = {"train": {"fingerprint": "train-images", "images": 9}}
    data |= {"test": {"fingerprint": "images", "images": 3}}
    study.runs.mkdir(parents=True)
    record = data | {"class_names": names, "settings": study.data_settings()}
    (study.runs / "data.json").write_text(json.dumps(record))
    (study.runs / "train").mkdir()
    for method in study.methods:
        (study.runs / "train" / f"{method}-seed0.csv").touch()
        settings = study.training_settings(method, 0, "train-images", "start")
        for benchmark in ("clean", "pgd40"):
            threat = study.threat("pgd40").to_dict() if benchmark == "pgd40" else None
            path = study.runs / "predictions" / benchmark / f"{method}-seed0.parquet"
            facts = {"settings": settings, "threat": threat, "data": "images", "split": "test"}
            write_predictions(table, path, num_classes=3, n_images=3, **facts)
    return study


def test_a_study_is_read_whole(small_run):
    tables = read_study(small_run, "fresh")
    assert len(tables) == 12
    assert set(tables.columns) >= {"benchmark", "method", "seed"}
    assert tables.attrs["facts"]["pgd40", "adv", 0]["threat"]["eps"] == small_run.eps
    assert tables.attrs["class_names"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"eps": 0.05}, "another threat: run `make book STUDY=digits`"),
        ({"lr": 0.5}, "another lr: run"),
        ({"seeds": [0, 1]}, "is missing: run `make book STUDY=digits`"),
        ({"test_images": 50}, "data.json is of other images"),
        ({"train_images": 640}, "data.json is of other images"),
        ({"evaluation_split": "holdout", "holdout_images": 10}, "data.json is of other images"),
    ],
)
def test_tables_of_another_setting_are_refused(small_run, change, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read_study(dataclasses.replace(small_run, **change), "fresh")


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


def test_a_cut_table_is_refused(small_run, table):
    path = small_run.runs / "predictions/clean/std-seed0.parquet"
    facts = {k: read_facts(path)[k] for k in ("settings", "threat", "data", "split")}
    write_predictions(table.iloc[:2], path, **facts)
    with pytest.raises(ValueError, match="another n_images"):
        read_study(small_run, "fresh")


def test_a_study_without_tables_says_what_to_run(tiny_study):
    with pytest.raises(FileNotFoundError, match="make book STUDY=digits"):
        read_study(tiny_study, "fresh")


PUBLISHED = sorted(p.name for p in (ROOT / "results").iterdir() if p.name != "paper")


@pytest.mark.parametrize("study_id", PUBLISHED)
def test_committed_tables_are_those_of_the_study_file(study_id):
    """Else the published book would quietly show the study as not run."""
    study = load_study(study_id)
    tables = read_study(study, "committed")
    runs = len(study.methods) * len(study.seeds) * (1 + len(study.attacks))
    assert len(tables) == runs * (study.test_images or tables.file_name.nunique())


def test_the_default_study_is_published():
    assert "fashion_mnist_quick" in PUBLISHED


def test_reading_needs_no_torch():
    import subprocess
    import sys

    code = (
        "import sys, advlib.metrics, advlib.predictions, advlib.charts, advlib.study\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert predictions.COLUMNS[0] == "file_name"
