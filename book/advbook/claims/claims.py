"""The paper's claims as data, and what the tables of a study say about each."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri

from advbook.claims.table_check import noise_corrected_sd
from advbook.studies.places import tables_folder
from advbook.studies.tables import audit_paths, read_audit, read_study, read_tables, with_real
from advlib import metrics
from advlib.data import annotations
from advlib.metrics import t_interval
from advlib.recipes import RECIPES

HOLDS, FAILS, OPEN = "holds in sign", "does not hold", "not resolved"
# What one training shows by its images is no verdict on a method: another seed may differ.
ALIKE, UNLIKE = "as claimed in one training", "the other way in one training"
CEILING, ABSENT = "cannot be tested (ceiling)", "not measured"
EDGE = 0.01  # with a mean error this near to 0 or 1, the spread over the classes is small of itself
VARIANTS = {  # which of a study's methods stand for the paper's, which does not say what a batch is
    "adversarial batches": {},  # the default reading (Madry)
    "mixed batches": {"adv": "adv_mix", "adv_plus": "adv_plus_mix"},  # the other reading
}
COMPARED = ("std", "adv", "adv_plus")  # the methods that the paper compares
EXCEPTIONS = ("jpeg_compression", "pixelate")  # "except in": no claim that Adv+ is worse there


@dataclass(frozen=True)
class Comparison:
    """One difference, after less before, and the sign that the paper gives it."""

    before: str  # a method
    after: str
    sign: int  # -1: lower after; 1: higher; 0: shown beside the claim, which does not decide it
    part: str = ""  # the corruption or the factor that it is about; all images if empty
    severity: int = 0  # of the corruption; 0: the mean of all five


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: it holds if its comparisons have the signs that it gives them."""

    title: str
    benchmark: str  # clean, real, pgd40 or corruptions
    statistic: str  # error, sd or error_ratio
    comparisons: tuple[Comparison, ...]
    page: str  # of the book, which shows it
    printed: str = ""  # what the paper says where it prints no number
    most: bool = False  # it holds if more than half of the comparisons do, not only if all do


_LABEL = (Comparison("adv", "adv_plus", -1),)
_ATTACK = (Comparison("std", "adv", 1),)

CLAIMS: dict[str, Claim] = {
    "pgd40": Claim("Label augmentation lowers the PGD-40 error", "pgd40", "error", _LABEL, "costs"),
    "clean": Claim("Label augmentation lowers the clean error", "clean", "error", _LABEL, "costs"),
    "mce": Claim("Label augmentation lowers the mCE", "corruptions", "error", _LABEL, "costs"),
    "sd_clean": Claim(
        "Label augmentation lowers the class-wise SD, clean",
        *("clean", "sd", _LABEL, "classes"),
    ),
    "sd_real": Claim(
        "Label augmentation lowers the class-wise SD, ReaL",
        *("real", "sd", _LABEL, "imagenet_models"),
    ),
    "sd_pgd40": Claim(
        "Label augmentation lowers the class-wise SD, PGD-40",
        *("pgd40", "sd", _LABEL, "classes"),
    ),
    "raises_clean": Claim(
        "Adversarial training raises the clean error", "clean", "error", _ATTACK, "costs"
    ),
    "raises_mce": Claim(
        "Adversarial training raises the mCE", "corruptions", "error", _ATTACK, "costs"
    ),
    "lowers_pgd40": Claim(
        "Adversarial training lowers the PGD-40 error",
        *("pgd40", "error", (Comparison("std", "adv", -1),), "costs"),
    ),
    "widens_clean": Claim(
        "Adversarial training widens the class-wise SD, clean",
        *("clean", "sd", _ATTACK, "classes"),
    ),
    "widens_real": Claim(
        "Adversarial training widens the class-wise SD, ReaL",
        *("real", "sd", _ATTACK, "imagenet_models"),
    ),
    "std_lowest": Claim(
        "Std has the lowest class-wise SD under PGD-40",
        *("pgd40", "sd", (*_ATTACK, Comparison("std", "adv_plus", 1)), "classes"),
    ),
    "std_corruptions": Claim(
        "Std errs less than Adv in most of the 75 corrupted conditions",
        *("corruptions", "error"),
        tuple(
            Comparison("std", "adv", 1, name, severity)
            for name in metrics.CORRUPTIONS
            for severity in range(1, 6)
        ),
        *("beyond", "“in most cases”"),
        most=True,
    ),
    "corruptions": Claim(
        "Adv⁺ errs less than Adv on every corruption but JPEG and pixelate",
        *("corruptions", "error"),
        tuple(
            Comparison("adv", "adv_plus", 0 if name in EXCEPTIONS else -1, name)
            for name in metrics.CORRUPTIONS
        ),
        "beyond",
        "all 13",
    ),
    "ratios": Claim(
        "Adversarially trained models have lower error ratios in style and texture",
        *("clean", "error_ratio"),
        tuple(
            Comparison("std", after, -1, factor)
            for factor in ("style", "texture")
            for after in ("adv", "adv_plus")
        ),
        "imagenet_models",
        "lower",
    ),
}
"""The paper's claims by id, in the order in which the verdict page shows them."""


