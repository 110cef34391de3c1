"""One class at a time: its errors, rank and confusions, as one linked chart of all classes.

The chart holds one short row a class, its figures in lists; Vega unpacks the row of the class that
is shown. So 1,000 classes fit into a page.
"""

from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd

from advbook.charts.base import (
    ERROR_AXIS,
    INTERVAL,
    LINE,
    OTHER_COLOURS,
    dots,
    facet,
    method_colour,
    method_order,
    side_by_side,
    tips,
)

FIGURES = ["error", "low", "high", "first", "last"]  # of a class, in one cell each
WIDTH = 200  # of a panel: with the names at its axis, it fits a telephone
AXIS = alt.Axis(**ERROR_AXIS, tickCount=4)
HUNDREDTHS = "format(100 * datum.value, '.3~g')"
LABELS = alt.Axis(labelLimit=125)
LEGEND = alt.Legend(title=None, orient="top", columns=2, labelLimit=125)


def class_explorer(
    errors: pd.DataFrame,
    confusions: pd.DataFrame,
    corruptions: pd.DataFrame,
    ranking: pd.Series,
    class_names: Sequence[str],
    *,
    title: str,
    unit: str = "Points",
) -> alt.ConcatChart:
    """Search or click a class: its errors, its rank, its confusions and its corruptions follow.

    The errors have columns benchmark, method, seed, label, n_images, error, low, high (fractions);
    the first seed has marks and intervals, the others marks alone. The confusions are those of
    `advbook.audit.analysis.top_confusions`; the corruptions have columns method, corruption, label,
    error, and no row if nothing was corrupted. The ranking, a fraction by label, orders the
    classes, and the largest is shown first: ``title`` says what it is, ``unit`` is the title of its
    axis.
    """
    names, methods = distinct(class_names), method_order(errors.method)
    benchmarks = list(errors.benchmark.unique())
    confused = list(confusions.benchmark.unique()) or benchmarks[:1]
    rows = _pack(errors, confusions, corruptions, ranking, names, methods, confused)
    lists = {"names": names, "methods": methods, "benchmarks": benchmarks, "conditions": confused}
    lists["corruptions"] = [name.replace("_", " ") for name in corruptions.corruption.unique()]
    pick = alt.selection_point(
        name="pick",
        fields=["class_name"],
        on="click",
        nearest=True,
        toggle=False,
        clear=False,
        bind=alt.binding(input="search", placeholder="part of its name", name="Class "),
        value=[{"class_name": names[ranking.idxmax()]}],
    )
    whole = r"indexof(name_list, '\n' + query + '\n')"
    params = [
        pick,
        alt.param(
            name="confused",
            value=confused[0],
            bind=alt.binding_select(options=confused, name="Confusions under "),
        ),
        alt.param(name="name_list", value="\n".join(["", *map(str.lower, names), ""])),
        *(alt.param(name=name, value=value) for name, value in lists.items()),
        alt.param(name="query", expr="pick.class_name ? trim(lower(pick.class_name[0])) : ''"),
        # The whole name, else a part of it: where it is in the list of names.
        alt.param(name="found", expr=f"{whole} >= 0 ? {whole} : indexof(name_list, query)"),
        alt.param(
            name="shown",
            expr=f"query == '' ? {int(ranking.idxmax())} : found < 0 ? -1"
            r" : length(split(slice(name_list, 0, found + 1), '\n')) - 2",
        ),
        alt.param(name="other_matches", expr=f"query != '' && {whole} < 0"),
    ]
    heading = "shown < 0 ? 'No class has “' + query + '” in its name' : names[shown]"
    left = [_ranking(rows, params, title, unit), _errors(rows, methods, benchmarks)]
    right = [_confusions(rows, methods, direction) for direction in ("out", "in")]
    if len(corruptions):
        right.append(_corruptions(rows, methods))
    columns = [alt.vconcat(*part, spacing=24) for part in (left, right)]
    columns = [column.resolve_scale(color="independent") for column in columns]
    above = alt.Title(alt.expr(heading), anchor="start", fontSize=17)
    return side_by_side(alt.concat(*columns, columns=1, spacing=24, title=above))


def distinct(class_names: Sequence[str]) -> list[str]:
    """The names, with the class's number where several classes have one (ImageNet's "crane")."""
    names = [" ".join(name.split()) for name in class_names]  # as a search sees their spaces
    twice = pd.Series([name.lower() for name in names]).duplicated(keep=False)
    return [f"{name} ({i})" if twice[i] else name for i, name in enumerate(names)]


def _lists(table: pd.DataFrame) -> list[list[float | None]]:
    """The rows as lists of rounded numbers; None where one is missing."""
    return table.round(4).astype(object).where(table.notna(), None).to_numpy().tolist()


