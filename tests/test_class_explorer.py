"""The class explorer: its figures, as Vega unpacks them, and the reader's search and clicks."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import vl_convert
from sklearn.metrics import confusion_matrix

from advbook.audit.analysis import corruption_class_error, top_confusions
from advbook.charts import grids
from advbook.charts.classes import class_explorer, distinct
from advbook.studies.schema import ROOT
from advlib import metrics
from conftest import marks

NAMES = ["T-shirt/top", "Coat (long)", "Crêpe", "crane", "Shirt", "[a+b]*?", "crane", "Dress"]
METHODS = ["Std", "Adv", "Adv⁺"]
BENCHMARKS = ["Clean", "PGD-40"]


def predictions(names=NAMES, per_class=12, seeds=(0, 1), methods=METHODS, benchmarks=BENCHMARKS):
    """Made-up predictions: the later a class, the harder; wrong ones fall on near classes."""
    rng, k = np.random.default_rng(0), len(names)
    label = np.repeat(np.arange(k), per_class)
    tables = []
    for benchmark in benchmarks:
        for method in methods:
            for seed in seeds:
                wrong = rng.random(len(label)) < 0.1 + 0.5 * label / k
                other = (label + rng.integers(1, min(k, 9), len(label))) % k
                table = {"label": label, "predicted_class": np.where(wrong, other, label)}
                table |= {"benchmark": benchmark, "method": method, "seed": seed}
                tables.append(pd.DataFrame(table).assign(file_name=lambda t: t.index.astype(str)))
    return pd.concat(tables, ignore_index=True)


def figures(tables, names=NAMES):
    """What the chart is made of: errors, confusions, single corruptions, order of the classes."""
    errors = metrics.class_error(tables, ["benchmark", "method", "seed"])
    first = tables[tables.seed == 0]
    rng = np.random.default_rng(1)
    corruptions = pd.MultiIndex.from_product(
        [tables.method.unique(), metrics.CORRUPTIONS, range(len(names))],
        names=["method", "corruption", "label"],
    ).to_frame(index=False)
    corruptions["error"] = rng.random(len(corruptions))
    clean = errors[(errors.benchmark == "Clean") & (errors.seed == 0)]
    clean = clean.pivot(index="label", columns="method", values="error")
    confusions = top_confusions(first)
    return errors, confusions, corruptions, clean["Adv"] - clean["Std"]


def explorer(tables, names=NAMES):
    return class_explorer(*figures(tables, names), names, title="Change from Std to Adv")


def rows_of(chart) -> pd.DataFrame:
    return pd.DataFrame(next(iter(chart.to_dict()["datasets"].values()))).set_index("label")


@pytest.fixture(scope="module")
def tables():
    return predictions()


def embedded(chart, number):
    """The chart as in a page: its box, and the script that draws it."""
    element = f"document.getElementById('altair-viz-{number}')"
    return (
        f'<div id="altair-viz-{number}"></div><script>'
        f"vegaEmbed({element}, {json.dumps(chart.to_dict())}, {{mode: 'vega-lite'}})"
        ".then((r) => { window.drawn = r; })</script>"
    )


@pytest.fixture(scope="module")
def page(tables, browser, tmp_path_factory):
    """The chart alone, drawn by the book's own script, in a page of the width of a desk."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "vega.js").write_text(f"(function () {{{vl_convert.javascript_bundle()}}})();")
    for name in ("book.js", "book.css"):
        shutil.copy(ROOT / "book/_static" / name, folder)
    one = embedded(explorer(tables), 1)
    other = embedded(explorer(tables, [f"another {name}" for name in NAMES]), 2)
    two = grids.choice("study", "Study", [("first", "First", one), ("second", "Second", other)])
    for name, body in {"page": one, "two": grids.STYLE + two}.items():
        (folder / f"{name}.html").write_text(
            '<!doctype html><html><head><meta charset="utf-8">'
            '<link rel="stylesheet" href="book.css">'
            "<style>.vega-embed { width: 100%; display: flex; }</style>"
            '<script src="vega.js"></script><script src="book.js"></script></head><body>'
            f'<article class="bd-article">{body}</article></body></html>'
        )
    context = browser.new_context(viewport={"width": 1000, "height": 900}, offline=True)
    page = context.new_page()

    def opened(query="", width=1000, name="page"):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((folder / f"{name}.html").as_uri() + query)
        page.wait_for_function("window.drawn !== undefined")
        return page

    yield opened
    context.close()


