"""What makes the book self-contained, and its charts, tables and titles behave."""

import functools
import html
import itertools
import json
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import scipy.stats  # noqa: F401 (here, since it fails to import once torch is mocked)
import vl_convert
from bs4 import BeautifulSoup
from docutils import nodes
from docutils.writers._html_base import HTMLTranslator
from sphinx.application import Sphinx
from sphinx.ext.autodoc.mock import _make_subclass, _MockObject
from sphinx.search import IndexBuilder
from sphinx.transforms import SphinxTransform

STATIC = Path(__file__).resolve().parents[2] / "_static"
sys.path.insert(0, str(STATIC.parent.parent))
import advlib  # noqa: E402 (its version; it need not be installed)

# Wrapped in a function: the bundle's own names would clash with Sphinx's as globals. How charts are
# drawn with it is in book.js.
VEGA = """(function () {
%s
})();
"""


class captioned_table(nodes.figure):
    """A cell output with a caption that is numbered as a table."""


class CaptionTables(SphinxTransform):
    """Turn figures named ``[study-]tab-...`` into captioned tables, before they are numbered."""

    default_priority = 200

    def apply(self, **kwargs) -> None:
        """Replace the figures in place."""
        for figure in list(self.document.findall(nodes.figure)):
            if any(re.match(r"([\w-]+-)?tab-", name) for name in figure["names"]):
                table = captioned_table("", *figure.children, **figure.attributes)
                figure.replace_self(table)
                self.document.ids.update({key: table for key in table["ids"]})


def write_scripts(app: Sphinx) -> None:
    """Write Vega, MathJax and ``book/_static`` into the built ``_static``, at every build.

    Vega and MathJax are those of installed packages, so that no page asks the network for them.
    """
    if app.builder.format != "html":
        return
    out = Path(app.outdir) / "_static"
    out.mkdir(parents=True, exist_ok=True)
    (out / "vega.js").write_text(VEGA % vl_convert.javascript_bundle(), encoding="utf-8")
    mathjax = metadata.files("sphinx-mathjax-offline")
    shutil.copyfile(next(f.locate() for f in mathjax if f.name == "tex-svg.js"), out / "tex-svg.js")
    for path in STATIC.iterdir():
        shutil.copyfile(path, out / path.name)


