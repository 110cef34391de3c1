"""The chart of the verdict page."""

import altair as alt
import pandas as pd

from advbook.charts.base import (
    INTERVAL,
    LINE,
    POINTS,
    colour_of,
    dots,
    line_at,
    names_above,
    panels,
    tips,
    told_apart,
)
from advbook.claims.claims import VARIANTS
from advbook.claims.verdict import PAPER

TICKS = [-0.3, -0.1, -0.03, -0.01, 0, 0.01, 0.03, 0.1, 0.3]


def effects_beside_paper(table: pd.DataFrame) -> alt.Chart:
    """The paper's effects beside the measured ones, one panel a study.

    Parameters
    ----------
    table : DataFrame
        As of `advbook.claims.verdict.effects`.
    """
    colours = {v: colour_of(names.get("adv_plus", "adv_plus")) for v, names in VARIANTS.items()}
    found = set(table.series)
    series = [name for name in (*colours, *sorted(found - set(colours))) if name in found]
    shapes = {**dict.fromkeys(colours, "circle"), PAPER: "diamond"}
    apart = told_apart(
        "series",
        None,
        series,
        [colours.get(name, LINE) for name in series],
        [shapes.get(name, "square") for name in series],
        columns=2,
    )
    names = {"scale": alt.Scale(paddingInner=0.4), "axis": names_above(13 * len(series) / 2)}
    base = alt.Chart(table).encode(
        y=alt.Y("effect:N", sort=table.effect.unique().tolist(), title=None, **names),
        yOffset=alt.YOffset("series:N", sort=series),
        color=apart["color"],
        tooltip=tips(effect="Change", series="By")
        + tips("+.2%", value="Value", **INTERVAL)
        + tips(claimed="The paper claims"),
    )
    # Linear within a point of zero and logarithmic beyond: 0.1 and 40 points on one axis.
    scale = alt.Scale(type="symlog", constant=0.01)
    axis = alt.Axis(labelExpr=POINTS, values=TICKS)
    at = alt.X("value:Q", title="Change (points)", axis=axis, scale=scale)
    studies = table.study.unique().tolist()
    columns = min(len(studies), 3)
    chart = line_at(table, 0, scale) + dots(base, at, 70, shape=apart["shape"])
    chart = chart.properties(width=min(310, 640 // columns - 10), height=alt.Step(13))
    return panels(chart, "study", studies, columns)
