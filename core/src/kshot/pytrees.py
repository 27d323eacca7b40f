"""Values of tensors as pytrees: ``torch.func.vmap`` takes them, and one function reaches all their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import attrs
from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")


def register_value(cls: type[Any], *children: str, name: str | None = None) -> None:
    """Register an attrs class as a pytree, so that its tensors are moved, cast, sliced and stacked with their episode.

    Args:
        cls: an attrs class.
        children: its fields that contain tensors, or values of tensors. A field ``source`` is a child without being
            named, if its value is of a registered class. All other fields are the same for all tasks.
        name: the serialised name of the class; by default its module and qualified name.

    Example:
        >>> import torch
        >>> @attrs.frozen
        ... class Pair:
        ...     a: Tensor
        ...     b: Tensor
        >>> register_value(Pair, "a", "b", name="example.Pair")
        >>> map_tensors(lambda t: 2 * t, Pair(torch.ones(1), torch.ones(2)))
        Pair(a=tensor([2.]), b=tensor([2., 2.]))
    """
    names = tuple(f.name for f in attrs.fields(cls) if f.init)

    def flatten(value: Any) -> tuple[list[Any], Any]:
        leaves, present, rest = list[Any](), list[str](), dict[str, Any]()
        for n in names:
            v = getattr(value, n)
            if (v is not None and n in children) or (n == "source" and type(v) in pytree.SUPPORTED_NODES):
                leaves.append(v)
                present.append(n)
            else:
                rest[n] = v
        return leaves, (tuple(present), rest)

    def unflatten(leaves: Any, context: Any) -> Any:
        present, rest = context
        return cls(**dict(zip(present, leaves, strict=True)), **rest)

    name = name or f"{cls.__module__}.{cls.__qualname__}"
    pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=name)


def map_tensors(function: Callable[[Tensor], Tensor], value: T) -> T:
    """Return the value with ``function`` applied to each of its tensors.

    Example:
        >>> import torch
        >>> map_tensors(lambda t: t + 1, {"a": torch.zeros(2), "b": 5})
        {'a': tensor([1., 1.]), 'b': 5}
    """
    mapped: T = pytree.tree_map_only(Tensor, function, value)
    return mapped


def one_task(value: T, b: int) -> T:
    """Return task ``b`` of a value without the axis B: the form that a function of one episode takes.

    Example:
        >>> import torch
        >>> one_task({"x": torch.zeros(4, 3)}, 2)["x"].shape
        torch.Size([3])
    """
    mapped: T = map_tensors(lambda t: t[b], value)
    return mapped
