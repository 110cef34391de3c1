"""The pages as a reader meets them, in a browser without a network; and how they are placed.

The browser tests open a built book: that of ADVLIB_BOOK, the folder with its first index.html, or
else the one of the fixture `project`.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

_spec = importlib.util.spec_from_file_location("place", ROOT / "book" / "place.py")
place = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(place)


# ---------------------------------------------------------------- placing notebooks


@pytest.fixture
def executed(tmp_path):
    """A small notebook as papermill leaves it, with one of everything that the placer handles."""
    v4 = nbformat.v4
    figure = {"name": "fig-error", "caption": "Errors of {{ study_title }}."}
    cells = [
        v4.new_markdown_cell(
            "# Average error\n\nSee {numref}`fig-error`, {ref}`the method <method>`, "
            "{ref}`there <tab-all>` and [here](#fig-error).\n\n"
            "(sec-two)=\n## Two\n\n{{ study_title }}"
        ),
        v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]}, execution_count=1),
        v4.new_code_cell("seed = 1", metadata={"tags": ["injected-parameters"]}, execution_count=2),
        v4.new_code_cell(
            "chart",
            metadata={"mystnb": {"figure": figure}, "papermill": {"duration": 1}},
            execution_count=3,
            outputs=[
                v4.new_output("stream", name="stderr", text="a warning"),
                v4.new_output("display_data", {"text/markdown": "{numref}`fig-error`"}),
                v4.new_output(
                    "display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "0"}}
                ),
            ],
        ),
    ]
    notebook = v4.new_notebook(cells=cells, metadata={"widgets": {}, "papermill": {}})
    path = tmp_path / "average_error.ipynb"
    nbformat.write(notebook, path)
    return path


def placed(path, **options):
    """The cells of the page that `place_notebook` makes, and its metadata."""
    target = path.parent / "generated" / "page.ipynb"
    place.place_notebook(path, target, **options)
    page = nbformat.read(target, as_version=4)
    return page.cells, page.metadata


def rewrite(path, change):
    """Change a notebook on disk."""
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


def test_labels_and_references_get_the_study(executed):
    cells, _ = placed(executed, study_id="toy", study_title="Toy")
    text = cells[0].source
    assert "{numref}`toy-fig-error`" in text
    assert "{ref}`there <toy-tab-all>`" in text
    assert "[here](#toy-fig-error)" in text
    assert "(toy-sec-two)=" in text
    assert "{ref}`the method <method>`" in text  # a label of another page stays
    figure = cells[3].metadata.mystnb.figure
    assert figure == {"name": "toy-fig-error", "caption": "Errors of Toy."}
    assert cells[3].outputs[0].data["text/markdown"] == "{numref}`toy-fig-error`"


def test_without_a_study_labels_stay(executed):
    cells, _ = placed(executed)
    assert "{numref}`fig-error`" in cells[0].source
    assert cells[3].metadata.mystnb.figure["name"] == "fig-error"


def test_heading_names_the_study_and_the_source(executed):
    cells, metadata = placed(
        executed, study_id="toy", study_title="Toy", source="A fresh run, on this machine."
    )
    lines = cells[0].source.splitlines()
    assert lines[0] == "# Average error: Toy"
    assert "A fresh run, on this machine." in lines
    assert "{download}`notebook <page.ipynb>`" in cells[0].source
    assert cells[0].source.rstrip().endswith("Toy")  # the text goes on
    assert metadata["advbook"]["title"] == "Average error"


def test_what_belongs_to_the_run_is_dropped(executed):
    before = executed.read_bytes()
    cells, metadata = placed(executed)
    assert "widgets" not in metadata and "papermill" not in metadata
    assert "papermill" not in cells[3].metadata
    assert [list(output.data) for output in cells[3].outputs] == [["text/markdown"]]
    assert executed.read_bytes() == before


def test_parameters_are_folded(executed):
    cells, _ = placed(executed)
    assert "hide-input" in cells[1].metadata.tags and "hide-input" in cells[2].metadata.tags
    assert cells[2].metadata.mystnb["code_prompt_show"] == "Show this run's parameters"


def test_paths_of_this_machine_become_relative(executed):
    rewrite(executed, lambda n: n.cells[2].update(source=f"output = '{ROOT}/runs/toy'"))
    cells, _ = placed(executed)
    assert cells[2].source == "output = 'runs/toy'"


def test_tables_are_offered_as_csv_and_latex(executed):
    table = executed.parent / "error.csv"
    table.write_text("method,value\nadv_plus,0.5\n")
    cells, _ = placed(executed, tables=[table])
    folder = executed.parent / "generated" / "tables"
    assert pd.read_csv(folder / "error.csv").value.tolist() == [0.5]
    assert r"adv\_plus & 0.5" in (folder / "error.tex").read_text()
    assert "{download}`error.csv <tables/error.csv>`" in cells[0].source


def fail(notebook):
    error = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    notebook.cells[3].outputs = [nbformat.from_dict(error)]


@pytest.mark.parametrize(
    "change, message",
    [
        (fail, "cell 3 failed with ValueError: no"),
        (lambda n: n.cells[3].update(execution_count=None), "cell 3 was not run"),
        (lambda n: n.cells[0].update(source="No heading"), "must begin with"),
        (lambda n: n.cells[0].update(source="# T\n\n(mine)=\n## Part"), "'mine' must start with"),
        (lambda n: n.cells[3].metadata.mystnb.figure.update(name="x"), "'x' must start with"),
        (lambda n: n.cells[3].metadata.mystnb.figure.pop("caption"), "needs a caption"),
    ],
)
def test_what_cannot_be_a_page_is_refused(executed, change, message):
    rewrite(executed, change)
    with pytest.raises(place.PlacementError, match=message):
        placed(executed)
    assert not (executed.parent / "generated" / "page.ipynb").exists()


def test_study_and_toc(executed, tmp_path):
    generated = tmp_path / "book" / "generated"
    stale = generated / "toy" / "old.ipynb"
    stale.parent.mkdir(parents=True)
    stale.touch()
    training = shutil.copy(executed, tmp_path / "training.ipynb")
    place.place_study(
        [executed, training],
        appendix=[training],
        study_id="toy",
        study_title="Toy",
        source="Committed tables.",
        generated=generated,
    )
    place.place_study([], study_id="a", study_title="A", source="Not run.", generated=generated)
    assert not stale.exists()
    appendix = nbformat.read(generated / "toy/appendix/training.ipynb", as_version=4)
    assert appendix.cells[0].source.startswith("# Average error (training): Toy")
    assert "toy-training-fig-error" in appendix.cells[0].source

    (tmp_path / "book" / "index.md").write_text("# Book")
    template = tmp_path / "_toc.yml"
    parts = [
        {"caption": "Studies", "chapters": [{"glob": "book/generated/*/index"}]},
        {"caption": "None", "chapters": []},
    ]
    template.write_text(yaml.safe_dump({"root": "book/index", "parts": parts}))
    out = place.expand_toc(template, generated, tmp_path / "toc.yml", studies=["toy"])
    toc = yaml.safe_load(out.read_text())
    base = "book/generated/toy"
    assert toc["parts"] == [
        {
            "caption": "Studies",
            "chapters": [
                {
                    "file": f"{base}/index",
                    "sections": [
                        {"file": f"{base}/training", "title": "Average error"},
                        {"file": f"{base}/average_error", "title": "Average error"},
                        {
                            "file": f"{base}/appendix/index",
                            "title": "Appendix",
                            "sections": [
                                {"file": f"{base}/appendix/training", "title": "training"}
                            ],
                        },
                    ],
                },
                {"file": "book/generated/a/index"},
            ],
        }
    ]


def test_toc_names_a_missing_page(tmp_path):
    template = tmp_path / "_toc.yml"
    template.write_text(yaml.safe_dump({"root": "book/index", "parts": []}))
    with pytest.raises(place.PlacementError, match="book/index, which does not exist"):
        place.expand_toc(template, tmp_path, tmp_path / "toc.yml")


def test_published_tables():
    table = pd.read_csv(ROOT / "results/paper/published.csv")
    values = table.set_index(["benchmark", "statistic", "method"]).value
    assert len(table) == 9 + 18 and values.between(0, 1).all()
    assert values["pgd40", "error", "adv_plus"] == 0.3270
    assert values["clean", "sd", "adv"] == 0.1778


# ---------------------------------------------------------------- the built book


@pytest.fixture(scope="session")
def built_book(request):
    """The folder of a built book."""
    if given := os.environ.get("ADVLIB_BOOK"):
        return Path(given).resolve()
    return request.getfixturevalue("project") / "_build" / "html"


@pytest.fixture(scope="session")
def browser():
    """Chromium, driven by Playwright."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((path for name in names if (path := shutil.which(name))), None)
    if program is None:
        assert not os.environ.get("CI"), "Chromium is missing where these tests must run"
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def visits(built_book, browser):
    """What happened when each page was opened from disk, 400 px wide and in dark mode."""
    context = browser.new_context(
        viewport={"width": 400, "height": 800}, color_scheme="dark", offline=True
    )
    found = {}
    for path in sorted(built_book.rglob("*.html")):
        if "_static" in path.parts or 'http-equiv="Refresh"' in path.read_text(encoding="utf-8"):
            continue  # a forward to another page, which is opened itself
        page = context.new_page()
        seen = {"requests": [], "errors": [], "failed": []}
        page.on("request", lambda r, s=seen: s["requests"].append(r.url))
        page.on("requestfailed", lambda r, s=seen: s["failed"].append(r.url))
        page.on("pageerror", lambda e, s=seen: s["errors"].append(str(e)))
        page.on("console", lambda m, s=seen: m.type == "error" and s["errors"].append(m.text))
        page.goto(path.as_uri())
        drawn_or_late(page)
        page.wait_for_timeout(200)
        seen |= page.evaluate(OBSERVE)
        found[str(path.relative_to(built_book))] = seen
        page.close()
    context.close()
    return found


