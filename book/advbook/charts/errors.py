"""Charts of the chapters: errors by method, benchmark and class, and what changes them."""

import altair as alt
import pandas as pd

from advbook.charts.base import (
    DASHED,
    INTERVAL,
    dots,
    drop_down,
    errors_on,
    facet,
    findable,
    heat,
    line_at,
    method_colour,
    method_order,
    panels,
    pick,
    tips,
)


def class_error(
    table: pd.DataFrame,
    *,
    value: str = "Error (%)",
    form: str = ".0%",
    reference: float | None = None,
    legend: str = "Method",
) -> alt.Chart:
    """Classes, groups or factors by name, the hardest first, one mark a method, with intervals.

    Parameters
    ----------
    table : DataFrame
        Columns method, benchmark, class_name, error, low, high (fractions, or ratios). One
        benchmark makes one panel. With a column group, one group is shown at a time, to begin with
        that of the first row; a class may be in several.
    value, form : str
        Title and number format of the axis.
    reference : float, optional
        Where to draw a dashed line.
    legend : str
        What the column method holds.
    """
    benchmarks, methods = table.benchmark.unique().tolist(), table.method.unique().tolist()
    picked, opacity = pick(rest=0.08)
    table = table.round({"error": 4, "low": 4, "high": 4})
    params, shown = [picked], alt.Chart(table)
    if "group" in table:
        params.append(drop_down("group", table.group.unique().tolist()))
        shown = shown.transform_filter(params[-1])
    base = shown.encode(
        y=alt.Y("class_name:N", sort=hardest_first(table), title=None),
        yOffset=alt.YOffset("method:N", sort=method_order(methods)),
        color=method_colour(methods, legend),
        opacity=opacity,
        tooltip=tips(class_name="Name", method="Method")
        + tips(form.replace(".0", ".2"), error=value.removesuffix(" (%)"), **INTERVAL),
    )
    axis = alt.Axis(format=form, tickCount=6, tickMinStep=0.01)
    at = alt.X("error:Q", title=value, axis=axis, scale=alt.Scale(zero=reference is None))
    chart = dots(base, at)
    if reference is not None:
        chart = line_at(table, reference, **DASHED) + chart
    chart = chart.properties(height=alt.Step(9)).add_params(*params)
    if len(benchmarks) == 1:
        return chart.properties(width="container")
    columns = min(len(benchmarks), 4)
    return panels(chart.properties(width=640 // columns - 80), "benchmark", benchmarks, columns)


def hardest_first(table: pd.DataFrame) -> list[str]:
    """The class names by their mean error over all rows of a table, the largest first."""
    return table.groupby("class_name").error.mean().sort_values(ascending=False).index.tolist()


def two_errors(table: pd.DataFrame) -> alt.Chart:
    """Each class's error under two benchmarks, one panel a method; find a class by name.

    Parameters
    ----------
    table : DataFrame
        Columns method, class_name, benchmark, other (the horizontal error), error (the vertical).
    """
    benchmark = drop_down("benchmark", table.benchmark.drop_duplicates().tolist(), "PGD-40")
    methods = table.method.unique().tolist()
    base = alt.Chart(table).encode(
        x=errors_on(alt.X, "other", "Clean error (%)", tickCount=4),
        y=errors_on(alt.Y, tickCount=4),
        color=method_colour(methods).legend(None),
        tooltip=tips(class_name="Class", method="Method")
        + tips(".2%", other="Clean error", error="Error"),
    )
    few = table.class_name.nunique() <= 100
    chart = findable(base.transform_filter(benchmark), 60 if few else 14, "class_search_two")
    chart = chart.properties(width=190, height=190).add_params(benchmark)
    return chart.facet(facet("method", methods), columns=3)


# ---------------------------------------------------------------- grids


def class_grid(table: pd.DataFrame, column: str, title: str) -> alt.Chart:
    """Error of each class under each condition, as colour; the method by drop-down.

    Parameters
    ----------
    table : DataFrame
        Columns method, class_name, error (fraction) and the one that `column` names.
    """
    method = drop_down("method", table.method.unique().tolist(), "Adv")
    order = table[column].drop_duplicates().tolist()
    cells = alt.Chart(table).transform_filter(method).mark_rect()
    return (
        cells.encode(
            x=alt.X(f"{column}:N", sort=order, title=title, axis=alt.Axis(labelAngle=-45)),
            y=alt.Y("class_name:N", sort=hardest_first(table), title=None),
            color=heat("error"),
            tooltip=tips(**{"class_name": "Class", column: title}) + tips(".2%", error="Error"),
        )
        .properties(width=alt.Step(26), height=alt.Step(18))
        .add_params(method)
    )


# ---------------------------------------------------------------- lines


def error_against(
    table: pd.DataFrame, x: str, title: str, marked: float | None = None
) -> alt.LayerChart:
    """Each method's error against ε or the number of steps, with its interval.

    Parameters
    ----------
    table : DataFrame
        Columns method, value, low, high (fractions), and the one that `x` names.
    x, title : str
        The column of the horizontal axis (logarithmic; 0 has a place of its own), and its title.
    marked : float, optional
        Where to draw a dashed line.
    """
    picked, opacity = pick()
    positive = table.loc[table[x] > 0, x].min()
    near_zero = alt.Scale(type="symlog", constant=positive)
    scale = near_zero if (table[x] == 0).any() else alt.Scale(type="log")
    values = sorted(table[x].unique().tolist())
    # Numbers as they are: a format would round 0.025 to two digits.
    axis = alt.Axis(values=values, labelExpr="datum.value", labelAngle=-45)
    base = alt.Chart(table).encode(
        x=alt.X(f"{x}:Q", title=title, scale=scale, axis=axis),
        color=method_colour(table.method.unique(), symbol="stroke"),
        opacity=opacity,
        tooltip=tips(method="Method")
        + tips("~g", **{x: title})
        + tips(".1%", value="Error", **INTERVAL),
    )
    at = errors_on(alt.Y, "value", scale=alt.Scale(domain=[0, 1]))
    shape = alt.Shape("method:N", sort=method_order(table.method), legend=None)
    chart = dots(base, at, 45, stroke=1, shape=shape) + base.mark_line(strokeWidth=2).encode(at)
    if marked is not None:
        chart = line_at(table, marked, **DASHED) + chart
    return chart.properties(width="container", height=280).add_params(picked)
