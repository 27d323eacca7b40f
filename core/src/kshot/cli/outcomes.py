"""Print the outcome of a training or an evaluation, and how to go on after an interruption."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kshot.cli.console import INTERRUPTED, discard, print_json, say, tell
from kshot.runs.launch import processes

if TYPE_CHECKING:
    from kshot.runs.run import Run


def finish(ctx: click.Context, work: Callable[[], Run], run: Path | None, json_: bool | None) -> Run:
    """Run a training, print its outcome and return it; after Ctrl-C, print how to resume it.

    Args:
        work: trains and returns the run.
        run: the run folder, or None.
        json_: whether to print JSON; None prints nothing.
    """
    try:
        outcome = work()
    except KeyboardInterrupt:
        begun = run is not None and (run / "config.json").is_file()
        how = "torchrun ... -m kshot" if processes() > 1 else "kshot"
        say(f"\nkshot: interrupted; continue with: {how} resume {run}" if begun else "\nkshot: interrupted")
        ctx.exit(INTERRUPTED)
    try:
        if json_ is not None:
            tell_outcome(outcome, json_)
        if outcome.folder is not None and json_ is False:
            tell(f"run: {outcome.folder}")
    except OSError as error:
        # The result is on the disk, and more seeds may follow: a reader that has gone must not end them.
        if outcome.folder is None:
            raise
        discard(sys.stdout)
        say(f"kshot: standard output can't be written ({error}); the result is in {outcome.folder / 'result.json'}")
    return outcome


def tell_outcome(outcome: Run, json_: bool) -> None:
    """Print the results of a run, as JSON or as text."""
    if json_:
        print_json(outcome.to_dict(episodes=False))
    else:
        tell(str(outcome))
