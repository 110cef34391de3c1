"""Pictures and charts of the explorer in JupyterLab, in the ink of a light or a dark page."""

import base64
from html import escape

import altair as alt
import numpy as np
import pandas as pd

from advbook.charts.base import colour_of, errors_on, method_colour, method_order, tips
from advbook.studies.samples import encode_png

SIDE = 112  # px on the page of an image's side, about
CLEAN = -1  # the "step" of the image as it is; 0 is the start of the attack
INK = "currentColor"  # of the page
BENCHMARKS = {"clean": "Clean", "pgd40": "PGD-40"}


def probability_chart(steps: pd.DataFrame, class_names: list[str], n_steps: int) -> alt.LayerChart:
    """Probability of the true class and of the strongest other class against the step.

    Parameters
    ----------
    steps : DataFrame
        Rows of `advbook.widgets.explorer.attack_steps` with a column method, its name.
    class_names : list of str
    n_steps : int
        Where the axis ends, so that it stands still while the attack runs.
    """
    kinds = {"true class": ("label", "probability")}
    kinds["strongest other class"] = ("other_class", "other_probability")
    parts = [
        pd.DataFrame(
            {
                "method": steps.method,
                "step": steps.step,
                "kind": kind,
                "class_name": [class_names[i] for i in steps[column]],
                "probability": steps[probability],
            }
        )
        for kind, (column, probability) in kinds.items()
    ]
    every = next((gap for gap in (1, 2, 5) if n_steps <= 10 * gap), 10)
    ticks = [CLEAN, *range(every if every > 1 else 0, n_steps + 1, every)]
    label = "datum.value < 0 ? 'clean' : datum.value"
    axis = alt.Axis(values=ticks, labelExpr=label, labelOverlap=False, grid=False)
    base = alt.Chart(pd.concat(parts)).encode(
        x=alt.X(
            "step:Q",
            title="Step of the attack (0: its start)",
            axis=axis,
            scale=alt.Scale(domain=[CLEAN, n_steps], nice=False),
        ),
        y=errors_on(alt.Y, "probability", "Probability (%)", alt.Scale(domain=[0, 1])),
        color=method_colour(steps.method.unique().tolist(), symbol="stroke"),
        tooltip=tips(method="Method", step="Step", class_name="Class")
        + tips(".1%", probability="Probability"),
    )
    dash = alt.StrokeDash(
        "kind:N",
        title="Class",
        scale=alt.Scale(domain=list(kinds), range=[[1, 0], [5, 3]]),
        legend=alt.Legend(orient="top", symbolType="stroke", symbolStrokeColor=INK, symbolSize=400),
    )
    lines = base.mark_line(strokeWidth=2).encode(strokeDash=dash)
    layers = lines + base.mark_circle(size=18, opacity=1)
    return _inked(layers.properties(width=520, height=250))


def class_panel(errors: pd.DataFrame, label: int) -> alt.FacetChart:
    """Where a class stands among all classes: error and rank, for each method and benchmark.

    Parameters
    ----------
    errors : DataFrame
        Of `advbook.widgets.explorer.class_errors`.
    label : int
        The class that is marked.
    """
    methods, k = method_order(errors.method), errors.label.nunique()
    base = alt.Chart(errors).encode(
        x=errors_on(alt.X),
        y=alt.Y("method:N", sort=methods, title=None),
        color=method_colour(methods).legend(None),
        tooltip=tips(class_name="Class", method="Method")
        + tips(".2%", error="Error")
        + tips(rank=f"Rank of {k} (1: lowest error)"),
    )
    ticks = base.mark_tick(thickness=2, size=14, opacity=0.5 if k <= 100 else 0.15)
    marked = base.transform_filter(f"datum.label === {label}")
    ranks = marked.transform_calculate(text=f"datum.rank + ' of {k}'")
    ranks = ranks.mark_text(dy=-13, fontSize=11).encode(text="text:N", color=alt.value(INK))
    layers = alt.layer(ticks, marked.mark_circle(size=110, opacity=1), ranks)
    chart = layers.properties(width=260, height=alt.Step(40)).facet(
        column=alt.Column("benchmark:N", title=None, sort=list(BENCHMARKS.values()))
    )
    return _inked(chart)


def _inked(chart):
    """JupyterLab does not restyle charts in the dark."""
    text = {"labelColor": INK, "titleColor": INK}
    axis = {"domainColor": INK, "tickColor": INK, "gridColor": INK, "gridOpacity": 0.15}
    return chart.configure_axis(**text, **axis).configure_legend(**text).configure_header(**text)


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

    Parameters
    ----------
    images : dict of str to (float tensor, float tensor)
        By name of the method: the clean image and the last iterate, each (1, C, H, W) in [0, 1].
    steps, class_names
        As in `probability_chart`.
    threat : advlib.threat.ThreatModel
        Black and white are a change of ±ε under Linf, of the largest one under L2.
    """
    align = 'style="padding: 3px 12px 6px 0; text-align: left; vertical-align: top; '
    align += 'font-weight: normal; max-width: 130px"'
    x = next(iter(images.values()))[0][0].cpu().numpy()
    rows = [[""], [f"{picture(255 * x, 'The clean image')}<br>Clean image"]]
    rows += [["Change, magnified<br>(grey: none)"]]
    for method, (_, x_adv) in images.items():
        own, attacked = steps[steps.method == method], x_adv[0].cpu().numpy()
        scale = (threat.eps if threat.norm == "Linf" else np.abs(attacked - x).max()) or 1.0
        before, after = (
            f"{'✓' if row.predicted_class == row.label else '✗'} "
            f"{escape(class_names[row.predicted_class])} "
            f"{100 * row.predicted_probability:.0f}\N{NO-BREAK SPACE}%"
            for row in (own.iloc[0], own.iloc[-1])
        )
        attacked_picture = picture(255 * attacked, f"Attacked image: {method} sees {after}")
        change = picture(127.5 + 127.5 * (attacked - x) / scale, f"Change of {method}, magnified")
        border = f"border-left: 6px solid {colour_of(method) or INK}; padding-left: 8px"
        name = f"<b>{escape(method)}</b><br>{verdict(own)}<br>Clean:<br>{before}"
        cells = (
            f'<div style="{border}">{name}</div>',
            f"{attacked_picture}<br>{after}<br>after step {max(0, own.step.iloc[-1])}",
            f"{change}<br>× {0.5 / scale:.3g}",
        )
        for row, cell in zip(rows, cells, strict=True):
            row.append(cell)
    head = "".join(f'<th scope="col" {align}>{cell}</th>' for cell in rows[0])
    body = (
        f'<tr><th scope="row" {align}>{row[0]}</th>'
        + "".join(f"<td {align}>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows[1:]
    )
    return f'<table style="line-height: 1.4"><tr>{head}</tr>{"".join(body)}</table>'


def picture(pixels: np.ndarray, text: str) -> str:
    """An ``<img>`` of an image (C, H, W) with values in [0, 255], and its alternative text."""
    side = pixels.shape[-1]
    png = base64.b64encode(encode_png(np.rint(pixels).clip(0, 255))).decode()
    return (
        f'<img width="{side * max(1, round(SIDE / side))}" alt="{escape(text)}" '
        f'style="image-rendering: pixelated; max-width: none" src="data:image/png;base64,{png}">'
    )