def published_difference(paper: pd.DataFrame, claim: Claim, comparison: Comparison) -> float:
    """The paper's own difference, a fraction; nan where it prints none.

    Parameters
    ----------
    paper : DataFrame
        ``results/paper/published.csv``. SDs there are as printed, not corrected for noise.
    """
    if comparison.part or claim.statistic == "error_ratio":
        return np.nan
    error = "mean_corruption_error" if claim.benchmark == "corruptions" else "error"
    statistic = {"error": error, "sd": "sd"}[claim.statistic]
    chosen = paper[(paper.benchmark == claim.benchmark) & (paper.statistic == statistic)]
    value = chosen.set_index("method").value
    return float(value[comparison.after] - value[comparison.before])


def published_room(paper: pd.DataFrame, claim: Claim, comparison: Comparison) -> float:
    """`published_difference`, were the second method immune to PGD-40; nan for other claims."""
    if (claim.benchmark, claim.statistic) != ("pgd40", "error"):
        return np.nan
    value = paper[paper.statistic == "error"].set_index(["benchmark", "method"]).value
    return float(value["clean", comparison.after] - value["pgd40", comparison.before])


def published_expected(
    paper: pd.DataFrame, claim: Claim, comparison: Comparison, room: float = np.nan
) -> float:
    """What the paper's difference would be in a study; nan where it prints none, or has no room.

    An error's is the printed one; that of a PGD-40 error the same share of the ``room`` that the
    study leaves as of the paper's own (`published_room`); an SD's that of noise-corrected SDs, as
    ours are (`table_check`, 50 images of each of 1,000 classes; ReaL's as printed, since how many
    of its images count is not known).
    """
    printed = published_difference(paper, claim, comparison)
    if not np.isnan(own := published_room(paper, claim, comparison)):
        return printed / own * room if room < 0 else np.nan
    if claim.statistic == "sd" and claim.benchmark != "real":
        chosen = paper[paper.benchmark == claim.benchmark].set_index(["statistic", "method"]).value
        before, after = (
            noise_corrected_sd(chosen["mean", method], chosen["sd", method])
            for method in (comparison.before, comparison.after)
        )
        return float(after - before)
    return printed


def read_evidence(study, source: str) -> tuple[dict, dict]:
    """The tables that the claims are about: clean, ReaL, PGD-40 and corruptions.

    Parameters
    ----------
    study : advbook.studies.schema.Study
    source : {"fresh", "committed"}

    Returns
    -------
    (tables, facts)
        By (benchmark, method, seed). "real" is there for ImageNet's validation images: the clean
        predictions judged by ReaL's label sets, images without a label dropped. Of the methods of
        `VARIANTS` that are among the study's ablations: clean and PGD-40 predictions of the first
        seed, where the same source has all ablations.
    """
    methods = {names.get(m, m) for names in VARIANTS.values() for m in COMPARED}
    wanted = [name for name in ("clean", "pgd40") if name in study.benchmarks]
    whole = with_real(read_study(study, source, wanted))
    facts = dict(whole.attrs["facts"])
    parts = whole.groupby(["benchmark", "method", "seed"], sort=False, observed=True)
    tables = {key: part.reset_index(drop=True) for key, part in parts}
    # One after the other: there are 75 conditions of each.
    for key, table, known in read_tables(study, source, ["corruptions"]):
        tables[key], facts[key] = table, known
    ablated = methods & _as_they_are(study)
    paths = audit_paths(study, tables_folder(study, source), "ablations") if ablated else {}
    if paths and all(path.is_file() for path in paths):
        whole = read_audit(study, source, "ablations")
        whole = whole[whole.method.isin(ablated)]
        for (benchmark, method, seed), part in whole.groupby(["benchmark", "method", "seed"]):
            tables[benchmark, method, seed] = part.reset_index(drop=True)
            facts[benchmark, method, seed] = whole.attrs["facts"][benchmark, method]
    return tuple({k: v for k, v in found.items() if k[1] in methods} for found in (tables, facts))


