"""The tasks keep every rule for tasks, on generated recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kshot


@pytest.mark.parametrize("sub_dogs", [False, True])
def test_it_keeps_the_rules_for_tasks(small: Callable[..., Path], sub_dogs: bool) -> None:
    """The tasks are built by name, as the command line builds them."""
    options: dict[str, Any] = {"root": small(), "seconds": 0.1, "sub_dogs": sub_dogs}
    report = kshot.testing.suite(tasks="cats-dogs", options=options).run()
    assert report.ok, str(report)
