"""Matching networks: Vinyals, Blundell, Lillicrap, Kavukcuoglu & Wierstra, "Matching networks for one shot learning",
2016 (1606.04080).

Letters: B meta-batch, N way, S support size, n queries, D embedding. The functions accept any leading axes.
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
from kshot.nn import EncoderChoice, Normalisation, infer_output_shape
from kshot.nn import encoder as build_encoder
from kshot_matchingnet.full_context import FullContext


def cosine_similarities(a: Tensor, b: Tensor) -> Tensor:
    """Compute the cosine of every pair: ``a`` [..., n, D], ``b`` [..., m, D] -> [..., n, m], from -1 to 1.

    The cosine with a zero vector is 0.
    """

    def unit(z: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return z / norm.where(norm > 0, torch.ones_like(norm))

    return unit(a) @ unit(b).mT


def log_attention(similarities: Tensor, temperature: Tensor | float) -> Tensor:
    """Compute log a(x, x_i), the log-softmax of cosines / T over the support (section 2.1.1, where T = 1).

    Similarities [..., n, S] give log-attention [..., n, S].
    """
    return (similarities / temperature).log_softmax(-1)


def log_class_sums(log_a: Tensor, y: Tensor, way: int) -> Tensor:
    """Compute the log-probability of each class, log sum_i a(x, x_i) y_i (equation 1).

    ``log_a`` [..., n, S] and labels ``y`` [..., S] give [..., n, N]. A class without examples has minus infinity.
    """
    index = y.unsqueeze(-2).expand(log_a.shape)
    shape = (*log_a.shape[:-1], way)
    # Log-sum-exp by class, relative to the largest term of the class. So the log-probability of an improbable class is
    # still exact when a(x, x_i) itself would be rounded to 0.
    largest = log_a.new_full(shape, -math.inf).scatter_reduce(-1, index, log_a.detach(), "amax")
    largest = largest.where(largest > -math.inf, torch.zeros_like(largest))
    sums = log_a.new_zeros(shape).scatter_add(-1, index, (log_a - largest.gather(-1, index)).exp())
    return sums.log() + largest


class MatchingNet(nn.Module):
    """Classify a query by its attention to the support; a class is as probable as the attention to its examples.

    The attention is the softmax of the cosines of embeddings.

    Args:
        spec: of the tasks. It gives the input shape.
        temperature: T, by which cosines are divided before the softmax: ``learned``, starting at 0.1, or a number. The
            paper has 1, with which no probability exceeds e / (e + N - 1) at one shot if cosines are between 0 and 1.
        full_context: embed each example in the context of the support. The order of the support then matters.
        steps: processing steps of the embedding of a query in full context.
        encoder: ``auto``, ``conv4``, ``mlp``, ``linear`` or a module from [n, *input] to [n, D].
        width: channels of conv4, units of mlp, outputs of linear.
        normalisation: whose batch statistics are used at evaluation: ``inductive``, ``support`` or ``transductive``.

    Raises:
        OptionError: the temperature or the number of steps is not positive, or the encoder or the policy of
            normalisation is unknown.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)
        >>> learner = MatchingNet(spec, encoder=nn.Flatten(), temperature=1.0)
        >>> predict = learner.adapt(Support.of([[5.0, 0.0], [0.0, 0.5]], [0, 1]))
        >>> predict(torch.tensor([[[1.0, 1.0]]])).exp()  # equally probable: the query has the same angle to both
        tensor([[[0.5000, 0.5000]]])
    """

    needs = Needs(kinds=("classification",), variable_way=True, exact_gradient=True, invariant={"labels", "order"})
    # For a first good result in a minute or two. The paper trains for longer, at the way of the test.
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
            raise OptionError(f"matchingnet: got temperature={temperature!r}, expected 'learned' or a positive number")
        if steps < 1:
            raise OptionError(f"matchingnet: got steps={steps}, expected at least 1")
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width)
        self.fixed_temperature = T
        if T is None:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(0.1)))
        self.needs = attrs.evolve(type(self).needs, queries=self.encoder.queries)
        self.context: FullContext | None = None
        if full_context:
            self.context = FullContext(infer_output_shape(self.encoder, spec.input_shape)[-1], steps)
            self.needs = attrs.evolve(self.needs, invariant={"labels"})

    @property
    def temperature(self) -> Tensor | float:
        """Return T: a number if it is fixed, a tensor [] if it is learned."""
        return self.log_temperature.exp() if self.fixed_temperature is None else self.fixed_temperature

    def log_probabilities(self, z_support: Tensor, z_query: Tensor, support: Support) -> Tensor:
        """Compute log P(y | x, S) [B, n, N] (equation 1) from embeddings g' [B, S, D] and f' [B, n, D]."""
        g, f = full_precision(z_support), full_precision(z_query)
        # Cosines and the states of LSTMs need full precision.
        with torch.autocast(g.device.type, enabled=False):
            # Appendix A: g(x_i, S) and f(x, S) take the whole support into account.
            if self.context is not None:
                g = self.context.g(g)
                f = self.context.f(f, g)
            # Section 2.1.1: a(x, x_i) is the softmax of the cosines c(f(x), g(x_i)).
            log_a = log_attention(cosine_similarities(f, g), self.temperature)
            # Equation 1: P(y | x, S) = sum_i a(x, x_i) y_i.
            return log_class_sums(log_a, support.y, support.way or 0)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the loss of equation 2 to ``.grad``, and return loss, accuracy and temperature."""
        support, query = episodes.support, episodes.query
        # Support and queries are embedded together, so that batch norm sees the whole episode.
        z = self.encoder(torch.cat([support.x, query.x], 1))
        log_p = self.log_probabilities(z[:, : support.x.shape[1]], z[:, support.x.shape[1] :], support)
        # Equation 2: the mean of -log P(y | x, S). No softmax is needed, because P is a probability already.
        loss = F.nll_loss(log_p.flatten(0, 1), query.y.flatten())
        loss.backward()
        T = self.temperature
        return {
            "loss": loss.detach(),
            "accuracy": (log_p.argmax(-1) == query.y).float().mean(),
            "temperature": T.detach() if isinstance(T, Tensor) else T,
        }

    def adapt(self, support: Support) -> Predictor:
        """Return a predictor from queries [B, n, *input] to log-probabilities of the classes [B, n, N]."""
        embed = self.encoder.given(support.x)
        return lambda x: self.log_probabilities(*embed(x), support)

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [B, n, *input], without context, as [B, n, D] (ability ``Embeds``)."""
        z: Tensor = self.encoder(x)
        return z
