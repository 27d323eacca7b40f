"""Imports are declared, public and allowed; this is read from the sources, so that no environment can hide it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

IMPORT_NAMES = {
    "pillow": "PIL",
    "attrs": "attr attrs",
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "open-clip-torch": "open_clip",
}
"""Distributions whose import names differ from their own names."""

READ = {"wordllama"}
"""Distributions of which a plugin reads files, and imports nothing."""


class Import(NamedTuple):
    """One import: the ``module``, the ``name`` imported from it ('' for the module itself), and its line."""

    module: str
    name: str
    line: int
    when: str
    """run: with the module; later: in a function; never: for the type checker only; perhaps: ImportError is caught."""


def imports_of(text: str, package: str) -> Iterator[Import]:
    """Yield every import of a source file that is in ``package``."""

    def walk(node: ast.AST, when: str) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, "", node.lineno, when) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (Import(module, alias.name, node.lineno, when) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (found for child in node.body for found in walk(child, "never"))
            yield from (found for child in node.orelse for found in walk(child, when))
        else:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when == "run":
                when = "later"
            if isinstance(node, ast.Try) and any("ImportError" in ast.unparse(h.type) for h in node.handlers if h.type):
                when = "perhaps"
            yield from (found for child in ast.iter_child_nodes(node) for found in walk(child, when))

    yield from walk(ast.parse(text), "run")


def sources(project: Path) -> dict[str, Path]:
    """Map the dotted name of each module in a project's src folder to its file."""
    src = project / ("core/src" if (project / "core").is_dir() else "src")
    names = {}
    for file in sorted(src.rglob("*.py")):
        parts = file.relative_to(src).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    assert names, f"{src} has no modules"
    return names


def imports_by_module(project: Path) -> dict[str, list[Import]]:
    """Map each module of a project to its imports."""
    found = {}
    for module, file in sources(project).items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        found[module] = list(imports_of(file.read_text(encoding="utf-8"), package))
    return found


@pytest.fixture(scope="session")
def core(root: Path) -> dict[str, list[Import]]:
    return imports_by_module(root)


def test_imports_are_told_apart() -> None:
    """The tests below depend on reading the sources correctly."""
    text = (
        "import os.path\nfrom . import near\nfrom ..up import name\n"
        "if TYPE_CHECKING:\n    import typed\n"
        "def f():\n    import late\n"
        "try:\n    import fast\nexcept ImportError:\n    pass\n"
    )
    assert [(i.module, i.name, i.when) for i in imports_of(text, "a.b")] == [
        ("os.path", "", "run"),
        ("a.b", "near", "run"),
        ("a.up", "name", "run"),
        ("typed", "", "never"),
        ("late", "", "later"),
        ("fast", "", "perhaps"),
    ]


def test_every_import_is_declared(project: Path, install: ModuleType) -> None:
    """A module that is only installed because another package needs it is missing on some machines."""
    declared = {*install.required(project), *extras(project, install)}
    allowed = {name for d in declared for name in IMPORT_NAMES.get(d, d.replace("-", "_")).split()}
    own = {module.partition(".")[0] for module in sources(project)}
    undeclared = [
        f"{module}, line {found.line}: {found.module}"
        for module, all_found in imports_by_module(project).items()
        for found in all_found
        if (top := found.module.partition(".")[0]) not in allowed | own and top not in sys.stdlib_module_names
    ]
    assert undeclared == []


def extras(project: Path, install: ModuleType) -> set[str]:
    """Return the distributions of the optional dependencies; only tests have pytest, which the kit's plugin imports."""
    lines = [line for group in install.table(project).get("optional-dependencies", {}).values() for line in group]
    return {line.split(">")[0].split("[")[0].strip().lower() for line in lines}


def test_nothing_is_declared_in_vain(project: Path, install: ModuleType) -> None:
    """Everyone who installs the project pays for a dependency that nothing imports."""
    used = {found.module.partition(".")[0] for all_found in imports_by_module(project).values() for found in all_found}
    idle = [
        name
        for name in install.required(project)
        if name not in READ and not used & set(IMPORT_NAMES.get(name, name.replace("-", "_")).split())
    ]
    assert idle == []


def test_only_the_test_extra_has_pytest(project: Path, install: ModuleType, core: dict[str, list[Import]]) -> None:
    """pytest loads the kit's pytest plugin; nothing else may need pytest."""
    needing = {
        m for m, found in imports_by_module(project).items() if any(i.module.split(".")[0] == "pytest" for i in found)
    }
    assert needing <= {"kshot.testing.pytest_plugin"}


def test_plugins_use_what_is_public(plugin: Path) -> None:
    """A module is public if no part of its path has an underscore, except the command line."""
    private = [
        f"{module}, line {found.line}: {found.module} {found.name}".strip()
        for module, all_found in imports_by_module(plugin).items()
        for found in all_found
        if found.module.split(".")[0] == "kshot"
        and (
            any(p.startswith("_") for p in [*found.module.split("."), found.name])
            or found.module.startswith("kshot.cli")
        )
    ]
    assert private == []


def test_plugins_import_names_that_the_core_has(plugin: Path, root: Path) -> None:
    """A name that a module has only because it imports it may disappear."""
    import importlib

    missing = []
    for module, all_found in imports_by_module(plugin).items():
        for found in (f for f in all_found if f.module.split(".")[0] == "kshot" and f.name):
            there = importlib.import_module(found.module)
            if not hasattr(there, found.name) and f"{found.module}.{found.name}" not in sources(root):
                missing.append(f"{module}, line {found.line}: {found.module} has no {found.name}")
    assert missing == []


