"""Provide a plugin that follows every rule."""

from typing import Literal


class GoodTasks:
    """Represent tasks without any content, with typed options.

    Args:
        way: number of classes per episode.
    """

    spec = None

    def __init__(self, way: int = 5, *, noise: float = 0.0, order: Literal["random", "sorted"] = "random"):
        self.way, self.noise, self.order = way, noise, order

    def sample(self, split, indices):
        return split, list(indices)
