"""Print the outcome of a training or an evaluation, and how to go on after an interruption."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kshot.cli.console import INTERRUPTED, discard, print_json, say, tell
from kshot.runs.launch import processes

if TYPE_CHECKING:
    from kshot.runs.run import Run

WIDTH = 100
"""Characters of the widest confusion table that is printed."""


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


def confusion_lines(outcome: Mapping[str, Any]) -> list[str]:
    """Return the lines that say how predictions compare with the true classes, see ``kshot.cli.fitting.judgement``.

    The confusion table is left out if it is wider than ``WIDTH``; then the most frequent confusions are listed.
    """
    from kshot.runs.confidence import share_interval

    correct, of = outcome["accuracy"]["correct"], outcome["accuracy"]["of"]
    low, high = share_interval(correct, of)
    lines = [
        f"accuracy: {100 * correct / of:.0f} % of {of} files (95 % interval: {100 * low:.0f} to {100 * high:.0f} %)"
    ]
    (refused, of), (unknown, others) = outcome["none of these"].values()
    more = f", and for {unknown} of {others} in other folders" if others else ""
    lines.append(f"perhaps none of these, at coverage {outcome['coverage']:g}: for {refused} of {of} files{more}")
    rows, columns, counts = (outcome["confusion"][key] for key in ("rows", "columns", "counts"))
    cells = [
        ["true \\ predicted", *columns],
        *([name, *(str(n or ".") for n in row)] for name, row in zip(rows, counts, strict=True)),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    if sum(widths) + 2 * len(widths) <= WIDTH:
        table = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
        lines += ["  ".join([row[0].strip().ljust(widths[0]), *row[1:]]) for row in table]
    else:
        pairs = [(counts[i][j], name, to) for i, name in enumerate(rows) for j, to in enumerate(columns) if name != to]
        most = sorted(pairs, reverse=True)[:10]
        lines += [f"{n} of {sum(counts[rows.index(name)])} in {name} look like {to}" for n, name, to in most if n]
    wrong = [outcome["predictions"][i] for i in outcome["mistakes"]]
    lines += [f"  {p['file']}: looks like {p['nearest']} ({p['probability']:.3f})" for p in wrong[:10]]
    return lines
