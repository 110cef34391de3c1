"""Charts and tables of the pages about single classes: "Which classes pay?" and "See it"."""

import re

import numpy as np
import pandas as pd
import pytest

from advbook.charts import class_errors as charts
from advbook.charts import grids
from advbook.studies.results import Shown, results
from advbook.studies.schema import load_study
from advbook.studies.tables import per_cent
from conftest import marks as drawn

HOSTILE = ["<img src onerror=alert(1)>", "a | b", 'it\'s "said"']


def marks(chart) -> list[dict]:
    """What Vega says of each mark, by title."""
    svg = drawn(chart)
    assert "null" not in svg and "NaN" not in svg
    said = re.findall(r'aria-label="([^"]*)" role="graphics-symbol"', svg)
    return [dict(part.split(": ", 1) for part in text.split("; ")) for text in said if ": " in text]


def classes(k, methods=("Std", "Adv", "Adv⁺"), title="Study"):
    """Errors of made-up classes: clean ones rise, attacked ones fall."""
    rows = [
        (title, f"class {i}", method, 0.1 + 0.8 * i / k * (j > 0), 1 - 0.4 * (k - i) / k * (j > 0))
        for i in range(k)
        for j, method in enumerate(methods)
    ]
    return pd.DataFrame(rows, columns=["title", "class_name", "method", "clean", "attacked"])


# ---------------------------------------------------------------- tables and choices


def cells(html):
    return re.findall(r"<td([^>]*)>([^<]*)</td>", html)


def test_a_table_rounds_as_all_others_do():
    """0.145 is binary 0.14499…: a figure and a table that differ by one are no slip of the eye."""
    values = pd.DataFrame([[0.145, 0.0, 1.0]], index=["cat"], columns=["a", "b", "c"])
    texts = [text for _, text in cells(grids.heat_table(values, "Study"))]
    assert texts == [per_cent(v, 0) for v in values.iloc[0]] == ["15", "0", "100"]


def test_changes_are_coloured_by_sign_and_written_from_a_size_on():
    values = pd.DataFrame([[0.3, -0.3, 0.04, np.nan]], index=["cat"], columns=list("abcd"))
    found = cells(grids.heat_table(values, "Study", full=0.2, least=0.05, sign="+"))
    assert [text for _, text in found] == ["+30", "−30", "", ""]
    assert grids.MORE in found[0][0] and grids.LESS in found[1][0]
    assert f"{grids.STRONGEST}%" in found[0][0] and not found[3][0]  # no stronger


def test_columns_of_two_levels_have_heads_over_their_own_columns():
    columns = pd.MultiIndex.from_tuples([("Clean", "Std"), ("Clean", "Adv"), ("PGD-40", "Adv")])
    html = grids.heat_table(pd.DataFrame([[0.1, 0.2, 0.3]], ["cat"], columns), "Study")
    assert re.findall(r'colspan="(\d)">([^<]+)<', html) == [("2", "Clean"), ("1", "PGD-40")]
    assert ["first" in cell for cell, _ in cells(html)] == [True, False, True]


def test_names_cannot_break_a_table_or_a_choice():
    values = pd.DataFrame(0.5, index=HOSTILE, columns=HOSTILE)
    links = {name: f'see.html?class="{name}' for name in HOSTILE}
    tips = values.map(lambda _: HOSTILE[0])
    table = grids.heat_table(values, HOSTILE[0], links=links, tips=tips)
    whole = grids.choice("name", HOSTILE[2], [(name, name, table) for name in HOSTILE])
    assert "<img" not in whole and '"said"' not in whole
    assert len(re.findall(r"<input [^>]* checked>", whole)) == 1
    assert whole.count("<label") == 3 and grids.choice("n", "t", [("v", "l", "html")]) == "html"


def test_a_hundred_classes_stay_small():
    columns = pd.MultiIndex.from_product([["Clean", "PGD-40", "Corruptions"], list("abcde")])
    values = pd.DataFrame(0.5, [f"a class with a long name {i}" for i in range(100)], columns)
    links = {name: "see.html?study=cifar100&class=" + name for name in values.index}
    assert len(grids.heat_table(values, "Study", links=links)) < 300_000


# ---------------------------------------------------------------- charts


def test_arrows_draw_each_class_at_each_method():
    table = pd.concat([classes(4), classes(4, title="Another")])
    found = [m for m in marks(charts.class_arrows(table, "PGD-40 error")) if "Method" in m]
    drawn = {(m["Class"], m["Method"], m["Clean error"], m["PGD-40 error"]) for m in found}
    said = table.assign(x=table.clean.map("{:.1%}".format), y=table.attacked.map("{:.1%}".format))
    assert drawn == set(said[["class_name", "method", "x", "y"]].itertuples(index=False, name=None))


def test_an_arrow_points_where_the_class_goes():
    ends = {"down": (0.1, 0.2), "right": (0.9, 0.8)}
    rows = [
        ("s", n, m, *at) for n, end in ends.items() for m, at in {"a": (0.1, 0.8), "b": end}.items()
    ]
    table = pd.DataFrame(rows, columns=["title", "class_name", "method", "clean", "attacked"])
    data = charts.class_arrows(table, "y").data
    assert (
        data[data.method == "b"].turn.tolist() == [180, 90]
        and (data[data.method == "a"].turn == 0).all()
    )


def test_of_many_classes_only_those_that_move_most_are_named():
    table = classes(100)
    named = charts.class_arrows(table, "y").data.label
    assert 0 < (named != "").sum() <= 8
    assert (charts.class_arrows(classes(20), "y").data.label != "").sum() == 20


def test_names_in_an_arrow_chart_do_not_lie_on_each_other():
    table = classes(12).assign(attacked=0.5, clean=0.3)
    data = charts.class_arrows(table, "y").data
    for _, side in data[data.label != ""].groupby("label_left"):
        assert not side.label_at.sort_values().diff().min() * charts.SIDE < 11
    # A name stands on the left where another class's mark is on the right.
    table = classes(2).assign(clean=[0.5, 0.5, 0.5, 0.55, 0.55, 0.55], attacked=0.5)
    data = charts.class_arrows(table, "y").data
    assert data[data.label != ""].label_left.tolist() == [True, False]


def test_methods_of_any_name_are_drawn():
    table = classes(3, methods=HOSTILE)
    found = {m["Method"] for m in marks(charts.class_arrows(table, "y")) if "Method" in m}
    assert len(found) == 3
    one = classes(3, methods=["mine"])
    assert len([m for m in marks(charts.class_arrows(one, "y")) if "Method" in m]) == 3


@pytest.mark.parametrize("k", [10, 100])
def test_each_method_is_sorted_by_itself(k):
    table = classes(k).rename(columns={"clean": "error"})
    table["error"] = np.where(table.method == "Adv", 1 - table.error, table.error)
    data = charts.sorted_errors(table).data
    for _, part in data.groupby("method"):
        assert part.sort_values("place").error.is_monotonic_increasing
        assert part.place.max() == 1 and part["rank"].tolist() != [0]


def test_a_class_may_be_called_by_a_number(tmp_path):
    """As those of the digits are: a page's table keeps them as words."""
    (tmp_path / "class_explorer.csv").write_text("group,value\n7,0.25\nNA,0.5\n,0.75\n")
    shown = {"own": Shown(load_study("digits"), "fresh", "Digits", tmp_path)}
    table = results(shown, "class_explorer")
    assert table.group.tolist()[:2] == ["7", "NA"] and table.group.isna().sum() == 1
    assert "7" in grids.heat_table(table.dropna().set_index("group")[["value"]], "Digits")
