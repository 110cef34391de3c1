"""What a study will take on this machine: time, memory and disk of each job, from a short probe.

``python -m advbook plan fashion_mnist_quick`` probes and prints a row for each job;
``python -m advbook plan fashion_mnist_quick --compare``, after the run, what they then took.
"""

import contextlib
import functools
import io
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml

from advbook.studies.identity import training_of
from advbook.studies.inputs import corruption_set, images_of, study_preprocessing
from advbook.studies.places import ROOT, data_root, find_study
from advbook.studies.schema import Study, load_study
from advlib.files import usable_cores
from advlib.parquet import read_table
from advlib.recipes import RECIPES
from pipeline.cost import (
    CONDITIONS,
    DEFAULT,
    SIZES,
    expected_iterates,
    in_words,
    network_cost,
    save,
)

# --- the jobs of a study --------------------------------------------------------------------------


def jobs(study: Study, file: str | Path | None = None) -> pd.DataFrame:
    """The jobs of a study's pipeline, as Snakemake lists them in a dry run.

    Parameters
    ----------
    study : Study
    file : optional
        Its id or file; None, or where values were changed since: a temporary one.

    Returns
    -------
    DataFrame
        rule, job (its wildcards), benchmark (the file with its times, if it keeps one) and left
        (whether it is still to be done); ``attrs["seconds"]``: what one dry run took.

    Raises
    ------
    RuntimeError
        With Snakemake's message, if it cannot plan the study.
    """
    with tempfile.TemporaryDirectory() as folder:
        if file is None or load_study(file) != study:
            path = Path(folder) / f"{study.study}.yaml"
            path.write_text(yaml.safe_dump(study.to_dict()), encoding="utf-8")
        else:
            path = find_study(file)
        started = time.monotonic()
        every = _dry_run(path, "--forceall")
        seconds = time.monotonic() - started
        left = {(row["rule"], row["job"]) for row in _dry_run(path)}
    table = pd.DataFrame(every)
    table["left"] = [key in left for key in zip(table.rule, table.job, strict=True)]
    first = ["fetch", "data", "train", "evaluate_clean", "evaluate_attack", "evaluate_corruptions"]
    order = {name: i - len(first) for i, name in enumerate(first)}
    order |= {"place_study": 1, "toc": 2, "book": 3, "all": 4}  # and the analyses and pages between
    table = table.sort_values("rule", key=lambda c: c.map(order).fillna(0), kind="stable")
    table = table.reset_index(drop=True)
    table.attrs["seconds"] = seconds
    return table


def _dry_run(file: Path, *options: str) -> list[dict]:
    command = [sys.executable, "-m", "snakemake", "-n", "--nolock", "--cores", "all", *options]
    done = subprocess.run(
        [*command, "--config", f"study={file}"], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"Snakemake cannot plan {file}: {(done.stderr or done.stdout)[-800:]}")
    parts = re.split(r"\n(?:local)?rule (\w+):\n", done.stdout + done.stderr)[1:]
    found = []
    for rule, text in zip(parts[::2], parts[1::2], strict=True):
        values = {
            key: re.search(rf"^    {key}: (.*)$", text, flags=re.M)
            for key in ("wildcards", "benchmark")
        }
        values = {key: match[1] if match else "" for key, match in values.items()}
        found.append({"rule": rule, "job": values["wildcards"], "benchmark": values["benchmark"]})
    return found


# --- the probe of this machine --------------------------------------------------------------------


class _Enough(Exception):
    """Ends a training run of the probe."""


