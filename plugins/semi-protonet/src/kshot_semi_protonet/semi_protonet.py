"""Semi-supervised prototypical networks: Ren, Triantafillou, Ravi, Snell, Swersky, Tenenbaum, Larochelle & Zemel,
"Meta-learning for semi-supervised few-shot classification", 2018 (1803.00676), section 3.

Letters: B meta-batch, N way, S support size, U unlabelled examples, n queries, D embedding.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import class_means, full_precision, pairwise_squared_distance, prototypical_logits
from kshot.nn import EncoderChoice, Normalisation
from kshot.nn import encoder as build_encoder
from kshot_semi_protonet.refinement import (
    cluster_assignments,
    normalised_distances,
    refined,
    soft_assignments,
    soft_mask,
    statistics,
)

Refine = Literal["none", "soft", "cluster", "masked"]
Assignments = Literal["differentiated", "constant"]


class SemiProtoNet(nn.Module):
    """Classify by prototypes that a step of soft k-means refines with unlabelled examples.

    The learner has the parameters of all refinements, whatever ``refine`` is. So one trained learner can be evaluated
    with each of them: ``engine.evaluate(learner_options={"refine": "soft"})``.

    Args:
        spec: of the tasks. It gives the input shape.
        refine: ``none`` (prototypical networks), ``soft`` (unlabelled examples are shared among the classes),
            ``cluster`` (shared among the classes and a distractor cluster around the origin) or ``masked`` (examples
            that are far from a prototype, by a learned threshold, count less).
        assignments: how the encoder learns from the shares of the unlabelled examples: ``differentiated``, through the
            distances from which they are computed, or ``constant``, which stops that gradient. The radius and the mask
            learn in both ways. The authors' code has ``constant`` for ``soft`` and differentiates the other two.
        train_encoder: if False, only the radius of the distractor cluster or the mask is trained, on embeddings as at
            evaluation. Use it for a second stage, on classes that the encoder was not trained on.
        encoder: ``auto``, ``conv4``, ``mlp``, ``linear`` or a module from [n, *input] to [n, D].
        width: channels of conv4, units of mlp, outputs of linear.
        normalisation: whose batch statistics are used at evaluation: ``inductive``, ``support`` (labelled and
            unlabelled examples) or ``transductive``.

    Raises:
        OptionError: the refinement, the assignments, the encoder or the policy of normalisation is unknown. In
            training: nothing can be trained.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(1,), way=2, shot=1, query=1, provides={"unlabelled"})
        >>> learner = SemiProtoNet(spec, refine="soft", encoder=nn.Flatten())
        >>> support = Support.of([[0.0], [9.0]], [0, 1], unlabelled=[[2.0]])
        >>> learner.prototypes(learner.seen(support), support).tolist()  # the unlabelled 2 belongs to the class of 0
        [[[1.0], [9.0]]]
    """

    needs = Needs(
        kinds=("classification",),
        unlabelled="optional",
        variable_way=True,
        exact_gradient=True,
        invariant={"labels", "order"},
    )
    # For a first good result in a few minutes. As in the paper, there are 5 unlabelled examples per class in training.
    training_defaults = Training(
        lr=8e-3, schedule="linear", warmup=100, iterations=600, tasks={"way": 20, "query": 1, "unlabelled": 5}
    )

    def __init__(
        self,
        spec: TaskSpec,
        *,
        refine: Refine = "soft",
        assignments: Assignments = "differentiated",
        train_encoder: bool = True,
        encoder: EncoderChoice = "auto",
        width: int = 64,
        normalisation: Normalisation = "inductive",
    ) -> None:
        super().__init__()
        if refine not in get_args(Refine):
            raise OptionError(f"semi-protonet: got refine={refine!r}, expected 'none', 'soft', 'cluster' or 'masked'")
        if assignments not in get_args(Assignments):
            raise OptionError(
                f"semi-protonet: got assignments={assignments!r}, expected 'differentiated' or 'constant'; choose one"
            )
        self.refine: Refine = refine
        self.assignments: Assignments = assignments
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width).requires_grad_(train_encoder)
        self.train_encoder = train_encoder
        self.log_radius = nn.Parameter(torch.tensor(math.log(10.0)))
        last = nn.Linear(20, 2)
        nn.init.normal_(last.weight, std=0.01)  # beta and gamma start near 1: near examples count a little more
        nn.init.zeros_(last.bias)
        self.mask = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), last)
        self.needs = attrs.evolve(
            type(self).needs,
            queries=self.encoder.queries,
            # Constant assignments are left out of the gradient of the encoder.
            exact_gradient=refine == "none" or assignments == "differentiated" or not train_encoder,
            # ``cluster`` and ``masked`` need unlabelled examples to learn their parameters; ``soft`` has none.
            unlabelled="no" if refine == "none" else "optional" if refine == "soft" else "required",
        )

    def weights(self, prototypes: Tensor, z: Tensor) -> Tensor:
        """Compute the weight of each unlabelled example ``z`` [B, U, D] for each prototype [B, N, D]: [B, U, N]."""
        if self.assignments == "constant":  # for the encoder; the radius and the mask still learn from the loss
            prototypes, z = prototypes.detach(), z.detach()
        distances = pairwise_squared_distance(z, prototypes)
        if self.refine == "cluster":
            return cluster_assignments(distances, z, self.log_radius)
        shares = soft_assignments(distances)
        if self.refine == "masked":
            normalised = normalised_distances(distances)
            # The MLP predicts log beta and log gamma, so that both are positive and near examples are kept.
            beta, gamma = self.mask(statistics(normalised)).exp().unbind(-1)
            shares = shares * soft_mask(normalised, beta, gamma)
        return shares

    def prototypes(self, z: Tensor, support: Support) -> Tensor:
        """Refine the prototypes: embeddings ``z`` [B, S + U, D] of support and unlabelled examples -> [B, N, D]."""
        z_support, z_unlabelled = z[:, : support.x.shape[1]], z[:, support.x.shape[1] :]
        # p_c: the mean of the support of class c, as in prototypical networks.
        prototypes = class_means(z_support, support.y, support.way or 0)
        if z_unlabelled.shape[1] == 0:
            return prototypes
        # p~_c: one step of k-means with soft assignments.
        counts = F.one_hot(support.y, support.way or 0).sum(1).to(z)
        return refined(prototypes, counts, z_unlabelled, self.weights(prototypes, z_unlabelled))

    def seen(self, support: Support) -> Tensor:
        """Return all inputs that the refinement uses [B, S + U, *input]."""
        if support.unlabelled is None or self.refine == "none":
            return support.x
        return torch.cat([support.x, support.unlabelled], 1)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the loss of prototypical networks, with refined prototypes, to ``.grad``.

        Raises:
            OptionError: neither the encoder nor the refinement has parameters to train.
        """
        support, query, seen = episodes.support, episodes.query, self.seen(episodes.support)
        if self.train_encoder:
            # All examples are embedded together, so that batch norm sees the whole episode.
            z = full_precision(self.encoder(torch.cat([seen, query.x], 1)))
            z_seen, z_query = z[:, : seen.shape[1]], z[:, seen.shape[1] :]
        else:
            # The encoder is fixed: it embeds as at evaluation.
            with torch.no_grad():
                z_seen, z_query = map(full_precision, self.encoder.given(seen)(query.x))
        # The mean of -log p(y = c | x), with p the softmax over -||f(x) - p~_c||^2.
        logits = prototypical_logits(z_query, self.prototypes(z_seen, support))
        loss = F.cross_entropy(logits.flatten(0, 1), query.y.flatten())
        if not loss.requires_grad:
            raise OptionError(
                f"semi-protonet: got train_encoder=False with refine={self.refine!r}, which has no parameters, "
                "expected something to train; choose 'cluster' or 'masked', or train the encoder"
            )
        loss.backward()
        return {"loss": loss.detach(), "accuracy": (logits.argmax(-1) == query.y).float().mean()}

    def adapt(self, support: Support) -> Predictor:
        """Return a predictor from queries [B, n, *input] to logits [B, n, N], by the refined prototypes."""
        embed = self.encoder.given(self.seen(support))

        def predict(x: Tensor) -> Tensor:
            z_seen, z_query = map(full_precision, embed(x))
            return prototypical_logits(z_query, self.prototypes(z_seen, support))

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [B, n, *input] as [B, n, D] (ability ``Embeds``)."""
        z: Tensor = self.encoder(x)
        return z
