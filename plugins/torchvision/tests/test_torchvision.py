"""Models of torchvision embed as torchvision does, with weights of a file; wrong ones are refused."""

from __future__ import annotations

import copy
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models

import kshot
from kshot.errors import DataError, OptionError

NET = "mnasnet0_5"
SPEC = kshot.TaskSpec(kind="classification", input_shape=(3, 224, 224), way=2, shot=1, query=1)


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    """A model of 7 classes."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        net: torch.nn.Module = torchvision.models.get_model(NET, num_classes=7).eval()
    return net


@pytest.fixture
def file(tmp_path: Path, trained: torch.nn.Module) -> Path:
    path = tmp_path / "weights.pth"
    torch.save(trained.state_dict(), path)
    return path


def build(**options: Any) -> torch.nn.Module:
    return kshot.encoder("torchvision", SPEC, **{"model": NET, **options})


def test_embeddings_are_those_before_the_last_layer(file: Path, trained: torch.nn.Module) -> None:
    """The complete model gives the same logits from them, of pictures normalised by torchvision's own numbers."""
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        z = build(weights=file)(x)
        expected = trained((x - mean) / std)
        assert z.shape == (2, 1280)
        assert torch.allclose(trained.classifier[1](z), expected, atol=1e-4)  # type: ignore[index, operator]


def test_what_tasks_suit() -> None:
    options = kshot.registry.load("torchvision", "encoders").task_options  # type: ignore[attr-defined]
    assert options(model="resnet18") == {"size": 224, "mode": "RGB", "fit": "crop"}
    assert options(model="inception_v3")["size"] == 299


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "swin_t", "convnext_tiny", "densenet121", "googlenet"])
def test_the_last_layer_is_found(name: str) -> None:
    """It has 1,000 outputs."""
    from kshot_torchvision.encoder import _classifier

    with torch.device("meta"):
        net = torchvision.models.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))
    assert net.get_submodule(_classifier(net, name)).out_features == 1000


class Evil:
    def __reduce__(self) -> Any:
        return print, ("code of the file was run",)


def test_wrong_files_are_refused(tmp_path: Path, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A damaged file, code, another model, a part of the weights, and another table."""
    path = tmp_path / "other.pth"
    with pytest.raises(DataError, match=r"other\.pth can't be read \(FileNotFoundError"):
        build(weights=path)
    path.write_bytes(b"x")
    with pytest.raises(DataError, match=r"other\.pth can't be read"):
        build(weights=path)
    torch.save({"layer": Evil()}, path)
    with pytest.raises(DataError, match=r"other\.pth can't be read"):
        build(weights=path)
    assert "code of the file was run" not in capfd.readouterr().out
    state = torch.load(file)
    part, more = copy.copy(state), copy.copy(state)
    del part["layers.0.weight"]
    more["more"] = torch.zeros(1)
    for wrong, message in (
        (torchvision.models.get_model("mnasnet0_75").state_dict(), "expected a file with the weights of"),
        (part, r"without layers\.0\.weight"),
        (more, "with more"),
        (dict(state), "version should be set"),
        ({"state": state}, "that is no table of tensors"),
    ):
        torch.save(wrong, path)
        with pytest.raises(DataError, match=message):
            build(weights=path)


def test_unknown_models_are_refused() -> None:
    with pytest.raises(OptionError, match=r"got the model 'resnet81', expected a classifier .*did you mean .*resnet"):
        build(model="resnet81")
    with pytest.raises(OptionError, match="'squeezenet1_0', whose last layer is not linear"):
        build(model="squeezenet1_0")


def test_without_a_network_the_error_says_what_to_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(DataError) as raised:
        build()
    for text in ("no route to host", "https://download.pytorch.org/models/mnasnet0.5", "encoder.weights=FILE"):
        assert text in str(raised.value)
