"""A device that stands in for a GPU: it computes on the CPU, and refuses what a GPU refuses.

Its tensors say that they are on the device ``standin:0``. An operation on tensors of which some are on the CPU raises
RuntimeError, except where torch accepts that of a GPU: single numbers, indices and copies. So a learner that makes a
tensor on the wrong device is found on a machine without a GPU. It computes the numbers of the CPU, slowly.

torch registers one such device per process and can't remove it, so use it in a separate process. It needs torch 2.9 or
later, and uses an interface of torch that may change.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

from kshot._engine.cpu import OneProcess
from kshot.devices import Tables, gathered_sample, move
from kshot.episode import Episode
from kshot.protocols import TaskDistribution, World

T = TypeVar("T")

NAME = "standin"
"""The type of the device, as in ``tensor.to("standin")``."""

_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.copy_.default, _aten.copy.default)
"""Operations that take tensors on two devices."""

_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)
"""Operations whose indices may be on the CPU."""

_registered = False


class OnDevice(Tensor):
    """Represent a tensor on the device; ``held`` is the tensor on the CPU that has its numbers.

    For torch it is a tensor without numbers, on ``meta``, with the strides of the one that is held.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> OnDevice:
        """Wrap a tensor."""
        shape = torch.empty_strided(held.shape, held.stride(), dtype=held.dtype, device="meta")
        made: OnDevice = Tensor._make_subclass(
            cls, shape, requires_grad, dispatch_device=True, device_for_backend_keys=torch.device(NAME)
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation on the tensors that are held."""
        return _run(function, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device on which the tensor is."""
        return torch.device(NAME, 0)

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        """False."""
        return False

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        """False."""
        return False

    def tolist(self) -> Any:
        """Return the numbers, as a GPU's tensor does."""
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Return the numbers and the device."""
        return f"OnDevice({self.held!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Store the tensor as one on the CPU, as a checkpoint is read."""
        return self.held.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Copy a leaf with its numbers."""
        if id(self) not in memo:
            made: Any = OnDevice(copy.deepcopy(self.held.detach()), self.requires_grad)
            memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if hasattr(self, "_is_param") else made
        return memo[id(self)]


class _Machine(TorchDispatchMode):
    """A mode in which tensors are made on the device and moved there."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on the CPU, after checking that a GPU would run it; return tensors on the right device."""
    tensors = [t for t in pytree.arg_tree_leaves(*args, **kwargs) if isinstance(t, Tensor)]
    if function is torch.ops.prim.device.default:
        return args[0].device
    # 1. Refuse tensors on two devices.
    there = any(isinstance(t, OnDevice) for t in tensors)
    if there and function not in _COPIES:
        for t in tensors:
            index = function in _INDEXED and t.dtype in (torch.int64, torch.bool)
            if not isinstance(t, OnDevice) and t.ndim and not index:
                raise RuntimeError(
                    f"{function}: got tensors on {NAME}:0 and {t.device}, the latter of shape {tuple(t.shape)}, "
                    "expected all on one device; make it with device=x.device, or keep it as a buffer"
                )
    # 2. Decide where the result is: where it is asked for, else where the tensors are.
    if function is _aten.copy_.default:
        there = isinstance(args[0], OnDevice)
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    if (asked := kwargs.get("device")) is not None:
        there = torch.device(asked).type == NAME
        kwargs["device"] = torch.device("cpu") if there else asked
    # 3. Run it on the CPU. An operation in place returns its argument.
    wrappers = {id(t.held): t for t in tensors if isinstance(t, OnDevice)}
    held = pytree.tree_map_only(OnDevice, lambda t: t.held, (args, kwargs))
    result = _KERNELS.get(function, function)(*held[0], **held[1])
    if not there:
        return result
    return pytree.tree_map_only(Tensor, lambda t: wrappers[id(t)] if id(t) in wrappers else OnDevice(t), result)


def _lstm_cell(gates: Tensor, more: Tensor, cx: Tensor, *biases: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden state, cell and gates of an LSTM cell: torch has this operation for GPUs only."""
    i, f, g, o = sum([b for b in biases if b is not None], gates + more).chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat([i, f, g, o], 1)


def _lstm_cell_backward(
    grad_hy: Tensor | None, grad_cy: Tensor | None, cx: Tensor, cy: Tensor, gates: Tensor, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of the gates, of the cell before, and of a bias."""
    i, f, g, o = gates.chunk(4, 1)
    hy = torch.zeros_like(cy) if grad_hy is None else grad_hy
    c = hy * o * (1 - cy.tanh() ** 2) + (0 if grad_cy is None else grad_cy)
    parts = [c * g * i * (1 - i), c * cx * f * (1 - f), c * i * (1 - g * g), hy * cy.tanh() * o * (1 - o)]
    grad = torch.cat(parts, 1)
    return grad, c * f, grad.sum(0) if has_bias else None


_KERNELS = {
    _aten._thnn_fused_lstm_cell.default: _lstm_cell,
    _aten._thnn_fused_lstm_cell_backward_impl.default: _lstm_cell_backward,
}
"""Operations that torch has for GPUs only."""


class _Module(backend_registration._DummyBackendModule):
    """What torch asks of a type of device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Return the types of mixed precision, which is ignored here."""
        return [torch.bfloat16]


@contextmanager
def standing_in() -> Iterator[None]:
    """Make the device usable inside the block, by ``tensor.to("standin")``.

    Example:
        >>> with standing_in():  # in a separate process # doctest: +SKIP
        ...     torch.ones(2, device="standin") + torch.ones(2)
        Traceback (most recent call last):
        RuntimeError: aten.add.Tensor: got tensors on standin:0 and cpu, ...
    """
    global _registered
    if not _registered:
        backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
        _registered = True
    with _Machine():  # type: ignore[no-untyped-call]
        yield


@contextmanager
def _exchanging() -> Iterator[None]:
    """Let ``Module.to`` exchange parameters, since those on the CPU and on the device have other types for torch."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


class StandIn:
    """A backend that computes on the device, inside ``standing_in``.

    Example:
        >>> with standing_in():  # in a separate process # doctest: +SKIP
        ...     StandIn().place(torch.ones(2)).device
        device(type='standin', index=0)
    """

    world: World = OneProcess()

    def __init__(self) -> None:
        self.device = torch.device(NAME, 0)
        self._tables = Tables(self.device, lambda: 1 << 30)

    def place(self, x: T) -> T:
        """Return ``x`` on the device."""
        with _exchanging():
            return move(x, self.device)

    def sample_on_device(self, tasks: TaskDistribution, split: str, indices: Sequence[int]) -> Episode:
        """Return episodes on the device, gathered there if the tasks allow that."""
        return self.place(gathered_sample(tasks, split, indices, self._tables))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context that changes nothing."""
        return nullcontext()

    def describe(self) -> Mapping[str, Any]:
        """Return the name, the precision, and the bytes of tables on the device."""
        return {"name": NAME, "precision": "float32", "tables": self._tables.describe()}
