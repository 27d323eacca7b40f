"""A picture of dark ink on light paper to ``size * size`` bytes of ink; as a program, a worker that decodes many.

Pillow holds the interpreter's lock for most of the 0.1 ms that such a small drawing takes, so threads gain nothing.
``multiprocessing`` is no choice inside a library: forking a process in which torch runs threads may deadlock, and
spawning runs the user's script again where it has no ``__main__`` guard. So a worker is a program of its own,
``python -m kshot_omniglot.decode``: a job as JSON on its standard input, the pixels on its standard output. It
imports neither torch nor numpy and is ready in a tenth of a second.
"""

from __future__ import annotations

import gc
import io
import json
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from kshot.errors import DataError

EX_DATAERR = 65
"""Exit status of a worker that met bad data (sysexits.h); the reason is on its standard error."""

_INVERTED = bytes(255 - v for v in range(256))

Job = Sequence[tuple[str, Sequence[str]]]
"""Zips or folders, and for each the names of the drawings in it."""


def ink(image: Image.Image, size: int) -> bytes:
    """The ink of an image, 0 (paper) to 255 (ink), row by row: ``size * size`` bytes.

    Resized with the BOX filter: a pixel is the mean of those pixels whose centres it covers (3 or 4 a side for
    105 -> 28), the share of ink among them; each drawn pixel counts once. It is also the fastest. A sharper filter
    (Lanczos) overshoots at the edges of strokes, where the overshoot is clipped; a triangle (bilinear) blurs over
    twice the area; no filter at all (nearest) breaks thin strokes.
    """
    grey = image if image.mode == "L" else image.convert("L")
    if grey.size != (size, size):
        grey = grey.resize((size, size), Image.Resampling.BOX)
    return grey.tobytes().translate(_INVERTED)


def decode(job: Job, size: int) -> bytes:
    """The ink of all drawings of a job, one after another.

    Raises:
        DataError: a drawing is missing, damaged or no PNG; names it.
    """
    made: list[bytes] = []
    for place, names in job:
        folder = Path(place)
        try:
            archive = None if folder.is_dir() else zipfile.ZipFile(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{place}: can't be read any more ({type(error).__name__}: {error})") from error
        try:
            for name in names:
                try:
                    data = archive.read(name) if archive else (folder / name).read_bytes()
                    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                        made.append(ink(image, size))
                except (
                    OSError, KeyError, ValueError, SyntaxError, EOFError, NotImplementedError, RuntimeError,
                    zlib.error, zipfile.BadZipFile, Image.DecompressionBombError,
                ) as error:  # fmt: skip
                    raise DataError(
                        f"{place}: the drawing {name} can't be decoded ({type(error).__name__}: {error}); "
                        "expected a whole PNG picture: fetch the file anew"
                    ) from error
        finally:
            if archive:
                archive.close()
    return b"".join(made)


def main() -> int:
    """A worker: decodes the job on standard input."""
    gc.disable()  # Pillow's images are in cycles by the thousand; this program ends before they matter
    request = json.load(sys.stdin.buffer)
    try:
        pixels = decode(request["job"], request["size"])
    except DataError as error:
        print(error, file=sys.stderr)
        return EX_DATAERR
    sys.stdout.buffer.write(pixels)
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
