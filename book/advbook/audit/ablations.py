"""Which ingredient does what: the runs of a study, each with the control that lacks one of them."""

import dataclasses
import math

import pandas as pd

from advbook.studies.identity import recipe_of, training_settings
from advbook.studies.seeds import over_seeds, t_interval, with_spread
from advbook.studies.tables import in_per_cent, per_cent, read_study
from advbook.text import all_as_typed, as_typed
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
WITHIN = {  # of these, what a claim of the paper is about, as a sentence has them
    ("pgd40", "error"): "PGD-40 error",
    ("clean", "error"): "clean error",
    ("clean", "sd_noise_corrected"): "class-wise SD on clean images",
}
IN_WORDS = WITHIN | {("pgd40", "sd_noise_corrected"): "class-wise SD under PGD-40"}
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
    # With the same attack also where another run is the control: `attack_or_label` reads that row.
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


def parted_words(study) -> str:
    """The comparisons under one training attack with and without label and logit, in a sentence."""
    names = study.names | study.ablation_names
    runs = {name: ingredients(study, name) for name in adversarial_runs(study)}
    pairs = [
        f"{names[run]} − {names[other]}"
        for _, run, other in comparisons(study).itertuples(index=False)
        if {k for k in runs[run] if runs[run][k] != runs[other][k]} == {"logits", "label"}
    ]
    if not pairs:
        return (
            "No two runs of this study differ in label and logit alone: what the training attack "
            "climbs changes with them."
        )
    return f"The same training attack without and with label and logit: {', '.join(pairs)}."


def attack_or_label(study, found: pd.DataFrame, benchmark: str, statistic: str) -> str:
    """Does what Adv⁺ changes come from label and logit, or from what its training attack climbs?

    Parameters
    ----------
    study : advbook.studies.schema.Study
    found : DataFrame
        As of `differences` or `written_differences`.
    benchmark, statistic : str
        A key of `WITHIN`.

    Returns
    -------
    str
        A sentence without its full stop; empty where there is no clear change to part, where the
        study has no run that tells them apart, or its Adv⁺ has the training attack of Adv.
    """
    between = same_attack(study)
    if between in (None, "adv_plus"):
        return ""
    rows = found[(found.benchmark == benchmark) & (found.statistic == statistic)]
    rows = rows.set_index(["run", "control"])
    whole, label, attack = (
        rows.loc[pair] for pair in (("adv_plus", "adv"), (between, "adv"), ("adv_plus", between))
    )

    def side(row):
        return (row.low > 0) * 1 - (row.high < 0) * 1

    words = WITHIN[benchmark, statistic]
    said = (
        f"{words[0].upper()}{words[1:]}, Adv⁺ − Adv: {in_per_cent(whole)} points; label and logit "
        f"under the same training attack: {in_per_cent(label)}; what the attack climbs, alone: "
        f"{in_per_cent(attack)}"
    )
    with_label, with_attack = (side(row) == side(whole) for row in (label, attack))
    if side(whole) == 0:
        return ""
    if with_attack != with_label:
        where, rest = "the training attack alone differs", label
        if with_label:
            where, rest = "label and logit alone differ", attack
        said += ". In these networks, of one seed, "
        if side(rest):
            return (
                f"{said}the change lies beyond the chance of the images where {where}; the other "
                "does so too, in the opposite direction"
            )
        as_large = "allows" if rest.low <= whole.value <= rest.high else "excludes"
        other = f"the other interval {as_large} one as large"
        if math.isnan(rest.low):
            other = "the images give no interval for the other"
        return (
            f"{said}only where {where} does the change lie beyond the chance of the images; {other}"
        )
    return f"{said}. The images do not tell which of the two it comes with"


def written_differences(rows: pd.DataFrame) -> pd.DataFrame:
    """`differences` as the chapter has written them among its results, ``ablations.csv``."""
    rows = rows[rows.group.str.startswith("less ")]
    return rows.assign(run=rows.method, control=rows.group.str.removeprefix("less "))


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


