"""The pipeline ends with its jobs, whoever is killed and how; the next start finds what is left."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from advbook.studies.schema import ROOT
from conftest import OWN_STUDY, on_path
from pipeline import locked

# A command with a job in a session of its own, as kernels are, that does not end when asked.
JOB = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
time.sleep(600)
"""
COMMAND = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {JOB!r}], start_new_session=True)
"""


def heard():
    """As in a terminal: tests in the background of a shell, or under nohup, are deaf to these."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def start():
    """Start a command under `locked.py`; what still runs after the test is killed."""
    started = []

    def starting(folder, *command, **options):
        pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
        words = [sys.executable, ROOT / "pipeline/locked.py", *command]
        options.setdefault("preexec_fn", heard)
        started.append(subprocess.Popen(words, cwd=folder, text=True, **pipes, **options))
        return started[-1]

    yield starting
    for process in started:
        process.kill()
        process.communicate()


def own_folder(folder) -> str:
    return (folder / ".lock").read_text().splitlines()[1]


def ended(folder: str, seconds: float = 30) -> bool:
    """Whether nothing that was started is left, soon, and no temporary file."""
    until = time.monotonic() + seconds
    while (left := locked.marked(folder) or os.path.exists(folder)) and time.monotonic() < until:
        time.sleep(0.1)
    return not left


@pytest.mark.parametrize(
    "who, how",
    [
        ("command", signal.SIGKILL),
        ("locked.py", signal.SIGKILL),
        ("locked.py", signal.SIGTERM),
        ("locked.py", signal.SIGINT),
        ("locked.py", signal.SIGHUP),
    ],
)
def test_whatever_is_killed_everything_ends(start, who, how, tmp_path):
    process = start(tmp_path, sys.executable, "-c", COMMAND)
    job = psutil.Process(int(process.stdout.readline()))
    folder = own_folder(tmp_path)
    assert {p.pid for p in locked.marked(folder)} == {job.pid, job.ppid()}
    os.kill(process.pid if who == "locked.py" else job.ppid(), how)
    assert ended(folder)
    assert process.wait(5) != 0
    again = start(tmp_path, "true")
    assert again.wait(5) == 0, again.stderr.read()


def test_what_was_left_when_all_were_killed_is_named_and_ended_by_the_next_start(start, tmp_path):
    process = start(tmp_path, sys.executable, "-c", COMMAND)
    job = psutil.Process(int(process.stdout.readline()))
    folder, parts = own_folder(tmp_path), psutil.Process(process.pid).children()
    for part in [psutil.Process(process.pid), *parts]:
        part.suspend()  # so that none of them sees another's end
    for part in [*parts, psutil.Process(process.pid)]:
        part.kill()
    process.wait(5)
    psutil.wait_procs(parts, 5)  # whoever inherited them has to let them go
    assert [p.pid for p in locked.marked(folder)] == [job.pid]
    again = start(tmp_path, "true")
    assert again.wait(10) == 0
    assert f"Ending what an interrupted run has left: {job.pid} (" in again.stderr.read()
    assert not locked.marked(folder) and not os.path.exists(folder)


def test_a_second_run_is_told_of_the_first(start, tmp_path):
    first = start(tmp_path, sys.executable, "-c", COMMAND)
    first.stdout.readline()
    second = start(tmp_path, "true")
    assert second.wait(5) == 1
    said = second.stderr.read()
    assert f"is running in {tmp_path}: wait for it, or end it with `kill {first.pid}`" in said
    first.terminate()
    first.wait(30)


def test_a_command_under_nohup_outlives_its_terminal(start, tmp_path):
    process = start(
        tmp_path, "sleep", "600", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    time.sleep(1)
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM


def test_a_command_in_the_background_of_a_shell_ends_when_asked(start, tmp_path):
    deaf = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    process = start(tmp_path, sys.executable, "-c", COMMAND, **deaf)
    process.stdout.readline()
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert ended(own_folder(tmp_path))


def test_a_command_says_how_it_ended(start, tmp_path):
    assert start(tmp_path, "sh", "-c", "exit 3").wait(5) == 3
    assert start(tmp_path, "sh", "-c", "kill -9 $$").wait(5) == 128 + 9


def test_snakemake_is_killed_while_a_notebook_trains_and_the_same_command_goes_on(start, project):
    study = OWN_STUDY.replace("study: mine", "study: killed").replace("My own", "A killed")
    (project / "killed.yaml").write_text(study.replace("pretrain_epochs: 2", "pretrain_epochs: 25"))
    target = "runs/killed/train/pretrained-seed0.json"
    command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "1", target]
    command += ["--config", "study=killed.yaml"]
    env = on_path(project) | {"ADVLIB_RUNS": str(project / "runs")}
    process = start(project, *command, env=env)
    try:
        while not list((project / "runs/killed/models").glob("*/checkpoint.safetensors")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        folder = own_folder(project)
        running = {p.pid: " ".join(p.cmdline()) for p in locked.marked(folder)}
        assert any("ipykernel_launcher" in name for name in running.values())
        pipeline = next(pid for pid, name in running.items() if "-m snakemake" in name)
        os.kill(pipeline, signal.SIGKILL)
        assert ended(folder)
        assert not (project / target).exists()
        again = start(project, *command, env=env)
        assert again.wait() == 0, again.stderr.read()
        assert (project / target).is_file()
    finally:
        (project / "killed.yaml").unlink()
