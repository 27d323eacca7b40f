"""Gaussian prototypical networks: Fort, "Gaussian prototypical networks for few-shot learning on Omniglot", 2017
(1708.02735), section 3.

Letters: B meta-batch, N way, S support size, n queries, D embedding, P numbers of a precision. A precision is a
diagonal matrix: P is 1 if it is the same in all directions, and D otherwise. The functions accept any leading axes.
"""

from __future__ import annotations

from typing import Literal, get_args

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import class_sums, full_precision
from kshot.nn import EncoderChoice, Normalisation, evaluating, infer_output_shape
from kshot.nn import encoder as build_encoder

Precision = Literal["radius", "diagonal", "constant"]
Transform = Literal["softplus", "sigmoid", "sigmoid4", "learned"]


def positive(raw: Tensor, transform: Transform, log_terms: Tensor) -> Tensor:
    """Transform raw precisions r, any real numbers, to precisions s > 0 of the same shape (section 3.1).

    ``softplus`` is 1 + softplus(r). ``sigmoid`` is 1 + sigmoid(r), between 1 and 2. ``sigmoid4`` is 1 + 4 sigmoid(r),
    between 1 and 5. ``learned`` is offset + scale softplus(r / div); ``log_terms`` [3] are the logarithms of the three,
    so that s stays positive and div is never 0. The other transforms ignore ``log_terms``.
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
    """Compute the prototype and the precision of each class from its support (section 3.3).

    The prototypes are p_c = sum(s x) / sum(s) [..., N, D] and the precisions S_c = sum(s) [..., N, P].

    Args:
        z: embeddings x [..., S, D].
        s: precisions [..., S, P].
        y: labels [..., S].
        way: N.
    """
    precisions = class_sums(s, y, way)
    # The smallest positive number keeps a class without examples from 0 / 0.
    return class_sums(s * z, y, way) / precisions.clamp_min(torch.finfo(s.dtype).tiny), precisions


def gaussian_distances(z: Tensor, prototypes: Tensor, precisions: Tensor) -> Tensor:
    """Compute d_c(x) = sqrt((x - p_c)^T S_c (x - p_c)) of every query and class (section 3.3).

    Embeddings ``z`` [..., n, D], prototypes [..., N, D] and precisions [..., N, P] give distances [..., n, N].
    """
    squares = (z.unsqueeze(-2) - prototypes.unsqueeze(-3)).square()
    return root((squares * precisions.unsqueeze(-3)).sum(-1))


def root(squared: Tensor) -> Tensor:
    """Compute the square root, with the gradient 0 at 0.

    The derivative of the square root is infinite at 0, where a query coincides with a prototype.
    """
    apart = squared > 0
    return squared.where(apart, torch.ones_like(squared)).sqrt().where(apart, torch.zeros_like(squared))


class GaussianProtoNet(nn.Module):
    """Classify a query by the nearest prototype, with a learned precision for every example.

    An example with a high precision counts more in the prototype of its class. Distances to a class are measured by
    the sum of its precisions. The raw precision is a linear layer of the embedding that starts at 0, so all examples
    have the same precision before training.

    Args:
        spec: of the tasks. It gives the input shape.
        precision: ``radius`` (one number per example), ``diagonal`` (one for each dimension of the embedding) or
            ``constant`` (one learned number for all examples). ``constant`` is the control: prototypical networks with
            a learned temperature and without the square.
        transform: of raw precisions to positive ones: ``softplus``, ``sigmoid``, ``sigmoid4`` or ``learned``; see
            ``positive``.
        encoder: ``auto``, ``conv4``, ``mlp``, ``linear`` or a module from [n, *input] to [n, D].
        width: channels of conv4, units of mlp, outputs of linear.
        normalisation: whose batch statistics are used at evaluation: ``inductive``, ``support`` or ``transductive``.

    Raises:
        OptionError: the precision, the transform, the encoder or the policy of normalisation is unknown.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)
        >>> learner = GaussianProtoNet(spec, encoder=nn.Flatten(), transform="sigmoid")
        >>> learner.precisions(torch.tensor([[[3.0, 4.0], [0.0, 1.0]]])).tolist()  # before training
        [[[1.5], [1.5]]]
    """

    needs = Needs(
        kinds=("classification",),
        variable_way=True,
        exact_gradient=True,
        invariant={"labels", "order"},
    )
    # As for prototypical networks: for a first good result in a minute or two.
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
                raise OptionError(f"gaussian-protonet: got {name}={value!r}, expected one of {get_args(known)}")
        self.precision: Precision = precision
        self.transform: Transform = transform
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width)
        self.needs = attrs.evolve(type(self).needs, queries=self.encoder.queries)
        D = infer_output_shape(self.encoder, spec.input_shape)[-1]
        # With ``constant`` the weights stay 0, so that the raw precision is the bias alone.
        self.raw_precision = nn.Linear(D, D if precision == "diagonal" else 1)
        nn.init.zeros_(self.raw_precision.weight).requires_grad_(precision != "constant")
        nn.init.zeros_(self.raw_precision.bias)
        self.log_terms = nn.Parameter(torch.zeros(3), requires_grad=transform == "learned")

    def precision_of(self, z: Tensor) -> Tensor:
        """Compute the precisions s [B, n, P] of embeddings ``z`` [B, n, D] (section 3.1)."""
        return positive(full_precision(self.raw_precision(z)), self.transform, self.log_terms)

    def logits(self, z_support: Tensor, z: Tensor, support: Support) -> Tensor:
        """Compute the logits -d_c [B, n, N] from embeddings of support [B, S, D] and queries [B, n, D]."""
        # p_c = sum(s x) / sum(s) and S_c = sum(s) over the support of class c.
        prototypes, precisions = gaussian_prototypes(
            z_support, self.precision_of(z_support), support.y, support.way or 0
        )
        # d_c is not squared. The precision of the query itself is not used.
        return -gaussian_distances(z, prototypes, precisions)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the loss of section 3.2 to ``.grad``, and return the loss and the accuracy."""
        support, query = episodes.support, episodes.query
        # Support and queries are embedded together, so that batch norm sees the whole episode.
        z = full_precision(self.encoder(torch.cat([support.x, query.x], 1)))
        logits = self.logits(z[:, : support.x.shape[1]], z[:, support.x.shape[1] :], support)
        # The mean of -log p(y = c | x), with p the softmax over -d_c.
        loss = F.cross_entropy(logits.flatten(0, 1), query.y.flatten())
        loss.backward()
        accuracy = (logits.argmax(-1) == query.y).float().mean()
        return {"loss": loss.detach(), "accuracy": accuracy}

    def adapt(self, support: Support) -> Predictor:
        """Return a predictor from queries [B, n, *input] to logits [B, n, N], minus distances to the prototypes."""
        embed = self.encoder.given(support.x)

        def predict(x: Tensor) -> Tensor:
            z_support, z_query = map(full_precision, embed(x))
            return self.logits(z_support, z_query, support)

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [B, n, *input] as [B, n, D] (ability ``Embeds``)."""
        z: Tensor = self.encoder(x)
        return z

    @torch.no_grad()
    def precisions(self, x: Tensor) -> Tensor:
        """Compute the precisions s [B, n, P] of inputs [B, n, *input], with the running batch statistics.

        Use it to look at what was learned: for example, whether blurred or noisy examples have a low precision.
        """
        with evaluating(self.encoder):
            return self.precision_of(full_precision(self.encoder(x)))
