"""Several processes, one a GPU: torch's own engine (torchrun; NCCL between GPUs, gloo on CPUs)."""

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Callable, Iterator

import torch
from torch import distributed

from advlib.networks.device import default_device

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

    Yields this process's own GPU, or the CPU. Raises ValueError as `check_devices`.
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
    """Raise ValueError if this machine cannot run that many processes together."""
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
    """Call `make` on the first process, and return its result on all of them."""
    return from_all(make() if rank() == 0 else None)[0]


def from_all(value) -> list:
    """Every process's value, in the order of their ranks."""
    found = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(found, value)
    return found


def total(values: torch.Tensor) -> torch.Tensor:
    """The sum over the processes, element by element, which takes the place of `values`."""
    if world_size() > 1:
        distributed.all_reduce(values)
    return values


def mean(values: torch.Tensor) -> torch.Tensor:
    """The mean over the processes, element by element."""
    return total(values) / world_size()


def rows(values: torch.Tensor) -> torch.Tensor:
    """The rows of all processes (as many on each), in the order of their ranks."""
    if world_size() == 1:
        return values
    found = [torch.empty_like(values) for _ in range(world_size())]
    distributed.all_gather(found, values.contiguous())
    return torch.cat(found)


@contextlib.contextmanager
def in_turns() -> Iterator[None]:
    """The first process does what is inside, then one of each other node, then the rest.

    So a file that one process fetches or makes is there when the others look for it.
    """
    turn = 0 if rank() == 0 else 1 if os.environ.get("LOCAL_RANK") == "0" else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(turn, 3):
        barrier()
