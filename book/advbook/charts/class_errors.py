"""Charts of the pages about single classes and images, with all studies in them."""

import json

import altair as alt
import numpy as np
import pandas as pd

from advbook.charts.base import errors_on, method_colour, method_order, panels, pick, spoken, tips

SHAPES = ["circle", "triangle-up", "square", "diamond", "cross", "triangle-down"]
SIDE = 270  # px
BESIDE = 11  # px from a mark to its name
NAMED = 20  # classes that all have their names in the chart; of more classes, the extreme ones


def class_arrows(table: pd.DataFrame, title: str) -> alt.Chart:
    """Each class's way from method to method, in the plane of clean error and error under attack.

    The table has columns title (of the study, one panel each), class_name, method, clean, attacked
    (fractions). The way follows the order of the methods in it. `title` is of the vertical axis.
    """
    table = table.round({"clean": 4, "attacked": 4}).reset_index(drop=True)
    methods = list(dict.fromkeys(table.method))
    before = table.groupby(["title", "class_name"], sort=False)[["clean", "attacked"]].shift()
    table = table.assign(clean_before=before.clean, attacked_before=before.attacked)
    # From the middle of the axis, upwards, clockwise: the axes are equally long.
    turn = np.degrees(np.arctan2(table.clean - before.clean, table.attacked - before.attacked))
    short = np.hypot(table.clean - before.clean, table.attacked - before.attacked) < 0.04
    table["turn"] = turn.where(~short).fillna(0).round(1)
    table["many"] = table.groupby("title").class_name.transform("nunique") > NAMED
    table["label"] = _labels(table, methods)
    table = table.assign(label_at=table.attacked, label_left=False)
    for _, part in table.groupby("title"):
        for i, at, left in _apart(part):
            table.loc[i, ["label_at", "label_left"]] = at, left
    # A screen reader does not say where a mark points.
    said = "Class: {class_name}; Method: {method}; Clean error: {clean:.1%}; "
    base = alt.Chart(spoken(table, f"{said}{title}: {{attacked:.1%}}")).encode(
        x=errors_on(alt.X, "clean", "Clean error (%)", alt.Scale(domain=[0, 1]), tickCount=5),
        y=errors_on(alt.Y, "attacked", f"{title} (%)", alt.Scale(domain=[0, 1]), tickCount=5),
        tooltip=tips(class_name="Class", method="Method")
        + tips(".1%", clean="Clean error", attacked=title),
        description="description:N",
    )
    ways = base.transform_filter("isValid(datum.clean_before)").mark_rule(
        color="#999999", strokeWidth=1.2, aria=False
    )
    faint = alt.condition("datum.many", alt.value(0.15), alt.value(1))
    ways = ways.encode(x2="clean_before:Q", y2="attacked_before:Q", opacity=faint)
    shape = alt.Shape("method:N", sort=methods, scale=alt.Scale(domain=methods, range=SHAPES))
    marks = base.mark_point(filled=True, opacity=0.9).encode(
        size=alt.condition("datum.many", alt.value(14), alt.value(70)),
        color=method_colour(methods),
        shape=shape.title("Method"),
        angle=alt.Angle("turn:Q", scale=None),
    )
    # The last method's marks are hollow: what lies under them is seen.
    last = f"datum.method == {json.dumps(methods[-1])}" if len(methods) > 2 else "false"
    rings = marks.transform_filter(last).mark_point(filled=False, strokeWidth=1.8)
    rings = rings.encode(size=alt.condition("datum.many", alt.value(28), alt.value(140)))
    layers = ways + marks.transform_filter(f"!({last})") + rings
    for side, align, dx in (("!", "left", BESIDE), ("", "right", -BESIDE)):
        names = base.transform_filter(f"{side}datum.label_left").encode(
            y="label_at:Q", text="label:N"
        )
        layers += names.mark_text(align=align, dx=dx, fontSize=11, color="black", aria=False)
    layers = layers.properties(width=SIDE, height=SIDE)
    return panels(layers, "title", list(dict.fromkeys(table.title)), labelFontSize=13)


