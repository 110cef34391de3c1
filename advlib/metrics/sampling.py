"""Two-phase sampling: a cheap attack on all images, a strong one on some of those that it left."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import betainc, betaincinv, ndtr

from advlib.metrics.intervals import STATISTICS, class_errors, corrected_variance, with_wilson
from advlib.metrics.tables import codes_of, require


class TwoPhase(NamedTuple):
    """What `two_phase` finds."""

    table: pd.DataFrame
    classes: pd.DataFrame
    statistics: pd.DataFrame


def two_phase(table: pd.DataFrame, *, n_resamples: int = 10_000, seed: int = 0) -> TwoPhase:
    """Class errors and their statistics where a strong attack met a draw of the images.

    Parameters
    ----------
    table : DataFrame
        One row per image: ``label``, ``broken_by`` (text, "" where it stands) and ``drawn``
        (boolean): whether the strong attack met it. What stands undrawn it might have broken.
    n_resamples, seed : int
        Of the intervals of the spread.

    Returns
    -------
    TwoPhase
        ``table``; ``classes``: label, n_images, standing (after the cheap attack), drawn, broken
        (of these), error, noise (its sampling variance), ``low``, ``high`` (95 % interval over
        images and draw) and ``low_drawn``, ``high_drawn`` (over the draw alone: of the error that
        the strong attack would find on all these images); ``statistics``: statistic, value and
        these ends of each of `advlib.metrics.STATISTICS`, over the draw alone for error and mean.

    Raises
    ------
    ValueError
        If a column is missing, or fewer than two of a class's standing images were drawn.

    Notes
    -----
    Of n images s stand, m of these are drawn and b of them fall: the error is
    (n - s)/n + (s/n)(b/m), without bias. Its interval, and those of error and mean, join two of
    Wilson's, over images and over the draw (without replacement), by their squared distances from
    the value (MOVER; Zou & Donner 2008). Where all are drawn it is that of `class_error`.

    Those of worst, worst_decile and gap reach from the highest lower ends of all classes
    (Bonferroni) to the highest upper ones: they are wider than need be. Those of the spread are of
    the true classes, as `bootstrap`'s of ``sd_noise_corrected``; a value that noise raises may lie
    above. Simulated, with 10 images drawn per class they held the true one in 84 to 95 % of cases.
    """
    counts = _counts(table)
    figures = _figures(*counts[["n_images", "standing", "drawn", "broken"]].to_numpy(float).T)
    classes = counts.assign(error=figures.error, noise=figures.noise)
    n, k = figures.n, len(counts)
    weights = np.vstack([n / n.sum(), np.full(k, 1 / k), np.eye(k)])
    ends = _intervals(figures, weights)
    of = class_errors(classes, weights[0] @ figures.error)
    values = {name: statistic.value(of) for name, statistic in STATISTICS.items()}
    statistics = pd.DataFrame({"value": values}).join(ends[:2].set_axis(["error", "mean"]))
    for name, found in (_extremes(figures) | _spreads(figures, classes, n_resamples, seed)).items():
        statistics.loc[name, ["low", "high"]] = found
    statistics = statistics.rename_axis("statistic").reset_index()
    return TwoPhase(table, classes.join(ends[2:].reset_index(drop=True)), statistics)


class _Figures(NamedTuple):
    """Of K classes (K,), or of resampled ones (n_resamples, K)."""

    n: np.ndarray
    standing: np.ndarray
    drawn: np.ndarray
    rate: np.ndarray  # of the drawn images that fell
    error: np.ndarray
    noise: np.ndarray


def _counts(table: pd.DataFrame) -> pd.DataFrame:
    require(table, ["label", "broken_by", "drawn"])
    codes, counts = codes_of(table, ["label"])
    stands, drawn = (table.broken_by == "").to_numpy(), table.drawn.to_numpy(bool)
    parts = {"n_images": stands | True, "standing": stands | drawn, "drawn": drawn}
    parts |= {"broken": drawn & ~stands}
    counts = counts.assign(**{k: np.bincount(codes, v).astype(int) for k, v in parts.items()})
    if len(few := counts[counts.drawn < np.minimum(2, counts.standing)]):
        raise ValueError(
            f"of class {few.label.iloc[0]}, {few.drawn.iloc[0]} of {few.standing.iloc[0]} standing "
            "images were drawn: without two nothing is known of the chance in the draw"
        )
    return counts


def _figures(n, standing, drawn, broken) -> _Figures:
    rate, share = broken / np.maximum(drawn, 1), standing / n
    error = 1 - share * (1 - rate)
    of_draw = share**2 * (1 - drawn / np.maximum(standing, 1)) * rate * (1 - rate)
    of_draw = of_draw / np.maximum(drawn - 1, 1)
    # Without bias: the observed p(1-p) lacks what the draw adds to the variance of p.
    noise = of_draw + (error * (1 - error) + of_draw) / np.where(n > 1, n - 1, np.nan)
    return _Figures(n, standing, drawn, rate, error, noise)


def _intervals(figures: _Figures, weights: np.ndarray) -> pd.DataFrame:
    """Of means of the class errors with these weights (J, K), each row of sum 1."""
    n, s, m, rate, error, _ = figures
    parts = weights * s / n
    share = parts.sum(1)
    parts = parts / np.where(share > 0, share, 1)[:, None]
    # A rate r among m of s, without replacement, has the variance r(1-r) times this.
    left = np.divide(s - m, (s - 1) * m, out=np.zeros_like(s), where=s > m)
    of_draw = share * _wilson(parts, rate, m, left)
    both = np.hypot(_wilson(weights, error, n, 1 / n), of_draw)
    ends = np.vstack([weights @ error + part * [[-1], [1]] for part in (both, of_draw)])
    return pd.DataFrame(ends.clip(0, 1).T, columns=["low", "high", "low_drawn", "high_drawn"])


def _wilson(weights, rates, sizes, variance) -> np.ndarray:
    """How far Wilson's ends lie below and above the means of rates, (2, J).

    A rate r has the variance r(1-r) times ``variance`` (K,).
    """
    rate = _smooth(rates, sizes)
    p, mean, variance = weights @ rates, weights @ rate, weights**2 @ (rate * (1 - rate) * variance)
    size = np.divide(mean * (1 - mean), variance, out=np.full(len(p), np.inf), where=variance > 0)
    ends = with_wilson(pd.DataFrame({"error": p, "n_images": size}))
    return np.stack([p - ends.low, ends.high - p])


def _smooth(rates, sizes) -> np.ndarray:
    """Rates, those of few images drawn towards that of all, so that none is certain."""
    of_all = (rates @ sizes + 0.5) / (sizes.sum() + 1)
    return (rates * sizes + 5 * of_all) / (sizes + 5)


def _extremes(figures: _Figures) -> dict:
    """Ends of the largest true class errors, and of their distance from the smallest."""
    classes, found = len(figures.n), {}
    plain, sure = _class_ends(figures, 0.025), _class_ends(figures, 0.025 / classes)
    for name, count in (("worst", 1), ("worst_decile", max(1, classes // 10))):
        found[name] = [np.sort(ends)[-count:].mean() for ends in (sure[0], plain[1])]
    if classes > 1:
        low, high = sure[0].max() - sure[1].min(), plain[1].max() - plain[0].min()
        found["gap"] = max(0, low), high
    return found


def _class_ends(figures: _Figures, level: float) -> list[np.ndarray]:
    """Low and high (K,) of the class errors, each missed with probability `level` at most.

    An error is 1 - ab: of the images a share a stands, and of these a share b after the strong
    attack. The ends of Clopper and Pearson at all levels make a distribution of either; those of
    their product are the ends of ab (melding; Fay, Proschan & Brittain 2015), however few fell.
    """
    n, m = figures.n, figures.drawn
    stayed = m * (1 - figures.rate)
    whole = m == figures.standing  # then the class is one sample of n, and b is 1
    left = np.where(whole, stayed, figures.standing)
    m, stayed = np.where(whole, 1e12, [m, stayed])
    at = np.linspace(-5, 5, 40)[:, None]
    weights, ends = np.exp(-(at[:, 0] ** 2) / 2), []
    for more in (1, 0):
        a_from, b_from = (
            np.maximum([count + more, size - count + 1 - more], 1e-9)  # at 0 it is one point
            for count, size in ((left, n), (stayed, m))
        )
        a, low, high = betaincinv(*a_from, ndtr(at)), np.zeros_like(n), np.ones_like(n)
        for _ in range(20):
            middle = (low + high) / 2
            below = betainc(*b_from, np.minimum(middle / np.maximum(a, 1e-300), 1))
            above = np.average(below, axis=0, weights=weights) > abs(more - level)
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        ends.append(1 - (low + high) / 2)
    return ends


@np.errstate(invalid="ignore")  # a resample may have errors of 0 alone, or of 1
def _spreads(figures: _Figures, classes: pd.DataFrame, n_resamples: int, seed: int) -> dict:
    """Ends of the true classes' spread, by resampling images and draw."""
    kept = figures.n >= 2
    n, s, m, rate, error, _ = (part[kept] for part in figures)
    if len(n) < 2 or np.isin(error, [0, 1]).all():
        return {}
    rate, rng = _smooth(rate, m), np.random.default_rng(seed)
    standing = rng.binomial(n.astype(int), s / n, (n_resamples, len(n)))
    drawn = np.rint(standing * m / np.maximum(s, 1)).astype(int).clip(2, standing)
    resampled = _figures(n, standing, drawn, rng.binomial(drawn, rate))
    # Around the errors that were resampled, of whose variance this is free of bias.
    variances = resampled.error.var(1) - (1 - 1 / len(n)) * resampled.noise.mean(1)
    truth, found = 1 - s / n * (1 - rate), {}
    observed = corrected_variance(classes)[1]
    scales = {"sd": np.ones_like, "sd_noise_corrected": np.ones_like, "cv": np.square}
    for name, scale in (scales | {"sd_normalised": lambda mean: mean * (1 - mean)}).items():
        around = truth.var() / scale(truth.mean())
        deviations = variances / scale(resampled.error.mean(1)) - around
        ends = observed / scale(error.mean()) - np.quantile(deviations, [0.975, 0.025])
        found[name] = np.sqrt(np.maximum(ends, 0))
    return found
