"""Prototypical networks: Snell, Swersky & Zemel, "Prototypical networks for few-shot learning", 2017 (1703.05175).

Letters: B meta-batch, N way, S support size, n queries, D embedding, A length of a class's semantic vector.
"""

from __future__ import annotations

from typing import Annotated

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import DataError
from kshot.functional import class_means, full_precision, prototypical_logits
from kshot.nn import EncoderChoice, Normalisation, infer_output_shape
from kshot.nn import encoder as build_encoder
from kshot.registry import Range


class ProtoNet(nn.Module):
    """Classify a query by the nearest prototype; the prototype of a class is the mean embedding of its support.

    If a task has no labelled examples (zero-shot), the prototype of a class is the embedding of its semantic vector,
    scaled to unit length. The embeddings of queries are not scaled (section 2.7 of the paper).

    Args:
        spec: the specification of the tasks: the input shape and, if there are semantic vectors, their length.
        encoder: ``auto`` (by the input shape), ``conv4``, ``mlp``, ``linear``, or a module from [n, *input] to [n, D].
        width: number of channels of ``conv4``, of units of ``mlp``, or of outputs of ``linear``.
        normalisation: the statistics that batch norm uses at evaluation: ``inductive`` (the running statistics of
            training), ``support`` (of the support) or ``transductive`` (of support and queries together).

    Raises:
        OptionError: the encoder or the normalisation policy is unknown.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)
        >>> learner = ProtoNet(spec, encoder=nn.Flatten())  # the inputs themselves are the embeddings
        >>> predict = learner.adapt(Support.of([[0.0, 0.0], [2.0, 0.0], [3.0, 4.0]], [0, 0, 1]))
        >>> predict(torch.tensor([[[0.0, 0.0]]])).tolist()
        [[[-1.0, -25.0]]]
    """

    needs = Needs(
        kinds=("classification",),
        semantics="optional",
        variable_way=True,
        zero_shot=True,
        exact_gradient=True,
        invariant={"labels", "order"},
    )
    # These defaults give a first good result in one or two minutes. The paper trains for hours, 60-way with 5 queries,
    # by Adam with a learning rate of 1e-3 that is halved every 2000 episodes; recipes/protonet-omniglot-60way.toml has
    # settings like these. The shot in training is that of the test, as the paper advises.
    training_defaults = Training(lr=8e-3, schedule="linear", warmup=100, iterations=1000, tasks={"way": 30, "query": 1})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        encoder: EncoderChoice = "auto",
        width: Annotated[int, Range(1, 4096)] = 64,
        normalisation: Normalisation = "inductive",
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width)
        self.needs = attrs.evolve(type(self).needs, queries=self.encoder.queries)
        self.class_encoder: nn.Module | None = None
        if spec.semantics_shape is not None:
            D = infer_output_shape(self.encoder, spec.input_shape)[-1]
            self.class_encoder = nn.Linear(spec.semantics_shape[0], D)

    def prototypes(self, z: Tensor, support: Support) -> Tensor:
        """Compute the prototypes p_c from the support (equation 1), or from semantics if the support is empty.

        Args:
            z: embeddings of the support [B, S, D].
            support: the labels, and for zero-shot tasks the semantic vectors [B, N, A].

        Returns:
            The prototypes [B, N, D].

        Raises:
            DataError: the support has neither examples nor semantics.
        """
        if z.shape[1] == 0:
            if self.class_encoder is None or support.semantics is None:
                raise DataError(
                    "protonet: got a support without examples and without semantics, expected one of the two; use "
                    "tasks with at least one example per class, or tasks that provide semantics"
                )
            # Section 2.7: p_c = g(v_c) / ||g(v_c)||.
            return F.normalize(self.class_encoder(support.semantics), dim=-1)
        # Equation 1: p_c is the mean of f(x) over the support of class c.
        return class_means(z, support.y, support.way or 0)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the loss of algorithm 1 to ``.grad``, and return the loss and the accuracy."""
        support, query = episodes.support, episodes.query
        # Support and queries are embedded together, so that batch norm sees the whole episode.
        z = full_precision(self.encoder(torch.cat([support.x, query.x], 1)))
        z_support, z_query = z[:, : support.x.shape[1]], z[:, support.x.shape[1] :]
        # Equation 2: p(y = c | x) is the softmax over -||f(x) - p_c||^2.
        logits = prototypical_logits(z_query, self.prototypes(z_support, support))
        # Algorithm 1: J is the mean of -log p(y = c | x) over the queries of all B episodes.
        loss = F.cross_entropy(logits.flatten(0, 1), query.y.flatten())
        loss.backward()
        accuracy = (logits.argmax(-1) == query.y).float().mean()
        return {"loss": loss.detach(), "accuracy": accuracy}

    def adapt(self, support: Support) -> Predictor:
        """Return a function from queries [B, n, *input] to logits [B, n, N], minus squared distances to prototypes."""
        embed = self.encoder.given(support.x)

        def predict(x: Tensor) -> Tensor:
            z_support, z_query = map(full_precision, embed(x))
            return prototypical_logits(z_query, self.prototypes(z_support, support))

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [B, n, *input] as [B, n, D] (ability ``Embeds``)."""
        z: Tensor = self.encoder(x)
        return z