BOX = "input[type=search]"


def shown(page, name):
    """Wait until the heading names the class."""
    titles = "[...document.querySelectorAll('svg.marks .role-title-text text')]"
    says = f"{titles}.some((title) => title.textContent === {json.dumps(name)})"
    page.wait_for_function(says, timeout=5_000)


def drawn(page, role, title):
    """The `title` of every mark's description, such as "Error: 12.00%", of marks of this role."""
    texts = page.evaluate(
        f"[...document.querySelectorAll('svg.marks [aria-roledescription=\"{role}\"]')]"
        ".map((mark) => mark.getAttribute('aria-label'))"
    )
    found = [dict(part.split(": ", 1) for part in text.split("; ")) for text in texts if text]
    return [parts for parts in found if title in parts]


# ---------------------------------------------------------------- its figures


def test_packed_figures_are_those_of_the_metrics(tables):
    found = rows_of(explorer(tables))
    for seed in (0, 1):
        cells = [(b, m) for b in BENCHMARKS for m in METHODS]
        for place, (benchmark, method) in enumerate(cells):
            part = tables[(tables.benchmark == benchmark) & (tables.method == method)]
            expected = metrics.class_error(part[part.seed == seed]).set_index("label")
            packed = (found.error if seed == 0 else found.seeds.str[0]).str[place]
            assert (packed - expected.error).abs().max() <= 0.51e-4
            if seed == 0:
                low = found.low.str[place]
                assert (low - expected.low).abs().max() <= 0.51e-4
                ranks = expected.error.rank(method="min")
                packed = found["first"].str[place]
                assert packed.sort_index().tolist() == ranks.astype(int).tolist()
    change = found.error.str[1] - found.error.str[0]
    assert (found.value - change).abs().max() <= 1.51e-4
    assert found.value.is_monotonic_decreasing and found.place.tolist() == list(range(1, 9))


def test_confusions_are_scikit_learns(tables):
    found = top_confusions(tables[tables.seed == 0])
    for benchmark in BENCHMARKS:
        for method in METHODS:
            part = tables[(tables.seed == 0) & (tables.benchmark == benchmark)]
            part = part[part.method == method]
            matrix = confusion_matrix(part.label, part.predicted_class, normalize="true")
            ours = found[found.benchmark == benchmark]
            for row in ours.to_dict("records"):
                pair = row["label"], row["other"]
                pair = pair if row["direction"] == "out" else pair[::-1]
                assert pair[0] != pair[1] and row[method] == pytest.approx(matrix[pair])


def test_the_largest_share_of_any_method_is_never_left_out():
    tables = predictions(names=["x"] * 30, seeds=(0,), benchmarks=["Clean"])
    few = top_confusions(tables)
    kept = few.groupby(["direction", "label"])[METHODS].max().max(axis=1)
    pairs = metrics.confusion(tables, ["method"]).query("label != predicted_class")
    largest = pairs.groupby("label").share.max(), pairs.groupby("predicted_class").share.max()
    for direction, expected in zip(("out", "in"), largest, strict=True):
        assert (kept[direction] == expected).all()
    assert few.groupby(["direction", "label"]).size().max() == 6


def test_error_under_corruption_counts_an_image_once():
    images = predictions(seeds=(0,), methods=["Std"], benchmarks=["Clean"], per_class=40)
    rng = np.random.default_rng(0)
    hard = rng.random(len(images))  # the same images are hard in every condition
    parts = []
    for corruption in ("fog", "snow"):
        for severity in (1, 2, 3):
            wrong = rng.random(len(images)) < hard
            predicted = np.where(wrong, (images.label + 1) % 8, images.label)
            part = images.assign(predicted_class=predicted, corruption=corruption)
            parts.append(part.assign(severity=severity))
    table = pd.concat(parts, ignore_index=True)
    found = corruption_class_error(table).set_index("label")
    assert (found.n_images == 40).all()
    for label, row in found.iterrows():
        expected = metrics.bootstrap(table[table.label == label], "error")
        assert row.error == pytest.approx(expected.value)
        width = (row.high - row.low) / (expected.high - expected.low)
        assert 0.95 < width < 1.2  # Wilson's over all rows as if independent: some 0.6
    never = corruption_class_error(table.assign(predicted_class=table.label))
    assert (never.error == 0).all() and never[["low", "high"]].isna().all(axis=None)


