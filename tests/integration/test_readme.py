"""The commands and the code of the README run as they are printed there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def brief(code: str) -> str:
    """The same code with so few iterations and episodes that a test can run it."""
    code = re.sub(r"iterations=\d+", "iterations=2", code)
    return re.sub(r'"episodes": \d+', '"episodes": 4', re.sub(r"episodes=\d+", "episodes=4", code))


def test_an_example_stands_within_the_first_fifteen_lines() -> None:
    """A reader decides in the first screen whether to read the second."""
    lines = README.splitlines()
    assert lines[0] == "# kshot"
    assert "```python" in lines[:15]
    assert "![" not in README


@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_the_examples_run(number: int, tmp_path: Path) -> None:
    """An example that does not run is worse than none."""
    code = brief(blocks(README, "python")[number])
    environment = {**os.environ, "KSHOT_OMNIGLOT": ""}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+\.\d\d ± \d+\.\d\d % accuracy \(4 episodes, test, 5-way \d-shot", done.stdout, re.MULTILINE)


def test_every_plugin_is_in_the_table() -> None:
    """What nobody finds need not have been written."""
    folders = sorted(p.parent.name for p in ROOT.glob("plugins/*/pyproject.toml"))
    assert sorted(re.findall(r"^\| \[([\w-]+)\]\(plugins/", README, re.MULTILINE)) == folders


def test_every_command_of_the_tour_is_one() -> None:
    """Names of commands and their flags change; a tour that was right once is not seen to be wrong."""
    (tour,) = [block for block in blocks(README, "console") if "kshot list" in block]
    listed = subprocess.run(
        [sys.executable, "-m", "kshot", "--help"], check=True, capture_output=True, text=True
    ).stdout
    commands = {line.split()[1] for line in tour.splitlines()}
    assert commands == set(re.findall(r"^  (\w+)  ", listed.split("Commands:")[1], re.MULTILINE))


@pytest.mark.slow
def test_the_first_command_ends_with_a_test_accuracy(tmp_path: Path) -> None:
    """The one line that a newcomer types, on a copy of the repository."""
    clone = tmp_path / "kshot"
    shutil.copytree(
        ROOT,
        clone,
        ignore=shutil.ignore_patterns(".git", ".tox", ".venv*", ".*_cache", "runs", "__pycache__"),
    )
    (command,) = [b for b in blocks(README, "console") if "kshot train protonet omniglot\n" in b and "venv" in b]
    done = subprocess.run(["bash", "-ec", command], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+\.\d\d ± \d+\.\d\d % accuracy \(600 episodes, test", done.stdout, re.MULTILINE)
