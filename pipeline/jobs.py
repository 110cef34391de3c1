"""What a job of a study asks of a cluster: threads, GPUs, memory and time, from the study file.

    python pipeline/jobs.py imagenet devices=8 passes_per_second=1000

Work is counted in forward passes, as `advlib.recipes.Recipe.passes` does. The numbers are upper
bounds from a stated speed, made without torch whenever the Snakefile is read; nothing is measured.
"""

import math
import sys

import yaml

from advbook.commands import plainly
from advbook.studies.checks import refuse_unknown
from advbook.studies.identity import recipe_for, recipe_of
from advbook.studies.schema import Study, load_study
from pipeline.cost import CONDITIONS, images

# On one process.
ALONE = ("samples", "ledger", "battery", "autoattack", "late")
ALONE = tuple(f"evaluate_{part}" for part in ALONE)
HEAVY = ("train", "evaluate_clean", "evaluate_attack", "evaluate_corruptions", *ALONE)
SAMPLE_PASSES = 30 * 84  # a network: at most 30 images, each under PGD-40 and judged twice more
LEDGER_PASSES = 82 * 25  # an image: some twenty switches, one of them with five starts
BATTERY_PASSES = 20_000  # an image: PGD some 25 times, and AutoAttack
LATE_PASSES = 22  # an image and epoch
OFFSET_ROUNDS = 20  # of PGD on the images kept apart, for a method that trains nothing
STRONG_PASSES = 18_000  # an image: AutoAttack
DEFAULTS = {
    "devices": None,  # GPUs of one job; None: as many as the study says
    "passes_per_second": 600.0,  # forward ones, of one GPU; small networks are faster
    "max_minutes": 1440,  # what a partition grants; a job stopped there goes on when it is retried
    "gpu": True,  # False: a cluster without GPUs
}
MARGIN = 1.5  # on the time
START_MINUTES = 20  # imports, finding and reading the data, writing the tables
READS_PER_SECOND = 50.0  # images decoded and measured by one process
CORRUPTIONS_PER_SECOND = 5.0  # images of 224 px corrupted by one core
ROWS_PER_SECOND = 20_000.0  # predictions analysed, with bootstrap intervals
PROCESS_MB = 4000  # Python, torch and CUDA's own memory on the host
WORKER_MB = 1000  # one process that decodes images
ROW_BYTES = 200  # of a prediction, while tables are put together


def passes(study: Study, rule: str, method: str | None = None, attack: str | None = None) -> int:
    """Forward passes of one heavy job, at most: as if no image broke before its attack ends."""
    train, test, corrupted = images(study)
    networks = len(study.methods) * len(study.seeds)
    if rule == "train":
        brought, (study, method) = method in study.checkpoints, recipe_of(study, method)
        if brought or method not in study.recipes:
            return 0  # taken as it is
        if study.recipes[method].post_hoc:
            return OFFSET_ROUNDS * study.holdout_images * (2 + 2 * study.train_steps)
        epochs = study.pretrain_epochs if method == "pretrained" else study.epochs
        return train * epochs * recipe_for(study, method).passes(study.train_steps)
    if rule == "evaluate_attack":
        threat = study.threat(attack)
        return test * (2 + 2 * threat.steps) * threat.n_restarts  # judged before and after
    if rule == "evaluate_samples":
        return len(study.methods) * SAMPLE_PASSES
    if rule == "evaluate_ledger":
        return min(test, study.ledger_images or test) * LEDGER_PASSES
    if rule == "evaluate_battery":
        return min(test, study.battery_images or test) * BATTERY_PASSES
    if rule == "evaluate_autoattack":
        # Of n images, so many give any rate an interval of this half-width, w: n/(1 + n w²).
        return round(test / (1 + test * study.autoattack_width**2)) * STRONG_PASSES
    if rule == "evaluate_late":  # PGD-10 on the evaluated images and those kept apart
        return max(study.late_epochs.values()) * (test + study.holdout_images) * LATE_PASSES
    return networks * {"evaluate_clean": test, "evaluate_corruptions": CONDITIONS * corrupted}[rule]


