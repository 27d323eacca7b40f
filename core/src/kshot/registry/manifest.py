"""Read ``plugin.toml``, which describes a distribution's plugins without importing them.

The file is in the import package, and an entry point of the group ``kshot.manifest`` names it::

    [project.entry-points."kshot.manifest"]
    protonet = "kshot_protonet:plugin.toml"

An example::

    api_level = 1                      # the API level of kshot that they were written for; required
    lifecycle = "stable"               # or "incubating"; the default is "stable"
    requires = ["torchaudio"]          # modules without which they do not work

    [learners.protonet]                # group and name of an entry point
    summary = "Prototypical networks"  # one line
    kinds = ["classification"]         # the kinds of tasks that it learns or provides
    paper = "arXiv:1703.05175"
    aliases = ["prototypical"]         # further names; a plugin's name beats another one's alias

Every key of a table may be omitted. A key that is not listed here is refused, because it is probably misspelt. The
keys of a manifest with another ``api_level`` are not checked, because this version of kshot does not know them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from kshot._kind_names import KIND_NAMES
from kshot.errors import PluginError
from kshot.registry.conversion import did_you_mean, printable

__all__ = ["API_LEVEL", "GROUPS", "Entry", "Manifest", "ManifestError", "parse", "read"]

API_LEVEL = 1
GROUPS = ("learners", "tasks", "memories", "backends", "hooks", "encoders")
LARGEST = 1 << 20  # bytes of a plugin.toml
LIFECYCLES = ("stable", "incubating")


class ManifestError(PluginError, ValueError):
    """Raised when a ``plugin.toml`` can't be read or is not valid; names the file and, if known, the line."""


@frozen
class Entry:
    """What the manifest says about one plugin.

    Attributes:
        summary: one line about it.
        kinds: the kinds of tasks that it learns or provides.
        paper: where its method was published.
        aliases: further names.

    Example:
        >>> Entry(summary="Prototypical networks").kinds
        ()
    """

    summary: str = ""
    kinds: tuple[str, ...] = ()
    paper: str = ""
    aliases: tuple[str, ...] = ()


@frozen
class Manifest:
    """The content of a ``plugin.toml``.

    Attributes:
        api_level: the API level that the plugins were written for.
        lifecycle: "stable" or "incubating".
        requires: modules without which the plugins do not work.
        entries: the plugins, by group and name.

    Example:
        >>> Manifest(requires=("torchaudio",)).api_level
        1
    """

    api_level: int = 1
    lifecycle: str = "stable"
    requires: tuple[str, ...] = ()
    entries: Mapping[tuple[str, str], Entry] = field(factory=dict)


def read(path: Path) -> Manifest:
    """Read a manifest from a file.

    Raises:
        ManifestError: the file can't be read or is not valid.
    """
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise ManifestError(f"{path}: got a file of {size} bytes, expected at most {LARGEST}")
        text = path.read_bytes().decode().removeprefix("\ufeff")  # without a byte order mark
    except UnicodeDecodeError as exc:
        raise ManifestError(f"{path}: got bytes, expected UTF-8 text ({exc.reason} at byte {exc.start})") from exc
    except OSError as exc:
        raise ManifestError(f"{path}: can't be read: {exc.strerror or exc}") from exc
    return parse(text, where=str(path))


def parse(text: str, *, where: str = "plugin.toml") -> Manifest:
    """Read a manifest from text.

    Args:
        text: the content of a ``plugin.toml``.
        where: the name of the file, for errors.

    Raises:
        ManifestError: the text is not a valid manifest.

    Example:
        >>> manifest = parse("api_level = 1\\n[learners.mine]\\nkinds = ['regression']")
        >>> manifest.entries["learners", "mine"].kinds
        ('regression',)
    """
    import tomllib

    try:
        document = tomllib.loads(text)
        return _manifest(document)
    except tomllib.TOMLDecodeError as exc:
        line = re.search(r"at line (\d+)", str(exc))
        place = f"{where}, line {line.group(1) if line else len(text.splitlines())}"  # "at end of document"
        raise ManifestError(f"{place}: got invalid TOML: {printable(str(exc))}") from exc
    except _Refused as exc:
        line_number = _line_of(text, exc.table, exc.key)
        place = f"{where}, line {line_number}" if line_number else where
        raise ManifestError(f"{place}: {shortened(printable(str(exc)))}") from None
    except RecursionError:  # without the cause, whose traceback has a thousand lines
        raise ManifestError(f"{where}: got values nested too deeply, expected at most lists of strings") from None
    except ValueError as exc:  # such as a number of thousands of digits
        raise ManifestError(f"{where}: got invalid TOML: {exc}") from exc


