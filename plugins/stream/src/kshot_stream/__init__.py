"""Streams of examples whose labels come one step late: a view of any classification tasks."""

from kshot_stream.stream import Stream

__all__ = ["Stream"]
