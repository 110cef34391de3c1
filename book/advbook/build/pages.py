"""Which studies the book shows, from which tables, and what the first page of each says."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pandas as pd

from advbook.build.place import GENERATED, expand_toc, place_study
from advbook.claims.front import given_name, shown_path
from advbook.commands import plainly
from advbook.studies.identity import HOW
from advbook.studies.places import ROOT, STUDIES, find_study, tables_folder
from advbook.studies.results import titled
from advbook.studies.schema import Study, load_study
from advbook.studies.tables import (
    AUDIT,
    SAMPLES,
    audit_paths,
    audit_tables,
    samples_table,
    study_tables,
    table_paths,
)
from advbook.studies.views import condition_of
from advbook.text import as_code, as_typed, note_html, one_line
from advlib.recipes import RECIPES

DEFAULT = "fashion_mnist_quick"
CHAPTERS = {  # of a study, by the notebook that makes it
    "training": "training",
    "average_error": "average error (Table 1)",
    "gallery": "what an attack looks like",
    "classwise_error": "class-wise error (Table 2, Figure 1)",
    "corruptions": "corruptions (Figure 2)",
    "factors": "factors (Figures 3 and 4)",
    "evaluate_real": "ImageNet-ReaL",
    "evaluate_imagenet_x": "ImageNet-X",
    "hard_classes": "hard classes",
    "groups": "groups of classes",
    "class_explorer": "one class at a time",
    "ablations": "controls and ablations",
    "ledger": "how much depends on the threat model",
    "battery": "is it really robust",
}
READS = {  # the benchmarks whose predictions a chapter reads; all of them if it is not named here
    "training": (),
    "gallery": (),
    "corruptions": ("clean", "corruptions"),
    **dict.fromkeys(("factors", "evaluate_real", "evaluate_imagenet_x"), ("clean",)),
}
SPLITS = ("train", "test", "holdout")
LARGE = 5_000_000  # bytes: larger checkpoints are not published, larger tables not offered
NOT_OURS = ("imagenet", "folder")  # data sets whose images may not be free to be published


def from_root(path: Path) -> str:
    """A path as the pipeline gives it: from the project's root where it lies inside.

    Pages show `advbook.claims.front.shown_path`.
    """
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def is_current(study: Study, folder: Path, part: str | None = None) -> bool:
    """Whether a folder holds every table of a study, made with the study's present settings.

    With `part`, those of a part of its audit, or its "samples". Raises OSError for a broken file.
    """
    return not _outdated(study, folder, part)


def _outdated(study: Study, folder: Path, part: str | None) -> str:
    """Why `is_current` is false; empty if it is true."""
    try:
        if part is None:
            study_tables(study, folder)
        elif part == "samples":
            samples_table(study, folder)
        else:
            audit_tables(study, folder, part)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return ""


def left_out() -> list[str]:
    """Why published tables that are there are not in the book: a sentence a study and part."""
    reasons = []
    for file in sorted(STUDIES.glob("*.yaml")):
        study = load_study(file)
        folder = study.published
        for part in (None, "samples", *study.audits):
            if part is None:
                paths = [path for path, key in table_paths(study, folder).items() if key]
            elif part == "samples":
                paths = [folder / SAMPLES]
            else:  # an ablation's tables stand among the methods' own, but for its training log
                paths = audit_paths(study, folder, part)
                paths = [p for p, key in paths.items() if part != "ablations" or not key]
            if any(path.is_file() for path in paths) and (why := _outdated(study, folder, part)):
                reasons.append(f"Not in the book, {study.title}, {part or 'all chapters'}: {why}.")
    return reasons


def check_ids(one: tuple[Study, str], other: tuple[Study, str]) -> None:
    """Refuse two study files with one id: each would write over the other's runs and tables.

    A copy elsewhere with the same settings stays allowed: it is the same study (`pipeline.plan`).
    """
    (study, file), (known, place) = one, other
    if study.study != known.study or file == place:
        return
    ignored = (*HOW, "note")  # what `advbook.studies.parameters` lets differ, too
    settings = [{k: v for k, v in s.to_dict().items() if k not in ignored} for s in (study, known)]
    within = all((ROOT / path).parent == STUDIES for path in (file, place))
    if within or settings[0] != settings[1]:
        raise ValueError(
            f"{file} and {place} both say `study: {study.study}`, so one would write over the "
            "other's runs and tables: give one of them another id."
        )


def studies_of_book(running: str | None) -> list[tuple[Study, str, str | None]]:
    """Every study, the file it comes from, and the tables its pages read.

    Parameters
    ----------
    running : str or None
        The file of the study that is being run: it shows fresh tables. None: only reading.

    Returns
    -------
    list of (Study, file, "fresh" or "committed" or None)
        The running study first, then those with tables, the ones with the most seeds before
        others, then those that were not run here.

    Raises
    ------
    ValueError
        If two studies have the same title, or two files the same id (`check_ids`).
    """
    files = [STUDIES / f"{DEFAULT}.yaml", *sorted(STUDIES.glob("*.yaml"))]
    if running is not None:
        files.insert(0, find_study(running))
    found = {}
    for file in files:
        study = load_study(file)
        if study.study in found:
            check_ids((study, from_root(file)), found[study.study][:2])
            continue
        source = None
        if running is not None and file == files[0]:
            source = "fresh"
        elif running is not None and is_current(study, study.runs):
            source = "fresh"
        elif is_current(study, study.published):
            source = "committed"
        found[study.study] = (study, from_root(file), source)
    titles = {}
    for study, file, _ in found.values():
        if (other := titles.setdefault(one_line(study.title), file)) != file:
            raise ValueError(
                f"{other} and {file} have the same title, {study.title!r}: change the title in one "
                "of them, since pages tell studies apart by it."
            )
    own = next(iter(found)) if running is not None else None

    def rank(entry):
        study, _, source = entry
        return source is None, study.study != own, -len(study.seeds) if source else 0

    return sorted(found.values(), key=rank)


def audit_sources(study: Study, running: bool | None) -> dict[str, str | None]:
    """For each chapter of the audit, the tables that it reads: "fresh", "committed" or None.

    Apart from the study's other chapters: an audit takes an hour, so that a fresh run of the study
    may stand beside the committed audit of an earlier one. Each page says what it shows.

    Parameters
    ----------
    study : Study
    running : bool or None
        Whether the audit is being run: its chapters show fresh tables. None: only reading.
    """
    places = {} if running is None else {"fresh": study.runs}
    places |= {"committed": study.published}
    sources = {}
    for part in study.audits:
        sources[part] = "fresh" if running else None
        for source, folder in places.items():
            if sources[part] is None and is_current(study, folder, part):
                sources[part] = source
    return sources


def gallery_source(study: Study, source: str | None, running: bool) -> str | None:
    """The tables that the study's gallery reads: those of its other chapters, or None.

    Apart from these: a study is shown without a gallery where there are no samples, since images
    may not be published (`NOT_OURS`) or were not kept.

    Parameters
    ----------
    study : Study
    source : "fresh", "committed" or None
        Of the other chapters.
    running : bool
        Whether the study is being run: its samples are made.
    """
    if source is None or study.predictions:
        return None
    return source if running or is_current(study, tables_folder(study, source), "samples") else None


def place_pages(
    study: Study,
    source: str | None,
    audit: dict,
    chapters: list,
    appendix: list,
    file: str,
    read: dict[str, list[Path]],
) -> None:
    """Place a study's pages under ``book/generated``.

    Parameters
    ----------
    study, file
        The study and the file it comes from.
    source, audit
        As `studies_of_book` and `audit_sources` return them.
    chapters, appendix
        Executed notebooks.
    read
        The tables that each chapter depends on, by its name.
    """
    study, name = titled(study, source), given_name(study, file)
    pictures = source is None or any(Path(path).stem == "gallery" for path in chapters)
    own = {part: _audit_text(name, known, source) for part, known in audit.items() if known}
    place_study(
        chapters,
        appendix=appendix,
        study_id=study.study,
        study_title=study.title,
        source=_source_text(study, name, source, bool(own)),
        sources=own,
        read=read,
        made_by={part: _made_by(study, file, part) for part in read},
        seeds=len(study.seeds) if study.trained else 0,
        summary=_summary(study, name, source, audit, pictures),
        files=_tables(study, read),
        tables=ROOT / "_build/studies" / study.study / "results",
    )


def _source_text(study: Study, name: str, source: str | None, audited: bool) -> str:
    return _source_sentence(name, source, audited) + (
        f" **The images are a copy of the official ones: {as_typed(study.title)}** "
        "({term}`what that means <JPEG copy>`)."
        if study.title.endswith("copy)")
        else ""
    )


def _source_sentence(name: str, source: str | None, audited: bool) -> str:
    command = as_code(f"make book STUDY={name}")
    if source == "fresh":
        return f"A fresh run of this study on the machine that built this book ({command})."
    if source == "committed":
        return (
            "Committed tables: this study was not run on the machine that built this book. "
            f"{command} runs it afresh."
        )
    if audited:
        return (
            "**This study has not been run here**, but parts of its audit have: they are below. "
            f"{command} runs it."
        )
    return (
        f"**This study has not been run here**, and no table of it is committed. {command} runs it."
    )


def read_by(chapter: str, tables: list[Path]) -> list[Path]:
    """Of the tables that a chapter depends on, those that it reads."""
    if chapter not in READS:
        return list(tables)
    kept = [
        p
        for p in tables
        if p.parent.parent.name != "predictions" or p.parent.name in READS[chapter]
    ]
    return [p for p in kept if p.parent.name != "train" or chapter == "training"]


def _tables(study: Study, read: dict[str, list[Path]]) -> str:
    """The tables that the study's pages read, as Markdown: each once, to be downloaded."""
    groups = {}
    for path in dict.fromkeys(path for paths in read.values() for path in paths):
        folder = study.runs if path.is_relative_to(study.runs) else study.published
        name = path.relative_to(folder)
        link = f"`{name.name}`"
        if path.is_relative_to(ROOT) and path.is_file() and path.stat().st_size < LARGE:
            link = f"{{download}}`{name.name} </{path.relative_to(ROOT)}>`"
        groups.setdefault(str(name.parent), []).append(link)
    if not groups:
        return ""
    rows = [
        f"| {'' if group == '.' else as_typed(group)} | {' · '.join(groups[group])} |"
        for group in groups
    ]
    return "\n".join(
        [
            f"({study.study}-sec-tables)=\n## The tables behind these pages\n",
            "One row an image and condition (Parquet); training logs are CSV, and what the "
            "images are is JSON. The file's own facts name its network, images, threat model and "
            "versions.\n",
            ":::{admonition} Show the files",
            ":class: dropdown run-yourself\n",
            "| folder | tables |",
            "|---|---|",
            *rows,
            ":::",
        ]
    )


