"""The tables of a study: which there are, whether they belong together, and reading them."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pandas as pd
from markupsafe import escape

from advbook.studies.checks import check_choice
from advbook.studies.identity import changed_since, data_settings
from advbook.studies.places import named_file, tables_folder
from advbook.studies.switches import ledger_threats
from advbook.studies.views import condition_of, to_make
from advlib import metrics
from advlib.data import annotations
from advlib.files import file_hash, read_json, replacing
from advlib.importing import read_predictions
from advlib.parquet import read_table
from advlib.predictions import check_predictions, read_facts

AUDIT = ("ablations", "ledger", "battery")  # the parts of what `make audit` makes
SAMPLES = "samples.parquet"  # made by `advbook.studies.samples.make_samples`, in the study's folder
RESULT_COLUMNS = ["study", "method", "seed", "benchmark", "condition", "group", "statistic"]
RESULT_COLUMNS += ["value", "low", "high", "n_images", "provenance"]


def decimal(value: float, digits: int = 2, sign: str = "") -> str:
    """A number as text, the same on every page.

    A half is rounded away from zero, whatever the last bits of the sum behind it; zero has no sign.

    Parameters
    ----------
    value : float
    digits : int
        After the decimal point.
    sign : {"", "+"}
        "+": a gain has its sign too.
    """
    rounded = Decimal(repr(round(float(value), 8))).quantize(
        Decimal(1).scaleb(-digits), ROUND_HALF_UP
    )
    return f"{rounded if rounded else abs(rounded):{sign}}".replace("-", "\N{MINUS SIGN}")


def per_cent(value: float, digits: int = 2, sign: str = "") -> str:
    """A fraction in per cent or points as text: `decimal` of a hundred times as much."""
    return decimal(100 * float(value), digits, sign)


def in_per_cent(row, digits: int = 2) -> str:
    """A row's value with its interval, in per cent or points: "12.34 [11.90, 12.78]".

    Parameters
    ----------
    row : with value, low and high
        Fractions; low is missing where there is no interval.
    digits : int
        Of the value; its interval has as many, but no more than two.
    """
    value = per_cent(row.value, digits)
    if pd.isna(row.low):
        return value
    # A line may break before the interval, not in it.
    low, high = (per_cent(end, min(digits, 2)) for end in (row.low, row.high))
    return f"{value} [{low},\N{NO-BREAK SPACE}{high}]"


def with_spread(mean: float, sd: float) -> str:
    """Fractions in per cent or points: "12.34 ± 0.56", the mean alone where there is no SD."""
    spread = "" if pd.isna(sd) else f"\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{per_cent(sd)}"
    return per_cent(mean) + spread


def styled(frame: pd.DataFrame, index: bool = False, **form):
    """A table as pages show it, whose cells and headers read as they were typed.

    Parameters
    ----------
    frame : DataFrame
    index : bool
        Whether the row names are shown.
    **form
        Of pandas' ``Styler.format``.

    Returns
    -------
    pandas Styler
    """
    shown = frame.map(_as_cell).style.format(**form)
    for axis in ("index", "columns"):
        shown.format_index(escape="html", axis=axis).format_index_names(escape="html", axis=axis)
    return shown if index else shown.hide(axis="index")


def _as_cell(value):
    """Text as HTML; its first hyphen stays one, where pages show a number's as a minus sign."""
    return re.sub("^-", "&#45;", str(escape(value))) if isinstance(value, str) else value


def in_words(frame: pd.DataFrame):
    """A table of words as pages show it: left-aligned, where numbers are right-aligned.

    Returns
    -------
    pandas Styler
    """
    left = {"selector": "th, td", "props": "text-align: left"}
    return styled(frame).set_table_styles([left])


def images_of(known: Mapping) -> str:
    """How many images of which split a table has, by its facts: "4,000 test images"."""
    kinds = {"test": "test images", "holdout": "images of the training split"}
    return f"{known['n_images']:,} {kinds[known['split']]}"


def results_date(paths: Iterable[Path | str]) -> str:
    """The day on which the newest of these tables was made, "" if none says it.

    Parameters
    ----------
    paths : iterable of path
        Prediction tables (Parquet) and files of facts (JSON); others are passed over.
    """
    days = [""]
    for path in map(Path, paths):
        if path.suffix == ".parquet":
            try:
                days.append(read_facts(path).get("time", "")[:10])
            except ValueError:
                continue  # a table without facts, such as the measured pixels
        elif path.suffix == ".json":
            text = json.dumps(read_json(path))
            days += re.findall(r'"(?:time|date)": "(\d{4}-\d\d-\d\d)', text)
    return max(days)


