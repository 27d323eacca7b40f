"""One hostile input of each kind through the command: one clear message, the right exit code, nothing written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TASKS = """
import numpy, kshot, torch

class Theirs:
    \"\"\"Tasks that return labels as a list.\"\"\"
    def __init__(self):
        self.spec, self.seed = kshot.TaskSpec(kind="classification", input_shape=(3,), way=2, shot=1, query=1), 0
    def sample(self, split, indices):
        support = kshot.Support(torch.zeros(len(indices), 2, 3), [[0, 1]] * len(indices), way=2)
        return kshot.Episode(support, kshot.Examples(torch.zeros(1, 2, 3), torch.tensor([[0, 1]])))

def arrays():
    \"\"\"Tasks of an array with a NaN.\"\"\"
    pool = kshot.Pool.of(numpy.full((4, 3), numpy.nan), [0, 0, 1, 1])
    return kshot.ClassificationTasks({"train": pool}, way=2, query=1)

def specs():
    \"\"\"Tasks whose spec has a negative length.\"\"\"
    return kshot.ClassificationTasks(kshot.TaskSpec(kind="classification", input_shape=(3, -1), way=2, shot=1, query=1))
"""


def folders(suffix: str) -> Path:
    """Write a folder of small pictures."""
    for c in range(6):
        Path("data", f"c{c}").mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(10 * c + i).integers(0, 256, (6, 6, 3), np.uint8)
            Image.fromarray(pixels).save(f"data/c{c}/{i}{suffix}")
    return Path("data")


def picture() -> list[str]:
    """A picture is cut off."""
    path = folders(".png") / "c0" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    return ["imagefolder", "--tasks.root=data", "--tasks.way=2", "--tasks.query=1", "--tasks.split=[0.34, 0.33, 0.33]"]


def sound() -> list[str]:
    """A folder of sounds has pictures with the suffix of sounds."""
    for path in folders(".png").rglob("*.png"):
        path.rename(path.with_suffix(".wav"))
    return ["audiofolder", "--tasks.root=data", "--tasks.way=2", "--tasks.query=1", "--tasks.split=[0.34, 0.33, 0.33]"]


def archive() -> list[str]:
    """A zip has a name that leads out."""
    import zipfile

    with zipfile.ZipFile("att_faces.zip", "w") as file:
        file.writestr("../s1/1.pgm", b"P5")
    return ["orl-faces", "--tasks.root=att_faces.zip"]


def folder() -> list[str]:
    """A class folder is empty."""
    for path in (folders(".png") / "c3").iterdir():
        path.unlink()
    return ["imagefolder", "--tasks.root=data"]


def recipe() -> list[str]:
    """A recipe is a pipe."""
    os.mkfifo("recipe.toml")
    return ["toy", "--recipe", "recipe.toml"]


def option() -> list[str]:
    """An option is no number."""
    return ["toy", "--engine.iterations=nan"]


def metadata() -> list[str]:
    """The description of a plugin is damaged."""
    info, package = Path("site/kshot_bad-1.0.dist-info"), Path("site/badpackage")
    for place in (info, package):
        place.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kshot-bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[kshot.tasks]\nbad = badpackage:Tasks\n[kshot.manifest]\nbad = badpackage:plugin.toml\n"
    )
    (package / "__init__.py").write_text("raise SystemExit('it was imported')")
    (package / "plugin.toml").write_bytes(b"api_level = 1\n[tasks.bad]\nsummary = \xff\n")
    return ["bad"]


def registered(name: str) -> Callable[[], list[str]]:
    """Tasks of somebody else are wrong."""

    def prepare() -> list[str]:
        info = Path("site/kshot_theirs-1.0.dist-info")
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kshot-theirs\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[kshot.tasks]\ntheirs = theirs:{name}\n")
        Path("site/theirs.py").write_text(TASKS)
        return ["theirs"]

    return prepare


KINDS: dict[str, tuple[Callable[[], list[str]], int, str]] = {
    "picture": (picture, 5, "c0/0.png: got a file that can't be read as an image"),
    "sound": (sound, 5, "got a file that can't be read as a sound"),
    "archive": (archive, 5, "att_faces.zip: got the entry '../s1/1.pgm', which leads out of the archive's folder"),
    "folder": (folder, 5, "c3: got an empty folder, expected images of this class"),
    "recipe": (recipe, 2, "recipe.toml: got a pipe or a device, expected a regular file"),
    "option": (option, 2, "iterations: got"),
    "metadata": (metadata, 4, "kshot-bad 1.0"),
    "episode": (registered("Theirs"), 5, "support.y: got list, expected a dense tensor"),
    "array": (registered("arrays"), 5, "got 12 of 12 values that are NaN or infinite"),
    "spec": (registered("specs"), 5, "TaskSpec: got input_shape (3, -1)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_input_is_one_message_and_leaves_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run folder is not made, or removed, and the cache has no half-written table."""
    monkeypatch.chdir(tmp_path)
    prepare, code, message = KINDS[kind]
    args = prepare()
    before = sorted(tmp_path.rglob("*"))
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "KSHOT_CACHE": str(tmp_path / "cache"),
    }
    more = ["--run=run", *(["--iterations=2"] if kind != "option" else [])]
    done = subprocess.run(
        [sys.executable, "-m", "kshot", "train", "protonet", *args, *more],
        capture_output=True, text=True, timeout=120, env=environment, check=False,
    )  # fmt: skip
    assert message in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert sum(line.startswith("kshot: ") and "warning" not in line for line in done.stderr.splitlines()) == 1
    shutil.rmtree(tmp_path / "site" / "__pycache__", ignore_errors=True)
    left = {path for path in tmp_path.rglob("*") if path not in before}
    assert {path for path in left if path.suffix not in (".json", ".lock") and path.is_file()} == set()
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "runs").exists()
