"""Read the environment variables that a launcher such as torchrun sets for a process, without importing torch."""

from __future__ import annotations

import os


def processes() -> int:
    """Return the number of processes that were started together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Return the number of this process among them; only process 0 prints and writes."""
    return int(os.environ.get("RANK") or 0) if processes() > 1 else 0


def launch() -> str | None:
    """Return an identifier of this launch of torchrun, which stays the same when torchrun restarts its processes.

    It is the id of the job, which recent versions of torchrun generate if the user gives none. Older versions set it
    to ``none``; then it is made from the host name and the process id of torchrun.
    """
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    if given not in ("", "none"):
        return given
    import socket

    return f"{socket.gethostname()}:{os.getppid()}"
