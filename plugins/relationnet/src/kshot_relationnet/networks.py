"""The encoder and the relation module of Sung et al. 2018 (1711.06025), figure 2, for images and for vectors.

Letters: B meta-batch, N way, n queries, D embedding; an image or a map is [C, H, W].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kshot.errors import DataError


def conv_encoder(input_shape: tuple[int, ...], width: int = 64) -> nn.Sequential:
    """Build the convolutional encoder of figure 2a.

    It is 2 x [3x3 conv, batch norm, ReLU, 2x2 max pool] without padding, then 2 x [3x3 conv, batch norm, ReLU] with
    padding.

    Args:
        input_shape: ``(channels, height, width)``, at least 10 x 10.
        width: channels of each convolution.

    Returns:
        A net from [n, C, H, W] to maps [n, ``width``, H', W']. Images of 28 x 28 give maps of 5 x 5.

    Raises:
        DataError: the inputs are not images of at least 10 x 10.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < 10:
        raise DataError(f"relationnet: got input_shape={input_shape}, expected (channels, height >= 10, width >= 10)")

    def block(channels: int, padding: int, *pool: nn.Module) -> nn.Sequential:
        # Max pooling before the ReLU is the same function, because both are monotone.
        conv = nn.Conv2d(channels, width, 3, padding=padding)
        return nn.Sequential(conv, nn.BatchNorm2d(width), *pool, nn.ReLU(inplace=True))

    pooled = [block(c, 0, nn.MaxPool2d(2)) for c in (input_shape[0], width)]
    return nn.Sequential(*pooled, block(width, 1), block(width, 1))


def relation_module(map_shape: tuple[int, ...], width: int = 64) -> tuple[nn.Conv2d | nn.Linear, nn.Sequential]:
    """Build the relation module of figure 2b, from pairs of maps or vectors to one logit of the relation score.

    For maps it is 2 x [3x3 conv, batch norm, ReLU, 2x2 max pool], FC 8, FC 1; maps with a side of 1 are not pooled. For
    vectors it is 2 x [FC ``width``, batch norm, ReLU], FC 8, FC 1. Without batch norm, training collapses to a
    constant.

    Args:
        map_shape: ``(C, H, W)`` of maps, or ``(D,)`` of vectors.
        width: channels of the convolutions, or units.

    Returns:
        The first layer, whose weights are for ``first_layer``, and the remaining layers: [pairs, ...] -> [pairs, 1].
    """
    first: nn.Conv2d | nn.Linear
    if len(map_shape) == 1:
        first = nn.Linear(2 * map_shape[0], width)
        layers: list[nn.Module] = [nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)]
        layers += [nn.BatchNorm1d(width), nn.ReLU()]
        features = width
    else:
        C, H, W = map_shape
        first = nn.Conv2d(2 * C, width, 3, padding=1)
        layers = []
        for more in ([], [nn.Conv2d(width, width, 3, padding=1)]):
            layers += [*more, nn.BatchNorm2d(width)]
            if min(H, W) > 1:
                layers.append(nn.MaxPool2d(2))
                H, W = H // 2, W // 2
            layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Flatten())
        features = width * H * W
    hidden = nn.Linear(features, 8)
    # As the authors do. With smaller biases, the first steps, which all lower the scores, turn the ReLUs off for good.
    nn.init.ones_(hidden.bias)
    return first, nn.Sequential(*layers, hidden, nn.ReLU(), nn.Linear(8, 1))


def first_layer(classes: Tensor, queries: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply the first layer of the relation module to [class, query] of every pair, without building the pairs.

    The layer is linear, so W [s, q] = W_s s + W_q q. It is computed on N + n maps instead of N n pairs.

    Args:
        classes: maps [B, N, C, H, W] or vectors [B, N, D].
        queries: maps [B, n, C, H, W] or vectors [B, n, D].
        weight: of a convolution [C', 2 C, 3, 3] with padding 1, or of a linear layer [C', 2 D]. Its first half along
            the second axis is for the class.
        bias: [C'], or None.

    Returns:
        The outputs [B, n * N, C', H, W] or [B, n * N, C'], in the order of the queries.
    """

    def layer(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        flat = x.flatten(0, 1)
        out = F.conv2d(flat, w, b, padding=1) if w.ndim == 4 else F.linear(flat, w, b)
        return out.view(*x.shape[:2], *out.shape[1:])

    w_s, w_q = weight.chunk(2, 1)
    return (layer(queries, w_q, bias).unsqueeze(2) + layer(classes, w_s, None).unsqueeze(1)).flatten(1, 2)
