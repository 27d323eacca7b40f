"""The hook ``plots``, which writes pictures of an evaluation as PNG files into the run folder."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from kshot import Result, hookimpl
from kshot.errors import OptionError
from kshot.protocols import EngineView
from kshot_plots.figures import of_result, of_trace
from kshot_plots.mistakes import Judged, mistakes


class Plots:
    """Draw the curves of an evaluation, and the learner's trace of the first episode, after the evaluation.

    Args:
        folder: the folder to write to. None is ``pictures`` in the run folder; without a run folder, nothing is drawn.
        splits: the splits whose evaluations are drawn. Validation is left out by default, because it happens often.
        dpi: dots per inch.

    Raises:
        OptionError: ``dpi`` is not positive.

    Example:
        >>> from kshot_plots import Plots
        >>> Plots(splits=["val", "test"]).splits
        ('val', 'test')
    """

    def __init__(self, folder: Path | None = None, splits: Sequence[str] = ("test",), dpi: int = 120) -> None:
        if dpi < 1:
            raise OptionError(f"plots: got dpi {dpi}, expected a positive number")
        self.folder, self.splits, self.dpi = folder, tuple(splits), dpi

    @staticmethod
    def mistakes(judged: Judged, path: Path) -> None:
        """Write the confusion table and the worst mistakes of a classifier, for ``kshot predict --mistakes``."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # of names in scripts that the font lacks
            write(mistakes(judged), path)

    @hookimpl
    def evaluation_end(self, engine: EngineView, iteration: int, result: Result) -> None:
        """Write ``<picture>.png`` for each picture; those of a later evaluation get a number."""
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
    """Write the figure as a PNG file; if drawing fails, no incomplete file remains."""
    part = path.with_suffix(".png.part")
    try:
        figure.savefig(part, format="png", dpi=dpi)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def unused(folder: Path, name: str) -> Path:
    """Return the path ``name.png``, or ``name-2.png`` and so on if it exists, so that no picture is overwritten."""
    path, number = folder / f"{name}.png", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.png"
    return path