def _as_they_are(study) -> set[str]:
    """The methods that a study trains as ablations, with nothing else changed."""
    return {
        name
        for name, changes in study.ablations.items()
        if changes["method"] == name and set(changes) <= {"method", "title"}
    }


def compare(study, tables: Mapping[tuple, pd.DataFrame], paper: pd.DataFrame) -> pd.DataFrame:
    """Every comparison of every claim, measured in one study.

    ``value`` is the mean over the training seeds. Its interval ``low`` to ``high`` is over images,
    paired, for these networks; ``sd`` is over seeds. The two never mix. Of an SD, ``value`` is the
    noise-corrected one and ``raw`` the other, for which there is no honest interval
    (`advlib.metrics.bootstrap`).

    Parameters
    ----------
    study : advbook.studies.schema.Study
    tables : mapping
        By (benchmark, method, seed), as of `read_evidence`.
    paper : DataFrame
        The paper's figures, ``results/paper/published.csv``.

    Returns
    -------
    DataFrame
        study, variant, claim, before, after, part, severity, sign, paper (the printed difference),
        paper_room (of a PGD-40 error: the difference were the second method immune, its error the
        clean one), absent (why it was not measured, or ""), value, low, high, raw, n_images, sd,
        n_seeds, n_agree (seeds in which the difference has the paper's sign), error_before and
        error_after (the mean errors behind a difference of SDs), room (here), expected
        (`published_expected`). Differences are fractions, those of error ratios plain numbers.
    """
    rows = []
    # By condition at once, since there are 75 that are asked for one by one.
    errors = {
        key: metrics.error(table, ["corruption", "severity"])
        for key, table in tables.items()
        if key[0] == "corruptions"
    }
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
                row["paper"] = published_difference(paper, claim, asked)
                row["paper_room"] = published_room(paper, claim, asked)
                row["absent"] = _absent(study, tables, claim, here)
                if not row["absent"]:
                    row |= _measure(study, tables, errors, claim, here)
                    left = row.get("room", np.nan)
                    row["expected"] = published_expected(paper, claim, asked, left)
                rows.append(row)
    columns = ["value", "low", "high", "raw", "n_images", "sd", "n_seeds", "n_agree"]
    columns += ["error_before", "error_after", "room", "expected"]
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*table.columns, *(c for c in columns if c not in table)])


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


def _measure(study, tables, errors, claim: Claim, comparison: Comparison) -> dict:
    """A comparison's figures: of all seeds' networks together, and how far these agree.

    errors: of the corruptions' tables, by condition.
    """
    pair = comparison.before, comparison.after
    ablated = not set(pair) <= set(study.methods)
    seeds = study.seeds[:1] if ablated else study.seeds
    before, after = ([tables[claim.benchmark, method, seed] for seed in seeds] for method in pair)
    found = _difference(claim, comparison, before, after, study.n_resamples)
    if np.isnan(found["value"]):
        return {"absent": "no value: too few images for it"}
    if comparison.part and claim.statistic == "error":
        found_in = [[errors[claim.benchmark, m, seed] for seed in seeds] for m in pair]
        ends = ([_chosen(comparison, cells).error.mean() for cells in side] for side in found_in)
    else:
        ends = ([_statistic(claim, comparison, t) for t in side] for side in (before, after))
    single = [there - here for here, there in zip(*ends, strict=True)]
    found |= {"sd": np.std(single, ddof=1) if len(seeds) > 1 else np.nan, "n_seeds": len(seeds)}
    found |= {"n_agree": sum(np.sign(value) == comparison.sign for value in single)}
    if claim.statistic == "sd":
        summaries = [[metrics.class_summary(t) for t in side] for side in (before, after)]
        means = [np.mean([s["mean"] for s in side]) for side in summaries]
        found |= dict(zip(["error_before", "error_after"], means, strict=True))
        raw = [np.mean([s["sd"] for s in side]) for side in summaries]
        found["raw"] = raw[1] - raw[0]
    clean = [tables.get(("clean", pair[1], seed)) for seed in seeds]
    if (claim.benchmark, claim.statistic) == ("pgd40", "error") and clean[0] is not None:
        least, attacked = (np.mean([metrics.error(t) for t in side]) for side in (clean, before))
        found["room"] = least - attacked
    return found


