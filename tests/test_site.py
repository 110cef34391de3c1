"""The built pages as a reader meets them, in a browser without a network.

The book is that of ADVLIB_BOOK, the folder with its first index.html, or else the one of the
fixture `project`. Each page is opened once: on a telephone in the dark, then as wide as a desk in
the light, where every control of its charts is used. Of the studies' pages, which one notebook
makes, some are only looked at.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlencode, urlsplit

import pytest

from conftest import CLASSES, GROUPS, TITLE

ROOT = Path(__file__).resolve().parent.parent
NARROW, WIDE = {"width": 400, "height": 800}, {"width": 1200, "height": 900}
PAGE_LIMIT, SHARED_LIMIT = 3_000_000, 6_000_000  # bytes; MathJax and Vega are 3 MB

# Rules of axe. All of them are judged in the light; the dark can only change the contrast, and a
# narrow page what has to scroll.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
RULES_IN_THE_DARK = ["color-contrast", "scrollable-region-focusable", "link-in-text-block"]
IN_THE_DARK = {"cover", "see", "table_check", "cifar100", "reference"}  # all kinds of parts
LOOKED_AT = re.compile("/studies/committed/(?!cifar100|fashion_mnist_zoo|imagenet_sample)")
# The reference repeats one kind of entry some hundred times: the first of each part is judged.
REPEATED = "dl.py:nth-of-type(n+2)"


@pytest.fixture(scope="session")
def built_book(request):
    """The folder of a built book."""
    if given := os.environ.get("ADVLIB_BOOK"):
        return Path(given).resolve()
    return request.getfixturevalue("project") / "_build" / "html"


@pytest.fixture(scope="session")
def pages(built_book):
    """The text of every page, by its path in the book, without forwards to other pages."""
    found = {}
    for path in sorted(built_book.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        if "_static" not in path.parts and 'http-equiv="Refresh"' not in text:
            found[str(path.relative_to(built_book))] = text
    return found


def new_context(browser, viewport, scheme):
    """A browser without a network, whose pages have the functions of observe.js."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme, offline=True)
    context.add_init_script(path=ROOT / "tests" / "observe.js")
    return context


@pytest.fixture(scope="session")
def visits(built_book, pages, browser):
    """What happened on each page."""
    context = new_context(browser, NARROW, "dark")
    found = {}
    for name, text in pages.items():
        page = context.new_page()
        found[name] = visit(page, built_book, name, specs(text))
        page.close()
    context.close()
    return found


