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
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

import kshot.inner
import kshot.nn
from kshot import Episode, Memory, MemoryFactory, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.episode import check_finite
from kshot.errors import DataError, OptionError
from kshot.functional import sequence_errors, sequence_loss
from kshot.nn import ControllerName
from kshot.registry import Range, check_values
from kshot_ntm_memory import NTMMemory

State = tuple[Tensor, tuple[Tensor, ...], Any]
"""What the next step needs: the read vectors r_t [B, R * W], the state of the controller, and that of the memory."""


class NTM(nn.Module):
    """Learn sequence tasks with a controller that reads and writes a memory at every step, trained by gradients.

    The output o_t = O [h_t, r_t] depends on what is read in step t. The controller sees r_t in step t + 1.

    Args:
        spec: the specification of the tasks: sequences of labels (``way``) or of bits (``target_shape``).
        memory: the factory of the memory; by default ``ntm-memory`` with 128 slots of width 20 and one read head.
        controller: ``feedforward`` (no state), ``lstm`` or ``gru`` (with a state), see ``kshot.nn.controllers``.
        hidden: number of units of the controller (D).
        segment: time steps whose intermediate results are not kept for the backward pass but computed again, this
            many at a time, which needs less memory and a third more time; 0 keeps everything.
        strategy: how a meta-batch is computed. ``loop``: step by step. ``traced``: the operations of all steps are
            recorded once for each length and each size of a meta-batch, which takes seconds, and then repeated
            without Python, which computes the same numbers several times as fast if the meta-batch is small.
            ``compiled``: also compiled by torch's inductor, which takes minutes. ``auto``: traced after a hundred
            meta-batches of the same length. With ``segment`` nothing is traced.

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
        controller: ControllerName = "feedforward",
        hidden: int = 100,
        segment: Annotated[int, Range(0)] = 0,
        strategy: Literal["auto", "loop", "traced", "compiled"] = "auto",
    ) -> None:
        super().__init__()
        check_values(NTM, locals())
        if hidden < 1:
            raise OptionError(f"ntm: got hidden {hidden}, expected at least 1 unit; raise hidden")
        self.segment, self.strategy = segment, "loop" if segment else strategy
        # One Lift for each length, because a Lift stores the traces of a limited number of shapes.
        self.lifts: dict[int, kshot.inner.Lift] = {}
        self.memory: Memory = kshot.nn.memory(memory or NTMMemory, slots=128, width=20, reads=1)
        inputs, read_size = math.prod(spec.input_shape), self.memory.read_size
        self.controller = kshot.nn.controller(controller, inputs=inputs, read_size=read_size, hidden=hidden)
        self.emit = nn.Linear(hidden, self.memory.interface_size)  # from h_t to the interface vector of the memory
        way = spec.way if isinstance(spec.way, int) else None
        self.target = spec.target_shape if way is None else (*spec.target_shape, way)
        self.say = nn.Linear(hidden + read_size, math.prod(self.target))  # O, from h_t and r_t to the output o_t

    @staticmethod
    def check(x: Tensor) -> None:
        """Raise DataError if the length of sequences ``x`` [B, T, *input] is 0, or an input is not finite."""
        if x.shape[1] == 0:
            raise DataError(
                f"ntm: got sequences of length 0 (inputs of shape {tuple(x.shape)}), expected at least one step; "
                "raise their length"
            )
        check_finite(x, "ntm: inputs")

    def answer(self, x: Tensor, states: list[Any] | None = None) -> Tensor:
        """Map sequences ``x`` [B, T, *input] to logits [B, T, *target], after checking them.

        Args:
            x: the sequences.
            states: a list to which the memory's state after each step is added.
        """
        self.check(x)
        return self(x, states)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, states: list[Any] | None = None) -> Tensor:
        """Compute all T steps of ``answer``."""
        B, T = x.shape[:2]

        def step(input_projection: Tensor, before: State) -> tuple[Tensor, State]:
            reads, carry, state = before
            # h_t is computed from x_t and r_{t-1}. Then the memory is written and read as the interface vector says.
            h, carry = self.controller(input_projection, reads, carry)
            reads, state = self.memory.step(self.emit(h), state)
            if states is not None:
                states.append(state)
            return torch.cat([h, reads], 1), (reads, carry, state)

        input_projections = self.controller.see(x.flatten(2))  # U x_t of all steps in one product
        # Each sequence starts with an empty memory, and with zeros as the vectors read before the first step.
        reads = input_projections.new_zeros(B, self.memory.read_size)
        start = reads, self.controller.start(input_projections[:, 0]), self.memory.initial_state(B)
        seen, _ = kshot.nn.unroll(step, input_projections, start, self.segment)
        logits: Tensor = self.say(seen)  # o_t = O [h_t, r_t] of all steps in one product
        return logits.view(B, T, *self.target)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the mean negative log-likelihood of the targets, through all T steps, to ``.grad``."""
        x, y = episodes.query.x, episodes.query.y
        self.check(x)
        T = x.shape[1]
        if T not in self.lifts:
            self.lifts[T] = kshot.inner.Lift(self.strategy)
        state = kshot.inner.State(dict(self.named_parameters()), dict(self.named_buffers()))
        # All B sequences are computed together, so for the lift they are one task.
        metrics, _ = self.lifts[T].mean_gradient(self.metrics, state, x[None], y[None])
        return {name: value[0] for name, value in metrics.items()}

    def metrics(self, state: kshot.inner.State, x: Tensor, y: Tensor) -> tuple[Metrics, kshot.inner.State]:
        """Return the loss and the share of wrong answers of B sequences, and the unchanged state."""
        logits = functional_call(self, {**state.parameters, **state.buffers}, (x,))
        loss, errors = sequence_loss(logits, y), sequence_errors(logits.detach(), y)
        return {"loss": loss, "error": errors.nanmean()}, state

    def adapt(self, support: Support) -> Predictor:
        """Return a function from sequences [B, T, *input] to logits [B, T, *target].

        The memory is empty when a sequence begins. Nothing is learnt from the support, which is empty in sequence
        tasks.
        """
        return self.answer

    def trace(self, episode: Episode) -> Mapping[str, Any]:
        """Return the inputs, the outputs, and the slots that the heads read and write (ability ``Explains``).

        Returns:
            numpy arrays ``inputs`` [B, T, *input], ``outputs`` (logits) and ``targets`` [B, T, *target];
            ``read_weights`` [B, T, R, M] and ``write_weights`` [B, T, *, M] if the memory's state has fields of these
            names.
        """
        states: list[Any] = []
        with torch.no_grad():
            outputs = self.answer(episode.query.x, states)
        traced = {"inputs": episode.query.x, "outputs": outputs.float(), "targets": episode.query.y}
        # A memory's state may be a mapping, a named tuple, or a value without names, which is not traced.
        for name in ("read_weights", "write_weights"):
            fields = [s if isinstance(s, Mapping) else getattr(s, "_asdict", dict)() for s in states]
            if name in fields[0]:
                traced[name] = torch.stack([f[name] for f in fields], 1)
        return {name: t.detach().cpu().numpy() for name, t in traced.items()}
