"""Siamese networks: Hadsell, Chopra & LeCun, "Dimensionality reduction by learning an invariant mapping", 2006, and
Koch, Zemel & Salakhutdinov, "Siamese neural networks for one-shot image recognition", 2015.

A pair is genuine if both examples are of the same class, and an imposter pair otherwise. Letters: B meta-batch, N way,
S support size, n examples, P pairs, D embedding.
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
from kshot.nn import EncoderChoice, Normalisation, infer_output_shape
from kshot.nn import encoder as build_encoder
from kshot_siamese.losses import Average, contrastive_losses, energy, koch_logits, mean_over, pairs

Loss = Literal["contrastive", "koch"]


class Siamese(nn.Module):
    """Decide whether two inputs are of the same class by their distance in a learned embedding.

    Training uses all pairs of examples of an episode. An episode is of one split, so no pair mixes splits. A query is
    classified by its nearest support example, at any shot.

    Args:
        spec: of the tasks. It gives the input shape.
        loss: ``contrastive`` (Hadsell et al.: the distance is Euclidean) or ``koch`` (Koch et al.: cross-entropy of a
            learned weighting of |h1 - h2|; the distance is minus the log odds that the pair is genuine).
        unit_length: scale embeddings to length 1, so that no distance exceeds 2.
        margin: the distance beyond which imposters have no contrastive loss.
        average: how losses of pairs are averaged: ``active``, ``balanced`` or ``all``; see ``losses.mean_over``.
            ``auto`` is ``active`` for contrastive and ``balanced`` for koch.
        encoder: ``auto``, ``conv4``, ``mlp``, ``linear`` or a module from [n, *input] to [n, D].
        width: channels of conv4, units of mlp, outputs of linear.
        normalisation: whose batch statistics are used at evaluation: ``inductive``, ``support`` or ``transductive``.

    Raises:
        OptionError: an option is unknown, or does not go with another one.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)
        >>> learner = Siamese(spec, encoder=nn.Flatten(), unit_length=False)
        >>> learner.distance(learner.embed(torch.tensor([0.0, 0.0])), learner.embed(torch.tensor([3.0, 4.0]))).item()
        5.0
    """

    needs = Needs(kinds=("classification",), variable_way=True, exact_gradient=True, invariant={"labels", "order"})
    # For a first good result in a minute or two. 20 classes with 6 examples each are 300 genuine pairs and 6840
    # imposter pairs.
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
            raise OptionError(f"siamese: got loss={loss!r}, expected 'contrastive' or 'koch'")
        if average not in get_args(Average):
            raise OptionError(f"siamese: got average={average!r}, expected 'auto', 'active', 'balanced' or 'all'")
        if loss == "koch" and average == "active":
            raise OptionError("siamese: got average='active' with loss='koch', expected 'balanced' or 'all'")
        if not margin > 0 or (loss == "contrastive" and unit_length and margin > 2):
            raise OptionError(
                f"siamese: got margin={margin}, expected a positive number, and at most 2 with embeddings of unit "
                "length, whose distance is never greater; lower the margin or set unit_length to false"
            )
        self.loss: Loss = loss
        self.unit_length, self.margin = unit_length, margin
        self.average: Average = average if average != "auto" else "active" if loss == "contrastive" else "balanced"
        self.input_shape = spec.input_shape
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width)
        self.weights: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if loss == "koch":
            D = infer_output_shape(self.encoder, spec.input_shape)[-1]
            self.weights = nn.Parameter(-torch.ones(D))
            # The paper has no bias. Without it, the probability of a pair of equal inputs stays at 1/2.
            self.bias = nn.Parameter(torch.ones(()))
        self.needs = attrs.evolve(type(self).needs, queries=self.encoder.queries)

    def scaled(self, z: Tensor) -> Tensor:
        """Convert embeddings [..., D] to full precision, and scale them to length 1 if ``unit_length`` is set."""
        z = full_precision(z)
        return F.normalize(z, dim=-1) if self.unit_length else z

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute the distance of embeddings from ``embed`` [..., D] -> [...] (ability ``Compares``).

        It is Euclidean; or, with loss ``koch``, minus the log odds that the two inputs are of the same class.
        """
        if self.weights is None or self.bias is None:
            return energy(a, b)
        return -(koch_logits(a, b, self.weights) + self.bias)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the mean loss of all pairs to ``.grad``, and return the loss and the pairs' accuracy."""
        support, query = episodes.support, episodes.query
        # Support and queries are embedded together, so that batch norm sees the whole episode.
        z = self.scaled(self.encoder(torch.cat([support.x, query.x], 1)))
        # All pairs of support and query examples, within each episode.
        first, second, genuine = pairs(torch.cat([support.y, query.y], 1))
        distances = self.distance(z[:, first], z[:, second])
        if self.loss == "contrastive":
            # Hadsell et al., equation 4: E^2 for genuine pairs, max(0, margin - E)^2 for imposters.
            losses = contrastive_losses(distances, genuine, self.margin)
        else:
            # Koch et al., section 3.2: the cross-entropy of p, whose log odds are minus the distance.
            losses = F.binary_cross_entropy_with_logits(-distances, genuine.to(distances), reduction="none")
        # The average over the pairs of each episode, then over B.
        loss = mean_over(losses, genuine, self.average).mean()
        loss.backward()
        # Balanced accuracy, with a pair accepted below half the margin, or at p > 1/2.
        near = distances.detach() < (self.margin / 2 if self.loss == "contrastive" else 0)
        right = (near == genuine).to(loss)
        return {"loss": loss.detach(), "accuracy": mean_over(right, genuine, "balanced").mean() / 2}

    def adapt(self, support: Support) -> Predictor:
        """Return a predictor from queries [B, n, *input] to logits [B, n, N].

        The logit of a class is minus the distance to its nearest support example.
        """
        embed = self.encoder.given(support.x)

        def predict(x: Tensor) -> Tensor:
            z_support, z_query = map(self.scaled, embed(x))
            near = -self.distance(z_query.unsqueeze(2), z_support.unsqueeze(1))  # [B, n, S]
            # The maximum over the support examples of each class.
            logits = near.new_full((*near.shape[:2], support.way or 0), -torch.inf)
            return logits.scatter_reduce(2, support.y.unsqueeze(1).expand_as(near), near, "amax")

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [..., *input] as [..., D], of unit length if that is set (ability ``Embeds``)."""
        lead = x.shape[: x.ndim - len(self.input_shape)]
        z = self.scaled(self.encoder(x.reshape(1, -1, *self.input_shape)))
        return z.view(*lead, z.shape[-1])
