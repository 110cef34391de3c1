"""Run a command on GPUs of its own: as many as ADVLIB_GPUS says, shared with no other such command.

    ADVLIB_GPUS=2 python pipeline/gpus.py papermill ...

Snakemake counts GPUs and does not say which. This takes free ones and names them to the command in
CUDA_VISIBLE_DEVICES, by their UUID where nvidia-smi tells it. Each GPU has a lock of the operating
system's: it is gone with the command, however that ends.
"""

import fcntl
import os
import random
import subprocess
import sys
import time

LOCKS = f"/tmp/advlib-gpus-{os.getuid()}"  # on the machine itself, whatever TMPDIR says


def visible() -> list[str]:
    """The GPUs that may be used: of this machine, or those that CUDA_VISIBLE_DEVICES names."""
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        told = ""
    uuids = dict(line.split(", ") for line in told.splitlines())
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    numbers = uuids if named is None else [name.strip() for name in named.split(",")]
    return [uuids.get(number, number) for number in dict.fromkeys(numbers) if number]


def take(names: list[str], count: int) -> dict[str, int] | None:
    """Lock `count` free GPUs: their names and the files that hold the locks, or None."""
    held = {}
    for name in names:
        if len(held) == count:
            break
        lock = os.open(os.path.join(LOCKS, name.replace("/", "_")), os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held[name] = lock
        except BlockingIOError:
            os.close(lock)
    if len(held) == count:
        return held
    for lock in held.values():
        os.close(lock)
    return None


if __name__ == "__main__":
    wanted, names = int(os.environ["ADVLIB_GPUS"]), visible()
    if wanted > len(names):
        sys.exit(
            f"{wanted} GPUs are wanted and {len(names)} found ({', '.join(names) or 'none'}): give "
            "the study fewer `devices`, or name the GPUs in CUDA_VISIBLE_DEVICES."
        )
    os.makedirs(LOCKS, exist_ok=True)
    held = take(names, wanted)
    if held is None:
        print(f"Waiting for {wanted} free of {len(names)} GPUs (locks in {LOCKS})", file=sys.stderr)
    while held is None:
        time.sleep(random.uniform(0.5, 1.5))  # two that wait for several do not meet forever
        held = take(names, wanted)
    for lock in held.values():
        os.set_inheritable(lock, True)  # the command takes the locks over
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
    os.execvp(sys.argv[1], sys.argv[1:])