def _statistic(claim: Claim, comparison: Comparison, table: pd.DataFrame) -> float:
    """What a comparison is about, of one network."""
    if claim.statistic == "error_ratio":
        factors = annotations.imagenet_x("top", filter_prototypes=True)
        ratios = metrics.error_ratio(table, factors).set_index("factor").error_ratio
        return ratios[comparison.part]
    if claim.statistic == "sd":
        return metrics.class_summary(table)["sd_noise_corrected"]
    if claim.benchmark == "corruptions" and not comparison.part:
        return metrics.mean_corruption_error(table)
    return metrics.error(table)


def _chosen(comparison: Comparison, table: pd.DataFrame) -> pd.DataFrame:
    """The rows, of images or conditions, of a comparison's corruption and severity."""
    if comparison.part:
        table = table[table.corruption == comparison.part]
    return table[table.severity == comparison.severity] if comparison.severity else table


def _difference(claim: Claim, comparison: Comparison, before, after, n_resamples: int) -> dict:
    """value, low, high and n_images of after - before, each a list of one table a seed."""
    n_images = after[0].file_name.nunique()
    paired = {"paired_with": before, "n_resamples": n_resamples}
    if claim.statistic == "error_ratio":
        factors = annotations.imagenet_x("top", filter_prototypes=True)
        found = metrics.factor_summary(after, factors, **paired).set_index("factor")
        names = ["error_ratio", "ratio_low", "ratio_high", "n_images"]
        value, low, high, n_images = found.loc[comparison.part, names]
    elif claim.statistic == "sd":
        value, low, high = metrics.bootstrap(after, "sd_noise_corrected", **paired)
    elif claim.benchmark == "corruptions" and not comparison.part:
        value, low, high = metrics.corruption_summary(after, **paired)
    else:
        before, after = ([_chosen(comparison, t) for t in side] for side in (before, after))
        paired["paired_with"] = before
        value, low, high = metrics.bootstrap(after, "error", **paired)
    return {"value": value, "low": low, "high": high, "n_images": int(n_images)}


def sides(rows: pd.DataFrame, tests: tuple[int, int] = (1, 1)) -> np.ndarray:
    """On which side each comparison of one claim lies: 1 as claimed, -1 the other, 0 open.

    It lies on a side if its 95 % interval over images does and, with several seeds, the one over
    seeds (`t_interval`); without an interval nothing is decided. Where a comparison has
    no sign (0), 1 says higher and -1 lower.

    Parameters
    ----------
    rows : DataFrame
        As `judge` takes them, without those that have no sign.
    tests : (int, int)
        For how many tests the intervals are widened before they may lie on the claimed side and on
        the other (Bonferroni; over images by the quantiles of a normal distribution).
    """
    sign = rows["sign"].where(rows["sign"] != 0, 1)
    value, low, high = (sign * rows[c].astype(float) for c in ("value", "low", "high"))
    low, high = np.minimum(low, high), np.maximum(low, high)
    for_it, against = (ndtri(1 - 0.025 / n) / ndtri(0.975) for n in tests)
    one = (rows["n_seeds"] == 1).to_numpy()
    least, most = (
        t_interval(value, rows["sd"], rows["n_seeds"], n)[i] for i, n in enumerate(tests)
    )
    hold = (one | (least > 0)) & (value - for_it * (value - low) > 0)
    other = (one | (most < 0)) & (value + against * (high - value) < 0)
    return np.select([hold, other], [1, -1], 0)


def needed(claim: str, n: int) -> int:
    """How many of a claim's n comparisons must hold: all, or more than half."""
    return n // 2 + 1 if CLAIMS[claim].most else n


