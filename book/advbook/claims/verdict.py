"""What the verdict page shows of the claims: marks, numbers, and shares of the paper's effect."""

import numpy as np
import pandas as pd
from scipy.special import nctdtr, ndtri, stdtrit

from advbook.claims.claims import ABSENT, ALIKE, CEILING, CLAIMS, FAILS, HOLDS, OPEN, UNLIKE
from advbook.studies.tables import in_per_cent, per_cent
from advlib.metrics import t_interval

MARKS = {HOLDS: "●", ALIKE: "●", OPEN: "○", FAILS: "✕", UNLIKE: "✕", CEILING: "–", ABSENT: "–"}


def in_points(row, digits: int = 2) -> str:
    """A comparison: its value, the 95 % interval over images, and with several seeds over these.

    "0.33 [0.14, 0.53]; 3 seeds [0.23, 0.44]", in points.
    """
    words = in_per_cent(row, digits)
    if row.n_seeds > 1:
        low, high = (per_cent(end, digits) for end in t_interval(row.value, row.sd, row.n_seeds))
        words += f"; {row.n_seeds:.0f}\N{NO-BREAK SPACE}seeds [{low},\N{NO-BREAK SPACE}{high}]"
    return words


def at_most(rows: pd.DataFrame) -> float:
    """The largest effect in the claimed direction that a claim's intervals allow, a fraction.

    From the rows of `advbook.claims.evidence.compare` for one study, variant and claim: the end of
    the interval over images or of that over seeds, whichever lies further out; nan for a claim of
    several comparisons, and without an interval.
    """
    if len(rows) > 1 or pd.isna(rows["low"].iloc[0]):
        return np.nan
    row = rows.iloc[0]
    ends = [row.low, row.high]
    if row.n_seeds > 1:
        ends += t_interval(row.value, row.sd, row.n_seeds)
    return float(max(row["sign"] * end for end in ends))


def mark(rows: pd.DataFrame, verdict: str) -> str:
    """A verdict as the grid shows it: "●", "○ ≤ 0.2", "✕¹", "–".

    Behind ○ stands `at_most`, where there is one, rounded up to a tenth of a point. ¹ marks a
    comparison of one seed.
    """
    if verdict in (CEILING, ABSENT):
        return MARKS[verdict]
    shown = MARKS[verdict] + "¹" * bool((rows["n_seeds"] == 1).any())
    largest = at_most(rows) if verdict == OPEN else np.nan
    if np.isnan(largest):
        return shown
    return f"{shown}\N{NO-BREAK SPACE}≤\N{NO-BREAK SPACE}{np.ceil(1000 * largest) / 10:z.1f}"


def _each(comparisons: pd.DataFrame, judged: pd.DataFrame):
    """Of each claim that was measured, in their order: its verdict, names and comparisons."""
    keys = ["claim", "study", "variant"]
    known = dict(list(comparisons.groupby(keys, sort=False)))
    order = judged.claim.map(list(CLAIMS).index)
    for row in judged.iloc[order.argsort(kind="stable")].itertuples():
        if row.verdict != ABSENT:
            named = {"claim": CLAIMS[row.claim].title, "study": row.study, "variant": row.variant}
            yield row, named, known[row.claim, row.study, row.variant]