def spread_over_seeds(study, source: str) -> pd.DataFrame:
    """`MEASURES` of the differences between the study's own methods, over its training seeds.

    Parameters
    ----------
    study : advbook.studies.schema.Study
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
    study, found: pd.DataFrame, summary: pd.DataFrame, sweep: pd.DataFrame, yardstick: pd.DataFrame
) -> list[str]:
    """What was found, in at most eleven lines computed from `differences`, `run_summary`,
    `delta_sweep` and `spread_over_seeds`.

    Parameters
    ----------
    study : advbook.studies.schema.Study
    found, summary, sweep, yardstick : DataFrame
    """
    names = all_as_typed(study.names | study.ablation_names)
    lines = [attack_or_label(study, found, *key) for key in WITHIN]
    lines = [f"{line}." for line in lines if line]
    clear = found[(found.low > 0) | (found.high < 0)]
    n = int(found.low.notna().sum())
    lines.append(
        f"Of {n} intervals over the images {len(clear) or 'none'} "
        f"leave{'s' * (len(clear) < 2)} out zero. Were the networks of each pair equally good on "
        f"all images, about {0.05 * n:.0f} would; but networks that differ by the chance of "
        "training alone are not, and leave it out far more often. The next four lines count them."
    )
    for (benchmark, statistic), words in IN_WORDS.items():
        rows = found[(found.benchmark == benchmark) & (found.statistic == statistic)]
        lines.append(f"{words[0].upper()}{words[1:]}, points: {_told(rows)}.")
    told = []
    for family, part in sweep.groupby("family", sort=False):
        error = summary[(summary.benchmark == "pgd40") & (summary.statistic == "error")]
        error = error.set_index("run").value[part.run]
        told.append(
            f"{as_typed(family)} between {per_cent(error.min())} and {per_cent(error.max())} % for "
            f"δ from {part.delta.min():g} to {part.delta.max():g}"
        )
    if told:
        lines.append(f"PGD-40 error by the weight of the label: {'; '.join(told)}.")
    if len(clear):
        largest = clear.loc[clear.value.abs().idxmax()]
        of = IN_WORDS[largest.benchmark, largest.statistic]
        lines.append(
            f"The largest change that leaves out zero is that of {names[largest.run]} against "
            f"{names[largest.control]}: {in_per_cent(largest)} points of the {of}."
        )
    if len(yardstick):
        lines.append(_over_seeds_words(yardstick, names))
    else:
        lines.append(
            "Every run is one seed, so that a difference beyond the chance of the test images may "
            "still be the chance of training."
        )
    return lines


def _over_seeds_words(yardstick: pd.DataFrame, names: dict) -> str:
    """What each pair's differences are over the seeds."""
    told = []
    for (run, other), rows in yardstick.groupby(["run", "control"], sort=False):
        known = rows.set_index(["benchmark", "statistic"])
        means = ", ".join(
            f"{words} {with_spread(known['mean'][key], known.sd[key])}"
            for key, words in IN_WORDS.items()
        )
        told.append(f"{names[run]} − {names[other]}: {means}")
    seeds, of = yardstick.n_seeds.max(), "this pair" if len(told) == 1 else "these pairs"
    reach = t_interval(0.0, 1.0, seeds)[1] * math.sqrt(seeds + 1)  # of one more run, in SDs
    return (
        f"Mean ± SD over {seeds} seeds, in points, of {'; of '.join(told)}. They are known for "
        f"{of} alone. By the chance of training one more run may lie {reach:.1f} such SDs from the "
        "mean (Student's t, 95 %): a smaller difference of one seed is not resolved."
    )


def _told(rows: pd.DataFrame) -> str:
    """Which ingredients lower and raise one figure beyond the chance of the images, in words."""
    # Doses of one ingredient, "… (δ = 0.1)" and "… (δ = 0.2)", are told together.
    kinds = rows.ingredient.str.replace(r" \(δ = [^)]*\)", "", regex=True)
    sizes, parts = kinds.value_counts(), []
    for title, chosen in (("lower", rows.high < 0), ("higher", rows.low > 0)):
        told = []
        for words, some in rows[chosen].groupby(kinds[chosen], sort=False):
            ends = (per_cent(v, sign="+") for v in (some.value.min(), some.value.max()))
            many = f"{len(some)} of {sizes[words]}: " if sizes[words] > 1 else ""
            told.append(f"{words} ({many}{' to '.join(dict.fromkeys(ends))})")
        which = f": {'; '.join(told)}" if told else ""
        parts.append(f"{title} in {chosen.sum()} of {len(rows)} comparisons{which}")
    return "; ".join(parts)


def _measured(parts: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    table = pd.concat(parts, ignore_index=True)
    keys = pd.MultiIndex.from_frame(table[["benchmark", "statistic"]])
    columns = [*columns, "benchmark", "statistic", "value", "low", "high"]
    return table.loc[keys.isin(MEASURES), columns].reset_index(drop=True)
