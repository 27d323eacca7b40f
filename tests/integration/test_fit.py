"""``kshot fit`` and ``kshot predict``: from a folder of pictures to a file, and from the file to answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import kshot
from kshot.cli import main

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def picture(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    """Write a picture of a colour with noise."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(np.array(colour) + rng.normal(0, 30, (20, 24, 3)), 0, 255).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes with five, four and three pictures, and one new picture of each beside them."""
    for i, (name, colour) in enumerate(COLOURS.items()):
        for j in range(5 - i):
            picture(tmp_path / "photos" / name / f"{j}.png", colour, 10 * i + j)
        picture(tmp_path / "new" / f"{name}.png", colour, 100 + i)
    return tmp_path / "photos"


def kshot_cli(*args: object) -> Result:
    """Run a command."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def fitted(photos: Path, *more: object) -> Path:
    """Fit raw pictures of 8 x 8 pixels and return the file."""
    path = photos.parent / "mine.kshot"
    outcome = kshot_cli("fit", photos, "-o", path, "--encoder=none", "--tasks=imagefolder", "--tasks.size=8", *more)
    assert outcome.exit_code == 0, outcome.output
    return path


def test_a_folder_becomes_a_file_that_predicts_new_pictures(photos: Path) -> None:
    """The folder is not needed any more."""
    path = fitted(photos)
    shutil.rmtree(photos)
    new = photos.parent / "new"
    outcome = kshot_cli("predict", path, *sorted(new.iterdir()), "--json", "--coverage=0.8")
    assert outcome.exit_code == 0, outcome.output
    said = json.loads(outcome.stdout)
    assert [p["class"] for p in said["predictions"]] == ["blue", "green", "red"]
    assert all(p["plausible"] == [p["class"]] for p in said["predictions"])
    assert all(abs(sum(p["probabilities"]) - 1) < 1e-9 for p in said["predictions"])
    assert path.stat().st_size < 50_000


def test_the_estimate_and_the_mistakes_are_printed(photos: Path) -> None:
    """Twelve pictures, of which one lies in the wrong folder."""
    shutil.copy(photos.parent / "new" / "red.png", photos / "blue" / "wrong.png")
    outcome = kshot_cli("fit", photos, "-o", photos.parent / "mine.kshot", "--encoder=none")
    assert "blue (4), green (4), red (5)" in outcome.output
    assert "accuracy: 92 % of 13 examples, each left out in turn" in outcome.output
    assert "blue/wrong.png: looks like red" in outcome.output


def test_classes_are_added_extended_and_removed(photos: Path) -> None:
    """The file is changed, and the estimate printed again."""
    path = fitted(photos)
    for j in range(3):
        picture(photos.parent / "more" / f"{j}.png", (230, 230, 60), 300 + j)
    outcome = kshot_cli("fit", path, f"--add=yellow={photos.parent / 'more'}", "--remove=green")
    assert outcome.exit_code == 0, outcome.output
    assert "blue (3), red (5), yellow (3)" in outcome.output
    assert "accuracy: 100 % of 11 examples" in outcome.output
    picture(photos.parent / "new" / "yellow.png", (230, 230, 60), 400)
    answer = json.loads(kshot_cli("predict", path, photos.parent / "new" / "yellow.png", "--json").stdout)
    assert answer["predictions"][0]["nearest"] == "yellow"


def test_python_and_the_command_line_make_the_same_classifier(photos: Path) -> None:
    """And ``extended`` in Python works on files."""
    from kshot.runs.classifier_file import load
    from kshot.runs.fitting import fit

    made, read = fit(photos, encoder="none", tasks={"name": "imagefolder", "size": 8}), load(fitted(photos))
    new = sorted((photos.parent / "new").iterdir())
    assert np.array_equal(made.predict(new).probabilities, read.predict(new).probabilities)
    assert made.estimate == read.estimate


def test_a_picture_that_cannot_be_read_is_named_and_left_out_only_if_asked(photos: Path) -> None:
    """The error names it, and nothing is written."""
    (photos / "green" / "bad.png").write_bytes(b"no picture")
    path = photos.parent / "mine.kshot"
    outcome = kshot_cli("fit", photos, "-o", path, "--encoder=none")
    assert outcome.exit_code == 5
    assert "bad.png" in outcome.output
    assert not path.exists()
    outcome = kshot_cli("fit", photos, "-o", path, "--encoder=none", "--skip")
    assert outcome.exit_code == 0
    assert "left out 1 files that can't be read" in outcome.output
    assert "green (4)" in outcome.output


def test_options_of_the_tasks_need_no_name_of_the_tasks(photos: Path) -> None:
    """They are those of the plugin that reads the files."""
    path = photos.parent / "mine.kshot"
    assert kshot_cli("fit", photos, "-o", path, "--encoder=none", "--tasks.size=6").exit_code == 0
    from kshot.runs.classifier_file import load

    assert load(path).x.shape[1:] == (3, 6, 6)


def test_copies_in_two_classes_are_told(photos: Path) -> None:
    """One of the two labels must be wrong."""
    shutil.copy(photos / "red" / "0.png", photos / "blue" / "copy.png")
    outcome = kshot_cli("fit", photos, "-o", photos.parent / "mine.kshot", "--encoder=none")
    assert "blue/copy.png = red/0.png" in outcome.output


def test_one_picture_a_class_gives_no_estimate(photos: Path) -> None:
    """And says so."""
    for path in [*photos.glob("*/*.png")]:
        if path.name != "0.png":
            path.unlink()
    outcome = kshot_cli("fit", photos, "-o", photos.parent / "mine.kshot", "--encoder=none")
    assert "accuracy: no estimate, because every class has only one example" in outcome.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["PHOTOS"], "got no file to write, expected -o NAME.kshot"),
        (["PHOTOS", "-o", "mine.txt"], "expected a name that ends in .kshot"),
        (["PHOTOS", "-o", "none/mine.kshot"], "the folder none does not exist"),
        (["nothing", "-o", "mine.kshot"], "got no files in class folders"),
        (["PHOTOS", "-o", "mine.kshot", "--add=newt"], "expected NAME=FOLDER"),
        (["PHOTOS", "-o", "mine.kshot", "--remove=newt"], "got the class 'newt' to remove"),
        (["PHOTOS", "-o", "mine.kshot", "--encoder=nothing"], "no encoder is called 'nothing'"),
        (["PHOTOS", "-o", "mine.kshot", "--learner=nothing"], "no learner is called 'nothing'"),
        (["PHOTOS", "-o", "mine.kshot", "--tasks=imagefolder", "--tasks.sise=9"], "sise"),
        (["PHOTOS", "-o", "mine.kshot", "--learner.penalty=1"], "got the option 'penalty' of no plugin, expected its"),
        (["PHOTOS/red", "-o", "mine.kshot"], "got no files in class folders"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    photos: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    """No file is written."""
    monkeypatch.chdir(photos.parent)
    encoder = [] if any("encoder" in arg for arg in args) else ["--encoder=none"]
    outcome = kshot_cli("fit", *[arg.replace("PHOTOS", "photos") for arg in args], *encoder)
    assert outcome.exit_code not in (0, 1), outcome.output
    assert message in outcome.output
    assert not (photos.parent / "mine.kshot").exists()


def test_predict_needs_a_classifier_or_a_run(photos: Path) -> None:
    """The message says what is expected."""
    new = photos.parent / "new" / "red.png"
    assert "expected a classifier (NAME.kshot" in kshot_cli("predict", new).output
    assert "expected both" in kshot_cli("predict", new, "--run=x").output
    outcome = kshot_cli("predict", fitted(photos), photos.parent / "none.png")
    assert outcome.exit_code == 5
    assert "there is no such file" in outcome.output


def test_an_encoder_of_a_plugin_travels_by_name_and_digest(photos: Path) -> None:
    """Other weights than those of the fit are refused."""
    from torch import nn

    from kshot.nn import tuned
    from kshot.runs import embedded

    scale = [1.0]

    def pooled(spec: kshot.TaskSpec) -> nn.Module:
        net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * spec.input_shape[0], 6))
        nn.init.constant_(net[2].bias, scale[0])
        return tuned(net, "none")

    pooled.task_options = {"size": 12}  # type: ignore[attr-defined]
    kshot.register(pooled, name="pooled", group="encoders")
    path = photos.parent / "mine.kshot"
    assert kshot_cli("fit", photos, "-o", path, "--encoder=pooled").exit_code == 0
    new = photos.parent / "new" / "green.png"
    assert json.loads(kshot_cli("predict", path, new, "--json").stdout)["predictions"][0]["nearest"] == "green"
    scale[0] = 2.0
    embedded._view.cache_clear()
    outcome = kshot_cli("predict", path, new)
    assert outcome.exit_code == 5
    assert "got weights with the digest" in outcome.output


def test_every_way_of_reading_sounds_can_be_fitted() -> None:
    """The options are those of the tasks, with all choices, such as the waveform that an encoder of sounds needs."""
    from kshot.runs.fitting import preparation_of

    shape = preparation_of({"name": "audiofolder", "features": "wave", "rate": 8000}, None).options
    assert (shape["features"], shape["rate"], shape["seconds"]) == ("wave", 8000, 1.0)


@pytest.fixture
def labelled(photos: Path) -> Path:
    """New pictures: two of each class, of which one green one is red, and two of a class that was never seen."""
    folder = photos.parent / "labelled"
    for i, (name, colour) in enumerate(COLOURS.items()):
        for j in range(2):
            picture(
                folder / name / f"{j}.png", COLOURS["red"] if (name, j) == ("green", 1) else colour, 500 + 10 * i + j
            )
    for j in range(2):
        picture(folder / "white" / f"{j}.png", (230, 230, 230), 600 + j)
    return folder


def test_a_folder_of_classes_is_compared_with_the_predictions(photos: Path, labelled: Path) -> None:
    """Files of other folders than classes count as none of them; mistakes are sorted by certainty."""
    outcome = kshot_cli("predict", fitted(photos), labelled, "--coverage=0.8", "--json")
    assert outcome.exit_code == 0, outcome.output
    said = json.loads(outcome.stdout)
    assert said["accuracy"] == {"correct": 5, "of": 6}
    assert said["confusion"]["rows"] == ["blue", "green", "red", "white"]
    assert said["confusion"]["columns"] == ["blue", "green", "red"]
    assert said["confusion"]["counts"][:3] == [[2, 0, 0], [0, 1, 1], [0, 0, 2]]
    assert said["none of these"]["of other folders"] == [2, 2]
    assert [said["predictions"][i]["file"] for i in said["mistakes"]] == [str(labelled / "green" / "1.png")]
    assert [p["true"] for p in said["predictions"]][::2] == ["blue", "green", "red", "white"]


def test_the_confusion_table_is_printed(photos: Path, labelled: Path) -> None:
    """With the accuracy, its interval, and the mistakes."""
    lines = kshot_cli("predict", fitted(photos), labelled, "--coverage=0.8").output.splitlines()
    assert lines[0] == "accuracy: 83 % of 6 files (95 % interval: 44 to 97 %)"
    assert lines[1].endswith("of 6 files, and for 2 of 2 in other folders")
    assert lines[2].split() == ["true", "\\", "predicted", "blue", "green", "red"]
    assert lines[4].split() == ["green", ".", "1", "1"]
    assert lines[7].startswith(f"  {labelled / 'green' / '1.png'}: looks like red (")


def test_a_table_that_is_too_wide_is_a_list_of_confusions(photos: Path, labelled: Path, monkeypatch: Any) -> None:
    """The most frequent first."""
    from kshot.cli import outcomes

    monkeypatch.setattr(outcomes, "WIDTH", 20)
    lines = kshot_cli("predict", fitted(photos), labelled, "--coverage=0.8").output.splitlines()
    assert "1 of 2 in green look like red" in lines
    assert not any("true \\ predicted" in line for line in lines)


def test_a_folder_of_files_is_predicted(photos: Path) -> None:
    """In the order of their names."""
    said = json.loads(kshot_cli("predict", fitted(photos), photos.parent / "new", "--json").stdout)
    assert [Path(p["file"]).name for p in said["predictions"]] == ["blue.png", "green.png", "red.png"]
    assert "accuracy" not in said


def test_the_mistakes_are_drawn_by_the_plugin(photos: Path, labelled: Path, monkeypatch: Any) -> None:
    """One PNG file; without the plugin an error, before anything is predicted."""
    pytest.importorskip("kshot_plots")
    path = photos.parent / "mistakes.png"
    outcome = kshot_cli("predict", fitted(photos), labelled, f"--mistakes={path}")
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.splitlines()[-1] == f"{path}: the confusion table and the worst mistakes"
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width == 1080
    from kshot.runs import judging

    monkeypatch.setattr(judging, "DRAWER", "nothing")
    assert "no hook is called 'nothing'" in kshot_cli("predict", fitted(photos), labelled, f"--mistakes={path}").output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["new", "--mistakes=a.png"], "expected one folder that has a folder for each class"),
        (["labelled", "--mistakes=a.jpg"], "expected a name that ends in .png"),
        (["labelled", "--mistakes=none/a.png"], "whose folder does not exist"),
        (["elsewhere"], "got the folders newt, expected at least one that is named as a class of the classifier: blue"),
        (["empty"], "got a folder without examples"),
        (["nowhere"], "there is no such file"),
    ],
)
def test_folders_that_cannot_be_compared_are_refused(
    photos: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    """With what is expected; no picture is written."""
    path = fitted(photos)
    (photos.parent / "elsewhere").mkdir()
    (photos.parent / "empty").mkdir()
    shutil.copytree(photos / "red", photos.parent / "elsewhere" / "newt")
    monkeypatch.chdir(photos.parent)
    outcome = kshot_cli("predict", path, *args)
    assert outcome.exit_code in (2, 4, 5), outcome.output
    assert message in outcome.output
    assert not list(photos.parent.glob("*.png"))
