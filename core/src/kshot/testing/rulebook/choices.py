"""A rule for learners: classes refuse choices that their annotations do not declare."""

from __future__ import annotations

import typing
from typing import Any

from kshot.errors import KshotError
from kshot.registry.options import options_of
from kshot.testing.rulebook.rule import Rule, add, broken
from kshot.testing.subjects import LearnerSubject


def unknown_choices_are_refused(subject: LearnerSubject) -> None:
    """A class that is called directly refuses a value that is none of the choices that its annotation declares
    (``Literal``), by an error of kshot. ``kshot.registry.check_values`` does that.
    """
    factory, spec, options = subject.source.factory, subject.cases[0].tasks.spec, subject.source.options
    try:
        factory(spec, **options)
    except Exception:  # options that only the registry can convert, such as the name of another learner
        return
    for option in options_of(factory, skip_positional=1):
        if not _choices(option.annotation):
            continue
        try:
            factory(spec, **{**options, option.name: "no-such-choice"})
        except KshotError:
            continue
        except Exception as raised:
            broken(f"{option.name}='no-such-choice': got {type(raised).__name__} ({raised}), expected an OptionError")
        broken(f"got no error for {option.name}='no-such-choice', expected an OptionError; call check_values first")


def _choices(annotation: Any) -> bool:
    """Return whether a type annotation is ``Literal``, or a union with it."""
    return typing.get_origin(annotation) is typing.Literal or any(map(_choices, typing.get_args(annotation)))


add(Rule("unknown-choices-are-refused", "learners", unknown_choices_are_refused, lambda subject: None, advice=True))
