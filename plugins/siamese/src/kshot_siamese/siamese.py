"""Siamese networks: Hadsell, Chopra & LeCun, "Dimensionality reduction by learning an invariant mapping", 2006, and
Koch, Zemel & Salakhutdinov, "Siamese neural networks for one-shot image recognition", 2015.

Letters: B meta-batch, N way, S support size, n examples, P = n (n - 1) / 2 pairs, D embedding. Mathematics below is
over any leading axes, B among them. A pair is genuine if both are of one class, else an imposter.
"""

from __future__ import annotations

from typing import Literal, get_args

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import full_precision
from kshot.nn import EncoderChoice, Normalisation
from kshot.nn import encoder as build_encoder

Loss = Literal["contrastive", "koch"]
Average = Literal["auto", "active", "balanced", "all"]

_AT_MARGIN = 1e-12  # loss of a pair at the margin but for rounding, as any is at 1 with an embedding of zeros in it


def pairs(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every pair of n examples once: labels ``y`` [..., n] -> first [P], second [P], whether genuine [..., P]."""
    first, second = torch.triu_indices(y.shape[-1], y.shape[-1], 1, device=y.device)
    return first, second, y[..., first] == y[..., second]


def energy(a: Tensor, b: Tensor) -> Tensor:
    """E = ||a - b||: embeddings [..., D] -> [...]. Where a = b the gradient is 0, and not that of the square root."""
    distance: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return distance


def contrastive_losses(energies: Tensor, genuine: Tensor, margin: float) -> Tensor:
    """E^2 of a genuine pair, max(0, margin - E)^2 of an imposter: [...] each. Hadsell et al. (2006), eq. 4, times 2."""
    return torch.where(genuine, energies, (margin - energies).clamp_min(0)).square()


def koch_logits(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """The log odds that a pair is genuine, sum_j alpha_j |a_j - b_j|: embeddings [..., D], alpha [D] -> [...]."""
    return ((a - b).abs() * weights).sum(-1)


def koch_probability(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """p = sigmoid(sum_j alpha_j |a_j - b_j|) that a pair is genuine. Koch et al. (2015), section 3.1."""
    return koch_logits(a, b, weights).sigmoid()


def mean_over(losses: Tensor, genuine: Tensor, average: Average) -> Tensor:
    """Losses of pairs [..., P] -> of an episode [...].

    ``all``: the mean over pairs, of which few are genuine. ``balanced``: the mean over genuine pairs plus that over
    imposters. ``active``: the same, over imposters that have a loss, so that the hard ones count alike however many
    are past the margin.
    """
    if average == "all":
        return losses.mean(-1)
    imposters = ~genuine if average == "balanced" else ~genuine & (losses > _AT_MARGIN)

    def mean(of: Tensor) -> Tensor:
        return (losses * of).sum(-1) / of.sum(-1).clamp_min(1)

    return mean(genuine) + mean(imposters)


class Siamese(nn.Module):
    """Tell whether two inputs are of one class, by their distance in a learned embedding.

    It trains on all pairs of an episode's examples, and so on pairs within one split. A query belongs to the class of
    its nearest support example, whatever the shot.

    Args:
        spec: the tasks'; fixes the input shape.
        loss: ``contrastive`` (Hadsell et al.: the distance is Euclidean) or ``koch`` (Koch et al.: cross-entropy of a
            learned weighting of |h1 - h2|; the distance is minus the log odds of being of one class).
        unit_length: scale embeddings to length 1, which bounds their distance by 2.
        margin: contrastive: how far apart imposters are pushed.
        average: over which pairs: ``active``, ``balanced``, ``all``, see ``mean_over``; ``auto`` is active for
            contrastive and balanced for koch.
        encoder: ``auto``, ``conv4``, ``mlp``, ``linear`` or a module from [n, *input] to [n, D].
        width: channels of conv4, units of mlp, outputs of linear.
        normalisation: whose batch statistics serve at evaluation: ``inductive``, ``support`` or ``transductive``.

    Raises:
        OptionError: an unknown or impossible option.
        DataError: the encoder can't take the input shape.
    """

    needs = Needs(kinds=("classification",), variable_way=True, exact_gradient=True, invariant={"labels", "order"})
    # A minute or two for a first good result: 20 classes with 6 examples each are 300 genuine pairs and 6840 imposters.
    training_defaults = Training(lr=6e-3, schedule="linear", warmup=50, iterations=400, tasks={"way": 20, "query": 5})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        loss: Loss = "contrastive",
        unit_length: bool = True,
        margin: float = 1.0,
        average: Average = "auto",
        encoder: EncoderChoice = "auto",
        width: int = 64,
        normalisation: Normalisation = "inductive",
    ) -> None:
        super().__init__()
        if loss not in get_args(Loss):
            raise OptionError(f"siamese: loss is {loss!r}, expected 'contrastive' or 'koch'")
        if average not in get_args(Average):
            raise OptionError(f"siamese: average is {average!r}, expected 'auto', 'active', 'balanced' or 'all'")
        if loss == "koch" and average == "active":
            raise OptionError("siamese: average 'active' is for 'contrastive'; with 'koch' use 'balanced' or 'all'")
        if not margin > 0 or (loss == "contrastive" and unit_length and margin > 2):
            raise OptionError(
                f"siamese: margin is {margin}, expected a positive number, and at most 2 with embeddings of unit "
                "length: none are farther apart"
            )
        self.loss: Loss = loss
        self.unit_length, self.margin = unit_length, margin
        self.average: Average = average if average != "auto" else "active" if loss == "contrastive" else "balanced"
        self.input_shape = spec.input_shape
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width)
        self.weights: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if loss == "koch":
            with torch.no_grad():
                D = self.encoder.eval()(torch.zeros(1, 1, *spec.input_shape)).shape[-1]
            self.weights = nn.Parameter(-torch.ones(D))
            self.bias = nn.Parameter(torch.ones(()))  # without it, as in the paper, p of equal inputs stays at 1/2
        self.needs = attrs.evolve(type(self).needs, queries=self.encoder.queries)

    def scaled(self, z: Tensor) -> Tensor:
        """Embeddings [..., D] as the distance is taken of them."""
        z = full_precision(z)
        return F.normalize(z, dim=-1) if self.unit_length else z

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """How unlike two inputs are, by their embeddings from ``embed`` [..., D] -> [...]; by this pairs are verified.

        Their Euclidean distance; or, with loss ``koch``, minus the log odds that they are of one class.
        """
        if self.weights is None or self.bias is None:
            return energy(a, b)
        return -(koch_logits(a, b, self.weights) + self.bias)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """The loss of all pairs of support and query examples, averaged within each episode, then over B."""
        support, query = episodes.support, episodes.query
        z = self.scaled(self.encoder(torch.cat([support.x, query.x], 1)))  # both are normalised together
        first, second, genuine = pairs(torch.cat([support.y, query.y], 1))
        distances = self.distance(z[:, first], z[:, second])
        if self.loss == "contrastive":
            losses = contrastive_losses(distances, genuine, self.margin)
        else:
            losses = F.binary_cross_entropy_with_logits(-distances, genuine.to(distances), reduction="none")
        loss = mean_over(losses, genuine, self.average).mean()
        loss.backward()
        near = distances.detach() < (self.margin / 2 if self.loss == "contrastive" else 0)
        right = (near == genuine).to(loss)
        return {"loss": loss.detach(), "accuracy": mean_over(right, genuine, "balanced").mean() / 2}

    def adapt(self, support: Support) -> Predictor:
        """Logits of queries [B, n, N]: minus the distance to the nearest support example of each class."""
        embed = self.encoder.given(support.x)

        def predict(x: Tensor) -> Tensor:
            z_support, z_query = map(self.scaled, embed(x))
            near = -self.distance(z_query.unsqueeze(2), z_support.unsqueeze(1))  # [B, n, S]
            logits = near.new_full((*near.shape[:2], support.way or 0), -torch.inf)
            return logits.scatter_reduce(2, support.y.unsqueeze(1).expand_as(near), near, "amax")

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """``x`` [.., *input] -> embeddings [.., D], of unit length where it is asked for (ability ``Embeds``)."""
        lead = x.shape[: x.ndim - len(self.input_shape)]
        z = self.scaled(self.encoder(x.reshape(1, -1, *self.input_shape)))
        return z.view(*lead, z.shape[-1])
