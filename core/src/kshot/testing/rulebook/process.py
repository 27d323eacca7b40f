"""Notice what a component changes in the process: settings, and the seeds of the global random generators."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from kshot.registry.surroundings import kept
from kshot.testing.rulebook.rule import broken


def seed_all(seed: int) -> None:
    """Seed the global generators of torch (on the CPU), numpy and Python."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextmanager
def left_alone(what: str, draws: bool = True) -> Iterator[None]:
    """Break the rule if the block changes a setting of the process; the setting is restored.

    Args:
        what: the block in words, for the message.
        draws: whether the block may draw from global random generators.
    """
    changes: list[str] = []
    with kept(changes.extend):
        if not draws:
            seed_all(1729)  # a component that seeds them itself is then seen to change their states
            kept_states = states()
        yield
        changed = [] if draws else [n for n, state in states().items() if state != kept_states[n]]
    # Seeding above changed the states too, so they are compared apart from the settings.
    changed = [name for name in changes if "random" not in name] + [f"the state of {name}" for name in changed]
    if changed:
        broken(
            f"{what}: got changes of {', '.join(changed)}, expected none, because they affect everything else in the "
            "process; restore them, or pass a type, device or generator as an argument"
        )


def states() -> dict[str, bytes]:
    """Return the states of the global generators as bytes, by name."""
    return {
        "torch's generator": torch.default_generator.get_state().numpy().tobytes(),
        "numpy's generator": repr([np.asarray(part).tobytes() for part in np.random.get_state(legacy=True)]).encode(),
        "Python's generator": repr(random.getstate()).encode(),
    }


def seeded_by(act: Callable[[], object], what: str) -> list[str]:
    """Return the names of the generators that ``act`` seeds: they end in one state from two different ones."""
    ends = []
    with kept(lambda changes: None):
        for seed in (1729, 1730):
            seed_all(seed)
            with left_alone(what):
                act()
                ends.append(states())
    return [name for name, state in ends[0].items() if state == ends[1][name]]
