"""Relation networks: Sung, Yang, Zhang, Xiang, Torr & Hospedales, "Learning to compare: relation network for few-shot
learning", 2018 (1711.06025).

An example is embedded as a map: [C, H, W] if it is an image, [D] if it is a vector. Letters: B meta-batch, N way,
S support size, n queries.
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
from kshot.functional import class_means, class_sums, full_precision
from kshot.nn import Encoder, Normalisation, infer_output_shape, mlp
from kshot_relationnet.networks import conv_encoder, first_layer, relation_module

Combine = Literal["sum", "mean"]
RelationEncoder = Literal["auto", "conv", "mlp"] | nn.Module


def relation_loss(scores: Tensor, y: Tensor) -> Tensor:
    """Compute the mean squared error of scores [..., n, N] (equation 2).

    The target of a score is 1 for the class ``y`` [..., n] of the query and 0 for the other classes.
    """
    return (scores - F.one_hot(y, scores.shape[-1]).to(scores)).square().mean()


def explained(loss: Tensor, way: int) -> Tensor:
    """Compute 1 - loss / ((1/N)(1 - 1/N)), the share of the squared error that the relation module explains.

    It is 1 for a perfect relation and 0 for the best constant. Training can collapse to that constant, because N - 1 of
    N pairs are of different classes.
    """
    constant = (1 - 1 / way) / way
    return 1 - loss / constant if constant else torch.zeros_like(loss)


class RelationNet(nn.Module):
    """Classify by a learned comparison: the relation score of a query and a class, from 0 to 1.

    If a task has no labelled examples (zero-shot), the embedding of the semantic vector of a class replaces its map.

    Args:
        spec: of the tasks. It gives the input shape and, if the tasks provide semantics, the length of class vectors.
        combine: the map of a class is the ``sum`` of the maps of its examples, as in the paper, or their ``mean``. With
            ``mean``, a learner that was trained at one shot can be tested at another.
        encoder: ``auto``, ``conv``, ``mlp`` or a module from [n, *input] to maps [n, C, H, W] or vectors [n, D].
        width: channels of the convolutions, units of the mlp.
        normalisation: whose batch statistics are used at evaluation, in the encoder and in the relation module:
            ``inductive``, ``support`` (in the relation module: of pairs of support examples and classes) or
            ``transductive``.

    Raises:
        OptionError: the encoder, the policy of normalisation or the way to combine maps is unknown.
        DataError: the encoder does not accept inputs of this shape, or its outputs are neither maps nor vectors.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(6,), way=3, shot=1, query=1)
        >>> learner = RelationNet(spec, width=8).eval()
        >>> predict = learner.adapt(Support.of(torch.zeros(3, 6), [0, 1, 2]))
        >>> predict(torch.zeros(1, 4, 6)).sigmoid().shape  # the relation scores of 4 queries and 3 classes
        torch.Size([1, 4, 3])
    """

    needs = Needs(
        kinds=("classification",),
        semantics="optional",
        variable_way=True,
        zero_shot=True,
        exact_gradient=True,
        invariant={"labels", "order"},
    )
    # For a first good result in a few minutes. The shot is that of the test, because maps are summed.
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
            raise OptionError(f"relationnet: got combine={combine!r}, expected 'sum' or 'mean'")
        self.combine = class_sums if combine == "sum" else class_means
        if encoder == "auto":
            encoder = "conv" if len(spec.input_shape) == 3 and min(spec.input_shape[1:]) >= 10 else "mlp"
        if isinstance(encoder, str) and encoder not in ("conv", "mlp"):
            raise OptionError(f"relationnet: got encoder={encoder!r}, expected 'auto', 'conv', 'mlp' or an nn.Module")
        if isinstance(encoder, str):
            shape = spec.input_shape
            encoder = conv_encoder(shape, width) if encoder == "conv" else mlp(shape, (width, width), width)
        embedding = encoder if isinstance(encoder, Encoder) else Encoder(encoder, normalisation, spec.input_shape)
        self.map_shape = infer_output_shape(embedding, spec.input_shape)
        if len(self.map_shape) not in (1, 3):
            raise DataError(
                f"relationnet: got embeddings of shape {self.map_shape} from the encoder, expected maps (C, H, W) or "
                "vectors (D,); change the last layers of the encoder"
            )
        self.encoder = embedding
        self.first, rest = relation_module(self.map_shape, width)
        self.relation = Encoder(rest, normalisation)
        joint = "joint" in (self.encoder.queries, self.relation.queries)
        self.needs = attrs.evolve(type(self).needs, queries="joint" if joint else "independent")
        self.class_encoder: nn.Module | None = None
        if spec.semantics_shape is not None:
            self.class_encoder = mlp(spec.semantics_shape, (width,), math.prod(self.map_shape))

    def classes(self, z: Tensor, support: Support) -> Tensor:
        """Compute a map for each class from the support, or from semantics if the support is empty.

        Args:
            z: maps of the support [B, S, *map].
            support: their labels, and the class vectors for zero-shot tasks.

        Returns:
            The maps of the classes [B, N, *map].

        Raises:
            DataError: the support has neither examples nor semantics.
        """
        if z.shape[1]:
            # Section 3.2: the sum (or the mean) of the maps of a class.
            combined = self.combine(full_precision(z.flatten(2)), support.y, support.way or 0)
            return combined.view(*combined.shape[:2], *self.map_shape)
        if self.class_encoder is None or support.semantics is None:
            raise DataError(
                "relationnet: got a support without examples and without semantics, expected one of the two; use tasks "
                "with at least one example per class, or tasks that provide semantics"
            )
        # Section 3.3, zero-shot: an embedding of the semantic vector.
        maps: Tensor = self.class_encoder(support.semantics.flatten(0, 1))
        return maps.view(*support.semantics.shape[:2], *self.map_shape)

    def pairs(self, classes: Tensor, z: Tensor) -> Tensor:
        """Compute the first layer's output for each of the maps ``z`` [B, n, *map] with each class: [B, n * N, ...]."""
        return first_layer(classes, z, self.first.weight, self.first.bias)

    def logits(self, relation: Callable[[Tensor], Tensor], pairs: Tensor, way: int) -> Tensor:
        """Compute the logits of the relation scores r [B, n, N] from ``pairs``.

        Their softmax over the classes is the probability of each class, given that exactly one of N independent
        relations of probability r is true.
        """
        return full_precision(relation(pairs)).view(len(pairs), pairs.shape[1] // way, way)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the loss of equation 2 to ``.grad``, and return loss, accuracy and ``explained``."""
        support, query = episodes.support, episodes.query
        # f(x): support and queries are embedded together, so that batch norm sees the whole episode.
        z = self.encoder(torch.cat([support.x, query.x], 1))
        classes = self.classes(z[:, : support.x.shape[1]], support)
        # Equation 1: r = g([f(x_i), f(x_j)]) of every query and class.
        logits = self.logits(self.relation, self.pairs(classes, z[:, support.x.shape[1] :]), classes.shape[1])
        # Equation 2: the mean squared error of the scores.
        loss = relation_loss(logits.sigmoid(), query.y)
        loss.backward()
        accuracy = (logits.argmax(-1) == query.y).float().mean()
        return {"loss": loss.detach(), "accuracy": accuracy, "explained": explained(loss.detach(), classes.shape[1])}

    def adapt(self, support: Support) -> Predictor:
        """Return a predictor from queries [B, n, *input] to the logits of their relation scores [B, n, N]."""
        embed = self.encoder.given(support.x)

        def predict(x: Tensor) -> Tensor:
            z_support, z_query = embed(x)
            classes = self.classes(z_support, support)
            pairs = self.pairs(classes, z_query)
            # Under the policy ``support``, batch norm of the relation module takes its statistics from the pairs of
            # support examples and classes. The other policies need no such pairs.
            by_support = self.relation.normalisation == "support"
            relation = self.relation.given(self.pairs(classes, z_support) if by_support else pairs[:, :0])
            return self.logits(lambda pairs: relation(pairs)[1], pairs, classes.shape[1])

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [B, n, *input] as flattened maps [B, n, D] (ability ``Embeds``)."""
        z: Tensor = self.encoder(x)
        return z.flatten(2)