def _pack(errors, confusions, corruptions, ranking, names, methods, confused) -> pd.DataFrame:
    """One row a class, as `class_explorer` shows it; its figures are lists in one cell each."""
    labels = ranking.sort_values(ascending=False, kind="stable").index
    cells, seeds = ["benchmark", "method"], errors.seed.unique()
    # Rounded: equal errors tie, whatever the last bits of the means behind them.
    ranks = errors.round({"error": 10}).groupby([*cells, "seed"], sort=False).error
    errors = errors.assign(first=ranks.rank("min"), last=ranks.rank("max"))
    order = pd.MultiIndex.from_product([errors.benchmark.unique(), methods])

    def wide(column, seed=seeds[0]):
        part = errors[errors.seed == seed]
        return part.pivot(index="label", columns=cells, values=column)[order].reindex(labels)

    packed = {column: _lists(wide(column)) for column in FIGURES}
    others = [_lists(wide("error", seed)) for seed in seeds[1:]]
    packed["seeds"] = [list(rows) for rows in zip(*others, strict=True)] or [[]] * len(labels)
    shares = zip(confusions.other, _lists(confusions[methods]), strict=True)
    entries = confusions.assign(entry=[[other, *share] for other, share in shares])
    entries = entries.groupby(["direction", "benchmark", "label"], sort=False).entry.agg(list)
    for way in ("out", "in"):
        packed[way] = [[entries.get((way, b, label), []) for b in confused] for label in labels]
    if len(corruptions):
        order = pd.MultiIndex.from_product([corruptions.corruption.unique(), methods])
        own = corruptions.pivot(index="label", columns=["corruption", "method"], values="error")
        packed["corruption"] = _lists(own.reindex(index=labels, columns=order))
    n_images = errors[errors.benchmark == errors.benchmark.iloc[0]].groupby("label").n_images
    return pd.DataFrame(packed).assign(
        place=np.arange(1, len(labels) + 1),
        label=labels,
        class_name=[names[label] for label in labels],
        value=ranking[labels].round(4).to_numpy(),
        n=n_images.first().reindex(labels).to_numpy(),
    )


def _heading(text: str) -> alt.Title:
    """Above a panel, and as far left in all of them, however long the names at its axis are."""
    return alt.Title(text, anchor="start", frame="group", dx=-90, fontSize=13, fontWeight="normal")


def _cells(columns: list[str], outer: str, values: str) -> list[dict]:
    """Transforms that unpack lists: one row an outer value and method.

    `outer` is the column of the outer values, and `values` the parameter that holds them. Where the
    first column has no value, there is no row.
    """
    first = columns[0]
    return [
        {"calculate": f"sequence(length(datum.{first}))", "as": "cell"},
        {"flatten": ["cell", *columns]},
        {"filter": f"isValid(datum.{first})"},
        {"calculate": "methods[datum.cell % length(methods)]", "as": "method"},
        {"calculate": f"{values}[floor(datum.cell / length(methods))]", "as": outer},
    ]


def _ranking(rows: pd.DataFrame, params: list, title: str, unit: str) -> alt.LayerChart:
    """Every class in order; the shown one ringed, others that the search also finds coloured."""
    few = len(rows) <= 20
    x = (
        alt.X("class_name:N", sort=None, title=None, axis=alt.Axis(labelAngle=-40))
        if few
        else alt.X("place:Q", title="Class, in this order", scale=alt.Scale(nice=False))
    )
    base = alt.Chart(rows).encode(
        x=x,
        y=alt.Y("value:Q", title=unit, axis=alt.Axis(labelExpr=HUNDREDTHS, tickCount=5)),
        tooltip=tips(class_name="Class")
        + tips("+.2f" if unit == "Points" else ".2f", hundredths=f"{title} ({unit.lower()})")
        + tips("d", n="Images"),
    )
    base = base.transform_calculate(hundredths="100 * datum.value")
    size = 60 if few else 14
    points = base.mark_circle(size=size, color=LINE, cursor="pointer").add_params(*params)
    zero = alt.Chart(rows).mark_rule(color=LINE).encode(y=alt.datum(0))
    matches = "indexof(split(name_list, '\\n')[datum.label + 1], query) >= 0"
    others = base.transform_filter(f"other_matches && {matches} && datum.label != shown")
    others = others.mark_circle(size=2 * size, color=OTHER_COLOURS[0], opacity=1)
    shown = base.transform_filter("datum.label == shown")
    ring = shown.mark_point(size=160, strokeWidth=2.5, color="black", filled=False, opacity=1)
    layers = points + zero + others + ring
    return layers.properties(width=WIDTH, height=120, title=_heading(title))


