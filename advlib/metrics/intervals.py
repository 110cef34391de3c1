"""Statistics of the class errors with their 95 % intervals, over images and over training seeds.

A statistic is one entry of `STATISTICS`; `class_summary`, `summarise` and `bootstrap` read it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from advlib.metrics.resampling import Replicates, error_ends, replicates, varied
from advlib.metrics.tables import SharedImages, Tables, averages, shared_images


class BootstrapInterval(NamedTuple):
    """A statistic and its 95 % interval; nan: no interval."""

    value: float
    low: float
    high: float


class ClassErrors(NamedTuple):
    """The errors of one network in K classes: what a statistic is computed from."""

    classes: pd.DataFrame  # label, n_images, error, noise: one row per class
    errors: np.ndarray  # (K,), the largest first
    mean: float
    sd: float  # population; nan for a single class and for one image per class
    overall: float  # the error over the images; nan where only the classes are known


def class_errors(classes: pd.DataFrame, overall: float = np.nan) -> ClassErrors:
    """``classes``: `averages` by label."""
    errors = np.sort(classes["error"].to_numpy())[::-1]
    # One class has no spread, and one image per class shows only its own noise.
    spread = len(errors) >= 2 and classes["n_images"].max() >= 2
    sd = errors.std() if spread else np.nan
    return ClassErrors(classes, errors, errors.mean(), sd, overall)


def corrected_variance(classes: pd.DataFrame) -> tuple[float, float]:
    """The variance over the classes of two images or more, and the same less its sampling noise.

    nan for fewer than two such classes. The second may be negative.
    """
    kept = classes[classes["n_images"] >= 2]
    observed = float(kept["error"].var(ddof=0)) if len(kept) >= 2 else np.nan
    return observed, observed - (1 - 1 / max(len(kept), 1)) * float(kept["noise"].mean())


def _root(variance):
    return np.sqrt(np.maximum(variance, 0.0))  # nan stays nan


class Resampled:
    """The inputs of an interval; nothing is drawn until a statistic asks for it."""

    def __init__(self, shared: SharedImages, n_resamples: int, seed: int):
        if n_resamples < 1:
            raise ValueError(f"n_resamples must be at least 1, not {n_resamples}.")
        self.shared, self._how = shared, (n_resamples, seed)

    @functools.cached_property
    def classes(self) -> list[pd.DataFrame]:
        """Of each table, as in `ClassErrors`."""
        tables = [self.shared.images.assign(wrong=column) for column in self.shared.wrong.T]
        return [averages(table, ["label"]) for table in tables]

    @functools.cached_property
    def drawn(self) -> Replicates:
        return replicates(self.shared.labels, self.shared.wrong, *self._how)

    @functools.cached_property
    def varied(self) -> bool:
        """Whether `SharedImages.figure` differs between the images of a class."""
        return varied(self.shared.labels, self.shared.figure[:, None]).any()

    def percentiles(self, drawn: np.ndarray) -> Sequence[float]:
        """The interval of a statistic without bias: quantiles of its replicates (resamples, m)."""
        ends = np.quantile(drawn @ self.shared.weights, [0.025, 0.975])
        return ends if self.varied else (np.nan, np.nan)


def _error_interval(of: Resampled) -> Sequence[float]:
    if not of.varied:
        return (np.nan, np.nan)
    return error_ends(of.shared.labels, of.shared.figure, of.shared.unit)


def _mean_interval(of: Resampled) -> Sequence[float]:
    # With classes of equal size the mean over the classes is the error.
    if of.classes[0]["n_images"].nunique() == 1:
        return _error_interval(of)
    return of.percentiles(of.drawn.mean)


def _sd_interval(of: Resampled) -> Sequence[float]:
    """Centred: a replicate holds the noise of the data and its own.

    So the replicates of the variance lie around the observed variance, not around the corrected
    one: their deviations are taken from the former.
    """
    weights, variances = of.shared.weights, of.drawn.variance
    observed, corrected = np.transpose([corrected_variance(classes) for classes in of.classes])
    if len(weights) == 1:
        deviations = variances[:, 0] - observed[0]
        return _root(corrected[0] - np.quantile(deviations, [0.975, 0.025]))
    deviations = (_root(variances) - _root(observed)) @ weights
    return _root(corrected) @ weights - np.quantile(deviations, [0.975, 0.025])


class Statistic(NamedTuple):
    """A figure of a network's class errors.

    ``interval`` gives the ends of the 95 % interval of the mean over networks, or of a difference
    of two; None: no honest one is known.
    """

    title: str
    unit: str  # "%", "points" or "": none
    value: Callable[[ClassErrors], float]
    interval: Callable[[Resampled], Sequence[float]] | None = None


STATISTICS = {
    "error": Statistic("error", "%", lambda of: of.overall, _error_interval),
    "mean": Statistic("mean", "%", lambda of: of.mean, _mean_interval),
    "sd": Statistic("SD", "points", lambda of: of.sd),
    "sd_noise_corrected": Statistic(
        "noise-corrected SD",
        "points",
        lambda of: _root(corrected_variance(of.classes)[1]),
        _sd_interval,
    ),
    "worst": Statistic("worst class", "%", lambda of: of.errors[0]),
    "worst_decile": Statistic(
        "worst decile", "%", lambda of: of.errors[: max(1, len(of.errors) // 10)].mean()
    ),
    "gap": Statistic(
        "gap", "points", lambda of: of.errors[0] - of.errors[-1] if of.sd >= 0 else np.nan
    ),
    "cv": Statistic("SD / mean", "", lambda of: of.sd / (of.mean or np.nan)),
    "sd_normalised": Statistic(
        "SD / √(p(1−p))", "", lambda of: of.sd / np.sqrt(of.mean * (1 - of.mean) or np.nan)
    ),
}
"""The figures of `summarise` and `bootstrap`, `error` over images, the rest over classes."""


def headings(*names: str) -> dict[str, str]:
    """Column titles of these `STATISTICS`, by name: {"gap": "gap (points)"}."""
    found = {name: STATISTICS[name] for name in names}
    return {name: f"{s.title} ({s.unit})" if s.unit else s.title for name, s in found.items()}


def summarise(
    table: Tables | SharedImages,
    *,
    paired_with: Tables | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """`bootstrap` for all `STATISTICS`: columns statistic, value, low, high, n_images."""
    shared = shared_images(table, paired_with)
    of, wrong = Resampled(shared, n_resamples, seed), shared.wrong.T
    each = [class_errors(c, w.mean()) for c, w in zip(of.classes, wrong, strict=True)]
    values = [[s.value(one) for one in each] for s in STATISTICS.values()] @ shared.weights
    # Where no image differs, nor does any statistic.
    shown = varied(shared.labels, shared.wrong).any() and np.round(shared.figure, 12).any()
    none = np.nan, np.nan
    ends = [s.interval(of) if shown and s.interval else none for s in STATISTICS.values()]
    low, high = np.transpose(ends)
    columns = {"statistic": [*STATISTICS], "value": values, "low": low, "high": high}
    return pd.DataFrame(columns).assign(n_images=len(shared.images))


def bootstrap(
    table: Tables | SharedImages,
    statistic: str,
    paired_with: Tables | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> BootstrapInterval:
    """A statistic of a table, or statistic(table) - statistic(paired_with), with its 95 % interval.

    ``statistic`` is one of `STATISTICS`: ``"error"`` (over images) or one of `class_summary`.
    Images are resampled within their class: the classes are fixed. In a table of several conditions
    an image counts with its mean error over all its rows (those `counted`), and carries them all.
    Several tables, such as those of several seeds, have one statistic each, whose mean is taken; an
    image is drawn with all of them, so that the interval is that of these networks on other images.
    ``table`` may also be some of `together`: its images are not checked again.

    * ``error``, ``mean``: percentile intervals (too narrow by 1/(2n) with n images per class).
      Those of the error, and of the mean where all classes have as many images, are exact, as with
      infinitely many resamples.
    * ``sd_noise_corrected``: centred intervals. Resampling adds the sampling noise a second time,
      so that a percentile interval can miss even its own estimate.
    * All others: the value alone, low and high are nan. Noise biases them; simulated at K = 1000,
      n = 50, centred intervals too held the true value in as few as 0 % of cases. For the spread
      use ``sd_noise_corrected``, for single classes `class_error`.

    Also nan where resampling hides the uncertainty: no class has two images of different value
    (all right, all wrong), or more than 5 % of the classes have one image.
    Raises ValueError for an unknown statistic, and if paired tables differ in images or labels.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"unknown statistic {statistic!r}: choose from {', '.join(STATISTICS)}.")
    shared = shared_images(table, paired_with)
    if statistic == "error":  # needs no classes and no draw
        value = shared.weights @ [column.mean() for column in shared.wrong.T]
        return BootstrapInterval(value, *_error_interval(Resampled(shared, n_resamples, seed)))
    found = summarise(shared, n_resamples=n_resamples, seed=seed).set_index("statistic")
    return BootstrapInterval(*found.loc[statistic, ["value", "low", "high"]])


