"""Error figures: pure functions from prediction tables to numbers and tables.

A prediction table has one row per image and condition: ``file_name``, ``label``,
``predicted_class``. Errors are fractions in [0, 1]. A metric takes one condition, or
``by=[columns]`` for one row a condition. Bad input raises a ValueError that names what is wrong.
"""

import itertools
import numbers
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy
from scipy.special import ndtri

IMAGE_COLUMNS = ("file_name", "label", "predicted_class")
# What may tell two rows of one image apart.
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
STATISTICS = "error mean sd sd_noise_corrected worst worst_decile gap cv sd_normalised".split()
_MULTILABEL = "multilabel_correct"  # written by multilabel_table, decides what counts as an error
By = str | Sequence[str] | None
Groups = Mapping[int, str] | pd.Series  # label -> group of classes
LabelSets = Mapping[str, Collection[int]]  # file name -> class numbers
Tables = pd.DataFrame | Sequence[pd.DataFrame]  # several: of networks whose mean is asked for


class BootstrapInterval(NamedTuple):
    """A statistic and its 95 % interval; nan: no interval."""

    value: float
    low: float
    high: float


def _require(table: pd.DataFrame, columns: Sequence[str], what="the prediction table", holes=False):
    if missing := [column for column in columns if column not in table.columns]:
        raise ValueError(f"{what} lacks the columns {missing}; it has {list(table.columns)}.")
    if table.empty:
        raise ValueError(f"{what} is empty: there is nothing to measure.")
    if not holes and (gaps := [column for column in columns if table[column].isna().any()]):
        raise ValueError(f"{what} has missing values in {gaps}: fill them in or drop the rows.")


def _list(by: By, *more: str) -> list[str]:
    return list(dict.fromkeys([*([by] if isinstance(by, str) else by or []), *more]))


