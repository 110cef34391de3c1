"""Pictures and the chart of the explorer in JupyterLab, in the ink of a light or a dark page."""

from html import escape

import altair as alt
import numpy as np
import pandas as pd

from advbook.charts.base import colour_of, errors_on, method_colour, tips
from advbook.charts.pictures import picture

SIDE = 112  # px on the page of an image's side, about
CLEAN = -1  # the "step" of the image as it is; 0 is the start of the attack
INK = "currentColor"  # of the page
STYLE = """<style>.seen.seen :is(th, td) { line-height: 1.4; max-width: 9rem; text-align: left; }
.seen.seen img { image-rendering: pixelated; max-width: none; }</style>"""
KINDS = {
    "true class": ("label", "probability"),
    "strongest other class": ("other_class", "other_probability"),
}


def probability_chart(steps: pd.DataFrame, class_names: list[str], n_steps: int) -> alt.LayerChart:
    """Probability of the true class and of the strongest other class against the step.

    The steps are rows of `advbook.widgets.explorer.attack_steps` with a column method, its name.
    The axis ends at `n_steps`, so that it stands still while the attack runs.
    """
    parts = [
        steps[["method", "step"]].assign(
            kind=kind,
            class_name=[class_names[i] for i in steps[column]],
            probability=steps[probability],
        )
        for kind, (column, probability) in KINDS.items()
    ]
    every = next((gap for gap in (1, 2, 5) if n_steps <= 10 * gap), 10)
    ticks = [CLEAN, *range(every if every > 1 else 0, n_steps + 1, every)]
    label = "datum.value < 0 ? 'clean' : datum.value"
    base = alt.Chart(pd.concat(parts)).encode(
        x=alt.X("step:Q", title="Step of the attack (0: its start)")
        .scale(domain=[CLEAN, n_steps], nice=False)
        .axis(values=ticks, labelExpr=label, labelOverlap=False, grid=False),
        y=errors_on(alt.Y, "probability", "Probability (%)", alt.Scale(domain=[0, 1])),
        color=method_colour(steps.method.unique().tolist(), symbol="stroke"),
        tooltip=tips(method="Method", step="Step", class_name="Class")
        + tips(".1%", probability="Probability"),
    )
    dash = alt.StrokeDash("kind:N", title="Class").scale(domain=list(KINDS), range=[[1, 0], [5, 3]])
    dash = dash.legend(orient="top", symbolType="stroke", symbolStrokeColor=INK, symbolSize=400)
    layers = base.mark_line(strokeWidth=2).encode(strokeDash=dash)
    layers += base.mark_circle(size=18, opacity=1)
    # JupyterLab does not restyle charts in the dark.
    text = {"labelColor": INK, "titleColor": INK}
    axis = {"domainColor": INK, "tickColor": INK, "gridColor": INK, "gridOpacity": 0.15}
    chart = layers.properties(width=520, height=250)
    return chart.configure_axis(**text, **axis).configure_legend(**text)


def verdict(steps: pd.DataFrame) -> str:
    """Whether and when one network was fooled, from its rows of `attack_steps`."""
    wrong, last = steps[steps.predicted_class != steps.label].step.tolist(), steps.step.iloc[-1]
    if CLEAN in wrong:
        return "wrong without an attack"
    if not wrong:
        return "not fooled"
    first = f"first fooled at step {wrong[0]}" if wrong[0] else "fooled by the start (step 0)"
    return first if last in wrong else f"{first}, not at the end"


def pictures(images: dict, steps: pd.DataFrame, class_names: list[str], threat) -> str:
    """What each network sees in the clean and the attacked image, a column a method, as HTML.

    By name of the method, `images` holds the clean image and the last iterate, float tensors
    (1, C, H, W) in [0, 1]. Black and white are a change of ±ε under Linf, of the largest one under
    L2. Steps as in `probability_chart`.
    """
    columns = {}
    for method, pair in images.items():
        own = steps[steps.method == method]
        x, attacked = (image[0].cpu().numpy() for image in pair)
        change = attacked - x
        scale = (threat.eps if threat.norm == "Linf" else np.abs(change).max()) or 1.0
        before, after = (
            f"{'✓' if row.predicted_class == row.label else '✗'} "
            f"{class_names[row.predicted_class]} "
            f"{100 * row.predicted_probability:.0f}\N{NO-BREAK SPACE}%"
            for row in (own.iloc[0], own.iloc[-1])
        )
        cells = [
            (255 * x, "The clean image", before),
            (
                255 * attacked,
                f"Attacked image: {method} sees {after}",
                f"{after} after step {max(0, own.step.iloc[-1])}",
            ),
            (
                127.5 + 127.5 * change / scale,
                f"Change of {method}, magnified",
                f"× {0.5 / scale:.3g}",
            ),
        ]
        border = f"border-left: 6px solid {colour_of(method) or INK}; padding-left: 8px"
        head = f'<div style="{border}"><b>{escape(method)}</b><br>{verdict(own)}</div>'
        columns[head] = [
            f"{picture(pixels, text, SIDE)}<br>{escape(said)}" for pixels, text, said in cells
        ]
    rows = ["Clean", "Attacked", "Change, magnified<br>(grey: none)"]
    with pd.option_context("display.max_colwidth", None):
        table = pd.DataFrame(columns, index=rows)
        return STYLE + table.to_html(escape=False, border=0, classes="seen")
