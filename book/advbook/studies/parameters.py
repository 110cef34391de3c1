"""The parameters of a notebook, checked before anything else runs."""

import dataclasses
import types
from pathlib import Path

from advbook.studies.checks import check_choice, refuse_unknown
from advbook.studies.identity import HOW, digest
from advbook.studies.places import STUDIES, named_file
from advbook.studies.schema import Study, load_study, make_study
from advbook.studies.views import BROUGHT, FILES, TRIALS
from advlib.threat import parse_number


def notebook_parameters(namespace: dict, **own) -> tuple[Study, types.SimpleNamespace]:
    """Check a notebook's parameters; call it in the cell after ``parameters``.

    papermill only warns about a name it does not know, and injects every key of a study file into
    every notebook. So each plain value that a notebook holds at this point belongs either to the
    study file's schema or to the notebook's own parameters; any other name is refused.

    ``namespace`` is the notebook's ``globals()``; ``own`` are its own parameters, each with its
    type or its allowed values. Returns the study (its file, with the values injected beside it;
    None for a notebook about none) and the own parameters. Raises ValueError for an unknown name or
    a value that cannot be meant.
    """
    namespace = _assigned_parameters(namespace)
    if isinstance(namespace.get("study"), Study):  # the check runs again, the parameters have not
        namespace |= namespace["study"].to_dict()
    schema = [key.name for key in dataclasses.fields(Study)] if "study" in namespace else []
    given = {k: v for k, v in namespace.items() if k in schema}
    refuse_unknown(set(namespace) - set(schema) - set(own), [*schema, *own])
    chosen = {}
    for name, allowed in own.items():
        value = namespace[name]
        if isinstance(allowed, type):
            if allowed is float:
                value = parse_number(value, name)
            elif not isinstance(value, allowed) or isinstance(value, bool) != (allowed is bool):
                raise ValueError(f"{name} is of type {allowed.__name__}, got {value!r}")
        else:
            check_choice(name, value, tuple(allowed))
        chosen[name] = value
    chosen = types.SimpleNamespace(**chosen)
    if not given:
        return None, chosen
    if "dataset" in given and {"model", "predictions"} & set(given):
        if given["study"] == "":
            return _of_these_files(given), chosen
        return _off_file(make_study(given), _file_of(given["study"])), chosen
    name = given.pop("study")
    study = load_study(name, **given)
    return (_off_file(study, name) if given else study), chosen


def _of_these_files(given: dict) -> Study:
    """A study of brought predictions without an id: its folder is that of its files and settings.

    So neither another file's tables nor those of a run at the same time are taken for these.
    """
    study = make_study(given | {"study": BROUGHT})
    files = {name: str(named_file(path).resolve()) for name, path in study.predictions.items()}
    own = f"{BROUGHT}-{digest(given | {'predictions': files})}"
    title = own if study.title == BROUGHT else study.title
    return dataclasses.replace(study, study=own, title=title)


def _file_of(study_id: str) -> str | Path:
    """The file that papermill was started with (``-f``) for this study, or else that of its id.

    papermill injects values without saying which of them are the file's.
    """
    import psutil  # comes with every kernel
    from papermill.cli import papermill

    parent = psutil.Process().parent()
    command = parent.cmdline() if parent else []
    for at, part in enumerate(command):
        if Path(part).stem == "papermill":
            options = papermill.make_context(part, command[at + 1 :], resilient_parsing=True)
            for file in options.params["parameters_file"] or []:
                if load_study(file).study == study_id:
                    return file
    return STUDIES / f"{study_id}.yaml"


def _off_file(study: Study, name: str | Path) -> Study:
    """The study; under another id if it is not what its file says, that of this id or path.

    So a trial with other values neither overwrites the study's tables nor is taken for them. The
    number of processes and the like (`advbook.studies.identity.HOW`) and the note may differ.
    """
    try:
        filed = load_study(name)
    except FileNotFoundError:
        return study
    values, known = study.to_dict(), filed.to_dict()
    changed = {k: v for k, v in values.items() if k not in (*HOW, "note") and v != known[k]}
    if not changed:
        return study
    study = dataclasses.replace(study, study=f"{study.study}-{digest(changed)}")
    TRIALS.add(study.study)
    FILES[study.study] = FILES.get(filed.study, filed.study)
    print(
        f"Other values than the study file's ({', '.join(changed)}): runs lie in {study.runs.name}"
    )
    return study


def _assigned_parameters(namespace: dict) -> dict:
    """The values that the parameters cells set, also when the notebook has run further since."""
    cells = []
    for source in reversed(namespace.get("In", [])):
        if source.lstrip().startswith("# Parameters"):
            cells.append(source)
        elif cells:  # an older version of them
            break
    names = {name for source in cells for name in compile(source, "", "exec").co_names}
    if not cells:
        names = set(namespace) - {"In", "Out"}
    return {k: namespace[k] for k in names if not k.startswith("_") and k in namespace}
