"""Imitation tasks: demonstrations show which of several coloured objects to reach, and rollouts measure success."""

from kshot_reach2d.environment import Environment
from kshot_reach2d.tasks import Reach2D

__all__ = ["Environment", "Reach2D"]
