"""What a study will take on this machine: time, memory and disk of each job, from a short probe.

``python -m advbook plan fashion_mnist_quick`` probes and prints a row for each job;
``python -m advbook plan fashion_mnist_quick --compare``, after the run, what they then took.
"""

import functools
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

from advbook.studies.identity import recipe_for, recipe_of
from advbook.studies.places import ROOT, find_study
from advbook.studies.schema import Study, load_study
from advlib.files import usable_cores
from pipeline.cost import (
    CONDITIONS,
    DEFAULT,
    expected_iterates,
    in_words,
    kind_of_step,
    measurable,
    network_cost,
    save,
)
from pipeline.jobs import passes, prediction_rows
from pipeline.probe import image_sizes, measure

COLUMNS = ["rule", "job", "audit", "left", "seconds", "seconds_at_most", "memory_gb", "device_gb"]
COLUMNS += ["disk_gb", "basis", "benchmark"]
FIRST = ("fetch", "data", "train", "evaluate_clean", "evaluate_attack", "evaluate_corruptions")
PREDICTION, CORRUPTED = 5e-8, 1e-8  # GB for a row, of the table and of its parts
LAST = ("place_study", "toc", "book", "all")


def jobs(file: str | Path) -> pd.DataFrame:
    """The jobs of a study and its audit, by its id or file, as Snakemake lists them in a dry run.

    Returns rule, job (its wildcards), benchmark (the file with its times, if it keeps one), audit
    (whether the audit alone asks for it) and left (whether it is still to be done). Raises
    RuntimeError, with Snakemake's message, if it cannot plan the study.
    """
    study, file = load_study(file), find_study(file)
    mode = "audit" if study.audits and "pgd40" in study.attacks else "run"
    table = pd.DataFrame(_dry_run(file, mode, "--forceall"))
    left = {(row["rule"], row["job"]) for row in _dry_run(file, mode)}
    table["left"] = [key in left for key in zip(table.rule, table.job, strict=True)]
    method = table.job.str.extract(r"method=([\w.-]+)")[0]
    table["audit"] = table.rule.isin([f"evaluate_{part}" for part in study.audits])
    table["audit"] |= method.isin(study.ablations)
    # The analyses and the pages stand between these.
    order = {name: i - len(FIRST) for i, name in enumerate(FIRST)}
    order |= {name: i + 1 for i, name in enumerate(LAST)}
    by = table.rule.map(order).fillna(0).sort_values(kind="stable").index
    return table.loc[by].reset_index(drop=True)


