"""Tiny task distributions of every kind, on which the kit tries learners; useful for any test of a learner.

Letters: B tasks per meta-batch, N way, T time, P parameters of an optimizee, E trajectories per task.

Example:
    >>> from kshot.testing import sample_tasks
    >>> tasks = sample_tasks.classification(way=3, shot=2)
    >>> tuple(tasks.sample("train", [0, 1]).support.x.shape)  # B = 2 tasks of 3 * 2 vectors of length 6
    (2, 6, 6)
"""

from __future__ import annotations

from kshot.testing.sample_tasks.choosing import INPUT_SHAPES, Factory, choices, example
from kshot.testing.sample_tasks.demonstrations import Demonstrations
from kshot.testing.sample_tasks.drawing import normals, origin_of
from kshot.testing.sample_tasks.environments import CorridorEnvironment, Corridors, PointEnvironment, Points
from kshot.testing.sample_tasks.labelled import Lines, WithMore, classification
from kshot.testing.sample_tasks.objectives import Quadratics, quadratic
from kshot.testing.sample_tasks.sequences import Copying, LabelStream

__all__ = [
    "INPUT_SHAPES",
    "Copying",
    "CorridorEnvironment",
    "Corridors",
    "Demonstrations",
    "Factory",
    "LabelStream",
    "Lines",
    "PointEnvironment",
    "Points",
    "Quadratics",
    "WithMore",
    "choices",
    "classification",
    "example",
    "normals",
    "origin_of",
    "quadratic",
]
