"""Error figures: pure functions from prediction tables to numbers and tables.

A prediction table has one row per image and condition: ``file_name``, ``label``,
``predicted_class``. Errors are fractions in [0, 1]. A metric takes one condition, or
``by=[columns]`` for one row a condition. Bad input raises a ValueError that names what is wrong.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

IMAGE_COLUMNS = ("file_name", "label", "predicted_class")
CONDITION_COLUMNS = (  # what may tell two rows of one image apart
    "study",
    "method",
    "seed",
    "benchmark",
    "condition",
    "corruption",
    "severity",
    "attack",
)
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
CORRUPTIONS = tuple(ALEXNET_CORRUPTION_ERROR)
STATISTICS = (
    "error",
    "mean",
    "sd",
    "sd_noise_corrected",
    "worst",
    "worst_decile",
    "gap",
    "cv",
    "sd_normalised",
)
_MULTILABEL = "multilabel_correct"  # written by multilabel_table, decides what counts as an error
By = str | Sequence[str] | None


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


def _checked(table: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """Columns ``by``, the image columns, and ``wrong`` (float, 0 or 1); the index is new."""
    columns, judged = _list(by, *IMAGE_COLUMNS), _MULTILABEL in table.columns
    _require(table, [*columns, _MULTILABEL] if judged else columns)
    if odd := [c for c in IMAGE_COLUMNS[1:] if not pd.api.types.is_numeric_dtype(table[c])]:
        raise ValueError(f"the columns {odd} must hold class numbers (integers from 0).")
    key = _list(by, "file_name")
    if (again := table.duplicated(key)).any():
        hint = [c for c in CONDITION_COLUMNS if c in table.columns and c not in key]
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


def _same_images(a: pd.DataFrame, b: pd.DataFrame) -> None:
    odd = pd.concat([a, b])[["file_name", "label"]].drop_duplicates(keep=False)
    if len(odd):
        raise ValueError(
            "a paired comparison needs the same images with the same labels: "
            f"{len(odd)} have no partner, such as (image, label) {(*odd.iloc[0],)}."
        )


def error(table: pd.DataFrame, by: By = None) -> float | pd.DataFrame:
    """Top-1 error over images, in [0, 1]; with ``by``: its columns, ``n_images``, ``error``."""
    images = _checked(table, by)
    if not (columns := _list(by)):
        return float(images["wrong"].mean())
    groups = images.groupby(columns, observed=True)["wrong"]
    return groups.agg(n_images="size", error="mean").reset_index()


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
    for key, group in _groups(corruption_error(table, by), by):
        errors = dict(zip(group["corruption"], group["corruption_error"], strict=True))
        if absent := [c for c in CORRUPTIONS if c not in errors]:
            raise ValueError(
                f"missing from the corruption table{f' of {key}' if key else ''}: "
                f"{', '.join(absent)}."
            )
        scaled = [errors[c] / (reference[c] if reference else 1.0) for c in CORRUPTIONS]
        rows.append({**key, "mean_corruption_error": float(np.mean(scaled))})
    return pd.DataFrame(rows) if _list(by) else rows[0]["mean_corruption_error"]


def factor_error(table: pd.DataFrame, annotations: pd.DataFrame) -> pd.DataFrame:
    """Error over the images of each factor of variation (ImageNet-X; Idrissi et al., 2022).

    ``annotations``: one row per image and factor, columns ``file_name`` and ``factor`` (missing for
    an image annotated with no factor: it counts in the denominator of `error_ratio`).
    Returns ``factor``, ``n_images``, ``error``; a factor that none of the images has gets nan.
    """
    _require(annotations, ["file_name", "factor"], "the annotation table", holes=True)
    if annotations.duplicated(["file_name", "factor"]).any():
        raise ValueError("the annotation table names an image twice for one factor.")
    rows = _checked(table).merge(annotations[["file_name", "factor"]], on="file_name")
    if rows.empty:
        raise ValueError(
            "no image of the prediction table is annotated: compare the file names, "
            f"{table.file_name.iloc[0]!r} and {annotations.file_name.iloc[0]!r}."
        )
    grouped = rows.groupby("factor", observed=True)["wrong"]
    factors = pd.Index(sorted(annotations["factor"].dropna().unique()), name="factor")
    result = grouped.agg(n_images="size", error="mean").reindex(factors).reset_index()
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
    factors, images = factor_error(table, annotations), _checked(table)
    if denominator == "annotated":
        images = images[images["file_name"].isin(annotations["file_name"])]
    factors["error_ratio"] = factors["error"] / (images["wrong"].mean() or np.nan)
    return factors[["factor", "error_ratio"]]


def multilabel_table(
    table: pd.DataFrame, label_sets: Mapping[str, Collection[int]], unlabelled: str = "drop"
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
    if absent := [name for name in table["file_name"] if name not in label_sets]:
        raise ValueError(
            f"{len(absent)} images have no entry in label_sets, the first is "
            f"{absent[0]!r}; an image without labels needs an empty set."
        )
    sets = [label_sets[name] for name in table["file_name"]]
    right = [guess in labels for guess, labels in zip(table["predicted_class"], sets, strict=True)]
    judged = table.assign(**{_MULTILABEL: right})
    return judged if unlabelled == "error" else judged[[len(labels) > 0 for labels in sets]]


def multilabel_error(
    table: pd.DataFrame,
    label_sets: Mapping[str, Collection[int]],
    unlabelled: str = "drop",
    by: By = None,
) -> float | pd.DataFrame:
    """ReaL error (Beyer et al., 2020): `error` of `multilabel_table`."""
    return error(multilabel_table(table, label_sets, unlabelled), by)


def relative_reduction(a, b):
    """(a - b) / a: the paper's "%", negative for an increase, nan where a is 0. Any shape."""
    a, b = (x if isinstance(x, pd.Series | pd.DataFrame) else np.asarray(x, float) for x in (a, b))
    result = (a - b) / np.where(a == 0, np.nan, a)
    return float(result) if np.ndim(result) == 0 else result