def prediction_rows(study: Study, test: int, corrupted: int) -> int:
    """Rows of a study's prediction tables, with so many images, and so many under corruptions."""
    each = (1 + len(study.attacks)) * test
    each += CONDITIONS * corrupted if study.corruptions != "none" else 0
    return len(study.methods) * len(study.seeds) * each


def gpus(study: Study, devices: int | None = None) -> int:
    """GPUs of one job, and its processes."""
    return devices or study.devices or 1


def needs(
    study: Study,
    rule: str,
    *,
    method: str | None = None,
    attack: str | None = None,
    attempt: int = 1,
    **stated,
) -> dict[str, int]:
    """What one job asks for: threads, gpu (their number), mem_mb and runtime (minutes).

    The rule is of the Snakefile: one of `HEAVY`, data or analyse; method and attack are the job's,
    where the rule has them. ``attempt`` is 1, and one more each time the job is tried again, then
    with twice the memory: it may have lacked that, or only time. What is ``stated`` replaces
    `DEFAULTS`; ValueError for a speed or a time that is not above 0.
    """
    stated = DEFAULTS | stated
    for name in ("passes_per_second", "max_minutes"):
        if not stated[name] > 0:
            raise ValueError(f"{name} is a number above 0, got {stated[name]!r}")
    _, test, corrupted = images(study)
    steps = passes(study, rule, method, attack) if rule in HEAVY else 0
    processes = gpus(study, stated["devices"]) if steps and rule not in ALONE else 1
    workers = study.workers if steps or rule == "data" else 0
    threads = processes * (workers + 2)
    rows, seconds = test, steps / stated["passes_per_second"] / processes
    if rule == "data":
        seconds += test / READS_PER_SECOND
    elif rule == "evaluate_corruptions":
        rows = CONDITIONS * corrupted
        if study.corruptions == "generated":
            seconds += rows / CORRUPTIONS_PER_SECOND / threads
    elif rule == "analyse":
        rows = prediction_rows(study, test, corrupted)
        seconds += rows / ROWS_PER_SECOND
    memory = processes * (PROCESS_MB + workers * WORKER_MB) + rows * ROW_BYTES / 1e6
    minutes = START_MINUTES + MARGIN * seconds / 60
    return {
        "threads": threads,
        "gpu": processes if steps and str(stated["gpu"]).lower() != "false" else 0,
        "mem_mb": min(attempt, 2) * math.ceil(memory / 1000) * 1000,
        "runtime": math.ceil(min(minutes, stated["max_minutes"])),
    }


def table(study: Study, **stated) -> str:
    """What each kind of job of a study asks for, in lines."""
    jobs = [("train", {"method": method}) for method in study.methods]
    jobs += [("evaluate_attack", {"attack": attack}) for attack in study.attacks]
    jobs += [(rule, {}) for rule in ("evaluate_clean", "evaluate_samples", "data", "analyse")]
    if study.corruptions != "none":
        jobs.insert(-2, ("evaluate_corruptions", {}))
    jobs += [(f"evaluate_{part}", {}) for part in study.audits if part != "ablations"]
    lines = [f"{'job':28}{'passes':>14}{'threads':>9}{'gpu':>5}{'mem_mb':>8}{'runtime':>9}"]
    for rule, which in jobs:
        name = " ".join([rule, *which.values()])
        steps = passes(study, rule, **which) if rule in HEAVY else 0
        asked = needs(study, rule, **which, **stated)
        lines.append(
            f"{name:28}{steps:14,}{asked['threads']:9}{asked['gpu']:5}{asked['mem_mb']:8}"
            f"{asked['runtime']:9}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    with plainly("jobs.py"):
        name, *given = sys.argv[1:]
        stated = {
            key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in given)
        }
        refuse_unknown(set(stated) - set(DEFAULTS), list(DEFAULTS))
        print(table(load_study(name), **stated))
