"""Several processes, one a GPU: torch's own engine (torchrun; NCCL between GPUs, gloo on CPUs)."""

import codecs
import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import yaml
from advbook.studies.schema import ROOT, Study
from torch import distributed

from advlib.networks.build import default_device

# One process may be alone at work for hours (making corrupted images, say) while others wait. A
# process that fails ends all those of its machine at once, whatever this is: torchrun sees to it.
# Those of other machines end when they next talk to it.
PATIENCE = datetime.timedelta(days=1)


def rank() -> int:
    """This process's number among those that work together; 0 if it works alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """The number of processes that work together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


@contextlib.contextmanager
def process_group() -> Iterator[torch.device]:
    """Work together with the other processes that torchrun started, if it did.

    Yields
    ------
    torch.device
        This process's own GPU, or the CPU.

    Raises
    ------
    ValueError
        If there are more processes than GPUs, or the GPU is not one that works with others.
    """
    device = default_device()
    if "LOCAL_WORLD_SIZE" not in os.environ:  # torchrun sets it
        yield device
        return
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    check_devices(int(os.environ["LOCAL_WORLD_SIZE"]))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        distributed.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        distributed.init_process_group("gloo", timeout=PATIENCE)
    yield device
    # Not after an error: leaving the group may wait for processes that do not come.
    distributed.destroy_process_group()


def _end_with_parent(parent: int) -> None:
    """End this process when torchrun is gone, which could not end it any more."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def check_devices(devices: int) -> None:
    """Raise ValueError if this machine cannot run so many processes together."""
    kind = default_device().type
    if devices > 1 and kind == "mps":
        raise ValueError(f"{devices} processes need CUDA GPUs or CPUs: on MPS leave devices out")
    if kind == "cuda" and devices > torch.cuda.device_count():
        raise ValueError(
            f"{devices} processes, one a GPU, but this machine shows {torch.cuda.device_count()} "
            "GPUs: choose devices of at most that"
        )


def barrier() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        distributed.barrier()


def from_first(make: Callable):
    """What `make` returns on the first process, on all of them."""
    found = [make() if rank() == 0 else None]
    if world_size() > 1:
        distributed.broadcast_object_list(found, src=0)
    return found[0]


def from_all(value) -> list:
    """Every process's value, in the order of their ranks."""
    found = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(found, value)
    return found


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over the processes, element by element."""
    if world_size() > 1:
        distributed.all_reduce(values)
        values /= world_size()
    return values


@contextlib.contextmanager
def in_turns() -> Iterator[None]:
    """The first process does what is inside, then one of each other node, then the rest.

    So what is fetched or decoded once and kept on disk is there when the others look for it.
    """
    turn = 0 if rank() == 0 else 1 if os.environ.get("LOCAL_RANK") == "0" else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(turn, 3):
        barrier()


def to_launch(study: Study) -> bool:
    """Whether the study wants several processes and this one works alone."""
    return (study.devices or 1) > 1 and not distributed.is_initialized()


def launch(module: str, study: Study, *arguments: str) -> None:
    """Run a module of this package on ``study.devices`` processes, as torchrun does.

    What they print appears here as it comes.

    Parameters
    ----------
    module : str
        Run as ``python -m module --study FILE arguments``; its main function is wrapped in
        `torch.distributed.elastic.multiprocessing.errors.record`.
    study : Study
        As it is here, with the values that replace its file's.
    *arguments : str

    Raises
    ------
    RuntimeError
        With the message of the process that failed first.
    ValueError
        If this machine has fewer GPUs than that.
    """
    check_devices(study.devices)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={study.devices}", "-m", module]
    with tempfile.TemporaryDirectory() as folder:
        file, error = Path(folder) / "study.yaml", Path(folder) / "error.json"
        file.write_text(yaml.safe_dump(study.to_dict(), allow_unicode=True), encoding="utf-8")
        paths = [str(ROOT), str(ROOT / "book"), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = os.environ | {"TORCHELASTIC_ERROR_FILE": str(error)}
        env |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        # Together as many threads as this process has alone.
        env["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // study.devices))
        process = subprocess.Popen(
            [*command, "--study", str(file), *arguments],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        text = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            while said := process.stdout.read1():  # at once, and a bar's "\r" as it is
                print(text.decode(said), end="", flush=True)
            failed = process.wait()
        finally:
            process.terminate()  # torchrun ends its processes; after a regular end, nothing
            process.wait()
            process.stdout.close()
        if failed:
            said = (
                f"it left no message (torchrun ended with {failed}): it may have been killed, "
                "often for lack of memory; what it printed is above"
            )
            if error.is_file():
                said = json.loads(error.read_text())["message"]
                said = said["message"] if isinstance(said, dict) else said
            raise RuntimeError(f"one of {study.devices} processes failed and all ended: {said}")