def arithmetic(facts: Iterable[Mapping]) -> str:
    """In which numbers an attack was computed, and where: by the facts of its tables.

    Parameters
    ----------
    facts : iterable of mappings
        One a table, with dtype (of the attack's search; what is recorded is always float32) and
        device; both None in predictions that were brought.

    Returns
    -------
    str
        "searched in bfloat16, verdicts in float32, on cpu", or "" of predictions that were brought.
    """
    found = {}
    for known in facts:
        if known["dtype"] is not None:
            dtype = known["dtype"].removeprefix("torch.")
            how = "in float32"
            if dtype != "float32":
                how = f"searched in {dtype}, verdicts in float32"
            found[f"{how}, on {known['device']}"] = None
    return " or ".join(found)


def attack_lines(study, facts: Mapping[tuple, Mapping]) -> list[str]:
    """A line for each attack of a study: its threat model and its arithmetic.

    Parameters
    ----------
    study : advbook.studies.schema.Study
    facts : mapping
        Those of `read_study`, by (benchmark, method, seed).
    """
    lines = []
    for attack in study.attacks:
        how = arithmetic(known for key, known in facts.items() if key[0] == attack)
        lines.append(f"{attack}: {condition_of(study, attack)}{how and f'; {how}'}")
    return lines


def as_markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown, so that the links in its cells are followed and checked."""
    lines = [table.columns, [":---"] * len(table.columns), *table.to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


class _Facts(dict):
    """The facts of tables. pandas copies a table's attrs at every step; these stay as they are."""

    def __deepcopy__(self, memo):
        return self


def read_tables(study, source: str, benchmarks=None) -> Iterator[tuple[tuple, pd.DataFrame, dict]]:
    """The prediction tables of a study, one after the other.

    Parameters
    ----------
    study : advbook.studies.schema.Study
    source : {"fresh", "committed"}
        All tables of the reader's own run, or all committed ones; never a mixture.
    benchmarks : sequence of str, optional
        Of ``study.benchmarks``; None: all.

    Yields
    ------
    (benchmark, method, seed), table, facts

    Raises
    ------
    FileNotFoundError, ValueError
        As `study_tables`, and where a table breaks the contract.
    """
    folder = tables_folder(study, source)
    found = study_tables(study, folder)
    num_classes = len(read_data(folder)["class_names"])
    for key, (path, facts) in found.items():
        if benchmarks is None or key[0] in benchmarks:
            table = metrics.counted(read_predictions(path))
            check_predictions(table, num_classes=num_classes, n_images=facts["n_images"])
            yield key, table, facts


def read_study(study, source: str, benchmarks=None) -> pd.DataFrame:
    """Prediction tables of a study as one, with columns method, seed and benchmark beside the rows.

    Parameters
    ----------
    study, source
        As in `read_tables`.
    benchmarks : sequence of str, optional
        None: all but the corrupted images, whose 75 conditions a page reads one table at a time.

    Returns
    -------
    DataFrame
        ``attrs["facts"]`` holds the facts of each table by (benchmark, method, seed),
        ``attrs["class_names"]`` the names of the classes, ``attrs["dataset"]`` the study's.
    """
    if benchmarks is None:
        benchmarks = [name for name in study.benchmarks if name != "corruptions"]
    tables, facts = [], _Facts()
    for (benchmark, method, seed), table, known in read_tables(study, source, benchmarks):
        tables.append(table.assign(benchmark=benchmark, method=method, seed=seed))
        facts[benchmark, method, seed] = known
    whole = pd.concat(tables, ignore_index=True)
    whole.attrs["facts"] = facts
    whole.attrs["dataset"] = study.dataset
    whole.attrs["class_names"] = read_data(tables_folder(study, source))["class_names"]
    return whole


def read_audit(study, source: str, part: str) -> pd.DataFrame:
    """What `make audit` found, for the first seed, as one table with columns method and seed.

    Parameters
    ----------
    study, source
        As in `read_tables`.
    part : {"ablations", "ledger", "battery"}
        Clean and PGD-40 predictions of the ablations and, to compare, of the methods (with a column
        benchmark); predictions under every switch of the threat model; or under the battery of
        attacks (both with a column attack, the name of the switch or test).

    Returns
    -------
    DataFrame
        ``attrs["facts"]`` holds the facts of each table by (benchmark, method) or (part, method),
        ``attrs["class_names"]`` the names of the classes.

    Raises
    ------
    FileNotFoundError, ValueError
        As `audit_tables`, and where a table breaks the contract.
    """
    folder = tables_folder(study, source)
    class_names = read_data(folder)["class_names"]
    tables, facts = [], _Facts()
    for (name, method, seed), (path, known) in audit_tables(study, folder, part).items():
        table = read_predictions(path)
        check_predictions(table, num_classes=len(class_names), n_images=known["n_images"])
        extra = {"benchmark": name} if part == "ablations" else {}
        tables.append(table.assign(**extra, method=method, seed=seed))
        facts[name, method] = known
    whole = pd.concat(tables, ignore_index=True)
    whole.attrs = {"facts": facts, "class_names": class_names}
    return whole


