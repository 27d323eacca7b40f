"""Identify a piece of work: by its function, the structure and shapes of its inputs, and the settings of torch.

``Replays`` finds the trace of a piece of work by this identity. The functions run for every meta-batch, so they are
written to be fast.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from kshot.episode import Episode

AUTOCAST = ("cpu", "cuda", "mps")
"""The types of devices on which the backends of kshot compute by autocast."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_FUNCTIONS = (functools.partial, types.MethodType, types.FunctionType)


def identity_of(function: Any, *, by_shape: bool = False, depth: int = 3) -> Any:
    """Return a key that identifies a function: its code, its object, and the values that it closes over.

    Args:
        function: a function, a bound method, a partial of one, or another callable.
        by_shape: compare tensors that it closes over by shape and type only; otherwise only the same object is equal.
        depth: how many levels of functions that it closes over are compared in this way; deeper ones are equal only if
            they are the same object.

    Example:
        >>> def scaled(by):
        ...     return lambda x: by * x
        >>> identity_of(scaled(2)) == identity_of(scaled(2)), identity_of(scaled(2)) == identity_of(scaled(3))
        (True, False)
    """

    def known(value: Any) -> Any:
        if isinstance(value, _PLAIN):
            return type(value), value
        if by_shape and isinstance(value, Tensor):
            return value.shape, value.dtype
        if isinstance(value, tuple):
            return tuple(map(known, value))
        if depth and isinstance(value, _FUNCTIONS):
            return identity_of(value, by_shape=by_shape, depth=depth - 1)
        return id(value)

    if isinstance(function, functools.partial):
        named = sorted((name, known(value)) for name, value in function.keywords.items())
        return known(function.func), tuple(map(known, function.args)), tuple(named)
    if isinstance(function, types.MethodType):
        return identity_of(function.__func__, by_shape=by_shape, depth=depth), id(function.__self__)
    if isinstance(function, types.FunctionType):
        cells = tuple(known(content_of(cell)) for cell in function.__closure__ or ())
        named = sorted((name, known(value)) for name, value in (function.__kwdefaults__ or {}).items())
        return function.__code__, cells, tuple(map(known, function.__defaults__ or ())), tuple(named)
    return type(function), id(function)


def content_of(cell: Any) -> Any:
    """Return the value of a variable of an enclosing function; None before it is assigned."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def flatten(value: Any, leaves: list[Any], structure: list[Any]) -> None:
    """Append the leaves of a pytree to ``leaves``, in the order of torch's pytrees, and its structure to ``structure``.

    The origin of an episode is left out: two episodes that differ in it alone have the same structure.

    Example:
        >>> leaves, structure = [], []
        >>> flatten({"a": torch.zeros(1), "b": (1, 2)}, leaves, structure)
        >>> leaves, structure
        ([tensor([0.]), 1, 2], [('a', 'b'), (<class 'tuple'>, 2)])
    """
    kind = type(value)
    if isinstance(value, Tensor):
        leaves.append(value)
        return
    if kind is dict:
        structure.append(tuple(value))
        children = value.values()
    elif kind is tuple or kind is list:
        structure.append((kind, len(value)))
        children = value
    elif kind in pytree.SUPPORTED_NODES:
        children, context = pytree.SUPPORTED_NODES[kind].flatten_fn(value)
        if kind is Episode:
            context = context[0], {name: v for name, v in context[1].items() if name != "origin"}
        structure.append((kind, context))
    else:
        leaves.append(value)
        return
    for child in children:
        flatten(child, leaves, structure)


def same_structure(a: list[Any], b: list[Any]) -> bool:
    """Return whether two structures have the same types, names and other values that are not tensors.

    Example:
        >>> same_structure([("a",), (tuple, 2)], [("a",), (tuple, 3)])
        False
    """
    try:
        return bool(a == b)
    except Exception:  # a value whose comparison raises, or has no truth value
        return False


def facts_of(t: Any) -> Any:
    """Return what a trace assumes about an input: everything about a tensor except its numbers, or any other value.

    Example:
        >>> facts_of(torch.zeros(2))
        (torch.Size([2]), (1,), torch.float32, device(type='cpu'), False, True, False)
    """
    if not isinstance(t, Tensor):
        return t
    return t.shape, t.stride(), t.dtype, t.device, t.requires_grad, t.is_leaf, has_hooks(t)


def has_hooks(t: Tensor) -> bool:
    """Return whether autograd calls a function of the user when a tensor gets its gradient, which a trace would not do.

    Example:
        >>> has_hooks(torch.zeros(2))
        False
    """
    return bool(t._backward_hooks or t._post_accumulate_grad_hooks)


def surroundings() -> tuple[Any, ...]:
    """Return the settings of torch under which a trace is valid.

    Example:
        >>> surroundings()
        (torch.float32, True)
    """
    autocast = [(d, torch.get_autocast_dtype(d)) for d in AUTOCAST if torch.is_autocast_enabled(d)]
    return torch.get_default_dtype(), torch.is_grad_enabled(), *autocast
