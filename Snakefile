"""The pipeline: data -> train -> evaluate -> analyse -> book.

Each rule runs one notebook with papermill and declares its table as output, so a run resumes
where it stopped and only what changed is computed again.

    snakemake --cores all --config study=cifar10      # run one study, then build the book
    snakemake --cores all --config mode=read          # build from committed tables alone
"""

import shlex
import sys
import time
from pathlib import Path

from advlib.tables import table_paths
from advlib.study import ROOT, find_study, load_study

sys.path.insert(0, str(ROOT / "book"))
import pages

START = time.time()
MODE = config.get("mode", "run")
NAME = config.get("study", "fashion_mnist_quick")
STUDY = load_study(NAME)
FILE = pages.from_root(find_study(NAME))
RUNS = STUDY.runs
STUDIES = pages.studies_of_book(None if MODE == "read" else FILE)
SOURCES = {study.study: source for study, _, source in STUDIES}
FILES = {study.study: file for study, file, _ in STUDIES}
BY_ID = {study.study: study for study, _, _ in STUDIES}
SHOWN = [name for name, source in SOURCES.items() if source]
RUN_IDS = [f"{method}-seed{seed}" for method in STUDY.methods for seed in STUDY.seeds]

PYTHON = shlex.quote(sys.executable)
PAPERMILL = f"{PYTHON} -m papermill --no-progress-bar --log-output --kernel python3"
JUPYTER_BOOK = shlex.quote(str(Path(sys.executable).with_name("jupyter-book")))


wildcard_constraints:
    method="[A-Za-z0-9_.-]+",
    seed=r"\d+",
    attack="|".join(STUDY.attacks) or "none",


def settings(*keys):
    return {key: getattr(STUDY, key) for key in keys}


def training(wildcards):
    """What decides a training run, apart from its inputs."""
    keys = ("data_dir", "train_images", "holdout_images")
    return STUDY.training_settings(wildcards.method, int(wildcards.seed), "", None) | settings(*keys)


def start_of(wildcards):
    if wildcards.method in ("pretrained", *STUDY.checkpoints) or not STUDY.pretrain_epochs:
        return []
    return RUNS / "train" / f"pretrained-seed{wildcards.seed}.json"


def weights_of(wildcards):
    """The local weights file that a run starts from, if there is one; a name has no ending."""
    path = STUDY.checkpoints.get(wildcards.method) or STUDY.weights
    return STUDY.file(path) if path and Path(path).suffix else []


def tables_of(study_id):
    """Every table that a study's chapters read."""
    study, source = BY_ID[study_id], SOURCES[study_id]
    return list(table_paths(study, study.tables(source) if source == "committed" else study.runs))


def chapters_of(study_id):
    study = BY_ID[study_id]
    return [name for name in pages.CHAPTERS if name not in study.unavailable]


def appendix_of(wildcards):
    """The executed notebooks behind a fresh run; committed tables come without them."""
    study = BY_ID[wildcards.study]
    if SOURCES[wildcards.study] != "fresh":
        return []
    runs = [f"{method}-seed{seed}" for method in study.methods for seed in study.seeds]
    names = ["data", *(f"train-{run}" for run in runs), "evaluate_clean"]
    names += [f"evaluate_{attack}-{run}" for attack in study.attacks for run in runs]
    names += ["evaluate_corruptions"] if study.corruptions != "none" else []
    if study.predictions:
        names = ["bring_your_own"]
    paths = [study.runs / "executed" / f"{name}.ipynb" for name in names]
    return [path for path in paths if study == STUDY or path.exists()]


rule all:
    input:
        "_build/html/index.html",
        tables=[] if MODE == "read" else tables_of(STUDY.study),


if STUDY.predictions:

    rule bring:
        input:
            notebook="notebooks/bring_your_own.ipynb",
            files=[STUDY.file(path) for path in STUDY.predictions.values()],
            file=FILE,
        output:
            tables=list(table_paths(STUDY, RUNS)),
            executed=RUNS / "executed/bring_your_own.ipynb",
        log:
            RUNS / "logs/bring_your_own.ipynb",
        benchmark:
            RUNS / "benchmarks/bring_your_own.tsv"
        shell:
            "{PAPERMILL} {input.notebook:q} {log:q} -f {FILE:q} && cp {log:q} {output.executed:q}"

