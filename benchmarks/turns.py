"""Time implementations in turns. Each runs in a separate process, with separate memory and library settings."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from lib.cli import InputError

#: a function that returns the timed function step(turn) and its device
StepFactory = Callable[..., tuple[Callable[[int], None], Any]]


class Kernel(NamedTuple):
    """The calls of a GPU kernel in one step."""

    name: str
    milliseconds: float  # total of all calls
    calls: int


class Timing(NamedTuple):
    """The time and memory of a step of one contender."""

    seconds: list[float]  # for each round
    peak_memory_mib: float  # of the process on a CPU, of the tensors on a GPU
    kernels: list[Kernel]  # the ten slowest in descending order; empty on a CPU

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def take_turns(
    contenders: Mapping[str, tuple[StepFactory, tuple[Any, ...]]], rounds: int, warm_up: int = 2
) -> dict[str, Timing]:
    """Time a step of each contender in every round.

    Args:
        contenders: name -> (function that makes the step, its arguments).
        warm_up: Number of rounds before the timed ones.

    Raises:
        InputError: The function that makes a step raised an InputError.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, (maker, arguments) in contenders.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, maker, arguments), daemon=True)
        process.start()
        theirs.close()
        workers[name] = (process, ours)
    for _, connection in workers.values():
        wrong = connection.recv()
        if wrong is not None:
            for process, _ in workers.values():
                process.terminate()
            raise InputError(wrong)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(warm_up + rounds):
        for name, (_, connection) in workers.items():
            connection.send(turn)
            taken = connection.recv()
            if turn >= warm_up:
                seconds[name].append(taken)
    timings = {}
    for name, (process, connection) in workers.items():
        connection.send(None)
        timings[name] = Timing(seconds[name], *connection.recv())
        process.join()
    return timings


def _work(connection: Connection, maker: StepFactory, arguments: tuple[Any, ...]) -> None:
    import torch

    from lib.devices import peak_memory

    try:
        step, device = maker(*arguments)
    except InputError as error:
        connection.send(str(error))
        return
    connection.send(None)
    while (turn := connection.recv()) is not None:
        start = time.perf_counter()
        step(turn)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        connection.send(time.perf_counter() - start)
    peak = peak_memory(device)
    connection.send((peak, _kernels(step) if device.type == "cuda" else []))


def _kernels(step: Callable[[int], None]) -> list[Kernel]:
    """The ten slowest GPU kernels of a step."""
    import torch
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profile:
        step(0)
        torch.cuda.synchronize()
    events = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: event.self_device_time_total, reverse=True)
    return [Kernel(event.key[:120], event.self_device_time_total / 1e3, event.count) for event in events[:10]]
