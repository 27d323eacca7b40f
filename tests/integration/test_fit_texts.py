"""``kshot fit`` and ``kshot predict`` on texts: of a folder, a CSV file, the command line and standard input."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from kshot.cli import main

WORDS = {"shop": ("parcel", "order", "refund"), "music": ("piano", "violin", "song"), "sky": ("rain", "cloud", "wind")}


def text_of(name: str, i: int) -> str:
    """Return a text with two of the three words of a class."""
    words = WORDS[name]
    return f"About the {words[i % 3]} and the {words[(i + 1 + i // 3) % 3]}, number {i}."


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def texts() -> Path:
    """Three classes with five, four and three texts."""
    for i, name in enumerate(WORDS):
        for j in range(5 - i):
            path = Path("texts", name, f"{j}.txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text_of(name, j), encoding="utf-8")
    return Path("texts")


def table(path: str = "texts.csv", names: tuple[str, str] = ("text", "label")) -> Path:
    """The same texts in a CSV file."""
    rows = [(text_of(name, j), name) for i, name in enumerate(WORDS) for j in range(5 - i)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])
    return Path(path)


def kshot_cli(*args: object, stdin: str | bytes = "") -> Result:
    """Run a command."""
    return CliRunner().invoke(main, [str(arg) for arg in args], input=stdin)


def classes(outcome: Result) -> list[str]:
    """Return the predicted classes of a JSON output."""
    assert outcome.exit_code == 0, outcome.output
    return [p["nearest"] for p in json.loads(outcome.stdout)["predictions"]]


def test_a_folder_of_texts_becomes_a_file_that_predicts_texts(texts: Path) -> None:
    """Files, texts on the command line, and one from standard input."""
    outcome = kshot_cli("fit", texts, "-o", "mine.kshot", "--encoder=none")
    assert outcome.exit_code == 0, outcome.output
    assert "music (4), shop (5), sky (3)" in outcome.output
    Path("new.txt").write_text("The wind and the cloud", encoding="utf-8")
    said = kshot_cli(
        "predict", "mine.kshot", "new.txt", "--text=a song and a piano", "--text=-", "--json", stdin="My\nparcel: café"
    )
    assert classes(said) == ["sky", "music", "shop"]
    files = [p["file"] for p in json.loads(said.stdout)["predictions"]]
    assert files == ["new.txt", "a song and a piano", "My parcel: café"]
    printed = kshot_cli("predict", "mine.kshot", "--text=rain").stdout
    assert printed.startswith("rain")
    assert "sky" in printed


def test_a_csv_file_makes_the_classifier_of_the_folder(texts: Path) -> None:
    """With the columns' usual names and with others; the examples are named by their lines."""
    for source, more in (
        (texts, []),
        (table(), []),
        (table("other.csv", ("said", "sort")), ["--tasks=textfolder", "--tasks.column=said"]),
    ):
        label = ["--tasks.label=sort"] if more else []
        outcome = kshot_cli("fit", source, "-o", f"{Path(source).stem}-made.kshot", "--encoder=none", *more, *label)
        assert outcome.exit_code == 0, outcome.output
        assert "music (4), shop (5), sky (3)" in outcome.output
    answers = [
        json.loads(kshot_cli("predict", f"{stem}-made.kshot", "--text=a piano in the rain", "--json").stdout)
        for stem in ("texts", "other")
    ]
    assert np.allclose(answers[0]["predictions"][0]["probabilities"], answers[1]["predictions"][0]["probabilities"])


