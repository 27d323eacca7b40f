"""How raw examples become inputs, as a value that can be written down.

So a run predicts on a machine that has the plugins and not the data. What is written is names, numbers and tensors;
reading it runs nothing, and calls nothing but functions of installed plugins.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from attrs import frozen
from torch import Tensor

from kshot.errors import RunError

_MARK = "preparation"


@frozen(eq=False, slots=False)
class Preparation:
    """A function of a plugin and the options it is called with: raw examples -> inputs [n, *input].

    Attributes:
        function: ``module:name``.
        options: plain values, tensors and other preparations, by name.
    """

    function: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, function: Callable[..., Tensor], **options: Any) -> Preparation:
        """Call ``function(raw, **options)``; it must be a module's own, by its name."""
        return cls(f"{function.__module__}:{function.__qualname__}", options)

    def __call__(self, raw: Any) -> Tensor:
        """Raw examples as inputs [n, *input]."""
        return self.found(raw, **self.options)

    @cached_property
    def found(self) -> Callable[..., Tensor]:
        """The function.

        Raises:
            RunError: there is none, or the module has it from another one.
        """
        module, _, name = self.function.partition(":")
        try:
            found: Any = getattr(importlib.import_module(module), name, None)
        except ImportError as error:
            raise RunError(
                f"raw examples were prepared by {self.function}, which can't be imported ({error})"
            ) from error
        if not callable(found) or getattr(found, "__module__", None) != module:
            raise RunError(
                f"raw examples were prepared by {self.function}, but {module} has no such function of its own; install "
                "the version of the plugin that the run was made with"
            )
        made: Callable[..., Tensor] = found
        return made

    def to_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        options = {n: {_MARK: o.to_dict()} if isinstance(o, Preparation) else o for n, o in self.options.items()}
        return {"function": self.function, "options": options}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preparation:
        """What ``to_dict`` gave.

        Raises:
            RunError: it names no function of the core or of an installed plugin.
        """
        function = str(values["function"])
        package = function.partition(".")[0].partition(":")[0]
        if package not in packages():
            raise RunError(
                f"raw examples were prepared by {function}, which belongs to no installed plugin; install the one that "
                f"has {package!r}, or build the learner in Python and give it to kshot.Trained"
            )
        options = {
            name: cls.from_dict(option[_MARK]) if isinstance(option, dict) and _MARK in option else option
            for name, option in values["options"].items()
        }
        return cls(function, options)


def packages() -> set[str]:
    """Top-level packages of the core and of the plugins that are here."""
    from kshot.registry import plugins

    return {"kshot", *(plugin.target.partition(".")[0].partition(":")[0] for plugin in plugins())}
