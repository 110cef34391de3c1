"""Pictures of the chapter "What an attack looks like"."""

import base64
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from advbook.charts import grids
from advbook.charts.base import colour_of
from advbook.studies.samples import decode_png, encode_png

SIZE = 84  # px on the page of an image's side, about: a whole multiple of small images
MOST = 2_200_000  # characters of the gallery, so that the page stays below 3 MB

# Its selectors repeat a class: the page's own style sheet comes first. Right and wrong differ in
# mark and border as well as in colour.
STYLE = f"<style>\n{Path(__file__).with_suffix('.css').read_text(encoding='utf-8')}</style>"


def gallery(
    samples: pd.DataFrame,
    names: dict[str, str],
    class_names: list[str],
    name: str = "gallery",
    most: int = MOST,
) -> str:
    """The samples of one class at a time as HTML that needs neither script nor network.

    A column an image, a row a method: the perturbation, the attacked image, and what the network
    sees in the clean and in the attacked image. Where the HTML would have more than `most`
    characters, one pixel of every 2 × 2 (3 × 3, …) is shown.

    The samples are those of `advbook.studies.samples.read_samples`; `names` holds what pages call
    each method that is shown. Each gallery of a page has another `name`.
    """
    shown, step = samples[samples.method.isin(names)], 1
    while len(html := _gallery(shown, names, class_names, name, step)) > most:
        step += 1
    return html + (f"Of every {step} × {step} pixels one is shown." if step > 1 else "")


def _gallery(samples, names, class_names, name, step) -> str:
    options = [
        (class_names[label], class_names[label], _table(found, names, class_names, step))
        for label, found in samples.groupby("label")
    ]
    choice = grids.choice(name, "Class", options)
    return f'{STYLE}{grids.STYLE}<div class="gallery">{choice}</div>'


def _table(samples, names, class_names, step) -> str:
    """One class: its images beside each other, the methods below each other."""
    images = samples.drop_duplicates("file_name").set_index("file_name")
    head = "".join(f'<th scope="col">{escape(name.split("/")[-1])}</th>' for name in images.index)
    said = f"Clean image of the class {class_names[samples.label.iloc[0]]}"
    shown = [picture(decode_png(png)[:, ::step, ::step], said) for png in images.image]
    clean = "".join(f"<td>{image}</td>" for image in shown)
    rows = [f'<tr><th scope="row">Clean</th>{clean}</tr>']
    for method, name in names.items():
        of_method = samples[samples.method == method].set_index("file_name").loc[images.index]
        cells = [_cell(row, name, class_names, step) for row in of_method.itertuples()]
        colour = colour_of(method) or "transparent"
        header = f'<th scope="row" style="--method: {colour}">{escape(name)}</th>'
        rows.append(f"<tr>{header}{''.join(cells)}</tr>")
    return (
        f'<table><thead><tr><th scope="col">Image</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(row, method, class_names, step) -> str:
    """The perturbation, the attacked image, and the network's answers before and after."""
    delta = decode_png(row.perturbation)
    attacked = decode_png(row.image) + 2 * row.scale * (delta - 127.5)  # 255 · scale · δ/scale
    truth, seen = class_names[row.label], class_names[row.adversarial_class]
    before = _answer(row.label, row.predicted_class, row.predicted_probability, class_names)
    after = _answer(row.label, row.adversarial_class, row.adversarial_probability, class_names)
    mark = "right" if row.label == row.adversarial_class else "wrong"
    what = f"Perturbation of {truth} against {method}, magnified"
    said = f"{truth} attacked on {method}: seen as {seen}"
    what = picture(delta[:, ::step, ::step], what)
    image = picture(attacked[:, ::step, ::step], said, kind=mark)
    return f'<td><div class="pair">{what}{image}</div>{before}<br>→\u00a0{after}</td>'


def _answer(label, predicted, probability, class_names) -> str:
    right = label == predicted
    mark, word = ("✓", "right") if right else ("✗", "wrong")
    mark = f'<span class="verdict {word}" role="img" aria-label="{word}">{mark}</span>'
    return f"{mark} {escape(class_names[predicted])} {100 * probability:.0f}\u00a0%"


def picture(pixels: np.ndarray, text: str, side: int = SIZE, kind: str = "") -> str:
    """An image (C, H, W), values in [0, 255], as an ``<img>`` with an alternative text.

    Its `side` on the page is about so many px, a whole multiple of small images; `kind` is its
    class in the style sheet.
    """
    png = base64.b64encode(encode_png(np.rint(pixels).clip(0, 255))).decode()
    width = pixels.shape[-1] * max(1, round(side / pixels.shape[-1]))
    # dark-light: the theme leaves the picture's colours alone in the dark.
    return (
        f'<img class="dark-light {kind}" width="{width}" alt="{escape(text)}" '
        f'src="data:image/png;base64,{png}">'
    )
