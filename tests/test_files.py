"""Files that several processes write, and that a kill leaves half written."""

import os
import subprocess
import sys
import time

import pytest

from advbook.studies.schema import ROOT
from advlib.files import replacing

WRITE = """
import sys
from advlib.files import replacing
with replacing(sys.argv[1]) as partial:
    partial.write_text(sys.argv[2] * 1000)
    print("half", flush=True)
    sys.stdin.read()
"""


def write(path, letter) -> subprocess.Popen:
    """A process that has written half of a file, and waits for its input to end."""
    pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
    command = [sys.executable, "-c", WRITE, path, letter]
    process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    assert process.stdout.readline() == "half\n"
    return process


def test_two_that_write_one_file_each_write_it_whole(tmp_path):
    path = tmp_path / "table.csv"
    first, second = write(path, "a"), write(path, "b")
    for process, letter in ((first, "a"), (second, "b")):
        process.communicate()
        assert process.returncode == 0 and path.read_text() == letter * 1000
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_what_a_killed_process_left_goes_after_a_day(tmp_path):
    path = tmp_path / "table.csv"
    killed, running = write(path, "a"), write(path, "b")
    killed.kill()
    killed.communicate()
    left = tmp_path.glob(f".table.csv.*.{killed.pid}.partial")
    os.utime(next(left), (time.time() - 90_000,) * 2)
    with replacing(path) as partial:
        partial.write_text("c")
    assert len(list(tmp_path.iterdir())) == 2  # and the running one's
    running.communicate()
    assert path.read_text() == "b" * 1000


def test_a_file_that_fails_keeps_what_was_there(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "before"
