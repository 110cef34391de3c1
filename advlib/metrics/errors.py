"""Errors over images: of corruptions, of factors of variation, and by label sets.

Errors are fractions in [0, 1]. A metric takes one condition; with ``by=[columns]`` some return one
row per condition. Bad input raises a ValueError that names what is wrong.
"""

import numbers
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from advlib.metrics.resampling import draws, varied
from advlib.metrics.tables import (
    CORRUPTIONS,
    IMAGE_COLUMNS,
    By,
    LabelSets,
    SharedImages,
    as_list,
    averages,
    checked,
    codes_of,
    counted,
    require,
)


def error(table: pd.DataFrame, by: By = None) -> float | pd.DataFrame:
    """Top-1 error over images, in [0, 1]; with ``by``: its columns, ``n_images``, ``error``."""
    images = checked(table, by)
    if not (columns := as_list(by)):
        return float(images["wrong"].mean())
    return averages(images, columns).drop(columns="noise")


def corruption_error(table: pd.DataFrame) -> pd.DataFrame:
    """CE_c: the mean over severities 1-5 of the error under corruption c (paper, Sec. 3).

    Returns ``corruption`` and ``corruption_error``. Raises ValueError unless a corruption has as
    many images at each of the five severities.
    """
    groups = error(table, ["corruption", "severity"]).groupby("corruption", observed=True)
    for name, group in groups:
        sizes = dict(zip(group.severity, group.n_images, strict=True))
        if list(sizes) != [1, 2, 3, 4, 5] or len(set(sizes.values())) > 1:
            raise ValueError(
                f"{name} must hold the same images at each severity from 1 to 5; the images by "
                f"severity are {sizes}."
            )
    return groups["error"].mean().reset_index(name="corruption_error")


def mean_corruption_error(
    table: pd.DataFrame, reference: Mapping[str, float] | None = None
) -> float:
    """mCE: the mean of CE_c over the 15 `CORRUPTIONS`; further corruptions do not count.

    ``reference``, such as `ALEXNET_CORRUPTION_ERROR`: CE_c by name, by which ours are divided
    (Hendrycks & Dietterich, 2019); None: the paper's unnormalised mCE. A ValueError lists what is
    missing.
    """
    found = corruption_error(counted(table)).set_index("corruption")["corruption_error"]
    divisors = dict.fromkeys(CORRUPTIONS, 1.0) if reference is None else reference
    for what, names in (("corruption table", found.index), ("reference", divisors)):
        if absent := [c for c in CORRUPTIONS if c not in names]:
            raise ValueError(f"missing from the {what}: {', '.join(absent)}.")
    return float(np.mean([found[c] / divisors[c] for c in CORRUPTIONS]))


def _annotated(images: pd.DataFrame, annotations: pd.DataFrame) -> tuple[pd.DataFrame, list]:
    """The images' rows with a ``factor``, one for each, and all factors; or a ValueError."""
    require(annotations, ["file_name", "factor"], "the annotation table", holes=True)
    if annotations.duplicated(["file_name", "factor"]).any():
        raise ValueError("the annotation table names an image twice for one factor.")
    rows = images.merge(annotations[["file_name", "factor"]], on="file_name")
    if rows.empty:
        raise ValueError(
            "no image of the prediction table is annotated: compare the file names, "
            f"{images.file_name.iloc[0]!r} and {annotations.file_name.iloc[0]!r}."
        )
    return rows.dropna(subset="factor"), sorted(annotations["factor"].dropna().unique())