def measure(study: Study, seconds: float = 2.0) -> pd.DataFrame:
    """Time this study's real functions on this machine, on a few random images.

    Nothing of the study is needed or left behind, no data and no trained network; but the images
    of a study of a folder have to be there, since nothing else says how many they are.

    Parameters
    ----------
    study : Study
    seconds : float
        What each measurement of the network aims at; slow machines take smaller batches.

    Returns
    -------
    DataFrame
        Indexed by what was measured: seconds, unit ("notebook", "image", "pass"), memory_gb (of
        the process by then), device_gb (of the GPU), how. ``attrs["sizes"]`` is `image_sizes`,
        ``attrs["missing"]`` how many images a batch was too small, by what was measured.
    """
    sizes = {} if study.predictions else image_sizes(study)  # says what is missing, before all else
    rows, missing = _notebooks(), {}
    if not study.predictions:
        found, missing = _network(study, sizes, seconds)
        rows += found
        if not sizes["in_memory"]:
            rows.append(_decoding(sizes["image_size"]))
        if study.corruptions == "generated" and not sizes["corrupted_kept"]:
            rows += _corrupting(sizes)
    table = pd.DataFrame(rows, columns=["what", "seconds", "unit", "memory_gb", "device_gb", "how"])
    table = table.set_index("what")
    table.attrs |= {"sizes": sizes, "missing": missing}
    return table


def image_sizes(study: Study) -> dict:
    """Number and size of a study's images, from the data if they are here; nothing is downloaded.

    Returns
    -------
    dict
        train, test, corrupted (numbers of images), num_classes, channels, image_size (px),
        in_memory, corrupted_kept (whether all corrupted images lie on disk already), found (in
        words).

    Raises
    ------
    advlib.data.sets.DataError
        If the data are a folder that is not there, or are here and damaged.
    """
    from advlib.data.sets import DATASETS

    info, known = DATASETS[study.dataset], SIZES.get(study.dataset)
    if known is None:
        here = {split: images_of(study, split) for split in study.splits}
    else:
        here = {study.evaluation_split: _images_here(study, study.evaluation_split)}
    evaluated = here[study.evaluation_split]
    train, test = known or (len(here.get("train") or ()), len(evaluated))
    train = study.train_images or train - study.holdout_images * (known is not None)
    test = study.test_images or test
    if study.evaluation_split == "holdout":
        test = study.holdout_images
    side = study_preprocessing(study)["image_size"] or info.image_size
    if evaluated is not None and evaluated.pixels is not None:
        side = evaluated.pixels.shape[-1]
    return {
        "train": train,
        "test": test if evaluated is None else len(evaluated),
        "corrupted": study.corruption_images or test,
        "num_classes": info.num_classes or evaluated.num_classes,
        "channels": info.channels,
        "image_size": side or 224,
        "in_memory": study.dataset in ("digits", "fashion_mnist") or (side or 224) <= 96,
        "corrupted_kept": evaluated is not None and _corrupted_kept(study, evaluated),
        "found": "the data's own numbers"
        if evaluated is not None
        else "the data are not here: numbers of images from the study file or the data set",
    }


def _images_here(study, split):
    """The images if they are on this machine, else None: without a download.

    What is here and damaged is an error.
    """
    from advlib.data import fetch

    downloads = dict(fetch.DOWNLOADS)
    fetch.DOWNLOADS.clear()
    try:
        if study.dataset in fetch.LAYOUTS:
            fetch.locate(study.dataset, data_root(study))
    except fetch.DataError:
        return None
    finally:
        fetch.DOWNLOADS.update(downloads)
    return images_of(study, split)


def _corrupted_kept(study, images) -> bool:
    from advlib.data.corruptions import CORRUPTIONS, SEVERITIES, corrupted
    from advlib.data.sets import DataError

    if study.corruptions != "generated":
        return False
    chosen, _ = corruption_set(study, images)
    try:
        return all(len(corrupted(chosen, c, s)) for c in CORRUPTIONS for s in SEVERITIES)
    except DataError:
        return False


