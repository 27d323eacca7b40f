"""Decode many drawings by several processes, each of which runs ``kshot_omniglot.decode``."""

from __future__ import annotations

import itertools
import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from kshot.errors import DataError
from kshot_omniglot.decode import EX_DATAERR, Job, decode

log = logging.getLogger("kshot_omniglot")

_FEW = 2000  # drawings that one process decodes in less time than a worker needs to start


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_all(job: Job, size: int, workers: int | None = None) -> NDArray[np.uint8]:
    """Return the ink of all drawings [num, size, size], decoded by several processes if there are many.

    Args:
        job: zips or folders with the names of their drawings.
        size: pixels per side.
        workers: number of processes; by default one for each processor that this process may use, at most 8.

    Raises:
        DataError: a drawing is missing or damaged.
    """
    number = sum(len(names) for _, names in job)
    workers = min(processors(), 8) if workers is None else workers
    shares = 1 if number < _FEW else min(workers, number)
    if shares <= 1:
        pixels = decode(job, size)
    else:
        with ThreadPoolExecutor(shares) as pool:
            pixels = b"".join(pool.map(lambda share: _decode_outside(share, size), _shares(job, number, shares)))
    return np.frombuffer(pixels, np.uint8).reshape(-1, size, size)


def _shares(job: Job, number: int, shares: int) -> list[Job]:
    """Divide a job into ``shares`` jobs of equal length, in order."""
    bounds = [number * s // shares for s in range(shares + 1)]
    jobs: list[Job] = []
    for first, last in itertools.pairwise(bounds):
        share, start = [], 0
        for place, names in job:
            if cut := names[max(first - start, 0) : max(last - start, 0)]:
                share.append((place, cut))
            start += len(names)
        jobs.append(share)
    return jobs


def _decode_outside(job: Job, size: int) -> bytes:
    """Let a worker do a job; or do it here if no worker can be started (in a frozen program or a strict sandbox)."""
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "kshot_omniglot.decode"]
    request = json.dumps({"job": job, "size": size}).encode()
    try:
        done = subprocess.run(command, input=request, capture_output=True, env=environment, check=False)
    except OSError as error:
        log.warning("no worker could be started (%s); decoding in this process", error)
        return decode(job, size)
    errors = done.stderr.decode(errors="replace").strip()
    if done.returncode == EX_DATAERR:
        raise DataError(errors)
    if done.returncode or len(done.stdout) != size * size * sum(len(names) for _, names in job):
        log.warning("a worker failed with status %d (%s); decoding in this process", done.returncode, errors[-500:])
        return decode(job, size)
    return done.stdout
