"""Batch normalisation in episodes: the policy that says whose statistics normalise which examples.

Statistics are always those of one episode, never of several episodes of a meta-batch. In training they are those of
all inputs of the episode that the encoder is given. At evaluation they follow the policy, which every result records:

- ``inductive``: support and queries are normalised by the running statistics of training. Queries are independent.
- ``support``: support and queries are normalised by the statistics of the episode's support.
- ``transductive``: support and queries are normalised by their common statistics. The prediction for a query depends
  on the other queries, and accuracies are usually higher.

Letters: B meta-batch, n examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kshot.errors import OptionError

Normalisation = Literal["inductive", "support", "transductive"]

BATCH_NORMS = (_BatchNorm,)
"""The base class of torch's batch norm layers, lazily initialised and synchronised ones among them."""


def check_policy(owner: str, normalisation: str) -> None:
    """Check that ``normalisation`` is one of the three policies.

    Args:
        owner: the class or plugin that was given the option, for the error message.
        normalisation: the option's value.

    Raises:
        OptionError: it is not one of them.

    Example:
        >>> check_policy("Encoder", "support")
    """
    if normalisation not in get_args(Normalisation):
        raise OptionError(
            f"{owner}: got normalisation={normalisation!r}, expected 'inductive', 'support' or 'transductive'"
        )


def batch_norms(module: nn.Module) -> list[Any]:
    """List the batch norm layers of a module.

    Example:
        >>> batch_norms(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))[0].num_features
        4
    """
    return [m for m in module.modules() if isinstance(m, BATCH_NORMS)]


def running_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Collect the running means and variances of a module's batch norm layers, by their names in the module.

    Example:
        >>> list(running_buffers(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))))
        ['1.running_mean', '1.running_var']
    """
    return {
        f"{path}.{name}" if path else name: buffer
        for path, m in module.named_modules()
        if isinstance(m, BATCH_NORMS)
        for name, buffer in m.named_buffers(recurse=False)
        if buffer is not None and buffer.is_floating_point()
    }


@contextmanager
def own_statistics(module: nn.Module, momentum: float | None = None) -> Iterator[None]:
    """Let batch norm layers normalise by the statistics of their inputs, within a ``with`` block.

    The other layers keep their mode. Afterwards the batch norm layers have their previous mode and momentum again.

    Args:
        module: the module that contains the batch norm layers.
        momentum: how far the running statistics move towards those of the inputs: 0 leaves them, 1 replaces them.
            None keeps the momentum of each layer.

    Example:
        >>> net = nn.BatchNorm1d(1).eval()
        >>> with own_statistics(net, momentum=0.0):
        ...     net(torch.tensor([[2.0], [4.0]])).detach().round(decimals=2).tolist()
        [[-1.0], [1.0]]
    """
    layers: list[tuple[Any, bool, Any]] = [(m, m.training, m.momentum) for m in batch_norms(module)]
    try:
        for m, _, _ in layers:
            m.training = True
            if momentum is not None:
                m.momentum = momentum
        yield
    finally:
        for m, training, previous in layers:
            m.training, m.momentum = training, previous


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set a module to evaluation mode within a ``with`` block.

    Afterwards each of its submodules has its previous mode again. A module that is in evaluation mode itself is left
    as it is, with all its submodules.

    Example:
        >>> net = nn.Dropout()
        >>> with evaluating(net):
        ...     net.training
        False
        >>> net.training
        True
    """
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
    """Return a net for evaluation in which each convolution includes the batch norm layer that follows it.

    It computes the same function up to rounding and is about a tenth faster. Gradients do not reach the parameters of
    ``net`` through it. Only layers that follow each other in an ``nn.Sequential`` are folded, and only if nothing
    about them or the ``nn.Sequential`` is unusual: see ``is_plain``. All other layers are shared with ``net``.

    Args:
        net: a net in evaluation mode. It is not changed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
        >>> [type(layer).__name__ for layer in folded(net)]
        ['Conv2d', 'ReLU']
    """
    # A subclass of nn.Sequential may compute anything, so it stays one layer of the folded net.
    if not is_plain(net, nn.Sequential):
        return net
    layers: list[Any] = []
    sequence: Any = net  # iterating yields a layer that is used twice twice, which ``children`` does not
    for child in sequence:
        layer: Any = folded(child)
        before = layers[-1] if layers else None
        if before is not None and _can_fold(before, layer):
            fused = fuse_conv_bn_eval(before, layer)
            layers[-1] = fused.to(memory_format=torch.channels_last) if is_channels_last(before.weight) else fused
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Return whether a module is exactly of the class ``kind`` and computes what this class computes.

    This is not so for subclasses, which parametrisations (weight norm, spectral norm) create too, nor if the module
    has hooks (which pruning and the older ``weight_norm`` use), a method that was replaced on the instance, a compiled
    call, or something else than ordinary parameters, such as the tensors of ``torch.func.functional_call``.

    Example:
        >>> is_plain(nn.Linear(2, 2), nn.Linear), is_plain(nn.Linear(2, 2), nn.Module)
        (True, False)
    """
    return (
        type(module) is kind
        and not any(vars(module).get(hooks) for hooks in _HOOKS)
        and not torch.nn.modules.module._has_any_global_hook()
        and getattr(module, "_compiled_call_impl", None) is None
        and not any(callable(getattr(kind, name, None)) for name in vars(module))
        and all(type(p) is nn.Parameter for p in module._parameters.values() if p is not None)
    )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _can_fold(convolution: Any, norm: Any) -> bool:
    """Return whether ``norm`` is a batch norm in evaluation mode that can be folded into ``convolution`` before it."""
    if not is_plain(convolution, nn.Conv2d) or not is_plain(norm, nn.BatchNorm2d):
        return False
    # Without running statistics, or in training mode, the layer normalises by the statistics of its inputs.
    if norm.training or convolution.training or norm.running_mean is None or norm.running_var is None:
        return False
    tensors = [*convolution.parameters(), *norm.parameters(), norm.running_mean, norm.running_var]
    return bool(
        len({(t.dtype, t.device) for t in tensors}) == 1
        and convolution.weight.is_floating_point()
        and set(convolution._parameters) == {"weight", "bias"}
        and convolution.out_channels == norm.num_features
    )


def is_channels_last(weight: Tensor) -> bool:
    """Return whether a weight [C_out, C_in, h, w] is stored with its input channels innermost (channels-last).

    Example:
        >>> weight = torch.zeros(2, 3, 5, 5)
        >>> is_channels_last(weight), is_channels_last(weight.to(memory_format=torch.channels_last))
        (False, True)
    """
    return weight.stride(1) == 1


def with_statistics_of(net: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute ``net(x)`` normalised by the statistics of ``x``, and return these statistics too.

    Args:
        net: the net. Its own buffers are not changed.
        x: inputs of one episode [n, *input].

    Returns:
        The outputs [n, ...], and buffers with which the net, in evaluation mode, normalises other inputs by the
        statistics of ``x``. The variances in them are the unbiased ones, as batch norm keeps them.

    Example:
        >>> z, buffers = with_statistics_of(nn.BatchNorm1d(1), torch.tensor([[2.0], [4.0]]))
        >>> z.detach().round(decimals=2).tolist(), buffers["running_mean"].tolist(), buffers["running_var"].tolist()
        ([[-1.0], [1.0]], [3.0], [2.0])
    """
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    with own_statistics(net, momentum=1.0):
        z = functional_call(net, buffers, (x,))
    return z, buffers


