"""What ``tox run -e release`` runs: it refuses an unclean checkout, misses no file, and lists what it built."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def release(root: Path) -> ModuleType:
    """The script, imported as tox would start it: with its own folder on the path."""
    folder = str(root / "tests" / "isolation")
    sys.path.insert(0, folder)
    try:
        import release
    finally:
        sys.path.remove(folder)
    return release


def test_an_unclean_checkout_is_refused_before_anything_is_built(
    release: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An sdist takes in whatever lies in the folder, and a released file can't be taken back."""
    monkeypatch.setattr(release, "changes", lambda: ["?? plugins/toy/src/kshot_toy/draft.py"])
    with pytest.raises(SystemExit, match=r"expected none.*--allow-changes for a trial\n\?\? .*draft\.py"):
        release.main([str(tmp_path / "dist")])
    assert not (tmp_path / "dist").exists()


def test_unknown_names_are_refused_with_the_known_ones(release: ModuleType) -> None:
    """A misspelt name must not end in a release of nothing."""
    with pytest.raises(SystemExit, match=r"got kshot-tyo, expected names of distributions: kshot, .*kshot-toy"):
        release.chosen(["kshot-toy", "kshot-tyo"])
    assert [folder.name for folder in release.chosen(["kshot-toy"])] == ["toy"]
    assert len(release.chosen([])) == len(release.projects())


def test_a_file_that_a_wheel_lacks_is_named(release: ModuleType, tmp_path: Path) -> None:
    """A package that some rule for ignored files leaves out is missed by the first user who imports it."""
    package = tmp_path / "src" / "kshot_one"
    (package / "runs").mkdir(parents=True)
    (package / "__pycache__").mkdir()
    for name in ("__init__.py", "plugin.toml", "runs/plan.py", "__pycache__/x.pyc"):
        (package / name).write_text("", encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "one.whl", "w") as wheel:
        wheel.writestr("kshot_one/__init__.py", "")
        wheel.writestr("kshot_one/plugin.toml", "")
    assert release.missing(tmp_path, tmp_path / "one.whl") == ["kshot_one/runs/plan.py"]


def test_the_listing_has_a_line_for_each_distribution(release: ModuleType, tmp_path: Path) -> None:
    """Versions are compared with the changelog and sizes with the last release's at a glance."""
    built = []
    for name, version in (("kshot", "0.1.0"), ("kshot-toy", "0.12.0")):
        files = tmp_path / f"{name}.tar.gz", tmp_path / f"{name}.whl"
        files[0].write_bytes(b"x" * 12345)
        files[1].write_bytes(b"x" * 960)
        built.append(release.Built(name, version, *files))
    assert release.listing(built).splitlines() == [
        "distribution  version  sdist KB  wheel KB",
        "kshot         0.1.0        12.3       1.0",
        "kshot-toy     0.12.0       12.3       1.0",
    ]


def test_no_source_file_is_ignored_by_git(root: Path, install: ModuleType) -> None:
    """Both git and the tool that builds wheels go by .gitignore, and so does ruff: an ignored file is not released."""
    if not (root / ".git").exists():
        pytest.skip("needs a checkout of git")
    folders = [root / "core" / "src", *(plugin / "src" for plugin in install.projects()[1:])]
    files = [str(f) for folder in folders for f in folder.rglob("*.*") if "__pycache__" not in f.parts]
    command = ["git", "-C", str(root), "check-ignore", "--no-index", "--stdin"]
    done = subprocess.run(command, input="\n".join(files), capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.splitlines() == []
