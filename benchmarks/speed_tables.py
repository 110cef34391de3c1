"""From `speed.py`'s measurements to its tables."""

import json
import statistics
from pathlib import Path

import numpy as np
import pandas as pd

PARTS = ("evaluation", "autoattack", "training", "convolution", "profile", "growth")
SPEED_KEYS = ["what", "library", "attack", "setting", "dtype", "success", "model"]


def read_rows(folder: Path, part: str) -> list[dict]:
    """The rows of one part, by repeat."""
    files = sorted((folder / "jobs").glob(f"{part}-*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    rows = [entry["job"] | row for entry in found for row in entry["rows"]]
    return sorted(rows, key=lambda row: row.get("repeat", 0))


def speed_table(rows: list[dict]) -> pd.DataFrame:
    """One row a setting and network: images a second over its repeats, error, peak memory.

    Parameters
    ----------
    rows : list of dict
        Of evaluation and training measurements, by repeat.

    Returns
    -------
    DataFrame
        ``images_per_second`` is the median over repeats, ``low`` and ``high`` their extremes.
        ``error`` is over the ``images`` that were attacked, judged in float32; beside it the
        difference from the project's default on the same images, with its 95 % interval.
    """
    groups, order = {}, []
    for row in rows:
        key = tuple(row.get({"what": "measure"}.get(k, k)) or "" for k in SPEED_KEYS)
        groups.setdefault(key, []).append(row)
    wrong = {key: wrong_images(found) for key, found in groups.items()}
    for key, found in groups.items():
        rates = [row["images"] / row["seconds"] for row in found]
        entry = dict(zip(SPEED_KEYS, key, strict=True))
        entry |= {
            "batch_size": found[0]["batch_size"],
            "images": len(wrong[key]) or found[0]["images"],
            "repeats": len(found),
            "seconds": statistics.median(row["seconds"] for row in found),
            "images_per_second": statistics.median(rates),
            "low": min(rates),
            "high": max(rates),
            "peak_memory_mb": max(row["peak_memory_mb"] for row in found),
        }
        if entry["what"] == "evaluation":
            default = ("evaluation", "advlib", "PGD", "default", None, "any", entry["model"])
            reference = next((k for k in groups if same(k, default)), None)
            entry |= errors(wrong[key], wrong.get(reference))
        order.append(entry)
    return pd.DataFrame(order)


def same(key: tuple, wanted: tuple) -> bool:
    return all(w is None or k == w for k, w in zip(key, wanted, strict=True))


def wrong_images(found: list[dict]) -> dict[int, bool]:
    """Whether each image was misclassified, the first time that it was attacked."""
    wrong = {}
    for row in found:
        broken = set(row.get("wrong", []))
        for i in range(row["images"] if "wrong" in row else 0):
            wrong.setdefault(row["first_image"] + i, i in broken)
    return wrong


def errors(wrong: dict[int, bool], reference: dict[int, bool] | None) -> dict:
    """Error, and its difference from the reference on the images that both attacked."""
    found = {"error": float(np.mean(list(wrong.values())))}
    both = sorted(set(wrong) & set(reference or {}))
    if both:
        difference = np.array([float(wrong[i]) - float(reference[i]) for i in both])
        half = 1.96 * difference.std() / np.sqrt(len(both))
        mean = float(difference.mean())
        found |= {"error_difference": mean, "difference_low": mean - half}
        found |= {"difference_high": mean + half}
    return found


def convolution_speed(rows: list[dict], train_steps: int) -> pd.DataFrame:
    """The speed of the convolutions alone, in the mix of passes of the attack and of the trainer.

    An attack step is a forward and an input-gradient pass; a training step of one image is
    `train_steps` of those, then a forward, an input-gradient (not of the first layer) and a
    weight-gradient pass. Each pass of each layer takes its best time at that batch size.

    Returns
    -------
    DataFrame
        what ("evaluation" or "training"), dtype, batch_size, gflop_per_second.
    """
    table = pd.DataFrame(rows)
    table["gflop"] *= table["count"]
    table["seconds"] *= table["count"]
    first = (table.layer == 1) & (table.direction == "input gradient")
    table["evaluation"] = (table.direction != "weight gradient") * 1.0
    table["training"] = np.select(
        [table.direction == "weight gradient", first], [1.0, train_steps], train_steps + 1.0
    )
    found = []
    for (dtype, size), layers in table.groupby(["dtype", "batch_size"], sort=False):
        for what in ("evaluation", "training"):
            speed = (layers.gflop * layers[what]).sum() / (layers.seconds * layers[what]).sum()
            found.append((what, dtype, size, speed))
    return pd.DataFrame(found, columns=["what", "dtype", "batch_size", "gflop_per_second"])


def efficiency_table(speed: pd.DataFrame, ceilings: pd.DataFrame, settings: dict) -> pd.DataFrame:
    """The share of the convolutions' own speed that each attack with a fixed cost reaches.

    Parameters
    ----------
    speed : DataFrame
        Of `speed_table`.
    ceilings : DataFrame
        Of `convolution_speed`: the best batch size counts.
    settings : dict
        ``gflop`` an image of an attack step and of a training pass, ``steps``, ``train_steps``.
    """
    step, training = settings["gflop"]["attack step"], settings["gflop"]["training pass"]
    steps = {"evaluation": settings["steps"], "training": settings["study"]["train_steps"]}
    best = ceilings.loc[ceilings.groupby(["what", "dtype"]).gflop_per_second.idxmax()]
    best = best.set_index(["what", "dtype"])
    fixed = speed[(speed.success != "any") & (speed.attack != "APGD")]
    rows = []
    for row in fixed.to_dict("records"):
        if (row["what"], row["dtype"]) not in best.index:
            continue
        ceiling = best.loc[row["what"], row["dtype"]]
        gflop = steps[row["what"]] * step + (training if row["what"] == "training" else 0)
        reached = gflop * row["images_per_second"]
        kept = {k: row[k] for k in (*SPEED_KEYS, "batch_size", "images_per_second")}
        rows.append(
            kept
            | {
                "gflop_per_image": gflop,
                "gflop_per_second": reached,
                "ceiling_gflop_per_second": ceiling.gflop_per_second,
                "ceiling_batch_size": int(ceiling.batch_size),
                "fraction": reached / ceiling.gflop_per_second,
            }
        )
    return pd.DataFrame(rows)


def growth_table(rows: list[dict]) -> pd.DataFrame:
    """Seconds for 1,000 images (median, least, most) by what grows."""
    table = pd.DataFrame(rows)
    table["seconds_per_1000"] = 1000 * table.seconds / table.images
    keys = ["what", "value", "steps", "images", "dtype"]
    grouped = table.groupby(keys, sort=False)
    return grouped.agg(
        seconds=("seconds", "median"),
        seconds_per_1000=("seconds_per_1000", "median"),
        low=("seconds_per_1000", "min"),
        high=("seconds_per_1000", "max"),
    ).reset_index()


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    """Every table that the measurements so far allow."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    rows = {part: read_rows(folder, part) for part in PARTS}
    tables = {}
    if timings := rows["evaluation"] + rows["training"]:
        tables["speed"] = speed_table(timings)
    if rows["autoattack"]:
        columns = ["model", "network", "library", "setting", "dtype", "images", "clean_mistakes"]
        columns += ["component", "attacked", "broken", "seconds", "cpu_seconds"]
        tables["autoattack"] = pd.DataFrame(rows["autoattack"])[columns]
    if rows["convolution"]:
        columns = ["dtype", "batch_size", "layer", "shape", "input", "count", "direction"]
        columns += ["gflop", "seconds"]
        layers = pd.DataFrame(rows["convolution"])[columns]
        tables["convolution"] = layers.assign(gflop_per_second=layers.gflop / layers.seconds)
        ceilings = convolution_speed(rows["convolution"], settings["study"]["train_steps"])
        tables["ceiling"] = ceilings
        if timings:
            tables["efficiency"] = efficiency_table(tables["speed"], ceilings, settings)
    if rows["profile"]:
        columns = ["what", "dtype", "group", "seconds", "share"]
        tables["profile"] = pd.DataFrame(rows["profile"])[columns]
    if rows["growth"]:
        tables["growth"] = growth_table(rows["growth"])
    return tables
