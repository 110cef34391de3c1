"""The leaderboard: one JSON record per network, in RobustBench's keys and class by class.

``python -m advbook record`` writes a record, `read_records` reads all of them, and
``python -m advbook.zoo.leaderboard`` writes the JSON schema that they follow.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from advbook.studies.bring import check_same_images, fingerprint, images_of
from advbook.studies.checks import check_choice, in_words, refuse_unknown
from advbook.studies.current import network_tables, read_data
from advbook.studies.places import ROOT, named_file
from advbook.studies.tables import per_cent
from advlib import metrics
from advlib.data.annotations import imagenet_classes
from advlib.data.catalogue import DATASETS
from advlib.files import file_hash, replacing
from advlib.importing import check_label_order, read_predictions, without_clean
from advlib.predictions import check_predictions, environment
from advlib.threat import PROTOCOLS, ThreatModel

FOLDER = ROOT / "results" / "leaderboard"
BENCHMARKS = ("clean", "pgd40", "autoattack")
SELECTIONS = ("last epoch", "validation images", "test images", None)
STATISTICS = ("error", "worst", "sd", "sd_noise_corrected", "worst_decile")
MANY_CLASSES = 20  # with fewer, the worst decile is one class


_strict = dataclass(config=ConfigDict(extra="forbid", allow_inf_nan=False), kw_only=True)


@_strict
class Estimate:
    """A fraction and its 95 % interval; null where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


@_strict
class Measured:
    """Errors under one benchmark, as fractions; lists are in the order of ``class_names``."""

    n_images: list[int] = Field(description="of each class")
    errors: list[float] = Field(description="of each class")
    drawn: list[int] | None = Field(description="standing images that AutoAttack met; null: all")
    worst_class: str | None = Field(description="null: several tie")
    statistics: dict[Literal[STATISTICS], Estimate]


@_strict
class Classwise:
    """What RobustBench does not keep: the threat model, the images, and the errors by class."""

    study: str | None = Field(description="null: predictions made elsewhere")
    method: str | None
    seed: int | None
    threat: ThreatModel = Field(description="PGD-40's; AutoAttack has its norm and eps")
    selection: Literal[SELECTIONS] = Field(description="of the checkpoint; null: not known")
    checkpoint_hash: str = Field(description="of the clean predictions if they were brought")
    data: str = Field(description="fingerprint of the images")
    data_title: str
    class_names: list[str]
    benchmarks: dict[Literal[BENCHMARKS], Measured]
    time: str = Field(description="of the predictions, or when brought ones were recorded")


@_strict
class Record:
    """A network: RobustBench's keys, accuracies as text in per cent, and a class-wise block."""

    link: str | None = None
    name: str
    authors: str | None = None
    additional_data: bool | None = None
    number_forward_passes: int | None = None
    dataset: str
    venue: str | None = None
    architecture: str | None = None
    eps: str
    clean_acc: str
    reported: str | None = None
    autoattack_acc: str | None
    footnote: str | None = None
    unreliable: bool = False
    classwise: Classwise


ABOUT = [f.name for f in dataclasses.fields(Record) if f.default is not dataclasses.MISSING]
"""The keys that no table holds."""

_RECORD = TypeAdapter(Record)


