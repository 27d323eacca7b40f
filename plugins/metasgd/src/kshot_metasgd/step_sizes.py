"""The step sizes alpha of Meta-SGD: how they start, and which of them belongs to which parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kshot.errors import OptionError


def initial_step_sizes(theta: Mapping[str, Tensor], bounds: tuple[float, float], *, per_element: bool) -> list[Tensor]:
    """Draw the initial alpha from torch's random generator (Li et al. 2017, 1707.09835, algorithm 1, line 1).

    Args:
        theta: the parameter tensors by name.
        bounds: the range (least, greatest) of the uniform distribution.
        per_element: whether each element of a parameter tensor has its own step size; otherwise each tensor has one.

    Returns:
        The step sizes of each parameter tensor, in the same order: a tensor of its shape if ``per_element``, else [].

    Raises:
        OptionError: the range is empty or not finite.

    Example:
        >>> alpha = initial_step_sizes({"weight": torch.zeros(3, 2)}, (0.01, 0.01), per_element=False)
        >>> alpha
        [tensor(0.0100)]
    """
    least, greatest = bounds
    if not (math.isfinite(least) and math.isfinite(greatest) and least <= greatest):
        raise OptionError(
            f"metasgd: got initial_alpha {tuple(bounds)}, expected two finite numbers (least, greatest); give the "
            "smaller one first"
        )
    # ``empty_like`` keeps the memory layout of a parameter, such as channels-last.
    sizes = [torch.empty_like(p.detach()) if per_element else p.new_empty(()) for p in theta.values()]
    return [nn.init.uniform_(size, least, greatest) for size in sizes]


def step_sizes_of(
    theta: Mapping[str, Tensor], names: Sequence[str], alpha: Sequence[Tensor], *, per_element: bool
) -> dict[str, Tensor]:
    """Return the step sizes by the name of their parameter tensor, after checking their shapes.

    Args:
        theta: the parameters that adapt, by name.
        names: for each tensor in ``alpha``, the name of the parameter tensor that it belongs to.
        alpha: the step sizes, one tensor for each parameter tensor.
        per_element: as for ``initial_step_sizes``.

    Raises:
        OptionError: a step size has the wrong shape, or a parameter has none.

    Example:
        >>> step_sizes_of({"b": torch.zeros(2)}, ["b"], [torch.tensor([0.1, -0.2])], per_element=True)
        {'b': tensor([ 0.1000, -0.2000])}
        >>> step_sizes_of({"b": torch.zeros(2)}, ["b"], [torch.ones(3)], per_element=True)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        kshot.errors.OptionError: metasgd: got step sizes of shape (3,) for the parameter 'b', expected shape (2,); ...
    """
    sizes = dict(zip(names, alpha, strict=False))
    for name, p in theta.items():
        if name not in sizes:
            raise OptionError(
                f"metasgd: got no step size for the parameter {name!r}, expected one for each trainable parameter; "
                "build the learner after the parameters are made trainable"
            )
        shape, expected = tuple(sizes[name].shape), tuple(p.shape) if per_element else ()
        if shape != expected:
            raise OptionError(
                f"metasgd: got step sizes of shape {shape} for the parameter {name!r}, expected shape {expected}; "
                f"set alpha[{list(names).index(name)}] to a tensor of this shape"
            )
    return sizes