def _notebooks() -> list[tuple]:
    """Whole notebooks of the pipeline, on the smallest data there are: mostly their start."""
    digits = "-p study digits -p train_images 70 -p test_images 10 -p epochs 1 -p pretrain_epochs 1"
    quick = f"-p study {DEFAULT} -p source committed"
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"ADVLIB_RUNS": folder}

        def timed(*command: str) -> float:
            started = time.monotonic()
            command = [sys.executable, "-m", *command]
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-800:]}")
            return time.monotonic() - started

        def notebook(name: str, options: str) -> float:
            path = f"notebooks/{name}.ipynb"
            command = ["papermill", "--no-progress-bar", path, f"{folder}/out.ipynb"]
            return timed(*command, *options.split())

        rows = [
            (
                "fetch",
                timed("advlib.data.sets", "digits", "--split", "test"),
                "check of the digits",
            ),
            (
                "analyse",
                notebook("study", f"{quick} -p output {folder}"),
                f"the tables of {DEFAULT}, from its committed predictions",
            ),
            (
                "start training",
                notebook("train", f"{digits} -p method pretrained"),
                "train.ipynb, one step on digits",
            ),
            (
                "start evaluation",
                notebook("evaluate_pgd", f"{digits} -p method pretrained -p attack fgsm"),
                "evaluate_pgd.ipynb, ten digits",
            ),
        ]
    children = _gigabytes(resource.RUSAGE_CHILDREN)
    return [(name, value, "notebook", children, None, how) for name, value, how in rows]


def _network(study, sizes, seconds) -> tuple[list[tuple], dict[str, int]]:
    import torch

    from advlib.attacks.worst_case import default_batch_size, evaluate_attack
    from advlib.data.sets import DATASETS, Images
    from advlib.labels import widen_head
    from advlib.networks.build import build_model
    from advlib.networks.device import default_device
    from advlib.predictions import predict
    from advlib.threat import ThreatModel
    from advlib.train import fit

    device, info = default_device(), DATASETS[study.dataset]
    prepared = study_preprocessing(study)
    normalisation = {key: tuple(prepared[key] or getattr(info, key)) for key in ("mean", "std")}
    num_classes = sizes["num_classes"]
    generator = torch.Generator().manual_seed(0)

    def network(extra_logits: bool = False):
        model = build_model(study.model, num_classes=num_classes, **normalisation)
        if extra_logits:
            widen_head(model, study.num_transforms)
        return model

    def images(n: int, labels=None) -> Images:
        shape = (n, sizes["channels"], sizes["image_size"], sizes["image_size"])
        return Images(
            title="Random images",
            source="random",
            labels=torch.arange(n) % num_classes if labels is None else labels,
            file_names=[f"{i:06d}" for i in range(n)],
            class_names=[str(k) for k in range(num_classes)],
            pixels=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        )

    def memory() -> tuple:
        cuda = device.type == "cuda"
        used = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        return _gigabytes(resource.RUSAGE_SELF), used

    at_once = study.eval_batch_size or 128

    def forward(n: int) -> float:
        model, data = {"": network()}, images(n)
        settings = {"num_classes": num_classes, "batch_size": min(n, at_once)}
        return _seconds(lambda: predict(model, data, **settings), seconds) / n

    # As many images as the time allows; a first look at few says how many that are.
    n = _count(seconds / forward(4), 4 * at_once)
    pass_forward = forward(n)
    rows = [("forward", pass_forward, "image", *memory(), f"predict, {n} images in float32")]
    missing = {}

    if study.attacks:
        # Their own predictions as labels and a tiny ε: no image breaks, so that all steps count.
        steps, model = 10, network()
        n = _count(seconds / pass_forward / (2 * steps), 4 * at_once)
        data = images(n)
        found = predict({"": model}, data, num_classes=num_classes)[""].predicted_class
        data.labels = torch.tensor(found.to_numpy(), dtype=torch.int64)
        attack = functools.partial(
            evaluate_attack,
            model,
            data,
            ThreatModel(eps=1e-6, steps=steps),
            num_classes=num_classes,
            batch_size=min(n, study.eval_batch_size or default_batch_size(data, device)),
            dtype=study.dtype,
        )
        spent = _seconds(attack, seconds) / n - 2 * pass_forward
        how = f"evaluate_attack, {n} images, {steps} steps"
        rows.append(("attack", max(spent, 0) / steps, "pass", *memory(), how))
        missing["attack"] = max(0, at_once - n)

    for method in _kinds(study):
        passes = RECIPES[method].passes(study.train_steps)
        # What one process computes at once.
        piece = study.batch_size // (study.devices or 1) // study.accumulate
        batch = max(2, _count(seconds / pass_forward / passes, piece))
        own = replace(training_of(study, method), batch_size=batch, accumulate=1, workers=0)
        own = replace(own, augment="none", epochs=10**6)
        times: list[float] = []

        def on_step(_, times=times):
            times.append(time.monotonic())
            if len(times) > 4 and times[-1] - times[2] > seconds:
                raise _Enough

        model = network(RECIPES[method].extra_logits)
        with tempfile.TemporaryDirectory() as folder, _quiet(), contextlib.suppress(_Enough):
            data = images(16 * batch)
            fit(model, data, own, RECIPES[method], seed=0, folder=Path(folder), on_step=on_step)
        # The first steps compile kernels and fill caches; the median leaves checkpoints out.
        step = pd.Series(times).diff()[2:].median()
        how = f"fit, {len(times)} steps of {batch} images"
        what = f"training {_kinds(study)[method]}"
        rows.append((what, step / batch, "image", *memory(), how))
        missing[what] = max(0, piece - batch)
    return rows, missing


