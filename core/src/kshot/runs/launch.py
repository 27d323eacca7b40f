"""What a launcher such as torchrun says of this process, in its environment; read without importing torch."""

from __future__ import annotations

import os


def processes() -> int:
    """How many were started together."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Which of them this is; 0 alone prints and writes."""
    return int(os.environ.get("RANK") or 0) if processes() > 1 else 0


def launch() -> str | None:
    """What names the launch, for torchrun's: the same after each restart of its processes, another for each torchrun.

    That is the job's id, which torchrun invents where the user gives none; older ones call it 'none'.
    """
    given = os.environ.get("TORCHELASTIC_RUN_ID")
    if given not in ("", "none"):
        return given
    import socket

    return f"{socket.gethostname()}:{os.getppid()}"
