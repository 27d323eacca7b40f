"""Fort, "Gaussian prototypical networks for few-shot learning on Omniglot", 2017 (1708.02735), section 3.

Letters: B meta-batch, N way, S support size, n queries, D embedding, P numbers of a precision, which is a diagonal
matrix: 1 (the same in all directions) or D. Mathematics below is over any leading axes, B among them.
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
from kshot.nn import EncoderChoice, Normalisation, evaluating
from kshot.nn import encoder as build_encoder

Precision = Literal["radius", "diagonal", "constant"]
Transform = Literal["softplus", "sigmoid", "sigmoid4", "learned"]


def positive(raw: Tensor, transform: Transform, log_terms: Tensor) -> Tensor:
    """Raw precisions, any real numbers, as precisions s > 0 of the same shape (section 3.1).

    ``softplus``: 1 + softplus(r). ``sigmoid``: 1 + sigmoid(r), within 1 and 2. ``sigmoid4``: 1 + 4 sigmoid(r), within 1
    and 5. ``learned``: offset + scale softplus(r / div), of which ``log_terms`` [3] are the logarithms: so that s stays
    positive and div is never 0. Only ``learned`` uses them.
    """
    if transform == "softplus":
        return 1 + F.softplus(raw)
    if transform == "sigmoid":
        return 1 + raw.sigmoid()
    if transform == "sigmoid4":
        return 1 + 4 * raw.sigmoid()
    offset, scale, div = log_terms.exp().unbind()
    return offset + scale * F.softplus(raw / div)


def gaussian_prototypes(z: Tensor, s: Tensor, y: Tensor, way: int) -> tuple[Tensor, Tensor]:
    """p_c = sum(s x) / sum(s) [..., N, D] and the class's precision S_c = sum(s) [..., N, P], over its support.

    Embeddings ``z`` [..., S, D], precisions ``s`` [..., S, P], labels ``y`` [..., S]. Section 3.3.
    """
    index = y.unsqueeze(-1)
    totals = s.new_zeros(*y.shape[:-1], way, s.shape[-1]).scatter_add(-2, index.expand(s.shape), s)
    sums = z.new_zeros(*y.shape[:-1], way, z.shape[-1]).scatter_add(-2, index.expand(z.shape), s * z)
    return sums / totals.clamp_min(torch.finfo(s.dtype).tiny), totals


def gaussian_distances(z: Tensor, prototypes: Tensor, precisions: Tensor) -> Tensor:
    """d = sqrt((x - p_c)^T S_c (x - p_c)): ``z`` [..., n, D], [..., N, D], [..., N, P] -> [..., n, N]. Section 3.3."""
    squares = (z.unsqueeze(-2) - prototypes.unsqueeze(-3)).square()
    return root((squares * precisions.unsqueeze(-3)).sum(-1))


def root(squared: Tensor) -> Tensor:
    """The square root, whose gradient is taken as 0 at 0: there the root's own is infinite, and a query may be its own
    class's prototype."""
    apart = squared > 0
    return squared.where(apart, torch.ones_like(squared)).sqrt().where(apart, torch.zeros_like(squared))


