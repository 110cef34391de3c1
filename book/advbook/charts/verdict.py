"""Charts of the verdict page and of the chapter on ablations."""

import altair as alt
import pandas as pd

from advbook.charts.base import (
    CLEAR,
    ERROR_AXIS,
    METHOD_COLOURS,
    POINTS,
    method_colour,
    names_above,
    side_by_side,
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
    colours = dict(zip(VARIANTS, (METHOD_COLOURS[m] for m in ("Adv⁺", "Adv⁺ mixed")), strict=True))
    found = set(table.series)
    series = [name for name in (*colours, *sorted(found - set(colours))) if name in found]
    shapes = {**dict.fromkeys(colours, "circle"), PAPER: "diamond"}
    order = table.effect.drop_duplicates().tolist()
    legend = alt.Legend(orient="top", columns=2, labelLimit=280)
    # Linear within a point of zero and logarithmic beyond: 0.1 and 40 points on one axis.
    scale = alt.Scale(type="symlog", constant=0.01)
    title = "Change (points)"
    base = alt.Chart(table).encode(
        y=alt.Y(
            "effect:N",
            sort=order,
            title=None,
            scale=alt.Scale(paddingInner=0.4),
            axis=names_above(13 * len(series) / 2),
        ),
        yOffset=alt.YOffset("series:N", sort=series),
        color=alt.Color(
            "series:N",
            title=None,
            sort=series,
            scale=alt.Scale(domain=series, range=[colours.get(name, "#888888") for name in series]),
            legend=legend,
        ),
        tooltip=[
            alt.Tooltip("effect:N", title="Change"),
            alt.Tooltip("series:N", title="By"),
            alt.Tooltip("value:Q", title="Value", format="+.2%"),
            alt.Tooltip("low:Q", title="95 % from", format="+.2%"),
            alt.Tooltip("high:Q", title="to", format="+.2%"),
            alt.Tooltip("claimed:N", title="The paper claims"),
        ],
    )
    zero = alt.Chart(table).mark_rule(color="#888888").encode(x=alt.datum(0, scale=scale))
    rules = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2)
        .encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q")
    )
    shape = alt.Scale(domain=series, range=[shapes.get(name, "square") for name in series])
    points = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=alt.X("value:Q", title=title, axis=alt.Axis(labelExpr=POINTS, values=TICKS), scale=scale),
        shape=alt.Shape("series:N", title=None, sort=series, scale=shape, legend=legend),
    )
    studies = table.study.drop_duplicates().tolist()
    columns = min(len(studies), 3)
    width = min(310, 640 // columns - 10)
    chart = (zero + rules + points).properties(width=width, height=alt.Step(13))
    chart = chart.facet(alt.Facet("study:N", title=None, sort=studies), columns=1)
    chart = chart.resolve_axis(x="independent", y="independent")
    return side_by_side(chart, columns)


def error_by_delta(table: pd.DataFrame) -> alt.Chart:
    """Error against the weight of the transformation label, one panel a benchmark.

    Parameters
    ----------
    table : DataFrame
        Columns method (the family), benchmark, delta, value, low, high (fractions), title (of the
        run).
    """
    methods = table.method.unique().tolist()
    base = alt.Chart(table).encode(
        x=alt.X("delta:Q", title="Weight of the transformation label, δ"),
        color=method_colour(methods),
        tooltip=[
            alt.Tooltip("title:N", title="Run"),
            alt.Tooltip("delta:Q", title="δ", format=".2~f"),
            alt.Tooltip("value:Q", title="Error", format=".2%"),
            alt.Tooltip("low:Q", title="95 % from", format=".2%"),
            alt.Tooltip("high:Q", title="to", format=".2%"),
        ],
    )
    y = alt.Y(
        "value:Q", title="Error (%)", axis=alt.Axis(**ERROR_AXIS), scale=alt.Scale(zero=False)
    )
    lines = base.mark_line(strokeWidth=2).encode(y=y)
    rules = base.mark_rule(strokeWidth=2).encode(
        y=alt.Y("low:Q", title="Error (%)", scale=alt.Scale(zero=False)), y2="high:Q"
    )
    points = base.mark_circle(size=60, opacity=1).encode(y=y)
    chart = (rules + lines + points).properties(width=270, height=240)
    benchmarks = table.benchmark.unique().tolist()
    chart = chart.facet(alt.Facet("benchmark:N", title=None, sort=benchmarks), columns=1)
    chart = chart.resolve_axis(x="independent").resolve_scale(y="independent")
    return side_by_side(chart, len(benchmarks))


def changes_by_ingredient(table: pd.DataFrame) -> alt.Chart:
    """What each ingredient changes against its control, one panel a figure.

    Parameters
    ----------
    table : DataFrame
        Columns measure, comparison, value, low, high (fractions); below zero is better.
    """
    names = table.comparison.drop_duplicates().tolist()
    measures = table.measure.drop_duplicates().tolist()
    clear = "datum.low > 0 || datum.high < 0"
    base = alt.Chart(table).encode(
        y=alt.Y("comparison:N", sort=names, title=None, axis=names_above(4)),
        color=alt.condition(clear, *map(alt.value, CLEAR)),
        tooltip=[
            alt.Tooltip("comparison:N", title="Comparison"),
            alt.Tooltip("measure:N", title="Of"),
            alt.Tooltip("value:Q", title="Change", format="+.2%"),
            alt.Tooltip("low:Q", title="95 % from", format="+.2%"),
            alt.Tooltip("high:Q", title="to", format="+.2%"),
        ],
    )
    title = "Change (points)"
    zero = alt.Chart(table).mark_rule(color="#888888").encode(x=alt.datum(0))
    rules = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    points = base.mark_circle(size=55, opacity=1).encode(
        x=alt.X(
            "value:Q", title=title, axis=alt.Axis(labelExpr=POINTS, tickCount=5, tickMinStep=0.01)
        )
    )
    chart = (zero + rules + points).properties(width=310, height=alt.Step(30))
    chart = chart.facet(alt.Facet("measure:N", title=None, sort=measures), columns=1)
    return side_by_side(chart.resolve_axis(x="independent", y="independent"))
