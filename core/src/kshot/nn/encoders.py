"""The usual encoders, and ``Encoder``, which applies any net to episodes by a stated policy of normalisation.

Letters: B meta-batch, S support size, n examples, D embedding; an image is [C, H, W].
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from kshot.errors import DataError, OptionError
from kshot.nn.examination import examine, expect_outputs
from kshot.nn.normalisation import (
    Normalisation,
    check_policy,
    evaluating,
    folded,
    per_episode_statistics,
    with_statistics_of,
)

EncoderChoice = Literal["auto", "conv4", "strided-conv4", "mlp", "linear", "identity"] | nn.Module


class Encoder(nn.Module):
    """Embed episodes [B, n, *input] as [B, n, D] by a net that embeds examples [n, *input] as [n, D].

    Args:
        net: any module, without changes. Its batch norm layers, if it has any, follow ``normalisation``. A net that
            can't follow it, because its outputs always depend on the examples beside it, is refused.
        normalisation: whose statistics normalise which examples at evaluation; see ``kshot.nn.normalisation``.
        input_shape: shape of one input. If it is given, inputs of another shape raise a DataError.

    Attributes:
        has_batch_norm: whether examples that are computed together normalise each other, at least in training.

    Raises:
        OptionError: the policy of normalisation is unknown, or the net can't follow it.
        DataError: the net has lazily initialised layers that can't be initialised.

    Example:
        >>> encoder = Encoder(nn.Linear(3, 2), input_shape=(3,)).eval()
        >>> encoder(torch.zeros(4, 5, 3)).shape
        torch.Size([4, 5, 2])
        >>> z_support, z_query = encoder.given(torch.zeros(4, 5, 3))(torch.zeros(4, 7, 3))
        >>> z_support.shape, z_query.shape
        (torch.Size([4, 5, 2]), torch.Size([4, 7, 2]))
    """

    def __init__(
        self,
        net: nn.Module,
        normalisation: Normalisation = "inductive",
        input_shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        check_policy("Encoder", normalisation)
        self.net = net
        self.normalisation = normalisation
        self.input_shape = input_shape
        statistics = examine("Encoder", net, normalisation, input_shape)
        self.has_batch_norm, self._always_joint = statistics.of_batch, statistics.always

    @property
    def queries(self) -> Literal["independent", "joint"]:
        """Return ``Needs.queries`` of a learner with this encoder: ``joint`` if queries normalise each other."""
        return "joint" if self.has_batch_norm and self.normalisation == "transductive" else "independent"

    def forward(self, x: Tensor) -> Tensor:
        """Embed ``x`` [B, n, *input] as [B, n, D]. In training mode each episode is normalised by its own statistics.

        Raises:
            DataError: the inputs have another shape than ``input_shape``.
            MisfitError: the net returns something else than an embedding for each input.
        """
        self._check(x)
        if self.training and self.has_batch_norm:
            return per_episode_statistics(self.net, x)
        if self._always_joint:
            return torch.stack([self.net(episode) for episode in x])
        out = expect_outputs("Encoder", self.net(x.flatten(0, 1)), x.shape[0] * x.shape[1], axes=2)
        return out.view(*x.shape[:2], *out.shape[1:])

    def given(self, support_x: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return a function that embeds queries, and the support with them, by the policy of normalisation.

        The encoder computes in evaluation mode, even if it is in training mode, and nothing in it changes.

        Args:
            support_x: inputs of the support [B, S, *input].

        Returns:
            A function from inputs of queries [B, n, *input] to the embeddings of the support [B, S, D] and of the
            queries [B, n, D].

        Raises:
            DataError: the inputs have another shape than ``input_shape``, or the policy is ``support`` and the support
                is empty.
        """
        self._check(support_x)
        if not self.has_batch_norm or self.normalisation == "inductive":
            # The support can be embedded once, because it does not depend on the queries.
            with evaluating(self):
                net = self.net if torch.is_grad_enabled() else folded(self.net)
            z_support = self._evaluate(net, support_x)
            return lambda query_x: (z_support, self._evaluate(net, query_x))
        if self.normalisation == "support":
            if support_x.shape[1] == 0:
                raise DataError(
                    "Encoder: got a support without examples, expected at least one to take statistics from under "
                    "normalisation='support'; use 'inductive' for zero-shot tasks"
                )
            # The statistics of each support are kept as buffers, and normalise the queries of its episode later.
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
        """Embed ``x`` [B, n, *input] by ``net``, this encoder's own or its folded version, in evaluation mode."""
        self._check(x)
        with evaluating(self):
            z = expect_outputs("Encoder", net(x.flatten(0, 1)), x.shape[0] * x.shape[1], axes=2)
        return z.view(*x.shape[:2], *z.shape[1:])

    def _check(self, x: Tensor) -> None:
        if self.input_shape is not None and tuple(x.shape[2:]) != self.input_shape:
            raise DataError(
                f"Encoder: got inputs of shape {tuple(x.shape)}, expected "
                f"[B, n, {', '.join(map(str, self.input_shape))}], for which it was built; convert the inputs "
                "(channels, size) or build a learner for inputs of this shape"
            )


