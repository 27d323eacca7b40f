"""What backends of accelerators have in common: precision, memory format, transfer, and tables kept on the device.

A backend for another device is a plugin (see ``kshot.protocols.Backend``); these functions make it short.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from attrs import define
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from kshot.episode import Episode, map_tensors
from kshot.pools import Pool
from kshot.protocols import Backend, Gathered, TaskDistribution

__all__ = ["Tables", "convolves", "format_for", "gathered_sample", "move", "sample_on"]

T = TypeVar("T")

LOSE_DIGITS = (_BatchNorm, nn.GroupNorm)
"""Layers whose kernels may add up in single precision if their inputs are channels-last, as those for the CPU do."""


def convolves(module: nn.Module) -> bool:
    """Return whether a module has convolutions, which gain most by bfloat16.

    Example:
        >>> convolves(nn.Sequential(nn.Conv2d(1, 2, 3))), convolves(nn.Linear(2, 2))
        (True, False)
    """
    return any(isinstance(m, _ConvNd) for m in module.modules())


def format_for(module: nn.Module, precision: str) -> str:
    """Return the memory format of a module: ``channels_last`` unless that costs digits, else ``contiguous``.

    In bfloat16, which has few digits anyway, and without normalisation, channels-last costs none.

    Args:
        module: the module that is placed on a device.
        precision: ``float32`` or ``bfloat16``.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> format_for(net, "float32"), format_for(net, "bfloat16")
        ('contiguous', 'channels_last')
    """
    digits_lost = precision != "bfloat16" and any(isinstance(m, LOSE_DIGITS) for m in module.modules())
    return "contiguous" if digits_lost else "channels_last"


def move(value: T, device: torch.device, *, memory_format: str = "contiguous", pin: bool = False) -> T:
    """Return a module, tensor or pytree on ``device``; a module is moved in place.

    Args:
        value: what is moved; values other than tensors stay as they are.
        device: where to.
        memory_format: ``channels_last``, or ``contiguous``: then the images [B, n, C, H, W] of an episode are made
            contiguous, because channels-last ones would make a network compute in this format.
        pin: whether to copy by way of pinned memory, so that the processor does not wait for the transfer.

    Example:
        >>> move({"x": torch.ones(2), "way": 5}, torch.device("cpu"))
        {'x': tensor([1., 1.]), 'way': 5}
    """
    if isinstance(value, nn.Module):
        # Module.to changes the strides of one-channel weights too, which Tensor.contiguous leaves as they are.
        last = memory_format == "channels_last"
        value.to(device).to(memory_format=torch.channels_last if last else torch.contiguous_format)
        return value

    def moved(t: Tensor) -> Tensor:
        if isinstance(value, Episode) and memory_format == "contiguous" and t.ndim == 5:
            t = t.contiguous()
        if pin and t.device.type == "cpu" and t.layout == torch.strided and not t.requires_grad:
            t = t.pin_memory()  # the memory is used again only after the transfer has ended
        return t.to(device, non_blocking=pin)

    return map_tensors(moved, value)


class Tables:
    """Keep tables of examples on a device, so that episodes are gathered there instead of being transferred.

    A table is copied as it is (uint8 images need a quarter of the memory of float32) when it is first used, if it
    takes at most ``share`` of the memory that is free then; otherwise its episodes are gathered on the host. It is
    freed when its pools are.

    Args:
        device: the device.
        free: returns how many bytes are free on the device.
        share: the largest part of the free memory that one table may take.

    Example:
        >>> pool = Pool.of(np.arange(8, dtype=np.uint8).reshape(4, 2), [0, 0, 1, 1])
        >>> tables = Tables(torch.device("cpu"), free=lambda: 1000)
        >>> bool((tables.gather(pool, np.array([3, 1])) == pool.gather(np.array([3, 1]))).all())
        True
        >>> tables.describe()
        {'on_device': 8, 'on_host': 0}
    """

    def __init__(self, device: torch.device, free: Callable[[], int], share: float = 0.5) -> None:
        self.device, self._free, self._share = device, free, share
        self._copies: dict[_Place, _Copy] = {}
        self._known: dict[int, tuple[weakref.ref[Tensor], _Place]] = {}  # by the identity of the pools' tensors
        # What uint8 numbers become: x / 255, divided on the host. A device may multiply by 1 / 255 instead, which
        # gives other last bits.
        self._levels = torch.arange(256).to(torch.uint8).to(torch.float32).div_(255)

    def gather(self, pool: Pool, ids: NDArray[np.int64]) -> Tensor:
        """Return rows ``ids`` [.., n] of a pool as inputs [.., n, *input]: the same bits as ``pool.gather(ids)``.

        They are on the device if the pool's table is, else on the host.
        """
        table = self._table(pool)
        if table is None:
            return pool.gather(ids)
        flat = table.index_select(0, torch.from_numpy(ids.reshape(-1)).to(self.device))
        if flat.dtype == torch.uint8:
            if self._levels.device != flat.device:
                self._levels = self._levels.to(flat.device)
            flat = self._levels.index_select(0, flat.flatten().to(torch.int32))
        return flat.view(*ids.shape, *pool.x.shape[1:])

    def _table(self, pool: Pool) -> Tensor | None:
        """Return the copy of a pool's table on the device, made when it is first asked for; None if there is none."""
        x = pool.x
        # A pool of another class may compute its examples, and mps has no float64.
        if type(pool) is not Pool or x.dtype not in (torch.uint8, torch.float32):
            return None
        if (known := self._known.get(id(x))) is not None and known[0]() is x:
            return self._copies[known[1]].there
        # Splits may have different tensors over one memory, which are copied once.
        place, name, size = (x.data_ptr(), tuple(x.shape), x.stride(), x.dtype), id(x), x.numel() * x.element_size()
        if place not in self._copies:
            there = None
            if size <= self._share * self._free():
                # The free memory may be in pieces.
                with contextlib.suppress(torch.OutOfMemoryError):
                    there = x.detach().to(self.device)
            self._copies[place] = _Copy(size, there, set())
        self._copies[place].tensors.add(name)
        self._known[name] = weakref.ref(x, lambda _: self._forget(name, place)), place
        return self._copies[place].there

    def _forget(self, name: int, place: _Place) -> None:
        """Free the copy of a table if this was the last tensor over its memory."""
        self._known.pop(name, None)
        copy = self._copies[place]
        copy.tensors.discard(name)
        if not copy.tensors:
            del self._copies[place]

    def describe(self) -> dict[str, int]:
        """Return how many bytes of tables are on the device, and how many were left on the host."""
        copies = self._copies.values()
        return {
            "on_device": sum(copy.size for copy in copies if copy.there is not None),
            "on_host": sum(copy.size for copy in copies if copy.there is None),
        }


