"""What the tables of a study say about each claim of the paper."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd

from advbook.audit.analysis import together
from advbook.claims import claims
from advbook.claims.claims import CLAIMS, COMPARED, VARIANTS, Claim, Comparison
from advlib import metrics
from advlib.data import annotations

FIGURES = ["value", "low", "high", "raw", "n_images", "sd", "n_seeds"]
FIGURES += ["error_before", "error_after", "room", "expected"]
"""What is measured in each comparison, nan where it is not."""


def evidence_of(
    study, tables: Mapping[tuple, pd.DataFrame], ablations: pd.DataFrame | None = None
) -> dict[tuple, pd.DataFrame]:
    """Of a study's tables those that the claims are about: clean, ReaL, PGD-40 and corruptions.

    The tables are by (benchmark, method, seed), with "real" for ImageNet's validation images
    (`advbook.audit.analysis.with_real`). With ``ablations``, those of `read_audit`, come the
    methods of `VARIANTS` that the study trains as ablations, with nothing else changed.
    """
    methods = {names.get(m, m) for names in VARIANTS.values() for m in COMPARED}
    asked = {claim.benchmark for claim in CLAIMS.values()}
    found = {key: t for key, t in tables.items() if key[0] in asked and key[1] in methods}
    ablated = {
        name
        for name, changes in study.ablations.items()
        if changes["method"] == name in methods and set(changes) <= {"method", "title"}
    }
    if ablated and ablations is not None:
        rows = ablations[ablations.method.isin(ablated)]
        for key, part in rows.groupby(["benchmark", "method", "seed"]):
            found[key] = part.reset_index(drop=True)
    return found


def compare(study, tables: Mapping[tuple, pd.DataFrame], paper: pd.DataFrame) -> pd.DataFrame:
    """Every comparison of every claim, measured in one study.

    ``value`` is the mean over the training seeds. Its interval ``low`` to ``high`` is over images,
    paired, for these networks; ``sd`` is over seeds. The two never mix. Of an SD, ``value`` is the
    noise-corrected one and ``raw`` the other, for which there is no honest interval
    (`advlib.metrics.bootstrap`).

    From the tables of `evidence_of` and the paper's figures, ``results/paper/published.csv``, to
    study, variant, claim, before, after, part, severity, sign, paper (the printed difference),
    paper_room (of a PGD-40 error: the difference were the second method immune, its error the clean
    one), absent (why it was not measured, or ""), value, low, high, raw, n_images, sd, n_seeds,
    error_before and error_after (the mean errors behind a difference of SDs), room (here), expected
    (`published_expected`). Differences are fractions, those of error ratios plain numbers.
    """
    rows, known = [], _Known(tables)
    for variant, names in VARIANTS.items():
        for name, claim in CLAIMS.items():
            for asked in claim.comparisons:
                here = dataclasses.replace(
                    asked,
                    before=names.get(asked.before, asked.before),
                    after=names.get(asked.after, asked.after),
                )
                row = {"study": study.study, "variant": variant, "claim": name}
                row |= dataclasses.asdict(here)
                row["paper"] = claims.published_difference(paper, claim, asked)
                row["paper_room"] = claims.published_room(paper, claim, asked)
                row |= dict.fromkeys(FIGURES, np.nan)
                row["absent"] = _absent(study, tables, claim, here)
                if not row["absent"]:
                    row |= _measure(study, known, claim, here)
                    row["expected"] = claims.published_expected(paper, claim, asked, row["room"])
                rows.append(row)
    return pd.DataFrame(rows)


def _absent(study, tables, claim: Claim, comparison: Comparison) -> str:
    """Why a comparison cannot be made in a study; empty if it can."""
    real = any(key[0] == "real" for key in tables)
    known = {method for _, method, _ in tables} | set(study.methods)
    missing = {comparison.before, comparison.after} - known
    if missing:
        return f"the study has no {' and no '.join(sorted(missing))} among its methods"
    if claim.benchmark == "corruptions" and study.corruptions == "none":
        return study.unavailable["corruptions"]
    if claim.benchmark == "pgd40" and "pgd40" not in study.attacks:
        return "the study has no attack pgd40"
    not_validation = "the images are not ImageNet's validation images"
    if claim.benchmark == "real" and not real:
        return study.unavailable.get("evaluate_real", not_validation)
    if claim.statistic == "error_ratio" and not real:
        reason = study.unavailable.get("evaluate_imagenet_x", not_validation)
        return f"{reason}; factors measured on pixels are no stand-in for them"
    ablated = {comparison.before, comparison.after} - set(study.methods)
    if ablated and claim.benchmark not in ("clean", "pgd40"):
        return "ablations are evaluated on clean and attacked images alone"
    return ""


class _Known:
    """What many comparisons ask of a study's tables, each thing worked out once."""

    def __init__(self, tables: Mapping[tuple, pd.DataFrame]):
        self.tables, self.shared = tables, together(tables)
        self.wrong = {}  # of each image, in each of the 75 conditions
        for key in [key for key in tables if key[0] == "corruptions"]:
            table = tables[key].assign(wrong=1.0 - metrics.correct(tables[key]))
            wide = table.pivot(
                index="file_name", columns=["corruption", "severity"], values="wrong"
            )
            self.wrong[key] = wide.loc[self.shared["corruptions"].images.file_name]


