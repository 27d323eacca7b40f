"""Read stored files without trusting them: limits while they are read, and rules for what they must contain.

A rule is a function (value, key) that raises ``Unfit`` if the value is not of the form that kshot writes. ``fitting``
turns that into one RunError that names the file and the key. Files are checked completely before any of their values
is used, so that a damaged file changes nothing.
"""

from __future__ import annotations

import json
import math
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kshot.errors import RunError

Rule = Callable[[Any, str], None]

DEEPEST = 64
"""Greatest depth of nested containers in a file; kshot writes fewer than ten levels."""

GREATEST = 2**48
"""Greatest count in a file, so that products of counts fit into 64 bits."""

LARGEST_JSON = 2**28
"""Greatest size of a JSON file, in bytes."""

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Characters that must not reach a terminal or a path."""


class Unfit(Exception):
    """Raised by a rule; ``str`` gives *key: got ..., expected ...*."""

    def __init__(self, key: str, value: Any, expected: str) -> None:
        got = value if isinstance(value, _Words) else shown(value)
        super().__init__(f"{key or 'the content'}: got {got}, expected {expected}")


class _Words(str):
    """Text that stands in a message as it is."""


def shown(value: Any) -> str:
    """Return a short text for a value of any type and size."""
    if value is None or isinstance(value, bool | int | float | str):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return f"a value of type {type(value).__name__}"


def fitting(value: Any, rule: Rule, path: Path | str, key: str = "", *, advice: str) -> None:
    """Check a stored value by a rule.

    Raises:
        RunError: the value doesn't fit; the message names file and key.
    """
    try:
        rule(value, key)
    except Unfit as error:
        raise RunError(f"{path}: {error}; {advice}") from None


# --- Rules -----------------------------------------------------------------------------------------------------------


def optional(rule: Rule) -> Rule:
    """Return the rule that also accepts None."""

    def check(value: Any, key: str) -> None:
        if value is not None:
            rule(value, key)

    return check


def anything(value: Any, key: str) -> None:
    """Accept any value."""


def text(value: Any, key: str) -> None:
    """Accept text without control characters."""
    if not isinstance(value, str) or _CONTROL.search(value):
        raise Unfit(key, value, "text without control characters")


def truth(value: Any, key: str) -> None:
    """Accept True and False."""
    if not isinstance(value, bool):
        raise Unfit(key, value, "true or false")


def whole(least: int = 0, most: int = GREATEST) -> Rule:
    """Return the rule for whole numbers from ``least`` to ``most``."""

    def check(value: Any, key: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise Unfit(key, value, f"a whole number from {least} to {most}")

    return check


def number(value: Any, key: str) -> None:
    """Accept any number, also NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit(key, value, "a number")


