"""Run a command that only one process at a time may run in this folder, and end it with its jobs.

    python pipeline/locked.py python -m snakemake --nolock ...

The lock is the operating system's: it is gone with the process, however that ends, where
Snakemake's own stays behind after a kill and stops the next run.

Snakemake waits for running jobs when it is asked to end, and leaves them behind when it is killed.
So every process that the command starts carries a mark in its environment, the name of a folder for
its temporary files. Whatever ends the command or this process, those with the mark end as well, and
the folder is removed: at once, or by the next start if all were killed together.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import psutil

MARK = "ADVLIB_TMP"
PATIENCE = 20  # seconds for Snakemake to end by itself: it takes jobs off a cluster's queue
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def marked(folder: str) -> list[psutil.Process]:
    """The processes that a command has started, wherever they hang by now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == folder:
                found.append(process)
    return found


def end(folder: str, patience: float = 2) -> None:
    """End them, asked first and then forced, and remove their temporary files."""
    asked, until, empty = set(), time.monotonic() + patience, 0
    while empty < 2:  # once is not enough: a process that just begins has no environment yet
        processes = marked(folder)
        empty = 0 if processes else empty + 1
        for process in processes:
            with contextlib.suppress(psutil.Error):
                if time.monotonic() > until:
                    process.kill()
                elif process not in asked:
                    process.terminate()
        asked.update(processes)
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def is_here(process: str) -> bool:
    """Whether this is still a process that runs a command, and not another of the same number."""
    with contextlib.suppress(psutil.Error):
        return os.path.basename(__file__) in " ".join(psutil.Process(int(process)).cmdline())
    return False


def take(lock: int) -> None:
    """Take the lock and tidy what an earlier run has left; exit if that still goes on."""
    watcher, folder = (os.pread(lock, 10_000, 0).decode().splitlines() + ["", ""])[:2]
    if not is_here(watcher or "0") and folder:
        if left := marked(folder):
            names = ", ".join(f"{p.pid} ({p.name()})" for p in left)
            print(f"Ending what an interrupted run has left: {names}", file=sys.stderr)
        end(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(
            f"Another `make book` or `make read` is running in {os.getcwd()}: wait for it, or end "
            f"it with `kill {watcher}`."
        )


def guard(lock: int, folder: str) -> int:
    """A process of its own that ends everything if this one is killed. Return its number."""
    parent = os.getpid()
    if child := os.fork():
        return child
    os.close(lock)
    os.setsid()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == parent:
        time.sleep(0.3)
    end(folder)
    os._exit(0)


def run(command: list[str], lock: int, folder: str) -> int:
    """Run the command until it ends or somebody ends it. Return its exit status."""
    told = []
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda number, _: told.append(number))
    # In a session of its own: Ctrl-C in a terminal comes here, once, and not to every job. A shell
    # starts what runs in the background deaf to SIGINT, which Snakemake is asked to end with.
    process = subprocess.Popen(
        command,
        env=os.environ | {MARK: folder},
        pass_fds=[lock],
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    parent, until = os.getppid(), float("inf")
    while process.poll() is None and time.monotonic() < until:
        if os.getppid() != parent and not told:
            told.append(signal.SIGHUP)  # make is gone
        if told and until == float("inf"):
            print("Ending the jobs: what is finished is kept.", file=sys.stderr)
            for job in marked(folder):
                with contextlib.suppress(psutil.Error):
                    job.send_signal(signal.SIGINT if job.pid == process.pid else signal.SIGTERM)
            until = time.monotonic() + PATIENCE
        if len(told) > 1:
            break
        time.sleep(0.1)
    end(folder)
    status = -told[0] if told else process.wait()
    if status < 0 and not told:
        print("The command was killed, and its jobs were ended; start it again.", file=sys.stderr)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    lock = os.open(".lock", os.O_RDWR | os.O_CREAT)
    take(lock)
    folder = tempfile.mkdtemp(prefix="advlib-")
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n{folder}\n".encode(), 0)
    watching = guard(lock, folder)
    status = run(sys.argv[1:], lock, folder)
    os.kill(watching, signal.SIGKILL)
    sys.exit(status)
