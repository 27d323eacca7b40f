"""Give the context parameters phi to a network: beside its inputs, by FiLM, or as a separate argument.

FiLM is feature-wise linear modulation (Perez et al. 2018, 1709.07871): a scale and a shift for each channel.

Letters: n examples, D numbers of one input, C channels. phi [context] are the context parameters of one task.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from kshot import TaskSpec
from kshot.errors import DataError, OptionError
from kshot.inner import State, keep_buffers
from kshot.nn import Network, NetworkChoice, Normalisation, evaluating, network

Conditioning = Literal["auto", "input", "film", "argument"]


class Conditioned(nn.Module):
    """Apply a net to inputs [n, *input] and the context parameters phi of one task.

    The buffer phi of this module is always 0, because every task starts from 0. The adapted phi of a task is in its
    ``State``. All tasks share all other parameters.

    Args:
        net: for ``input`` a module that takes [n, D + context]; for ``film`` one that takes [n, *input]; for
            ``argument`` one that is called as ``net(x, phi)``.
        context: the number of context parameters. With ``context=0`` there is no FiLM.
        conditioning: ``input``, ``film`` or ``argument``.
        input_shape: shape of one input.
        film_after: the path of the layer whose output [n, C, *] FiLM scales and shifts.

    Raises:
        DataError: the net can't be applied to its inputs, or the output of ``film_after`` has no channels.
        OptionError: the net has no layer ``film_after``.

    Example:
        >>> net = Conditioned(nn.Linear(3 + 2, 1), 2, "input", (3,))
        >>> net(torch.zeros(4, 3)).shape
        torch.Size([4, 1])
        >>> sorted(net.state_dict())  # phi belongs to a task and not to the learner
        ['net.bias', 'net.weight']
    """

    phi: Tensor

    def __init__(
        self,
        net: nn.Module,
        context: int,
        conditioning: Conditioning,
        input_shape: tuple[int, ...],
        film_after: str = "",
    ) -> None:
        super().__init__()
        self.net, self.conditioning, self.film_after = net, conditioning, film_after
        self.register_buffer("phi", torch.zeros(context), persistent=False)
        self.film: nn.Linear | None = None
        if film_after and film_after not in dict(net.named_modules()):
            paths = ", ".join(name for name, _ in net.named_modules() if name)
            raise OptionError(f"cavia: got film_after={film_after!r}, expected a layer of the net: {paths}; name one")
        # Try one input of zeros, to check that the net accepts it, and to find the number of channels for FiLM. It has
        # the type and the device of the first parameter, ``like``.
        like = next(net.parameters(), self.phi)
        self.phi = self.phi.to(like.detach())
        outputs: list[Tensor] = []
        x = torch.zeros(1, *input_shape).to(like.detach())
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluating(self), self._hooked(outputs.append):
            try:
                self(x)
            except Exception as error:
                raise DataError(
                    f"cavia: got a net that can't be applied to inputs of shape {tuple(x.shape)} with {context} "
                    f"context parameters ({error}), expected one that can; {_ADVICE[conditioning]}"
                ) from error
        if conditioning == "film" and context:
            if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or outputs[0].ndim < 2:
                raise DataError(
                    f"cavia: got film_after={film_after!r}, a layer that returns no tensor [n, C, ...] once in each "
                    "call of the net, expected one that does; choose another layer"
                )
            # One linear map from phi to scale and shift, initialised as in the authors' code.
            self.film = nn.Linear(context, 2 * outputs[0].shape[1]).to(like.detach())
            nn.init.kaiming_uniform_(self.film.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs [n, *output] for ``x`` [n, *input], given phi."""
        outputs: Tensor
        if self.conditioning == "argument":
            outputs = self.net(x, self.phi)
        elif self.conditioning == "input":
            flat = x.flatten(1)
            outputs = self.net(torch.cat([flat, self.phi.to(flat).expand(len(flat), -1)], 1))
        else:
            with self._hooked(self._scaled):
                outputs = self.net(x)
        return outputs

    def _scaled(self, h: Tensor) -> Tensor:
        """Compute FiLM: scale(phi) * h + shift(phi), for each channel of h [n, C, *]."""
        if self.film is None:
            return h
        scale, shift = (v.view(-1, *[1] * (h.ndim - 2)) for v in self.film(self.phi).chunk(2))
        scaled: Tensor = scale * h + shift
        return scaled

    @contextmanager
    def _hooked(self, function: Any) -> Iterator[None]:
        """Pass the output of the layer ``film_after`` through ``function`` within a ``with`` block.

        The hook is removed afterwards, so a module that the user also uses elsewhere does not keep it.
        """
        if not self.film_after:
            yield
            return
        handle = self.net.get_submodule(self.film_after).register_forward_hook(lambda *call: function(call[2]))
        try:
            yield
        finally:
            handle.remove()


_ADVICE = {
    "input": "give its first layer the numbers of an input and of phi together, such as nn.Linear(D + context, 40)",
    "film": "it is called as net(x); give a module for inputs of this shape",
    "argument": "it is called as net(x, phi), with phi of shape [context]",
}


