"""AutoAttack on every test image, beside the draw of a study: what each finds and costs.

    python benchmarks/every_image.py [--study cifar10] [--method adv]

First the audit's own table, on a draw of what PGD-40 leaves; then every image, which takes three
hours of a core for the default. A run that was stopped goes on with the same command. Into
``results/benchmark`` it writes ``every_image.parquet``, the prediction table of `autoattack`, and
``every_image.csv``, the processor's seconds of both.
"""

import argparse
import csv
import time
from pathlib import Path

import pandas as pd

from advbook.studies.evaluate import strong_predictions
from advbook.studies.inputs import images_of
from advbook.studies.places import ROOT
from advbook.studies.runs import load_run
from advbook.studies.schema import load_study
from advlib.attacks.autoattack import autoattack
from advlib.files import replacing
from advlib.parquet import write_parquet
from advlib.predictions import read_facts


def noted(path: Path, sample: str):
    """A callback that adds what each finished piece took to a file, which outlives the process."""
    begun = time.process_time()

    def note(component: str, attacked: int) -> None:
        nonlocal begun
        with path.open("a", newline="") as file:
            csv.writer(file).writerow([sample, component, attacked, time.process_time() - begun])
        print(f"{sample}, {component}: {attacked} images", flush=True)
        begun = time.process_time()

    return note


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--study", default="cifar10", help="an id or a file")
    parser.add_argument("--method", default="adv")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "benchmark")
    given = parser.parse_args()
    study = load_study(given.study)
    seed, folder = study.seeds[0], study.runs / "parts" / f"every_image-{given.method}"
    spent, whole = folder / "spent.csv", folder / "autoattack.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    strong_predictions(study, given.method, seed, progress=noted(spent, "draw"))
    model, run = load_run(study, given.method, seed)
    images = images_of(study, study.evaluation_split)
    table = autoattack(
        model,
        images,
        study.threat("pgd40"),
        num_classes=images.num_classes,
        batch_size=study.eval_batch_size,
        dtype=study.dtype,
        state=whole,
        progress=noted(spent, "every image"),
    )
    facts = read_facts(whole) | {"study": study.study, "method": given.method, "seed": seed}
    facts |= {"checkpoint_hash": run["checkpoint_hash"], "data": images.fingerprint}
    write_parquet(table, given.output / "every_image.parquet", facts)
    rows = pd.read_csv(spent, names=["sample", "component", "attacked", "cpu_seconds"])
    with replacing(given.output / "every_image.csv") as partial:
        rows = rows.groupby(["sample", "component"], sort=False, as_index=False).sum()
        rows.round(1).to_csv(partial, index=False)


if __name__ == "__main__":
    main()
