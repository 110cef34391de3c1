"""How fast the attack and the trainer are: beside torchattacks and foolbox, and beside the machine.

    python benchmarks/speed.py [--quick] [--study FILE] [--models pretrained adv] [--images N]

One run on one machine: the same networks, images and threat model for all. Each measurement has a
process of its own, so that its peak memory is its own, and the repeats of different settings take
turns. A run that was stopped goes on with the same command. The tables are written to
``results/benchmark``, those of a --quick run beside its measurements.
"""

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save_file

from advbook.studies.inputs import images_of
from advbook.studies.places import ROOT, data_root
from advbook.studies.runs import load_run, train_method
from advbook.studies.schema import Study, load_study
from advlib import __version__
from advlib.data import fetch
from advlib.data.sets import Images
from advlib.files import replacing
from advlib.networks.device import default_device, resolve_dtype
from advlib.recipes import RECIPES
from measurements import (
    DOCUMENTED,
    DOCUMENTED_BATCH,
    MEASURES,
    SPARED,
    TUNED,
    Bench,
    judge,
    make_images,
    pass_flops,
)
from speed_tables import PARTS, tables_of

ATTACKS = {"advlib": ("PGD",), "torchattacks": ("PGD", "APGD"), "foolbox": ("LinfPGD",)}
PEERS = ("torchattacks", "foolbox")
TO_THE_END = "every image to the end"
GROWTH = {
    "steps": (1, 2, 5, 10, 20, 40, 80),
    "steps, stopping at success": (1, 2, 5, 10, 20, 40, 80),
    "image size": (16, 24, 32, 48, 64),
    "classes": (10, 100, 1000),
    "images": (16, 32, 64, 128, 256, 512),
}
FULL = {
    "steps": 40,
    "repeats": 4,
    "probe_steps": 3,
    "conv_seconds": 0.1,  # that each convolution is repeated for
    "growth": GROWTH,
    "growth_repeats": 3,
    "growth_images": 128,
}
AUTOATTACK = {"steps": 100, "targets": 9, "queries": 5000}  # the standard version
CPU = {
    "images": 512,
    "autoattack": {"images": 128} | AUTOATTACK,
    "train_batches": 4,
    "batch_sizes": (16, 32, 48, 64, 96, 128, 256),
}
GPU = {
    "images": 8192,
    "autoattack": {"images": 1024} | AUTOATTACK,
    "train_batches": 16,
    "batch_sizes": (128, 256, 512, 1024, 2048),
}
QUICK = {
    "steps": 5,
    "repeats": 1,
    "probe_steps": 1,
    "conv_seconds": 0.002,
    "growth": {what: values[:2] for what, values in GROWTH.items()},
    "growth_repeats": 1,
    "growth_images": 8,
    "images": 16,
    "autoattack": {"images": 8, "steps": 3, "targets": 2, "queries": 5},
    "train_batches": 1,
    "batch_sizes": (8, 16),
}
QUICK_STUDY = {
    "train_images": 200,
    "pretrain_epochs": 1,
    "epochs": 1,
    "train_steps": 2,
    "batch_size": 20,
}


def choose_study(options) -> Study:
    """The study whose networks are timed; CIFAR-10's gives way to Fashion-MNIST where not found."""
    study = load_study(options.study)
    if study.dataset == "cifar10":
        try:
            fetch.locate("cifar10", data_root(study))
        except fetch.DataError as error:
            print(f"{error}\nCIFAR-10 is not there: Fashion-MNIST takes its place.")
            name, title = f"{study.study}_fashion_mnist", "Fashion-MNIST, for timing"
            study = dataclasses.replace(
                study, study=name, title=title, dataset="fashion_mnist", augment="crop"
            )
    if options.quick:
        study = dataclasses.replace(study, study=f"{study.study}_quick", **QUICK_STUDY)
    return study


