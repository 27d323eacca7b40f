"""Build the distributions that an environment of tox tests, and install them without any other distribution of ours.

    python tests/isolation/install.py WORK_DIR plugin-protonet     (or core, all, lowest)

Each distribution is built as a release is: an sdist, and from it the wheel, so that a file missing from the sdist is
noticed. A wheel is built once for each state of its source files and kept in WORK_DIR/wheels. Third-party dependencies
come from the package index, our own distributions never do: they are passed to one call of pip as files. Torch and
other large packages take gigabytes, so they are installed once, into WORK_DIR/base-*, and a ``.pth`` file shows that
folder to every environment. Environments may run in parallel: the first one builds while the others wait for a lock.

``lowest`` installs everything with each third-party dependency at the lowest version that any of our projects declares
for it, build tools included; torch and the other large packages have a base folder of their own there.
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
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "torchvision", "torchaudio", "numpy", "scipy")
"""Packages that all environments share, provided that a project of the repository depends on them."""


def projects() -> list[Path]:
    """Return the folder of every distribution of the repository, the core's first."""
    files = [*ROOT.glob("plugins/*/pyproject.toml"), *ROOT.glob("contrib/*/pyproject.toml")]
    return [ROOT, *sorted(file.parent for file in files)]


def document(folder: Path) -> dict[str, Any]:
    """Return a folder's pyproject.toml."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))


def table(folder: Path) -> dict[str, Any]:
    """Return the [project] table of a folder's pyproject.toml."""
    project: dict[str, Any] = document(folder)["project"]
    return project


def by_name(lines: Iterable[str]) -> dict[str, str]:
    """Return requirements by the normalised name of what they require."""
    lines = list(lines)
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]
    return {re.sub(r"[-_.]+", "-", name).lower(): line for name, line in zip(names, lines, strict=True)}


def required(folder: Path) -> dict[str, str]:
    """Return a project's dependencies: normalised name -> the requirement."""
    return by_name(table(folder)["dependencies"])


def declared(folder: Path) -> list[str]:
    """Return every requirement that a project declares: to build it, to run it, and of each of its extras."""
    project, builds = table(folder), document(folder)["build-system"]["requires"]
    extras = [line for lines in project.get("optional-dependencies", {}).values() for line in lines]
    return [*builds, *project["dependencies"], *extras]


def is_ours(name: str) -> bool:
    """Return whether a distribution is the core or is named like a plugin of ours."""
    return re.match(r"kshot($|[-_.])", name) is not None


NEWER = ("wordllama",)
"""Plugins that are not installed with the lowest versions: each needs a package that asks for newer ones than the core
does (wordllama for NumPy 2), so that no set of versions would be the lowest of all."""


def lowest_versions(folders: Iterable[Path]) -> dict[str, str]:
    """Return the lowest version of each third-party dependency that satisfies all these projects: name -> version.

    That is the highest of the lower bounds, as projects that are installed together must agree on one version.
    """
    versions: dict[str, str] = {}
    for folder in folders:
        for line in declared(folder):
            ((name, _),) = by_name([line]).items()
            version = line.partition(">=")[2].partition(";")[0].strip()
            if not is_ours(name):
                versions[name] = max(versions.get(name, version), version, key=numbers)
    return dict(sorted(versions.items()))


def numbers(version: str) -> tuple[int, ...]:
    """Return a version such as '1.26' as numbers that compare in the right order."""
    return tuple(int(part) for part in version.split("."))


def closure(folder: Path) -> list[Path]:
    """Return a project, the core, and the projects of the repository on which it depends."""
    folder_of = {table(known)["name"]: known for known in projects()}
    reached: list[Path] = []
    waiting = [ROOT, folder]
    while waiting:
        if (each := waiting.pop()) in reached:
            continue
        reached.append(each)
        ours = [name for name in required(each) if is_ours(name)]
        if missing := sorted(set(ours) - set(folder_of)):
            sys.exit(
                f"install.py: got a dependency of {each} on {', '.join(missing)}, expected projects of this "
                "repository; correct the name in its pyproject.toml or add the project"
            )
        waiting += [folder_of[name] for name in ours]
    return reached


