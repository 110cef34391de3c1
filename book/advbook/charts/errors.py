"""Charts of the chapters: errors by method, benchmark and class, and what changes them."""

import json

import altair as alt
import pandas as pd

from advbook.charts.base import (
    CHANGE_AXIS,
    DASHED,
    INTERVAL,
    OTHER_COLOURS,
    changes,
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
    told_apart,
)


def average_error(table: pd.DataFrame) -> alt.Chart:
    """Error of each method under each benchmark, with its interval.

    Parameters
    ----------
    table : DataFrame
        Columns method, benchmark, value, low, high (fractions) and source; rows without an
        interval have low = high = NaN.
    """
    benchmarks, sources = table.benchmark.unique().tolist(), table.source.unique().tolist()
    order = method_order(table.method)
    picked, opacity = pick("source", 0.15)
    ends = "format(datum.low, '.2%') + ' to ' + format(datum.high, '.2%')"
    base = alt.Chart(table).encode(
        x=alt.X("method:N", sort=order, title=None, axis=alt.Axis(labelAngle=-40)),
        color=method_colour(order).legend(None),
        opacity=opacity,
        tooltip=tips(method="Method", source="Source")
        + tips(".2%", value="Error")
        + tips(interval="95 % interval"),
    )
    base = base.transform_calculate(interval=f"isValid(datum.low) ? {ends} : 'none'")
    shape = told_apart("source", None, sources, shapes=["circle", "diamond"])["shape"]
    at = errors_on(alt.Y, "value", scale=alt.Scale(zero=True))
    chart = dots(base, at, 80, shape=shape).properties(
        width=min(230, 430 // len(benchmarks)), height=260
    )
    return panels(chart.add_params(picked), "benchmark", benchmarks, len(benchmarks))


def sorted_class_error(table: pd.DataFrame) -> alt.Chart:
    """Figure 1: each method's class errors sorted from the best class to the worst.

    Parameters
    ----------
    table : DataFrame
        Columns method, benchmark, class_name, error (fraction), one row a class. Rank is added.
    """
    rank = table.groupby(["benchmark", "method"]).error.rank(method="first").astype(int)
    table = table.assign(rank=rank, error=table.error.round(4))
    benchmarks = table.benchmark.unique().tolist()
    picked, opacity = pick()
    base = alt.Chart(table).encode(
        x=alt.X(
            "rank:Q", title="Class, sorted by the method's own error", axis=alt.Axis(tickMinStep=1)
        ),
        y=errors_on(alt.Y),
        color=method_colour(table.method.unique()),
        opacity=opacity,
        tooltip=tips(class_name="Class", method="Method")
        + tips(".2%", error="Error")
        + tips("d", rank="Rank"),
    )
    first = f"datum.method == {json.dumps(table.method.iloc[0])}"
    points = findable(base, 40 if rank.max() <= 100 else 8, "class_search", first)
    columns = min(len(benchmarks), 4)
    chart = base.mark_line(strokeWidth=2) + points
    chart = chart.properties(width=640 // columns - 60, height=260).add_params(picked)
    return panels(chart, "benchmark", benchmarks, columns)


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


def class_changes(table: pd.DataFrame) -> alt.Chart:
    """Change of each class's error between two methods, marked where it is beyond chance.

    Parameters
    ----------
    table : DataFrame
        Columns class_name, panel, difference (fraction), q_value, change ("gains", "loses",
        "no change").
    """
    kinds = {"gains": OTHER_COLOURS[0], "within chance": "#bdbdbd", "loses": OTHER_COLOURS[1]}
    table = table.assign(change=table.change.replace("no change", "within chance"))
    order = table.groupby("class_name").difference.mean().sort_values().index.tolist()
    title = "Change of error (points, own scale)"
    bars = (
        alt.Chart(table)
        .mark_bar()
        .encode(
            x=alt.X("difference:Q", title=title, axis=alt.Axis(**CHANGE_AXIS)),
            y=alt.Y("class_name:N", sort=order, title=None),
            color=told_apart("change", "Beyond chance", list(kinds), list(kinds.values()))["color"],
            tooltip=tips(class_name="Class")
            + tips("+.2%", difference="Change")
            + tips(".2g", q_value="q value"),
        )
    )
    # Else one panel's large changes leave the others flat.
    bars = bars.properties(width=225, height=alt.Step(18))
    return panels(bars, "panel", table.panel.unique().tolist(), own="x")


def differences(table: pd.DataFrame, **axis) -> alt.Chart:
    """Paired differences with their intervals, one panel a pair of methods, each with its scale.

    Parameters
    ----------
    table : DataFrame
        Columns pair, name, value, low, high; below zero is better.
    **axis
        Title, form and labels, as `advbook.charts.base.changes` takes them.
    """
    chart = changes(table, "name", **axis).properties(width=225, height=alt.Step(17))
    return panels(chart, "pair", table.pair.unique().tolist(), own="x")


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


def confusion(table: pd.DataFrame) -> alt.Chart:
    """Who is taken for whom: share of a class's images, method and benchmark by drop-down.

    Parameters
    ----------
    table : DataFrame
        Columns method, benchmark, class_name, predicted_name, share (fraction).
    """
    names = table.class_name.unique().tolist()
    method = drop_down("method", method_order(table.method), "Adv")
    benchmark = drop_down("benchmark", table.benchmark.unique().tolist())
    cells = alt.Chart(table).transform_filter(method).transform_filter(benchmark).mark_rect()
    cells = cells.encode(
        x=alt.X("predicted_name:N", sort=names, title="Predicted class"),
        y=alt.Y("class_name:N", sort=names, title="True class"),
        color=heat("share", "Share of the class"),
        tooltip=tips(class_name="True", predicted_name="Predicted") + tips(".1%", share="Share"),
    )
    # Pairs that do not occur have no row: the ground has the colour of 0.
    ground = alt.ViewBackground(fill="#440154")
    return cells.properties(width=380, height=380, view=ground).add_params(method, benchmark)


def rank_correlation(table: pd.DataFrame, order: list[str]) -> alt.Chart:
    """How alike two orders of the classes are: a grid of Spearman's ρ for each method.

    Parameters
    ----------
    table : DataFrame
        Columns method, condition_a, condition_b, value (-1 to 1).
    order : list of str
        Of the conditions.
    """
    order = [name for name in order if name in set(table.condition_a)]
    base = alt.Chart(table).encode(
        x=alt.X("condition_b:N", sort=order, title=None, axis=alt.Axis(labelAngle=-40)),
        y=alt.Y("condition_a:N", sort=order, title=None),
        tooltip=tips(method="Method", condition_a="One order", condition_b="The other")
        + tips(".2f", value="ρ"),
    )
    # Centred on zero, so that a grey cell is no relation at all.
    scale = alt.Scale(domain=[-1, 0, 1], range=[OTHER_COLOURS[1], "#e8e8e8", OTHER_COLOURS[0]])
    legend = alt.Legend(orient="top", values=[-1, 0, 1])
    cells = base.mark_rect().encode(
        color=alt.Color("value:Q", title="Spearman's ρ", legend=legend, scale=scale)
    )
    text = base.mark_text(fontSize=11, color="#000").encode(text=alt.Text("value:Q", format=".2f"))
    chart = (cells + text).properties(
        width=alt.Step(48 if len(order) <= 4 else 34), height=alt.Step(30)
    )
    return chart.facet(facet("method", table.method.unique().tolist()), columns=3)


# ---------------------------------------------------------------- lines


def corruption_error(table: pd.DataFrame) -> alt.Chart:
    """Figure 2: error by severity, one panel a corruption.

    Parameters
    ----------
    table : DataFrame
        Columns method, corruption, severity (0 for the clean images), error (fraction).
    """
    picked, opacity = pick(rest=0.08)
    lines = alt.Chart(table).mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=20))
    lines = lines.encode(
        x=alt.X("severity:O", title="Severity (0: clean)", axis=alt.Axis(labelAngle=0)),
        y=errors_on(alt.Y, tickCount=3),
        color=method_colour(table.method.unique(), symbol="stroke"),
        opacity=opacity,
        tooltip=tips(method="Method", corruption="Corruption", severity="Severity")
        + tips(".2%", error="Error"),
    )
    lines = lines.properties(width=115, height=85).add_params(picked)
    return lines.facet(facet("corruption", table.corruption.unique().tolist()), columns=5)


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
    chart = dots(base, at, 35, stroke=1) + base.mark_line(strokeWidth=2).encode(at)
    if marked is not None:
        chart = line_at(table, marked, **DASHED) + chart
    return chart.properties(width="container", height=280).add_params(picked)


