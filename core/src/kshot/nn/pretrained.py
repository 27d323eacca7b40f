"""What encoders with pretrained weights have in common: which weights train, the inputs of networks for pictures.

Letters: n examples, D embedding; a picture is [C, H, W].
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kshot.errors import DataError, OptionError

Tune = Literal["none", "head", "all"]
"""Which weights of a pretrained encoder are trained: none, those of its last part, or all."""


def tuned(module: nn.Module, tune: Tune, head: nn.Module | None = None) -> nn.Module:
    """Freeze the weights that shall not be trained, and return the module, in evaluation mode.

    A frozen part stays in evaluation mode while its learner trains: the statistics of its batch norm stay, and its
    dropout is off.

    Args:
        module: an encoder.
        tune: ``none`` freezes all weights, ``head`` all but those of ``head``, ``all`` none.
        head: the last part of the encoder; by default the last of its children that has weights.

    Raises:
        OptionError: ``tune`` is another value, or is ``head`` although nothing in the module has weights.

    Example:
        >>> net = tuned(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), "head")
        >>> [p.requires_grad for p in net.parameters()]
        [False, False, True, True]
    """
    if tune not in ("none", "head", "all"):
        raise OptionError(f"tune: got {tune!r}, expected 'none', 'head' or 'all'")
    module.requires_grad_(tune == "all")
    if tune == "head":
        with_weights = [child for child in module.modules() if any(True for _ in child.parameters(recurse=False))]
        last = with_weights[-1:] if head is None else [head]
        if not last:
            raise OptionError("tune: got 'head' for an encoder without weights, expected 'none'")
        last[0].requires_grad_(True)
    return module.eval()


def digest_of(module: nn.Module) -> str:
    """Return a digest of all weights and buffers of a module, with their names: 32 hexadecimal digits.

    Example:
        >>> digest_of(nn.Flatten())
        'cae66941d9efbd404e4d88758ea67670'
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in module.state_dict().items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\0".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()


class PictureEncoder(nn.Module):
    """Apply a pretrained network to pictures of any size: [n, C, H, W] within [0, 1] -> [n, D].

    Grey pictures are repeated in three channels. Pictures of another size than the network's are resized by bilinear
    interpolation with antialiasing, so each number of a smaller picture is an average. Then each channel is
    normalised: (x - mean) / std.

    Args:
        net: a network [n, 3, height, width] -> [n, D].
        input_shape: shape of one input of the tasks, ``(C, H, W)`` with C = 1 or 3.
        size: height and width of the network's pictures; None if it takes any size.
        mean: of each channel, as the network was trained.
        std: standard deviation of each channel.
        tune: which weights are trained, see ``tuned``.
        head: the last part of the network, for ``tune="head"``.

    Raises:
        DataError: the inputs are not pictures of one or three channels.
        OptionError: ``tune`` is unknown.

    Example:
        >>> net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> encoder = PictureEncoder(net, (1, 28, 28), size=(32, 32))
        >>> encoder(torch.ones(2, 1, 28, 28)).shape
        torch.Size([2, 3])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        input_shape: tuple[int, ...],
        *,
        size: tuple[int, int] | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        tune: Tune = "none",
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or input_shape[0] not in (1, 3):
            raise DataError(
                f"got inputs of shape {list(input_shape)}, expected pictures [1, height, width] (grey) or [3, height, "
                "width] (colour); use an encoder for inputs of this kind"
            )
        self.net, self.size = net, size
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1))
        tuned(self, tune, head)

    def forward(self, x: Tensor) -> Tensor:
        """Embed pictures ``x`` [n, C, H, W] as [n, D]."""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if self.size is not None and tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
        z: Tensor = self.net((x - self.mean) / self.std)
        return z
