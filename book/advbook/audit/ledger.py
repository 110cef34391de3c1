"""The ambiguity ledger: each switch of the threat model that the paper leaves open, run one by one.

The switches are data (`advbook.studies.switches`). Here is what is made of their predictions, which
`advbook.studies.tables.read_audit` reads as one table of one seed.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from advbook.studies.places import ROOT
from advbook.studies.schema import Study
from advbook.studies.switches import LEDGER
from advlib import metrics

CLEAN = "clean"
"""The condition of the images that are not attacked, beside the switches in every table."""

GAPS = (  # what it is called, which iterate counts, the attack, and the weaker one
    ("masking", "any", "default", "all_logits"),
    ("masking", "last", "last", "last_all_logits"),
    ("label", "any", "default", "predicted"),
    ("label", "last", "last", "last_predicted"),
)


def switch_errors(table: pd.DataFrame, *, n_resamples: int = 10_000) -> pd.DataFrame:
    """Error under each switch and its paired difference from the default, with 95 % intervals.

    Returns method, attack, value, low, high; change, change_low, change_high (missing for the clean
    images). nan: no interval, as in `advlib.metrics.bootstrap`.
    """
    rows = []
    for method, part in _resampled(table).groupby("method", sort=False, observed=True):
        images = metrics.together(dict(list(part.groupby("attack", observed=True))))
        for attack in [name for name in (CLEAN, *LEDGER) if name in images.names]:
            change = (np.nan,) * 3
            if attack != CLEAN:
                change = _error(images.of([attack], ["default"]), n_resamples)
            rows.append((method, attack, *_error(images.of([attack]), n_resamples), *change))
    columns = ["method", "attack", "value", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "change", "change_low", "change_high"])


def gaps(table: pd.DataFrame, *, n_resamples: int = 10_000) -> pd.DataFrame:
    """What a weaker reading of the attack hides of the error, in paired differences.

    The masking gap is the error under an attack on the class logits less that under one on all
    logits; the label gap the error when the attack leaves the true label less that when it leaves
    the predicted one. Above zero, the weaker attack makes a model look more robust.

    Returns method, gap ("masking", "label"), success ("any", "last"), value, low, high. There is no
    masking gap without transformation logits, and for ablations none by the last iterate.
    """
    rows = []
    for method, part in _resampled(table).groupby("method", sort=False, observed=True):
        by_attack = dict(list(part.groupby("attack", observed=True)))
        for gap, success, strong, weak in GAPS:
            if strong in by_attack and weak in by_attack:
                change = _error(by_attack[strong], n_resamples, by_attack[weak])
                rows.append((method, gap, success, *change))
    return pd.DataFrame(rows, columns=["method", "gap", "success", "value", "low", "high"])


def pair_changes(
    table: pd.DataFrame, same: Mapping, before: str, after: str, *, n_resamples: int
) -> pd.DataFrame:
    """How much one method errs more than another under each switch, paired, with 95 % intervals.

    ``same`` holds by method the switches that were not run, and which one each of them repeats.
    Returns attack, value, low, high: the error of ``after`` less that of ``before``.
    """
    tables = dict(list(_resampled(table).groupby(["method", "attack"], observed=True)))
    rows = []
    for attack in LEDGER:
        ends = [tables[m, same.get(m, {}).get(attack, attack)] for m in (after, before)]
        rows.append((attack, *_error(ends[0], n_resamples, ends[1])))
    return pd.DataFrame(rows, columns=["attack", "value", "low", "high"])


def _resampled(table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is resampled: within classes, or across them if over 5 % have one image."""
    if (table.groupby("label").file_name.nunique() == 1).mean() <= 0.05:
        return table
    return table.assign(correct=metrics.correct(table), label=0)  # one class holds all images


def _error(table, n_resamples, paired_with=None):
    return metrics.bootstrap(table, "error", paired_with, n_resamples=n_resamples)


# --- which readings come closest to the paper's pattern? ----------------------------------------

CELLS = tuple((b, m) for b in ("clean", "attacked") for m in ("std", "adv", "adv_plus"))
"""The six mean errors that are compared with the paper's, by benchmark and method."""


def published_pattern() -> dict[tuple[str, str], float]:
    """The paper's mean errors (Table 1; fractions) in the order of `CELLS`."""
    paper = pd.read_csv(ROOT / "results" / "paper" / "published.csv")
    paper = paper[(paper.group == "all") & (paper.statistic == "error")]
    value = paper.set_index(["benchmark", "method"]).value
    return {(b, m): float(value[{"attacked": "pgd40"}.get(b, b), m]) for b, m in CELLS}


