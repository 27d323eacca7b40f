"""Build the distributions under proof and install them, without any other of ours; tox runs this before each proof.

    python tests/isolation/install.py WORK_DIR plugin-protonet     (or core alone, or all)

Each is built like a release, as an sdist and from it the wheel, so that a file missing from the sdist is noticed. It
is built once for each state of its files, in WORK_DIR/wheels. Dependencies come from the package index, but our own
distributions never do: one call of pip gets all of them as files. Torch and similar libraries fill gigabytes, so they
are installed once, in WORK_DIR/base-*, which a ``.pth`` file makes visible to every environment. Several environments
may run at the same time: the first one builds, and the others wait.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "torchaudio", "numpy")
"""Dependencies that all environments share."""


def projects() -> list[Path]:
    """Return the folder of every distribution of the repository, the core's first."""
    files = [*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("contrib/*/pyproject.toml")]
    return [ROOT, *sorted(file.parent for file in files)]


def table(folder: Path) -> dict[str, Any]:
    """Return the [project] table of a folder's pyproject.toml."""
    document = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    project: dict[str, Any] = document["project"]
    return project


def required(folder: Path) -> dict[str, str]:
    """Map the normalised name of each dependency of a project to its requirement."""
    lines = table(folder)["dependencies"]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]
    return {re.sub(r"[-_.]+", "-", name).lower(): line for name, line in zip(names, lines, strict=True)}


def closure(folder: Path) -> list[Path]:
    """Return a project, the core, and the projects of the repository on which it depends."""
    folder_of = {table(known)["name"]: known for known in projects()}
    needed: list[Path] = []
    waiting = [ROOT, folder]
    while waiting:
        if (each := waiting.pop()) in needed:
            continue
        needed.append(each)
        ours = [name for name in required(each) if name.split("-")[0] == "kshot"]
        if missing := set(ours) - set(folder_of):
            sys.exit(
                f"install.py: got the dependencies {', '.join(missing)} of {each}, expected projects of the repository"
            )
        waiting += [folder_of[name] for name in ours]
    return needed


def under_proof(proof: str) -> list[Path]:
    """Return the folders that an environment proves: ``core``, ``plugin-NAME`` with the core, or ``all``."""
    if proof == "all":
        return projects()
    if proof == "core":
        return [ROOT]
    named = [folder for folder in projects()[1:] if f"plugin-{folder.name}" == proof]
    if len(named) != 1:
        sys.exit(f"install.py: got the proof {proof!r}, expected core, all, or plugin-NAME with the folder of a plugin")
    return closure(named[0])


def run(*command: str, **environment: str) -> None:
    """Show a command and run it; exit if it fails."""
    print("$", *(part.replace(str(ROOT), ".") for part in command), flush=True)
    if code := subprocess.run(command, env={**os.environ, **environment}).returncode:
        sys.exit(f"install.py: the command above failed with exit code {code}")


def share_base(work: Path) -> None:
    """Make the heavy dependencies visible to this environment; install them first if they are not installed yet."""
    needs = sorted({line for f in projects() for name, line in required(f).items() if name in HEAVY})
    key = hashlib.sha256(" ".join([sys.version, *needs]).encode()).hexdigest()[:8]
    base = work / f"base-{key}"
    if not base.exists():
        half = Path(tempfile.mkdtemp(prefix="base-half-", dir=work))  # an interrupted install is never used
        # pip unpacks in TMPDIR and then moves the files, which is free within one file system.
        run(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(half), *needs, TMPDIR=str(work))
        half.rename(base)
    (Path(sysconfig.get_path("purelib")) / "kshot-base.pth").write_text(f"{base}\n", encoding="utf-8")


def state_of(folder: Path) -> str:
    """Compute a digest of all files of which a project's distributions consist."""
    paths = [folder] if folder != ROOT else [ROOT / "core", ROOT / "pyproject.toml", ROOT / "README.md"]
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def build(folder: Path, work: Path) -> Path:
    """Return the wheel of a project, built from its sdist, or the one that was built before from the same files."""
    out = work / "wheels" / f"{table(folder)['name']}-{state_of(folder)}"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix="half-", dir=out.parent))
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(half), str(folder))
        half.rename(out)
    (wheel,) = out.glob(f"{table(folder)['name'].replace('-', '_')}-*.whl")
    return wheel


def main(work: Path, proof: str) -> None:
    """Build and install what a proof needs, and remove all other distributions of ours."""
    folders = under_proof(proof)
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / "install.lock"):
        share_base(work)
        wheels = {folder: build(folder, work) for folder in folders}
    installed = [d.name for d in metadata.distributions(path=[sysconfig.get_path("purelib")])]
    if ours := [name for name in installed if re.match(r"kshot($|[-_.])", name)]:
        run(sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *ours)
    files = [f"{table(f)['name']}[test] @ {wheels[f].as_uri()}" for f in folders]
    run(sys.executable, "-m", "pip", "install", "--quiet", *files)
    run(sys.executable, "-m", "pip", "check")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
