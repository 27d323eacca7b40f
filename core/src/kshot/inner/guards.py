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
from collections.abc import Callable, Sequence
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


class Watched:
    """Record values by the things that contain them, and tell quickly whether they have changed.

    Args:
        get: returns the value of a thing and a key; for a key that is gone, ``None`` or another value than recorded.

    Example:
        >>> sizes, watched = {"a": 1}, Watched(dict.get)
        >>> watched.watch(sizes, "a", 1)
        >>> watched.hold(), watched.changed()
        (True, None)
        >>> sizes["a"] = 2
        >>> watched.hold(), watched.changed()
        (False, 'a')
    """

    def __init__(self, get: Callable[[Any, Any], Any]) -> None:
        self._get = get
        self._things: list[Any] = []
        self._keys: list[Any] = []
        self.values: list[Any] = []

    def watch(self, thing: Any, key: Any, value: Any) -> None:
        """Record a value."""
        self._things.append(thing)
        self._keys.append(key)
        self.values.append(value)

    def hold(self) -> bool:
        """Return whether all values are as they were recorded."""
        # In the usual case everything is the very same object, which is decided without a loop in Python.
        now = map(self._get, self._things, self._keys)
        return all(map(operator.is_, now, self.values)) or self.changed() is None

    def changed(self) -> Any:
        """Return the key of the first value that has changed, or None."""
        for thing, key, value in zip(self._things, self._keys, self.values, strict=True):
            if not _equal(self._get(thing, key), value):
                return key
        return None


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
        self._items = Watched(dict.get)  # of dicts
        self._attributes = Watched(_attribute)  # of objects without a dict, and of cells
        self._places = Watched(operator.getitem)  # of lists
        self._arrays: list[tuple[Any, Any]] = []  # arrays of NumPy, and copies of them
        self._containers: list[Any] = []
        self._lengths: list[int] = []
        self._seen: set[int] = set()
        self._keep: list[Any] = []  # objects whose identity was recorded, so that no other gets the same one
        self._look(function)
        self._compared, self._facts = self.tensors, [_facts(t) for t in self.tensors]

    def leave_out(self, inputs: Sequence[Any]) -> None:
        """Stop comparing the shapes and types of tensors that are inputs of the trace too: those are compared anyway.

        Args:
            inputs: of the trace.
        """
        given = set(map(id, inputs))
        self._compared = [t for t in self.tensors if id(t) not in given]
        self._facts = [_facts(t) for t in self._compared]

    def holds(self) -> bool:
        """Return whether everything is as it was recorded."""
        return (
            list(map(len, self._containers)) == self._lengths
            and self._items.hold()
            and self._attributes.hold()
            and self._places.hold()
            and self._changed_array() is None
            and list(map(_facts, self._compared)) == self._facts
        )

    def changed(self) -> str:
        """Return the name of the first value that has changed, for a message."""
        place = self._places.changed()
        in_list = None if place is None else f"item {place} of a list"
        found = self._items.changed(), self._attributes.changed(), in_list, self._changed_array()
        return str(next((name for name in found if name is not None), "an attribute"))

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
        if sum(len(w.values) for w in (self._items, self._attributes, self._places)) > MOST_VALUES:
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
                self._items.watch(value, key, item)
                self._look(item)
        elif isinstance(value, list | deque):
            self._sized(value)
            for i, item in enumerate(value):
                self._places.watch(value, i, item)
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
                self._attributes.watch(cell, "cell_contents", content)
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
                    self._attributes.watch(thing, name, value)
                    self._look(value)


def _is_unguarded(cls: type) -> bool:
    """Return whether objects of a class say that nothing in them changes what a function computes."""
    return any(vars(c).get("unguarded") is True for c in cls.__mro__)


def _attribute(thing: Any, name: str) -> Any:
    """Return an attribute, or an object that is equal to nothing if it is gone."""
    return getattr(thing, name, _MISSING)


def _equal(a: Any, b: Any) -> bool:
    """Return whether two plain values are equal, or are the same object."""
    return a is b or (type(a) is type(b) and isinstance(a, (*_PLAIN, tuple)) and bool(a == b))


def _facts(t: Tensor) -> tuple[Any, ...]:
    """Return what a trace assumes about a tensor: everything except its values."""
    return t.shape, t.stride(), t.dtype, t.device, t.requires_grad, has_hooks(t)
