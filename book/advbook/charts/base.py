"""From tables to Altair charts: one family, one colour a method, readable by the colour-blind."""

import itertools
import json
import os

import altair as alt
import pandas as pd

from advbook.text import InScript

if os.environ.get("ADVLIB_LAB"):  # set by `make lab`: charts in JupyterLab without a network
    alt.renderers.enable("jupyter", offline=True)
else:
    alt.renderers.enable("default", json_kwds={"cls": InScript})

alt.data_transformers.disable_max_rows()  # 1,000 classes of several methods are one chart

# Okabe and Ito's palette, which every common colour-vision deficiency tells apart, and a dark olive
# where it has a yellow, which white paper swallows.
METHOD_COLOURS = {
    "Pretrained": "#999999",
    "Std": "#0072B2",
    "Adv": "#D55E00",
    "Adv⁺": "#009E73",
    "Adv mixed": "#E69F00",
    "Adv⁺ mixed": "#56B4E9",
    "Adv smoothing": "#CC79A7",
    "Adv extra logit": "#6B5D00",
}
# For what is no method. Purple, brown and grey, dark and pale: no hue of a method, and told apart
# with every common colour-vision deficiency too.
OTHER_COLOURS = ["#8e63ce", "#a0662a", "#808080", "#c3a9e8", "#d9b183", "#bdbdbd"]
# Of models beyond those, and again from the start: no more colours can be told apart.
MORE_COLOURS = ["#EE4466", "#882266", "#446644", "#4400EE"]
CLEAR = ["black", "#999999"]  # beyond chance in the page's own ink, within it in grey
ERROR_AXIS = {"format": ".0%", "tickMinStep": 0.01}  # so that no two ticks round to one
# Labels of an axis in points, of fractions.
POINTS = "abs(datum.value) > 1e-9 ? format(100 * datum.value, '+.3~g') : '0'"


@alt.theme.register("advlib", enable=True)
def theme() -> alt.theme.ThemeConfig:
    """Plain and transparent: the page decides the colour of paper and ink, light or dark."""
    size = {"labelFontSize": 12, "titleFontSize": 12}
    return {
        "config": {
            "background": "transparent",
            "font": "system-ui, sans-serif",
            # Three dicts: what a chart adds to one of them must not show in the others.
            "axis": {**size},
            "axisX": {"labelSeparation": 5},  # of numbers on a telephone
            "legend": {**size},
            "header": {**size},
            "view": {"stroke": None},
        }
    }


def method_order(methods) -> list[str]:
    """The project's methods in their fixed order, then all others in the order given."""
    given = list(dict.fromkeys(methods))
    return [m for m in METHOD_COLOURS if m in given] + [m for m in given if m not in METHOD_COLOURS]


def method_colour(
    methods: list[str], title: str | None = "Method", symbol: str = "circle"
) -> alt.Color:
    """The colour channel for these method names, in the project's fixed colours and order."""
    width = 3 if symbol == "stroke" else 0
    shown = method_order(methods)
    free = [colour for name, colour in METHOD_COLOURS.items() if name not in shown]
    # Grey, the first, is for what matters least.
    spare = itertools.cycle([*free[1:], *free[:1], *MORE_COLOURS])
    colours = [METHOD_COLOURS.get(name) or next(spare) for name in shown]
    columns = 4 if max(map(len, shown)) <= 16 else 2
    return alt.Color(
        "method:N",
        title=title,
        sort=shown,
        scale=alt.Scale(domain=shown, range=colours),
        legend=alt.Legend(
            orient="top",
            columns=columns,
            labelLimit=280,
            symbolType=symbol,
            symbolStrokeWidth=width,
        ),
    )


def pick_methods() -> alt.Parameter:
    """Click a method in the legend to see it alone; shift-click adds, a click beside resets."""
    return alt.selection_point(fields=["method"], bind="legend")


