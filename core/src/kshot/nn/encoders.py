"""The usual encoders, and ``Encoder``, which folds B and keeps the policy of normalisation around any module."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kshot.errors import DataError, OptionError
from kshot.nn.normalisation import (
    Normalisation,
    batch_norms,
    evaluating,
    folded,
    per_episode_statistics,
    with_statistics_of,
)

EncoderChoice = Literal["auto", "conv4", "mlp", "linear"] | nn.Module


class Encoder(nn.Module):
    """An encoder of episodes: [B, n, *input] -> [B, n, D], around a net of [n, *input] -> [n, D].

    Args:
        net: any unmodified module; its batch norm layers, if any, obey ``normalisation``.
        normalisation: whose statistics normalise whom at evaluation, see ``kshot.nn.normalisation``.
        input_shape: of one input; others are refused with a DataError. None takes what the net takes.
    """

    def __init__(
        self,
        net: nn.Module,
        normalisation: Normalisation = "inductive",
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if normalisation not in ("inductive", "support", "transductive"):
            raise OptionError(
                f"Encoder: normalisation is {normalisation!r}, expected 'inductive', 'support' or 'transductive'"
            )
        self.net = net
        self.normalisation = normalisation
        self.input_shape = input_shape
        self.has_batch_norm = bool(batch_norms(net))

    @property
    def queries(self) -> Literal["independent", "joint"]:
        """What ``Needs.queries`` is for a learner that embeds with this: ``joint`` if queries normalise each other."""
        return "joint" if self.has_batch_norm and self.normalisation == "transductive" else "independent"

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [B, n, *input] -> [B, n, D]; in training each episode is normalised by itself."""
        self._check(x)
        if self.training and self.has_batch_norm:
            return per_episode_statistics(self.net, x)
        out: Tensor = self.net(x.flatten(0, 1))
        return out.view(*x.shape[:2], *out.shape[1:])

    def given(self, support_x: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The encoder as a predictor should use it after seeing ``support_x`` [B, S, *input].

        Returns a function from query inputs [B, n, *input] to the embeddings of support [B, S, D] and query
        [B, n, D], by the policy of normalisation. Changes nothing in the module, whatever mode it is in.
        """
        self._check(support_x)
        if not self.has_batch_norm or self.normalisation == "inductive":
            with evaluating(self):
                net = self.net if torch.is_grad_enabled() else folded(self.net)
            z_support = self._evaluate(net, support_x)
            return lambda query_x: (z_support, self._evaluate(net, query_x))
        if self.normalisation == "support":
            if support_x.shape[1] == 0:
                raise DataError(
                    "normalisation is 'support', but the support has no examples to take statistics from; "
                    "use 'inductive' for zero-shot tasks"
                )
            with evaluating(self):
                pairs = [with_statistics_of(self.net, x) for x in support_x]
            z_support = torch.stack([z for z, _ in pairs])

            def by_support(query_x: Tensor) -> tuple[Tensor, Tensor]:
                with evaluating(self):
                    z = [functional_call(self.net, stats, (x,)) for (_, stats), x in zip(pairs, query_x, strict=True)]
                return z_support, torch.stack(z)

            return by_support

        def together(query_x: Tensor) -> tuple[Tensor, Tensor]:
            both = torch.cat([support_x, query_x], 1)
            with evaluating(self):
                z = torch.stack([with_statistics_of(self.net, x)[0] for x in both])
            return z[:, : support_x.shape[1]], z[:, support_x.shape[1] :]

        return together

    def _evaluate(self, net: nn.Module, x: Tensor) -> Tensor:
        self._check(x)
        with evaluating(self):
            z: Tensor = net(x.flatten(0, 1))
        return z.view(*x.shape[:2], *z.shape[1:])

    def _check(self, x: Tensor) -> None:
        if self.input_shape is not None and tuple(x.shape[2:]) != self.input_shape:
            raise DataError(
                f"the encoder got inputs of shape {tuple(x.shape)}, expected [B, n, "
                f"{', '.join(map(str, self.input_shape))}]: it was built for {self.input_shape}; convert the inputs "
                "(channels, size) or build a learner for theirs"
            )


def conv4(input_shape: tuple[int, ...], width: int = 64) -> nn.Sequential:
    """4 x [3x3 conv, batch norm, 2x2 max pool, ReLU], flattened: [n, C, H, W] -> [n, D]; 28 x 28 gives D = ``width``.

    The encoder of Vinyals et al. (2016). Pooling before the ReLU is the same function (both are monotone) on a
    quarter of the numbers.

    Raises:
        DataError: the input is no image of at least 16 x 16.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 16:
        raise DataError(f"conv4: input_shape is {input_shape}, expected (channels, height >= 16, width >= 16)")
    channels = [input_shape[0], *[width] * 4]
    blocks = [
        nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.MaxPool2d(2), nn.ReLU(inplace=True)
        )
        for c_in, c_out in itertools.pairwise(channels)
    ]
    return nn.Sequential(*blocks, nn.Flatten())


def mlp(input_shape: tuple[int, ...], hidden: tuple[int, ...] = (64, 64), out: int = 64) -> nn.Sequential:
    """A fully connected net without normalisation: [n, *input] -> [n, ``out``]."""
    sizes = [math.prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], out))


def linear(input_shape: tuple[int, ...], out: int = 64) -> nn.Sequential:
    """One linear map W: [n, *input] -> [n, ``out``], under which distances are Mahalanobis', by the matrix W^T W.

    It begins orthogonal, so that training begins at the distances of the inputs, or of their projection.
    """
    layer = nn.Linear(math.prod(input_shape), out, bias=False)
    nn.init.orthogonal_(layer.weight)
    return nn.Sequential(nn.Flatten(), layer)


def encoder(
    choice: EncoderChoice, input_shape: tuple[int, ...], normalisation: Normalisation = "inductive", width: int = 64
) -> Encoder:
    """An encoder by name, or around a module of the user's; ``auto`` takes conv4 for images, mlp for the rest.

    Raises:
        OptionError: an unknown name.
        DataError: the encoder can't take ``input_shape``.
    """
    if isinstance(choice, Encoder):
        return choice
    if isinstance(choice, nn.Module):
        return Encoder(choice, normalisation, input_shape)
    if choice == "auto":
        choice = "conv4" if len(input_shape) == 3 and min(input_shape[1:]) >= 16 else "mlp"
    if choice == "conv4":
        return Encoder(conv4(input_shape, width), normalisation, input_shape)
    if choice == "mlp":
        return Encoder(mlp(input_shape, (width, width), width), normalisation, input_shape)
    if choice == "linear":
        return Encoder(linear(input_shape, width), normalisation, input_shape)
    raise OptionError(f"encoder is {choice!r}, expected 'auto', 'conv4', 'mlp', 'linear' or an nn.Module of yours")
