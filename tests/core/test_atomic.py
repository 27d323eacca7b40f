"""A file appears complete or not at all, and nothing else is left behind."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from kshot._atomic import beside, left_beside, writing


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    """Until then the old file stays, and the new one has another name in the same folder."""
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")
    with writing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        assert Path(file.name).parent == tmp_path
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    """An interrupted writer must not damage the old file."""
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with writing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_it_if_the_umask_allows(tmp_path: Path) -> None:
    """A cache may be shared by several users."""
    before = os.umask(0o022)
    try:
        with writing(tmp_path / "x.bin") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "x.bin").stat().st_mode & 0o777 == 0o644


def test_incomplete_files_are_found_by_their_final_name(tmp_path: Path) -> None:
    """Those of other files, whose names begin alike, are not."""
    left, others = beside(tmp_path / "x"), [beside(tmp_path / "xy"), beside(tmp_path / "x-y"), tmp_path / "x"]
    for path in (left, *others):
        path.touch()
    assert left_beside(tmp_path / "x") == [left]


def test_a_missing_folder_raises_the_system_s_own_error(tmp_path: Path) -> None:
    """Callers decide what to do about it."""
    with pytest.raises(FileNotFoundError), writing(tmp_path / "none" / "x"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such call for folders")
def test_contents_are_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a power cut could leave an empty file under the name of a complete one."""
    calls: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        calls.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    with writing(tmp_path / "x.bin") as file:
        file.write(b"new")
    assert calls == ["file", "renamed", "folder"]
