"""What is around every command: flags of the form ``--section.name=value``, and errors as one message."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import click

from kshot.cli.flags import FLAGS, split_flags
from kshot.errors import KshotError
from kshot.runs.launch import rank

CHANGEABLE = ("learner", "tasks", "backend", "evaluate")
"""The sections that ``kshot evaluate`` takes."""

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""

EPILOG = """\b
Exit codes:
  0    done
  1    a run failed
  2    wrong usage: an unknown flag or option, a wrong value, a bad recipe
  3    learner and tasks do not fit
  4    a plugin is missing or unusable (doctor: any is not ok)
  5    bad data
  6    a run folder or checkpoint is unusable
  130  interrupted

KSHOT_DEBUG=1 shows tracebacks, KSHOT_DISABLE=a,b hides plugins."""


class Group(click.Group):
    """Turns kshot's own errors into one message on standard error and their exit code, and warnings into a line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with plain_warnings(), shown_messages():
                return super().invoke(ctx)
        except KshotError as error:
            if os.environ.get("KSHOT_DEBUG", "") not in ("", "0"):
                import traceback

                traceback.print_exc()
            notes = "".join(f"\n({note})" for note in getattr(error, "__notes__", ()))
            if rank() == 0 or not getattr(error, "everywhere", False):
                who = f"rank {rank()}: " if rank() else ""
                click.echo(f"kshot: {who}{error}{notes}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            say("kshot: interrupted")
            ctx.exit(INTERRUPTED)


class _Lines(logging.Handler):
    """Shows what runs report as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextlib.contextmanager
def shown_messages() -> Iterator[None]:
    """Inside the block, what ``kshot.runs`` reports is shown as lines on standard error."""
    log, handler = logging.getLogger("kshot.runs"), _Lines()
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Within it a warning to the user is a line on standard error, each said once; others are shown as they were."""
    said: set[str] = set()
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if category is not UserWarning:
                before(message, category, *where, **more)
            elif str(message) not in said:
                said.add(str(message))
                say(f"kshot: warning: {message}")

        warnings.showwarning = show
        yield


class SectionCommand(click.Command):
    """A command that takes ``--section.name=value`` and ``--section.name value``, wherever they stand."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the section flags for the command, and let click parse the rest."""
        flags, rest = split_flags(args)
        ctx.meta[FLAGS] = flags
        return super().parse_args(ctx, rest)


def print_json(value: Any) -> None:
    """One JSON document on standard output, from rank 0."""
    import json

    tell(json.dumps(value, indent=1, default=str))


def tell(text: str) -> None:
    """A line of the outcome, on standard output, from rank 0."""
    if rank() == 0:
        click.echo(text)


def say(text: str) -> None:
    """A line for people, on standard error, from rank 0."""
    if rank() == 0:
        click.echo(text, err=True)
