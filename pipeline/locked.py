"""Run a command that only one process at a time may run in this folder.

    python locked.py snakemake --nolock ...

The lock is the operating system's: it is gone with the process, however that ends, where
Snakemake's own stays behind after a kill and stops the next run.
"""

import fcntl
import os
import sys

if __name__ == "__main__":
    lock = os.open(".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"Another `make book` or `make read` is running in {os.getcwd()}: wait for it.")
    os.set_inheritable(lock, True)  # the command takes the lock over
    os.execvp(sys.argv[1], sys.argv[1:])