@contextlib.contextmanager
def _quiet():
    """Without the progress bars and the lines of a real run."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _kinds(study) -> dict[str, str]:
    """One method of each kind that costs the same, and the kind's name."""
    named = {}
    for method in study.trained:
        named.setdefault(_kind_of_step(method), method)
    return {method: kind for kind, method in named.items()}


def _kind_of_step(method: str) -> str:
    recipe = RECIPES[method]
    parts = ["adversarial" if recipe.adversarial else "clean"]
    parts += ["mixed"] * recipe.mix + ["with extra logits"] * recipe.extra_logits
    return ", ".join(parts)


def _seconds(work: Callable, budget: float) -> float:
    """Median time of one call, after a first one that warms up."""
    work()
    times = []
    while not times or sum(times) < budget:
        started = time.monotonic()
        work()
        times.append(time.monotonic() - started)
    return float(pd.Series(times).median())


def _count(wanted: float, most: int) -> int:
    return int(max(1, min(wanted, most)))


def _gigabytes(who: int) -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(who).ru_maxrss * unit / 1e9


def _decoding(side: int) -> tuple:
    """Decode JPEG files of ImageNet's mean size, 500 × 375 px."""
    import numpy as np
    from PIL import Image

    from advlib.data.decoding import decode

    with tempfile.TemporaryDirectory() as folder:
        # Smoothed noise: about 100 kB, as ImageNet's files.
        noise = np.random.default_rng(0).integers(0, 256, (94, 125, 3), dtype=np.uint8)
        path = f"{folder}/image.jpg"
        Image.fromarray(noise).resize((500, 375)).save(path, quality=95)
        size = os.path.getsize(path)
        spent = _seconds(lambda: decode(path, round(side * 232 / 224), side), 1)
    how = f"one core, a JPEG of 500 × 375 px and {size / 1e3:.0f} kB"
    return "decode", spent, "image", _gigabytes(resource.RUSAGE_SELF), None, how


