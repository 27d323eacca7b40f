"""What a run on a user's own folder does because the folder may be small: stop early, and warn of figures."""

from __future__ import annotations

import logging
from typing import Any

from attrs import evolve

from kshot._engine.disjoint import number_of
from kshot._engine.result import Result
from kshot.errors import DataError
from kshot.runs.baselines import folder_below
from kshot.runs.plan import Parts, Plan
from kshot.spec import Training, bounds

log = logging.getLogger("kshot.runs")

SHORT = 100
"""Iterations below which a training does not stop early by default."""

VALIDATIONS = 20
"""Number of validations of a training that does not stop early."""

PATIENCE = 5
"""Validations in a row that were not better, after which a training stops."""

EPISODES = 100
"""Episodes of each validation."""

LOSS = 1e-2
"""A loss that hardly changes the parameters any more."""

FEW_CLASSES = 10
FEW_EPISODES = 30
"""Numbers of classes and of disjoint episodes in a split, below which an interval over episodes is misleading."""


def with_early_stopping(plan: Plan, parts: Parts, *, quiet: bool) -> Plan:
    """Return the plan of a training on a folder, with validation and early stopping where the user says nothing else.

    Training stops when the loss has become almost 0. If split ``val`` has enough classes and examples, training also
    stops when validations do not get better, and ends with the best parameters.
    """
    own: Training = getattr(parts.learner, "training_defaults", Training())
    total = int(plan.engine.get("iterations") or own.iterations)
    if folder_below(parts.training) is None or total < SHORT:
        return plan
    engine: dict[str, Any] = {"stop_loss": LOSS, **plan.engine}
    named = {"validate_every", "validation_split", "patience"} & plan.engine.keys()
    if plan.engine.get("split", "train") == "train" and not named and _validates(parts.tests[0]):
        every = max(1, total // VALIDATIONS)
        engine = {"validation_episodes": EPISODES, **engine, "validate_every": every, "patience": PATIENCE}
        if not quiet:
            log.info(
                "note: validating every %d iterations, and stopping after %d validations that are not better; "
                "--engine.validate_every=none trains to the end",
                every,
                PATIENCE,
            )
    return evolve(plan, engine=engine)


def _validates(tasks: Any) -> bool:
    """Return whether the split ``val`` of a folder has enough classes and examples for the episodes of a test."""
    folder = folder_below(tasks)
    if folder is None or "val" not in folder.spec.splits:
        return False
    try:
        folder.check("val")
    except DataError:
        return False
    return True


def cautions(result: Result, tasks: Any) -> str:
    """Return why the interval of a result on a folder's test split is too small for what a reader may take it for.

    It is over episodes. If these have few classes or share their examples, it does not say how the score would be with
    other classes or other examples.

    Returns:
        A sentence, or "" if the split is large enough or the tasks are not of a folder.
    """
    folder = folder_below(tasks)
    if folder is None:
        return ""
    counts = folder.pool(result.split).counts
    way, shot, query = (bounds(count)[1] or 0 for count in (folder.spec.way, folder.spec.shot, folder.spec.query))
    reasons = []
    if len(counts) <= way:
        reasons.append(f"all episodes have the same {len(counts)} classes")
    elif len(counts) < FEW_CLASSES:
        reasons.append(f"all episodes are of only {len(counts)} classes")
    separate = number_of(counts, way, shot + query)
    if not result.disjoint and separate < min(FEW_EPISODES, result.episodes):
        enough = f"enough for {separate} that share none" if separate else "too few for one that shares none"
        reasons.append(f"they are made of {int(counts.sum())} examples, {enough}")
    if result.episodes == 1:
        reasons.append("a single episode has no interval")
    if not reasons:
        return ""
    return f"± says little about other classes and examples: {', and '.join(reasons)}; see --splits and --disjoint"
