"""What charts are made of: colours, marks, tips, panels and controls, readable by the colour-blind.

A chart of a chapter is a table, an encoding, and some of these pieces.
"""

import itertools
import os

import altair as alt
import pandas as pd

from advbook.text import InScript
from advlib.recipes import RECIPES

JSON = {"cls": InScript, "separators": (",", ":")}
if os.environ.get("ADVLIB_LAB"):  # set by `make lab`: charts in JupyterLab without a network
    alt.renderers.enable("jupyter", offline=True)
else:
    alt.renderers.enable("default", json_kwds=JSON)

alt.data_transformers.disable_max_rows()  # 1,000 classes of several methods are one chart

# By the method's id. Okabe and Ito's palette, which every common colour-vision deficiency tells
# apart, and a dark olive where it has a yellow, which white paper swallows.
METHOD_COLOURS = {
    "pretrained": "#999999",
    "std": "#0072B2",
    "adv": "#D55E00",
    "adv_plus": "#009E73",
    "adv_mix": "#E69F00",
    "adv_plus_mix": "#56B4E9",
    "adv_smoothing": "#CC79A7",
    "adv_extra_logit": "#6B5D00",
}
# Beside the colour, for those who cannot see it; any other method is a diamond.
METHOD_SHAPES = {
    "pretrained": "cross",
    "std": "circle",
    "adv": "square",
    "adv_plus": "triangle-up",
    "adv_mix": "triangle-left",
    "adv_plus_mix": "triangle-right",
}
IDS = {recipe.title: name for name, recipe in RECIPES.items()} | {"Start": "pretrained"}
# For what is no method. Purple, brown and grey, dark and pale: no hue of a method, and told apart
# with every common colour-vision deficiency too.
OTHER_COLOURS = ["#8e63ce", "#a0662a", "#808080", "#c3a9e8", "#d9b183", "#bdbdbd"]
# Of models beyond those, and again from the start: no more colours can be told apart.
MORE_COLOURS = ["#EE4466", "#882266", "#446644", "#4400EE"]
LINE = "#888888"  # of zero, of a reference, of all classes behind the one that is shown
ERROR_AXIS = {"format": ".0%", "tickMinStep": 0.01}  # so that no two ticks round to one
# Labels of an axis in points, of fractions.
POINTS = "abs(datum.value) > 1e-9 ? format(100 * datum.value, '+.3~g') : '0'"
CHANGE_AXIS = {"labelExpr": POINTS, "tickCount": 5, "tickMinStep": 0.01}
INTERVAL = {"low": "95 % from", "high": "to"}


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


# ---------------------------------------------------------------- colours


def colour_of(method: str) -> str | None:
    """The colour of one of the project's methods, by its id or its title; None for any other."""
    return METHOD_COLOURS.get(IDS.get(method, method))


def method_order(methods) -> list[str]:
    """The project's methods in their fixed order, then all others in the order given."""
    given, fixed = list(dict.fromkeys(methods)), list(METHOD_COLOURS)
    ids = {m: IDS.get(m, m) for m in given}
    return sorted(given, key=lambda m: fixed.index(ids[m]) if ids[m] in fixed else len(fixed))


def method_colour(
    methods: list[str], title: str | None = "Method", symbol: str = "circle"
) -> alt.Color:
    """The colour channel for these methods (ids or titles), in the project's colours and order."""
    shown = method_order(methods)
    used = {colour_of(method) for method in shown}
    free = [colour for colour in METHOD_COLOURS.values() if colour not in used]
    # Grey, the first, is for what matters least.
    spare = itertools.cycle([*free[1:], *free[:1], *MORE_COLOURS])
    colours = [colour_of(method) or next(spare) for method in shown]
    columns = 4 if max(map(len, shown)) <= 16 else 2
    return told_apart("method", title, shown, colours, columns=columns, symbol=symbol)["color"]


def method_marks(methods: list[str]) -> dict:
    """The channels color and shape of these methods (ids or titles), with one legend above."""
    color, order = method_colour(methods), method_order(methods)
    shapes = [METHOD_SHAPES.get(IDS.get(method, method), "diamond") for method in order]
    return {"color": color, "shape": told_apart("method", "Method", order, shapes=shapes)["shape"]}


def told_apart(
    field: str,
    title: str | None,
    order: list[str],
    colours: list[str] = OTHER_COLOURS,
    shapes: list[str] = alt.Undefined,
    *,
    columns: int = alt.Undefined,
    symbol: str = alt.Undefined,
) -> dict:
    """The channels color and shape that tell the values of a column apart, with one legend above.

    Marks that have no shape, such as lines and bars, take ``["color"]`` alone.
    """
    width = {} if symbol is alt.Undefined else {"symbolStrokeWidth": 3 * (symbol == "stroke")}
    legend = alt.Legend(orient="top", columns=columns, labelLimit=280, symbolType=symbol, **width)
    same = {"title": title, "sort": order, "legend": legend}
    color = alt.Color(f"{field}:N", scale=alt.Scale(domain=order, range=colours), **same)
    shape = alt.Shape(f"{field}:N", scale=alt.Scale(domain=order, range=shapes), **same)
    return {"color": color, "shape": shape}


