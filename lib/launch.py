"""Start, stop and restart the processes of a retraining. Nothing here imports torch."""

import dataclasses
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from lib import cli, options
from lib.cli import InputError
from lib.files import is_finished, read_json

#: settings that may change when a retraining is resumed: the data folder and the devices
MOVABLE = ("data", "devices", "num_nodes", "accumulate")


class Launch(NamedTuple):
    """The processes that a launcher has started, one for each device."""

    launcher: str
    devices: int  # on each node
    num_nodes: int


def launched() -> Launch | None:
    """The processes that torchrun or SLURM's srun has started. None if this process was started alone.

    Raises:
        InputError: srun was given --ntasks without --ntasks-per-node.
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        local = int(env["LOCAL_WORLD_SIZE"])
        return Launch("torchrun", local, int(env["WORLD_SIZE"]) // local)
    if "SLURM_NTASKS" in env and "SLURM_STEP_ID" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        tasks = int(env["SLURM_NTASKS"])
        if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in env:
            raise InputError(
                f"srun: --ntasks is {tasks} without --ntasks-per-node; expected srun --ntasks-per-node=N, where N is "
                "the number of devices of a node"
            )
        nodes = int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")))
        return Launch("srun", tasks // nodes, nodes)
    return None


def devices_and_nodes(devices: int, num_nodes: int) -> tuple[int, int]:
    """The number of devices per node and the number of nodes. 0 means the number that was launched, or 1.

    Raises:
        InputError: A launcher has started another number of processes.
    """
    launch = launched()
    if launch is None:
        return devices or 1, num_nodes or 1
    for flag, given, started in (("devices", devices, launch.devices), ("num_nodes", num_nodes, launch.num_nodes)):
        if given not in (0, started):
            raise InputError(f"--{flag}: {given}, but {launch.launcher} has started {started}; leave out --{flag}")
    return launch.devices, launch.num_nodes


def is_first() -> bool:
    """True in the process that writes the run folder: the first process of the first node."""
    names = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK") + (("SLURM_PROCID",) if launched() else ())
    return all(os.environ.get(name, "0") == "0" for name in names)


class StopFlag:
    """A signal handler that records the signal. The training loop reads it after each step.

    A second Ctrl-C raises KeyboardInterrupt at once.
    """

    signum = 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if signum == self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = self.signum or signum


stop = StopFlag()


def requeue() -> None:
    """Ask SLURM to requeue this job if SLURM's signal (SIGUSR1) has stopped the run."""
    env = os.environ
    if stop.signum != signal.SIGUSR1 or "SLURM_JOB_ID" not in env or not is_first():
        return
    array = env.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env["SLURM_JOB_ID"]
    subprocess.run(["scontrol", "requeue", job], check=False)


def resolve_run(
    given: options.Parsed, prog: str, name: str, movable: Sequence[str] = MOVABLE
) -> tuple[Any, Path, bool]:
    """The settings of a retraining, its run folder, and True if the run is resumed.

    If torchrun or SLURM starts a command again, the command resumes its run.

    Args:
        given: The parsed command line.
        name: The name of the run folder if --save is not given.

    Raises:
        InputError: No cell is given, the run folder is not empty, a resumed run has other settings, or a launcher has
            started several processes without --save.
    """
    stop.signum = 0
    signal.signal(signal.SIGUSR1, stop)  # without a handler, it would end the process while torch is loaded
    settings, launch = given.settings, launched()
    if settings.resume:
        return options.resume(given, prog, movable), Path(settings.resume), True
    if not settings.arch:
        raise InputError("--arch: no cell is given; --help lists the forms of a cell")
    if launch and not settings.save:
        raise InputError(f"--save: not given; expected a run folder, which all processes of {launch.launcher} share")
    run = Path(settings.save or f"runs/{name}")
    if not launch or not (run / "config.yaml").exists():
        if is_first():  # the first process makes the folder
            cli.check_new_folder(run, "--save")
        return settings, run, False
    stored = options.load_settings(type(settings), prog, run, "--save")
    fixed = {field.name for field in dataclasses.fields(settings)} - {"save", "resume", "device", *movable}
    other = sorted(name for name in fixed if getattr(stored, name) != getattr(settings, name))
    if other:
        raise InputError(f"--save: {run} has a run with another --{', --'.join(other)}; name a new folder")
    return settings, run, True


def finished(run: Path) -> bool:
    """True if a retraining is finished; then prints its accuracy."""
    if not is_finished(run, "retrain"):
        return False
    accuracy = read_json(run / "result.json")["accuracy"]
    print(f"run {run} is finished: test accuracy {100 * accuracy:.2f} %")
    return True
