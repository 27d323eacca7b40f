"""The backend of several processes, on torch.distributed: who they are, and how they add up and pass on tensors.

What is computed where is the engine's affair; on what device and how precisely, that of the local backend within.
"""

from __future__ import annotations

import atexit
import os
import shlex
import sys
import time
import uuid
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

import kshot
from kshot import Backend, World
from kshot.errors import OptionError, Unavailable

T = TypeVar("T")

RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher puts into the environment of each process, so that they find one another."""


class Distributed:
    """Several processes that train one learner, started by torchrun.

    The process group is made when the first such backend is built, and destroyed when the process ends. Where one is
    there already, it is used as it is.

    Args:
        local: what each process computes on: a backend's name, its options (``--backend.local.threads=1``), or the
            backend itself. Processes on accelerators without a number take that of their ``LOCAL_RANK``.
        timeout: seconds that a process waits for the others before it gives up. They are waited for whenever they
            meet: while one is still loading its data, and while rank 0 writes a checkpoint or a hook draws a picture.

    Raises:
        Unavailable: the process was not started by torchrun, or the others did not come.
        OptionError: the timeout is not positive, the local backend is one of several processes itself, or the process
            group that is there does not carry tensors on the CPU.
    """

    def __init__(self, local: Backend | str = "cpu", timeout: float = 1800.0) -> None:
        if not timeout > 0:
            raise OptionError(f"distributed: timeout is {timeout}, expected a positive number of seconds")
        self.local: Backend = kshot.backend(local) if isinstance(local, str) else local
        if self.local.world.size != 1:
            raise OptionError("distributed: the local backend is one of several processes itself; expected e.g. cpu")
        self.device = torch.device(self.local.device)
        join(self.device, timeout)
        self.world: World = Group()

    def place(self, x: T) -> T:
        """As the local backend does."""
        return self.local.place(x)

    def autocast(self) -> AbstractContextManager[Any]:
        """The local backend's."""
        return self.local.autocast()

    def describe(self) -> Mapping[str, Any]:
        """Name, the number of processes, how they talk, the local backend's precision and its whole description."""
        local = dict(self.local.describe())
        return {
            "name": "distributed",
            "precision": local["precision"],
            "processes": self.world.size,
            "transport": str(dist.get_backend()),
            "local": local,
        }


HELD: deque[list[Tensor]] = deque(maxlen=2)
"""The tensors of the last calls. gloo's threads drop theirs a moment after a call has returned. Whoever drops a tensor
last needs the interpreter; a thread that asks for it while the process ends takes the process with it ("terminate
called without an active exception")."""


class Group:
    """The processes of torch.distributed's default group."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over ranks; what came is overwritten."""
        tensor = tensor.contiguous()
        HELD.append([tensor])
        dist.all_reduce(tensor)
        return tensor

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, in order of rank; they have the same shape."""
        gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(self.size)]
        tensor = tensor.contiguous()
        HELD.append([tensor, *gathered])
        dist.all_gather(gathered, tensor)
        return gathered

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor; what came is overwritten."""
        tensor = tensor.contiguous()
        HELD.append([tensor])
        dist.broadcast(tensor, 0)
        return tensor


def join(device: torch.device, timeout: float) -> None:
    """Meet the other processes, unless that was done before."""
    if not dist.is_available():
        raise Unavailable("this torch was built without torch.distributed")
    if dist.is_initialized():
        if "cpu:" not in (there := dist.get_backend_config()):
            raise OptionError(
                f"distributed: the process group that is there already carries {there} only; ranks also exchange "
                f"tensors on the CPU: make it with {transport(device)!r}, or let this backend make it"
            )
        return
    if missing := [name for name in RENDEZVOUS if not os.environ.get(name)]:
        raise Unavailable(
            f"this process was not started together with others: {', '.join(missing)} not set; start it by torchrun:\n"
            f"  {torchrun_line(sys.argv)}\nor compute in one process: --backend.name=cpu"
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
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not meet the other processes at {place} "
            f"within {timeout:g} s: {str(error).strip().partition(chr(10))[0]}"
        ) from error
    atexit.register(leave)


def session(store: Any, rank: int, size: int, timeout: float) -> str:
    """A name that the processes which are here now have in common, for what they keep in the store.

    torchrun's store outlives the processes that it restarts, and the addresses it still holds of those before would be
    taken for those of today (https://github.com/pytorch/pytorch/issues/135712). Rank 0 invents the name. A process
    believes in it once rank 0 has repeated what this very process told it under that name; nothing left over can.

    Args:
        store: the launcher's, a ``torch.distributed.Store``.

    Raises:
        TimeoutError: a process did not come; says which.
    """
    until = time.monotonic() + timeout
    own = uuid.uuid4().hex
    waiting = list(range(1, size))
    if rank == 0:
        store.set("kshot/session", own)
    while waiting and time.monotonic() < until:
        if rank == 0:
            here = [r for r in waiting if store.check([f"{own}/came/{r}"])]
            for r in here:
                store.set(f"{own}/answer/{r}", store.get(f"{own}/came/{r}"))
            waiting = [r for r in waiting if r not in here]
        elif store.check(["kshot/session"]):
            name = str(store.get("kshot/session").decode())
            store.set(f"{name}/came/{rank}", own)
            if store.check([f"{name}/answer/{rank}"]) and store.get(f"{name}/answer/{rank}").decode() == own:
                return name
        time.sleep(0.02)
    if waiting:
        raise TimeoutError(f"nothing was heard of rank {', '.join(map(str, waiting)) if rank == 0 else 0}")
    return own


def leave() -> None:
    """At the end of the process; a moment later where a thread of gloo still has a tensor of ours, see ``HELD``."""
    if dist.is_initialized():
        dist.destroy_process_group()
    until = time.monotonic() + 0.5
    while any(t._use_count() > 1 for tensors in HELD for t in tensors if hasattr(t, "_use_count")):
        if time.monotonic() > until:
            break
        time.sleep(0.001)


def transport(device: torch.device) -> str:
    """torch.distributed's backend: gloo for tensors on the CPU, as words between ranks are; nccl for those on CUDA."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def torchrun_line(argv: list[str]) -> str:
    """The command of this process, in two processes."""
    program = Path(argv[0])
    command_line = program.stem == "kshot" or program.name == "__main__.py"
    what = ["kshot", *argv[1:]] if command_line else argv
    own = ["--"] if any(word.startswith("--r") for word in argv) else []  # or torchrun takes --run for its --run-path
    return shlex.join(["torchrun", "--nproc-per-node", "2", *(["-m"] if command_line else []), *own, *what])
