"""Matching networks: Vinyals, Blundell, Lillicrap, Kavukcuoglu & Wierstra, "Matching networks for one shot learning",
2016 (1606.04080).

Letters: B meta-batch, N way, S support size, n queries, D embedding. Mathematics below is over any leading axes, B
among them.
"""

from __future__ import annotations

import math
from typing import Literal

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import full_precision
from kshot.nn import EncoderChoice, Normalisation, evaluating
from kshot.nn import encoder as build_encoder


def cosine_similarities(a: Tensor, b: Tensor) -> Tensor:
    """c(a, b): ``a`` [..., n, D], ``b`` [..., m, D] -> [..., n, m], from -1 to 1; those of a zero vector are 0."""

    def unit(z: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return z / norm.where(norm > 0, torch.ones_like(norm))

    return unit(a) @ unit(b).mT


def log_attention(similarities: Tensor, temperature: Tensor | float) -> Tensor:
    """log a(x, x_i): the log-softmax of cosines / T over the support [..., n, S] (section 2.1.1, where T = 1)."""
    return (similarities / temperature).log_softmax(-1)


def log_class_sums(log_a: Tensor, y: Tensor, way: int) -> Tensor:
    """log of y = sum_i a(x, x_i) y_i (eq. 1): ``log_a`` [..., n, S], labels ``y`` [..., S] -> [..., n, N].

    Each class is summed relative to its own largest term, so that an improbable class keeps its digits where a(x, x_i)
    itself would be 0. A class without examples has minus infinity.
    """
    index = y.unsqueeze(-2).expand(log_a.shape)
    shape = (*log_a.shape[:-1], way)
    largest = log_a.new_full(shape, -math.inf).scatter_reduce(-1, index, log_a.detach(), "amax")
    largest = largest.where(largest > -math.inf, torch.zeros_like(largest))
    sums = log_a.new_zeros(shape).scatter_add(-1, index, (log_a - largest.gather(-1, index)).exp())
    return sums.log() + largest


def lstm_step(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM from its gates [..., 4 D] before their nonlinearities and its cell c [..., D] -> h, c."""
    given, forgotten, candidate, shown = gates.chunk(4, -1)
    c = forgotten.sigmoid() * c + given.sigmoid() * candidate.tanh()
    return shown.sigmoid() * c.tanh(), c


class FullContext(nn.Module):
    """Full context embeddings (appendix A): what an example is embedded as depends on the whole support.

    Args:
        features: D.
        steps: K, processing steps of f.
    """

    def __init__(self, features: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.support = nn.LSTM(features, features, bidirectional=True, batch_first=True)
        self.see = nn.Linear(features, 4 * features)
        self.recall = nn.Linear(2 * features, 4 * features, bias=False)

    def g(self, own: Tensor) -> Tensor:
        """g(x_i, S) = h_i forwards + h_i backwards + g'(x_i) (A.2): ``own`` = g' [B, S, D] -> [B, S, D]."""
        forwards, backwards = self.support(own)[0].chunk(2, -1)
        found: Tensor = forwards + backwards + own
        return found

    def f(self, own: Tensor, g: Tensor) -> Tensor:
        """f(x, S) = h_K (A.1, eq. 3 to 6): ``own`` = f' [B, n, D], ``g`` [B, S, D] -> [B, n, D].

        At each step attention by h . g reads r from the support, and [h, r] is the recurrent input; h and c begin at 0.
        """
        seen = self.see(own)
        h = c = torch.zeros_like(own)
        for _ in range(self.steps):
            r = (h @ g.mT).softmax(-1) @ g
            out, c = lstm_step(seen + self.recall(torch.cat([h, r], -1)), c)
            h = out + own
        return h


class MatchingNet(nn.Module):
    """Attend to the support by the cosine of embeddings; a class's probability is the attention that its examples get.

    Args:
        spec: the tasks'; fixes the input shape.
        temperature: T, by which cosines are divided before the softmax: ``learned``, from 0.1, or a number. 1 is the
            paper's, with which no probability exceeds e / (e + N - 1) at one shot where cosines are 0 to 1.
        full_context: embed each example in the context of the support; the order of the support then matters.
        steps: processing steps of a query's embedding in full context.
        encoder: ``auto``, ``conv4``, ``mlp``, ``linear`` or a module from [n, *input] to [n, D].
        width: channels of conv4, units of mlp, outputs of linear.
        normalisation: whose batch statistics serve at evaluation: ``inductive``, ``support`` or ``transductive``.

    Raises:
        OptionError: the temperature or the steps are not positive; an unknown encoder or policy.
        DataError: the encoder can't take the input shape.
    """

    needs = Needs(kinds=("classification",), variable_way=True, exact_gradient=True, invariant={"labels", "order"})
    # A minute or two for a first good result; the paper trains at the way of the test, for longer.
    training_defaults = Training(lr=8e-3, schedule="linear", warmup=100, iterations=1000, tasks={"way": 30, "query": 1})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        temperature: Literal["learned"] | float = "learned",
        full_context: bool = False,
        steps: int = 5,
        encoder: EncoderChoice = "auto",
        width: int = 64,
        normalisation: Normalisation = "inductive",
    ) -> None:
        super().__init__()
        T = None if temperature == "learned" else temperature
        if T is not None and not (isinstance(T, int | float) and 0 < T < math.inf):
            raise OptionError(f"matchingnet: temperature is {temperature!r}, expected 'learned' or a positive number")
        if steps < 1:
            raise OptionError(f"matchingnet: steps is {steps}, expected at least 1")
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width)
        self.fixed_temperature = T
        if T is None:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(0.1)))
        self.needs = attrs.evolve(type(self).needs, queries=self.encoder.queries)
        self.context: FullContext | None = None
        if full_context:
            with torch.no_grad(), evaluating(self.encoder):
                D = self.encoder(torch.zeros(1, 1, *spec.input_shape)).shape[-1]
            self.context = FullContext(D, steps)
            self.needs = attrs.evolve(self.needs, invariant={"labels"})

    @property
    def temperature(self) -> Tensor | float:
        """T as it is now."""
        return self.log_temperature.exp() if self.fixed_temperature is None else self.fixed_temperature

    def log_probabilities(self, z_support: Tensor, z_query: Tensor, support: Support) -> Tensor:
        """log P(y | x, S) from g' [B, S, D] and f' [B, n, D]: [B, n, N] (eq. 1)."""
        g, f = full_precision(z_support), full_precision(z_query)
        with torch.autocast(g.device.type, enabled=False):  # cosines and the states of LSTMs need the digits
            if self.context is not None:
                g = self.context.g(g)
                f = self.context.f(f, g)
            log_a = log_attention(cosine_similarities(f, g), self.temperature)
            return log_class_sums(log_a, support.y, support.way or 0)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """The loss is -log P(y | x, S) of the queries (eq. 2): the output is a probability already."""
        support, query = episodes.support, episodes.query
        z = self.encoder(torch.cat([support.x, query.x], 1))  # both are normalised together
        log_p = self.log_probabilities(z[:, : support.x.shape[1]], z[:, support.x.shape[1] :], support)
        loss = F.nll_loss(log_p.flatten(0, 1), query.y.flatten())
        loss.backward()
        T = self.temperature
        return {
            "loss": loss.detach(),
            "accuracy": (log_p.argmax(-1) == query.y).float().mean(),
            "temperature": T.detach() if isinstance(T, Tensor) else T,
        }

    def adapt(self, support: Support) -> Predictor:
        """Nothing is computed but embeddings; the answers to queries [B, n, N] are log-probabilities."""
        embed = self.encoder.given(support.x)
        return lambda x: self.log_probabilities(*embed(x), support)

    def embed(self, x: Tensor) -> Tensor:
        """``x`` [.., *input] -> embeddings without context [.., D] (ability ``Embeds``)."""
        z: Tensor = self.encoder(x)
        return z
