"""The pipeline: data -> train -> evaluate -> analyse -> book.

Each rule runs one notebook with papermill and declares its table as output, so a run resumes
where it stopped and only what changed is computed again.

    snakemake --cores all --config study=cifar10 mode=audit    # or mode=read, from committed tables alone
    snakemake --profile profiles/slurm --config study=imagenet    # heavy rules as jobs of a cluster
"""

import fcntl
import hashlib
import json
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Whatever this starts imports the code of this folder.
sys.path[:0] = [workflow.basedir, f"{workflow.basedir}/book"]
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], *filter(None, [os.environ.get("PYTHONPATH")])])

from advbook.build import pages
from advbook.build.closure import code_of
from advbook.studies.checks import check_choice, refuse_unknown
from advbook.studies.current import SAMPLES, paths_of
from advbook.studies.identity import HOW, data_settings, networks_before, training_settings
from advbook.studies.places import ROOT, data_root, find_study, named_file
from advbook.studies.schema import load_study
from advlib.data.folders import walk
from pipeline import jobs

KEYS = ["mode", "study", *jobs.DEFAULTS, *HOW]
refuse_unknown(set(config) - set(KEYS), KEYS)
STATED = {key: config[key] for key in jobs.DEFAULTS if key in config}

START = time.time()
MODE = config.get("mode", "run")
check_choice("mode", MODE, ("run", "audit", "read"))
NAME = config.get("study", "fashion_mnist_quick")
STUDY = load_study(NAME)
load_study(NAME, **{key: config[key] for key in HOW if key in config})  # refuses what cannot be
FILE = pages.from_root(find_study(NAME))
BOOK = pages.studies_of_book(None if MODE == "read" else FILE)
FILES = {study.study: file for study, file in BOOK}
BY_ID = {study.study: study for study, _ in BOOK}
RUN_IDS = [f"{method}-seed{seed}" for method, seed in STUDY.method_runs]
ABLATION_IDS = [f"{name}-seed{seed}" for name, seed in STUDY.ablation_runs]
PARTS = ("study", "samples", *(STUDY.audits if MODE == "audit" else ()))
MADE = [part for part in pages.parts_of(STUDY) if part in PARTS]
# (study, source) -> the parts of which there are tables: the committed ones, and those of runs here.
SHOWN = {
    (study.study, source): parts
    for study, _ in BOOK
    for source, parts in pages.tables_shown(
        study, None if MODE == "read" else MADE if study == STUDY else []
    ).items()
}
# What the text of pages is about, and asserts.
SECOND_START = "fashion_mnist_pgd_start"  # the zoo's methods once more, from another start
COLOUR_ZOO = "cifar10_zoo"  # whose data are those of the methods' papers
TOLD = ("cifar10", "cifar100", "fashion_mnist", "fashion_mnist_zoo", COLOUR_ZOO, SECOND_START, pages.DEFAULT)
for name in TOLD:
    if "study" not in SHOWN.get((name, "committed"), []):
        raise WorkflowError(
            f"the book's text is about {name} as it is published, and results/{name} is not that of its "
            "study file: put the file back, and give settings of your own another file and id"
        )
if workflow.is_main_process:
    for reason in pages.left_out(SHOWN):  # what it shows is not read again
        print(reason, file=sys.stderr)


