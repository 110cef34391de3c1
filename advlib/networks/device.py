"""The device and the number format to compute in, and results that repeat bit for bit."""

import contextlib

import torch


def default_device() -> torch.device:
    """CUDA, MPS or the CPU, by availability."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def resolve_dtype(dtype: str, device: torch.device | str) -> torch.dtype:
    """ "auto" is bfloat16 where the device computes in it natively, else float32."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if dtype == "auto":
        kind, native = torch.device(device).type, False
        if kind == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        elif kind == "cpu":
            native = torch.cpu.get_capabilities().get("avx512_bf16")
        dtype = "bfloat16" if native else "float32"
    if dtype not in known:
        raise ValueError(f"dtype is one of auto, float32, bfloat16, got {dtype!r}")
    return known[dtype]


@contextlib.contextmanager
def _full_precision(flags: dict):
    """Neither convolutions nor matrix products of float32 in fewer bits; cuDNN with these flags."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(**flags, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(kept)


@contextlib.contextmanager
def autocast(device: torch.device | str, dtype: torch.dtype):
    """Autocast to `dtype`; for float32 none, not a caller's, and none of TF32's 10 bits either."""
    flags = contextlib.nullcontext()
    if dtype == torch.float32:
        names = ("enabled", "benchmark", "deterministic")
        flags = _full_precision({name: getattr(torch.backends.cudnn, name) for name in names})
    with flags, torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
        yield


@contextlib.contextmanager
def repeatable(device: torch.device):
    """Kernels that end a resumed run with the same bits, and torch's generators lent to the run."""
    # No TF32 either, which gradients of float32 training would otherwise be computed in.
    flags = _full_precision({"enabled": True, "benchmark": False, "deterministic": True})
    # Dropout and stochastic depth draw from torch's global generators.
    with flags, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
