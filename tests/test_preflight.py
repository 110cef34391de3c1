import collections

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


def test_folders_that_cannot_be_read(monkeypatch, tmp_path):
    monkeypatch.setenv("ADVLIB_DATA", str(tmp_path / "nothing"))
    assert "ADVLIB_DATA names" in preflight.problem("read")
    monkeypatch.setenv("ADVLIB_DATA", str(tmp_path))
    assert preflight.problem("read") is None
