"""Device selection, and torch's settings."""

import ctypes
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.cli import InputError


def check_device(device: str, count: int = 1) -> tuple[str, int | list[int]]:
    """The accelerator ("cpu", "cuda" or "mps") and the devices for a value of --device, in Lightning's form.

    Args:
        count: Number of devices (--devices).

    Raises:
        InputError: This machine does not have these devices.
    """
    accelerator, _, index = device.partition(":")
    if accelerator not in ("auto", "cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise InputError(f"--device: {device!r}, expected auto, cpu, cuda, cuda:N or mps")
    # Processes on a CPU share its cores; two are always allowed.
    cores = max(2, os.cpu_count() or 1)
    here = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": cores}
    if accelerator == "auto":
        accelerator = next(name for name, number in here.items() if number)
    if not here[accelerator]:
        raise InputError(f"--device: {device!r}, but this machine has no {accelerator} device; expected cpu or auto")
    if index and (accelerator != "cuda" or int(index) >= here["cuda"]):
        raise InputError(f"--device: {device!r}, but this machine has {here['cuda']} cuda device(s)")
    most = 1 if index else here[accelerator]
    if count > most:
        raise InputError(f"--devices: {count}, but --device {device} provides {most}; expected at most {most}")
    return accelerator, [int(index)] if index else count


def prepare_device(device: str, tf32: bool = False, deterministic: bool = False) -> torch.device:
    """The device for a value of --device. Also configures how torch computes on it.

    Raises:
        InputError: This machine has no such device.
    """
    accelerator, devices = check_device(device)
    set_up_libraries(tf32, deterministic)
    if accelerator != "cuda":
        return torch.device(accelerator)
    found = torch.device("cuda", devices[0] if isinstance(devices, list) else 0)
    torch.cuda.set_device(found)  # CUDA graphs are captured on the current device
    return found


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass: bfloat16 or float16 for the "mixed" precisions."""
    if not precision.endswith("-mixed"):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision.startswith("bf16") else torch.float16)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make this the default type of new tensors."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def memory_format(setting: str, device: torch.device) -> torch.memory_format:
    """The memory format for a value of --memory_format; "auto" means channels last on a CPU only."""
    if setting == "auto":
        setting = "channels_last" if device.type == "cpu" else "contiguous"
    return torch.channels_last if setting == "channels_last" else torch.contiguous_format


def set_up_libraries(tf32: bool, deterministic: bool = False) -> None:
    """Configure cuDNN, cuBLAS and malloc for the whole process.

    Args:
        tf32: Let GPUs round the float32 inputs of convolutions to TensorFloat-32. Inputs of matrix products, such as
            the mixing weights, are never rounded.
        deterministic: Use only algorithms that give the same bits each time. torch raises an error if there is none.
    """
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        # Keep freed memory for the next step. By default, glibc returns large blocks to the system, and mapping them
        # again, page by page, took half the time of a training step on two cores. These calls set M_MMAP_MAX and
        # M_TRIM_THRESHOLD of malloc.h.
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)
        library.mallopt(-1, -1)


#: the backend of torch.compile
COMPILER = "inductor"


def compile_parts(parts: Sequence[nn.Module]) -> None:
    """Compile parts of a network with torch.compile when they are first called."""
    import torch._dynamo  # takes two seconds

    # torch.compile makes one function for each shape and each set of required gradients.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(parts))
    for part in parts:
        part.compile(backend=COMPILER)


def peak_memory(device: torch.device) -> float:
    """The peak memory in MiB of the GPU's tensors, or of this process if there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where ru_maxrss starts from the parent's value
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    import resource  # Unix only

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