def load_vega(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Load Vega on a page with a chart, and tell Altair's script that it is there.

    That script compares ``VEGA_DEBUG`` with the versions written into the page, and asks the
    network for those it misses.
    """
    if doctree is None:
        return
    raw = "".join(node.astext() for node in doctree.findall(nodes.raw))
    if "vegaEmbed" in raw:
        asked = re.findall(r'maybeLoadScript\("(vega(?:-lite|-embed)?)", "([\d.]+)"\)', raw)
        versions = {f"{library.replace('-', '')}_version": version for library, version in asked}
        app.add_js_file("vega.js", priority=400)
        app.add_js_file(None, body=f"window.VEGA_DEBUG = {json.dumps(versions)};", priority=400)


def mend_markup(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Make a page's text say to a screen reader what it shows to the eye.

    A negative number gets a minus sign for the hyphen that pandas writes. The list of references, a
    list of ``doc-biblioentry`` (a role that ARIA dropped), becomes one of items.
    """
    if "body" not in context:
        return
    number = r"(<td\b[^>]*>)-(?=[\d.,]+(?:[\s<%]|&nbsp;|e-?\d))"
    body = re.sub(number, "\\1\N{MINUS SIGN}", context["body"])
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    numbers = itertools.count(1)
    context["body"] = re.sub(
        r"<table\b.*?</table>", lambda found: mend_table(found[0], next(numbers)), body, flags=re.S
    )


def mend_table(html: str, number: int) -> str:
    """A table in a box that scrolls by keyboard, whether it needs to or not.

    Header cells get a ``scope``; an empty one, which heads nothing, becomes a plain cell. The cells
    of a column that holds a word, two letters or more, get ``data-words``: pandas does not tell
    columns of words from columns of numbers, and the style sheet cannot.
    """
    soup = BeautifulSoup(html, "html.parser")
    for cell in soup.select("thead th, tbody th"):
        if not cell.get_text(strip=True):
            cell.name = "td"
        elif "scope" not in cell.attrs:
            cell["scope"] = "row" if cell.find_parent("tbody") else "col"
        if cell.get("scope") == "col" and int(cell.get("colspan", 1)) > 1:
            cell["scope"] = "colgroup"
    rows = [row.find_all(["th", "td"]) for row in soup.find_all("tr")]
    body = [row.find_all(["th", "td"]) for row in soup.select("tbody tr")]
    if body and not soup.select("tbody [rowspan]"):
        word = re.compile(r"[^\W\d_]{2}")
        words = {i for row in body for i, cell in enumerate(row) if word.search(cell.get_text())}
        for row in rows:
            if len(row) == len(body[0]):  # no header of several columns
                for i in words:
                    row[i]["data-words"] = ""
    name = f"Table {number} on this page"  # regions have names of their own
    box = f'<div class="table-box" tabindex="0" role="region" aria-label="{name}">'
    return f"{box}{soup}</div>"


@functools.cache
def _newest(root: Path) -> str:
    """The day of the newest table that a page of the book was made from, "" if none says it."""
    placed = root.glob("book/generated/**/*.ipynb")
    notebooks = [json.loads(path.read_text(encoding="utf-8")) for path in placed]
    return max((n["metadata"].get("advbook", {}).get("date", "") for n in notebooks), default="")


def stamp(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Put version and date under the page: those of the results, never today's."""
    date = _newest(Path(app.srcdir))
    results = f", results of {date}" if date else ""
    changelog = context["pathto"]("book/changelog")
    context["theme_extra_footer"] = (
        f'<p>Version {advlib.__version__}{results} · <a href="{changelog}">Changelog</a></p>'
    )


@functools.cache
def escape_titles() -> None:
    """Titles of sections go into the search's index as HTML, as those of pages do."""
    feed = IndexBuilder.feed

    def escaped(index, docname, *rest):
        feed(index, docname, *rest)
        titles = index._all_titles[docname]
        index._all_titles[docname] = [
            (title.translate(HTMLTranslator.special_characters), anchor) for title, anchor in titles
        ]

    IndexBuilder.feed = escaped


def escape_context(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """The texts that the theme leaves for its templates, which put them into pages as HTML."""
    for key in ("pagetitle", "root_title", "page_description"):
        if key in context:
            context[key] = html.escape(context[key])


def _mocked_union(left, right):
    """``left | right`` of annotations, as ``torch.device | None`` without torch: its text."""

    def text(part):
        return "None" if part in (None, type(None)) else getattr(part, "__name__", str(part))

    return _make_subclass(f"{text(left)} | {text(right)}", "torch")()


def short_signature(app, what, name, obj, options, signature, returns):
    """The study file has a field a line below; its signature is long, and speaks pydantic."""
    return ("", None) if name == "advbook.studies.schema.Study" else None


def setup(app: Sphinx) -> dict:
    """Register the parts above."""
    escape_titles()
    _MockObject.__or__ = _mocked_union
    _MockObject.__ror__ = lambda right, left: _mocked_union(left, right)
    app.add_enumerable_node(
        captioned_table,
        "table",
        html=(
            lambda translator, node: translator.visit_figure(node),
            lambda translator, node: translator.depart_figure(node),
        ),
    )
    app.add_transform(CaptionTables)
    app.add_css_file("book.css", priority=900)
    app.add_js_file("book.js")
    app.connect("autodoc-process-signature", short_signature)
    app.connect("builder-inited", write_scripts)
    app.connect("html-page-context", load_vega)
    app.connect("html-page-context", stamp)
    app.connect("html-page-context", mend_markup)
    app.connect("html-page-context", escape_context, priority=900)  # after the theme
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