def test_classes_of_one_name_are_told_apart():
    assert distinct(["crane", "Dress", "Crane"]) == ["crane (0)", "Dress", "Crane (2)"]


def test_a_thousand_classes_stay_small():
    names = [f"a class with a long name, number {i}" for i in range(1000)]
    tables = predictions(names, per_class=50, seeds=(0,), methods=["Pretrained", *METHODS])
    as_in_pages = explorer(tables, names).to_json(indent=None, separators=(",", ":"))
    assert len(as_in_pages) < 1_600_000


def test_a_class_without_images_does_not_shift_the_others(tables):
    rest = tables[tables.label != 3]
    found, whole = rows_of(explorer(rest)), rows_of(explorer(tables))
    assert 3 not in found.index
    assert (found.error == whole.error[found.index]).all()


def test_a_class_without_corrupted_images_has_no_mark_there(tables):
    errors, confusions, corruptions, ranking = figures(tables)
    shown = int(ranking.idxmax())
    corrupted = errors[(errors.benchmark == "Clean") & (errors.label != shown)]
    errors = pd.concat([errors, corrupted.assign(benchmark="Corruptions")])
    rest = corruptions[corruptions.label != shown]
    chart = class_explorer(errors, confusions, rest, ranking, NAMES, title="Change")
    svg = marks(chart)
    assert "Benchmark: PGD-40; Method: Adv" in svg and "Benchmark: Corruptions" not in svg
    assert "null" not in svg and "Corruption: fog" not in svg


@pytest.mark.parametrize("benchmarks, seeds", [(["Clean"], 1), (["Clean", "PGD-40"], 2)])
def test_without_corrupted_images_there_is_a_chart_too(tables, benchmarks, seeds):
    few = tables[tables.benchmark.isin(benchmarks) & (tables.seed < seeds)]
    errors, confusions, corruptions, ranking = figures(few)
    chart = class_explorer(errors, confusions, corruptions[:0], ranking, NAMES, title="Change")
    svg = marks(chart)
    assert "Benchmark: Clean; Method: Adv" in svg and "Corruption: " not in svg


def test_spaces_in_a_name_are_those_that_a_search_sees():
    assert distinct(["hot  dog", "Grande\u00a0Pyr", "a\tb"]) == ["hot dog", "Grande Pyr", "a b"]


def test_models_without_a_mistake_have_a_chart_too(tables):
    right = tables.assign(predicted_class=tables.label)
    chart = explorer(right)
    assert rows_of(chart)["out"].map(lambda lists: not any(lists)).all()
    svg = marks(chart)
    assert "Its images are taken for" in svg
    one = right.where(right.method != "Std", tables)  # and where one method alone makes some
    shares = top_confusions(one[one.seed == 0])
    assert (shares[["Adv", "Adv⁺"]] == 0).all(axis=None) and (shares.Std > 0).all()


# ---------------------------------------------------------------- in the page


def test_it_opens_with_the_class_that_changes_most(page, tables):
    label = int(figures(tables)[3].idxmax())
    shown(opened := page(), distinct(NAMES)[label])
    assert opened.input_value(BOX) == distinct(NAMES)[label]


@pytest.mark.parametrize(
    "typed, name",
    [
        ("[a+b]*?", "[a+b]*?"),  # not as a regular expression
        ("+B", "[a+b]*?"),
        ("(LO", "Coat (long)"),
        ("CRÊ", "Crêpe"),
        ("shirt", "Shirt"),  # the whole name goes before a part of another
        ("shirt/", "T-shirt/top"),
        ("dre", "Dress"),
        ("crane (6)", "crane (6)"),
        ("zebra", "No class has “zebra” in its name"),
    ],
)
def test_search_by_a_part_of_the_name(page, typed, name):
    opened = page()
    opened.fill(BOX, typed)
    shown(opened, name)


