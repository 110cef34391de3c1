"""Public networks by their accuracy: where those that are robust lie beside all others."""

import altair as alt
import numpy as np
import pandas as pd

from advbook.charts.base import (
    METHOD_COLOURS,
    OTHER_COLOURS,
    drop_down,
    errors_on,
    tips,
    told_apart,
)
from advbook.claims.public_models import Trend

KINDS = {
    "other networks": OTHER_COLOURS[5],
    "trained on less": OTHER_COLOURS[0],
    "trained on noise": OTHER_COLOURS[1],
    "adversarial": METHOD_COLOURS["adv"],
    "Std": METHOD_COLOURS["std"],
    "yours": "black",
}


def against_accuracy(
    table: pd.DataFrame,
    accuracy: str,
    figures: dict[str, Trend],
    title: str,
    as_error: bool = True,
) -> alt.LayerChart:
    """Figures of every network by its error, the trend of those that are not robust, and names.

    The table has one row per network: ``model``, ``kind`` (of `KINDS`), ``name`` (empty: not
    written out), the column `accuracy` (the fraction of images classified rightly), and those of
    `figures`. Of several figures a drop-down shows one at a time, the first to begin with. They are
    accuracies whose errors are shown under `title`, or ratios.
    """
    clean, parts, bands = 1 - table[accuracy], [], []
    for column, trend in figures.items():
        factor = column.replace("_", " ")
        part = table[["model", "kind", "name"]].assign(x=clean, y=table[column], factor=factor)
        parts.append(part.dropna())
        grid = np.linspace(1 - parts[-1].x.max(), 1 - parts[-1].x.min(), 40)
        ends = {"low": trend.at(grid, -1.96), "high": trend.at(grid, 1.96)}
        bands.append(pd.DataFrame({"x": 1 - grid, "y": trend.at(grid), **ends, "factor": factor}))
    shown, band = pd.concat(parts), pd.concat(bands)
    if as_error:
        shown["y"], band[["y", "low", "high"]] = 1 - shown.y, 1 - band[["y", "low", "high"]]
    zero = alt.Scale(zero=False)
    x = errors_on(alt.X, "x", "Clean error (%)", zero)
    y = errors_on(alt.Y, "y", f"{title} (%)", zero)
    if not as_error:
        y = alt.Y("y:Q", title=title, axis=alt.Axis(format=".1f"), scale=zero)
    known = [kind for kind in KINDS if kind in set(shown.kind)]
    colour = told_apart("kind", None, known, [KINDS[kind] for kind in known], columns=2)["color"]
    said = tips(model="Network") + tips(".1%", x="Clean error")
    said += tips(".1%" if as_error else ".2f", y=title)
    area = alt.Chart(band).mark_area(color=OTHER_COLOURS[5], opacity=0.25)
    line = alt.Chart(band).mark_line(color=OTHER_COLOURS[2], strokeWidth=1.5)
    points = alt.Chart(shown).mark_circle(size=45, opacity=0.85)
    text = alt.Chart(shown[shown.name != ""]).mark_text(align="left", dx=7, fontSize=11)
    layers = [
        area.encode(x, y="low:Q", y2="high:Q"),
        line.encode(x, y),
        points.encode(x, y, colour, tooltip=said),
        text.encode(x, y, text="name:N"),
    ]
    if len(figures) > 1:
        chosen = drop_down("factor", shown.factor.unique().tolist())
        layers = [layer.transform_filter(chosen) for layer in layers]
        layers[0] = layers[0].add_params(chosen)
    return alt.layer(*layers).properties(width="container", height=340)