def _corrupting(sizes) -> list[tuple]:
    """All 75 conditions of one image, or four small ones, in this process."""
    import cv2
    import numpy as np

    from advlib.data.corrupting import corrupt
    from advlib.data.corruptions import _CONDITIONS

    started = time.monotonic()
    cv2.setNumThreads(1)  # as in the pipeline's processes
    n = 4 if sizes["image_size"] < 96 else 1
    shape = (n, sizes["channels"], sizes["image_size"], sizes["image_size"])
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for corruption, severity in _CONDITIONS:  # some severities compile code of their own
        corrupt(pixels[:1], corruption, severity, [0])
    start = time.monotonic() - started
    started = time.monotonic()
    for corruption, severity in _CONDITIONS:
        corrupt(pixels, corruption, severity, list(range(n)))
    spent = (time.monotonic() - started) / n / len(_CONDITIONS)
    used = _gigabytes(resource.RUSAGE_SELF)
    how = f"one core, {n} image(s) under each of {len(_CONDITIONS)} conditions"
    return [
        ("corrupt", spent, "image", used, None, how),
        ("start corrupting", start, "notebook", used, None, "the library, loaded and warm"),
    ]


# --- the plan -------------------------------------------------------------------------------------

COLUMNS = ["rule", "job", "left", "seconds", "seconds_at_most", "memory_gb", "device_gb", "disk_gb"]
COLUMNS += ["basis", "benchmark"]


