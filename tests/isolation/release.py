"""Build the sdist and the wheel of every distribution, check them, and list them: what ``tox run -e release`` runs.

    python tests/isolation/release.py DIST [--allow-changes] [NAME ...]

DIST is emptied of earlier files of ours first. Without names every distribution is built. Nothing is uploaded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from install import ROOT, is_ours, projects, run, table


class Built(NamedTuple):
    """The files of one distribution."""

    name: str
    version: str
    sdist: Path
    wheel: Path


def changes() -> list[str]:
    """Return the lines of git's status: changed files, and files that git neither tracks nor ignores."""
    command = ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=all"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def chosen(names: list[str]) -> list[Path]:
    """Return the folders of the named distributions, or of all of them if there are no names."""
    folder_of = {table(folder)["name"]: folder for folder in projects()}
    if unknown := sorted(set(names) - set(folder_of)):
        sys.exit(f"release.py: got {', '.join(unknown)}, expected names of distributions: {', '.join(folder_of)}")
    return [folder for name, folder in folder_of.items() if not names or name in names]


def build(folder: Path, dist: Path) -> Built:
    """Build a project's sdist and, from it, its wheel into ``dist``."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(folder))
    name, version = table(folder)["name"], table(folder)["version"]
    stem = f"{name.replace('-', '_')}-{version}"
    (wheel,) = dist.glob(f"{stem}-*.whl")
    return Built(name, version, dist / f"{stem}.tar.gz", wheel)


def missing(folder: Path, wheel: Path) -> list[str]:
    """Return the files of a project's package that its wheel lacks, as names in the wheel, sorted."""
    src = folder / ("core/src" if folder == ROOT else "src")
    sources = {file.relative_to(src).as_posix() for file in src.rglob("*") if file.is_file()}
    packed = set(zipfile.ZipFile(wheel).namelist())
    return sorted(name for name in sources - packed if "__pycache__" not in name)


def listing(built: list[Built]) -> str:
    """Return one line for each distribution: its name, its version, and the sizes of its files in KB (1000 bytes)."""
    rows = [("distribution", "version", "sdist KB", "wheel KB")]
    for each in built:
        sdist, wheel = (f"{file.stat().st_size / 1000:.1f}" for file in (each.sdist, each.wheel))
        rows.append((each.name, each.version, sdist, wheel))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    left, right = slice(0, 2), slice(2, 4)
    return "\n".join(
        "  ".join(
            [
                *(text.ljust(width) for text, width in zip(row[left], widths[left], strict=True)),
                *(text.rjust(width) for text, width in zip(row[right], widths[right], strict=True)),
            ]
        )
        for row in rows
    )


def main(arguments: list[str]) -> None:
    """Build, check and list."""
    parser = argparse.ArgumentParser(prog="release.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dist", type=Path, help="the folder for the files")
    parser.add_argument("names", nargs="*", help="the distributions; all of them by default")
    parser.add_argument("--allow-changes", action="store_true", help="build even if the checkout is not clean")
    options = parser.parse_args(arguments)
    if (changed := changes()) and not options.allow_changes:
        sys.exit(
            "release.py: got a checkout with these changes or untracked files, expected none, as they may end up in "
            "the release; commit or remove them, or pass --allow-changes for a trial\n" + "\n".join(changed)
        )
    folders = chosen(options.names)
    options.dist.mkdir(parents=True, exist_ok=True)
    for old in options.dist.iterdir():
        if is_ours(old.name):
            old.unlink()
    built = [build(folder, options.dist) for folder in folders]
    for folder, each in zip(folders, built, strict=True):
        if lacking := missing(folder, each.wheel):
            sys.exit(
                f"release.py: got {each.wheel.name} without {', '.join(lacking)}, expected every file of its package; "
                "see whether .gitignore or pyproject.toml leaves them out"
            )
    files = [file for each in built for file in (each.sdist, each.wheel)]
    run(sys.executable, "-m", "twine", "check", "--strict", *map(str, files))
    print(f"\n{listing(built)}\n\n{len(built)} distributions, {len(files)} files in {options.dist}")


if __name__ == "__main__":
    main(sys.argv[1:])
