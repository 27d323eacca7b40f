"""The LSTM baseline: Hochreiter, Younger & Conwell, "Learning to learn using gradient descent", 2001, which learns to
learn without an external memory. Santoro et al. (2016, table 1) compare their network with it.

Letters: B meta-batch, n queries, T time, I numbers of a step, D units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import sequence_errors, sequence_loss
from kshot_mann.steps import Steps

State = tuple[Tensor, Tensor]
"""The hidden state h and the cell state c, each [1, B, D]."""


class LSTM(nn.Module):
    """A recurrent learner without external memory: what it knows of an episode is in its hidden and cell states.

    Its equations are those of ``kshot.functional.lstm_cell``. They are computed by ``torch.nn.LSTM``, which is faster
    and applies because the recurrent input is the hidden state alone.

    Args:
        spec: the specification of the tasks: streams, other sequences of labels or of bits, or classification with a
            fixed way.
        hidden: D, units.
        standardise: whether to subtract the mean of each example and divide it by its standard deviation.

    Raises:
        OptionError: ``hidden`` is not positive.

    Example:
        >>> from kshot.testing import sample_tasks
        >>> tasks = sample_tasks.classification(way=3, shot=2, query=4)
        >>> episode = tasks.sample("test", [0])
        >>> tuple(LSTM(tasks.spec, hidden=10).adapt(episode.support)(episode.query.x).shape)
        (1, 12, 3)
    """

    needs = Needs(kinds=("sequence", "classification"), exact_gradient=True)
    training_defaults = Training(lr=1e-3, meta_batch=16, iterations=10_000)

    def __init__(self, spec: TaskSpec, *, hidden: int = 200, standardise: bool = True) -> None:
        super().__init__()
        if hidden < 1:
            raise OptionError(f"lstm: got hidden {hidden}, expected at least 1 unit; raise hidden")
        self.steps = Steps(spec, standardise)
        self.cells = nn.LSTM(self.steps.size, hidden, batch_first=True)
        self.say = nn.Linear(hidden, self.steps.outputs)
        with torch.no_grad():
            # Forget gates start open (Jozefowicz et al. 2015); torch's order is input, forget, candidate, output.
            self.cells.get_parameter("bias_ih_l0")[hidden : 2 * hidden] += 1

    def answer(self, shown: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Map the steps ``shown`` [B, T, I] to logits [B, T, *target] and the state after the last step.

        Args:
            state: the state to continue from; None is the zero state.
        """
        hidden, state = self.cells(shown, state)
        logits: Tensor = self.say(hidden)
        return logits.view(*shown.shape[:2], *self.steps.target), state

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the answers' mean negative log-likelihood, back-propagated through all steps."""
        logits = self.adapt(episodes.support)(episodes.query.x)
        loss = sequence_loss(logits, episodes.query.y)
        loss.backward()
        return {"loss": loss.detach(), "error": sequence_errors(logits.detach(), episodes.query.y).nanmean()}

    def adapt(self, support: Support) -> Predictor:
        """Return the predictor of a sequence, from the zero state; or of queries, from the state after the support.

        Sequences [B, T, *input] are mapped to logits [B, T, *target], queries [B, n, *input] to logits [B, n, N].
        """
        if self.steps.spec.kind == "sequence":
            return lambda x: self.answer(self.steps.of_sequence(x))[0]
        shown, label = self.steps.of_support(support)
        _, (hidden, cell) = self.answer(shown)

        def predict(x: Tensor) -> Tensor:
            B, n = x.shape[:2]
            # Each query is a sequence of one step that continues from its own copy of the state [1, B * n, D].
            copies = hidden.repeat_interleave(n, 1), cell.repeat_interleave(n, 1)
            logits, _ = self.answer(self.steps.of_queries(x, label).flatten(0, 1)[:, None], copies)
            return logits.view(B, n, -1)

        return predict
