"""Every folder of the repository has the agreed shape, so that all plugins are arranged in the same way."""

from __future__ import annotations

import ast
import configparser
import os
import re
import tomllib
from collections import Counter
from pathlib import Path
from types import ModuleType

LIBRARIES = {"sklearn"}
"""Plugins that are imported in code and register nothing."""

SKIPPED = {".git", ".tox", ".venv", "build", "dist", "node_modules", "__pycache__", "runs"}


def files(root: Path, pattern: str) -> list[Path]:
    """Return the files of the repository without those that tools leave in it."""
    matching = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in SKIPPED and not s.startswith((".venv", ".tox"))]
        matching += [Path(folder) / name for name in names if re.fullmatch(pattern, name)]
    return sorted(matching)


def console_lines(text: str) -> list[str]:
    """Return the lines of a document's console blocks."""
    blocks = re.findall(r"^```(?:console|sh|bash)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines() if line]


def test_a_plugin_s_folder_has_its_agreed_shape(plugin: Path, install: ModuleType) -> None:
    """All names follow from the folder's name, and no file is missing."""
    package = f"kshot_{plugin.name.replace('-', '_')}"
    expected = [
        "pyproject.toml",
        "README.md",
        f"src/{package}/__init__.py",
        f"src/{package}/plugin.toml",
        f"src/{package}/py.typed",
    ]
    assert [name for name in expected if not (plugin / name).is_file()] == []
    assert list((plugin / "tests").glob("test_*.py")), "it has no tests"
    assert [p.name for p in (plugin / "src").iterdir() if not p.name.startswith(".")] == [package]
    project = install.table(plugin)
    assert project["name"] == f"kshot-{plugin.name}"
    assert project["entry-points"]["kshot.manifest"] == {plugin.name: f"{package}:plugin.toml"}
    targets = [t for group, e in project["entry-points"].items() if group != "kshot.manifest" for t in e.values()]
    assert targets or plugin.name in LIBRARIES
    assert all(target.startswith((f"{package}.", f"{package}:")) for target in targets)
    assert project["optional-dependencies"]["test"], "tox installs PLUGIN[test]"


def test_a_manifest_says_the_same_as_the_entry_points(plugin: Path, install: ModuleType) -> None:
    """A name that is in one of them only is listed without a summary, or is never found."""
    from kshot.registry import manifest

    package = f"kshot_{plugin.name.replace('-', '_')}"
    content = manifest.read(plugin / "src" / package / "plugin.toml")
    points = {
        (group.removeprefix("kshot."), name)
        for group, entries in install.table(plugin)["entry-points"].items()
        if group not in ("kshot.manifest", "kshot.preparations", "kshot.devices")
        for name in entries
    }
    assert set(content.entries) == points
    assert [key for key, entry in content.entries.items() if not entry.summary] == []
    if plugin.parent.name == "contrib":
        assert content.lifecycle == "incubating", "got another lifecycle, expected incubating for contrib"


def test_a_plugin_is_described_alike_in_its_manifest_and_in_the_core(plugin: Path, root: Path) -> None:
    """The core's table of known plugins answers a request for one that is not installed, so it must not differ."""
    if plugin.parent.name == "contrib":
        return  # the table has the plugins in plugins/ alone
    package = f"kshot_{plugin.name.replace('-', '_')}"
    described = tomllib.loads((plugin / "src" / package / "plugin.toml").read_text(encoding="utf-8"))
    known = tomllib.loads((root / "core/src/kshot/registry/first_party.toml").read_text(encoding="utf-8"))
    summaries = {name: entry["summary"] for g in described.values() if isinstance(g, dict) for name, entry in g.items()}
    assert {name: known[name]["summary"] for name in summaries} == summaries


def test_a_plugin_s_readme_says_how_to_install_and_run_it(plugin: Path, install: ModuleType) -> None:
    """A package index shows this page, so it must be complete by itself."""
    text = (plugin / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# kshot-{plugin.name}\n")
    lines = console_lines(text)
    assert any(line.startswith("pip install . ") and f"./{plugin.parent.name}/{plugin.name}" in line for line in lines)
    assert any(line.startswith("kshot ") for line in lines)
    for name in install.required(plugin):
        assert re.search(rf"\b{re.escape(name)}\b", text, re.IGNORECASE), f"it does not say why {name} is there"


def test_versions_are_bounded_from_below_only(project: Path, install: ModuleType) -> None:
    """An upper bound for torch would exclude later versions that work."""
    lines = install.required(project).values()
    assert [line for line in lines if re.search(r"<|==|~=", line)] == []
    assert [line for line in lines if ">=" not in line] == []


def test_an_algorithm_is_one_file_that_can_be_read_in_one_sitting(plugin: Path, install: ModuleType) -> None:
    """The file of a learner or a memory, which is read like its paper's algorithm box, has at most 200 lines."""
    entries = install.table(plugin)["entry-points"]
    targets = [t for group in ("kshot.learners", "kshot.memories") for t in entries.get(group, {}).values()]
    long = {}
    for target in targets:
        module = target.partition(":")[0]
        file = plugin / "src" / f"{module.replace('.', '/')}.py"
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > 200:
            long[module] = lines
    assert long == {}


def test_a_file_of_sources_is_read_in_one_sitting(root: Path, install: ModuleType) -> None:
    """At most 400 lines in the core and 250 in a plugin; a longer file is more than one thing."""
    long = {}
    for project in install.projects():
        source, most = (root / "core/src", 400) if project == root else (project / "src", 250)
        for file in files(source, r".*\.py"):
            if (lines := len(file.read_text(encoding="utf-8").splitlines())) > most:
                long[str(file.relative_to(root))] = lines
    assert long == {}


def test_test_files_have_unique_names(root: Path) -> None:
    """Test folders are not packages, so reports distinguish two files by their names only."""
    names = Counter(file.name for file in files(root, r"test_.*\.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_ten_thousand_hostile_inputs_are_tried(root: Path) -> None:
    """Each file of fuzzing says in ``INPUTS`` how many inputs its tests try, and each of them asserts its number."""
    counts = {}
    for file in files(root / "tests", r"test_\w+_fuzz\.py"):
        text = file.read_text(encoding="utf-8")
        (inputs,) = re.findall(r"^INPUTS = (\{[^}]*\})", text, re.MULTILINE)
        counts[file.name] = {name: seeds * each for name, (seeds, each) in ast.literal_eval(inputs).items()}
        assert [name for name in counts[file.name] if f'INPUTS["{name}"]' not in text and "in INPUTS" not in text] == []
    stored = sum(counts.pop("test_stored_fuzz.py").values())
    others = sum(n for each in counts.values() for n in each.values())
    assert others >= 6_000, counts
    assert stored + others >= 10_000


def test_test_folders_are_no_packages(root: Path, install: ModuleType) -> None:
    """Test files are imported by path, so that they can't depend on each other by accident."""
    folders = [root / "tests", *(project / "tests" for project in install.projects())]
    inits = [p for folder in folders for p in files(folder, r"__init__\.py") if "src" not in p.parts]
    assert inits == []


def test_tox_proves_every_plugin_alone(root: Path, install: ModuleType) -> None:
    """A plugin that is only tested together with others may need them without declaring it."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(root / "tox.ini", encoding="utf-8")
    (listed,) = re.findall(r"plugin-\{([\w,-]+)\}", tox["tox"]["env_list"])
    assert listed.split(",") == sorted(plugin.name for plugin in install.projects()[1:])


def test_lint_sees_every_source_folder(root: Path, install: ModuleType) -> None:
    """Strict types are required for contributed plugins too."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(root / "tox.ini", encoding="utf-8")
    groups = {plugin.parent.name for plugin in install.projects()[1:]}
    (mypy,) = [line for line in tox["testenv:lint"]["commands"].splitlines() if line.startswith("mypy")]
    assert groups | {"core/src"} <= set(mypy.split())


def test_ci_runs_the_readme_s_test_command(root: Path) -> None:
    """The command that newcomers are asked to type is the one that is known to work."""
    commands = [line for line in console_lines((root / "README.md").read_text("utf-8")) if "tox run" in line]
    assert len(commands) == 1
    script = root / ".ci" / "run"
    assert commands[0] in script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK)


def test_no_file_names_a_folder_of_somebody_s_machine(root: Path) -> None:
    """Such a path works on one machine only."""
    homes = re.compile(r"(?<![\w.:/])/(?:home|Users|root|work)/\w")
    naming = [
        str(file.relative_to(root))
        for file in files(root, r".*\.(?:py|md|toml|ini|sh)|run")
        if homes.search(file.read_text(encoding="utf-8"))
    ]
    assert naming == []


def test_links_between_documents_lead_somewhere(root: Path) -> None:
    """A link to a missing file misleads the reader."""
    dead = []
    for file in files(root, r".*\.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[\w-]*)?\)", file.read_text(encoding="utf-8")):
            if not (file.parent / target).exists():
                dead.append(f"{file.relative_to(root)}: {target}")
    assert dead == []
