"""How fast this machine is: the functions that a study runs, timed on a few random images."""

import contextlib
import functools
import io
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from advbook.studies.identity import recipe_of, training_of
from advbook.studies.inputs import images_of, study_preprocessing
from advbook.studies.places import ROOT, data_root
from advbook.studies.schema import Study
from pipeline.cost import DEFAULT, kind_of_step, measurable
from pipeline.cost import images as expected_images

COLUMNS = ["what", "seconds", "memory_gb", "device_gb", "lacking", "how"]


def measure(study: Study, sizes: dict, seconds: float = 2.0) -> pd.DataFrame:
    """Time this study's real functions on this machine, on random images of these `image_sizes`.

    Neither the study's data nor a trained network is needed, and nothing is left behind. Each
    measurement of the network aims at so many ``seconds``; slow machines take smaller batches.

    Returns, indexed by what was measured: seconds (of a notebook, an image, or an attack pass on
    one), memory_gb (of the process by then), device_gb (of the GPU), lacking (by how many images
    the batch was smaller than the study's), how.
    """
    rows = _notebooks()
    if sizes:
        rows += _network(study, sizes, seconds)
        if not sizes["in_memory"]:
            rows.append(_decoding(sizes["image_size"]))
        if study.corruptions == "generated":
            rows += _corrupting(sizes)
    return pd.DataFrame(rows, columns=COLUMNS).set_index("what")


def image_sizes(study: Study) -> dict:
    """Number and size of a study's images, from the data if they are here; nothing is downloaded.

    Returns train, test, corrupted (numbers of images), num_classes, channels, image_size (px),
    in_memory, found (where this is from, in words): empty for a study of predictions. Raises
    `advlib.data.sets.DataError` if the data are a folder that is not there, or are here and
    damaged.
    """
    from advlib.data import decoding, fetch
    from advlib.data.sets import DATASETS

    if study.predictions:
        return {}
    info, (train, test, corrupted) = DATASETS[study.dataset], expected_images(study)
    side = study_preprocessing(study)["image_size"] or info.image_size or 224
    found = "the data are not here: numbers of images from the study file or the data set"
    here = study.dataset in ("digits", "folder")
    with contextlib.suppress(fetch.DataError):
        here = here or fetch.locate(study.dataset, data_root(study), download=False)
    images = images_of(study, study.evaluation_split) if here else None  # damaged ones are an error
    if images is not None:
        test, found = len(images), "the data's own numbers"
        corrupted = study.corruption_images or test
        side = side if images.pixels is None else images.pixels.shape[-1]
    if study.dataset == "folder":
        train = len(images_of(study, "train")) if "train" in study.splits else 0
    held = 3 * side**2 * max(train, test)
    return {
        "train": train,
        "test": test,
        "corrupted": corrupted,
        "num_classes": info.num_classes or images.num_classes,
        "channels": info.channels,
        "image_size": side,
        "in_memory": side <= decoding.SMALL_SIDE and held <= decoding.SMALL_BYTES,
        "found": found,
    }


def _notebooks() -> list[tuple]:
    """Whole notebooks of the pipeline, on the smallest data there are: mostly their start."""
    digits = "-p study digits -p train_images 70 -p test_images 10 -p epochs 1 -p pretrain_epochs 1"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what, notebook, options in (
            ("analyse", "study", f"-p study {DEFAULT} -p source committed -p output {folder}"),
            ("start training", "train", f"{digits} -p method pretrained"),
            ("start evaluation", "evaluate_pgd", f"{digits} -p method pretrained -p attack fgsm"),
        ):
            command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
            command += [f"notebooks/{notebook}.ipynb", f"{folder}/out.ipynb", *options.split()]
            environment, started = os.environ | {"ADVLIB_RUNS": folder}, time.monotonic()
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                raise RuntimeError(f"{notebook}.ipynb failed: {done.stderr[-800:]}")
            rows.append((what, time.monotonic() - started, f"{notebook}.ipynb, smallest data"))
    memory = _gigabytes(resource.RUSAGE_CHILDREN)
    return [(what, spent, memory, None, 0, how) for what, spent, how in rows]


