"""Run the tests of one environment of tox: those of a plugin alone, or those at the lowest declared versions.

python tests/isolation/prove.py plugin-protonet [options of pytest]
python tests/isolation/prove.py lowest [options of pytest]
"""

from __future__ import annotations

import sys

import pytest
from install import ROOT, projects, under_proof

LEARNERS = ("l2l", "maml", "maml-rl", "mann", "ntm", "protonet", "semi-protonet")
"""One learner of each family, whose conformance is tested at the lowest versions."""

LIBRARIES = (
    *("audiofolder", "bandits", "cactus", "cifar-fs", "digit-nets", "imagefolder"),
    *("plots", "quadratics", "semantics", "sklearn"),
)
"""The plugins that use third-party packages which the core does not use; at the lowest versions all their tests run."""

TOLERATED = ("-W", "default::DeprecationWarning", "-W", "default::FutureWarning")
"""At the lowest versions, old packages meet newer packages that they depend on, and warn about these."""


def tests_of(proof: str) -> list[str]:
    """Return the folders and files of tests of an environment, relative to the repository."""
    if proof == "lowest":
        folder_of = {f.name: f.relative_to(ROOT).as_posix() for f in projects()[1:]}
        conformance = [f"{folder_of[n]}/tests/test_{n.replace('-', '_')}_conformance.py" for n in LEARNERS]
        libraries = [folder_of[n] for n in LIBRARIES]
        return ["tests/core", "tests/isolation/test_lowest.py", *conformance, *libraries]
    (folder,) = [f for f in under_proof(proof) if f"plugin-{f.name}" == proof]
    return [folder.relative_to(ROOT).as_posix()]


def main(proof: str, *options: str) -> int:
    """Run the tests of ``proof``, and that nothing else of ours is installed; return pytest's exit code."""
    warnings = TOLERATED if proof == "lowest" else ()
    return pytest.main(["-m", "not slow", *warnings, *tests_of(proof), "tests/isolation/test_installed.py", *options])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