def change_heat(base: alt.Chart, field: str, said: str, limit: float) -> alt.LayerChart:
    """Cells coloured by a change of error, a fraction up to `limit`, with the text `said`."""
    scale = alt.Scale(scheme="purpleorange", domain=[-limit, limit], domainMid=0)
    legend = alt.Legend(orient="top", labelExpr=POINTS, tickCount=4, gradientLength=200)
    title = "Change of error (points)"
    color = alt.Color(field, type="quantitative", title=title, scale=scale, legend=legend)
    # Purple darkens earlier than orange.
    strong = f"datum.{field} < {-0.69 * limit} || datum.{field} > {0.92 * limit}"
    ink = alt.condition(strong, alt.value("#fff"), alt.value("#000"))
    text = base.mark_text(fontSize=11).encode(text=alt.Text(said, type="nominal"), color=ink)
    return base.mark_rect().encode(color=color) + text


# ---------------------------------------------------------------- axes and tips


def tips(form: str = "", /, **titles: str) -> list[alt.Tooltip]:
    """What the pointer shows: columns and their titles, numbers if there is a format for them."""
    kind = {"type": "quantitative", "format": form} if form else {"type": "nominal"}
    return [alt.Tooltip(field, title=title, **kind) for field, title in titles.items()]


def spoken(table: pd.DataFrame, form: str) -> pd.DataFrame:
    """The table with a column for the channel description: what a screen reader says of a mark.

    Else it reads out the plain fractions under an axis' title in per cent. `form` names columns:
    "{method}: error {error:.1%}".
    """
    said = [form.format(**row) for row in table.to_dict("records")]
    return table.assign(description=pd.Series(said, table.index, dtype=object))


def errors_on(
    channel: type[alt.X] | type[alt.Y],
    field: str = "error",
    title: str = "Error (%)",
    scale: alt.Scale = alt.Undefined,
    **axis,
) -> alt.X | alt.Y:
    """A fraction on an axis in per cent."""
    return channel(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(**ERROR_AXIS, **axis))


def names_above(half: float) -> alt.Axis:
    """An axis of names that stand above their marks, so that a telephone has room for both.

    From the middle of a name's marks to their upper edge are `half` px.
    """
    place = {"labelAlign": "left", "labelBaseline": "bottom", "labelOffset": -half - 2}
    return alt.Axis(**place, labelPadding=-4, labelLimit=360, ticks=False, zindex=1)


# ---------------------------------------------------------------- layers


def dots(
    base: alt.Chart, at: alt.X | alt.Y, size: int = 45, *, stroke: float = 2, **channels
) -> alt.LayerChart:
    """A dot for each row, and a line from column low to column high where these are not missing.

    `base` has all channels but `at`, where the value stands; `channels` are of the dots alone.
    """
    ends, along = at.copy(), type(at).__name__.lower()
    ends["shorthand"] = "low:Q"
    lines = base.mark_rule(strokeWidth=stroke).encode(**{along: ends, f"{along}2": "high:Q"})
    return lines + base.mark_point(filled=True, size=size, opacity=1).encode(at, **channels)


def line_at(table: pd.DataFrame, value: float, scale: alt.Scale = alt.Undefined, **mark):
    """A line at this place of the horizontal axis, behind the marks of a chart of `table`."""
    place = alt.datum(value) if scale is alt.Undefined else alt.datum(value, scale=scale)
    return alt.Chart(table).mark_rule(color=LINE, **mark).encode(x=place)


DASHED = {"strokeDash": [4, 4]}


# ---------------------------------------------------------------- controls and panels


def pick(field: str = "method", rest: float = 0.1) -> tuple[alt.Parameter, dict]:
    """Click an entry of the legend to see it alone; shift-click adds, a click beside resets.

    Returns a parameter of the chart, and the channel opacity: `rest` for what is not picked.
    """
    picked = alt.selection_point(fields=[field], bind="legend")
    return picked, alt.condition(picked, alt.value(1), alt.value(rest))


def drop_down(field: str, options: list[str]) -> alt.Parameter:
    """Choose one value of a column below the chart: the first, to begin with."""
    return alt.selection_point(
        fields=[field],
        bind=alt.binding_select(options=options, name=f"{field.capitalize()} "),
        value=[{field: options[0]}],
    )


def facet(field: str, order: list[str], **header) -> alt.Facet:
    """Panels by the values of a column, in this order, with no title but those."""
    header = alt.Header(**header) if header else alt.Undefined
    return alt.Facet(f"{field}:N", title=None, sort=order, header=header)


def panels(
    chart: alt.LayerChart, field: str, order: list[str], columns: int = 2, own: str = "", **header
) -> alt.FacetChart:
    """A panel for each value of a column, beside each other, or below each other on a telephone.

    Each has axes of its own, and a scale of its own along those in `own` ("x", "y" or "xy").
    """
    chart = chart.facet(facet(field, order, **header), columns=1)
    chart = chart.resolve_axis(x="independent", y="independent")
    return side_by_side(chart.resolve_scale(**dict.fromkeys(own, "independent")), columns)


def side_by_side(chart: alt.Chart, columns: int = 2) -> alt.Chart:
    """The chart's panels beside each other, or below each other on a telephone.

    The panels, which are 640 px wide together, are in one column and have axes of their own.
    """
    wide = "containerSize()[0] >= 680"
    signal = {"name": "wide", "init": wide, "on": [{"events": "window:resize", "update": wide}]}
    number = {"signal": f"wide ? {columns} : 1"}
    patch = [  # of the compiled chart
        {"op": "add", "path": "/signals/0", "value": signal},
        {"op": "replace", "path": "/layout/columns", "value": number},
    ]
    return chart.properties(
        autosize=alt.AutoSizeParams(type="pad", resize=True),
        usermeta={"embedOptions": {"patch": patch}},
    )