def class_lines(table: pd.DataFrame, description: str) -> alt.Chart:
    """The cover: every class as a line from method to method, one panel a benchmark.

    Lines that fan out are classes that a method treats unequally. A dot is a class, a bar the mean
    over the classes, with its figure; names stand at the hardest and the easiest class.

    Parameters
    ----------
    table : DataFrame
        Columns method, benchmark, class_name, error (fraction).
    description : str
        The alternative text.
    """
    order = method_order(table.method)
    benchmarks = table.benchmark.drop_duplicates().tolist()
    last = table[table.method == order[-1]]
    ends = last.groupby("benchmark", sort=False).error.agg(["idxmin", "idxmax", "min", "max"])
    ends = ends[ends["max"] > ends["min"]]  # where all classes are alike there is no hardest one
    named = table.index.isin(ends[["idxmin", "idxmax"]].to_numpy().ravel())
    table = table.assign(label=table.class_name.where(named, ""), error=table.error.round(4))
    over = alt.selection_point(fields=["class_name"], on="pointerover", empty=False)
    axis = {"tickCount": 5, "gridOpacity": 0.5}
    base = alt.Chart().encode(
        x=alt.X("method:N", sort=order, title=None, axis=alt.Axis(labelAngle=0, ticks=False)),
        y=errors_on(alt.Y, title="Error of a class (%)", **axis),
    )
    known = tips(class_name="Class", method="Method") + tips(".2%", error="Error")
    faint, size, opacity = 0.45, 75, 0.9
    if (n_classes := table.class_name.nunique()) > 100:
        faint, size, opacity = 0.04, 12, 0.25
    elif n_classes > 20:
        faint, size, opacity = 0.25, 30, 0.7
    lines = base.mark_line(color="#999999").encode(
        detail="class_name:N",
        opacity=alt.condition(over, alt.value(1), alt.value(faint)),
        strokeWidth=alt.condition(over, alt.value(3), alt.value(1.2)),
        tooltip=known,
    )
    points = base.mark_circle(size=size, opacity=opacity).encode(
        color=method_colour(order).legend(None), tooltip=known
    )
    means = base.encode(y=alt.Y("mean(error):Q"))
    bars = means.mark_tick(width=26, thickness=3, color="black", orient="horizontal")
    text = {"align": "left", "fontSize": 11, "color": "black"}
    figures = means.mark_text(dx=16, fontWeight="bold", **text)
    figures = figures.encode(text=alt.Text("mean(error):Q", format=".1%"))
    names = base.mark_text(dx=9, **text).encode(text="label:N")
    chart = alt.layer(lines, points, bars, figures, names, data=table).add_params(over)
    chart = chart.properties(width=230, height=340)
    return panels(chart, "benchmark", benchmarks, len(benchmarks), labelFontSize=14).properties(
        description=description
    )


def in_words(table: pd.DataFrame) -> str:
    """The picture of `class_lines` as a sentence a panel, for those who cannot see it."""
    sentences = []
    for benchmark, part in table.groupby("benchmark", sort=False):
        known = []
        for method in method_order(part.method):
            error = part[part.method == method].set_index("class_name").error
            known.append(
                f"{method} errs on {error.mean():.0%} on average, from {error.min():.0%} "
                f"({error.idxmin()}) to {error.max():.0%} ({error.idxmax()})"
            )
        sentences.append(f"{benchmark}: {'; '.join(known)}.")
    return "Errors of single classes by method. " + " ".join(sentences)