def _sorted_values(column: pd.Series) -> tuple[np.ndarray, pd.Index]:
    """The values that occur, sorted as they are (not as categories), and each row's among them."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, values = column.cat.codes.to_numpy(), column.cat.categories
    else:
        codes, values = pd.factorize(column)
        values = pd.Index(values)
    occurs = np.bincount(codes, minlength=len(values)) > 0
    order, values = values[occurs].argsort(), values[occurs]
    place = np.zeros(len(occurs), np.int64)
    place[np.flatnonzero(occurs)[order]] = np.arange(len(order))
    return place[codes], values[order]


def _codes(table: pd.DataFrame, columns: Sequence[str]) -> tuple[np.ndarray, pd.DataFrame]:
    """The combinations of ``columns`` that occur, sorted, and the number of each row's own.

    Millions of rows are then averaged by `np.bincount`, without comparing their strings again.
    """
    codes, keys = np.zeros(len(table), np.int64), pd.DataFrame(index=[0])
    for column in columns:
        own, values = _sorted_values(table[column])
        codes, found = pd.factorize(codes * len(values) + own, sort=True)
        keys = keys.iloc[found // max(1, len(values))].reset_index(drop=True)
        keys[column] = values[found % max(1, len(values))]
    return codes, keys


def _averages(images: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """``columns``, n_images, error, noise (the sampling variance of the error, nan for one image).

    For values 0 and 1 the noise is p(1-p)/(n-1).
    """
    (codes, keys), wrong = _codes(images, columns), images["wrong"].to_numpy()
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


def _checked(table: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """Columns ``by``, the image columns, and ``wrong`` (float, 0 or 1); the index is new."""
    columns, judged = _list(by, *IMAGE_COLUMNS), _MULTILABEL in table.columns
    _require(table, [*columns, _MULTILABEL] if judged else columns)
    if odd := [c for c in IMAGE_COLUMNS[1:] if not pd.api.types.is_numeric_dtype(table[c])]:
        raise ValueError(f"the columns {odd} must hold class numbers (integers from 0).")
    own, names = pd.factorize(table["file_name"])
    key = _codes(table, _list(by))[0] * len(names) + own
    ordered = np.sort(key)  # five times as fast as looking for duplicates in a hash table
    if (ordered[1:] == ordered[:-1]).any():
        again = pd.Series(key).duplicated().to_numpy()
        hint = [c for c in CONDITION_COLUMNS if c in table.columns and c not in _list(by)]
        raise ValueError(
            f"{again.sum()} rows repeat an image of the same condition, such as "
            f"{table.loc[again, 'file_name'].iloc[0]!r}: keep one row each"
            + (f", or pass by= with some of {hint}." if hint else ".")
        )
    right = table[_MULTILABEL] if judged else table["label"] == table["predicted_class"]
    return table[columns].assign(wrong=1.0 - right.astype(float)).reset_index(drop=True)


def _groups(frame: pd.DataFrame, by: By) -> Iterator[tuple[dict, pd.DataFrame]]:
    columns = _list(by)
    groups = frame.groupby(columns, observed=True) if columns else [((), frame)]
    return ((dict(zip(columns, key, strict=True)), group) for key, group in groups)


def _same_images(a: pd.DataFrame, b: pd.DataFrame, by: Sequence[str] = ()) -> None:
    columns = [*by, "file_name", "label"]
    if all(np.array_equal(a[column], b[column]) for column in columns):
        return
    odd = pd.concat([a, b])[columns].drop_duplicates(keep=False)
    if len(odd):
        raise ValueError(
            "a paired comparison needs the same images with the same labels: "
            f"{len(odd)} have no partner, such as ({', '.join(columns)}) {(*odd.iloc[0],)}."
        )


def error(table: pd.DataFrame, by: By = None) -> float | pd.DataFrame:
    """Top-1 error over images, in [0, 1]; with ``by``: its columns, ``n_images``, ``error``."""
    images = _checked(table, by)
    if not (columns := _list(by)):
        return float(images["wrong"].mean())
    return _averages(images, columns).drop(columns="noise")


def corruption_error(table: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """CE_c: the mean over severities 1-5 of the error under corruption c (paper, Sec. 3).

    Returns the columns of ``by``, ``corruption`` and ``corruption_error``. Raises ValueError if a
    corruption lacks a severity, or if its severities hold different numbers of images.
    """
    cells, missing = error(table, columns := _list(by, "corruption", "severity")), []
    for key, group in _groups(cells, columns[:-1]):
        name, found = " ".join(str(value) for value in key.values()), set(group["severity"])
        if found - set(range(1, 6)) or group["n_images"].nunique() > 1:
            raise ValueError(
                f"{name} must hold the same images at each severity from 1 to 5; it "
                f"has {dict(zip(group.severity, group.n_images, strict=True))}."
            )
        missing += [f"{name} severity {s}" for s in range(1, 6) if s not in found]
    if missing:
        raise ValueError(f"missing from the corruption table: {', '.join(missing)}.")
    means = cells.groupby(columns[:-1], observed=True)["error"].mean()
    return means.reset_index(name="corruption_error")


def mean_corruption_error(
    table: pd.DataFrame, reference: Mapping[str, float] | None = None, by: By = None
) -> float | pd.DataFrame:
    """mCE: the mean of CE_c over the 15 `CORRUPTIONS`; further corruptions do not count.

    ``reference``, such as `ALEXNET_CORRUPTION_ERROR`: CE_c by name, by which ours are divided
    (Hendrycks & Dietterich, 2019); None: the paper's unnormalised mCE. Returns a float; with
    ``by``: its columns and ``mean_corruption_error``. A ValueError lists what is missing.
    """
    if absent := [c for c in CORRUPTIONS if reference is not None and c not in reference]:
        raise ValueError(f"the reference lacks the corruptions {absent}.")
    rows = []
    for key, group in _groups(corruption_error(counted(table), by), by):
        errors = dict(zip(group["corruption"], group["corruption_error"], strict=True))
        if absent := [c for c in CORRUPTIONS if c not in errors]:
            raise ValueError(
                f"missing from the corruption table{f' of {key}' if key else ''}: "
                f"{', '.join(absent)}."
            )
        scaled = [errors[c] / (reference[c] if reference else 1.0) for c in CORRUPTIONS]
        rows.append({**key, "mean_corruption_error": float(np.mean(scaled))})
    return pd.DataFrame(rows) if _list(by) else rows[0]["mean_corruption_error"]


def _annotated(images: pd.DataFrame, annotations: pd.DataFrame) -> tuple[pd.DataFrame, list]:
    """The images' rows with a ``factor``, one for each, and all factors; or a ValueError."""
    _require(annotations, ["file_name", "factor"], "the annotation table", holes=True)
    if annotations.duplicated(["file_name", "factor"]).any():
        raise ValueError("the annotation table names an image twice for one factor.")
    rows = images.merge(annotations[["file_name", "factor"]], on="file_name")
    if rows.empty:
        raise ValueError(
            "no image of the prediction table is annotated: compare the file names, "
            f"{images.file_name.iloc[0]!r} and {annotations.file_name.iloc[0]!r}."
        )
    return rows.dropna(subset="factor"), sorted(annotations["factor"].dropna().unique())


def _in_denominator(images: pd.DataFrame, annotations: pd.DataFrame, denominator: str):
    if denominator not in ("annotated", "all"):
        raise ValueError(f"denominator must be 'annotated' or 'all', not {denominator!r}.")
    return images["file_name"].isin(annotations["file_name"]) | (denominator == "all")


