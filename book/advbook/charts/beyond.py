"""Errors beyond the attack: which corruptions gain and lose, and which images are the hardest."""

import altair as alt
import pandas as pd

from advbook.charts.base import (
    DASHED,
    change_heat,
    dots,
    line_at,
    method_marks,
    method_order,
    panels,
    spoken,
    tips,
)


def corruption_changes(
    table: pd.DataFrame, corruptions: list[str], studies: list[str]
) -> alt.FacetChart:
    """What each corruption gains or loses from method to method, one column per study.

    Parameters
    ----------
    table : DataFrame
        One row per change, study (title) and corruption: change, study, corruption, value
        (fraction), said (what the cell says, in points).
    corruptions, studies : list of str
        The rows and the columns in their order; a study without corruptions has no column.
    """
    studies = [title for title in studies if title in set(table.study)]
    limit = float(table.value.abs().max())
    # Long titles are broken before a bracket and after a comma.
    lines = "split(replace(replace(datum.label, /, /g, ',\\n'), ' (', '\\n('), '\\n')"
    room = 4 + 15 * max(title.count(" (") + title.count(", ") for title in studies)
    plain = {"ticks": False, "domain": False}
    top = alt.Axis(orient="top", labelAngle=0, labelPadding=room, labelExpr=lines, **plain)
    base = alt.Chart(spoken(table, "{change}, {study}, {corruption}: {said} points")).encode(
        description="description:N",
        x=alt.X("study:N", sort=studies, title=None, axis=top),
        y=alt.Y("corruption:N", sort=corruptions, title=None, axis=alt.Axis(**plain)),
        tooltip=tips(change="Change", study="Study", corruption="Corruption", said="Points"),
    )
    chart = change_heat(base, "value", "said", limit)
    chart = chart.properties(width=alt.Step(94), height=alt.Step(20))
    changes, columns = table.change.drop_duplicates().tolist(), 2 if len(studies) <= 2 else 1
    return panels(chart, "change", changes, columns, labelFontSize=13)


def error_ratios(table: pd.DataFrame) -> alt.FacetChart:
    """The error ratio of each factor and method with its interval, one panel a study.

    Parameters
    ----------
    table : DataFrame
        Columns study, factor, method, value, low, high. A study may lack factors.
    """
    order = table.groupby("factor").value.mean().sort_values(ascending=False).index.tolist()
    methods = method_order(table.method)
    ends = table.low.map("{:.2f} to ".format) + table.high.map("{:.2f}".format)
    table = table.assign(interval=ends.where(table.low.notna(), "none"))
    table = spoken(table, "{study}, {factor}, {method}: {value:.2f}, 95 % interval {interval}")
    base = alt.Chart(table).encode(
        y=alt.Y("factor:N", sort=order, title=None, axis=alt.Axis(grid=True, tickBand="extent")),
        yOffset=alt.YOffset("method:N", sort=methods),
        description="description:N",
        tooltip=tips(factor="Factor", method="Method")
        + tips(".2f", value="Error ratio")
        + tips(interval="95 % interval"),
    )
    marks = method_marks(methods)
    at = alt.X("value:Q", title="Error ratio", scale=alt.Scale(zero=False))
    chart = dots(base.encode(color=marks["color"]), at, 50, shape=marks["shape"])
    chart = line_at(table, 1, **DASHED) + chart
    studies = table.study.drop_duplicates().tolist()
    return panels(chart.properties(width=200, height=alt.Step(12)), "study", studies)
