"""Charts of what the ingredients of a training do: to errors and to the spread of the classes."""

import altair as alt
import pandas as pd

from advbook.charts.base import LINE, METHOD_COLOURS, OTHER_COLOURS, panels, tips, told_apart

KINDS = {  # what a run is, or adds to Adv; whether it learns the extra label, its shape says
    "Std": METHOD_COLOURS["std"],
    "Adv": METHOD_COLOURS["adv"],
    "logit or smoothing": OTHER_COLOURS[2],
    "clean images": METHOD_COLOURS["adv_mix"],
    "other attacks": OTHER_COLOURS[0],
}
LABEL = {False: "without the extra label", True: "with it"}


def trade_off(table: pd.DataFrame, x: str, y: str, joined: tuple[str, str]) -> alt.FacetChart:
    """Two figures of every run against each other, one panel per study, each with its scales.

    The table has one row per run: ``title`` (of the study), ``name``, ``kind`` (of `KINDS`),
    ``label`` (whether it learns the extra label), and the two figures, in per cent or points, whose
    columns are the titles of the axes. A dashed line joins the two runs that `joined` names. They
    alone have their names: the first above its mark, the second to the left.
    """
    known = [kind for kind in KINDS if kind in set(table.kind)]
    colour = told_apart("kind", None, known, [KINDS[kind] for kind in known], columns=2)["color"]
    shape = told_apart("label", None, list(LABEL.values()), shapes=["circle", "diamond"])["shape"]
    shape = shape.legend(orient="bottom", symbolFillColor="black", symbolStrokeWidth=0)
    titles = table.title.unique().tolist()
    # Rounded, as the pointer and a screen reader say them.
    base = alt.Chart(table.assign(label=table.label.map(LABEL)).round({x: 2, y: 2})).encode(
        alt.X(x, type="quantitative", scale=alt.Scale(zero=False, padding=14)).axis(tickCount=5),
        alt.Y(y, type="quantitative", scale=alt.Scale(zero=False, padding=14)).axis(tickCount=5),
    )
    ends = alt.FieldOneOfPredicate(field="name", oneOf=list(joined))
    line = base.transform_filter(ends).mark_line(color=LINE, strokeDash=[4, 4])
    points = base.mark_point(filled=True, size=80, opacity=0.9).encode(
        color=colour,
        shape=shape,
        tooltip=[*tips(title="Study", name="Run"), *tips(".2f", **{x: x, y: y})],
    )
    first, second = (
        base.encode(text="name:N").transform_filter(alt.datum.name == n) for n in joined
    )
    names = first.mark_text(fontSize=11, color="black", dy=-12)
    names += second.mark_text(fontSize=11, color="black", align="right", dx=-8)
    columns = min(len(titles), 3)
    chart = (line + points + names).properties(width=640 // columns - 45, height=230)
    return panels(chart, "title", titles, columns, own="xy")