def factor_error(table: pd.DataFrame, annotations: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """Error over the images of each factor of variation (ImageNet-X; Idrissi et al., 2022).

    ``annotations``: one row per image and factor, columns ``file_name`` and ``factor`` (missing for
    an image annotated with no factor: it counts in the denominator of `error_ratio`). Returns the
    columns of ``by``, ``factor``, ``n_images``, ``error``; nan for a factor without images.
    """
    images, columns = _checked(table, by), _list(by, "factor")
    rows, factors = _annotated(images, annotations)
    every = _codes(images, columns[:-1])[1].merge(pd.DataFrame({"factor": factors}), how="cross")
    result = every.merge(_averages(rows, columns), on=columns, how="left").drop(columns="noise")
    return result.assign(n_images=result["n_images"].fillna(0).astype(int))


def error_ratio(
    table: pd.DataFrame, annotations: pd.DataFrame, denominator: str = "annotated", by: By = None
) -> pd.DataFrame:
    """E_f = (1 - accuracy(factor)) / (1 - accuracy(model)) (paper, Sec. 3).

    The model's accuracy is over its ``"annotated"`` images, each counted once (as the ImageNet-X
    library does), or over ``"all"``; with ``by``, over those of the same group.
    Returns the columns of ``by``, ``factor``, ``error_ratio`` (nan for no error at all).
    """
    factors, images, columns = factor_error(table, annotations, by), _checked(table, by), _list(by)
    images = images[_in_denominator(images, annotations, denominator)]
    how = {"on": columns, "how": "left"} if columns else {"how": "cross"}
    both = factors.merge(_averages(images, columns), **how, suffixes=("", "_of_model"))
    ratio = both["error"] / both["error_of_model"].replace(0.0, np.nan)
    return factors[[*columns, "factor"]].assign(error_ratio=ratio)


def factor_summary(
    table: Tables,
    annotations: pd.DataFrame,
    *,
    denominator: str = "annotated",
    paired_with: Tables | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """`factor_error` and `error_ratio`, or their table - paired_with, with 95 % intervals.

    Several tables are taken as in `bootstrap`. Percentile intervals: images are resampled as there
    and carry their factors, so that factor and denominator vary together. nan where that hides the
    uncertainty: all images of the factor fare (or differ) alike, or more than 5 % of the classes
    have one image.
    Returns ``factor``, ``n_images`` and ``error, low, high, error_ratio, ratio_low, ratio_high``.
    """
    images, wrong, weights, _ = _images(table, paired_with, n_resamples)
    labels, position = images["label"].to_numpy(), images.reset_index(names="position")
    rows, factors = _annotated(position, annotations)
    member = np.zeros((len(images), 1 + len(factors)))  # the first column: the denominator
    member[:, 0] = _in_denominator(images, annotations, denominator)
    member[rows["position"], 1 + pd.Index(factors).get_indexer(rows["factor"])] = 1
    counted = np.column_stack([np.ones(len(images)), wrong])
    counted = counted[:, :, None] * member[:, None]  # every figure is a ratio of two sums of these

    def figures(sums: np.ndarray) -> pd.DataFrame:  # columns: the errors, then the ratios
        sums = sums.reshape(-1, *counted.shape[1:])
        with np.errstate(invalid="ignore"):  # 0 / 0 is nan: no image, or no error at all
            errors = sums[:, 1:] / sums[:, :1]
            ratios = errors[..., 1:] / errors[..., :1]
        return pd.DataFrame(weights @ np.concatenate([errors[..., 1:], ratios], axis=2))

    flat, sums = counted.reshape(len(images), -1), np.zeros((n_resamples, counted[0].size))
    for drawn, _, counts, distinct in _draws(labels, flat, n_resamples, seed):
        sums[drawn] += counts @ distinct
    judged = wrong @ weights
    differ = [(part != part[:1]).any() for part in (judged[has > 0] for has in member.T[1:])]
    shown = np.array(differ, dtype=bool) & _varied(labels, judged[:, None] * member[:, 1:])
    ends = figures(sums).quantile([0.025, 0.975])
    ends.loc[:, ~np.tile(shown, 2)] = np.nan
    names = ["error", "low", "high", "error_ratio", "ratio_low", "ratio_high"]
    errors, ratios = np.hsplit(pd.concat([figures(counted.sum(0)), ends]).to_numpy(), 2)
    columns = dict(zip(names, [*errors, *ratios], strict=True))
    n_images = member[:, 1:].sum(0).astype(int)
    return pd.DataFrame({"factor": factors, "n_images": n_images, **columns})


def multilabel_table(
    table: pd.DataFrame, label_sets: LabelSets, unlabelled: str = "drop"
) -> pd.DataFrame:
    """The table judged by label sets: every metric of it (class-wise, bootstrap …) is then ReaL's.

    A prediction is right if it is in its image's set (Beyer et al., 2020); classes are those of
    ``label``. ``label_sets``: file name -> class numbers. Images with an empty set are left out
    (``"drop"``) or wrong (``"error"``); an image without an entry raises ValueError. Returns a copy
    with a boolean column ``multilabel_correct``, which decides what all metrics count as wrong.
    """
    if unlabelled not in ("drop", "error"):
        raise ValueError(f"unlabelled must be 'drop' or 'error', not {unlabelled!r}.")
    _require(table, IMAGE_COLUMNS)
    if absent := [name for name in table["file_name"].unique() if name not in label_sets]:
        raise ValueError(
            f"{len(absent)} images have no entry in label_sets, the first is "
            f"{absent[0]!r}; an image without labels needs an empty set."
        )
    sets = [label_sets[name] for name in table["file_name"]]
    if odd := {c for labels in sets for c in labels if not isinstance(c, numbers.Integral)}:
        raise ValueError(
            f"label_sets holds class numbers (integers from 0), got such as {min(odd, key=repr)!r}."
        )
    right = [guess in labels for guess, labels in zip(table["predicted_class"], sets, strict=True)]
    judged = table.assign(**{_MULTILABEL: right})
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


def _with_wilson(result: pd.DataFrame) -> pd.DataFrame:
    n, p, z = result["n_images"], result["error"], ndtri(0.975)
    centre, scale = p + z**2 / (2 * n), 1 + z**2 / n
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return result.assign(
        low=((centre - half) / scale).clip(0, 1), high=((centre + half) / scale).clip(0, 1)
    )


def class_error(table: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """``label``, ``n_images``, ``error`` and 95 % Wilson interval ``low``, ``high`` of a class."""
    return _with_wilson(error(table, _list(by, "label")))


def _corrected_variance(classes: pd.DataFrame) -> tuple[float, float]:
    """(V, V_corr) over the classes with two images or more; nan for fewer than two of them."""
    kept = classes[classes["n_images"] >= 2]
    observed = float(kept["error"].var(ddof=0)) if len(kept) >= 2 else np.nan
    return observed, observed - (1 - 1 / max(len(kept), 1)) * float(kept["noise"].mean())


def _root(variance):
    return np.sqrt(np.maximum(variance, 0.0))  # nan stays nan


def _summary(classes: pd.DataFrame) -> dict:
    errors, k = np.sort(classes["error"].to_numpy())[::-1], len(classes)
    mean, worst, best = errors.mean(), errors[0], errors[-1]
    # One class has no spread, and one image a class shows only its own noise.
    spread = k >= 2 and classes["n_images"].max() >= 2
    sd = errors.std() if spread else np.nan
    return {
        "mean": mean,
        "sd": sd,
        "sd_noise_corrected": _root(_corrected_variance(classes)[1]),
        "worst": worst,
        "worst_class": classes["label"].iloc[classes["error"].argmax()],
        "worst_decile": errors[: max(1, k // 10)].mean(),
        "best": best,
        "gap": worst - best if spread else np.nan,
        "cv": sd / mean if mean > 0 else np.nan,
        "sd_normalised": sd / np.sqrt(mean * (1 - mean)) if 0 < mean < 1 else np.nan,
        "n_classes": k,
        "n_images": classes["n_images"].sum(),
    }


def class_summary(table: pd.DataFrame, by: By = None) -> pd.Series | pd.DataFrame:
    """Statistics over the classes' errors p_c, K classes of n_c images, each class counting once.

    ``mean``, ``sd`` (population), ``worst``, ``worst_class`` (the lowest label, if several are),
    ``worst_decile`` (mean of the K // 10 worst classes, at least one), ``best``, ``gap`` = worst -
    best, ``cv`` = sd / mean, ``sd_normalised`` = sd / sqrt(mean (1 - mean)), ``n_classes``,
    ``n_images``, and ``sd_noise_corrected``: the population variance less what sampling alone
    adds, (K-1)/K * mean_c[p_c(1-p_c)/(n_c-1)], floor at 0, root, over the classes with n_c >= 2.
    The spread (both SDs, gap, cv, sd_normalised) is nan for a single class and for one image a
    class, cv for no error at all, sd_normalised for a mean of 0 or 1.
    Returns a Series; with ``by``: its columns and these, one row a condition.
    """
    classes = _averages(_checked(table, by), _list(by, "label"))
    rows = [{**key, **_summary(group)} for key, group in _groups(classes, by)]
    return pd.DataFrame(rows) if _list(by) else pd.Series(rows[0])


def class_changes(table: pd.DataFrame, other: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """Which classes gain or lose from one condition to another, on the same images.

    Returns the columns of ``by``, ``label``, ``error``, ``error_other``, ``difference`` (other -
    table), ``p_value`` (exact McNemar test), ``q_value`` (Benjamini-Hochberg, over the classes of
    one condition) and ``change``: "gains" (lower error in ``other``) or "loses" at a false
    discovery rate of 5 %, else "no change". In its ``attrs``: ``n_raw`` classes have p < 0.05; if
    no class differed, ``expected_by_chance`` of them would (exact, given the numbers of images that
    changed), at most ``expected_at_most`` = 0.05 K.
    """
    images = [*(columns := _list(by)), "file_name", "label"]
    a, b = (_averages(_checked(t, by), images) for t in (table, other))
    _same_images(a, b, columns)
    grouped = a[[*columns, "label", "error"]].assign(
        error_other=b["error"], fixed=a["error"] > b["error"], broken=a["error"] < b["error"]
    )
    grouped = grouped.groupby([*columns, "label"], observed=True)
    result = grouped[["error", "error_other"]].mean().reset_index()
    fixed, broken = grouped[["fixed", "broken"]].sum().to_numpy().T
    n = fixed + broken
    result["difference"] = result["error_other"] - result["error"]
    result["p_value"] = np.minimum(2 * scipy.stats.binom.cdf(np.minimum(fixed, broken), n, 0.5), 1)
    condition = result.groupby(columns or np.zeros(len(result)), observed=True)
    result["q_value"] = condition["p_value"].transform(scipy.stats.false_discovery_control)
    found = result["q_value"] <= 0.05
    result["change"] = np.select(
        [found & (fixed > broken), found & (fixed < broken)], ["gains", "loses"], "no change"
    )
    # The test is discrete, so that chance alone rejects in fewer than 5 % of the classes.
    size = 2 * scipy.stats.binom.cdf(scipy.stats.binom.ppf(0.025, n, 0.5) - 1, n, 0.5)
    result.attrs = {
        "n_raw": int((result["p_value"] < 0.05).sum()),
        "expected_by_chance": float(size.sum()),
        "expected_at_most": 0.05 * len(n),
    }
    return result


def _shares(counts: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    total = counts.groupby(columns, observed=True)["n_images"].transform("sum")
    return counts.assign(share=counts["n_images"] / total)


def confusion(table: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """The pairs that occur: ``label``, ``predicted_class``, ``n_images``, ``share`` of label."""
    columns = _list(by, "label", "predicted_class")
    pairs = _averages(_checked(table, by), columns)[[*columns, "n_images"]]
    return _shares(pairs, columns[:-1])


def _grouped(table: pd.DataFrame, groups, by: By, *classes: str) -> pd.DataFrame:
    """`_averages` by the columns ``classes``, with the column ``group`` (and predicted_group)."""
    cells, groups = _averages(_checked(table, by), _list(by, *classes)), pd.Series(groups)
    for column, name in zip(classes, ("group", "predicted_group"), strict=False):
        cells.insert(0, name, cells[column].map(groups))
        if absent := sorted(set(cells.loc[cells[name].isna(), column])):
            raise ValueError(
                f"groups must name a group for every {column}: it lacks {len(absent)} classes, "
                f"such as {absent[:5]}."
            )
    return cells


def group_error(table: pd.DataFrame, groups: Groups, by: By = None) -> pd.DataFrame:
    """Errors of groups of classes. ``groups``: label -> group, for every class.

    Returns the columns of ``by``, ``group``, ``n_classes``, ``n_images``, ``error`` (over images),
    ``mean`` and ``sd`` over its classes (population; nan as in `class_summary`), and the 95 %
    Wilson interval ``low``, ``high`` of the error.
    """
    classes = _grouped(table, groups, by, "label")
    classes["wrong"] = classes["error"] * classes["n_images"]
    grouped = classes.groupby(_list(by, "group"), observed=True)
    result = grouped[["n_images", "wrong"]].sum()
    result.insert(0, "n_classes", grouped.size())
    result["error"] = result.pop("wrong") / result["n_images"]
    result["mean"] = grouped["error"].mean()
    spread = (result["n_classes"] > 1) & (grouped["n_images"].max() > 1)
    result["sd"] = grouped["error"].std(ddof=0).where(spread)
    return _with_wilson(result.reset_index())


def group_confusion(table: pd.DataFrame, groups: Groups, by: By = None) -> pd.DataFrame:
    """The pairs that occur: ``group``, ``predicted_group``, ``n_images``, ``share`` of group.

    ``groups``: label -> group, for every class that is a label or predicted. The images of a group
    that stay within it are right or not: `confusion_kinds`.
    """
    columns = _list(by, "group", "predicted_group")
    pairs = _grouped(table, groups, by, "label", "predicted_class")
    counts = pairs.groupby(columns, observed=True)["n_images"].sum().reset_index()
    return _shares(counts, columns[:-1])


def confusion_kinds(table: pd.DataFrame, groups: Groups, by: By = None) -> pd.DataFrame:
    """How each group's images are judged: right, wrong within the group, wrong across groups.

    ``groups``: label -> group, for all K classes. Returns the columns of ``by``, ``group``,
    ``kind`` ("right", "within", "across"), ``n_images``, ``share`` of the group's images, and
    ``expected``: the share if its errors fell evenly over the other K-1 classes.
    """
    pairs = _grouped(table, groups, by, "label", "predicted_class")
    wrong, same = pairs["n_images"] * pairs["error"], pairs["group"] == pairs["predicted_group"]
    kinds = {"right": pairs["n_images"] - wrong, "within": wrong * same, "across": wrong * ~same}
    counts = pairs.assign(**kinds).groupby(_list(by, "group"), observed=True)[[*kinds]].sum()
    shares, sizes = counts.div(counts.sum(axis=1), axis=0), pd.Series(groups).value_counts()
    within = (counts.index.get_level_values("group").map(sizes) - 1) / (sizes.sum() - 1)
    expected = shares.assign(within=within, across=1 - within)
    expected[["within", "across"]] = expected[["within", "across"]].mul(1 - shares["right"], axis=0)
    parts = {"n_images": counts.round().astype(int), "share": shares, "expected": expected}
    stacked = {name: part.rename_axis(columns="kind").stack() for name, part in parts.items()}
    return pd.DataFrame(stacked).reset_index()


def rank_correlation(class_error_a: pd.DataFrame, class_error_b: pd.DataFrame) -> float:
    """Spearman's correlation of two `class_error` tables, matched by label; nan if one is constant.

    Raises ValueError unless both hold the same labels, once each.
    """
    a, b = (t.set_index("label")["error"].sort_index() for t in (class_error_a, class_error_b))
    if not a.index.equals(b.index) or a.index.has_duplicates:
        raise ValueError("rank_correlation needs two tables with the same labels, once each.")
    varied = a.nunique() > 1 and b.nunique() > 1
    return float(scipy.stats.spearmanr(a, b).statistic) if varied else np.nan


def class_rank_correlation(class_errors: pd.DataFrame, condition: str) -> pd.DataFrame:
    """`rank_correlation` of the class errors under any two conditions: are the same classes hard?

    ``class_errors``: ``label``, ``error`` and a column ``condition``, such as "benchmark". Returns
    ``condition_a``, ``condition_b`` (each pair in both orders), ``value``, ``low``, ``high``: 95 %
    intervals by Fisher's transformation, variance (1 + rho^2 / 2) / (K - 3) (Bonett & Wright,
    2000), nan for K < 4 classes or rho = 1 or -1. Unlike all others they are over *classes*, as if
    drawn from many. The noise of few images a class is not in them: where both orders come from the
    same images, what they share of it pushes rho up, and the rest pulls it towards 0.
    """
    _require(class_errors, [condition, "label", "error"], "the table of class errors")
    parts, found = dict(list(class_errors.groupby(condition, observed=True))), {}
    for a, b in itertools.combinations(parts, 2):
        rho, k, ends = rank_correlation(parts[a], parts[b]), len(parts[a]), [np.nan, np.nan]
        if k > 3 and abs(rho) < 1 - 1e-12:
            half = ndtri(0.975) * np.sqrt((1 + rho**2 / 2) / (k - 3))
            ends = np.tanh(np.arctanh(rho) + [-half, half])
        found[a, b] = found[b, a] = rho, *ends
    rows = [(*pair, *found[pair]) for pair in itertools.permutations(parts, 2)]
    return pd.DataFrame(rows, columns=["condition_a", "condition_b", "value", "low", "high"])


def _images(
    table: Tables,
    paired_with: Tables | None,
    n_resamples: int,
    reference: Mapping[str, float] | None = None,
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, int | None]:
    """The images; each one's mean over its rows in each of the m tables, (N, m); weights (m,); q.

    x @ weights is the mean over ``table``, less that over ``paired_with``. All weighted means are
    multiples of 1 / q. ``reference``: a row counts with 1 / that of its corruption, and there is
    no q.
    """
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, not {n_resamples}.")
    sides, parts = (_several(table), _several(paired_with)), []
    for one in map(counted, itertools.chain(*sides)):
        present = [c for c in CONDITION_COLUMNS if c in one.columns and one[c].notna().any()]
        rows = _checked(one, present)
        if reference is not None:
            rows["wrong"] /= rows["corruption"].map(reference).astype(float)
        parts.append(images := _averages(rows, ["file_name", "label"]))
        if images["file_name"].duplicated().any() or images["n_images"].nunique() > 1:
            raise ValueError(
                "an image needs one label and a row in every condition; here some "
                "images have several labels, or fewer rows than others."
            )
        _same_images(parts[0], images)
    sizes = [len(side) for side in sides]
    weights = np.repeat([1 / max(1, sizes[0]), -1 / max(1, sizes[1])], sizes)
    q = None
    if reference is None:
        q = int(np.lcm.reduce([part["n_images"].iloc[0] for part in parts]))
        q *= int(np.lcm.reduce([max(1, size) for size in sizes]))
    wrong = np.column_stack([part["error"] for part in parts])
    return parts[0][["file_name", "label"]], wrong, weights, q


def _several(tables: Tables | None) -> list[pd.DataFrame]:
    return [tables] if isinstance(tables, pd.DataFrame) else list(tables or [])


def _varied(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each column (N, m): does resampling within the classes show how uncertain it is?"""
    # Rounded: the mean of several seeds less that of others is nothing only to some 1e-17.
    classes = pd.DataFrame(np.round(values, 12)).groupby(labels)
    within = (classes.max() > classes.min()).any().to_numpy()
    return within & ((classes.size() == 1).mean() <= 0.05)


def _draws(labels: np.ndarray, values: np.ndarray, n_resamples: int, seed: int) -> Iterator[tuple]:
    """Of each class, in blocks that fit in the cache: rows (of the resamples), n, counts, distinct.

    counts (rows, d) @ distinct (d, m) are the sums of a class over its n images, which are drawn
    within their class, the m columns of ``values`` (N, m) together.
    """
    rng, order = np.random.default_rng(seed), np.argsort(labels, kind="stable")
    for images in np.split(values[order], np.flatnonzero(np.diff(labels[order])) + 1):
        # Images of equal values are interchangeable: where most are, only their counts are drawn.
        distinct, sizes = np.unique(images, axis=0, return_counts=True)
        n, few = len(images), 8 * len(distinct) <= len(images)
        for rows in np.array_split(np.arange(n_resamples), -(-n_resamples // 1000)):
            if few:
                counts = rng.multinomial(n, sizes / n, size=len(rows))
            else:
                drawn = rng.integers(n, size=(len(rows), n), dtype=np.min_scalar_type(max(n, 256)))
                drawn = drawn + n * np.arange(len(rows))[:, None]
                counts = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
            yield slice(rows[0], rows[-1] + 1), n, counts, distinct if few else images


def _replicates(labels: np.ndarray, values: np.ndarray, n_resamples: int, seed: int):
    """Replicates, each (n_resamples, m), of: error, mean, noise-corrected variance (signed)."""
    errors, means, kept_means, squares, noise = np.zeros((5, n_resamples, values.shape[1]))
    sizes = np.unique(labels, return_counts=True)[1]
    k = max(1, (sizes >= 2).sum())
    for rows, n, counts, distinct in _draws(labels, values, n_resamples, seed):
        drawn, square = np.hsplit(counts @ np.hstack([distinct, distinct**2]) / n, 2)
        errors[rows] += n / len(values) * drawn
        means[rows] += drawn / len(sizes)
        if n >= 2:
            kept_means[rows] += drawn
            squares[rows] += drawn**2
            noise[rows] += (square - drawn**2) / (n - 1)
    return errors, means, squares / k - (kept_means / k) ** 2 - (k - 1) / k * noise / k


def _error_ends(labels: np.ndarray, values: np.ndarray, q: int) -> np.ndarray:
    """The 2.5 and 97.5 % quantiles of the mean of values (N,), all of them multiples of 1 / q.

    Exact: what `_replicates` would give with infinitely many resamples. Images are drawn apart, so
    that the characteristic function of their sum is the product of their classes' powers.
    """
    units = np.rint(values * q).astype(np.int64)
    lowest, ordered = units.min(), units[np.argsort(labels, kind="stable")]
    sizes = np.unique(labels, return_counts=True)[1]
    classes = np.split(ordered - lowest, np.cumsum(sizes)[:-1])
    sd = np.sqrt(sum(len(one) * one.var() for one in classes))
    # The transform is periodic; a period of 16 SDs holds all but 1e-15 of the sums.
    period = 1 << int(16 * sd + ordered.max() - lowest + 2).bit_length()
    products = dict.fromkeys(sizes.tolist(), 1.0)
    for one in classes:
        products[len(one)] *= np.fft.rfft(np.bincount(one) / len(one), period)
    function = np.prod([product**n for n, product in products.items()], axis=0)
    first = round((ordered - lowest).sum()) - period // 2
    shares = np.roll(np.fft.irfft(function, period), -first)
    ends = first + np.searchsorted(np.cumsum(shares), [0.025, 0.975])
    return (ends + lowest * len(units)) / (q * len(units))


def _error(
    images: pd.DataFrame,
    wrong: np.ndarray,
    weights: np.ndarray,
    q: int | None,
    n_resamples: int,
    seed: int,
) -> BootstrapInterval:
    """The first row of `_summarise`, where there is a q without any draw."""
    if q is None:
        rows = _summarise(images, wrong, weights, q, n_resamples, seed)
        return BootstrapInterval(*rows.loc[0, ["value", "low", "high"]])
    labels = images["label"].to_numpy()
    varied = _varied(labels, (wrong @ weights)[:, None]).any()
    ends = _error_ends(labels, wrong @ weights, q) if varied else (np.nan, np.nan)
    return BootstrapInterval(weights @ [column.mean() for column in wrong.T], *ends)


def _summarise(
    images: pd.DataFrame,
    wrong: np.ndarray,
    weights: np.ndarray,
    q: int | None,
    n_resamples: int,
    seed: int,
) -> pd.DataFrame:
    labels = images["label"].to_numpy()
    classes = [_averages(images.assign(wrong=column), ["label"]) for column in wrong.T]
    values = [
        {"error": column.mean(), **_summary(c)} for column, c in zip(wrong.T, classes, strict=True)
    ]
    value = weights @ pd.DataFrame(values)[[*STATISTICS]].to_numpy()
    result = pd.DataFrame({"statistic": STATISTICS, "value": value}).assign(
        low=np.nan, high=np.nan, n_images=len(images)
    )
    if not _varied(labels, wrong).any():
        return result
    errors, means, variances = _replicates(labels, wrong, n_resamples, seed)
    # A replicate holds the noise of the data and its own: it lies around the observed variance,
    # not around the corrected one, so its deviations are taken from the former.
    observed, corrected = np.transpose([_corrected_variance(c) for c in classes])
    if len(weights) == 1:
        deviations = variances[:, 0] - observed[0]
        sd = _root(corrected[0] - np.quantile(deviations, [0.975, 0.025]))
    else:
        deviations = (_root(variances) - _root(observed)) @ weights
        sd = _root(corrected) @ weights - np.quantile(deviations, [0.975, 0.025])
    ends = [np.quantile(drawn @ weights, [0.025, 0.975]) for drawn in (errors, means)]
    if q is not None:
        ends[0] = _error_ends(labels, wrong @ weights, q)
        if classes[0]["n_images"].nunique() == 1:  # then the mean over the classes is the error
            ends[1] = ends[0]
    rows = result["statistic"].isin(["error", "mean", "sd_noise_corrected"])
    result.loc[rows, ["low", "high"]] = [*ends, sd]
    # Each class differs by the same for all its images.
    if not _varied(labels, (wrong @ weights)[:, None]).any():
        result.loc[result["statistic"].isin(["error", "mean"]), ["low", "high"]] = np.nan
    if not np.round(wrong @ weights, 12).any():  # no image differs: nor can the spread
        result[["low", "high"]] = np.nan
    return result


def summarise(
    table: Tables,
    *,
    paired_with: Tables | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """`bootstrap` for all `STATISTICS`: columns statistic, value, low, high, n_images."""
    return _summarise(*_images(table, paired_with, n_resamples), n_resamples, seed)


def bootstrap(
    table: Tables,
    statistic: str,
    paired_with: Tables | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> BootstrapInterval:
    """A statistic of a table, or statistic(table) - statistic(paired_with), with its 95 % interval.

    ``statistic`` is one of `STATISTICS`: ``"error"`` (over images) or one of `class_summary`.
    Images are resampled within their class: the classes are fixed. In a table of several conditions
    an image counts with its mean error over all its rows (those `counted`), and carries them all.
    Several tables, such as those of several seeds, have one statistic each, whose mean is taken; an
    image is drawn with all of them, so that the interval is that of these networks on other images.

    * ``error``, ``mean``: percentile intervals (too narrow by 1/(2n) with n images a class). Those
      of the error, and of the mean where all classes have as many images, are exact, as with
      infinitely many resamples.
    * ``sd_noise_corrected``: centred intervals. Resampling adds the sampling noise a second time,
      so that a percentile interval can miss even its own estimate.
    * All others: the value alone, low and high are nan. Noise biases them; simulated at K = 1000,
      n = 50, centred intervals too held the true value in as few as 0 % of cases. For the spread
      use ``sd_noise_corrected``, for single classes `class_error`.

    Also nan where resampling hides the uncertainty: no class has two images of different value
    (all right, all wrong), or more than 5 % of the classes have one image.
    Raises ValueError for an unknown statistic, and if paired tables differ in images or labels.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"unknown statistic {statistic!r}: choose from {', '.join(STATISTICS)}.")
    parts = (*_images(table, paired_with, n_resamples), n_resamples, seed)
    if statistic == "error":
        return _error(*parts)
    rows = _summarise(*parts).set_index("statistic")
    return BootstrapInterval(*rows.loc[statistic, ["value", "low", "high"]])


def corruption_summary(
    table: Tables,
    reference: Mapping[str, float] | None = None,
    paired_with: Tables | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> BootstrapInterval:
    """`mean_corruption_error`, or table - paired_with, with the 95 % interval of `bootstrap`.

    With a ``reference`` an image's row counts with 1 / that of its corruption. Every condition must
    hold the same images. Raises ValueError as both functions do.
    """
    for one in (*_several(table), *_several(paired_with)):
        mean_corruption_error(one, reference)  # names what is missing
    return _error(*_images(table, paired_with, n_resamples, reference), n_resamples, seed)
