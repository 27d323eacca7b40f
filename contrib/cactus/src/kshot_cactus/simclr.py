"""SimCLR: Chen, Kornblith, Norouzi & Hinton, "A simple framework for contrastive learning of visual representations",
2020 (2002.05709), algorithm 1.

Labels are not used in training: support and queries of an episode are one batch of n examples. Letters: B meta-batch,
N way, S support size, n examples, D embedding, E numbers of a projection.
"""

from __future__ import annotations

from typing import Annotated

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training, generator
from kshot.functional import class_means, full_precision, prototypical_logits
from kshot.nn import EncoderChoice, Normalisation, infer_output_shape
from kshot.nn import encoder as build_encoder
from kshot.registry import Range, check_values
from kshot_cactus.augment import picture_view, vector_view

NonNegative = Annotated[float, Range(0)]


class SimCLR(nn.Module):
    """Learn an encoder without labels: the embeddings of two distorted views of an example shall agree.

    A task is learned by the class means of embeddings of length 1, and a query is of the class of the nearest mean.
    A trained run serves as an encoder: ``{"name": "run", "run": FOLDER}``.

    The examples of an episode must not show their classes, or training would use labels: train on
    ``cactus`` with ``how="random"``, whose classes are random groups of examples.

    Args:
        spec: the specification of the tasks, which determines the inputs of the encoder.
        encoder: ``auto``, ``conv4``, ``mlp``, ``linear``, or a module from [n, *input] to [n, D].
        width: channels of conv4, units of mlp, outputs of linear.
        normalisation: whose batch statistics are used at evaluation, see ``kshot.nn.Encoder``.
        projection: E, the length of a projection; the hidden layer of the projection head is as wide as an embedding.
            The paper has 128.
        temperature: tau. The paper uses 0.1 for long trainings, and 0.5 for short ones of small pictures.
        rotation: pictures are rotated by up to so many degrees.
        scale: the sides of pictures are scaled by up to e^scale and e^-scale.
        shear: pictures are sheared by up to this slope.
        shift: pictures are shifted by up to this share of their sides.
        bend: pictures are bent: standard deviation of the displacements of a coarse grid, where a picture is 2 wide.
        noise: for inputs that are not pictures: standard deviation of noise, as a share of that of the inputs.

    The paper's views are crops, colours and blur of photos; these ones are for characters, and keep their orientation.

    Raises:
        OptionError: an option is out of its range, or unknown.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(2,), way=2, shot=1, query=1)
        >>> learner = SimCLR(spec, encoder=nn.Flatten())
        >>> learner.embed(torch.tensor([[[3.0, 4.0]]])).tolist()
        [[[0.6000000238418579, 0.800000011920929]]]
    """

    needs = Needs(kinds=("classification",), variable_way=True, invariant={"labels", "order"})
    # The paper's batches have 256 to 8192 examples and its trainings 100 to 1000 epochs.
    training_defaults = Training(
        lr=3e-3, schedule="linear", warmup=50, iterations=1000, tasks={"way": 128, "shot": 1, "query": 1}
    )

    def __init__(
        self,
        spec: TaskSpec,
        *,
        encoder: EncoderChoice = "auto",
        width: Annotated[int, Range(1, 4096)] = 64,
        normalisation: Normalisation = "inductive",
        projection: Annotated[int, Range(1, 4096)] = 64,
        temperature: Annotated[float, Range(above=0)] = 0.1,
        rotation: Annotated[float, Range(0, 180)] = 15.0,
        scale: Annotated[float, Range(0, 1)] = 0.2,
        shear: NonNegative = 0.3,
        shift: Annotated[float, Range(0, 1)] = 0.1,
        bend: NonNegative = 0.08,
        noise: NonNegative = 0.3,
    ) -> None:
        super().__init__()
        check_values(SimCLR, locals())
        self.pictures = len(spec.input_shape) == 3
        self.distortion = {"rotation": rotation, "scale": scale, "shear": shear, "shift": shift, "bend": bend}
        self.noise, self.temperature = noise, temperature
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width)
        self.needs = attrs.evolve(type(self).needs, queries=self.encoder.queries)
        D = infer_output_shape(self.encoder, spec.input_shape)[-1]
        # Section 2.1: g(h) = W2 relu(W1 h).
        self.head = nn.Sequential(
            nn.Linear(D, D, bias=False), nn.ReLU(inplace=True), nn.Linear(D, projection, bias=False)
        )

    def view(self, x: Tensor, source: torch.Generator) -> Tensor:
        """Distort the examples of an episode [n, *input] at random."""
        return picture_view(x, source, **self.distortion) if self.pictures else vector_view(x, source, noise=self.noise)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the loss of algorithm 1 to ``.grad``; return the loss and how often partners are found.

        The labels and the division into support and queries have no effect.
        """
        support, query = episodes.support, episodes.query
        x = torch.cat([support.x, query.x], 1)  # [B, n, *input]
        # Two views of each example, t(x) and t'(x). An episode's own key determines them.
        first, second = (
            torch.stack([self.view(x[b], generator(support.key[b], purpose)) for b in range(len(x))])
            for purpose in ("first view", "second view")
        )
        # h = f(t(x)), z = g(h) for all 2n views of an episode, so that they have the same batch statistics.
        h = full_precision(self.encoder(torch.cat([first, second], 1)))
        logits, partner = nt_xent_logits(self.head(h), self.temperature)
        # Equation 1: the cross-entropy of each view's partner among the other 2n - 1 views of its episode.
        loss = F.cross_entropy(logits.flatten(0, 1), partner.repeat(len(x)))
        loss.backward()
        return {"loss": loss.detach(), "agreement": (logits.argmax(-1) == partner).float().mean()}

    def adapt(self, support: Support) -> Predictor:
        """Return a function from queries [B, n, *input] to logits [B, n, N], minus squared distances to class means."""
        embed = self.encoder.given(support.x)

        def predict(x: Tensor) -> Tensor:
            z_support, z_query = (F.normalize(full_precision(h), dim=-1) for h in embed(x))
            return prototypical_logits(z_query, class_means(z_support, support.y, support.way or 0))

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [B, n, *input] as h of length 1 [B, n, D] (ability ``Embeds``)."""
        return F.normalize(full_precision(self.encoder(x)), dim=-1)


def nt_xent_logits(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute the similarities of all pairs of views, of which each shall recognise its partner.

    Args:
        z: projections of 2n views [B, 2n, E]; view i and view n + i are of the same example.
        temperature: tau.

    Returns:
        sim(z_i, z_k) / tau by cosines [B, 2n, 2n], with -inf at i = k, and the number of each view's partner [2n].

    Example:
        >>> logits, partner = nt_xent_logits(torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0]]]), 0.5)
        >>> logits[0, 0].tolist(), partner.tolist()
        ([-inf, 0.0, 2.0, 0.0], [2, 3, 0, 1])
    """
    unit = F.normalize(z, dim=-1)
    similarities = unit @ unit.mT / temperature
    views = z.shape[1]
    itself = torch.eye(views, dtype=torch.bool, device=z.device)
    partner = (torch.arange(views, device=z.device) + views // 2) % views
    return similarities.masked_fill(itself, -torch.inf), partner
