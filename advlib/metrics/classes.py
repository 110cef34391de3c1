"""Errors class by class: their summary, changes, confusions, groups and ranks."""

import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy
from scipy.special import ndtri

from advlib.metrics.errors import error
from advlib.metrics.intervals import STATISTICS, class_errors, with_wilson
from advlib.metrics.tables import (
    By,
    Groups,
    as_list,
    averages,
    checked,
    groups_of,
    require,
    same_images,
)


def class_error(table: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """``label``, ``n_images``, ``error`` and 95 % Wilson interval ``low``, ``high`` of a class."""
    return with_wilson(error(table, as_list(by, "label")))


def _summary(classes: pd.DataFrame) -> dict:
    of = class_errors(classes)
    names = [name for name in STATISTICS if name != "error"]  # that one is over images
    return {name: STATISTICS[name].value(of) for name in names} | {
        "worst_class": classes["label"].iloc[classes["error"].argmax()],
        "best": of.errors[-1],
        "n_classes": len(classes),
        "n_images": classes["n_images"].sum(),
    }


def class_summary(table: pd.DataFrame, by: By = None) -> pd.Series | pd.DataFrame:
    """Statistics over the classes' errors p_c, K classes of n_c images, each class counting once.

    The `STATISTICS` without ``error``: ``mean``, ``sd`` (population), ``sd_noise_corrected``,
    ``worst``, ``worst_decile`` (mean of the K // 10 worst classes, at least one), ``gap`` = worst -
    best, ``cv`` = sd / mean, ``sd_normalised`` = sd / sqrt(mean (1 - mean)). Then ``worst_class``
    (the lowest label, if several are), ``best``, ``n_classes`` and ``n_images``.
    ``sd_noise_corrected`` is the population variance less what sampling alone adds,
    (K-1)/K * mean_c[p_c(1-p_c)/(n_c-1)], floor at 0, root, over the classes with n_c >= 2.
    The spread (both SDs, gap, cv, sd_normalised) is nan for a single class and for one image per
    class, cv for no error at all, sd_normalised for a mean of 0 or 1.
    Returns a Series; with ``by``: its columns and these, one row per condition.
    """
    classes = averages(checked(table, by), as_list(by, "label"))
    rows = [{**key, **_summary(group)} for key, group in groups_of(classes, by)]
    return pd.DataFrame(rows) if as_list(by) else pd.Series(rows[0])


def class_changes(table: pd.DataFrame, other: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """Which classes gain or lose from one condition to another, on the same images.

    Returns the columns of ``by``, ``label``, ``error``, ``error_other``, ``difference`` (other -
    table), ``n_changed`` (images right in one of the two alone), ``p_value`` (exact McNemar test),
    ``q_value`` (Benjamini-Hochberg, over the classes of one condition) and ``change``: "gains"
    (lower error in ``other``) or "loses" at a false discovery rate of 5 %, else "no change".
    """
    images = [*(columns := as_list(by)), "file_name", "label"]
    a, b = (averages(checked(t, by), images) for t in (table, other))
    same_images(a, b, columns)
    grouped = a[[*columns, "label", "error"]].assign(
        error_other=b["error"], fixed=a["error"] > b["error"], broken=a["error"] < b["error"]
    )
    grouped = grouped.groupby([*columns, "label"], observed=True)
    result = grouped[["error", "error_other"]].mean().reset_index()
    fixed, broken = grouped[["fixed", "broken"]].sum().to_numpy().T
    result["difference"] = result["error_other"] - result["error"]
    result["n_changed"] = n = fixed + broken
    result["p_value"] = np.minimum(2 * scipy.stats.binom.cdf(np.minimum(fixed, broken), n, 0.5), 1)
    condition = result.groupby(columns or np.zeros(len(result)), observed=True)
    result["q_value"] = condition["p_value"].transform(scipy.stats.false_discovery_control)
    found = result["q_value"] <= 0.05
    result["change"] = np.select(
        [found & (fixed > broken), found & (fixed < broken)], ["gains", "loses"], "no change"
    )
    return result


class UncorrectedChanges(NamedTuple):
    """How many classes have p < 0.05, and how many would by chance."""

    n_raw: int
    expected_by_chance: float
    expected_at_most: float


def uncorrected_changes(changes: pd.DataFrame) -> UncorrectedChanges:
    """Of `class_changes`: ``n_raw`` of the K classes have p < 0.05, before any correction.

    If no class differed, ``expected_by_chance`` of them would (exact, given how many images
    changed), at most ``expected_at_most`` = 0.05 K. The test is discrete, so that chance alone
    rejects in fewer than 5 % of the classes.
    """
    n = changes["n_changed"].to_numpy()
    size = 2 * scipy.stats.binom.cdf(scipy.stats.binom.ppf(0.025, n, 0.5) - 1, n, 0.5)
    n_raw = int((changes["p_value"] < 0.05).sum())
    return UncorrectedChanges(n_raw, float(size.sum()), 0.05 * len(n))


def _shares(counts: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    total = counts.groupby(columns, observed=True)["n_images"].transform("sum")
    return counts.assign(share=counts["n_images"] / total)


def confusion(table: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """The pairs that occur: ``label``, ``predicted_class``, ``n_images``, ``share`` of label."""
    columns = as_list(by, "label", "predicted_class")
    pairs = averages(checked(table, by), columns)[[*columns, "n_images"]]
    return _shares(pairs, columns[:-1])


def _grouped(table: pd.DataFrame, groups, by: By, *classes: str) -> pd.DataFrame:
    """`_averages` by the columns ``classes``, with the column ``group`` (and predicted_group)."""
    cells, groups = averages(checked(table, by), as_list(by, *classes)), pd.Series(groups)
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
    grouped = classes.groupby(as_list(by, "group"), observed=True)
    result = grouped[["n_images", "wrong"]].sum()
    result.insert(0, "n_classes", grouped.size())
    result["error"] = result.pop("wrong") / result["n_images"]
    result["mean"] = grouped["error"].mean()
    spread = (result["n_classes"] > 1) & (grouped["n_images"].max() > 1)
    result["sd"] = grouped["error"].std(ddof=0).where(spread)
    return with_wilson(result.reset_index())


def group_confusion(table: pd.DataFrame, groups: Groups, by: By = None) -> pd.DataFrame:
    """The pairs that occur: ``group``, ``predicted_group``, ``n_images``, ``share`` of group.

    ``groups``: label -> group, for every class that is a label or predicted. The images of a group
    that stay within it are right or not: `confusion_kinds`.
    """
    columns = as_list(by, "group", "predicted_group")
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
    counts = pairs.assign(**kinds).groupby(as_list(by, "group"), observed=True)[[*kinds]].sum()
    shares, sizes = counts.div(counts.sum(axis=1), axis=0), pd.Series(groups).value_counts()
    within = (counts.index.get_level_values("group").map(sizes) - 1) / (sizes.sum() - 1)
    expected = shares.assign(within=within, across=1 - within)
    expected[["within", "across"]] = expected[["within", "across"]].mul(1 - shares["right"], axis=0)
    parts = {"n_images": counts.round().astype(int), "share": shares, "expected": expected}
    stacked = {name: part.rename_axis(columns="kind").stack() for name, part in parts.items()}
    return pd.DataFrame(stacked).reset_index()


def rank_correlation(class_error_a: pd.DataFrame, class_error_b: pd.DataFrame) -> float:
    """Spearman's correlation of two `class_error` tables, matched by label; nan if one is constant.

    Errors that agree to ten digits tie. ValueError unless both hold the same labels, once each.
    """
    a, b = (t.set_index("label").error.round(10) for t in (class_error_a, class_error_b))
    a, b = a.sort_index(), b.sort_index()
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
    drawn from many. The noise of few images per class is not in them. Where both orders come from
    the same images, the noise that they share pushes rho up; the rest pulls it towards 0.
    """
    require(class_errors, [condition, "label", "error"], "the table of class errors")
    parts, found = dict(list(class_errors.groupby(condition, observed=True))), {}
    for a, b in itertools.combinations(parts, 2):
        rho, k, ends = rank_correlation(parts[a], parts[b]), len(parts[a]), [np.nan, np.nan]
        if k > 3 and abs(rho) < 1 - 1e-12:
            half = ndtri(0.975) * np.sqrt((1 + rho**2 / 2) / (k - 3))
            ends = np.tanh(np.arctanh(rho) + [-half, half])
        found[a, b] = found[b, a] = rho, *ends
    rows = [(*pair, *found[pair]) for pair in itertools.permutations(parts, 2)]
    return pd.DataFrame(rows, columns=["condition_a", "condition_b", "value", "low", "high"])
