"""Where the processes of a retraining run: who started them, how many there are, and which is the first.

Light: nothing here imports torch.
"""

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import cli
from cli import InputError, SomeRunSettings

#: settings of a retraining that may differ when it goes on: where its data lie and what it runs on
MOVABLE = ("data", "devices", "num_nodes", "accumulate")


class Launch(NamedTuple):
    """Who started the processes, one for each device."""

    launcher: str
    devices: int  # on each node
    num_nodes: int


def launched() -> Launch | None:
    """What torchrun or SLURM's srun has started; None where this process was started alone."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        return Launch("torchrun", local, int(env["WORLD_SIZE"]) // local)
    if "SLURM_NTASKS" in env and "SLURM_STEP_ID" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")))
        return Launch("srun", int(env["SLURM_NTASKS"]) // nodes, nodes)
    return None


def devices_and_nodes(devices: int, num_nodes: int) -> tuple[int, int]:
    """The devices of each node and the nodes that --devices and --num_nodes mean; 0 is what was launched, else 1.

    Raises:
        InputError: a launcher has started another number of processes.
    """
    launch = launched()
    if launch is None:
        return devices or 1, num_nodes or 1
    for flag, given, started in (("devices", devices, launch.devices), ("num_nodes", num_nodes, launch.num_nodes)):
        if given not in (0, started):
            raise InputError(f"--{flag}: {given}, but {launch.launcher} has started {started}; expected no --{flag}")
    return launch.devices, launch.num_nodes


def is_first() -> bool:
    """Whether this process speaks for all: of several, the first on the first node."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK") + (("SLURM_PROCID",) if launched() else ())
    return all(os.environ.get(name, "0") == "0" for name in names)


def requeue() -> None:
    """Ask SLURM to start this job again, with the same command.

    Raises:
        OSError: SLURM's scontrol is not here, or refuses.
    """
    env = os.environ
    job = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"scontrol requeue {job}: {' '.join(done.stderr.split())}")


def requeue_on_signal() -> None:
    """From now on SIGUSR1, SLURM's notice, ends this process and asks for the job again, until the training begins."""

    def stop(signum: int, frame: FrameType | None) -> None:
        ask_again()
        raise KeyboardInterrupt

    signal.signal(signal.SIGUSR1, stop)


def ask_again() -> None:
    """Ask SLURM for the job again, where there is one and this process speaks for all; say so where it refuses."""
    if is_first() and "SLURM_JOB_ID" in os.environ:
        try:
            requeue()
        except OSError as error:
            print(f"SLURM does not start the job again: {error}", file=sys.stderr, flush=True)


def resolve(
    settings: SomeRunSettings, prog: str, arguments: list[str], name: str, movable: Sequence[str] = MOVABLE
) -> tuple[SomeRunSettings, Path, bool]:
    """The settings that a command line of a retraining means, the run folder, and whether the run is resumed.

    A command that torchrun or SLURM starts again goes on with the run that it began.

    Args:
        settings: the command line, parsed.
        name: of the run folder, where --save gives none.

    Raises:
        InputError: no cell is given, the run folder is not free, a run that is resumed has other settings, or several
            processes have no folder in common.
    """
    requeue_on_signal()
    given: Any = settings
    if given.resume:
        return cli.resume(settings, prog, arguments, movable), Path(given.resume), True
    if not given.arch:
        raise InputError("--arch: expected a cell, none is given; --help says what is taken")
    launch = launched()
    if launch and not given.save:
        raise InputError(f"--save: expected a run folder, which all processes of {launch.launcher} share")
    run = Path(given.save or f"runs/{name}")
    if not launch or not (run / "config.yaml").exists():
        if is_first():  # else the first one's process has made it
            cli.check_new_folder(run, "--save")
        return settings, run, False
    stored: Any = cli.load_settings(type(settings), prog, run, "--save")
    names = [field.name for field in dataclasses.fields(given) if field.name not in ("save", "resume", "device")]
    other = [name for name in names if name not in movable and getattr(stored, name) != getattr(given, name)]
    if other:
        raise InputError(f"--save: {run} is a run of another --{', --'.join(other)}; name a new folder")
    return settings, run, True