def with_wilson(result: pd.DataFrame) -> pd.DataFrame:
    """The table with the 95 % Wilson interval ``low``, ``high`` of ``error`` over ``n_images``."""
    n, p, z = result["n_images"], result["error"], ndtri(0.975)
    centre, scale = p + z**2 / (2 * n), 1 + z**2 / n
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return result.assign(
        low=((centre - half) / scale).clip(0, 1), high=((centre + half) / scale).clip(0, 1)
    )


def over_seeds(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean and SD over the training seeds, never over anything else.

    ``rows``: columns ``by``, seed, value, one row per seed and combination of ``by``. Returns
    columns ``by``, mean, sd (sample SD, nan for one seed), n_seeds, in the order of ``rows``.
    Raises ValueError if a seed has several rows: their spread would not be that of the seeds.
    """
    by = list(by)
    if (again := rows.duplicated([*by, "seed"])).any():
        which = ", ".join(str(value) for value in rows.loc[again, [*by, "seed"]].iloc[0])
        raise ValueError(f"several rows for one seed ({which}): name what tells them apart in by")
    found = rows.groupby(by, sort=False, observed=True).value.agg(["mean", "std", "count"])
    return found.reset_index().rename(columns={"std": "sd", "count": "n_seeds"})


def t_interval(mean, sd, n_seeds, tests=1):
    """The 95 % interval over seeds, Student's t: wide for few, since so few say little of training.

    ``mean`` and ``sd`` (sample SD) over ``n_seeds`` seeds are numbers or arrays of shape (n,); with
    fewer than two seeds the interval is the whole line. It is widened for this many ``tests``
    (Bonferroni). Returns (low, high), each of the shape of ``mean``.
    """
    n = np.asarray(n_seeds)
    quantile = stdtrit(np.maximum(n - 1, 1), 1 - 0.025 / tests)
    half = np.where(n > 1, quantile * sd / np.sqrt(n), np.inf)
    return mean - half, mean + half
