"""Charts of the chapter on threat models: pure functions from tables to Altair charts."""

import altair as alt
import pandas as pd

from advbook.charts.base import (
    CLEAR,
    ERROR_AXIS,
    OTHER_COLOURS,
    POINTS,
    ink_on_viridis,
    method_order,
    names_above,
    side_by_side,
)

WIDE_LABELS = alt.Axis(labelLimit=280)


def switch_grid(table: pd.DataFrame) -> alt.Chart:
    """Error of each method under each switch, as colour and number.

    Parameters
    ----------
    table : DataFrame
        Columns method, switch, value, low, high (fractions), shown (the text of the cell; value is
        missing where a switch is no other attack).
    """
    base = alt.Chart(table).encode(
        x=alt.X(
            "method:N",
            sort=method_order(table.method),
            title=None,
            axis=alt.Axis(orient="top", labelAngle=-30),
        ),
        y=alt.Y(
            "switch:N", sort=table.switch.drop_duplicates().tolist(), title=None, axis=WIDE_LABELS
        ),
        tooltip=[
            alt.Tooltip("method:N", title="Method"),
            alt.Tooltip("switch:N", title="Switch"),
            alt.Tooltip("value:Q", title="Error", format=".2%"),
            alt.Tooltip("low:Q", title="95 % from", format=".2%"),
            alt.Tooltip("high:Q", title="to", format=".2%"),
        ],
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "value:Q",
            title="Error",
            scale=alt.Scale(scheme="viridis", domain=[0, 1]),
            legend=alt.Legend(
                format=".0%", orient="bottom", gradientLength=240, values=[0, 0.5, 1]
            ),
        )
    )
    same = "!isValid(datum.value)"
    text = base.mark_text(fontSize=11).encode(text="shown:N", color=ink_on_viridis("value"))
    grey = base.mark_text(fontSize=11, color="black", opacity=0.7).encode(text="shown:N")
    layers = (
        cells.transform_filter("isValid(datum.value)")
        + text.transform_filter("isValid(datum.value)")
        + grey.transform_filter(same)
    )
    return layers.properties(width=alt.Step(64), height=alt.Step(20))


def switch_changes(table: pd.DataFrame) -> alt.Chart:
    """Paired difference of each switch from the default, with its interval, one panel a method.

    Parameters
    ----------
    table : DataFrame
        Columns method, switch, change, change_low, change_high (fractions). Above zero: the switch
        makes the attack stronger.
    """
    order = table.switch.drop_duplicates().tolist()
    clear = "datum.change_low > 0 || datum.change_high < 0"
    base = alt.Chart(table).encode(
        y=alt.Y("switch:N", sort=order, title=None, axis=WIDE_LABELS),
        color=alt.condition(clear, *map(alt.value, CLEAR)),
        tooltip=[
            alt.Tooltip("method:N", title="Method"),
            alt.Tooltip("switch:N", title="Switch"),
            alt.Tooltip("change:Q", title="Change", format="+.2%"),
            alt.Tooltip("change_low:Q", title="95 % from", format="+.2%"),
            alt.Tooltip("change_high:Q", title="to", format="+.2%"),
        ],
    )
    axis = alt.Axis(labelExpr=POINTS, tickCount=4, tickMinStep=0.01)
    zero = alt.Chart(table).mark_rule(color="#888888").encode(x=alt.datum(0))
    rules = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("change_low:Q", title="Change (points)"), x2="change_high:Q"
    )
    points = base.mark_circle(size=45).encode(
        x=alt.X("change:Q", title="Change (points)", axis=axis)
    )
    chart = (zero + rules + points).properties(width=130, height=alt.Step(16))
    return chart.facet(
        alt.Facet("method:N", title=None, sort=method_order(table.method)), columns=3
    )


