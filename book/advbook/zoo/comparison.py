"""Methods side by side: their averages and worst classes, and what each changes of its base."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.special import ndtr

from advlib import metrics

N_DRAWS = 10_000  # of the classes' errors, for the chance that a class is the worst


def bases_of(study) -> dict[str, str]:
    """Each method and ablation of a study that builds on another one that it has -> that one."""
    methods = {name: name for name in study.methods if name in study.recipes}
    methods |= {name: changes["method"] for name, changes in study.ablations.items()}
    bases = {run: study.recipes[method].base for run, method in methods.items()}
    return {run: base for run, base in bases.items() if base in methods}


def compare(
    tables: Mapping[tuple[str, int], pd.DataFrame],
    bases: Mapping[str, str],
    *,
    n_resamples: int = 10_000,
) -> pd.DataFrame:
    """Figures of many runs on the same images, and their paired differences from their bases.

    The prediction tables, under one condition, are by run and training seed; ``bases`` says with
    which run each is compared, seed by seed; those without one are left out of it.

    Returns one row per run, indexed by it; fractions in [0, 1], means over its ``n_seeds`` seeds.
    ``error``, ``worst``, ``worst_class`` (by the mean errors), ``p_worst`` (how often it is a
    seed's worst when the class errors are drawn anew), ``sd`` (noise-corrected). ``error`` and
    ``sd`` also with ``_low`` and ``_high``; ``error`` and ``worst`` with ``_min`` and ``_max``, of
    the seeds, and ``_base``, of the base with the same seeds. Of the differences from it:
    ``d_error``, ``d_sd`` and ``d_hardest`` (of the error of the class that is hardest for the base,
    chosen once, by all its seeds), with ends of the 95 % interval over images, for these networks,
    and ``_between``, their SD between the seeds; and ``p_error``, ``p_hardest``: two-sided, by the
    normal approximation for paired images, and by Holm's step-down over all runs. Missing for a run
    without a base.

    Raises ValueError if tables differ in their images.
    """
    seeds = {run: [number for name, number in tables if name == run] for run, _ in tables}
    shared, how = metrics.together(tables), {"n_resamples": n_resamples}
    wrong = pd.DataFrame(shared.wrong, columns=pd.MultiIndex.from_tuples(shared.names))
    classes = wrong.groupby(shared.labels).mean()
    spread = {key: metrics.class_summary(table).sd_noise_corrected for key, table in tables.items()}
    each = pd.DataFrame({"error": wrong.mean(), "worst": classes.max(), "sd": spread})
    rows = {}
    for run, numbers in seeds.items():
        own, after = each.loc[run], [(run, number) for number in numbers]
        row = {"worst": own.worst.mean()} | _worst(classes[run], shared.labels)
        row |= _ends("error", shared.of(after), how)
        row |= _ends("sd_noise_corrected", shared.of(after), how) | {"n_seeds": len(numbers)}
        for end in ("min", "max"):
            row |= own[["error", "worst"]].agg(end).add_suffix(f"_{end}").to_dict()
        if base := bases.get(run):
            before = each.loc[base].loc[numbers]
            both = shared.of(after, [(base, number) for number in numbers])
            found = _ends("sd_noise_corrected", both, how)
            row |= {f"d_{key}": value for key, value in found.items()}
            row |= {"d_sd_between": (own.sd - before.sd).std(), "base": base}
            row |= before[["error", "worst"]].mean().add_suffix("_base").to_dict()
            hardest = both.labels == classes[base].mean(axis=1).idxmax()
            row |= _paired("error", both.wrong, both.labels)
            row |= _paired("hardest", both.wrong[hardest], both.labels[hardest])
        rows[run] = row
    found = pd.DataFrame.from_dict(rows, orient="index")
    found = found.rename(columns=lambda name: name.replace("sd_noise_corrected", "sd"))
    for column in found.columns.intersection(["p_error", "p_hardest"]):
        found[column] = holm(found[column])
    return found


def sure(found: pd.DataFrame, name: str) -> pd.Series:
    """Whether ``d_<name>`` of `compare` is more than chance: p < 0.05 and, with several seeds, zero
    lies outside the 95 % interval over these too."""
    low, high = metrics.t_interval(found[f"d_{name}"], found[f"d_{name}_between"], found.n_seeds)
    return (found[f"p_{name}"] < 0.05) & ((found.n_seeds == 1) | (low > 0) | (high < 0))


def holm(p: pd.Series) -> pd.Series:
    """Holm's step-down adjustment (1979) of p-values; missing ones stay so and do not count."""
    ordered = p.dropna().sort_values()
    steps = ordered * np.arange(len(ordered), 0, -1)
    return steps.cummax().clip(upper=1).reindex(p.index)


def _worst(classes: pd.DataFrame, labels: np.ndarray) -> dict:
    """The worst class and how sure it is: each class's number of errors is drawn anew."""
    worst = classes.mean(axis=1).idxmax()
    sizes, rng = np.unique(labels, return_counts=True)[1], np.random.default_rng(0)
    drawn = [rng.binomial(sizes, classes[number], (N_DRAWS, len(sizes))) for number in classes]
    shares = [(classes.index[(one / sizes).argmax(1)] == worst).mean() for one in drawn]
    return {"worst_class": worst, "p_worst": np.mean(shares)}


def _ends(name: str, images: metrics.SharedImages, how) -> dict:
    found = metrics.bootstrap(images, name, **how)
    return {name: found[0], f"{name}_low": found[1], f"{name}_high": found[2]}


def _paired(name: str, wrong: np.ndarray, labels: np.ndarray) -> dict:
    """The mean difference of paired images, its 95 % interval and two-sided p-value.

    ``wrong`` (N, 2 n): of n seeds of the run, then of its base.
    """
    each = np.subtract(*np.split(wrong, 2, axis=1))
    apart = pd.Series(each.mean(1))
    # Images vary within their class, the classes are fixed.
    groups = apart.groupby(labels)
    se = np.sqrt((groups.var(ddof=1) * groups.size()).sum()) / len(apart)
    mean = apart.mean()
    p = 2 * ndtr(-abs(mean) / se) if se > 0 else 1.0
    ends = {f"d_{name}_low": mean - 1.96 * se, f"d_{name}_high": mean + 1.96 * se}
    ends |= {f"d_{name}_between": pd.Series(each.mean(0)).std()}
    return {f"d_{name}": mean, **ends, f"p_{name}": p}