def prepare(options) -> Path:
    """Train or find the networks, keep the images, and write down what the run is; its folder.

    Raises
    ------
    ValueError
        If a model has other logits than the classes, the norm is not Linf, or the folder holds
        another run.
    """
    device = torch.device(options.device or default_device())
    study = choose_study(options)
    if study.norm != "Linf":
        raise ValueError(f"the peers are called with norm Linf, the study's is {study.norm}")
    folder = study.runs / "benchmark"
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    start = ["pretrained"] if study.pretrain_epochs else []
    methods = dict.fromkeys(start + options.models)
    runs = {m: train_method(study, m, study.seeds[0]) for m in methods}
    scale = FULL | (CPU if device.type == "cpu" else GPU) | (QUICK if options.quick else {})
    scale |= {k: v for k in ("images", "repeats") if (v := getattr(options, k))}
    test = keep(images_of(study, "test"), scale["images"] - scale["images"] % scale["repeats"])
    train = keep(images_of(study, "train"), scale["train_batches"] * study.batch_size)
    native = resolve_dtype("auto", device) == torch.bfloat16
    settings = scale | {
        "study": study.to_dict(),
        "device": str(device),
        "data": test.title,
        "class_names": list(test.class_names),
        "models": {m: runs[m]["checkpoint_hash"] for m in options.models},
        "model_names": {m: RECIPES[m].title if m in RECIPES else m for m in options.models},
        "threat": str(dataclasses.replace(study.threat("pgd40"), steps=scale["steps"])),
        "train_threat": str(study.train_threat),
        "images": len(test),
        "dtypes": ["bfloat16", "float32"] if native else ["float32"],
        "machine": machine(device, options.libraries),
        "code": code_hash(),
    }
    settings |= look_at_networks(study, options.models, test, device)
    check_same(folder, settings)
    tensors = {"test.pixels": test.pixels, "test.labels": test.labels}
    tensors |= {"train.pixels": train.pixels, "train.labels": train.labels}
    with replacing(folder / "images.safetensors") as path:
        save_file(tensors, path)
    with replacing(folder / "settings.json") as path:
        path.write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
    return folder


def look_at_networks(study: Study, models: list[str], test: Images, device) -> dict:
    """The clean error of each network, and what a pass costs.

    Raises
    ------
    ValueError
        If a network has more logits than there are classes.
    """
    x, y = test.pixels.to(device).float() / 255, test.labels.to(device)
    clean_error = {}
    for name in models:
        model = load_run(study, name, study.seeds[0])[0].to(device).eval()
        outputs = model(x[:1]).shape[1]
        if outputs != test.num_classes:
            raise ValueError(
                f"{name} has {outputs} logits for {test.num_classes} classes, and the peers attack "
                "all logits: name --models without transformation logits"
            )
        clean_error[name] = float(judge(model, x, x, y, 0.0)[0].float().mean())
    return {"clean_error": clean_error, "gflop": pass_flops(model, x[:2], y[:2])}


def keep(images: Images, count: int) -> Images:
    """So many of the images in memory, always the same ones, in a random order.

    Raises
    ------
    ValueError
        If there are fewer.
    """
    if count > len(images):
        raise ValueError(f"{images.title} has {len(images)} images here, {count} are asked for")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count]
    chosen = images.subset(order)
    if chosen.pixels is None:
        pixels = torch.stack([chosen.decode(i) for i in range(len(chosen))])
        found = make_images(pixels, chosen.labels, chosen.class_names)
        found.title = chosen.title
        return found
    return chosen


def check_same(folder: Path, settings: dict) -> None:
    """Refuse to mix measurements of two runs in one table."""
    path = folder / "settings.json"
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(settings))
    changed = [key for key in now if key != "machine" and before.get(key) != now[key]]
    for key in now["machine"]:
        if key != "date" and before["machine"].get(key) != now["machine"][key]:
            changed.append(key)
    if changed:
        raise ValueError(
            f"{folder} holds measurements made with other settings ({', '.join(changed)}): "
            "--fresh starts again"
        )


def machine(device: torch.device, libraries: list[str]) -> dict:
    """What a reader needs to know of the machine; no name and no path of it."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {name: version(name) for name in libraries if name in PEERS}
    facts = {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "native bfloat16": resolve_dtype("auto", device) == torch.bfloat16,
        "system": platform.system(),
        "python": platform.python_version(),
        "advlib": __version__,
        "torch": torch.__version__,
        **versions,
        "date": datetime.date.today().isoformat(),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def code_hash() -> str:
    """Of what is timed: measurements of two versions are not mixed."""
    digest = hashlib.sha256()
    for path in (ROOT / "benchmarks/measurements.py", *sorted((ROOT / "advlib").rglob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run_all(folder: Path, parts: list[str], libraries: list[str]) -> None:
    """Make every measurement that is missing; batch sizes are chosen first."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    probes = probe_jobs(settings, libraries)
    run_jobs(folder, probes)
    best = best_batch_sizes([row for job in probes for row in kept_rows(folder, job)])
    run_jobs(folder, [job for part in parts for job in JOBS[part](settings, libraries, best)])


def run_jobs(folder: Path, jobs: list[dict]) -> None:
    for number, job in enumerate(jobs, 1):
        if not job_file(folder, job).is_file():
            started = time.monotonic()
            run_job(folder, job)
            seconds = time.monotonic() - started
            print(f"{number:4}/{len(jobs)}  {seconds:5.0f} s  {job['name']}", flush=True)


