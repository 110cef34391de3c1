"""The ambiguity ledger: each switch of the threat model that the paper leaves open, run one by one.

The switches are data. `ledger_predictions` runs them for one trained network; all other functions
take tables and need no torch.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from advbook.studies import tables
from advbook.studies.identity import digest
from advbook.studies.inputs import audit_set, images_of
from advbook.studies.places import ROOT
from advbook.studies.schema import Study
from advbook.studies.switches import LEDGER, ledger_threats, same_attacks
from advlib import metrics

CLEAN = "clean"
"""The condition of the images that are not attacked, beside the switches in every table."""

GAPS = {
    "masking": ("all_logits", "last_all_logits"),
    "label": ("predicted", "last_predicted"),
}
"""The weaker attacks behind the masking gap and the label gap: by any iterate, by the last one."""


def ledger_predictions(study: Study, method: str, seed: int, *, device=None) -> Path:
    """Predictions of one trained network under every switch of the ledger.

    A switch that is no other attack for this network is not run. Each finished one is kept, so that
    an interrupted call goes on.

    Parameters
    ----------
    study : Study
        Its ``ledger_images`` of the evaluated images are attacked.
    method : str
        A method or an ablation of the study (fewer switches).
    seed : int
        Of the trained network.
    device : optional
        None: CUDA, MPS or the CPU, by availability.

    Returns
    -------
    Path
        Of the prediction table, with ``attack`` (the name of the switch, or "clean") and ``linf``.
        Its facts hold every threat model, and in ``same`` what was not run again.

    Raises
    ------
    FileNotFoundError
        If the network has not been trained yet.
    """
    import torch
    from tqdm import tqdm

    from advbook.studies.evaluate import RUN_FACTS
    from advbook.studies.parts import kept
    from advbook.studies.runs import load_run
    from advlib.attacks.worst_case import default_batch_size, evaluate_attack
    from advlib.networks.device import default_device, resolve_dtype
    from advlib.predictions import predict, write_predictions

    device = torch.device(device or default_device())
    model, run = load_run(study, method, seed)
    whole = images_of(study, study.evaluation_split)
    images = audit_set(whole, study.ledger_images)
    with torch.no_grad():
        n_logits = model.eval()(images[0][0][None]).shape[1]
    threats = ledger_threats(study, method)
    same = same_attacks(threats) if n_logits == whole.num_classes else {}
    facts = {key: run[key] for key in RUN_FACTS}
    facts |= {"data": whole.fingerprint, "data_title": whole.title, "device": str(device)}
    facts |= {"split": study.evaluation_split, "attack_seed": 0}
    facts |= {"dtype": str(resolve_dtype(study.dtype, device))}
    batch_size = study.eval_batch_size or default_batch_size(images, device)
    facts |= {"batch_size": batch_size}
    sizes = {"num_classes": whole.num_classes, "n_images": len(images)}
    common = {"num_classes": whole.num_classes, "device": device, "workers": study.workers}

    def clean(progress):
        found = predict({0: model}, images, batch_size=batch_size, progress=progress, **common)
        return found[0].assign(linf=0.0)

    def attacked(progress, threat):
        how = {"batch_size": batch_size, "dtype": study.dtype, "progress": progress}
        return evaluate_attack(model, images, threat, **how, **common)

    makes = {CLEAN: (None, clean)}
    for name, threat in threats.items():
        if name not in same:
            makes[name] = threat.to_dict(), functools.partial(attacked, threat=threat)
    parts = []
    with tqdm(total=len(images) * len(makes), unit=" images", mininterval=2) as bar:
        for name, (threat, make) in makes.items():
            decided = facts | sizes | {"ledger": threat}
            if threat and threat["model_mode"] == "train":  # judged by the batch it sits in
                decided |= {"batches": "mixed"}
            part = study.runs / "parts" / digest(decided) / "ledger.parquet"
            bar.set_postfix_str(name)
            rows = kept(part, functools.partial(make, bar.update), images.file_names)
            parts.append(rows.assign(attack=name))
    table = pd.concat(parts).drop(columns="steps_used")
    # No chapter reads these probabilities; rounded, the tables stay small.
    table = table.round({"predicted_probability": 2, "linf": 4})
    table = table.astype({"file_name": "category", "attack": "category"})
    path = study.runs / "audit" / "ledger" / f"{method}-seed{seed}.parquet"
    facts |= {"threat": threats["default"].to_dict(), "subset": study.ledger_images}
    facts |= {"threats": {name: threat.to_dict() for name, threat in threats.items()}}
    facts |= {"same": same, "n_logits": n_logits}
    return write_predictions(table, path, **sizes, **facts)


def read_ledger(study: Study, source: str) -> pd.DataFrame:
    """The ledger's prediction tables as one, if they were made under today's switches.

    Parameters
    ----------
    study : Study
    source : {"fresh", "committed"}

    Returns
    -------
    DataFrame
        As `read_audit` of the tables; ``attrs["same"]``: by method, what was not run again.

    Raises
    ------
    FileNotFoundError, ValueError
        As `advbook.studies.tables.read_audit`, and if a switch was run under another threat model.
    """
    table = tables.read_audit(study, source, "ledger")
    table.attrs["same"] = {f["method"]: f["same"] for f in table.attrs["facts"].values()}
    return table


def switch_errors(table: pd.DataFrame, *, n_resamples: int = 10_000) -> pd.DataFrame:
    """Error under each switch and its paired difference from the default, with 95 % intervals.

    Parameters
    ----------
    table : DataFrame
        Rows of `read_ledger`, of one seed.
    n_resamples : int

    Returns
    -------
    DataFrame
        method, attack, value, low, high; change, change_low, change_high (missing for the clean
        images). nan: no interval, as in `advlib.metrics.bootstrap`.
    """
    rows = []
    for method, part in _resampled(table).groupby("method", sort=False, observed=True):
        by_attack = dict(list(part.groupby("attack", observed=True)))
        for attack in [name for name in (CLEAN, *LEDGER) if name in by_attack]:
            one, change = by_attack[attack], (np.nan,) * 3
            if attack != CLEAN:
                change = _error(one, n_resamples, by_attack["default"])
            rows.append((method, attack, *_error(one, n_resamples), *change))
    columns = ["method", "attack", "value", "low", "high"]
    return pd.DataFrame(rows, columns=[*columns, "change", "change_low", "change_high"])


def gaps(table: pd.DataFrame, *, n_resamples: int = 10_000) -> pd.DataFrame:
    """What a weaker reading of the attack hides of the error, in paired differences.

    The masking gap is the error under an attack on the class logits less that under one on all
    logits; the label gap the error when the attack leaves the true label less that when it leaves
    the predicted one. Above zero, the weaker attack makes a model look more robust.

    Parameters
    ----------
    table : DataFrame
        Rows of `read_ledger`, of one seed.
    n_resamples : int

    Returns
    -------
    DataFrame
        method, gap ("masking", "label"), success ("any", "last"), value, low, high. There is no
        masking gap without transformation logits, and for ablations none by the last iterate.
    """
    rows = []
    for method, part in _resampled(table).groupby("method", sort=False, observed=True):
        by_attack = dict(list(part.groupby("attack", observed=True)))
        for gap, weaker in GAPS.items():
            for success, strong, weak in zip(
                ("any", "last"), ("default", "last"), weaker, strict=True
            ):
                if strong in by_attack and weak in by_attack:
                    found = _error(by_attack[strong], n_resamples, by_attack[weak])
                    rows.append((method, gap, success, *found))
    return pd.DataFrame(rows, columns=["method", "gap", "success", "value", "low", "high"])


def result_rows(errors: pd.DataFrame, gaps: pd.DataFrame) -> pd.DataFrame:
    """`switch_errors` and `gaps` as rows of a result table, each switch a condition."""
    change = errors.drop(columns=["value", "low", "high"])
    change = change.rename(columns={"change": "value", "change_low": "low", "change_high": "high"})
    change = change[~change.attack.isin([CLEAN, "default"])]
    parts = [
        errors.assign(statistic="error"),
        change.assign(statistic="error less that of the default"),
        gaps.rename(columns={"success": "attack"}).assign(statistic=gaps.gap + " gap"),
    ]
    return pd.concat(parts, ignore_index=True).rename(columns={"attack": "condition"})


def pair_changes(
    table: pd.DataFrame, before: str, after: str, *, n_resamples: int = 10_000
) -> pd.DataFrame:
    """How much one network errs more than another under each switch, paired, with 95 % intervals.

    Parameters
    ----------
    table : DataFrame
        Rows of `read_ledger`, of one seed; ``attrs["same"]`` says which switches were not run.
    before, after : str
        Methods.
    n_resamples : int

    Returns
    -------
    DataFrame
        attack, value, low, high: the error of ``after`` less that of ``before``.
    """
    tables = dict(list(_resampled(table).groupby(["method", "attack"], observed=True)))
    same, rows = table.attrs["same"], []
    for attack in LEDGER:
        ends = [tables[m, same.get(m, {}).get(attack, attack)] for m in (after, before)]
        rows.append((attack, *_error(ends[0], n_resamples, ends[1])))
    return pd.DataFrame(rows, columns=["attack", "value", "low", "high"])


def one_image_a_class(table: pd.DataFrame) -> bool:
    """Whether more than 5 % of the classes have one image, so that none tells its own chance."""
    return bool((table.groupby("label").file_name.nunique() == 1).mean() > 0.05)


def _resampled(table: pd.DataFrame) -> pd.DataFrame:
    """The table as it is resampled: within classes or, with one image a class, across them."""
    table = table.copy(deep=False)
    table.attrs = {}  # pandas copies them, facts and all, at every step
    if not one_image_a_class(table):
        return table
    return table.assign(correct=metrics.correct(table), label=0)  # one class holds all images


def _error(table, n_resamples, paired_with=None):
    return metrics.bootstrap(table, "error", paired_with, n_resamples=n_resamples)


# --- which readings come closest to the paper's pattern? ----------------------------------------

CELLS = tuple((b, m) for b in ("clean", "attacked") for m in ("std", "adv", "adv_plus"))
"""The six mean errors that are compared with the paper's: benchmark and method."""