def class_error(table: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """``label``, ``n_images``, ``error`` and 95 % Wilson interval ``low``, ``high`` of a class."""
    result = error(table, _list(by, "label"))
    n, p, z = result["n_images"], result["error"], stats.norm.ppf(0.975)
    centre, scale = p + z**2 / (2 * n), 1 + z**2 / n
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return result.assign(
        low=((centre - half) / scale).clip(0, 1), high=((centre + half) / scale).clip(0, 1)
    )


def _class_values(images: pd.DataFrame) -> pd.DataFrame:
    """One row a class: label, n_images, error, noise (the sampling variance of its error)."""
    groups = images.groupby("label")["wrong"].agg(n_images="size", error="mean", noise="sem")
    # The squared standard error is p(1-p)/(n-1) for values 0 and 1; it is nan for one image.
    return groups.assign(noise=groups["noise"] ** 2).reset_index()


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
    rows = [
        {**key, **_summary(_class_values(group))} for key, group in _groups(_checked(table, by), by)
    ]
    return pd.DataFrame(rows) if _list(by) else pd.Series(rows[0])


def class_changes(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Which classes gain or lose from one condition to another, on the same images.

    Returns ``label``, ``error``, ``error_other``, ``difference`` (other - table), ``p_value``
    (exact McNemar test), ``q_value`` (Benjamini-Hochberg) and ``change``: "gains" (lower error in
    ``other``) or "loses" at a false discovery rate of 5 %, else "no change". In its ``attrs``:
    ``n_raw`` classes have p < 0.05; if no class differed, ``expected_by_chance`` of them would
    (exact, given the numbers of images that changed), at most ``expected_at_most`` = 0.05 K.
    """
    a, b = (_checked(t).sort_values("file_name", ignore_index=True) for t in (table, other))
    _same_images(a, b)
    grouped = pd.DataFrame(
        {
            "label": a["label"],
            "error": a["wrong"],
            "error_other": b["wrong"],
            "fixed": a["wrong"] > b["wrong"],
            "broken": a["wrong"] < b["wrong"],
        }
    ).groupby("label")
    result = grouped[["error", "error_other"]].mean().reset_index()
    fixed, broken = grouped[["fixed", "broken"]].sum().to_numpy().T
    n = fixed + broken
    result["difference"] = result["error_other"] - result["error"]
    result["p_value"] = [
        stats.binomtest(int(k), int(m)).pvalue if m else 1.0 for k, m in zip(fixed, n, strict=True)
    ]
    result["q_value"] = stats.false_discovery_control(result["p_value"])
    found = result["q_value"] <= 0.05
    result["change"] = np.select(
        [found & (fixed > broken), found & (fixed < broken)], ["gains", "loses"], "no change"
    )
    # The test is discrete, so that chance alone rejects in fewer than 5 % of the classes.
    size = 2 * stats.binom.cdf(stats.binom.ppf(0.025, n, 0.5) - 1, n, 0.5)
    result.attrs = {
        "n_raw": int((result["p_value"] < 0.05).sum()),
        "expected_by_chance": float(size.sum()),
        "expected_at_most": 0.05 * len(n),
    }
    return result


def confusion(table: pd.DataFrame) -> pd.DataFrame:
    """The pairs that occur: ``label``, ``predicted_class``, ``n_images``, ``share`` of label."""
    counts = _checked(table).groupby(["label", "predicted_class"]).size()
    share = counts / counts.groupby("label").transform("sum")
    return pd.DataFrame({"n_images": counts, "share": share}).reset_index()


def rank_correlation(class_error_a: pd.DataFrame, class_error_b: pd.DataFrame) -> float:
    """Spearman's correlation of two `class_error` tables, matched by label; nan if one is constant.

    Raises ValueError unless both hold the same labels, once each.
    """
    a, b = (t.set_index("label")["error"].sort_index() for t in (class_error_a, class_error_b))
    if not a.index.equals(b.index) or a.index.has_duplicates:
        raise ValueError("rank_correlation needs two tables with the same labels, once each.")
    varied = a.nunique() > 1 and b.nunique() > 1
    return float(stats.spearmanr(a, b).statistic) if varied else np.nan


def _image_values(table: pd.DataFrame) -> pd.DataFrame:
    """One row an image, sorted by file_name: label, and wrong = its mean error over its rows."""
    rows = _checked(
        table, [c for c in CONDITION_COLUMNS if c in table.columns and table[c].notna().any()]
    )
    images = rows.groupby(["file_name", "label"])["wrong"].agg(["mean", "size"]).reset_index()
    if images["file_name"].duplicated().any() or images["size"].nunique() > 1:
        raise ValueError(
            "an image needs one label and a row in every condition; here some "
            "images have several labels, or fewer rows than others."
        )
    return images.rename(columns={"mean": "wrong"})


def _replicates(labels: np.ndarray, values: np.ndarray, n_resamples: int, seed: int):
    """Replicates, each (n_resamples, m), of: error, mean, noise-corrected variance (signed).

    Images are drawn within their class, the m columns of ``values`` (N, m) together.
    """
    rng, order = np.random.default_rng(seed), np.argsort(labels, kind="stable")
    classes = np.split(values[order], np.flatnonzero(np.diff(labels[order])) + 1)
    errors, means, kept_means, squares, noise = np.zeros((5, n_resamples, values.shape[1]))
    for images in classes:
        distinct, counts = np.unique(images, axis=0, return_counts=True)
        n = len(images)  # images of equal values are interchangeable: draw only their counts
        shares = rng.multinomial(n, counts / n, size=n_resamples) / n
        drawn = shares @ distinct
        errors += n / len(values) * drawn
        means += drawn / len(classes)
        if n >= 2:
            kept_means += drawn
            squares += drawn**2
            noise += (shares @ distinct**2 - drawn**2) / (n - 1)
    k = max(1, sum(len(images) >= 2 for images in classes))
    return errors, means, squares / k - (kept_means / k) ** 2 - (k - 1) / k * noise / k


def summarise(
    table: pd.DataFrame,
    *,
    paired_with: pd.DataFrame | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """`bootstrap` for all `STATISTICS`: columns statistic, value, low, high, n_images."""
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, not {n_resamples}.")
    tables = [_image_values(t) for t in (table, paired_with) if t is not None]
    if paired_with is not None:
        _same_images(*tables)
    sign = np.array([1.0, -1.0][: len(tables)])  # x @ sign: the figure, or first minus second
    classes = [_class_values(images) for images in tables]
    values = pd.DataFrame(
        [
            {"error": images["wrong"].mean(), **_summary(c)}
            for images, c in zip(tables, classes, strict=True)
        ]
    )
    result = pd.DataFrame(
        {
            "statistic": STATISTICS,
            "value": sign @ values[[*STATISTICS]].to_numpy(),
            "low": np.nan,
            "high": np.nan,
            "n_images": len(tables[0]),
        }
    )
    labels, images = tables[0]["label"].to_numpy(), np.column_stack([t["wrong"] for t in tables])
    varied = len(np.unique(np.column_stack([labels, images]), axis=0)) > len(classes[0])
    if not varied or (classes[0]["n_images"] == 1).mean() > 0.05:
        return result  # resampling would show no uncertainty although there is some
    errors, means, variances = _replicates(labels, images, n_resamples, seed)
    # A replicate holds the noise of the data and its own: it lies around the observed variance,
    # not around the corrected one, so its deviations are taken from the former.
    observed, corrected = np.transpose([_corrected_variance(c) for c in classes])
    if paired_with is None:
        deviations = variances[:, 0] - observed[0]
        sd = _root(corrected[0] - np.quantile(deviations, [0.975, 0.025]))
    else:
        deviations = (_root(variances) - _root(observed)) @ sign
        sd = _root(corrected) @ sign - np.quantile(deviations, [0.975, 0.025])
    rows = result["statistic"].isin(["error", "mean", "sd_noise_corrected"])
    result.loc[rows, ["low", "high"]] = [
        *(np.quantile(replicates @ sign, [0.025, 0.975]) for replicates in (errors, means)),
        sd,
    ]
    return result


def bootstrap(
    table: pd.DataFrame,
    statistic: str,
    paired_with: pd.DataFrame | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> BootstrapInterval:
    """A statistic of a table, or statistic(table) - statistic(paired_with), with its 95 % interval.

    ``statistic`` is one of `STATISTICS`: ``"error"`` (over images) or one of `class_summary`.
    Images are resampled within their class: the classes are fixed. In a table of several conditions
    an image counts with its mean error over all its rows, and carries them all.

    * ``error``, ``mean``: percentile intervals (too narrow by 1/(2n) with n images a class).
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
    rows = summarise(table, paired_with=paired_with, n_resamples=n_resamples, seed=seed)
    return BootstrapInterval(*rows.set_index("statistic").loc[statistic, ["value", "low", "high"]])
