"""Provide the command line, ``kshot``; ``main`` is the entry point. Commands import torch only when they run."""

from kshot.cli import using as using  # adds its commands
from kshot.cli.commands import main

__all__ = ["main"]
