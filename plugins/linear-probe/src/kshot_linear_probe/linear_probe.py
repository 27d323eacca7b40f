"""A linear probe: the baseline of Chen, Liu, Kira, Wang & Huang, "A closer look at few-shot classification", 2019
(1904.04232): a linear classifier is trained on the support of each task, on the embeddings of a fixed encoder.

Letters: B meta-batch, N way, S support size, n queries, D embedding.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import OptionError
from kshot.functional import class_folds, full_precision, span_coordinates
from kshot.nn import EncoderChoice, evaluating
from kshot.nn import encoder as build_encoder
from kshot.registry import Range
from kshot_linear_probe.logistic import best_penalty, fitted


class LinearProbe(nn.Module):
    """Classify by a logistic regression on embeddings, which is fitted to the support of each task.

    The regression minimises the mean cross-entropy of the support plus a penalty on the weights. By default the
    penalty is the one of five that predicts left-out examples of the support best. Nothing is trained before, so
    the encoder should be a trained one, or the inputs should be embeddings.

    Args:
        spec: the specification of the tasks, which determines the inputs of the encoder.
        encoder: ``identity`` (the inputs are the embeddings), ``auto``, ``conv4``, ``mlp``, ``linear``, or a module
            from [n, *input] to [n, D]. It is used in evaluation mode, and is not changed.
        width: number of channels of ``conv4``, of units of ``mlp``, or of outputs of ``linear``.
        penalty: factor of ||W||^2 / 2, for embeddings whose root mean square distance from their mean is 1. None to
            choose it on the support.
        folds: greatest number of parts of the support that are left out in turn to choose the penalty. Each leaves
            examples of all classes.
        default: the penalty if nothing can be left out, because each class has one example.

    Raises:
        OptionError: a number is out of range, or the encoder is unknown.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)
        >>> predict = LinearProbe(spec).adapt(Support.of([[0.0, 0.0], [2.0, 0.0]], [0, 1]))
        >>> predict(torch.tensor([[[1.9, 0.0], [0.3, 0.0]]])).argmax(-1).tolist()
        [[1, 0]]
    """

    needs = Needs(kinds=("classification",), variable_way=True, invariant={"labels", "order"})
    training_defaults = Training(iterations=0)

    def __init__(
        self,
        spec: TaskSpec,
        *,
        encoder: EncoderChoice = "identity",
        width: Annotated[int, Range(1, 4096)] = 64,
        penalty: Annotated[float, Range(0)] | None = None,
        folds: Annotated[int, Range(2)] = 5,
        default: Annotated[float, Range(0)] = 0.01,
    ) -> None:
        super().__init__()
        for name, value in (("penalty", penalty), ("default", default)):
            if value is not None and not 0 < value < math.inf:
                raise OptionError(f"linear-probe: got {name} {value}, expected a positive number; raise it")
        if folds < 2:
            raise OptionError(f"linear-probe: got {folds} folds, expected at least 2; raise them or set the penalty")
        self.encoder = build_encoder(encoder, spec.input_shape, "inductive", width)
        self.penalty, self.folds, self.default = penalty, folds, default

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [B, n, *input] as [B, n, D], in evaluation mode (ability ``Embeds``)."""
        with evaluating(self.encoder):
            return full_precision(self.encoder(x))

    def probe(self, z: Tensor, y: Tensor, way: int) -> tuple[Tensor, Tensor]:
        """Fit the regression of one task.

        Args:
            z: embeddings of the support [S, D].
            y: its labels [S].
            way: N.

        Returns:
            The weights [N, D] and the biases [N] in float64, for embeddings as they are.
        """
        fold = class_folds(y, z.norm(dim=-1), self.folds).cpu().numpy()
        # The solution is a combination of the embeddings, so the regression is computed in the few dimensions that they
        # span about their mean, in the unit of their root mean square distance from it.
        z = z.detach().double()
        mean = z.mean(0)
        unit = (z - mean).square().sum(-1).mean().sqrt()
        unit = unit.where(unit > 0, 1.0)
        coordinates, basis = span_coordinates((z - mean) / unit)
        u, labels = coordinates.cpu().numpy(), y.cpu().numpy()
        penalty = self.penalty or best_penalty(u, labels, way, fold, self.default)
        W, b, _ = fitted(u, labels, way, penalty)
        # W basis (z - mean) / unit + b, as a linear function of z.
        weights = torch.from_numpy(W).to(basis) @ basis / unit
        return weights, torch.from_numpy(b).to(basis) - weights @ mean

    def adapt(self, support: Support) -> Predictor:
        """Fit a regression to each support, and return a function from queries [B, n, *input] to logits [B, n, N]."""
        z = self.embed(support.x)
        pairs = [self.probe(task, y, support.way or 0) for task, y in zip(z, support.y, strict=True)]
        weights, biases = (torch.stack(parts) for parts in zip(*pairs, strict=True))

        def predict(x: Tensor) -> Tensor:
            queries = self.embed(x)
            with torch.autocast(x.device.type, enabled=False):
                return queries @ weights.to(queries).mT + biases.to(queries).unsqueeze(1)

        return predict

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Return the loss and the accuracy on the queries. There is no gradient, because nothing is trained."""
        with torch.no_grad():
            logits = self.adapt(episodes.support)(episodes.query.x)
            loss = F.cross_entropy(logits.flatten(0, 1), episodes.query.y.flatten())
        return {"loss": loss, "accuracy": (logits.argmax(-1) == episodes.query.y).float().mean()}
