"""The cache of decoded examples: complete or absent, built once, never changed through the array."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kshot._atomic import beside
from kshot.data import tables
from kshot.data.tables import Made, Table, cache_folder, open_or_build, open_table, write_whole


def made(dtype: str = "uint8") -> Made:
    x = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    return Made(
        {"names": ["a", "ü"], "pair": (1, 2)}, dtype, (4, 4, 3), [x.transpose(0, 2, 1), 2 * x.transpose(0, 2, 1)]
    )


def build(path: Path, count: list[int] | None = None, **more: Any) -> Table:
    def make() -> Made:
        if count is not None:
            count.append(1)
        return made()

    return open_or_build(path, make, **{"name": "test", "version": 1, **more})


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64"])
def test_a_table_returns_what_it_was_built_from(tmp_path: Path, dtype: str) -> None:
    """It keeps any type of number, views in any order, and facts as JSON; the second time it is read from the file."""
    path = tmp_path / "c" / "t.table"
    expected = np.concatenate(made(dtype).parts)
    for _ in range(2):
        table = open_or_build(path, lambda: made(dtype), name="test", version=1)
        assert table.file == path
        assert table.x.dtype == np.dtype(dtype)
        assert np.array_equal(table.x, expected)
        assert table.facts == {"names": ["a", "ü"], "pair": [1, 2]}


def test_a_table_is_built_once(tmp_path: Path) -> None:
    """Later loads open the file."""
    count: list[int] = []
    for _ in range(3):
        build(tmp_path / "t.table", count)
    assert count == [1]


@pytest.mark.parametrize("more", [{"version": 2}, {"name": "another"}])
def test_another_version_or_name_is_built_again(tmp_path: Path, more: dict[str, Any]) -> None:
    """The file is of another decoding, or of another plugin."""
    count: list[int] = []
    build(tmp_path / "t.table", count)
    build(tmp_path / "t.table", count, **more)
    assert count == [1, 1]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "shorter": lambda b: b[:-1],
    "longer": lambda b: b + b"x",
    "cut in its head": lambda b: b[:10],
    "another magic": lambda b: b"X" + b[1:],
    "another text": lambda b: b[:40] + b"?" + b[41:],
    "empty": lambda b: b"",
    "another number in the array": lambda b: b[:4100] + bytes([b[4100] ^ 1]) + b[4101:],
    "another digest": lambda b: b[:-1] + bytes([b[-1] ^ 1]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_built_again_and_logged(
    tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache may be deleted or damaged at any time."""
    count: list[int] = []
    path = tmp_path / "t.table"
    build(path, count)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "kshot.data.tables"):
        table = build(path, count)
    assert count == [1, 1]
    assert np.array_equal(table.x, np.concatenate(made().parts))
    assert str(path) in caplog.text


def test_a_table_that_was_right_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large table is read once by a later process, and again if the file has changed, even with its old time."""
    path, noted = tmp_path / "t.table", tmp_path / "t.table.checked"
    build(path)
    assert not noted.exists()
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 60 * 10**9)
    assert open_table(path, name="test", version=1) is not None
    assert noted.exists()
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_DIGEST", Never)
        assert open_table(path, name="test", version=1) is not None
    stat = path.stat()
    with open(path, "r+b") as file:
        file.seek(4100)
        file.write(b"\xff")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_table(path, name="test", version=1) is None


class Never:
    """Represent a digest that must not be computed."""

    digest_size = 32


def test_a_table_of_the_format_without_a_digest_is_read(tmp_path: Path) -> None:
    """It was written by kshot before its first release."""
    build(tmp_path / "t.table")
    data = (tmp_path / "t.table").read_bytes()
    (tmp_path / "t.table").write_bytes(data[:-32].replace(b"kshotTB2", b"kshotTB1", 1))
    count: list[int] = []
    assert np.array_equal(build(tmp_path / "t.table", count).x, np.concatenate(made().parts))
    assert count == []


def test_writing_to_the_array_does_not_change_the_file(tmp_path: Path) -> None:
    """torch needs memory that may be written."""
    table = build(tmp_path / "t.table")
    before, content = int(table.x[0, 0, 0]), (tmp_path / "t.table").read_bytes()
    table.x[0, 0, 0] = before + 1
    table.x.flush()  # type: ignore[attr-defined]
    assert (tmp_path / "t.table").read_bytes() == content
    again = build(tmp_path / "t.table")
    assert int(again.x[0, 0, 0]) == before


def test_without_a_usable_folder_a_table_is_in_memory(tmp_path: Path) -> None:
    """A warning says what to do. Here the folder can't be made because its parent is a file."""
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match=r"test: .* kept in memory .* cache= or KSHOT_CACHE"):
        table = build(tmp_path / "file" / "t.table")
    assert table.file is None
    assert np.array_equal(table.x, np.concatenate(made().parts))
    assert table.facts["pair"] == [1, 2]


def test_a_full_disk_leaves_nothing_and_builds_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was built is used from memory."""

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    count: list[int] = []
    with pytest.warns(UserWarning, match="No space left on device"):
        table = build(tmp_path / "t.table", count)
    assert count == [1]
    assert table.x.shape == (4, 4, 3)
    assert [p.suffix for p in tmp_path.iterdir()] in ([], [".lock"])


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_an_error_while_building_propagates_and_leaves_nothing(tmp_path: Path, error: type[Exception]) -> None:
    """This holds for an OSError too: a source that can't be read is not a cache that can't be written."""

    def fail() -> Made:
        raise error("no such picture")

    with pytest.raises(error, match="no such picture"):
        open_or_build(tmp_path / "t.table", fail, name="test", version=1)
    assert [p.suffix for p in tmp_path.iterdir()] in ([], [".lock"])


def test_leftovers_of_a_killed_builder_are_removed(tmp_path: Path) -> None:
    """Those of other tables stay, because another process may be writing them."""
    left = beside(tmp_path / "t.table")
    left.write_text("half")
    other = beside(tmp_path / "u.table")
    other.write_text("of someone who is writing")
    build(tmp_path / "t.table")
    assert not left.exists()
    assert other.exists()


def test_two_processes_at_once_build_one_table(tmp_path: Path) -> None:
    """The second waits and opens the first one's."""
    program = """
import sys, time, numpy as np
from pathlib import Path
from kshot._atomic import beside
from kshot.data.tables import Made, open_or_build
def make():
    print("built", flush=True)
    time.sleep(1)
    return Made({}, "uint8", (2,), [np.array([1, 2])])
print(open_or_build(Path(sys.argv[1]) / "t.table", make, name="test", version=1).x.tolist())
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=60)[0] for process in both]
    assert [t.count("built") for t in told] in ([1, 0], [0, 1])
    assert all("[1, 2]" in t for t in told)


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    """The new file appears only when it is complete."""
    path = tmp_path / "f"
    write_whole(path, [b"old"])

    def broken() -> Any:
        yield b"new"
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        write_whole(path, broken())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_cache_folder_is_the_option_s_then_the_environment_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without either it is the system's."""
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "env"))
    assert cache_folder("faces", tmp_path) == tmp_path / "faces"
    assert cache_folder("faces") == tmp_path / "env" / "faces"
    monkeypatch.delenv("KSHOT_CACHE")
    assert cache_folder("faces").is_absolute()
    assert open_table(tmp_path / "none", name="test", version=1) is None
    assert tables.MAGIC.startswith(b"kshot")
