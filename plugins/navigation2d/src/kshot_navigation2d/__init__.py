"""Control tasks of point navigation (Finn, Abbeel & Levine 2017), played for all tasks of a meta-batch at once."""

from kshot_navigation2d.tasks import Environment, Navigation2D

__all__ = ["Environment", "Navigation2D"]
