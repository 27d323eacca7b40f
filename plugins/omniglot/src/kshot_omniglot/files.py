"""Where drawings come from: Omniglot's two parts, each a zip or a folder, looked through before anything is decoded."""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import frozen

from kshot.errors import DataError

PARTS = ("images_background", "images_evaluation")
_LARGEST = 1 << 20  # bytes of a drawing; the originals have under 1500
_DRAWING = re.compile(r"([^/]+)/(character\d+)/(\d+_\d+\.png)")
_LEADS_OUT = re.compile(r"[/\\]|[A-Za-z]:|(?:.*[/\\])?\.\.(?:[/\\]|$)", re.DOTALL)  # absolute, a drive, or up


@frozen(order=True)
class Character:
    """A character that someone drew: ``drawings`` times."""

    part: str
    alphabet: str
    number: str
    drawings: int

    @property
    def name(self) -> str:
        """``Alphabet/characterNN``."""
        return f"{self.alphabet}/{self.number}"


@frozen
class Listing:
    """What is in the parts, in the order in which it is decoded: by part, alphabet, character and file name.

    Attributes:
        characters: with their number of drawings.
        job: for each part its zip or folder and the drawings in it.
        key: identifies these contents; two zips of the same drawings may have different ones.
    """

    characters: tuple[Character, ...]
    job: tuple[tuple[str, tuple[str, ...]], ...]
    key: str


def locate(root: Path) -> dict[str, Path]:
    """The zip or folder of each part under ``root``.

    ``root`` holds ``images_background`` and ``images_evaluation``, as zips or unpacked (a zip is preferred: one file
    is looked through faster than 32,460), or is one of the four itself, or holds them in ``omniglot-py`` (where
    torchvision puts them), ``python`` (a clone of the original repository) or ``omniglot``.

    Raises:
        DataError: ``root`` or a part of it isn't there.
    """
    root = root.expanduser().absolute()
    if not root.exists():
        raise DataError(f"omniglot: root is {root}, which does not exist; expected a folder with {_wanted()}")
    home = root.parent if root.stem in PARTS and (root.is_dir() or root.suffix == ".zip") else root
    for folder in (home, home / "omniglot-py", home / "python", home / "omniglot"):
        found = find_parts(folder)
        if len(found) == len(PARTS):
            return found
        if found:
            lacking = next(p for p in PARTS if p not in found)
            raise DataError(
                f"omniglot: {folder} has {', '.join(p.name for p in found.values())}, but neither {lacking}.zip nor "
                f"a folder {lacking}; put it beside the other, or fetch both with download=True"
            )
    raise DataError(f"omniglot: root is {root}, in which there is no data; expected {_wanted()}")


def _wanted() -> str:
    return " and ".join(f"{p}.zip (or a folder {p})" for p in PARTS)


def find_parts(folder: Path) -> dict[str, Path]:
    """The parts that lie directly in ``folder``."""
    found = {}
    for part in PARTS:
        archive, unpacked = folder / f"{part}.zip", folder / part
        if archive.is_file() or unpacked.is_dir():
            found[part] = archive if archive.is_file() else unpacked
    return found


def place_key(parts: Mapping[str, Path]) -> str | None:
    """Identifies zips by place, size and times without opening them; None where a part is a folder."""
    values: list[object] = []
    for part, path in parts.items():
        if not path.is_file():
            return None
        stat = path.stat()
        values += [part, str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return _digest(map(str, values))


def look_through(parts: Mapping[str, Path]) -> Listing:
    """All drawings of the parts.

    Raises:
        DataError: a zip is damaged, a name leads out of its folder, a picture lies outside the layout
            ``<part>/<Alphabet>/<characterNN>/<id>_<drawer>.png``, or a part holds no drawings.
    """
    characters: list[Character] = []
    job = []
    identity: list[str] = []
    for part, path in parts.items():
        entries = sorted(_folder_entries(path) if path.is_dir() else _zip_entries(path, part))
        if not entries:
            raise DataError(f"{path}: no drawings in it; expected <Alphabet>/<characterNN>/<id>_<drawer>.png")
        counts: dict[tuple[str, str], int] = {}
        for alphabet, number, *_ in entries:
            counts[alphabet, number] = counts.get((alphabet, number), 0) + 1
        characters += [Character(part, a, n, count) for (a, n), count in counts.items()]
        job.append((str(path), tuple(e[3] for e in entries)))
        identity += [part, str(path) if path.is_dir() else "", *("/".join(e) for e in entries)]
    return Listing(tuple(characters), tuple(job), _digest(identity))


def _digest(values: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(values).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


# Entries are (alphabet, character, file name, name within zip or folder, what tells other contents).
_Entry = tuple[str, str, str, str, str]


def _zip_entries(path: Path, part: str) -> list[_Entry]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{path}: can't be read as a zip ({error}); it is damaged or was cut off: delete it and fetch it anew"
        ) from error
    entries = []
    for info in infos:
        name = info.filename
        _check_inside(path, name)
        if not _is_drawing(name):
            continue
        inner = name.removeprefix(f"{part}/")
        if info.file_size > _LARGEST:
            raise DataError(f"{path}: {name} has {info.file_size} bytes; expected a drawing of at most {_LARGEST}")
        entries.append((*_match(path, inner), name, f"{info.file_size}:{info.CRC}"))
    if len({e[3] for e in entries}) < len(entries):
        raise DataError(f"{path}: two of its entries have the same name; expected each drawing once")
    return entries


def _check_inside(path: Path, name: str) -> None:
    """Nothing is ever unpacked, but a zip that tries is not the one the user believes it is."""
    if _LEADS_OUT.match(name):
        raise DataError(f"{path}: the entry {name!r} leads out of the folder; don't use this zip, fetch the original")


def _is_drawing(name: str) -> bool:
    """Whether it is a picture; the leavings of file managers are not."""
    return name.lower().endswith(".png") and not name.startswith("__MACOSX/") and "/._" not in name


def _match(path: Path, inner: str) -> tuple[str, str, str]:
    found = _DRAWING.fullmatch(inner)
    if found is None:
        raise DataError(f"{path}: {inner!r} lies outside the layout <Alphabet>/<characterNN>/<id>_<drawer>.png")
    return found[1], found[2], found[3]


def _folder_entries(path: Path) -> Iterator[_Entry]:
    for relative, entry in _walk(path, ""):
        if _is_drawing(relative):
            stat = entry.stat()
            what = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
            yield (*_match(path, relative), relative, what)


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry


def check_complete(
    characters: Sequence[Character], names: Iterable[str], counts: Mapping[str, int], where: str
) -> None:
    """Raises DataError unless the parts hold as many characters as they should, and those of these names."""
    expected = set(names)
    for part, count in counts.items():
        held = {c.name for c in characters if c.part == part}
        if len(held) != count:
            raise DataError(
                f"{where}: {part} has {len(held)} characters, expected {count}{_differs(expected, characters)}; "
                "fetch the originals anew, or unpack them wholly"
            )
    if {c.name for c in characters} != expected:
        raise DataError(f"{where}: other characters than Omniglot's{_differs(expected, characters)}")


def _differs(expected: set[str], characters: Sequence[Character]) -> str:
    held = {c.name for c in characters}
    lacking, strange = sorted(expected - held), sorted(held - expected)
    told = [f"{what} are {', '.join(n[:3])}{', ...' if len(n) > 3 else ''}"
            for what, n in (("missing", lacking), ("unknown", strange)) if n]  # fmt: skip
    return f" ({'; '.join(told)})" if told else ""
