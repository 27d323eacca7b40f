"""Make a folder of classes from emoji of two vendors: each class is an emoji with a drawing of either vendor.

The drawings are in two packages of npm, which this script does not download:

    npm pack emoji-datasource-google@15.1.2 emoji-datasource-twitter@15.1.2
    python recipes/emoji_pairs.py emoji-datasource-*.tgz --to emoji

The drawings of Google are under the Apache License 2.0, those of Twitter under CC-BY 4.0. The folder has 849 classes:
all emoji of animals, food, places, activities and objects that both vendors have drawn. Each file is 64 x 64 pixels.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path
from typing import Any

CATEGORIES = ("Activities", "Animals & Nature", "Food & Drink", "Objects", "Travel & Places")
"""Categories of things. Faces, people, signs and flags are left out: many of them differ in a detail only."""

PREFIX = "emoji-datasource-"


def drawings(package: Path) -> tuple[str, dict[str, bytes]]:
    """Read a package: the name of its vendor, and the drawing of each emoji, by the short name of the emoji.

    Raises:
        SystemExit: the file is no package of emoji.
    """
    try:
        with tarfile.open(package) as archive:

            def read(path: str) -> bytes:
                """Return the contents of a file of the archive, which is not unpacked."""
                file = archive.extractfile(f"package/{path}")
                if file is None:
                    raise KeyError(path)
                return file.read()

            vendor = json.loads(read("package.json"))["name"].removeprefix(PREFIX)
            emoji: list[dict[str, Any]] = json.loads(read("emoji.json"))
            wanted = [each for each in emoji if each["category"] in CATEGORIES and each[f"has_img_{vendor}"]]
            return vendor, {each["short_name"]: read(f"img/{vendor}/64/{each['image']}") for each in wanted}
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SystemExit(
            f"{package}: got {type(error).__name__} ({reason}), expected a package made by npm pack {PREFIX}google or "
            f"{PREFIX}twitter; download it again"
        ) from error


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs=2, type=Path, help="the two files that npm pack wrote")
    parser.add_argument("--to", type=Path, default=Path("emoji"), help="the folder to write")
    arguments = parser.parse_args()
    (first, one), (second, other) = map(drawings, arguments.packages)
    if first == second:
        raise SystemExit(f"emoji_pairs: got two packages of {first}, expected two vendors")
    both = sorted(one.keys() & other.keys())
    for name in both:
        # Short names consist of letters, digits, _, - and +. Anything else would not be the name of a folder.
        if not name.replace("_", "").replace("-", "").replace("+", "").isalnum():
            raise SystemExit(f"emoji_pairs: got the emoji {name!r}, expected letters, digits, '_', '-' and '+'")
        folder = arguments.to / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{first}.png").write_bytes(one[name])
        (folder / f"{second}.png").write_bytes(other[name])
    print(f"{len(both)} classes with a drawing by {first} and one by {second}: {arguments.to}")


if __name__ == "__main__":
    main()
