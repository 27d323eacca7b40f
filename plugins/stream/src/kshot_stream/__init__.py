"""A view that turns classification tasks into streams of examples whose labels arrive one step late."""

from kshot_stream.stream import Stream

__all__ = ["Stream"]
