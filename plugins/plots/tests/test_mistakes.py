"""The picture of the mistakes shows the numbers, the files and the classes that it was given."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kshot.runs.classifier import Answer
from kshot.runs.judging import Judged
from kshot_plots import Plots, mistakes
from kshot_plots.mistakes import COLUMNS, ROWS, shortened


def judged(folder: Path, probabilities: list[list[float]], true: list[str], names: tuple[str, ...]) -> Judged:
    """Write a picture for each example, whose brightness is its number."""
    files = [folder / f"{i}.png" for i in range(len(true))]
    for i, path in enumerate(files):
        Image.new("RGB", (12, 8), (i, i, i)).save(path)
    p = np.array(probabilities)
    return Judged(Answer(names, p, np.ones(p.shape, bool), 0.9), tuple(files), tuple(true))


@pytest.fixture
def three(tmp_path: Path) -> Judged:
    """Two cats, of which one looks like a dog; a dog that surely looks like a cat; and a newt, which is no class."""
    p = [[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]]
    return judged(tmp_path, p, ["cat", "cat", "dog", "newt"], ("cat", "dog"))


def test_the_table_has_the_counts_and_the_names(three: Judged) -> None:
    """Rows are true classes, columns predicted ones; colours are shares of a row; a line is above what is no class."""
    axes = mistakes(three).subfigs[0].axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["cat", "dog", "newt"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["cat", "dog"]
    assert axes.images[0].get_array().tolist() == [[0.5, 0.5], [1, 0], [0, 1]]
    cells = {tuple(map(int, text.get_position()))[::-1]: text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "1", (0, 1): "1", (1, 0): "1", (2, 1): "1"}
    assert axes.get_title() == "1 of 3 files right (33 %)"
    assert [line.get_ydata()[0] for line in axes.lines] == [1.5]


def test_the_sheet_has_the_most_certain_mistakes_first(three: Judged) -> None:
    """With the picture, the true class, the predicted class and its probability."""
    sheet = mistakes(three).subfigs[1]
    used = [axes for axes in sheet.axes if axes.images]
    assert [axes.get_title() for axes in used] == ["dog\n→ cat 80 %", "newt\n→ dog 70 %", "cat\n→ dog 60 %"]
    assert [int(axes.images[0].get_array()[0, 0, 0]) for axes in used] == [2, 3, 1]
    assert [axes.texts[0].get_text() for axes in used] == ["2.png", "3.png", "1.png"]


def test_only_the_worst_are_drawn_if_there_are_many(tmp_path: Path) -> None:
    """And the title says so."""
    n = COLUMNS * ROWS + 2
    many = judged(tmp_path, [[0.99 - i / 100, 0.01 + i / 100] for i in range(n)], ["dog"] * n, ("cat", "dog"))
    sheet = mistakes(many).subfigs[1]
    assert len([axes for axes in sheet.axes if axes.images]) == n - 2
    assert sheet.get_suptitle().startswith(f"the {n - 2} worst of {n} mistakes")


def test_without_mistakes_there_is_only_the_table(tmp_path: Path) -> None:
    """Nothing is below it."""
    assert len(mistakes(judged(tmp_path, [[0.9, 0.1]], ["cat"], ("cat", "dog"))).subfigs) == 1


def test_files_that_are_no_pictures_are_named(three: Judged) -> None:
    """Such as sounds."""
    three.files[2].write_bytes(b"RIFF")
    first = mistakes(three).subfigs[1].axes[0]
    assert not first.images
    assert first.texts[0].get_text() == "2.png"


def test_names_are_drawn_as_they_are_and_shortened(tmp_path: Path) -> None:
    """A $ is no formula, scripts that the font lacks raise no warning, and long names lose their middle."""
    names = ("$a$b", "日本語", "a-very-long-name-of-a-class")
    p = [[0.2, 0.7, 0.1], [0.7, 0.2, 0.1], [0.1, 0.7, 0.2]]
    Plots.mistakes(judged(tmp_path, p, list(names), names), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.width == 1080
    assert [p.name for p in tmp_path.glob("sheet*")] == ["sheet.png"]
    figure = mistakes(judged(tmp_path, p, list(names), names))
    assert [t.get_text() for t in figure.subfigs[0].axes[0].get_yticklabels()] == [*names[:2], "a-very-l…-a-class"]
    assert shortened("short") == "short"


def test_many_classes_have_no_numbers(tmp_path: Path) -> None:
    """They would be too small to read."""
    names = tuple(f"class {i}" for i in range(30))
    axes = mistakes(judged(tmp_path, np.eye(30).tolist(), list(names), names)).subfigs[0].axes[0]
    assert not axes.texts
    assert len(axes.get_xticklabels()) == 30