def plain(value: Any, key: str) -> None:
    """Accept None, numbers, text, and lists and mappings of these; the depth was limited when the file was read."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str | int | float):
                raise Unfit(key, name, "names of plain values")
            plain(item, f"{key}.{name}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            plain(item, f"{key}[{i}]")
    elif isinstance(value, str):
        text(value, key)
    elif value is not None and not isinstance(value, bool | int | float):
        raise Unfit(key, value, "a plain value")


def mapping_of(rule: Rule) -> Rule:
    """Return the rule for mappings from text to values that fit ``rule``."""

    def check(value: Any, key: str) -> None:
        if not isinstance(value, Mapping):
            raise Unfit(key, value, "a mapping")
        for name, item in value.items():
            text(name, f"a name in {key or 'the content'}")
            rule(item, f"{key}.{name}" if key else name)

    return check


def list_of(rule: Rule, least: int = 0) -> Rule:
    """Return the rule for lists of at least ``least`` values that fit ``rule``."""

    def check(value: Any, key: str) -> None:
        if not isinstance(value, list | tuple) or len(value) < least:
            raise Unfit(key, value, f"a list of at least {least}" if least else "a list")
        for i, item in enumerate(value):
            rule(item, f"{key}[{i}]")

    return check


def fields(required: Mapping[str, Rule], more: Mapping[str, Rule] | None = None, *, others: bool = False) -> Rule:
    """Return the rule for mappings with certain keys.

    Args:
        required: rules of the keys that must be there.
        more: rules of the keys that may be missing.
        others: whether there may be other keys.
    """
    rules = {**required, **(more or {})}

    def check(value: Any, key: str) -> None:
        mapping_of(anything)(value, key)
        for name in required:
            if name not in value:
                raise Unfit(f"{key}.{name}" if key else name, _Words("nothing"), "a value")
        for name, item in value.items():
            if name in rules:
                rules[name](item, f"{key}.{name}" if key else name)
            elif not others:
                raise Unfit(key, name, f"only the keys {', '.join(rules)}")

    return check


def tensor(value: Any, key: str) -> None:
    """Accept a tensor that is no part of a graph."""
    if not isinstance(value, Tensor) or value.requires_grad:
        raise Unfit(key, value, "a tensor without gradients")


# --- Files -----------------------------------------------------------------------------------------------------------


def read_json(path: Path, *, most: int = LARGEST_JSON) -> dict[str, Any]:
    """Read a JSON file whose content is a mapping.

    Raises:
        RunError: the file can't be read, is too large or nested too deeply, or is not a JSON object.
    """
    try:
        if not path.is_file():
            raise OSError("it is not a file")
        if (size := path.stat().st_size) > most:
            raise ValueError(f"got {size} bytes, expected at most {most}")
        value = json.loads(path.read_text(encoding="utf-8"))
        _limit(value, most)
    except RecursionError:
        raise RunError(f"{path} can't be read: got nested values, expected at most {DEEPEST} levels") from None
    except (OSError, ValueError, MemoryError) as error:
        raise RunError(f"{path} can't be read: {error or type(error).__name__}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} can't be read: got {shown(value)}, expected a JSON object")
    return value


def read_torch(path: Path, *, what: str, advice: str) -> Any:
    """Read a file of ``torch.save`` with plain containers, numbers, text and dense tensors; no code in it is executed.

    Args:
        what: the kind of file, for messages: ``a checkpoint``.
        advice: what to do if it can't be read.

    Raises:
        RunError: the file is truncated, corrupt, compressed, or its values are larger than the file.
    """
    try:
        if not path.is_file():
            raise OSError("it is not a file")
        _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(path, map_location="cpu", weights_only=True)
        _limit(value, path.stat().st_size)
    except OSError as error:
        raise RunError(f"{path}: can't be read ({type(error).__name__}: {error}); {advice}") from error
    except Exception as error:  # torch raises errors of many types on damaged bytes, some of which give bad advice
        raise RunError(
            f"{path}: got a file that is truncated, corrupt or not {what} ({type(error).__name__}); {advice}"
        ) from None
    return value


def _check_archive(path: Path) -> None:
    """Raise ValueError unless a file is an archive whose members take exactly the room that they claim."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    stored = all(m.compress_type == zipfile.ZIP_STORED and m.compress_size == m.file_size for m in members)
    if not stored or sum(m.file_size for m in members) > path.stat().st_size:
        raise ValueError("compressed")


def _limit(value: Any, size: int) -> None:
    """Raise ValueError if nested values are deeper or larger than a file of ``size`` bytes may say.

    A few bytes can describe lists that contain one another, or a tensor of 2^40 elements that share one.
    """
    waiting, count = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        count += 1
        if depth > DEEPEST or count > max(size, 1000):
            raise ValueError(f"got nested values, expected at most {DEEPEST} levels and as many values as bytes")
        if isinstance(item, Tensor):
            _limit_tensor(item, size)
        elif isinstance(item, dict):
            waiting += [(inner, depth + 1) for inner in item.values()]
            waiting += [(key, depth + 1) for key in item if isinstance(key, tuple)]
            if isinstance(item, OrderedDict):
                _check_attributes(item)
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += [(inner, depth + 1) for inner in item]


def _limit_tensor(item: Tensor, size: int) -> None:
    usual = type(item) in (Tensor, nn.Parameter) and not vars(item) and item.device.type == "cpu"
    if usual and item.layout is torch.sparse_coo:  # as buffers of a learner may be; only their elements are stored
        _limit_tensor(item._indices(), size)
        _limit_tensor(item._values(), size)
        return
    if not usual or item.layout is not torch.strided or item.is_quantized or item.is_conj() or item.is_neg():
        raise ValueError("an unusual tensor")
    if item.numel() * item.element_size() > size:
        raise ValueError("a tensor that is larger than its file")


def _check_attributes(item: OrderedDict[Any, Any]) -> None:
    """Check the attribute of a module's ``state_dict``: ``_metadata``, the versions of its modules."""
    for name, value in vars(item).items():
        usual = name == "_metadata" and isinstance(value, dict)
        versions = [v.get("version", 1) if isinstance(v, dict) else None for v in value.values()] if usual else [None]
        if not all(type(v) is int for v in versions):
            raise ValueError("unusual attributes")


def finite(value: Tensor) -> bool:
    """Return whether all elements of a tensor are finite numbers."""
    if value.layout is torch.sparse_coo:
        value = value._values()
    return not (value.is_floating_point() or value.is_complex()) or bool(torch.isfinite(value).all())


def is_finite(value: Any) -> bool:
    """Return whether a value is a number other than NaN and infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < GREATEST if isinstance(value, int) else math.isfinite(value)