def factor_error(table: pd.DataFrame, annotations: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """Error over the images of each factor of variation (ImageNet-X; Idrissi et al., 2022).

    ``annotations``: one row per image and factor, columns ``file_name`` and ``factor`` (missing for
    an image annotated with no factor: it counts in the denominator of `error_ratio`). Returns the
    columns of ``by``, ``factor``, ``n_images``, ``error``; nan for a factor without images.
    """
    images, columns = checked(table, by), as_list(by, "factor")
    rows, factors = _annotated(images, annotations)
    every = codes_of(images, columns[:-1])[1].merge(pd.DataFrame({"factor": factors}), how="cross")
    result = every.merge(averages(rows, columns), on=columns, how="left").drop(columns="noise")
    return result.assign(n_images=result["n_images"].fillna(0).astype(int))


def error_ratio(
    table: pd.DataFrame, annotations: pd.DataFrame, denominator: str = "annotated"
) -> pd.DataFrame:
    """E_f = (1 - accuracy(factor)) / (1 - accuracy(model)) (paper, Sec. 3).

    The model's accuracy is over its ``"annotated"`` images, each counted once (as the ImageNet-X
    library does), or over ``"all"``. Returns ``factor``, ``error_ratio`` (nan for no error at all).
    """
    if denominator not in ("annotated", "all"):
        raise ValueError(f"denominator must be 'annotated' or 'all', not {denominator!r}.")
    factors = factor_error(table, annotations)
    if denominator == "annotated":
        table = table[table["file_name"].isin(annotations["file_name"])]
    ratio = factors["error"] / (error(table) or np.nan)
    return factors[["factor"]].assign(error_ratio=ratio)


def factor_summary(
    shared: SharedImages,
    annotations: pd.DataFrame,
    comparisons: Sequence[tuple[Sequence, Sequence]],
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> Iterator[pd.DataFrame]:
    """`factor_error` and `error_ratio`, or their after - before, with 95 % intervals.

    ``shared`` is `together` of tables, ``comparisons`` pairs (after, before) of lists of their
    names, ``before`` empty for the figures themselves; one table is yielded for each, all of one
    draw. Percentile intervals: images are resampled as in `bootstrap` and carry their factors, so
    that factor and denominator vary together. nan where that hides the uncertainty: all images of
    the factor fare (or differ) alike, or more than 5 % of the classes have one image.
    Yields ``factor``, ``n_images`` and ``error, low, high, error_ratio, ratio_low, ratio_high``.
    """
    images, labels = shared.images, shared.labels
    rows, factors = _annotated(images.reset_index(names="position"), annotations)
    member = np.zeros((len(images), 1 + len(factors)))  # the first column: the denominator
    member[:, 0] = images["file_name"].isin(annotations["file_name"])
    member[rows["position"], 1 + pd.Index(factors).get_indexer(rows["factor"])] = 1
    # Every figure is a ratio of two sums of these, (N, 1 + m, 1 + factors).
    summed = np.column_stack([np.ones(len(images)), shared.wrong])[:, :, None] * member[:, None]
    flat, sums = summed.reshape(len(images), -1), np.zeros((n_resamples, summed[0].size))
    for drawn, _, counts, distinct in draws(labels, flat, n_resamples, seed):
        sums[drawn] += counts @ distinct
    each = np.concatenate([summed.sum(0)[None], sums.reshape(-1, *summed.shape[1:])])
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan: no image, or no error at all
        errors = each[:, 1:] / each[:, :1]
        ratios = errors[..., 1:] / errors[..., :1]
    figures = np.concatenate([errors[..., 1:], ratios], axis=2)  # the sample's, then the draws'
    n_images = member[:, 1:].sum(0).astype(int)
    for after, before in comparisons:
        of = shared.of(after, before)
        columns = [shared.names.index(name) for name in of.names]
        value, *drawn = of.weights @ figures[:, columns]
        differ = [(part != part[:1]).any() for part in (of.figure[has > 0] for has in member.T[1:])]
        shown = np.array(differ, bool) & varied(labels, of.figure[:, None] * member[:, 1:])
        ends = np.where(np.tile(shown, 2), pd.DataFrame(drawn).quantile([0.025, 0.975]), np.nan)
        names = ["error", "low", "high", "error_ratio", "ratio_low", "ratio_high"]
        halves = np.hsplit(np.vstack([value, ends]), 2)
        found = dict(zip(names, np.concatenate(halves), strict=True))
        yield pd.DataFrame({"factor": factors, "n_images": n_images, **found})


def multilabel_table(
    table: pd.DataFrame, label_sets: LabelSets, unlabelled: str = "drop"
) -> pd.DataFrame:
    """The table judged by label sets: every metric of it (class-wise, bootstrap …) is then ReaL's.

    A prediction is right if it is in its image's set (Beyer et al., 2020); classes are those of
    ``label``. ``label_sets``: file name -> class numbers. Images with an empty set are left out
    (``"drop"``) or wrong (``"error"``); an image without an entry raises ValueError. Returns a copy
    with the boolean column ``correct``, which decides what all metrics count as wrong.
    """
    if unlabelled not in ("drop", "error"):
        raise ValueError(f"unlabelled must be 'drop' or 'error', not {unlabelled!r}.")
    require(table, IMAGE_COLUMNS)
    if absent := [name for name in table["file_name"].unique() if name not in label_sets]:
        raise ValueError(
            f"{len(absent)} images have no entry in label_sets, first {absent[0]!r}: an image "
            "without labels needs an empty set."
        )
    sets = [label_sets[name] for name in table["file_name"]]
    if odd := {c for labels in sets for c in labels if not isinstance(c, numbers.Integral)}:
        raise ValueError(
            f"label_sets holds class numbers (integers from 0), got such as {min(odd, key=repr)!r}."
        )
    right = [guess in labels for guess, labels in zip(table["predicted_class"], sets, strict=True)]
    judged = table.assign(correct=right)
    return judged if unlabelled == "error" else judged[[len(labels) > 0 for labels in sets]]


def multilabel_error(
    table: pd.DataFrame, label_sets: LabelSets, unlabelled: str = "drop", by: By = None
) -> float | pd.DataFrame:
    """ReaL error (Beyer et al., 2020): `error` of `multilabel_table`."""
    return error(multilabel_table(table, label_sets, unlabelled), by)


def relative_reduction(a, b):
    """(a - b) / a: the paper's "%", negative for an increase, nan where a is 0. Any shape."""
    a, b = (x if isinstance(x, pd.Series | pd.DataFrame) else np.asarray(x, float) for x in (a, b))
    result = (a - b) / np.where(a == 0, np.nan, a)
    return float(result) if np.ndim(result) == 0 else result