def test_all_panels_follow_the_search_and_hold_the_metrics(page, tables):
    opened = page()
    opened.fill(BOX, "dress")
    shown(opened, "Dress")
    errors, confusions, corruptions, _ = figures(tables)
    own = errors[(errors.label == 7) & (errors.seed == 0)]
    marks = drawn(opened, "point", "Rank")
    found = {(m["Benchmark"], m["Method"]): m["Error"] for m in marks}
    expected = own.set_index(["benchmark", "method"]).error.map(lambda e: f"{100 * e:.2f}%")
    assert found == expected.to_dict()
    bars = drawn(opened, "bar", "Share of this class")
    found = {(m["Other class"], m["Method"]): m["Share of this class"] for m in bars}
    out = confusions.query("label == 7 and direction == 'out' and benchmark == 'Clean'")
    assert found == {
        (distinct(NAMES)[row["other"]], method): f"{100 * row[method]:.2f}%"
        for row in out.to_dict("records")
        for method in METHODS
    }
    marks = drawn(opened, "circle", "Corruption")
    assert len(marks) == 15 * len(METHODS)
    fog = next(m for m in marks if (m["Corruption"], m["Method"]) == ("fog", "Adv"))
    value = corruptions.query("corruption == 'fog' and method == 'Adv' and label == 7").error
    assert fog["Error"] == f"{100 * value.item():.2f}%"
    others = drawn(opened, "point", "Another seed")
    assert len(others) == len(BENCHMARKS) * len(METHODS)


def test_a_click_picks_a_class_and_names_it_in_the_box(page):
    opened = page()
    opened.fill(BOX, "shirt")
    shown(opened, "Shirt")
    mark = opened.locator("svg.marks [aria-label*='Class: Dress'][aria-roledescription=circle]")
    place = mark.first.bounding_box()
    opened.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    shown(opened, "Dress")
    assert opened.input_value(BOX) == "Dress"


def test_the_drop_down_changes_the_confusions_alone(page):
    opened = page("?class=Dress")
    shown(opened, "Dress")
    before = drawn(opened, "bar", "Method"), drawn(opened, "point", "Rank")
    opened.select_option(".vega-bind select", label="PGD-40")
    opened.wait_for_timeout(300)
    assert drawn(opened, "bar", "Method") != before[0]
    assert drawn(opened, "point", "Rank") == before[1]


def test_the_address_may_name_the_class(page):
    shown(page("?class=T-shirt%2Ftop"), "T-shirt/top")


def test_the_address_may_name_the_study_too(page):
    opened = page("?study=second&class=another+Shirt", name="two")
    shown(opened, "another Shirt")
    assert opened.locator(BOX).evaluate_all("(all) => all.map((b) => b.checkVisibility())") == [
        False,
        True,
    ]
    assert "Shirt" not in opened.locator(BOX).first.input_value()  # which has no such class
    opened.locator("label:text-is('First')").click()
    width = "Number(document.querySelector('svg.marks').getAttribute('width'))"
    opened.wait_for_function(f"{width} > 500", timeout=5_000)  # two columns, though drawn unseen


def test_the_box_has_a_name_and_suggests_the_classes(page):
    opened = page()
    assert opened.get_by_label("Class", exact=True).get_attribute("type") == "search"
    options = opened.evaluate(
        f"[...document.querySelector('{BOX}').list.options].map(o => o.value)"
    )
    assert options == distinct(NAMES)


def test_one_column_on_a_telephone_and_two_on_a_desk(page):
    opened = page(width=400)
    width = "Number(document.querySelector('svg.marks').getAttribute('width'))"
    assert opened.evaluate("document.documentElement.scrollWidth") <= 400
    assert opened.evaluate(width) < 370
    opened.set_viewport_size({"width": 1000, "height": 900})
    opened.wait_for_function(f"{width} > 500", timeout=5_000)


@pytest.mark.parametrize("typed", ["dress", ""])
def test_after_a_search_without_a_hit_the_chart_is_whole_again(page, typed):
    """An empty chart is smaller; the next one must not be cut to its size."""
    opened = page()
    whole = "['width', 'height'].map((a) => +document.querySelector('svg.marks').getAttribute(a))"
    opened.fill(BOX, typed)
    before = opened.evaluate(whole)
    opened.fill(BOX, "zebra")
    opened.wait_for_function(f"{whole}[1] < {before[1]}", timeout=5_000)
    opened.fill(BOX, typed)
    opened.wait_for_function(f"`${{{whole}}}` === '{before[0]},{before[1]}'", timeout=5_000)
    assert len(drawn(opened, "circle", "Corruption")) == 15 * len(METHODS)


def test_where_the_mouse_is_changes_of_error_are_points(page, tables):
    change = figures(tables)[3]
    marks = drawn(page(), "circle", "Change from Std to Adv (points)")
    found = {mark["Class"]: mark["Change from Std to Adv (points)"] for mark in marks}
    said = {name: f"{100 * change[i]:+.2f}" for i, name in enumerate(distinct(NAMES))}
    assert {name: value.replace("\u2212", "-") for name, value in found.items()} == said
