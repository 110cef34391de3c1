"""The charts of what robustness costs on average, and our networks beside public ones."""

import re

import numpy as np
import pandas as pd
import pytest

from advbook.charts import averages as charts
from advbook.studies.places import ROOT
from advbook.studies.results import Shown
from advbook.studies.schema import load_study
from conftest import marks

PUBLIC = pd.read_csv(ROOT / "results/paper/robustbench.csv")


def test_the_plane_has_every_seed_and_arrows_that_can_be_seen():
    rows = [
        ("paper", "Std", "not said", 0.2, 0.94), ("paper", "Adv", "not said", 0.32, 0.7),
        ("paper", "Adv⁺", "not said", 0.27, 0.33),
        ("ours", "Std", "0", 0.15, 1.0), ("ours", "Std", "1", 0.16, 1.0),
        ("ours", "Adv", "0", 0.3757, 0.691), ("ours", "Adv", "1", 0.376, 0.69),
        ("ours", "Adv⁺", "0", 0.38, 0.69), ("ours", "mine", "0", 0.2, 0.5),
    ]  # fmt: skip
    columns = ["panel", "method", "seed", "clean", "attacked"]
    svg = marks(charts.plane(pd.DataFrame(rows, columns=columns), ["Std", "Adv", "Adv⁺"]))
    assert len(re.findall("seed [^:]*: clean", svg)) == len(rows)
    assert (
        "ours, Adv, seed 0: clean 37.57%, under PGD-40 69.10%" in svg
        and "null" not in svg
        and "NaN" not in svg
    )
    # Two arrows of the paper's, and one of ours: from Adv to Adv⁺ there is nothing to see.
    turned = re.findall(r"rotate\((-?[\d.]+)\)", re.sub(r"<text[^>]*>", "", svg))
    heads = [float(angle) for angle in turned]
    assert len(heads) == 3
    assert all(90 < angle % 360 < 270 for angle in heads)  # all of them point down
    assert 180 < heads[1] % 360  # and the paper's second to the left


def test_a_networks_place_among_the_public_ones(tmp_path):
    rows = [("adv", 0, "clean", 0.3), ("adv", 1, "clean", 0.4), ("std", 0, "clean", 0.1)]
    errors = pd.DataFrame(rows, columns=["method", "seed", "benchmark", "value"])
    errors.to_csv(tmp_path / "average_error.csv", index=False)
    rows = [("adv", "pgd40", 0.6), ("adv", "square", 0.75), ("std", "square", 1.0)]
    battery = pd.DataFrame(rows, columns=["method", "condition", "value"])
    battery.to_csv(tmp_path / "battery-errors.csv", index=False)
    own = Shown(load_study("cifar10"), "committed", "CIFAR-10", tmp_path)
    table = charts.beside_public(own)
    assert len(table) == len(PUBLIC) + 1
    ours, others = table.iloc[0], table.iloc[1:].set_index("model")
    assert (ours.clean_error, ours.robust_error) == (pytest.approx(0.35), 0.75)
    assert ours.parameters == 308_650
    wong = others.loc["Wong2020Fast"]
    assert (wong.clean_error, wong.robust_error) == (pytest.approx(0.1666), pytest.approx(0.5679))
    svg = marks(charts.where_we_stand(table, {"Adv": "ours", "Wong2020Fast": "Wong 2020"}))
    assert "Adv, cifar_resnet8_w32_s2, 0.31 million parameters: 25.0%" in svg
    assert "null" not in svg and svg.count(" million parameters: ") >= len(table)
    assert ">ours<" in svg and ">Wong 2020<" in svg


def test_the_public_networks_are_as_robustbench_lists_them():
    assert PUBLIC.model.is_unique and PUBLIC.notna().all(axis=None)
    assert PUBLIC.robust_accuracy.between(0.3, 1).all()
    assert (PUBLIC.robust_accuracy < PUBLIC.clean_accuracy).all()
    assert (PUBLIC.groupby("architecture").parameters.nunique() == 1).all()
    assert PUBLIC.eps.isin(["8/255", "0.031"]).all() and (PUBLIC.eps == "0.031").sum() == 5
    place = r"https://github.com/RobustBench/robustbench/blob/[0-9a-f]{40}/model_info/cifar10/Linf/"
    assert PUBLIC.source.str.match(place).all()
    # What sees other images too is the most robust: a column read the wrong way would say it isn't.
    assert PUBLIC.loc[PUBLIC.robust_accuracy.idxmax(), "more_images"]
    assert np.isclose(PUBLIC.robust_accuracy.max(), 0.7371)
