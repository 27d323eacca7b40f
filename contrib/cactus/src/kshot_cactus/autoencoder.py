"""Autoencoders: Hinton & Salakhutdinov, "Reducing the dimensionality of data with neural networks", 2006, with the
noise of Vincent et al., "Extracting and composing robust features with denoising autoencoders", 2008.

Labels are not used in training: support and queries of an episode are one batch of n examples. Letters: B meta-batch,
N way, n examples, D code.
"""

from __future__ import annotations

import math
from typing import Annotated

import attrs
import torch
from torch import Tensor, nn

from kshot import Episode, Metrics, Needs, Predictor, Support, TaskSpec, Training, generator
from kshot.functional import class_means, full_precision, prototypical_logits
from kshot.nn import EncoderChoice, Normalisation, infer_output_shape
from kshot.nn import encoder as build_encoder
from kshot.registry import Range, check_values


class Autoencoder(nn.Module):
    """Learn an encoder without labels: a decoder shall reconstruct the inputs from their embeddings, the codes.

    A task is learned by the class means of the codes, and a query is of the class of the nearest mean. A trained run
    serves as an encoder: ``{"name": "run", "run": FOLDER}``.

    Args:
        spec: the specification of the tasks, which determines the shape of the inputs.
        encoder: ``auto``, ``conv4``, ``mlp``, ``linear``, or a module from [n, *input] to [n, D].
        width: channels of the convolutions, units of mlp, outputs of linear.
        normalisation: whose batch statistics are used at evaluation, see ``kshot.nn.Encoder``.
        corruption: probability that a number of an input is 0 for the encoder; 0 is an ordinary autoencoder.

    Raises:
        OptionError: an option is out of its range, or unknown.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(1, 16, 18), way=2, shot=1, query=1)
        >>> Autoencoder(spec, width=8).reconstructed(torch.zeros(2, 3, 1, 16, 18)).shape
        torch.Size([2, 3, 1, 16, 18])
    """

    needs = Needs(kinds=("classification",), variable_way=True, invariant={"labels", "order"})
    training_defaults = Training(
        lr=2e-3, schedule="linear", warmup=50, iterations=1000, tasks={"way": 64, "shot": 1, "query": 1}
    )

    def __init__(
        self,
        spec: TaskSpec,
        *,
        encoder: EncoderChoice = "auto",
        width: Annotated[int, Range(1, 4096)] = 64,
        normalisation: Normalisation = "inductive",
        corruption: Annotated[float, Range(0, below=1)] = 0.0,
    ) -> None:
        super().__init__()
        check_values(Autoencoder, locals())
        self.corruption = corruption
        self.encoder = build_encoder(encoder, spec.input_shape, normalisation, width)
        self.needs = attrs.evolve(type(self).needs, queries=self.encoder.queries)
        D = infer_output_shape(self.encoder, spec.input_shape)[-1]
        self.decoder = decoder(D, spec.input_shape, width)

    def reconstructed(self, x: Tensor) -> Tensor:
        """Compute x' = g(f(x)) of inputs [B, n, *input], of the same shape."""
        codes = full_precision(self.encoder(x))
        outputs: Tensor = self.decoder(codes.flatten(0, 1))
        return full_precision(outputs).view(x.shape)

    def corrupted(self, x: Tensor, keys: Tensor) -> Tensor:
        """Set numbers of inputs [B, n, *input] to 0 with the probability ``corruption``, by the keys of episodes [B].

        Vincent et al., section 2.3.
        """
        if not self.corruption:
            return x
        draws = [torch.rand(x.shape[1:], generator=generator(key, "corruption")) for key in keys]
        return x * (torch.stack(draws) >= self.corruption).to(x)

    def meta_gradient(self, episodes: Episode) -> Metrics:
        """Add the gradient of the mean squared error of reconstructions to ``.grad``, and return the error.

        The labels and the division into support and queries have no effect.
        """
        x = torch.cat([episodes.support.x, episodes.query.x], 1)  # [B, n, *input]
        # L = mean ||x - g(f(x~))||^2 / (numbers of an input), where x~ is the corrupted input.
        loss = (self.reconstructed(self.corrupted(x, episodes.support.key)) - x).square().mean()
        loss.backward()
        return {"loss": loss.detach()}

    def adapt(self, support: Support) -> Predictor:
        """Return a function from queries [B, n, *input] to logits [B, n, N], minus squared distances to class means."""
        embed = self.encoder.given(support.x)

        def predict(x: Tensor) -> Tensor:
            z_support, z_query = map(full_precision, embed(x))
            return prototypical_logits(z_query, class_means(z_support, support.y, support.way or 0))

        return predict

    def embed(self, x: Tensor) -> Tensor:
        """Embed inputs [B, n, *input] as codes [B, n, D] (ability ``Embeds``)."""
        return full_precision(self.encoder(x))


class Cropped(nn.Module):
    """Keep the upper left part of pictures [n, C, H, W]."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, x: Tensor) -> Tensor:
        """Return [n, C, height, width]."""
        return x[:, :, : self.height, : self.width]


def decoder(D: int, input_shape: tuple[int, ...], width: int) -> nn.Sequential:
    """Build a decoder from codes [n, D] to inputs [n, *input], which are flat if they are no pictures.

    That of pictures mirrors convolutions: a linear map to ``width`` maps of a quarter of the size, and two convolutions
    after enlarging twice.

    Example:
        >>> decoder(4, (3, 10, 9), width=8)(torch.zeros(2, 4)).shape
        torch.Size([2, 3, 10, 9])
    """
    if len(input_shape) != 3:
        return nn.Sequential(nn.Linear(D, 2 * width), nn.ReLU(), nn.Linear(2 * width, math.prod(input_shape)))
    C, H, W = input_shape
    height, breadth = -(-H // 4), -(-W // 4)
    return nn.Sequential(
        nn.Linear(D, width * height * breadth),
        nn.ReLU(inplace=True),
        nn.Unflatten(1, (width, height, breadth)),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(width, width // 2 or 1, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(width // 2 or 1, C, 3, padding=1),
        Cropped(H, W),
    )
