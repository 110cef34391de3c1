"""The result tables of a study: every figure that pages show, from its prediction tables.

Each function returns rows as `advbook.studies.tables.write_results` takes them. A difference of two
methods is paired on the same images, and its group is "less <method>".
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from advbook.studies.views import group_of
from advlib import metrics
from advlib.data import annotations

KEYS = ["benchmark", "method", "seed"]
LABELS = {"real": "drop", "real_counted": "error"}  # ReaL's benchmarks: what no label means
Tables = Mapping[tuple[str, str, int], pd.DataFrame]  # by benchmark, method and seed
Shared = Mapping[str, metrics.SharedImages]  # by benchmark: what `together` makes of the tables


def with_real(study, tables: Tables) -> dict:
    """The tables and, for ImageNet's validation images, the clean ones judged by ReaL's labels."""
    if "evaluate_real" in study.unavailable:
        return dict(tables)
    sets = annotations.real_label_sets()
    judged = {
        (benchmark, method, seed): metrics.multilabel_table(table, sets, unlabelled)
        for (name, method, seed), table in tables.items()
        for benchmark, unlabelled in LABELS.items()
        if name == "clean"
    }
    return {**tables, **judged}


def together(tables: Tables) -> dict:
    """By benchmark, the images that the tables of all networks share; each named (method, seed)."""
    by_benchmark = {}
    for (benchmark, *network), table in tables.items():
        by_benchmark.setdefault(benchmark, {})[tuple(network)] = table
    return {benchmark: metrics.together(found) for benchmark, found in by_benchmark.items()}


def sides(study, after: str, before: str = "") -> list[list]:
    """The networks of two methods, of one alone without ``before``, as `together` names them."""
    return [[(m, seed) for seed in study.seeds if m] for m in (after, before)]


def errors(study, shared: Shared) -> pd.DataFrame:
    """Mean errors of all networks, the mCE among them."""
    rows = []
    for benchmark, images in shared.items():
        for network in images.names:
            found = metrics.bootstrap(images.of([network]), "error", n_resamples=study.n_resamples)
            rows.append((benchmark, *network, *found, len(images.images)))
    rows = pd.DataFrame(rows, columns=[*KEYS, "value", "low", "high", "n_images"])
    return rows.assign(group="all", statistic="error")


def differences(study, shared: Shared) -> pd.DataFrame:
    """Paired differences of mean errors, the mean over the seeds: of these networks, other images.

    Returns benchmark, before, after, value, low, high, n_images.
    """
    rows = []
    for benchmark, images in shared.items():
        for before, after in study.pairs:
            figure = images.of(*sides(study, after, before))
            found = metrics.bootstrap(figure, "error", n_resamples=study.n_resamples)
            rows.append((benchmark, before, after, *found, len(figure.images)))
    columns = ["benchmark", "before", "after", "value", "low", "high", "n_images"]
    return pd.DataFrame(rows, columns=columns)


def classes(study, tables: Tables, shared: Shared, class_names: list[str]) -> pd.DataFrame:
    """Statistics of the class errors, and the error of each class, of all networks."""
    parts = []
    for benchmark, *network in tables:
        figure = shared[benchmark].of([tuple(network)])
        found = metrics.summarise(figure, n_resamples=study.n_resamples)
        parts.append(_keyed(found, (benchmark, *network), group="all classes"))
    for key, table in tables.items():
        corrupted = key[0] == "corruptions"
        found = corruption_class_error(table) if corrupted else metrics.class_error(table)
        found = found.assign(statistic="error", value=found.error)
        parts.append(_keyed(found, key, group=found.label.map(class_names.__getitem__)))
    return pd.concat(parts, ignore_index=True)


def _keyed(rows: pd.DataFrame, key: tuple, **more) -> pd.DataFrame:
    return rows.assign(**dict(zip(KEYS, key, strict=True)), **more)


def corruption_class_error(table: pd.DataFrame) -> pd.DataFrame:
    """Error of each class over all corrupted conditions, with its interval over images.

    From a prediction table with columns corruption and severity, the same images in each condition,
    to label, n_images, error, low, high. An image counts with its mean over the conditions, and the
    interval is Student's over these means: the rows of one image are not independent, so Wilson's
    would be too narrow. It is missing where all images fare alike.
    """
    wrong = 1.0 - metrics.correct(table).astype(float)
    images = wrong.groupby([table.label, table.file_name]).mean()
    found = images.groupby("label").agg(["count", "mean", "std"]).reset_index()
    found.columns = ["label", "n_images", "error", "sd"]
    half = stdtrit(found.n_images - 1, 0.975) * found.pop("sd") / np.sqrt(found.n_images)
    half = half.where(half > 0)
    low, high = (found.error - half).clip(lower=0), (found.error + half).clip(upper=1)
    return found.assign(low=low, high=high)


def strong(study, found: pd.DataFrame, class_names: list[str]) -> pd.DataFrame:
    """As `classes`, under PGD-40 and under AutoAttack on a draw, which a column condition tells.

    ``found`` is what `advbook.studies.tables.read_audit` reads of "autoattack".
    """
    parts = []
    for network, drawn in found.groupby(["method", "seed"], sort=False):
        left = drawn.broken_by.where(drawn.broken_by == "cheap", "")
        alone = drawn.assign(broken_by=left, drawn=True)
        for condition, table in {"pgd40": alone, "autoattack": drawn}.items():
            _, each, of_all = metrics.two_phase(table, n_resamples=study.n_resamples)
            each = each.assign(statistic="error", value=each.error)
            each["group"] = each.label.map(class_names.__getitem__)
            of_all = of_all.assign(group="all classes", n_images=len(table))
            rows = pd.concat([of_all, each])
            parts.append(_keyed(rows, ("autoattack", *network), condition=condition))
    return pd.concat(parts, ignore_index=True)


def confusions(tables: Tables, class_names: list[str]) -> pd.DataFrame:
    """Of each class's images, the share that is taken for each class: no result table's columns."""
    parts = [_keyed(metrics.confusion(t), k) for k, t in tables.items() if k[0] != "corruptions"]
    found = pd.concat(parts, ignore_index=True)
    names = {"class_name": "label", "predicted_name": "predicted_class"}
    return found.assign(**{k: found[v].map(class_names.__getitem__) for k, v in names.items()})


def corruptions(study, tables: Tables, shared: Shared) -> pd.DataFrame:
    """Errors by corruption and severity, and their mean, the mCE, with its interval."""
    parts, how = [], {"n_resamples": study.n_resamples}
    for key, table in tables.items():
        if key[0] != "corruptions":
            continue
        cells = metrics.error(table, ["corruption", "severity"]).astype({"corruption": str})
        if cells.corruption.isin(metrics.CORRUPTIONS).sum() != 5 * len(metrics.CORRUPTIONS):
            metrics.mean_corruption_error(table)  # raises an error that names what is missing
        condition = cells.corruption + " " + cells.severity.astype(str)
        cells = cells.assign(statistic="error", value=cells.error, condition=condition)
        found = metrics.bootstrap(shared["corruptions"].of([key[1:]]), "error", **how)
        found = pd.DataFrame([found]).assign(statistic="mean_corruption_error")
        parts.append(_keyed(found, key, condition="mean over 75 conditions"))
        parts.append(_keyed(cells, key))
    return pd.concat(parts, ignore_index=True).assign(group="all")


def corrupted_classes(tables: Tables) -> pd.DataFrame:
    """Error of each class by corruption, the mean of five severities: for the class explorer.

    Returns method, corruption, label, error.
    """
    parts = []
    for (benchmark, method, _), table in tables.items():
        if benchmark == "corruptions":
            cells = metrics.class_error(table, ["corruption", "severity"])
            cells = cells.assign(method=method)
            parts.append(
                cells.groupby(["method", "corruption", "label"], observed=True).error.mean()
            )
    return pd.concat(parts).round(6).reset_index()


def factors(tables: Tables, annotated: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Errors and error ratios by factor of variation, of the clean images, seed by seed.

    ``annotated`` says which factor each image has, as `advlib.metrics.factor_summary` takes it, and
    ``kind`` what these annotations are, for the column condition.
    """
    parts = []
    for key, table in tables.items():
        if key[0] == "clean":
            errors = metrics.factor_error(table, annotated)
            ratios = metrics.error_ratio(table, annotated).rename(columns={"error_ratio": "value"})
            ratios = ratios.merge(errors[["factor", "n_images"]], on="factor")
            errors = errors.assign(statistic="error", value=errors.error)
            parts += [_keyed(t, key) for t in (errors, ratios.assign(statistic="error_ratio"))]
    rows = pd.concat(parts, ignore_index=True)
    return rows.assign(group=rows.factor, condition=kind, low=np.nan, high=np.nan)


