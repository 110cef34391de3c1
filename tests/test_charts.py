"""Charts compiled by Vega itself, so that a wrong field or type shows as missing marks."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import vl_convert

from advbook.charts import ablations as ablation_charts
from advbook.charts import base, class_errors
from advbook.charts import errors as charts
from advlib.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent


def marks(chart) -> str:
    """The SVG that Vega draws."""
    return vl_convert.vegalite_to_svg(chart.to_dict())


@pytest.fixture
def errors():
    rows = [
        (benchmark, method, name, 0.1 * i + 0.02 * j)
        for i, name in enumerate(["cat", "dog", "owl"])
        for j, method in enumerate(["Std", "Adv", "Adv⁺"])
        for benchmark in ("Clean", "PGD-40")
    ]
    table = pd.DataFrame(rows, columns=["benchmark", "method", "class_name", "error"])
    return table.assign(low=table.error / 2, high=table.error * 1.5 + 0.01)


def test_class_error_has_a_mark_for_each_class_and_method(errors):
    svg = marks(charts.class_error(errors))
    assert svg.count('aria-roledescription="point"') == 18
    assert all(name in svg for name in ("cat", "dog", "owl"))


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


def test_one_benchmark_is_one_panel_with_its_reference(errors):
    one = errors[errors.benchmark == "Clean"]
    svg = marks(charts.class_error(one, value="Error ratio", form=".1f", reference=1))
    assert svg.count('aria-roledescription="point"') == 9 and "Error ratio" in svg
    assert "stroke-dasharray" in svg


def test_class_grid_shows_one_method_and_keeps_the_order():
    rows = [(m, k, c, 0.5) for m in ("Std", "Adv") for c in ("snow", "fog") for k in ("cat", "dog")]
    table = pd.DataFrame(rows, columns=["method", "class_name", "corruption", "error"])
    svg = marks(charts.class_grid(table, "corruption", "Corruption"))
    assert svg.count('aria-roledescription="rect mark"') == 4
    assert svg.index(">snow<") < svg.index(">fog<")


def test_two_errors_shows_the_chosen_benchmark():
    rows = [("Std", k, b, 0.1, 0.2) for k in ("cat", "dog") for b in ("PGD-40", "Corruptions")]
    columns = ["method", "class_name", "benchmark", "other", "error"]
    svg = marks(charts.two_errors(pd.DataFrame(rows, columns=columns)))
    assert svg.count('aria-roledescription="circle"') == 2


def test_a_chosen_group_of_classes_is_shown_alone(errors):
    """The first group, to begin with; a class may be in several."""
    few = errors[errors.class_name == "owl"].assign(group="the hardest")
    both = pd.concat([few, errors.assign(group="all")])
    svg = marks(charts.class_error(both))
    assert svg.count('aria-roledescription="point"') == 6
    assert ">owl<" in svg and ">cat<" not in svg
    both = pd.concat([errors.assign(group="all"), few])
    assert marks(charts.class_error(both)).count('aria-roledescription="point"') == 18


def a_hundred_classes() -> pd.DataFrame:
    """Errors of 100 classes in 20 groups by six methods under three benchmarks."""
    benchmarks = ["Clean", "PGD-40", "Corruptions"]
    names = [RECIPES[m].title for m in base.METHOD_COLOURS][:6]
    cells = itertools.product(benchmarks, names, range(100))
    table = pd.DataFrame(cells, columns=["benchmark", "method", "label"])
    error = np.random.default_rng(0).random(len(table))
    table = table.assign(error=error, low=error / 2, high=error / 2 + 0.5)
    return table.assign(
        class_name=[f"a class, number {label}" for label in table.label],
        group=[f"superclass {label // 5}" for label in table.label],
    )


CHARTS_OF_CLASSES = {
    "sorted_errors": lambda t: class_errors.sorted_errors(t.assign(title=t.benchmark)),
    "class_error": charts.class_error,
    "two_errors": lambda t: charts.two_errors(t.assign(other=t.low)),
    "class_grid": lambda t: charts.class_grid(t, "benchmark", "Benchmark"),
}


@pytest.mark.parametrize("name", CHARTS_OF_CLASSES)
def test_a_hundred_classes_of_six_methods_stay_below_a_megabyte(name):
    chart = CHARTS_OF_CLASSES[name](a_hundred_classes())
    assert len(chart.to_json(indent=None, separators=(",", ":"))) < 1_000_000


def ablation_runs(*kinds):
    rows = [("A study", f"run {i}", kind, 40.12345 + i, 12.5 - i) for i, kind in enumerate(kinds)]
    columns = ["title", "name", "kind", "PGD-40 error (%)", "Class-wise SD (points)"]
    return pd.DataFrame(rows, columns=columns)


def test_runs_with_the_label_have_a_shape_of_their_own():
    """In grey print too; and the line joins the two runs that are named."""
    x, y = "PGD-40 error (%)", "Class-wise SD (points)"
    kinds = list(ablation_charts.KINDS)
    svg = marks(ablation_charts.trade_off(ablation_runs(*kinds), x, y, ("run 1", "run 4")))
    assert svg.count('aria-roledescription="point"') == len(kinds)
    assert "PGD-40 error (%): 41.12;" in svg and "null" not in svg
    shapes = {kind: shape for kind, (_, shape) in ablation_charts.KINDS.items()}
    assert all((shape == "diamond") == kind.endswith("label") for kind, shape in shapes.items())
    assert len(re.findall(r'aria-roledescription="line mark"', svg)) == 1


def test_the_forest_has_its_names_once_and_its_changes_in_points():
    rows = [
        (title, ingredient, measure, change, change - 0.01, change + 0.01, "+3.00 [2.00, 4.00]")
        for title in ("A study", "Another")
        for ingredient, change in (("a logit", 0.03), ("clean images", -0.2))
        for measure in ("PGD-40 error", "Class-wise SD, clean")
    ]
    columns = ["title", "ingredient", "measure", "value", "low", "high", "change"]
    table = pd.DataFrame(rows, columns=columns)
    groups = [["a logit"], ["clean images"]]
    svg = marks(ablation_charts.forest(table, groups, ["Class-wise SD, clean", "PGD-40 error"]))
    assert len(re.findall(r">a logit</text>", svg)) == 1
    assert svg.count('aria-roledescription="point"') == 8
    assert "PGD-40 error (points): +3.00 [2.00, 4.00]" in svg and "%" not in svg
    labels = {text.replace("\u2212", "-") for text in re.findall(r">([^<>]+)</text>", svg)}
    assert "-20" in labels and "+2" in labels  # each group has scales of its own


def test_a_thousand_classes_of_many_methods_are_one_chart():
    rows = [("Clean", m, f"class {i}", i / 2000) for m in ("Std", "Adv", "x") for i in range(2000)]
    table = pd.DataFrame(rows, columns=["title", "method", "class_name", "error"])
    class_errors.sorted_errors(table).to_dict()
