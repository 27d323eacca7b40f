"""Find Omniglot's two parts, each a zip or a folder, and list their drawings before anything is decoded."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import frozen

from kshot.data.archives import Archive, is_left_by_macos
from kshot.errors import DataError
from kshot_omniglot.decode import LARGEST

PARTS = ("images_background", "images_evaluation")
_DRAWING = re.compile(r"([^/]+)/(character\d+)/(\d+_\d+\.png)")


@frozen(order=True)
class Character:
    """Store a character and its number of drawings.

    Attributes:
        part: ``images_background`` or ``images_evaluation``.
        alphabet: such as ``Latin``.
        number: such as ``character01``.
        drawings: how many drawings of it there are.
    """

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
    """Store what the parts contain, in the order of decoding: by part, alphabet, character and file name.

    Attributes:
        characters: the characters, with their numbers of drawings.
        job: for each part its zip or folder, and the names of the drawings in it.
        key: identifies these contents; two zips of the same drawings may have different ones.
    """

    characters: tuple[Character, ...]
    job: tuple[tuple[str, tuple[str, ...]], ...]
    key: str


def locate(root: Path) -> dict[str, Path]:
    """Find the zip or folder of each part under ``root``.

    ``root`` has ``images_background`` and ``images_evaluation``, as zips or unpacked (a zip is preferred,
    because listing one file is faster than listing 32,460); or is one of these four itself; or has them in
    ``omniglot-py`` (where torchvision puts them), ``python`` (a clone of the original repository) or ``omniglot``.

    Raises:
        DataError: ``root`` or one of the parts does not exist.
    """
    root = root.expanduser().absolute()
    if not root.exists():
        raise DataError(
            f"omniglot: root: got {root}, which does not exist, expected a folder with {_wanted()}; give such a folder"
        )
    home = root.parent if root.stem in PARTS and (root.is_dir() or root.suffix == ".zip") else root
    for folder in (home, home / "omniglot-py", home / "python", home / "omniglot"):
        parts = find_parts(folder)
        if len(parts) == len(PARTS):
            return parts
        if parts:
            missing = next(p for p in PARTS if p not in parts)
            raise DataError(
                f"omniglot: {folder}: got {', '.join(p.name for p in parts.values())} alone, expected {missing}.zip or "
                f"a folder {missing} too; put it beside the other, or fetch both with download=True"
            )
    raise DataError(
        f"omniglot: root: got {root}, which has no data in it, expected {_wanted()}; give another folder, or fetch the "
        "data with download=True"
    )


def _wanted() -> str:
    """Return what a root must have, in words for messages."""
    return " and ".join(f"{p}.zip (or a folder {p})" for p in PARTS)


def find_parts(folder: Path) -> dict[str, Path]:
    """Return the parts that are directly in ``folder``: part -> its zip or folder."""
    parts = {}
    for part in PARTS:
        archive, unpacked = folder / f"{part}.zip", folder / part
        if archive.is_file() or unpacked.is_dir():
            parts[part] = archive if archive.is_file() else unpacked
    return parts


def place_key(parts: Mapping[str, Path]) -> str | None:
    """Return a key of zips by path, size and times, without opening them; or None if a part is a folder."""
    values: list[object] = []
    for part, path in parts.items():
        if not path.is_file():
            return None
        stat = path.stat()
        values += [part, str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return _digest(map(str, values))


def look_through(parts: Mapping[str, Path]) -> Listing:
    """List all drawings of the parts, without decoding any.

    Args:
        parts: part -> its zip or folder, see ``locate``.

    Raises:
        DataError: a zip is refused by ``kshot.data.archives``, a picture is outside the layout
            ``<part>/<Alphabet>/<characterNN>/<id>_<drawer>.png``, or a part has no drawings.
    """
    characters: list[Character] = []
    job = []
    identity: list[str] = []
    for part, path in parts.items():
        entries = sorted(_folder_entries(path) if path.is_dir() else _zip_entries(path, part))
        if not entries:
            raise DataError(
                f"{path}: got no drawings, expected <Alphabet>/<characterNN>/<id>_<drawer>.png; fetch it again"
            )
        counts: dict[tuple[str, str], int] = {}
        for alphabet, number, *_ in entries:
            counts[alphabet, number] = counts.get((alphabet, number), 0) + 1
        characters += [Character(part, a, n, count) for (a, n), count in counts.items()]
        job.append((str(path), tuple(e[3] for e in entries)))
        identity += [part, str(path) if path.is_dir() else "", *("/".join(e) for e in entries)]
    return Listing(tuple(characters), tuple(job), _digest(identity))


def _digest(values: Iterable[str]) -> str:
    """Return a hash of strings, of which file names may have bytes that are no text."""
    return hashlib.blake2b("\n".join(values).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


# An entry is (alphabet, character, file name, name in the zip or folder, what changes with its contents).
_Entry = tuple[str, str, str, str, str]


def _zip_entries(path: Path, part: str) -> list[_Entry]:
    """List the drawings in the zip of a part."""
    with Archive(path, largest=LARGEST, what="a drawing") as archive:
        infos = archive.entries(_is_drawing)
    return [
        (*_match(path, info.filename.removeprefix(f"{part}/")), info.filename, f"{info.file_size}:{info.CRC}")
        for info in infos
    ]


def _is_drawing(name: str) -> bool:
    """Return whether it is a picture; what file managers leave is not."""
    return name.lower().endswith(".png") and not is_left_by_macos(name)


def _match(path: Path, inner: str) -> tuple[str, str, str]:
    """Return alphabet, character and file name of a drawing."""
    match = _DRAWING.fullmatch(inner)
    if match is None:
        raise DataError(
            f"{path}: got the picture {inner!r}, expected the layout <Alphabet>/<characterNN>/<id>_<drawer>.png; move "
            "or remove it"
        )
    return match[1], match[2], match[3]


def _folder_entries(path: Path) -> Iterator[_Entry]:
    """Yield the drawings in the folder of a part."""
    try:
        for relative, entry in _walk(path, ""):
            if _is_drawing(relative):
                stat = entry.stat()
                version = f"{stat.st_size}:{entry.inode()}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
                yield (*_match(path, relative), relative, version)
    except OSError as error:  # such as a link that leads nowhere or to a folder above it
        raise DataError(
            f"omniglot: {error.filename or path}: got a path that can't be read ({error.strerror or error}), expected "
            "a readable file or folder; fix or remove it"
        ) from error


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield all files below a folder, each with its relative name."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry


def check_complete(
    characters: Sequence[Character], names: Iterable[str], counts: Mapping[str, int], where: str
) -> None:
    """Refuse parts that don't have exactly Omniglot's characters.

    Args:
        characters: those that are there.
        names: the names of all characters.
        counts: part -> its number of characters.
        where: the data's name, for messages.

    Raises:
        DataError: characters are missing or unknown. The message names some of them.
    """
    expected = set(names)
    for part, count in counts.items():
        present = {c.name for c in characters if c.part == part}
        if len(present) != count:
            raise DataError(
                f"{where}: got {len(present)} characters in {part}, expected {count}{_differs(expected, characters)}; "
                "fetch the originals again, or unpack all of them"
            )
    if {c.name for c in characters} != expected:
        raise DataError(
            f"{where}: got other characters, expected Omniglot's{_differs(expected, characters)}; fetch the originals "
            "again"
        )


def _differs(expected: set[str], characters: Sequence[Character]) -> str:
    """Return which characters are missing and unknown, in words for messages."""
    present = {c.name for c in characters}
    missing, unknown = sorted(expected - present), sorted(present - expected)
    differences = [f"{what} are {', '.join(n[:3])}{', ...' if len(n) > 3 else ''}"
            for what, n in (("missing", missing), ("unknown", unknown)) if n]  # fmt: skip
    return f" ({'; '.join(differences)})" if differences else ""
