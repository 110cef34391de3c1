"""What `make lab` adds to JupyterLab: the project's notebooks stay sources when they are saved."""

import json
import subprocess
from pathlib import Path


def without_outputs(model: dict, path: str, contents_manager, **_) -> None:
    """A pre-save hook: a notebook that git tracks is saved without its outputs and kernel.

    They stay on the page. A copy under another name, or any notebook outside git, keeps its own.
    ``model`` is what is about to be saved, changed in place; the path is from the folder that is
    served.
    """
    file = Path(contents_manager.root_dir) / path
    if model["type"] != "notebook" or not _tracked(file):
        return
    notebook = model["content"]
    # JupyterLab adds the widgets' state and the reader's kernel.
    notebook["metadata"] = json.loads(file.read_text(encoding="utf-8"))["metadata"]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
            cell["metadata"].pop("execution", None)  # times, if the reader records them


def _tracked(path: Path) -> bool:
    known = ["git", "ls-files", "--error-unmatch", path.name]
    try:
        return subprocess.run(known, cwd=path.parent, capture_output=True).returncode == 0
    except OSError:
        return False  # no git: nothing to keep clean
