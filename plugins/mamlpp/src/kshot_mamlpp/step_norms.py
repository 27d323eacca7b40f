"""Batch normalisation with weights, biases and running statistics for each inner step (section 4 of the MAML++ paper).

Letters: K inner steps in training, C channels, B meta-batch. Steps are numbered from 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kshot.inner import State
from kshot.nn import Network
from kshot.nn.normalisation import BATCH_NORMS, running_buffers

EARLIER = "kshot_mamlpp/earlier/"
"""Prefix of the names of the earlier steps' statistics among the buffers of a state; no buffer of a network has it."""


class StepNorms(nn.Module):
    """Store the weights, biases and running statistics of batch norm layers for each inner step.

    The network itself has those of the last step, which are used for predictions; this module has those of the K - 1
    steps before. All start from the values in the network.

    Args:
        net: the network.
        steps: K.
        affine: whether each step has its own weights and biases. Then they do not adapt to a task.
        statistics: whether each step has its own running statistics. Only the policy ``inductive`` uses them.

    Attributes:
        not_adapted: the names of the network's parameters that do not adapt.

    Example:
        >>> net = Network(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        >>> norms = StepNorms(net, 5, affine=True, statistics=True)
        >>> norms.not_adapted, [tuple(p.shape) for p in norms.parameters()]
        (('1.weight', '1.bias'), [(4, 3), (4, 3)])
    """

    def __init__(self, net: Network, steps: int, *, affine: bool, statistics: bool) -> None:
        super().__init__()
        self.last = steps - 1
        own = {
            f"{path}.{name}" if path else name: p
            for path, layer in net.net.named_modules()
            if isinstance(layer, BATCH_NORMS) and affine
            for name, p in layer.named_parameters(recurse=False)
            if p.requires_grad
        }
        self.not_adapted = tuple(own)
        earlier = self.last if own else 0
        self.earlier = nn.ParameterList([p.detach().expand(earlier, *p.shape).clone() for p in own.values() if earlier])
        moving = running_buffers(net.net) if statistics and net.normalisation == "inductive" and self.last else {}
        self.running = tuple(moving)
        for i, buffer in enumerate(moving.values()):
            self.register_buffer(f"running_{i}", buffer.expand(self.last, *buffer.shape).clone())

    def start(self, net: Network) -> State:
        """Return theta: the parameters of the network that adapt, and its buffers."""
        state = net.state()
        return State({n: p for n, p in state.parameters.items() if n not in self.not_adapted}, state.buffers)

    def statistics(self, tasks: int) -> dict[str, Tensor]:
        """Return the running statistics of the steps before the last, for each task: {name: [B, K - 1, C]}."""
        named = {name: self.get_buffer(f"running_{i}") for i, name in enumerate(self.running)}
        return {name: buffer.expand(tasks, *buffer.shape) for name, buffer in named.items()}

    def moved(self, states: Sequence[State]) -> dict[str, Tensor]:
        """Return the buffers of the last state, and the running statistics of those before it, for ``keep``.

        Args:
            states: the states of one task after each inner step, or only the state after the last.
        """
        earlier = [state.buffers for state in states[:-1]]
        stacked = {i: torch.stack([b[name] for b in earlier]) for i, name in enumerate(self.running) if earlier}
        return {**states[-1].buffers, **{f"{EARLIER}{i}": values for i, values in stacked.items()}}

    def keep(self, end: State) -> None:
        """Set the running statistics of the steps before the last to the mean over the tasks of ``moved``."""
        for i in range(len(self.running)):
            if (of_tasks := end.buffers.get(f"{EARLIER}{i}")) is not None:
                self.get_buffer(f"running_{i}").copy_(of_tasks.mean(0))

    def at(self, step: int, state: State, statistics: dict[str, Tensor], net: Network) -> State:
        """Return the state in which the network computes at a step; nothing in it is shared with ``state.buffers``.

        Args:
            step: the number of the step; steps after the last use the values of the last.
            state: the adapted parameters of one task, and its buffers with the statistics of the last step.
            statistics: of this task, {name: [K - 1, C]}.
            net: the network, whose parameters are those of the last step.
        """
        earlier = step < self.last
        own = {name: net.net.get_parameter(name) for name in self.not_adapted}
        norms = dict(zip(own, (p[step] for p in self.earlier), strict=True)) if earlier else own
        moved = {name: of_steps[step] for name, of_steps in statistics.items()} if earlier else {}
        buffers = {name: b.clone() for name, b in {**state.buffers, **moved}.items()}
        return State({**state.parameters, **{name: p.clone() for name, p in norms.items()}}, buffers, state.tasks)
