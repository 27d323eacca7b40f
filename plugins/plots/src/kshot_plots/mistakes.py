"""Draw the confusion table of a classifier and its worst mistakes, as one picture.

Letters: N classes of the classifier, R true classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from kshot.data import pictures
from kshot.errors import DataError

COLUMNS, ROWS = 5, 3
"""Greatest number of mistakes that are drawn, beside and below each other."""

WIDTH = 9.0
"""Inches of the whole picture."""

NUMBERED = 25
"""Greatest number of classes for which each cell of the table has its number."""

LETTERS = 10
"""Letters of a name in an inch."""

SIDE = 320
"""Greatest number of pixels per side of a picture on the sheet."""


class Answer(Protocol):
    """Has the predictions of a classifier, see ``kshot.runs.classifier.Answer``."""

    names: tuple[str, ...]
    probabilities: NDArray[np.float64]


class Judged(Protocol):
    """Has predictions and true classes, see ``kshot.runs.judging.Judged``."""

    answer: Any
    files: tuple[Path, ...]
    true: tuple[str, ...]

    @property
    def rows(self) -> tuple[str, ...]: ...
    @property
    def counts(self) -> NDArray[np.int64]: ...
    @property
    def known(self) -> NDArray[np.bool_]: ...
    @property
    def correct(self) -> int: ...
    @property
    def mistakes(self) -> list[int]: ...


def mistakes(judged: Judged) -> Figure:
    """Draw the confusion table, and below it the wrong predictions of which the classifier was the most certain.

    Each cell of the table has the number of examples of a true class (row) that were given a class (column); its
    colour is the share of the row. Each mistake has the true class, the predicted class and its probability.

    Args:
        judged: predictions and true classes, as ``kshot.runs.judging.judge`` returns them.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from kshot.runs.classifier import Answer
        >>> from kshot.runs.judging import Judged
        >>> p = np.array([[0.9, 0.1], [0.8, 0.2]])
        >>> answer = Answer(("cat", "dog"), p, p > 0.5, 0.9)
        >>> len(mistakes(Judged(answer, (Path("a.png"), Path("b.png")), ("cat", "dog"))).subfigs)
        2
    """
    worst = judged.mistakes[: COLUMNS * ROWS]
    side = float(np.clip(6.5 / len(judged.answer.names), 0.2, 0.6))  # inches of a cell
    heights = [side * len(judged.rows) + 1.9]
    if worst:
        heights.append(2.4 * -(-len(worst) // COLUMNS) + 0.4)
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _table(parts[0], judged, side)
    if worst:
        _sheet(parts[1], judged, worst)
    return figure


def _table(part: SubFigure, judged: Judged, side: float) -> None:
    """Draw the confusion table, with cells of ``side`` inches."""
    counts, rows, columns = judged.counts, judged.rows, judged.answer.names
    numbered = max(counts.shape) <= NUMBERED
    size = "small" if numbered else "xx-small"
    axes = part.subplots()
    axes.imshow(counts / counts.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    short = [shortened(name) for name in columns]
    flat = max(map(len, short)) <= LETTERS * side  # names fit beside each other
    axes.set_xticks(range(len(columns)), short, fontsize=size, rotation=0 if flat else 90)
    axes.set_yticks(range(len(rows)), [shortened(name) for name in rows], fontsize=size)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)  # a $ in a name is no formula
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if numbered:
        for (i, j), n in np.ndenumerate(counts):
            if n:
                colour = "white" if n > 0.5 * counts[i].sum() else "black"
                axes.text(j, i, str(n), ha="center", va="center", fontsize=size, color=colour)
    known = sum(name in columns for name in rows)
    if known < len(rows):
        axes.axhline(known - 0.5, color="black", linewidth=0.8)  # below it are folders that are no class
    of = int(judged.known.sum())
    share = f" ({100 * judged.correct / of:.0f} %)" if of else ""
    axes.set_title(f"{judged.correct} of {of} files right{share}", fontsize="medium")


def _sheet(part: SubFigure, judged: Judged, worst: list[int]) -> None:
    """Draw the files of some mistakes, with the true and the predicted class of each."""
    grid = part.subplots(-(-len(worst) // COLUMNS), COLUMNS, squeeze=False)
    total = len(judged.mistakes)
    which = "all mistakes" if total == len(worst) else f"the {len(worst)} worst of {total} mistakes"
    part.suptitle(f"{which}: true class → predicted class and its probability", fontsize="medium")
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, i in zip(grid.flat, worst, strict=False):
        p = judged.answer.probabilities[i]
        guess = shortened(judged.answer.names[int(p.argmax())])
        title = f"{shortened(judged.true[i])}\n→ {guess} {100 * p.max():.0f} %"
        axes.set_title(title, fontsize="small", parse_math=False)
        picture = _picture(judged.files[i])
        if picture is not None:
            axes.imshow(picture)
            axes.text(0.5, -0.03, shortened(judged.files[i].name, 24), **NAME, transform=axes.transAxes)
        else:
            axes.text(0.5, 0.5, shortened(judged.files[i].name, 24), **NAME, transform=axes.transAxes)


NAME: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": "xx-small", "color": "0.4", "parse_math": False}
"""How the name of a file is written."""


def _picture(path: Path) -> NDArray[np.uint8] | None:
    """Return the picture in a file [h, w, 3], or None for a file of another kind."""
    try:
        image = pictures.read(path, least=SIDE).convert("RGB")
    except DataError:
        return None
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def shortened(name: str, most: int = 18) -> str:
    """Return a name with at most some characters, without its middle.

    Example:
        >>> shortened("a-very-long-name-of-a-class", 11)
        'a-ver…class'
    """
    if len(name) <= most:
        return name
    half = (most - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