LAYERS = {
    "kshot.errors": set(),
    "kshot._kind_names": set(),
    "kshot._shown": {"kshot.errors", "PIL"},
    "kshot.spec": {"kshot._kind_names", "kshot._shown", "kshot.errors", "attrs"},
    "kshot._pixels": {"kshot.errors", "numpy", "PIL"},
    "kshot.arrays": {"kshot._pixels", "kshot.errors", "numpy", "torch"},
    "kshot.pytrees": {"attrs", "torch"},
    "kshot.sources": {"kshot.arrays", "kshot.errors", "kshot.pytrees", "attrs", "torch"},
    "kshot.episode": {
        "kshot._shown",
        "kshot.arrays",
        "kshot.errors",
        "kshot.pytrees",
        "kshot.sources",
        "attrs",
        "numpy",
        "torch",
    },
    "kshot.preparing": {"kshot.errors", "attrs", "torch"},
    "kshot.protocols": {"kshot.episode", "kshot.preparing", "kshot.spec", "torch"},
    "kshot.functional": {"kshot.functional", "torch"},
}
"""What the lowest layers may import besides the standard library; a package stands for all its modules."""


@pytest.mark.parametrize("layer", LAYERS)
def test_the_lowest_layers_import_only_what_lies_below(layer: str, core: dict[str, list[Import]]) -> None:
    """Mathematics and values can then be read, tested and reused without the engine and the registry."""
    above = [
        f"{module}, line {found.line}: {found.module}"
        for module, all_found in core.items()
        if module == layer or module.startswith(f"{layer}.")
        for found in all_found
        if found.module.split(".")[0] not in sys.stdlib_module_names
        and not any(found.module == a or found.module.startswith(f"{a}.") for a in LAYERS[layer])
    ]
    assert above == []


def test_nothing_in_the_core_knows_the_command_line_or_the_kit(core: dict[str, list[Import]]) -> None:
    """A library that is imported in a notebook needs neither."""
    upwards = [
        f"{module}, line {found.line}: {found.module}"
        for module, all_found in core.items()
        for found in all_found
        for top in ("kshot.cli", "kshot.testing")
        if found.module.startswith(top) and not module.startswith((top, "kshot.__main__"))
    ]
    assert upwards == []


def targets(module: str, found: Import, core: dict[str, list[Import]]) -> set[str]:
    """Return the modules of the core that an import needs, without the packages that contain the importing module."""
    named = f"{found.module}.{found.name}" if f"{found.module}.{found.name}" in core else found.module
    return {named} if named in core and named != "kshot" and not f"{module}.".startswith(f"{named}.") else set()


def test_modules_of_the_core_import_each_other_in_one_direction(core: dict[str, list[Import]]) -> None:
    """Two modules in a circle can't be read or moved separately. An import inside a function, or for the type checker
    only, hides the circle but does not open it.
    """
    below = {module: set().union(*(targets(module, i, core) for i in found)) for module, found in core.items()}
    while leaves := {module for module, wanted in below.items() if not wanted & set(below)}:
        below = {module: wanted for module, wanted in below.items() if module not in leaves}
    assert sorted(below) == [], "these modules are in a circle, or above one"


WINGS = ["values", "registry", "kshot._engine", "kshot.runs", "kshot.cli"]
"""The wings of the core from the lowest to the highest; values, protocols, mathematics and data are the rest."""


def wing(module: str) -> int:
    """Return the place of a module in ``WINGS``; ``kshot.run``, the files of a run, belongs to ``kshot.runs``."""
    if module == "kshot.run":
        return WINGS.index("kshot.runs")
    found = [i for i, name in enumerate(WINGS) if module == name or module.startswith(f"{name}.")]
    return found[0] if found else WINGS.index("registry") if module.startswith("kshot.registry") else 0


def test_no_wing_imports_a_higher_one(core: dict[str, list[Import]]) -> None:
    """Values know no registry, the registry no engine, the engine no runs, and runs no command line."""
    upwards = [
        f"{module}, line {found.line}: {target}"
        for module, all_found in core.items()
        if module not in ("kshot", "kshot.__main__") and not module.startswith("kshot.testing")
        for found in all_found
        for target in targets(module, found, core)
        if wing(target) > wing(module)
    ]
    assert upwards == []


def test_no_module_of_the_core_names_a_first_party_plugin(root: Path, install: ModuleType) -> None:
    """Plugins are discovered; only first_party.toml, which answers a request for an unknown name, may name them."""
    distributions = {install.table(plugin)["name"] for plugin in install.projects()[1:]}
    packages = {name.replace("-", "_") for name in distributions}
    # Names of tasks are excluded, because they may be ordinary words: any tasks may provide a stream.
    names = distributions | packages
    for plugin in install.projects()[1:]:
        for group, entries in install.table(plugin).get("entry-points", {}).items():
            if group in ("kshot.learners", "kshot.memories", "kshot.backends"):
                names |= set(entries) - {"cuda", "mps", "lstm"}  # which are names of torch, too
    assert {"protonet", "maml", "kshot_omniglot"} <= names
    named = []
    for module, file in sources(root).items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        named += [
            f"{module}, line {node.lineno}: {node.value!r}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and node.value in names
        ]
        imported = {i.module.partition(".")[0] for i in imports_of(file.read_text("utf-8"), module)}
        named += [f"{module} imports {name}" for name in sorted(imported & packages)]
    assert named == []
