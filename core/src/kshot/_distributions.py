"""Read the installed distributions, such that one with damaged files affects no other.

``importlib.metadata`` reads the entry points of all distributions at once and raises for the first damaged one,
without its name. Torch calls it while it is imported. This module imports nothing but the standard library.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any


def distributions() -> Iterator[Distribution]:
    """Yield the installed distributions in the order of ``sys.path``, without what an interrupted pip has left.

    Of two versions in one folder, one whose files are complete comes first, because pip removes METADATA with the
    code of the old version.
    """
    versions: dict[tuple[str, str], list[Distribution]] = {}  # by the folder that they are in, and by name
    for distribution in importlib.metadata.distributions():
        folder = _folder(distribution)
        if not _is_leftover(folder):
            name = folder.name.partition("-")[0].lower().replace(".", "_")
            versions.setdefault((str(folder.parent), name), []).append(distribution)
    for several in versions.values():
        yield from sorted(several, key=lambda d: not _is_complete(d)) if len(several) > 1 else several


def read_text(distribution: Distribution, *files: str) -> str:
    """Return the text of the first of these files that is not empty, or an empty string.

    Bytes that are not UTF-8 are replaced, so that the rest of the file can be used.
    """
    for file in files:
        try:
            text = distribution.read_text(file)
        except UnicodeDecodeError:
            folder = getattr(distribution, "_path", None)
            try:
                text = None if folder is None else folder.joinpath(file).read_bytes().decode("utf-8", "replace")
            except OSError:
                text = None
        except OSError:
            text = None
        if text:
            return text.removeprefix("\ufeff")  # the byte order mark that some editors write
    return ""


def identity(distribution: Distribution) -> tuple[str, str]:
    """Read name and version from the headers of METADATA, without parsing the long description below them."""
    head = read_text(distribution, "METADATA", "PKG-INFO").partition("\n\n")[0]
    headers = dict(re.findall(r"^(Name|Version):[ \t]*([\w.!+-]+)[ \t\r]*$", head, re.MULTILINE))
    name, _, version = re.sub(r"\.(dist|egg)-info$", "", _folder(distribution).name).partition("-")
    return headers.get("Name", name), headers.get(
        "Version", version
    )  # if partly removed or damaged, only the folder has them


def problems() -> list[str]:
    """Return a sentence about each installed distribution that is damaged or left over."""
    sentences = []
    seen: dict[tuple[str, str], str] = {}
    for distribution in importlib.metadata.distributions():
        folder = _folder(distribution)
        if _is_leftover(folder):
            sentences.append(f"{folder} was left by an interrupted pip and is ignored; remove this folder")
            continue
        if reason := _unreadable(distribution):
            sentences.append(_damaged(distribution, reason))
        name, version = identity(distribution)
        key = re.sub(r"[-_.]+", "-", name).lower(), str(folder.parent)
        if seen.setdefault(key, version) != version:
            sentences.append(
                f"{folder.parent} has two versions of {name}, {seen[key]} and {version}; install it again: "
                f"pip install --force-reinstall {name}"
            )
    return sentences


def _damaged(distribution: Distribution, reason: str) -> str:
    name, version = identity(distribution)
    return (
        f"{name} {version}: its entry_points.txt in {_folder(distribution)} can't be read ({reason}); install it "
        f"again or remove it: pip install --force-reinstall {name}, or pip uninstall {name}"
    )


def _unreadable(distribution: Distribution) -> str | None:
    """Return why ``importlib.metadata`` can't read the entry points of a distribution, or None if it can."""
    try:
        tuple(_read_entry_points(distribution))
    except UnicodeDecodeError as error:
        return f"{error.reason} at byte {error.start}"
    except Exception:
        text, section = read_text(distribution, "entry_points.txt"), False
        for number, line in enumerate(map(str.strip, text.splitlines()), 1):
            section = section or line.startswith("[")
            if section and line and line[0] not in "#[" and "=" not in line:
                return f"line {number}: got {line[:80]!r}, expected NAME = VALUE"
        return "it is malformed"
    return None


def _folder(distribution: Distribution) -> Path:
    return Path(str(getattr(distribution, "_path", "unknown")))


def _is_leftover(folder: Path) -> bool:
    """Return whether pip renamed the folder to remove it: ``~name-1.0.dist-info``, or ``-name`` by early versions."""
    return folder.name[:1] in ("~", "-")


def _is_complete(distribution: Distribution) -> bool:
    folder = _folder(distribution)
    return folder.is_file() or any((folder / file).is_file() for file in ("METADATA", "PKG-INFO"))


class BeforeTorch:
    """Check the entry points of all distributions once, before torch reads them while it is imported.

    This is a finder of ``sys.meta_path`` that finds nothing: it is asked for every module that is imported. If a
    distribution is damaged, a warning names it, and ``importlib.metadata`` finds no entry points in it from then on.
    """

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        """Return None, after the check if ``name`` is torch."""
        if name != "torch":
            return
        sys.meta_path.remove(cls)
        try:
            importlib.metadata.entry_points(group="torch.backends")
        except Exception as error:
            _tolerate()
            damaged = [(d, reason) for d in importlib.metadata.distributions() if (reason := _unreadable(d))]
            sentences = [_damaged(d, reason) for d, reason in damaged] or [f"an entry_points.txt: {error!r}"]
            warnings.warn("; ".join(sentences), stacklevel=2)

    @classmethod
    def install(cls) -> None:
        """Install this finder, unless torch is imported already."""
        if "torch" not in sys.modules and cls not in sys.meta_path:
            sys.meta_path.insert(0, cls)


_read_entry_points = Distribution.entry_points.fget  # type: ignore[attr-defined]


def _tolerate() -> None:
    """Let ``importlib.metadata`` find no entry points in a damaged distribution, where it would raise."""

    def entry_points(distribution: Distribution) -> Any:
        try:
            return _read_entry_points(distribution)
        except Exception:
            return importlib.metadata.EntryPoints(())

    setattr(Distribution, "entry_points", property(entry_points))  # noqa: B010 -- a property can't be assigned typed
