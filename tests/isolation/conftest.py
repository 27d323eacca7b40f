"""Fixtures of these tests, which examine the repository itself, project by project."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_install() -> ModuleType:
    """Import the script that tox calls before each proof; it knows which projects there are."""
    spec = importlib.util.spec_from_file_location("kshot_repository_install", Path(__file__).with_name("install.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def install() -> ModuleType:
    return load_install()


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test with the argument ``project`` for every distribution, and one with ``plugin`` for every plugin."""
    projects = load_install().projects()
    for name, folders in (("project", projects), ("plugin", projects[1:])):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, folders, ids=[f.name if f != ROOT else "core" for f in folders])
