"""Sounds of cats and dogs: 42 recordings, divided by recording."""

from kshot_cats_dogs.tasks import cats_dogs

__all__ = ["cats_dogs"]