def published_pattern(path: Path | None = None) -> dict[tuple[str, str], float]:
    """The paper's mean errors (Table 1; fractions) in the order of `CELLS`.

    Parameters
    ----------
    path : Path, optional
        None: ``results/paper/published.csv``.
    """
    paper = pd.read_csv(path or ROOT / "results" / "paper" / "published.csv")
    paper = paper[(paper.group == "all") & (paper.statistic == "error")]
    value = paper.set_index(["benchmark", "method"]).value
    return {(b, m): float(value[{"attacked": "pgd40"}.get(b, b), m]) for b, m in CELLS}


def distance(errors: Mapping, pattern: Mapping) -> dict[str, float | bool]:
    """How far six mean errors lie from a pattern of them.

    Fixed before any result was seen: the root mean square, over the six cells, of the differences
    in percentage points. Each cell counts the same, since nothing says that one matters more; no
    cell is weighted by its uncertainty, since the paper gives none; and squares, so that one cell
    that misses by far is not made up for by five that fit. Beside it, reported apart: the same over
    the three attacked cells and over the three clean ones, and whether the attacked errors keep the
    order Std > Adv > Adv⁺, which is the paper's claim.

    Parameters
    ----------
    errors, pattern : mapping
        Fractions by `CELLS`.

    Returns
    -------
    dict
        distance, attacked, clean (percentage points), ordered.
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
    recipes = {
        name: (
            changes["method"],
            {
                key: value
                for key, value in changes.items()
                if key not in ("method", "title", *_OF_LABEL_AUGMENTATION)
            },
        )
        for name, changes in study.ablations.items()
    }
    for name, (base, changes) in recipes.items():
        if base not in ("adv_plus", "adv_plus_mix"):
            continue
        plain = base.replace("_plus", "")
        equal = [other for other, recipe in recipes.items() if recipe == (plain, changes)]
        partner = equal[0] if changes and equal else plain
        if partner in study.methods or partner in study.ablations:
            found[f"{names[name]} beside {names[partner]}"] = partner, name
    return found


def combinations(errors: pd.DataFrame, same: Mapping, pairs: Mapping, pattern: Mapping):
    """Every combination of trained networks and a switch, nearest to the pattern first.

    Parameters
    ----------
    errors : DataFrame
        Of `switch_errors`.
    same : mapping
        By method, the switches that were not run because they are the same attack as another.
    pairs : mapping
        Of `trained_pairs`.
    pattern : mapping
        Of `published_pattern`.

    Returns
    -------
    DataFrame
        pair, switch (titles), the six errors as ``clean_std`` to ``attacked_adv_plus`` (fractions),
        and what `distance` returns. The same switch is applied to Std, Adv and Adv⁺; combinations
        that were not run for all three are left out.
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
