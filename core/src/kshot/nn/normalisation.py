"""Batch normalisation in episodes: whose statistics normalise whom is a policy, stated and recorded.

Statistics are always of one episode, never over the meta-batch B. While training they are those of all the images the
episode shows the encoder. At evaluation the policy says:

- ``inductive``: the running statistics of training serve everybody. Queries can't see each other.
- ``support``: the statistics of the episode's support serve support and queries.
- ``transductive``: statistics of support and queries together; queries see each other, figures are higher.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.fusion import fuse_conv_bn_eval

Normalisation = Literal["inductive", "support", "transductive"]

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The batch norm layers within a module."""
    return [m for m in module.modules() if isinstance(m, BATCH_NORMS)]


def running_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The running means and variances of a module's batch norm layers, by name."""
    return {
        f"{path}.{name}" if path else name: buffer
        for path, m in module.named_modules()
        if isinstance(m, BATCH_NORMS)
        for name, buffer in m.named_buffers(recurse=False)
        if buffer is not None and buffer.is_floating_point()
    }


@contextmanager
def own_statistics(module: nn.Module, momentum: float | None = None) -> Iterator[None]:
    """Inside, batch norm layers normalise by what they are given, whatever the mode of the rest of the module."""
    layers: list[tuple[Any, bool, Any]] = [(m, m.training, m.momentum) for m in batch_norms(module)]
    try:
        for m, _, _ in layers:
            m.training = True
            if momentum is not None:
                m.momentum = momentum
        yield
    finally:
        for m, training, old in layers:
            m.training, m.momentum = training, old


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in evaluation mode; afterwards each of its parts has its own mode again."""
    if not module.training:
        yield
        return
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def folded(net: nn.Module) -> nn.Module:
    """The net as a function for evaluation: convolutions have taken in the batch norm that follows them.

    The same function up to rounding, a tenth faster; for gradients to the net's own parameters it is of no use. Looks
    into ``nn.Sequential`` only; everything else is shared with ``net``, which must be in evaluation mode.
    """
    if not isinstance(net, nn.Sequential):
        return net
    parts: list[nn.Module] = []
    for part in map(folded, net):
        before = parts[-1] if parts else None
        if isinstance(before, nn.Conv2d) and isinstance(part, nn.BatchNorm2d) and part.track_running_stats:
            taken = fuse_conv_bn_eval(before, part)
            parts[-1] = taken.to(memory_format=torch.channels_last) if is_channels_last(before.weight) else taken
        else:
            parts.append(part)
    return nn.Sequential(*parts)


def is_channels_last(weight: Tensor) -> bool:
    """Whether a weight [C_out, C_in, h, w] has its input channels innermost, as ``Module.to`` strides it."""
    return weight.stride(1) == 1


def with_statistics_of(net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """One episode's inputs ``x`` [n, *input], normalised by themselves -> (``net(x)``, their statistics).

    The statistics are buffers to call the net with in evaluation mode; the net's own stay as they were. Variances
    are the unbiased ones that batch norm keeps.
    """
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    with own_statistics(net, momentum=1.0):
        z = functional_call(net, buffers, (x,))
    return z, buffers


def per_episode_statistics(net: nn.Module, x: Tensor) -> Tensor:
    """Training: ``x`` [B, n, *input] -> [B, n, ...], each episode normalised by its own statistics.

    The running statistics move once, by the mean over the B episodes, so that any division of a meta-batch into
    chunks gives the same.
    """
    if len(x) == 1:
        out: Tensor = net(x[0])
        return out[None]
    own = running_buffers(net)
    total = {name: torch.zeros_like(b) for name, b in own.items()}
    outs = []
    for episode in x:  # each with a copy of the statistics: autograd keeps the ones it was called with
        copies = {name: b.clone() for name, b in own.items()}
        outs.append(functional_call(net, copies, (episode,)))
        for name, b in copies.items():
            total[name] += b
    for name, b in own.items():
        b.copy_(total[name] / len(x))
    return torch.stack(outs)