def side_by_side(chart: alt.Chart, columns: int = 2) -> alt.Chart:
    """The chart's panels beside each other, or below each other on a telephone.

    The panels, which are 640 px wide together, are in one column and have axes of their own.
    """
    wide = "containerSize()[0] >= 680"
    signal = {"name": "wide", "init": wide, "on": [{"events": "window:resize", "update": wide}]}
    # Of the compiled chart.
    patch = [
        {"op": "add", "path": "/signals/0", "value": signal},
        {
            "op": "replace",
            "path": "/layout/columns",
            "value": {"signal": f"wide ? {columns} : 1"},
        },
    ]
    return chart.properties(
        autosize=alt.AutoSizeParams(type="pad", resize=True),
        usermeta={"embedOptions": {"patch": patch}},
    )


def names_above(half: float) -> alt.Axis:
    """An axis of names that stand above their marks, so that a telephone has room for both.

    Parameters
    ----------
    half : float
        From the middle of a name's marks to their upper edge, in px.
    """
    place = {"labelAlign": "left", "labelBaseline": "bottom", "labelOffset": -half - 2}
    return alt.Axis(**place, labelPadding=-4, labelLimit=360, ticks=False, zindex=1)


def drop_down(field: str, options: list[str], first: str | None = None) -> alt.Parameter:
    """Choose one value of a column below the chart: to begin with `first`, if it is there."""
    return alt.selection_point(
        fields=[field],
        bind=alt.binding_select(options=options, name=f"{field.capitalize()} "),
        value=[{field: first if first in options else options[0]}],
    )


def ink_on_viridis(field: str) -> dict:
    """The colour of a text on a cell coloured by a fraction: a contrast of 4.5 or more on each."""
    return alt.condition(f"datum.{field} > 0.43", alt.value("#000"), alt.value("#fff"))


