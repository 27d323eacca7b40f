"""Handle what all commands share: flags of the form ``--section.name=value``, errors, warnings and output."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click

from kshot.errors import KshotError
from kshot.registry.conversion import printable
from kshot.runs.launch import rank

FLAGS = "kshot.flags"
"""Key of the section flags in ``click.Context.meta``; the value is [(dotted path, text)]."""

CHANGEABLE = ("learner", "tasks", "backend", "evaluate")
"""Sections whose options ``kshot evaluate`` can change."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""

EPILOG = """\b
Exit codes:
  0    success
  1    a run failed
  2    wrong usage: an unknown flag or option, a wrong value, a bad recipe
  3    learner and tasks do not fit
  4    a plugin is missing or unusable (doctor: any plugin is not ok)
  5    the data are missing or malformed
  6    a run folder or checkpoint is unusable
  130  interrupted

KSHOT_DEBUG=1 shows tracebacks, KSHOT_DISABLE=a,b hides plugins."""


class Group(click.Group):
    """Report errors of kshot as one message on standard error, with their exit code, and warnings as one line each."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        replace_closed()
        try:
            with plain_warnings():
                return super().invoke(ctx)
        except KshotError as error:
            if os.environ.get("KSHOT_DEBUG", "") not in ("", "0"):
                import traceback

                traceback.print_exc()
            notes = "".join(f"\n({note})" for note in getattr(error, "__notes__", ()))
            if rank() == 0 or not getattr(error, "everywhere", False):
                who = f"rank {rank()}: " if rank() else ""
                with contextlib.suppress(OSError, ValueError):
                    click.echo(printable(f"kshot: {who}{error}{notes}"), err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            say("kshot: interrupted")
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:  # of a plugin, whose message may have control characters
            import traceback

            with contextlib.suppress(OSError, ValueError):
                text = printable("".join(traceback.format_exception(error)))
                prefix = f"[rank{rank()}]: " if rank() else ""  # as torch marks the tracebacks of several processes
                click.echo("".join(f"{prefix}{line}" for line in text.splitlines(keepends=True)), err=True, nl=False)
            ctx.exit(1)
        finally:
            flush_or_discard(sys.stderr)


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Print each warning to the user once, as one line on standard error; show other warnings as usual."""
    printed: set[str] = set()
    with warnings.catch_warnings():
        before = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if category is not UserWarning:
                before(message, category, *where, **more)
            elif str(message) not in printed:
                printed.add(str(message))
                say(f"kshot: warning: {message}")

        warnings.showwarning = show
        yield


class RunCommand(click.Command):
    """A command that trains or evaluates: what ``kshot.runs`` logs is printed on standard error."""

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command with its messages shown."""
        from kshot.cli.messages import shown_messages

        with shown_messages(say):
            return super().invoke(ctx)


class SectionCommand(RunCommand):
    """Accept ``--section.name=value`` and ``--section.name value`` anywhere among the arguments of a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the section flags for the command, and let click parse the rest."""
        from kshot.cli.flags import split_flags

        flags, rest = split_flags(args)
        ctx.meta[FLAGS] = flags
        return super().parse_args(ctx, rest)


def print_json(value: Any) -> None:
    """Print one JSON document on standard output, on rank 0 only."""
    import json

    tell(json.dumps(value, indent=1, default=str))


def tell(text: str) -> None:
    """Print a line of the outcome on standard output, on rank 0 only."""
    if rank() == 0:
        click.echo(printable(text))


def say(text: str) -> None:
    """Print a message on standard error, on rank 0 only; if that is closed, full or gone, the message is lost."""
    if rank() == 0:
        with contextlib.suppress(OSError, ValueError):
            click.echo(printable(text), err=True)


def replace_closed() -> None:
    """Replace standard output and standard error, where they were closed before Python started, by the null device.

    Otherwise a file of the run would take the place of standard error, and everything that is written there.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def discard(stream: Any) -> None:
    """Let a stream that can't be written lose what it has not written yet, so that Python's end does not fail on it."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def flush_or_discard(stream: Any) -> None:
    """Flush a stream, or let it lose what it can't write."""
    try:
        stream.flush()
    except (OSError, ValueError):
        discard(stream)