def infer_output_shape(encoder: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Infer the shape of one embedding by embedding one input of zeros.

    Use it to size the layers that follow an encoder. Nothing changes: the modes of the encoder and of its submodules,
    its running statistics and the global random state are afterwards what they were. No gradient is computed.

    Args:
        encoder: an ``Encoder``, or another module from [B, n, *input] to [B, n, ...].
        input_shape: shape of one input.

    Returns:
        The shape of one embedding: ``(D,)`` for vectors, ``(C, H, W)`` for maps.

    Raises:
        DataError: ``input_shape`` is not the input shape that the encoder was built for.

    Example:
        >>> infer_output_shape(encoder("mlp", (28, 28), width=32), (28, 28))
        (32,)
        >>> infer_output_shape(Encoder(nn.Conv2d(1, 4, 3)), (1, 28, 28))
        (4, 26, 26)
    """
    x = torch.zeros(1, 1, *input_shape)
    # The modes are saved one by one, because a submodule may be in training mode within a module that is not.
    modes = [(m, m.training) for m in encoder.modules()]
    # In evaluation mode batch norm keeps its running statistics. A net may draw random numbers even then.
    with torch.no_grad(), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        try:
            embedding: Tensor = encoder.eval()(x)
        finally:
            for m, training in modes:
                m.training = training
    return tuple(embedding.shape[2:])


def conv4(input_shape: tuple[int, ...], width: int = 64) -> nn.Sequential:
    """Build the encoder of Vinyals et al. (2016): 4 x [3x3 conv, batch norm, 2x2 max pool, ReLU], flattened.

    Max pooling comes before the ReLU here. This is the same function, because both are monotone, and the ReLU has a
    quarter of the numbers to process.

    Args:
        input_shape: ``(channels, height, width)``, at least 16 x 16.
        width: channels of each convolution.

    Returns:
        A net from [n, C, H, W] to [n, D]. D is ``width`` for images of 28 x 28.

    Raises:
        DataError: the inputs are not images of at least 16 x 16.

    Example:
        >>> conv4((1, 28, 28), width=8)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 8])
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 16:
        raise DataError(f"conv4: got input_shape={input_shape}, expected (channels, height >= 16, width >= 16)")
    channels = [input_shape[0], *[width] * 4]
    blocks = [
        nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.MaxPool2d(2), nn.ReLU(inplace=True)
        )
        for c_in, c_out in itertools.pairwise(channels)
    ]
    return nn.Sequential(*blocks, nn.Flatten())


