"""Charts compiled by Vega itself, so that a wrong field or type shows as missing marks."""

import itertools
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import vl_convert

from advbook.charts import base
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


def test_average_error_draws_each_value_and_interval():
    table = pd.DataFrame(
        {
            "method": ["Std", "Adv", "Std"],
            "benchmark": ["Clean"] * 3,
            "source": ["this study", "this study", "the paper (ImageNet)"],
            "value": [0.1, 0.2, 0.3],
            "low": [0.05, 0.1, np.nan],
            "high": [0.2, 0.3, np.nan],
        }
    )
    svg = marks(charts.average_error(table))
    for said in ("Error (%)", "this study", "the paper (ImageNet)", base.METHOD_COLOURS["adv"]):
        assert said in svg
    assert svg.count('aria-roledescription="point"') == 3
    assert "95 % interval: 5.00% to 20.00%" in svg and "95 % interval: none" in svg
    assert "null" not in svg


def test_sorted_class_error_ranks_each_method_by_itself(errors):
    flipped = errors.assign(error=np.where(errors.method == "Adv", 1 - errors.error, errors.error))
    data = charts.sorted_class_error(flipped).data
    ranks = data[data.benchmark == "Clean"].pivot(
        index="class_name", columns="method", values="rank"
    )
    assert ranks["Std"].tolist() == [1, 2, 3] and ranks["Adv"].tolist() == [3, 2, 1]
    assert marks(charts.sorted_class_error(errors)).count('aria-roledescription="circle"') == 18


def test_class_error_has_a_mark_for_each_class_and_method(errors):
    svg = marks(charts.class_error(errors))
    assert svg.count('aria-roledescription="point"') == 18
    assert all(name in svg for name in ("cat", "dog", "owl"))


def test_confusion_starts_with_one_method_and_benchmark():
    rows = [
        (m, b, t, p, 0.5) for m in ("Std", "Adv") for b in ("Clean", "PGD-40") for t in "ab"
        for p in "ab"
    ]  # fmt: skip
    columns = ["method", "benchmark", "class_name", "predicted_name", "share"]
    svg = marks(charts.confusion(pd.DataFrame(rows, columns=columns)))
    assert svg.count('aria-roledescription="rect mark"') == 4


def test_class_changes_keep_their_colours():
    table = pd.DataFrame(
        {
            "class_name": ["a", "b", "c"],
            "panel": ["Std → Adv, Clean"] * 3,
            "difference": [-0.1, 0.0, 0.2],
            "change": ["gains", "no change", "loses"],
            "q_value": [0.01, 1.0, 0.01],
        }
    )
    svg = marks(charts.class_changes(table))
    gains, loses = base.OTHER_COLOURS[:2]
    assert svg.count(gains) >= 2 and svg.count(loses) >= 2 and "within chance" in svg
    assert "%" not in re.sub(r"<[^>]*>", "", svg)  # points, on the axis too


def test_a_panel_of_small_changes_has_a_scale_of_its_own():
    """Beside changes of 90 points, one of 1 point would be a sliver."""
    rows = [("Std → Adv", "cat", -0.9), ("Adv → Adv⁺", "cat", -0.01)]
    table = pd.DataFrame(rows, columns=["panel", "class_name", "difference"])
    table = table.assign(change="gains", q_value=0.01)
    svg = marks(charts.class_changes(table))
    bars = re.findall(r'aria-roledescription="bar" d="M(-?[\d.]+),[\d.]+h(-?[\d.]+)', svg)
    assert len(bars) == 2 and all(abs(float(width)) > 100 for _, width in bars)
    paired = table.rename(columns={"panel": "pair", "class_name": "name", "difference": "value"})
    paired = paired.assign(low=paired.value * 1.1, high=paired.value * 0.9)
    svg = marks(charts.differences(paired))
    labels = {text.replace("\u2212", "-") for text in re.findall(r">([^<>]+)</text>", svg)}
    assert {"-80", "-0.5"} <= labels


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


@pytest.mark.parametrize("n", [2, 9, 11])
def test_panels_of_many_benchmarks_have_room(errors, n):
    parts = [errors[errors.benchmark == "Clean"].assign(benchmark=f"attack {i}") for i in range(n)]
    for chart, mark in ((charts.class_error, "point"), (charts.sorted_class_error, "circle")):
        spec = chart(pd.concat(parts)).to_dict()
        assert spec["spec"]["width"] >= 80
        drawn = marks(chart(pd.concat(parts)))
        assert drawn.count(f'aria-roledescription="{mark}"') == 9 * n


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
    # The gallery's buttons and frames are no chart.
    assert set(written) <= {"base.py", "pictures.py"}
    text = (ROOT / "book/advbook/charts/base.py").read_text("utf-8").lower()
    assert all(text.count(colour) == 1 for colour in methods)


def test_one_benchmark_is_one_panel_with_its_reference(errors):
    one = errors[errors.benchmark == "Clean"]
    svg = marks(charts.class_error(one, value="Error ratio", form=".1f", reference=1))
    assert svg.count('aria-roledescription="point"') == 9 and "Error ratio" in svg
    assert "stroke-dasharray" in svg


