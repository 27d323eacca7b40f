"""Find the installed plugins by their entry points and ``plugin.toml`` files, without importing them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution
from pathlib import Path

from attrs import evolve

from kshot._distributions import distributions, identity, read_text
from kshot.registry.conversion import printable
from kshot.registry.manifest import API_LEVEL, GROUPS, Entry, Manifest, ManifestError, read
from kshot.registry.plugin import LONGEST, NAME, Plugin, State

STALE = "stale entry point"
_INSTALL_AS = {"sklearn": "scikit-learn", "PIL": "pillow", "cv2": "opencv-python", "yaml": "pyyaml"}
_NOT_PLUGINS = ("manifest", "preparations", "devices")  # groups of entry points that do not name plugins
_Line = tuple[str, str, str]  # of entry_points.txt: group without 'kshot.', name, value


def _builtin(group: str, name: str, target: str, summary: str) -> Plugin:
    return Plugin(name, group, "kshot", "", target, summary=summary, builtin=True)


_BUILTINS = (
    _builtin("backends", "cpu", "kshot._engine.cpu:Cpu", "The processor of this machine"),
    _builtin("tasks", "embedded", "kshot.runs.embedded:Embedded", "Embeddings of a frozen encoder, computed once"),
    _builtin("encoders", "run", "kshot.runs.encoders:RunEncoder", "The encoder of a trained run"),
    _builtin("hooks", "progress", "kshot._engine.builtin_hooks:Progress", "A progress bar"),
    _builtin("hooks", "metrics", "kshot._engine.builtin_hooks:MetricsLog", "Metrics as JSON lines in the run folder"),
)
_BUILTIN_PREPARATIONS = frozenset({"kshot.episode:as_inputs", "kshot.runs.embedded:prepared"})


def installed() -> Iterator[tuple[Plugin, ManifestError | None]]:
    """Yield every plugin of every distribution on sys.path, in the state that is known without importing it.

    Each comes with the exception that caused this state, or None.
    """
    _top_spec.cache_clear()  # something may have been installed since the last listing
    try:
        version = importlib.metadata.distribution("kshot").version
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        version = ""
    for plugin in _BUILTINS:
        yield evolve(plugin, version=version), None
    seen: set[str] = set()
    for distribution in distributions():
        if lines := _entry_lines(distribution):
            name, version = map(printable, identity(distribution))
            normal = re.sub(r"[-_.]+", "-", name).lower()
            if normal not in seen:  # Python imports the code of the first one on sys.path
                seen.add(normal)
                yield from _plugins_of(name, version, lines)


def preparations() -> frozenset[str]:
    """Return every function that an installed distribution has registered as preparing inputs, as ``module:function``.

    A plugin registers a function by an entry point of the group ``kshot.preparations``. None of them is imported.

    Example:
        >>> "kshot.episode:as_inputs" in preparations()
        True
    """
    lines = (line for distribution in distributions() for line in _entry_lines(distribution))
    return _BUILTIN_PREPARATIONS | {target for group, _, target in lines if group == "preparations"}


def devices() -> dict[str, str]:
    """Return for each backend that may be chosen by itself the function that says whether its device is present.

    A plugin registers it by an entry point of the group ``kshot.devices``, as ``module:function``. None is imported.

    Example:
        >>> "cpu" in devices()
        False
    """
    lines = (line for distribution in distributions() for line in _entry_lines(distribution))
    return {name: target for group, name, target in lines if group == "devices"}


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
        misnamed = _misnamed(plugin_name, target, name)
        state, reason = misnamed or (problem and ("broken", str(problem))) or _needs(manifest, name)
        plugin = Plugin(
            name=plugin_name,
            group=group,
            distribution=name,
            version=version,
            target=target,
            state=state,
            reason=reason,
            summary=entry.summary,
            kinds=entry.kinds,
            lifecycle=manifest.lifecycle,
            api_level=manifest.api_level,
            aliases=entry.aliases,
        )
        yield plugin, problem if reason == str(problem) else None
    for (group, plugin_name), entry in entries.items() if manifest.api_level == API_LEVEL else ():
        reason = (
            f"plugin.toml describes it, but {name} {version} has no such entry point in kshot.{group}: "
            f"correct the name, or install {name} again if the entry point was added later"
        )
        plugin_name = ascii(plugin_name)[1:-1][:LONGEST]  # it need not be a valid name
        yield Plugin(plugin_name, group, name, version, "", "broken", reason, entry.summary, entry.kinds), None


def _misnamed(name: str, target: str, owner: str) -> tuple[State, str] | None:
    """Return the state and the reason if an entry point of the distribution ``owner`` is itself wrong, or None."""
    module = target.partition(":")[0]
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", target):
        return "broken", f"got the entry point {target!r}, expected 'module:attribute'"
    if not re.fullmatch(NAME, name):
        # Escape letters that look like others, such as a Cyrillic p.
        return "broken", f"got the name {name!a}, expected lower-case letters, digits and hyphens"
    if len(name) > LONGEST:
        return "broken", f"got a name of {len(name)} letters, expected at most {LONGEST}"
    if _module_spec(module, _top_spec) is None:
        return "broken", (
            f"{STALE}: the module {module} does not exist, although {owner} is installed; it may be only partly "
            f"removed: pip install --force-reinstall {owner}, or pip uninstall {owner}"
        )
    return None


def _needs(manifest: Manifest, distribution: str) -> tuple[State, str]:
    """Return the state and the reason: whether the API level fits and the required modules are installed."""
    if manifest.api_level != API_LEVEL:
        update = "kshot" if manifest.api_level > API_LEVEL else distribution
        speaks = f"needs API level {manifest.api_level}, this kshot speaks {API_LEVEL}"
        return "incompatible", f"{speaks}: pip install -U {update}"
    missing = [name for name in manifest.requires if _module_spec(name, _top_spec) is None]
    if missing:
        install = " ".join(_INSTALL_AS.get(top, top) for top in (name.split(".")[0] for name in missing))
        return "unavailable", f"needs {', '.join(missing)}, not installed: pip install {install}"
    return "ok", ""


# -------------------- reading files


def _entry_lines(distribution: Distribution) -> list[_Line]:
    """Return the entry points of kshot's groups. The value of a malformed line is an empty string."""
    # Parse the file here instead of by importlib.metadata: most distributions are not plugins, and one malformed
    # line, for which importlib.metadata raises an exception, must affect one plugin only.
    text = read_text(distribution, "entry_points.txt")
    if "kshot." not in text:
        return []
    entries, group = [], ""
    for line in map(str.strip, map(printable, text.splitlines())):
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
        elif line and line[0] not in "#;" and group.startswith("kshot.") and group[6:] in (*GROUPS, *_NOT_PLUGINS):
            name, _, value = map(str.strip, line.partition("="))
            value = re.sub(r"\s*\[[^\]]*\]$", "", value)  # extras are ignored
            entries.append((group[6:], name, re.sub(r"\s*:\s*", ":", value)))
    return entries


