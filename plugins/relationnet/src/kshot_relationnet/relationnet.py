"""Relation networks: Sung, Yang, Zhang, Xiang, Torr & Hospedales, "Learning to compare: relation network for few-shot
learning", 2018 (1711.06025).

Letters: B meta-batch, N way, S support size, n queries, A attributes of a class. A map is what an example is embedded
as: [C, H, W] of an image, [D] of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import DataError, OptionError
from kshot.functional import class_means, full_precision
from kshot.nn import Encoder, Normalisation, evaluating, mlp
from kshot_relationnet.networks import conv_encoder, first_layer, relation_module

Combine = Literal["sum", "mean"]
RelationEncoder = Literal["auto", "conv", "mlp"] | nn.Module


def class_sums(z: Tensor, y: Tensor, way: int) -> Tensor:
    """The sum of each class's embeddings (section 3.2): ``z`` [..., S, D], labels ``y`` [..., S] -> [..., N, D]."""
    return z.new_zeros(*y.shape[:-1], way, z.shape[-1]).scatter_add(-2, y.unsqueeze(-1).expand(z.shape), z)


def relation_loss(scores: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of scores [..., n, N] against 1 for the query's class and 0 for the others (eq. 2)."""
    return (scores - F.one_hot(y, scores.shape[-1]).to(scores)).square().mean()


def explained(loss: Tensor, way: int) -> Tensor:
    """1 - loss / ((1/N)(1 - 1/N)): 1 for a perfect relation, 0 for the best constant, to which training can collapse,
    because N - 1 of N pairs are of different classes."""
    constant = (1 - 1 / way) / way
    return 1 - loss / constant if constant else torch.zeros_like(loss)


class RelationNet(nn.Module):
    """Classify by a learned comparison: the relation score of a query and a class, from 0 to 1.

    Where a task has no labelled examples (zero-shot), the embedding of a class's semantic vector stands for them.

    Args:
        spec: the tasks'; fixes the input shape and, where semantics are provided, the class vectors' length.
        combine: a class's map is the ``sum`` of its examples' maps, as in the paper, or their ``mean``, with which a
            learner that was trained at one shot can be tested at another.
        encoder: ``auto``, ``conv``, ``mlp`` or a module from [n, *input] to maps [n, C, H, W] or vectors [n, D].
        width: channels of the convolutions, units of the mlp.
        normalisation: whose batch statistics serve at evaluation, in encoder and relation module: ``inductive``,
            ``support`` (in the relation module those of its pairs with the classes) or ``transductive``.

    Raises:
        OptionError: an unknown encoder, policy or way to combine.
        DataError: the encoder can't take the input shape, or gives neither maps nor vectors.
    """

    needs = Needs(
        kinds=("classification",),
        semantics="optional",
        variable_way=True,
        zero_shot=True,
        exact_gradient=True,
        invariant={"labels", "order"},
    )
    # A few minutes for a first good result. The shot is that of the test, because maps are summed.
    training_defaults = Training(lr=5e-3, schedule="linear", warmup=100, iterations=1000, tasks={"way": 20, "query": 1})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        combine: Combine = "sum",
        encoder: RelationEncoder = "auto",
        width: int = 64,
        normalisation: Normalisation = "inductive",
    ) -> None:
        super().__init__()
        if combine not in get_args(Combine):
            raise OptionError(f"relationnet: combine is {combine!r}, expected 'sum' or 'mean'")
        self.combine = class_sums if combine == "sum" else class_means
        if encoder == "auto":
            encoder = "conv" if len(spec.input_shape) == 3 and min(spec.input_shape[1:]) >= 10 else "mlp"
        if isinstance(encoder, str) and encoder not in ("conv", "mlp"):
            raise OptionError(f"relationnet: encoder is {encoder!r}, expected 'auto', 'conv', 'mlp' or an nn.Module")
        if isinstance(encoder, str):
            shape = spec.input_shape
            encoder = conv_encoder(shape, width) if encoder == "conv" else mlp(shape, (width, width), width)
        made = encoder if isinstance(encoder, Encoder) else Encoder(encoder, normalisation, spec.input_shape)
        with torch.no_grad(), evaluating(made):
            self.map_shape = tuple(made(torch.zeros(1, 1, *spec.input_shape)).shape[2:])
        if len(self.map_shape) not in (1, 3):
            raise DataError(
                f"relationnet: the encoder embeds an input as {self.map_shape}, expected maps (C, H, W) or vectors (D,)"
            )
        self.encoder = made
        self.first, rest = relation_module(self.map_shape, width)
        self.relation = Encoder(rest, normalisation)
        joint = "joint" in (self.encoder.queries, self.relation.queries)
        self.needs = attrs.evolve(type(self).needs, queries="joint" if joint else "independent")
        self.class_encoder: nn.Module | None = None
        if spec.semantics_shape is not None:
            self.class_encoder = mlp(spec.semantics_shape, (width,), math.prod(self.map_shape))

    def classes(self, z: Tensor, support: Support) -> Tensor:
        """Support maps ``z`` [B, S, *map] -> a map for each class [B, N, *map], or from semantics."""
        if z.shape[1]:
            combined = self.combine(full_precision(z.flatten(2)), support.y, support.way or 0)
            return combined.view(*combined.shape[:2], *self.map_shape)
        if self.class_encoder is None or support.semantics is None:
            raise DataError("relationnet: a support without examples needs semantics, which these tasks lack")
        made: Tensor = self.class_encoder(support.semantics.flatten(0, 1))
        return made.view(*support.semantics.shape[:2], *self.map_shape)

    def pairs(self, classes: Tensor, z: Tensor) -> Tensor:
        """The first layer's output for each of the maps ``z`` [B, n, *map] with each class: [B, n * N, ...]."""
        return first_layer(classes, z, self.first.weight, self.first.bias)

    def logits(self, relation: Callable[[Tensor], Tensor], pairs: Tensor, way: int) -> Tensor:
        """Pairs -> logits of the relation scores r [B, n, N].

        Their softmax over the classes is the probability of each, if just one of N independent relations of
        probability r holds.
        """
        return full_precision(relation(pairs)).view(len(pairs), pairs.shape[1] // way, way)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """The squared error of relation scores (eq. 1 and 2), each episode normalised by itself."""
        support, query = episodes.support, episodes.query
        z = self.encoder(torch.cat([support.x, query.x], 1))
        classes = self.classes(z[:, : support.x.shape[1]], support)
        logits = self.logits(self.relation, self.pairs(classes, z[:, support.x.shape[1] :]), classes.shape[1])
        loss = relation_loss(logits.sigmoid(), query.y)
        loss.backward()
        accuracy = (logits.argmax(-1) == query.y).float().mean()
        return {"loss": loss.detach(), "accuracy": accuracy, "explained": explained(loss.detach(), classes.shape[1])}

    def adapt(self, support: Support) -> Predictor:
        """A map for each class; answers to queries [B, n, N] are logits of their relation scores."""
        embed = self.encoder.given(support.x)

        def predict(x: Tensor) -> Tensor:
            z_support, z_query = embed(x)
            classes = self.classes(z_support, support)
            pairs = self.pairs(classes, z_query)
            by_support = self.relation.normalisation == "support"
            relation = self.relation.given(self.pairs(classes, z_support) if by_support else pairs[:, :0])
            return self.logits(lambda pairs: relation(pairs)[1], pairs, classes.shape[1])

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """``x`` [.., *input] -> maps as embeddings [.., D] (ability ``Embeds``)."""
        z: Tensor = self.encoder(x)
        return z.flatten(2)
