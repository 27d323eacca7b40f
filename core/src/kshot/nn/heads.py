"""Which parameters of a network are its head: the last layer by default, or a module that the user names.

The other parameters are the body. The head is found by calling the network once, so it does not depend on the order in
which the layers are defined.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from kshot.errors import OptionError
from kshot.inner import State

LISTED = 20
"""The greatest number of layers that a message lists."""


@frozen
class Head:
    """Divide the parameters of a net into its head and its body; ``find_head`` makes it.

    Attributes:
        path: of the head's module in the net, such as ``classifier.1``; empty if the head is the net itself.

    Example:
        >>> head = Head("1")
        >>> "1.weight" in head, "10.weight" in head
        (True, False)
    """

    path: str

    def __contains__(self, name: str) -> bool:
        """Return whether the parameter of this name in the net belongs to the head."""
        return name.startswith(self._prefix)

    @property
    def _prefix(self) -> str:
        return f"{self.path}." if self.path else ""

    def module(self, net: nn.Module) -> nn.Module:
        """Return the module of the net that is the head."""
        return net.get_submodule(self.path)

    def parameters(self, state: State) -> State:
        """Return a state with the parameters of the head alone, under their names in the net, and with all buffers."""
        return State({n: p for n, p in state.parameters.items() if n in self}, state.buffers, state.tasks)

    def alone(self, state: State) -> State:
        """Return the state with which the head's module can be called without the net: its own tensors and names."""
        size = len(self._prefix)
        parameters, buffers = (
            {n[size:]: t for n, t in named.items() if n in self} for named in (state.parameters, state.buffers)
        )
        return State(parameters, buffers, state.tasks)

    def replaced(self, state: State, alone: State) -> State:
        """Return the state of the net in which the head has the parameters of ``alone``; see the method ``alone``."""
        own = {f"{self._prefix}{n}": p for n, p in alone.parameters.items()}
        return State({**state.parameters, **own}, state.buffers, state.tasks)

    def inputs(self, net: nn.Module, run: Callable[[], Tensor]) -> Tensor | None:
        """Call the net once and return the inputs of its head, from which the head alone computes the same outputs.

        Args:
            net: the net.
            run: calls the net and returns its outputs.

        Returns:
            The inputs of the head, with their graph. None if the head alone does not give the outputs of the net: the
            head is the net itself, has buffers, is called more than once or with several arguments, or an operation
            follows it.
        """
        module = self.module(net)
        if module is net or next(module.buffers(), None) is not None:
            return None
        calls: list[tuple[Any, Any, Any]] = []
        later = _Operations()
        with ExitStack() as hooks:

            def after_head(_: Any, positional: Any, named: Any, returned: Any) -> None:
                calls.append((positional, named, returned))
                if len(calls) == 1:
                    hooks.enter_context(later)

            hooks.callback(module.register_forward_hook(after_head, with_kwargs=True).remove)
            hooks.callback(net.register_forward_hook(lambda *_: hooks.close()).remove)
            outputs = run()
        # An operation in place returns the same tensor, so the net must return it and compute nothing after the head.
        if len(calls) != 1 or later.count:
            return None
        positional, named, returned = calls[0]
        if returned is not outputs or named or len(positional) != 1 or not isinstance(positional[0], Tensor):
            return None
        return positional[0]


