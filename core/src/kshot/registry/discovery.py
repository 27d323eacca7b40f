"""Finds the installed plugins: entry points say where they are, ``plugin.toml`` what they are. Imports none."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution
from pathlib import Path

from attrs import evolve

from kshot.registry.manifest import API_LEVEL, GROUPS, Entry, Manifest, ManifestError, read
from kshot.registry.plugin import NAME, Plugin, State

STALE = "stale entry point"
_INSTALL_AS = {"sklearn": "scikit-learn", "PIL": "pillow", "cv2": "opencv-python", "yaml": "pyyaml"}
_NOT_PLUGINS = ("manifest", "preparations")  # groups of entry points that name something else than plugins
_Line = tuple[str, str, str]  # of entry_points.txt: group without 'kshot.', name, value


def _builtin(group: str, name: str, target: str, summary: str) -> Plugin:
    return Plugin(name, group, "kshot", "", target, summary=summary, builtin=True)


_BUILTINS = (
    _builtin("backends", "cpu", "kshot._engine.cpu:Cpu", "The processor of this machine"),
    _builtin("hooks", "progress", "kshot._engine.builtin_hooks:Progress", "A progress bar"),
    _builtin("hooks", "metrics", "kshot._engine.builtin_hooks:MetricsLog", "Metrics as JSON lines in the run folder"),
)
_BUILTIN_PREPARATIONS = frozenset({"kshot.episode:as_inputs"})


def installed() -> Iterator[tuple[Plugin, ManifestError | None]]:
    """Every plugin of every distribution on sys.path, in the state that can be told without importing it.

    With the exception that put it into this state, where one did.
    """
    try:
        version = importlib.metadata.distribution("kshot").version
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        version = ""
    for plugin in _BUILTINS:
        yield evolve(plugin, version=version), None
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        if lines := _entry_lines(distribution):
            name, version = _identity(distribution)
            normal = re.sub(r"[-_.]+", "-", name).lower()
            if normal not in seen:  # the first on sys.path is the one whose code is imported
                seen.add(normal)
                yield from _plugins_of(name, version, lines)


def preparations() -> frozenset[str]:
    """``module:function`` of every function that an installed distribution has registered as preparing inputs.

    A plugin registers one by an entry point of the group ``kshot.preparations``. Imports none of them.
    """
    lines = (line for distribution in importlib.metadata.distributions() for line in _entry_lines(distribution))
    return _BUILTIN_PREPARATIONS | {target for group, _, target in lines if group == "preparations"}


def _plugins_of(name: str, version: str, lines: list[_Line]) -> Iterator[tuple[Plugin, ManifestError | None]]:
    manifest, problem = Manifest(), None
    try:
        manifest = _manifest([value for group, _, value in lines if group == "manifest"])
    except ManifestError as exc:
        problem = exc
    entries = dict(manifest.entries)
    for group, plugin_name, target in lines:
        if group in _NOT_PLUGINS:
            continue
        entry = entries.pop((group, plugin_name), Entry())
        plugin = Plugin(
            name=plugin_name,
            group=group,
            distribution=name,
            version=version,
            target=target,
            summary=entry.summary,
            kinds=entry.kinds,
            lifecycle=manifest.lifecycle,
            api_level=manifest.api_level,
            aliases=entry.aliases,
        )
        state, reason = _misnamed(plugin) or (problem and ("broken", str(problem))) or _needs(manifest, name)
        yield evolve(plugin, state=state, reason=reason), problem if reason == str(problem) else None
    for (group, plugin_name), entry in entries.items() if manifest.api_level == API_LEVEL else ():
        reason = (
            f"plugin.toml describes it, but {name} {version} has no such entry point in kshot.{group}: "
            f"correct the name, or install {name} again if it was added since"
        )
        yield Plugin(plugin_name, group, name, version, "", "broken", reason, entry.summary, entry.kinds), None


def _misnamed(plugin: Plugin) -> tuple[State, str] | None:
    """What is wrong with the entry point itself."""
    module = plugin.target.partition(":")[0]
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", plugin.target):
        return "broken", f"its entry point is {plugin.target!r}, not 'module:attribute'"
    if not re.fullmatch(NAME, plugin.name):
        return "broken", f"{plugin.name!r} is no name for a plugin; small letters, digits and hyphens are"
    if module_spec(module) is None:
        owner = plugin.distribution
        return "broken", (
            f"{STALE}: module {module} is not there, though {owner} is installed; it may be half "
            f"removed: pip install --force-reinstall {owner}, or pip uninstall {owner}"
        )
    return None


def _needs(manifest: Manifest, distribution: str) -> tuple[State, str]:
    """Whether what the manifest asks for is here."""
    if manifest.api_level != API_LEVEL:
        update = "kshot" if manifest.api_level > API_LEVEL else distribution
        speaks = f"needs API level {manifest.api_level}, this kshot speaks {API_LEVEL}"
        return "incompatible", f"{speaks}: pip install -U {update}"
    missing = [name for name in manifest.requires if module_spec(name) is None]
    if missing:
        install = " ".join(_INSTALL_AS.get(top, top) for top in (name.split(".")[0] for name in missing))
        return "unavailable", f"needs {', '.join(missing)}, not installed: pip install {install}"
    return "ok", ""


# -------------------- reading what is on the disk


def _text(distribution: Distribution, *files: str) -> str:
    """The first of these files that says anything, or ''."""
    try:
        return next(filter(None, map(distribution.read_text, files)), "")
    except (OSError, UnicodeDecodeError):
        return ""


def _entry_lines(distribution: Distribution) -> list[_Line]:
    """The lines of our groups. A value is '' where the line can't be read."""
    # Read by hand: of a hundred installed distributions a few are ours, and one malformed line (which
    # importlib.metadata would raise for) must cost one plugin only.
    text = _text(distribution, "entry_points.txt")
    if "kshot." not in text:
        return []
    found, group = [], ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and line[0] not in "#;" and group.startswith("kshot.") and group[6:] in (*GROUPS, *_NOT_PLUGINS):
            name, _, value = map(str.strip, line.partition("="))
            value = re.sub(r"\s*\[[^\]]*\]$", "", value)  # extras mean nothing to us
            found.append((group[6:], name, re.sub(r"\s*:\s*", ":", value)))
    return found


