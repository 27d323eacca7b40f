"""The examples in the docstrings of the first-party plugins run, and every registered component has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from importlib import metadata
from typing import Any

import pytest

import kshot

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS

PACKAGES = sorted({d.name.replace("-", "_") for d in metadata.distributions() if d.name.startswith("kshot-")})
COMPONENTS = [
    (plugin.group, plugin.name)
    for plugin in kshot.plugins()
    if plugin.distribution.startswith("kshot-") and plugin.state == "ok"
]


def modules_of(package: str) -> list[str]:
    """Return a package and its modules, without those whose path has an underscore."""
    path = importlib.import_module(package).__path__
    listed = [info.name for info in pkgutil.walk_packages(path, f"{package}.")]
    return [package, *(name for name in listed if not any(p.startswith("_") for p in name.split(".")))]


def run_examples(tests: list[doctest.DocTest]) -> str:
    """Run examples; return the report of those that fail, or an empty string."""
    report: list[str] = []
    for test in tests:
        doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_examples_of_a_plugin_run(package: str, stateless: Any) -> None:
    """A reader copies an example, so it must work as it is written, and in any folder."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [t for name in modules_of(package) for t in finder.find(importlib.import_module(name), name)]
    with stateless():
        assert run_examples(tests) == ""


@pytest.mark.parametrize(("group", "name"), COMPONENTS, ids=lambda value: value)
def test_a_registered_component_has_an_example(group: str, name: str) -> None:
    """``help`` on its class or function shows how to use it; an example of a method counts for the class."""
    factory = kshot.registry.load(name, group)
    value = factory if inspect.isclass(factory) else inspect.unwrap(factory)
    tests = doctest.DocTestFinder(exclude_empty=True).find(value, name, module=False)
    assert any(test.examples for test in tests), f"{group} {name} ({value.__module__}) has no example in its docstring"
