"""Names in Markdown: whatever they hold, a page reads it, and neither more nor less."""

import json
import random
import re
from html import unescape

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.deflist import deflist_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.myst_blocks import myst_block_plugin
from mdit_py_plugins.myst_role import myst_role_plugin

from advbook.studies.schema import ROOT
from advbook.studies.tables import in_words, styled
from advbook.text import InScript, as_code, as_typed, note_html, one_line
from conftest import CLASSES, GROUPS, NOTE, TITLE

PLACES = {  # where pages have names: the Markdown and the text
    "* {}": "{}",
    "* a\n  * {}: b": "a {}: b",
    "# a: {}": "a: {}",
    "*{}* **{}** [{}](x.md)": "{} {} {}",
    "| {} | b |\n|---|---|\n| {} | {} |": "{} b {} {}",
}


def read(markdown: str) -> str:
    """The text that a page shows of this Markdown, as MyST reads it."""
    parser = MarkdownIt("commonmark").enable("table").enable("strikethrough")
    for plugin in (colon_fence_plugin, deflist_plugin, dollarmath_plugin, myst_block_plugin):
        parser.use(plugin)
    html = parser.use(myst_role_plugin).render(markdown)
    assert set(re.findall(r"<(\w+)", html)) <= ALLOWED, (markdown, html)
    return one_line(unescape(re.sub(r"<[^>]*>", "", html)))


ALLOWED = {"ul", "li", "h1", "em", "strong", "a", "table", "thead", "tbody", "tr", "th", "td", "p"}


def names():
    """The hostile ones, and some hundreds of signs that mean something to Markdown."""
    yield from (*CLASSES, *GROUPS, TITLE, "1. x", "+ x", "- x", "---", "===", "(x)=", ":::{note}")
    yield from ("[^1]: x", ": x", "% x", "+++", "~~~", "\\", "&lt;", "_a_b_", "12) x", "a\n\n# b")
    chosen = random.Random(0)
    for _ in range(300):
        yield "".join(
            chosen.choices("\\`*_{}[]()<>#+-.!|$~:;&=^%@'\" a1\n", k=chosen.randint(1, 9))
        )


@pytest.mark.parametrize("place", PLACES)
def test_a_name_reads_as_it_was_typed(place):
    for name in filter(str.strip, names()):
        wanted = PLACES[place].replace("{}", one_line(name))
        assert read(place.replace("{}", as_typed(name))) == one_line(wanted), name


def test_code_reads_as_it_was_typed():
    for name in filter(str.strip, names()):
        html = MarkdownIt("commonmark").enable("table").render(f"| a |\n|---|\n| {as_code(name)} |")
        found = re.search(r"<td><code>(.*)</code></td>", html)
        assert found and unescape(found[1]) == one_line(name)


def test_a_note_keeps_its_markdown_and_nothing_that_acts():
    html = note_html(NOTE)
    assert "<em>stressed</em>" in html and "<code>code</code>" in html
    assert re.findall(r"<(?!/?(?:p|em|code|a)\b)[^>]*>", html) == []
    assert re.findall(r'href="([^"]*)"', html) == ["https://example.org"]
    fences = note_html("a\n````\n~~~{include} /etc/hostname\n::::\n    :::{raw} html\n```\nb")
    assert not re.search(r"(?m)^\s*(`{3}|~{3}|:{3})", fences)
    for url in (
        "javascript:alert(1)",
        "data:text/html,x",
        "/etc/hostname",
        "JAVASCRIPT:x",
        "//a.b",
    ):
        assert "href" not in note_html(f"[a]({url}) <{url}> ![a]({url})\n\n[b]: {url}\n[b]")


def test_json_in_a_script_cannot_end_it():
    given = {"</script><!--": ["<script>", 1.5, None]}
    text = json.dumps(given, cls=InScript)
    assert "<" not in text and json.loads(text) == given


def test_tables_show_cells_and_headers_as_they_were_typed():
    name = CLASSES[0]
    frame = pd.DataFrame({name: [name, 0.12345]}, index=pd.Index([name, "b"], name=name))
    for table in (styled(frame), styled(frame, index=True, precision=2), in_words(frame)):
        html = table.to_html()
        assert "<img" not in html and html.count("&lt;img src") >= 2
    assert "0.12<" in styled(frame, precision=2).to_html()


def test_no_notebook_makes_a_table_past_the_escaping():
    for path in [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("advlib/*.py")]:
        if path.name != "tables.py":
            assert not re.search(r"\.style\b(?!\.css)", path.read_text(encoding="utf-8")), path
