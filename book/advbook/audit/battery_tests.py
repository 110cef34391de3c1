"""Is an evaluation by PGD to be trusted? The battery's tests as data, and their verdicts in words.

Every test looks for images that PGD-40 leaves standing although something else breaks them, or for
a reason why PGD would. An image that is wrong unattacked counts as broken by everything, so clean
mistakes are no difference anywhere. The thresholds were fixed before any model was tested.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy

from advlib import metrics

EXPECTED, LOOK, ALARMING = "as expected", "look closer", "alarming"
TOO_FEW, NOT_RUN = "too few images", "not run"
VERDICTS = (EXPECTED, LOOK, ALARMING, TOO_FEW, NOT_RUN)
FEW = 5  # fewer images than this never alarm, however few were attacked
ENOUGH = 446
"""From so many images on no interval spans both a tolerance and its alarm: no test has too few."""

# The literature says in which direction each test should come out, and for some by how much. Both
# numbers are shares of all images. Up to the tolerance a difference is nothing; one that is beyond
# it by more than the choice of images explains (the lower end of a 95 % interval) is looked at more
# closely; one that is as clearly beyond the alarm means that PGD cannot be trusted. One that is not
# clearly beyond the tolerance, and not clearly below the alarm either, says nothing.
WEAKER = {"tolerance": 0.002, "alarm": 0.02}
"""What a weaker attack may find that PGD misses. AutoAttack warns if Square lowers the robust
accuracy by more than 0.2 points (``check_square_sr``), by the point estimate: here the lower end
must exceed them, four of 500 images. That FGSM, noise and transfer are held to the same is ours,
and so is the alarm at ten times as much."""
MORE = {"tolerance": 0.01, "alarm": 0.05}
"""What more of the same may find: the literature expects none, a robust network shows a few tenths
of a point (MadryLab's ResNet-50 at 4/255: 0.2 from 20 steps to 100). Both numbers are ours."""
OTHER = {"tolerance": 0.05, "alarm": 0.1}
"""What another good attack may find. Both numbers are ours, after two entries of RobustBench, the
ImageNet networks of Engstrom and Wong (4.2 and 3.9 points from the error reported by PGD to that of
AutoAttack), and Croce & Hein (2020): more than 10 points in many of the evaluations by which they
identified broken defences."""


@dataclass(frozen=True)
class Test:
    """A test of the battery.

    Parameters
    ----------
    question, expected : str
        As the page shows them.
    source : str
        Where expectation and thresholds come from.
    keys : tuple of str
        These sources in the bibliography.
    tolerance, alarm : float
        See above.
    """

    question: str
    expected: str
    source: str
    keys: tuple[str, ...]
    tolerance: float
    alarm: float


TESTS: dict[str, Test] = {
    "eps_unbounded": Test(
        "Does the error reach 100 % when every image is within reach?",
        "no image stands at the largest ε",
        "Athalye et al. 2018; Carlini et al. 2019; both sizes ours",
        ("athalye2018", "carlini2019"),
        **MORE,
    ),
    "eps_rises": Test(
        "Does the error rise with ε?",
        "an image that falls at one ε falls at the next",
        "Athalye et al. 2018; Carlini et al. 2019; both sizes ours",
        ("athalye2018", "carlini2019"),
        **MORE,
    ),
    "steps": Test(
        "Does the error level off with more steps?",
        "100 steps break what 40 break",
        "Carlini et al. 2019 (twice the steps, no more success); both sizes ours",
        ("carlini2019",),
        **MORE,
    ),
    "iterative": Test(
        "Does iterative beat single-step?",
        "PGD-40 breaks what FGSM breaks",
        "Athalye et al. 2018; Carlini et al. 2019; both sizes ours, after AutoAttack's Square",
        ("athalye2018", "carlini2019"),
        **WEAKER,
    ),
    "transfer": Test(
        "Does white-box beat transfer?",
        "PGD-40 breaks what attacks made on other networks break",
        "Athalye et al. 2018; Carlini et al. 2019; both sizes ours, after AutoAttack's Square",
        ("athalye2018", "carlini2019"),
        **WEAKER,
    ),
    "noise": Test(
        "Does random noise do little?",
        "PGD-40 breaks what 100 uniform draws in the ball break",
        "Athalye et al. 2018; Carlini et al. 2019; both sizes ours, after AutoAttack's Square",
        ("athalye2018", "carlini2019"),
        **WEAKER,
    ),
    "gradients": Test(
        "Are there gradients?",
        "no image stands whose gradient is zero or not finite",
        "AutoAttack's check_zero_gradients and Pintor et al. 2022 warn at one image; alarm ours",
        ("autoattack_code", "pintor2022"),
        tolerance=0.0,
        alarm=0.02,
    ),
    "deterministic": Test(
        "Does the network answer twice the same?",
        "the normalised logits change by at most 0.0001",
        "AutoAttack's check_randomized; Athalye et al. 2018",
        ("autoattack_code", "athalye2018"),
        tolerance=1e-4,
        alarm=1e-4,
    ),
    "logits": Test(
        "Are the outputs logits?",
        "they are no probability distribution",
        "AutoAttack's check_range_output",
        ("autoattack_code",),
        tolerance=0.0,
        alarm=0.0,
    ),
    "losses": Test(
        "Do several losses agree?",
        "PGD on the margin or the DLR adds little to the cross-entropy",
        "Croce & Hein 2020: large logits fail the cross-entropy; both sizes ours, as AutoAttack's",
        ("croce2020", "pintor2022"),
        **OTHER,
    ),
    "restarts": Test(
        "Do restarts add little?",
        "five random starts break what one breaks",
        "Carlini et al. 2019 (random starts should not change the result); both sizes ours",
        ("carlini2019",),
        **MORE,
    ),
    "autoattack": Test(
        "Does AutoAttack find little more?",
        "PGD-40 breaks most of what AutoAttack breaks",
        "Croce & Hein 2020; both sizes ours, after theirs and two entries of RobustBench",
        ("croce2020",),
        **OTHER,
    ),
    "square": Test(
        "Does the attack without gradients add nothing?",
        "Square breaks nothing that the white-box attacks leave",
        "AutoAttack's check_square_sr (0.2 points); Uesato et al. 2018; alarm ours",
        ("autoattack_code", "andriushchenko2020", "uesato2018"),
        **WEAKER,
    ),
}
"""The tests by name, in the order of the page."""

COMPONENTS = {
    "apgd_ce": ("APGD-CE", "APGD, which chooses its own step, on the cross-entropy"),
    "apgd_t": ("APGD-T", "APGD on the DLR loss at each of up to {targets} other classes"),
    "fab_t": ("FAB-T", "FAB, which looks for the boundary to each of up to {targets} classes"),
    "square": ("Square", "Square, which uses no gradients at all"),
}
"""Titles of AutoAttack's components, and what they do."""

ATTACKS = (  # by which networks are compared: the title, a condition that breaks, those that do not
    ("PGD-40", ["pgd40"], []),
    ("AutoAttack", ["square"], []),
    ("AutoAttack alone", ["square"], ["pgd40"]),
)


def interval(count: int, n: int) -> tuple[float, float]:
    """Clopper and Pearson's 95 % interval of a share.

    Exact, where `advlib.metrics` takes Wilson's: most tests find none or a few images, and there
    Wilson's interval misses the true share more often than its 5 %.
    """
    low = 0.0 if count == 0 else float(scipy.stats.beta.ppf(0.025, count, n - count + 1))
    high = 1.0 if count == n else float(scipy.stats.beta.ppf(0.975, count + 1, n - count))
    return low, high


def broken_images(table: pd.DataFrame) -> pd.DataFrame:
    """Which condition breaks which image: a row an image, a column an attack, True where broken.

    Parameters
    ----------
    table : DataFrame
        A prediction table with ``attack``, of one network. Images that are wrong in the condition
        "clean" count as broken everywhere.
    """
    broken = table.assign(wrong=table.label != table.predicted_class)
    broken = broken.pivot(index="file_name", columns="attack", values="wrong")
    return broken.apply(lambda column: column | broken["clean"])


def attack_errors(table: pd.DataFrame) -> pd.DataFrame:
    """The error in each condition: attack, n_images, value, low, high (exact 95 % interval).

    Parameters
    ----------
    table : DataFrame
        As in `broken_images`. Each value is a lower bound on the worst-case error at its ε.
    """
    broken = broken_images(table)
    rows = []
    for attack in table.attack.drop_duplicates():
        count, n = int(broken[attack].sum()), len(broken)
        rows.append((attack, n, count / n, *interval(count, n)))
    return pd.DataFrame(rows, columns=["attack", "n_images", "value", "low", "high"])


def paired_changes(
    table: pd.DataFrame, pairs: list[tuple[str, str]], n_resamples: int
) -> pd.DataFrame:
    """What one network errs more than another on the same images, under PGD-40 and AutoAttack.

    And how much more of it falls to AutoAttack and not to PGD-40, since an attack may favour one.

    Parameters
    ----------
    table : DataFrame
        As in `broken_images`, of several networks, with a column method.
    pairs : list of (before, after)
    n_resamples : int
        Of the bootstrap over images, within their classes.

    Returns
    -------
    DataFrame
        before, after, attack ("PGD-40", "AutoAttack", "AutoAttack alone"), value, low, high
        (fractions), p_value (McNemar's exact test of the images that differ, which are few: the
        interval is too narrow for them). Without the attack's condition there is no row.
    """
    wrong = {}
    for method, part in table.groupby("method", sort=False, observed=True):
        images = part[part.attack == "clean"][[*metrics.IMAGE_COLUMNS]]
        broken = broken_images(part).loc[images.file_name]
        for attack, by, left_by in ATTACKS:
            if (found := _standing(broken, by, left_by)) is not None:
                wrong[method, attack] = images.assign(correct=~found.to_numpy())
    rows = []
    for before, after in pairs:
        for attack, *_ in ATTACKS:
            ends = [wrong.get((method, attack)) for method in (after, before)]
            if all(end is not None for end in ends):
                change = metrics.bootstrap(ends[0], "error", ends[1], n_resamples=n_resamples)
                right = [end.set_index("file_name").correct for end in ends]
                more, fewer = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
                p_value = scipy.stats.binomtest(more, more + fewer).pvalue if more + fewer else 1.0
                rows.append((before, after, attack, *change, p_value))
    columns = ["before", "after", "attack", "value", "low", "high", "p_value"]
    return pd.DataFrame(rows, columns=columns)


def change_rows(table: pd.DataFrame, before: str, after: str, n_resamples: int) -> pd.DataFrame:
    """`paired_changes` of two methods as rows of a result table, the attack as condition."""
    found = paired_changes(table, [(before, after)], n_resamples)
    # AutoAttack's errors stand at its last component.
    found["condition"] = found.attack.map({"PGD-40": "pgd40", "AutoAttack": "square"})
    found = found.dropna(subset="condition")[["condition", "value", "low", "high"]]
    return found.assign(method=after, statistic=f"error less that of {before}")


def battery_verdicts(table: pd.DataFrame, facts: dict) -> pd.DataFrame:
    """The verdict of each test of the battery on one network.

    Parameters
    ----------
    table : DataFrame
        The conditions of `advbook.audit.battery.battery`.
    facts : dict
        Its facts.

    Returns
    -------
    DataFrame
        A row for each of `TESTS`: test, question, expected, measured (words), count, value, low,
        high (shares of all images with an exact 95 % interval; for "deterministic" the largest
        change of the logits), tolerance, threshold (of the alarm), verdict (of `VERDICTS`), words,
        source. A test whose conditions are missing is "not run"; one that found nothing to look at
        has "too few images" where the upper end of its interval lies beyond the alarm.
    """
    broken = broken_images(table)
    rows = []
    for name, test in TESTS.items():
        if name == "deterministic":
            found = _deterministic(facts, broken)
        elif name == "logits":
            found = _logits(facts, broken)
        else:
            found = _counted(test, *_MEASURES[name](broken, facts), len(broken))
        row = {"test": name, "question": test.question, "expected": test.expected, **found}
        row |= {"tolerance": test.tolerance, "threshold": test.alarm, "source": test.source}
        rows.append(row)
    columns = "test question expected measured count value low high tolerance threshold".split()
    return pd.DataFrame(rows)[[*columns, "verdict", "words", "source"]]


def overall(verdicts: pd.DataFrame) -> tuple[str, str]:
    """The verdict on one network, and a sentence: alarming if PGD cannot be trusted with it.

    A network that PGD breaks is not alarming, it is not robust. Without AutoAttack or gradients
    the battery cannot tell ("not run"), nor where any test has too few images, unless another test
    already alarms.
    """
    by_verdict = {v: verdicts[verdicts.verdict == v] for v in VERDICTS}
    names = {v: ", ".join(rows.question) for v, rows in by_verdict.items()}
    if len(by_verdict[ALARMING]):
        return ALARMING, (
            "The error by PGD-40 cannot be trusted: the true worst case may be far worse. "
            f"Alarming: {names[ALARMING]}"
        )
    missing = by_verdict[NOT_RUN]
    if missing.test.isin(["gradients", "autoattack"]).any():
        return NOT_RUN, f"The battery cannot tell, since tests were not run: {names[NOT_RUN]}"
    if len(by_verdict[TOO_FEW]):
        look = f"; look closer: {names[LOOK]}" if len(by_verdict[LOOK]) else ""
        return TOO_FEW, (
            f"The battery cannot tell: too few images for {names[TOO_FEW]} With {ENOUGH} images "
            f"every test can decide. Nothing alarms{look or '.'}"
        )
    if len(by_verdict[LOOK]):
        return LOOK, (
            f"Nothing alarms, but look closer: {names[LOOK]} The error by PGD-40 is a lower bound "
            "that may lie a few points too low."
        )
    return EXPECTED, (
        "No test goes beyond its tolerance. The error by PGD-40 stays a lower bound on the worst "
        "case, and two networks that differ by less than AutoAttack adds are not ranked by it."
    )


def _standing(broken: pd.DataFrame, by: list[str], left_by: list[str]):
    """Images that any of `by` breaks and all of `left_by` leave; None if a condition is missing."""
    if not by or not {*by, *left_by} <= set(broken.columns):
        return None
    return broken[by].any(axis=1) & ~broken[left_by].any(axis=1)


def radii(facts: dict) -> list[str]:
    """The conditions of the error against ε, from the smallest to the largest."""
    threats = facts["conditions"]
    names = [name for name in threats if name in ("clean", "pgd40") or name.startswith("eps_")]
    return sorted(names, key=lambda name: threats[name]["eps"])


def _unbounded(broken, facts):
    last = radii(facts)[-1]
    eps = facts["conditions"][last]["eps"]
    return None if last not in broken else ~broken[last], f"stand at ε = {eps:g}"


def _rises(broken, facts):
    names = [name for name in radii(facts) if name in broken]
    pairs = list(zip(names[:-1], names[1:], strict=True))
    falls = [_standing(broken, [small], [large]) for small, large in pairs]
    worst = int(np.argmax([fall.sum() for fall in falls]))
    small, large = (facts["conditions"][name]["eps"] for name in pairs[worst])
    return falls[worst], f"fall at ε = {small:.3g} and stand at {large:.3g}, the worst pair"


def _transfer(broken, facts):
    sources = [name for name in broken if name.startswith("transfer_")]
    return _standing(broken, sources, ["pgd40"]), "fall to an attack made on another network"


def _losses(broken, facts):
    losses = [name for name in broken if name.startswith("loss_")]
    return _standing(broken, losses, ["pgd40"]), "fall to PGD-40 on another loss"


def _gradients(broken, facts):
    without = {name for names in facts["zero_gradients"].values() for name in names}
    found = pd.Series(broken.index.isin(without), broken.index)
    return found & ~broken["pgd40"], "stand and have a gradient that is zero or not finite"


def _square(broken, facts):
    white_box = [c for c in broken if c in ("pgd40", "steps_100", "restarts_5")]
    white_box += [c for c in broken if c.startswith("loss_")]
    # AutoAttack's rows accumulate: what Square adds are the images that FAB leaves.
    left_by = ["fab_t", *white_box]
    return _standing(broken, ["square"], left_by), "fall to Square alone"


def _beside_pgd(condition, words):
    return lambda broken, facts: (_standing(broken, [condition], ["pgd40"]), words)


_MEASURES = {
    "eps_unbounded": _unbounded,
    "eps_rises": _rises,
    "steps": _beside_pgd("steps_100", "fall to 100 steps, not to 40"),
    "iterative": _beside_pgd("fgsm", "fall to FGSM, not to PGD-40"),
    "transfer": _transfer,
    "noise": _beside_pgd("noise", "fall to noise, not to PGD-40"),
    "gradients": _gradients,
    "losses": _losses,
    "restarts": _beside_pgd("restarts_5", "fall to one of four more starts"),
    "autoattack": _beside_pgd("square", "fall to AutoAttack, not to PGD-40"),
    "square": _square,
}


def _counted(test, found, what, n) -> dict:
    """The verdict on a number of images."""
    if found is None:
        nothing = dict.fromkeys(("count", "value", "low", "high"), np.nan)
        words = "The conditions of this test are missing: nothing can be said."
        return {**nothing, "measured": "–", "verdict": NOT_RUN, "words": words}
    count = int(found.sum())
    low, high = interval(count, n)
    verdict = TOO_FEW if high > test.alarm else EXPECTED
    if low > test.tolerance:
        verdict = ALARMING if low > test.alarm and count >= FEW else LOOK
    size = f"{count} of {n} images ({100 * count / n:.1f} %) {what}"
    words = {
        EXPECTED: f"As expected: {size}.",
        LOOK: f"Look closer: {size}, beyond the {100 * test.tolerance:g} % that mean nothing.",
        ALARMING: f"Alarming: {size}, clearly more than {100 * test.alarm:g} %.",
        TOO_FEW: f"Too few images: {size}, but it may be up to {100 * high:.1f} % of all, and "
        f"{100 * test.alarm:g} % would alarm.",
    }[verdict]
    values = {"count": count, "value": count / n, "low": low, "high": high}
    return {**values, "measured": size, "verdict": verdict, "words": words}


def _flag(raised, broken) -> tuple[str, str]:
    """A flag alarms where it matters: if PGD leaves more than a few images. And what it leaves."""
    left = int((~broken["pgd40"]).sum())
    matters = left >= FEW and interval(left, len(broken))[0] > WEAKER["alarm"]
    verdict = EXPECTED if not raised else ALARMING if matters else LOOK
    return verdict, f"PGD-40 leaves {left} of {len(broken)} images"


def _deterministic(facts, broken) -> dict:
    change, differ = facts["logits_change"], facts["predictions_change"]
    # Written so that logits that are not numbers raise the flag.
    raised = not (change <= TESTS["deterministic"].alarm and differ == 0)
    verdict, left = _flag(raised, broken)
    measured = f"logits change by {change:.1g}, the prediction of {differ} images"
    words = {
        EXPECTED: f"As expected: {measured}.",
        LOOK: f"Look closer: a random network ({measured}), but {left}.",
        ALARMING: f"Alarming: a random network ({measured}) needs attacks on its average.",
    }[verdict]
    known = {"count": differ, "value": change, "low": np.nan, "high": np.nan}
    return {**known, "measured": measured, "verdict": verdict, "words": words}


def _logits(facts, broken) -> dict:
    verdict, left = _flag(facts["outputs"] == "probabilities", broken)
    measured = f"the outputs are {facts['outputs']}"
    words = {
        EXPECTED: f"As expected: {measured}.",
        LOOK: f"Look closer: {measured}, but {left}.",
        ALARMING: f"Alarming: {measured}; take the softmax away and attack the logits.",
    }[verdict]
    known = {"count": np.nan, "value": np.nan, "low": np.nan, "high": np.nan}
    return {**known, "measured": measured, "verdict": verdict, "words": words}
