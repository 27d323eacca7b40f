"""The backend of several processes, on torch.distributed: how they find each other and exchange tensors.

The engine decides which process computes what. The local backend decides on the device and the precision.
"""

from __future__ import annotations

import atexit
import os
import shlex
import sys
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

import kshot
from kshot import Backend, Episode, TaskDistribution, World
from kshot.devices import sample_on
from kshot.errors import OptionError, Unavailable

T = TypeVar("T")

RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""The environment variables by which a launcher tells processes how to find each other."""


class Distributed:
    """Train one learner in several processes, which torchrun has started.

    The first such backend creates the process group, which is destroyed when the process ends. An existing process
    group is used as it is.

    Args:
        local: the backend on which each process computes: its name, its options (``--backend.local.threads=1``), or
            the backend itself. A process on a CUDA device without a number takes the number ``LOCAL_RANK``.
        timeout: seconds that a process waits for the others before it gives up. A process waits, for example, while
            another one loads its data, and while rank 0 writes a checkpoint or a hook draws a picture.

    Raises:
        Unavailable: the process was not started by torchrun, or the other processes did not appear in time.
        OptionError: the timeout is not positive, the local backend is itself one of several processes, or the existing
            process group cannot exchange tensors on the CPU.

    Example (in a process that torchrun has started):
        ``kshot.Engine(learner, tasks, backend=kshot.backend("distributed"), meta_batch=4).train(iterations=500)``

    Example:
        >>> backend = Distributed(local="cpu")  # in a process that torchrun started # doctest: +SKIP
        >>> backend.world.rank, backend.world.size  # doctest: +SKIP
    """

    def __init__(self, local: Backend | str = "cpu", timeout: float = 1800.0) -> None:
        if not timeout > 0:
            raise OptionError(f"distributed: got timeout {timeout}, expected a positive number of seconds")
        self.local: Backend = kshot.backend(local) if isinstance(local, str) else local
        if self.local.world.size != 1:
            raise OptionError(
                f"distributed: got a local backend of {self.local.world.size} processes, expected one of a single "
                "process, e.g. cpu"
            )
        self.device = torch.device(self.local.device)
        join(self.device, timeout)
        self.world: World = Group()

    def place(self, x: T) -> T:
        """Move a value to the device, as the local backend does."""
        return self.local.place(x)

    def sample_on_device(self, tasks: TaskDistribution, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes on the device, as the local backend does."""
        return sample_on(self.local, tasks, split, indices)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the local backend's context of mixed precision."""
        return self.local.autocast()

    def describe(self) -> Mapping[str, Any]:
        """Return the name, the number of processes, their transport, the precision and the local backend."""
        local = dict(self.local.describe())
        return {
            "name": "distributed",
            "precision": local["precision"],
            "processes": self.world.size,
            "transport": str(dist.get_backend()),
            "local": local,
        }


HELD: deque[list[Tensor]] = deque(maxlen=2)
"""The tensors of the last two calls, which must outlive gloo's references to them.

gloo's threads release their references shortly after a call has returned. The thread that releases the last reference
to a tensor needs the interpreter; if that happens while the interpreter shuts down, the process is aborted ("terminate
called without an active exception")."""


class Group:
    """Exchange tensors among the processes of torch.distributed's default group.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum of the ranks' tensors; the argument may be overwritten."""
        tensor = tensor.contiguous()
        HELD.append([tensor])
        dist.all_reduce(tensor)
        return tensor

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every rank's tensor in the order of ranks; all must have the same shape."""
        gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        tensor = tensor.contiguous()
        HELD.append([tensor, *gathered])
        dist.all_gather(gathered, tensor)
        return gathered

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return rank 0's tensor; the argument may be overwritten."""
        tensor = tensor.contiguous()
        HELD.append([tensor])
        dist.broadcast(tensor, 0)
        return tensor