_Place = tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype]
"""Where a table is in memory: address, shape, strides and type."""


@define(eq=False)
class _Copy:
    """A table on the device.

    Attributes:
        size: in bytes.
        there: the copy, or None if it does not fit.
        tensors: the identities of the tensors over the memory of the table.
    """

    size: int
    there: Tensor | None
    tensors: set[int]


def sample_on(backend: Backend, tasks: TaskDistribution, split: str, indices: Sequence[int]) -> Episode:
    """Return episodes on a backend's device: sampled there if the backend can (``Samples``), else sampled and placed.

    Example:
        >>> import kshot
        >>> from kshot.testing import sample_tasks
        >>> sample_on(kshot.Cpu(), sample_tasks.classification(), "train", [0, 1]).size
        2
    """
    sampler = getattr(backend, "sample_on_device", None)
    if sampler is None:
        return backend.place(tasks.sample(split, indices))
    episodes: Episode = sampler(tasks, split, indices)
    return episodes


def gathered_sample(tasks: Any, split: str, indices: Sequence[int], tables: Tables) -> Episode:
    """Return episodes whose examples are gathered from ``tables`` if the tasks allow that (``Gathered``).

    The result may be partly on the host, so it is placed afterwards.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tables = Tables(torch.device("cpu"), free=lambda: 1 << 20)
        >>> gathered_sample(sample_tasks.classification(), "train", [0], tables).size
        1
    """
    if isinstance(tasks, Gathered) and _samples_by_gathering(tasks):
        return tasks.sample_with(split, indices, tables.gather)
    episodes: Episode = tasks.sample(split, indices)
    return episodes


def _samples_by_gathering(tasks: Any) -> bool:
    """Return whether ``sample`` and ``sample_with`` are of one class, so that neither was overridden without the other.

    A view may pass on unknown attributes to the tasks that it changes, and a subclass may change ``sample`` only.
    """
    if "sample" in getattr(tasks, "__dict__", {}):
        return False
    first: Mapping[str, Any] = next((vars(c) for c in type(tasks).__mro__ if "sample" in vars(c)), {})
    return "sample_with" in first
