"""Control tasks of point navigation in the plane (Finn, Abbeel & Levine 2017), for a meta-batch at once."""

from kshot_navigation2d.tasks import Environment, Navigation2D

__all__ = ["Environment", "Navigation2D"]