def per_episode_statistics(net: nn.Module, x: Tensor) -> Tensor:
    """Apply a net in training to B episodes, and normalise each episode by its own statistics.

    The running statistics move once, by the mean over the B episodes, and counters count once. So the result does not
    depend on how a meta-batch is divided into chunks.

    Args:
        net: a net in training mode.
        x: inputs [B, n, *input].

    Returns:
        The outputs [B, n, ...].

    Example:
        >>> net = nn.BatchNorm1d(1)
        >>> z = per_episode_statistics(net, torch.tensor([[[2.0], [4.0]], [[10.0], [30.0]]]))
        >>> z.detach().round(decimals=2).tolist()
        [[[-1.0], [1.0]], [[-1.0], [1.0]]]
    """
    if len(x) == 1:
        out: Tensor = net(x[0])
        return out[None]
    start = {name: b.clone() for name, b in net.named_buffers()}
    running = running_buffers(net)
    moved = {name: torch.zeros_like(b) for name, b in start.items()}
    outs = []
    for number, episode in enumerate(x):
        # Each episode starts from its own copy of all buffers, because autograd keeps those it was given.
        copies = {name: b.clone() for name, b in start.items()}
        outs.append(functional_call(net, copies, (episode,)))
        for name, b in copies.items():
            if name in running:
                moved[name] += b.detach()
            elif b.is_floating_point():
                moved[name] += torch.where(b == start[name], 0, b - start[name]).detach()  # a constant may be infinite
            elif number == 0:
                moved[name] = b
    # One move of the buffers: running statistics to the mean of the B copies, others by the mean of their B moves, and
    # counters, such as the number of batches that a cumulative mean (momentum=None) divides by, as in one episode.
    for name, b in net.named_buffers():
        if name in running:
            b.copy_(moved[name] / len(x))
        elif b.is_floating_point():
            b.add_(moved[name] / len(x))
        else:
            b.copy_(moved[name])
    return torch.stack(outs)
