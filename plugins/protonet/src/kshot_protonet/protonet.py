"""Prototypical networks: Snell, Swersky & Zemel, "Prototypical networks for few-shot learning", 2017 (1703.05175).

Letters: B meta-batch, N way, S support size, n queries, D embedding, A attributes of a class.
"""

from __future__ import annotations

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import DataError
from kshot.functional import class_means, full_precision, prototypical_logits
from kshot.nn import EncoderChoice, Normalisation
from kshot.nn import encoder as build_encoder


class ProtoNet(nn.Module):
    """Classify by the nearest prototype, the mean embedding of a class's support.

    Where a task has no labelled examples (zero-shot), a class's prototype is the embedding of its semantic vector,
    scaled to unit length; the queries' embeddings are not (section 2.7 of the paper).

    Args:
        spec: the tasks'; fixes the input shape and, where semantics are provided, the class vectors' length.
        encoder: ``auto``, ``conv4``, ``mlp``, ``linear`` or a module from [n, *input] to [n, D].
        width: channels of conv4, units of mlp, outputs of linear.
        normalisation: whose batch statistics serve at evaluation: ``inductive``, ``support`` or ``transductive``.

    Raises:
        OptionError: an unknown encoder or policy.
        DataError: the encoder can't take the input shape.
    """

    needs = Needs(
        kinds=("classification",),
        semantics="optional",
        variable_way=True,
        zero_shot=True,
        exact_gradient=True,
        invariant={"labels", "order"},
    )
    # A minute or two for a first good result. The paper trains 60-way with 5 queries, Adam 1e-3 halved every 2000
    # episodes, for hours: recipes/protonet-omniglot-60way.toml. The shot is that of the test, as the paper advises.
    training_defaults = Training(lr=8e-3, schedule="linear", warmup=100, iterations=1000, tasks={"way": 30, "query": 1})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        encoder: EncoderChoice = "auto",
        width: int = 64,
        normalisation: Normalisation = "inductive",
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width)
        self.needs = attrs.evolve(type(self).needs, queries=self.encoder.queries)
        self.class_encoder: nn.Module | None = None
        if spec.semantics_shape is not None:
            with torch.no_grad():
                D = self.encoder.eval()(torch.zeros(1, 1, *spec.input_shape)).shape[-1]
            self.class_encoder = nn.Linear(spec.semantics_shape[0], D)

    def prototypes(self, z: Tensor, support: Support) -> Tensor:
        """Support embeddings ``z`` [B, S, D] -> p_c = the mean over class c [B, N, D] (eq. 1), or from semantics."""
        if z.shape[1] == 0:
            if self.class_encoder is None or support.semantics is None:
                raise DataError("protonet: a support without examples needs semantics, which these tasks lack")
            return F.normalize(self.class_encoder(support.semantics), dim=-1)
        return class_means(z, support.y, support.way or 0)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Algorithm 1: J = -log p(y = c | x), with p the softmax over minus squared distances (eq. 2)."""
        support, query = episodes.support, episodes.query
        z = full_precision(self.encoder(torch.cat([support.x, query.x], 1)))  # both are normalised together
        z_support, z_query = z[:, : support.x.shape[1]], z[:, support.x.shape[1] :]
        logits = prototypical_logits(z_query, self.prototypes(z_support, support))
        loss = F.cross_entropy(logits.flatten(0, 1), query.y.flatten())
        loss.backward()
        accuracy = (logits.argmax(-1) == query.y).float().mean()
        return {"loss": loss.detach(), "accuracy": accuracy}

    def adapt(self, support: Support) -> Predictor:
        """Prototypes from the support; logits of queries [B, n, N] are minus squared distances to them."""
        embed = self.encoder.given(support.x)

        def predict(x: Tensor) -> Tensor:
            z_support, z_query = map(full_precision, embed(x))
            return prototypical_logits(z_query, self.prototypes(z_support, support))

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """``x`` [.., *input] -> embeddings [.., D] (ability ``Embeds``)."""
        z: Tensor = self.encoder(x)
        return z
