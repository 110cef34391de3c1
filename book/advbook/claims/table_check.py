"""How much of a printed SD of class errors is sampling noise; all figures are fractions."""

import numpy as np


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
