"""How raw examples become inputs, as a value that can be written down.

A run stores this value, so that it predicts on a machine that has the plugins but not the data. What is stored is the
name of a function and its options. Reading it back calls only functions that an installed distribution has registered
for this purpose: a run folder from somebody else cannot name any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import frozen
from torch import Tensor

from kshot.errors import RunError

Prepare = Callable[..., Tensor]
"""``(raw examples, **options) -> inputs [n, *input]``."""

_MARK = "preparation"


@frozen(eq=False)
class Preparation:
    """A function and the options it is called with: raw examples -> inputs [n, *input].

    To be read back from a run, the function must be registered, see ``kshot.registry.preparation``, and each of its
    options must have a type annotation.

    Attributes:
        function: a function of a module, with the raw examples as its first argument.
        options: plain values, tensors and other preparations, by name.

    Example:
        >>> from kshot.episode import as_inputs
        >>> Preparation.of(as_inputs)([[0, 1]])
        tensor([[0., 1.]])
    """

    function: Prepare
    options: Mapping[str, Any]

    @classmethod
    def of(cls, function: Prepare, **options: Any) -> Preparation:
        """Make the preparation that calls ``function(raw, **options)``."""
        return cls(function, options)

    def __call__(self, raw: Any) -> Tensor:
        """Turn raw examples into inputs [n, *input]."""
        return self.function(raw, **self.options)

    @property
    def name(self) -> str:
        """``module:function``, under which the function is registered."""
        return f"{self.function.__module__}:{self.function.__qualname__}"

    def to_dict(self) -> dict[str, Any]:
        """Return the function's name and the options, as plain values and tensors."""
        options = {n: {_MARK: o.to_dict()} if isinstance(o, Preparation) else o for n, o in self.options.items()}
        return {"function": self.name, "options": options}

    @classmethod
    def from_dict(
        cls,
        values: Mapping[str, Any],
        *,
        known: Callable[[str], bool],
        build: Callable[[str, Mapping[str, Any]], tuple[Prepare, Mapping[str, Any]]],
    ) -> Preparation:
        """Read what ``to_dict`` returned. Every name in it is checked before the first function is looked up.

        Args:
            values: from a file that may have been written by anybody.
            known: whether a function of this name may be called.
            build: (name, options) -> the function and its options, checked against the function's types.

        Raises:
            RunError: the values have another form, or name a function that may not be called.
        """
        for name in _names(values):
            if not known(name):
                raise RunError(
                    f"got inputs prepared by {name!r}, expected a function that an installed plugin has registered "
                    "(entry point group kshot.preparations); install the plugin that the run was made with, or build "
                    "the learner in Python and pass it to kshot.Trained"
                )
        return cls._build(values, build)

    @classmethod
    def _build(cls, values: Mapping[str, Any], build: Callable[..., Any]) -> Preparation:
        options = {
            name: cls._build(option[_MARK], build) if _is_nested(option) else option
            for name, option in values["options"].items()
        }
        return cls(*build(values["function"], options))


def _names(values: Any) -> Iterator[str]:
    """Yield the name of the function and of every function in its options; raise RunError for another form."""
    well_formed = (
        isinstance(values, Mapping)
        and set(values) == {"function", "options"}
        and isinstance(values["function"], str)
        and isinstance(values["options"], Mapping)
        and all(isinstance(name, str) for name in values["options"])
    )
    if not well_formed:
        raise RunError("got no preparation, expected the name of a function and its options")
    yield values["function"]
    for option in values["options"].values():
        if _is_nested(option):
            yield from _names(option[_MARK])


def _is_nested(option: Any) -> bool:
    return isinstance(option, Mapping) and _MARK in option
