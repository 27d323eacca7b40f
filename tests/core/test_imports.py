"""What importing the core costs, and which names it has."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import kshot
import kshot.runs
import kshot.testing


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has imported after running ``code``."""
    code += "\nimport json, sys; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "module", ["kshot", "kshot.runs", "kshot.testing", "kshot.testing.pytest_plugin", "kshot.cli", "kshot.errors"]
)
def test_importing_is_cheap(module: str) -> None:
    """A command line, a test run or a help page must not wait for torch if it does not use it."""
    assert loaded_by(f"import {module}") & {"torch", "numpy"} == set()


def test_importing_changes_no_random_state() -> None:
    """A library that sets a seed on import would change other people's experiments."""
    code = (
        "import random, torch, numpy, hashlib\n"
        "state = lambda: (random.getstate(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist())\n"
        "before = state()\n"
        "import kshot; [getattr(kshot, name) for name in kshot.__all__]\n"
        "assert state() == before"
    )
    loaded_by(code)


@pytest.mark.parametrize("name", kshot.__all__)
def test_every_public_name_resolves(name: str) -> None:
    """Names are loaded on first use, so only a user would notice a misspelt one."""
    assert getattr(kshot, name) is not None
    assert name in dir(kshot)


@pytest.mark.parametrize("module", [kshot, kshot.runs, kshot.testing], ids=lambda m: m.__name__)
def test_type_checkers_see_the_names_that_users_get(module: object) -> None:
    """The lazy names are written twice, for the interpreter and for the type checker, and both must agree."""
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))  # type: ignore[attr-defined]
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    seen = [alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(seen) == sorted(module.__all__)  # type: ignore[attr-defined]


def test_unknown_names_are_an_attribute_error() -> None:
    """``hasattr`` and ``getattr`` with a default rely on this."""
    assert not hasattr(kshot, "lerner")
    with pytest.raises(AttributeError, match="'lerner'"):
        kshot.lerner


def test_the_version_is_the_distribution_s() -> None:
    """The version is written in one place, the project file."""
    from importlib.metadata import version

    assert kshot.__version__ == version("kshot")


@pytest.mark.parametrize("name", ["TaskDistribution", "Learner", "Memory", "World", "Backend"])
def test_a_protocol_has_at_most_five_members_and_fits_on_a_screen(name: str) -> None:
    """An author of a plugin must be able to remember them."""
    protocol = getattr(importlib.import_module("kshot.protocols"), name)
    members = typing.get_type_hints(protocol).keys() | {
        n
        for n, value in vars(protocol).items()
        if not n.startswith("_") and (callable(value) or isinstance(value, property))
    }
    assert 1 <= len(members) <= 5
    assert len(inspect.getsource(protocol).splitlines()) <= 50
