"""What the choice of a checkpoint does to the figures that are reported of it."""

import numpy as np
import pandas as pd

RULES = ("average", "worst", "sum")
"""What a checkpoint is chosen by: average error, error of the worst class, or their sum."""


def figures(class_errors: np.ndarray) -> dict[str, np.ndarray]:
    """Average, worst class and their sum, of class errors (..., K) in [0, 1]."""
    average, worst = class_errors.mean(-1), class_errors.max(-1)
    return {"average": average, "worst": worst, "sum": average + worst}


def class_errors(wrong: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The errors (E, K) by class of several networks, from wrong (E, N) and labels (N,)."""
    members = np.eye(labels.max() + 1, dtype=np.float32)[labels]
    return (wrong.astype(np.float32) @ members) / members.sum(0)


def choices(epochs: list[int], test: np.ndarray, validation: np.ndarray) -> pd.DataFrame:
    """Which checkpoint each rule chooses on which images, and its figures on the test images.

    ``test`` and ``validation`` are class errors (E, K). One row per rule of `RULES` and ``by``
    (last, validation, test): ``epoch``, ``average`` and ``worst``.
    """
    rows = []
    for rule in RULES:
        picks = {"last": len(epochs) - 1, "validation": figures(validation)[rule].argmin()}
        picks["test"] = figures(test)[rule].argmin()
        for by, place in picks.items():
            average, worst = test[place].mean(), test[place].max()
            row = {"rule": rule, "by": by, "epoch": epochs[place]}
            rows.append(row | {"average": average, "worst": worst})
    return pd.DataFrame(rows)


def optimism(
    wrong: np.ndarray, labels: np.ndarray, *, n_splits: int = 1_000, seed: int = 0
) -> pd.DataFrame:
    """How much too good a figure is when the checkpoint was chosen by it on the same images.

    The test images are split in two at random, each class in halves. A checkpoint is chosen on one
    half; the figure there is what a paper would report, the one on the other half is what a new set
    of images would say. The largest of noisy class errors is too large on both halves alike; how
    much shows in the other half's error of the class that was worst on this one.

    ``wrong`` (E, N) says whether each of E checkpoints errs on each of N images, whose labels are
    (N,); the last one ended the run. Returns one row per rule of `RULES`: ``reported`` and
    ``fresh``, the means over the splits of the chosen checkpoint's figure on both halves;
    ``optimism``, their difference, with its SD over splits ``sd``; ``last``, the last checkpoint's
    figure; ``noise``, how far its worst class is too bad because it was taken as the worst; all in
    [0, 1]. ``half`` is the images of a half.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == k) for k in range(labels.max() + 1)]
    wrong, of_class = wrong.astype(np.float32), np.eye(len(members), dtype=np.float32)[labels]
    errs, sizes = wrong @ of_class, of_class.sum(0)
    found, noise = {rule: [] for rule in RULES}, []
    for _ in range(n_splits):
        half = np.concatenate([rng.permutation(p)[: len(p) // 2] for p in members])
        own_errs, own_sizes = wrong[:, half] @ of_class[half], of_class[half].sum(0)
        here, there = own_errs / own_sizes, (errs - own_errs) / (sizes - own_sizes)
        noise.append(here[-1].max() - there[-1, here[-1].argmax()])
        reported, fresh = figures(here), figures(there)
        for rule in RULES:
            chosen = reported[rule].argmin()
            found[rule].append((reported[rule][chosen], fresh[rule][chosen], reported[rule][-1]))
    rows = []
    for rule, values in found.items():
        row = dict(zip(("reported", "fresh", "last"), np.mean(values, 0), strict=True))
        sd = np.diff(values, axis=1)[:, 0].std()
        rows.append({"rule": rule, "optimism": row["fresh"] - row["reported"], "sd": sd, **row})
    return pd.DataFrame(rows).assign(half=len(half), noise=[0, *[np.mean(noise)] * 2])
