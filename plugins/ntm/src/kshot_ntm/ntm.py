"""Neural Turing machines: Graves, Wayne & Danihelka, 2014 (arXiv 1410.5401).

A neural network, the controller, reads and writes a memory at every time step. In each step t:

1. The controller computes h_t from the input x_t and from r_{t-1}, the vectors that it read in step t - 1.
2. A linear map of h_t, the interface vector, says how the memory is written and read. The memory returns r_t.
3. A linear map of h_t and r_t is the output o_t.

Letters: B meta-batch, T time steps, M memory slots, W slot width, R read heads, D units of the controller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

import kshot.nn
from kshot import Episode, Memory, MemoryFactory, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.episode import check_finite
from kshot.errors import DataError, OptionError
from kshot.functional import lstm_cell, sequence_errors, sequence_loss
from kshot.registry import check_values
from kshot_ntm_memory import NTMMemory

Carry = tuple[Tensor, Tensor] | None
"""The state of the controller between steps. For an LSTM it is h and c, each [B, D], and None before the first step.
For a feed-forward controller it is always None."""


class FeedForward(nn.Module):
    """Compute h_t = tanh(U x_t + V r_{t-1}). This controller has no state; only the memory lasts from step to step.

    Args:
        inputs: number of values of an input x_t.
        read_size: number of values that are read from the memory per step (R * W).
        hidden: number of units (D).

    Example:
        >>> controller = FeedForward(inputs=3, read_size=4, hidden=5)
        >>> tuple(controller(controller.see(torch.zeros(2, 3)), torch.zeros(2, 4), None)[0].shape)
        (2, 5)
    """

    def __init__(self, inputs: int, read_size: int, hidden: int) -> None:
        super().__init__()
        self.see = nn.Linear(inputs, hidden)  # U, the projection of the inputs
        self.recall = nn.Linear(read_size, hidden, bias=False)  # V, the projection of the read vectors

    def forward(self, input_projection: Tensor, previous_reads: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Compute h_t [B, D] from U x_t [B, D] and the previous read vectors [B, R * W]; the new state is None."""
        return torch.tanh(input_projection + self.recall(previous_reads)), None