def from_here(path):
    """A path from the project's folder where it lies inside: that folder may have any name."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


RUNS = from_here(STUDY.runs)
GIVEN = (STUDY.data_dir, STUDY.weights, *STUDY.checkpoints.values(), *STUDY.predictions.values())
for path in (RUNS, *FILES.values(), *GIVEN):
    if set("{}") & set(str(path)):
        raise WorkflowError(f"{path} has a brace in its name, which Snakemake reads: rename it")
if MODE == "audit" and STUDY.audits and "pgd40" not in STUDY.attacks:
    raise WorkflowError(f"the audit of {NAME} compares with pgd40: add it to the study's attacks")
if MODE == "audit" and not STUDY.audits:
    raise WorkflowError(f"{NAME} holds predictions: an audit attacks networks, bring checkpoints")

PYTHON = shlex.quote(sys.executable)
# A kernel may be slow to start on a busy machine.
PAPERMILL = f"{PYTHON} -m papermill --no-progress-bar --log-output --start-timeout 300 --kernel python3"
# A page takes seconds: it speaks only of what fails. Kernels also warn of an open port, and call
# their own end an error. Pages are made side by side, so threads of their own would only wait.
PAGE = f"2> >(grep -v '^.IPKernelApp' >&2) OPENBLAS_NUM_THREADS=1 {PYTHON} -m"
QUIETLY = PAPERMILL.partition("papermill ")[2].replace("--log-output", "--log-level WARNING")
QUIETLY += " --no-request-save-on-cell-execute"
JUPYTER_BOOK = f"{PYTHON} -c 'from jupyter_book.cli.main import main; main()'"

# A cluster is told how many jobs it may hold, this machine how many cores it has. With
# `--resources gpu=N`, jobs run side by side on this machine, each on GPUs of its own.
CLUSTER = workflow.remote_exec or workflow.resource_settings.nodes is not None
if CLUSTER and PYTHON != sys.executable:
    raise WorkflowError(
        f"jobs of a cluster cannot start {sys.executable}: Snakemake needs a path without spaces "
        "and signs there, so move the project"
    )
# What jobs leave in temporary folders goes with `locked.py`, however they end.
if (own := os.environ.get("ADVLIB_TMP")) and not CLUSTER:
    os.environ["TMPDIR"] = os.environ["JUPYTER_RUNTIME_DIR"] = tempfile.tempdir = own
GPUS = None if CLUSTER else workflow.global_resources.get("gpu").value
ON_GPUS = "" if GPUS is None else f"{PYTHON} pipeline/gpus.py"
if GPUS is not None and GPUS < jobs.gpus(STUDY, STATED.get("devices")):
    raise WorkflowError(
        f"a job needs {jobs.gpus(STUDY, STATED.get('devices'))} GPUs, and there are gpu={GPUS} in all: "
        "give the study fewer devices, or leave --resources gpu out"
    )
AS_STATED = " ".join(f"-p {key} {config[key]}" for key in HOW if key in config)


localrules:
    all,
    fetch,
    place_study,
    page,
    toc,
    book,


wildcard_constraints:
    source="fresh|committed",
    method="[A-Za-z0-9_.-]+",
    seed=r"\d+",
    attack="|".join(STUDY.attacks) or "none",
    page=r"\w+",


def needs(rule, *names):
    """What a job of a rule asks a cluster for, by name, each worked out when the job is known."""

    def need(name):
        def worked_out(wildcards, attempt):
            own = {key: wildcards.get(key) for key in ("method", "attack")}
            study = BY_ID[wildcards.get("study", STUDY.study)]
            return jobs.needs(study, rule, attempt=attempt, **own, **STATED)[name]

        return worked_out

    return {name: need(name) for name in names}


def cores(rule):
    """On a cluster what the job needs; here all, or a share like that of the GPUs."""
    if CLUSTER:
        return lambda wildcards: needs(rule, "threads")["threads"](wildcards, 1)
    if GPUS is None:
        return workflow.cores
    return max(1, workflow.cores * jobs.gpus(STUDY, STATED.get("devices")) // GPUS)


def settings(*keys):
    return {key: getattr(STUDY, key) for key in keys}


def listing():
    """A hash of the files in a folder of images: that they changed, no setting tells."""
    if STUDY.dataset != "folder" or data_root(STUDY) is None:
        return {}
    found = hashlib.sha256()
    for base in (data_root(STUDY), data_root(STUDY) / "folder"):  # as `advlib.data.fetch` looks for them
        for split in ("train", "test", "val"):
            for path in map(Path, walk(base / split) if (base / split).is_dir() else ()):
                status = path.stat() if path.exists() else path.lstat()
                facts = path.relative_to(base), status.st_size, status.st_mtime_ns
                found.update(f"{facts}\n".encode())
    return {"listing": found.hexdigest()}


def training(wildcards):
    """What decides a training run, apart from its inputs."""
    keys = ("data_dir", "train_images", "holdout_images")
    return training_settings(STUDY, wildcards.method, int(wildcards.seed), "", None) | settings(*keys)


def start_of(wildcards):
    names = networks_before(STUDY, wildcards.method)
    return [RUNS / "train" / f"{name}-seed{wildcards.seed}.json" for name in names]


def weights_of(wildcards):
    """The local weights file that a run starts from, if there is one; a name has no ending."""
    path = STUDY.checkpoints.get(wildcards.method) or STUDY.weights
    return from_here(named_file(path)) if path and Path(path).suffix else []


def words_of(study):
    """The words of a study file that its pages show, which no table holds."""
    words = [study.title, study.note, study.groups, study.names, study.class_names, study.ablation_names]
    return json.dumps(words, ensure_ascii=False)


def tables_of(study_id, source):
    """Every table of a study that the book shows, from one source."""
    study = BY_ID[study_id]
    folder = from_here(study.runs if source == "fresh" else study.published)
    paths = [path for part in SHOWN[study_id, source] for path in paths_of(study, folder, part)]
    return list(dict.fromkeys(paths))


rule all:
    input:
        "_build/html/.buildinfo",
        tables=[] if MODE == "read" else tables_of(STUDY.study, "fresh"),


if STUDY.predictions:

    rule bring:
        input:
            notebook="notebooks/bring_your_own.ipynb",
            files=[from_here(named_file(path)) for path in STUDY.predictions.values()],
            file=FILE,
        output:
            tables=list(paths_of(STUDY, RUNS)),
        log:
            RUNS / "logs/bring_your_own.ipynb",
        benchmark:
            RUNS / "benchmarks/bring_your_own.tsv"
        shell:
            "{PAPERMILL} {input.notebook:q} {log:q} -f {FILE:q}"

else:

    rule fetch:
        output:
            touch(RUNS / "fetched"),
        params:
            settings=settings("dataset", "data_dir") | {"root": os.environ.get("ADVLIB_DATA")} | listing(),
            folder=f"--data-dir {shlex.quote(str(from_here(data_root(STUDY))))}" if data_root(STUDY) else "",
            # A holdout is a part of the training images.
            splits=" ".join(dict.fromkeys(s.replace("holdout", "train") for s in STUDY.splits)),
        benchmark:
            RUNS / "benchmarks/fetch.tsv"
        shell:
            "{PYTHON} -m advbook data {STUDY.dataset} {params.folder} --split {params.splits}"


    rule data:
        input:
            notebook="notebooks/data.ipynb",
            fetched=RUNS / "fetched",
        output:
            table=RUNS / "data.json",
            measures=RUNS / "measures.parquet",
        params:
            settings=data_settings(STUDY),
        priority: 1  # what it refuses would else be refused after days of training
        threads: cores("data") if CLUSTER else 1
        resources:
            **needs("data", "mem_mb", "runtime"),
        log:
            RUNS / "logs/data.ipynb",
        benchmark:
            RUNS / "benchmarks/data.tsv"
        shell:
            "{PAPERMILL} {input.notebook:q} {log:q} -p study {FILE:q}"


    COMPUTE = (
        "ADVLIB_GPUS={resources.gpu} {ON_GPUS} {PAPERMILL} {input.notebook:q} {log:q} -p study {FILE:q} "
        "{params.told} {AS_STATED}"
    )


    rule train:
        input:
            notebook="notebooks/train.ipynb",
            fetched=RUNS / "fetched",
            start=start_of,
            weights=weights_of,
        output:
            table=RUNS / "train/{method}-seed{seed}.csv",
            facts=RUNS / "train/{method}-seed{seed}.json",
        params:
            settings=training,
            told="-r method {method} -p seed {seed}",
        threads: cores("train")
        resources:
            **needs("train", "gpu", "mem_mb", "runtime"),
        log:
            RUNS / "logs/train-{method}-seed{seed}.ipynb",
        benchmark:
            RUNS / "benchmarks/train-{method}-seed{seed}.tsv"
        shell:
            COMPUTE


    use rule train as evaluate_attack with:
        input:
            notebook="notebooks/evaluate_pgd.ipynb",
            data=RUNS / "data.json",
            facts=RUNS / "train/{method}-seed{seed}.json",
        output:
            table=RUNS / "predictions/{attack}/{method}-seed{seed}.parquet",
        params:
            settings=data_settings(STUDY) | settings("dtype"),
            threat=lambda wildcards: STUDY.threat(wildcards.attack).to_dict(),
            told="-r method {method} -p seed {seed} -p attack {attack}",
        threads: cores("evaluate_attack")
        resources:
            **needs("evaluate_attack", "gpu", "mem_mb", "runtime"),
        log:
            RUNS / "logs/evaluate_{attack}-{method}-seed{seed}.ipynb",
        benchmark:
            RUNS / "benchmarks/evaluate_{attack}-{method}-seed{seed}.tsv"


    def tables(benchmark, runs):
        return expand(RUNS / f"predictions/{benchmark}/{{run}}.parquet", run=runs)


    # Many networks at once: the notebook's part, the networks, the tables, what decides these besides
    # the data, and what the notebook is told.
    FIRST_IDS = [f"{method}-seed{STUDY.seeds[0]}" for method in STUDY.methods]
    CORRUPTED = settings("corruptions", "corruptions_dir", "corruption_images")
    SEEN = {"threat": STUDY.threat("pgd40_last").to_dict()}
    for kind, (part, runs, made, decides, told) in {
        "clean": ("clean", RUN_IDS, tables("clean", RUN_IDS), {}, ""),
        "ablations": ("clean", ABLATION_IDS, tables("clean", ABLATION_IDS), {}, "-p ablations_only True"),
        "corruptions": ("corruptions", RUN_IDS, tables("corruptions", RUN_IDS), CORRUPTED, ""),
        "samples": ("samples", FIRST_IDS, RUNS / SAMPLES, SEEN, ""),
    }.items():
        if runs:

            rule:
                name: f"evaluate_{kind}"
                input:
                    notebook=f"notebooks/evaluate_{part}.ipynb",
                    data=RUNS / "data.json",
                    facts=expand(RUNS / "train/{run}.json", run=runs),
                output:
                    tables=made,
                params:
                    settings=data_settings(STUDY) | decides,
                    told=told,
                threads: cores(f"evaluate_{part}")
                resources:
                    **needs(f"evaluate_{part}", "gpu", "mem_mb", "runtime"),
                log:
                    RUNS / f"logs/evaluate_{kind}.ipynb",
                benchmark:
                    RUNS / f"benchmarks/evaluate_{kind}.tsv"
                shell:
                    COMPUTE


    # The audit attacks the networks one by one. Keys of the study that decide each part's tables:
    for part, keys in {
        "ledger": ("dtype", "ledger_images", "eval_batch_size"),
        "battery": ("battery_images", "eval_batch_size"),
        "autoattack": ("dtype", "autoattack_width"),
        "late": ("dtype", "late_epochs"),
    }.items():
        run = f"evaluate_{part}-{{method}}-seed{{seed}}"
        # The battery's attacks are made on every method's network, and tried on this one's.
        audited = STUDY.methods if part == "battery" else ["{method}"]

        rule:
            name: f"evaluate_{part}"
            input:
                notebook=f"notebooks/evaluate_{part}.ipynb",
                data=RUNS / "data.json",
                facts=[RUNS / f"train/{name}-seed{{seed}}.json" for name in audited],
                pgd40=RUNS / "predictions/pgd40/{method}-seed{seed}.parquet" if part == "autoattack" else [],
            output:
                table=RUNS / f"audit/{part}/{{method}}-seed{{seed}}.parquet",
            params:
                settings=data_settings(STUDY) | settings(*keys),
                threat=STUDY.threat("pgd40").to_dict(),
                told="-r method {method} -p seed {seed}",
            threads: cores(f"evaluate_{part}")
            resources:
                **needs(f"evaluate_{part}", "gpu", "mem_mb", "runtime"),
            log:
                RUNS / f"logs/{run}.ipynb",
            benchmark:
                RUNS / f"benchmarks/{run}.tsv"
            shell:
                COMPUTE


rule analyse:
    input:
        notebook="notebooks/study.ipynb",
        tables=lambda wildcards: tables_of(wildcards.study, wildcards.source),
        paper="results/paper/published.csv",
        code=code_of("notebooks/study.ipynb"),
    output:
        executed="_build/{source}/{study}/study.ipynb",
    params:
        file=lambda wildcards: FILES[wildcards.study],
        parts=lambda wildcards: json.dumps(SHOWN[wildcards.study, wildcards.source]),
        n_resamples=lambda wildcards: BY_ID[wildcards.study].n_resamples,
        folder=lambda wildcards: Path("_build") / wildcards.source / wildcards.study / "results",
        words=lambda wildcards: words_of(BY_ID[wildcards.study]),
    retries: 1  # two kernels that start at once may take the same port
    threads: cores("analyse") if CLUSTER else 1
    resources:
        **needs("analyse", "mem_mb", "runtime"),
    log:
        "_build/{source}/{study}/log.ipynb",
    benchmark:
        "_build/benchmarks/analyse-{source}-{study}.tsv"
    shell:
        "rm -rf {params.folder:q} && {PAGE} papermill {QUIETLY} {input.notebook:q} {log:q} -p study {params.file:q} "
        "-p source {wildcards.source} -y 'parts: {params.parts}' -p output {params.folder:q} "
        "&& cp {log:q} {output.executed:q}"


rule place_study:
    input:
        executed="_build/{source}/{study}/study.ipynb",
        tables=lambda wildcards: tables_of(wildcards.study, wildcards.source),
        file=lambda wildcards: FILES[wildcards.study],
        code=code_of("advbook.build.pages"),
    output:
        "book/generated/studies/{source}/{study}.ipynb",
    shell:
        "{PYTHON} -m advbook.build.pages study {input.executed:q} --file {input.file:q} "
        "--source {wildcards.source} --tables {input.tables:q}"


# The pages about all studies, each by what differs: `tables` it offers for download, `made` those that
# its notebook writes, `read` what it reads besides, `after` what must be there before, and what papermill
# is `told`. Where its numbers come from, its notebook's metadata say.
QUICK = "results/fashion_mnist_quick/predictions"
# On pages by question: published studies, those of the text first, then runs of the reader's own.
# A short example, whose numbers are no evidence, is not; and zoos have pages of their own.
ORDERED = sorted(SHOWN, key=lambda entry: (entry[1] == "fresh", [*TOLD, entry[0]].index(entry[0]), entry[0]))
BESIDE_OTHERS = [(pages.DEFAULT, "committed"), (SECOND_START, "committed")]
ZOOS = [entry for entry in ORDERED if BY_ID[entry[0]].zoo and entry not in BESIDE_OTHERS]
ASKED = [entry for entry in ORDERED if entry not in (*ZOOS, *BESIDE_OTHERS)]
# study file -> part -> its tables; None: there are none.
WHERE = {
    file: {
        part: next((s for s in ("committed", "fresh") if part in SHOWN.get((name, s), [])), None)
        for part in ("study", *BY_ID[name].audits)
    }
    for name, file in FILES.items()
}


def asks(entries=ASKED, told=(), after=(), read=(), **more):
    """A page by question, which reads the result tables of these studies."""
    listed = json.dumps([f"{FILES[name]}:{source}" for name, source in entries])
    return {
        "read": [*(path for entry in entries for path in tables_of(*entry)), *read],
        "after": [*(f"_build/{source}/{name}/study.ipynb" for name, source in entries), *after],
        "told": ["-y", f"studies: {listed}", *told],
        **more,
    }


def csvs(folder, *names):
    return [f"results/{folder}/{name}.csv" for name in names]


ASKED_OF = {
    page: [entry for entry in ZOOS if part in SHOWN[entry]]
    for page, part in {"zoo": "ablations", "selection": "late", "carries": "study"}.items()
}
AGAIN = [f"_build/committed/{SECOND_START}/study.ipynb"]
BESIDE = "book/generated/tables"  # what pages write for others: gone with the pages, and only then
# Of the short example, which has the most ablations.
SHORT = tables_of(pages.DEFAULT, "committed")
PAGES = {
    "table_check": {
        "tables": csvs("paper", "published", "percentages", "public_models", "leaderboard")
    },
    "imagenet_models": asks(
        [entry for entry in SHOWN if BY_ID[entry[0]].dataset == "imagenet" and "study" in SHOWN[entry]],
        told=["-p", "output", f"{BESIDE}/imagenet_models"],
        tables=csvs("imagenet_models", *"networks conditions label real groups predictions".split()),
    ),
    "verdict": asks(
        told=["-p", "public", f"{BESIDE}/imagenet_models/claims.csv", "-p", "output", f"{BESIDE}/verdict"],
        after=["results/paper/published.csv", "book/generated/imagenet_models.ipynb"],
        made=f"{BESIDE}/verdict/verdict.csv {BESIDE}/verdict/verdict-comparisons.csv",
    ),
    "cover": asks(after=["book/generated/verdict.ipynb", f"_build/committed/{COLOUR_ZOO}/study.ipynb"]),
    "method": {"read": csvs("cifar10/train", "adv-seed0", "adv_plus-seed0")},
    "costs": asks(tables=csvs("paper", "published", "robustbench") + csvs("plan", "networks")),
    "classes": asks(tables=csvs("paper", "published")),
    "see": asks(),
    "beyond": asks(tables=csvs("paper", "published")),
    "narrows": asks(read=SHORT),
    # Of studies that compare many methods, as far as their tables are there.
    **{page: asks(found, after=AGAIN, read=csvs("plan", "networks")) for page, found in ASKED_OF.items() if found},
    "methods": asks([(COLOUR_ZOO, "committed")], tables=csvs("paper", "zoo_published", "published")),
    "leaderboard": {"read": sorted(map(str, Path("results/leaderboard").glob("*.json")))},
    "attack": asks(read=SHORT, tables=csvs("paper", "published")),
    "robust": asks(),
    "study_index": asks(
        SHOWN,
        told=["-y", "others: " + json.dumps([f for n, f in FILES.items() if n not in dict([*SHOWN])])],
        after=list(FILES.values()),
    ),
    "limits": asks(SHOWN, after=FILES.values(), read=csvs("plan", "networks", "cifar_candidates"))
    | {"told": ["-y", "book: " + json.dumps(WHERE)]},
    "exercises": {"read": [*tables_of("cifar10", "committed"), *tables_of("fashion_mnist", "committed")]},
    "benchmark": {
        "tables": csvs(
            "benchmark", "speed", "autoattack", "efficiency", "convolution", "ceiling", "profile", "growth"
        ),
        "read": [
            "results/benchmark/facts.json",
            "results/cifar10/predictions/pgd40/adv-seed0.parquet",
            "results/cifar10/audit/battery/adv-seed0.parquet",
            "results/cifar10/audit/autoattack/adv-seed0.parquet",
            "results/benchmark/every_image.parquet",
            "results/benchmark/every_image.csv",
        ],
    },
    "scale": {
        "tables": csvs("plan", "networks", "gpus", "published_speeds", "fashion_mnist_quick"),
        "read": [f"{QUICK}/pgd40/{method}-seed0.parquet" for method in BY_ID[pages.DEFAULT].methods],
    },
    "bring_your_own": {
        "made": " ".join(
            f"_build/brought/bring_your_own-{name}.csv" for name in ("classes", "pairs", "summary", "table")
        ),
        "read": [f"{QUICK}/clean/{method}-seed0.parquet" for method in ("std", "adv")],
        "told": ["-p", "title", "example", "-p", "output", "_build/brought"],
    },
}


rule page:
    input:
        notebook="notebooks/{page}.ipynb",
        tables=lambda wildcards: PAGES[wildcards.page].get("tables", []),
        read=lambda wildcards: PAGES[wildcards.page].get("read", []),
        after=lambda wildcards: PAGES[wildcards.page].get("after", []),
        code=lambda wildcards: code_of(f"notebooks/{wildcards.page}.ipynb", "advbook.build.place"),
    output:
        "book/generated/{page}.ipynb",
    params:
        told=lambda wildcards: PAGES[wildcards.page].get("told", []),
        made=lambda wildcards: PAGES[wildcards.page].get("made", ""),
    retries: 1
    log:
        "_build/logs/{page}.ipynb",
    benchmark:
        "_build/benchmarks/{page}.tsv"
    shell:
        "{PAGE} advbook.build.place {log} {output} --tables {input.tables} {params.made} "
        "--read {input.read:q} --papermill {QUIETLY} {input.notebook:q} {log:q} {params.told:q}"


rule toc:
    input:
        pages=expand("book/generated/{page}.ipynb", page=PAGES),
        studies=[f"book/generated/studies/{source}/{name}.ipynb" for name, source in SHOWN],
        template="_toc.yml",
    output:
        "_build/toc.yml",
    params:
        studies=[f"{source}/{name}" for name, source in SHOWN],
        without=[page for page, found in ASKED_OF.items() if not found],
    shell:
        "{PYTHON} -m advbook.build.pages toc {params.studies:q} --without {params.without}"


rule book:
    input:
        toc="_build/toc.yml",
        pages=[
            *Path("book").glob("*.md"),
            *Path("book/reference").glob("*.md"),
            "book/references.bib",
            "CHANGELOG.md",
        ],
        code=[p for room in ("advlib", "book/advbook", "pipeline") for p in Path(room).rglob("*.py")],
        config=["_config.yml", *Path("book/_static").glob("*"), *Path("book/images").glob("*")],
    output:
        "_build/html/.buildinfo",  # not a page: Snakemake removes outputs before it makes them
    benchmark:
        "_build/benchmarks/book.tsv"
    shell:  # beside the last book, which stays until there is another
        "rm -rf _build/next && {JUPYTER_BOOK} build . --path-output _build/next --toc {input.toc} "
        "--all -W -n --keep-going -q > /dev/null && rm -rf _build/html && mv _build/next/_build/html _build/ "
        "&& rm -rf _build/next"


onstart:
    # Two clones, or `make` and a hand, may want the same study: one runs it at a time.
    if workflow.is_main_process and MODE != "read":
        RUNS.mkdir(parents=True, exist_ok=True)
        lock = os.open(RUNS / "lock", os.O_RDWR | os.O_CREAT)  # freed when this process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkflowError(f"{NAME} is being run already, into {RUNS}: wait for that") from None


onsuccess:
    pages.report(START, [RUNS, ROOT / "_build"], ".venv-read" if MODE == "read" else ".venv")
