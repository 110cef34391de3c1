"""The library by itself: what it declares, how thin it stays, and that it runs without the rest."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "advlib").rglob("*.py"))
BOOK = sorted((ROOT / "book/advbook").rglob("*.py"))
PACKAGES = {"PIL": "pillow", "cv2": "opencv-python-headless", "sklearn": "scikit-learn"}
PACKAGES |= {"imagecorruptions": "imagecorruptions-imaug", "imagenet_x": "imagenet-x"}

# What may not grow. The aim is 6,000 and 7,000 lines: lower these; a raise says why.
LINES = {"advlib": 8331, "book/advbook": 7902}


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("folder", LINES)
def test_the_house_does_not_grow(folder):
    assert sum(lines(path) for path in (ROOT / folder).rglob("*.py")) <= LINES[folder]


def test_modules_and_functions_stay_short():
    for path in MODULES:
        name = str(path.relative_to(ROOT / "advlib"))
        assert lines(path) <= 300, name
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = node.end_lineno - body[0].lineno + 1 if body else 0
                assert length <= 60, f"{name}: {node.name}"
                arguments = {a.arg for a in [*node.args.args, *node.args.kwonlyargs]}
                assert "study" not in arguments, f"{name}: {node.name} knows a study"


def test_the_library_names_no_folder_of_the_repository():
    for path in MODULES:
        assert not re.search(r"\bROOT\b|notebooks/|results/", path.read_text()), path


def test_all_that_is_imported_is_declared():
    """With `pip install .` elsewhere nothing is missing but what an extra brings."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = set(project["dependencies"])
    extra = {name for names in project["optional-dependencies"].values() for name in names}
    for path in MODULES:
        tree = ast.parse(path.read_text())
        top = {node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else None
            for name in names or [alias.name for alias in node.names]:
                package = name.split(".")[0]
                if package not in sys.stdlib_module_names | {"advlib"}:
                    known = needed if node in top else needed | extra
                    assert PACKAGES.get(package, package) in known, f"{path}: {package}"


def test_public_names_are_there():
    import advlib

    assert all(getattr(advlib, name) is not None for name in advlib.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = advlib.nonesuch


def test_the_wheel_runs_the_example_without_the_repository(tmp_path):
    """What the reference shows, from an installed wheel that lies beside its dependencies alone."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = tmp_path / "source"  # pip leaves its work beside what it builds
    shutil.copytree(ROOT / "advlib", source / "advlib")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    place = tmp_path / "site"
    install = [*pip, "install", "--no-deps", "--no-build-isolation", "--no-index"]
    # pip builds a wheel of the folder, and installs that.
    subprocess.run([*install, "--target", place, source], check=True, cwd=tmp_path)
    code = (ROOT / "book/reference.md").read_text().split("```python\n")[1].split("```")[0]
    first = (
        f"import sys; sys.path[:0] = [{str(place)!r}]; sys.path[:] = "
        f"[p for p in sys.path if not p.startswith({str(ROOT)!r}) or 'site-packages' in p]\n"
    )
    after = (
        f"assert advlib.__file__.startswith({str(place)!r}), advlib.__file__\n"
        "from advlib.data.fetch import DATA\n"
        f"assert str(DATA) == {str(tmp_path / 'cache/advlib/data')!r}\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", first + code + after],
        cwd=tmp_path,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "PGD-40, L∞, ε = 0.1" in done.stdout and "sd_noise_corrected" in done.stdout
    error = float(re.search(r"error +(0\.\d+)", done.stdout)[1])
    assert error < 0.6  # trained and attacked: chance is 0.9