class LSTM(nn.Module):
    """Compute h_t by an LSTM with the inputs x_t and r_{t-1}. Its cell is a small additional memory.

    Args:
        inputs, read_size, hidden: as for ``FeedForward``.

    Example:
        >>> controller = LSTM(inputs=3, read_size=4, hidden=5)
        >>> hidden, (h, cell) = controller(controller.see(torch.zeros(2, 3)), torch.zeros(2, 4), None)
        >>> tuple(hidden.shape), tuple(cell.shape)
        ((2, 5), (2, 5))
    """

    def __init__(self, inputs: int, read_size: int, hidden: int) -> None:
        super().__init__()
        # The gates are stored in the order input, forget, candidate, output.
        self.see = nn.Linear(inputs, 4 * hidden)  # the part of the gates that depends on the input x_t
        self.recall = nn.Linear(read_size + hidden, 4 * hidden, bias=False)  # the part that depends on r_{t-1}, h_{t-1}

    def forward(self, input_projection: Tensor, previous_reads: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """Compute h_t [B, D] and the new state from U x_t [B, 4 D], the previous reads [B, R * W] and the old state."""
        zeros = input_projection.new_zeros
        h, cell = carry if carry is not None else zeros(2, len(previous_reads), input_projection.shape[1] // 4)
        gates = input_projection + self.recall(torch.cat([previous_reads, h], 1))
        input_gate, forget_gate, candidate, output_gate = gates.chunk(4, 1)
        h, cell = lstm_cell(
            input_gate=input_gate,
            forget_gate=forget_gate + 1,  # the constant 1 keeps the forget gate open when training begins
            candidate=candidate,
            output_gate=output_gate,
            cell=cell,
        )
        return h, (h, cell)


class NTM(nn.Module):
    """Learn sequence tasks with a controller that reads and writes a memory at every step, trained by gradients.

    The output o_t = O [h_t, r_t] depends on what is read in step t. The controller sees r_t in step t + 1.

    Args:
        spec: the specification of the tasks: sequences of labels (``way``) or of bits (``target_shape``).
        memory: the factory of the memory; by default ``ntm-memory`` with 128 slots of width 20 and one read head.
        controller: ``feedforward`` (no state) or ``lstm`` (with a state).
        hidden: number of units of the controller (D).

    Raises:
        OptionError: ``hidden`` is not positive.
        MisfitError: the sizes that the memory states are not those of its results.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.Copying(length=3, bits=2)
        >>> learner = NTM(tasks.spec, controller="lstm", hidden=10)
        >>> episode = tasks.sample("train", [0])
        >>> tuple(learner.adapt(episode.support)(episode.query.x).shape)
        (1, 7, 2)
    """

    needs = Needs(kinds=("sequence",), exact_gradient=True)
    training_defaults = Training(lr=5e-4, schedule="linear", clip=1.0, meta_batch=16, iterations=4000)

    def __init__(
        self,
        spec: TaskSpec,
        *,
        memory: MemoryFactory | None = None,
        controller: Literal["feedforward", "lstm"] = "feedforward",
        hidden: int = 100,
    ) -> None:
        super().__init__()
        check_values(NTM, locals())
        if hidden < 1:
            raise OptionError(f"ntm: got hidden {hidden}, expected at least 1 unit; raise hidden")
        self.memory: Memory = kshot.nn.memory(memory or NTMMemory, slots=128, width=20, reads=1)
        inputs, read_size = math.prod(spec.input_shape), self.memory.read_size
        self.controller: FeedForward | LSTM = (LSTM if controller == "lstm" else FeedForward)(inputs, read_size, hidden)
        self.emit = nn.Linear(hidden, self.memory.interface_size)  # from h_t to the interface vector of the memory
        way = spec.way if isinstance(spec.way, int) else None
        self.target = spec.target_shape if way is None else (way,)
        self.say = nn.Linear(hidden + read_size, math.prod(self.target))  # O, from h_t and r_t to the output o_t

    def unroll(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        """Map sequences ``x`` [B, T, *input] to logits [B, T, *target] and the memory's state after each step.

        Raises:
            DataError: the length is 0, or an input is not finite.
        """
        B, T = x.shape[:2]
        if T == 0:
            raise DataError(
                f"ntm: got sequences of length 0 (inputs of shape {tuple(x.shape)}), expected at least one step; "
                "raise their length"
            )
        check_finite(x, "ntm: inputs")
        input_projections = self.controller.see(x.flatten(2))  # U x_t of all steps in one product
        # Each sequence starts with an empty memory, and with zeros as the vectors read before the first step.
        reads = input_projections.new_zeros(B, self.memory.read_size)
        carry, state = None, self.memory.initial_state(B)
        hidden_states, all_reads, states = [], [], []
        for input_projection in input_projections.unbind(1):
            # h_t is computed from x_t and r_{t-1}. Then the memory is written and read as the interface vector says.
            h, carry = self.controller(input_projection, reads, carry)
            reads, state = self.memory.step(self.emit(h), state)
            hidden_states.append(h)
            all_reads.append(reads)
            states.append(state)
        # o_t = O [h_t, r_t] of all steps in one product.
        logits: Tensor = self.say(torch.cat([torch.stack(hidden_states, 1), torch.stack(all_reads, 1)], -1))
        return logits.view(B, T, *self.target), states

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the mean negative log-likelihood of the targets, through all T steps, to ``.grad``."""
        logits, _ = self.unroll(episodes.query.x)
        loss = sequence_loss(logits, episodes.query.y)
        loss.backward()
        return {"loss": loss.detach(), "error": sequence_errors(logits.detach(), episodes.query.y).nanmean()}

    def adapt(self, support: Support) -> Predictor:
        """Return a function from sequences [B, T, *input] to logits [B, T, *target].

        The memory is empty when a sequence begins. Nothing is learnt from the support, which is empty in sequence
        tasks.
        """
        return lambda x: self.unroll(x)[0]

    def trace(self, episode: Episode) -> Mapping[str, Any]:
        """Return the inputs, the outputs, and the slots that the heads read and write (ability ``Explains``).

        Returns:
            numpy arrays ``inputs`` [B, T, *input], ``outputs`` (logits) and ``targets`` [B, T, *target];
            ``read_weights`` [B, T, R, M] and ``write_weights`` [B, T, *, M] if the memory's state has fields of these
            names.
        """
        with torch.no_grad():
            outputs, states = self.unroll(episode.query.x)
        traced = {"inputs": episode.query.x, "outputs": outputs.float(), "targets": episode.query.y}
        # A memory's state may be a mapping, a named tuple, or a value without names, which is not traced.
        for name in ("read_weights", "write_weights"):
            fields = [s if isinstance(s, Mapping) else getattr(s, "_asdict", dict)() for s in states]
            if name in fields[0]:
                traced[name] = torch.stack([f[name] for f in fields], 1)
        return {name: t.detach().cpu().numpy() for name, t in traced.items()}
