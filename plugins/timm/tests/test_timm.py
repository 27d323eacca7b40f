"""Models of timm embed as timm does, with weights of a file, a folder or the hub; wrong ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import timm.data
import torch
from safetensors.torch import save_file

import kshot
from kshot.errors import DataError, OptionError

SPEC = kshot.TaskSpec(kind="classification", input_shape=(3, 40, 40), way=2, shot=1, query=1)
NET = "test_resnet"


@pytest.fixture(scope="module")
def trained() -> torch.nn.Module:
    """A model with a classifier of 7 classes, as somebody may have trained one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        net: torch.nn.Module = timm.create_model(NET, num_classes=7).eval()
    return net


@pytest.fixture
def folder(tmp_path: Path, trained: torch.nn.Module) -> Path:
    """The same model in a folder, as the hub has them."""
    made = tmp_path / "weights"
    made.mkdir()
    save_file(trained.state_dict(), made / "model.safetensors")
    config = {"input_size": [3, 48, 32], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "num_classes": 7}
    (made / "config.json").write_text(json.dumps({"architecture": NET, "pretrained_cfg": config}))
    return made


def build(**options: Any) -> torch.nn.Module:
    return kshot.encoder("timm", SPEC, **{"model": NET, **options})


def test_embeddings_are_those_of_timm(folder: Path, trained: torch.nn.Module) -> None:
    """Features before the classifier, of pictures that are resized and normalised as config.json says."""
    x = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    resized = torch.nn.functional.interpolate(x, (48, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        features = trained.forward_features((resized - mean) / std)  # type: ignore[operator]
        expected = trained.forward_head(features, pre_logits=True)  # type: ignore[operator]
        assert torch.allclose(build(weights=folder)(x), expected, atol=1e-5)


def test_a_file_has_the_model_s_own_size_and_mean(folder: Path) -> None:
    """Without config.json these are timm's for the model."""
    encoder = build(weights=folder / "model.safetensors")
    data = timm.data.resolve_model_data_config(timm.create_model(NET))
    assert encoder.size == tuple(data["input_size"][1:])
    assert torch.allclose(encoder.mean.flatten(), torch.tensor(data["mean"]))  # type: ignore[operator, union-attr]


def test_what_tasks_suit(folder: Path) -> None:
    """The size is known before the weights are loaded."""
    options = kshot.registry.load("timm", "encoders").task_options  # type: ignore[attr-defined]
    assert options(model="resnet18") == {"size": 224, "mode": "RGB", "fit": "crop"}
    assert options(model=NET, weights=folder)["size"] == (48, 32)
    with pytest.raises(OptionError, match="got the model 'resnet81'"):
        options(model="resnet81")


def test_tune_head_trains_the_last_part(folder: Path) -> None:
    encoder = build(weights=folder, tune="head")
    names = {name.split(".")[1] for name, p in encoder.named_parameters() if p.requires_grad}
    assert names == {"layer4"}


def test_weights_of_another_model_are_refused(tmp_path: Path, folder: Path) -> None:
    """timm itself leaves out what a file does not have, and the weights stay random."""
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("test_vit").state_dict(), other)
    with pytest.raises(DataError, match=r"other.pth without \d+ weights of|can't be read as"):
        build(weights=other)
    some = dict(torch.load(other))
    state = timm.create_model(NET, num_classes=0).state_dict()
    state.pop("layer1.0.conv1.weight")
    torch.save({**some, **state}, other)
    with pytest.raises(DataError, match=r"without 1 weights of 'test_resnet', such as layer1.0.conv1.weight"):
        build(weights=other)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("code of the file was run",)


def test_no_code_of_a_file_is_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"layer": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match=r"evil\.pth can't be read as weights of 'test_resnet'"):
        build(weights=tmp_path / "evil.pth")
    assert "code of the file was run" not in capfd.readouterr().out


def test_a_folder_without_weights_or_with_a_wrong_config_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"expected a file of weights, or a folder that has model\.safetensors"):
        build(weights=tmp_path)
    for text in ("{", '{"pretrained_cfg": {"mean": [1]}}', "[]", '{"pretrained_cfg": {"std": ["a", "b", "c"]}}'):
        (folder / "config.json").write_text(text)
        with pytest.raises(DataError, match=r"config.json can't be used .*expected a config.json of the hub"):
            build(weights=folder)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet81", "got the model 'resnet81', expected one of timm .*did you mean .*resnet"),
        ("resnet18.a9", "got the weights 'a9' of resnet18, expected one of .*a1_in1k"),
    ],
)
def test_unknown_models_are_refused(model: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(model=model)


def test_without_a_network_the_error_says_what_to_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's own switch makes it refuse to connect."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError) as raised:
        kshot.encoder("timm:resnet18.a1_in1k", SPEC)
    for text in ("https://huggingface.co/timm/resnet18.a1_in1k", "model.safetensors", "encoder.weights=FOLDER"):
        assert text in str(raised.value)


def test_a_run_records_the_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``timm:NAME`` and the folder of the weights are options as all others."""
    encoder = kshot.encoder(f"timm:{NET}", SPEC, weights=folder)
    how = kshot.registry.built(encoder)
    assert how is not None
    assert how.portable
    assert how.options == {"model": NET, "weights": str(folder)}
