"""What a paper's printed figures imply: rounding, sampling noise, conventions.

Pure functions of NumPy arrays, for the page "Do the paper's numbers add up?". Errors and standard
deviations are fractions in [0, 1].
"""

import numpy as np
import scipy

from advlib.metrics import relative_reduction

HALF = 0.5e-4  # half a unit of the last digit, of per cent with two decimals


def rounding_range(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest abs((a - b) / a) that the rounding of both printed numbers allows."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    ends = [relative_reduction(a + i * HALF, b + j * HALF) for i in (-1, 1) for j in (-1, 1)]
    sizes = np.abs(ends)
    crosses = np.abs(a - b) <= 2 * HALF  # a = b lies within the rounding: no change at all
    return np.where(crosses, 0.0, sizes.min(axis=0)), sizes.max(axis=0)


def sampling_noise(mean, sd, n_images: int = 50, n_classes: int = 1000):
    """SD that sampling alone adds to class errors, from their mean and population SD.

    The mean over the classes of p_c (1 - p_c) is mean (1 - mean) - sd², whatever the p_c are, so
    the noise of `advlib.metrics.class_summary` follows from two printed numbers. Its square is what
    is to be subtracted from sd². The default is ImageNet's validation set: 50 images of each class.

    Raises ValueError if no class errors in [0, 1] have such a mean and SD.
    """
    mean, sd = np.asarray(mean, float), np.asarray(sd, float)
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
    mean: float, sd: float, rng: np.random.Generator, repeats: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw test sets as large as ImageNet's from classes whose true errors are known.

    These are the quantiles of a beta distribution of this mean and SD, the same in every set.

    Returns
    -------
    (seen, corrected), each (repeats,): the population SD of the observed class errors, and its
    `noise_corrected_sd`.
    """
    n_images, n_classes = 50, 1000
    size = mean * (1 - mean) / sd**2 - 1
    steps = (np.arange(n_classes) + 0.5) / n_classes
    true = scipy.stats.beta.ppf(steps, mean * size, (1 - mean) * size)
    errors = rng.binomial(n_images, true, size=(repeats, n_classes)) / n_images
    seen = errors.std(axis=1)
    return seen, noise_corrected_sd(errors.mean(axis=1), seen)


def miss_from_line(x, y, new_x, new_y) -> np.ndarray:
    """How far new points lie above the least-squares line through known ones."""
    slope, intercept = np.polyfit(x, y, 1)
    return np.asarray(new_y, float) - (slope * np.asarray(new_x, float) + intercept)
