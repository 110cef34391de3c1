"""Which ingredient does what: the runs of a study, each with the control that lacks one of them."""

import dataclasses

import pandas as pd

from advlib import metrics
from advlib.seeds import over_seeds
from advlib.study import METHODS
from advlib.tables import in_per_cent, read_study

INGREDIENTS = {  # what pages call them; a setting that is not named here is called by its key
    "mix": "clean images in the batch",
    "transforms": "several attacks in training",
    "threat.label_source": "attack leaves the predicted label",
    "logits": "extra logit",
    "label": "transformation label",
    "smoothing": "label smoothing",
    "replace_head": "head replaced",
    "train_objective": "what the attack climbs",
}
WITHOUT = {"mix": False, "transforms": [], "logits": 0, "label": 0.0, "smoothing": 0.0}
WITHOUT |= {"train_objective": "cross_entropy"}
ATTACK = ("transforms", "train_objective")  # of the training attack, beside its threat model
MEASURES = {  # of a run and of a difference: (benchmark, statistic) and what pages call it
    ("clean", "error"): "Clean error",
    ("pgd40", "error"): "PGD-40 error",
    ("clean", "sd_noise_corrected"): "Class-wise SD, clean",
    ("pgd40", "sd_noise_corrected"): "Class-wise SD, PGD-40",
}


def adversarial_runs(study) -> dict[str, str]:
    """The adversarially trained methods and ablations of a study: id -> name."""
    names = study.names | study.ablation_names
    known = {name: study.recipe(name)[1] for name in names}
    return {
        name: title
        for name, title in names.items()
        if known[name] in METHODS and METHODS[known[name]].adversarial
    }


def ingredients(study, name: str) -> dict:
    """What decides the weights of an adversarial run beside data and seed, each thing apart.

    Parameters
    ----------
    study : advlib.study.Study
    name : str
        A method or an ablation.

    Returns
    -------
    dict
        mix, transforms, logits (M, 0 for none), label (its weight delta: 0 is no label), smoothing
        (its delta), replace_head, train_objective (what the training attack climbs: without extra
        logits always the cross-entropy over the K classes), the training attack's keys as
        "threat.<key>", and all other settings of the training. What has no effect on a run is as in
        the study.
    """
    changed, method = study.recipe(name)
    recipe = METHODS[method]
    settings = changed.training_settings(method, 0, "", None)
    apart = {field.name for field in dataclasses.fields(recipe)}
    apart |= {"method", "seed", "data", "start", "threat", "delta", "num_transforms"}
    found = {key: value for key, value in settings.items() if key not in apart}
    # These settings are stated only of networks with extra logits.
    found.setdefault("replace_head", study.replace_head)
    found.setdefault("train_objective", WITHOUT["train_objective"])
    found |= {f"threat.{k}": v for k, v in changed.train_threat.to_dict().items()}
    return found | {
        "mix": recipe.mix,
        "transforms": changed.transforms,
        "logits": changed.num_transforms if recipe.extra_logits else 0,
        "label": changed.delta if recipe.label_augmentation else 0.0,
        "smoothing": changed.delta if recipe.label_smoothing else 0.0,
    }


def _without(study) -> dict:
    """The value of each ingredient that counts as its absence: none of it, or the study's own."""
    adversarial = next(iter(adversarial_runs(dataclasses.replace(study, ablations={}))))
    return ingredients(study, adversarial) | WITHOUT


def control(study, name: str) -> tuple[str, list[str]] | None:
    """The run that shows what an ingredient of this run does: the same without it.

    Of the adversarial runs that lack some of its ingredients and add none, the one that lacks the
    fewest: best one alone. Runs with the same kind of batches (``mix``) come first, since these
    decide which images a network sees; between equals, those with the same training attack.

    Returns
    -------
    (str, list of str) or None
        The control and the ingredients that it lacks; None for a run without any.
    """
    without, own = _without(study), ingredients(study, name)
    found = []
    for other in adversarial_runs(study):
        theirs = ingredients(study, other)
        lacking = [key for key in own if own[key] != theirs[key]]
        if lacking and all(theirs[key] == without[key] for key in lacking):
            attack = any(key in ATTACK or key.startswith("threat.") for key in lacking)
            found.append((("mix" in lacking, len(lacking), attack), other, lacking))
    if not found:
        return None
    _, other, lacking = min(found, key=lambda entry: entry[0])
    return other, lacking


