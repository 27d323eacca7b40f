"""The tasks keep every rule for tasks, for a folder and for a CSV file, divided by class and by text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kshot


@pytest.mark.parametrize("split_by", ["class", "example"])
@pytest.mark.parametrize("source", ["root", "csv"])
@pytest.mark.parametrize("features", ["ngrams", "bytes"])
def test_it_keeps_the_rules_for_tasks(
    small: Callable[..., Path], table: Callable[..., Path], split_by: str, source: str, features: str
) -> None:
    """The tasks are built by name, as the command line builds them."""
    options: dict[str, Any] = {source: (small if source == "root" else table)(12, 20)}
    options |= {"size": 64, "length": 50, "features": features, "way": 2, "query": 2, "split_by": split_by}
    report = kshot.testing.suite(tasks="textfolder", options=options).run()
    assert report.ok, str(report)
