"""Compute on an NVIDIA GPU: the device, its precision, and the tables of examples in its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any, Literal, TypeVar

import torch
from torch import nn

from kshot import Cpu, Episode, TaskDistribution, World
from kshot.devices import Tables, convolves, format_for, gathered_sample, move
from kshot.errors import OptionError, Unavailable
from kshot.inner import has_inner_loop
from kshot.registry import Range

T = TypeVar("T")


class Cuda:
    """Compute on an NVIDIA GPU, with one process.

    Learners and episodes are moved to the device. Tables of examples that fit are copied there once, uint8 tables as
    uint8, and the examples of an episode are selected there. Their bits are the same as on the host, the CPU. Other
    episodes are transferred through pinned memory.

    Args:
        precision: ``float32``, or ``bfloat16`` by autocast. ``auto`` chooses bfloat16 if the device computes with it
            (compute capability 8.0, Ampere, or later) and the first module that is placed has convolutions and no
            inner loop. Other networks would lose precision and gain little speed. With an inner loop (MAML), the error
            of the meta-gradient in bfloat16 was 20 % on a CPU.
        memory_format: memory format of convolution weights. ``auto`` is ``channels_last`` in bfloat16 and for modules
            without batch or group norm, and ``contiguous`` otherwise, as with the backend ``cpu``.
        index: the number of the device, from 0; None for the current device of the process. Under torchrun with
            ``--backend=distributed --backend.local=cuda``, this is the device with the number ``LOCAL_RANK``.
        tf32: whether float32 products and convolutions may round their factors to 10 bits (TF32), which is faster and
            changes results by about 1e-3. torch allows this for convolutions by default; this backend does not.
        deterministic: whether cuDNN, the library for convolutions, uses only algorithms that give the same bits each
            time. Other operations may still add the terms of a sum in any order.
        resident: whether to keep tables of examples in the memory of the device, if a table takes at most half of what
            is free.

    Raises:
        Unavailable: there is no device, or torch can't use it.
        OptionError: there is no device with this number.

    Example:
        >>> backend = Cuda(precision="float32") if present() else None
        >>> backend is None or backend.describe()["name"] == "cuda"
        True
    """

    world: World = Cpu.world

    def __init__(
        self,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
        memory_format: Literal["auto", "channels_last", "contiguous"] = "auto",
        index: Annotated[int, Range(0)] | None = None,
        tf32: bool = False,
        deterministic: bool = False,
        resident: bool = True,
    ) -> None:
        self.device = device_of(index)
        self.precision: str = precision
        self.memory_format: str = memory_format
        self._chooses_format = memory_format == "auto"
        self.index, self.tf32, self.deterministic, self.resident = index, tf32, deterministic, resident
        self._tables = Tables(self.device, lambda: free_bytes(self.device))

    def place(self, x: T) -> T:
        """Return ``x`` on the device with the same numbers; a module is moved in place.

        The first module decides the precision if that is ``auto``, and each module its own memory format.
        """
        if isinstance(x, nn.Module):
            # The device is asked here and not when the backend is built, because ``distributed`` chooses it in between.
            if self.precision == "auto":
                exact_enough = convolves(x) and not has_inner_loop(x)
                self.precision = "bfloat16" if exact_enough and has_bfloat16(self.device) else "float32"
            if self._chooses_format:
                self.memory_format = format_for(x, self.precision)
        return move(x, self.device, memory_format=self.memory_format, pin=self.device.type == "cuda")

    def sample_on_device(self, tasks: TaskDistribution, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes on the device, selected from the tables there if ``resident`` (ability ``Samples``)."""
        if not self.resident:
            return self.place(tasks.sample(split, indices))
        return self.place(gathered_sample(tasks, split, indices, self._tables))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the learner computes: its precision, TF32 and the algorithms of cuDNN."""
        cast = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()
        return computing(cast, self.tf32, self.deterministic)

    def describe(self) -> Mapping[str, Any]:
        """Return name, device, precision, memory format (``auto`` until decided), options, and bytes of tables."""
        return {
            "name": "cuda",
            "device": device_name(self.device),
            "index": self.index,
            "precision": self.precision,
            "memory_format": self.memory_format,
            "tf32": self.tf32,
            "deterministic": self.deterministic,
            "resident": self.resident,
            "tables": self._tables.describe(),
        }


def present() -> bool:
    """Return whether torch can use an NVIDIA GPU here; kshot calls this if the user names no backend.

    An AMD GPU, which torch also calls cuda, was never tried, so it is used only if the user names this backend.

    Example:
        >>> present() == (torch.cuda.is_available() and torch.version.hip is None)
        True
    """
    return torch.cuda.is_available() and torch.version.hip is None


def device_of(index: int | None) -> torch.device:
    """Return the device ``index``, or the current device of the process for None, after checking that it exists.

    Raises:
        Unavailable: torch was built without CUDA, or finds no device.
        OptionError: no device has this number.

    Example:
        >>> device_of(None).type if present() else "cuda"
        'cuda'
    """
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.backends.cuda.is_built() else "no CUDA"
        raise Unavailable(
            f"cuda: got no device that torch {torch.__version__}, built with {built}, can use; expected an "
            "NVIDIA GPU with its driver; see nvidia-smi and https://pytorch.org/get-started, or compute on the CPU: "
            "--backend.name=cpu"
        )
    if index is not None and index >= (count := torch.cuda.device_count()):
        names = ", ".join(f"{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
        raise OptionError(f"cuda: got index={index}, expected the number of a device: {names}; choose one")
    return torch.device("cuda") if index is None else torch.device("cuda", index)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware of a device computes in bfloat16 (Ampere or later); older ones emulate it slowly."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def free_bytes(device: torch.device) -> int:
    """Return how many bytes of a device's memory torch can use: free, or reserved by torch and not in use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def device_name(device: torch.device) -> str:
    """Return the name of a device, such as ``NVIDIA H200``."""
    return torch.cuda.get_device_name(device)


