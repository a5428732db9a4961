"""Contenders timed in turns, each in a process of its own, so that each has its own memory and its own libraries."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from cli import InputError

#: makes, in the contender's process, what is timed: step(turn), on the device named beside it
Maker = Callable[..., tuple[Callable[[int], None], Any]]


class Timing(NamedTuple):
    """What a contender took."""

    seconds: list[float]  # of each round
    peak_memory_mib: float  # of the process, or of the GPU's tensors

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def take_turns(contenders: Mapping[str, tuple[Maker, tuple]], rounds: int, warm_up: int = 2) -> dict[str, Timing]:
    """Time the steps of the contenders, round after round.

    Args:
        contenders: name -> function and arguments that make the step.
        warm_up: rounds that do not count.

    Raises:
        InputError: a contender's, as it is made.
    """
    context = multiprocessing.get_context("spawn")
    workers = {}
    for name, (maker, arguments) in contenders.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, maker, arguments), daemon=True)
        process.start()
        theirs.close()
        wrong = ours.recv()
        if wrong is not None:
            raise InputError(wrong)
        workers[name] = (process, ours)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for turn in range(warm_up + rounds):
        for name, (_, connection) in workers.items():
            connection.send(turn)
            taken = connection.recv()
            if turn >= warm_up:
                seconds[name].append(taken)
    peaks = {}
    for name, (process, connection) in workers.items():
        connection.send(None)
        peaks[name] = connection.recv()
        process.join()
    return {name: Timing(seconds[name], peaks[name]) for name in workers}


def _work(connection: Connection, maker: Maker, arguments: tuple) -> None:
    import torch

    from utils import peak_memory

    try:
        step, device = maker(*arguments)
    except InputError as error:
        connection.send(str(error))
        return
    connection.send(None)  # it is ready
    while (turn := connection.recv()) is not None:
        start = time.perf_counter()
        step(turn)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        connection.send(time.perf_counter() - start)
    connection.send(peak_memory(device))
