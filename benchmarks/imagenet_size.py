"""How long a study of ImageNet's size takes to summarise class by class, and how much memory.

    python benchmarks/imagenet_size.py [--folder DIR] [--images 50000] [--classes 1000]

Writes made-up predictions of three methods on clean images and under 15 corruptions x 5
severities (11.4 million rows) in the project's layout, then summarises them in a fresh process.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from advlib import metrics
from advlib.importing import read_predictions
from advlib.predictions import write_predictions

BENCHMARKS = ("clean", "corruptions")
KILOBYTES = 1024 if sys.platform == "darwin" else 1  # the unit of getrusage's ru_maxrss
METHODS = {"std": 0.0, "adv": 0.6, "adv_plus": 0.3}  # log-odds of an error, beside the first's


def write_tables(folder: Path, images: int, classes: int) -> None:
    """Predictions whose errors depend on class, corruption, severity and method; always the same.

    An image is about as hard in every condition and for every method.
    """
    rng = np.random.default_rng(0)
    files = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, images + 1)]
    labels = np.arange(images) % classes
    hardness = rng.normal(0, 0.9, classes)[labels] + rng.logistic(0, 0.8, images) - 1.3
    step = rng.uniform(0.2, 0.6, len(metrics.CORRUPTIONS))  # log-odds a severity

    def predictions(odds: np.ndarray) -> pd.DataFrame:
        conditions = odds.size // images
        wrong = rng.random(odds.size) < 1 / (1 + np.exp(-odds.ravel()))
        other = rng.integers(1, classes, odds.size)
        label = np.tile(labels, conditions)
        return pd.DataFrame(
            {
                "file_name": pd.Categorical.from_codes(
                    np.tile(np.arange(images), conditions), files
                ),
                "label": label.astype(np.int16),
                "predicted_class": ((label + wrong * other) % classes).astype(np.int16),
                "predicted_probability": rng.random(odds.size, dtype=np.float32),
            }
        )

    severities = np.arange(1, 6)
    for method, more in METHODS.items():
        clean = predictions(hardness + more)
        write_predictions(
            clean, folder / f"predictions/clean/{method}-seed0.parquet", num_classes=classes
        )
        odds = hardness + more + np.multiply.outer(step, severities)[..., None]
        codes = np.repeat(np.arange(len(step)), 5 * images)
        corrupted = predictions(odds).assign(
            corruption=pd.Categorical.from_codes(codes, metrics.CORRUPTIONS),
            severity=np.tile(np.repeat(severities.astype(np.int8), images), len(step)),
        )
        write_predictions(
            corrupted,
            folder / f"predictions/corruptions/{method}-seed0.parquet",
            num_classes=classes,
        )


def summarise(folder: Path, n_resamples: int) -> None:
    """Every class-wise figure of the study; seconds of each step, and the memory's peak so far."""
    seconds, peak, intervals, first = {}, {}, {}, None

    def step(name, function, *args, **options):
        before = time.perf_counter()
        result = function(*args, **options)
        seconds[name] = seconds.get(name, 0) + time.perf_counter() - before
        peak[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KILOBYTES / 1024
        return result

    by, reference = ["corruption", "severity"], metrics.ALEXNET_CORRUPTION_ERROR
    options = {"statistic": "error", "n_resamples": n_resamples}
    for method in METHODS:
        files = (folder / f"predictions/{b}/{method}-seed0.parquet" for b in BENCHMARKS)
        clean, table = (step("read and check", read_predictions, file) for file in files)
        step("class errors by condition", metrics.class_error, clean)
        cells = step("class errors by condition", metrics.class_error, table, by)
        step("class summary by condition", metrics.class_summary, clean)
        for _, part in table.groupby(by, observed=True):
            step("class summary by condition", metrics.class_summary, part)
        step("corruption errors", metrics.corruption_error, table)
        # A class has the same images in every condition, so its pooled error is the mean.
        step("class errors, pooled", lambda cells: cells.groupby("label").error.mean(), cells)
        step("mCE, both conventions", metrics.mean_corruption_error, table)
        step("mCE, both conventions", metrics.mean_corruption_error, table, reference)
        intervals[method] = step("intervals of the mCE", metrics.bootstrap, table, **options)
        if first is None:
            first = table
        else:
            intervals[f"difference from {method}"] = step(
                "paired differences of the mCE",
                metrics.bootstrap,
                first,
                paired_with=table,
                **options,
            )
    for name in seconds:
        print(f"{name:32}{seconds[name]:6.2f} s  peak {peak[name]:5.0f} MB")
    print(f"{'all':32}{sum(seconds.values()):6.2f} s  peak {max(peak.values()):5.0f} MB")
    for name, interval in intervals.items():
        print(f"mCE, {name:27}" + "  ".join(f"{value:.4f}" for value in interval))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the tables stay (default: they do not)")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, default=1_000)
    parser.add_argument("--resamples", type=int, default=2_000, help="of each interval")
    parser.add_argument("--summarise", action="store_true", help="the tables are there already")
    options = parser.parse_args()
    if options.summarise:
        summarise(options.folder, options.resamples)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        write_tables(folder, options.images, options.classes)
        # A fresh process, so that its peak is the summary's own.
        command = [sys.executable, __file__, "--summarise", "--folder", folder]
        subprocess.run([*command, "--resamples", str(options.resamples)], check=True)


if __name__ == "__main__":
    main()
