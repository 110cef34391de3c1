"""Which ingredient does what: the runs of a study, each beside one that lacks something of it."""

import dataclasses

import numpy as np
import pandas as pd

from advbook.studies.identity import recipe_for, recipe_of, training_settings
from advlib import metrics

MEASURES = {  # of a run and of a difference: (benchmark, statistic) and what pages call it
    ("clean", "error"): "Clean error",
    ("pgd40", "error"): "PGD-40 error",
    ("clean", "sd_noise_corrected"): "Class-wise SD, clean",
    ("pgd40", "sd_noise_corrected"): "Class-wise SD, PGD-40",
}


def adversarial_runs(study) -> dict[str, str]:
    """The adversarially trained methods and ablations of a study: id -> name."""
    names = study.names | study.ablation_names
    known = {name: recipe_of(study, name)[1] for name in names}
    return {
        name: title
        for name, title in names.items()
        if known[name] in study.recipes and study.recipes[known[name]].adversarial
    }


def ingredients(study, name: str) -> dict:
    """What decides the weights of an adversarial run beside data and seed, each thing apart.

    These are mix, transforms, logits (M, 0 for none), label (its weight delta: 0 is no label),
    smoothing (its delta), replace_head, train_objective (what the training attack climbs: without
    extra logits always the cross-entropy over the K classes), the training attack's keys as
    "threat.<key>", and all other settings of the training. What has no effect on a run is as in the
    study.
    """
    changed, method = recipe_of(study, name)
    recipe = recipe_for(changed, method)
    settings = training_settings(changed, method, 0, "", None)
    apart = {field.name for field in dataclasses.fields(recipe)}
    apart |= {"method", "seed", "data", "start", "threat", "delta", "num_transforms"}
    found = {key: value for key, value in settings.items() if key not in apart}
    # These settings are stated only of networks with extra logits.
    found.setdefault("replace_head", study.replace_head)
    found.setdefault("train_objective", "cross_entropy")
    found |= {f"threat.{k}": v for k, v in dataclasses.asdict(changed.train_threat).items()}
    return found | {
        "mix": recipe.mix,
        "transforms": changed.transforms,
        "logits": changed.num_transforms if recipe.extra_logits else 0,
        "label": changed.delta if recipe.label_augmentation else 0.0,
        "smoothing": changed.delta if recipe.label_smoothing else 0.0,
    }


def comparisons(study) -> pd.DataFrame:
    """Which runs are set against each other, as columns run and control: one row per comparison.

    A method stands beside its base, an ablation beside its method, Adv⁺ beside its logit without
    the label, and so does Adv⁺ with another δ; then the study's pairs, and `same_attack`.
    """
    runs, same = adversarial_runs(study), same_attack(study)
    told = [*study.pairs, ("adv", same), (same, "adv_plus"), ("adv_extra_logit", "adv_plus")]
    for run in runs:
        method = recipe_of(study, run)[1]
        told.append((study.recipes[run].base if run in study.recipes else method, run))
        if method == "adv_plus" and "delta" in study.ablations.get(run, {}):
            told.append(("adv_extra_logit", run))
    pairs = [(after, before) for before, after in told if before in runs and after in runs]
    return pd.DataFrame(list(dict.fromkeys(pairs)), columns=["run", "control"])


def same_attack(study) -> str | None:
    """The run with Adv⁺'s logit and label and Adv's training attack; None if there is none."""
    runs = {name: ingredients(study, name) for name in adversarial_runs(study)}
    if not {"adv", "adv_plus"} <= set(runs):
        return None
    wanted = runs["adv"] | {key: runs["adv_plus"][key] for key in ("logits", "label")}
    return next((name for name, own in runs.items() if own == wanted), None)


def run_summary(tables: pd.DataFrame, n_resamples: int) -> pd.DataFrame:
    """`MEASURES` of every run with 95 % intervals over images: as `differences`, uncompared."""
    return differences(tables, pd.DataFrame({"run": tables.method.unique()}), n_resamples)


def differences(tables: pd.DataFrame, pairs: pd.DataFrame, n_resamples: int) -> pd.DataFrame:
    """`MEASURES` of each run less its control's, paired on the same images.

    From the table of `advbook.studies.tables.read_audit`, and pairs as of `comparisons`, to run,
    control, benchmark, statistic, value, low and high.
    """
    parts = []
    for benchmark, rows in tables.groupby("benchmark", sort=False):
        shared = metrics.together(dict(list(rows.groupby("method", sort=False))))
        for pair in pairs.to_dict("records"):
            figure = shared.of(*([name] for name in pair.values()))
            found = metrics.summarise(figure, n_resamples=n_resamples)
            found = found[[(benchmark, name) in MEASURES for name in found.statistic]]
            parts.append(found.assign(benchmark=benchmark, **pair))
    columns = [*pairs.columns, "benchmark", "statistic", "value", "low", "high"]
    return pd.concat(parts, ignore_index=True)[columns]


def off_the_line(tables: pd.DataFrame, run: str, n_resamples: int) -> tuple[float, float, float]:
    """How far a run's class-wise SD lies from the line that joins Std and Adv at the run's error.

    The tables are clean predictions of one seed, with a column method: of std, adv and the run.
    Returns the noise-corrected SD less that of the line (negative: more even), and the ends of the
    centred 95 % interval over images, each drawn with all three networks from its own class.
    """
    tables = tables[tables.method.isin(["std", "adv", run])]
    wrong = tables.assign(wrong=tables.predicted_class != tables.label)
    wrong = wrong.pivot(index=["label", "file_name"], columns="method", values="wrong")
    wrong = wrong[["std", "adv", run]]
    classes = [part.to_numpy(float) for _, part in wrong.groupby(level="label")]
    images = np.array([len(part) for part in classes])[:, None]

    def distance(errors, times):  # errors: (…, classes, networks); the noise comes off times
        noise = (errors * (1 - errors) / (images - 1)).mean(axis=-2) * (1 - 1 / len(classes))
        std, adv, own = errors.mean(axis=-2).T
        sd = np.sqrt(np.maximum(errors.var(axis=-2) - times * noise, 0)).T
        return sd[2] - sd[1] - (sd[1] - sd[0]) / (adv - std) * (own - adv)

    rng, drawn = np.random.default_rng(0), []
    for part in classes:  # images that fare alike are drawn together
        kinds, counts = np.unique(part, axis=0, return_counts=True)
        times = rng.multinomial(len(part), counts / len(part), n_resamples)
        drawn.append(times @ kinds / len(part))
    drawn = distance(np.stack(drawn, axis=1), 2)  # a draw adds the noise once more
    value = distance(np.array([part.mean(axis=0) for part in classes]), 1)
    low, high = value + np.percentile(drawn, [2.5, 97.5]) - np.mean(drawn)
    return value, low, high
