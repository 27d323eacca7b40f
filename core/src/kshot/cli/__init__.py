"""The command line. ``main`` is the entry point; everything heavy is imported inside the commands."""

from kshot.cli.commands import main

__all__ = ["main"]
