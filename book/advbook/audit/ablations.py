"""Which ingredient does what: the runs of a study, each with the control that lacks one of them."""

import dataclasses

import numpy as np
import pandas as pd

from advbook.studies.identity import recipe_of, training_settings
from advlib import metrics
from advlib.recipes import RECIPES

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
CLIMBED_TOO = ", in the loss and in what the attack climbs"


def adversarial_runs(study) -> dict[str, str]:
    """The adversarially trained methods and ablations of a study: id -> name."""
    names = study.names | study.ablation_names
    known = {name: recipe_of(study, name)[1] for name in names}
    return {
        name: title
        for name, title in names.items()
        if known[name] in RECIPES and RECIPES[known[name]].adversarial
    }


def ingredients(study, name: str) -> dict:
    """What decides the weights of an adversarial run beside data and seed, each thing apart.

    Parameters
    ----------
    study : advbook.studies.schema.Study
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
    changed, method = recipe_of(study, name)
    recipe = RECIPES[method]
    settings = training_settings(changed, method, 0, "", None)
    apart = {field.name for field in dataclasses.fields(recipe)}
    apart |= {"method", "seed", "data", "start", "threat", "delta", "num_transforms"}
    found = {key: value for key, value in settings.items() if key not in apart}
    # These settings are stated only of networks with extra logits.
    found.setdefault("replace_head", study.replace_head)
    found.setdefault("train_objective", WITHOUT["train_objective"])
    found |= {f"threat.{k}": v for k, v in dataclasses.asdict(changed.train_threat).items()}
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
        ingredient (in words), run, control: one row a comparison. Adv⁺ beside Adv comes first, then
        its ingredients one by one, then mixed batches, then all else.
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
    # With the same attack also where another run is the control: pages read that row.
    for before, after in dict.fromkeys([*study.pairs, ("adv", same_attack(study))]):
        if before in runs and after in runs and (after, before) not in pairs:
            lacking = [k for k in runs[after] if runs[after][k] != runs[before][k]]
            rows.append((_words(runs[after], lacking), after, before))
    rows.sort(key=lambda row: _place(runs[row[1]], runs[row[2]]))
    return pd.DataFrame(rows, columns=["ingredient", "run", "control"])


_STEPS = (  # from Adv to Adv⁺: what a comparison changes of it, in the order in which it is told
    {"logits", "label", "train_objective"},
    {"logits", "label"},  # under the same training attack
    {"train_objective"},
    {"label"},
    {"logits", "train_objective"},
    {"logits"},
)


def _place(own: dict, theirs: dict) -> tuple[int, int]:
    """Where a comparison stands among the others: a key to sort by."""
    differ = {key for key in own if own[key] != theirs[key]}
    step = _STEPS.index(differ) if differ in _STEPS else len(_STEPS)
    usual = own["logits"] <= 1 and not own["transforms"]
    if not usual or (step == len(_STEPS) and not differ & {"mix", "smoothing"}):
        return len(_STEPS) + 2, 0  # several attacks, another head, …
    return (len(_STEPS) + 1 if own["mix"] else step), step


def same_attack(study) -> str | None:
    """The run with Adv⁺'s logit and label and Adv's training attack; None if there is none."""
    runs = {name: ingredients(study, name) for name in adversarial_runs(study)}
    if not {"adv", "adv_plus"} <= set(runs):
        return None
    wanted = runs["adv"] | {key: runs["adv_plus"][key] for key in ("logits", "label")}
    return next((name for name, own in runs.items() if own == wanted), None)


def _questions(own: dict) -> list[tuple[str, dict, dict]]:
    """In words, what the other run has instead, and what may differ besides, in words."""
    found, climbed = [], "train_objective"
    if own["label"]:
        smoothed = {"smoothing": own["label"], "label": 0.0, "logits": 0}
        words = f"label and logit, not smoothing (δ = {own['label']:g})"
        found.append((words, smoothed, {climbed: INGREDIENTS[climbed]}))
    if own["logits"] > 1:
        words = f"M = {own['logits']}, not 1"
        words += CLIMBED_TOO if own[climbed] != WITHOUT[climbed] else ""
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
        # The attack that climbs Eq. 4 does so with the run's own label, so it differs as well.
        climbs = own["train_objective"] != WITHOUT["train_objective"]
        if key == "label" and climbs and "train_objective" not in lacking:
            title += CLIMBED_TOO
        words.append(title)
    words.sort(key=lambda title: title.endswith(CLIMBED_TOO))  # it has a comma of its own
    return " and ".join([", ".join(words[:-1]), *words[-1:]] if len(words) > 1 else words)


def run_summary(tables: pd.DataFrame, n_resamples: int) -> pd.DataFrame:
    """`MEASURES` of every run with 95 % intervals over images.

    Parameters
    ----------
    tables : DataFrame
        Of one seed, with columns benchmark and method, as `read_audit` returns it.
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


def _measured(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    table = pd.concat(parts, ignore_index=True)
    keys = pd.MultiIndex.from_frame(table[["benchmark", "statistic"]])
    columns = [*columns, "benchmark", "statistic", "value", "low", "high"]
    return table.loc[keys.isin(MEASURES), columns].reset_index(drop=True)


def off_the_line(tables: pd.DataFrame, run: str, n_resamples: int) -> tuple[float, float, float]:
    """How far a run's class-wise SD lies from the line that joins Std and Adv at the run's error.

    Parameters
    ----------
    tables : DataFrame
        Clean predictions of one seed, with a column method: of std, adv and the run.
    run : str
    n_resamples : int

    Returns
    -------
    (float, float, float)
        The noise-corrected SD less that of the line (negative: more even), and the centred 95 %
        interval over images. An image is drawn with all three networks, from its own class.
    """
    tables = tables[tables.method.isin(["std", "adv", run])]
    wrong = tables.assign(wrong=tables.predicted_class != tables.label)
    wrong = wrong.pivot(index=["label", "file_name"], columns="method", values="wrong")
    wrong = wrong[["std", "adv", run]]
    classes = [part.to_numpy(float) for _, part in wrong.groupby(level="label")]
    images = np.array([len(part) for part in classes])[:, None]

    def distance(errors, times):  # errors: classes by networks; the sampling noise comes off times
        noise = (errors * (1 - errors) / (images - 1)).mean(axis=0) * (1 - 1 / len(errors))
        std, adv, own = errors.mean(axis=0)
        sd = np.sqrt(np.maximum(errors.var(axis=0) - times * noise, 0))
        return sd[2] - sd[1] - (sd[1] - sd[0]) / (adv - std) * (own - adv)

    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(n_resamples):
        counts = [rng.multinomial(len(part), np.full(len(part), 1 / len(part))) for part in classes]
        errors = [c @ part / len(part) for c, part in zip(counts, classes, strict=True)]
        drawn.append(distance(np.array(errors), 2))  # a draw adds the noise once more
    value = distance(np.array([part.mean(axis=0) for part in classes]), 1)
    low, high = value + np.percentile(drawn, [2.5, 97.5]) - np.mean(drawn)
    return value, low, high