def _made_by(study: Study, file: str, chapter: str) -> str:
    """What makes the tables that a chapter reads, command by command, as Markdown."""
    which = f"{{ref}}`the tables that it reads <{study.study}-sec-tables>`"
    path = shlex.quote(shown_path(file))
    if study.predictions:
        command = f"papermill notebooks/bring_your_own.ipynb out.ipynb -f {path}"
        return f"This makes {which}:\n\n```bash\n{command}\n```"

    def run(notebook, *options):
        command = f"papermill notebooks/{notebook}.ipynb out.ipynb -p study {path}"
        return " ".join([command, *options])

    def each(names, seeds, *lines):
        head = f"for method in {' '.join(names)}; do for seed in {' '.join(map(str, seeds))}; do"
        return [head, *(f"  {line}" for line in lines), "done; done"] if names and lines else []

    one, first = ("-p method $method", "-p seed $seed"), study.seeds[:1]
    lines = [run("data"), *each(study.methods, study.seeds, run("train", *one))]
    if chapter == "ablations":
        lines += each(study.ablations, first, run("train", *one))
        lines += [run("evaluate_clean"), run("evaluate_clean", "-p ablations_only True")]
        attack = run("evaluate_pgd", *one, "-p attack pgd40")
        lines += each([*study.methods, *study.ablations], first, attack)
    elif chapter in AUDIT:
        more = study.ablations if chapter == "ledger" else {}
        lines += each(more, first, run("train", *one))
        lines += each([*study.methods, *more], first, run(f"evaluate_{chapter}", *one))
    else:
        benchmarks = READS.get(chapter, study.benchmarks)
        lines += [run("evaluate_clean")] if "clean" in benchmarks else []
        attacks = [name for name in study.attacks if name in benchmarks]
        attack = [run("evaluate_pgd", *one, f"-p attack {name}") for name in attacks]
        lines += each(study.methods, study.seeds, *attack)
        corrupted = "corruptions" in benchmarks and study.corruptions != "none"
        lines += [run("evaluate_corruptions")] if corrupted else []
        lines += [run("evaluate_samples")] if chapter == "gallery" else []
    command = as_code(
        f"make {'audit' if chapter in AUDIT else 'book'} STUDY={given_name(study, file)}"
    )
    text = "\n".join(lines)
    return (
        f"{command} makes {which} and this book. One by one, with torch (`.venv`):\n\n"
        f"```bash\n{text}\n```"
    )


