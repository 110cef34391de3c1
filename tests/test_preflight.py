import collections
import os

import pytest

from pipeline import preflight


def test_an_old_python_is_named(monkeypatch):
    monkeypatch.setattr(preflight.sys, "version_info", (3, 9, 2))
    said = preflight.problem("book")
    assert "Python 3.11 or newer" in said and "is 3.9" in said and "PYTHON=" in said


def test_a_full_disk_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage(1.5e9))
    assert "8 GB of disk and 1.5 GB are free" in preflight.problem("book")
    (tmp_path / ".venv").mkdir()
    assert preflight.problem("book") is not None  # an installation that was cut off
    (tmp_path / ".venv" / "installed").touch()
    assert preflight.problem("book") is None  # already installed
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage(0.2e9))
    assert "and 0.2 GB are free there" in preflight.problem("book")


def test_folders_that_cannot_be_read(monkeypatch, tmp_path):
    monkeypatch.setenv("ADVLIB_DATA", str(tmp_path / "nothing"))
    assert "ADVLIB_DATA names" in preflight.problem("read")
    monkeypatch.setenv("ADVLIB_DATA", str(tmp_path))
    assert preflight.problem("read") is None


@pytest.mark.parametrize("name", ["a:b", "a\nb", b"a\xe4b"])
def test_a_folder_that_cannot_hold_an_environment_is_named(monkeypatch, tmp_path, name):
    folder = os.path.join(os.fsencode(tmp_path), os.fsencode(name))
    os.mkdir(folder)
    monkeypatch.chdir(folder)
    assert "rename the folder" in preflight.problem("read")


@pytest.mark.parametrize("name", ["my project ü", "[a] {b}", 'o\'neil & "co"', "$HOME #%; \\n"])
def test_any_other_folder_will_do(monkeypatch, tmp_path, name):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    assert preflight.problem("read") is None


def test_runs_that_cannot_be_kept_are_named_before_anything_is_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("ADVLIB_RUNS", str(tmp_path / "new" / "runs"))
    assert preflight.problem("book") is None
    (tmp_path / "new").touch()
    said = preflight.problem("book")
    assert f"{tmp_path / 'new'} cannot be written to" in said and "ADVLIB_RUNS" in said
    assert preflight.problem("read") is None  # reading makes no runs
