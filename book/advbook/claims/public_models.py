"""What public ImageNet networks do at a given accuracy, and how far some of them are from it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from advlib import metrics
from advlib.data.annotations import imagenet_x

ROBUST = ("adversarial", "adversarial, with noise", "noise")
"""Trainings that the trend is not drawn from, since it is what these are compared with."""
WEAK = ("fewer images", "stopped early")  # as inaccurate as robust networks, for another reason


SCALES: dict[str, tuple[Callable, Callable]] = {
    "accuracy": (logit, expit),
    "ratio": (np.log, np.exp),
}


def read_networks(folder: Path) -> pd.DataFrame:
    """One row per network of `results/imagenet_models`, by its name.

    ``training`` and ``family``; accuracies, fractions: ``clean_accuracy`` (50,000 validation
    images), ``corruption_accuracy`` (mean of 75 conditions), ``average``, ``worst_100_classes`` and
    the factors (annotated images), all of these judged by ReaL with ``real_`` before them; and
    ``groups_sd``, the SD over the 16 named groups of classes. nan where the testbed has none.
    """
    read = {
        name: pd.read_csv(folder / f"{name}.csv", index_col="model")
        for name in ("networks", "label", "real", "groups")
    }
    found = read["networks"].join(read["label"]).join(read["real"].add_prefix("real_"))
    return found.assign(groups_sd=read["groups"].drop(columns="other").std(axis=1, ddof=0))


def own_network(clean: pd.DataFrame, corruptions: pd.DataFrame | None = None) -> dict[str, float]:
    """The columns of `read_networks` for predictions on ImageNet's validation images.

    ``clean`` is the prediction table of all 50,000 images, ``corruptions`` that of ImageNet-C.
    """
    annotations = imagenet_x()
    annotated = clean[clean.file_name.isin(annotations.file_name)]
    worst = metrics.class_error(annotated).nlargest(100, "error").label
    factors = metrics.factor_error(clean, annotations).set_index("factor").error
    found = {
        "clean_accuracy": 1 - metrics.error(clean),
        "average": 1 - metrics.error(annotated),
        "worst_100_classes": 1 - metrics.error(annotated[annotated.label.isin(worst)]),
        **(1 - factors),
    }
    if corruptions is not None:
        found["corruption_accuracy"] = 1 - metrics.mean_corruption_error(corruptions)
    return found


@dataclass(frozen=True)
class Trend:
    """How a figure follows accuracy over networks: a quadratic, both on the scale of the figure.

    ``left_out`` has of each network the logit of its accuracy ``x`` and its ``distance`` from the
    trend of the other families, on that scale: logits of an "accuracy", logarithms of a "ratio".
    """

    coefficients: tuple[float, ...]
    left_out: pd.DataFrame
    scale: str

    def spread(self, accuracy):
        """How far a network of an unseen family lies from the trend, near this accuracy.

        The root mean square of the distances, weighted by a Gaussian of half a logit: networks of
        low accuracy differ more.
        """
        far = (logit(np.asarray(accuracy))[..., None] - self.left_out.x.to_numpy()) / 0.5
        weights = np.exp(-(far**2) / 2)
        squares = np.square(self.left_out.distance.to_numpy())
        return np.sqrt((weights * squares).sum(-1) / weights.sum(-1))

    def at(self, accuracy, spreads: float = 0):
        """The figure expected at an accuracy, so many spreads above it."""
        expected = np.polyval(self.coefficients, logit(accuracy))
        return SCALES[self.scale][1](expected + spreads * self.spread(accuracy))

    def distance(self, accuracy, value):
        """How many spreads a network lies above the trend."""
        expected = np.polyval(self.coefficients, logit(accuracy))
        return (SCALES[self.scale][0](value) - expected) / self.spread(accuracy)


def trend(table: pd.DataFrame, accuracy: str, figure: str, scale: str, degree: int = 2) -> Trend:
    """Fit a `Trend` of one column of `read_networks` on another, by least squares.

    Networks without the figure are left out. Those of one family resemble each other, so the spread
    is that of networks whose whole family was left out of the fit: what an unseen family may do
    without being robust.
    """
    known = table[["family", accuracy, figure]].dropna()
    x, y = logit(known[accuracy]), SCALES[scale][0](known[figure])

    def fitted(rows):
        return np.polyfit(x[rows], y[rows], degree)

    left = []
    for family in known.family.unique():
        own = known.family == family
        distance = y[own] - np.polyval(fitted(~own), x[own])
        left.append(pd.DataFrame({"x": x[own], "distance": distance}))
    whole = tuple(fitted(known.family != ""))
    return Trend(whole, pd.concat(left), scale)


def resampled(table: pd.DataFrame, accuracy: str, figure: str, scale: str, at, n: int = 1000):
    """The trend at some accuracies over ``n`` bootstrap samples of families: (n, len(at))."""
    known = table[["family", accuracy, figure]].dropna()
    families = [rows for _, rows in known.groupby("family")]
    generator, inverse = np.random.default_rng(0), SCALES[scale][1]
    curves = []
    for _ in range(n):
        chosen = generator.integers(len(families), size=len(families))
        drawn = pd.concat([families[i] for i in chosen])
        fit = np.polyfit(logit(drawn[accuracy]), SCALES[scale][0](drawn[figure]), 2)
        curves.append(inverse(np.polyval(fit, logit(np.asarray(at)))))
    return np.array(curves)
