"""Normalisation layers whose weights differ between vmapped tasks: normalise first, then apply the weights.

``torch.func.vmap`` computes wrong second derivatives of ``batch_norm``, ``layer_norm`` and ``instance_norm`` if their
weights are batched (pytorch/functorch issue 534): values are right, second-order gradients are wrong by about one per
cent. Inside ``AffineApart`` the layers compute the same function in two steps, whose derivatives are right. They do so
in float32 even under autocast, because ``batch_norm`` without weights refuses inputs of another type than its
statistics. Letters: n examples, C channels.
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
    """Compute ``F.batch_norm`` of x [n, C, *] without weights, then apply ``weight`` and ``bias`` [C].

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> batch_norm(x, torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([2.0]), eps=0.0)
        tensor([[0.],
                [4.]])
    """
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
    """Compute ``F.instance_norm`` of x [n, C, *] without weights, then apply ``weight`` and ``bias`` [C].

    Example:
        >>> import torch
        >>> instance_norm(torch.tensor([[[1.0, 3.0]]]), weight=torch.tensor([2.0]), eps=0.0)
        tensor([[[-2.,  2.]]])
    """
    normal = F.instance_norm(full_precision(x), running_mean, running_var, None, None, *more, **named)
    return _scaled(normal, weight, bias, x.ndim - 2).to(x.dtype)


def layer_norm(
    x: Tensor, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Compute ``F.layer_norm`` without weights, then apply ``weight`` and ``bias`` [*normalized_shape].

    Example:
        >>> import torch
        >>> layer_norm(torch.tensor([[1.0, 3.0]]), (2,), torch.tensor([2.0, 1.0]), eps=0.0)
        tensor([[-2.,  1.]])
    """
    return _scaled(F.layer_norm(full_precision(x), normalized_shape, None, None, eps), weight, bias, 0).to(x.dtype)


def _scaled(normal: Tensor, weight: Tensor | None, bias: Tensor | None, axes: int) -> Tensor:
    """Multiply by ``weight`` and add ``bias``, each followed by ``axes`` dimensions of size 1."""
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
    """Run the code inside with normalisation separated from its weights; nothing else changes.

    Afterwards ``met`` is true if there was any such layer. A caller that knows that there is none can omit the
    mode, which costs a small net a tenth of its time.

    Args:
        only_look: whether to leave the layers unchanged and only set ``met``.

    Example:
        >>> import torch
        >>> with AffineApart() as layers:
        ...     normal = F.layer_norm(torch.tensor([[1.0, 3.0]]), (2,), torch.ones(2))
        >>> layers.met
        True
    """

    def __init__(self, only_look: bool = False) -> None:
        super().__init__()
        self.only_look, self.met = only_look, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.met = self.met or func in _APART
        return (func if self.only_look else _APART.get(func, func))(*args, **(kwargs or {}))