def _dry_run(file: Path, mode: str, *options: str) -> list[dict]:
    command = [sys.executable, "-m", "snakemake", "-n", "--nolock", "--cores", "all", *options]
    command += ["--rerun-incomplete", "--config", f"study={file}", f"mode={mode}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"Snakemake cannot plan {file}: {(done.stderr or done.stdout)[-800:]}")
    parts = re.split(r"\n(?:local)?rule (\w+):\n", done.stdout + done.stderr)[1:]
    found = []
    for rule, text in zip(parts[::2], parts[1::2], strict=True):
        said = dict(re.findall(r"^    (wildcards|benchmark): (.*)$", text, flags=re.M))
        job = {"rule": rule, "job": said.get("wildcards", "")}
        found.append(job | {"benchmark": said.get("benchmark", "")})
    return found


def plan(study: Study, listed: pd.DataFrame, measured: pd.DataFrame, sizes: dict) -> pd.DataFrame:
    """Time, memory and disk of each job of a study on this machine.

    From what `jobs`, `pipeline.probe.measure` and `image_sizes` return to one row per job: rule,
    job, left (still to be done), seconds, seconds_at_most (every attacked image takes every step),
    memory_gb and device_gb at most, disk_gb, basis (in words), benchmark (the file that will hold
    the time taken). A job that was stopped half-way counts in full.
    """
    costs = _Costs(study, measured, sizes)
    rows = []
    for row in listed.to_dict("records"):
        wildcards = dict(part.split("=") for part in row["job"].split(", ") if part)
        work = getattr(costs, row["rule"], None)
        other = costs.audit if row["audit"] else costs.other
        found = work(**wildcards) if work else other(row["rule"])
        rows.append(row | {"seconds_at_most": found["seconds"]} | found)
    return pd.DataFrame(rows)[COLUMNS]


class _Costs:
    """What each rule of the Snakefile costs: a method for each."""

    def __init__(self, study, measured, sizes):
        self.study, self.measured, self.sizes = study, measured, sizes
        self.seconds = measured.seconds.to_dict()
        self.runs = len(study.methods) * len(study.seeds)
        # GPUs work side by side; processes on one CPU share its cores, as one does.
        self.on_gpu = pd.notna(measured.device_gb.get("forward"))
        self.devices = (study.devices or 1) if self.on_gpu else 1
        seconds = pd.read_csv(ROOT / "results/plan/pages.csv").set_index("job").seconds
        self.ratio = (seconds / seconds["analyse"]).to_dict()

    @functools.cached_property
    def network(self):
        shape = {key: self.sizes[key] for key in ("image_size", "channels", "num_classes")}
        return network_cost(self.study.model, **shape)

    def _row(self, seconds, what, basis, disk=0.0, **more):
        """A job whose memory is that of what was measured."""
        of = self.measured.loc[what]
        memory = {"memory_gb": of.memory_gb, "device_gb": of.device_gb}
        if of.lacking:
            # The probe's batch was smaller than the study's: at most its float32 activations more.
            gigabytes = of.lacking * self.network["activations_mb"] / 1e3
            memory["device_gb" if self.on_gpu else "memory_gb"] += gigabytes
        return {"seconds": seconds, "disk_gb": disk, "basis": basis} | memory | more

    def _images(self, n, compute, overlap=True):
        """Seconds of computing on images that come from files, if they do; at once, if they can."""
        compute /= self.devices
        if self.sizes["in_memory"]:
            return n * compute
        processes = min(max(1, self.study.workers) * self.devices, usable_cores())
        decode = self.seconds["decode"] / processes
        beside = overlap and self.study.workers and self.on_gpu
        return n * (max(compute, decode) if beside else compute + decode)

    def data(self):
        seconds, n = self.seconds["start evaluation"], self.sizes["test"]
        return self._row(seconds + self._images(n, 0), "start evaluation", f"{n:,} images read")

    def train(self, method, seed):
        start, brought = self.seconds["start training"], method in self.study.checkpoints
        late = self.study.late_epochs.get(method, 0)
        study, method = recipe_of(self.study, method)
        epochs = study.pretrain_epochs if method == "pretrained" else study.epochs
        if brought or method not in study.recipes or not epochs:
            return self._row(start, "start training", "the weights are taken as they are")
        kind = f"training {kind_of_step(study, method)}"
        steps, measured = study.train_steps, measurable(study, method)
        share = recipe_for(study, method).passes(steps) / measured.passes(self.study.train_steps)
        images = epochs * (self.sizes["train"] // study.batch_size) * study.batch_size
        seconds = start + self._images(images, share * self.seconds[kind])
        # Weights and momentum, the checkpoint before until the new one is in place, and late ones.
        disk = 4 * (4 + late) * self.network["parameters"] / 1e9
        return self._row(seconds, kind, f"{images:,} images: {kind}", disk)

    def evaluate_clean(self, networks=None):
        n, networks = self.sizes["test"], networks or self.runs
        seconds = self.seconds["start evaluation"]
        seconds += self._images(n, networks * self.seconds["forward"])
        basis = f"{n:,} images, {networks} networks"
        return self._row(seconds, "forward", basis, PREDICTION * n * networks)

    def evaluate_ablations(self):
        return self.evaluate_clean(len(self.study.ablation_runs))

    def evaluate_attack(self, attack, method, seed):
        threat, n = self.study.threat(attack), self.sizes["test"]
        mean, origin = expected_iterates(self.study, attack, method, int(seed))

        def seconds(passes):
            each = passes * self.seconds["attack"] + 2 * self.seconds["forward"]
            # A part is read, then attacked.
            return self.seconds["start evaluation"] + self._images(n, each, overlap=False)

        basis = f"{n:,} images, {mean:.1f} passes each ({origin})"
        most = seconds(threat.steps * threat.n_restarts)
        disk = PREDICTION * n
        return self._row(seconds(mean), "attack", basis, disk, seconds_at_most=most)

    def evaluate_corruptions(self):
        n = CONDITIONS * self.sizes["corrupted"]
        start, each = self.seconds["start evaluation"], self.runs * self.seconds["forward"]
        disk, basis = CORRUPTED * n * self.runs, f"{n:,} images"
        if self.study.corruptions == "published":
            return self._row(start + self._images(n, each), "forward", basis, disk)
        made = self.seconds["start corrupting"] + n * self.seconds["corrupt"] / usable_cores()
        seconds = start + n * each / self.devices + made
        disk += n * self.sizes["channels"] * self.sizes["image_size"] ** 2 / 1e9
        return self._row(seconds, "corrupt", f"{basis}, made on {usable_cores()} cores", disk)

    def audit(self, rule):
        """An audit's attacks on one network, by the passes that they take at most.

        AutoAttack rarely breaks more than 3 % of what PGD-40 leaves standing, where an eighth of
        the images that would do for any rate decides.
        """
        study = replace(self.study, test_images=self.sizes["test"])
        most, start = passes(study, rule), self.seconds["start evaluation"]
        share = 1 / 8 if rule == "evaluate_autoattack" else 1
        seconds, longest = (start + part * most * self.seconds["attack"] / 2 for part in (share, 1))
        basis = f"at most {most:,} passes"
        return self._row(seconds, "attack", basis, 1e-3, seconds_at_most=longest)

    def evaluate_samples(self):
        n, steps = 30 * len(self.study.methods), self.study.threat("pgd40_last").steps
        seconds = self.seconds["start evaluation"]
        seconds += self._images(n, steps * self.seconds["attack"] + 2 * self.seconds["forward"])
        return self._row(seconds, "attack", f"at most {n} images, {steps} passes each", 1e-3)

    def analyse(self, study, source):
        """As long as for the quick study, and longer by the rows that there are more."""
        larger = 1.0
        if study == self.study.study and self.sizes:
            quick = load_study(DEFAULT)
            theirs = {"test": quick.test_images, "corrupted": quick.corruption_images}
            rows = prediction_rows(self.study, self.sizes["test"], self.sizes["corrupted"])
            larger = max(1.0, rows / prediction_rows(quick, **theirs))
        basis = f"{larger:.1f} times the analysis measured"
        return self._row(larger * self.seconds["analyse"], "analyse", basis, 1e-3)

    def other(self, rule):
        """The fetch (of files that are here), the book, or a page: by what they took before."""
        ratio = self.ratio.get(rule, self.ratio["page"])
        basis = f"{ratio:.1f} times the analysis measured"
        return self._row(ratio * self.seconds["analyse"], "analyse", basis, 1e-3)


def totals(table: pd.DataFrame) -> pd.DataFrame:
    """Sums over the jobs of a `plan` that are left, by rule and in all; memory is the largest."""
    left = table[table.left]
    how = dict(
        jobs=("rule", "size"),
        seconds=("seconds", "sum"),
        seconds_at_most=("seconds_at_most", "sum"),
        memory_gb=("memory_gb", "max"),
        device_gb=("device_gb", "max"),
        disk_gb=("disk_gb", "sum"),
    )
    by_rule = left.groupby("rule", sort=False).agg(**how)
    return pd.concat([by_rule, left.groupby(lambda _: "in all").agg(**how)])


def compared(table: pd.DataFrame, since: float) -> pd.DataFrame:
    """What the jobs of a `plan` were predicted to take, and took by Snakemake's benchmark files.

    Those of jobs that ran before ``since``, in seconds of the epoch, are left out. Returns rule,
    job, predicted and measured (seconds).
    """
    rows = []
    for row in table.itertuples():
        path = ROOT / row.benchmark
        if path.is_file() and path.stat().st_mtime > since:
            taken = float(pd.read_csv(path, sep="\t").s.sum())
            rows.append((row.rule, path.stem, row.seconds, taken))
    return pd.DataFrame(rows, columns=["rule", "job", "predicted", "measured"])


def report(name: str, compare: bool = False) -> None:
    """Probe, plan and print a study; with `compare` the last plan beside what the run then took.

    Raises FileNotFoundError or ValueError if there is no such study or no earlier plan, or it
    cannot be run.
    """
    study = load_study(name)
    kept = study.runs / "plan.csv"
    if compare:
        if not kept.is_file():
            raise FileNotFoundError(f"{kept} is missing: run `make plan`, then the study")
        table = compared(pd.read_csv(kept, keep_default_na=False), kept.stat().st_mtime)
        print(save(table, ROOT / "results/plan" / f"{study.study}.csv"))
        table.loc["in all"] = ["", "", *table[["predicted", "measured"]].sum()]
        table["ratio"] = table.predicted / table.measured
        print(table.round(2).to_string())
        return
    started = time.monotonic()
    sizes = image_sizes(study)  # says what is missing, before a dry run of half a minute
    table = plan(study, jobs(name), measured := measure(study, sizes), sizes)
    save(table, kept)
    print(measured.to_string(float_format="%.4g", na_rep=""), end="\n\n")
    for shown in (table.drop(columns="benchmark"), totals(table)):
        times = {key: shown[key].map(in_words) for key in ("seconds", "seconds_at_most")}
        shown = shown.assign(**times).rename(columns=lambda name: name.replace("seconds", "time"))
        print(shown.to_string(float_format="%.3g", na_rep=""), end="\n\n")
    for of, part in table[table.left].groupby("audit"):
        said = in_words(part.seconds.sum()), in_words(part.seconds_at_most.sum())
        own = f"{study.title}, without its audit" if table.audit.any() else study.title
        what = "its audit, besides" if of else own
        print(f"{what}: about {said[0]}, at most {said[1]}, one job after the other")
    print(f"({sizes.get('found', 'predictions')}; probe {time.monotonic() - started:.0f} s)")