def _audit_text(name: str, source: str, others: str | None) -> str:
    command = as_code(f"make audit STUDY={name}")
    if source == "fresh":
        return f"A fresh audit on the machine that built this book ({command})."
    text = f"Committed tables of an audit that was not run on this machine; {command} runs it."
    if others == "fresh":
        text += (
            " **The other chapters show a fresh run**: other networks, trained by the same "
            "settings, whose errors differ by some tenths of a point."
        )
    return text


def _summary(study: Study, name: str, source: str | None, audit: dict, pictures: bool) -> str:
    """The study's settings and its cost, as Markdown; `pictures`: its gallery is not missing."""
    names = ", ".join(map(as_typed, study.names.values()))
    absent = [f"* {CHAPTERS[part]}: {reason}" for part, reason in study.unavailable.items()]
    if not pictures and "gallery" not in study.unavailable:
        absent.append(
            f"* {CHAPTERS['gallery']}: no samples are published; "
            f"{as_code(f'make book STUDY={name}')} makes them, with a run of your own"
        )
    absent += [
        f"* {CHAPTERS[part]}: not run; {as_code(f'make audit STUDY={name}')} runs it"
        for part, known in audit.items()
        if known is None
    ]
    absent = "\n\n**Chapters that are not here**\n\n" + "\n".join(absent) if absent else ""
    if study.predictions:
        files = ", ".join(as_typed(Path(path).name) for path in study.predictions.values())
        conditions = [condition_of(study, benchmark) for benchmark in study.benchmarks]
        rows = {"Models": names, "Predictions": files, "Benchmarks": ", ".join(conditions)}
        return _opening(study, rows) + absent
    images = {key: f"{n:,}" if (n := getattr(study, f"{key}_images")) else "all" for key in SPLITS}
    rows = {
        "Data": f"{study.dataset}, {images['train']} training and {images['test']} test images",
        "{term}`Network <network name>`": as_typed(study.model)
        + (f", pretrained weights {_weights_shown(study)}" if study.weights else "")
        + (
            f", {study.pretrain_epochs} clean epochs first, learning rate {study.pretrain_lr:g}"
            if study.pretrain_epochs
            else ""
        ),
        "Methods": names,
        "Fine-tuning": f"{study.epochs} epochs, batches of {study.batch_size}, SGD with momentum "
        f"{study.momentum:g}, learning rate {study.lr:g} with cosine annealing, weight decay "
        f"{study.weight_decay:g}",
        "Augmentation": study.augment.replace("_", " "),
        "Attack in training": str(study.train_threat),
        "Label augmentation": f"δ = {study.delta:g}, M = {study.num_transforms}",
        "Seeds": ", ".join(map(str, study.seeds)),
    }
    if not study.trained:
        for key in (
            "Fine-tuning",
            "Augmentation",
            "Attack in training",
            "Label augmentation",
            "Seeds",
        ):
            del rows[key]
        held_out = study.evaluation_split == "holdout"
        rows["Data"] = f"{study.dataset}, {images['holdout' if held_out else 'test']} " + (
            "training images" if held_out else "test images"
        )
        files = [as_typed(Path(path).name) for path in study.checkpoints.values()]
        rows["Weights"] = ", ".join(files)
    rows |= {f"Attack {attack}": condition_of(study, attack) for attack in study.attacks}
    if study.corruptions != "none":
        rows["Corruptions"] = f"15 at 5 severities, {study.corruptions}, of " + (
            f"{study.corruption_images:,} of these images"
            if study.corruption_images
            else "all images"
        )
    text = _opening(study, rows)
    if not study.trained:
        return text + absent
    seeds = "one seed" if len(study.seeds) == 1 else f"{len(study.seeds)} seeds"
    attacked = sum(RECIPES[m].adversarial for m in study.methods if m in RECIPES)
    text += (
        "\n\n**What it costs**, in forward passes for one image ({doc}`What it costs <../cost>`). "
        f"An epoch takes {RECIPES['std'].passes(0)} of them for Std, "
        f"{RECIPES['adv'].passes(study.train_steps)} for an adversarial method and "
        f"{RECIPES['adv_mix'].passes(study.train_steps)} with mixed batches; PGD-40 at most 82. "
        f"{attacked} of the {len(study.methods)} methods here are adversarial, each with {seeds}. "
        f"{as_code(f'make plan STUDY={name}')} predicts the time on your machine."
    )
    if source is None and study.dataset == "imagenet":
        text += (
            "\n\n**The paper's own figures** for ImageNet, no run of this project, are in "
            "{doc}`../claims`."
        )
    return text + absent