def distance(errors: Mapping, pattern: Mapping) -> dict[str, float | bool]:
    """How far six mean errors (fractions by `CELLS`) lie from a pattern of them, in points.

    Fixed before any result was seen: the root mean square, over the six cells, of the differences
    in percentage points. Each cell counts the same, since nothing says that one matters more; no
    cell is weighted by its uncertainty, since the paper gives none; and squares, so that one cell
    that misses by far is not made up for by five that fit. Beside it, reported apart: the same over
    the three attacked cells and over the three clean ones, and whether the attacked errors keep the
    order Std > Adv > Adv⁺, which is the paper's claim.
    """
    miss = {cell: 100 * (errors[cell] - pattern[cell]) for cell in CELLS}

    def root_mean_square(cells):
        return float(np.sqrt(np.mean([miss[cell] ** 2 for cell in cells])))

    parts = {b: [cell for cell in CELLS if cell[0] == b] for b in ("attacked", "clean")}
    ordered = errors["attacked", "std"] > errors["attacked", "adv"] > errors["attacked", "adv_plus"]
    found = {"distance": root_mean_square(CELLS)}
    found |= {name: root_mean_square(cells) for name, cells in parts.items()}
    return found | {"ordered": bool(ordered)}


# What only label augmentation reads: an Adv without it is the same at any value.
_OF_LABEL_AUGMENTATION = ("delta", "replace_head", "train_objective")


def trained_pairs(study: Study) -> dict[str, tuple[str, str]]:
    """The trained networks that may stand for (Adv, Adv⁺), by a title such as "Adv⁺ beside Adv".

    The study's own pairs; and each ablation of Adv⁺ (mixed or not) with the ablation of Adv that
    changes the same, else with the study's own Adv.
    """
    names, found = study.names | study.ablation_names, {}
    for adv, plus in (("adv", "adv_plus"), ("adv_mix", "adv_plus_mix")):
        if {adv, plus} <= set(study.methods):
            found[f"{names[plus]} beside {names[adv]}"] = adv, plus
    ignored = ("title", *_OF_LABEL_AUGMENTATION)
    recipes = {
        name: {key: value for key, value in changes.items() if key not in ignored}
        for name, changes in study.ablations.items()
    }
    for name, recipe in recipes.items():
        if recipe["method"] not in ("adv_plus", "adv_plus_mix"):
            continue
        plain = recipe["method"].replace("_plus", "")
        equal = [other for other in recipes if recipes[other] == recipe | {"method": plain}]
        partner = equal[0] if len(recipe) > 1 and equal else plain
        if partner in names:
            found[f"{names[name]} beside {names[partner]}"] = partner, name
    return found


def combinations(errors: pd.DataFrame, same: Mapping, pairs: Mapping, pattern: Mapping):
    """Every combination of trained networks and a switch, nearest to the pattern first.

    ``errors`` are those of `switch_errors`, ``same`` as in `pair_changes`, pairs and pattern those
    of `trained_pairs` and `published_pattern`. The same switch is applied to Std, Adv and Adv⁺;
    combinations that were not run for all three are left out. Returns pair, switch (titles), the
    six errors as ``clean_std`` to ``attacked_adv_plus`` (fractions), and what `distance` returns.
    """
    value = errors.set_index(["method", "attack"]).value.to_dict()
    rows = []
    for pair, (adv, plus) in pairs.items():
        networks = {"std": "std", "adv": adv, "adv_plus": plus}
        for switch in LEDGER:
            cells = {}
            for benchmark, stands in CELLS:
                network = networks[stands]
                attack = same.get(network, {}).get(switch, switch)
                attack = CLEAN if benchmark == "clean" else attack
                cells[benchmark, stands] = value.get((network, attack))
            if None not in cells.values():
                named = {f"{b}_{m}": error for (b, m), error in cells.items()}
                title = LEDGER[switch].title
                rows.append({"pair": pair, "switch": title, **named, **distance(cells, pattern)})
    columns = ["pair", "switch", *(f"{b}_{m}" for b, m in CELLS)]
    columns += ["distance", "attacked", "clean", "ordered"]
    found = pd.DataFrame(rows, columns=columns)
    return found.sort_values("distance", kind="stable", ignore_index=True)