# Brightness of the text of charts; width of the page; charts, and those without a mark.
OBSERVE = """() => {
  const bright = (element) => {
    const parts = getComputedStyle(element).fill.match(/[0-9.]+/g).slice(0, 3).map(Number);
    return Math.max(...parts);
  };
  const charts = [...document.querySelectorAll("[id^=altair-viz]")];
  const roles = ["axis-label", "axis-title", "legend-label", "legend-title", "title-text"];
  const texts = roles.map((role) => `.vega-embed .role-${role} text`).join();
  return {
    scroll: Math.max(document.documentElement.scrollWidth, document.body.scrollWidth),
    charts: charts.length,
    empty: charts.filter((c) => !c.querySelector("svg.marks .role-mark > *")).length,
    texts: [...document.querySelectorAll(texts)].map(bright),
    formulas: document.querySelectorAll(".math").length,
    unset: [...document.querySelectorAll(".math")]
      .filter((formula) => !formula.querySelector("mjx-container svg")).map((f) => f.textContent),
    dark: document.documentElement.dataset.theme === "dark",
  };
}"""


def drawn_or_late(page):
    """Wait until every chart has marks and formulas are set, for at most five seconds."""
    from playwright.sync_api import TimeoutError as Late

    ready = """() => [...document.querySelectorAll("[id^=altair-viz]")].every(
        (chart) => chart.querySelector("svg.marks .role-mark > *"))
        && [...document.querySelectorAll(".math")].every(
        (formula) => formula.querySelector("mjx-container svg"))"""
    try:
        page.wait_for_function(ready, timeout=5_000)
    except Late:
        pass  # the tests below name what is missing


