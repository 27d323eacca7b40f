"""Run a plugin's tests, and test that no other distribution of ours is installed; tox runs this for ``plugin-NAME``.

python tests/isolation/prove.py plugin-protonet [options of pytest]
"""

from __future__ import annotations

import sys

import pytest
from install import ROOT, under_proof


def main(proof: str, *options: str) -> int:
    """Run the tests of the plugin that ``proof`` names; return pytest's exit code."""
    (folder,) = [f for f in under_proof(proof) if f"plugin-{f.name}" == proof]
    tests = [str(folder.relative_to(ROOT)), "tests/isolation/test_installed.py"]
    return pytest.main(["-m", "not slow", *tests, *options])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