def record_network(study, method: str, seed: int, about: Mapping) -> Path:
    """Write the record of a study's network, as ``<study>-<method>-seed<n>.json`` in `FOLDER`.

    Its fresh tables are read or, where there are none, the published ones. ``method`` may be an
    ablation; ``about`` holds values of `ABOUT`. Raises FileNotFoundError or ValueError if tables
    are missing or outdated, if the study holds predictions (their threat model is not known), or if
    another network has the name.
    """
    if study.predictions:
        raise ValueError(
            f"the study {study.study!r} holds predictions and does not know their threat model: "
            "record them by --predictions and --threat"
        )
    titles = study.names | study.ablation_names
    check_choice("method", method, tuple(titles))
    folder, found = network_tables(study, method, seed)
    facts = found["pgd40", method, seed][1]
    trained = method not in study.checkpoints
    known = {"name": f"{titles[method]}, {study.title}, seed {seed}", "dataset": study.dataset}
    known |= {"architecture": study.model, "number_forward_passes": 1}
    known |= {"additional_data": study.weights is not None if trained else None, **about}
    kept = "study method seed threat checkpoint_hash data data_title time".split()
    classwise = {key: facts[key] for key in kept}
    classwise |= {"selection": "last epoch" if trained else None}
    classwise |= {"class_names": read_data(folder)["class_names"]}
    tables = {key[0]: read_predictions(path) for key, (path, _) in found.items()}
    return _write(f"{study.study}-{method}-seed{seed}", tables, facts["n_images"], known, classwise)


def record_predictions(
    files: Mapping[str, str],
    *,
    name: str | None,
    dataset: str | None,
    threat: Mapping,
    images: int | None,
    classes: int | None,
    selection: str | None,
    about: Mapping,
) -> Path:
    """Write the record of predictions made elsewhere, as ``<dataset>-<name>.json``.

    ``files`` are prediction tables by their name in `BENCHMARKS`
    (`advlib.importing.read_predictions`); one file may hold all, told apart by its column
    ``attack``. The dataset "imagenet" joins the labels by file name. ``threat`` is that of
    ``pgd40``: norm, eps, and what else differs from `advlib.threat.PROTOCOLS`. ``images`` and
    ``classes`` say how many there are, so that a part is not taken for the whole, and ``selection``
    how the checkpoint was chosen; ``about`` holds values of `ABOUT`.

    Raises FileNotFoundError or ValueError if one of these is missing, if a file breaks the contract
    of predictions or is about other images, or if another network has the name.
    """
    needed = {"--name": name, "--dataset": dataset, "--images": images, "--classes": classes}
    needed |= {"--threat norm=… eps=…": {"norm", "eps"} <= set(threat)}
    needed |= {f"--predictions {b}=FILE": b in files for b in ("clean", "pgd40")}
    if lacking := [option for option, given in needed.items() if not given]:
        raise ValueError(f"a record of brought predictions lacks {', '.join(lacking)}: add this")
    check_choice("--selection", selection, SELECTIONS)
    fields = [field.name for field in dataclasses.fields(ThreatModel)]
    refuse_unknown(set(threat) - set(fields), fields)
    attack = dataclasses.replace(PROTOCOLS["pgd40"], **threat)
    if attack.steps != 40:
        raise ValueError(f"pgd40 takes 40 steps, and --threat says steps={attack.steps}")
    tables = {benchmark: _rows(path, benchmark, dataset) for benchmark, path in files.items()}
    check_label_order(tables["clean"])
    info = DATASETS.get(dataset)
    known = imagenet_classes().class_name if dataset == "imagenet" else info and info.class_names
    class_names = [f"class {i}" for i in range(classes)] if known is None else list(known)
    if len(class_names) != classes:
        raise ValueError(f"{dataset} has {len(class_names)} classes, and --classes says {classes}")
    classwise = {"study": None, "method": None, "seed": None, "threat": attack.to_dict()}
    classwise |= {"selection": selection, "class_names": class_names}
    classwise |= {"data_title": info.title if info else dataset}
    classwise |= {"checkpoint_hash": file_hash(named_file(files["clean"]))}
    classwise |= {"data": fingerprint(images_of(tables["clean"])), "time": environment()["time"]}
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{dataset}-{name}")
    return _write(stem, tables, images, {"name": name, "dataset": dataset, **about}, classwise)


