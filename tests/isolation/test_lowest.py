"""The lowest declared versions: how they are chosen, and that the environment ``lowest`` really has them."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest


def write(folder: Path, text: str) -> Path:
    """Write a pyproject.toml into a new folder and return the folder."""
    folder.mkdir()
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    return folder


def test_the_highest_of_the_lower_bounds_is_the_lowest_version(tmp_path: Path, install: ModuleType) -> None:
    """Projects that are installed together agree on one version; 1.10 is above 1.9, and our own are left out."""
    one = write(
        tmp_path / "one",
        '[build-system]\nrequires = ["hatchling>=1.27"]\n[project]\nname = "one"\n'
        'dependencies = ["NumPy>=1.9", "kshot[tables]>=0.1", "kshot-toy>=0.1"]\n',
    )
    two = write(
        tmp_path / "two",
        '[build-system]\nrequires = ["hatchling>=1.24"]\n[project]\nname = "two"\ndependencies = ["numpy>=1.10"]\n'
        "[project.optional-dependencies]\ntest = [\"scikit_learn[all]>=1.4; python_version < '4'\"]\n",
    )
    assert install.lowest_versions([one, two]) == {"hatchling": "1.27", "numpy": "1.10", "scikit-learn": "1.4"}


def test_every_lower_bound_is_a_plain_version(project: Path, install: ModuleType) -> None:
    """A bound that can't be installed exactly can't be tested: digits and dots, and nothing beside them."""
    bounds = [line.partition(">=")[2].partition(";")[0].strip() for line in install.declared(project)]
    assert [bound for bound in bounds if not re.fullmatch(r"\d+(\.\d+)*", bound)] == []


def test_all_distributions_are_built_with_the_same_tool(project: Path, root: Path, install: ModuleType) -> None:
    """hatchling before 1.27 writes metadata that a package index refuses, so no plugin may ask for less than the core.

    tox installs the lowest version that satisfies all of them, which would hide a lower bound of one."""
    assert install.document(project)["build-system"] == install.document(root)["build-system"]


@pytest.mark.skipif(os.environ.get("KSHOT_PROOF") != "lowest", reason="only tox run -e lowest installs these versions")
def test_the_environment_has_the_lowest_versions(install: ModuleType) -> None:
    """A newer version that another package asked for would leave our lower bound untested: raise the bound to it."""
    wanted = install.lowest_versions(install.under_proof("lowest"))
    there = {name: metadata.version(name).partition("+")[0] for name in wanted}

    def without_zeros(version: str) -> tuple[int, ...]:
        numbers = install.numbers(version)
        return numbers if numbers[-1] else without_zeros(version.rpartition(".")[0])

    assert {n: v for n, v in there.items() if without_zeros(v) != without_zeros(wanted[n])} == {}
