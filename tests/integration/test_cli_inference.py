"""Files in, classes out: predict, embed and verify with a real run, on drawings of characters it has never seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import kshot
from kshot.cli import main
from kshot.errors import DataError

pytest.importorskip("kshot_protonet")
pytest.importorskip("kshot_omniglot")
Image = pytest.importorskip("PIL.Image")

WAY, SHOT = 4, 2


def cli(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on the characters inside the plugin."""
    folder = tmp_path_factory.mktemp("run") / "protonet"
    settings = ("--iterations=40", "--training.way=10", "--evaluate.episodes=5", "--backend.threads=1", "--quiet")
    done = cli("train", "protonet", "omniglot", "--tasks.protocol=embedded", f"--run={folder}", *settings)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """support/A..D with two drawings each of test characters, and new/A.png.. with another of each."""
    folder = tmp_path_factory.mktemp("drawings")
    tasks = kshot.tasks("omniglot", way=WAY, shot=SHOT, query=1, protocol="embedded")
    episode = tasks.sample("test", [3])

    def save(x: torch.Tensor, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        ink = np.rint(255 * (1 - x[0].numpy())).astype(np.uint8)
        Image.fromarray(ink).save(path)

    for i, (x, y) in enumerate(zip(episode.support.x[0], episode.support.y[0].tolist(), strict=True)):
        save(x, folder / "support" / "ABCD"[y] / f"{i}.png")
    for x, y in zip(episode.query.x[0], episode.query.y[0].tolist(), strict=True):
        save(x, folder / "new" / f"{'ABCD'[y]}.png")
    return folder


def test_predictions_are_those_of_the_same_support_in_code(run: Path, drawings: Path) -> None:
    files = sorted((drawings / "new").iterdir())
    done = cli("predict", "--run", run, "--support", drawings / "support", *files, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["classes"] == list("ABCD")
    assert told["support"] == dict.fromkeys("ABCD", SHOT)
    assert told["repeats"] == []

    model = kshot.Trained.of_run(run)
    support = {name: sorted((drawings / "support" / name).iterdir()) for name in "ABCD"}
    expected = model.predict(support, files)
    found = np.array([p["probabilities"] for p in told["predictions"]])
    assert np.allclose(found, expected.probabilities, atol=1e-6)
    assert np.allclose(found.sum(1), 1)
    assert [p["class"] for p in told["predictions"]] == expected.labels
    assert sum(p["class"] == Path(p["file"]).stem for p in told["predictions"]) >= 3


def test_text_has_a_line_a_file(run: Path, drawings: Path) -> None:
    """One unlabelled image is enough."""
    file = drawings / "new" / "B.png"
    done = cli("predict", "--run", run, "--support", drawings / "support", file)
    assert done.exit_code == 0, done.output
    name, label, probability = done.stdout.split()
    assert (name, label in "ABCD") == (str(file), True)
    assert 0.25 <= float(probability) <= 1
    assert done.stderr == ""


def test_a_file_that_is_in_the_support_is_reported(run: Path, drawings: Path, tmp_path: Path) -> None:
    """Under whatever name: a prediction that repeats an example proves nothing."""
    again = tmp_path / "again.png"
    shutil.copy(sorted((drawings / "support" / "C").iterdir())[0], again)
    done = cli("predict", "--run", run, "--support", drawings / "support", again, drawings / "new" / "A.png")
    assert done.exit_code == 0, done.output
    assert f"note: {again} has the same bytes as" in done.stderr
    assert done.stderr.count("note:") == 1


def test_a_file_that_stands_for_two_classes_is_reported(run: Path, drawings: Path, tmp_path: Path) -> None:
    """A slip of whoever sorted them; two copies in one class are none."""
    support = tmp_path / "support"
    shutil.copytree(drawings / "support", support)
    first = sorted((support / "C").iterdir())[0]
    shutil.copy(first, support / "C" / "again.png")
    shutil.copy(sorted((support / "B").iterdir())[0], support / "A" / "slip.png")
    done = cli("predict", "--run", run, "--support", support, drawings / "new" / "A.png")
    assert done.exit_code == 0, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("note: ")
    assert line.endswith("have the same bytes, but are examples of different classes")
    assert str(support / "A" / "slip.png") in line
    told = json.loads(cli("predict", "--run", run, "--support", support, first, "--json").stdout)
    assert len(told["contradictions"]) == 1


def test_embeddings_are_written_whole(run: Path, drawings: Path, tmp_path: Path) -> None:
    files = sorted((drawings / "new").iterdir())
    done = cli("embed", "--run", run, "--output", tmp_path / "z.npz", *files)
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "z.npz", allow_pickle=False) as made:
        assert made["files"].tolist() == [str(f) for f in files]
        assert np.array_equal(made["embeddings"], kshot.Trained.of_run(run).embed(files))
        assert made["embeddings"].shape == (WAY, 64)
    assert list(tmp_path.iterdir()) == [tmp_path / "z.npz"]


def test_verify_says_distance_threshold_and_decision(run: Path, drawings: Path) -> None:
    a, b = drawings / "new" / "A.png", drawings / "new" / "B.png"
    told = json.loads(cli("verify", "--run", run, a, a, "--json").stdout)
    assert (told["distance"], told["same"]) == (0, True)
    assert (told["threshold"]["chosen"], told["threshold"]["trained_on"]) == ("val", "train")
    assert 0.6 < told["threshold"]["accuracy"] <= 1
    distance = json.loads(cli("verify", "--run", run, a, b, "--json").stdout)["distance"]
    assert distance == pytest.approx(float(kshot.Trained.of_run(run).distances([a], [b])[0]))
    for threshold, word in ((distance * 1.01, "the same"), (distance * 0.99, "different")):
        done = cli("verify", "--run", run, a, b, f"--threshold={threshold}")
        assert done.stdout.startswith(f"{word}: distance {distance:.4g}"), done.output
        assert "as given" in done.stdout


def test_predictions_need_no_data(run: Path, drawings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was brought elsewhere predicts and embeds alike; a threshold is chosen on data, or given."""
    files = sorted((drawings / "new").iterdir())
    args = ("predict", "--run", run, "--support", drawings / "support", *files, "--json")
    expected = json.loads(cli(*args).stdout)

    def gone(*args: Any, **options: Any) -> Any:
        raise DataError("the data are elsewhere")

    monkeypatch.setattr("kshot.registry.tasks", gone)
    done = cli(*args)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == expected
    assert cli("verify", "--run", run, *files[:2], "--threshold=1").exit_code == 0
    done = cli("verify", "--run", run, *files[:2])
    assert (done.exit_code, "elsewhere" in done.stderr) == (5, True)
    assert "which are not needed with --threshold" in done.stderr
    hidden = (run / "inputs.pt").rename(run / "hidden")
    done = cli(*args)  # a run of before: by its tasks
    hidden.rename(run / "inputs.pt")
    assert (done.exit_code, "elsewhere" in done.stderr) == (5, True)


def test_what_is_wrong_is_said(run: Path, drawings: Path, tmp_path: Path) -> None:
    """Each with its exit code and the name of the file, and nothing written."""
    support, file = drawings / "support", drawings / "new" / "A.png"
    one = tmp_path / "one"
    shutil.copytree(support / "A", one / "A")
    empty = tmp_path / "empty"
    shutil.copytree(support, empty)
    for picture in (empty / "B").iterdir():
        picture.unlink()
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    inside = tmp_path / "inside"
    shutil.copytree(support, inside)
    (inside / "D" / "0.png").write_text("no picture either")

    def refused(code: int, words: str, *args: object) -> None:
        done = cli(*args)
        assert done.exit_code == code, done.output
        assert words in done.stderr, done.stderr

    gone = tmp_path / "gone.png"
    refused(5, f"{gone}: there is no such file", "predict", "--run", run, "--support", support, gone)
    refused(5, "got a folder, expected a file", "predict", "--run", run, "--support", support, support)
    refused(5, "1 class folders (A), expected at least 2", "predict", "--run", run, "--support", one, file)
    refused(5, f"{empty / 'B'}: got an empty folder", "predict", "--run", run, "--support", empty, file)
    refused(5, f"{bad}: got a file that can't be read as an image", "predict", "--run", run, "--support", support, bad)
    refused(5, "0.png: got a file that can't be read as an image", "predict", "--run", run, "--support", inside, file)
    refused(6, "is not a run folder", "predict", "--run", tmp_path, "--support", support, file)
    refused(5, "does not exist; create it", "embed", "--run", run, "--output", tmp_path / "none" / "z.npz", file)
    refused(2, "Missing option '--run'", "verify", file, file)
    assert not (tmp_path / "none").exists()


def test_a_run_made_in_python_predicts(tmp_path: Path, drawings: Path) -> None:
    """What was built by name is built again, whoever trained it."""
    file = drawings / "new" / "A.png"
    tasks = kshot.tasks("omniglot", way=2, query=1, protocol="embedded")
    engine = kshot.Engine(kshot.learner("protonet", tasks.spec), tasks, run=tmp_path / "python")
    engine.train(1)
    embedded = cli("embed", "--run", tmp_path / "python", "--output", tmp_path / "z.npz", file)
    assert embedded.exit_code == 0, embedded.output
    predicted = cli("predict", "--run", tmp_path / "python", "--support", drawings / "support", file)
    assert predicted.exit_code == 0, predicted.output


def test_a_run_with_an_object_in_it_says_which_argument_is_in_the_way(tmp_path: Path, drawings: Path) -> None:
    """And how to name it."""
    file = drawings / "new" / "A.png"
    tasks = kshot.tasks("omniglot", way=2, query=1, protocol="embedded")
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 4))
    engine = kshot.Engine(kshot.learner("protonet", tasks.spec, encoder=encoder), tasks, run=tmp_path / "python")
    engine.train(1)
    done = cli("embed", "--run", tmp_path / "python", "--output", tmp_path / "z.npz", file)
    assert done.exit_code == 6
    assert "learner.encoder: got an object, expected a value that can be written down" in done.stderr
    assert 'encoder="mypackage.nets:resnet12"' in done.stderr
    assert not (tmp_path / "z.npz").exists()


def test_a_folder_of_one_s_own_is_trained_on_and_predicted_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes by colour: trained from one folder, by a relative path, and used from another."""
    pytest.importorskip("kshot_imagefolder")
    rng = np.random.default_rng(0)

    def picture(colour: np.ndarray, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        noisy = np.clip(colour + rng.normal(0, 8, (16, 16, 3)), 0, 255)
        Image.fromarray(noisy.astype(np.uint8)).save(path)

    for c in range(12):
        colour = rng.integers(0, 256, 3)
        for i in range(4):
            picture(colour, tmp_path / "own" / f"class {c}" / f"{i}.png")
    for name, colour in (("rot", [200, 20, 20]), ("grün", [20, 200, 20])):
        picture(np.array(colour), tmp_path / "known" / name / "a.png")
        picture(np.array(colour), tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    sizes = ("--tasks.size=16", "--tasks.way=2", "--tasks.query=2", "--training.way=4", "--training.query=2")
    few = ("--iterations=20", "--evaluate.episodes=5", "--backend.threads=1", "--quiet")
    done = cli("train", "protonet", "imagefolder", "--tasks.root=own", *sizes, *few, "--run=run")
    assert done.exit_code == 0, done.output
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = cli("predict", "--run=../run", "--support=../known", "../rot.png", "../grün.png", "--json")
    assert done.exit_code == 0, done.output
    assert [p["class"] for p in json.loads(done.stdout)["predictions"]] == ["rot", "grün"]
