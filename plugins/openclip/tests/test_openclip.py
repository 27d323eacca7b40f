"""Models of OpenCLIP embed as OpenCLIP does, with weights of a file or a folder; wrong ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F

import kshot
from kshot.errors import DataError, OptionError
from kshot_openclip import zero_shot

SPEC = kshot.TaskSpec(kind="classification", input_shape=(3, 40, 40), way=2, shot=1, query=1)
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
CONFIG = {
    "model_cfg": {
        "embed_dim": 12,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": MEAN, "std": STD},
}


@pytest.fixture(scope="module")
def trained() -> Any:
    """A small model with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return open_clip.CLIP(**CONFIG["model_cfg"]).eval()


@pytest.fixture
def folder(tmp_path: Path, trained: Any) -> Path:
    """The same model in a folder, as the hub has them."""
    made = tmp_path / "weights"
    made.mkdir()
    torch.save(trained.state_dict(), made / "open_clip_pytorch_model.bin")
    (made / "open_clip_config.json").write_text(json.dumps(CONFIG))
    return made


def build(**options: Any) -> torch.nn.Module:
    return kshot.encoder("openclip", SPEC, **{"model": "ViT-B-32", **options})


def test_embeddings_are_those_of_openclip(folder: Path, trained: Any) -> None:
    """Of pictures that are resized and normalised as the folder says."""
    x = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    resized = F.interpolate(x, (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = trained.encode_image((resized - mean) / std)
        assert torch.allclose(build(weights=folder)(x), expected, atol=1e-5)


def test_what_tasks_suit(folder: Path) -> None:
    """The size is known before the weights are loaded."""
    options = kshot.registry.load("openclip", "encoders").task_options  # type: ignore[attr-defined]
    assert options(model="ViT-L-14-336") == {"size": 336, "mode": "RGB", "fit": "crop"}
    assert options(model="any", weights=folder)["size"] == 32


def test_tune_head_trains_the_last_block(folder: Path) -> None:
    trainable = {name for name, p in build(weights=folder, tune="head").named_parameters() if p.requires_grad}
    assert trainable
    assert all(name.startswith("net.visual.transformer.resblocks.1.") for name in trainable)


def test_names_of_classes_classify_as_clip_does(folder: Path, trained: Any, tmp_path: Path) -> None:
    """Probabilities are the softmax of scale * cosine; pictures are files."""
    pytest.importorskip("kshot_imagefolder")
    from PIL import Image

    rng = np.random.default_rng(0)
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for path in files:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    names = ["newt", "crane", "red fox"]
    classifier = zero_shot(names, model="local", weights=folder, template="a drawing of {}")
    pixels = torch.stack([torch.from_numpy(np.asarray(Image.open(f)).copy()) for f in files]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    tokens = open_clip.tokenize([f"a drawing of {name}" for name in names], context_length=16)
    with torch.no_grad():
        pictures = F.normalize(trained.encode_image((pixels - mean) / std), dim=1)
        texts = F.normalize(trained.encode_text(tokens), dim=1)
        expected = (trained.logit_scale.exp() * pictures @ texts.T).softmax(1)
    assert np.allclose(classifier.predict(files).probabilities, expected, atol=5e-3)  # examples are kept in float16
    with pytest.raises(OptionError, match=r"expected a sentence with \{\} for the name"):
        zero_shot(names, model="local", weights=folder, template="a photo")


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    """Some or all of the weights are missing."""
    state = torch.load(folder / "open_clip_pytorch_model.bin")
    state.pop("visual.ln_post.weight")
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(DataError, match=r"weights can't be read as weights of 'ViT-B-32'"):
        build(weights=folder)
    with pytest.raises(DataError, match=r"model.bin can't be read as weights of 'RN50'"):
        build(model="RN50", weights=folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(DataError, match=r"weights can't be read as weights of"):
        build(weights=folder)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("code of the file was run",)


def test_no_code_of_a_file_is_run(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"layer": Evil()}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(DataError, match="can't be read as weights"):
        build(weights=folder)
    assert "code of the file was run" not in capfd.readouterr().out


def test_a_folder_without_a_right_configuration_is_refused(folder: Path, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"model_cfg": 3}'):
        (folder / "open_clip_config.json").write_text(text)
        with pytest.raises(DataError, match=r"open_clip_config.json can't be used .*as the hub has them"):
            build(weights=folder)
    with pytest.raises(DataError, match="which does not exist, expected a file of weights, or a folder"):
        build(weights=tmp_path / "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "ViT-B-23", "pretrained": "openai"}, "got the model 'ViT-B-23', .*did you mean .*ViT-B-32"),
        ({"pretrained": "openia"}, "got the weights 'openia' of ViT-B-32, expected one of openai"),
        ({}, "got no name of weights, expected one of openai"),
    ],
)
def test_unknown_models_and_weights_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(**options)


def test_without_a_network_the_error_says_what_to_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub's own switch makes it refuse to connect."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError) as raised:
        build(pretrained="laion2b_s34b_b79k")
    for text in ("https://huggingface.co/laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "encoder.weights=FILE"):
        assert text in str(raised.value)


def test_a_run_records_how_it_was_built(folder: Path) -> None:
    encoder = kshot.encoder("openclip:ViT-B-32", SPEC, weights=folder)
    how = kshot.registry.built(encoder)
    assert how is not None
    assert how.portable
    assert how.options == {"model": "ViT-B-32", "weights": str(folder)}