def _opening(study: Study, rows: dict[str, str]) -> str:
    """The question of a study's first page, where its answer is, its settings and its note."""
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    question = (
        f"**The question.** What do {len(study.methods)} networks make of the same images"
        if len(study.methods) > 1
        else "**The question.** What does this network make of these images"
    )
    return "\n".join(
        [
            f"{question}, on average and class by class, clean, attacked and corrupted? "
            "All errors of all studies stand in one table: {doc}`../study_index`. What they say of "
            "the paper's claims: {doc}`../verdict`.\n",
            "| setting | value |",
            "|---|---|",
            *lines,
            *(["", "````{raw} html", note_html(study.note), "````"] if study.note else []),
        ]
    )


def _weights_shown(study: Study) -> str:
    """What the pretrained weights are: their name, or the path of their file."""
    path = Path(study.weights)
    return as_typed(shown_path(path) if path.suffix else path)


def write_toc(studies: list[str]) -> None:
    """The table of contents for these studies; pages of any other are removed."""
    for folder in GENERATED.iterdir():
        if (folder / "index.md").is_file() and folder.name not in studies:
            shutil.rmtree(folder)
    expand_toc(studies=studies)


def report(start: float, folders: list[Path], environment: str) -> None:
    """Say where the book is and how long each step took."""
    files = [p for folder in folders for p in folder.glob("**/benchmarks/*.tsv")]
    files = sorted((p for p in files if p.stat().st_mtime > start), key=lambda p: p.stat().st_mtime)
    installed = ROOT / environment / "install-seconds"
    if installed.is_file() and installed.stat().st_mtime > start - 600:
        print(f"{float(installed.read_text()):8.0f} s  install")
    for path in dict.fromkeys(files):
        seconds = pd.read_csv(path, sep="\t").s.sum()
        print(f"{seconds:8.0f} s  {path.stem}")
    print(f"The book: {ROOT / '_build/html/index.html'}")


