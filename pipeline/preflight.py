"""Say what is missing before any long work starts. Runs on any Python 3, with no package."""

import importlib.util
import os
import shutil
import sys

RUNS_GB = 1  # the least; `make plan` says what a study takes
NEEDED_GB = {"book": 8, "read": 2}  # torch for CUDA and its libraries take most of it


def problem(purpose):
    """One sentence that names what is missing and how to mend it, or None."""
    if sys.version_info < (3, 11):
        found = ".".join(map(str, sys.version_info[:2]))
        return (
            f"Python 3.11 or newer is needed and {sys.executable} is {found}: install a newer one "
            "and name it, as in `make PYTHON=python3.12 book`."
        )
    if importlib.util.find_spec("ensurepip") is None:
        return (
            f"{sys.executable} cannot make virtual environments: install the package python3-venv, "
            "or name another Python, as in `make PYTHON=python3.12 book`."
        )
    here = os.getcwd()
    if os.pathsep in here or "\n" in here or here != here.encode("utf-8", "ignore").decode():
        return (
            f"{here!r} has a sign in its name that an environment of Python cannot hold (a "
            f"{os.pathsep}, the end of a line, or one that is not UTF-8): rename the folder."
        )
    free, needed = shutil.disk_usage(os.getcwd()).free / 1e9, NEEDED_GB[purpose]
    folder = ".venv" if purpose == "book" else ".venv-read"
    if not os.path.exists(os.path.join(folder, "installed")) and free < needed:
        return (
            f"the packages need {needed} GB of disk and {free:.1f} GB are free in {os.getcwd()}: "
            "free some, or clone the project onto a larger disk."
        )
    folder = os.path.expanduser(os.environ.get("ADVLIB_DATA") or "")
    if folder and not (os.path.isdir(folder) and os.access(folder, os.R_OK | os.X_OK)):
        return f"ADVLIB_DATA names {folder}, which is not a readable folder: mend or unset it."
    if purpose == "book":
        return unwritable(os.environ.get("ADVLIB_RUNS") or "runs")
    return None


def unwritable(runs):
    """One sentence if fresh runs could not be kept in this folder, or None."""
    there = os.path.abspath(os.path.expanduser(runs))
    while not os.path.exists(there):
        there = os.path.dirname(there)
    why = f"{there} cannot be written to"
    if os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK):
        free = shutil.disk_usage(there).free / 1e9
        if free > RUNS_GB:
            return None
        why = f"{free:.1f} GB are free there"
    return f"runs are kept in {runs} and {why}: mend that, or name another folder in ADVLIB_RUNS."


if __name__ == "__main__":
    said = problem(sys.argv[1])
    if said:
        sys.exit(f"Cannot start: {said}")
