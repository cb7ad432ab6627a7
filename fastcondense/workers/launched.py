"""Which launch this process belongs to, by the variables that launchers set."""

from __future__ import annotations

import os
import socket
import time

LAUNCHER = "FASTCONDENSE_LAUNCHER"
"""The variable in which `--gpus` names a folder to its workers; other launchers, such as torchrun, set none."""
NAME, ATTEMPT = "FASTCONDENSE_LAUNCH", "FASTCONDENSE_ATTEMPT"
"""The variables in which it tells them its own name, and how often they have been started again."""
_STARTED = time.time_ns()


def is_launched() -> bool:
    """Whether `--gpus`, torchrun, or something that sets their variables, has started this process."""
    is_ranked = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return is_ranked and (LAUNCHER in os.environ or all(name in os.environ for name in ("MASTER_ADDR", "MASTER_PORT")))


def num_launched() -> int:
    """How many processes this launch has."""
    return whole_number("WORLD_SIZE", lowest=1) if is_launched() else 1


def whole_number(name: str, default: int | None = None, lowest: int = 0) -> int:
    """The whole number in a variable of the environment, or `default` where that is missing or empty.

    Raises ValueError that names the variable.
    """
    text = os.environ.get(name) or ("" if default is None else str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= lowest):
        raise ValueError(f"the variable {name} must be a whole number from {lowest} on, got {text!r}")
    return int(text)


def launch_name() -> str:
    """The name of the launch that this process belongs to, which all its processes know and no others have."""
    names = (NAME, "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")
    shared = [os.environ[name] for name in names if name in os.environ]
    return " ".join(shared) if is_launched() else f"{socket.gethostname()} {os.getpid()} {_STARTED}"


def attempt() -> int:
    """Number of times that the processes of this launch have been started again."""
    return whole_number(ATTEMPT, whole_number("TORCHELASTIC_RESTART_COUNT", 0))