def with_real(tables: pd.DataFrame, unlabelled: str = "drop") -> pd.DataFrame:
    """The tables and, where the images have ReaL labels, the clean ones judged by them.

    Parameters
    ----------
    tables : DataFrame
        As `read_study` returns it.
    unlabelled : {"drop", "error"}
        What becomes of images without a label, as in `advlib.metrics.multilabel_table`.

    Returns
    -------
    DataFrame
        With a benchmark "real"; as it was if the images are not ImageNet's validation images.
    """
    clean = tables[tables.benchmark == "clean"]
    if not is_validation(tables.attrs["dataset"], clean.file_name):
        return tables
    judged = metrics.multilabel_table(clean, annotations.real_label_sets(), unlabelled)
    tables = tables.assign(correct=metrics.correct(tables))
    whole = pd.concat([tables, judged.assign(benchmark="real")], ignore_index=True)
    facts = {("real", *key[1:]): known for key, known in tables.attrs["facts"].items()}
    whole.attrs = {**tables.attrs, "facts": _Facts({**facts, **tables.attrs["facts"]})}
    return whole


def is_validation(dataset: str, file_names: pd.Series) -> bool:
    """Whether these are ImageNet's validation images, which people annotated and labelled anew."""
    return dataset == "imagenet" and file_names.iloc[0].startswith("ILSVRC2012_val_")


def read_measures(study, source: str) -> pd.DataFrame:
    """What was measured on the pixels of the study's evaluated images (`annotations.measure`)."""
    return read_table(tables_folder(study, source) / "measures.parquet")


def read_data(folder: Path) -> dict:
    """What the images of a study's tables are: ``data.json``, with title, sizes and class names."""
    return read_json(folder / "data.json")


def study_tables(study, folder: Path) -> dict[tuple, tuple[Path, dict]]:
    """The path and the facts of each prediction table, if all belong to the study as it stands.

    Parameters
    ----------
    study : advbook.studies.schema.Study
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
    return _checked(study, folder, table_paths(study, folder), to_make(study))


def audit_tables(study, folder: Path, part: str) -> dict[tuple, tuple[Path, dict]]:
    """As `study_tables`, for a part (`AUDIT`) of `make audit`: by (name, method, seed)."""
    check_choice("part", part, AUDIT)
    return _checked(study, folder, audit_paths(study, folder, part), to_make(study, "audit"))


def samples_table(study, folder: Path) -> tuple[Path, dict]:
    """As `study_tables`, for the samples table (`advbook.studies.samples`): its path and its facts.

    It is no part of `study_tables`: a study is shown without it where images may not be published.
    """
    if study.predictions:
        raise ValueError(f"{study.study} holds predictions: there is no image to attack")
    path, again = folder / SAMPLES, to_make(study)
    _checked(study, folder, {path: None}, again)
    data, facts = read_data(folder), read_facts(path)
    of = facts["seed"], sorted(facts["networks"])
    if of != (study.seeds[0], sorted(study.methods)):
        raise ValueError(f"{path} is of other methods or another seed than the study's: {again}")
    for method, network in facts["networks"].items():
        key = ("samples", method, facts["seed"])
        _check_facts(study, folder, path, facts | network, data, key, again)
    return path, facts


def _checked(study, folder: Path, paths: dict[Path, tuple | None], again: str) -> dict:
    """The facts of the tables at these paths, if all are there and belong to the study."""
    for path in [folder / "data.json", *paths]:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {again} to the end")
    data = read_data(folder)
    if data["settings"] != data_settings(study):
        raise ValueError(f"{folder / 'data.json'} is of other images than the study's: {again}")
    if data["class_names"] != (study.class_names or data["class_names"]):
        raise ValueError(f"{folder / 'data.json'} has other class_names than the study's: {again}")
    found = {}
    for path, key in paths.items():
        if key is not None:
            facts = read_facts(path)
            _check_facts(study, folder, path, facts, data, key, again)
            found[key] = path, facts
    return found


def _check_facts(study, folder: Path, path: Path, facts: dict, data: dict, key, again: str) -> None:
    """Refuse a table of other images, settings or networks than the study's."""
    if changed := _changed(study, folder, facts, data, *key[:2]):
        raise ValueError(f"{path} was made with another {', '.join(changed)}: {again}")
    run = folder / "train" / f"{key[1]}-seed{key[2]}.json"
    if not study.predictions and run.is_file():
        if facts["checkpoint_hash"] != read_json(run).get("checkpoint_hash"):
            raise ValueError(f"{path} is of a network trained before this one: {again}")