def judge(rows: pd.DataFrame) -> pd.Series:
    """The verdict on one claim from its comparisons in one study, and why.

    A claim of n comparisons holds if `needed` of them, m, do; it fails if more than n - m lie on
    the other side. Either count may be reached by chance, so the intervals are widened first: for
    n - m + 1 tests to hold (one, where all must), for m to fail. The counts in words are those of
    the 95 % intervals on both sides.

    Parameters
    ----------
    rows : DataFrame
        Those of `compare` for one study, variant and claim.

    Returns
    -------
    Series
        verdict ("holds in sign"; "does not hold"; "not resolved": neither; the first two with one
        seed, if only behind one of the comparisons, "as claimed in one training" and "the other way
        in one training"; "cannot be tested (ceiling)": a mean error within `EDGE` of 0 or 1 leaves
        an SD no room, whatever its sign; "not measured"), why, n_tests, n_hold, n_against (by the
        95 % intervals).
    """
    absent = [reason for reason in dict.fromkeys(rows["absent"]) if reason]
    if absent:
        counts = {"n_tests": 0, "n_hold": 0, "n_against": 0}
        return pd.Series({"verdict": ABSENT, "why": "; ".join(absent), **counts})
    beside, rows = rows[rows["sign"] == 0], rows[rows["sign"] != 0]
    n = len(rows)
    m = needed(rows["claim"].iloc[0], n)
    side, sure = sides(rows), sides(rows, (n - m + 1, m))
    hold, against = int((side == 1).sum()), int((side == -1).sum())
    fails = (sure == -1).sum() > n - m
    verdict = FAILS if fails else HOLDS if (sure == 1).sum() >= m else OPEN
    seeds = sorted({int(n) for n in rows["n_seeds"]})
    if seeds[0] == 1:
        verdict = {HOLDS: ALIKE, FAILS: UNLIKE}.get(verdict, verdict)
    if n > 1:
        why = f"{hold} of {n} as claimed, {against} on the other side{_parts(rows, side)}, "
        why += f"{n - hold - against} open"
        if m < n:
            why += f"; widened for their number, {(sure == 1).sum()} as claimed and "
            why += f"{(sure == -1).sum()} on the other side"
        elif against:
            left = (sure == -1).sum()
            why += f"; widened for {m} tests, {left} on the other side{_parts(rows, sure)}"
    elif verdict != OPEN:
        why = "the interval leaves out zero"
    elif rows["low"].isna().any():
        why = "no interval can be given"
    else:
        over_images = (rows["low"] <= 0) & (rows["high"] >= 0)
        why = f"the interval over {'images' if over_images.all() else 'seeds'} holds zero"
    if edge := at_the_edge(rows):
        # An SD that is small of itself decides nothing, in favour of the claim or against it.
        verdict = CEILING
        why += f"; {edge}"
    if len(beside):
        ways = dict(zip((-1, 0, 1), ("lower", "open", "higher"), strict=True))
        names = beside["part"].str.replace("_", " ")
        changes = [f"{name} {ways[s]}" for name, s in zip(names, sides(beside), strict=True)]
        why += f"; beside it, not judged: {', '.join(changes)}"
    why += "; one seed" if seeds == [1] else f"; {' or '.join(map(str, seeds))} seeds"
    return pd.Series(
        {"verdict": verdict, "why": why, "n_tests": n, "n_hold": hold, "n_against": against}
    )


def _parts(rows: pd.DataFrame, side: np.ndarray) -> str:
    """The corruptions or factors on the other side, in brackets; empty if there are none."""
    names = dict.fromkeys(part.replace("_", " ") for part in rows["part"][side == -1] if part)
    return f" ({', '.join(names)})" if names else ""


def at_the_edge(rows: pd.DataFrame) -> str:
    """The methods whose mean error leaves no room for a spread, in words; empty if none."""
    found = {}
    for end in ("before", "after"):
        for method, error in zip(rows[end], rows[f"error_{end}"].astype(float), strict=True):
            if error <= EDGE or error >= 1 - EDGE:
                name = RECIPES[method].title if method in RECIPES else method
                found[method] = f"{name} errs on {100 * error:.2f} % of the images"
    return ", ".join(found.values())


def size_excluded(rows: pd.DataFrame) -> bool:
    """Is an effect as large as the paper's excluded, by the intervals over images and over seeds?

    They end short of it, whichever side of zero they lie on. False where the paper prints no
    number, where there is no interval, and at the ceiling.
    """
    sign = rows["sign"]
    ends = [sign * rows[column].astype(float) for column in ("low", "high")]
    ends += [sign * end for end in t_interval(rows["value"], rows["sd"], rows["n_seeds"])]
    of_images, of_seeds = np.maximum(*ends[:2]), np.maximum(*ends[2:])
    size = sign * rows["expected"].astype(float)
    short = (size > of_images) & ((rows["n_seeds"] == 1) | (size > of_seeds))
    return bool(short.all() and not at_the_edge(rows))


def verdicts(comparisons: pd.DataFrame) -> pd.DataFrame:
    """`judge` for every study, variant and claim: these columns and its own, in their order."""
    keys = ["study", "variant", "claim"]
    found = [
        {**dict(zip(keys, key, strict=True)), **judge(rows)}
        for key, rows in comparisons.groupby(keys, sort=False)
    ]
    return pd.DataFrame(found)
