"""A plugin as it should be."""

from typing import Literal


class GoodTasks:
    """Tasks of no content, with typed options.

    Args:
        way: classes an episode.
    """

    spec = None

    def __init__(self, way: int = 5, *, noise: float = 0.0, order: Literal["random", "sorted"] = "random"):
        self.way, self.noise, self.order = way, noise, order

    def sample(self, split, indices):
        return split, list(indices)