def comparisons(study) -> pd.DataFrame:
    """Every run with its control, and the questions that no single ingredient answers.

    These are: is it the transformation label, or would smoothing with the same delta do; does it
    matter what the attack climbs; are several transformations, each with its logit, better than
    one; and what do logit and label do together, where they were also trained apart.

    Returns
    -------
    DataFrame
        ingredient (in words), run, control: one row a comparison, in the order of the runs.
    """
    runs = {name: ingredients(study, name) for name in adversarial_runs(study)}
    rows = []
    for name, own in runs.items():
        if found := control(study, name):
            rows.append((_words(own, found[1]), name, found[0]))
    pairs = {(run, other) for _, run, other in rows}
    for name, own in runs.items():
        for words, instead, beside in _questions(own):
            for other, theirs in runs.items():
                differ = {key for key in own if own[key] != theirs[key]} - set(instead)
                fits = all(theirs[key] == value for key, value in instead.items())
                if fits and differ <= set(beside) and (name, other) not in pairs:
                    also = [beside[key] for key in beside if key in differ]
                    rows.append((", and ".join([words, *also]), name, other))
                    pairs.add((name, other))
    for before, after in study.pairs:
        if before in runs and after in runs and (after, before) not in pairs:
            lacking = [k for k in runs[after] if runs[after][k] != runs[before][k]]
            rows.append((_words(runs[after], lacking), after, before))
    return pd.DataFrame(rows, columns=["ingredient", "run", "control"])


def _questions(own: dict) -> list[tuple[str, dict, dict]]:
    """In words, what the other run has instead, and what may differ besides, in words."""
    found, climbed = [], "train_objective"
    if own["label"]:
        smoothed = {"smoothing": own["label"], "label": 0.0, "logits": 0}
        words = f"label and logit, not smoothing (δ = {own['label']:g})"
        found.append((words, smoothed, {climbed: INGREDIENTS[climbed]}))
    if own["logits"] > 1:
        words = f"M = {own['logits']}, not 1"
        found.append((words, {"logits": 1}, {"transforms": "other images"}))
    if own[climbed] != WITHOUT[climbed]:
        found.append((INGREDIENTS[climbed], {climbed: WITHOUT[climbed]}, {}))
    return found


def _words(own: dict, lacking: list[str]) -> str:
    """The ingredients in words, with what tells one dose from another."""
    words = []
    for key in sorted(
        lacking, key=lambda k: list(INGREDIENTS).index(k) if k in INGREDIENTS else 99
    ):
        title = INGREDIENTS.get(key, f"{key.replace('_', ' ')} = {own[key]}")
        if key == "logits" and own[key] > 1:
            title = f"{own[key]} extra logits"
        if key in ("label", "smoothing"):
            title += f" (δ = {own[key]:g})"
        words.append(title)
    return " and ".join([", ".join(words[:-1]), *words[-1:]] if len(words) > 1 else words)


def delta_sweep(study) -> pd.DataFrame:
    """The runs that differ in the weight of the transformation label alone.

    Returns
    -------
    DataFrame
        family (the name of its first run that has the label), run, delta, sorted; families of two
        or more. No label, delta = 0, is a network with extra logits all the same.
    """
    families = {}
    names = adversarial_runs(study)
    for name in names:
        own = ingredients(study, name)
        if own["logits"]:
            rest = repr(sorted((k, v) for k, v in own.items() if k != "label"))
            families.setdefault(rest, []).append((own["label"], name))
    rows = []
    for family in families.values():
        if len({delta for delta, _ in family}) > 1:
            title = next(names[name] for delta, name in family if delta > 0)
            rows += [(title, name, delta) for delta, name in sorted(family)]
    return pd.DataFrame(rows, columns=["family", "run", "delta"])


def run_summary(tables: pd.DataFrame, n_resamples: int) -> pd.DataFrame:
    """`MEASURES` of every run with 95 % intervals over images.

    Parameters
    ----------
    tables : DataFrame
        Of one seed, with columns benchmark and method, as `advlib.tables.read_audit` returns it.
    n_resamples : int

    Returns
    -------
    DataFrame
        run, benchmark, statistic, value, low, high.
    """
    tables, parts = tables.copy(deep=False), []
    tables.attrs = {}
    for (benchmark, run), table in tables.groupby(["benchmark", "method"], sort=False):
        found = metrics.summarise(table, n_resamples=n_resamples)
        parts.append(found.assign(benchmark=benchmark, run=run))
    return _measured(parts, ["run"])


def differences(tables: pd.DataFrame, pairs: pd.DataFrame, n_resamples: int) -> pd.DataFrame:
    """`MEASURES` of each run less its control's, paired on the same images.

    Parameters
    ----------
    tables, n_resamples
        As for `run_summary`.
    pairs : DataFrame
        As of `comparisons`.

    Returns
    -------
    DataFrame
        The columns of ``pairs``, benchmark, statistic, value, low, high.
    """
    tables = tables.copy(deep=False)
    tables.attrs = {}  # pandas copies them, facts and all, at every step
    by_run = dict(list(tables.groupby(["benchmark", "method"], sort=False)))
    parts = []
    for pair in pairs.to_dict("records"):
        for benchmark in dict.fromkeys(benchmark for benchmark, _ in MEASURES):
            run, other = (by_run[benchmark, pair[end]] for end in ("run", "control"))
            found = metrics.summarise(run, paired_with=other, n_resamples=n_resamples)
            parts.append(found.assign(benchmark=benchmark, **pair))
    return _measured(parts, list(pairs.columns))


