"""Normalisation layers whose weights differ between vmapped tasks: the affine part apart from the normalisation.

``torch.func.vmap`` differentiates ``batch_norm``, ``layer_norm`` and ``instance_norm`` wrongly twice where their
weights are batched (pytorch/functorch issue 534): values are right, second-order gradients are off by a per cent or so.
Inside ``AffineApart`` the layers compute the same function in two steps, which differentiate rightly; in float32 where
autocast brings less, since ``batch_norm`` without weights refuses inputs of another type than its statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from kshot.functional import full_precision


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *more: Any,
    **named: Any,
) -> Tensor:
    """``F.batch_norm`` of [n, C, *], then ``weight`` and ``bias`` [C]."""
    normal = F.batch_norm(full_precision(x), running_mean, running_var, None, None, *more, **named)
    return _scaled(normal, weight, bias, x.ndim - 2).to(x.dtype)


def instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *more: Any,
    **named: Any,
) -> Tensor:
    """``F.instance_norm`` of [n, C, *], then ``weight`` and ``bias`` [C]."""
    normal = F.instance_norm(full_precision(x), running_mean, running_var, None, None, *more, **named)
    return _scaled(normal, weight, bias, x.ndim - 2).to(x.dtype)


def layer_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """``F.layer_norm``, then ``weight`` and ``bias`` [*normalized_shape]."""
    return _scaled(F.layer_norm(full_precision(x), normalized_shape, None, None, eps), weight, bias, 0).to(x.dtype)


def _scaled(normal: Tensor, weight: Tensor | None, bias: Tensor | None, axes: int) -> Tensor:
    for operand, operation in ((weight, Tensor.mul), (bias, Tensor.add)):
        if operand is not None:
            normal = operation(normal, operand.view(*operand.shape, *[1] * axes))
    return normal


_APART: dict[Any, Callable[..., Tensor]] = {
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
    F.layer_norm: layer_norm,
}


class AffineApart(TorchFunctionMode):
    """Inside, the three layers take their weights apart from the normalisation; all else is as it was.

    ``met`` says whether there were any, for those who would save the tenth that a mode costs a small net.

    Args:
        only_look: leave the layers as they are, and say whether they were met.
    """

    def __init__(self, only_look: bool = False) -> None:
        super().__init__()
        self.only_look, self.met = only_look, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.met = self.met or func in _APART
        return (func if self.only_look else _APART.get(func, func))(*args, **(kwargs or {}))
