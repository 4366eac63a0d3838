"""What the pool's tests let its processes do."""

import os
import time


def act(task: str) -> str:
    """Do as the task says."""
    if task == "raise":
        raise ValueError("as asked")
    if task == "die":
        os._exit(7)
    if task == "hang":
        time.sleep(600)
    return f"{task} in {os.getpid()}"
