"""What a paper's printed figures imply: rounding, sampling noise, conventions.

Pure functions of NumPy arrays, for the page "Do the paper's numbers add up?". Errors and standard
deviations are fractions in [0, 1].
"""

import numpy as np
import scipy

from advlib.metrics import relative_reduction


def rounding_range(a, b, half: float = 0.5e-4) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest abs((a - b) / a) that rounding allows.

    Parameters
    ----------
    a, b : float or array
        Printed numbers, a > `half`.
    half : float
        Half a unit of their last digit; the default is that of per cent with two decimals.

    Returns
    -------
    (low, high), arrays of the same shape.
    """
    a, b = np.asarray(a, float), np.asarray(b, float)
    ends = [relative_reduction(a + i * half, b + j * half) for i in (-1, 1) for j in (-1, 1)]
    sizes = np.abs(ends)
    crosses = np.abs(a - b) <= 2 * half  # a = b lies within the rounding: no change at all
    return np.where(crosses, 0.0, sizes.min(axis=0)), sizes.max(axis=0)


def sampling_noise(mean, sd, n_images: int = 50, n_classes: int = 1000):
    """SD that sampling alone adds to class errors, from their mean and population SD.

    The mean over the classes of p_c (1 - p_c) is mean (1 - mean) - sd², whatever the p_c are, so
    the noise of `advlib.metrics.class_summary` follows from two printed numbers. The default is
    ImageNet's validation set.

    Parameters
    ----------
    mean, sd : float or array
        Mean and population SD of the class errors.
    n_images, n_classes : int
        Images of each class (>= 2), and classes.

    Returns
    -------
    float or array; its square is what is to be subtracted from sd².

    Raises
    ------
    ValueError
        If no class errors in [0, 1] have such a mean and SD, or for fewer than 2 images per class.
    """
    mean, sd = np.asarray(mean, float), np.asarray(sd, float)
    if n_images < 2:
        raise ValueError(f"sampling noise needs 2 images per class or more, got {n_images}.")
    within = mean * (1 - mean) - sd**2
    if np.any(within < -1e-12) or np.any(sd < 0):
        raise ValueError(
            f"errors in [0, 1] of mean {mean} cannot have the SD {sd}: give both as fractions."
        )
    variance = (1 - 1 / n_classes) * np.maximum(within, 0) / (n_images - 1)
    return np.sqrt(variance)[()]


def noise_corrected_sd(mean, sd, n_images: int = 50, n_classes: int = 1000):
    """The SD of the class errors without `sampling_noise`, floored at 0; arguments as there."""
    noise = sampling_noise(mean, sd, n_images, n_classes)
    return np.sqrt(np.maximum(np.asarray(sd, float) ** 2 - noise**2, 0))[()]


def simulated_spread(
    mean: float,
    sd: float,
    rng: np.random.Generator,
    n_images: int = 50,
    n_classes: int = 1000,
    repeats: int = 1000,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw test sets from classes whose true errors are known, and measure their spread.

    Parameters
    ----------
    mean, sd : float
        Of the true class errors: the quantiles of a beta distribution, the same in every set.
    rng : numpy Generator
    n_images, n_classes, repeats : int
        Images of each class, classes, and test sets.

    Returns
    -------
    (seen, corrected), each (repeats,): the population SD of the observed class errors, and its
    `noise_corrected_sd`.
    """
    size = mean * (1 - mean) / sd**2 - 1
    if size <= 0:
        raise ValueError(f"no beta distribution has the mean {mean} and the SD {sd}.")
    steps = (np.arange(n_classes) + 0.5) / n_classes
    true = scipy.stats.beta.ppf(steps, mean * size, (1 - mean) * size)
    errors = rng.binomial(n_images, true, size=(repeats, n_classes)) / n_images
    seen, means = errors.std(axis=1), errors.mean(axis=1)
    return seen, noise_corrected_sd(means, seen, n_images, n_classes)


def miss_from_line(x, y, new_x, new_y) -> np.ndarray:
    """How far new points lie above the least-squares line through known ones.

    Parameters
    ----------
    x, y : array (N,), N >= 2
    new_x, new_y : array

    Returns
    -------
    array, new_y minus the line at new_x.
    """
    slope, intercept = np.polyfit(x, y, 1)
    return np.asarray(new_y, float) - (slope * np.asarray(new_x, float) + intercept)