def join(device: torch.device, timeout: float) -> None:
    """Create the process group together with the other processes, unless there is one.

    Args:
        device: the device of the local backend.
        timeout: seconds to wait for the other processes.

    Raises:
        Unavailable: torch lacks torch.distributed, torchrun did not start this process, or another one is missing.
        OptionError: the existing process group cannot exchange tensors on the CPU.
    """
    if not dist.is_available():
        raise Unavailable(
            "distributed: got a torch without torch.distributed, expected one with it; install another build of torch"
        )
    if dist.is_initialized():
        if "cpu:" not in (there := dist.get_backend_config()):
            raise OptionError(
                f"distributed: got a process group for {there} only, expected one that also exchanges tensors on the "
                f"CPU; make it with {transport(device)!r}, or let this backend make it"
            )
        return
    if missing := [name for name in RENDEZVOUS if not os.environ.get(name)]:
        raise Unavailable(
            f"distributed: got no {', '.join(missing)} in the environment, expected a process that torchrun "
            f"has started; start it by\n  {torchrun_line(sys.argv)}\nor compute in one process: --backend.name=cpu"
        )
    if device == torch.device("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    patience = timedelta(seconds=timeout)
    try:
        store, rank, size = next(iter(dist.rendezvous("env://", timeout=patience)))  # type: ignore[attr-defined]
        store = dist.PrefixStore(session(store, rank, size, timeout), store)  # type: ignore[attr-defined]
        dist.init_process_group(transport(device), store=store, rank=rank, world_size=size, timeout=patience)
    except (RuntimeError, ValueError, TimeoutError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise Unavailable(
            f"distributed: rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} got no connection to the other "
            f"processes, expected one at {place} within {timeout:g} s: {str(error).strip().partition(chr(10))[0]}"
        ) from error
    atexit.register(leave)


def session(store: Any, rank: int, size: int, timeout: float) -> str:
    """Agree with the other running processes on a name, which prefixes their keys in the launcher's store.

    torchrun's store outlives processes that are restarted. Without a new prefix, the addresses of the former processes
    would be taken for those of the present ones (https://github.com/pytorch/pytorch/issues/135712). Rank 0 invents the
    name. Each other process writes a random word under the name, and trusts the name once rank 0 has repeated this
    word; no entry of a former session can do that.

    Args:
        store: the launcher's ``torch.distributed.Store``.
        rank: the number of this process.
        size: the number of processes.
        timeout: seconds to wait for the other processes.

    Raises:
        TimeoutError: a process did not appear; the message says which.
    """
    until = time.monotonic() + timeout
    own = uuid.uuid4().hex
    waiting = list(range(1, size))
    if rank == 0:
        store.set("kshot/session", own)
    while waiting and time.monotonic() < until:
        if rank == 0:
            # Repeat the words of the processes that have written one.
            here = [r for r in waiting if store.check([f"{own}/came/{r}"])]
            for r in here:
                store.set(f"{own}/answer/{r}", store.get(f"{own}/came/{r}"))
            waiting = [r for r in waiting if r not in here]
        elif store.check(["kshot/session"]):
            # The name may still be that of a former session, so read it again until rank 0 answers under it.
            name = str(store.get("kshot/session").decode())
            store.set(f"{name}/came/{rank}", own)
            if store.check([f"{name}/answer/{rank}"]) and store.get(f"{name}/answer/{rank}").decode() == own:
                return name
        time.sleep(0.02)
    if waiting:
        raise TimeoutError(f"got no answer from rank {', '.join(map(str, waiting)) if rank == 0 else 0}")
    return own


def leave() -> None:
    """Destroy the process group, and wait for gloo's threads to release their tensors, see ``HELD``."""
    if dist.is_initialized():
        dist.destroy_process_group()
    until = time.monotonic() + 0.5
    while any(t._use_count() > 1 for tensors in HELD for t in tensors if hasattr(t, "_use_count")):
        if time.monotonic() > until:
            break
        time.sleep(0.001)


def transport(device: torch.device) -> str:
    """Return torch.distributed's backend: gloo for tensors on the CPU, and nccl in addition on a CUDA device.

    A CUDA device needs both, because ranks also exchange tensors on the CPU.
    """
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def torchrun_line(argv: list[str]) -> str:
    """Return the torchrun command that runs this process's command in two processes."""
    program = Path(argv[0])
    command_line = program.stem == "kshot" or program.name == "__main__.py"
    what = ["kshot", *argv[1:]] if command_line else argv
    # Without "--", torchrun takes --run for its own --run-path.
    separator = ["--"] if any(word.startswith("--r") for word in argv) else []
    return shlex.join(["torchrun", "--nproc-per-node", "2", *(["-m"] if command_line else []), *separator, *what])
