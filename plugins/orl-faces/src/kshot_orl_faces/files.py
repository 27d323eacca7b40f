"""Read the pictures from the zip, or from the folder that it unpacks to; 4 MB, never unpacked to the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from kshot.data.archives import Archive, check_size, is_left_by_macos
from kshot.data.files import check_regular
from kshot.errors import DataError

ARCHIVE = "att_faces.zip"
PICTURES = 10
"""Number of pictures of each person, 1.pgm to 10.pgm."""

_FOLDERS = ("att_faces", "orl_faces")
_LARGEST = 1 << 20  # bytes of a picture; the originals have 10,318
_PERSON = re.compile(r"s\d+")
_PICTURE = re.compile(r"(?:[^/]+/)?(s\d+)/(\d+)\.pgm")


def locate(root: Path) -> Path:
    """Find the zip, or the folder of the people's folders, under ``root``.

    ``root`` is a zip; or a folder that has ``att_faces.zip`` or the folders ``s1``, ``s2``, ... of the people, itself
    or in ``att_faces`` or ``orl_faces``.

    Raises:
        DataError: there is neither.
    """
    root = root.expanduser().absolute()
    wanted = f"{ARCHIVE}, or the folders s1 to s40 that it unpacks to"
    if not root.exists():
        raise DataError(f"orl-faces: root: got {root}, which does not exist, expected {wanted}; give one of these")
    if root.is_file():
        return root
    if (root / ARCHIVE).is_file():
        return root / ARCHIVE
    for folder in (root, *(root / name for name in _FOLDERS)):
        if folder.is_dir() and any(_PERSON.fullmatch(p.name) and p.is_dir() for p in folder.iterdir()):
            return folder
    raise DataError(f"orl-faces: root: got {root}, which has no data in it, expected {wanted}; give one of these")


def read(place: Path) -> dict[str, tuple[bytes, ...]]:
    """Read the files of each person, in the order of their numbers.

    Returns:
        person -> bytes of the files: {``s1``: (1.pgm, ..., 10.pgm), ``s2``: ...}.

    Raises:
        DataError: a zip is refused by ``kshot.data.archives``; a picture is outside the layout ``sN/M.pgm``; or a
            person's pictures are not 1 to 10. The message names it.
    """
    files: dict[str, dict[int, bytes]] = {}
    for person, number, data in _folder(place) if place.is_dir() else _zip(place):
        if number in files.setdefault(person, {}):
            raise DataError(
                f"{place}: got a second picture {number} of {person}, expected each once; remove one of them"
            )
        files[person][number] = data
    if not files:
        raise DataError(f"{place}: got no pictures, expected sN/M.pgm, such as s1/1.pgm; give another zip or folder")
    return {person: _in_order(place, person, files[person]) for person in sorted(files, key=lambda name: int(name[1:]))}


def _in_order(place: Path, person: str, pictures: Mapping[int, bytes]) -> tuple[bytes, ...]:
    """Return a person's pictures in the order of their numbers, and refuse other numbers than 1 to 10."""
    expected = range(1, PICTURES + 1)
    if pictures.keys() != set(expected):
        missing, unknown = sorted(set(expected) - pictures.keys()), sorted(pictures.keys() - set(expected))
        differences = [f"{what} are {n}" for what, n in (("missing", missing), ("unknown", unknown)) if n]
        raise DataError(
            f"{place}: got {len(pictures)} pictures of {person}, expected 1.pgm to {PICTURES}.pgm "
            f"({'; '.join(differences)}); unpack all of the zip, or fetch it again"
        )
    return tuple(pictures[number] for number in expected)


def _zip(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """Yield person, number and bytes of each picture in a zip."""
    with Archive(path, largest=_LARGEST, what="a picture") as archive:
        for entry in archive.entries(_is_picture):
            yield (*_match(path, entry.filename), archive.read(entry.filename))


def _folder(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    """Yield person, number and bytes of each picture in the people's folders."""
    for path in sorted(p for s in folder.iterdir() if s.is_dir() and _PERSON.fullmatch(s.name) for p in s.iterdir()):
        name = path.relative_to(folder).as_posix()
        if not _is_picture(name):
            continue
        try:
            check_regular(path, "a picture")
            check_size(f"{folder}: {name}", os.stat(path).st_size, _LARGEST, "a picture")
            yield (*_match(folder, name), path.read_bytes())
        except OSError as error:
            raise DataError(
                f"{path}: got a file that can't be read ({type(error).__name__}: {error}), expected a picture; fix its "
                "permissions or fetch it again"
            ) from error


def _is_picture(name: str) -> bool:
    """Return whether it is a picture; the README and what file managers leave are not."""
    return name.lower().endswith(".pgm") and not is_left_by_macos(name)


def _match(place: Path, name: str) -> tuple[str, int]:
    """Return person and number of a picture."""
    match = _PICTURE.fullmatch(name)
    if match is None:
        raise DataError(
            f"{place}: got the picture {name!r}, expected the layout sN/M.pgm, such as s1/1.pgm; move or remove it"
        )
    return match[1], int(match[2])
