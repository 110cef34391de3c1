"""Charts compiled by Vega itself, so that a wrong field or type shows as missing marks."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advbook.charts import ablations as ablation_charts
from advbook.charts import base, class_errors
from advlib.recipes import RECIPES
from conftest import marks

ROOT = Path(__file__).resolve().parent.parent


def test_unknown_methods_get_a_colour_too():
    scale = base.method_colour(["Std", "TRADES"]).to_dict()["scale"]
    assert scale["domain"] == ["Std", "TRADES"]
    assert scale["range"][0] == base.METHOD_COLOURS["std"]


def test_a_colour_belongs_to_the_id_whatever_the_title(monkeypatch):
    monkeypatch.setitem(base.IDS, "Madry's", "adv")
    assert base.colour_of("Madry's") == base.colour_of("adv") == base.colour_of("Adv")
    assert base.method_order(["mine", "Adv⁺", "Madry's"]) == ["Madry's", "Adv⁺", "mine"]
    assert set(base.METHOD_COLOURS) <= set(RECIPES)


def test_models_beyond_the_projects_own_have_colours_of_their_own():
    names = [*(RECIPES[m].title for m in base.METHOD_COLOURS), *(f"model {i}" for i in range(4))]
    for shown in (names, names[4:], names[8:]):
        colours = base.method_colour(shown).to_dict()["scale"]["range"]
        assert len(set(colours)) == len(shown)


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB: https://doi.org/10.1109/TVCG.2009.113
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    "deutan": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    "tritan": [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]],
}


def as_seen(colour: str, deficiency: str) -> np.ndarray:
    """A colour in CIELAB (D65) as it is seen with a colour-vision deficiency."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(DEFICIENCIES[deficiency] @ linear, 0, 1)
    to_xyz = [[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0178, 0.1095, 0.8727]]
    x, y, z = (np.cbrt(v) if v > 0.00886 else 7.787 * v + 4 / 29 for v in to_xyz @ seen)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize(
    "colours", [[*base.METHOD_COLOURS.values(), *base.MORE_COLOURS], base.OTHER_COLOURS]
)
def test_colours_differ_for_every_colour_vision(colours, deficiency):
    """By 7 at least (CIE76), where 2.3 is a difference that is just noticed."""
    seen = [as_seen(colour, deficiency) for colour in colours]
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(apart) >= 7


def test_only_methods_have_the_colours_of_methods():
    """In charts of other things they would promise a method."""
    methods = {colour.lower() for colour in base.METHOD_COLOURS.values()} - {"#999999"}
    sources = [*(ROOT / "book/advbook/charts").glob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]
    written = {
        path.name: found
        for path in sources
        if (found := methods & set(re.findall(r"#[0-9a-f]{6}", path.read_text("utf-8").lower())))
    }
    # The buttons of a choice are no chart.
    assert set(written) <= {"base.py", "grids.py"}
    text = (ROOT / "book/advbook/charts/base.py").read_text("utf-8").lower()
    assert all(text.count(colour) == 1 for colour in methods)


def ablation_runs(*kinds):
    rows = [("A study", f"run {i}", kind, 40.12345 + i, 12.5 - i) for i, kind in enumerate(kinds)]
    columns = ["title", "name", "kind", "PGD-40 error (%)", "Class-wise SD (points)"]
    return pd.DataFrame(rows, columns=columns).assign(label=[i == 2 for i in range(len(kinds))])


def test_runs_with_the_label_have_a_shape_of_their_own():
    """In grey print too; and the line joins the two runs that are named."""
    x, y = "PGD-40 error (%)", "Class-wise SD (points)"
    kinds = list(ablation_charts.KINDS)
    svg = marks(ablation_charts.trade_off(ablation_runs(*kinds), x, y, ("run 1", "run 4")))
    assert svg.count('aria-roledescription="point"') == len(kinds)
    assert "PGD-40 error (%): 41.12;" in svg and "null" not in svg
    points = re.findall(r'<path aria-label="([^"]*)"[^>]* d="([^"]*)"', svg)
    labels = ablation_charts.LABEL.values()
    shapes = {label: {"L" in path for said, path in points if label in said} for label in labels}
    assert shapes == {"without the extra label": {False}, "with it": {True}}  # a diamond has edges
    assert len(re.findall(r'aria-roledescription="line mark"', svg)) == 1


def test_a_thousand_classes_of_many_methods_are_one_chart():
    rows = [("Clean", m, f"class {i}", i / 2000) for m in ("Std", "Adv", "x") for i in range(2000)]
    table = pd.DataFrame(rows, columns=["title", "method", "class_name", "error"])
    class_errors.sorted_errors(table).to_dict()