class GaussianProtoNet(nn.Module):
    """Classify by the nearest prototype, where every example says by its precision how much its embedding is worth.

    The raw precision is a linear layer of the embedding that begins at 0: before training all examples have the same
    precision. Prototypes are weighted by precisions, and distances measured by the sum of a class's.

    Args:
        spec: the tasks'; fixes the input shape.
        precision: ``radius`` (one number an example), ``diagonal`` (one for each dimension of the embedding) or
            ``constant`` (one learned number for all examples: the control, which is prototypical networks with a
            learned temperature and without the square).
        transform: of raw precisions to positive ones: ``softplus``, ``sigmoid``, ``sigmoid4`` or ``learned``, see
            ``positive``.
        encoder: ``auto``, ``conv4``, ``mlp``, ``linear`` or a module from [n, *input] to [n, D].
        width: channels of conv4, units of mlp, outputs of linear.
        normalisation: whose batch statistics serve at evaluation: ``inductive``, ``support`` or ``transductive``.

    Raises:
        OptionError: an unknown precision, transform, encoder or policy.
        DataError: the encoder can't take the input shape.
    """

    needs = Needs(
        kinds=("classification",),
        variable_way=True,
        exact_gradient=True,
        invariant={"labels", "order"},
    )
    # As prototypical networks: a minute or two for a first good result.
    training_defaults = Training(lr=8e-3, schedule="linear", warmup=100, iterations=1000, tasks={"way": 30, "query": 1})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        precision: Precision = "radius",
        transform: Transform = "softplus",
        encoder: EncoderChoice = "auto",
        width: int = 64,
        normalisation: Normalisation = "inductive",
    ) -> None:
        super().__init__()
        for name, value, known in (("precision", precision, Precision), ("transform", transform, Transform)):
            if value not in get_args(known):
                raise OptionError(f"gaussian-protonet: {name} is {value!r}, expected one of {get_args(known)}")
        self.precision: Precision = precision
        self.transform: Transform = transform
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width)
        self.needs = attrs.evolve(type(self).needs, queries=self.encoder.queries)
        with torch.no_grad(), evaluating(self.encoder):
            D = self.encoder(torch.zeros(1, 1, *spec.input_shape)).shape[-1]
        # constant: no weights, so that raw precisions are the bias alone
        self.raw_precision = nn.Linear(D, D if precision == "diagonal" else 1)
        nn.init.zeros_(self.raw_precision.weight).requires_grad_(precision != "constant")
        nn.init.zeros_(self.raw_precision.bias)
        self.log_terms = nn.Parameter(torch.zeros(3), requires_grad=transform == "learned")

    def precision_of(self, z: Tensor) -> Tensor:
        """Embeddings ``z`` [B, n, D] -> their precisions s [B, n, P]."""
        return positive(full_precision(self.raw_precision(z)), self.transform, self.log_terms)

    def logits(self, z_support: Tensor, z: Tensor, support: Support) -> Tensor:
        """Embeddings of support [B, S, D] and queries [B, n, D] -> minus the distances d_c [B, n, N]."""
        prototypes, precisions = gaussian_prototypes(
            z_support, self.precision_of(z_support), support.y, support.way or 0
        )
        return -gaussian_distances(z, prototypes, precisions)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """-log p(y = c | x), with p the softmax over minus the distances, not squared (section 3.2)."""
        support, query = episodes.support, episodes.query
        z = full_precision(self.encoder(torch.cat([support.x, query.x], 1)))  # both are normalised together
        logits = self.logits(z[:, : support.x.shape[1]], z[:, support.x.shape[1] :], support)
        loss = F.cross_entropy(logits.flatten(0, 1), query.y.flatten())
        loss.backward()
        accuracy = (logits.argmax(-1) == query.y).float().mean()
        return {"loss": loss.detach(), "accuracy": accuracy}

    def adapt(self, support: Support) -> Predictor:
        """Prototypes and precisions of the classes; logits of queries [B, n, N] are minus distances."""
        embed = self.encoder.given(support.x)

        def predict(x: Tensor) -> Tensor:
            z_support, z_query = map(full_precision, embed(x))
            return self.logits(z_support, z_query, support)

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """``x`` [.., *input] -> embeddings [.., D] (ability ``Embeds``)."""
        z: Tensor = self.encoder(x)
        return z

    @torch.no_grad()
    def precisions(self, x: Tensor) -> Tensor:
        """How much each of the inputs ``x`` [B, n, *input] would count: s [B, n, P], by running batch statistics.

        For a person to look at: whether blurred or noisy examples are trusted less.
        """
        with evaluating(self.encoder):
            return self.precision_of(full_precision(self.encoder(x)))