else:

    rule fetch:
        output:
            touch(RUNS / "fetched"),
        params:
            settings=settings("dataset", "data_dir"),
            folder=f"--data-dir {shlex.quote(str(STUDY.data_root))}" if STUDY.data_root else "",
            # A holdout is a part of the training images.
            splits=" ".join(dict.fromkeys(s.replace("holdout", "train") for s in STUDY.splits)),
        benchmark:
            RUNS / "benchmarks/fetch.tsv"
        shell:
            "{PYTHON} -m advlib.data {STUDY.dataset} {params.folder} --split {params.splits}"


    rule data:
        input:
            notebook="notebooks/data.ipynb",
            fetched=RUNS / "fetched",
        output:
            table=RUNS / "data.json",
            measures=RUNS / "measures.parquet",
            executed=RUNS / "executed/data.ipynb",
        params:
            settings=STUDY.data_settings(),
        log:
            RUNS / "logs/data.ipynb",
        benchmark:
            RUNS / "benchmarks/data.tsv"
        shell:
            "{PAPERMILL} {input.notebook:q} {log:q} -p study {FILE:q} && cp {log:q} {output.executed:q}"


    rule train:
        input:
            notebook="notebooks/train.ipynb",
            fetched=RUNS / "fetched",
            start=start_of,
            weights=weights_of,
        output:
            table=RUNS / "train/{method}-seed{seed}.csv",
            facts=RUNS / "train/{method}-seed{seed}.json",
            executed=RUNS / "executed/train-{method}-seed{seed}.ipynb",
        params:
            settings=training,
        threads: workflow.cores
        log:
            RUNS / "logs/train-{method}-seed{seed}.ipynb",
        benchmark:
            RUNS / "benchmarks/train-{method}-seed{seed}.tsv"
        shell:
            "{PAPERMILL} {input.notebook:q} {log:q} -p study {FILE:q} -p method {wildcards.method} "
            "-p seed {wildcards.seed} && cp {log:q} {output.executed:q}"


    rule evaluate_clean:
        input:
            notebook="notebooks/evaluate_clean.ipynb",
            data=RUNS / "data.json",
            facts=expand(RUNS / "train/{run}.json", run=RUN_IDS),
        output:
            tables=expand(RUNS / "predictions/clean/{run}.parquet", run=RUN_IDS),
            executed=RUNS / "executed/evaluate_clean.ipynb",
        params:
            settings=STUDY.data_settings(),
        threads: workflow.cores
        log:
            RUNS / "logs/evaluate_clean.ipynb",
        benchmark:
            RUNS / "benchmarks/evaluate_clean.tsv"
        shell:
            "{PAPERMILL} {input.notebook:q} {log:q} -p study {FILE:q} && cp {log:q} {output.executed:q}"


    rule evaluate_attack:
        input:
            notebook="notebooks/evaluate_pgd.ipynb",
            data=RUNS / "data.json",
            facts=RUNS / "train/{method}-seed{seed}.json",
        output:
            table=RUNS / "predictions/{attack}/{method}-seed{seed}.parquet",
            executed=RUNS / "executed/evaluate_{attack}-{method}-seed{seed}.ipynb",
        params:
            settings=STUDY.data_settings() | settings("dtype"),
            threat=lambda wildcards: STUDY.threat(wildcards.attack).to_dict(),
        threads: workflow.cores
        log:
            RUNS / "logs/evaluate_{attack}-{method}-seed{seed}.ipynb",
        benchmark:
            RUNS / "benchmarks/evaluate_{attack}-{method}-seed{seed}.tsv"
        shell:
            "{PAPERMILL} {input.notebook:q} {log:q} -p study {FILE:q} -p method {wildcards.method} "
            "-p seed {wildcards.seed} -p attack {wildcards.attack} && cp {log:q} {output.executed:q}"


    rule evaluate_corruptions:
        input:
            notebook="notebooks/evaluate_corruptions.ipynb",
            data=RUNS / "data.json",
            facts=expand(RUNS / "train/{run}.json", run=RUN_IDS),
        output:
            tables=expand(RUNS / "predictions/corruptions/{run}.parquet", run=RUN_IDS),
            executed=RUNS / "executed/evaluate_corruptions.ipynb",
        params:
            settings=STUDY.data_settings()
            | settings("corruptions", "corruptions_dir", "corruption_images"),
        threads: workflow.cores
        log:
            RUNS / "logs/evaluate_corruptions.ipynb",
        benchmark:
            RUNS / "benchmarks/evaluate_corruptions.tsv"
        shell:
            "{PAPERMILL} {input.notebook:q} {log:q} -p study {FILE:q} && cp {log:q} {output.executed:q}"


