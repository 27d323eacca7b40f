"""The cached table is complete or absent, built once, never stale, and never copied."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kshot.data import tables as tables_of_kshot
from kshot_omniglot import files, omniglot, table
from kshot_omniglot.files import locate
from kshot_omniglot.table import Originals, Table


def load(root: Path, folder: Path, **more: Any) -> Table:
    options: dict[str, Any] = {"size": 28, "turns": 4, "check": lambda characters: None, **more}
    return table.load(Originals(locate(root)), folder=folder, **options)


def tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.u8"))


def edit(root: Path) -> None:
    """Replace the first drawing in a zip or folder by another one."""
    picture = root / "images_background" / "A" / "character01" / "0000_01.png"
    archive = root / "images_background.zip"
    if picture.exists():
        Image.fromarray(np.zeros((12, 12), bool)).save(picture)
        return
    with zipfile.ZipFile(archive) as old:
        content = {name: old.read(name) for name in old.namelist()}
    names = list(content)
    content[names[0]] = content[names[1]]
    with zipfile.ZipFile(archive, "w") as new:
        for name, data in content.items():
            new.writestr(name, data)


def test_later_loads_look_neither_into_zips_nor_at_pixels(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Path, size and times of the zips are enough to find the table."""
    root = small()
    first = load(root, tmp_path / "c")

    def refuse(*_: Any) -> None:
        raise AssertionError("looked")

    monkeypatch.setattr(files, "look_through", refuse)
    monkeypatch.setattr(table, "decode_all", refuse)
    later = load(root, tmp_path / "c")
    assert np.array_equal(later.x, first.x)
    assert (later.digest, later.characters) == (first.digest, first.characters)


def test_zip_moved_elsewhere_is_known_by_its_contents(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A moved zip is not decoded again."""
    root = small()
    first = load(root, tmp_path / "c")
    shutil.copytree(root, tmp_path / "moved")
    monkeypatch.setattr(table, "decode_all", None)
    assert load(tmp_path / "moved", tmp_path / "c").digest == first.digest
    assert len(tables(tmp_path / "c")) == 1


def test_packing_changes_neither_drawings_nor_digest(small: Callable[..., Path], tmp_path: Path) -> None:
    """Two machines with the same drawings agree, whether the zip is stored, deflated, in another order, or unpacked."""

    def backwards(content: dict[str, bytes]) -> None:
        for name in reversed(list(content)):
            content[name] = content.pop(name)

    made = [
        load(small("stored"), tmp_path / "c1"),
        load(small("deflated", backwards, zipfile.ZIP_DEFLATED), tmp_path / "c2"),
        load(small("folder", unpacked=True), tmp_path / "c3"),
    ]
    assert len({t.digest for t in made}) == 1
    assert all(np.array_equal(t.x, made[0].x) for t in made)


@pytest.mark.parametrize("unpacked", [False, True])
def test_changed_source_is_decoded_anew(small: Callable[..., Path], tmp_path: Path, unpacked: bool) -> None:
    """A stale table is never used."""
    root = small(unpacked=unpacked)
    before = load(root, tmp_path / "c")
    edit(root)
    after = load(root, tmp_path / "c")
    assert after.digest != before.digest
    assert np.array_equal(after.x[1:24], before.x[1:24])
    assert not np.array_equal(after.x[0], before.x[0])


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:10],
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: b"\0" * len(data),
        lambda data: data[:60] + b"?" + data[61:],
        lambda data: b"kshotOM0" + data[8:],
    ],
    ids=["half", "a byte short", "head cut", "empty", "a byte long", "zeros", "head altered", "other version"],
)
def test_damaged_table_is_built_anew(
    small: Callable[..., Path], tmp_path: Path, harm: Callable[[bytes], bytes]
) -> None:
    """A crash of the machine or a full disk may leave anything under any name."""
    root = small()
    first = np.array(load(root, tmp_path / "c").x)
    (path,) = tables(tmp_path / "c")
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    assert np.array_equal(load(root, tmp_path / "c").x, first)
    assert path.read_bytes() == whole


def test_damaged_alias_does_no_harm(small: Callable[..., Path], tmp_path: Path) -> None:
    """The alias only makes finding the table quicker."""
    root = small()
    first = load(root, tmp_path / "c")
    for text in ("", "{}", "[1]", '{"table": "gone.u8"}'):
        (alias,) = (tmp_path / "c").glob("place-*.json")
        alias.write_text(text)
        assert load(root, tmp_path / "c").digest == first.digest


PROGRAM = """
import logging, sys, time
from pathlib import Path
from kshot_omniglot import table
from kshot_omniglot.files import locate
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="LOG %(message)s")
{patch}
print("ready", flush=True)
sys.stdin.readline()
made = table.load(table.Originals(locate(Path(sys.argv[1]))), size=28, turns=4, folder=Path(sys.argv[2]),
                  check=lambda characters: None)