def _rows(path: str, benchmark: str, dataset: str) -> pd.DataFrame:
    """The rows of a brought file that belong to a benchmark."""
    check_choice("the benchmark", benchmark, BENCHMARKS)
    table = read_predictions(named_file(path), "imagenet" if dataset == "imagenet" else None)
    if "corruption" in table:
        table = table[table.corruption.isna()]
    if "attack" in table:
        attack = without_clean(table.attack)
        table = table[attack.isna() if benchmark == "clean" else attack == benchmark]
    if table.empty:
        raise ValueError(f"{path} has no rows of {benchmark}, as its column attack says")
    return table.reset_index(drop=True)


def _write(stem: str, tables: dict, n_images: int, known: dict, classwise: dict) -> Path:
    """Check the tables, measure them, and write the record unless another network has its name."""
    names = classwise["class_names"]
    for benchmark, table in tables.items():
        check_predictions(table, num_classes=len(names), n_images=n_images)
        check_same_images(tables["clean"], table, f"the tables clean and {benchmark}")
        if len(table) > n_images:
            raise ValueError(f"{benchmark} has {len(table)} rows: keep one of each image")
    found = {benchmark: _measured(table, benchmark, names) for benchmark, table in tables.items()}
    accuracy = {b: per_cent(1 - one["statistics"]["error"]["value"]) for b, one in found.items()}
    known |= {"clean_acc": accuracy["clean"], "autoattack_acc": accuracy.get("autoattack")}
    eps = classwise["threat"]["eps"]
    known |= {"eps": f"{eps:g}" if float(f"{eps:g}") == eps else f"{255 * eps:g}/255"}
    try:
        record = Record(**known, classwise=classwise | {"benchmarks": found})
    except ValidationError as error:
        raise ValueError(in_words(error)) from error
    path = FOLDER / f"{stem}.json"
    for other, one in read_records(FOLDER).items():
        same = one.classwise.checkpoint_hash == record.classwise.checkpoint_hash
        if (other == path or one.name == record.name) and not same:
            raise ValueError(
                f"{other.name} is the record of another network, {one.name!r}: give this one "
                "another name, or delete that file if this one takes its place"
            )
    with replacing(path) as partial:
        partial.write_bytes(_RECORD.dump_json(record, indent=1) + b"\n")
    return path


def _measured(table: pd.DataFrame, benchmark: str, class_names: list[str]) -> dict:
    """The values of `Measured`; intervals are those of `advlib.metrics.two_phase`."""
    on_a_draw = benchmark == "autoattack" and "drawn" in table
    if not on_a_draw:  # the attack met every image: nothing hangs on a draw
        right = metrics.correct(table)
        table = table.assign(broken_by=np.where(right, "", "attack"), drawn=right)
    with np.errstate(invalid="ignore"):  # 0 / 0 where every image is broken
        _, classes, statistics = metrics.two_phase(table)
    if absent := set(range(len(class_names))) - set(classes.label):
        raise ValueError(f"{len(absent)} classes have no image, {class_names[min(absent)]!r} first")
    kept = [s for s in STATISTICS if s != "worst_decile" or len(class_names) >= MANY_CLASSES]
    rounded = statistics.set_index("statistic").loc[kept, ["value", "low", "high"]].round(6)
    worst = classes.label[classes.error == classes.error.max()]
    return {
        "n_images": classes.n_images.tolist(),
        "errors": classes.error.round(6).tolist(),
        "drawn": classes.drawn.tolist() if on_a_draw else None,
        "worst_class": class_names[worst.iloc[0]] if len(worst) == 1 else None,
        "statistics": rounded.astype(object).where(rounded.notna(), None).to_dict("index"),
    }


def read_records(folder: Path) -> dict[Path, Record]:
    """All records in a folder, by file; ValueError, with the file, for one against the schema."""
    found = {}
    for path in sorted({*folder.glob("*.json")} - {folder / "schema.json"}):
        try:
            found[path] = _RECORD.validate_json(path.read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path.name}: {in_words(error)}") from error
    return found


def json_schema() -> str:
    """The JSON schema of a record."""
    return json.dumps(_RECORD.json_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (FOLDER / "schema.json").write_text(json_schema(), encoding="utf-8")