def _manifest(values: list[str]) -> Manifest:
    """Read the manifest that the entry points in ``kshot.manifest`` name.

    Raises:
        ManifestError: there are several, the entry point is malformed, or the file is missing or wrong.
    """
    if not values:
        return Manifest()
    if len(values) > 1:
        raise ManifestError(f"kshot.manifest: got {', '.join(values)}, expected one plugin.toml per distribution")
    if not re.fullmatch(r"[\w.]+:[\w.-]+", values[0]):
        raise ManifestError(f"kshot.manifest: got the entry point {values[0]!r}, expected 'package:plugin.toml'")
    package, _, file = values[0].partition(":")
    spec = _module_spec(package, _top_spec)
    for place in (spec and spec.submodule_search_locations) or ():
        path = Path(place, file)
        try:
            there = path.is_file()
        except (OSError, ValueError) as exc:  # a folder that can't be read, a name that is too long
            raise ManifestError(f"{path}: can't be read: {exc}") from exc
        if there:
            return read(path)
    relative = f"{package.replace('.', '/')}/{file}"
    raise ManifestError(f"{relative} does not exist, although an entry point in kshot.manifest names it")


@lru_cache
def _top_spec(package: str) -> ModuleSpec | None:
    """Find a package; one listing of the plugins asks for each several times, and every search reads many folders."""
    return importlib.util.find_spec(package)


def module_spec(module: str) -> ModuleSpec | None:
    """Find a module without importing anything, not even its parent packages; return None if it does not exist."""
    return _module_spec(module, importlib.util.find_spec)


def _module_spec(module: str, find: Callable[[str], ModuleSpec | None]) -> ModuleSpec | None:
    top, *rest = module.split(".")
    try:
        spec = find(top)
        for name in rest:
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(f"{spec.name}.{name}", list(spec.submodule_search_locations))
    except (ImportError, ValueError, AttributeError, OSError):
        return None
    return spec