def _identity(distribution: Distribution) -> tuple[str, str]:
    """Name and version from the headers of METADATA, without parsing the long description below them."""
    head = _text(distribution, "METADATA", "PKG-INFO").partition("\n\n")[0]
    headers = dict(re.findall(r"^(Name|Version):[ \t]*(\S+)", head, re.MULTILINE))
    folder = Path(str(getattr(distribution, "_path", "unknown"))).name  # half removed: only the folder tells
    name, _, version = re.sub(r"\.(dist|egg)-info$", "", folder).partition("-")
    return headers.get("Name", name), headers.get("Version", version)


def _manifest(values: list[str]) -> Manifest:
    """The manifest that the entry points in ``kshot.manifest`` name. Raises ManifestError."""
    if not values:
        return Manifest()
    if len(values) > 1:
        raise ManifestError(f"kshot.manifest has {', '.join(values)}; one plugin.toml describes a distribution")
    if not re.fullmatch(r"[\w.]+:[\w.-]+", values[0]):
        raise ManifestError(f"its entry point in kshot.manifest is {values[0]!r}, not 'package:plugin.toml'")
    package, _, file = values[0].partition(":")
    spec = module_spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        if (path := Path(place, file)).is_file():
            return read(path)
    relative = f"{package.replace('.', '/')}/{file}"
    raise ManifestError(f"{relative} is not there, though an entry point in kshot.manifest names it")


def module_spec(module: str) -> ModuleSpec | None:
    """Where a module is, told without importing anything, its parents included."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        for name in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(f"{spec.name}.{name}", list(spec.submodule_search_locations))
    except (ImportError, ValueError, AttributeError, OSError):
        return None
    return spec
