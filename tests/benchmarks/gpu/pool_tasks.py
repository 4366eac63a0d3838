"""What the pool's tests let its processes do."""

import os
import time

from benchmarks.gpu.pool import alone


def act(task: str) -> str:
    """Do as the task says."""
    if task == "raise":
        raise ValueError("as asked")
    if task == "die":
        os._exit(7)
    if task == "hang":
        time.sleep(600)
    return f"{task} in {os.getpid()}"


def prepare_and_time(rounds: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """When it prepared, and when it took times, from and to, each so many times."""
    prepared, timed = [], []
    for _ in range(rounds):
        prepared.append(_span())
        with alone():
            timed.append(_span())
    return prepared, timed


def _span() -> tuple[float, float]:
    begun = time.monotonic()
    time.sleep(0.2)
    return begun, time.monotonic()
