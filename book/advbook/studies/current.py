"""Which tables a study has, and whether they are those of the study as it now stands."""

from pathlib import Path

from advbook.studies.identity import changed_since, data_settings
from advbook.studies.places import named_file
from advbook.studies.switches import ledger_threats
from advbook.studies.views import to_make
from advlib.files import file_hash, read_json
from advlib.predictions import read_facts

SAMPLES = "samples.parquet"  # made by `advbook.studies.samples.make_samples`, in the study's folder


def read_data(folder: Path) -> dict:
    """What the images of a study's tables are: ``data.json``, with title, sizes and class names."""
    return read_json(folder / "data.json")


def study_tables(study, folder: Path, part: str = "study") -> dict[tuple, tuple[Path, dict]]:
    """The path and the facts of each prediction table of a part, by (benchmark, method, seed).

    The folder is ``runs/<study>`` or ``results/<study>``, the parts are those of `paths_of`. Raises
    FileNotFoundError if a table or training log is missing, ValueError if one was made from other
    images, under another threat model or with other training settings than the study file's.
    """
    again = to_make(study, "book" if part in ("study", "samples") else "audit")
    found = _checked(study, folder, paths_of(study, folder, part), again)
    if part == "samples":  # one table of all networks
        path, data = folder / SAMPLES, read_data(folder)
        facts = read_facts(path)
        if (facts["seed"], {*facts["networks"]}) != (study.seeds[0], {*study.methods}):
            raise ValueError(
                f"{path} is of other methods or another seed than the study's: {again}"
            )
        for method, network in facts["networks"].items():
            key = ("samples", method, facts["seed"])
            found[key] = path, facts | network
            _check_facts(study, folder, *found[key], data, key, again)
    return found


def network_tables(study, method: str, seed: int) -> tuple[Path, dict]:
    """As `study_tables`, of one network: clean, PGD-40 and, where there is one, AutoAttack.

    Fresh ones where the first two are there, else published ones: their folder comes with them.
    """
    name = f"{method}-seed{seed}.parquet"
    places = [Path("predictions") / benchmark / name for benchmark in ("clean", "pgd40")]
    fresh = all((study.runs / place).is_file() for place in places)
    folder = study.runs if fresh else study.published
    drawn = Path("audit") / "autoattack" / name
    places += [drawn] if (folder / drawn).is_file() else []
    paths = {folder / "data.json": None}
    paths |= {folder / place: (place.parent.name, method, seed) for place in places}
    return folder, _checked(study, folder, paths, to_make(study))


def paths_of(study, folder: Path, part: str = "study") -> dict[Path, tuple | None]:
    """Every table of a part of a study: (benchmark, method, seed), None for other facts.

    The part is "study", which all pages read, "samples" (`advbook.studies.samples`; without it a
    study is shown where images may not be published), or one of ``study.audits``.
    """
    paths, first = {folder / "data.json": None}, study.seeds[0]
    place, benchmarks, runs, logs = folder / "predictions", study.benchmarks, study.method_runs, []
    if part == "samples":
        return paths | {folder / SAMPLES: None}
    if part == "study":
        logs = [] if study.predictions else runs
        paths |= {folder / "measures.parquet": None} if logs else {}
    elif part == "ablations":
        benchmarks, logs = ("clean", "pgd40"), study.ablation_runs
        runs = [*(run for run in runs if study.zoo or run[1] == first), *logs]
    else:
        place, benchmarks = folder / "audit", (part,)
        runs = [run for run in runs if part == "autoattack" or run[1] == first]
        runs += study.ablation_runs if part in ("ledger", "late") else []
        runs = [run for run in runs if part != "late" or run[0] in study.late_epochs]
    paths |= {folder / "train" / f"{m}-seed{s}.csv": None for m, s in logs}
    for benchmark in benchmarks:
        paths |= {place / benchmark / f"{m}-seed{s}.parquet": (benchmark, m, s) for m, s in runs}
    return paths


def _checked(study, folder: Path, paths: dict[Path, tuple | None], again: str) -> dict:
    """The facts of the tables at these paths, if all are there and belong to the study."""
    for path in paths:
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
            found[key] = path, read_facts(path)
            _check_facts(study, folder, *found[key], data, key, again)
    return found


def _check_facts(study, folder: Path, path: Path, facts: dict, data: dict, key, again: str) -> None:
    """Refuse a table of other images, settings or networks than the study's."""
    if changed := _changed(study, folder, facts, data, *key[:2]):
        raise ValueError(f"{path} was made with another {', '.join(changed)}: {again}")
    run = folder / "train" / f"{key[1]}-seed{key[2]}.json"
    if not study.predictions and run.is_file():
        if facts["checkpoint_hash"] != read_json(run).get("checkpoint_hash"):
            raise ValueError(f"{path} is of a network trained before this one: {again}")


def _changed(
    study, folder: Path, facts: dict, data: dict, benchmark: str, method: str
) -> list[str]:
    """What differs between a table's facts and the study."""
    split = study.evaluation_split
    expected = {"split": split, "data": data[split]["fingerprint"]}
    expected["n_images"] = data[split]["images"]
    if study.predictions:
        given = study.predictions[method]
        try:
            same = facts.get("checkpoint_hash") == file_hash(named_file(given))
        except FileNotFoundError:  # tables outlive the file they were made from
            same = facts.get("brought") == given
        if not same:
            return [given]
        if benchmark == "corruptions":  # perhaps of a part of the images
            del expected["n_images"]
        return [key for key, value in expected.items() if facts.get(key) != value]
    attack = "pgd40_last" if benchmark == "samples" else ""
    if benchmark in ("ledger", "battery", "autoattack", "late"):
        attack = "pgd40"
    if benchmark == "battery":
        expected["strength"] = "standard"
    if benchmark == "autoattack":
        expected["width"] = study.autoattack_width
    elif attack and benchmark != "late":
        del expected["n_images"]
    if benchmark in ("ledger", "battery"):
        expected["subset"] = getattr(study, f"{benchmark}_images")
    if benchmark == "corruptions":
        expected["corruptions"] = study.corruptions
        expected["n_images"] = study.corruption_images or expected["n_images"]
    plain = benchmark in ("clean", "corruptions")
    expected["threat"] = None if plain else study.threat(attack or benchmark).to_dict()
    if benchmark == "late":
        expected |= {"epochs": study.late_epochs[method], "threat": study.late_threat.to_dict()}
    changed = [key for key, value in expected.items() if facts.get(key) != value]
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