def gap_intervals(table: pd.DataFrame, panels: list[str]) -> alt.Chart:
    """Masking gap and label gap of each model, with intervals, by any and by the last iterate.

    Parameters
    ----------
    table : DataFrame
        Columns method, panel, success, value, low, high (fractions).
    panels : list of str
        The gaps, in the order in which they are shown.
    """
    order = table.method.drop_duplicates().tolist()
    counted = table.success.drop_duplicates().tolist()
    legend = alt.Legend(orient="top", labelLimit=280)
    base = alt.Chart(table).encode(
        y=alt.Y(
            "method:N",
            sort=order,
            title=None,
            scale=alt.Scale(paddingInner=0.4),
            axis=names_above(12 * len(counted) / 2),
        ),
        yOffset=alt.YOffset("success:N"),
        color=alt.Color(
            "success:N",
            title="Counted as broken",
            scale=alt.Scale(domain=counted, range=OTHER_COLOURS),
            legend=legend,
        ),
        tooltip=[
            alt.Tooltip("method:N", title="Model"),
            alt.Tooltip("panel:N", title="Gap"),
            alt.Tooltip("success:N", title="Counted"),
            alt.Tooltip("value:Q", title="Gap (points)", format="+.2%"),
            alt.Tooltip("low:Q", title="95 % from", format="+.2%"),
            alt.Tooltip("high:Q", title="to", format="+.2%"),
        ],
    )
    axis = alt.Axis(labelExpr=POINTS, tickCount=5, tickMinStep=0.01)
    zero = alt.Chart(table).mark_rule(color="#888888").encode(x=alt.datum(0))
    rules = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="Gap (points)"), x2="high:Q"
    )
    points = base.mark_point(filled=True, size=50, opacity=1).encode(
        x=alt.X("value:Q", title="Gap (points)", axis=axis),
        shape=alt.Shape(
            "success:N",
            title="Counted as broken",
            scale=alt.Scale(domain=counted),
            legend=legend,
        ),
    )
    chart = (zero + rules + points).properties(width=310, height=alt.Step(12))
    chart = chart.facet(alt.Facet("panel:N", title=None, sort=panels), columns=1)
    return side_by_side(chart.resolve_axis(x="independent", y="independent"))


def adv_plus_against_adv(table: pd.DataFrame, pattern: dict) -> alt.Chart:
    """Attacked error of Adv⁺ against that of Adv, for every combination, and the paper's point.

    Parameters
    ----------
    table : DataFrame
        Of `combinations`, with a column kind: what colour and shape tell apart.
    pattern : dict
        Of `advbook.audit.ledger.published_pattern`.
    """
    kinds = table.kind.drop_duplicates().tolist()
    legend = alt.Legend(orient="top", columns=2, labelLimit=280)
    pick = alt.selection_point(fields=["kind"], bind="legend")
    paper = pd.DataFrame(
        [{"x": pattern["attacked", "adv"], "y": pattern["attacked", "adv_plus"], "text": "paper"}]
    )
    scale, axis = alt.Scale(domain=[0, 1]), alt.Axis(**ERROR_AXIS, tickCount=6)
    x = alt.X(
        "attacked_adv:Q",
        title="Attacked error of Adv (%)",
        scale=scale,
        axis=axis,
    )
    y = alt.Y(
        "attacked_adv_plus:Q",
        title="Attacked error of Adv⁺ (%)",
        scale=scale,
        axis=axis,
    )
    points = (
        alt.Chart(table)
        .mark_point(filled=True, size=55)
        .encode(
            x=x,
            y=y,
            color=alt.Color(
                "kind:N",
                title="Networks",
                sort=kinds,
                scale=alt.Scale(domain=kinds, range=OTHER_COLOURS),
                legend=legend,
            ),
            shape=alt.Shape(
                "kind:N",
                title="Networks",
                sort=kinds,
                scale=alt.Scale(domain=kinds),
                legend=legend,
            ),
            opacity=alt.condition(pick, alt.value(0.85), alt.value(0.08)),
            tooltip=[
                alt.Tooltip("pair:N", title="Networks"),
                alt.Tooltip("switch:N", title="Switch"),
                alt.Tooltip("attacked_std:Q", title="Attacked: Std", format=".2%"),
                alt.Tooltip("attacked_adv:Q", title="Adv", format=".2%"),
                alt.Tooltip("attacked_adv_plus:Q", title="Adv⁺", format=".2%"),
                alt.Tooltip("distance:Q", title="Distance (points)", format=".2f"),
            ],
        )
        .add_params(pick)
    )
    ends = pd.DataFrame({"attacked_adv": [0, 1], "attacked_adv_plus": [0, 1]})
    line = alt.Chart(ends).mark_line(color="#888888", strokeDash=[4, 4]).encode(x=x, y=y)
    mark = alt.Chart(paper).encode(x=alt.X("x:Q", scale=scale), y=alt.Y("y:Q", scale=scale))
    diamond = mark.mark_point(shape="diamond", size=160, filled=True, color="black")
    label = mark.mark_text(dy=-14, fontSize=12, color="black").encode(text="text:N")
    return (line + points + diamond + label).properties(width=440, height=380)
