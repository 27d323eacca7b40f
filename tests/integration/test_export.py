"""A classifier as an ONNX file gives the answers of the classifier, and says how its inputs are prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import kshot
from kshot.cli import main
from kshot.errors import OptionError, PluginError, RunError
from kshot.runs import exporting
from kshot.runs.classifier import Classifier, fitted
from kshot.runs.classifier_file import load
from kshot.runs.exporting import export, inputs_of, metadata

onnxruntime = pytest.importorskip("onnxruntime", reason="needs kshot[onnx]")
pytest.importorskip("onnxscript", reason="needs kshot[onnx]")

COLOURS = {"red": (150, 90, 90), "green": (90, 150, 90), "blue": (90, 90, 150)}


def vectors(learner: dict[str, Any] | None = None) -> Classifier:
    """A classifier of numbers, with four examples of each of three classes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat(4)
    centres = torch.randn(3, 8, generator=generator)
    return fitted(centres[y] + 0.8 * torch.randn(12, 8, generator=generator), y, ["ash", "birch", "cedar"], learner)


def run(path: Path, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the outputs of an ONNX file by their names."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["inputs"]
    outputs = session.run(None, {"inputs": x.numpy()})
    return dict(zip([entry.name for entry in session.get_outputs()], outputs, strict=True))


def said(path: Path) -> dict[str, Any]:
    """Return the metadata of an ONNX file."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    return {name: json.loads(value) for name, value in properties.items() if name.startswith("kshot.")}


def photos(folder: Path, size: int = 20) -> Path:
    """Write four noisy pictures of each of three colours, which are not the same in all of them."""
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(4):
            noise = rng.normal(0, 30, 3) + rng.normal(0, 60, (size, size, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("numbers", [1, 2, 30])
def test_the_graph_gives_the_probabilities_of_the_classifier(numbers: int, tmp_path_factory: Any) -> None:
    """For any number of inputs, of which one is all zeros; the names are in the order of the outputs."""
    classifier = vectors()
    path = tmp_path_factory.getbasetemp() / "vectors.onnx"
    if not path.exists():
        assert export(classifier, path).difference < 1e-5
    x = torch.randn(numbers, 8, generator=torch.Generator().manual_seed(numbers))
    x[0] *= numbers != 2
    outputs, answer = run(path, x), classifier.predict(x)
    assert outputs["probabilities"].shape == (numbers, 3)
    assert np.abs(outputs["probabilities"] - answer.probabilities).max() < 1e-5
    bounds = said(path)["kshot.plausible"]
    assert (outputs["unusual"] <= bounds["0.9"]).tolist() == answer.plausible.tolist()
    assert said(path)["kshot.classes"] == ["ash", "birch", "cedar"]
    assert said(path)["kshot.inputs"] == {"shape": ["n", 8], "range": None, "preparation": None}
    assert said(path)["kshot.estimate"] == {"correct": classifier.estimate.correct, "of": 12}  # type: ignore[union-attr]


def pooled(spec: kshot.TaskSpec) -> nn.Module:
    """Build a small encoder with batch norm, which resizes pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return kshot.nn.PictureEncoder(net, spec.input_shape, size=(16, 16))


def test_encoder_and_head_are_in_one_graph(tmp_path: Path) -> None:
    """From prepared pictures to probabilities; ``inputs_of`` prepares them as the metadata say."""
    kshot.register(pooled, name="pooled-vectors", group="encoders")
    folder, mine, path = photos(tmp_path / "photos"), tmp_path / "mine.kshot", tmp_path / "mine.onnx"
    arguments = ["fit", str(folder), "-o", str(mine), "--encoder=pooled-vectors", "--tasks.size=12"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    outcome = CliRunner().invoke(main, ["export", str(mine), "-o", str(path), "--json"])
    assert outcome.exit_code == 0, outcome.output
    assert json.loads(outcome.stdout)["inputs"] == [3, 12, 12]
    files = sorted(folder.glob("*/*.png"))
    classifier = load(mine)
    prepare = inputs_of(classifier)
    assert prepare is not None
    probabilities = run(path, prepare(files))["probabilities"]
    expected = classifier.predict(files).probabilities
    assert np.abs(probabilities - expected).max() < 1e-4
    assert expected.max(1).min() < 0.95, "the comparison says nothing if all probabilities are 0 or 1"
    description = said(path)
    assert description["kshot.inputs"]["shape"] == ["n", 3, 12, 12]
    assert description["kshot.inputs"]["range"] == [0.0, 1.0]
    assert description["kshot.inputs"]["preparation"]["options"] == {"mode": "RGB", "size": [12, 12], "fit": "squeeze"}
    assert description["kshot.encoder"]["name"] == "pooled-vectors"
    printed = CliRunner().invoke(main, ["export", str(mine), "-o", str(path)]).output
    assert printed.startswith(f"{path}: from inputs [n, 3, 12, 12] to probabilities [n, 3]")


def test_pixels_without_an_encoder_are_flattened_by_the_graph(tmp_path: Path) -> None:
    """Then the inputs are the prepared pictures too."""
    from kshot.runs.fitting import fit

    classifier = fit(photos(tmp_path / "photos"), encoder="none", tasks={"name": "imagefolder", "size": 5})
    assert export(classifier, tmp_path / "mine.onnx").inputs == (3, 5, 5)
    assert said(tmp_path / "mine.onnx")["kshot.inputs"]["preparation"]["options"]["size"] == [5, 5]


@pytest.mark.parametrize("name", ["protonet", "linear-probe"])
def test_learners_that_compute_with_tensors_are_exported(name: str, tmp_path: Path) -> None:
    """The adapted learner is a part of the graph."""
    from kshot.runs.fitting import on_inputs

    pytest.importorskip(f"kshot_{name.replace('-', '_')}")
    classifier = vectors(on_inputs({"name": name}))
    export(classifier, tmp_path / "mine.onnx")
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    difference = run(tmp_path / "mine.onnx", x)["probabilities"] - classifier.predict(x).probabilities
    assert np.abs(difference).max() < 1e-5
    assert said(tmp_path / "mine.onnx")["kshot.learner"]["name"] == name


@pytest.mark.slow
def test_efficientnet_lite_is_exported(tmp_path: Path) -> None:
    """Photos of the size of the network, within the stated tolerance."""
    pytest.importorskip("kshot_efficientnet_lite")
    from kshot.runs.fitting import fit

    folder = photos(tmp_path / "photos", 64)
    classifier = fit(folder, encoder="efficientnet-lite")
    assert export(classifier, tmp_path / "mine.onnx").difference < exporting.TOLERANCE
    files = sorted(folder.glob("*/*.png"))[::5]
    probabilities = run(tmp_path / "mine.onnx", inputs_of(classifier)(files))["probabilities"]  # type: ignore[misc]
    assert np.abs(probabilities - classifier.predict(files).probabilities).max() < exporting.TOLERANCE


class Refusing(nn.Module):
    """Classify by numpy, which a graph can't contain; or declare that queries depend on each other."""

    needs = kshot.Needs(kinds=("classification",), variable_way=True)

    def __init__(self, spec: kshot.TaskSpec, *, joint: bool = False) -> None:
        super().__init__()
        if joint:
            self.needs = attrs.evolve(type(self).needs, queries="joint")

    def meta_gradient(self, episodes: kshot.Episode) -> kshot.Metrics:
        return {}

    def adapt(self, support: kshot.Support) -> kshot.Predictor:
        return lambda x: torch.from_numpy(np.array(x[..., : support.way or 0].tolist(), np.float32))


@pytest.mark.parametrize(
    ("joint", "message"),
    [
        (False, r"got the learner 'refusing', which torch can't export \(.*expected one that computes with tensors"),
        (True, "got the learner 'refusing', whose prediction of an example depends on the examples beside it"),
    ],
)
def test_heads_that_cannot_be_exported_are_refused(joint: bool, message: str, tmp_path: Path) -> None:
    """With their name; an earlier file stays as it was."""
    kshot.register(Refusing, name="refusing")
    path = tmp_path / "mine.onnx"
    path.write_bytes(b"before")
    with pytest.raises(PluginError, match=message):
        export(vectors({"name": "refusing", "joint": joint}), path)
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.onnx"]


def test_a_graph_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared by onnxruntime first, here with another classifier."""
    other = attrs.evolve(vectors(), temperature=2 * vectors().temperature)
    original = exporting._difference
    monkeypatch.setattr(exporting, "_difference", lambda content, _, encoder, x: original(content, other, encoder, x))
    with pytest.raises(PluginError, match=r"differ by 0\.\d+ from those of the classifier, expected at most 0\.001"):
        export(vectors(), tmp_path / "mine.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["onnxscript", "onnxruntime"])
def test_missing_packages_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(PluginError, match=rf"got no package '{name}', .*pip install 'kshot\[onnx\]'"):
        export(vectors(), tmp_path / "mine.onnx")


def test_other_files_than_onnx_are_refused(tmp_path: Path) -> None:
    """Before anything is computed."""
    with pytest.raises(OptionError, match=r"expected a name that ends in \.onnx"):
        export(vectors(), tmp_path / "mine.pt")
    with pytest.raises(RunError, match="does not exist"):
        export(vectors(), tmp_path / "none" / "mine.onnx")


def test_bounds_that_need_more_examples_are_null() -> None:
    """Then every class is plausible."""
    few = fitted(torch.eye(4), torch.tensor([0, 0, 1, 1]), ["ash", "birch"])
    assert json.loads(metadata(few)["kshot.plausible"]) == {"0.8": few.unusual.max(), "0.9": None, "0.95": None}