rule analyse:
    input:
        notebook="notebooks/{chapter}.ipynb",
        tables=lambda wildcards: tables_of(wildcards.study),
        paper="results/paper/published.csv",
        code=expand(
            "advlib/{name}.py", name=["annotations", "charts", "metrics", "predictions", "tables"]
        ),
    output:
        executed="_build/studies/{study}/{chapter}.ipynb",
    params:
        file=lambda wildcards: FILES[wildcards.study],
        source=lambda wildcards: SOURCES[wildcards.study],
        n_resamples=lambda wildcards: BY_ID[wildcards.study].n_resamples,
        folder=lambda wildcards: ROOT / "_build/studies" / wildcards.study / "results",
    log:
        "_build/studies/{study}/logs/{chapter}.ipynb",
    benchmark:
        "_build/studies/{study}/benchmarks/{chapter}.tsv"
    shell:
        "{PAPERMILL} {input.notebook:q} {log:q} -p study {params.file:q} -p source {params.source} "
        "-p output {params.folder:q} && cp {log:q} {output.executed:q}"


rule place_study:
    input:
        chapters=lambda wildcards: expand(
            "_build/studies/{study}/{chapter}.ipynb",
            study=wildcards.study,
            chapter=chapters_of(wildcards.study),
        )
        if SOURCES[wildcards.study]
        else [],
        appendix=appendix_of,
        file=lambda wildcards: FILES[wildcards.study],
        code=["book/place.py", "book/pages.py"],
    output:
        "book/generated/{study}/index.md",
    params:
        source=lambda wildcards: SOURCES[wildcards.study],
    run:
        pages.place_pages(BY_ID[wildcards.study], params.source, input.chapters, input.appendix)


rule claims:
    input:
        notebook="notebooks/claims.ipynb",
        paper="results/paper/published.csv",
        code=["book/place.py", "advlib/charts.py", "advlib/metrics.py"],
    output:
        "book/generated/claims.ipynb",
    log:
        "_build/logs/claims.ipynb",
    benchmark:
        "_build/benchmarks/claims.tsv"
    shell:
        "{PAPERMILL} {input.notebook:q} {log:q} && {PYTHON} book/place.py notebook {log} {output} "
        "--source 'The tables printed in the paper, copied into the repository.' "
        "--tables {input.paper}"


rule bring_example:
    input:
        notebook="notebooks/bring_your_own.ipynb",
        tables=expand(
            "results/fashion_mnist_quick/predictions/clean/{method}-seed0.parquet",
            method=["std", "adv"],
        ),
        code=expand("advlib/{name}.py", name=["brought", "charts", "metrics", "predictions"]),
    output:
        "book/generated/bring_your_own.ipynb",
    log:
        "_build/logs/bring_your_own.ipynb",
    benchmark:
        "_build/benchmarks/bring_your_own.tsv"
    shell:
        "{PAPERMILL} {input.notebook:q} {log:q} -p study example -p output _build/brought && "
        "{PYTHON} book/place.py notebook {log} {output} "
        "--source 'The published clean predictions of Std and Adv (quick Fashion-MNIST study), read "
        "as if they were your files.' --tables _build/brought/*.csv"


rule toc:
    input:
        claims="book/generated/claims.ipynb",
        bring="book/generated/bring_your_own.ipynb",
        studies=expand("book/generated/{study}/index.md", study=FILES),
        template="_toc.yml",
    output:
        "_build/toc.yml",
    run:
        pages.write_toc(list(FILES))


rule book:
    input:
        toc="_build/toc.yml",
        pages=[*Path("book").glob("*.md"), "book/references.bib"],
        code=[*Path("advlib").glob("*.py"), *Path("book/_ext").glob("*.py")],
        config=["_config.yml", *Path("book/_static").glob("*")],
    output:
        "_build/html/index.html",
    benchmark:
        "_build/benchmarks/book.tsv"
    shell:
        "rm -rf _build/html _build/.doctrees && {JUPYTER_BOOK} build . --toc {input.toc} --all "
        "-W -n --keep-going -q"


onsuccess:
    pages.report(START, [RUNS, ROOT / "_build"], ".venv-read" if MODE == "read" else ".venv")