print("digest", made.digest, int(made.x.sum()), flush=True)
"""


def start(root: Path, folder: Path, patch: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", PROGRAM.replace("{patch}", patch), str(root), str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_at_once_build_one_table(miniature: Path, tmp_path: Path) -> None:
    """Both get the same table: the second waits, and then maps what the first has written."""
    processes = [start(miniature, tmp_path / "c") for _ in range(2)]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len({re.search("digest .*", text)[0] for text in outputs}) == 1  # type: ignore[index]
    assert sum(text.count("LOG writing") for text in outputs) == 1
    assert len(tables(tmp_path / "c")) == 1
    assert not list((tmp_path / "c").glob(".*.part"))


def test_killed_builder_leaves_nothing_harmful(small: Callable[..., Path], tmp_path: Path) -> None:
    """After a kill between writing and renaming, the next process does not wait, and removes what is left."""
    root, folder = small(), tmp_path / "c"
    process = start(root, folder, "import os\nos.fsync = lambda number: (print('written', flush=True), time.sleep(60))")
    assert process.stdin
    assert process.stdout
    process.stdin.write("go\n")
    process.stdin.flush()
    while process.stdout.readline() != "written\n":
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert tables(folder) == []
    assert len(list(folder.glob(".*.part"))) == 1
    began = time.perf_counter()
    assert load(root, folder).file == tables(folder)[0]
    assert time.perf_counter() - began < 30
    assert not list(folder.glob(".*.part"))


def test_without_a_usable_cache_folder_drawings_are_in_memory(small: Callable[..., Path], tmp_path: Path) -> None:
    """A warning says what to do. Here the folder can't be made, because its parent is a file."""
    (tmp_path / "file").write_text("")
    expected = load(small(), tmp_path / "c").x
    with pytest.warns(UserWarning, match="kept in memory .* cache= or KSHOT_CACHE"):
        made = load(small(), tmp_path / "file" / "c")
    assert made.file is None
    assert np.array_equal(made.x, expected)


def test_full_disk_leaves_no_half_table(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drawings can still be used, and are decoded once."""
    decoded: list[int] = []
    original = table.decode_all
    monkeypatch.setattr(table, "decode_all", lambda *a: (decoded.append(1), original(*a))[1])

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        made = load(small(), tmp_path / "c")
    assert made.x.shape == (96, 1, 28, 28)
    assert decoded == [1]
    assert [p.suffix for p in (tmp_path / "c").iterdir()] in ([], [".lock"])


def test_cache_that_is_only_readable_is_used(
    small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that an administrator has put there serves everyone, without a warning."""
    root = small()
    first = load(root, tmp_path / "c")
    shutil.copytree(root, tmp_path / "another place")

    def forbidden(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(tables_of_kshot, "write_whole", forbidden)
    monkeypatch.setattr(tables_of_kshot, "FileLock", forbidden)
    assert load(tmp_path / "another place", tmp_path / "c").file == first.file


def test_writing_to_the_tensor_does_not_reach_the_file(small: Callable[..., Path], tmp_path: Path) -> None:
    """The next process must find the drawings as they were."""
    x = load(small(), tmp_path / "c").x
    before = x[0].copy()
    x[0] = 255 - x[0]
    assert np.array_equal(load(small(), tmp_path / "c").x[0], before)


def test_size_and_rotations_have_tables_of_their_own(small: Callable[..., Path], tmp_path: Path) -> None:
    """A table of another size, or with other rotations, must not be used."""
    shapes = {load(small(), tmp_path / "c", size=s, turns=t).x.shape for s in (14, 28) for t in (1, 4)}
    assert shapes == {(24, 1, 14, 14), (96, 1, 14, 14), (24, 1, 28, 28), (96, 1, 28, 28)}
    assert len(tables(tmp_path / "c")) == 4


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's accounts of memory")
def test_drawings_are_mapped_and_not_copied(common_cache: Path) -> None:
    """After all 43 MB were read through the tensor, the process has hardly more memory: the pages are the file's."""
    omniglot()
    program = """
import sys, torch
from pathlib import Path
from kshot_omniglot import omniglot
def own():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
torch.zeros(8, 1, 28, 28).sum()
omniglot(cache=sys.argv[1], rotations=True)
before = own()
tasks = omniglot(cache=sys.argv[1], rotations=True)
x = tasks.pool("train").x
assert x.nbytes > 42e6 and tasks.pool("test").x.data_ptr() == x.data_ptr()
total = sum(int(part.max()) for part in x.split(1000))
print(own() - before)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(common_cache)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 8


def test_script_without_a_main_guard_may_call_it(
    miniature: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker processes must not run the caller's script again."""
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path))
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, kshot\n"
        "tasks = kshot.tasks('omniglot', root=sys.argv[1], query=1, workers=2)\n"
        "print('once', tasks.pool('train').classes)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(miniature)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("once 4112\n", "")


def test_building_again_is_logged(small: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says why a start is slow."""
    root = small()
    load(root, tmp_path / "c")
    (path,) = tables(tmp_path / "c")
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, "kshot.data.tables"):
        load(root, tmp_path / "c")
    assert any("built again" in r.message for r in caplog.records)
