"""Tables with coloured cells, and a choice of what is shown: HTML that needs no script."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import pandas as pd

from advbook.charts.base import OTHER_COLOURS
from advbook.studies.tables import per_cent

MORE, LESS = OTHER_COLOURS[1], OTHER_COLOURS[0]  # brown and purple
STRONGEST = 62  # per cent of a colour: the page's ink is read on it, in the light and in the dark

# Its selectors repeat a class: the page's own style sheet comes first.
STYLE = f"<style>\n{Path(__file__).with_suffix('.css').read_text(encoding='utf-8')}</style>"


def choice(name: str, title: str, options: Sequence[tuple[str, str, str]]) -> str:
    """Buttons, one for each option; the first is chosen and shown. `STYLE` must be on the page.

    An option is (value, label, html); an address such as ``see.html?study=cifar10`` chooses one by
    its value (``book/_static/book.js``). A single option is shown without a button. Each choice of
    a page has another `name`; its `title` says what is chosen to those who do not see it.
    """
    if len(options) == 1:
        return options[0][2]
    parts = []
    for i, (value, label, html) in enumerate(options):
        parts.append(
            f'<input type="radio" name="{name}" id="{name}-{i}" value="{escape(value)}"'
            f'{" checked" * (i == 0)}><label for="{name}-{i}">{escape(label)}</label>'
            f"<div>{html}</div>"
        )
    return (
        f'<div class="choice" role="radiogroup" aria-label="{escape(title)}">{"".join(parts)}</div>'
    )


def beside(parts: Iterable[str]) -> str:
    """Parts of a figure beside each other, or below each other where there is no room."""
    return f'{STYLE}<div class="beside">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def heat_table(
    values: pd.DataFrame,
    title: str,
    *,
    full: float = 1.0,
    least: float = 0.0,
    sign: str = "",
    links: Mapping[str, str] | None = None,
    tips: pd.DataFrame | None = None,
) -> str:
    """A table of fractions in whole per cent or points, each cell coloured by its value.

    Brown is more than zero, purple is less. `STYLE` must be on the page. The values are by names of
    rows and columns. With two levels of columns, the upper one heads groups; one level of columns
    is written upright. A missing value has an empty cell.

    ``full`` is the value of the strongest colour; values smaller than ``least``, of either sign,
    are coloured but not written. With ``sign="+"`` values above zero have a sign too. ``links`` are
    an address for the name of each row, ``tips`` what the pointer shows of each cell.
    """
    if values.columns.nlevels == 2:
        groups, names = zip(*values, strict=True)
        spans = [(group, len(list(found))) for group, found in groupby(groups)]
        over = (f'<th class="first" colspan="{n}">{escape(group)}</th>' for group, n in spans)
        heads = [f"<tr><th></th>{''.join(over)}</tr>"]
        starts = [i == 0 or group != groups[i - 1] for i, group in enumerate(groups)]
        edges = kinds = [' class="first"' if start else "" for start in starts]
    else:
        heads, names, edges = [], list(values), [""] * values.shape[1]
        kinds = [' class="upright"'] * len(names)
    own = (f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, names, strict=True))
    heads.append(f"<tr><th></th>{''.join(own)}</tr>")
    rows = []
    for i, (name, row) in enumerate(values.iterrows()):
        said = escape(name)
        if links:
            said = f'<a href="{escape(links[name])}">{said}</a>'
        cells = []
        for j, (edge, value) in enumerate(zip(edges, row, strict=True)):
            tip = "" if tips is None else f' title="{escape(tips.iat[i, j])}"'
            text = "" if pd.isna(value) or abs(value) < least else per_cent(value, 0, sign)
            cells.append(f"<td{edge}{tip}{_coloured(value, full)}>{text}</td>")
        rows.append(f'<tr><th scope="row">{said}</th>{"".join(cells)}</tr>')
    return (
        f'<table class="dataframe heat"><caption>{escape(title)}</caption>'
        f"<thead>{''.join(heads)}</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _coloured(value: float, full: float) -> str:
    """The style of a cell: no colour where there is no value."""
    if pd.isna(value):
        return ""
    share = STRONGEST * min(1, abs(value) / full)
    colour = MORE if value > 0 else LESS
    return f' style="background-color: color-mix(in srgb, {colour} {share:.0f}%, transparent)"'