def conditioned_network(
    choice: NetworkChoice,
    spec: TaskSpec,
    *,
    context: int,
    conditioning: Conditioning = "auto",
    film_after: str | None = None,
    normalisation: Normalisation = "transductive",
    width: int = 64,
    hidden: tuple[int, ...] = (40, 40),
) -> Network:
    """Build a ``Network`` whose net is ``Conditioned``.

    Args:
        choice, spec, normalisation, width, hidden: as for ``kshot.nn.network``.
        context: the number of context parameters.
        conditioning: ``auto`` is ``film`` for conv4, strided-conv4 and a module with ``film_after``, ``argument`` for a
            module whose forward takes two inputs, and ``input`` otherwise.
        film_after: the path of the layer for ``film``; None for the layer before the third ReLU of a conv4.

    Raises:
        OptionError: the options do not fit each other, or a choice is unknown.
        DataError: the net does not accept the inputs, or the way of the tasks varies.

    Example:
        >>> spec = TaskSpec(kind="regression", input_shape=(1,), target_shape=(1,), shot=5, query=5)
        >>> conditioned_network("mlp", spec, context=4).net.net[1]
        Linear(in_features=5, out_features=40, bias=True)
    """
    if isinstance(choice, Network):
        normalisation = choice.normalisation
        choice = choice.net
    shape = spec.input_shape
    if choice == "auto":
        choice = "conv4" if len(shape) == 3 and min(shape[1:]) >= 16 else "mlp"
    # The layer before the third ReLU.
    before_relu = {"conv4": "2.2", "strided-conv4": "2.1"}.get(choice) if isinstance(choice, str) else None
    if conditioning == "auto":
        arguments = isinstance(choice, nn.Module) and _takes_two(choice)
        by_film = before_relu is not None or film_after is not None
        conditioning = "film" if by_film else "argument" if arguments else "input"
    if (conditioning == "argument" and isinstance(choice, str)) or (conditioning == "input" and before_relu):
        raise OptionError(
            f"cavia: got conditioning={conditioning!r} and network={choice!r}, expected film for conv4 and "
            "strided-conv4, input for mlp, and a module for argument; leave conditioning out, or give a module"
        )
    if conditioning == "film":
        film_after = before_relu if film_after is None else film_after
        if not film_after:
            raise OptionError(
                "cavia: got conditioning='film' without film_after, expected the path of the layer after which phi "
                "acts; name a layer of the module, such as film_after='layer3'"
            )
    elif film_after is not None:
        raise OptionError(
            f"cavia: got film_after={film_after!r} and conditioning={conditioning!r}, expected conditioning='film'; "
            "leave one of them out"
        )
    if conditioning == "input":
        spec = attrs.evolve(spec, input_shape=(math.prod(shape) + context,), input_range=None)
    net = choice if isinstance(choice, nn.Module) else network(choice, spec, width=width, hidden=hidden).net
    return Network(Conditioned(net, context, conditioning, shape, film_after or ""), normalisation, shape)


def start(network: Network) -> State:
    """Return the state from which every task starts: phi = 0, which adapts, and the buffers of the net.

    The other parameters are not in the state: all tasks share those of the network.

    Example:
        >>> spec = TaskSpec(kind="regression", input_shape=(1,), target_shape=(1,), shot=5, query=5)
        >>> start(conditioned_network("mlp", spec, context=4)).parameters
        {'phi': tensor([0., 0., 0., 0.])}
    """
    buffers = dict(network.net.named_buffers())
    return State({"phi": buffers.pop("phi")}, buffers)


def keep_statistics(network: Network, end: State) -> None:
    """Set the running statistics of the network to their mean over the tasks; phi stays 0.

    Args:
        network: changed in place.
        end: the final state of B tasks, with buffers [B, *].

    Example:
        >>> spec = TaskSpec(kind="regression", input_shape=(1,), target_shape=(1,), shot=5, query=5)
        >>> net = conditioned_network(nn.BatchNorm1d(3), spec, context=2)
        >>> means = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
        >>> both = {name: torch.stack([b, b]) for name, b in start(net).buffers.items()}
        >>> keep_statistics(net, State({}, {**both, "net.running_mean": means}, tasks=2))
        >>> net.net.net.running_mean
        tensor([0., 0., 2.])
    """
    # phi is not written: autograd could not use the graphs of the losses after a write in place, even of equal zeros.
    buffers = {name.removeprefix("net."): b for name, b in end.buffers.items() if name.startswith("net.")}
    conditioned = network.net
    assert isinstance(conditioned, Conditioned)
    keep_buffers(conditioned.net, State({}, buffers, end.tasks))


def _takes_two(net: nn.Module) -> bool:
    """Return whether the net's forward requires two inputs."""
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(net.forward).parameters.values()
    return sum(p.default is p.empty and p.kind in by_position for p in parameters) == 2