def numbers(comparisons: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """The numbers behind each mark, as text: a row for each claim that was measured.

    From the tables of `advbook.claims.evidence.compare` and `advbook.claims.claims.verdicts`, of
    one or more studies, to claim (its title), study, variant, verdict; "here", in points with both
    intervals, of an SD the noise-corrected one, or how many of several comparisons are as claimed;
    raw SD, here and the paper's; paper, the effect that shares are of (`published_expected`); and
    the share.
    """
    rows = []
    for found, named, part in _each(comparisons, judged):
        row = named | {"verdict": found.verdict, "here": ""}
        row |= {"raw SD": "–", "paper": "–", "share": "–"}
        if part["part"].any():
            row["here"] = f"{found.n_hold} of {found.n_tests} as claimed, "
            row["here"] += f"{found.n_against} the other way"
            rows.append(row)
            continue
        for one in part.itertuples():
            row |= {"here": in_points(one)}
            if pd.notna(one.raw):
                row["raw SD"] = f"{per_cent(one.raw)}; paper {per_cent(one.paper)}"
            if pd.notna(one.expected):
                row["paper"] = per_cent(one.expected)
            if pd.notna(one.expected) and found.verdict != CEILING:
                row["share"] = f"{per_cent(one.value / one.expected, 0)} %"
            rows.append(dict(row))
    return pd.DataFrame(rows)


def shares(comparisons: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """How much of the paper's effect was measured: claims about one difference that it prints.

    Returns claim (its title), study, variant, share (of `published_expected`: 0 for no effect, 1
    for the paper's), low and high (over images), seeds_low and seeds_high (nan with one seed), and
    difference (`in_points`). What cannot be tested is left out.
    """
    rows = []
    for found, named, part in _each(comparisons, judged):
        row = part.iloc[0]
        if len(part) > 1 or found.verdict == CEILING or pd.isna(row.expected):
            continue
        several = row.n_seeds > 1
        seeds = t_interval(row.value, row.sd, row.n_seeds) if several else (np.nan, np.nan)
        named["share"] = row.value / row.expected
        named["low"], named["high"] = sorted(end / row.expected for end in (row.low, row.high))
        named["seeds_low"], named["seeds_high"] = sorted(end / row.expected for end in seeds)
        rows.append(named | {"difference": f"{in_points(row)} points"})
    return pd.DataFrame(rows)


POWER = 0.8  # the chance of seeing an effect that is there


def seeds_needed(effect: float, sd: float) -> float:
    """The fewest seeds whose t-interval shows this effect with a chance of `POWER`, two at least.

    `sd` is the sample SD over seeds. Inf if a thousand are too few, nan without an SD.
    """
    if np.isnan(sd):
        return np.nan
    n = np.arange(2, 1001)
    shift = np.minimum(abs(effect) * np.sqrt(n) / max(sd, 1e-12), 30)  # beyond, it is certain
    seen = 1 - nctdtr(n - 1, shift, stdtrit(n - 1, 0.975)) >= POWER
    return float(n[seen.argmax()]) if seen.any() else np.inf


def images_needed(effect: float, row) -> float:
    """Of how many images the interval over images shows this effect with a chance of `POWER`.

    `row` is a comparison; its interval narrows with the root of their number, the classes stay.
    """
    half = (row.high - row.low) / 2
    return row.n_images * (half / effect * (1 + ndtri(POWER) / ndtri(0.975))) ** 2


def needed(comparisons: pd.DataFrame, judged: pd.DataFrame) -> pd.DataFrame:
    """What would decide each claim about one difference that is not resolved.

    Returns claim (its title), study, variant, n_seeds and n_images (there are), and how many it
    takes to see an effect of the paper's size (seeds_paper, images_paper) and one as large as the
    measured one (seeds_here, images_here); nan where the paper prints no number, and for seeds if
    one was trained: how far trainings differ is not known then.
    """
    rows = []
    for found, named, part in _each(comparisons, judged):
        if found.verdict != OPEN or len(part) > 1:
            continue
        row = part.iloc[0]
        named |= {"n_seeds": row.n_seeds, "n_images": row.n_images}
        for name, effect in {"paper": row.expected, "here": row.value}.items():
            named[f"seeds_{name}"] = seeds_needed(effect, row.sd)
            named[f"images_{name}"] = images_needed(effect, row)
        rows.append(named)
    each = [f"{what}_{whose}" for what in ("seeds", "images") for whose in ("paper", "here")]
    return pd.DataFrame(rows, columns=["claim", "study", "variant", "n_seeds", "n_images", *each])
