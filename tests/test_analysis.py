"""The result tables of a study, on predictions whose figures are known by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from advbook.audit import analysis
from advbook.studies.schema import make_study
from advlib import metrics

NAMES = ["ape", "bee", "cat"]
STUDY = make_study(
    {
        **{"study": "toy", "title": "Toy", "dataset": "digits", "model": "cifar_resnet8"},
        **{"pretrain_epochs": 1, "methods": ["std", "adv"], "seeds": [0, 1], "n_resamples": 200},
        "groups": {"animals": ["ape", "cat"], "insects": ["bee"]},
    }
)


def predictions(wrong, n=100):
    """A table of `n` images per class, of which the first `wrong[label]` are misclassified."""
    label = np.repeat(np.arange(3), n)
    rank = np.tile(np.arange(n), 3)
    bad = rank < np.asarray(wrong)[label]
    table = {"file_name": [f"{i}.png" for i in range(3 * n)], "label": label}
    table |= {"predicted_class": np.where(bad, (label + 1) % 3, label)}
    return pd.DataFrame(table | {"predicted_probability": 0.9})


def corrupted(wrong):
    """The same in each of the 75 conditions, but without a mistake at severity 1."""
    parts = []
    for corruption in metrics.CORRUPTIONS:
        for severity in range(1, 6):
            table = predictions(wrong if severity > 1 else [0, 0, 0], 20)
            parts.append(table.assign(corruption=corruption, severity=severity))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def tables():
    """Std errs on 10 of 300 images, Adv on 60 and, in the second seed, on 90."""
    found = {}
    for seed, adv in ((0, [10, 20, 30]), (1, [10, 20, 60])):
        found["clean", "std", seed] = predictions([0, 0, 10])
        found["clean", "adv", seed] = predictions(adv)
        found["corruptions", "std", seed] = corrupted([0, 0, 10])
        found["corruptions", "adv", seed] = corrupted([0, 0, 5])
    return found


def test_errors_and_their_mean_differences(tables):
    rows = analysis.errors(STUDY, analysis.together(tables)).set_index(
        ["benchmark", "method", "seed"]
    )
    assert rows.value["clean", "adv", 0] == pytest.approx(60 / 300)
    assert rows.value["clean", "adv", 1] == pytest.approx(90 / 300)
    # A sixth of the images at four of five severities.
    assert rows.value["corruptions", "std", 0] == pytest.approx(10 / 60 * 4 / 5)
    assert (rows.low <= rows.value).all() and (rows.value <= rows.high).all()
    change = analysis.differences(STUDY, analysis.together(tables)).set_index("benchmark")
    assert (change.before == "std").all() and (change.after == "adv").all()
    assert change.value["clean"] == pytest.approx(((60 + 90) / 2 - 10) / 300)
    assert change.low["clean"] > 0.1 and change.n_images["corruptions"] == 60


def test_class_statistics_and_the_error_of_each_class(tables):
    rows = analysis.classes(STUDY, tables, analysis.together(tables), NAMES)
    own = rows[(rows.benchmark == "clean") & (rows.method == "adv") & (rows.seed == 1)]
    each = own[own.label.notna()].set_index("group").value
    assert each.to_dict() == pytest.approx({"ape": 0.1, "bee": 0.2, "cat": 0.6})
    whole = own[own.group == "all classes"].set_index("statistic").value
    assert whole["mean"] == pytest.approx(0.3) and whole["gap"] == pytest.approx(0.5)
    of_corrupted = rows[(rows.benchmark == "corruptions") & (rows.group == "cat")]
    value = of_corrupted.set_index(["method", "seed"]).value
    assert value["std", 0] == pytest.approx(10 / 20 * 4 / 5)


def test_confusions_name_both_classes(tables):
    found = analysis.confusions(tables, NAMES)
    assert set(found.benchmark) == {"clean"}
    row = found[(found.method == "std") & (found.class_name == "cat") & (found.seed == 0)]
    assert row.set_index("predicted_name").share.to_dict() == {"ape": 0.1, "cat": 0.9}


@pytest.mark.parametrize("dataset", ["digits", "imagenet"])
def test_corruptions_by_severity_and_their_mean(tables, dataset):
    study = dataclasses.replace(STUDY, dataset=dataset)
    rows = analysis.corruptions(study, tables, analysis.together(tables))
    own = rows[(rows.method == "adv") & (rows.seed == 0)].set_index("condition")
    assert len(own) == 75 + 1
    assert own.value["fog 1"] == 0 and own.value["fog 5"] == pytest.approx(5 / 60)
    mce = own.loc["mean over 75 conditions"]
    assert mce.statistic == "mean_corruption_error" and mce.low < mce.value < mce.high
    assert mce.value == pytest.approx(5 / 60 * 4 / 5)
    wide = analysis.corrupted_classes(tables).set_index(["method", "corruption", "label"]).error
    assert wide["std", "snow", 2].iloc[0] == pytest.approx(10 / 20 * 4 / 5)


def test_groups_of_classes(tables):
    rows = analysis.groups(STUDY, tables, NAMES)
    own = rows[(rows.method == "adv") & (rows.seed == 0)].set_index(["statistic", "group"]).value
    assert own["error", "animals"] == pytest.approx((0.1 + 0.3) / 2)


def test_factors_are_those_of_the_clean_images(tables):
    annotated = pd.DataFrame({"file_name": [f"{i}.png" for i in range(300)]})
    annotated["factor"] = np.where(annotated.index >= 200, "dark", "small")
    rows = analysis.factors(tables, annotated, "made up")
    assert set(rows.benchmark) == {"clean"} and set(rows.condition) == {"made up"}
    own = rows[(rows.method == "adv") & (rows.seed == 0)].set_index(["statistic", "group"]).value
    assert own["error", "dark"] == pytest.approx(0.3)
    assert own["error_ratio", "dark"] == pytest.approx(0.3 / 0.2)
    ratios = analysis.factor_ratios(STUDY, analysis.together(tables), annotated).set_index(
        ["before", "method", "factor"]
    )
    both = (0.3 / 0.2 + 0.6 / 0.3) / 2  # the mean over the seeds
    assert ratios.value["", "adv", "dark"] == pytest.approx(both, rel=0.05)
    less = ratios.loc["std", "adv", "dark"]
    assert less.value == pytest.approx(ratios.value["", "adv", "dark"] - 3) and less.high < 0


def test_of_one_method_nothing_is_compared(tables):
    lone = make_study({"study": "own", "dataset": "none", "predictions": "std.csv"})
    alone = {("clean", "std", 0): tables["clean", "std", 0]}
    rows = analysis.classes(lone, alone, analysis.together(alone), NAMES)
    assert rows.label.notna().sum() == 3
    assert analysis.differences(lone, analysis.together(tables)).empty