def average_error(table: pd.DataFrame) -> alt.Chart:
    """Error of each method under each benchmark, with its interval.

    Parameters
    ----------
    table : DataFrame
        Columns method, benchmark, value, low, high (fractions) and source; rows without an
        interval have low = high = NaN.
    """
    methods = table.method.unique().tolist()
    sources = table.source.unique().tolist()
    order = method_order(methods)
    pick = alt.selection_point(fields=["source"], bind="legend")
    base = alt.Chart(table).encode(
        x=alt.X("method:N", sort=order, title=None, axis=alt.Axis(labelAngle=-40)),
        y=alt.Y(
            "value:Q", title="Error (%)", axis=alt.Axis(**ERROR_AXIS), scale=alt.Scale(zero=True)
        ),
        color=method_colour(methods).legend(None),
        opacity=alt.condition(pick, alt.value(1), alt.value(0.15)),
        tooltip=[
            alt.Tooltip("method:N", title="Method"),
            alt.Tooltip("source:N", title="Source"),
            alt.Tooltip("value:Q", title="Error", format=".2%"),
            alt.Tooltip("interval:N", title="95 % interval"),
        ],
    )
    ends = "format(datum.low, '.2%') + ' to ' + format(datum.high, '.2%')"
    base = base.transform_calculate(interval=f"isValid(datum.low) ? {ends} : 'none'")
    rules = base.mark_rule(strokeWidth=2).encode(y="low:Q", y2="high:Q")
    points = base.mark_point(filled=True, size=80).encode(
        shape=alt.Shape(
            "source:N",
            title=None,
            scale=alt.Scale(domain=sources, range=["circle", "diamond"]),
            legend=alt.Legend(orient="top"),
        )
    )
    benchmarks = table.benchmark.unique().tolist()
    width = min(230, 430 // len(benchmarks))
    chart = (rules + points).properties(width=width, height=260).add_params(pick)
    chart = chart.facet(alt.Facet("benchmark:N", title=None, sort=benchmarks), columns=1)
    return side_by_side(chart.resolve_axis(x="independent", y="independent"), len(benchmarks))


def sorted_class_error(table: pd.DataFrame) -> alt.Chart:
    """Figure 1: each method's class errors sorted from the best class to the worst.

    Parameters
    ----------
    table : DataFrame
        Columns method, benchmark, class_name, error (fraction), one row a class. Rank is added.
    """
    table = table.copy()
    table["rank"] = table.groupby(["benchmark", "method"]).error.rank(method="first").astype(int)
    methods = table.method.unique().tolist()
    pick = pick_methods()
    search = alt.param(
        name="class_search",
        value="",
        bind=alt.binding(input="search", placeholder="class name", name="Find "),
    )
    found = "class_search && indexof(lower(datum.class_name), lower(class_search)) >= 0"
    base = alt.Chart(table).encode(
        x=alt.X(
            "rank:Q", title="Class, sorted by the method's own error", axis=alt.Axis(tickMinStep=1)
        ),
        y=alt.Y("error:Q", title="Error (%)", axis=alt.Axis(**ERROR_AXIS)),
        color=method_colour(methods),
        opacity=alt.condition(pick, alt.value(1), alt.value(0.1)),
        tooltip=[
            alt.Tooltip("class_name:N", title="Class"),
            alt.Tooltip("method:N", title="Method"),
            alt.Tooltip("error:Q", title="Error", format=".2%"),
            alt.Tooltip("rank:Q", title="Rank"),
        ],
    )
    few = table["rank"].max() <= 100
    lines = base.mark_line(strokeWidth=2)
    points = base.mark_circle(size=40 if few else 8)
    marked = base.mark_point(size=160, strokeWidth=2.5, filled=False).transform_filter(found)
    # One label a class: those of all methods would cover each other.
    first = f"datum.method == {json.dumps(table.method.iloc[0])}"
    labels = base.mark_text(dy=-14, fontSize=11).encode(text="class_name:N")
    labels = labels.transform_filter(f"{found} && {first}")
    benchmarks = table.benchmark.unique().tolist()
    columns = min(len(benchmarks), 4)
    width = 640 // columns - 60
    layers = (lines + points + marked + labels).properties(width=width, height=260)
    chart = layers.add_params(pick, search)
    chart = chart.facet(alt.Facet("benchmark:N", title=None, sort=benchmarks), columns=1)
    return side_by_side(chart.resolve_axis(x="independent", y="independent"), columns)


def class_error(
    table: pd.DataFrame,
    *,
    value: str = "Error (%)",
    form: str = ".0%",
    reference: float | None = None,
    legend: str = "Method",
) -> alt.Chart:
    """Every class, group or factor by name, one mark a method, with intervals; up to about 100.

    Parameters
    ----------
    table : DataFrame
        Columns method, benchmark, class_name, error, low, high (fractions, or ratios). One
        benchmark makes one panel.
    value, form : str
        Title and number format of the axis.
    reference : float, optional
        Where to draw a dashed line.
    legend : str
        What the column method holds.
    """
    methods = table.method.unique().tolist()
    pick = pick_methods()
    hardest = table.groupby("class_name").error.mean().sort_values(ascending=False).index.tolist()
    order = method_order(methods)
    precise = form.replace(".0", ".2")
    base = alt.Chart(table).encode(
        y=alt.Y("class_name:N", sort=hardest, title=None),
        yOffset=alt.YOffset("method:N", sort=order),
        color=method_colour(methods, legend),
        opacity=alt.condition(pick, alt.value(1), alt.value(0.08)),
        tooltip=[
            alt.Tooltip("class_name:N", title="Name"),
            alt.Tooltip("method:N", title="Method"),
            alt.Tooltip("error:Q", title=value.removesuffix(" (%)"), format=precise),
            alt.Tooltip("low:Q", title="95 % from", format=precise),
            alt.Tooltip("high:Q", title="to", format=precise),
        ],
    )
    rules = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=value), x2="high:Q")
    points = base.mark_circle(size=45).encode(
        x=alt.X(
            "error:Q",
            title=value,
            axis=alt.Axis(format=form, tickCount=6, tickMinStep=0.01),
            scale=alt.Scale(zero=reference is None),
        )
    )
    layers = [rules, points]
    if reference is not None:
        line = alt.Chart(table).mark_rule(strokeDash=[4, 4], color="#888888")
        layers.insert(0, line.encode(x=alt.datum(reference)))
    chart = alt.layer(*layers).properties(height=alt.Step(9)).add_params(pick)
    benchmarks = table.benchmark.unique().tolist()
    if len(benchmarks) == 1:
        return chart.properties(width="container")
    columns = min(len(benchmarks), 4)
    chart = chart.properties(width=640 // columns - 80)
    chart = chart.facet(alt.Facet("benchmark:N", title=None, sort=benchmarks), columns=1)
    return side_by_side(chart.resolve_axis(x="independent", y="independent"), columns)


def corruption_error(table: pd.DataFrame) -> alt.Chart:
    """Figure 2: error by severity, one panel a corruption.

    Parameters
    ----------
    table : DataFrame
        Columns method, corruption, severity (0 for the clean images), error (fraction).
    """
    methods = table.method.unique().tolist()
    pick = pick_methods()
    base = (
        alt.Chart(table)
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=20))
        .encode(
            x=alt.X("severity:O", title="Severity (0: clean)", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("error:Q", title="Error (%)", axis=alt.Axis(**ERROR_AXIS, tickCount=3)),
            color=method_colour(methods, symbol="stroke"),
            opacity=alt.condition(pick, alt.value(1), alt.value(0.08)),
            tooltip=[
                alt.Tooltip("method:N", title="Method"),
                alt.Tooltip("corruption:N", title="Corruption"),
                alt.Tooltip("severity:O", title="Severity"),
                alt.Tooltip("error:Q", title="Error", format=".2%"),
            ],
        )
        .properties(width=115, height=85)
        .add_params(pick)
    )
    order = table.corruption.drop_duplicates().tolist()
    return base.facet(alt.Facet("corruption:N", title=None, sort=order), columns=5)


