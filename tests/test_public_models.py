"""Public ImageNet networks: committed tables, the trend, and a reader's own point beside them."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from advbook.claims import public_models as public
from advbook.studies.schema import ROOT
from advlib import metrics
from advlib.data.annotations import imagenet_labels, imagenet_x
from conftest import run_notebook

FOLDER = ROOT / "results/imagenet_models"


@pytest.fixture(scope="module")
def networks():
    return public.read_networks(FOLDER)


@pytest.fixture(scope="module")
def guesses():
    """Predictions for all 50,000 images, wrong more often in classes of a high number."""
    labels, random = imagenet_labels(), np.random.default_rng(1)
    right = random.random(50_000) > 0.1 + 0.6 * labels / 1000
    return pd.DataFrame(
        {
            "file_name": labels.index,
            "label": labels.to_numpy(),
            "predicted_class": np.where(right, labels, (labels + 1) % 1000),
            "predicted_probability": 0.5,
        }
    )


def test_the_tables_hold_what_is_published(networks):
    std = networks.loc["resnet50"]
    assert std.clean_accuracy == pytest.approx(0.7613, abs=1e-6)  # torchvision's ResNet-50, V1
    for name, clean in {"linf_eps4": 0.6242, "linf_eps8": 0.4791}.items():  # MadryLab's README
        found = networks.loc[f"resnet50_{name}_robust"].clean_accuracy
        assert found == pytest.approx(clean, abs=2e-4)
    conditions = pd.read_csv(FOLDER / "conditions.csv").groupby("model").accuracy
    assert (conditions.size() == 75).all()
    mean = networks.corruption_accuracy[conditions.mean().index]
    assert np.allclose(conditions.mean(), mean, atol=1e-6)
    accuracies = networks.drop(columns=["training", "family"])
    assert accuracies.min().min() >= 0 and accuracies.max().max() <= 1


def test_an_own_network_is_measured_as_imagenet_x_does(guesses):
    aggregate = pytest.importorskip("imagenet_x.aggregate")
    top = imagenet_x()
    factors = sorted(top.factor.dropna().unique())
    one_hot = pd.get_dummies(top.factor)[factors].groupby(top.file_name).max()
    table = guesses.set_index("file_name").join(one_hot, how="inner").assign(model="own")
    table["is_correct"] = table.predicted_class == table.label
    table["class"] = table.label
    theirs = aggregate.compute_factor_accuracies(table, factors).loc["own"]
    ours = public.own_network(guesses)
    assert ours["average"] == pytest.approx(theirs["average"])
    assert all(ours[name] == pytest.approx(theirs[name]) for name in factors)
    worst = aggregate.worst_k_class_acc(table, k=100)["own"]
    assert ours["worst_100_classes"] == pytest.approx(worst, abs=2e-3)  # ties are broken otherwise
    assert ours["clean_accuracy"] == pytest.approx(1 - metrics.error(guesses))


def families(n=20, each=5, shift=0.0, seed=0):
    """Networks on a known trend, each family beside it by a distance of its own."""
    random = np.random.default_rng(seed)
    family = np.repeat([f"f{i}" for i in range(n)], each)
    accuracy = random.uniform(0.4, 0.9, n * each)
    own = np.repeat(random.normal(0, 0.1, n), each)
    x = public.logit(accuracy)
    figure = public.expit(-1.5 + 1.2 * x - 0.1 * x**2 + own + shift)
    return pd.DataFrame({"family": family, "accuracy": accuracy, "figure": figure})


def test_the_trend_is_found_with_the_spread_between_families():
    found = public.trend(families(200), "accuracy", "figure", "accuracy")
    assert found.coefficients == pytest.approx((-0.1, 1.2, -1.5), abs=0.08)
    # Without its family, a network is expected as far off as families differ.
    assert found.spread(0.7) == pytest.approx(0.1, rel=0.15)
    outside = families(1, each=3, shift=0.3, seed=3)
    distance = found.distance(outside.accuracy, outside.figure)
    assert distance.between(1, 5).all()
    low, high = (found.at(outside.accuracy, s) for s in (-1.96, 1.96))
    assert (low < found.at(outside.accuracy)).all() and (found.at(outside.accuracy) < high).all()


def test_the_spread_is_that_of_networks_of_this_accuracy():
    table, random = families(300), np.random.default_rng(2)
    weak = table.accuracy < 0.6
    noise = np.where(weak, random.normal(0, 0.5, len(table)), 0)
    table["figure"] = public.expit(public.logit(table.figure) + noise)
    found = public.trend(table, "accuracy", "figure", "accuracy")
    assert found.spread(0.45) > 2 * found.spread(0.85)
    inside = found.distance(table.accuracy, table.figure).abs() < 1.96
    assert inside[weak].mean() > 0.9 and inside[~weak].mean() > 0.9


def test_resampling_families_covers_the_true_trend():
    at, hits = [0.5, 0.7], 0
    truth = public.expit(np.polyval((-0.1, 1.2, -1.5), public.logit(np.array(at))))
    for seed in range(20):
        curves = public.resampled(families(seed=seed), "accuracy", "figure", "accuracy", at, 200)
        low, high = np.quantile(curves, [0.025, 0.975], axis=0)
        hits += int(((low < truth) & (truth < high)).sum())
    assert 32 <= hits <= 40  # 38 of 40 are expected


def test_a_readers_network_stands_in_the_figures(guesses, tmp_path):
    guesses.to_parquet(tmp_path / "mine.parquet")
    (tmp_path / "brought.yaml").write_text(
        "study: brought_imagenet\ndataset: imagenet\n"
        f"predictions: {{my_network: {tmp_path / 'mine.parquet'}}}\nn_resamples: 20\n"
    )
    study = tmp_path / "brought.yaml"
    run_notebook("bring_your_own", **yaml.safe_load(study.read_text()))  # as papermill's -f does
    page = run_notebook(
        "imagenet_models", studies=[f"{study}:fresh"], output=str(tmp_path / "said")
    )
    (chart,) = page.shown["fig-imagenet-worst"]
    assert "my_network" in json.dumps(chart.to_dict())
    said = pd.read_csv(tmp_path / "said/claims.csv")
    assert len(said) == 7 and said.so.str.contains("claimed").all()