def _labels(table: pd.DataFrame, methods: list[str]) -> pd.Series:
    """The name of a class at its second method's mark: of many classes, those that move most."""
    target = methods[min(1, len(methods) - 1)]
    moved = np.hypot(table.clean - table.clean_before, table.attacked - table.attacked_before)
    rank = moved.where(table.method == target).groupby(table.title).rank(ascending=False)
    shown = (table.method == target) & (~table.many | (rank <= 8))
    return table.class_name.where(shown, "")


def _apart(table: pd.DataFrame) -> list[tuple[int, float, bool]]:
    """Each label's row, height and side (left of its mark?): near its mark, and on no other.

    The labels choose in turn. Of a hundred orders, the one that leaves them nearest is kept.
    """
    named, random = table[table.label != ""], np.random.default_rng(0)
    orders = [named.iloc[random.permutation(len(named))] for _ in range(100)]
    return min((_placed(table, order) for order in orders), key=lambda found: found[0])[1]


def _placed(table: pd.DataFrame, named: pd.DataFrame) -> tuple[float, list]:
    """The labels in this order, and how far they are from their marks in all."""
    height, letter, mark, beside = (v / SIDE for v in (12, 5.6, 6, BESIDE))
    marks = [(x - mark, x + mark, y, mark) for x, y in table[["clean", "attacked"]].to_numpy()]
    texts, placed, cost = [], [], 0.0
    steps = [(up * n, left) for n in range(60) for up in (1, -1)[: n + 1] for left in (False, True)]
    for row in named.itertuples():
        wide = letter * len(row.label)
        found = []
        for step, left in steps:
            at = row.attacked + step * height / 4
            start = row.clean - beside - wide if left else row.clean + beside
            hit = [
                sum(
                    start < b and a < start + wide and abs(at - y) < height / 2 + half
                    for a, b, y, half in boxes
                )
                for boxes in (texts, marks)
            ]
            # A name far from its mark misleads more than one that touches another mark.
            if not hit[0] and start >= 0:
                found.append((abs(step) + 6 * hit[1] + left / 2, at, left, start))
            if found and abs(step) > min(found)[0]:
                break
        far, at, left, start = min(found, default=(60, row.attacked, False, row.clean + beside))
        texts.append((start, start + wide, at, height / 2))
        placed.append((row.Index, at, left))
        cost += far**2
    return cost, placed


def sorted_errors(table: pd.DataFrame) -> alt.Chart:
    """The paper's Figure 1: each method's class errors, sorted from its best class to its worst.

    The table has columns title (of the panel), class_name, method, error (fraction).
    """
    keys = ["title", "method"]
    rank = table.groupby(keys).error.rank(method="first")
    size = table.groupby(keys).error.transform("size")
    table = table.assign(rank=rank, place=(rank / size).round(4), error=table.error.round(4))
    methods = method_order(table.method)
    picked, opacity = pick()
    dashes = [[1, 0], [1, 0], [5, 4], [2, 2], [8, 3], [1, 3]]
    dash = alt.StrokeDash(
        "method:N", sort=methods, scale=alt.Scale(domain=methods, range=dashes), title="Method"
    )
    base = alt.Chart(table).encode(
        x=errors_on(alt.X, "place", "Classes, the easiest first (% of all)", tickCount=5),
        y=errors_on(alt.Y, title="Error of the class (%)"),
        color=method_colour(methods, symbol="stroke"),
        opacity=opacity,
        tooltip=tips(class_name="Class", method="Method")
        + tips(".1%", error="Error")
        + tips("d", rank="Rank"),
    )
    lines = base.mark_line(strokeWidth=2.5).encode(strokeDash=dash)
    chart = (lines + base.mark_circle(size=22)).add_params(picked)
    chart = chart.properties(width=270, height=220)
    return panels(chart, "title", list(dict.fromkeys(table.title)), labelFontSize=13)