def class_grid(table: pd.DataFrame, column: str, title: str) -> alt.Chart:
    """Error of each class under each condition, as colour; the method by drop-down.

    Parameters
    ----------
    table : DataFrame
        Columns method, class_name, error (fraction) and the one that `column` names.
    """
    methods = table.method.unique().tolist()
    method = drop_down("method", methods, "Adv")
    hardest = table.groupby("class_name").error.mean().sort_values(ascending=False).index.tolist()
    return (
        alt.Chart(table)
        .transform_filter(method)
        .mark_rect()
        .encode(
            x=alt.X(
                f"{column}:N",
                sort=table[column].drop_duplicates().tolist(),
                title=title,
                axis=alt.Axis(labelAngle=-45),
            ),
            y=alt.Y("class_name:N", sort=hardest, title=None),
            color=alt.Color(
                "error:Q",
                title="Error",
                scale=alt.Scale(scheme="viridis", domain=[0, 1]),
                legend=alt.Legend(format=".0%"),
            ),
            tooltip=[
                alt.Tooltip("class_name:N", title="Class"),
                alt.Tooltip(f"{column}:N", title=title),
                alt.Tooltip("error:Q", title="Error", format=".2%"),
            ],
        )
        .properties(width=alt.Step(26), height=alt.Step(18))
        .add_params(method)
    )


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
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "value:Q",
            title="Spearman's ρ",
            legend=alt.Legend(orient="top", values=[-1, 0, 1]),
            # Centred on zero, so that a grey cell is no relation at all.
            scale=alt.Scale(
                domain=[-1, 0, 1], range=[OTHER_COLOURS[1], "#e8e8e8", OTHER_COLOURS[0]]
            ),
        ),
        tooltip=[
            alt.Tooltip("method:N", title="Method"),
            alt.Tooltip("condition_a:N", title="One order"),
            alt.Tooltip("condition_b:N", title="The other"),
            alt.Tooltip("value:Q", title="ρ", format=".2f"),
        ],
    )
    text = base.mark_text(fontSize=11, color="#000").encode(text=alt.Text("value:Q", format=".2f"))
    panels = alt.Facet("method:N", title=None, sort=table.method.unique().tolist())
    return (
        (cells + text)
        .properties(width=alt.Step(48 if len(order) <= 4 else 34), height=alt.Step(30))
        .facet(panels, columns=3)
    )