def spread_over_seeds(study, source: str) -> pd.DataFrame:
    """`MEASURES` of the differences between the study's own methods, over its training seeds.

    Parameters
    ----------
    study : advlib.study.Study
    source : {"fresh", "committed"}

    Returns
    -------
    DataFrame
        run, control, benchmark, statistic, mean, sd, n_seeds: a row for each of `Study.pairs` that
        is adversarially trained; empty with one seed.
    """
    keys = ["run", "control", "benchmark", "statistic"]
    runs = adversarial_runs(study)
    pairs = [pair for pair in study.pairs if set(pair) <= set(runs)]
    if len(study.seeds) < 2 or not pairs:
        return pd.DataFrame(columns=[*keys, "mean", "sd", "n_seeds"])
    pairs = pd.DataFrame([{"run": after, "control": before} for before, after in pairs])
    tables = read_study(study, source, ["clean", "pgd40"])
    parts = [
        differences(tables[tables.seed == seed], pairs, 1).assign(seed=seed) for seed in study.seeds
    ]
    return over_seeds(pd.concat(parts), keys)


def findings(
    found: pd.DataFrame,
    summary: pd.DataFrame,
    sweep: pd.DataFrame,
    names: dict[str, str],
    yardstick: pd.DataFrame,
) -> list[str]:
    """What was found, in at most eight lines computed from `differences`, `run_summary`,
    `delta_sweep` and `spread_over_seeds`.

    Parameters
    ----------
    found, summary, sweep, yardstick : DataFrame
    names : dict
        id -> name of each run.
    """
    clear = found[(found.low > 0) | (found.high < 0)]
    n = int(found.low.notna().sum())
    lines = [
        f"{len(clear)} of {n} intervals leave out zero; if no ingredient did anything, about "
        f"{0.05 * n:.0f} would."
    ]
    robust = found[(found.benchmark == "pgd40") & (found.statistic == "error")]
    # Doses of one ingredient, "… (δ = 0.1)" and "… (δ = 0.2)", are told together.
    kinds = robust.ingredient.str.replace(r" \(δ = [^)]*\)", "", regex=True)
    sizes = kinds.value_counts()
    lower, higher = robust.high < 0, robust.low > 0
    for title, chosen in (("lower", lower), ("higher", higher)):
        told = []
        for words, rows in robust[chosen].groupby(kinds[chosen], sort=False):
            ends = dict.fromkeys(f"{100 * v:+.2f}" for v in (rows.value.min(), rows.value.max()))
            many = f" in {len(rows)} of {sizes[words]}" if sizes[words] > 1 else ""
            told.append(f"{words}{many} ({' to '.join(ends)})")
        lines.append(
            f"PGD-40 error clearly {title} in {chosen.sum()} of {len(robust)} comparisons "
            f"(points): {'; '.join(told) or 'none'}."
        )
    told = []
    for family, part in sweep.groupby("family", sort=False):
        error = summary[(summary.benchmark == "pgd40") & (summary.statistic == "error")]
        error = 100 * error.set_index("run").value[part.run]
        told.append(
            f"{family} {error.min():.2f} to {error.max():.2f} % with δ from "
            f"{part.delta.min():g} to {part.delta.max():g}"
        )
    if told:
        lines.append(f"PGD-40 error by the weight of the label: {'; '.join(told)}.")
    if len(clear):
        largest = clear.loc[clear.value.abs().idxmax()]
        lines.append(
            f"The largest change is that of {names[largest.run]} against {names[largest.control]}: "
            f"{in_per_cent(largest)} points of {MEASURES[largest.benchmark, largest.statistic]}."
        )
    if len(yardstick):
        spread = yardstick[(yardstick.benchmark == "pgd40") & (yardstick.statistic == "error")]
        lines.append(
            "Over training seeds the PGD-40 differences between the study's methods have SDs of up "
            f"to {100 * spread.sd.max():.2f} points: a smaller change of one seed is not told from "
            "the chance of training."
        )
    else:
        lines.append(
            "Every run is one seed, so that a difference beyond the chance of the test images may "
            "still be the chance of training."
        )
    return lines


def _measured(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    table = pd.concat(parts, ignore_index=True)
    keys = pd.MultiIndex.from_frame(table[["benchmark", "statistic"]])
    columns = [*columns, "benchmark", "statistic", "value", "low", "high"]
    return table.loc[keys.isin(MEASURES), columns].reset_index(drop=True)
