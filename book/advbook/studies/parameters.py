"""The parameters of a notebook, checked before anything else runs."""

import dataclasses
import types

from advbook.studies.schema import (
    HOW,
    Study,
    check_choice,
    digest,
    load_study,
    make_study,
    refuse_unknown,
)


def notebook_parameters(namespace: dict, **own) -> tuple[Study, types.SimpleNamespace]:
    """Check a notebook's parameters; call it in the cell after ``parameters``.

    papermill only warns about a name it does not know, and injects every key of a study file into
    every notebook. So each plain value that a notebook holds at this point belongs either to the
    study file's schema or to the notebook's own parameters; any other name is refused.

    Parameters
    ----------
    namespace : dict
        The notebook's ``globals()``.
    **own
        The notebook's own parameters and the type or the allowed values of each.

    Returns
    -------
    (Study or None, SimpleNamespace)
        The study (its file, with the values injected beside it; None for a notebook about none),
        and the own parameters.

    Raises
    ------
    ValueError
        For an unknown name or a value that cannot be meant.
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
            if not isinstance(value, allowed) or isinstance(value, bool) != (allowed is bool):
                raise ValueError(f"{name} is of type {allowed.__name__}, got {value!r}")
        else:
            check_choice(name, value, tuple(allowed))
        chosen[name] = value
    chosen = types.SimpleNamespace(**chosen)
    if not given:
        return None, chosen
    if "dataset" in given and {"model", "predictions"} & set(given):
        return _off_file(make_study(given)), chosen
    name = given.pop("study")
    study = load_study(name, **given)
    return (_off_file(study) if given else study), chosen


def _off_file(study: Study) -> Study:
    """The study; under another id if it is not what the file of its id says.

    So a trial with other values neither overwrites the study's tables nor is taken for them. The
    number of processes and the like (`advbook.studies.schema.HOW`) may differ, and so may the note.
    """
    try:
        filed = load_study(study.study)
    except FileNotFoundError:
        return study
    values, known = study.to_dict(), filed.to_dict()
    changed = {k: v for k, v in values.items() if k not in (*HOW, "note") and v != known[k]}
    if not changed:
        return study
    study = dataclasses.replace(study, study=f"{study.study}-{digest(changed)}")
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
