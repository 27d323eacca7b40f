"""TIM: Boudiaf, Ziko, Rony, Dolz, Piantanida & Ben Ayed, "Transductive information maximization for few-shot
learning", 2020 (2008.11297).

Letters: B meta-batch, N way, S support size, n queries, D embedding. W [B, N, D] are the prototypes, which adapt;
P_s [B, S, N] and P_q [B, n, N] are the probabilities of the support and of the queries.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training
from kshot.errors import DataError, OptionError
from kshot.functional import class_means, full_precision, span_coordinates
from kshot.inner import adam
from kshot.nn import EncoderChoice, evaluating
from kshot.nn import encoder as build_encoder
from kshot.registry import Range

Method = Literal["gd", "adm"]


class TIM(nn.Module):
    """Classify by prototypes that adapt to the support and, without labels, to all queries of the task together.

    Prototypes start as the means of the embeddings, scaled to length 1, of each class. They then minimise the
    cross-entropy of the support less the mutual information of the queries and their predicted classes, which is
    greatest if each query is certain and all classes are predicted equally often. Nothing is trained before, so the
    encoder should be a trained one, or the inputs should be embeddings.

    Args:
        spec: the specification of the tasks, which determines the inputs of the encoder.
        encoder: ``identity`` (the inputs are the embeddings), ``auto``, ``conv4``, ``mlp``, ``linear``, or a module
            from [n, *input] to [n, D]. It is used in evaluation mode, and is not changed.
        width: number of channels of ``conv4``, of units of ``mlp``, or of outputs of ``linear``.
        method: ``gd`` takes steps of Adam on the prototypes; ``adm`` alternates between two closed forms.
        steps: number of steps; by default that of the paper, 1000 for ``gd`` and 150 for ``adm``.
        lr: learning rate of Adam, for ``gd``.
        temperature: tau, by which half the squared distances are multiplied.
        cross_entropy: weight of the cross-entropy of the support, lambda.
        marginal: weight of the entropy of the mean prediction of the queries. The paper has 1; 0 does not expect that
            classes are equally frequent.
        conditional: weight of the mean entropy of the predictions of the queries, alpha.

    Raises:
        OptionError: a number is out of range, or a choice is unknown.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)
        >>> x = torch.tensor([[[1.0, 0.1], [0.2, 1.0]]])
        >>> support = Support.of([[1.0, 0.0], [0.0, 1.0]], [0, 1], query_x=x[0])
        >>> TIM(spec, method="adm").adapt(support)(x).argmax(-1).tolist()
        [[0, 1]]
    """

    needs = Needs(kinds=("classification",), queries="at_adapt", variable_way=True, invariant={"labels", "order"})
    training_defaults = Training(iterations=0)

    def __init__(
        self,
        spec: TaskSpec,
        *,
        encoder: EncoderChoice = "identity",
        width: Annotated[int, Range(1, 4096)] = 64,
        method: Method = "gd",
        steps: Annotated[int, Range(0)] | None = None,
        lr: Annotated[float, Range(0)] = 1e-4,
        temperature: Annotated[float, Range(0)] = 15.0,
        cross_entropy: Annotated[float, Range(0)] = 0.1,
        marginal: Annotated[float, Range(0)] = 1.0,
        conditional: Annotated[float, Range(0)] = 0.1,
    ) -> None:
        super().__init__()
        if method not in get_args(Method):
            raise OptionError(f"tim: got method {method!r}, expected 'gd' or 'adm'")
        if steps is not None and steps < 0:
            raise OptionError(f"tim: got {steps} steps, expected at least 0")
        numbers = {"lr": lr, "temperature": temperature, "cross_entropy": cross_entropy}
        for name, value in {**numbers, "marginal": marginal, "conditional": conditional}.items():
            if not 0 <= value < math.inf:
                raise OptionError(f"tim: got {name} {value}, expected a number of at least 0; raise it")
        self.encoder = build_encoder(encoder, spec.input_shape, "inductive", width)
        self.method: Method = method
        self.steps = steps if steps is not None else 1000 if method == "gd" else 150
        self.lr, self.temperature = lr, temperature
        self.cross_entropy, self.marginal, self.conditional = cross_entropy, marginal, conditional

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [B, n, *input] as vectors of length 1 [B, n, D], in evaluation mode (ability ``Embeds``)."""
        with evaluating(self.encoder):
            return F.normalize(full_precision(self.encoder(x)), dim=-1)

    def logits(self, z: Tensor, W: Tensor) -> Tensor:
        """Compute -tau / 2 * ||z - w_k||^2 [B, n, N] for embeddings z [B, n, D]. Equation 1."""
        # ||z - w||^2 = ||z||^2 - 2 z w + ||w||^2. Vectors of about length 1 lose no digits that matter, except in half
        # precision.
        with torch.autocast(z.device.type, enabled=False):
            norms = z.square().sum(-1, keepdim=True) + W.square().sum(-1).unsqueeze(1)
            logits: Tensor = self.temperature * (z @ W.mT - norms / 2)
        return logits

    def objective(self, W: Tensor, z_s: Tensor, z_q: Tensor, y: Tensor) -> Tensor:
        """Compute lambda * CE - (H(Y_q) - alpha * H(Y_q | X_q)), equation 4, of each task [B].

        Args:
            W: prototypes [B, N, D].
            z_s: embeddings of the support [B, S, D].
            z_q: embeddings of the queries [B, n, D].
            y: labels of the support [B, S].
        """
        ce = F.cross_entropy(self.logits(z_s, W).mT, y, reduction="none").mean(1)
        log_p = self.logits(z_q, W).log_softmax(-1)
        # H(Y | X): the mean entropy of the predictions. H(Y): the entropy of the mean prediction.
        conditional = -(log_p.exp() * log_p).sum(-1).mean(1)
        marginal = torch.special.entr(log_p.exp().mean(1)).sum(-1)
        loss: Tensor = self.cross_entropy * ce - (self.marginal * marginal - self.conditional * conditional)
        return loss

    def by_gradients(self, W: Tensor, z_s: Tensor, z_q: Tensor, y: Tensor) -> Tensor:
        """TIM-GD: take steps of Adam on the prototypes; the tasks do not affect each other."""
        gradient = torch.func.grad(lambda W: self.objective(W, z_s, z_q, y).sum())
        update, memory = adam(self.lr), None
        for _ in range(self.steps):
            changed, memory = update({"W": W}, {"W": gradient(W)}, memory)
            W = changed["W"]
        return W

    def by_closed_forms(self, W: Tensor, z_s: Tensor, z_q: Tensor, y: Tensor) -> Tensor:
        """TIM-ADM: alternate between the closed forms for the labels of the queries and for the prototypes.

        Section 2.3 of the paper; the exponents for other weights than the paper's are those of the authors' code.
        """
        S, n = z_s.shape[1], z_q.shape[1]
        labels = F.one_hot(y, W.shape[1]).to(W)
        ratio = self.cross_entropy / (1 + self.conditional)
        for _ in range(self.steps):
            P_s, P_q = self.logits(z_s, W).softmax(-1), self.logits(z_q, W).softmax(-1)
            # Proposition 1: q_ik is proportional to p_ik^(1 + alpha) / (sum_i p_ik^(1 + alpha))^(1/2).
            sharp = P_q ** (1 + self.conditional)
            frequent = sharp.sum(1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny)
            q = F.normalize(sharp / frequent ** (self.marginal / (1 + self.marginal)), p=1, dim=-1)
            # Proposition 2: the prototypes, for these q, by a bound whose second part is taken at the present ones.
            above, below = torch.zeros_like(W), torch.zeros_like(W[..., :1])
            for weight, targets, P, z in ((ratio, labels, P_s, z_s), (S / n, q, P_q, z_q)):
                above = above + weight * (targets.mT @ z + W * P.sum(1).unsqueeze(-1) - P.mT @ z)
                below = below + weight * targets.sum(1).unsqueeze(-1)
            W = above / below
        return W

    def adapt(self, support: Support) -> Predictor:
        """Adapt the prototypes to support and queries together, and return a function to logits [B, n, N].

        Args:
            support: with the queries, ``query_x``. The predictor accepts these and other inputs.

        Raises:
            DataError: there are no queries.
        """
        if support.query_x is None or not support.query_x.shape[1]:
            raise DataError("tim: got a support without queries, expected query_x, to which it adapts; give the inputs")
        z_s, z_q = self.embed(support.x), self.embed(support.query_x)
        W = class_means(z_s, support.y, support.way or 0)
        if self.method == "gd":
            W = self.by_gradients(W, z_s, z_q, support.y)
        else:  # prototypes stay in the space that all embeddings span, which has fewer dimensions
            S = support.x.shape[1]
            u, basis = span_coordinates(torch.cat([z_s, z_q], 1))
            W = self.by_closed_forms(W @ basis.mT, u[:, :S], u[:, S:], support.y) @ basis
        return lambda x: self.logits(self.embed(x), W)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Return the loss and the accuracy on the queries. There is no gradient, because nothing is trained."""
        with torch.no_grad():
            logits = self.adapt(episodes.for_adapting("at_adapt"))(episodes.query.x)
            loss = F.cross_entropy(logits.flatten(0, 1), episodes.query.y.flatten())
        return {"loss": loss, "accuracy": (logits.argmax(-1) == episodes.query.y).float().mean()}
