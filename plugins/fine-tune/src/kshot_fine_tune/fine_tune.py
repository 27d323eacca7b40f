"""Fine-tuning: Hu, Li, Stuehmer, Kim & Hospedales, "Pushing the limits of simple pipelines for few-shot learning:
external data and fine-tuning make a difference", 2022 (2204.07305).

A pretrained encoder (P) may be meta-trained as a prototypical network by cosine (M), and is fine-tuned (F) on the
support of each task. The head is trained before the encoder, as in Kumar et al. 2022 (2202.10054), which the paper does
not do: it has no head, and computes prototypes again after each step.

Letters: B meta-batch, N way, S support size, n queries, D embedding, C channels, H height, L width of a picture.
theta are the trainable parameters of the encoder; W [N, D] are the vectors of the classes. Functions of one task have
no axis B; ``Lift`` runs them for B tasks.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Lift, Metrics, Needs, Predictor, Support, TaskSpec, Training, generator
from kshot.errors import OptionError
from kshot.functional import class_folds, class_means, full_precision, span_coordinates
from kshot.inner import State, adam, check_descent, take_steps
from kshot.nn import EncoderChoice, evaluating
from kshot.nn import encoder as build_encoder
from kshot.registry import Range
from kshot_fine_tune.head import best_steps, cosine_logits, fitted_head


class FineTune(nn.Module):
    """Fine-tune a head, and then all weights, on the support of each task; predict by cosine.

    The first stage needs embeddings only. Its number of steps is the one of at most ``head_steps`` that has the least
    loss on left-out examples of the support. The second stage takes a fixed number of steps, as in the paper. It is
    left out if no weight of the encoder is trainable, for example if the inputs are embeddings. Batch norm uses its
    running statistics in both.

    Args:
        spec: the specification of the tasks, which determines the inputs of the encoder.
        encoder: ``auto`` (by the input shape), ``conv4``, ``mlp``, ``linear``, ``identity``, or a module from
            [n, *input] to [n, D].
        width: number of channels of ``conv4``, of units of ``mlp``, or of outputs of ``linear``.
        scale: by which cosines are multiplied at the start of training, 10 as in the authors' code. It is trained.
        head_steps: greatest number of steps of the head.
        head_lr: learning rate of the head, by gradient descent.
        alone: number of steps of the head if each class has one example, so that nothing can be left out.
        folds: greatest number of parts of the support that are left out in turn. Each leaves examples of all classes.
        steps: number of steps of all weights; the paper has 50.
        lr: learning rate of all weights, by Adam.
        shift: in the second stage, pictures are shifted at random, by at most this part of their sides.

    Raises:
        OptionError: a number is out of range.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)
        >>> predict = FineTune(spec, encoder="identity", alone=0).adapt(Support.of([[2.0, 0.0], [0.0, 3.0]], [0, 1]))
        >>> predict(torch.tensor([[[5.0, 0.0]]])).tolist()  # without steps: the cosines to the prototypes, times 10
        [[[10.0, 0.0]]]
    """

    needs = Needs(kinds=("classification",), variable_way=True, exact_gradient=True, invariant={"labels"})
    training_defaults = Training(lr=8e-3, schedule="linear", warmup=100, iterations=1000, tasks={"way": 30, "query": 1})

    def __init__(
        self,
        spec: TaskSpec,
        *,
        encoder: EncoderChoice = "auto",
        width: Annotated[int, Range(1, 4096)] = 64,
        scale: Annotated[float, Range(0)] = 10.0,
        head_steps: Annotated[int, Range(0)] = 50,
        head_lr: Annotated[float, Range(0)] = 0.1,
        alone: Annotated[int, Range(0)] = 10,
        folds: Annotated[int, Range(2)] = 5,
        steps: Annotated[int, Range(0)] = 20,
        lr: Annotated[float, Range(0)] = 1e-4,
        shift: Annotated[float, Range(0, 1)] = 0.125,
    ) -> None:
        super().__init__()
        if min(head_steps, alone, steps) < 0 or folds < 2:
            raise OptionError(
                f"fine-tune: got head_steps {head_steps}, alone {alone}, steps {steps} and folds {folds}, expected at "
                "least 0, 0, 0 and 2; raise them"
            )
        for name, value in {"scale": scale, "head_lr": head_lr, "lr": lr, "shift": shift}.items():
            if not 0 <= value < math.inf or (name == "shift" and value > 1):
                raise OptionError(f"fine-tune: got {name} {value}, expected a number of at least 0; change it")
        self.encoder = build_encoder(encoder, spec.input_shape, "inductive", width)
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.head_steps, self.head_lr, self.alone, self.folds = head_steps, head_lr, alone, folds
        self.steps, self.update = steps, adam(lr)
        self.shift = shift if len(spec.input_shape) == 3 else 0.0
        self.lift = Lift()

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the loss of a prototypical network by cosine to ``.grad`` (meta-training, section 3.2).

        Nothing is fine-tuned while training, as in the paper.
        """
        support, query = episodes.support, episodes.query
        # Support and queries are embedded together, so that batch norm sees the whole episode.
        z = full_precision(self.encoder(torch.cat([support.x, query.x], 1)))
        z_support, z_query = z[:, : support.x.shape[1]], z[:, support.x.shape[1] :]
        logits = cosine_logits(z_query, class_means(z_support, support.y, support.way or 0), self.scale)
        loss = F.cross_entropy(logits.flatten(0, 1), query.y.flatten())
        loss.backward()
        return {"loss": loss.detach(), "accuracy": (logits.argmax(-1) == query.y).float().mean()}

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [B, n, *input] as [B, n, D], in evaluation mode (ability ``Embeds``)."""
        with evaluating(self.encoder):
            return full_precision(self.encoder(x))

    def head(self, support: Support) -> Tensor:
        """Fit the head of each task on the embeddings of its support: W [B, N, D] (the first stage)."""
        z, y, way = self.embed(support.x).detach(), support.y, support.way or 0
        # The lengths of embeddings have no other use here, so they decide which examples are left out together.
        fold = class_folds(y, z.norm(dim=-1), self.folds)
        # A head that starts from prototypes stays in the space that the embeddings span, which has fewer dimensions.
        u, basis = span_coordinates(F.normalize(z, dim=-1))
        scale = self.scale.detach()
        steps = best_steps(
            u, y, way, fold, self.folds, scale=scale, lr=self.head_lr, most=self.head_steps, alone=self.alone
        )
        return fitted_head(u, y, way, steps, scale=scale, lr=self.head_lr, most=self.head_steps) @ basis

    def support_loss(self, state: State, data: tuple[Tensor, Tensor]) -> Tensor:
        """Compute the cross-entropy of inputs [S, *input] and labels [S] of one task, by its encoder and head."""
        x, y = data
        return F.cross_entropy(self.task_logits(state, x), y)

    def task_logits(self, state: State, x: Tensor) -> Tensor:
        """Compute the logits [n, N] of inputs [n, *input] by the encoder and the head of one task."""
        return cosine_logits(encoder_state(state).call(self.encoder.net, x), state.parameters["head"], self.scale)

    def adapt(self, support: Support) -> Predictor:
        """Fine-tune on the support, and return a function from queries [B, n, *input] to logits [B, n, N]."""
        W = self.head(support)
        theta = State.of(self.encoder.net).detach()
        if not theta.parameters or not self.steps:
            return lambda x: cosine_logits(self.embed(x), W, self.scale)

        # The second stage: all weights, with pictures that are shifted anew in each step.
        def tuned(theta: State, W: Tensor, x: Tensor, y: Tensor, offsets: Tensor) -> tuple[State, Tensor]:
            start = State({**{f"net.{n}": p for n, p in theta.parameters.items()}, "head": W}, theta.buffers)
            batches = [(shifted(x, step) if self.shift else x, y) for step in offsets]
            end, losses = take_steps(self.support_loss, start, batches, self.update, second_order=False)
            return end.detach(), losses

        with evaluating(self.encoder):
            end, losses = self.lift.map(tuned, theta, W, support.x, support.y, self.offsets(support))
        check_descent(losses, "fine-tune")

        def predict(x: Tensor) -> Tensor:
            with evaluating(self.encoder):
                logits: Tensor = self.lift.map(self.task_logits, end, x)
            return logits

        return predict

    def offsets(self, support: Support) -> Tensor:
        """Draw by how many pixels each picture is shifted down and right in each step: int64 [B, steps, S, 2]."""
        sides = torch.tensor(support.x.shape[-2:] if self.shift else (0, 0))
        size = (self.steps, support.x.shape[1], 2)
        draws = [torch.rand(size, generator=generator(key, "fine-tune/shift")) for key in support.key.tolist()]
        offsets: Tensor = ((2 * torch.stack(draws) - 1) * self.shift * sides).round().long()
        return offsets.to(support.y.device)


def encoder_state(state: State) -> State:
    """Return the state of the encoder alone, from that of encoder and head."""
    own = {n.removeprefix("net."): p for n, p in state.parameters.items() if n.startswith("net.")}
    return State(own, state.buffers, state.tasks)


def shifted(x: Tensor, offsets: Tensor) -> Tensor:
    """Shift pictures [S, C, H, L] down and right by ``offsets`` [S, 2] pixels; edges are repeated.

    Example:
        >>> shifted(torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([[0, 1]])).tolist()
        [[[[1.0, 1.0, 2.0]]]]
    """
    H, L = x.shape[-2:]
    rows = (torch.arange(H, device=x.device) - offsets[:, :1]).clamp(0, H - 1)  # [S, H]
    columns = (torch.arange(L, device=x.device) - offsets[:, 1:]).clamp(0, L - 1)  # [S, L]
    x = x.gather(2, rows[:, None, :, None].expand(x.shape))
    return x.gather(3, columns[:, None, None, :].expand(x.shape))
