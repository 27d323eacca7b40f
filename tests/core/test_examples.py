"""The examples in the docstrings of the core run, and every public class and function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import types
from pathlib import Path
from typing import Any

import pytest

import kshot

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def is_public(module: str) -> bool:
    """Say whether no part of a module's path begins with an underscore, and it is not part of the command line."""
    parts = module.split(".")
    return not any(part.startswith("_") for part in parts) and parts[:2] != ["kshot", "cli"]


def public_modules() -> list[str]:
    """Return the names of the installed core's public modules, without importing them."""
    listed = ["kshot"]
    folders = [(list(kshot.__path__), "kshot.")]
    while folders:
        path, prefix = folders.pop()
        for info in pkgutil.iter_modules(path, prefix):
            if not is_public(info.name):
                continue
            listed.append(info.name)
            if info.ispkg:
                folders.append(([str(Path(p) / info.name.rpartition(".")[2]) for p in path], f"{info.name}."))
    return sorted(listed)


def examples_in(module: types.ModuleType) -> list[doctest.DocTest]:
    """Return the examples in the docstrings of a module and of what is defined in it."""
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, module.__name__)
    return [test for test in tests if test.examples]


def failures_of(test: doctest.DocTest) -> str:
    """Run the examples of one docstring; return the report of those that fail, or an empty string."""
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    runner.run(test, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("module", public_modules())
def test_the_examples_of_a_module_run(module: str, stateless: Any) -> None:
    """A reader copies an example, so it must work as it is written."""
    tests = examples_in(importlib.import_module(module))
    with stateless():
        assert "".join(failures_of(test) for test in tests) == ""


PUBLIC_OBJECTS = sorted(
    name
    for name in kshot.__all__
    if inspect.isroutine(getattr(kshot, name))
    or (inspect.isclass(getattr(kshot, name)) and not isinstance(getattr(kshot, name), types.GenericAlias))
)
"""The public classes and functions: neither the modules, nor aliases of types, which have no docstring."""


@pytest.mark.parametrize("name", PUBLIC_OBJECTS)
def test_a_public_name_has_an_example(name: str, stateless: Any) -> None:
    """``help(kshot.NAME)`` shows how to use it; an example of a method of a class counts for the class.

    Some of these live in private modules, so their examples are run here as well.
    """
    value = getattr(kshot, name)
    value = getattr(value, "__func__", value)  # a bound method of the process's registry
    tests = doctest.DocTestFinder(exclude_empty=True).find(value, name, module=False, globs=_globals_of(value))
    tests = [test for test in tests if test.examples]
    assert tests, f"kshot.{name} has no example in its docstring"
    with stateless():
        assert "".join(failures_of(test) for test in tests) == ""


def _globals_of(value: Any) -> dict[str, Any]:
    """Return the names of the module in which a class or function is defined, which its examples may use."""
    module = importlib.import_module(getattr(value, "__module__", "kshot"))
    return {**vars(module), "kshot": kshot}


def test_an_example_that_fails_is_reported() -> None:
    """Otherwise the tests above might pass because they run nothing."""
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert "Expected:\n    3\nGot:\n    2" in failures_of(test)
    assert examples_in(importlib.import_module("kshot.preparing"))


def test_public_modules_are_those_without_an_underscore() -> None:
    """The list is the one that the tests of imports use: no underscore in the path, and not the command line."""
    listed = public_modules()
    assert {"kshot", "kshot.spec", "kshot.inner.descent", "kshot.testing.rulebook.rule"} <= set(listed)
    assert not any(name.startswith(("kshot.cli", "kshot._")) for name in listed)
