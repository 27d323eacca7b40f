"""Prototypes refined by unlabelled examples: Ren, Triantafillou, Ravi, Snell, Swersky, Tenenbaum, Larochelle & Zemel,
"Meta-learning for semi-supervised few-shot classification", 2018 (1803.00676), section 3.

Letters: B meta-batch, N way, S support size, U unlabelled examples, n queries, D embedding. Mathematics below is over
any leading axes, B among them.
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

Refine = Literal["none", "soft", "cluster", "masked"]


def soft_assignments(distances: Tensor) -> Tensor:
    """Soft k-means: squared distances [..., U, N] -> shares of each unlabelled example [..., U, N] that sum to 1."""
    return (-distances).softmax(-1)


def cluster_assignments(distances: Tensor, z: Tensor, log_radius: Tensor) -> Tensor:
    """Soft k-means with a distractor cluster: its centre is the origin and its radius r is learned; the classes have 1.

    The logits are -d / r^2 - A(r) with A(r) = log(2 pi) / 2 + log r. What the distractor cluster takes of an example is
    missing from the shares: distances [..., U, N], embeddings ``z`` [..., U, D] -> [..., U, N], sums below 1.
    """
    others = -z.square().sum(-1, keepdim=True) * (-2 * log_radius).exp() - log_radius  # log(2 pi) / 2 is everybody's
    return torch.cat([-distances, others], -1).softmax(-1)[..., :-1]


def normalised_distances(distances: Tensor) -> Tensor:
    """Masking: d~_jc = d_jc / mean over j of d_jc, [..., U, N]; 0 where all the distances to a prototype are 0."""
    mean = distances.mean(-2, keepdim=True)
    return distances / mean.where(mean > 0, torch.ones_like(mean))


def statistics(normalised: Tensor) -> Tensor:
    """Min, max, variance, skewness and kurtosis (3 for the normal distribution) over j: [..., U, N] -> [..., N, 5].

    Skewness and kurtosis of distances that are all alike are 0.
    """
    centred = normalised - normalised.mean(-2, keepdim=True)
    second, third, fourth = (centred.pow(k).mean(-2) for k in (2, 3, 4))
    spread = second.where(second > 0, torch.ones_like(second))
    moments = (second, third / spread**1.5, fourth / spread**2)
    return torch.stack([normalised.amin(-2), normalised.amax(-2), *moments], -1)


def soft_mask(normalised: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """m_jc = sigmoid(-gamma_c (d~_jc - beta_c)): near 1 for examples nearer than the threshold beta [..., N].

    ``normalised`` [..., U, N] -> [..., U, N].
    """
    return (-gamma.unsqueeze(-2) * (normalised - beta.unsqueeze(-2))).sigmoid()


def refined(prototypes: Tensor, counts: Tensor, z: Tensor, weights: Tensor) -> Tensor:
    """p~_c: the mean of a class's support, each counted once, and of all unlabelled examples, by their weight.

    Prototypes [..., N, D] of ``counts`` [..., N] examples, embeddings ``z`` [..., U, D], ``weights`` [..., U, N].
    """
    sums = (weights.unsqueeze(-1) * z.unsqueeze(-2)).sum(-3)  # no matrix product, which autocast would round
    total = counts + weights.sum(-2)
    return (prototypes * counts.unsqueeze(-1) + sums) / total.clamp_min(torch.finfo(z.dtype).tiny).unsqueeze(-1)


class SemiProtoNet(nn.Module):
    """Prototypical networks whose prototypes are refined by a step of soft k-means over unlabelled examples.

    The parameters of all refinements are there whatever ``refine`` is, so that one trained learner can be evaluated
    with each: ``engine.evaluate(learner_options={"refine": "soft"})``.

    Args:
        spec: the tasks'; fixes the input shape.
        refine: ``none`` (prototypical networks), ``soft`` (every unlabelled example belongs to the classes),
            ``cluster`` (or to a distractor cluster around the origin) or ``masked`` (examples far from a prototype, by
            a learned threshold, count less).
        train_encoder: False trains the distractor cluster's radius or the mask alone, over the encoder as it is at
            evaluation: a second stage on classes that the encoder was not trained on.
        encoder: ``auto``, ``conv4``, ``mlp``, ``linear`` or a module from [n, *input] to [n, D].
        width: channels of conv4, units of mlp, outputs of linear.
        normalisation: whose batch statistics serve at evaluation: ``inductive``, ``support`` (labelled and unlabelled)
            or ``transductive``.

    Raises:
        OptionError: an unknown refinement, encoder or policy, or nothing to train.
        DataError: the encoder can't take the input shape.
    """

    needs = Needs(
        kinds=("classification",),
        unlabelled="optional",
        variable_way=True,
        exact_gradient=True,
        invariant={"labels", "order"},
    )
    # A few minutes for a first good result; 5 unlabelled examples a class while training are the paper's.
    training_defaults = Training(
        lr=8e-3, schedule="linear", warmup=100, iterations=600, tasks={"way": 20, "query": 1, "unlabelled": 5}
    )

    def __init__(
        self,
        spec: TaskSpec,
        *,
        refine: Refine = "soft",
        train_encoder: bool = True,
        encoder: EncoderChoice = "auto",
        width: int = 64,
        normalisation: Normalisation = "inductive",
    ) -> None:
        super().__init__()
        if refine not in get_args(Refine):
            raise OptionError(f"semi-protonet: refine is {refine!r}, expected 'none', 'soft', 'cluster' or 'masked'")
        self.refine: Refine = refine
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width).requires_grad_(train_encoder)
        self.train_encoder = train_encoder
        self.log_radius = nn.Parameter(torch.tensor(math.log(10.0)))
        last = nn.Linear(20, 2)
        nn.init.normal_(last.weight, std=0.01)  # beta and gamma begin near 1: near points count a little more
        nn.init.zeros_(last.bias)
        self.mask = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), last)
        self.needs = attrs.evolve(
            type(self).needs,
            queries=self.encoder.queries,
            unlabelled="no" if refine == "none" else "optional" if refine == "soft" else "required",  # to learn from
        )

    def weights(self, prototypes: Tensor, z: Tensor) -> Tensor:
        """How much each unlabelled example ``z`` [B, U, D] counts for each prototype [B, N, D]: [B, U, N]."""
        distances = pairwise_squared_distance(z, prototypes)
        if self.refine == "cluster":
            return cluster_assignments(distances, z, self.log_radius)
        shares = soft_assignments(distances)
        if self.refine == "masked":
            normalised = normalised_distances(distances)
            beta, gamma = self.mask(statistics(normalised)).exp().unbind(-1)  # both positive: near points are kept
            shares = shares * soft_mask(normalised, beta, gamma)
        return shares

    def prototypes(self, z: Tensor, support: Support) -> Tensor:
        """Embeddings ``z`` [B, S + U, D] of support and unlabelled examples -> refined prototypes [B, N, D]."""
        z_support, z_more = z[:, : support.x.shape[1]], z[:, support.x.shape[1] :]
        prototypes = class_means(z_support, support.y, support.way or 0)
        if z_more.shape[1] == 0:
            return prototypes
        counts = F.one_hot(support.y, support.way or 0).sum(1).to(z)
        return refined(prototypes, counts, z_more, self.weights(prototypes, z_more))

    def seen(self, support: Support) -> Tensor:
        """All inputs that the refinement uses: [B, S + U, *input]."""
        if support.unlabelled is None or self.refine == "none":
            return support.x
        return torch.cat([support.x, support.unlabelled], 1)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Prototypical networks' loss, -log p(y = c | x) of the queries, by the refined prototypes."""
        support, query, seen = episodes.support, episodes.query, self.seen(episodes.support)
        if self.train_encoder:
            z = full_precision(self.encoder(torch.cat([seen, query.x], 1)))  # all are normalised together
            z_seen, z_query = z[:, : seen.shape[1]], z[:, seen.shape[1] :]
        else:
            with torch.no_grad():
                z_seen, z_query = map(full_precision, self.encoder.given(seen)(query.x))
        logits = prototypical_logits(z_query, self.prototypes(z_seen, support))
        loss = F.cross_entropy(logits.flatten(0, 1), query.y.flatten())
        if not loss.requires_grad:
            raise OptionError(
                f"semi-protonet: refine {self.refine!r} has no parameters of its own, so with train_encoder=False "
                "there is nothing to train; choose 'cluster' or 'masked', or train the encoder"
            )
        loss.backward()
        return {"loss": loss.detach(), "accuracy": (logits.argmax(-1) == query.y).float().mean()}

    def adapt(self, support: Support) -> Predictor:
        """Refined prototypes; logits of queries [B, n, N] are minus squared distances to them."""
        embed = self.encoder.given(self.seen(support))

        def predict(x: Tensor) -> Tensor:
            z_seen, z_query = map(full_precision, embed(x))
            return prototypical_logits(z_query, self.prototypes(z_seen, support))

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """``x`` [.., *input] -> embeddings [.., D] (ability ``Embeds``)."""
        z: Tensor = self.encoder(x)
        return z