def _network(study, sizes, seconds) -> list[tuple]:
    import torch

    from advbook.studies.runs import normalisation
    from advlib.attacks.worst_case import default_batch_size, evaluate_attack
    from advlib.data.sets import Images
    from advlib.labels import widen_head
    from advlib.networks.build import build_model
    from advlib.networks.device import default_device
    from advlib.predictions import predict
    from advlib.threat import ThreatModel

    device = default_device()
    num_classes = sizes["num_classes"]
    shape = (sizes["channels"], sizes["image_size"], sizes["image_size"])
    generator = torch.Generator().manual_seed(0)

    def network(extra_logits: bool = False):
        model = build_model(study.model, num_classes=num_classes, **normalisation(study))
        if extra_logits:
            widen_head(model, study.num_transforms)
        return model

    def images(n: int) -> Images:
        return Images(
            title="Random images",
            source="random",
            labels=torch.arange(n) % num_classes,
            file_names=[f"{i:06d}" for i in range(n)],
            class_names=[str(k) for k in range(num_classes)],
            pixels=torch.randint(0, 256, (n, *shape), generator=generator, dtype=torch.uint8),
        )

    def measured(what: str, spent: float, lacking: int, how: str) -> tuple:
        used = None
        if device.type == "cuda":
            used = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
        return what, spent, _gigabytes(resource.RUSAGE_SELF), used, lacking, how

    at_once = study.eval_batch_size or 128

    def forward(n: int) -> float:
        model, data = {"": network()}, images(n)
        settings = {"num_classes": num_classes, "batch_size": min(n, at_once)}
        return _seconds(lambda: predict(model, data, **settings), seconds) / n

    # As many images as the time allows; a first look at few says how many that are.
    n = _count(seconds / forward(4), 4 * at_once)
    each = forward(n)
    rows = [measured("forward", each, 0, f"predict, {n} images in float32")]
    # Their own predictions as labels and a tiny ε: no image breaks, so that all steps count.
    steps, model = 10, network()
    n = _count(seconds / each / (2 * steps), 4 * at_once)
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
    spent = max(0, _seconds(attack, seconds) / n - 2 * each) / steps
    how = f"evaluate_attack, {n} images, {steps} steps"
    rows.append(measured("attack", spent, max(0, at_once - n), how))
    kinds = {}
    start = ["pretrained"] * (study.pretrain_epochs > 0)
    for name in (*start, *study.trained, *study.ablations):
        method = recipe_of(study, name)[1]
        kinds.setdefault(kind_of_step(study, method), method)
    for kind, method in kinds.items():
        # What one process computes at once.
        piece = study.batch_size // (study.devices or 1) // study.accumulate
        recipe = measurable(study, method)
        passes = recipe.passes(study.train_steps)
        batch = max(2, _count(seconds / each / passes, piece))
        model = network(recipe.extra_logits)
        spent, how = _training(study, method, model, images(16 * batch), batch, seconds)
        rows.append(measured(f"training {kind}", spent, max(0, piece - batch), how))
    return rows


def _training(study, method, model, data, batch, seconds) -> tuple[float, str]:
    """Seconds for one image of a training, by the median step, and how they were measured."""
    from advlib.train import fit

    training = replace(training_of(study, method), batch_size=batch, accumulate=1, workers=0)
    training = replace(training, augment="none", epochs=10**6)
    times = []

    def on_step(_):
        times.append(time.monotonic())
        if len(times) > 4 and times[-1] - times[2] > seconds:
            raise TimeoutError  # ends the training

    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(TimeoutError),
    ):
        recipe, folder = measurable(study, method), Path(folder)
        fit(model, data, training, recipe, seed=0, folder=folder, on_step=on_step)
    # The first steps compile kernels and fill caches; the median leaves checkpoints out.
    step = pd.Series(times).diff()[2:].median()
    return step / batch, f"fit, {len(times)} steps of {batch} images"


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
        spent = _seconds(lambda: decode(path, round(side * 232 / 224), side), 1)
    used = _gigabytes(resource.RUSAGE_SELF)
    return "decode", spent, used, None, 0, "one core, a JPEG of 500 × 375 px"


def _corrupting(sizes) -> list[tuple]:
    """All 75 conditions of one image, or four small ones, in this process."""
    import cv2
    import numpy as np

    from advlib.data.corrupting import corrupt
    from advlib.data.corruptions import CORRUPTIONS, SEVERITIES

    cv2.setNumThreads(1)  # as in the pipeline's processes
    n = 4 if sizes["image_size"] < 96 else 1
    shape = (n, sizes["channels"], sizes["image_size"], sizes["image_size"])
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def seconds(n: int) -> float:
        started = time.monotonic()
        for corruption in CORRUPTIONS:
            for severity in SEVERITIES:
                corrupt(pixels[:n], corruption, severity, list(range(n)))
        return time.monotonic() - started

    start = seconds(1)  # some severities compile code of their own
    conditions = len(CORRUPTIONS) * len(SEVERITIES)
    spent, used = seconds(n) / n / conditions, _gigabytes(resource.RUSAGE_SELF)
    how = f"one core, {n} image(s) under each of {conditions} conditions"
    return [
        ("corrupt", spent, used, None, 0, how),
        ("start corrupting", start, used, None, 0, "the library, loaded and warm"),
    ]