def offenders(visits, wrong):
    """The pages for which `wrong` returns something, with that."""
    return {name: found for name, seen in visits.items() if (found := wrong(seen))}


def test_no_page_asks_the_network(visits):
    local = ("file:", "data:", "blob:")
    assert not offenders(visits, lambda s: [u for u in s["requests"] if not u.startswith(local)])


def test_no_page_fails_to_load_a_file(visits):
    assert not offenders(visits, lambda s: s["failed"])


def test_no_console_error(visits):
    assert not offenders(visits, lambda s: s["errors"])


def test_every_chart_is_drawn(visits):
    assert sum(seen["charts"] for seen in visits.values()) > 0
    assert not offenders(visits, lambda s: s["empty"])


def test_every_formula_is_set(visits):
    assert sum(seen["formulas"] for seen in visits.values()) > 0
    assert not offenders(visits, lambda s: s["unset"])


def test_no_page_scrolls_sideways_on_a_telephone(visits):
    assert not offenders(visits, lambda s: s["scroll"] if s["scroll"] > 400 else None)


def test_charts_are_readable_in_the_dark(visits):
    assert all(seen["dark"] for seen in visits.values() if seen["charts"])
    assert not offenders(visits, lambda s: [t for t in s["texts"] if t < 150])


@pytest.fixture
def open_page(built_book, browser):
    """Open a page of the book at the width of a desk, and close it after the test."""
    context = browser.new_context(viewport={"width": 1300, "height": 900}, color_scheme="light")

    def opened(name):
        page = context.new_page()
        page.goto((built_book / name).as_uri())
        drawn_or_late(page)
        return page

    yield opened
    context.close()