def publish(name: str) -> None:
    """Copy a study's fresh tables to ``results/<study>``: those of its run, its audit, or both.

    Each of these is published whole or not at all, and none that is published is lost. The weights
    of the methods' first seed go with them, if they are small; so do samples of images that may be
    published (those of `NOT_OURS` stay).
    """
    study = load_study(name)
    own = STUDIES / f"{study.study}.yaml"
    if own.is_file():
        check_ids((study, from_root(find_study(name))), (load_study(own), from_root(own)))
    paths, missing, parts = [], [], [None, *study.audits]
    if study.dataset in NOT_OURS:
        print(f"{SAMPLES} stays here: images of {study.dataset} may not be free to be published")
    elif not study.predictions:
        parts.append("samples")
    for part in parts:
        try:
            if part is None:
                study_tables(study, study.runs)
                paths += table_paths(study, study.runs)
            elif part == "samples":
                path, _ = samples_table(study, study.runs)
                paths += [study.runs / "data.json", path]
            else:
                audit_tables(study, study.runs, part)
                paths += [study.runs / "data.json", *audit_paths(study, study.runs, part)]
        except (FileNotFoundError, ValueError) as error:
            missing.append(str(error))
            if is_current(study, study.published, part):
                sys.exit(f"Nothing is published, for published tables would be lost: {error}")
    if not paths:
        sys.exit(f"Nothing is published: {missing[0]}")
    partial = study.published.with_name(f".{study.study}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # Which network each table is of is checked against the facts of its training.
    runs = {path.stem for path in paths if path.suffix == ".parquet"}
    paths += [study.runs / "train" / f"{run}.json" for run in runs]
    paths += [path for path in _weights(study, study.runs) if path.stat().st_size < LARGE]
    for path in dict.fromkeys(path for path in paths if path.is_file()):
        target = partial / path.relative_to(study.runs)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    old = partial.with_suffix(".old")
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
    weights = _weights(study, study.published)
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


def _weights(study: Study, folder: Path) -> list[Path]:
    """The checkpoints of the methods' first seed in ``runs/<study>`` or ``results/<study>``."""
    runs = [folder / "train" / f"{method}-seed{study.seeds[0]}.json" for method in study.trained]
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in runs if path.is_file()]
    paths = [folder / "models" / run["folder"] / "checkpoint.safetensors" for run in facts]
    return [path for path in paths if path.is_file()]


def place() -> None:
    """Place the pages that the standard input names, as JSON: it may be longer than a command."""
    told = json.load(sys.stdin)
    read = {c: read_by(c, [ROOT / p for p in paths]) for c, paths in told.pop("read").items()}
    place_pages(load_study(told["file"]), **told, read=read)


if __name__ == "__main__":
    known = {"publish": publish, "restore": restore, "place": place}
    known["toc"] = lambda *studies: write_toc(list(studies))
    with plainly("pages.py"):
        known[sys.argv[1]](*sys.argv[2:])
