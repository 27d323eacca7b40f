"""A policy with two heads and a bias transformation, as in Finn et al. 2017 (1709.04905).

Letters: n observations, Z the length of the bias transformation, H the outputs of a layer.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kshot.errors import OptionError
from kshot.inner import State
from kshot.nn.heads import find_head


class Policy(nn.Module):
    """Add a second head and a bias transformation to a net, without changing the net.

    The net is called with a state of its parameters: ``acting`` returns those with which the policy acts, and
    ``judging`` those with which the inner loss judges it. Without the two additions, both are the state itself.

    Args:
        net: any module from observations [n, *input] to actions.
        input_shape: shape of one observation.
        two_heads: whether the inner loss uses a separate head, which starts as a copy of the net's last layer.
        bias: Z, the length of the vector z of the bias transformation; 0 for none.

    Attributes:
        first: the path of the layer with the bias transformation: the first ``nn.Linear`` of the net.

    Raises:
        OptionError: the net's last layer can't be found, or it has no linear layer with a bias.

    Example:
        >>> policy = Policy(nn.Linear(3, 2), (3,), bias=4)
        >>> sorted(dict(policy.named_parameters()))
        ['net.bias', 'net.weight', 'z', 'z_weight']
    """

    def __init__(self, net: nn.Module, input_shape: tuple[int, ...], *, two_heads: bool = False, bias: int = 0) -> None:
        super().__init__()
        self.net = net
        self.heads: dict[str, str] = {}  # each parameter of the net's head, and its counterpart in the inner loss
        if two_heads:
            head = find_head(net, input_shape, who="mil")
            self.inner_head = copy.deepcopy(head.module(net))
            paths = head.alone(State.of(net)).parameters
            prefix = f"net.{head.path}." if head.path else "net."
            self.heads = {f"{prefix}{name}": f"inner_head.{name}" for name in paths}
        self.first = ""
        if bias:
            linear = {path: m for path, m in net.named_modules() if isinstance(m, nn.Linear) and m.bias is not None}
            layers = [path for path, m in linear.items() if m.bias.requires_grad]
            if not layers:
                raise OptionError(
                    f"mil: got bias {bias} for a network without a linear layer whose bias is trained, expected one, "
                    "to which the bias transformation is added; leave bias out, or add a layer"
                )
            self.first = f"net.{layers[0]}.bias" if layers[0] else "net.bias"
            layer = linear[layers[0]]
            # With z = 0 the policy starts as the net. W2 must not be 0 too, because dL/dz = W2^T dL/dy.
            self.z = nn.Parameter(layer.weight.new_zeros(bias))
            self.z_weight = nn.Parameter(layer.weight.new_empty(layer.out_features, bias))
            nn.init.uniform_(self.z_weight, -(bias**-0.5), bias**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Call the net on observations ``x`` [n, *input]."""
        outputs: Tensor = self.net(x)
        return outputs

    def acting(self, state: State) -> State:
        """Return the parameters with which the policy acts: the first bias is b + W2 z (the bias transformation).

        The layer computes y = W1 x + W2 z + b, so that a gradient step changes its bias by more than dL/dy.
        """
        if not self.first:
            return state
        named = state.parameters
        bias = {self.first: named[self.first] + named["z_weight"] @ named["z"]}
        return State({**named, **bias}, state.buffers, state.tasks)

    def judging(self, state: State) -> State:
        """Return the parameters with which the inner loss judges the policy: its own head replaces the acting one."""
        acting = self.acting(state)
        replaced = {name: state.parameters[other] for name, other in self.heads.items()}
        return State({**acting.parameters, **replaced}, acting.buffers, acting.tasks)


def biased(bias: Tensor, z: Tensor, weight: Tensor, gradient: Tensor, lr: float) -> Tensor:
    """Compute the bias b' + W2' z' of a layer after one gradient step on b, z and W2.

    The gradient of the layer's outputs, summed over examples, is g = dL/db; then dL/dz = W2^T g and dL/dW2 = g z^T.

    Args:
        bias: b [H].
        z: z [Z].
        weight: W2 [H, Z].
        gradient: g [H].
        lr: alpha.

    Returns:
        The bias [H]: b - alpha g + (W2 - alpha g z^T) (z - alpha W2^T g).

    Example:
        >>> b, z, g = torch.zeros(1), torch.tensor([2.0]), torch.tensor([1.0])
        >>> biased(b, z, torch.tensor([[3.0]]), g, lr=0.1)  # -0.1 + (3 - 0.2) (2 - 0.3)
        tensor([4.6600])
    """
    return bias - lr * gradient + (weight - lr * torch.outer(gradient, z)) @ (z - lr * weight.mT @ gradient)