def table_paths(study, folder: Path) -> dict[Path, tuple | None]:
    """Every table that a study's pages read: its (benchmark, method, seed), None for other facts.

    Parameters
    ----------
    study : advbook.studies.schema.Study
    folder : Path
        ``runs/<study>`` or ``results/<study>``.
    """
    runs = [(method, seed) for method in study.methods for seed in study.seeds]
    paths = {folder / "data.json": None}
    if not study.predictions:
        paths[folder / "measures.parquet"] = None
        paths |= {folder / "train" / f"{m}-seed{seed}.csv": None for m, seed in runs}
    for benchmark in study.benchmarks:
        place = folder / "predictions" / benchmark
        paths |= {place / f"{m}-seed{seed}.parquet": (benchmark, m, seed) for m, seed in runs}
    return paths


def audit_paths(study, folder: Path, part: str) -> dict[Path, tuple | None]:
    """Every table of a part of the audit, as `table_paths`: its (name, method, seed) or None."""
    seed = study.seeds[0]
    if part == "ablations":
        paths = {folder / "train" / f"{m}-seed{s}.csv": None for m, s in study.ablation_runs}
        for benchmark in ("clean", "pgd40"):
            place = folder / "predictions" / benchmark
            for name in (*study.methods, *study.ablations):
                paths[place / f"{name}-seed{seed}.parquet"] = (benchmark, name, seed)
        return paths
    audited = [*study.methods, *(study.ablations if part == "ledger" else [])]
    place = folder / "audit" / part
    return {place / f"{name}-seed{seed}.parquet": (part, name, seed) for name in audited}


def _changed(
    study, folder: Path, facts: dict, data: dict, benchmark: str, method: str
) -> list[str]:
    """What differs between a table's facts and the study."""
    split = study.evaluation_split
    n_images = data[split]["images"]
    expected = {"split": split, "data": data[split]["fingerprint"]}
    if study.predictions:
        given = study.predictions[method]
        try:
            same = facts.get("checkpoint_hash") == file_hash(named_file(given))
        except FileNotFoundError:  # tables outlive the file they were made from
            same = facts.get("brought") == given
        if not same:
            return [given]
        n_images = facts["n_images"] if benchmark == "corruptions" else n_images
    elif benchmark == "samples":
        expected["threat"] = study.threat("pgd40_last").to_dict()
        n_images = facts["n_images"]
    elif benchmark in AUDIT:
        subset = {"ledger": study.ledger_images, "battery": study.battery_images}[benchmark]
        expected |= {"threat": study.threat("pgd40").to_dict(), "subset": subset}
        n_images = facts["n_images"]
    else:
        attacked = benchmark in (*study.attacks, "pgd40")
        expected["threat"] = study.threat(benchmark).to_dict() if attacked else None
        if benchmark == "corruptions":
            expected["corruptions"] = study.corruptions
            n_images = study.corruption_images or n_images
    expected["n_images"] = n_images
    changed = [key for key, value in expected.items() if facts.get(key) != value]
    if study.predictions:
        return changed
    if benchmark == "ledger":
        now = {name: threat.to_dict() for name, threat in ledger_threats(study, method).items()}
        found = facts.get("threats", {})
        odd = sorted(k for k in now.keys() | found.keys() if now.get(k) != found.get(k))
        changed += [f"threat model under {name}" for name in odd]
    settings = facts.get("settings", {})
    changed += changed_since(study, method, settings, folder)
    trained = method in {*study.trained, *study.ablations}
    if trained and settings.get("data") != data["train"]["fingerprint"]:
        changed.append("set of training images")
    return sorted(changed)


def write_results(rows: pd.DataFrame, path: Path, study, source: str, facts: dict) -> None:
    """Write a result table: one value a row, each with its threat model and its origin.

    Parameters
    ----------
    rows : DataFrame
        Columns method, seed, benchmark, group, statistic, value, low, high; n_images unless every
        row is about all images; condition unless the benchmark says it.
    path : Path
        A CSV, written whole or not at all.
    study : advbook.studies.schema.Study
    source : {"fresh", "committed"}
    facts : dict
        Those of `read_study`, by (benchmark, method, seed).
    """
    known = [facts[key] for key in zip(rows.benchmark, rows.method, rows.seed, strict=True)]
    conditions = {b: condition_of(study, b) for b in set(rows.benchmark)}
    if "condition" not in rows:
        rows = rows.assign(condition=rows.benchmark.map(conditions))
    rows = rows.assign(
        study=study.study,
        provenance=[f"{source}, checkpoint {f['checkpoint_hash']}, {f['time']}" for f in known],
    )
    if "n_images" not in rows:
        rows["n_images"] = [f["n_images"] for f in known]
    with replacing(path) as partial:
        rows[RESULT_COLUMNS].to_csv(partial, index=False)
