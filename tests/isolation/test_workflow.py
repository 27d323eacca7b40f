"""The workflow and the hooks before a commit run the commands that README.md and tox.ini name."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="needs PyYAML, which tox installs: tox run -e imports")


@pytest.fixture(scope="module")
def jobs(root: Path) -> dict[str, Any]:
    """The jobs of the workflow by name."""
    text = (root / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    workflow: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return workflow["jobs"]


@pytest.fixture(scope="module")
def tox(root: Path) -> configparser.ConfigParser:
    """tox.ini as sections of texts."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(root / "tox.ini", encoding="utf-8")
    return parser


def commands(job: dict[str, Any]) -> list[str]:
    """Return the shell commands of a job in their order."""
    return [step["run"] for step in job["steps"] if "run" in step]


def test_linux_runs_the_two_commands_of_the_readme(jobs: dict[str, Any], root: Path) -> None:
    """A newcomer types these two commands, so they are what must be known to work, word for word."""
    section = (root / "README.md").read_text("utf-8").partition("\n## Two commands\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```console\n(.*?)\n```$", section, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    assert commands(jobs["linux"]) == blocks
    assert jobs["linux"]["runs-on"].startswith("ubuntu-")


def test_every_supported_python_is_tested(jobs: dict[str, Any], root: Path, install: ModuleType) -> None:
    """The classifiers tell a user which versions work; the oldest of them is the one that pip accepts."""
    project = install.table(root)
    prefix = "Programming Language :: Python :: 3."
    promised = [c.rpartition(" ")[2] for c in project["classifiers"] if c.startswith(prefix)]
    assert jobs["linux"]["strategy"]["matrix"]["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"
    assert jobs["lowest"]["steps"][1]["with"]["python-version"] == promised[0]


def test_the_core_is_tested_on_macos_and_windows(jobs: dict[str, Any]) -> None:
    """Paths, locks and processes differ there; ``-m`` avoids a folder of scripts that has another name on Windows."""
    assert jobs["core"]["strategy"]["matrix"]["os"] == ["macos-latest", "windows-latest"]
    assert commands(jobs["core"]) == ["python -m pip install tox", "python -m tox run -e core"]


def test_the_workflow_names_environments_that_tox_has(jobs: dict[str, Any], tox: configparser.ConfigParser) -> None:
    """tox accepts a misspelt name in some cases, and then runs nothing of what was meant."""
    named = {name for job in jobs.values() for command in commands(job) for name in re.findall(r"-e (\S+)", command)}
    described = set(re.findall(r"^(\w+):", tox["testenv"]["description"], re.MULTILINE))
    assert named == {"core", "lowest"}
    assert named <= described


def test_every_job_has_a_time_limit_and_only_reads(jobs: dict[str, Any], root: Path) -> None:
    """A test that hangs must not hold a machine for hours, and no step may write to the repository."""
    assert [name for name, job in jobs.items() if "timeout-minutes" not in job] == []
    text = (root / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


def test_the_hooks_before_a_commit_are_the_commands_of_lint(tox: configparser.ConfigParser, root: Path) -> None:
    """Local hooks call the project's own versions, so what passes before a commit passes in tox too."""
    config = yaml.safe_load((root / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    hooks = repository["hooks"]
    assert [hook["entry"] for hook in hooks] == tox["testenv:lint"]["commands"].split("\n")[1:]
    assert {(hook["language"], hook["pass_filenames"]) for hook in hooks} == {("system", False)}
