"""Compute on the CPU. This backend is built in; other devices are plugins that satisfy ``kshot.protocols.Backend``."""

from __future__ import annotations

import ctypes
import operator
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from kshot.devices import convolves, format_for
from kshot.episode import Episode, map_tensors
from kshot.errors import OptionError
from kshot.inner import has_inner_loop
from kshot.protocols import World

T = TypeVar("T")


class OneProcess:
    """Represent the world of a single process: rank 0 of 1, in which every reduction returns its argument."""

    rank = 0
    size = 1

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return ``tensor``, the sum over one rank."""
        return tensor

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """Return ``[tensor]``."""
        return [tensor]

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return ``tensor``."""
        return tensor


class Cpu:
    """Compute on the CPU, with one process.

    Args:
        precision: ``float32``, or ``bfloat16`` by autocast, which makes convolutions 2.4 to 2.7 times faster on
            processors with bfloat16 instructions, and many times slower on others. ``auto`` chooses bfloat16 if the
            processor has such instructions and the first module that is placed has convolutions and no inner loop.
            Other networks gain no speed and would lose precision, and inner loops multiply the error (see
            ``kshot.inner.has_inner_loop``).
        memory_format: memory format of convolution weights. ``channels_last`` trains a network of four convolutions 1.2
            to 1.6 times faster, but torch's batch norm adds up the numbers of a channel in single precision there: in
            float32 a batch variance may be wrong by 1e-3, and inner loops multiply that. ``auto`` is ``channels_last``
            in bfloat16, which has fewer digits anyway, and for modules without such normalisation, and ``contiguous``
            otherwise.
        threads: number of torch threads, set for the whole process; None leaves it unchanged.
        keep_freed_memory: make glibc keep freed memory for the next step instead of returning it to the kernel (up to
            3 times faster). It holds for the rest of the process, and has no effect on other platforms than Linux.

    Raises:
        OptionError: ``threads`` is less than 1, or more than 4 for each processor.

    Example:
        >>> import kshot
        >>> backend = kshot.Cpu(precision="float32")
        >>> backend.describe()["precision"], backend.world.size
        ('float32', 1)
    """

    world: World = OneProcess()

    def __init__(
        self,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        memory_format: Literal["auto", "channels_last", "contiguous"] = "auto",
        threads: int | None = None,
        keep_freed_memory: bool = True,
    ) -> None:
        most = 4 * (os.cpu_count() or 1)  # torch starts all of them, and crashes the process if it can't
        if isinstance(threads, bool) or not (threads is None or hasattr(threads, "__index__")):
            raise OptionError(f"cpu: got threads={threads!r}, expected a whole number, or None")
        if threads is not None and not 1 <= threads <= most:
            bound = "at least 1" if threads < 1 else f"at most {most}, 4 for each processor"
            raise OptionError(f"cpu: got threads={threads}, expected {bound}")
        self.device = torch.device("cpu")
        self.precision: str = "float32" if precision == "auto" and not has_bfloat16() else precision
        self.memory_format: str = memory_format
        self._chooses_format = memory_format == "auto"
        if threads is not None:
            torch.set_num_threads(operator.index(threads))
        self.keep_freed_memory = keep_freed_memory and keep_freed_blocks()

    def place(self, x: T) -> T:
        """Return ``x`` with the same numbers; the convolution weights of a module are converted in place.

        The first module decides the precision if that is ``auto``, and each module its own memory format.
        """
        if isinstance(x, Episode) and self.memory_format == "contiguous" and not _contiguous(x):
            # Channels-last images would make a network compute in this format, whatever that of its weights.
            return map_tensors(lambda t: t.contiguous() if t.ndim == 5 else t, x)
        if not isinstance(x, nn.Module):
            return x
        if self.precision == "auto":
            self.precision = "bfloat16" if convolves(x) and not has_inner_loop(x) else "float32"
        if self._chooses_format:
            self.memory_format = format_for(x, self.precision)
        # Module.to changes the strides of one-channel weights too, which Tensor.contiguous leaves as they are.
        channels_last = self.memory_format == "channels_last"
        return x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the learner computes: bfloat16 autocast, or no change for float32."""
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "bfloat16" else nullcontext()

    def __repr__(self) -> str:
        return f"<Cpu: {', '.join(f'{name} {value}' for name, value in self.describe().items() if name != 'name')}>"

    def describe(self) -> Mapping[str, Any]:
        """Return name, precision and memory format (``auto`` until decided), threads, and keep_freed_memory."""
        return {
            "name": "cpu",
            "precision": self.precision,
            "memory_format": self.memory_format,
            "threads": torch.get_num_threads(),
            "keep_freed_memory": self.keep_freed_memory,
        }


def _contiguous(episodes: Episode) -> bool:
    """Return whether the images of support and queries are contiguous, so that nothing need be copied."""
    return all(t.ndim != 5 or t.is_contiguous() for t in (episodes.support.x, episodes.query.x))


def has_bfloat16() -> bool:
    """Return whether this processor has bfloat16 instructions (AVX-512 BF16 or AMX)."""
    cpu = torch.cpu
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(cpu, name)()) for name in probes if hasattr(cpu, name))


def keep_freed_blocks() -> bool:
    """Make glibc's malloc keep freed blocks (no trimming, no mmap for large ones); return whether it accepted that."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_threshold, largest = -1, -3, 1 << 30
    return bool(mallopt(mmap_threshold, largest)) and bool(mallopt(trim_threshold, (1 << 31) - 1))
