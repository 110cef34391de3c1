"""Prediction tables: checked, and averaged by the million rows.

A prediction table has one row per image and condition: ``file_name``, ``label``,
``predicted_class``. The class numbers are integers from 0. A boolean column ``correct`` is
optional: where it is there, it decides what counts as an error (label sets, another tool's verdict
of robustness). Else a row is right if its predicted class is its label.
"""

import itertools
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

IMAGE_COLUMNS = ("file_name", "label", "predicted_class")
# Columns that tell apart two rows of one image.
CONDITION_COLUMNS = "study method seed benchmark condition corruption severity attack".split()
# AlexNet's mean error over the severities of ImageNet-C (Hendrycks & Dietterich, 2019).
ALEXNET_CORRUPTION_ERROR = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
CORRUPTIONS = tuple(ALEXNET_CORRUPTION_ERROR)  # the 15 of mCE; downloads hold four more
By = str | Sequence[str] | None
Groups = Mapping[int, str] | pd.Series  # label -> group of classes
LabelSets = Mapping[str, Collection[int]]  # file name -> class numbers
Tables = pd.DataFrame | Sequence[pd.DataFrame]  # several: of networks whose mean is asked for


def require(table: pd.DataFrame, columns: Sequence[str], what="the prediction table", holes=False):
    """Raise ValueError unless the table has rows and these columns, without missing values.

    ``what`` names the table in the message; ``holes``: missing values are allowed.
    """
    if missing := [column for column in columns if column not in table.columns]:
        known = ", ".join(map(str, table.columns))
        raise ValueError(f"{what} lacks the columns {', '.join(missing)}; it has {known}.")
    if table.empty:
        raise ValueError(f"{what} is empty: there is nothing to measure.")
    if not holes and (gaps := [column for column in columns if table[column].isna().any()]):
        raise ValueError(f"{what} has missing values in {', '.join(gaps)}: fill or drop them.")


def as_list(by: By, *more: str) -> list[str]:
    """The columns of ``by`` and ``more``, each once."""
    return list(dict.fromkeys([*([by] if isinstance(by, str) else by or []), *more]))


