"""The hook ``plots``: pictures of an evaluation, written beside it as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from kshot import Result, hookimpl
from kshot.errors import OptionError
from kshot.protocols import EngineView
from kshot_plots.figures import of_result, of_trace


class Plots:
    """After an evaluation, draw its scores that are curves, and what the learner explains of the first episode.

    Args:
        folder: where to write; None is ``pictures`` in the run folder, and nowhere in a run without one.
        splits: whose evaluations to draw; validation would draw again and again.
        dpi: dots an inch.

    Raises:
        OptionError: no positive ``dpi``.
    """

    def __init__(self, folder: Path | None = None, splits: Sequence[str] = ("test",), dpi: int = 120) -> None:
        if dpi < 1:
            raise OptionError(f"plots: dpi is {dpi}, expected a positive number")
        self.folder, self.splits, self.dpi = folder, tuple(splits), dpi

    @hookimpl
    def evaluation_end(self, engine: EngineView, iteration: int, result: Result) -> None:
        """Write ``<picture>.png`` for each picture there is; a later evaluation of the run gets a number."""
        within = None if engine.folder is None else engine.folder.path / "pictures"
        folder = self.folder or within
        if folder is None or result.split not in self.splits or engine.backend.world.rank:
            return
        pictures = of_result(result)
        if hasattr(engine.learner, "trace"):
            episode = engine.backend.place(engine.evaluation_tasks.sample(result.split, [0]))
            pictures |= of_trace(engine.learner.trace(episode))
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures.items():
            write(figure, unused(folder, name), self.dpi)


def write(figure: Figure, path: Path, dpi: int = 120) -> None:
    """The figure as a PNG file, whole or not at all."""
    part = path.with_suffix(".png.part")
    try:
        figure.savefig(part, format="png", dpi=dpi)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def unused(folder: Path, name: str) -> Path:
    """``name.png``, or ``name-2.png`` and so on where it is there: no picture is written over."""
    path, number = folder / f"{name}.png", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.png"
    return path
