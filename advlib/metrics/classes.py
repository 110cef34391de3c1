"""Errors class by class: their summary, changes, confusions and groups."""

import numpy as np
import pandas as pd
import scipy

from advlib.metrics.errors import error
from advlib.metrics.intervals import STATISTICS, class_errors, with_wilson
from advlib.metrics.tables import By, Groups, as_list, averages, checked, same_images


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


def group_error(table: pd.DataFrame, groups: Groups) -> pd.DataFrame:
    """Errors of groups of classes. ``groups``: label -> group, for every class.

    Returns ``group``, ``n_classes``, ``n_images``, ``error`` (over images), ``mean`` and ``sd``
    over its classes (population; nan as in `class_summary`), and the 95 % Wilson interval ``low``,
    ``high`` of the error.
    """
    classes = averages(checked(table), ["label"])
    classes["group"] = classes["label"].map(pd.Series(groups))
    if absent := classes.loc[classes["group"].isna(), "label"].tolist():
        raise ValueError(
            f"groups must name a group for every label: it lacks {len(absent)} classes, such as "
            f"{absent[:5]}."
        )
    classes["wrong"] = classes["error"] * classes["n_images"]
    grouped = classes.groupby("group", observed=True)
    result = grouped[["n_images", "wrong"]].sum()
    result.insert(0, "n_classes", grouped.size())
    result["error"] = result.pop("wrong") / result["n_images"]
    result["mean"] = grouped["error"].mean()
    spread = (result["n_classes"] > 1) & (grouped["n_images"].max() > 1)
    result["sd"] = grouped["error"].std(ddof=0).where(spread)
    return with_wilson(result.reset_index())