def codes_of(table: pd.DataFrame, columns: Sequence[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """Number the combinations of ``columns`` that occur, in their sorted order.

    Returns each row's number, int64 of shape (N,), and one row of ``columns`` per number.
    """
    if not columns:
        return np.zeros(len(table), np.int64), pd.DataFrame(index=[0])
    values = [table[column] for column in columns]
    # Categories have an order of their own; here they are sorted as values.
    kinds = {v.name: v.cat.categories for v in values if isinstance(v.dtype, pd.CategoricalDtype)}
    values = [
        v.cat.reorder_categories(kinds[v.name].sort_values()) if v.name in kinds else v
        for v in values
    ]
    groups = table.groupby(values, observed=True)
    keys = groups.size().index.to_frame(index=False)
    keys = keys.astype({name: categories.dtype for name, categories in kinds.items()})
    return groups.ngroup().to_numpy(), keys


def averages(images: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The mean of ``wrong`` for each combination of ``columns``.

    Returns ``columns``, ``n_images``, ``error`` and ``noise``: the sampling variance of the error,
    nan for one image. For values 0 and 1 it is p(1-p)/(n-1).
    """
    (codes, keys), wrong = codes_of(images, columns), images["wrong"].to_numpy()
    n = np.bincount(codes, minlength=len(keys))
    mean = np.bincount(codes, wrong, len(keys)) / n
    squares = np.bincount(codes, (wrong - mean[codes]) ** 2, len(keys))
    return keys.assign(n_images=n, error=mean, noise=squares / n / np.where(n > 1, n - 1, np.nan))


def counted(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that a mean over conditions counts: of corruptions the 15 `CORRUPTIONS` alone.

    The four further ones of the published sets are left out wherever some of the 15 are there.
    """
    if "corruption" not in table:
        return table
    known = table["corruption"].isin(CORRUPTIONS)
    further = table["corruption"].notna() & ~known
    return table[~further] if known.any() and further.any() else table


def correct(table: pd.DataFrame) -> pd.Series:
    """Which rows are right: the column ``correct`` or, without one, label = predicted class.

    Returns booleans of shape (N,). Raises ValueError if the column holds anything but True and
    False (or 1 and 0).
    """
    if "correct" not in table.columns:
        return table["label"] == table["predicted_class"]
    if table["correct"].dtype != bool and not table["correct"].isin([0, 1]).all():
        raise ValueError("the column correct must hold True or False in every row.")
    return table["correct"].astype(bool)


def checked(table: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """Columns ``by``, the image columns, and ``wrong`` (float, 0 or 1); the index is new.

    Raises ValueError for missing columns or values, and if an image has several rows in one
    condition, that is in one combination of ``by``.
    """
    columns = as_list(by, *IMAGE_COLUMNS)
    require(table, [*columns, *(["correct"] if "correct" in table.columns else [])])
    if odd := [c for c in IMAGE_COLUMNS[1:] if not pd.api.types.is_numeric_dtype(table[c])]:
        raise ValueError(f"the columns {odd} must hold class numbers (integers from 0).")
    if (again := table.duplicated(as_list(by, "file_name"))).any():
        others = [c for c in CONDITION_COLUMNS if c in table.columns and c not in columns]
        raise ValueError(
            f"{again.sum()} rows repeat an image of the same condition, such as "
            f"{table.file_name[again].iloc[0]!r}: keep one row each"
            + (f", or pass by= with some of {others}." if others else ".")
        )
    wrong = 1.0 - correct(table).astype(float)
    return table[columns].assign(wrong=wrong).reset_index(drop=True)


def same_images(a: pd.DataFrame, b: pd.DataFrame) -> None:
    """Raise ValueError unless both hold the same images with the same labels."""
    columns = ["file_name", "label"]
    if all(np.array_equal(a[column], b[column]) for column in columns):
        return
    odd = pd.concat([a, b])[columns].drop_duplicates(keep=False)
    if len(odd):
        raise ValueError(
            "a paired comparison needs the same images with the same labels: "
            f"{len(odd)} have no partner, such as {odd.file_name.iloc[0]!r}."
        )


class SharedImages(NamedTuple):
    """N images that m tables share, checked, and what a figure of them is: after less before."""

    images: pd.DataFrame  # file_name, label; N rows
    wrong: np.ndarray  # (N, m): an image's mean over its rows in each table
    weights: np.ndarray  # (m,): 1 / how many tables its side has, negative for `before`
    rows: int  # an image's in a table
    names: tuple  # of the m tables

    @property
    def labels(self) -> np.ndarray:
        """Their classes, (N,)."""
        return self.images["label"].to_numpy()

    @property
    def figure(self) -> np.ndarray:
        """(N,): each one's mean over the tables of one side, less that over the other's."""
        return self.wrong @ self.weights

    @property
    def unit(self) -> int:
        """All of `figure` are multiples of 1 / unit."""
        sides = np.lcm(max(1, (self.weights > 0).sum()), max(1, (self.weights < 0).sum()))
        return self.rows * int(sides)

    def of(self, after: Sequence, before: Sequence = ()) -> "SharedImages":
        """Of the tables with these names alone: their mean, or that of ``after`` - ``before``."""
        columns = [self.names.index(name) for name in (*after, *before)]
        wrong, weights = self.wrong.take(columns, axis=1), _weights(len(after), len(before))
        return self._replace(wrong=wrong, weights=weights, names=(*after, *before))


def _weights(after: int, before: int) -> np.ndarray:
    return np.repeat([1 / max(1, after), -1 / max(1, before)], [after, before])


def several(tables: Tables | None) -> list[pd.DataFrame]:
    """One table, several or none, as a list."""
    return [tables] if isinstance(tables, pd.DataFrame) else list(tables or [])


def shared_images(
    table: "Tables | SharedImages", paired_with: Tables | None = None
) -> SharedImages:
    """The images of the tables, each with its mean over all its `counted` rows of a table.

    What is shared already is returned as it is. Raises ValueError if the tables differ in images or
    labels, or an image lacks a condition.
    """
    if isinstance(table, SharedImages):
        return table
    sides, parts = (several(table), several(paired_with)), []
    for one in map(counted, itertools.chain(*sides)):
        present = [c for c in CONDITION_COLUMNS if c in one.columns and one[c].notna().any()]
        parts.append(images := averages(checked(one, present), ["file_name", "label"]))
        if images["file_name"].duplicated().any() or images["n_images"].nunique() > 1:
            raise ValueError(
                "an image needs one label and a row in every condition; here some images have "
                "several labels, or fewer rows than others."
            )
        same_images(parts[0], images)
    rows = [part["n_images"].iloc[0] for part in parts]
    return SharedImages(
        images=parts[0][["file_name", "label"]],
        wrong=np.column_stack([part["error"] for part in parts]),
        weights=_weights(*map(len, sides)),
        rows=int(np.lcm.reduce(rows)),
        names=(*range(len(parts)),),
    )


def together(tables: Mapping[Hashable, pd.DataFrame]) -> SharedImages:
    """The images that tables share, checked once for any number of figures.

    ``bootstrap(together(tables).of(after, before), …)`` is ``bootstrap`` of the tables with the
    names ``after``, paired with those of ``before``.
    """
    return shared_images([*tables.values()])._replace(names=(*tables,))