def under_proof(proof: str) -> list[Path]:
    """Return the folders of the distributions that an environment tests.

    Args:
        proof: ``core``; ``plugin-NAME``, which is with the core; ``all``; or ``lowest``, which is all but ``NEWER``.
    """
    if proof == "all":
        return projects()
    if proof == "lowest":
        return [folder for folder in projects() if folder.name not in NEWER]
    if proof == "core":
        return [ROOT]
    named = [folder for folder in projects()[1:] if f"plugin-{folder.name}" == proof]
    if len(named) != 1:
        sys.exit(f"install.py: got {proof!r}, expected core, all, lowest, or plugin-NAME with the folder of a plugin")
    return closure(named[0])


def run(*command: str, **environment: str) -> None:
    """Print and run a command, and end this program with a message if the command fails."""
    print("$", *(part.replace(str(ROOT), ".") for part in command), flush=True)
    if code := subprocess.run(command, env={**os.environ, **environment}).returncode:
        sys.exit(f"install.py: got exit code {code} from the command above, expected 0; its output says why")


def pip_install(*arguments: str, **environment: str) -> None:
    """Call pip's install quietly."""
    run(sys.executable, "-m", "pip", "install", "--quiet", *arguments, **environment)


def share_base(work: Path, pins: Path | None = None) -> None:
    """Show the large dependencies to this environment; install them first if no environment has done so.

    Args:
        work: tox's folder.
        pins: a file of pip's constraints that settles the versions, or None for the newest ones.
    """
    needs = sorted({line for f in projects() for name, line in required(f).items() if name in HEAVY})
    settled = [line for line in pins.read_text("utf-8").split() if line.partition("==")[0] in HEAVY] if pins else []
    key = hashlib.sha256(" ".join([sys.version, *needs, *settled]).encode()).hexdigest()[:8]
    base = work / f"base-{key}"
    if not base.exists():
        # An installation that is cut short stays in a folder with another name, so it is never taken for the base.
        half = Path(tempfile.mkdtemp(prefix="base-half-", dir=work))
        constraints = ["--constraint", str(pins)] if pins else []
        # pip unpacks in TMPDIR and moves the files: within one file system that costs nothing.
        pip_install("--target", str(half), *constraints, *needs, TMPDIR=str(work))
        half.rename(base)
    (Path(sysconfig.get_path("purelib")) / "kshot-base.pth").write_text(f"{base}\n", encoding="utf-8")


def state_of(folder: Path) -> str:
    """Return a digest of all files that go into a project's distributions."""
    sources = [folder] if folder != ROOT else [ROOT / "core", ROOT / "pyproject.toml", ROOT / "README.md"]
    digest = hashlib.sha256()
    for source in sources:
        for file in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def build(folder: Path, wheels: Path) -> Path:
    """Return a project's wheel in ``wheels``; build it from its sdist unless the same files were built before."""
    out = wheels / f"{table(folder)['name']}-{state_of(folder)}"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix="half-", dir=out.parent))
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(half), str(folder))
        half.rename(out)
    (wheel,) = out.glob(f"{table(folder)['name'].replace('-', '_')}-*.whl")
    return wheel


def pin_lowest(work: Path) -> Path:
    """Write the lowest declared versions as a file of pip's constraints, and install the build tools by it."""
    versions = lowest_versions(under_proof("lowest"))
    pins = work / "lowest.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()), encoding="utf-8")
    tools = sorted({name for folder in projects() for name in by_name(document(folder)["build-system"]["requires"])})
    pip_install("--constraint", str(pins), *tools)
    return pins


def main(work: Path, proof: str) -> None:
    """Install what ``proof`` tests into the environment that runs this program.

    Args:
        work: tox's folder, for the wheels, the base and the lock.
        proof: as in ``under_proof``.
    """
    folders = under_proof(proof)
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / "install.lock"):
        pins = pin_lowest(work) if proof == "lowest" else None
        share_base(work, pins)
        wheels = {folder: build(folder, work / ("wheels-lowest" if pins else "wheels")) for folder in folders}
    installed = [d.name for d in metadata.distributions(path=[sysconfig.get_path("purelib")])]
    if ours := [name for name in installed if is_ours(name)]:
        run(sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *ours)
    files = [f"{table(f)['name']}[test] @ {wheels[f].as_uri()}" for f in folders]
    pip_install(*(["--constraint", str(pins)] if pins else []), *files)
    run(sys.executable, "-m", "pip", "check")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
