"""Memory-augmented neural networks: Santoro, Bartunov, Botvinick, Wierstra & Lillicrap, "One-shot learning with
memory-augmented neural networks", 2016 (1605.06065).

Letters: B meta-batch, N way, n queries, T time, I numbers of a step, M slots, W slot width, R read heads, D units of
the controller.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import kshot.nn
from kshot import Episode, Memory, MemoryFactory, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import lstm_cell, sequence_errors, sequence_loss
from kshot.nn import ControllerName
from kshot.registry import Range, check_values
from kshot_lrua_memory import LRUAMemory
from kshot_mann.steps import Steps


class MANNState(NamedTuple):
    """Everything that the next step needs.

    Attributes:
        seen: the controller's hidden state h_t and the reads r_t, [B, D + R * W]. The answer is computed from them,
            and they are the recurrent input of the next step.
        carry: the controller's other state, tensors [B, D]: its cell state c_t if it is an LSTM.
        memory: the memory's own state.
    """

    seen: Tensor
    carry: tuple[Tensor, ...]
    memory: Any


class MANN(nn.Module):
    """An LSTM with an external memory that learns to bind each example to the label that arrives one step later.

    At step t the controller receives (x_t, y_{t-1}) and the reads of step t - 1; it writes to the memory, reads from
    it, and answers from its hidden state and the new reads. As a few-shot classifier it processes the support in this
    way and then answers each query from the resulting state, independently of the other queries.

    Args:
        spec: the specification of the tasks: streams, other sequences of labels or of bits, or classification with a
            fixed way.
        memory: the factory of the memory; ``lrua-memory`` by default.
        controller: ``lstm`` as in the paper, ``gru``, or ``feedforward`` (no state), see ``kshot.nn.controllers``.
        hidden: D, units of the controller.
        slots, width, reads: M, W and R requested from the factory; options given with the memory take precedence.
        standardise: whether to subtract the mean of each example and divide it by its standard deviation.
        segment: time steps whose intermediate results are not kept for the backward pass but computed again, this
            many at a time, which needs less memory and a third more time; 0 keeps everything.

    Raises:
        OptionError: ``hidden`` is not positive, ``controller`` is unknown, ``segment`` is negative, or the
            memory refuses its sizes.
        MisfitError: the memory's stated sizes disagree with its results.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.LabelStream(way=3, length=8)
        >>> learner = MANN(tasks.spec, hidden=10, slots=6, width=4, reads=2)
        >>> episode = tasks.sample("train", [0, 1])
        >>> tuple(learner.adapt(episode.support)(episode.query.x).shape)
        (2, 8, 3)
    """

    needs = Needs(kinds=("sequence", "classification"), exact_gradient=True)
    training_defaults = Training(lr=1e-3, meta_batch=16, iterations=10_000)

    def __init__(
        self,
        spec: TaskSpec,
        *,
        memory: MemoryFactory | None = None,
        controller: ControllerName = "lstm",
        hidden: int = 200,
        slots: int = 128,
        width: int = 40,
        reads: int = 4,
        standardise: bool = True,
        segment: Annotated[int, Range(0)] = 0,
    ) -> None:
        super().__init__()
        check_values(MANN, locals())
        if hidden < 1:
            raise OptionError(f"mann: got hidden {hidden}, expected at least 1 unit; raise hidden")
        self.steps = Steps(spec, standardise)
        self.hidden, self.segment = hidden, segment
        self.memory: Memory = kshot.nn.memory(memory or LRUAMemory, slots=slots, width=width, reads=reads)
        size, read_size = self.steps.size, self.memory.read_size
        if controller == "lstm":
            # The LSTM's matrix is stored in two: `see` multiplies the inputs, for all T steps at once, and `go_on` the
            # recurrent input [h_{t-1}, r_{t-1}]. The gates are stored in the order input, forget, output, candidate.
            self.see = nn.Linear(size, 4 * hidden)
            self.go_on = nn.Linear(hidden + read_size, 4 * hidden, bias=False)
            self.controller = None
        else:
            self.controller = kshot.nn.controller(controller, inputs=size, read_size=read_size, hidden=hidden)
        self.emit = nn.Linear(hidden, self.memory.interface_size)
        self.say = nn.Linear(hidden + read_size, self.steps.outputs)
        if controller == "lstm":
            with torch.no_grad():
                self.see.bias[hidden : 2 * hidden] += 1  # forget gates start open (Jozefowicz et al. 2015)

    def wiped(self, B: int) -> MANNState:
        """Return the state before the first step of ``B`` episodes, so that nothing lasts beyond an episode."""
        zeros = self.say.weight.new_zeros
        carry = (zeros(B, self.hidden),) if self.controller is None else self.controller.start(zeros(B, 1))
        return MANNState(zeros(B, self.say.in_features), carry, self.memory.initial_state(B))

    def step(self, input_projection: Tensor, state: MANNState) -> tuple[Tensor, MANNState]:
        """Compute one step from the projection of its input: what the answer is computed from, and the new state."""
        if self.controller is not None:
            hidden, carry = self.controller(input_projection, state.seen[:, self.hidden :], state.carry)
        else:
            # The controller of the paper, an LSTM whose recurrent input contains the reads of the step before.
            gates = input_projection + self.go_on(state.seen)
            input_gate, forget_gate, output_gate, candidate = gates.chunk(4, 1)
            hidden, cell = lstm_cell(
                input_gate=input_gate,
                forget_gate=forget_gate,
                candidate=candidate,
                output_gate=output_gate,
                cell=state.carry[0],
            )
            carry = (cell,)
        # The memory: its interface (keys and gates) is a linear map of h_t; it is written first, then read.
        reads, memory = self.memory.step(self.emit(hidden), state.memory)
        seen = torch.cat([hidden, reads], 1)
        return seen, MANNState(seen, carry, memory)

    def project(self, shown: Tensor) -> Tensor:
        """Multiply the inputs of all steps [B, T, I] by the input matrix of the controller, in one product."""
        projection: Tensor = (self.see if self.controller is None else self.controller.see)(shown)
        return projection

    def answer(self, shown: Tensor, state: MANNState) -> tuple[Tensor, MANNState]:
        """Map the steps ``shown`` [B, T, I] to logits [B, T, *target] and the state after the last step."""
        seen, state = kshot.nn.unroll(self.step, self.project(shown), state, self.segment)
        logits: Tensor = self.say(seen)  # o_t = W_o [h_t, r_t], for all steps at once
        return logits.view(*shown.shape[:2], *self.steps.target), state

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the answers' mean negative log-likelihood, through all steps (section 2.1)."""
        logits = self.adapt(episodes.support)(episodes.query.x)
        loss = sequence_loss(logits, episodes.query.y)
        loss.backward()
        return {"loss": loss.detach(), "error": sequence_errors(logits.detach(), episodes.query.y).nanmean()}

    def adapt(self, support: Support) -> Predictor:
        """Return the predictor of a sequence, from a wiped state; or of queries, from the state after the support.

        Sequences [B, T, *input] are mapped to logits [B, T, *target], queries [B, n, *input] to logits [B, n, N].
        """
        if self.steps.spec.kind == "sequence":
            return lambda x: self.answer(self.steps.of_sequence(x), self.wiped(len(x)))[0]
        shown, label = self.steps.of_support(support)
        _, state = self.answer(shown, self.wiped(len(shown)))

        def predict(x: Tensor) -> Tensor:
            B, n = x.shape[:2]
            # Each query is a sequence of one step that continues from its own copy of the state [B * n, ...].
            copies = pytree.tree_map(lambda t: t.repeat_interleave(n, 0), state)
            logits, _ = self.answer(self.steps.of_queries(x, label).flatten(0, 1)[:, None], copies)
            return logits.view(B, n, -1)

        return predict

    def trace(self, episode: Episode) -> Mapping[str, Any]:
        """Return the inputs, the answers, and the slots that were read and written (ability ``Explains``).

        Returns:
            numpy arrays ``inputs`` [B, T, I], the steps of a sequence or of a support; ``outputs``, logits, and
            ``targets`` of the queries; ``read_weights`` [B, T, R, M] and ``write_weights`` [B, T, *, M] if the
            memory's state has fields of these names.
        """
        with torch.no_grad():
            if self.steps.spec.kind == "sequence":
                shown = self.steps.of_sequence(episode.query.x)
            else:
                shown, _ = self.steps.of_support(episode.support)
            state, states = self.wiped(len(shown)), []
            for input_projection in self.project(shown).unbind(1):
                _, state = self.step(input_projection, state)
                states.append(state.memory)
            outputs = self.adapt(episode.support)(episode.query.x)
        traced = {"inputs": shown, "outputs": outputs, "targets": episode.query.y}
        # A memory's state may be a mapping, a named tuple, or a value without names.
        for name in ("read_weights", "write_weights"):
            fields = [s if isinstance(s, Mapping) else getattr(s, "_asdict", dict)() for s in states]
            if name in fields[0]:
                traced[name] = torch.stack([f[name] for f in fields], 1)
        return {name: t.detach().cpu().numpy() for name, t in traced.items()}
