"""Charts about the attack: the readings of it, and what a battery of others adds."""

import altair as alt
import pandas as pd

from advbook.charts.base import (
    DASHED,
    INTERVAL,
    LINE,
    OTHER_COLOURS,
    dots,
    errors_on,
    line_at,
    method_colour,
    method_order,
    panels,
    pick,
    tips,
    told_apart,
)
from advbook.studies.tables import decimal

STEPS = [OTHER_COLOURS[i] for i in (5, 3, 1, 0, 4, 2)]
SHAPES = ["circle", "square", "triangle-up", "cross", "triangle-down", "triangle-right"]


def readings(table: pd.DataFrame, paper: dict) -> alt.LayerChart:
    """Adv⁺'s error under attack against Adv's: a point for each reading, and the paper's.

    The table has one row per study, pair of networks and reading of the attack, with columns title,
    pair, switch, attacked_adv and attacked_adv_plus (fractions): ``ledger-combinations`` as
    `advbook.studies.results.results` returns it. The paper's errors are those of
    `advbook.audit.ledger.published_pattern`.
    """
    studies = table.title.unique().tolist()
    picked, opacity = pick("title", 0.08)
    whole = alt.Scale(domain=[0, 1])
    x = errors_on(alt.X, "attacked_adv", "Error of Adv under attack (%)", whole, tickCount=6)
    y = errors_on(alt.Y, "attacked_adv_plus", "Error of Adv⁺ under attack (%)", whole, tickCount=6)
    points = 100 * (table.attacked_adv_plus - table.attacked_adv)
    dots = alt.Chart(table.assign(points=points)).mark_point(filled=True, size=50)
    dots = dots.encode(
        x,
        y,
        opacity=opacity,
        **told_apart("title", None, studies, shapes=SHAPES, columns=1),
        tooltip=tips(title="Study", pair="Networks", switch="Attack")
        + tips(".2%", attacked_adv="Adv", attacked_adv_plus="Adv⁺")
        + tips("+.2f", points="Adv⁺ − Adv (points)"),
    )
    adv, plus = (paper["attacked", method] for method in ("adv", "adv_plus"))
    ends = pd.DataFrame({"attacked_adv": [0, 1], "attacked_adv_plus": [0, 1]})
    equal = alt.Chart(ends).mark_line(color=LINE, **DASHED).encode(x, y)
    point = {"attacked_adv": adv, "attacked_adv_plus": plus, "equal": adv}
    gain = f"{decimal(100 * (plus - adv), 1)} points"
    paper = alt.Chart(pd.DataFrame([point | {"name": "the paper", "gain": gain}])).encode(x, y)
    claimed = paper.mark_rule(color="black", **DASHED).encode(y2="equal")
    diamond = paper.mark_point(shape="diamond", size=180, filled=True, color="black", opacity=1)
    text = paper.mark_text(fontSize=12, color="black", align="left", dx=10)
    middle = alt.YDatum((adv + plus) / 2)
    labels = text.encode(text="name") + text.encode(y=middle, text="gain")
    corner = {"x": alt.XDatum(0.9), "y": alt.YDatum(0.9), "text": alt.value("no difference")}
    labels += paper.mark_text(fontSize=12, color="black", align="right", dx=-16).encode(**corner)
    chart = equal + dots.add_params(picked) + claimed + diamond + labels
    return chart.properties(width="container", height=380)


def added_by_attack(table: pd.DataFrame) -> alt.FacetChart:
    """What each attack breaks that those before it left: a column for each network.

    The table has columns title (of the study), name (of the network), step, and value, low and high
    of the error (fractions); the steps in their order. Where a step's own error is below the last
    one's, the column stays as high as it is.
    """
    steps, titles = table.step.drop_duplicates().tolist(), table.title.unique().tolist()
    network = table.groupby(["title", "name"], sort=False)
    top = network.value.cummax()
    below = top.groupby([table.title, table.name], sort=False).shift(fill_value=0)
    added = [decimal(100 * value, 1) for value in top - below]
    table = table.assign(top=top, below=below, middle=(top + below) / 2, added=added)
    left = 40  # of the middle of a network's place, px: its labels stand to the right
    for end in ("first", "last"):
        table[end] = ~table.duplicated(["title", "name"], keep=end)
    base = alt.Chart(table).encode(
        x=alt.X(
            "name:N",
            sort=method_order(table.name),
            title=None,
            axis=alt.Axis(labelAngle=0, ticks=False, labelPadding=6, labelOffset=-left),
        ),
        tooltip=tips(title="Study", name="Network", step="Attack")
        + tips(added="Breaks besides (points)")
        + tips(".1%", value="Its own error", **INTERVAL),
    )
    bars = base.mark_bar(size=44, xOffset=-left, stroke="white", strokeWidth=0.5).encode(
        y=errors_on(alt.Y, "below", "Error (%)", alt.Scale(domain=[0, 1]), tickCount=5),
        y2="top:Q",
        color=alt.Color("step:N", sort=steps, scale=alt.Scale(range=STEPS), legend=None),
    )
    text = base.mark_text(fontSize=11, color="black", align="left", dx=26 - left)
    text = text.encode(y="middle:Q", text=alt.Text("label:N"))
    text = text.transform_filter("datum.top - datum.below >= 0.01")
    text = text.transform_calculate(label="datum.step + (datum.first ? ' ' : ' +') + datum.added")
    total = base.mark_text(fontSize=12, color="black", fontWeight="bold", dx=-left, dy=-9)
    total = total.encode(y="top:Q", text=alt.Text("top:Q", format=".1%"))
    total = total.transform_filter("datum.last")
    chart = (bars + text + total).properties(width=alt.Step(145), height=300)
    return panels(chart, "title", titles)


def error_against(table: pd.DataFrame, x: str, title: str, marked: float) -> alt.LayerChart:
    """Each method's error against ε or the number of steps, with its interval.

    The table has columns method, value, low, high (fractions), and the one that `x` names: it goes
    on the horizontal axis (logarithmic; 0 has a place of its own), under this title, with a dashed
    line at `marked`.
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
    chart = line_at(table, marked, **DASHED) + chart
    return chart.properties(width="container", height=280).add_params(picked)
