"""SimpleShot: Wang, Chao, Weinberger & van der Maaten, "SimpleShot: revisiting nearest-neighbor classification for
few-shot learning", 2019 (1911.04623).

Letters: B meta-batch, N way, S support size, n queries, D embedding.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import class_means, full_precision, prototypical_logits
from kshot.nn import EncoderChoice, Normalisation, infer_output_shape
from kshot.nn import encoder as build_encoder
from kshot.registry import Range

Transform = Literal["CL2N", "L2N", "UN"]

LEAST_STEP = 0.01
"""The least part of the way that the mean moves towards that of a meta-batch. The first hundred count alike."""


class SimpleShot(nn.Module):
    """Classify a query by the nearest centroid of the transformed embeddings of the support.

    The transformation ``CL2N`` subtracts the mean embedding of the training split, and then scales to length 1. The
    mean is learned in training. A learner that was not trained subtracts the mean of the support instead.

    Args:
        spec: the specification of the tasks, which determines the inputs of the encoder.
        transform: ``CL2N``, ``L2N`` (unit length without centring) or ``UN`` (no transformation).
        encoder: ``auto`` (by the input shape), ``conv4``, ``mlp``, ``linear``, ``identity``, or a module from
            [n, *input] to [n, D].
        width: number of channels of ``conv4``, of units of ``mlp``, or of outputs of ``linear``.
        normalisation: the statistics that batch norm uses at evaluation, see ``kshot.nn.Encoder``.
        scale: by which squared distances are multiplied at the start of training. The scale is trained; it decides
            how sure the probabilities are, and not which class is the most probable.

    Raises:
        OptionError: a choice is unknown, or the scale is not positive.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)
        >>> learner = SimpleShot(spec, encoder="identity", transform="L2N", scale=1.0)
        >>> predict = learner.adapt(Support.of([[2.0, 0.0], [0.0, 3.0]], [0, 1]))
        >>> predict(torch.tensor([[[5.0, 0.0]]])).tolist()
        [[[-0.0, -2.0]]]
    """

    needs = Needs(kinds=("classification",), variable_way=True, exact_gradient=True, invariant={"labels", "order"})
    training_defaults = Training(lr=8e-3, schedule="linear", warmup=100, iterations=1000, tasks={"way": 30, "query": 1})

    mean: Tensor
    seen: Tensor

    def __init__(
        self,
        spec: TaskSpec,
        *,
        transform: Transform = "CL2N",
        encoder: EncoderChoice = "auto",
        width: Annotated[int, Range(1, 4096)] = 64,
        normalisation: Normalisation = "inductive",
        scale: Annotated[float, Range(0)] = 10.0,
    ) -> None:
        super().__init__()
        if transform not in get_args(Transform):
            raise OptionError(f"simpleshot: got transform {transform!r}, expected 'CL2N', 'L2N' or 'UN'")
        if not 0 < scale < math.inf:
            raise OptionError(f"simpleshot: got scale {scale}, expected a positive number")
        self.transform: Transform = transform
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width)
        self.needs = attrs.evolve(type(self).needs, queries=self.encoder.queries)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        D = infer_output_shape(self.encoder, spec.input_shape)[-1]
        self.register_buffer("mean", torch.zeros(D))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # meta-batches

    def transformed(self, z: Tensor, centre: Tensor) -> Tensor:
        """Transform embeddings [..., D]; ``centre`` is the mean to subtract. Section 3.2 of the paper."""
        if self.transform == "UN":
            return z
        # L2N: x / ||x||. CL2N: the same for x - mean.
        return F.normalize(z - centre if self.transform == "CL2N" else z, dim=-1)

    def logits(self, z_query: Tensor, z_support: Tensor, support: Support, centre: Tensor) -> Tensor:
        """Compute the logits [B, n, N]: minus the squared distances to the centroids, times the scale.

        Args:
            z_query: embeddings of the queries [B, n, D].
            z_support: embeddings of the support [B, S, D].
            support: has the labels.
            centre: [D] or [B, 1, D].
        """
        # The centroid of a class is the mean of its transformed embeddings; it is not scaled again.
        centroids = class_means(self.transformed(z_support, centre), support.y, support.way or 0)
        # Equation 1: the nearest one decides.
        return self.log_scale.exp() * prototypical_logits(self.transformed(z_query, centre), centroids)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the cross-entropy of the queries to ``.grad``, and update the mean embedding.

        While training, each episode is centred by the mean of its support, as by a learner that was not trained.
        """
        support, query = episodes.support, episodes.query
        # Support and queries are embedded together, so that batch norm sees the whole episode.
        z = full_precision(self.encoder(torch.cat([support.x, query.x], 1)))
        z_support, z_query = z[:, : support.x.shape[1]], z[:, support.x.shape[1] :]
        logits = self.logits(z_query, z_support, support, z_support.mean(1, keepdim=True))
        loss = F.cross_entropy(logits.flatten(0, 1), query.y.flatten())
        loss.backward()
        self.learn_mean(z.detach())
        return {"loss": loss.detach(), "accuracy": (logits.argmax(-1) == query.y).float().mean()}

    @torch.no_grad()
    def learn_mean(self, z: Tensor) -> None:
        """Move the mean towards that of the embeddings [B, n, D] of a meta-batch.

        It is the mean over all meta-batches while they are few, and later a moving average, because the encoder
        changes while it is trained.
        """
        self.seen += 1
        step = (1 / self.seen).clamp_min(LEAST_STEP).to(self.mean)
        self.mean += step * (z.mean((0, 1)).to(self.mean) - self.mean)

    def adapt(self, support: Support) -> Predictor:
        """Return a function from queries [B, n, *input] to logits [B, n, N]."""
        embed = self.encoder.given(support.x)

        def predict(x: Tensor) -> Tensor:
            z_support, z_query = map(full_precision, embed(x))
            centre = torch.where(self.seen > 0, self.mean.to(z_support), z_support.mean(1, keepdim=True))
            return self.logits(z_query, z_support, support, centre)

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [B, n, *input] as transformed embeddings [B, n, D] (ability ``Embeds``).

        ``CL2N`` subtracts the mean that was learned, or nothing before the training.
        """
        return self.transformed(full_precision(self.encoder(x)), self.mean)
