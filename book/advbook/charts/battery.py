"""Charts of the chapter "Is it really robust?"."""

import altair as alt
import pandas as pd

from advbook.charts.base import (
    ERROR_AXIS,
    ink_on_viridis,
    method_colour,
    method_order,
    pick_methods,
)


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
    methods = table.method.unique().tolist()
    pick = pick_methods()
    positive = table.loc[table[x] > 0, x].min()
    kind = alt.Scale(type="symlog", constant=positive) if (table[x] == 0).any() else None
    scale = kind or alt.Scale(type="log")
    values = sorted(table[x].unique().tolist())
    # Numbers as they are: a format would round 0.025 to two digits.
    axis = alt.Axis(values=values, labelExpr="datum.value", labelAngle=-45)
    base = alt.Chart(table).encode(
        x=alt.X(f"{x}:Q", title=title, scale=scale, axis=axis),
        color=method_colour(methods, symbol="stroke"),
        opacity=alt.condition(pick, alt.value(1), alt.value(0.1)),
        tooltip=[
            alt.Tooltip("method:N", title="Method"),
            alt.Tooltip(f"{x}:Q", title=title, format="~g"),
            alt.Tooltip("value:Q", title="Error", format=".1%"),
            alt.Tooltip("low:Q", title="95 % from", format=".1%"),
            alt.Tooltip("high:Q", title="to", format=".1%"),
        ],
    )
    y = alt.Y(
        "value:Q", title="Error (%)", axis=alt.Axis(**ERROR_AXIS), scale=alt.Scale(domain=[0, 1])
    )
    lines = base.mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=35)).encode(y=y)
    rules = base.mark_rule().encode(y=alt.Y("low:Q", title="Error (%)"), y2="high:Q")
    layers = [rules, lines]
    if marked is not None:
        line = alt.Chart(table).mark_rule(strokeDash=[4, 4], color="#888888")
        layers.insert(0, line.encode(x=alt.datum(marked)))
    return alt.layer(*layers).properties(width="container", height=280).add_params(pick)


def transfer_matrix(table: pd.DataFrame) -> alt.Chart:
    """Error of each network under attacks made on each, as colour and number.

    Parameters
    ----------
    table : DataFrame
        Columns source, target, value (fraction).
    """
    order = method_order(table.target)
    base = alt.Chart(table).encode(
        x=alt.X("target:N", sort=order, title="Judged on", axis=alt.Axis(labelAngle=-40)),
        y=alt.Y("source:N", sort=order, title="Made on"),
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "value:Q",
            title="Error",
            scale=alt.Scale(scheme="viridis", domain=[0, 1]),
            legend=alt.Legend(format=".0%"),
        ),
        tooltip=[
            alt.Tooltip("source:N", title="Made on"),
            alt.Tooltip("target:N", title="Judged on"),
            alt.Tooltip("value:Q", title="Error", format=".1%"),
        ],
    )
    text = base.mark_text(fontSize=11).encode(
        text=alt.Text("value:Q", format=".0%"), color=ink_on_viridis("value")
    )
    return (cells + text).properties(width=alt.Step(60), height=alt.Step(32))


def autoattack_components(table: pd.DataFrame) -> alt.Chart:
    """The error under PGD and after each component of AutoAttack, one panel a method.

    Parameters
    ----------
    table : DataFrame
        Columns method, attack (in the order of the rows), value, low, high (fractions).
    """
    attacks = table.attack.drop_duplicates().tolist()
    methods = method_order(table.method)
    base = alt.Chart(table).encode(
        y=alt.Y("attack:N", sort=attacks, title=None),
        color=method_colour(methods).legend(None),
        tooltip=[
            alt.Tooltip("method:N", title="Method"),
            alt.Tooltip("attack:N", title="Attack"),
            alt.Tooltip("value:Q", title="Error", format=".1%"),
            alt.Tooltip("low:Q", title="95 % from", format=".1%"),
            alt.Tooltip("high:Q", title="to", format=".1%"),
        ],
    )
    rules = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title="Error (%)"), x2="high:Q")
    points = base.mark_circle(size=60).encode(
        x=alt.X(
            "value:Q",
            title="Error (%)",
            scale=alt.Scale(zero=False),
            axis=alt.Axis(**ERROR_AXIS, tickCount=5),
        )
    )
    return (
        (rules + points)
        .properties(width=170, height=alt.Step(20))
        .facet(alt.Facet("method:N", title=None, sort=methods), columns=3)
    )
