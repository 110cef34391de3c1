"""What `make lab` adds to JupyterLab: the project's notebooks stay sources when they are saved."""

import subprocess
from pathlib import Path


def without_outputs(model: dict, path: str, contents_manager, **_) -> None:
    """A pre-save hook: a notebook that git tracks is saved without its outputs.

    They stay on the page. A copy under another name, or any notebook outside git, keeps its own.

    Parameters
    ----------
    model : dict
        What is about to be saved; changed in place.
    path : str
        Of the notebook, from the folder that is served.
    contents_manager : jupyter_server.services.contents.manager.ContentsManager
    """
    if model["type"] != "notebook" or not _tracked(Path(contents_manager.root_dir) / path):
        return
    notebook = model["content"]
    notebook["metadata"].pop("widgets", None)
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