def strided_conv4(input_shape: tuple[int, ...], width: int = 64) -> nn.Sequential:
    """Build MAML's encoder for Omniglot: 4 x [3x3 conv of stride 2, batch norm, ReLU], then the mean over all places.

    It is described in the appendix of Finn et al. (2017); the mean is in their code. It has the parameters of
    ``conv4``, and about a quarter of its multiplications.

    Args:
        input_shape: ``(channels, height, width)``, at least 16 x 16.
        width: channels of each convolution.

    Returns:
        A net from [n, C, H, W] to [n, ``width``].

    Raises:
        DataError: the inputs are not images of at least 16 x 16.

    Example:
        >>> strided_conv4((1, 28, 28), width=8)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 8])
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 16:
        raise DataError(f"strided_conv4: got input_shape={input_shape}, expected (channels, height >= 16, width >= 16)")
    channels = [input_shape[0], *[width] * 4]
    blocks = [
        nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))
        for c_in, c_out in itertools.pairwise(channels)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def mlp(input_shape: tuple[int, ...], hidden: tuple[int, ...] = (64, 64), out: int = 64) -> nn.Sequential:
    """Build a fully connected net with ReLUs and without normalisation.

    Args:
        input_shape: shape of one input, which is flattened.
        hidden: units of each hidden layer.
        out: length of an output.

    Returns:
        A net from [n, *input] to [n, ``out``].

    Example:
        >>> mlp((2, 5), hidden=(16,), out=3)(torch.zeros(4, 2, 5)).shape
        torch.Size([4, 3])
    """
    sizes = [math.prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], out))


def linear(input_shape: tuple[int, ...], out: int = 64) -> nn.Sequential:
    """Build one linear map W without a bias, under which Euclidean distances are Mahalanobis distances.

    The matrix of the Mahalanobis distance is W^T W. W is initialised orthogonal. So the first distances are those of
    the inputs if ``out`` is at least the length of an input, and those of a projection of the inputs otherwise.

    Args:
        input_shape: shape of one input, which is flattened.
        out: length of an output.

    Returns:
        A net from [n, *input] to [n, ``out``].

    Example:
        >>> linear((2, 5), out=3)(torch.zeros(1, 2, 5)).tolist()
        [[0.0, 0.0, 0.0]]
    """
    layer = nn.Linear(math.prod(input_shape), out, bias=False)
    nn.init.orthogonal_(layer.weight)
    return nn.Sequential(nn.Flatten(), layer)


def encoder(
    choice: EncoderChoice, input_shape: tuple[int, ...], normalisation: Normalisation = "inductive", width: int = 64
) -> Encoder:
    """Build an encoder by its name, or from a module of the user's.

    Args:
        choice: ``conv4``, ``strided-conv4``, ``mlp``, ``linear``, ``identity`` (the numbers of an input are its
            embedding), or a module from [n, *input] to [n, D]. ``auto`` chooses ``conv4`` for images of at least
            16 x 16 and ``mlp`` for all other inputs. An ``Encoder`` is returned as it is.
        input_shape: shape of one input.
        normalisation: whose statistics normalise which examples at evaluation; see ``kshot.nn.normalisation``.
        width: channels of the convolutions, units of mlp, outputs of linear.

    Raises:
        OptionError: the name or the policy of normalisation is unknown.
        DataError: the encoder does not accept inputs of this shape.

    Example:
        >>> encoder("auto", (12,), width=8)(torch.zeros(2, 3, 12)).shape
        torch.Size([2, 3, 8])
    """
    if isinstance(choice, Encoder):
        return choice
    if isinstance(choice, nn.Module):
        return Encoder(choice, normalisation, input_shape)
    if choice == "auto":
        choice = "conv4" if len(input_shape) == 3 and min(input_shape[1:]) >= 16 else "mlp"
    if choice == "conv4":
        return Encoder(conv4(input_shape, width), normalisation, input_shape)
    if choice == "strided-conv4":
        return Encoder(strided_conv4(input_shape, width), normalisation, input_shape)
    if choice == "mlp":
        return Encoder(mlp(input_shape, (width, width), width), normalisation, input_shape)
    if choice == "linear":
        return Encoder(linear(input_shape, width), normalisation, input_shape)
    if choice == "identity":
        return Encoder(nn.Flatten(), normalisation, input_shape)
    raise OptionError(
        f"encoder: got {choice!r}, expected 'auto', 'conv4', 'strided-conv4', 'mlp', 'linear', 'identity' or an "
        "nn.Module"
    )
