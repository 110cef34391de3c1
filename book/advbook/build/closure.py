"""The files of this project's code that a notebook or a module depends on, by its imports."""

import ast
import functools
import json
from collections.abc import Iterable
from pathlib import Path

from advbook.studies.places import ROOT

HOMES = {"advlib": ROOT, "advbook": ROOT / "book", "pipeline": ROOT}


def code_of(*sources: Path | str) -> list[str]:
    """Paths from the project's root, sorted, of all own modules that the sources import.

    Sources are notebooks, or modules by their dotted name. Imports inside functions count, the
    packages above a module, whose ``__init__`` runs with it, and a style sheet beside a module.
    """
    todo = [name for source in sources for name in _named(source)]
    found: set[Path] = set()
    while todo:
        path = _file(todo.pop())
        if path is not None and path not in found:
            found.add(path)
            todo += _imports(path)
    styles = [path.with_suffix(".css") for path in found]
    return sorted(str(path.relative_to(ROOT)) for path in found.union(filter(Path.is_file, styles)))


def _named(source: Path | str) -> Iterable[str]:
    """The modules that a notebook's cells import, or the one that is named."""
    if not str(source).endswith(".ipynb"):
        return _with_parents(str(source))
    cells = json.loads((ROOT / source).read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    # Lines for IPython alone, such as magics, are no Python.
    lines = [line for line in "\n".join(code).splitlines() if not line.lstrip().startswith("%")]
    return _in("\n".join(lines))


@functools.cache
def _imports(path: Path) -> tuple[str, ...]:
    return tuple(_in(path.read_text(encoding="utf-8")))


def _in(code: str) -> Iterable[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from _with_parents(name)


def _with_parents(name: str) -> Iterable[str]:
    parts = name.split(".")
    if parts[0] in HOMES:
        yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


@functools.cache
def _file(name: str) -> Path | None:
    """The file of a module; None for a name inside one."""
    base = HOMES[name.split(".")[0]].joinpath(*name.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None
