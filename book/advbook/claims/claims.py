"""The paper's claims as data, and the verdict on each."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import ndtri

from advbook.claims.table_check import noise_corrected_sd
from advlib import metrics
from advlib.metrics import t_interval

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

    ``paper`` is ``results/paper/published.csv``. SDs there are as printed, not corrected for noise.
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


def sides(rows: pd.DataFrame, tests: tuple[int, int] = (1, 1)) -> np.ndarray:
    """On which side each comparison of one claim lies: 1 as claimed, -1 the other, 0 open.

    It lies on a side if its 95 % interval over images does and, with several seeds, the one over
    seeds (`t_interval`); without an interval nothing is decided. The rows are as `judge` takes
    them, without those that have no sign. ``tests`` says for how many tests the intervals are
    widened before they may lie on the claimed side and on the other (Bonferroni; over images by the
    quantiles of a normal distribution).
    """
    value, low, high = (rows["sign"] * rows[c].astype(float) for c in ("value", "low", "high"))
    low, high = np.minimum(low, high), np.maximum(low, high)
    for_it, against = (ndtri(1 - 0.025 / n) / ndtri(0.975) for n in tests)
    one = (rows["n_seeds"] == 1).to_numpy()
    least, most = (
        t_interval(value, rows["sd"], rows["n_seeds"], n)[i] for i, n in enumerate(tests)
    )
    hold = (one | (least > 0)) & (value - for_it * (value - low) > 0)
    other = (one | (most < 0)) & (value + against * (high - value) < 0)
    return np.select([hold, other], [1, -1], 0)


def judge(rows: pd.DataFrame) -> dict:
    """The verdict on one claim from its comparisons in one study.

    A claim of n comparisons holds if m of them do: all, or more than half (`Claim.most`). It fails
    if more than n - m lie on the other side. Either count may be reached by chance, so the
    intervals are widened first: for n - m + 1 tests to hold (one, where all must), for m to fail.

    From the rows of `advbook.claims.evidence.compare` for one study, variant and claim to verdict
    ("holds in sign"; "does not hold"; "not resolved": neither; the first two with one seed, if only
    behind one of the comparisons, "as claimed in one training" and "the other way in one training";
    "cannot be tested (ceiling)": a mean error within `EDGE` of 0 or 1 leaves an SD no room,
    whatever its sign; "not measured"), n_tests, n_hold, n_against (by the 95 % intervals).
    """
    if (rows["absent"] != "").any():
        return {"verdict": ABSENT, "n_tests": 0, "n_hold": 0, "n_against": 0}
    rows = rows[rows["sign"] != 0]
    n = len(rows)
    m = n // 2 + 1 if CLAIMS[rows["claim"].iloc[0]].most else n
    side, sure = sides(rows), sides(rows, (n - m + 1, m))
    verdict = HOLDS if (sure == 1).sum() >= m else OPEN
    if (sure == -1).sum() > n - m:
        verdict = FAILS
    if (rows["n_seeds"] == 1).any():
        verdict = {HOLDS: ALIKE, FAILS: UNLIKE}.get(verdict, verdict)
    if at_the_edge(rows):
        # An SD that is small of itself decides nothing, in favour of the claim or against it.
        verdict = CEILING
    counts = {"n_hold": int((side == 1).sum()), "n_against": int((side == -1).sum())}
    return {"verdict": verdict, "n_tests": n, **counts}


def at_the_edge(rows: pd.DataFrame) -> bool:
    """Whether a mean error behind a difference of SDs leaves no room for a spread."""
    errors = rows[["error_before", "error_after"]].astype(float)
    return bool(((errors <= EDGE) | (errors >= 1 - EDGE)).any(axis=None))


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
