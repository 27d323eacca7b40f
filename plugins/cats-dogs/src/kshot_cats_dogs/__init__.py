"""Make tasks of 42 recordings of cats and dogs, which are divided by recording."""

from kshot_cats_dogs.tasks import cats_dogs

__all__ = ["cats_dogs"]
