"""Pictures of the chapter "What an attack looks like"."""

import base64
from html import escape

import numpy as np
import pandas as pd

from advbook.charts import grids
from advbook.charts.base import colour_of
from advbook.studies.samples import decode_png, encode_png

SIZE = 84  # px on the page of an image's side, about: a whole multiple of small images
MOST = 2_200_000  # characters of the gallery, so that the page stays below 3 MB

# The page's own style sheet comes first, hence the repeated class. Right and wrong differ in mark
# and border as well as in colour.
STYLE = """
.gallery { --right: #005f96; --wrong: #a84300; }
:is(html[data-theme="dark"], body[data-jp-theme-light="false"]) .gallery {
  --right: #6cc0f0; --wrong: #ff9e57;
}
.gallery.gallery.gallery.gallery table { width: 100%; table-layout: fixed; font-size: 0.8rem; }
.gallery.gallery.gallery.gallery table :is(th, td) {
  padding: 0.35rem 0.15rem; text-align: left; vertical-align: top; font-weight: 400;
  line-height: 1.3; overflow-wrap: anywhere; white-space: normal;
}
.gallery.gallery.gallery.gallery table tr > :first-child { width: 6.2rem; padding-left: 0.4rem; }
.gallery.gallery.gallery.gallery table tbody th {
  border-left: 5px solid var(--method, transparent);
}
.gallery .pair { display: flex; gap: 3px; margin-bottom: 0.15rem; }
.gallery.gallery.gallery.gallery.gallery img {
  flex: 0 1 auto; box-sizing: content-box; min-width: 0; height: auto; margin: 0; padding: 0;
  border-radius: 0; background: none; image-rendering: pixelated; border: 2px solid transparent;
}
.gallery.gallery.gallery.gallery.gallery img.right { border: 2px solid var(--right); }
.gallery.gallery.gallery.gallery.gallery img.wrong { border: 2px dashed var(--wrong); }
.gallery .verdict { font-weight: 700; }
.gallery .verdict.right { color: var(--right); }
.gallery .verdict.wrong { color: var(--wrong); }
@media (max-width: 600px) {
  .gallery.gallery.gallery.gallery table { font-size: 0.7rem; }
  .gallery.gallery.gallery.gallery table tr > :first-child { width: 4.7rem; }
}
"""


def gallery(
    samples: pd.DataFrame, names: dict[str, str], name: str = "gallery", most: int = MOST
) -> str:
    """The samples of one class at a time as HTML that needs neither script nor network.

    A column an image, a row a method: the perturbation, the attacked image, and what the network
    sees in the clean and in the attacked image. Where all pictures would make the page too heavy,
    one pixel of every 2 × 2 (3 × 3, …) is shown.

    Parameters
    ----------
    samples : DataFrame
        Of `advbook.studies.samples.read_samples`.
    names : dict of str to str
        What pages call each method that is shown.
    name : str
        Of the choice of the class, another one for each gallery of a page.
    most : int
        Characters of the HTML.
    """
    # A clean image, and in each row a perturbation and an attacked image; base64 adds a third.
    shown = samples[samples.method.isin(names)]
    clean = samples.drop_duplicates("file_name").image
    size = sum(map(len, [*clean, *shown.image, *shown.perturbation])) * 4 / 3
    step, html = max(0, int((size / most) ** 0.5) - 1), ""
    while not html or len(html) > most:
        step += 1
        html = _gallery(shown, names, name, step)
    return html + (f"Of every {step} × {step} pixels one is shown." if step > 1 else "")


def _gallery(samples, names, name, step) -> str:
    class_names = samples.attrs["class_names"]
    options = [
        (class_names[label], class_names[label], _table(found, names, class_names, step))
        for label, found in samples.groupby("label")
    ]
    choice = grids.choice(name, "Class", options)
    return f'<style>{STYLE}</style>{grids.STYLE}<div class="gallery">{choice}</div>'


def _table(samples, names, class_names, step) -> str:
    """One class: its images beside each other, the methods below each other."""
    images = samples.drop_duplicates("file_name").set_index("file_name")
    truth = class_names[samples.label.iloc[0]]
    head = "".join(f'<th scope="col">{escape(name.split("/")[-1])}</th>' for name in images.index)
    clean = "".join(
        f"<td>{_picture(decode_png(png), f'Clean image of the class {truth}', step)}</td>"
        for png in images.image
    )
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
    before, after = (
        _answer(row.label, predicted, probability, class_names)
        for predicted, probability in (
            (row.predicted_class, row.predicted_probability),
            (row.adversarial_class, row.adversarial_probability),
        )
    )
    truth, seen = class_names[row.label], class_names[row.adversarial_class]
    what = _picture(delta, f"Perturbation of {truth} against {method}, magnified", step)
    mark = "right" if row.label == row.adversarial_class else "wrong"
    image = _picture(
        np.rint(attacked.clip(0, 255)), f"{truth} attacked on {method}: seen as {seen}", step, mark
    )
    return f'<td><div class="pair">{what}{image}</div>{before}<br>→\u00a0{after}</td>'


def _answer(label, predicted, probability, class_names) -> str:
    right = label == predicted
    mark, word = ("✓", "right") if right else ("✗", "wrong")
    mark = f'<span class="verdict {word}" role="img" aria-label="{word}">{mark}</span>'
    return f"{mark} {escape(class_names[predicted])} {100 * probability:.0f}\u00a0%"


def _picture(pixels, text, step, kind="") -> str:
    pixels = pixels[:, ::step, ::step]
    png = base64.b64encode(encode_png(pixels)).decode()
    side = pixels.shape[-1] * max(1, round(SIZE / pixels.shape[-1]))
    # dark-light: the theme leaves the picture's colours alone in the dark.
    return (
        f'<img class="dark-light {kind}" width="{side}" alt="{escape(text)}" '
        f'src="data:image/png;base64,{png}">'
    )
