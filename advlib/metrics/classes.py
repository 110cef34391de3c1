"""Errors class by class: their summary, changes, confusions, groups and ranks."""

import itertools

import numpy as np
import pandas as pd
import scipy
from scipy.special import ndtri

from advlib.metrics.errors import error
from advlib.metrics.intervals import STATISTICS, class_errors, with_wilson
from advlib.metrics.tables import By, Groups, as_list, averages, checked, require, same_images


def class_error(table: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """``label``, ``n_images``, ``error`` and 95 % Wilson interval ``low``, ``high`` of a class."""
    return with_wilson(error(table, as_list(by, "label")))


def class_summary(table: pd.DataFrame) -> pd.Series:
    """Statistics over the classes' errors p_c, K classes of n_c images, each class counting once.

    The `STATISTICS` without ``error``: ``mean``, ``sd`` (population), ``sd_noise_corrected``,
    ``worst``, ``worst_decile`` (mean of the K // 10 worst classes, at least one), ``gap`` = worst -
    best, ``cv`` = sd / mean, ``sd_normalised`` = sd / sqrt(mean (1 - mean)). Then ``worst_class``
    (the lowest label, if several are), ``best``, ``n_classes`` and ``n_images``.
    ``sd_noise_corrected`` is the population variance less what sampling alone adds,
    (K-1)/K * mean_c[p_c(1-p_c)/(n_c-1)], floor at 0, root, over the classes with n_c >= 2.
    The spread (both SDs, gap, cv, sd_normalised) is nan for a single class and for one image per
    class, cv for no error at all, sd_normalised for a mean of 0 or 1.
    """
    classes = averages(checked(table), ["label"])
    of = class_errors(classes)
    names = [name for name in STATISTICS if name != "error"]  # that one is over images
    found = {name: STATISTICS[name].value(of) for name in names}
    found["worst_class"] = classes["label"].iloc[classes["error"].argmax()]
    sizes = {"n_classes": len(classes), "n_images": classes["n_images"].sum()}
    return pd.Series(found | {"best": of.errors[-1]} | sizes)


def class_changes(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Which classes gain or lose from one table to another of the same images.

    Returns ``label``, ``error``, ``error_other``, ``difference`` (other - table), ``n_changed``
    (images right in one of the two alone), ``p_value`` (exact McNemar test), ``q_value``
    (Benjamini-Hochberg, over the classes) and ``change``: "gains" (lower error in ``other``) or
    "loses" at a false discovery rate of 5 %, else "no change".
    """
    a, b = (averages(checked(t), ["file_name", "label"]) for t in (table, other))
    same_images(a, b)
    changes = {"fixed": a["error"] > b["error"], "broken": a["error"] < b["error"]}
    grouped = a[["label", "error"]].assign(error_other=b["error"], **changes).groupby("label")
    result = grouped[["error", "error_other"]].mean().reset_index()
    fixed, broken = grouped[["fixed", "broken"]].sum().to_numpy().T
    result["difference"] = result["error_other"] - result["error"]
    result["n_changed"] = n = fixed + broken
    result["p_value"] = np.minimum(2 * scipy.stats.binom.cdf(np.minimum(fixed, broken), n, 0.5), 1)
    result["q_value"] = scipy.stats.false_discovery_control(result["p_value"])
    direction = np.select([fixed > broken, fixed < broken], ["gains", "loses"], "no change")
    result["change"] = np.where(result["q_value"] <= 0.05, direction, "no change")
    return result


def confusion(table: pd.DataFrame, by: By = None) -> pd.DataFrame:
    """The pairs that occur: ``label``, ``predicted_class``, ``n_images``, ``share`` of label."""
    columns = as_list(by, "label", "predicted_class")
    pairs = averages(checked(table, by), columns)[[*columns, "n_images"]]
    total = pairs.groupby(columns[:-1], observed=True)["n_images"].transform("sum")
    return pairs.assign(share=pairs["n_images"] / total)


def _grouped(table: pd.DataFrame, groups: Groups, *classes: str) -> pd.DataFrame:
    """`averages` by the columns ``classes``, with the column ``group`` (and predicted_group)."""
    cells, groups = averages(checked(table), classes), pd.Series(groups)
    for column, name in zip(classes, ("group", "predicted_group"), strict=False):
        cells[name] = cells[column].map(groups)
        if absent := sorted(set(cells.loc[cells[name].isna(), column])):
            raise ValueError(
                f"groups must name a group for every {column}: it lacks {len(absent)} classes, "
                f"such as {absent[:5]}."
            )
    return cells


def group_error(table: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """Errors of groups of classes. ``groups``: label -> group, for every class.

    Returns ``group``, ``n_classes``, ``n_images``, ``error`` (over images), ``mean`` and ``sd``
    over its classes (population; nan as in `class_summary`), and the 95 % Wilson interval ``low``,
    ``high`` of the error.
    """
    classes = _grouped(table, groups, "label")
    classes["wrong"] = classes["error"] * classes["n_images"]
    grouped = classes.groupby("group", observed=True)
    result = grouped[["n_images", "wrong"]].sum()
    result.insert(0, "n_classes", grouped.size())
    result["error"] = result.pop("wrong") / result["n_images"]
    result["mean"] = grouped["error"].mean()
    spread = (result["n_classes"] > 1) & (grouped["n_images"].max() > 1)
    result["sd"] = grouped["error"].std(ddof=0).where(spread)
    return with_wilson(result.reset_index())


def confusion_kinds(table: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """How each group's images are judged: right, wrong within the group, wrong across groups.

    ``groups``: label -> group, for all classes. Returns ``group``, ``kind`` ("right", "within",
    "across"), ``n_images`` and ``share`` of the group's images.
    """
    pairs = _grouped(table, groups, "label", "predicted_class")
    wrong, same = pairs["n_images"] * pairs["error"], pairs["group"] == pairs["predicted_group"]
    kinds = {"right": pairs["n_images"] - wrong, "within": wrong * same, "across": wrong * ~same}
    counts = pairs.assign(**kinds).groupby("group", observed=True)[[*kinds]].sum()
    shares = counts.div(counts.sum(axis=1), axis=0)
    parts = {"n_images": counts.round().astype(int), "share": shares}
    stacked = {name: part.rename_axis(columns="kind").stack() for name, part in parts.items()}
    return pd.DataFrame(stacked).reset_index()


def class_rank_correlation(class_errors: pd.DataFrame, condition: str) -> pd.DataFrame:
    """Spearman's correlation of the class errors under any two conditions: are the same ones hard?

    ``class_errors``: ``label``, ``error`` and a column ``condition``, such as "benchmark". Errors
    that agree to ten digits tie. Returns ``condition_a``, ``condition_b`` (each pair in both
    orders), ``value`` (nan if one is constant), ``low``, ``high``: 95 % intervals by Fisher's
    transformation, variance (1 + rho^2 / 2) / (K - 3) (Bonett & Wright, 2000), nan for K < 4
    classes or rho = 1 or -1. Unlike all others they are over *classes*, as if drawn from many. The
    noise of few images per class is not in them. Where both orders come from the same images, the
    noise that they share pushes rho up; the rest pulls it towards 0. ValueError unless all
    conditions hold the same labels, once each.
    """
    require(class_errors, [condition, "label", "error"], "the table of class errors")
    errors, found = {}, {}
    for name, part in class_errors.groupby(condition, observed=True):
        errors[name] = part.set_index("label")["error"].round(10).sort_index()
    for a, b in itertools.combinations(errors, 2):
        one, other = errors[a], errors[b]
        if not one.index.equals(other.index) or one.index.has_duplicates:
            raise ValueError(
                "ranks are compared where both tables have the same labels, once each."
            )
        varied = one.nunique() > 1 and other.nunique() > 1
        rho = scipy.stats.spearmanr(one, other).statistic if varied else np.nan
        k, ends = len(one), [np.nan, np.nan]
        if k > 3 and abs(rho) < 1 - 1e-12:
            half = ndtri(0.975) * np.sqrt((1 + rho**2 / 2) / (k - 3))
            ends = np.tanh(np.arctanh(rho) + [-half, half])
        found[a, b] = found[b, a] = rho, *ends
    rows = [(*pair, *found[pair]) for pair in itertools.permutations(errors, 2)]
    return pd.DataFrame(rows, columns=["condition_a", "condition_b", "value", "low", "high"])