def two_errors(table: pd.DataFrame) -> alt.Chart:
    """Each class's error under two benchmarks, one panel a method; find a class by name.

    Parameters
    ----------
    table : DataFrame
        Columns method, class_name, benchmark, other (the horizontal error), error (the vertical).
    """
    benchmarks = table.benchmark.drop_duplicates().tolist()
    benchmark = drop_down("benchmark", benchmarks, "PGD-40")
    search = alt.param(
        name="class_search_two",
        value="",
        bind=alt.binding(input="search", placeholder="class name", name="Find "),
    )
    found = "class_search_two && indexof(lower(datum.class_name), lower(class_search_two)) >= 0"
    methods = table.method.unique().tolist()
    base = (
        alt.Chart(table)
        .transform_filter(benchmark)
        .encode(
            x=alt.X("other:Q", title="Clean error (%)", axis=alt.Axis(**ERROR_AXIS, tickCount=4)),
            y=alt.Y("error:Q", title="Error (%)", axis=alt.Axis(**ERROR_AXIS, tickCount=4)),
            color=method_colour(methods).legend(None),
            tooltip=[
                alt.Tooltip("class_name:N", title="Class"),
                alt.Tooltip("method:N", title="Method"),
                alt.Tooltip("other:Q", title="Clean error", format=".2%"),
                alt.Tooltip("error:Q", title="Error", format=".2%"),
            ],
        )
    )
    few = table.class_name.nunique() <= 100
    points = base.mark_circle(size=60 if few else 14, opacity=0.8)
    marked = base.mark_point(size=180, strokeWidth=2.5, filled=False).transform_filter(found)
    labels = base.mark_text(dy=-12, fontSize=11).encode(text="class_name:N").transform_filter(found)
    layers = (points + marked + labels).properties(width=190, height=190)
    return layers.add_params(benchmark, search).facet(
        alt.Facet("method:N", title=None, sort=methods), columns=3
    )


