"""Decode pictures of dark ink on light paper to bytes of ink; run as a program, a worker that decodes many.

Pillow keeps the interpreter's lock for most of the 0.1 ms that such a small drawing takes, so threads gain nothing.
``multiprocessing`` does not suit a library: forking a process in which torch runs threads may deadlock, and spawning
runs the user's script again if it has no ``__main__`` guard. So a worker is a separate program,
``python -m kshot_omniglot.decode``, which reads a job as JSON from its standard input and writes the pixels to its
standard output. It imports neither torch nor numpy and is ready in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from kshot.data.archives import Archive
from kshot.data.files import check_regular
from kshot.errors import DataError

EX_DATAERR = 65
"""Exit status of a worker that could not decode its data (sysexits.h); the reason is on its standard error."""

LARGEST = 1 << 20
"""The greatest number of bytes of a drawing's file; the originals have less than 1500."""

_INVERTED = bytes(255 - v for v in range(256))

Job = Sequence[tuple[str, Sequence[str]]]
"""Pairs of a zip or folder and the names of the drawings in it."""


def ink(image: Image.Image, size: int) -> bytes:
    """Return the ink of an image, 0 (paper) to 255 (ink), row by row: ``size * size`` bytes.

    It is resized with the BOX filter: a pixel is the mean of those pixels whose centres it covers (3 or 4 per side for
    105 -> 28), which is the share of ink among them, and each drawn pixel counts once. This filter is also the fastest.
    A sharper one (Lanczos) overshoots at the edges of strokes, where the overshoot is clipped; a triangle (bilinear)
    blurs over twice the area; no filter (nearest) breaks thin strokes.

    Example:
        >>> list(ink(Image.new("L", (4, 4), 255), 1)), list(ink(Image.new("L", (4, 4), 0), 1))
        ([0], [255])
    """
    grey = image if image.mode == "L" else image.convert("L")
    if grey.size != (size, size):
        grey = grey.resize((size, size), Image.Resampling.BOX)
    return grey.tobytes().translate(_INVERTED)


def decode(job: Job, size: int) -> bytes:
    """Return the ink of all drawings of a job, one after another.

    Args:
        job: zips or folders with the names of their drawings.
        size: pixels per side.

    Raises:
        DataError: a drawing is missing, damaged or not a PNG. The message names it.
    """
    pixels: list[bytes] = []
    for place, names in job:
        folder = Path(place)
        with contextlib.ExitStack() as stack:
            archive = None
            if not folder.is_dir():
                archive = stack.enter_context(Archive(folder, largest=LARGEST, what="a drawing"))
            for name in names:
                try:
                    if archive is None:
                        check_regular(folder / name, "a drawing")
                    data = archive.read(name) if archive else (folder / name).read_bytes()
                    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                        pixels.append(ink(image, size))
                except (DataError, MemoryError):  # the archive's error names the drawing too
                    raise
                except Exception as error:  # on damaged bytes, Pillow raises errors of many types
                    raise DataError(
                        f"{place}: got the drawing {name}, which can't be decoded ({type(error).__name__}: {error}), "
                        "expected a complete PNG picture; fetch the file again"
                    ) from error
    return b"".join(pixels)


def main() -> int:
    """Run as a worker: decode the job on the standard input."""
    gc.disable()  # Pillow's images are in reference cycles; this program ends before their memory matters
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