def test_corruption_error_has_a_panel_for_each_corruption():
    rows = [(m, c, s, 0.1 * s) for m in ("Std", "Adv") for c in ("fog", "snow") for s in range(6)]
    table = pd.DataFrame(rows, columns=["method", "corruption", "severity", "error"])
    svg = marks(charts.corruption_error(table))
    assert svg.count('aria-roledescription="line mark"') >= 4
    assert ">fog<" in svg and ">snow<" in svg and "Severity (0: clean)" in svg


def test_class_grid_shows_one_method_and_keeps_the_order():
    rows = [(m, k, c, 0.5) for m in ("Std", "Adv") for c in ("snow", "fog") for k in ("cat", "dog")]
    table = pd.DataFrame(rows, columns=["method", "class_name", "corruption", "error"])
    svg = marks(charts.class_grid(table, "corruption", "Corruption"))
    assert svg.count('aria-roledescription="rect mark"') == 4
    assert svg.index(">snow<") < svg.index(">fog<")


def test_rank_correlation_prints_each_value():
    rows = [("Std", "Clean", "PGD-40", 0.25), ("Std", "PGD-40", "Clean", 0.25)]
    table = pd.DataFrame(rows, columns=["method", "condition_a", "condition_b", "value"])
    svg = marks(charts.rank_correlation(table, ["PGD-40", "Clean", "ReaL"]))
    assert svg.count(">0.25<") == 2 and "ReaL" not in svg


def test_two_errors_shows_the_chosen_benchmark():
    rows = [("Std", k, b, 0.1, 0.2) for k in ("cat", "dog") for b in ("PGD-40", "Corruptions")]
    columns = ["method", "class_name", "benchmark", "other", "error"]
    svg = marks(charts.two_errors(pd.DataFrame(rows, columns=columns)))
    assert svg.count('aria-roledescription="circle"') == 2


def test_drop_downs_open_on_what_most_readers_ask_for():
    rows = [(m, b, "cat", "cat", 0.5) for m in ("Std", "Adv", "x") for b in ("Clean", "PGD-40")]
    columns = ["method", "benchmark", "class_name", "predicted_name", "share"]
    table = pd.DataFrame(rows, columns=columns)

    def first(chart):
        return {k: v for p in chart.to_dict()["params"] for k, v in p["value"][0].items()}

    assert first(charts.confusion(table)) == {"method": "Adv", "benchmark": "Clean"}
    theirs = table[table.method != "Adv"]
    assert first(charts.confusion(theirs)) == {"method": "Std", "benchmark": "Clean"}


def test_pairs_that_never_occur_have_the_colour_of_zero():
    rows = [("Std", "Clean", a, a, 1.0) for a in ("cat", "dog")]  # never one for the other
    columns = ["method", "benchmark", "class_name", "predicted_name", "share"]
    svg = marks(charts.confusion(pd.DataFrame(rows, columns=columns)))
    ground = re.search(r'class="background"[^>]* fill="([^"]+)"', svg)[1]
    nothing = pd.DataFrame([("Std", "Clean", "cat", "dog", 0.0)], columns=columns)
    zero = marks(charts.confusion(nothing))
    red, green, blue = map(
        int, re.search(r"rect mark[^>]* fill=\"rgb\(([^)]*)\)", zero)[1].split(",")
    )
    assert ground == f"#{red:02x}{green:02x}{blue:02x}"


def test_differences_beyond_chance_have_ink():
    rows = [("a → b", "fog", -0.2, -0.3, -0.1), ("a → b", "snow", 0.01, -0.1, 0.1)]
    table = pd.DataFrame(rows, columns=["pair", "name", "value", "low", "high"])
    svg = marks(charts.differences(table))
    ink = re.findall(r'aria-roledescription="point"[^>]* fill="([^"]+)"', svg)
    assert sorted(ink) == sorted(base.CLEAR)


def test_a_thousand_classes_of_many_methods_are_one_chart():
    rows = [(m, "Clean", f"class {i}", i / 1000) for m in ("Std", "Adv", "x") for i in range(2000)]
    table = pd.DataFrame(rows, columns=["method", "benchmark", "class_name", "error"])
    charts.sorted_class_error(table).to_dict()  # Altair refuses 5,000 rows unless told otherwise


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
    "sorted_class_error": charts.sorted_class_error,
    "class_error": charts.class_error,
    "two_errors": lambda t: charts.two_errors(t.assign(other=t.low)),
    "class_lines": lambda t: charts.class_lines(t, "Errors of classes"),
    "class_grid": lambda t: charts.class_grid(t, "benchmark", "Benchmark"),
    "class_changes": lambda t: charts.class_changes(
        t.assign(panel=t.method + t.benchmark, difference=t.low, change="gains", q_value=0.01)
    ),
}


@pytest.mark.parametrize("name", CHARTS_OF_CLASSES)
def test_a_hundred_classes_of_six_methods_stay_below_a_megabyte(name):
    chart = CHARTS_OF_CLASSES[name](a_hundred_classes())
    assert len(chart.to_json(indent=None, separators=(",", ":"))) < 1_000_000


def test_brought_models_are_in_every_chart(errors):
    named = errors.assign(method=errors.method.replace({"Std": "mine", "Adv": "theirs"}))
    assert base.method_order(named.method) == ["Adv⁺", "mine", "theirs"]
    assert marks(charts.class_error(named)).count('aria-roledescription="point"') == 18
    pairs = named.rename(columns={"error": "share"}).assign(predicted_name="cat", method="mine")
    assert marks(charts.confusion(pairs.drop_duplicates("class_name"))).count('"rect mark"') >= 1