@contextmanager
def computing(cast: AbstractContextManager[Any], tf32: bool, deterministic: bool) -> Iterator[None]:
    """Run a ``with`` block inside ``cast`` and with these settings of the process; restore the settings afterwards.

    Args:
        cast: the context of autocast.
        tf32, deterministic: as for ``Cuda``.

    Example:
        >>> with computing(nullcontext(), tf32=False, deterministic=True):
        ...     torch.backends.cudnn.deterministic
        True
    """
    chosen = [*float32_settings(tf32), (_get_deterministic, _set_deterministic, deterministic)]
    before = [get() for get, _, _ in chosen]
    try:
        for _, put, value in chosen:
            put(value)
        with cast:
            yield
    finally:
        for (_, put, _), value in zip(chosen, before, strict=True):
            put(value)


Setting = tuple[Callable[[], Any], Callable[[Any], None], Any]
"""Three items: a function that returns a setting of the process, one that changes it, and the wanted value."""


def float32_settings(tf32: bool) -> list[Setting]:
    """Return the settings that decide whether products and convolutions of float32 numbers are rounded to TF32.

    torch has two interfaces. The older one raises an error after the newer one (torch 2.9) was used.

    Args:
        tf32: whether to round.

    Example:
        >>> all(callable(get) and callable(put) for get, put, value in float32_settings(tf32=False))
        True
    """
    try:
        torch.get_float32_matmul_precision()
        _get_cudnn()
    except RuntimeError:
        cudnn: Any = torch.backends.cudnn
        owners = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)
        return [_newer(owner, "tf32" if tf32 else "ieee") for owner in owners]
    matmul = (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "high" if tf32 else "highest")
    return [matmul, (_get_cudnn, _set_cudnn, tf32)]


def _newer(owner: Any, value: str) -> Setting:
    return lambda: owner.fp32_precision, lambda new: setattr(owner, "fp32_precision", new), value


def _get_cudnn() -> bool:
    return bool(torch.backends.cudnn.allow_tf32)


def _set_cudnn(value: bool) -> None:
    torch.backends.cudnn.allow_tf32 = value


def _get_deterministic() -> bool:
    return bool(torch.backends.cudnn.deterministic)


def _set_deterministic(value: bool) -> None:
    torch.backends.cudnn.deterministic = value
