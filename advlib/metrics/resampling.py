"""Resampling images within their classes: drawn, or exactly, as with infinitely many draws."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd


class Replicates(NamedTuple):
    """Figures of resampled images, each of shape (n_resamples, m)."""

    mean: np.ndarray  # the mean over the classes, each counting once
    variance: np.ndarray  # over the classes with two images or more, noise-corrected; may be < 0


def varied(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Booleans (m,): does resampling within the classes show how uncertain a column is?

    ``labels`` (N,), ``values`` (N, m). No, if no class has two images of different value, or if
    more than 5 % of the classes have one image.
    """
    # Rounded: the mean of several seeds less that of others is zero only to some 1e-17.
    classes = pd.DataFrame(np.round(values, 12)).groupby(labels)
    within = (classes.max() > classes.min()).any().to_numpy()
    return within & ((classes.size() == 1).mean() <= 0.05)


def draws(labels: np.ndarray, values: np.ndarray, n_resamples: int, seed: int) -> Iterator[tuple]:
    """Yield, for each class and block of resamples: rows, n, counts, distinct.

    ``rows`` is a slice of the resamples, ``n`` how many images the class has. They are drawn with
    replacement, all m columns of ``values`` (N, m) together, and sum to counts @ distinct (d, m).
    """
    rng, order = np.random.default_rng(seed), np.argsort(labels, kind="stable")
    for images in np.split(values[order], np.flatnonzero(np.diff(labels[order])) + 1):
        # Images of equal values are interchangeable: where most are, only their counts are drawn.
        distinct, sizes = np.unique(images, axis=0, return_counts=True)
        n, few = len(images), 8 * len(distinct) <= len(images)
        for rows in np.array_split(np.arange(n_resamples), -(-n_resamples // 1000)):
            if few:
                counts = rng.multinomial(n, sizes / n, size=len(rows))
            else:
                drawn = rng.integers(n, size=(len(rows), n), dtype=np.min_scalar_type(max(n, 256)))
                counts = np.empty((len(rows), n))
                for part in np.array_split(rows - rows[0], 10):  # which fits in the cache
                    own = drawn[part] + n * np.arange(len(part))[:, None]
                    counts[part] = np.bincount(own.ravel(), minlength=own.size).reshape(own.shape)
            yield slice(rows[0], rows[-1] + 1), n, counts, distinct if few else images


def replicates(labels: np.ndarray, values: np.ndarray, n_resamples: int, seed: int) -> Replicates:
    """The figures of ``n_resamples`` resamples of values (N, m), drawn within labels (N,)."""
    means, kept_means, squares, noise = np.zeros((4, n_resamples, values.shape[1]))
    sizes = np.unique(labels, return_counts=True)[1]
    k = max(1, (sizes >= 2).sum())
    for rows, n, counts, distinct in draws(labels, values, n_resamples, seed):
        drawn, square = np.hsplit(counts @ np.hstack([distinct, distinct**2]) / n, 2)
        means[rows] += drawn / len(sizes)
        if n >= 2:
            kept_means[rows] += drawn
            squares[rows] += drawn**2
            noise[rows] += (square - drawn**2) / (n - 1)
    variances = squares / k - (kept_means / k) ** 2 - (k - 1) / k * noise / k
    return Replicates(means, variances)


def error_ends(labels: np.ndarray, values: np.ndarray, unit: int) -> np.ndarray:
    """The 2.5 and 97.5 % quantiles of the resampled mean, as with infinitely many resamples.

    ``labels`` (N,); ``values`` (N,), multiples of 1 / unit. Returns an array of shape (2,).

    Notes
    -----
    Counted from the lowest value in steps of 1 / unit, the values are whole numbers u >= 0.

    1. One image drawn from class c has value u with probability h_c(u), the share of the class's
       images that have it. The discrete Fourier transform of the histogram h_c is the
       characteristic function f_c(t) = sum_u h_c(u) exp(-2 pi i t u / period).
    2. Of n_c independent draws from each class c, the sum S has F(t) = prod_c f_c(t)^n_c. Classes
       of one size n share a power: (prod f_c)^n.
    3. The inverse transform of F gives P(S = s), but periodically: s and s + period fall on one
       place. The period is at least 16 standard deviations of S, so that a window of one period
       around the mean of S holds all but 1e-15 of the probability.
    4. The ends are the smallest s at which the cumulated probability reaches 0.025 and 0.975. Times
       1 / (unit N), plus the lowest value, they are means.
    """
    units = np.rint(values * unit).astype(np.int64)
    lowest, by_class = units.min(), units[np.argsort(labels, kind="stable")]
    sizes = np.unique(labels, return_counts=True)[1]
    classes = np.split(by_class - lowest, np.cumsum(sizes)[:-1])  # whole numbers from 0
    sd_of_sum = np.sqrt(sum(len(one) * one.var() for one in classes))
    period = 1 << int(16 * sd_of_sum + by_class.max() - lowest + 2).bit_length()  # FFTs like 2^k
    product_by_size = dict.fromkeys(sizes.tolist(), 1.0)
    for one in classes:
        histogram = np.bincount(one) / len(one)
        product_by_size[len(one)] *= np.fft.rfft(histogram, period)
    of_sum = np.prod([product**n for n, product in product_by_size.items()], axis=0)
    window_start = round((by_class - lowest).sum()) - period // 2  # around the mean of S
    probabilities = np.roll(np.fft.irfft(of_sum, period), -window_start)
    ends = window_start + np.searchsorted(np.cumsum(probabilities), [0.025, 0.975])
    return (ends + lowest * len(units)) / (unit * len(units))