class _Operations(TorchFunctionMode):
    """Count the operations on tensors inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def find_head(net: nn.Module, input_shape: tuple[int, ...], path: str | None = None, who: str = "find_head") -> Head:
    """Return which parameters of a net are its head.

    Args:
        net: a module from [n, *input] to outputs. It is not changed.
        input_shape: shape of one input.
        path: of the head's module, as in ``net.named_modules()``; it may contain several layers. None for the last
            layer: of the modules that have trainable parameters themselves, the one whose call begins last.
        who: the learner, for messages.

    Raises:
        OptionError: there is no such module with trainable parameters, it shares a parameter with the rest of the net,
            or no path was given and the last layer can't be found by a call.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2), nn.Softplus())
        >>> head = find_head(net, (3,))
        >>> [name for name, _ in net.named_parameters() if name in head]
        ['2.weight', '2.bias']
    """
    layers = _layers(net)
    if path is None:
        head = Head(_last(net, layers, input_shape, who))
    else:
        # A module that is registered twice has two paths, but its parameters have only the names of the first.
        known = {id(m): first for first, m in net.named_modules()}
        modules = dict(net.named_modules(remove_duplicate=False))
        if path not in modules or not any(p.requires_grad for p in modules[path].parameters()):
            raise OptionError(
                f"{who}: got head {path!r}, expected a module of the network that has trainable parameters: "
                f"{_listed(layers)}, or one that contains some of these; choose one of them"
            )
        head = Head(known[id(modules[path])])
    _check_unshared(net, head, layers, who)
    return head


def _layers(net: nn.Module) -> list[str]:
    """List the paths of the modules that have trainable parameters themselves."""
    paths = [
        _owner(path)
        for path, m in net.named_modules()
        if any(p is not None and p.requires_grad for p in m._parameters.values())
    ]
    return list(dict.fromkeys(paths))


def _owner(path: str) -> str:
    """Return the path of the layer that ``path`` belongs to: of the parametrised layer for a parametrisation."""
    return re.split(r"(?:^|\.)parametrizations(?:\.|$)", path)[0]


def _last(net: nn.Module, layers: list[str], input_shape: tuple[int, ...], who: str) -> str:
    """Return which of the layers is called last when the net is called with one input of zeros."""
    tensors = itertools.chain(net.parameters(), net.buffers(), [torch.zeros(())])
    like = next(t for t in tensors if t.is_floating_point())
    calls: list[str] = []

    def noting(path: str) -> Callable[..., None]:
        return lambda *_: calls.append(path)

    owned = [(_owner(path), m) for path, m in net.named_modules()]
    hooks = [m.register_forward_pre_hook(noting(path)) for path, m in owned if path in layers]
    modes = [(m, m.training) for m in net.modules()]
    try:
        # The buffers are copies, and random numbers that the net draws are drawn again afterwards. (The hooks also make
        # torch's transformer layers call the layers in them, which they don't do otherwise without gradients.)
        with torch.no_grad(), torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
            buffers = {name: b.clone() for name, b in net.named_buffers()}
            functional_call(net.eval(), buffers, (torch.zeros(1, *input_shape).to(like),))
    except Exception as error:
        raise OptionError(
            f"{who}: got a network that can't be called with one input of zeros of shape {input_shape} ({error}), "
            f"expected one that can, to find its last layer; name its head: {_listed(layers)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for m, mode in modes:
            m.training = mode
    if not calls:
        raise OptionError(
            f"{who}: got a network none of whose layers with trainable parameters is called as a module, expected at "
            f"least one; name its head: {_listed(layers)}"
        )
    return calls[-1]


def _check_unshared(net: nn.Module, head: Head, layers: list[str], who: str) -> None:
    """Check that no parameter is part of the head and of the body."""
    module = head.module(net)
    named: list[Tensor] = [p for n, p in net.named_parameters() if n in head]
    inside = set(module.modules())
    outside = {id(p) for m in net.modules() if m not in inside for p in m._parameters.values() if p is not None}
    if {id(p) for p in named} != {id(p) for p in module.parameters()} or any(id(p) in outside for p in named):
        raise OptionError(
            f"{who}: got a head {head.path!r} that shares a parameter with the rest of the network, expected separate "
            f"parameters; name another head, of: {_listed(layers)}"
        )


def _listed(layers: list[str]) -> str:
    """Return the layers as words; of a long list the last ones, where heads usually are."""
    words = ", ".join(repr(path) for path in layers[-LISTED:]) or "none"
    return words if len(layers) <= LISTED else f"{len(layers) - LISTED} layers, {words}"