def run_job(folder: Path, job: dict) -> None:
    """One measurement in a fresh process. One that may fail leaves no row, and its reason."""
    command = [sys.executable, __file__, "--measure", json.dumps(job), "--folder", str(folder)]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if ended.returncode and not job.get("may_fail"):
        sys.exit(f"{ended.stderr}\nThe measurement {job['name']} failed; the others are kept.")
    if ended.returncode:
        reason = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{job['name']} is left out: {reason}")
        with replacing(job_file(folder, job)) as path:
            path.write_text(json.dumps({"job": job, "rows": [], "reason": reason}))


def probe_jobs(settings: dict, libraries: list[str]) -> list[dict]:
    return [
        {
            "name": f"probe-{library}-{attack}",
            "measure": "probe",
            "library": library,
            "attack": attack,
            "dtypes": settings["dtypes"],
            "models": list(settings["models"])[:1],
        }
        for library in libraries
        for attack in ATTACKS[library]
    ]


def best_batch_sizes(rows: list[dict]) -> dict[tuple, int]:
    """The batch size of most images a second, by library, attack and dtype."""
    best = {}
    for row in sorted(rows, key=lambda row: row["images_per_second"]):
        best[row["library"], row["attack"], row["dtype"]] = row["batch_size"]
    return best


def evaluation_jobs(settings: dict, libraries: list[str], best: dict) -> list[dict]:
    """Every setting in turn, then again. Where each image costs the same, repeats share the images.

    An attack that stops early is given all images each time: its cost is not proportional.
    """
    size, jobs = settings["images"] // settings["repeats"], []
    variants = [
        (library, attack, *variant)
        for library in libraries
        for attack in ATTACKS[library]
        for variant in evaluation_settings(library, attack, settings["dtypes"])
        if (library, attack, variant[-1]) in best  # else its probe failed, and said so
    ]
    for repeat in range(settings["repeats"]):
        for library, attack, setting, success, dtype in variants:
            known, first = best[library, attack, dtype], repeat * size
            job = {
                "name": f"evaluation-{library}-{attack}-{slug(setting)}-{dtype}-{repeat}",
                "measure": "evaluation",
                "library": library,
                "attack": attack,
                "setting": setting,
                "success": success,
                "dtype": dtype,
                # Ours as a user gets it.
                "batch_size": {DOCUMENTED: DOCUMENTED_BATCH, "default": None, TO_THE_END: None}.get(
                    setting, known
                ),
                "models": list(settings["models"]),
                "repeat": repeat,
                "first": 0 if success == "any" else first,
                "last": settings["images"] if success == "any" else first + size,
                "may_fail": library != "advlib" and dtype != "float32",
            }
            jobs.append(job)
    return jobs


def evaluation_settings(library: str, attack: str, dtypes: list[str]) -> list[tuple]:
    """(setting, which iterate counts, dtype) of a library's rows."""
    if library == "advlib":
        found = [("default", "any"), (TO_THE_END, "last")]
    else:
        found = [(TUNED, "last")]
        if attack != "APGD":  # which leaves clean mistakes out by itself
            found += [(SPARED, "any")]
    tuned = [(setting, success, dtype) for setting, success in found for dtype in dtypes]
    return tuned if library == "advlib" else [(DOCUMENTED, "last", "float32"), *tuned]


def training_jobs(settings: dict, libraries: list[str], best: dict) -> list[dict]:
    variants = [("advlib", "PGD", "default", dtype) for dtype in settings["dtypes"]]
    if "torchattacks" in libraries:
        variants += [("torchattacks", "PGD", DOCUMENTED, "float32")]
        variants += [("torchattacks", "PGD", TUNED, dtype) for dtype in settings["dtypes"]]
    return [
        {
            "name": f"training-{library}-{slug(setting)}-{dtype}-{repeat}",
            "measure": "training",
            "library": library,
            "attack": attack,
            "setting": setting,
            "dtype": dtype,
            "repeat": repeat,
            "models": list(settings["models"])[-1:],
            "may_fail": library != "advlib" and dtype != "float32",
        }
        for repeat in range(settings["repeats"])
        for library, attack, setting, dtype in variants
    ]


def convolution_jobs(settings: dict, libraries: list[str], best: dict) -> list[dict]:
    return [
        {
            "name": f"convolution-{dtype}",
            "measure": "convolution",
            "dtypes": [dtype],
            "models": list(settings["models"])[:1],
        }
        for dtype in settings["dtypes"]
    ]


def profile_jobs(settings: dict, libraries: list[str], best: dict) -> list[dict]:
    return [
        {
            "name": f"profile-{dtype}",
            "measure": "profile",
            "library": "advlib",
            "setting": "default",
            "dtype": dtype,
            "batch_size": best["advlib", "PGD", dtype],
            "models": list(settings["models"])[-1:],
        }
        for dtype in settings["dtypes"]
    ]


