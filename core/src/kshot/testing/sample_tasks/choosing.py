"""Which sample tasks the kit uses for a learner with given needs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from kshot.protocols import TaskDistribution
from kshot.spec import Needs
from kshot.testing.sample_tasks.environments import Corridors, Points
from kshot.testing.sample_tasks.labelled import Lines, classification
from kshot.testing.sample_tasks.objectives import Quadratics
from kshot.testing.sample_tasks.sequences import Copying, LabelStream

Factory = Callable[[], TaskDistribution]

INPUT_SHAPES = ((6,), (1, 16, 16), (1, 28, 28), (3, 32, 32))
"""Input shapes on which classification learners are tried, in this order: vectors first, then images."""


def choices(kind: str, needs: Needs) -> list[tuple[str, list[Factory]]]:
    """List the tasks of one kind on which a learner with these needs is tried.

    Returns:
        Pairs of a name and of factories of tasks. Of the factories, the kit uses the first whose tasks the learner
        accepts.

    Example:
        >>> import kshot
        >>> [name for name, _ in choices("classification", kshot.Needs(variable_way=True))]
        ['classification', 'classification of varying way']
    """
    if kind == "classification":
        more: dict[str, Any] = {
            "semantics": None if needs.semantics == "no" else 4,
            "unlabelled": 0 if needs.unlabelled == "no" else 4,
            "external": 6 if needs.external else 0,
        }

        def shaped(**shape: Any) -> list[Factory]:
            return [partial(classification, input_shape=i, **{**more, **shape}) for i in INPUT_SHAPES]

        listed = [("classification", shaped())]
        if needs.variable_way:
            listed.append(("classification of varying way", shaped(way=(2, 4), block=4)))
        if needs.zero_shot:
            listed.append(("zero-shot classification", shaped(shot=0, semantics=4)))
        return listed
    other_kinds: dict[str, list[tuple[str, Factory]]] = {
        "regression": [("regression", Lines)],
        "sequence": [("a stream of labels", LabelStream), ("sequences of bits", Copying)],
        "control": [("control", Points), ("control with discrete actions", Corridors)],
        "objective": [("objectives", Quadratics)],
    }
    return [(name, [factory]) for name, factory in other_kinds[kind]]


def example(kind: str) -> TaskDistribution:
    """Return one small task distribution of a kind.

    Example:
        >>> example("regression").spec.kind
        'regression'
    """
    return choices(kind, Needs())[0][1][0]()
