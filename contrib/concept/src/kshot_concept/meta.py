"""What the meta-learner M is given: the specification and the episodes of tasks whose inputs are concepts.

Letters: B meta-batch, S support size, n queries.
"""

from __future__ import annotations

import inspect
from typing import Any

import attrs
from torch import Tensor

from kshot import Episode, Examples, TaskSpec
from kshot.checks import mismatches
from kshot.errors import MisfitError


def concept_spec(spec: TaskSpec, shape: tuple[int, ...], *, same: bool = False) -> TaskSpec:
    """Return the specification of the same tasks whose inputs are concepts.

    Args:
        spec: of the tasks.
        shape: of one concept.
        same: whether the concepts are the inputs, so that they have their range.

    Example:
        >>> concept_spec(TaskSpec(kind="regression", input_shape=(2,), shot=1, query=1), (64,)).input_shape
        (64,)
    """
    return attrs.evolve(
        spec,
        input_shape=shape,
        input_range=spec.input_range if same else None,
        provides=spec.provides - {"external"},
        external_classes=(),
    )


def on_concepts(episodes: Episode, support: Tensor, query: Tensor, unlabelled: Tensor | None = None) -> Episode:
    """Return the episodes with concepts in place of the inputs, and without external examples."""
    return attrs.evolve(
        episodes,
        support=attrs.evolve(episodes.support, x=support, unlabelled=unlabelled),
        query=Examples(query, episodes.query.y, episodes.query.source),
        external=None,
    )


def check_meta(meta: Any, spec: TaskSpec) -> None:
    """Raise MisfitError unless a learner can be the meta-learner of tasks of concepts, whose specification is given."""
    who = type(meta).__name__
    if reasons := mismatches(meta.needs, spec):
        raise MisfitError(
            f"concept: got a meta-learner {who} that does not fit tasks of concepts: {'; '.join(reasons)}"
        )
    if inspect.isgeneratorfunction(type(meta).meta_gradient):
        raise MisfitError(
            f"concept: got a meta-learner {who} that takes several outer steps on a meta-batch, expected one, in which "
            "the generator takes part; choose another meta-learner, such as maml"
        )
