"""``plugin.toml``: what can be said about a distribution's plugins without importing them.

The file lies in the import package, and an entry point of the group ``kshot.manifest`` says where::

    [project.entry-points."kshot.manifest"]
    protonet = "kshot_protonet:plugin.toml"

It looks like this::

    api_level = 1                      # of the kshot they were written for; required
    lifecycle = "stable"               # or "incubating"; stable where left out
    requires = ["torchaudio"]          # import names without which they do not work

    [learners.protonet]                # an entry point: learners, tasks, memories, backends or hooks
    summary = "Prototypical networks"  # one line
    kinds = ["classification"]         # what kinds of task it takes or gives
    paper = "arXiv:1703.05175"
    aliases = ["prototypical"]         # further names, as unique as the name itself

All of a table may be left out. A key that is not listed here is refused, being a slip of the pen; except
where ``api_level`` is another than this kshot's, which can't know what such a manifest says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from kshot.errors import PluginError
from kshot.registry.options import did_you_mean
from kshot.spec import KIND_NAMES

__all__ = ["API_LEVEL", "GROUPS", "Entry", "Manifest", "ManifestError", "parse", "read"]

API_LEVEL = 1
GROUPS = ("learners", "tasks", "memories", "backends", "hooks")
LIFECYCLES = ("stable", "incubating")


class ManifestError(PluginError, ValueError):
    """A ``plugin.toml`` can't be read, or says what it can't say.

    Names the file and, where known, the line.
    """


@frozen
class Entry:
    """What the manifest says of one plugin."""

    summary: str = ""
    kinds: tuple[str, ...] = ()
    paper: str = ""
    aliases: tuple[str, ...] = ()


@frozen
class Manifest:
    """A whole ``plugin.toml``; ``entries`` by group and name."""

    api_level: int = 1
    lifecycle: str = "stable"
    requires: tuple[str, ...] = ()
    entries: Mapping[tuple[str, str], Entry] = field(factory=dict)


def read(path: Path) -> Manifest:
    """The manifest in a file. Raises ManifestError."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ManifestError(f"{path}: not UTF-8 text ({exc.reason} at byte {exc.start})") from exc
    except OSError as exc:
        raise ManifestError(f"{path}: can't be read: {exc.strerror or exc}") from exc
    return parse(text, where=str(path))


def parse(text: str, *, where: str = "plugin.toml") -> Manifest:
    """The manifest that ``text`` writes. Raises ManifestError with ``where`` and the line."""
    import tomllib

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        line = re.search(r"at line (\d+)", str(exc))
        place = f"{where}, line {line.group(1) if line else len(text.splitlines())}"  # "at end of document"
        raise ManifestError(f"{place}: not valid TOML: {exc}") from exc
    try:
        return _manifest(document)
    except _Refused as exc:
        line_number = _line_of(text, exc.table, exc.key)
        place = f"{where}, line {line_number}" if line_number else where
        raise ManifestError(f"{place}: {exc}") from None


class _Refused(Exception):
    def __init__(self, table: tuple[str, ...], key: str, message: str) -> None:
        super().__init__(message)
        self.table, self.key = table, key


def _manifest(document: dict[str, Any]) -> Manifest:
    level = document.get("api_level")
    if level is None:
        raise _Refused((), "", f"api_level is missing; this kshot speaks api_level = {API_LEVEL}")
    if not isinstance(level, int) or isinstance(level, bool):
        raise _Refused((), "api_level", f"api_level must be an integer, got {level!r}")
    if level != API_LEVEL:
        return Manifest(api_level=level, entries=_summaries(document))
    known = ("api_level", "lifecycle", "requires", *GROUPS)
    for key in document:
        if key not in known:
            raise _Refused((), key, f"unknown key {key!r}{did_you_mean(key, known)} (known: {', '.join(known)})")
    lifecycle = document.get("lifecycle", "stable")
    if lifecycle not in LIFECYCLES:
        raise _Refused((), "lifecycle", f"lifecycle must be one of {', '.join(LIFECYCLES)}, got {lifecycle!r}")
    entries = {}
    for group in GROUPS:
        tables = document.get(group, {})
        if not isinstance(tables, dict):
            raise _Refused((), group, f"{group} must be tables [{group}.NAME], got {tables!r}")
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise _Refused((group,), name, f"{group}.{name} must be a table [{group}.{name}], got {table!r}")
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
                f"unknown key {key!r} in [{group}.{name}]{did_you_mean(key, known)} (known: {', '.join(known)})",
            )
        if key in ("summary", "paper") and not isinstance(value, str):
            raise _Refused(here, key, f"{key} of [{group}.{name}] must be a string, got {value!r}")
    kinds = _strings(here, "kinds", table)
    for kind in kinds:
        if kind not in KIND_NAMES:
            hint, known_kinds = did_you_mean(kind, KIND_NAMES), ", ".join(KIND_NAMES)
            raise _Refused(here, "kinds", f"kinds of [{group}.{name}] has {kind!r}{hint} (known: {known_kinds})")
    return Entry(
        summary=" ".join(table.get("summary", "").split()),
        kinds=kinds,
        paper=table.get("paper", ""),
        aliases=_strings(here, "aliases", table),
    )


def _strings(table: tuple[str, ...], key: str, values: dict[str, Any]) -> tuple[str, ...]:
    value = values.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise _Refused(table, key, f"{key} must be a list of strings, got {value!r}")
    return tuple(value)


def _summaries(document: dict[str, Any]) -> dict[tuple[str, str], Entry]:
    """What can be shown of a manifest of another API level, whose other keys we don't know."""
    found = {}
    for group in GROUPS:
        tables = document.get(group)
        for name, table in tables.items() if isinstance(tables, dict) else ():
            summary = table.get("summary") if isinstance(table, dict) else None
            found[group, name] = Entry(summary=summary if isinstance(summary, str) else "")
    return found


def _line_of(text: str, table: tuple[str, ...], key: str) -> int | None:
    """The line of a key, for the message. tomllib gives no positions; None where the layout is unusual."""
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
