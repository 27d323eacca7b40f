"""Make the subset in the package from the full Omniglot: ``python tools/make_embedded.py ROOT``.

Needs the plugin itself (for the alphabets and the format). The same data give the same file, however they were packed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import attrs

from kshot_omniglot.embedded import ALPHABETS, SIDE, pack
from kshot_omniglot.files import locate
from kshot_omniglot.table import Originals

LARGEST = 3_000_000


def main(root: Path, target: Path) -> None:
    """Write the subset of the data in ``root`` to ``target``."""
    source = Originals(locate(root))
    chosen = {alphabet for alphabets in ALPHABETS.values() for alphabet in alphabets}
    pixels = source.pixels(SIDE, None)  # at the drawings' own size, so nothing is resized: 0 or 255
    kept: list[list[object]] = []
    rows: list[int] = []
    start = 0
    for character in source.characters():
        if character.alphabet in chosen:
            kept.append(list(attrs.astuple(character)))
            rows += range(start, start + character.drawings)
        start += character.drawings
    drawings = pixels[rows]
    if set(drawings.ravel().tolist()) != {0, 255}:
        raise SystemExit(
            f"{source.where}: got other values than 0 and 255, expected black and white drawings of "
            f"{SIDE} x {SIDE} pixels; give the originals"
        )
    packed = pack({"characters": kept}, drawings > 0)
    if len(packed) > LARGEST:
        raise SystemExit(f"got {len(packed)} bytes, expected at most {LARGEST}; leave out alphabets")
    target.write_bytes(packed)
    print(f"{target}: {len(chosen)} alphabets, {len(kept)} characters, {len(rows)} drawings, {len(packed)} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(__file__).parents[1] / "src" / "kshot_omniglot" / "embedded.xz")
