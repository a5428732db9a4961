"""Run scripts as tasks on a Ray cluster, each in its own process.

The run folders hold all state: a job without a folder starts, a job with a folder resumes, and a finished job is
skipped. Ray retries a job if its process or its machine dies. All machines must see the folders and this repository
under the same paths.
"""

import json
import logging
import os
import re
import runpy
import shlex
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lib.cli import InputError
from lib.files import hold, is_finished, write_atomically

ROOT = Path(__file__).resolve().parents[1]
#: number of times that Ray restarts a job
RETRIES = 4
#: seconds that the scripts have to stop; a retraining saves after the current step
STOPPING = 120
#: environment variables by which a launcher groups processes; a job must not join the group that started Ray
LAUNCHERS = re.compile("SLURM_|TORCHELASTIC_|MASTER_|(GROUP_|LOCAL_|NODE_)?RANK$|(LOCAL_)?WORLD_SIZE$")


class Failed(Exception):
    """A script ended with an error."""


class Terminated(Exception):
    """A script received SIGTERM, for example because its machine shuts down. Ray retries it."""


@dataclass(frozen=True)
class Job:
    """One run of a script.

    Attributes:
        kind: search, retrain or score. The script of score prints a JSON object, which becomes FOLDER/score.json.
        folder: Folder of the entry. A search and its retraining run in FOLDER/search and FOLDER/retrain.
        begin, resume: The command line that starts the run, and the one that resumes it.
        cpus, gpus: CPUs and GPUs of the job. Several jobs may share a GPU (0.25).
    """

    kind: Literal["search", "retrain", "score"]
    folder: Path
    begin: list[str]
    resume: list[str]
    threads: int
    cpus: float
    gpus: float

    def command(self) -> list[str]:
        """The command line to run: `resume` if the run folder exists, else `begin`."""
        return self.resume if (self.folder / self.kind / "config.yaml").exists() else self.begin

    def finished(self) -> bool:
        """True if the job has written its result."""
        if self.kind == "score":
            return (self.folder / "score.json").is_file()
        return is_finished(self.folder / self.kind, self.kind)


def shown(line: Sequence[str]) -> str:
    """A command line of a script, quoted for a shell."""
    return shlex.join(["python", *line])


def run_job(job: Job, *previous: object) -> None:
    """Run a job to its end in this process, unless it is finished. Ray first waits for the `previous` job.

    Raises:
        Failed: The script ended with an error.
        Terminated: The script received SIGTERM.
    """
    with _held(job.folder):
        if job.finished():
            return
        line, log = job.command(), job.folder / f"{job.kind}.log"
        os.environ["OMP_NUM_THREADS"] = str(job.threads)
        status = _execute(line, log)
        last = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
        if status == 130:
            raise Terminated("stopped by SIGTERM")
        if status:
            raise Failed(f"exit status {status}: {last}")
        if job.kind == "score":
            try:
                score = {"command": shown(line), **json.loads(last)}
            except (ValueError, TypeError) as error:
                raise Failed(f"{line[0]} printed no JSON object: {last[:200]}") from error
            write_atomically(job.folder / "score.json", json.dumps(score, indent=1) + "\n")
        if not job.finished():
            raise Failed(f"{line[0]} wrote no result")


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Lock a folder. Wait for an earlier process that may still run on a machine that the cluster has lost."""
    while True:
        try:
            with hold(folder):
                yield
            return
        except BlockingIOError:
            time.sleep(0.2)


def _execute(line: Sequence[str], log: Path) -> int:
    """Run a script of this repository in this process, with its output in `log`. Returns its exit status."""
    for name in filter(LAUNCHERS.match, list(os.environ)):
        del os.environ[name]
    os.chdir(ROOT)
    sys.argv = list(line)
    with open(log, "a", buffering=1, encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        for descriptor in (1, 2):  # also for libraries and child processes
            os.dup2(file.fileno(), descriptor)
        print(f"$ {shown(line)}  # {time.strftime('%F %T')} {socket.gethostname()}")
        try:
            runpy.run_path(line[0], run_name="__main__")
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            return 1
    return 0


@contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Join the Ray cluster at `address`, or start one on this machine if it is empty. Yields the module `ray`.

    Raises:
        InputError: Ray is not installed, or there is no such cluster.
    """
    # Ray runs its workers at nice 15 by default, where any other work would starve them.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a job without a GPU sees none
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError("Ray, which runs the tables, is not installed; run pip install -e '.[cluster]'") from error
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if colon:  # ray.init ends this process if nothing listens there
            socket.create_connection((host, int(port)), timeout=5).close()
        dashboard = None if address else False
        ray.init(address or "local", include_dashboard=dashboard, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise InputError(f"--address: {address or 'local'}: {reason}; expected a running Ray cluster") from error
    try:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler would end this process before its jobs
        yield ray
    finally:
        ray.shutdown()


def run_jobs(ray: Any, entries: Sequence[Sequence[Job]], report: Callable[[Job, str], None]) -> None:
    """Run entries in parallel on the cluster. Each entry is a sequence of jobs.

    Args:
        report: Called when a job ends, with the reason if it or the job before it failed, else "".
    """
    remote = ray.remote(max_retries=RETRIES, retry_exceptions=[Terminated], max_calls=1)(run_job)
    waiting = deque(entries)
    running: dict[Any, Job] = {}
    try:
        while waiting or running:
            # Submit one more entry than fits, to keep the cluster busy. With more, all searches would run before any
            # retraining.
            while waiting and len({job.folder for job in running.values()}) <= _places(ray, waiting[0]):
                previous: tuple[Any, ...] = ()
                for job in waiting.popleft():
                    options = {"num_cpus": job.cpus, "num_gpus": job.gpus, "name": f"{job.kind} {job.folder}"}
                    task = remote.options(**options).remote(job, *previous)
                    running[task], previous = job, (task,)
            for task in ray.wait(list(running), timeout=1.0)[0]:
                reason = ""
                try:
                    ray.get(task)
                except ray.exceptions.RayError as error:
                    reason = " ".join(str(getattr(error, "cause", None) or error).split())[:300]
                report(running.pop(task), reason)
    except BaseException:
        for task in running:
            ray.cancel(task)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=STOPPING + 10)
        raise


def _places(ray: Any, entry: Sequence[Job]) -> int:
    """The number of entries like this one that the cluster can run at once."""
    have, gpus = ray.cluster_resources(), min(job.gpus for job in entry)
    places = have.get("CPU", 0) / min(job.cpus for job in entry)
    return max(1, int(min(places, have.get("GPU", 0) / gpus) if gpus else places))
