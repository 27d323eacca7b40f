"""The tasks keep every rule for tasks, on a folder divided by class and by image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import kshot


@pytest.mark.parametrize("split_by", ["class", "example"])
def test_it_keeps_the_rules_for_tasks(small: Callable[..., Path], split_by: str) -> None:
    """The tasks are built by name, as the command line builds them."""
    options = {"root": small(12, 20), "size": 5, "way": 2, "query": 2, "split_by": split_by}
    report = kshot.testing.suite(tasks="imagefolder", options=options).run()
    assert report.ok, str(report)


def test_it_keeps_the_rules_with_augmented_training_images(small: Callable[..., Path]) -> None:
    """The changes depend on the episode's key alone."""
    changes = ["flip", "crop", "rotate", "colour"]
    options = {"root": small(12, 20), "size": 8, "way": 2, "query": 2, "augment": changes}
    report = kshot.testing.suite(tasks="imagefolder", options=options).run()
    assert report.ok, str(report)
