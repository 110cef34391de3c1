"""Methods side by side: their averages and worst classes, and what each changes of its base."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.special import ndtr

from advlib import metrics
from advlib.metrics.tables import correct

N_DRAWS = 10_000  # of the classes' errors, for the chance that a class is the worst


def bases_of(study) -> dict[str, str]:
    """Each method and ablation of a study that builds on another one that it has -> that one."""
    methods = {name: name for name in study.methods if name in study.recipes}
    methods |= {name: changes["method"] for name, changes in study.ablations.items()}
    bases = {run: study.recipes[method].base for run, method in methods.items()}
    return {run: base for run, base in bases.items() if base in methods}


def compare(
    tables: Mapping[str, pd.DataFrame],
    bases: Mapping[str, str],
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Figures of many runs on the same images, and their paired differences from their bases.

    Parameters
    ----------
    tables : mapping of str to DataFrame
        Run -> its prediction table under one condition.
    bases : mapping of str to str
        Run -> the run that it is compared with; those without one are left out of it.
    n_resamples, seed : int
        Of the bootstrap of the SD.

    Returns
    -------
    DataFrame
        One row per run, indexed by it; fractions in [0, 1]. ``error``, ``worst``, ``worst_class``,
        ``p_worst`` (how often it is the worst when the class errors are drawn anew), ``sd``
        (noise-corrected); each of ``error`` and ``sd`` with ``_low`` and ``_high``. Of the
        differences from the base: ``d_error``, ``d_sd`` and ``d_hardest`` (of the error of the
        class that is hardest for the base, chosen once), with ends of the 95 % interval, and
        ``p_error``, ``p_hardest``: two-sided, by the normal approximation for paired images, and
        by Holm's step-down over all runs. Missing for a run without a base.

    Raises
    ------
    ValueError
        If a base is not among the runs, or tables differ in their images.
    """
    if missing := sorted(set(bases.values()) - set(tables)):
        raise ValueError(f"the base {missing[0]} is not among the runs: {', '.join(tables)}")
    how = {"n_resamples": n_resamples, "seed": seed}
    classes = {run: metrics.class_error(table).set_index("label") for run, table in tables.items()}
    rows = {}
    for run, table in tables.items():
        row = _own(classes[run], seed) | _ends("error", table, None, how)
        row |= _ends("sd_noise_corrected", table, None, how)
        if base := bases.get(run):
            found = _ends("sd_noise_corrected", table, tables[base], how)
            row |= {f"d_{key}": value for key, value in found.items()}
            hardest = classes[base].error.idxmax()
            row |= _paired("error", table, tables[base]) | {"base": base}
            parts = [t[t.label == hardest] for t in (table, tables[base])]
            row |= _paired("hardest", *parts)
        rows[run] = row
    found = pd.DataFrame.from_dict(rows, orient="index")
    found = found.rename(columns=lambda name: name.replace("sd_noise_corrected", "sd"))
    for column in found.columns.intersection(["p_error", "p_hardest"]):
        found[column] = holm(found[column])
    return found


def holm(p: pd.Series) -> pd.Series:
    """Holm's step-down adjustment (1979) of p-values; missing ones stay so and do not count."""
    ordered = p.dropna().sort_values()
    steps = ordered * np.arange(len(ordered), 0, -1)
    return steps.cummax().clip(upper=1).reindex(p.index)


def _own(classes: pd.DataFrame, seed: int) -> dict:
    """The worst class and how sure it is: each class's number of errors is drawn anew."""
    worst = classes.error.idxmax()
    sizes = classes.n_images.to_numpy()
    drawn = np.random.default_rng(seed).binomial(sizes, classes.error, (N_DRAWS, len(classes)))
    share = (classes.index[(drawn / sizes).argmax(1)] == worst).mean()
    return {"worst": classes.error.max(), "worst_class": worst, "p_worst": share}


def _ends(name: str, table, base, how) -> dict:
    found = metrics.bootstrap(table, name, paired_with=base, **how)
    return {name: found[0], f"{name}_low": found[1], f"{name}_high": found[2]}


def _paired(name: str, table: pd.DataFrame, base: pd.DataFrame) -> dict:
    """The mean difference of paired images, its 95 % interval and two-sided p-value."""
    table, base = (t.assign(wrong=~correct(t)) for t in (table, base))
    pairs = table.merge(base, on="file_name", suffixes=("", "_base"))
    apart = pairs.wrong.astype(float) - pairs.wrong_base
    # Images vary within their class, the classes are fixed.
    groups = apart.groupby(pairs.label)
    se = np.sqrt((groups.var(ddof=1) * groups.size()).sum()) / len(apart)
    mean = apart.mean()
    p = 2 * ndtr(-abs(mean) / se) if se > 0 else 1.0
    ends = {f"d_{name}_low": mean - 1.96 * se, f"d_{name}_high": mean + 1.96 * se}
    return {f"d_{name}": mean, **ends, f"p_{name}": p}
