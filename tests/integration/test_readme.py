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
    """Return the code blocks of a language in a Markdown text."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def brief(code: str) -> str:
    """Return the same code with so few iterations and episodes that a test can run it."""
    code = re.sub(r"iterations=\d+", "iterations=2", code)
    return re.sub(r'"episodes": \d+', '"episodes": 4', re.sub(r"episodes=\d+", "episodes=4", code))


def take_photos(folder: Path) -> None:
    """Make two classes of two pictures in ``photos``, and ``new.jpg``."""
    from PIL import Image

    for i, (name, colour) in enumerate({"newt": "green", "crane": "grey"}.items()):
        for j in range(2):
            path = folder / "photos" / name / f"{j}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30 + j), colour).save(path)
        if not i:
            Image.new("RGB", (40, 40), colour).save(folder / "new.jpg")


def test_an_example_stands_within_the_first_fifteen_lines() -> None:
    """Many readers decide on the first screen whether to read on."""
    lines = README.splitlines()
    assert lines[0] == "# kshot"
    assert "```python" in lines[:15]
    assert "![" not in README


@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_the_examples_run(number: int, tmp_path: Path) -> None:
    """A newcomer who copies an example that fails will not try a second one."""
    code = brief(blocks(README, "python")[number])
    environment = {**os.environ, "KSHOT_OMNIGLOT": ""}
    fits = 'fit("photos")' in code
    if fits:
        take_photos(tmp_path)
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    accuracy = r"^\d+\.\d\d ± \d+\.\d\d % accuracy \(4 episodes, test, 5-way \d-shot"
    fitted = r"^\d+ % of 4 examples, each left out in turn .*\n\['(newt|crane)'\]"
    assert re.search(fitted if fits else accuracy, done.stdout, re.MULTILINE), done.stdout


def test_every_plugin_is_in_the_table() -> None:
    """Readers find a plugin by this table."""
    folders = sorted(p.parent.name for p in ROOT.glob("plugins/*/pyproject.toml"))
    assert sorted(re.findall(r"^\| \[([\w-]+)\]\(plugins/", README, re.MULTILINE)) == folders


def test_every_command_of_the_tour_is_one() -> None:
    """Commands are renamed and added, and nothing else would show that the tour is out of date."""
    (tour,) = [block for block in blocks(README, "console") if "kshot list" in block]
    listed = subprocess.run(
        [sys.executable, "-m", "kshot", "--help"], check=True, capture_output=True, text=True
    ).stdout
    commands = {line.split()[1] for line in tour.splitlines()}
    assert commands == set(re.findall(r"^  (\w+)  ", listed.split("Commands:")[1], re.MULTILINE))


@pytest.mark.slow
def test_the_first_command_ends_with_a_test_accuracy(tmp_path: Path) -> None:
    """This is the first command that a newcomer types; the test runs it in a copy of the repository."""
    clone = tmp_path / "kshot"
    everywhere = shutil.ignore_patterns(".git", ".tox", ".venv*", ".*_cache", "__pycache__")

    def left_out(folder: str, names: list[str]) -> set[str]:
        # Run folders lie in "runs" of the root; the package kshot.runs has the same name.
        return {*everywhere(folder, names), *({"runs", "build", "dist"} if Path(folder) == ROOT else ())}

    shutil.copytree(ROOT, clone, ignore=left_out)
    (command,) = [b for b in blocks(README, "console") if "kshot train protonet omniglot\n" in b and "venv" in b]
    done = subprocess.run(["bash", "-ec", command], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+\.\d\d ± \d+\.\d\d % accuracy \(600 episodes, test", done.stdout, re.MULTILINE)