CLAIMS = "book/generated/claims.html"
CHART = ".vega-embed svg.marks"


def test_charts_follow_the_theme_button(open_page):
    page = open_page(CLAIMS)
    fill = f"getComputedStyle(document.querySelector('{CHART} .role-axis-label text')).fill"
    light = page.evaluate(fill)
    for _ in range(3):  # the button goes round auto, light and dark
        page.locator(".theme-switch-button").first.click()
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
    assert page.evaluate(fill) != light


def test_a_click_in_the_legend_singles_out_a_method(open_page):
    page = open_page(CLAIMS)
    faint = f"""() => [...document.querySelectorAll("{CHART} .mark-rect.role-mark path")]
        .filter((bar) => Number(bar.getAttribute("opacity") ?? 1) < 0.5).length"""
    assert page.evaluate(faint) == 0
    page.locator(f"{CHART} .role-legend-symbol path").first.click(force=True)
    page.wait_for_function(f"({faint})() === 6", timeout=5_000)


def test_a_drop_down_changes_its_chart(open_page, visits):
    for name, seen in visits.items():
        if not seen["charts"]:
            continue
        page = open_page(name)
        menus = page.locator(".vega-bind select")
        if menus.count():
            chart = page.locator(".vega-embed", has=menus).first.locator("svg.marks")
            before = chart.inner_html()
            menus.first.select_option(index=0)
            if chart.inner_html() == before:  # it was the first option already
                menus.first.select_option(index=1)
            page.wait_for_timeout(500)
            assert chart.inner_html() != before, f"{name}: the drop-down changes nothing"
            return
        page.close()
    pytest.fail("no page of this book has a chart with a drop-down")


def test_search_works_from_disk(built_book, open_page):
    page = open_page("search.html")
    errors = []
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.goto(f"{(built_book / 'search.html').as_uri()}?q=corruption")
    page.wait_for_selector("#search-results li a")
    page.wait_for_timeout(500)
    assert not errors


class Links(HTMLParser):
    """The addresses that a page names, and its anchors."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        self.addresses += [attrs[key] for key in ("href", "src") if attrs.get(key)]
        if tag == "meta" and attrs.get("http-equiv") == "Refresh":
            self.addresses.append(attrs["content"].partition("url=")[2])


def test_internal_links_resolve(built_book):
    pages = {
        path: Links(path.read_text(encoding="utf-8"))
        for path in built_book.rglob("*.html")
        if "_static" not in path.parts
    }
    broken = []
    for path, links in pages.items():
        for address in links.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else None
            if not target.is_file():
                broken.append(f"{path.relative_to(built_book)}: {address}")
            elif parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors:
                broken.append(f"{path.relative_to(built_book)}: {address} (no such anchor)")
    assert not broken


def test_the_reference_is_made_without_torch():
    """Each of its modules first, as a page of its own, where torch and others are mocked."""
    mocked = re.search(r"autodoc_mock_imports: \[(.*)\]", (ROOT / "_config.yml").read_text())[1]
    modules = re.findall(r"automodule:: (\S+)", (ROOT / "book/reference.md").read_text())
    code = (
        "import importlib, sys; from unittest.mock import MagicMock\n"
        f"sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'book/_ext')!r}]\n"
        "import advbook; from sphinx.ext.autodoc.mock import mock\n"
        "advbook.setup(MagicMock())\n"
        f"with mock({mocked.split(', ')!r}):\n"
        f"    for name in {modules!r}:\n"
        "        importlib.import_module(name)\n"
        "assert not hasattr(sys.modules.get('torch'), '__version__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
