"""The tables of a study: read, checked, shown and written."""

import json
import re
from collections.abc import Iterable, Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pandas as pd
from markupsafe import escape

from advbook.studies.current import read_data, study_tables
from advbook.studies.places import tables_folder
from advbook.studies.views import condition_of
from advlib import metrics
from advlib.files import read_json, replacing
from advlib.importing import read_predictions
from advlib.predictions import check_predictions, read_facts

RESULT_COLUMNS = ["study", "method", "seed", "benchmark", "condition", "group", "statistic"]
RESULT_COLUMNS += ["value", "low", "high", "n_images", "provenance"]


def decimal(value: float, digits: int = 2, sign: str = "") -> str:
    """A number as text, the same on every page; with ``sign="+"`` a gain has its sign too.

    A half is rounded away from zero, whatever the last bits of the sum behind it; zero has no sign.
    """
    rounded = Decimal(repr(round(float(value), 8))).quantize(
        Decimal(1).scaleb(-digits), ROUND_HALF_UP
    )
    text = f"{rounded:{sign}}" if rounded else f"{abs(rounded)}"
    return text.replace("-", "\N{MINUS SIGN}")


def per_cent(value: float, digits: int = 2, sign: str = "") -> str:
    """A fraction in per cent or points as text: `decimal` of a hundred times as much."""
    return decimal(100 * float(value), digits, sign)


def in_per_cent(row, digits: int = 2) -> str:
    """Value, low and high of a row, fractions, in per cent or points: "12.34 [11.90, 12.78]".

    The interval has as many digits as the value, but no more than two; it may be missing.
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
    """A table as pages show it, a pandas Styler: cells and headers read as they were typed.

    ``index`` says whether the row names are shown; ``form`` is that of pandas' ``Styler.format``.
    """
    shown = frame.map(_as_cell).style.format(**form)
    for axis in ("index", "columns"):
        shown.format_index(escape="html", axis=axis).format_index_names(escape="html", axis=axis)
    return shown if index else shown.hide(axis="index")


def _as_cell(value):
    """Text as HTML; its first hyphen stays one, where pages show a number's as a minus sign."""
    return re.sub("^-", "&#45;", str(escape(value))) if isinstance(value, str) else value


def in_words(frame: pd.DataFrame):
    """A table of words as pages show it: left-aligned, where numbers are right-aligned."""
    left = {"selector": "th, td", "props": "text-align: left"}
    return styled(frame).set_table_styles([left])


def results_date(paths: Iterable[Path | str]) -> str:
    """The day on which the newest of these tables was made, "" if none says it.

    They are prediction tables (Parquet) and files of facts (JSON); others are passed over.
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


def as_markdown(table: pd.DataFrame) -> str:
    """A table of text as Markdown, so that the links in its cells are followed and checked."""
    lines = [table.columns, [":---"] * len(table.columns), *table.to_numpy()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def read_tables(
    study, source: str, benchmarks=None, part: str = "study"
) -> Iterator[tuple[tuple, pd.DataFrame, dict]]:
    """The prediction tables of a study, one after the other.

    ``source`` is "fresh" for all tables of the reader's own run, "committed" for all published
    ones; never a mixture. ``benchmarks`` are some of ``study.benchmarks``, None: all; ``part`` is
    one of those of `advbook.studies.current.study_tables`. Yields (benchmark, method, seed), table,
    facts. Raises as that does, and ValueError where a table breaks the contract.
    """
    folder = tables_folder(study, source)
    found = study_tables(study, folder, part)
    num_classes = len(read_data(folder)["class_names"])
    for key, (path, facts) in found.items():
        if benchmarks is None or key[0] in benchmarks:
            table = metrics.counted(read_predictions(path))
            check_predictions(table, num_classes=num_classes, n_images=facts["n_images"])
            yield key, table, facts


def read_audit(study, source: str, part: str) -> tuple[pd.DataFrame, dict[tuple, dict]]:
    """What `make audit` found, for the first seed, as one table with columns method and seed.

    Of "ablations": clean and PGD-40 predictions of the ablations and, to compare, of the methods
    (with a column benchmark; of a zoo's methods all seeds). Of "ledger": predictions under every
    switch of the threat model. Of "battery": under its attacks. These two have a column attack, the
    name of switch or test. Of "autoattack": under AutoAttack on a draw, for
    `advlib.metrics.two_phase`.

    With the table come the facts of each of its parts by (benchmark or part, method, seed). Raises
    as `read_tables`.
    """
    tables, facts = [], {}
    for key, table, known in read_tables(study, source, part=part):
        extra = {"benchmark": key[0]} if part == "ablations" else {}
        tables.append(table.assign(**extra, method=key[1], seed=key[2]))
        facts[key] = known
    return pd.concat(tables, ignore_index=True), facts


def write_results(rows: pd.DataFrame, path: Path, study, source: str, facts: dict) -> None:
    """Write a result table as CSV: one value a row, each with its threat model and its origin.

    The rows have columns method, seed, benchmark, group, statistic, value, low, high; n_images
    unless every row is about all images; condition unless the benchmark says it. The facts are
    those of `read_tables` or `read_audit`, by (benchmark, method, seed).
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
