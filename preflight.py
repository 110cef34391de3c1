"""Say what is missing before any long work starts. Runs on any Python, needs nothing installed."""

import os
import shutil
import sys

NEEDED_GB = {"book": 8, "read": 2}  # torch for CUDA and its libraries take most of it


def problem(purpose):
    """One sentence that names what is missing and how to mend it, or None."""
    if sys.version_info < (3, 11):
        found = "%d.%d" % sys.version_info[:2]
        return (
            "Python 3.11 or newer is needed and %s is Python %s: install a newer one and say "
            "`make PYTHON=python3.12 ...`." % (sys.executable, found)
        )
    free = shutil.disk_usage(os.getcwd()).free / 1e9
    if not os.path.isdir(".venv") and free < NEEDED_GB[purpose]:
        return "%d GB of free disk are needed for the packages and %.1f GB are free in %s: free some." % (
            NEEDED_GB[purpose],
            free,
            os.getcwd(),
        )
    for name in ("ADVLIB_DATA", "ADVLIB_RUNS"):
        folder = os.environ.get(name)
        if not folder:
            continue
        if name == "ADVLIB_RUNS" and not os.path.exists(folder):
            continue
        if not os.path.isdir(folder) or not os.access(folder, os.R_OK | os.X_OK):
            return "%s names %s, which is not a readable folder: mend the path or unset it." % (
                name,
                folder,
            )
    return None


if __name__ == "__main__":
    said = problem(sys.argv[1])
    if said:
        sys.exit("Cannot start: " + said)
