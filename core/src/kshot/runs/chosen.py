"""Find the encoder plugin that the options of a learner name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from kshot import registry
from kshot.errors import UnknownPluginError
from kshot.registry.conversion import Raw
from kshot.registry.modules import names_of, takes_module
from kshot.registry.networks import asked
from kshot.registry.options import options_of

Table = dict[str, Any]


@frozen
class Chosen:
    """Store which encoder plugin the options of a learner name.

    Attributes:
        option: the learner's option that names it.
        encoder: its name and its options, ``{"name": ..., **options}``.
        task_options: the options of tasks that make inputs as the encoder takes them, as far as it says so.
        frozen: whether none of its weights are trained, and the learner can do without it on embeddings.
    """

    option: str
    encoder: Table
    task_options: Mapping[str, Any]
    frozen: bool


def chosen_encoder(learner: Mapping[str, Any]) -> Chosen | None:
    """Return the encoder plugin that the options of a learner name, or None.

    A factory of encoders may have the attribute ``task_options``: options of tasks that make inputs as the encoder
    takes them, such as ``{"size": 224}``, or a function that returns them for the options of the encoder.

    Args:
        learner: ``{"name": ..., **options}``.

    Raises:
        PluginError: the learner, or the encoder that is named, can't be used.
    """
    factory = registry.load(str(learner["name"]), "learners")
    for option in options_of(factory, skip_positional=1):
        given = learner.get(option.name)
        if given is None or not takes_module(option.annotation):
            continue
        named = asked(str(learner["name"]), option, given)
        if named is None or named[0] in names_of(option.annotation):
            continue
        name, _, model = named[0].partition(":")
        try:
            registry.find(name, "encoders")
        except UnknownPluginError:
            continue
        encoder = registry.load(name, "encoders")
        options = {**({"model": Raw(model)} if model else {}), **named[1]}
        defaults = {known.name: known.default for known in options_of(encoder, skip_positional=1)}
        suits = getattr(encoder, "task_options", {})
        return Chosen(
            option.name,
            {"name": name, **options},
            dict(suits(**options) if callable(suits) else suits),
            str(options.get("tune", defaults.get("tune"))) == "none" and "identity" in names_of(option.annotation),
        )
    return None
