"""Handle the values in states that are stored: those of modules, which may be no tensors, and those of hooks."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kshot.errors import RunError

PLAIN = (type(None), bool, int, float, complex, str, bytes)
"""Types that a checkpoint can always hold."""


def copied(value: Any) -> Any:
    """Return a copy of a value of a ``state_dict``: of a tensor without its graph, or of what a module added to it."""
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def equal(a: Any, b: Any) -> bool:
    """Return whether two values of a ``state_dict`` are the same."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        # Sparse tensors can't be compared directly, nor can tensors on two devices: a checkpoint's are on the CPU.
        return a.shape == b.shape and torch.equal(_dense(a), _dense(b).to(a.device))
    if type(a) is not type(b):
        return False
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(np.all(a == b))


def shapes(state: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the shapes of the tensors in a ``state_dict``, by name; what modules add as extra state has none."""
    return {name: list(value.shape) for name, value in state.items() if isinstance(value, Tensor)}


def storable(value: Any, owner: str) -> Any:
    """Return a state as a checkpoint can hold it; numbers of numpy become Python's.

    Args:
        owner: whose state it is, for the message.

    Raises:
        RunError: something in it could be written, but not read again.
    """
    try:
        return _storable(value, owner)
    except RecursionError as error:
        raise RunError(f"{owner}: got a state that contains itself, expected nested plain containers") from error


def storable_parameters(state: Any) -> Any:
    """Apply ``storable`` to what modules add to a ``state_dict`` besides tensors (``get_extra_state``), in place.

    Raises:
        RunError: a module adds something that could not be read again; the message names the module.
    """
    for name, value in state.items():
        if type(value) is not Tensor:
            module = name.removesuffix("_extra_state").rstrip(".") or "the learner"
            state[name] = storable(value, f"state_dict of module {module!r}: {name}")
    return state


def _storable(value: Any, where: str) -> Any:
    if type(value) in PLAIN:
        return value
    if isinstance(value, np.number | np.bool_):
        return value.item()
    if type(value) in (dict, OrderedDict):
        return type(value)((_storable(k, f"{where}, a key"), _storable(v, f"{where}[{k!r}]")) for k, v in value.items())
    if type(value) in (list, tuple):
        return type(value)(_storable(item, f"{where}[{i}]") for i, item in enumerate(value))
    # The order of a set differs between processes, so its digest would too.
    if not isinstance(value, set | frozenset) and _readable(value):
        return value
    raise RunError(
        f"{where}: got {type(value).__module__}.{type(value).__qualname__}, which a checkpoint can't be read back "
        "with; expected numbers, text, bytes, tensors, and lists, tuples and dicts of them: convert it in state_dict "
        "and back in load_state_dict, e.g. torch.from_numpy(array), str(path), list(values), dict(mapping)"
    )


def _readable(value: Any) -> bool:
    """Return whether a value can be written and read again, by trying."""
    if type(value) is Tensor and value.layout == torch.strided:
        return True
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch and pickle raise errors of many types
        return False
    return True


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.layout == torch.strided else tensor.to_dense()