def _errors(rows: pd.DataFrame, methods: list[str], benchmarks: list[str]) -> alt.FacetChart:
    """The shown class among all: every class a tick, its own error with interval, and its rank."""
    width = WIDTH - 60  # the ranks stand to the right
    x = alt.X("error:Q", title="Error (%)", scale=alt.Scale(domain=[0, 1]), axis=AXIS)
    # With its domain stated: Vega-Lite would look for it in data that only the facet knows.
    y = alt.Y("method:N", title=None, axis=LABELS, scale=alt.Scale(domain=methods))
    base = alt.Chart().encode(x=x, y=y)
    keys = ["benchmark", "method"]
    ticks = (  # equal ones are drawn once: 1,000 classes are a few dozen marks
        base.transform_calculate(error="round(200 * datum.error) / 200")
        .transform_aggregate(n="count()", groupby=[*keys, "error"])
        .mark_tick(color=LINE, thickness=1.5)
        .encode(opacity=alt.Opacity("n:Q", scale=alt.Scale(range=[0.4, 1]), legend=None))
    )
    mean = base.transform_aggregate(error="mean(error)", groupby=keys).mark_point(
        shape="diamond", size=45, color="black", filled=True, opacity=1
    )
    rank = "datum.first == datum.last ? datum.first : datum.first + '–' + datum.last"
    own = base.transform_filter("datum.label == shown").transform_calculate(rank=rank)
    own = own.encode(
        color=method_colour(methods).legend(None),
        tooltip=tips(class_name="Class", benchmark="Benchmark", method="Method")
        + tips(".2%", error="Error", **INTERVAL)
        + tips(rank="Rank"),
    )
    seeds = own.transform_flatten(["seeds"])
    seeds = seeds.transform_calculate(error="datum.seeds[datum.cell]")
    seeds = seeds.mark_point(size=40, filled=False, opacity=1, strokeWidth=1.5)
    seeds = seeds.encode(tooltip=tips(".2%", error="Another seed"))
    rank = own.mark_text(align="left", dx=8).encode(
        x=alt.value(width), text="rank:N", color=alt.value("black")
    )
    layers = alt.layer(ticks, mean, dots(own, x, 85, stroke=2.5), seeds, rank, data=rows)
    return (
        layers.properties(width=width, height=alt.Step(18))
        .facet(facet("benchmark", benchmarks, labelAnchor="start"), columns=1, spacing=8)
        .properties(
            transform=_cells(FIGURES, "benchmark", "benchmarks"),
            title=_heading(f"Its error, and its rank of {len(rows):,}"),
        )
    )


def _confusions(rows: pd.DataFrame, methods: list[str], direction: str) -> alt.Chart:
    """What the shown class is taken for ("out") or what is taken for it ("in"), largest first."""
    entries = f"datum['{direction}'][indexof(conditions, confused)]"
    transforms = [
        {"filter": "datum.label == shown"},
        {"calculate": entries, "as": "entry"},
        {"flatten": ["entry"]},
        {"calculate": "names[datum.entry[0]]", "as": "other"},
        {"calculate": "slice(datum.entry, 1)", "as": "share"},
        {"calculate": "methods", "as": "method"},
        {"flatten": ["method", "share"]},
    ]
    title = {"out": "Its images are taken for", "in": "Taken for it are images of"}[direction]
    share = {"out": "Share of this class", "in": "Share of that class"}[direction]
    color = method_colour(methods).legend(LEGEND if direction == "out" else None)
    base = alt.Chart(rows, transform=transforms).mark_bar()
    return base.encode(
        x=alt.X("share:Q", title=f"{share} (%)", axis=AXIS),
        y=alt.Y("other:N", sort=None, title=None, axis=LABELS),
        yOffset=alt.YOffset("method:N", sort=methods),
        color=color,
        tooltip=tips(other="Other class", method="Method") + tips(".2%", share=share),
    ).properties(width=WIDTH, height=alt.Step(6), title=_heading(title))


def _corruptions(rows: pd.DataFrame, methods: list[str]) -> alt.Chart:
    """Error of the shown class under each corruption, mean over the severities."""
    shown = {"filter": "datum.label == shown"}
    cells = _cells(["corruption"], "name", "corruptions")
    base = alt.Chart(rows, transform=[shown, *cells]).mark_circle(size=45, opacity=0.9)
    return base.encode(
        x=alt.X("corruption:Q", title="Error (%)", scale=alt.Scale(domain=[0, 1]), axis=AXIS),
        y=alt.Y("name:N", sort=None, title=None, axis=LABELS),
        color=method_colour(methods).legend(LEGEND),
        tooltip=tips(name="Corruption", method="Method") + tips(".2%", corruption="Error"),
    ).properties(
        width=WIDTH, height=alt.Step(14), title=_heading("Its error under each corruption")
    )