def plan(study: Study, listed: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Time, memory and disk of each job of a study on this machine.

    Parameters
    ----------
    study : Study
    listed : DataFrame
        Of `jobs`.
    measured : DataFrame
        Of `measure`.

    Returns
    -------
    DataFrame
        A row a job: rule, job, left (still to be done), seconds, seconds_at_most (every attacked
        image takes every step), memory_gb and device_gb at most, disk_gb, basis (in words),
        benchmark (the file that will hold the time taken). A job that was stopped half-way counts
        in full.
    """
    table = _Costs(study, listed, measured)
    rows = []
    for row in listed.to_dict("records"):
        wildcards = dict(part.split("=") for part in row["job"].split(", ") if part)
        found = getattr(table, row["rule"], table.other)(row=row, **wildcards)
        rows.append(row | {"seconds_at_most": found["seconds"], "device_gb": None} | found)
    return pd.DataFrame(rows)[COLUMNS]


class _Costs:
    """What each rule of the Snakefile costs: a method a rule."""

    def __init__(self, study, listed, measured):
        self.study, self.measured, self.sizes = study, measured, measured.attrs["sizes"]
        self.seconds = measured.seconds.to_dict()
        self.dry_run = listed.attrs["seconds"]
        self.runs = len(study.methods) * len(study.seeds)
        # GPUs work side by side; processes on one CPU share its cores, as one does.
        self.on_gpu = pd.notna(measured.device_gb.get("forward"))
        self.devices = (study.devices or 1) if self.on_gpu else 1
        seconds = pd.read_csv(ROOT / "results/plan/pages.csv").set_index("job").seconds
        self.ratio = (seconds / seconds["analyse"]).to_dict()

    def _row(self, seconds, basis, of, disk=0.0, **more):
        memory, device = (self.measured[key].get(of) for key in ("memory_gb", "device_gb"))
        if lacking := self.measured.attrs["missing"].get(of):
            # The probe's batch was smaller than the study's: at most its float32 activations more.
            more_gb = lacking * self.network["activations_mb"] / 1e3
            memory, device = (memory, device + more_gb) if self.on_gpu else (memory + more_gb, None)
        known = {"memory_gb": memory, "device_gb": device, "disk_gb": disk, "basis": basis}
        return {"seconds": seconds} | known | more

    def _read(self, images, compute, overlap=True):
        """Seconds of computing on images that come from files, if they do; at once, if they can."""
        compute /= self.devices
        if self.sizes["in_memory"]:
            return images * compute
        processes = min(max(1, self.study.workers) * self.devices, usable_cores())
        decode = self.seconds["decode"] / processes
        beside = overlap and self.study.workers and self.on_gpu
        return images * (max(compute, decode) if beside else compute + decode)

    def _tables(self, benchmark, rows):
        """Disk of prediction tables, by the bytes a row of the quick study's, parts included."""
        quick = load_study(DEFAULT).published / "predictions" / benchmark
        files = list(quick.glob("*.parquet"))
        size = sum(path.stat().st_size for path in files)
        count = sum(len(read_table(path, columns=["label"])) for path in files)
        return 4 * rows * size / count / 1e9

    def fetch(self, row):
        basis = "checking the files; a download is not counted"
        return self._row(self.seconds["fetch"], basis, "fetch")

    def data(self, row):
        return self._row(self.seconds["start evaluation"], "the start", "start evaluation")

    def train(self, row, method, seed):
        study, start = self.study, self.seconds["start training"]
        epochs = study.pretrain_epochs if method == "pretrained" else study.epochs
        if method not in RECIPES or not epochs:
            return self._row(start, "the weights are taken as they are", "start training")
        kind = f"training {_kind_of_step(method)}"
        images = epochs * (self.sizes["train"] // study.batch_size) * study.batch_size
        seconds = start + self._read(images, self.seconds[kind])
        basis = f"{images:,} images: {kind}"
        # Weights and momentum, and the checkpoint before until the new one is in place.
        disk = 4 * 4 * self.network["parameters"] / 1e9
        return self._row(seconds, basis, kind, disk=disk)

    @functools.cached_property
    def network(self):
        return network_cost(
            self.study.model,
            self.sizes["image_size"],
            channels=self.sizes["channels"],
            num_classes=self.sizes["num_classes"],
        )

    def evaluate_clean(self, row):
        n = self.sizes["test"]
        work = self._read(n, self.runs * self.seconds["forward"])
        seconds = self.seconds["start evaluation"] + work
        basis = f"{n:,} images, {self.runs} networks"
        return self._row(seconds, basis, "forward", disk=self._tables("clean", n * self.runs))

    def evaluate_attack(self, row, attack, method, seed):
        threat, n = self.study.threat(attack), self.sizes["test"]
        mean, origin = expected_iterates(self.study, attack, method, int(seed))
        start = self.seconds["start evaluation"]

        def seconds(passes):
            each = passes * self.seconds["attack"] + 2 * self.seconds["forward"]
            return start + self._read(n, each, overlap=False)  # a part is read, then attacked

        most = seconds(threat.steps * threat.n_restarts)
        basis = f"{n:,} images, {mean:.1f} passes each ({origin})"
        disk = self._tables("pgd40", n)
        return self._row(seconds(mean), basis, "attack", disk=disk, seconds_at_most=most)

    def evaluate_corruptions(self, row):
        n = CONDITIONS * self.sizes["corrupted"]
        start, each = self.seconds["start evaluation"], self.runs * self.seconds["forward"]
        disk = self._tables("corruptions", n * self.runs)
        if self.study.corruptions == "published":
            return self._row(start + self._read(n, each), f"{n:,} images", "forward", disk=disk)
        seconds, basis = start + n * each / self.devices, f"{n:,} images"
        if self.sizes["corrupted_kept"]:
            return self._row(seconds, f"{basis}, made before", "forward", disk=disk)
        seconds += self.seconds["start corrupting"]
        seconds += n * self.seconds["corrupt"] / usable_cores()
        disk += n * self.sizes["channels"] * self.sizes["image_size"] ** 2 / 1e9
        return self._row(seconds, f"{basis}, made on {usable_cores()} cores", "corrupt", disk=disk)

    def evaluate_samples(self, row):
        n, steps = 30 * len(self.study.methods), self.study.threat("pgd40_last").steps
        seconds = self.seconds["start evaluation"]
        seconds += self._read(n, steps * self.seconds["attack"] + 2 * self.seconds["forward"])
        basis = f"at most {n} images, {steps} passes each"
        return self._row(seconds, basis, "attack", disk=1e-3)

    def analyse(self, row, study, source):
        """As long as for the quick study, and longer by the rows that there are more."""
        larger = 1.0
        if study == self.study.study and self.sizes:
            quick = load_study(DEFAULT)
            theirs = {"test": quick.test_images, "corrupted": quick.corruption_images}
            larger = max(1.0, _rows(self.study, self.sizes) / _rows(quick, theirs))
        basis = f"{larger:.1f} times the analysis measured"
        return self._row(larger * self.seconds["analyse"], basis, "analyse", disk=1e-3)

    def other(self, row, **wildcards):
        """The book itself, or a page."""
        ratio = self.ratio[row["rule"] if row["rule"] in self.ratio else "page"]
        basis = f"{ratio:.1f} times the analysis measured"
        return self._row(ratio * self.seconds["analyse"], basis, "analyse", disk=1e-3)

    def place_study(self, row, **wildcards):
        return self._row(self.dry_run, "a start of Snakemake", "analyse")

    toc = place_study

    def all(self, row):
        return self._row(0.0, "nothing to do", "analyse")


def _rows(study, sizes) -> int:
    """Rows of a study's prediction tables."""
    corrupted = 75 * sizes["corrupted"] if study.corruptions != "none" else 0
    each = (1 + len(study.attacks)) * sizes["test"] + corrupted
    return len(study.methods) * len(study.seeds) * each


def totals(table: pd.DataFrame) -> pd.DataFrame:
    """Sums over the jobs that are left, by rule and in all; memory is the largest.

    Parameters
    ----------
    table : DataFrame
        Of `plan`.
    """
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
    """What jobs were predicted to take beside what they took, by Snakemake's benchmark files.

    Parameters
    ----------
    table : DataFrame
        Of `plan`, made before the run.
    since : float
        When it was made, in seconds of the epoch; jobs that ran before are left out.

    Returns
    -------
    DataFrame
        rule, job, predicted and measured (seconds); only jobs with a benchmark file.
    """
    rows = []
    for row in table.itertuples():
        path = ROOT / row.benchmark if isinstance(row.benchmark, str) and row.benchmark else None
        if path is not None and path.is_file() and path.stat().st_mtime > since:
            taken = float(pd.read_csv(path, sep="\t").s.sum())
            rows.append((row.rule, Path(row.benchmark).stem, row.seconds, taken))
    return pd.DataFrame(rows, columns=["rule", "job", "predicted", "measured"])


def report(name: str, compare: bool = False) -> None:
    """Probe, plan and print a study; with `compare` the last plan beside what the run then took.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such study or no earlier plan, or it cannot be run.
    """
    study = load_study(name)
    kept = study.runs / "plan.csv"
    if compare:
        if not kept.is_file():
            raise FileNotFoundError(f"{kept} is missing: run `make plan`, then the study")
        table = compared(pd.read_csv(kept), kept.stat().st_mtime)
        print(save(table, ROOT / "results/plan" / f"{study.study}.csv"))
        table.loc["in all"] = ["", "", *table[["predicted", "measured"]].sum()]
        table["ratio"] = table.predicted / table.measured
        print(table.round(2).to_string())
        return
    started = time.monotonic()
    if study.dataset == "folder":
        image_sizes(study)  # says what is missing, before a dry run of half a minute
    table = plan(study, jobs(study, name), measured := measure(study))
    save(table, kept)
    print(measured.to_string(float_format="%.4g", na_rep=""), end="\n\n")
    for shown in (table.drop(columns="benchmark"), totals(table)):
        times = {key: shown[key].map(in_words) for key in ("seconds", "seconds_at_most")}
        shown = shown.assign(**times).rename(columns=lambda name: name.replace("seconds", "time"))
        print(shown.to_string(float_format="%.3g", na_rep=""), end="\n\n")
    left = table[table.left]
    said = in_words(left.seconds.sum()), in_words(left.seconds_at_most.sum())
    print(f"{study.title}: about {said[0]} in all, at most {said[1]}, one job after the other")
    print(f"({measured.attrs['sizes'].get('found', '')}; probe {time.monotonic() - started:.0f} s)")