def _measure(study, known: _Known, claim: Claim, comparison: Comparison) -> dict:
    """A comparison's figures: of all seeds' networks together, and how far these agree."""
    pair = comparison.before, comparison.after
    ablated = not set(pair) <= set(study.methods)
    seeds = study.seeds[:1] if ablated else study.seeds
    before, after = ([(claim.benchmark, method, seed) for seed in seeds] for method in pair)
    found = _difference(known, claim, comparison, before, after, study.n_resamples)
    if np.isnan(found["value"]):
        return {"absent": "no value: too few images for it"}
    sides = zip(before, after, strict=True)
    single = [_difference(known, claim, comparison, [b], [a], 1)["value"] for b, a in sides]
    found |= {"sd": np.std(single, ddof=1) if len(seeds) > 1 else np.nan, "n_seeds": len(seeds)}
    if claim.statistic == "sd":
        first, second = (
            pd.DataFrame([metrics.class_summary(known.tables[key]) for key in side]).mean()
            for side in (before, after)
        )
        found |= {"error_before": first["mean"], "error_after": second["mean"]}
        found["raw"] = second["sd"] - first["sd"]
    clean = [("clean", pair[1], seed) for seed in seeds]
    if (claim.benchmark, claim.statistic) == ("pgd40", "error") and clean[0] in known.tables:
        sides = [[metrics.error(known.tables[key]) for key in side] for side in (clean, before)]
        least, attacked = map(np.mean, sides)
        found["room"] = least - attacked
    return found


def _conditions(comparison: Comparison) -> tuple[str, list[int]]:
    return comparison.part, [comparison.severity] if comparison.severity else [1, 2, 3, 4, 5]


def _difference(known: _Known, claim: Claim, comparison: Comparison, before, after, n_resamples):
    """value, low, high and n_images of after - before, each the keys of one table per seed."""
    sides = [[key[1:] for key in side] for side in (after, before)]
    shared, how = known.shared[claim.benchmark], {"n_resamples": n_resamples}
    if claim.statistic == "error_ratio":
        (found,) = metrics.factor_summary(shared, annotations.imagenet_x(), [sides], **how)
        names = ["error_ratio", "ratio_low", "ratio_high", "n_images"]
        value, low, high, n_images = found.set_index("factor").loc[comparison.part, names]
        return {"value": value, "low": low, "high": high, "n_images": int(n_images)}
    images = shared.of(*sides)
    if comparison.part:  # in these conditions alone
        which = _conditions(comparison)
        wrong = [known.wrong[key].loc[:, which].mean(axis=1) for key in (*after, *before)]
        images = images._replace(wrong=np.column_stack(wrong), rows=len(which[1]))
    statistic = "sd_noise_corrected" if claim.statistic == "sd" else "error"
    value, low, high = metrics.bootstrap(images, statistic, **how)
    return {"value": value, "low": low, "high": high, "n_images": len(images.images)}