class _Refused(Exception):
    def __init__(self, table: tuple[str, ...], key: str, message: str) -> None:
        super().__init__(message)
        self.table, self.key = table, key


def _manifest(document: dict[str, Any]) -> Manifest:
    level = document.get("api_level")
    if level is None:
        raise _Refused((), "", f"got no api_level, expected api_level = {API_LEVEL}")
    if not isinstance(level, int) or isinstance(level, bool):
        raise _Refused((), "api_level", f"api_level: got {level!r}, expected an integer")
    if level != API_LEVEL:
        return Manifest(api_level=level, entries=_summaries(document))
    known = ("api_level", "lifecycle", "requires", *GROUPS)
    for key in document:
        if key not in known:
            hint = did_you_mean(key, known)
            raise _Refused((), key, f"got the unknown key {key!r}, expected one of {', '.join(known)}{hint}")
    lifecycle = document.get("lifecycle", "stable")
    if lifecycle not in LIFECYCLES:
        raise _Refused((), "lifecycle", f"lifecycle: got {lifecycle!r}, expected one of {', '.join(LIFECYCLES)}")
    entries = {}
    for group in GROUPS:
        tables = document.get(group, {})
        if not isinstance(tables, dict):
            raise _Refused((), group, f"{group}: got {tables!r}, expected tables [{group}.NAME]")
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise _Refused((group,), name, f"{group}.{name}: got {table!r}, expected a table [{group}.{name}]")
            entries[group, name] = _entry(group, name, table)
    return Manifest(level, lifecycle, _strings((), "requires", document), entries)


def _entry(group: str, name: str, table: dict[str, Any]) -> Entry:
    here = (group, name)
    known = ("summary", "kinds", "paper", "aliases")
    for key, value in table.items():
        if key not in known:
            raise _Refused(
                here,
                key,
                f"[{group}.{name}]: got the unknown key {key!r}, expected one of {', '.join(known)}"
                f"{did_you_mean(key, known)}",
            )
        if key in ("summary", "paper") and not isinstance(value, str):
            raise _Refused(here, key, f"[{group}.{name}]: got {key} = {value!r}, expected a string")
    kinds = _strings(here, "kinds", table)
    for kind in kinds:
        if kind not in KIND_NAMES:
            expected = f"{', '.join(KIND_NAMES)}{did_you_mean(kind, KIND_NAMES)}"
            raise _Refused(here, "kinds", f"[{group}.{name}]: got the kind {kind!r}, expected some of {expected}")
    aliases = _strings(here, "aliases", table)
    for alias in aliases:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", alias):
            expected = "at most 64 letters, digits, hyphens, dots and underscores"
            raise _Refused(here, "aliases", f"[{group}.{name}]: got the alias {alias!a}, expected {expected}")
    return Entry(
        summary=shortened(printable(" ".join(table.get("summary", "").split()))),
        kinds=kinds,
        paper=printable(table.get("paper", "")),
        aliases=aliases,
    )


def shortened(text: str, most: int = 400) -> str:
    """Return text of a plugin, cut to at most ``most`` characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _strings(table: tuple[str, ...], key: str, values: dict[str, Any]) -> tuple[str, ...]:
    value = values.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _Refused(table, key, f"{key}: got {value!r}, expected a list of strings")
    return tuple(map(printable, value))


def _summaries(document: dict[str, Any]) -> dict[tuple[str, str], Entry]:
    """Return what can be shown of a manifest of another API level, whose other keys are unknown here."""
    entries = {}
    for group in GROUPS:
        tables = document.get(group)
        for name, table in tables.items() if isinstance(tables, dict) else ():
            summary = table.get("summary") if isinstance(table, dict) else None
            entries[group, name] = Entry(summary=shortened(printable(summary)) if isinstance(summary, str) else "")
    return entries


def _line_of(text: str, table: tuple[str, ...], key: str) -> int | None:
    """Find the line of a key, for the message; return None if the layout is unusual. tomllib gives no positions."""
    current: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if header := re.match(r"\[\s*([^\[\]]+?)\s*\]", line):
            current = tuple(part.strip().strip("\"'") for part in header.group(1).split("."))
            if current == (*table, key) or (current[:-1] == (*table, key)):
                return number
        elif current == table and key and re.match(rf"[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return number
    return None
