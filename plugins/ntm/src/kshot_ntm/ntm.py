"""Neural Turing machines: Graves, Wayne & Danihelka, 2014 (1410.5401).

Letters: B meta-batch, T time, M memory slots, W slot width, R read heads, D units of the controller.
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
from kshot.functional import sequence_errors, sequence_loss
from kshot_ntm_memory import NTMMemory

Carry = tuple[Tensor, Tensor] | None
"""What an LSTM carries from step to step: h and c [B, D]. None before the first step, and for a feed-forward net."""


class FeedForward(nn.Module):
    """h_t = tanh(U x_t + V r_{t-1}): all that lasts is in the memory."""

    def __init__(self, inputs: int, reads: int, hidden: int) -> None:
        super().__init__()
        self.see = nn.Linear(inputs, hidden)
        self.recall = nn.Linear(reads, hidden, bias=False)

    def forward(self, seen: Tensor, reads: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """``seen`` = U x_t [B, D], reads of the step before [B, R * W] -> h_t [B, D]."""
        return torch.tanh(seen + self.recall(reads)), None


class LSTM(nn.Module):
    """A long short-term memory that sees x_t and r_{t-1}: it has a small memory of its own."""

    def __init__(self, inputs: int, reads: int, hidden: int) -> None:
        super().__init__()
        self.see = nn.Linear(inputs, 4 * hidden)
        self.recall = nn.Linear(reads + hidden, 4 * hidden, bias=False)

    def forward(self, seen: Tensor, reads: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
        """``seen`` = U x_t [B, 4 D], reads of the step before [B, R * W], h and c -> h_t [B, D], h and c."""
        h, c = carry if carry is not None else seen.new_zeros(2, len(seen), seen.shape[1] // 4)
        given, forgotten, candidate, shown = (seen + self.recall(torch.cat([reads, h], 1))).chunk(4, 1)
        c = torch.sigmoid(forgotten + 1) * c + torch.sigmoid(given) * torch.tanh(candidate)
        h = torch.sigmoid(shown) * torch.tanh(c)
        return h, (h, c)


class NTM(nn.Module):
    """A controller that reads and writes an external memory at every step, all of it learned by gradients.

    The output o_t = O [h_t, r_t] sees what was read at this step; the controller sees it at the next.

    Args:
        spec: the tasks': sequences of labels (``way``) or of bits (``target_shape``).
        memory: makes the memory; by default ``ntm-memory``, 128 slots of width 20 with one read head.
        controller: ``feedforward`` or ``lstm``.
        hidden: D, its units.

    Raises:
        OptionError: hidden is not positive.
        MisfitError: the memory's sizes disagree with what it does.
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
        if hidden < 1:
            raise OptionError(f"ntm: hidden is {hidden}, expected at least 1")
        self.memory: Memory = kshot.nn.memory(memory or NTMMemory, slots=128, width=20, reads=1)
        inputs, reads = math.prod(spec.input_shape), self.memory.read_size
        self.controller: FeedForward | LSTM = (LSTM if controller == "lstm" else FeedForward)(inputs, reads, hidden)
        self.emit = nn.Linear(hidden, self.memory.interface_size)
        way = spec.way if isinstance(spec.way, int) else None
        self.target = spec.target_shape if way is None else (way,)
        self.say = nn.Linear(hidden + reads, math.prod(self.target))

    def unroll(self, x: Tensor) -> tuple[Tensor, list[Any]]:
        """Sequences ``x`` [B, T, *input] -> logits [B, T, *target] and the memory's state after each step."""
        B, T = x.shape[:2]
        if T == 0:
            raise DataError(f"ntm: the sequences have length 0 (inputs of shape {tuple(x.shape)}), expected a step")
        check_finite(x, "ntm: inputs")
        seen = self.controller.see(x.flatten(2))
        reads, carry, state = seen.new_zeros(B, self.memory.read_size), None, self.memory.initial_state(B)
        hs, rs, states = [], [], []
        for seen_t in seen.unbind(1):
            h, carry = self.controller(seen_t, reads, carry)
            reads, state = self.memory.step(self.emit(h), state)
            hs.append(h)
            rs.append(reads)
            states.append(state)
        logits: Tensor = self.say(torch.cat([torch.stack(hs, 1), torch.stack(rs, 1)], -1))
        return logits.view(B, T, *self.target), states

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Back-propagation through all T steps of the answers' negative log-likelihood."""
        logits, _ = self.unroll(episodes.query.x)
        loss = sequence_loss(logits, episodes.query.y)
        loss.backward()
        return {"loss": loss.detach(), "error": sequence_errors(logits.detach(), episodes.query.y).nanmean()}

    def adapt(self, support: Support) -> Predictor:
        """Nothing is known of a sequence before it begins: each starts from a wiped memory."""
        return lambda x: self.unroll(x)[0]

    def trace(self, episode: Episode) -> Mapping[str, Any]:
        """What was said and where the heads were (ability ``Explains``): numpy arrays ``inputs`` [B, T, *input],
        ``outputs`` (logits) and ``targets`` [B, T, *target]; ``read_weights`` [B, T, R, M] and ``write_weights``
        [B, T, *, M] where the memory's state names them.
        """
        with torch.no_grad():
            outputs, states = self.unroll(episode.query.x)
        traced = {"inputs": episode.query.x, "outputs": outputs.float(), "targets": episode.query.y}
        for name in ("read_weights", "write_weights"):
            fields = [s if isinstance(s, Mapping) else getattr(s, "_asdict", dict)() for s in states]
            if name in fields[0]:
                traced[name] = torch.stack([f[name] for f in fields], 1)
        return {name: t.detach().cpu().numpy() for name, t in traced.items()}
