"""Provide the two built-in hooks: ``progress``, a progress bar, and ``metrics``, the log of metrics."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from kshot._engine.hook_specs import hookimpl
from kshot._engine.run_folder import advice, write_atomically
from kshot.errors import RunError

if TYPE_CHECKING:
    from kshot._engine.result import Result
    from kshot.protocols import EngineView


log = logging.getLogger("kshot.runs")


class Progress:
    """Show a progress bar on standard error, or print lines if standard error is not a terminal.

    What can't be shown does not end the training: if standard error is closed, full or gone, the rest is not shown.

    Args:
        seconds: least number of seconds between two lines, if standard error is not a terminal.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._bar: Any = None
        self._shown = 0.0
        self._gone = False  # whether showing has failed

    @hookimpl
    def run_start(self, engine: EngineView, iteration: int, iterations: int) -> None:
        self._try(lambda: self._open(iterations, "training", iteration))

    @hookimpl
    def iteration_end(self, engine: EngineView, iteration: int, metrics: Mapping[str, float]) -> None:
        if self._bar is not None:
            self._try(lambda: self._show(iteration, metrics))

    @hookimpl
    def evaluation_progress(self, engine: EngineView, done: int, episodes: int) -> None:
        self._try(lambda: self._show_evaluation(done, episodes))

    @hookimpl
    def evaluation_end(self, engine: EngineView, iteration: int, result: Result) -> None:
        if self._bar is not None and self._bar.label == "evaluating":
            self._try(self._close)

    @hookimpl
    def run_end(self, engine: EngineView, iteration: int, error: BaseException | None) -> None:
        self._try(lambda: self._end(error))

    def _try(self, show: Callable[[], None]) -> None:
        """Call ``show``, unless showing has failed before; log the first failure, and raise none."""
        if self._gone:
            return
        try:
            show()
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            self._gone, self._bar = True, None
            log.warning("progress: standard error can't be written (%s), so no more progress is shown", error)

    def _show(self, iteration: int, metrics: Mapping[str, float]) -> None:
        # Update a terminal at most ten times per second.
        now, terminal = time.monotonic(), self._terminal
        if now - self._shown < (0.1 if terminal else self.seconds):
            return
        self._shown = now
        text = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if terminal:
            self._bar.current_item = text
            self._bar.update(iteration - self._bar.pos)
        else:
            print(f"iteration {iteration} of {self._bar.length}  {text}", file=sys.stderr, flush=True)

    def _show_evaluation(self, done: int, episodes: int) -> None:
        if self._terminal and self._bar is None:
            self._open(episodes, "evaluating", 0)
        if self._terminal and self._bar is not None and self._bar.label == "evaluating":
            self._bar.update(done - self._bar.pos)

    def _end(self, error: BaseException | None) -> None:
        if self._terminal and self._bar is not None and error is None:
            self._bar.update(self._bar.length - self._bar.pos)
        self._close()

    @property
    def _terminal(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()

    def _open(self, length: int, label: str, at: int) -> None:
        import click

        if sys.stderr is None:  # closed before Python was started
            self._gone = True
            return
        self._bar = click.progressbar(
            length=length, label=label, file=sys.stderr, show_pos=True, item_show_func=lambda item: item or ""
        )
        self._shown = 0.0
        if self._terminal:
            self._bar.__enter__()
            self._bar.update(at)

    def _close(self) -> None:
        if self._bar is not None and self._terminal:
            self._bar.__exit__(None, None, None)
        self._bar = None


class MetricsLog:
    """Append metrics to the run folder's ``metrics.jsonl``; do nothing in a run without a folder.

    A line is ``{"iteration": outer steps taken, **metrics}``, or for an evaluation ``{"iteration": ..., "split": ...,
    **mean scores}``. No times are written, so that a resumed run writes the same bytes as an uninterrupted one.

    Raises:
        RunError: while training, if the file can't be written.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None

    @hookimpl
    def run_start(self, engine: EngineView, iteration: int, iterations: int) -> None:
        if engine.folder is None:
            return
        path = engine.folder.path / "metrics.jsonl"
        try:
            cut_back(path, iteration)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise RunError(f"could not open {path}: {error}; {advice(error)}, then resume the run") from error

    # First of all hooks: a line must not be missing because another hook has stopped the run.
    @hookimpl(tryfirst=True)
    def iteration_end(self, engine: EngineView, iteration: int, metrics: Mapping[str, float]) -> None:
        self._write({"iteration": iteration, **metrics})

    @hookimpl
    def evaluation_end(self, engine: EngineView, iteration: int, result: Result) -> None:
        means = {n: v for n in result.scores if np.ndim(v := result.means(n).tolist()) == 0}
        self._write({"iteration": iteration, "split": result.split, **means})

    @hookimpl
    def run_end(self, engine: EngineView, iteration: int, error: BaseException | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        content = json.dumps(line).encode() + b"\n"
        try:
            # A file without a buffer may write less than it is given, when the disk is nearly full.
            while content:
                content = content[self._file.write(content) or 0 :]
        except OSError as error:
            raise RunError(
                f"could not write {self._file.name}: {error}; earlier lines and checkpoints are unchanged: "
                f"{advice(error)}, then resume the run"
            ) from error


def cut_back(path: Path, iteration: int) -> None:
    """Remove from ``path`` the lines after ``iteration`` outer steps, and a last line that was not completed."""
    if not path.is_file():
        return
    kept = []
    content = path.read_bytes()
    for line in content.splitlines(keepends=True):
        try:
            keep = line.endswith(b"\n") and json.loads(line)["iteration"] <= iteration
        except (ValueError, KeyError, TypeError, RecursionError):  # not a line that this hook wrote
            keep = False
        if keep:
            kept.append(line)
    if b"".join(kept) != content:
        write_atomically(path, lambda file: file.write(b"".join(kept)))