def confusion_kinds(table: pd.DataFrame) -> alt.Chart:
    """Right, wrong within the group, wrong across groups: shares of each group's images.

    Parameters
    ----------
    table : DataFrame
        Columns method, benchmark, group, kind ("right", "within", "across"), share (fraction).
    """
    methods = table.method.unique().tolist()
    kinds = ["right", "within", "across"]
    table = table.assign(order=table.kind.map(kinds.index))
    return (
        alt.Chart(table)
        .mark_bar()
        .encode(
            x=alt.X("share:Q", title="Share of the group (%)", axis=alt.Axis(**ERROR_AXIS)),
            y=alt.Y("method:N", sort=methods, title=None),
            order="order:Q",
            color=alt.Color(
                "kind:N",
                title="Predicted",
                sort=kinds,
                scale=alt.Scale(domain=kinds, range=["#bdbdbd", "#d9b183", "#8e63ce"]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=[
                alt.Tooltip("group:N", title="Group"),
                alt.Tooltip("method:N", title="Method"),
                alt.Tooltip("kind:N", title="Predicted"),
                alt.Tooltip("share:Q", title="Share", format=".2%"),
            ],
        )
        .properties(width=200, height=alt.Step(16))
        .facet(
            column=alt.Column("benchmark:N", title=None, sort=table.benchmark.unique().tolist()),
            row=alt.Row(
                "group:N",
                title=None,
                sort=table.group.drop_duplicates().tolist(),
                header=alt.Header(labelAngle=0, labelAlign="left"),
            ),
        )
    )


def confusion(table: pd.DataFrame) -> alt.Chart:
    """Who is taken for whom: share of a class's images, method and benchmark by drop-down.

    Parameters
    ----------
    table : DataFrame
        Columns method, benchmark, class_name, predicted_name, share (fraction).
    """
    names = table.class_name.unique().tolist()
    methods = method_order(table.method)
    benchmarks = table.benchmark.unique().tolist()
    method = drop_down("method", methods, "Adv")
    benchmark = drop_down("benchmark", benchmarks)
    base = (
        alt.Chart(table)
        .transform_filter(method)
        .transform_filter(benchmark)
        .encode(
            x=alt.X("predicted_name:N", sort=names, title="Predicted class"),
            y=alt.Y("class_name:N", sort=names, title="True class"),
        )
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "share:Q",
            title="Share of the class",
            scale=alt.Scale(scheme="viridis", domain=[0, 1]),
            legend=alt.Legend(format=".0%"),
        ),
        tooltip=[
            alt.Tooltip("class_name:N", title="True"),
            alt.Tooltip("predicted_name:N", title="Predicted"),
            alt.Tooltip("share:Q", title="Share", format=".1%"),
        ],
    )
    # Pairs that do not occur have no row: the ground has the colour of 0.
    ground = alt.ViewBackground(fill="#440154")
    return cells.properties(width=380, height=380, view=ground).add_params(method, benchmark)


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
    chart = (
        alt.Chart(table)
        .mark_bar()
        .encode(
            x=alt.X(
                "difference:Q",
                title="Change of error (points, own scale)",
                axis=alt.Axis(labelExpr=POINTS, tickCount=5, tickMinStep=0.01),
            ),
            y=alt.Y("class_name:N", sort=order, title=None),
            color=alt.Color(
                "change:N",
                title="Beyond chance",
                scale=alt.Scale(domain=list(kinds), range=list(kinds.values())),
                legend=alt.Legend(orient="top", columns=3),
            ),
            tooltip=[
                alt.Tooltip("class_name:N", title="Class"),
                alt.Tooltip("difference:Q", title="Change", format="+.2%"),
                alt.Tooltip("q_value:Q", title="q value", format=".2g"),
            ],
        )
        .properties(width=225, height=alt.Step(18))
        .facet(alt.Facet("panel:N", title=None, sort=table.panel.unique().tolist()), columns=1)
        .resolve_scale(x="independent")  # else one panel's large changes leave the others flat
        .resolve_axis(y="independent")
    )
    return side_by_side(chart)


def differences(
    table: pd.DataFrame,
    title: str = "Change of error (points, own scale)",
    labels: str = POINTS,
    form: str = "+.2%",
) -> alt.Chart:
    """Paired differences with their intervals, one panel a pair of methods, each with its scale.

    Parameters
    ----------
    table : DataFrame
        Columns pair, name, value, low, high; below zero is better.
    title, labels, form : str
        Title of the axis, what its labels show (Vega), and the number format of tooltips.
    """
    order = table.groupby("name").value.mean().sort_values().index.tolist()
    clear = "datum.low > 0 || datum.high < 0"
    base = alt.Chart(table).encode(
        y=alt.Y("name:N", sort=order, title=None),
        color=alt.condition(clear, *map(alt.value, CLEAR)),
        tooltip=[
            alt.Tooltip("name:N", title="Name"),
            alt.Tooltip("value:Q", title="Change", format=form),
            alt.Tooltip("low:Q", title="95 % from", format=form),
            alt.Tooltip("high:Q", title="to", format=form),
        ],
    )
    zero = alt.Chart(table).mark_rule(color="#888888").encode(x=alt.datum(0))
    rules = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    points = base.mark_circle(size=55).encode(
        x=alt.X(
            "value:Q", title=title, axis=alt.Axis(labelExpr=labels, tickCount=5, tickMinStep=0.01)
        )
    )
    chart = (zero + rules + points).properties(width=225, height=alt.Step(17))
    chart = chart.facet(
        alt.Facet("pair:N", title=None, sort=table.pair.unique().tolist()), columns=1
    )
    return side_by_side(chart.resolve_scale(x="independent").resolve_axis(y="independent"))


def training_curves(table: pd.DataFrame) -> alt.Chart:
    """Loss and error of the batches trained on, by epoch.

    Parameters
    ----------
    table : DataFrame
        Columns method, seed, epoch, loss, error.
    """
    methods = table.method.unique().tolist()
    pick = pick_methods()
    base = (
        alt.Chart(table)
        .mark_line(strokeWidth=2, point=True)
        .encode(
            x=alt.X("epoch:Q", title="Epoch", axis=alt.Axis(tickMinStep=1, format="d")),
            color=method_colour(methods, symbol="stroke"),
            detail="seed:N",
            opacity=alt.condition(pick, alt.value(1), alt.value(0.1)),
            tooltip=[
                alt.Tooltip("method:N", title="Method"),
                alt.Tooltip("seed:N", title="Seed"),
                alt.Tooltip("epoch:Q", title="Epoch", format="d"),
                alt.Tooltip("loss:Q", title="Loss", format=".3f"),
                alt.Tooltip("error:Q", title="Error", format=".1%"),
            ],
        )
        .properties(width=280, height=240)
    )
    loss = base.encode(y=alt.Y("loss:Q", title="Loss of the batch (nats)"))
    error = base.encode(
        y=alt.Y("error:Q", title="Error of the batch (%)", axis=alt.Axis(**ERROR_AXIS))
    )
    return loss.add_params(pick) | error
