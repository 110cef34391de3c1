"""Publish a study's tables into the repository, and bring published weights back to its runs."""

import shutil
import sys
from pathlib import Path

from advbook.build.pages import LARGE, check_ids, from_root, outdated
from advbook.commands import plainly
from advbook.studies.current import SAMPLES, paths_of
from advbook.studies.places import STUDIES, find_study
from advbook.studies.schema import Study, load_study
from advlib.files import read_json

NOT_OURS = ("imagenet", "folder")  # data sets whose images may not be free to be published


def publish(name: str) -> None:
    """Copy a study's fresh tables to ``results/<study>``: those of its run, its audit, or both.

    Each of these is published whole or not at all, and none that is published is lost. The weights
    of the methods' first seed go with them, if they are small; so do samples of images that may be
    published (those of `NOT_OURS` stay).
    """
    study = load_study(name)
    old = study.published.with_name(f".{study.study}.old")
    if old.exists() and not study.published.exists():  # the last one was killed between the two
        old.rename(study.published)
    own = STUDIES / f"{study.study}.yaml"
    if own.is_file():
        check_ids((study, from_root(find_study(name))), (load_study(own), from_root(own)))
    paths, missing = [], []
    parts = ["study", *study.audits]
    if study.dataset in NOT_OURS:
        print(f"{SAMPLES} stays here: images of {study.dataset} may not be free to be published")
    elif not study.predictions:
        parts.append("samples")
    for part in parts:
        if why := outdated(study, study.runs, part):
            missing.append(why)
            if not outdated(study, study.published, part):
                sys.exit(f"Nothing is published, for published tables would be lost: {why}")
        else:
            paths += paths_of(study, study.runs, part)
    if not paths:
        sys.exit(f"Nothing is published: {missing[0]}")
    partial = study.published.with_name(f".{study.study}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # Which network each table is of is checked against the facts of its training.
    runs = {path.stem for path in paths if path.suffix == ".parquet"}
    paths += [study.runs / "train" / f"{run}.json" for run in runs]
    found = {path.relative_to(study.runs): path for path in paths if path.is_file()}
    ours = _weights(study, study.runs)
    # Published weights of the same networks stay, also where the run's are gone.
    for network, path in [*_weights(study, study.published).items(), *ours.items()]:
        if network in ours and path.is_file() and path.stat().st_size < LARGE:
            found[path.relative_to(path.parents[2])] = path
    for place, path in found.items():
        target = partial / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    shutil.rmtree(old, ignore_errors=True)
    if study.published.exists():  # whole until the new ones are there
        study.published.rename(old)
    partial.rename(study.published)
    shutil.rmtree(old, ignore_errors=True)
    size = sum(p.stat().st_size for p in study.published.rglob("*") if p.is_file())
    print(f"{study.published}: {size / 1e6:.1f} MB, to be committed")


def restore(name: str) -> None:
    """Put a study's published weights among its runs, as if they had been trained here.

    Notebooks then evaluate and attack them, and the pipeline trains only what is not published.
    """
    study = load_study(name)
    # Of a run's last epochs no weights are published: such a method is trained anew.
    late = tuple(f"{name}-seed" for name in study.late_epochs)
    weights = [path for path in _weights(study, study.published).values() if path.is_file()]
    weights = [path for path in weights if not path.parent.name.startswith(late)]
    if not weights:
        sys.exit(f"No weights of {study.study} are published: `make book STUDY={study.study}`")
    for path in weights:
        method = path.parent.name.rpartition("-")[0]
        for source in (path, study.published / "train" / f"{method}.json"):
            target = study.runs / source.relative_to(study.published)
            if target.exists() and target.read_bytes() != source.read_bytes():
                sys.exit(f"{target} is of a run of your own: move {study.runs} away first")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    print(f"{study.runs}: {len(weights)} networks of {study.study}, as they were published")


def _weights(study: Study, folder: Path) -> dict[tuple[str, str], Path]:
    """The checkpoints, which may be gone, of the methods' first seed: by its folder and hash."""
    runs = [folder / "train" / f"{method}-seed{study.seeds[0]}.json" for method in study.trained]
    facts = [read_json(path) for path in runs if path.is_file()]
    models = folder / "models"
    return {
        (run["folder"], run["checkpoint_hash"]): models / run["folder"] / "checkpoint.safetensors"
        for run in facts
    }


if __name__ == "__main__":
    with plainly("publish.py"):
        {"publish": publish, "restore": restore}[sys.argv[1]](*sys.argv[2:])
