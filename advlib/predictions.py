"""The prediction table: one row per image and condition, the only source of every error figure."""

import datetime
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from advlib.files import replacing

COLUMNS = ("file_name", "label", "predicted_class", "predicted_probability")


def predict(
    models: dict,
    dataset,
    *,
    num_classes: int,
    batch_size: int = 256,
    device=None,
    workers: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, pd.DataFrame]:
    """Predictions of several models in one pass over the images, in float32.

    Parameters
    ----------
    models : dict of str to nn.Module
        Images in [0, 1] to K or K+M logits; the first K are classes.
    dataset : advlib.data.Images
    num_classes : int
        K.
    batch_size, workers : int
    device : optional
        None: CUDA, MPS or the CPU, by availability.
    progress : callable, optional
        Called with the number of images finished.

    Returns
    -------
    dict
        A prediction table under each model's key.
    """
    import torch

    from advlib.data import evaluation_batches
    from advlib.labels import class_logits
    from advlib.models import default_device

    device = torch.device(device or default_device())
    models = {k: m.to(device, memory_format=torch.channels_last).eval() for k, m in models.items()}
    rows = {name: [] for name in models}
    batches = evaluation_batches(dataset, batch_size=batch_size, workers=workers, device=device)
    for x, y, index in batches:
        names = [dataset.file_names[i] for i in index.tolist()]
        for name, model in models.items():
            with torch.no_grad():
                probabilities = class_logits(model(x), num_classes).float().softmax(1)
            probability, predicted = probabilities.max(1)
            values = (names, y.cpu().numpy(), predicted.cpu().numpy(), probability.cpu().numpy())
            rows[name].append(pd.DataFrame(dict(zip(COLUMNS, values, strict=True))))
        if progress:
            progress(len(y))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in rows.items()}


