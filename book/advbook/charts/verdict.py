"""The chart of the verdict page."""

import altair as alt
import pandas as pd

from advbook.charts.base import LINE, line_at, names_above, tips, told_apart

SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"]


def shares_of_the_paper(table: pd.DataFrame, ends: tuple[float, float]) -> alt.Chart:
    """Measured differences as shares of the paper's: a row for each claim, a shape for each study.

    The table is that of `advbook.claims.verdict.shares`, its studies and variants as readers call
    them. A mark beyond the axis, which has these ends, is written at its edge; an interval is cut
    off there.
    """
    claims, studies, readings = (
        table[column].unique().tolist() for column in ("claim", "study", "variant")
    )
    table = table.assign(mark=table.study + ", " + table.variant)
    beyond = (table.share > ends[1]) | (table.share < ends[0])
    arrows = table.share.map(lambda share: f"{share:.1f} ▸" if share > 0 else f"◂ {share:.1f}")
    table["edge"] = arrows.where(beyond, "").str.replace("-", "−")
    intervals = ["low", "high", "seeds_low", "seeds_high"]
    table["at"] = table.share.clip(*ends)
    table[intervals] = table[intervals].clip(*ends)
    colour = told_apart("variant", None, readings)["color"]
    shape = told_apart("study", None, studies, shapes=SHAPES, columns=2)["shape"]
    shape["legend"]["orient"] = "bottom"  # beside the other it would be too wide for a telephone
    marks = [name for study in studies for name in table.mark[table.study == study].unique()]
    height = 11
    names = {"scale": alt.Scale(paddingInner=0.45), "axis": names_above(height * len(marks) / 2)}
    base = alt.Chart(table).encode(
        y=alt.Y("claim:N", sort=claims, title=None, **names),
        yOffset=alt.YOffset("mark:N", sort=marks),
        color=colour,
        tooltip=tips(claim="Claim", study="Study", variant="Batches", difference="Difference")
        + tips(".2f", share="Share of the paper's effect"),
    )
    scale = alt.Scale(domain=list(ends), nice=False)
    axis = alt.Axis(tickCount=5)
    at = alt.X("at:Q", title="Share of the paper's effect", scale=scale, axis=axis)
    band = alt.Chart(pd.DataFrame({"from": [0.9], "to": [1.1]})).mark_rect(color=LINE, opacity=0.25)
    band = band.encode(x=alt.X("from:Q", scale=scale), x2="to:Q")
    inside = base.transform_filter("datum.edge == ''")
    lines = [
        inside.mark_rule(strokeWidth=width).encode(x=alt.X(f"{low}:Q", scale=scale), x2=f"{high}:Q")
        for low, high, width in (("seeds_low", "seeds_high", 1), ("low", "high", 3))
    ]
    dots = inside.mark_point(filled=True, size=60, opacity=1)
    edges = [
        base.transform_filter(test)
        .mark_text(align=align, fontSize=11)
        .encode(at, text="edge:N", color=alt.value("black"))
        for test, align in (
            ("datum.edge != '' && datum.share > 0", "right"),
            ("datum.edge != '' && datum.share < 0", "left"),
        )
    ]
    chart = alt.layer(band, line_at(table, 0, scale), *lines, dots.encode(at, shape=shape), *edges)
    return chart.properties(width="container", height=alt.Step(height))