@pytest.mark.filterwarnings("default")
def test_mistakes_and_copies_are_named_by_their_lines() -> None:
    """A song in the sky."""
    path = table()
    with open(path, "a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([text_of("music", 0), "sky"])
    outcome = kshot_cli("fit", path, "-o", "mine.kshot", "--encoder=none")
    assert "sky/line 14: looks like music" in outcome.output
    assert "got 1 texts that are copies of others (music/line 7 = sky/line 14)" in outcome.output


def test_classes_of_texts_are_added_from_folders() -> None:
    kshot_cli("fit", table(), "-o", "mine.kshot", "--encoder=none")
    Path("more").mkdir()
    for i in range(3):
        Path("more", f"{i}.txt").write_text(f"the bread and the soup {i}", encoding="utf-8")
    outcome = kshot_cli("fit", "mine.kshot", "--add=food=more", "--remove=sky")
    assert "music (4), shop (5), food (3)" in outcome.output
    assert classes(kshot_cli("predict", "mine.kshot", "--text=soup", "--json")) == ["food"]


def test_a_csv_file_of_pictures_makes_the_classifier_of_their_folder() -> None:
    """The plugin is the one that reads the files of the column ``path``."""
    rows = ["path,label"]
    for i, (name, colour) in enumerate({"red": (200, 40, 40), "blue": (40, 40, 200)}.items()):
        for j in range(3):
            rng = np.random.default_rng(10 * i + j)
            pixels = np.clip(np.array(colour) + rng.normal(0, 30, (8, 8, 3)), 0, 255).astype(np.uint8)
            path = Path("photos", name, f"{j}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            rows.append(f"{path.as_posix()},{name}")
    Path("photos.csv").write_text("\n".join(rows), encoding="utf-8")
    for source in ("photos", "photos.csv"):
        outcome = kshot_cli("fit", source, "-o", f"{Path(source).name}.kshot", "--encoder=none")
        assert outcome.exit_code == 0, outcome.output
    answers = [
        json.loads(kshot_cli("predict", f"{name}.kshot", "photos/red/0.png", "--json").stdout)["predictions"]
        for name in ("photos", "photos.csv")
    ]
    assert answers[0] == answers[1]
    refused = kshot_cli("predict", "photos.kshot", "--text=red")
    assert refused.exit_code != 0
    assert "got a text for photos.kshot, which is no classifier of texts; give files" in refused.output


def test_a_run_on_texts_predicts_text_files(texts: Path) -> None:
    """The run stores how texts become inputs."""
    outcome = kshot_cli(
        "train", "protonet", "textfolder", f"--tasks.csv={table()}", "--tasks.way=3",
        "--tasks.query=1", "--tasks.split=[0.5,0,0.5]", "--tasks.split_by=example", "--learner.encoder=identity",
        "--evaluate.episodes=5", "--run=run",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.output
    Path("new.txt").write_text("The violin and the song", encoding="utf-8")
    Path("texts.csv").unlink()
    said = kshot_cli("predict", "--run=run", f"--support={texts}", "new.txt", "--json")
    assert json.loads(said.stdout)["predictions"][0]["class"] == "music"
    assert "expected a classifier" in kshot_cli(
        "predict", "--run=run", f"--support={texts}", "new.txt", "--text=one"
    ).output  # fmt: skip


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bad.csv"], "bad.csv, line 3: got bytes that are not UTF-8"),
        (["short.csv"], "short.csv, line 2: got 1 fields, expected 2"),
        (["said.csv"], "got the columns said, sort, expected a column 'text' or 'path'; name the plugin"),
        (["missing.csv"], "missing.csv, line 2: got a path that does not exist"),
        (["none.csv"], "got no files in class folders"),
        (["texts.csv", "--tasks=textfolder", "--tasks.column=said"], "line 1: got the columns text, label"),
        (["texts.csv", "--tasks=sinusoid"], "got a CSV file and tasks 'sinusoid', expected one of imagefolder"),
        (["texts.csv", "--add=new"], "expected NAME=FOLDER"),
    ],
)
def test_what_cannot_be_fitted_is_refused(args: list[str], message: str) -> None:
    """No file is written."""
    table()
    Path("bad.csv").write_bytes(b"text,label\none,a\ncaf\xe9,b\n")
    Path("short.csv").write_text("text,label\none\n", encoding="utf-8")
    Path("said.csv").write_text("said,sort\none,a\ntwo,b\n", encoding="utf-8")
    Path("missing.csv").write_text("path,label\nno/1.png,a\nno/2.png,b\n", encoding="utf-8")
    outcome = kshot_cli("fit", *args, "-o", "mine.kshot", "--encoder=none")
    assert outcome.exit_code != 0
    assert message in outcome.output
    assert not Path("mine.kshot").exists()


def test_standard_input_in_another_encoding_is_refused() -> None:
    kshot_cli("fit", table(), "-o", "mine.kshot", "--encoder=none")
    outcome = kshot_cli("predict", "mine.kshot", "--text=-", stdin=b"one\ncaf\xe9")
    assert outcome.exit_code != 0
    assert "standard input, line 2: got bytes that are not UTF-8" in outcome.output
