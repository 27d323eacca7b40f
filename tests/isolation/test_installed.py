"""The tests run on the installed distributions, and no other distribution of ours is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

PROOF = os.environ.get("KSHOT_PROOF")
pytestmark = pytest.mark.skipif(PROOF is None, reason="only tox says what it installed: tox run -e core")


@pytest.fixture(scope="module")
def expected(install: ModuleType) -> set[str]:
    """Return the names of our distributions that this environment should have."""
    assert PROOF is not None
    return {install.table(folder)["name"] for folder in install.under_proof(PROOF)}


def test_nothing_else_of_ours_is_installed(expected: set[str]) -> None:
    """A proof that the core works alone is worthless if a plugin is installed too."""
    names = {d.name for d in metadata.distributions() if d.name == "kshot" or d.name.startswith("kshot-")}
    assert names == expected


def test_list_shows_exactly_what_is_installed_and_all_of_it_is_ok(expected: set[str], install: ModuleType) -> None:
    """Without plugins there are only the built-ins; a plugin is listed because it is installed.

    Libraries, which register nothing, are not listed.
    """
    tables = [install.table(folder) for folder in install.under_proof(PROOF)]
    expected = {t["name"] for t in tables if set(t.get("entry-points", {})) != {"kshot.manifest"}}
    command = [sys.executable, "-m", "kshot", "list", "--json"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert {plugin["distribution"] for plugin in listed} == expected
    assert [(plugin["name"], plugin["reason"]) for plugin in listed if plugin["state"] != "ok"] == []


def test_doctor_can_import_all_that_is_installed() -> None:
    """Listing imports nothing, so only doctor notices a plugin that can't be imported."""
    done = subprocess.run([sys.executable, "-m", "kshot", "doctor"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_code_comes_from_the_wheels(expected: set[str], root: Path) -> None:
    """Tests that import the source tree would not notice a file that is missing from a wheel."""
    site = Path(sysconfig.get_path("purelib")).resolve()
    for name in expected:
        spec = importlib.util.find_spec(name.replace("-", "_"))
        assert spec is not None, name
        assert spec.origin is not None, name
        assert Path(spec.origin).resolve().is_relative_to(site), f"{name} is imported from {spec.origin}"
    assert [p for p in sys.path if p and (root / "core") in Path(p).resolve().parents] == []
