"""The paper's claims as data, and what the tables of a study say about each."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from advlib import annotations, metrics
from advlib.seeds import over_seeds
from advlib.study import METHODS
from advlib.tables import in_per_cent, per_cent, read_study, read_tables, with_real

HOLDS, FAILS, OPEN = "holds in sign", "does not hold", "not resolved"
CEILING, ABSENT = "cannot be tested (ceiling)", "not measured"
VERDICTS = (HOLDS, FAILS, OPEN, CEILING, ABSENT)
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


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: it holds if its comparisons have the signs that it gives them."""

    title: str
    benchmark: str  # clean, real, pgd40 or corruptions
    statistic: str  # error, sd or error_ratio
    comparisons: tuple[Comparison, ...]
    chapter: str  # of a study, by its notebook
    printed: str = ""  # what the paper says where it prints no number
    most: bool = False  # it holds if more than half of the comparisons do, not only if all do


_LABEL = (Comparison("adv", "adv_plus", -1),)
_ATTACK = (Comparison("std", "adv", 1),)
HEADLINES = {"pgd40": "The error under PGD-40", "sd_clean": "The class-wise SD on clean images"}
"""The claims that the abstract is about, and what they say is lowered: told before all others."""

CLAIMS: dict[str, Claim] = {
    "pgd40": Claim(
        "Label augmentation lowers the PGD-40 error", "pgd40", "error", _LABEL, "average_error"
    ),
    "clean": Claim(
        "Label augmentation lowers the clean error", "clean", "error", _LABEL, "average_error"
    ),
    "mce": Claim(
        "Label augmentation lowers the mCE", "corruptions", "error", _LABEL, "average_error"
    ),
    "sd_clean": Claim(
        "Label augmentation lowers the class-wise SD, clean",
        *("clean", "sd", _LABEL, "classwise_error"),
    ),
    "sd_real": Claim(
        "Label augmentation lowers the class-wise SD, ReaL",
        *("real", "sd", _LABEL, "classwise_error"),
    ),
    "sd_pgd40": Claim(
        "Label augmentation lowers the class-wise SD, PGD-40",
        *("pgd40", "sd", _LABEL, "classwise_error"),
    ),
    "raises_clean": Claim(
        "Adversarial training raises the clean error", "clean", "error", _ATTACK, "average_error"
    ),
    "raises_mce": Claim(
        "Adversarial training raises the mCE", "corruptions", "error", _ATTACK, "average_error"
    ),
    "lowers_pgd40": Claim(
        "Adversarial training lowers the PGD-40 error",
        *("pgd40", "error", (Comparison("std", "adv", -1),), "average_error"),
    ),
    "widens_clean": Claim(
        "Adversarial training widens the class-wise SD, clean",
        *("clean", "sd", _ATTACK, "classwise_error"),
    ),
    "widens_real": Claim(
        "Adversarial training widens the class-wise SD, ReaL",
        *("real", "sd", _ATTACK, "classwise_error"),
    ),
    "widens_pgd40": Claim(
        "Adversarial training widens the class-wise SD, PGD-40",
        *("pgd40", "sd", _ATTACK, "classwise_error"),
    ),
    "std_lowest": Claim(
        "Std has the lowest class-wise SD under PGD-40",
        *("pgd40", "sd", (*_ATTACK, Comparison("std", "adv_plus", 1)), "classwise_error"),
    ),
    "std_corruptions": Claim(
        "Std errs less than Adv on most corruptions",
        *("corruptions", "error"),
        tuple(Comparison("std", "adv", 1, name) for name in metrics.CORRUPTIONS),
        *("corruptions", "“in most cases” (Figure 2, no numbers)"),
        most=True,
    ),
    "corruptions": Claim(
        "Adv⁺ errs less than Adv on every corruption but JPEG and pixelate",
        *("corruptions", "error"),
        tuple(
            Comparison("adv", "adv_plus", 0 if name in EXCEPTIONS else -1, name)
            for name in metrics.CORRUPTIONS
        ),
        "corruptions",
        "all 13 (Figure 2, no numbers)",
    ),
    "ratios": Claim(
        "Adversarially trained models have lower error ratios in style and texture",
        *("clean", "error_ratio"),
        tuple(
            Comparison("std", after, -1, factor)
            for factor in ("style", "texture")
            for after in ("adv", "adv_plus")
        ),
        "evaluate_imagenet_x",
        "lower (Figure 4, no numbers)",
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


def read_evidence(study, source: str) -> tuple[dict, dict]:
    """The tables that the claims are about: clean, ReaL, PGD-40 and corruptions.

    Parameters
    ----------
    study : advlib.study.Study
    source : {"fresh", "committed"}

    Returns
    -------
    (tables, facts)
        By (benchmark, method, seed). "real" is there for ImageNet's validation images: the clean
        predictions judged by ReaL's label sets, images without a label dropped.
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
    return tuple({k: v for k, v in found.items() if k[1] in methods} for found in (tables, facts))


def compare(study, tables: Mapping[tuple, pd.DataFrame], paper: pd.DataFrame) -> pd.DataFrame:
    """Every comparison of every claim, measured in one study.

    An interval is over images, paired, and of the study's first seed; ``mean`` and ``sd`` are over
    seeds. The two never mix. Of an SD, ``value`` is the noise-corrected one and ``raw`` the other,
    for which there is no honest interval (`advlib.metrics.bootstrap`).

    Parameters
    ----------
    study : advlib.study.Study
    tables : mapping
        By (benchmark, method, seed), as of `read_evidence`.
    paper : DataFrame
        The paper's figures, ``results/paper/published.csv``.

    Returns
    -------
    DataFrame
        study, variant, claim, before, after, part, sign, paper (the printed difference), value,
        low, high, raw, n_images, mean, sd, n_seeds, n_agree (seeds in which the difference has the
        paper's sign), error_before and error_after (the mean errors behind a difference of SDs),
        absent (why it was not measured, or ""). Differences are fractions, those of error ratios
        plain numbers.
    """
    real = any(key[0] == "real" for key in tables)
    rows = []
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
                row["absent"] = _absent(study, claim, here, real)
                rows.append(row | ({} if row["absent"] else _measure(study, tables, claim, here)))
    columns = ["value", "low", "high", "raw", "n_images", "mean", "sd", "n_seeds", "n_agree"]
    columns += ["error_before", "error_after"]
    table = pd.DataFrame(rows)
    return table.reindex(columns=[*table.columns, *(c for c in columns if c not in table)])


def _absent(study, claim: Claim, comparison: Comparison, real: bool) -> str:
    """Why a comparison cannot be made in a study; empty if it can."""
    missing = {comparison.before, comparison.after} - set(study.methods)
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
    return ""


def _measure(study, tables, claim: Claim, comparison: Comparison) -> dict:
    """A comparison's figures, the interval from the first seed."""
    found = []
    for seed in study.seeds:
        before, after = (
            tables[claim.benchmark, method, seed]
            for method in (comparison.before, comparison.after)
        )
        n_resamples = study.n_resamples if seed == study.seeds[0] else 1  # else the value alone
        row = _difference(claim, comparison.part, before, after, n_resamples)
        found.append({"seed": seed, "all": 0, **row})
    first = found[0]
    if np.isnan(first["value"]):
        return {"absent": "no value: too few images for it"}
    over = over_seeds(pd.DataFrame(found), ["all"]).iloc[0]
    agree = sum(np.sign(row["value"]) == comparison.sign for row in found)
    kept = {key: first[key] for key in first if key not in ("seed", "all")}
    return kept | {
        "mean": over["mean"],
        "sd": over["sd"],
        "n_seeds": len(found),
        "n_agree": int(agree),
    }


def _difference(claim: Claim, part: str, before, after, n_resamples: int) -> dict:
    """value, low, high, raw and n_images of after - before in one seed; of SDs both errors too."""
    n_images = after.file_name.nunique()
    if claim.statistic == "error_ratio":
        factors = annotations.imagenet_x("top", filter_prototypes=True)
        found = metrics.factor_summary(
            after, factors, paired_with=before, n_resamples=n_resamples
        ).set_index("factor")
        names = ["error_ratio", "ratio_low", "ratio_high", "n_images"]
        value, low, high, n_images = found.loc[part, names]
    elif claim.statistic == "sd":
        found = metrics.summarise(after, paired_with=before, n_resamples=n_resamples)
        found = found.set_index("statistic")
        value, low, high = found.loc["sd_noise_corrected", ["value", "low", "high"]]
        errors = {
            "error_before": metrics.class_summary(before)["mean"],
            "error_after": metrics.class_summary(after)["mean"],
        }
        raw = found.loc["sd", "value"]
        values = {"value": value, "low": low, "high": high, "raw": raw}
        return values | {"n_images": n_images} | errors
    elif claim.benchmark == "corruptions" and not part:
        value, low, high = metrics.corruption_summary(
            after, paired_with=before, n_resamples=n_resamples
        )
    else:
        if part:
            before, after = (t[t.corruption == part] for t in (before, after))
        value, low, high = metrics.bootstrap(after, "error", before, n_resamples=n_resamples)
    return {"value": value, "low": low, "high": high, "raw": np.nan, "n_images": int(n_images)}


def sides(rows: pd.DataFrame, tests: tuple[int, int] = (1, 1)) -> np.ndarray:
    """On which side each comparison of one claim lies: 1 as claimed, -1 the other, 0 open.

    It lies on a side if its 95 % interval does and, with several seeds, the difference has that
    sign in all of them; without an interval nothing is decided.

    Parameters
    ----------
    rows : DataFrame
        As `judge` takes them, without those that have no sign.
    tests : (int, int)
        For how many tests the interval is widened before it may lie on the claimed side and on the
        other (Bonferroni, by the quantiles of a normal distribution).
    """
    value, low, high = (rows["sign"] * rows[c].astype(float) for c in ("value", "low", "high"))
    low, high = np.minimum(low, high), np.maximum(low, high)
    for_it, against = (stats.norm.ppf(1 - 0.025 / n) / stats.norm.ppf(0.975) for n in tests)
    hold = (rows["n_agree"] == rows["n_seeds"]) & (value - for_it * (value - low) > 0)
    other = (rows["n_agree"] == 0) & (value + against * (high - value) < 0)
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
        verdict ("holds in sign"; "does not hold"; "not resolved": neither; "cannot be tested
        (ceiling)": a mean error within `EDGE` of 0 or 1 leaves an SD no room, whatever its sign;
        "not measured"), why, n_tests, n_hold, n_against (by the 95 % intervals).
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
    seeds = int(rows["n_seeds"].iloc[0])
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
    elif (rows["n_agree"] % seeds).any():
        why = "the seeds do not agree"
    else:
        why = "the interval holds zero"
    if edge := _at_the_edge(rows):
        # An SD that is small of itself decides nothing, in favour of the claim or against it.
        verdict = CEILING
        why += f"; {edge}"
    if len(beside):
        changes = [f"{row.part.replace('_', ' ')} {_direction(row)}" for row in beside.itertuples()]
        why += f"; beside it, not judged: {', '.join(changes)}"
    why += "; one seed" if seeds == 1 else f"; {seeds} seeds"
    return pd.Series(
        {"verdict": verdict, "why": why, "n_tests": n, "n_hold": hold, "n_against": against}
    )


def _parts(rows: pd.DataFrame, side: np.ndarray) -> str:
    """The corruptions or factors on the other side, in brackets; empty if there are none."""
    names = [part.replace("_", " ") for part in rows["part"][side == -1] if part]
    return f" ({', '.join(names)})" if names else ""


def _at_the_edge(rows: pd.DataFrame) -> str:
    """The methods whose mean error leaves no room for a spread, in words; empty if none."""
    found = {}
    for end in ("before", "after"):
        for method, error in zip(rows[end], rows[f"error_{end}"].astype(float), strict=True):
            if error <= EDGE or error >= 1 - EDGE:
                name = METHODS[method].name if method in METHODS else method
                found[method] = f"{name} errs on {100 * error:.2f} % of the images"
    return ", ".join(found.values())


def _direction(row) -> str:
    """lower, higher or open, by the interval."""
    return "higher" if row.low > 0 else "lower" if row.high < 0 else "open"


def verdicts(comparisons: pd.DataFrame) -> pd.DataFrame:
    """`judge` for every study, variant and claim: these columns and its own, in their order."""
    keys = ["study", "variant", "claim"]
    found = [
        {**dict(zip(keys, key, strict=True)), **judge(rows)}
        for key, rows in comparisons.groupby(keys, sort=False)
    ]
    return pd.DataFrame(found)


def measured_words(rows: pd.DataFrame, names: Mapping[str, str]) -> str:
    """What was measured for one claim, for a table's cell: in points, or as difference of ratios.

    Parameters
    ----------
    rows : DataFrame
        Those of `compare` for one study, variant and claim.
    names : mapping
        The methods' names by id.
    """
    if rows["absent"].any():
        return "–"
    if rows["part"].any():
        return judge(rows)["why"].rpartition(";")[0]  # without the number of seeds
    cells = []
    for row in rows.itertuples():
        which = f"{names[row.before]} → {names[row.after]}: " if len(rows) > 1 else ""
        raw = "" if pd.isna(row.raw) else f" (raw {per_cent(row.raw)})"
        cells.append(f"{which}{in_per_cent(row)}{raw}")
    return "; ".join(cells)


def paper_words(rows: pd.DataFrame) -> str:
    """The paper's own figure for one claim, in points, or what it says without numbers."""
    claim = CLAIMS[rows["claim"].iloc[0]]
    return claim.printed or "; ".join(per_cent(value) for value in rows["paper"])


def share_words(rows: pd.DataFrame, verdict: str) -> str:
    """The measured difference as a share of the printed one, for a table's cell, with its interval.

    "–" where the paper prints no number, or the data say nothing of it. Below zero: the other
    direction. The shares of SDs are those of noise-corrected ones to the SDs as printed.

    Parameters
    ----------
    rows : DataFrame
        Those of `compare` for one study, variant and claim.
    verdict : str
    """
    if verdict in (ABSENT, CEILING) or rows["paper"].isna().any():
        return "–"
    cells = []
    for row in rows.itertuples():
        cell = f"{per_cent(row.value / row.paper, 0)} %"
        if pd.notna(row.low):
            ends = sorted((row.low / row.paper, row.high / row.paper))
            cell += f" [{per_cent(ends[0], 0)},\N{NO-BREAK SPACE}{per_cent(ends[1], 0)}]"
        cells.append(cell)
    return "; ".join(cells)


def overview(
    comparisons: pd.DataFrame,
    judged: pd.DataFrame,
    studies: Mapping,
    variant: str,
    beside: Mapping[tuple[str, str], str],
) -> pd.DataFrame:
    """The table for a reader in a hurry: a row for each claim and study, under one variant.

    Parameters
    ----------
    comparisons, judged : DataFrame
        As of `compare` and `verdicts`, of one or more studies.
    studies : mapping
        id -> advlib.study.Study.
    variant : str
        A key of `VARIANTS`.
    beside : mapping
        (study, claim) -> Markdown that follows what was measured.

    Returns
    -------
    DataFrame
        claim, the paper (in points), study, the verdict and, in Markdown, the link to the chapter
        that shows it, what was measured, and how much that is of the paper's figure.
    """
    verdict = judged.set_index(["claim", "study", "variant"]).verdict
    rows = []
    for name, claim in CLAIMS.items():
        for study_id, study in studies.items():
            part = comparisons[(comparisons.claim == name) & (comparisons.study == study_id)]
            part = part[part.variant == variant]
            found = verdict[name, study_id, variant]
            link = f"**[{found}]({study_id}/{claim.chapter}.ipynb)**"
            measured = measured_words(part, study.names)
            if more := beside.get((study_id, name)):
                measured += f"; {more}"
            rows.append(
                {
                    "the paper's claim": claim.title,
                    "the paper (points)": paper_words(part),
                    "study": study.title,
                    "verdict": found if found == ABSENT else link,
                    "here (points)": measured,
                    "share of the paper's size": share_words(part, found),
                }
            )
    return pd.DataFrame(rows)


def effects(comparisons: pd.DataFrame, studies: Mapping) -> pd.DataFrame:
    """The differences for which the paper prints numbers, measured and printed, each once.

    Returns
    -------
    DataFrame
        study (its title), effect ("Adv → Adv⁺: clean error"), series (the variant, or the paper),
        value, low, high (fractions; the paper's without an interval), claimed ("lower", "higher").
    """
    titles = {"clean": "clean", "real": "ReaL", "pgd40": "PGD-40"}
    originals = {new: old for names in VARIANTS.values() for old, new in names.items()}
    table = comparisons[comparisons.paper.notna()].copy()
    pairs = [
        " → ".join(METHODS[originals.get(m, m)].name for m in pair)
        for pair in zip(table.before, table.after, strict=True)
    ]
    what = [
        f"{titles[claim.benchmark]} {'SD' if claim.statistic == 'sd' else 'error'}"
        if claim.benchmark in titles
        else "mCE"
        for claim in table.claim.map(CLAIMS)
    ]
    table["effect"] = [f"{pair}: {words}" for pair, words in zip(pairs, what, strict=True)]
    table["claimed"] = table.sign.map({-1: "lower", 1: "higher"})
    table["study"] = table.study.map(lambda name: studies[name].title)
    table["series"] = table.variant
    theirs = table.assign(series="the paper (ImageNet)", value=table.paper, low=np.nan, high=np.nan)
    order = {effect: i for i, effect in enumerate(dict.fromkeys(table.effect))}
    both = pd.concat([table[table.absent == ""], theirs], ignore_index=True)
    both = both.drop_duplicates(["study", "effect", "series"])
    both = both.sort_values("effect", key=lambda names: names.map(order), kind="stable")
    return both[["study", "effect", "series", "value", "low", "high", "claimed"]]


def as_markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown, so that the links in its cells are followed and checked."""
    lines = [table.columns, [":---"] * len(table.columns), *table.to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def findings(comparisons: pd.DataFrame, judged: pd.DataFrame, studies: Mapping) -> list[str]:
    """The page in short: at most five sentences that are computed from the tables.

    Parameters
    ----------
    comparisons, judged, studies
        As for `overview`.
    """
    default, mixed = VARIANTS
    lines = headlines(comparisons, judged, studies)
    openings = {FAILS: "Does not hold", HOLDS: "Holds in sign, and its share of the paper's size"}
    for verdict, opening in openings.items():
        parts = {}
        for (study_id, name), rows in _rows(comparisons, default).items():
            known = _verdict(judged, study_id, name, default)
            if known == verdict and name not in HEADLINES:
                parts.setdefault(name, {})[study_id] = _size(rows, verdict)
        told = [
            f"{_lower(CLAIMS[name].title)} ({_each(parts[name], studies)})"
            for name in CLAIMS
            if name in parts
        ]
        lines.append(f"{opening}: {'; '.join(told) or 'none of the other claims'}.")
    totals = {}
    for variant in VARIANTS:
        by_study = judged[judged.variant == variant].groupby("study", sort=False).verdict
        found = {s: counted(part) for s, part in by_study if (part != ABSENT).any()}
        totals[variant] = _each(found, studies)
    lines.append(
        f"In all, of {len(CLAIMS)} claims: {totals[default]}. With clean images in every batch, "
        f"the other reading: {totals[mixed]}."
    )
    return lines


def headlines(comparisons: pd.DataFrame, judged: pd.DataFrame, studies: Mapping) -> list[str]:
    """A sentence for each of `HEADLINES`: what label augmentation does to it, and in the paper."""
    default, lines = next(iter(VARIANTS)), []
    for name, title in HEADLINES.items():
        claim, parts = CLAIMS[name], {}
        for (study_id, known), rows in _rows(comparisons, default).items():
            if known != name:
                continue
            row, verdict = rows.iloc[0], _verdict(judged, study_id, name, default)
            parts[study_id] = f"{in_per_cent(row)} points, *{verdict}*"
            # Only errors: the paper's SDs are not corrected for noise.
            if claim.statistic == "error" and verdict == HOLDS:
                parts[study_id] += f", {share_words(rows, verdict)} of the paper's size"
            if claim.statistic == "error" and pd.notna(row.low):
                if not row.low <= row.paper <= row.high:
                    parts[study_id] += "; an effect of the paper's size lies outside the interval"
        own = comparisons[comparisons.claim == name].paper.iloc[0]
        lines.append(
            f"{title} from Adv to Adv⁺ (the paper: {per_cent(own)} points): "
            f"{_each(parts, studies)}."
        )
    return lines


def conclusion(comparisons: pd.DataFrame, judged: pd.DataFrame, studies: Mapping) -> list[str]:
    """What was found: the headlines, then every claim under its verdict, by study (Markdown)."""
    default, mixed = VARIANTS
    lines = [f"* {line}" for line in headlines(comparisons, judged, studies)]
    for study_id, study in studies.items():
        own = judged[(judged.study == study_id) & (judged.variant == default)].set_index("claim")
        lines.append(f"* {study.title}, {default}: {counted(own.verdict)}.")
        for verdict in VERDICTS:
            titles = [_lower(CLAIMS[name].title) for name in own.index[own.verdict == verdict]]
            lines += [f"  * *{verdict}*: {'; '.join(titles)}."] * bool(titles)
        other = judged[(judged.study == study_id) & (judged.variant == mixed)].set_index("claim")
        if (other.verdict != ABSENT).any():
            moved = other[other.verdict != own.verdict]
            words = [f"{_lower(CLAIMS[n].title)} (*{v}*)" for n, v in moved.verdict.items()]
            lines.append(f"  * otherwise with {mixed}: {'; '.join(words) or 'none'}.")
    return lines


def _rows(comparisons: pd.DataFrame, variant: str) -> dict[tuple[str, str], pd.DataFrame]:
    """(study, claim) -> its comparisons, of those that were measured."""
    chosen = comparisons[(comparisons.variant == variant) & (comparisons.absent == "")]
    return dict(list(chosen.groupby(["study", "claim"], sort=False)))


def _verdict(judged: pd.DataFrame, study: str, claim: str, variant: str) -> str:
    return judged.set_index(["study", "claim", "variant"]).verdict[study, claim, variant]


def _each(parts: Mapping[str, str], studies: Mapping) -> str:
    """One part a study, with its title if there are several."""
    several = len(studies) > 1
    named = [f"{studies[s].title}: {words}" if several else words for s, words in parts.items()]
    return "; ".join(named) or "not measured here"


def _size(rows: pd.DataFrame, verdict: str) -> str:
    """How large a difference is beside the paper's, or how many of several there are."""
    if rows["part"].any():
        counts = judge(rows)
        return f"{counts.n_hold} of {counts.n_tests}, {counts.n_against} the other way round"
    if len(rows) > 1 or rows["paper"].isna().any():
        return "; ".join(in_per_cent(row) for row in rows.itertuples())
    if verdict == HOLDS:
        return share_words(rows, verdict)
    row = rows.iloc[0]
    return f"{in_per_cent(row)}, the paper {per_cent(row.paper)}"


def _lower(title: str) -> str:
    """A title within a sentence; the names of methods keep their capitals."""
    return title[0].lower() + title[1:] if title.startswith(("Label", "Adversarial")) else title


def counted(found: pd.Series) -> str:
    """How many of these verdicts there are of each kind, in words."""
    n = {v: int((found == v).sum()) for v in VERDICTS}
    words = f"{n[HOLDS]} hold in sign, {n[FAILS]} do not hold, {n[OPEN]} are not resolved"
    words += f", {n[CEILING]} cannot be tested (ceiling)" if n[CEILING] else ""
    return words + (f", {n[ABSENT]} were not measured" if n[ABSENT] else "")


def by_corruption(comparisons: pd.DataFrame, studies: Mapping) -> pd.DataFrame:
    """On how many corruptions the second method errs less or more: the counts behind `judge`.

    Returns
    -------
    DataFrame
        study, methods, corruptions, errs less, errs more, open (by the 95 % intervals), and the
        first two again by the intervals that decide ("–" where nothing is judged).
    """
    rows = []
    chosen = comparisons[comparisons.part.isin(metrics.CORRUPTIONS) & (comparisons.absent == "")]
    keys = ["study", "before", "after", "claim", "sign"]
    for (study_id, before, after, claim, sign), part in chosen.groupby(keys, sort=False):
        n, study = len(part), studies[study_id]
        if sign:
            m = needed(claim, n)
            ways = sign * sides(part), sign * sides(part, (n - m + 1, m))
            few = {13: "the thirteen that the claim is about", 15: "all fifteen"}[n]
        else:
            ways = ((part.low > 0) * 1 - (part.high < 0) * 1).to_numpy(), None
            few = "JPEG and pixelate, not judged"
        less, more = ([(way == end).sum() for way in ways if way is not None] for end in (-1, 1))
        row = {"study": study.title, "methods": f"{study.names[before]} → {study.names[after]}"}
        row |= {"corruptions": few, "errs less": less[0], "errs more": more[0]}
        row |= {"open": n - less[0] - more[0]}
        row["less, more when widened"] = f"{less[1]}, {more[1]}" if sign else "–"
        rows.append(row)
    return pd.DataFrame(rows)


def multiplicity(comparisons: pd.DataFrame, judged: pd.DataFrame) -> str:
    """How many verdicts and intervals the page holds, and what chance alone does to as many."""
    n = int((judged.verdict != ABSENT).sum())
    known = comparisons[comparisons.low.notna()]
    of = [(CLAIMS[name].benchmark, CLAIMS[name].statistic) for name in known.claim]
    # Two claims share a comparison.
    intervals = len(known.assign(of=of).drop_duplicates(["study", "of", "before", "after", "part"]))
    return (
        f"The page gives {n} verdicts from {intervals} intervals, each at an uncorrected 95 %: if "
        f"nothing differed at all, about {0.05 * intervals:.0f} of these intervals would leave out "
        "zero."
    )
