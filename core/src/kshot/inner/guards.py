"""Record what a function depends on besides its arguments, so that a trace is not used after this has changed.

A trace has the numbers and choices of Python built in: the number of inner steps, a step size, whether a layer is in
training. ``Guard`` records every value that can be reached from a function: the attributes of its object, the modules
and containers in them, and the variables that it closes over. Global variables are not recorded.
"""

from __future__ import annotations

import functools
import operator
import random
import types
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kshot.inner.identity import has_hooks

MOST_VALUES = 100_000
"""Number of recorded values above which a function is not traced."""

MOST_NUMBERS = 1000
"""Number of elements above which an array of NumPy is not compared at every run; its function is not traced."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OPAQUE = (type, types.ModuleType, types.BuiltinFunctionType, types.CodeType)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)
_MISSING = object()


class Untraceable(Exception):
    """Raised for a function that can't be traced; the message says why."""


class Guard:
    """Record all values that are reachable from a function, and tell whether they have changed.

    Tensors are recorded by identity, shape, type and ``requires_grad``, and not by value, because a trace reads their
    values in each run. Numbers, texts, arrays of NumPy and the like are recorded by value, and other objects by
    identity, with what is in them.

    Args:
        function: a function, a bound method or a partial of one.

    Attributes:
        tensors: the tensors that were found, each once.

    Raises:
        Untraceable: a module or a tensor has hooks, whose effects a trace would lack, something contains a random
            generator, or there are too many values.

    Example:
        >>> class Scale:
        ...     def __init__(self):
        ...         self.by = 2
        ...     def __call__(self, x):
        ...         return self.by * x
        >>> scale = Scale()
        >>> guard = Guard(scale)
        >>> guard.holds()
        True
        >>> scale.by = 3
        >>> guard.holds()
        False
    """

    def __init__(self, function: Any) -> None:
        self.tensors: list[Tensor] = []
        self._dicts: list[dict[Any, Any]] = []  # for each recorded item of a dict: the dict, the key and the value
        self._keys: list[Any] = []
        self._values: list[Any] = []
        self._places: list[tuple[list[Any] | deque[Any], int, Any]] = []  # items of lists
        self._arrays: list[tuple[Any, Any]] = []  # arrays of NumPy, and copies of them
        self._containers: list[Any] = []
        self._lengths: list[int] = []
        self._attributes: list[tuple[Any, str, Any]] = []  # of objects without a dict, and of cells
        self._seen: set[int] = set()
        self._keep: list[Any] = []  # objects whose identity was recorded, so that no other gets the same one
        self._look(function)
        self._facts = [_facts(t) for t in self.tensors]

    def holds(self) -> bool:
        """Return whether everything is as it was recorded."""
        # The usual case, in which everything is the very same object, is decided without a loop in Python.
        if list(map(len, self._containers)) != self._lengths:
            return False
        now = map(dict.get, self._dicts, self._keys)
        if not all(map(operator.is_, now, self._values)) and self._changed_item() is not None:
            return False
        if self._changed_attribute() is not None or self._changed_array() is not None:
            return False
        return list(map(_facts, self.tensors)) == self._facts

    def changed(self) -> str:
        """Return the name of the first value that has changed, for a message."""
        return str(self._changed_item() or self._changed_attribute() or self._changed_array() or "an attribute")

    def _changed_item(self) -> Any:
        for container, key, value in zip(self._dicts, self._keys, self._values, strict=True):
            if not _equal(container.get(key, _MISSING), value):
                return key
        return None

    def _changed_attribute(self) -> str | None:
        """Return the name of an attribute, or the place in a list, whose value has changed."""
        for thing, name, value in self._attributes:
            if (now := getattr(thing, name, _MISSING)) is not value and not _equal(now, value):
                return name
        for container, i, value in self._places:
            if container[i] is not value and not _equal(container[i], value):
                return f"item {i} of a list"
        return None

    def _changed_array(self) -> str | None:
        """Return words for an array of NumPy whose numbers have changed."""
        for array, copy in self._arrays:
            if array.dtype != copy.dtype or array.shape != copy.shape or array.tobytes() != copy.tobytes():
                return "an array"
        return None

    def _look(self, value: Any) -> None:
        """Record a value and what is in it."""
        # ``unguarded`` is asked of the class: an object may answer for any name, or raise any exception.
        if isinstance(value, (*_PLAIN, *_OPAQUE)) or id(value) in self._seen or _is_unguarded(type(value)):
            return
        self._seen.add(id(value))
        self._keep.append(value)
        if len(self._values) + len(self._places) + len(self._attributes) > MOST_VALUES:
            raise Untraceable(f"it depends on more than {MOST_VALUES} values")
        if isinstance(value, Tensor):
            if has_hooks(value):
                raise Untraceable("a parameter has hooks")
            self.tensors.append(value)
        elif isinstance(value, types.MethodType):
            self._look(value.__self__)
            self._look(value.__func__)
        elif isinstance(value, types.FunctionType):
            self._look_at_function(value)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                self._look(part)
        elif isinstance(value, dict):
            self._sized(value)
            for key, item in list(value.items()):
                self._dicts.append(value)
                self._keys.append(key)
                self._values.append(item)
                self._look(item)
        elif isinstance(value, list | deque):
            self._sized(value)
            for i, item in enumerate(value):
                self._places.append((value, i, item))
                self._look(item)
        elif isinstance(value, tuple | set | frozenset):
            self._sized(value)
            for item in value:
                self._look(item)
        elif isinstance(value, np.ndarray):
            if value.size > MOST_NUMBERS:
                raise Untraceable("it depends on a large array of NumPy; keep it in a buffer")
            self._arrays.append((value, value.copy()))
        elif isinstance(value, _GENERATORS):
            raise Untraceable("it contains a random generator")
        else:
            self._look_at_object(value)

    def _sized(self, container: Any) -> None:
        self._containers.append(container)
        self._lengths.append(len(container))

    def _look_at_function(self, function: types.FunctionType) -> None:
        for cell in function.__closure__ or ():
            if (content := getattr(cell, "cell_contents", _MISSING)) is not _MISSING:
                self._attributes.append((cell, "cell_contents", content))
                self._look(content)
        self._look(function.__defaults__)
        self._look(function.__kwdefaults__)

    def _look_at_object(self, thing: Any) -> None:
        if isinstance(thing, nn.Module) and any(getattr(thing, hooks, None) for hooks in _HOOKS):
            raise Untraceable(f"the module {type(thing).__name__} has hooks")
        if isinstance(attributes := getattr(thing, "__dict__", None), dict):
            self._look(attributes)
        for cls in type(thing).__mro__:
            slots = cls.__dict__.get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                value = getattr(thing, name, _MISSING)
                if value is not _MISSING and name not in ("__weakref__", "__dict__"):
                    self._attributes.append((thing, name, value))
                    self._look(value)


def _is_unguarded(cls: type) -> bool:
    """Return whether objects of a class say that nothing in them changes what a function computes."""
    return any(vars(c).get("unguarded") is True for c in cls.__mro__)


def _equal(a: Any, b: Any) -> bool:
    """Return whether two plain values are equal, or are the same object."""
    return a is b or (type(a) is type(b) and isinstance(a, (*_PLAIN, tuple)) and bool(a == b))


def _facts(t: Tensor) -> tuple[Any, ...]:
    """Return what a trace assumes about a tensor: everything except its values."""
    return t.shape, t.stride(), t.dtype, t.device, t.requires_grad, has_hooks(t)
