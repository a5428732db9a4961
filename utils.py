"""How runs are made, running averages and progress: nothing here knows of architecture search."""

import ctypes
import math
import os
import platform
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn

from cli import InputError
from files import write_atomically

Item = TypeVar("Item")
Produced = TypeVar("Produced", covariant=True)

PACKAGES = ("torch", "torchvision", "pytorch_lightning", "numpy")


def provenance(command: str, device: str) -> dict[str, Any]:
    """How a run was made: the command, the commit, the versions and the device."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return {"command": command, "commit": _commit(), "device": device, "versions": versions}


def _commit() -> str:
    """The commit of this source tree, with "+changes" where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if changed.strip() else "")


def write_config(folder: Path, settings: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    """config.yaml: the resolved settings at the top level, so that --config takes the file, and their provenance.

    Where the run lies is no setting: the file makes another run, in another folder.
    """
    settings = {name: value for name, value in settings.items() if name not in ("save", "resume")}
    write_atomically(
        folder / "config.yaml", yaml.safe_dump({**settings, "provenance": dict(origin)}, sort_keys=False, width=120)
    )


def check_device(device: str, count: int = 1) -> tuple[str, int | list[int]]:
    """The accelerator ("cpu", "cuda" or "mps") and the devices, as Lightning takes them, that --device means.

    Args:
        count: how many of them (--devices).

    Raises:
        InputError: there are no such devices here.
    """
    accelerator, _, index = device.partition(":")
    if accelerator not in ("auto", "cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise InputError(f"--device: {device!r}, expected auto, cpu, cuda, cuda:N or mps")
    # Processes on a CPU share its cores; two may be tried anywhere.
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
        raise InputError(f"--devices: {count}, but with --device {device} there are {most}; expected at most that many")
    return accelerator, [int(index)] if index else count


def prepare_device(device: str, tf32: bool = False, deterministic: bool = False) -> torch.device:
    """The device that --device means, and how torch computes on it.

    Raises:
        InputError: this machine has no such device.
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
    """Create tensors of this type where none is asked for."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def memory_format(setting: str, device: torch.device) -> torch.memory_format:
    """The memory format of images and weights that --memory_format means; "auto" is channels last on a CPU only."""
    if setting == "auto":
        setting = "channels_last" if device.type == "cpu" else "contiguous"
    return torch.channels_last if setting == "channels_last" else torch.contiguous_format


class SizedIterable(Protocol[Produced]):
    """Something to iterate over whose length is known, such as the batches of an epoch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Produced]: ...


class Averages:
    """Weighted running means of scalars and vectors, kept on the device: adding waits for nothing."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, name: str, value: Tensor, weight: float = 1) -> None:
        """Count `value` (a tensor of any shape, the same each time) `weight` times."""
        value = value.detach() * weight
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._weights[name] = self._weights.get(name, 0) + weight

    def compute(self) -> dict[str, Any]:
        """The means so far, as numbers and lists."""
        return {name: (total / self._weights[name]).tolist() for name, total in self._sums.items()}


class Watch:
    """Looks whether numbers are finite: at every step on a CPU, every fiftieth on a GPU, which would be waited for.

    Args:
        device: of the numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self._every = 1 if device.type == "cpu" else 50
        self._seen: list[tuple[int, int, tuple[str, ...], Tensor]] = []

    def add(self, epoch: int, step: int, values: Mapping[str, Tensor]) -> None:
        """Note the scalars of a step, both counted from 0, in the order in which they were computed.

        Raises:
            FloatingPointError: one of this or an earlier step is not finite; it names epoch, step and quantity.
        """
        self._seen.append((epoch, step, tuple(values), torch.stack([value.float() for value in values.values()])))
        if len(self._seen) >= self._every:
            self.check()

    def check(self) -> None:
        """Look at what was noted since the last time, as before a checkpoint.

        Raises:
            FloatingPointError: as `add`.
        """
        if not self._seen:
            return
        seen, self._seen = self._seen, []
        values = iter(torch.cat([numbers for *_, numbers in seen]).tolist())  # waits once
        for epoch, step, names, _ in seen:
            for name, value in zip(names, values, strict=False):
                if not math.isfinite(value):
                    raise FloatingPointError(f"{name} is {value} in epoch {epoch + 1}, step {step + 1}")


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the batch whose largest logit is the label's, a scalar in [0, 1]."""
    return (logits.argmax(dim=1) == labels).float().mean()


class Board:
    """TensorBoard's events of a run, a step an epoch, in a file for each time that the run was begun or gone on with.

    TensorBoard reads the files in the order of their names, which the clock, that may be set back, does not assure.

    Args:
        run: the folder.
        rows: of the epochs so far; the last one's events are written anew, for a death may have come before them.

    Raises:
        OSError: a file cannot be written.
    """

    def __init__(self, run: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        folder, prefix = run / "tensorboard", "events.out.tfevents."
        folder.mkdir(exist_ok=True)
        numbers = (path.name.removeprefix(prefix).split(".")[0] for path in folder.glob(f"{prefix}*"))
        latest = max((int(number) for number in numbers if number.isdecimal()), default=0)
        self._path = folder / f"{prefix}{max(int(time.time()), latest + 1):010d}.{socket.gethostname()}"
        # What earlier files have from this step on does not count.
        start = SessionLog(status=SessionLog.START)
        self._write(Event(file_version="brain.Event:2"), Event(step=max(1, len(rows)), session_log=start))
        if rows:
            self.add(rows[-1])

    def add(self, row: Mapping[str, Any]) -> None:
        """Write an epoch's row, but for what it has not measured."""
        measured = {name: value for name, value in row.items() if value is not None and name != "epoch"}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in measured.items()]
        self._write(Event(step=row["epoch"], summary=Summary(value=values)))

    def _write(self, *events: Event) -> None:
        """Add to the file, at once: TensorBoard's own writer has a thread, whose errors nobody could catch."""
        with open(self._path, "ab") as file:
            for event in events:
                event.wall_time = time.time()
                RecordWriter(file).write(event.SerializeToString())


class StepProgress:
    """Progress of the whole and of the part under way, with the time that remains; on a terminal only.

    Elsewhere `line` is all that is printed.

    Args:
        whole: what the whole is called.
        total: its steps.
        done: those behind it already.
    """

    def __init__(self, whole: str, total: int, done: int) -> None:
        self._console = Console(highlight=False)
        self._bar = Progress(
            TextColumn("{task.description:24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("remaining"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._whole = self._bar.add_task(whole, total=total, completed=done)
        self._part = self._bar.add_task("", total=None)

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def start(self, name: str, steps: int, done: int = 0) -> None:
        """Begin a part of so many steps, some of them done."""
        self._bar.reset(self._part, total=steps, completed=done, description=name)

    def advance(self) -> None:
        """Count a step."""
        self._bar.advance(self._part)
        self._bar.advance(self._whole)

    def track(self, name: str, items: SizedIterable[Item]) -> Iterator[Item]:
        """Iterate over the steps of a part, moving the bars."""
        self.start(name, len(items))
        for item in items:
            yield item
            self.advance()

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False, soft_wrap=True)


def set_up_libraries(tf32: bool, deterministic: bool = False) -> None:
    """How the libraries under torch compute, for the whole process.

    Args:
        tf32: GPUs may round the float32 factors of convolutions to TensorFloat-32; never those of matrix products,
            because mixing weights are among them.
        deterministic: only by algorithms that give the same bits each time; where there is none, torch raises.
    """
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        # Keep freed memory for the next step: glibc hands back large blocks, and fetching them again, page by page,
        # took half of the time of a training step on two cores. (M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h)
        library = ctypes.CDLL(None)
        library.mallopt(-4, 0)
        library.mallopt(-1, -1)


#: torch.compile's backend
COMPILER = "inductor"


def compile_parts(network: nn.Module, parts: Sequence[nn.Module], passes: Callable[[], object]) -> bool:
    """Compile parts of a network (torch.compile), and try them; where that fails all goes on without, with one warning.

    Args:
        passes: runs the network forth and back in every way that is to come; the buffers are restored afterwards.

    Returns:
        Whether the parts are compiled.
    """
    import torch._dynamo  # takes two seconds

    # There is one compiled function for each shape and each set of gradients.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(parts))
    for part in parts:
        part.compile(backend=COMPILER)
    kept = [buffer.clone() for buffer in network.buffers()]
    try:
        passes()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        warnings.warn(f"--compile: goes on without, for it failed: {reason}", stacklevel=2)
        torch.compiler.set_stance("force_eager")
        return False
    finally:
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), kept, strict=True):
                buffer.copy_(value)
    return True


def peak_memory(device: torch.device) -> float:
    """Most memory that was in use, in MiB: of the GPU's tensors, or of this process where there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where rusage's figure begins with that of the parent process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    import resource  # of Unix alone

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