def factor_ratios(study, shared: Shared, annotated: pd.DataFrame) -> pd.DataFrame:
    """Error ratios over all seeds, with intervals over images, and their paired differences.

    Returns before (empty for the ratio itself), method, factor, value, low, high, n_images.
    """
    pairs = [*(("", method) for method in study.methods), *study.pairs]
    asked = [sides(study, after, before) for before, after in pairs]
    found = metrics.factor_summary(shared["clean"], annotated, asked, n_resamples=study.n_resamples)
    parts = [one.assign(before=b, method=a) for one, (b, a) in zip(found, pairs, strict=True)]
    columns = {"error_ratio": "value", "ratio_low": "low", "ratio_high": "high"}
    rows = pd.concat(parts).drop(columns=["error", "low", "high"]).rename(columns=columns)
    return rows[["before", "method", "factor", *columns.values(), "n_images"]]


def groups(study, tables: Tables, class_names: list[str]) -> pd.DataFrame:
    """Errors of groups of classes."""
    of = group_of(study, class_names) or annotations.imagenet_metaclasses().to_dict()
    parts = []
    for key, table in tables.items():
        if key[0] == "corruptions":
            continue
        found = metrics.group_error(table, of)
        parts.append(_keyed(found, key, statistic="error", value=found.error))
    return pd.concat(parts, ignore_index=True)


def top_confusions(table: pd.DataFrame) -> pd.DataFrame:
    """What each class is taken for, and what is taken for it: the largest shares of any method.

    From prediction tables with columns benchmark and method to benchmark, direction ("out": its
    images are taken for other; "in": images of other are taken for it), label, other, place (0 to
    5, the same for all methods), and one column a method with the share of the images of the true
    class.
    """
    pairs = metrics.confusion(table, ["benchmark", "method"])
    pairs = pairs[pairs.label != pairs.predicted_class]
    keys, methods = ["benchmark", "label", "predicted_class"], list(table.method.unique())
    wide = pairs.pivot(index=keys, columns="method", values="share")
    wide = wide.reindex(columns=methods).fillna(0.0).reset_index()
    out = wide.rename(columns={"predicted_class": "other"})
    into = wide.rename(columns={"predicted_class": "label", "label": "other"})
    both = pd.concat([out.assign(direction="out"), into.assign(direction="in")], ignore_index=True)
    both["largest"], own = both[methods].max(axis=1), ["benchmark", "direction", "label"]
    both = both.sort_values([*own, "largest", "other"], ascending=[True] * 3 + [False, True])
    both["place"] = both.groupby(own).cumcount()
    return both[both.place < 6][[*own, "other", "place", *methods]].reset_index(drop=True)
