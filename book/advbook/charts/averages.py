"""What robustness costs on average: the clean-robust plane, and our networks in proportion."""

import altair as alt
import numpy as np
import pandas as pd

from advbook.charts.base import (
    LINE,
    OTHER_COLOURS,
    errors_on,
    method_marks,
    panels,
    spoken,
    tips,
    told_apart,
)
from advbook.studies.places import ROOT
from advbook.studies.results import Shown, results

KINDS = {"this book's Adv": "black", "CIFAR-10 alone": OTHER_COLOURS[0]}
KINDS |= {"more images": OTHER_COLOURS[1]}


def plane(table: pd.DataFrame, path: list[str]) -> alt.FacetChart:
    """Clean error against the error under attack: every seed a mark, arrows between the means.

    Parameters
    ----------
    table : DataFrame
        One row per network: panel, method, seed, clean, attacked (fractions).
    path : list of str
        The methods that arrows join, in this order; a panel may lack some.
    """
    order = table.panel.drop_duplicates().tolist()
    columns = min(len(order), 3)
    width, height = 640 // columns - 50, 240
    right = 0.05 * np.ceil(20 * table.clean.max() + 0.5)
    said = "{panel}, {method}, seed {seed}: clean {clean:.2%}, under PGD-40 {attacked:.2%}"
    table = spoken(table.round({"clean": 4, "attacked": 4}), said)
    means = table.groupby(["panel", "method"], sort=False)[["clean", "attacked"]].mean()
    means = means.reset_index().rename(columns={"clean": "x", "attacked": "y"})
    means = means[means.method.isin(path)].assign(
        rank=lambda t: t.method.map(path.index), kind="mean"
    )
    means = means.sort_values(["panel", "rank"])
    steps = means.groupby("panel")[["x", "y"]].diff()
    before = means[["x", "y"]] - steps
    # Halfway, where no mark covers the head; a step shorter than the head has none.
    angle = np.degrees(np.arctan2(steps.x / right * width, steps.y * height))
    long = np.hypot(steps.x / right * width, steps.y * height) > 20
    heads = means.assign(angle=angle, x=before.x + 0.55 * steps.x, y=before.y + 0.55 * steps.y)
    heads = heads[long].assign(kind="head")
    data = pd.concat([table.assign(kind="network"), means, heads], ignore_index=True)
    scale = alt.Scale(domain=[0, float(right)], nice=False)
    x = errors_on(alt.X, "clean", "Clean error (%)", scale, tickCount=4)
    y = errors_on(alt.Y, "attacked", "Error under PGD-40 (%)", alt.Scale(domain=[0, 1]))
    at = {"x": alt.X("x:Q", scale=scale), "y": alt.Y("y:Q")}
    base = alt.Chart(data)
    lines = base.transform_filter("datum.kind == 'mean'").mark_line(color=LINE, strokeWidth=1.5)
    arrows = base.transform_filter("datum.kind == 'head'")
    arrows = arrows.mark_point(shape="triangle", filled=True, color=LINE, size=80, opacity=1)
    marks = base.transform_filter("datum.kind == 'network'").mark_point(
        filled=True, size=60, opacity=0.75
    )
    marks = marks.encode(
        x, y, **method_marks(table.method.unique().tolist()), description="description:N",
        tooltip=tips(method="Method", seed="Seed")
        + tips(".2%", clean="Clean error", attacked="Error under PGD-40"),
    )  # fmt: skip
    chart = lines.encode(order="rank:Q", **at) + arrows.encode(
        angle=alt.Angle("angle:Q", scale=None), **at
    )
    return panels((chart + marks).properties(width=width, height=height), "panel", order, columns)


def beside_public(own: Shown) -> pd.DataFrame:
    """Adv of a study of CIFAR-10, and below it the public networks of RobustBench.

    Parameters
    ----------
    own : Shown
        With result tables of the average error and of the battery.

    Returns
    -------
    DataFrame
        One row per network: model, architecture, parameters, kind (of `KINDS`), clean_error,
        robust_error (fractions). Ours: the mean over the seeds on all test images, and AutoAttack
        on the images of the battery, the first seed. RobustBench's: 10,000 images.
    """
    errors = results({"own": own}, "average_error").query("method == 'adv' & benchmark == 'clean'")
    battery = results({"own": own}, "battery-errors").set_index(["method", "condition"])
    sizes = pd.read_csv(ROOT / "results/plan/networks.csv", index_col="network").parameters
    row = {"model": "Adv", "architecture": own.study.model, "parameters": sizes[own.study.model]}
    row |= {"kind": "this book's Adv", "clean_error": errors.value.mean()}
    row |= {"robust_error": battery.value["adv", "square"]}  # the last of AutoAttack's four
    public = pd.read_csv(ROOT / "results/paper/robustbench.csv")
    kind = np.where(public.more_images, "more images", "CIFAR-10 alone")
    errors = {name: 1 - public[f"{name}_accuracy"] for name in ("clean", "robust")}
    public = public.assign(kind=kind, **{f"{name}_error": e for name, e in errors.items()})
    return pd.concat([pd.DataFrame([row]), public[list(row)]], ignore_index=True)


def where_we_stand(table: pd.DataFrame, names: dict[str, str]) -> alt.LayerChart:
    """Accuracy under AutoAttack against the number of parameters.

    Parameters
    ----------
    table : DataFrame
        As `beside_public` returns it.
    names : dict
        What is written beside the marks, by model.
    """
    table = table.assign(
        name=table.model.map(names).fillna(""),
        millions=table.parameters / 1e6,
        clean=(1 - table.clean_error).round(4),
        robust=(1 - table.robust_error).round(4),
    )
    scale = alt.Scale(type="log", domain=[0.1, 1000])
    x = alt.X("millions:Q", title="Parameters (million, logarithmic)", scale=scale)
    x = x.axis(values=[0.1, 1, 10, 100, 1000], format="~g")
    y = errors_on(alt.Y, "robust", "Accuracy under AutoAttack (%)", alt.Scale(domain=[0, 0.8]))
    said = "{model}, {architecture}, {millions:.2f} million parameters: {robust:.1%}"
    base = alt.Chart(spoken(table, said)).encode(x, y, description="description:N")
    known = tips(model="Network", architecture="Architecture", kind="Trained on")
    known += tips(".2~f", millions="Parameters (million)")
    known += tips(".1%", clean="Clean accuracy", robust="Under AutoAttack")
    shapes = ["diamond", "circle", "square"]
    kinds = told_apart("kind", None, list(KINDS), list(KINDS.values()), shapes, columns=2)
    marks = base.mark_point(filled=True, size=55, opacity=0.8).encode(tooltip=known, **kinds)
    text = base.mark_text(align="left", dx=8, fontSize=11).encode(text="name:N")
    return (marks + text).properties(width="container", height=300)
