"""Where the pictures come from: the zip, or the folder that it unpacks to; read whole, 4 MB, and never unpacked."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from kshot.errors import DataError

ARCHIVE = "att_faces.zip"
PICTURES = 10
"""Pictures of each person, 1.pgm to 10.pgm."""

_FOLDERS = ("att_faces", "orl_faces")
_LARGEST = 1 << 20  # bytes of a picture; the originals have 10,318
_PERSON = re.compile(r"s\d+")
_PICTURE = re.compile(r"(?:[^/]+/)?(s\d+)/(\d+)\.pgm")
_LEADS_OUT = re.compile(r"[/\\]|[A-Za-z]:|(?:.*[/\\])?\.\.(?:[/\\]|$)", re.DOTALL)  # absolute, a drive, or up


def locate(root: Path) -> Path:
    """The zip, or the folder of the people's folders, under ``root``.

    ``root`` is a zip; or a folder that holds ``att_faces.zip`` or the folders ``s1``, ``s2``, ... of the people, itself
    or in ``att_faces`` or ``orl_faces``.

    Raises:
        DataError: there is none.
    """
    root = root.expanduser().absolute()
    wanted = f"{ARCHIVE}, or the folders s1 to s40 that it unpacks to"
    if not root.exists():
        raise DataError(f"orl-faces: root is {root}, which does not exist; expected {wanted}")
    if root.is_file():
        return root
    if (root / ARCHIVE).is_file():
        return root / ARCHIVE
    for folder in (root, *(root / name for name in _FOLDERS)):
        if folder.is_dir() and any(_PERSON.fullmatch(p.name) and p.is_dir() for p in folder.iterdir()):
            return folder
    raise DataError(f"orl-faces: root is {root}, in which there is no data; expected {wanted}")


def read(place: Path) -> dict[str, tuple[bytes, ...]]:
    """The files of each person, in order of their numbers: {``s1``: (1.pgm, ..., 10.pgm), ``s2``: ...}.

    Raises:
        DataError: a zip is damaged, a name in it leads out of its folder, a picture lies outside the layout
            ``sN/M.pgm``, or a person's pictures are not 1 to 10; names it.
    """
    found: dict[str, dict[int, bytes]] = {}
    for person, number, data in _folder(place) if place.is_dir() else _zip(place):
        if number in found.setdefault(person, {}):
            raise DataError(f"{place}: picture {number} of {person} is there twice; expected each once")
        found[person][number] = data
    if not found:
        raise DataError(f"{place}: no pictures in it; expected sN/M.pgm, such as s1/1.pgm")
    return {person: _all(place, person, found[person]) for person in sorted(found, key=lambda name: int(name[1:]))}


def _all(place: Path, person: str, pictures: Mapping[int, bytes]) -> tuple[bytes, ...]:
    expected = range(1, PICTURES + 1)
    if pictures.keys() != set(expected):
        lacking, strange = sorted(set(expected) - pictures.keys()), sorted(pictures.keys() - set(expected))
        told = [f"{what} are {n}" for what, n in (("missing", lacking), ("unknown", strange)) if n]
        raise DataError(
            f"{place}: {person} has {len(pictures)} pictures, expected 1.pgm to {PICTURES}.pgm ({'; '.join(told)}); "
            "unpack the zip wholly, or fetch it anew"
        )
    return tuple(pictures[number] for number in expected)


def _zip(path: Path) -> Iterator[tuple[str, int, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                # Nothing is ever unpacked, but a zip that tries is not the one the user believes it is.
                if _LEADS_OUT.match(info.filename):
                    raise DataError(
                        f"{path}: the entry {info.filename!r} leads out of the folder; don't use this zip, fetch the "
                        "original"
                    )
                if not _is_picture(info.filename):
                    continue
                _check_size(path, info.filename, info.file_size)
                yield (*_match(path, info.filename), archive.read(info))
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(
            f"{path}: can't be read as a zip ({type(error).__name__}: {error}); it is damaged or was cut off: delete "
            "it and fetch it anew"
        ) from error


def _folder(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    for path in sorted(p for s in folder.iterdir() if s.is_dir() and _PERSON.fullmatch(s.name) for p in s.iterdir()):
        name = path.relative_to(folder).as_posix()
        if not _is_picture(name):
            continue
        try:
            _check_size(folder, name, os.stat(path).st_size)
            yield (*_match(folder, name), path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: can't be read ({type(error).__name__}: {error})") from error


def _is_picture(name: str) -> bool:
    """Whether it is a picture; the README and the leavings of file managers are not."""
    return name.lower().endswith(".pgm") and not name.startswith("__MACOSX/") and "/._" not in name


def _check_size(place: Path, name: str, size: int) -> None:
    if size > _LARGEST:
        raise DataError(f"{place}: {name} has {size} bytes; expected a picture of at most {_LARGEST}")


def _match(place: Path, name: str) -> tuple[str, int]:
    found = _PICTURE.fullmatch(name)
    if found is None:
        raise DataError(f"{place}: {name!r} lies outside the layout sN/M.pgm")
    return found[1], int(found[2])
