"""Text from outside is text: names, titles and paths appear on pages as they were typed.

A class folder, the title of a study or the name of a file may hold anything. Pages are Markdown, so
whatever is put into Markdown goes through this module, and only here is it escaped. Charts show
text as text, and HTML is made with `html.escape`.
"""

import json
import re

# What means something anywhere in a line of Markdown, and what only where it begins one: "- ".
_SPECIAL = re.compile(r"[\\`*{}\[\]<>&|$~#]|(?<![^\W_])_|_(?![^\W_])")
_AT_START = re.compile(r"\A(\d*)([!-%'-/:-@^])")  # not "&", which begins an entity

# What a note may use; everything else in it is text. No HTML, roles, images or headings.
_MARKDOWN = ("emphasis", "link", "autolink", "backticks", "list", "newline", "escape", "entity")


def one_line(text) -> str:
    """The text with single spaces for its line breaks and other blanks, as a page shows them."""
    return " ".join(str(text).split())


def as_typed(text) -> str:
    """The text as Markdown that reads as the text: for names and titles in a sentence or table."""
    text = _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", one_line(text))
    return _AT_START.sub(lambda found: f"{found[1]}&#{ord(found[2])};", text)


def as_code(text) -> str:
    """The text as inline code in Markdown, also in a table: for commands and paths."""
    text = one_line(text)
    if re.search(r"[`|{}]", text):
        return f"<code>{as_typed(text)}</code>"
    return f"`{text}`"


def note_html(note: str) -> str:
    """The HTML of a study's note, the one field that may hold Markdown.

    Emphasis, code, lists and links to the web are rendered. HTML, images, roles, directives,
    formulas and other links stay the text that was typed, and no line ends a block of the page.
    """
    from markdown_it import MarkdownIt

    reader = MarkdownIt("zero").enable(list(_MARKDOWN))
    reader.validateLink = lambda url: re.match(r"(https?://|mailto:)", url) is not None
    return re.sub("[`~]|:(?=:)", lambda found: f"&#{ord(found[0])};", reader.render(note))


class InScript(json.JSONEncoder):
    """JSON within a ``<script>`` of a page: no text in it can end the script or open a comment."""

    def encode(self, o) -> str:
        """The JSON, with an escape for every ``<``."""
        return super().encode(o).replace("<", r"\u003c")
