"""The lists of faults in tests/mutations fit the sources; ``tests/mutations/run.py`` plants the faults."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "mutations"


@pytest.fixture(scope="module")
def run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kshot_tests_mutations_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_fault_can_be_planted(run: ModuleType) -> None:
    """Its text occurs exactly once, its id is unique, and its tests exist."""
    assert run.mistakes(run.faults_of(run.lists())) == []


def test_there_are_enough_faults(run: ModuleType) -> None:
    """A few easy ones would prove nothing."""
    lists = run.lists()
    assert len(run.faults_of(lists)) >= (200 if FOLDER / "plugins.toml" in lists else 130)


def test_wrong_entries_are_named(run: ModuleType) -> None:
    """A fault that is not planted would count as one that no test notices."""
    file = "core/src/kshot/errors.py"
    fault = run.Fault("a", file, "not in the file", "", "Something is wrong.", ("tests/core/test_no.py",))
    same = run.Fault("a", "core/none.py", "", "", "", ())
    found = "\n".join(run.mistakes([fault, same]))
    for told in ("id 2 times", "occurs 0 times", "test_no.py", "core/none.py"):
        assert told in found