def growth_jobs(settings: dict, libraries: list[str], best: dict) -> list[dict]:
    dtype = settings["dtypes"][0]
    return [
        {
            "name": f"growth-{slug(what)}",
            "measure": "growth",
            "what": what,
            "values": list(values),
            "dtype": dtype,
            # What does not depend on the number of images is seen with the batch size in use.
            "batch_size": None if what == "images" else best["advlib", "PGD", dtype],
            "models": list(settings["models"])[-1:],
        }
        for what, values in settings["growth"].items()
    ]


def autoattack_jobs(settings: dict, libraries: list[str], best: dict) -> list[dict]:
    variants = [("advlib", "default")]
    if "torchattacks" in libraries:
        variants += [("torchattacks", TUNED), ("torchattacks", DOCUMENTED)]
    return [
        {
            "name": f"autoattack-{library}-{slug(setting)}",
            "measure": "autoattack",
            "library": library,
            "setting": setting,
            "dtype": "float32" if setting == DOCUMENTED else settings["dtypes"][0],
            "models": list(settings["models"]),
        }
        for library, setting in variants
    ]


JOBS = {
    "evaluation": evaluation_jobs,
    "autoattack": autoattack_jobs,
    "training": training_jobs,
    "convolution": convolution_jobs,
    "profile": profile_jobs,
    "growth": growth_jobs,
}


def slug(text: str) -> str:
    return text.replace(",", "").replace(" ", "_")


def job_file(folder: Path, job: dict) -> Path:
    return folder / "jobs" / f"{job['name']}.json"


def kept_rows(folder: Path, job: dict) -> list[dict]:
    """The rows of a measurement that was made, each with its job's settings."""
    found = json.loads(job_file(folder, job).read_text(encoding="utf-8"))
    return [found["job"] | row for row in found["rows"]]


def measure(folder: Path, job: dict) -> None:
    """Make one measurement in this process and keep its rows."""
    rows = MEASURES[job["measure"]](Bench(folder), job)
    with replacing(job_file(folder, job)) as path:
        path.write_text(json.dumps({"job": job, "rows": rows}), encoding="utf-8")


def facts_of(settings: dict) -> dict:
    """What the chapter says beside the numbers."""
    keys = ("machine", "data", "images", "threat", "train_threat", "model_names", "clean_error")
    keys += ("gflop", "dtypes", "batch_sizes", "repeats", "steps")
    study = settings["study"]
    own = {"network": study["model"], "train_batch_size": study["batch_size"]}
    own |= {"train_steps": study["train_steps"], "eps": study["eps"]}
    return {key: settings[key] for key in keys} | own


def write_tables(folder: Path, output: Path) -> None:
    """All tables and the facts, rounded to six digits."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    for name, table in tables_of(folder).items():
        with replacing(output / f"{name}.csv") as path:
            table.to_csv(path, index=False, float_format="%.6g")
    text = json.dumps(facts_of(settings), indent=1, ensure_ascii=False) + "\n"
    with replacing(output / "facts.json") as path:
        path.write_text(text, encoding="utf-8")
    print(f"The tables: {output}")


def parse(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="benchmarks/speed.yaml", help="an id or a file")
    parser.add_argument("--models", nargs="+", default=["pretrained", "adv"], metavar="METHOD",
                        help="of the study; the last one for training and growth")  # fmt: skip
    parser.add_argument("--images", type=int, help="test images (512; on a GPU 8,192)")
    parser.add_argument("--repeats", type=int, help="of each measurement (4)")
    parser.add_argument("--libraries", nargs="+", choices=["advlib", *PEERS],
                        default=["advlib", *PEERS])  # fmt: skip
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", help="cpu, cuda, ...; by availability if left out")
    parser.add_argument("--quick", action="store_true", help="two minutes: does it work here?")
    parser.add_argument("--fresh", action="store_true", help="forget the measurements so far")
    parser.add_argument("--output", type=Path, help="of the tables (results/benchmark)")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments=None) -> None:
    options = parse(arguments)
    if options.measure:
        measure(options.folder, options.measure)
        return
    missing = [name for name in options.libraries if name in PEERS and not find_spec(name)]
    if missing:
        sys.exit(f"{', '.join(missing)} is not installed: run `make bench`, which installs it")
    try:
        folder = prepare(options)
    except (ValueError, fetch.DataError) as error:
        sys.exit(f"Nothing is measured: {error}")
    run_all(folder, options.parts, options.libraries)
    whole = set(options.parts) == set(PARTS) and set(options.libraries) == {"advlib", *PEERS}
    published = ROOT / "results/benchmark" if whole and not options.quick else folder / "tables"
    write_tables(folder, options.output or published)


if __name__ == "__main__":
    main()
