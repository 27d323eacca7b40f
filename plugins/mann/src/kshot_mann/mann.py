"""Memory-augmented neural networks: Santoro, Bartunov, Botvinick, Wierstra & Lillicrap, "One-shot learning with
memory-augmented neural networks", 2016 (1605.06065).

Letters: B meta-batch, N way, n queries, T time, M slots, W slot width, R read heads, D units of the controller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import kshot.nn
from kshot import Episode, Memory, MemoryFactory, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import sequence_errors, sequence_loss
from kshot_lrua_memory import LRUAMemory
from kshot_mann.steps import Steps


class MANNState(NamedTuple):
    """What the next step needs.

    Attributes:
        seen: the controller's h_t and what was read at t [B, D + R * W]: what is answered from, and gone on from.
        cell: the controller's c_t [B, D].
        memory: the memory's own state.
    """

    seen: Tensor
    cell: Tensor
    memory: Any


class MANN(nn.Module):
    """An LSTM with an external memory that learns to bind what it sees to the label that comes one step later.

    At step t it sees (x_t, y_{t-1}) and what it read at t - 1, writes to the memory and reads it, and answers from its
    own state and what it has read. As a learner of few-shot classification it goes through the support in this way
    and then answers each query from the state that this has led to, one query independently of the others.

    Args:
        spec: the tasks': streams, other sequences of labels or of bits, or classification with a fixed way.
        memory: makes the memory; by default ``lrua-memory``.
        hidden: D, units of the controller.
        slots, width, reads: M, W and R that the memory is asked for; its own options win.
        standardise: take the mean off each example and divide it by its standard deviation.

    Raises:
        OptionError: hidden is not positive, or the memory refuses its sizes.
        MisfitError: the memory's sizes disagree with what it does.
    """

    needs = Needs(kinds=("sequence", "classification"), exact_gradient=True)
    training_defaults = Training(lr=1e-3, meta_batch=16, iterations=10_000)

    def __init__(
        self,
        spec: TaskSpec,
        *,
        memory: MemoryFactory | None = None,
        hidden: int = 200,
        slots: int = 128,
        width: int = 40,
        reads: int = 4,
        standardise: bool = True,
    ) -> None:
        super().__init__()
        if hidden < 1:
            raise OptionError(f"mann: hidden is {hidden}, expected at least 1 unit")
        self.steps = Steps(spec, standardise)
        self.hidden = hidden
        self.memory: Memory = kshot.nn.memory(memory or LRUAMemory, slots=slots, width=width, reads=reads)
        # One matrix of the LSTM in two, so that what is seen is multiplied for all T at once.
        self.see = nn.Linear(self.steps.size, 4 * hidden)
        self.go_on = nn.Linear(hidden + self.memory.read_size, 4 * hidden, bias=False)
        self.emit = nn.Linear(hidden, self.memory.interface_size)
        self.say = nn.Linear(hidden + self.memory.read_size, self.steps.outputs)
        with torch.no_grad():
            self.see.bias[hidden : 2 * hidden] += 1  # gates of forgetting begin open (Jozefowicz et al. 2015)

    def wiped(self, B: int) -> MANNState:
        """The state before the first step of ``B`` episodes: nothing lasts from one episode to the next."""
        zeros = self.say.weight.new_zeros
        return MANNState(zeros(B, self.say.in_features), zeros(B, self.hidden), self.memory.initial_state(B))

    def unroll(self, shown: Tensor, state: MANNState) -> Iterator[MANNState]:
        """From ``state`` on, the state after each of the steps ``shown`` [B, T, I]."""
        for seen in self.see(shown).unbind(1):
            given, forgotten, told, candidate = (seen + self.go_on(state.seen)).chunk(4, 1)
            cell = forgotten.sigmoid() * state.cell + given.sigmoid() * candidate.tanh()
            h = told.sigmoid() * cell.tanh()
            reads, memory = self.memory.step(self.emit(h), state.memory)
            state = MANNState(torch.cat([h, reads], 1), cell, memory)
            yield state

    def answer(self, shown: Tensor, state: MANNState) -> tuple[Tensor, MANNState]:
        """Steps ``shown`` [B, T, I] -> logits [B, T, *target] and the state after the last."""
        seen = []
        for state in self.unroll(shown, state):  # noqa: B020  the loop goes on from the state it is given
            seen.append(state.seen)
        logits: Tensor = self.say(torch.stack(seen, 1))
        return logits.view(*shown.shape[:2], *self.steps.target), state

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """The negative log-likelihood of the answers, back-propagated through all steps (section 2.1 of the paper)."""
        logits = self.adapt(episodes.support)(episodes.query.x)
        loss = sequence_loss(logits, episodes.query.y)
        loss.backward()
        return {"loss": loss.detach(), "error": sequence_errors(logits.detach(), episodes.query.y).nanmean()}

    def adapt(self, support: Support) -> Predictor:
        """Of a sequence nothing is known before it begins; of a classification task, what its support has written."""
        if self.steps.spec.kind == "sequence":
            return lambda x: self.answer(self.steps.of_sequence(x), self.wiped(len(x)))[0]
        shown, label = self.steps.of_support(support)
        _, state = self.answer(shown, self.wiped(len(shown)))

        def predict(x: Tensor) -> Tensor:
            B, n = x.shape[:2]
            alone = pytree.tree_map(lambda t: t.repeat_interleave(n, 0), state)  # each query goes on from the support
            logits, _ = self.answer(self.steps.of_queries(x, label).flatten(0, 1)[:, None], alone)
            return logits.view(B, n, -1)

        return predict

    def trace(self, episode: Episode) -> Mapping[str, Any]:
        """What was shown and said, and where the memory was read and written (ability ``Explains``).

        Returns:
            numpy arrays ``inputs`` [B, T, I], the steps of a sequence or of a support; ``outputs``, logits, and
            ``targets`` of the queries; ``read_weights`` [B, T, R, M] and ``write_weights`` [B, T, *, M] where the
            memory's state names them.
        """
        with torch.no_grad():
            if self.steps.spec.kind == "sequence":
                shown = self.steps.of_sequence(episode.query.x)
            else:
                shown, _ = self.steps.of_support(episode.support)
            states = [state.memory for state in self.unroll(shown, self.wiped(len(shown)))]
            outputs = self.adapt(episode.support)(episode.query.x)
        traced = {"inputs": shown, "outputs": outputs, "targets": episode.query.y}
        for name in ("read_weights", "write_weights"):
            fields = [s if isinstance(s, Mapping) else getattr(s, "_asdict", dict)() for s in states]
            if name in fields[0]:
                traced[name] = torch.stack([f[name] for f in fields], 1)
        return {name: t.detach().cpu().numpy() for name, t in traced.items()}
