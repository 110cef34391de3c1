"""The prediction table: one row per image and condition, the only source of every error figure."""

import datetime
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

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


def write_predictions(table: pd.DataFrame, path: str | Path, **facts) -> Path:
    """Check a table and write it as Parquet, whole or not at all.

    Parameters
    ----------
    table : DataFrame
    path : path
        Ends in ``.parquet``.
    **facts
        Stored beside the rows as JSON: study, method, seed, checkpoint hash, data fingerprint,
        threat model, device, dtype. Time and library versions are added.
    """
    path = Path(path)
    arrow = pa.Table.from_pandas(check_predictions(table), preserve_index=False)
    facts = {**facts, "n_images": int(table.file_name.nunique()), **environment()}
    arrow = arrow.replace_schema_metadata(
        {**(arrow.schema.metadata or {}), "advlib": json.dumps(facts)}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(arrow, partial, compression="zstd")
    os.replace(partial, path)
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
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for start in range(0, n_images, part):
        path = folder / f"{start:08d}.parquet"
        if not path.is_file():
            partial = path.with_name(f".{path.name}.partial")
            make(range(start, min(start + part, n_images))).to_parquet(partial, index=False)
            os.replace(partial, path)
        tables.append(pd.read_parquet(path))
    return pd.concat(tables, ignore_index=True)


def read_study(study, source: str) -> pd.DataFrame:
    """All prediction tables of a study, as columns method, seed and benchmark beside the rows.

    Parameters
    ----------
    study : advlib.study.Study
    source : {"fresh", "committed"}
        All tables of the reader's own run, or all committed ones; never a mixture.

    Returns
    -------
    DataFrame
        ``attrs["facts"]`` holds the facts of each table by (benchmark, method, seed).

    Raises
    ------
    FileNotFoundError
        If a table is missing.
    ValueError
        If the tables do not belong together: other test images, or a threat model or training
        settings other than the study's.
    """
    folder = study.tables(source)
    tables, facts = [], {}
    for benchmark in ("clean", *study.attacks):
        for method in study.methods:
            for seed in study.seeds:
                path = folder / "predictions" / benchmark / f"{method}-seed{seed}.parquet"
                if not path.is_file():
                    raise FileNotFoundError(
                        f"{path} is missing: run `make book STUDY={study.study}` to the end"
                    )
                table = read_predictions(path)
                facts[benchmark, method, seed] = _check_facts(study, path, benchmark, method)
                tables.append(table.assign(benchmark=benchmark, method=method, seed=seed))
    data = {known["data"] for known in facts.values()}
    if len(data) > 1:
        raise ValueError(f"the tables in {folder} are of {len(data)} different sets of images")
    whole = pd.concat(tables, ignore_index=True)
    whole.attrs["facts"] = facts
    return whole


def _check_facts(study, path: Path, benchmark: str, method: str) -> dict:
    facts = read_facts(path)
    expected = None if benchmark == "clean" else study.threat(benchmark).to_dict()
    if facts["threat"] != expected:
        raise ValueError(
            f"{path} was made under another threat model than the study file's: run the study again"
        )
    settings = facts["settings"]
    now = study.training_settings(method, settings["seed"], settings["data"], settings["start"])
    if settings != json.loads(json.dumps(now)):
        changed = sorted(k for k in now if json.loads(json.dumps(now[k])) != settings.get(k))
        raise ValueError(
            f"{path} was made with other settings ({', '.join(changed)}): run the study again"
        )
    return facts


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
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    rows[RESULT_COLUMNS].to_csv(partial, index=False)
    os.replace(partial, path)
