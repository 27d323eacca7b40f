"""An LSTM that learns to learn without a memory beside it: Hochreiter, Younger & Conwell, "Learning to learn using
gradient descent", 2001. Santoro et al. (2016, table 1) compare their network with it.

Letters: B meta-batch, n queries, T time, D units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import sequence_errors, sequence_loss
from kshot_mann.steps import Steps

State = tuple[Tensor, Tensor]


class LSTM(nn.Module):
    """What ``mann`` is without its memory: all that it knows of an episode is in h and c.

    Args:
        spec: the tasks': streams, other sequences of labels or of bits, or classification with a fixed way.
        hidden: D, its units.
        standardise: take the mean off each example and divide it by its standard deviation.

    Raises:
        OptionError: hidden is not positive.
    """

    needs = Needs(kinds=("sequence", "classification"), exact_gradient=True)
    training_defaults = Training(lr=1e-3, meta_batch=16, iterations=10_000)

    def __init__(self, spec: TaskSpec, *, hidden: int = 200, standardise: bool = True) -> None:
        super().__init__()
        if hidden < 1:
            raise OptionError(f"lstm: hidden is {hidden}, expected at least 1 unit")
        self.steps = Steps(spec, standardise)
        self.cells = nn.LSTM(self.steps.size, hidden, batch_first=True)
        self.say = nn.Linear(hidden, self.steps.outputs)
        with torch.no_grad():
            self.cells.get_parameter("bias_ih_l0")[hidden : 2 * hidden] += (
                1  # gates of forgetting begin open (Jozefowicz et al. 2015)
            )

    def answer(self, shown: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Steps ``shown`` [B, T, I] -> logits [B, T, *target] and the state after the last, h and c [1, B, D]."""
        h, state = self.cells(shown, state)
        logits: Tensor = self.say(h)
        return logits.view(*shown.shape[:2], *self.steps.target), state

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """The negative log-likelihood of the answers, back-propagated through all steps."""
        logits = self.adapt(episodes.support)(episodes.query.x)
        loss = sequence_loss(logits, episodes.query.y)
        loss.backward()
        return {"loss": loss.detach(), "error": sequence_errors(logits.detach(), episodes.query.y).nanmean()}

    def adapt(self, support: Support) -> Predictor:
        """Of a sequence nothing is known before it begins; of a classification task, what its support has left."""
        if self.steps.spec.kind == "sequence":
            return lambda x: self.answer(self.steps.of_sequence(x))[0]
        shown, label = self.steps.of_support(support)
        _, (h, c) = self.answer(shown)

        def predict(x: Tensor) -> Tensor:
            B, n = x.shape[:2]
            alone = h.repeat_interleave(n, 1), c.repeat_interleave(n, 1)  # each query goes on from the support
            logits, _ = self.answer(self.steps.of_queries(x, label).flatten(0, 1)[:, None], alone)
            return logits.view(B, n, -1)

        return predict