def visit(page, built_book, name, charts):
    """Look at a page narrow and dark, then wide and light, and use its controls."""
    seen = {"requests": [], "errors": [], "failed": [], "dialogs": []}
    page.on("dialog", lambda dialog: (seen["dialogs"].append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: seen["requests"].append(request.url))
    page.on("requestfailed", lambda request: seen["failed"].append(request.url))
    page.on("pageerror", lambda error: seen["errors"].append(str(error)))
    page.on("console", lambda m: m.type == "error" and seen["errors"].append(m.text))
    page.goto((built_book / name).as_uri())
    drawn_or_late(page)
    page.wait_for_timeout(100)
    seen["narrow"] = page.evaluate("look.page()")
    seen["words"] = page.evaluate("look.words()")
    page.evaluate(f"document.querySelectorAll('{REPEATED}').forEach((part) => part.remove())")
    dark = {"type": "rule", "values": RULES_IN_THE_DARK}
    seen["axe"] = violations(page, dark, ["svg.marks"]) if Path(name).stem in IN_THE_DARK else []

    page.emulate_media(color_scheme="light")
    page.set_viewport_size(WIDE)
    page.wait_for_timeout(400 if charts else 50)  # charts as wide as the page are drawn again
    drawn_or_late(page)
    seen["wide"] = page.evaluate("look.page()")
    seen["used"], seen["dead"] = {}, []
    if not LOOKED_AT.search(name):
        seen["axe"] += violations(page, {"type": "tag", "values": RULES})
        seen["used"], seen["dead"] = use_controls(page, charts)
    return seen


def drawn_or_late(page):
    """Wait until every chart has marks and formulas are set, for at most five seconds."""
    from playwright.sync_api import TimeoutError as Late

    try:
        page.wait_for_function("look.ready()", timeout=5_000)
    except Late:
        pass  # the tests below name what is missing


def violations(page, rules, left_out=()):
    """What axe finds. It cannot tell the ground of a chart's text: observe.js does that."""
    from axe_playwright_python.base import AXE_SCRIPT

    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
        page.evaluate("axe.configure({rules: [{id: 'color-contrast', selector: ':not(text)'}]})")
    options = {"runOnly": rules, "resultTypes": ["violations"], "preload": False}
    part = {"exclude": [[selector] for selector in left_out]} if left_out else None
    run = "([part, options]) => axe.run(part ?? document, options)"
    found = page.evaluate(run, [part, options])["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]}"
        for rule in found
        for node in rule["nodes"]
    ]


def specs(text):
    """The Vega-Lite specifications of a page's charts, in their order."""
    decoder = json.JSONDecoder()
    starts = [match.end() for match in re.finditer(r'\}\)\((?=\{"config")', text)]
    return [decoder.raw_decode(text, start)[0] for start in starts]


CHOOSE = """(chart) => {  // of several studies, the one of this chart
  const option = chart.closest(".choice > div");
  if (option) option.previousElementSibling.previousElementSibling.checked = true;
}"""


def use_controls(page, charts):
    """Use each control of each chart once.

    Returns
    -------
    used : dict
        How many controls of each kind there are.
    dead : list of str
        Those that changed nothing.
    """
    used, dead = Counter(), []
    for number, spec in enumerate(charts):
        chart = page.locator("div[id^=altair-viz]").nth(number)
        chart.evaluate(CHOOSE)
        for kind, name, act in controls(page, chart, spec):
            used[kind] += 1
            if not any(changes(page, chart, once) for once in act):
                dead.append(f"chart {number + 1}, {kind} {name}")
    return dict(used), dead


def changes(page, chart, act):
    """Whether the chart's picture changes within a second."""
    from playwright.sync_api import TimeoutError as Late

    handle = chart.element_handle()
    handle.evaluate("(c) => { c.before = c.querySelector('svg.marks').innerHTML; }")
    act()
    different = "(c) => c.querySelector('svg.marks').innerHTML !== c.before"
    try:
        page.wait_for_function(different, arg=handle, timeout=1_500)
    except Late:
        return False
    return True


def controls(page, chart, spec):
    """The controls of a chart: their kind, their name, and ways to use them, one of which works."""
    entries = chart.locator(".role-legend [role=button]")
    if entries.count() > 1:  # by keyboard; the mouse has a test of its own
        for key in ("Enter", "Escape"):
            yield "legend", key, [partial(entries.last.press, key)]
    for control in chart.locator(".vega-bind :is(select, input)").all():
        kind = control.evaluate("(c) => c.type")
        name = control.evaluate("(c) => c.closest('.vega-bind').textContent")
        if kind == "select-one":
            other = control.evaluate("(c) => [...c.options].findIndex((o) => !o.selected)")
            yield "drop-down", name, [partial(control.select_option, index=other)]
        elif kind == "range":
            end = control.evaluate("(c) => c.value === c.max ? c.min : c.max")
            yield "slider", name, [partial(control.fill, end)]
        elif kind == "number":
            yield "number", name, [partial(control.fill, "2")]
        elif kind in ("search", "text"):
            rows = [row for rows in spec["datasets"].values() for row in rows]
            last = [row["class_name"] for row in rows if "class_name" in row][-1]
            yield "search", name, [partial(control.fill, last)]
        else:
            raise AssertionError(f"no test uses a control of the kind {kind}: {name}")
    for param in spec.get("params", []):
        chosen = param.get("select", {})
        pointer = chosen.get("on", "" if "bind" in param else "click")
        if not chosen or not pointer:
            continue
        assert chosen["type"] == "point", f"no test uses a selection of {chosen['type']}"
        marks = chart.locator("svg.marks .role-mark:is(.mark-symbol, .mark-rect) > path")
        some = range(0, marks.count(), max(1, marks.count() // 4))
        use = "hover" if "over" in pointer else "click"
        yield use, param["name"], [partial(getattr(marks.nth(i), use), force=True) for i in some]


def check(visits, wrong):
    """Fail if there are pages for which `wrong` returns something, and show that."""
    found = {name: bad for name, seen in visits.items() if (bad := wrong(seen))}
    assert not found, json.dumps(found, indent=1, ensure_ascii=False)


def both(seen, key):
    """What was seen narrow and wide."""
    return seen["narrow"][key] + seen["wide"][key]


# ---------------------------------------------------------------- every page


def test_no_page_asks_the_network(visits):
    local = ("file:", "data:", "blob:")
    check(visits, lambda s: [u for u in s["requests"] if not u.startswith(local)])


def test_no_page_fails_to_load_a_file(visits):
    check(visits, lambda s: s["failed"])


def test_no_console_error(visits):
    check(visits, lambda s: s["errors"])


def test_every_chart_is_drawn(visits, pages):
    assert sum(seen["wide"]["charts"] for seen in visits.values()) > 0
    check(visits, lambda s: both(s, "empty"))
    assert all(seen["wide"]["charts"] == len(specs(pages[name])) for name, seen in visits.items())


def test_every_formula_is_set(visits):
    assert sum(seen["wide"]["formulas"] for seen in visits.values()) > 0
    check(visits, lambda s: both(s, "unset"))


def test_no_page_scrolls_sideways(visits):
    check(visits, lambda s: s["narrow"]["scroll"] > NARROW["width"])
    check(visits, lambda s: s["wide"]["scroll"] > WIDE["width"])


def test_no_chart_is_cut_off(visits):
    check(visits, lambda s: both(s, "cut"))


def test_the_page_follows_the_reader_s_scheme(visits):
    check(visits, lambda s: s["narrow"]["theme"] != "dark")
    check(visits, lambda s: s["wide"]["theme"] != "light")


def test_texts_of_charts_and_code_have_contrast(visits):
    check(visits, lambda s: both(s, "faint"))


def test_charts_and_pictures_have_a_text(visits):
    check(visits, lambda s: both(s, "nameless"))
    check(visits, lambda s: [a for a in s["wide"]["pictures"] if len(a) < 10])


def test_header_cells_say_what_they_head(visits):
    check(visits, lambda s: s["wide"]["unscoped"])


def test_words_in_tables_begin_at_the_left(visits):
    check(visits, lambda s: s["wide"]["ragged"])


def test_no_fold_hides_code_that_shows_nothing(visits):
    check(visits, lambda s: s["wide"]["idle"])


def test_axe_finds_nothing(visits):
    check(visits, lambda s: s["axe"])


def test_every_control_of_every_chart_does_something(visits):
    check(visits, lambda s: s["dead"])
    used = {kind for seen in visits.values() for kind in seen["used"]}
    assert used >= {"legend", "drop-down", "search", "slider", "number"}


def tooltips(part):
    """The channels of a specification that show a tooltip."""
    if isinstance(part, dict):
        found = part.get("tooltip", [])
        yield from found if isinstance(found, list) else [found]
        for value in part.values():
            yield from tooltips(value)
    elif isinstance(part, list):
        for value in part:
            yield from tooltips(value)


def test_tooltips_have_titles(pages):
    nameless = [
        f"{name}: {tip['field']}"
        for name, text in pages.items()
        for spec in specs(text)
        for tip in tooltips({k: v for k, v in spec.items() if k not in ("datasets", "config")})
        if isinstance(tip, dict) and "field" in tip and not tip.get("title")
    ]
    assert not nameless


def test_pages_are_light(visits, built_book):
    """Each with the files that it alone loads; what pages share is loaded once."""
    files = {
        name: {Path(unquote(urlsplit(url).path)) for url in seen["requests"] if "file:" in url}
        for name, seen in visits.items()
    }
    users = Counter(path for loaded in files.values() for path in loaded)
    weights = {
        name: sum(path.stat().st_size for path in loaded if users[path] == 1)
        for name, loaded in files.items()
    }
    assert max(weights.values()) > 10_000  # the pages themselves were counted
    assert {name: size for name, size in weights.items() if size > PAGE_LIMIT} == {}
    assert sum(path.stat().st_size for path, n in users.items() if n > 1) < SHARED_LIMIT


# ---------------------------------------------------------------- text from outside


def test_nothing_that_a_name_says_is_run(visits):
    check(visits, lambda s: s["dialogs"])


def plain(text):
    return " ".join(text.split())


OWN = "book/generated/studies/fresh/mine.html"
SEE = "book/generated/see.html"


@pytest.fixture
def own_pages(visits):
    """What was seen on pages with the study whose names are hostile (conftest.py)."""
    if OWN not in visits:
        pytest.skip("the book was built without that study")
    names = (OWN, SEE, *(f"book/generated/{name}.html" for name in ("classes", "costs", "verdict")))
    return {Path(name).stem: visits[name] for name in names}


def test_names_read_as_they_were_typed(own_pages):
    titles = [page for page, seen in own_pages.items() if plain(TITLE) not in seen["words"]]
    assert not titles
    for page in ("see", "classes", "mine"):
        absent = [name for name in CLASSES if plain(name) not in own_pages[page]["words"]]
        assert not absent, page
    absent = [name for name in GROUPS if plain(name) not in own_pages["mine"]["words"]]
    assert not absent
    assert "<b onclick=alert(1)>{{" in own_pages["see"]["words"]


def test_a_note_holds_markdown_and_nothing_that_acts(own_pages, open_page):
    page = open_page(OWN)
    note = page.locator("p:has(em:text-is('stressed'))")
    assert note.locator("code:text-is('code')").count() == 1
    links = note.locator("a").evaluate_all("(all) => all.map((a) => a.getAttribute('href'))")
    assert links == ["https://example.org"]
    assert "<script>alert(1)</script> <img src onerror=alert(1)>" in plain(note.inner_text())
    assert "{include} /etc/hostname" in own_pages["mine"]["words"]


def test_the_search_shows_titles_as_they_were_typed(own_pages, built_book, open_page):
    page = open_page("search.html")
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(f"{(built_book / 'search.html').as_uri()}?{urlencode({'q': 'my own study'})}")
    page.wait_for_selector("#search-results li a")
    page.wait_for_timeout(300)
    found = page.locator("#search-results").inner_text()
    assert plain(TITLE).lower() in plain(found).lower()
    assert not dialogs


def test_a_link_to_a_class_and_its_tooltip_show_the_name(own_pages, built_book, open_page):
    page = open_page(SEE)
    for name in (CLASSES[6], CLASSES[7], CLASSES[0]):  # TeX, quotes, HTML; a page each takes long
        asked = urlencode({"study": "mine:fresh", "class": name})
        page.goto(f"{(built_book / SEE).as_uri()}?{asked}")
        drawn_or_late(page)
        page.wait_for_function(
            "(name) => [...document.querySelectorAll('svg.marks .role-title text')]"
            ".some((title) => title.textContent === name)",
            arg=name,
            timeout=5_000,
        )
    marks = page.locator("#fig-see-explorer svg.marks .role-mark.mark-symbol > path:visible")
    tips = []
    for i in range(0, marks.count(), 2):  # those of one panel name the class, its title does else
        marks.nth(i).hover(force=True)
        page.wait_for_timeout(200)  # a mark may have no tooltip
        tips.append(
            page.evaluate("document.querySelector('#vg-tooltip-element')?.textContent ?? ''")
        )
        if any(name in tips[-1] for name in CLASSES):
            return
    raise AssertionError(tips)


def test_the_source_of_a_chart_is_shown_as_text(own_pages, open_page):
    page = open_page("book/generated/classes.html")
    page.locator(".vega-embed summary").first.click()
    with page.expect_popup() as opened:
        page.locator(".vega-actions a:text-is('View Source')").first.click()
    source = opened.value
    source.wait_for_load_state()
    assert CLASSES[0] in source.locator("body").inner_text()
    assert source.locator("img").count() == 0


def test_pages_hold_no_path_of_this_machine(own_pages, built_book):
    """The study's file and images lie beside the project, in somebody's folder."""
    outside = str(built_book.parents[2])
    files = [p for p in built_book.rglob("*") if p.suffix in (".html", ".ipynb", ".js", ".md")]
    assert [str(path) for path in files if outside in path.read_text(encoding="utf-8")] == []


# ---------------------------------------------------------------- single pages


@pytest.fixture
def open_page(built_book, browser):
    """Open a page of the book, at the width of a desk, and close it after the test."""
    contexts = []

    def opened(name, viewport=WIDE):
        contexts.append(new_context(browser, viewport, "light"))
        page = contexts[-1].new_page()
        page.goto((built_book / name).as_uri())
        drawn_or_late(page)
        return page

    yield opened
    for context in contexts:
        context.close()


PAPER = "book/generated/table_check.html"  # charts, tables, formulas, folds
CHART = ".vega-embed svg.marks"


@pytest.mark.parametrize("viewport", [NARROW, WIDE])
def test_a_table_scrolls_by_keyboard_however_wide_its_numbers_are(open_page, viewport):
    for name in ("study_index", "limits"):  # a table of Markdown and a notebook's
        page = open_page(f"book/generated/{name}.html", viewport)
        page.evaluate("document.querySelector('.bd-article td').append('1'.repeat(200))")
        rules = ["scrollable-region-focusable", "landmark-unique", "aria-allowed-role"]
        assert violations(page, {"type": "rule", "values": rules}) == []
        page.locator(".bd-article table").first.evaluate("(t) => t.parentElement.focus()")
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.activeElement.scrollLeft > 0", timeout=3_000)


def test_charts_follow_the_theme_button(open_page):
    page = open_page(PAPER)
    fill = f"getComputedStyle(document.querySelector('{CHART} .role-axis-label text')).fill"
    light = page.evaluate(fill)
    for _ in range(3):  # the button goes round auto, light and dark
        page.locator(".theme-switch-button").first.click()
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
    assert page.evaluate(fill) != light


def test_a_chart_follows_its_container_however_that_changes(open_page):
    """The window stays as it is; Vega listens to that alone."""
    page = open_page(PAPER)
    width = f"document.querySelector('{CHART}').getBoundingClientRect().width"
    before = page.evaluate(width)
    page.evaluate("document.querySelector('.vega-embed').style.width = '450px'")
    page.wait_for_function(f"{width} <= 450", timeout=3_000)
    page.evaluate("document.querySelector('.vega-embed').style.width = ''")
    page.wait_for_function(f"Math.abs({width} - {before}) <= 1", timeout=3_000)


def test_a_chart_drawn_before_its_container_has_its_width_is_drawn_again(built_book, browser):
    """A busy machine may lay the page out late."""
    context = new_context(browser, WIDE, "light")
    late = """
        addEventListener('DOMContentLoaded', () => {
            const figure = document.querySelector('figure:has([id^=altair-viz])');
            figure.style.width = '1500px';
            new MutationObserver((_, seen) => {
                if (!document.querySelector('svg.marks .role-mark > *')) return;
                seen.disconnect();
                figure.style.width = '';
            }).observe(document, {subtree: true, childList: true});
        }, {capture: true});
    """
    context.add_init_script(late)
    page = context.new_page()
    page.goto((built_book / PAPER).as_uri())
    drawn_or_late(page)
    box = f"document.querySelector('{CHART}').closest('.vega-embed').clientWidth"
    width = f"document.querySelector('{CHART}').getBoundingClientRect().width"
    page.wait_for_function(f"{width} <= {box} + 1 && {box} < 1200", timeout=3_000)
    context.close()


def test_a_click_in_the_legend_singles_out_a_method(open_page):
    page, chart = open_page(PAPER), f"#fig-spread-mean {CHART}"
    faint = f"""() => [...document.querySelectorAll("{chart} .mark-symbol.role-mark path")]
        .filter((point) => Number(point.getAttribute("opacity") ?? 1) < 0.5).length"""
    assert page.evaluate(faint) == 0
    page.locator(f"{chart} .role-legend-symbol path").first.click(force=True)
    page.wait_for_function(f"({faint})() === 6", timeout=5_000)


def test_search_works_from_disk(built_book, open_page):
    page = open_page("search.html")
    errors = []
    page.on("console", lambda message: message.type == "error" and errors.append(message.text))
    page.goto(f"{(built_book / 'search.html').as_uri()}?q=corruption")
    page.wait_for_selector("#search-results li a")
    page.wait_for_timeout(500)
    assert not errors


# ---------------------------------------------------------------- the keyboard


def test_the_keyboard_gets_everywhere_and_shows_where_it_is(open_page):
    page = open_page(PAPER)
    stops = []
    for _ in range(page.evaluate("look.operable()") + 10):
        page.keyboard.press("Tab")
        if not stops:
            page.wait_for_timeout(500)  # the skip link slides in
        stops.append(page.evaluate("look.focus()"))
        if stops[-1]["tag"] == "BODY":  # round once
            break
    stops = [stop for stop in stops if stop["tag"] != "BODY"]
    names = " | ".join(stop["name"] for stop in stops)
    assert stops[0]["name"] == "Skip to main content"
    assert not [stop for stop in stops if not (stop["ring"] and stop["seen"])]
    for reached in ("Search", "Toggle primary sidebar", "Color mode", "Show Std alone",
                    "Save this chart", "Toggle hidden content", "published.csv"):  # fmt: skip
        assert reached in names, f"{reached} is out of the keyboard's reach"


def test_the_skip_link_skips(open_page):
    page = open_page(PAPER)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_folded_code_opens_by_keyboard(open_page):
    page = open_page(PAPER)
    folded = page.locator("details.hide").first
    assert not folded.evaluate("(d) => d.open")
    folded.locator("summary").press("Enter")
    assert folded.evaluate("(d) => d.open")


def test_the_sidebar_opens_by_keyboard(open_page):
    page = open_page(PAPER, NARROW)
    link = page.locator(".bd-links a").first
    page.wait_for_timeout(300)
    assert not link.is_visible()
    page.locator(".primary-toggle").press("Enter")
    link.wait_for(state="visible", timeout=3_000)
    page.locator(".bd-links summary").first.press("Enter")
    assert page.locator(".bd-links details").first.evaluate("(d) => d.open")
    page.keyboard.press("Escape")
    link.wait_for(state="hidden", timeout=3_000)


def test_the_search_opens_by_keyboard(open_page):
    page = open_page(PAPER)
    page.keyboard.press("Control+k")
    page.keyboard.type("corruption")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")


# ---------------------------------------------------------------- links and figures


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


def test_links_resolve(built_book):
    """Internal ones lead to a file and an anchor; the others at least name a safe protocol."""
    found = {
        path: Links(path.read_text(encoding="utf-8"))
        for path in built_book.rglob("*.html")
        if "_static" not in path.parts
    }
    broken = []
    for path, links in found.items():
        for address in links.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if parts.scheme not in ("https", "data", "mailto"):
                    broken.append(f"{path.relative_to(built_book)}: {address} (not https)")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = found[target].anchors if target in found else None
            if not target.is_file():
                broken.append(f"{path.relative_to(built_book)}: {address}")
            elif parts.fragment and anchors is not None and unquote(parts.fragment) not in anchors:
                broken.append(f"{path.relative_to(built_book)}: {address} (no such anchor)")
    assert not broken


def test_every_figure_is_cited(pages):
    """But those of the studies' pages, which are their tables and nothing else."""
    text = "\n".join(pages.values())
    told = "\n".join(page for name, page in pages.items() if "/studies/" not in name)
    figures = re.findall(r'<figure[^>]* id="([^"]+)"', told)
    cited = re.findall(r'href="[^"]*#([^"]+)"><span class="std std-numref">', text)
    assert figures
    assert not sorted(set(figures) - set(cited))


# ---------------------------------------------------------------- the same build twice


def test_the_same_tables_make_the_same_pages(tmp_path):
    """Two runs of a notebook and of Sphinx, which hash differently, differ in no byte."""
    book = ["book/_static", "book/references.bib", "_config.yml"]
    python = sys.executable
    steps = [
        f"{python} -m advbook.build.place run.ipynb book/generated/table_check.ipynb --papermill "
        "--no-progress-bar --kernel python3 notebooks/table_check.ipynb run.ipynb",
        "echo '{format: jb-book, root: book/generated/table_check}' > toc.yml",
        f"{Path(python).with_name('jupyter-book')} build . --toc toc.yml -q",
    ]
    runs = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        for path in map(Path, [*book, "notebooks/table_check.ipynb"]):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (ROOT / path).is_dir() else shutil.copy
            copy(ROOT / path, folder / path)
        env = os.environ | {
            "PYTHONHASHSEED": str(len(runs)),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'book'}",
        }
        command = ["bash", "-ec", "\n".join(steps)]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
        runs.append((folder, process))
    trees = []
    for folder, process in runs:
        assert process.wait() == 0, (folder / "log").read_text()
        html = folder / "_build" / "html"
        files = [path for path in html.rglob("*") if path.is_file()]
        trees.append({str(path.relative_to(html)): path.read_bytes() for path in files})
    one, two = trees
    assert "altair-viz-1" in one[PAPER].decode()
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
