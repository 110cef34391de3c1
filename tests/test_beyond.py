"""The charts of corruptions and factors."""

import re

import pandas as pd

from advbook.charts import beyond as charts
from advbook.studies.tables import per_cent
from conftest import marks

STUDIES = ["CIFAR-10 (JPEG copy)", "mine, your run"]


def cells(values):
    rows = [(c, s, name, v) for (c, s, name), v in values.items()]
    table = pd.DataFrame(rows, columns=["change", "study", "corruption", "value"])
    return table.assign(said=[per_cent(value, 1, "+") for value in table.value])


def test_a_cell_and_its_tip_say_the_same_points():
    """0.1455 is 14.5 to a browser, which rounds its binary fraction, and 14.6 to the tables."""
    values = {("Adv − Std", study, "fog"): 0.1455 for study in STUDIES}
    values |= {("Adv⁺ − Adv", study, "fog"): -0.001 for study in STUDIES}
    svg = marks(charts.corruption_changes(cells(values), ["fog"], STUDIES))
    assert svg.count(">+14.6<") == 2 and svg.count(">−0.1<") == 2
    assert "CIFAR-10 (JPEG copy), fog: +14.6 points" in svg
    assert "%" not in re.sub(r"<[^>]*>", "", svg) and "null" not in svg
    assert ">CIFAR-10<" in svg and ">(JPEG copy)<" in svg and ">your run<" in svg  # broken titles


def test_rows_and_columns_stand_in_the_order_given():
    names = ["snow", "fog", "contrast"]
    values = {("Adv − Std", study, name): 0.1 for study in STUDIES[::-1] for name in sorted(names)}
    svg = marks(charts.corruption_changes(cells(values), names, STUDIES))
    places = [svg.index(f">{name}<") for name in (*names,)]
    assert places == sorted(places) and svg.index(">CIFAR-10<") < svg.index(">mine,<")
    alone = charts.corruption_changes(cells(values), names, [*STUDIES, "Without corruptions"])
    assert alone.to_dict() == charts.corruption_changes(cells(values), names, STUDIES).to_dict()


def test_a_study_that_lacks_a_factor_leaves_its_row_empty():
    rows = [
        ("A", "texture", "Std", 1.5, 1.3, 1.7), ("A", "texture", "Adv", 1.2, 1.1, 1.3),
        ("B", "texture", "Std", 1.4, 1.2, 1.6), ("B", "larger", "Std", 1.8, None, None),
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=["study", "factor", "method", "value", "low", "high"])
    svg = marks(charts.error_ratios(table))
    assert svg.count('aria-roledescription="point"') == len(rows)
    assert "A, texture, Std: 1.50, 95 % interval 1.30 to 1.70" in svg
    assert "B, larger, Std: 1.80, 95 % interval none" in svg and "null" not in svg
    assert svg.count(">larger<") == 2 and svg.index(">larger<") < svg.index(">texture<")
