"""Compute on the GPU of a Mac with Metal Performance Shaders (MPS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from kshot import Cpu, Episode, TaskDistribution, World
from kshot.devices import Tables, format_for, gathered_sample, move
from kshot.episode import map_tensors
from kshot.errors import MisfitError, Unavailable

T = TypeVar("T")


class Mps:
    """Compute on the GPU of a Mac, with one process.

    Learners and episodes are moved to the device. Tables of examples that fit are copied there once, uint8 tables as
    uint8, and the examples of an episode are selected there. Their bits are the same as on the host, the CPU. MPS has
    no float64.

    Args:
        precision: ``float32``, or ``bfloat16`` by autocast. ``auto`` is float32, because it was not
            measured whether bfloat16 is faster.
        memory_format: memory format of convolution weights. ``auto`` is ``channels_last`` in bfloat16 and for modules
            without batch or group norm, and ``contiguous`` otherwise, as with the backend ``cpu``.
        resident: whether to keep tables of examples in the memory of the device, if a table takes at most half of what
            is free.

    Raises:
        Unavailable: there is no such device, or torch can't use it.

    Example:
        >>> backend = Mps() if present() else None
        >>> backend is None or backend.describe()["name"] == "mps"
        True
    """

    world: World = Cpu.world

    def __init__(
        self,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        memory_format: Literal["auto", "channels_last", "contiguous"] = "auto",
        resident: bool = True,
    ) -> None:
        self.device = device()
        self.precision: str = "float32" if precision == "auto" else precision
        self.memory_format: str = memory_format
        self._chooses_format = memory_format == "auto"
        self.resident = resident
        self._tables = Tables(self.device, free_bytes)

    def place(self, x: T) -> T:
        """Return ``x`` on the device with the same numbers; a module is moved in place.

        Raises:
            MisfitError: a tensor is float64 or complex128, which MPS does not have.
        """
        if isinstance(x, nn.Module):
            for tensor in (*x.parameters(), *x.buffers()):
                check_type(tensor)
            if self._chooses_format:
                self.memory_format = format_for(x, self.precision)
        else:
            map_tensors(check_type, x)
        return move(x, self.device, memory_format=self.memory_format)

    def sample_on_device(self, tasks: TaskDistribution, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes on the device, selected from the tables there if ``resident`` (ability ``Samples``)."""
        if not self.resident:
            return self.place(tasks.sample(split, indices))
        return self.place(gathered_sample(tasks, split, indices, self._tables))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the learner computes: bfloat16 autocast, or no change for float32."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    def describe(self) -> Mapping[str, Any]:
        """Return name, precision, memory format (``auto`` until decided), options, and bytes of tables."""
        return {
            "name": "mps",
            "precision": self.precision,
            "memory_format": self.memory_format,
            "resident": self.resident,
            "tables": self._tables.describe(),
        }


def present() -> bool:
    """Return whether torch can use the GPU of this Mac; kshot calls this if the user names no backend.

    Example:
        >>> present() == torch.backends.mps.is_available()
        True
    """
    return torch.backends.mps.is_available()


def device() -> torch.device:
    """Return the device, after checking that it exists.

    Raises:
        Unavailable: torch was built without MPS, or this machine is not a Mac with a usable GPU.

    Example:
        >>> device().type if present() else "mps"
        'mps'
    """
    if not torch.backends.mps.is_available():
        built = "with" if torch.backends.mps.is_built() else "without"
        raise Unavailable(
            f"mps: got no device that torch {torch.__version__}, built {built} MPS, can use; expected a Mac with an "
            "Apple or AMD GPU and macOS 14 or later; compute on the CPU: --backend.name=cpu"
        )
    return torch.device("mps")


def free_bytes() -> int:
    """Return how many more bytes of memory can be used without exceeding the amount that Metal recommends."""
    return max(0, int(torch.mps.recommended_max_memory()) - int(torch.mps.driver_allocated_memory()))


def check_type(tensor: Tensor) -> Tensor:
    """Return the tensor, after checking that MPS has its type.

    Raises:
        MisfitError: it is float64 or complex128.

    Example:
        >>> check_type(torch.ones(2))
        tensor([1., 1.])
    """
    if tensor.dtype in (torch.float64, torch.complex128):
        raise MisfitError(
            f"mps: got a {tensor.dtype} tensor of shape {tuple(tensor.shape)}, expected at most float32, because MPS "
            "has no float64; convert it, or compute on the CPU: --backend.name=cpu"
        )
    return tensor
