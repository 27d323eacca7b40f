"""The tasks keep every rule for tasks, on a folder divided by class and by sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kshot


@pytest.mark.parametrize("split_by", ["class", "example"])
def test_it_keeps_the_rules_for_tasks(small: Callable[..., Path], split_by: str) -> None:
    """The tasks are built by name, as the command line builds them."""
    options: dict[str, Any] = {"root": small(12, 20), "rate": 8000, "seconds": 0.1, "way": 2, "query": 2}
    report = kshot.testing.suite(tasks="audiofolder", options={**options, "n_mels": 20, "split_by": split_by}).run()
    assert report.ok, str(report)


def test_it_keeps_the_rules_with_augmented_training_sounds(small: Callable[..., Path]) -> None:
    """The changes depend on the episode's key alone."""
    options: dict[str, Any] = {"root": small(12, 20), "rate": 8000, "seconds": 0.1, "way": 2, "query": 2, "n_mels": 20}
    report = kshot.testing.suite(tasks="audiofolder", options={**options, "augment": ["shift", "mask"]}).run()
    assert report.ok, str(report)