def check_predictions(
    table: pd.DataFrame, *, num_classes: int | None = None, n_images: int | None = None
) -> pd.DataFrame:
    """Return the table if it keeps the contract.

    Parameters
    ----------
    table : DataFrame
        With `COLUMNS` and, for some benchmarks, ``corruption`` and ``severity`` or ``attack``.
    num_classes : int, optional
        K: labels and classes are in [0, K).
    n_images : int, optional
        How many images each condition has.

    Raises
    ------
    ValueError
        For a missing column or value, a missing or duplicated image, a label, class or
        probability out of range.
    """
    missing = [c for c in COLUMNS if c not in table]
    if missing:
        raise ValueError(f"the prediction table lacks the columns {', '.join(missing)}")
    if not len(table):
        raise ValueError("the prediction table has no rows")
    if table[list(COLUMNS)].isna().any().any():
        holes = [c for c in COLUMNS if table[c].isna().any()]
        raise ValueError(f"the prediction table has missing values in {', '.join(holes)}")
    conditions = [c for c in ("method", "seed", "corruption", "severity", "attack") if c in table]
    twice = table[table.duplicated([*conditions, "file_name"])]
    if len(twice):
        raise ValueError(
            f"{len(twice)} images occur twice, {twice.file_name.iloc[0]!r} among them: keep one "
            "row an image and condition"
        )
    counts = table.groupby(conditions).size() if conditions else pd.Series([len(table)])
    expected = n_images or counts.max()
    if (counts != expected).any():
        raise ValueError(
            f"{counts.min()} images in one condition, {expected} expected: images are missing"
        )
    for column in ("label", "predicted_class"):
        if not pd.api.types.is_integer_dtype(table[column]):
            raise ValueError(f"{column} holds whole numbers, got {table[column].dtype}")
        low, high = table[column].min(), table[column].max()
        if low < 0 or (num_classes is not None and high >= num_classes):
            raise ValueError(f"{column} is in [0, {num_classes or 'K'}), got {low} to {high}")
    low, high = table.predicted_probability.min(), table.predicted_probability.max()
    if low < 0 or high > 1 + 1e-6:
        raise ValueError(f"predicted_probability is in [0, 1], got {low:g} to {high:g}")
    return table


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Read and check a prediction table: ours (Parquet) or anybody's (CSV, also gzipped).

    Parameters
    ----------
    path : path
        With the columns `COLUMNS`.

    Raises
    ------
    ValueError
        If the table breaks the contract (`check_predictions`).
    """
    path = Path(path)
    if path.suffix == ".parquet":
        table = pq.ParquetFile(path).read().to_pandas()
    else:
        table = pd.read_csv(path, dtype={"file_name": str})
    return check_predictions(table)


def write_predictions(
    table: pd.DataFrame,
    path: str | Path,
    *,
    num_classes: int | None = None,
    n_images: int | None = None,
    **facts,
) -> Path:
    """Check a table and write it as Parquet, whole or not at all.

    Parameters
    ----------
    table : DataFrame
    path : path
        Ends in ``.parquet``.
    num_classes, n_images : int, optional
        As in `check_predictions`.
    **facts
        Stored beside the rows as JSON: study, method, seed, checkpoint hash, data fingerprint,
        threat model, device, dtype. Time and library versions are added.
    """
    path = Path(path)
    check_predictions(table, num_classes=num_classes, n_images=n_images)
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    facts = {**facts, "n_images": int(table.file_name.nunique()), **environment()}
    arrow = arrow.replace_schema_metadata(
        {**(arrow.schema.metadata or {}), "advlib": json.dumps(facts)}
    )
    with replacing(path) as partial:
        pq.write_table(arrow, partial, compression="zstd")
    return path


def read_facts(path: str | Path) -> dict:
    """The JSON facts stored beside a table by `write_predictions`."""
    return json.loads(pq.read_schema(path).metadata[b"advlib"])


def environment() -> dict:
    """Time and versions, as stored with every table."""
    versions = {}
    for package in ("advlib", "torch", "torchvision", "numpy", "pandas"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"time": now, "versions": versions}


def in_parts(
    folder: Path, n_images: int, part: int, make: Callable[[range], pd.DataFrame]
) -> pd.DataFrame:
    """A long evaluation that survives interruption: images in parts, each kept once finished.

    Parameters
    ----------
    folder : Path
        Of the parts; its name must hold everything that decides them (`advlib.study.digest`).
    n_images : int
        Of the data set.
    part : int
        Images a part.
    make : callable
        From a range of positions to their rows.

    Returns
    -------
    DataFrame
        All rows, in the order of the images.
    """
    tables = []
    for start in range(0, n_images, part):
        path = folder / f"{start:08d}-{part}.parquet"
        if not path.is_file():
            table = make(range(start, min(start + part, n_images)))
            with replacing(path) as partial:
                table.to_parquet(partial, index=False)
        tables.append(pd.read_parquet(path))
    return pd.concat(tables, ignore_index=True)


def read_study(study, source: str) -> pd.DataFrame:
    """All prediction tables of a study, with columns method, seed and benchmark beside the rows.

    Parameters
    ----------
    study : advlib.study.Study
    source : {"fresh", "committed"}
        All tables of the reader's own run, or all committed ones; never a mixture.

    Returns
    -------
    DataFrame
        ``attrs["facts"]`` holds the facts of each table by (benchmark, method, seed), and
        ``attrs["class_names"]`` the names of the classes.

    Raises
    ------
    FileNotFoundError, ValueError
        As `study_tables`, and where a table breaks the contract.
    """
    folder = study.tables(source)
    found = study_tables(study, folder)
    data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    tables = []
    for (benchmark, method, seed), (path, facts) in found.items():
        table = read_predictions(path)
        check_predictions(table, num_classes=len(data["class_names"]), n_images=facts["n_images"])
        tables.append(table.assign(benchmark=benchmark, method=method, seed=seed))
    whole = pd.concat(tables, ignore_index=True)
    whole.attrs["facts"] = {key: facts for key, (_, facts) in found.items()}
    whole.attrs["class_names"] = data["class_names"]
    return whole


def study_tables(study, folder: Path) -> dict[tuple, tuple[Path, dict]]:
    """The path and the facts of each prediction table, if all belong to the study as it stands.

    Parameters
    ----------
    study : advlib.study.Study
    folder : Path
        ``runs/<study>`` or ``results/<study>``.

    Returns
    -------
    dict
        (path, facts) by (benchmark, method, seed).

    Raises
    ------
    FileNotFoundError
        If a table or training log is missing.
    ValueError
        If one was made from other images, under another threat model or with other training
        settings than the study file's.
    """
    again = f"run `make book STUDY={study.study}`"
    runs = [(method, seed) for method in study.methods for seed in study.seeds]
    logs = [folder / "train" / f"{method}-seed{seed}.csv" for method, seed in runs]
    tables = {
        (benchmark, *run): folder / "predictions" / benchmark / f"{run[0]}-seed{run[1]}.parquet"
        for benchmark in ("clean", *study.attacks)
        for run in runs
    }
    for path in [folder / "data.json", *logs, *tables.values()]:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {again} to the end")
    data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    if data["settings"] != study.data_settings():
        raise ValueError(f"{folder / 'data.json'} is of other images than the study's: {again}")
    found = {}
    for (benchmark, method, seed), path in tables.items():
        facts = read_facts(path)
        changed = _changed(study, facts, data, benchmark, method)
        if changed:
            raise ValueError(f"{path} was made with another {', '.join(changed)}: {again}")
        found[benchmark, method, seed] = path, facts
    return found


def _changed(study, facts: dict, data: dict, benchmark: str, method: str) -> list[str]:
    """What differs between a table's facts and the study."""
    split = study.evaluation_split
    settings = facts["settings"]
    now = study.training_settings(method, settings["seed"], settings["data"], settings["start"])
    now = json.loads(json.dumps(now))
    changed = [key for key in now.keys() | settings.keys() if now.get(key) != settings.get(key)]
    expected = {
        "threat": None if benchmark == "clean" else study.threat(benchmark).to_dict(),
        "split": split,
        "data": data[split]["fingerprint"],
        "n_images": data[split]["images"],
    }
    changed += [key for key, value in expected.items() if facts[key] != value]
    if settings["data"] != data["train"]["fingerprint"]:
        changed.append("set of training images")
    return sorted(changed)


RESULT_COLUMNS = ["study", "method", "seed", "benchmark", "condition", "group", "statistic"]
RESULT_COLUMNS += ["value", "low", "high", "n_images", "provenance"]


def write_results(rows: pd.DataFrame, path: Path, study, source: str, facts: dict) -> None:
    """Write a result table: one value a row, each with its threat model and its origin.

    Parameters
    ----------
    rows : DataFrame
        Columns method, seed, benchmark, group, statistic, value, low, high and, unless every row
        is about all images, n_images.
    path : Path
        A CSV, written whole or not at all.
    study : advlib.study.Study
    source : {"fresh", "committed"}
    facts : dict
        Those of `read_study`, by (benchmark, method, seed).
    """
    known = [facts[key] for key in zip(rows.benchmark, rows.method, rows.seed, strict=True)]
    conditions = {b: str(study.threat(b)) if b in study.attacks else b for b in set(rows.benchmark)}
    rows = rows.assign(
        study=study.study,
        condition=rows.benchmark.map(conditions),
        provenance=[f"{source}, checkpoint {f['checkpoint_hash']}, {f['time']}" for f in known],
    )
    if "n_images" not in rows:
        rows["n_images"] = [f["n_images"] for f in known]
    with replacing(path) as partial:
        rows[RESULT_COLUMNS].to_csv(partial, index=False)
