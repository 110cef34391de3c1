"""What a paper's printed figures imply: rounding, sampling noise, conventions, and the algebra.

Pure functions of NumPy arrays, for the chapter "Does the published table add up?". Errors and
standard deviations are fractions in [0, 1].
"""

import numpy as np
import scipy
from scipy.special import logsumexp

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
        If no class errors in [0, 1] have such a mean and SD, or for fewer than 2 images a class.
    """
    mean, sd = np.asarray(mean, float), np.asarray(sd, float)
    if n_images < 2:
        raise ValueError(f"sampling noise needs 2 images a class or more, got {n_images}.")
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


def soft_targets(y, transform, num_classes: int, num_transforms: int, delta: float) -> np.ndarray:
    """Eq. 3 for transformed images: (N, K+M), 1 - delta at y and delta at K + transform.

    Not `advlib.labels`, since the page is built without torch; a test holds the two together.
    """
    rows = np.arange(len(y))
    targets = np.zeros((len(y), num_classes + num_transforms))
    targets[rows, y] = 1 - delta
    targets[rows, num_classes + np.asarray(transform)] = delta
    return targets


def augmented_loss(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Eq. 4: cross-entropy of soft targets with the softmax over all logits, (N,)."""
    log_p = logits - logsumexp(logits, axis=1, keepdims=True)
    return -(targets * log_p).sum(axis=1)


def split_loss(
    logits: np.ndarray, y, transform, num_classes: int, delta: float
) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 4 as the algebra splits it, for images transformed by ``transform``.

    Parameters
    ----------
    logits : float array (N, K+M)
    y, transform : int array (N,)
        Classes in [0, K), transformations in [0, M).
    num_classes : int
        K.
    delta : float
        In [0, 1).

    Returns
    -------
    (class_part, rest), each (N,): (1 - delta) times the cross-entropy over the K class logits
    alone, and -(1 - delta) log(1 - p_T) - delta log p_{K+j}, with p_T the probability of all
    transformation logits together. Their sum is Eq. 4.
    """
    rows, classes = np.arange(len(logits)), logits[:, :num_classes]
    everything, of_classes = logsumexp(logits, axis=1), logsumexp(classes, axis=1)
    class_part = (1 - delta) * (of_classes - classes[rows, y])
    log_transform = logits[rows, num_classes + np.asarray(transform)] - everything
    rest = -(1 - delta) * (of_classes - everything) - delta * log_transform
    return class_part, rest


def class_gradient(logits: np.ndarray, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """Gradient of `augmented_loss` by the K class logits, (N, K): softmax less target."""
    softmax = np.exp(logits - logsumexp(logits, axis=1, keepdims=True))
    return (softmax - targets)[:, :num_classes]


def with_transform_probability(logits: np.ndarray, num_classes: int, p_t: float) -> np.ndarray:
    """The logits, those of the transformations shifted together so that p_T is ``p_t``."""
    classes, transforms = np.split(logits, [num_classes], axis=1)
    ratio = logsumexp(classes, axis=1) - logsumexp(transforms, axis=1) + np.log(p_t / (1 - p_t))
    return np.hstack([classes, transforms + ratio[:, None]])
