"""CIFAR-FS is read from files in CIFAR-100's format, and torchvision downloads it from a local server."""

from __future__ import annotations

import hashlib
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100

from kshot.errors import DataError
from kshot.testing.download_server import serve
from kshot_cifar_fs import cifar_fs, splits, tasks

NAMES = sorted({name for names in splits.SPLITS.values() for name in names})
EACH = {"train": 6, "test": 2}  # images a class; CIFAR-100 has 500 and 100


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def colour(label: int, i: int) -> np.ndarray:
    """Return image i of a class; its three channels differ."""
    image = np.zeros((3, 32, 32), np.uint8)
    image[0], image[1], image[2] = label, i, np.arange(32)
    return image


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a small CIFAR-100, and make torchvision expect its checksums."""
    folder = tmp_path / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    listed: dict[str, list[list[str]]] = {}
    first = 0
    for part, each in EACH.items():
        labels = rng.permutation(np.repeat(np.arange(100), each))
        seen = np.zeros(100, int)
        images = []
        for label in labels:
            images.append(colour(int(label), first + seen[label]).reshape(-1))
            seen[label] += 1
        first = each
        content = {"data": np.stack(images), "fine_labels": labels.tolist()}
        (folder / part).write_bytes(pickle.dumps(content))
        listed[part] = [[part, md5(folder / part)]]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": NAMES}))
    monkeypatch.setattr(CIFAR100, "train_list", listed["train"])
    monkeypatch.setattr(CIFAR100, "test_list", listed["test"])
    meta = {"filename": "meta", "key": "fine_label_names", "md5": md5(folder / "meta")}
    monkeypatch.setattr(CIFAR100, "meta", meta)
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KSHOT_CIFAR100", raising=False)
    return folder.parent


def test_the_split_is_the_published_one() -> None:
    """The 64, 16 and 20 classes have none in common, and together they are those of CIFAR-100."""
    assert [len(splits.SPLITS[s]) for s in ("train", "val", "test", "trainval")] == [64, 16, 20, 80]
    assert len(set(splits.TRAIN + splits.VAL + splits.TEST)) == 100
    assert {"baby", "pickup_truck", "worm"} <= set(splits.TEST)
    assert {"otter", "motorcycle", "television"} <= set(splits.VAL)


def test_images_are_those_of_their_class_and_channels_are_red_green_blue(files: Path) -> None:
    """A class has all its images from both parts of CIFAR-100."""
    made = cifar_fs(way=4, shot=3, query=5, root=files)
    for split in ("train", "val", "test", "trainval"):
        pool = made.pool(split)
        assert pool.names == splits.SPLITS[split]
        assert (pool.counts == 8).all()
        for c, name in enumerate(pool.names):
            images = pool.x[torch.from_numpy(pool.rows[c])]
            assert (images[:, 0] == NAMES.index(name)).all()
            assert sorted(images[:, 1, 0, 0].tolist()) == list(range(8))
            assert torch.equal(images[0, 2, 5], torch.arange(32, dtype=torch.uint8))
    episode = made.sample("test", [0, 1])
    assert episode.support.x.shape == (2, 12, 3, 32, 32)
    assert episode.query.x.shape == (2, 20, 3, 32, 32)
    assert 0 <= float(episode.query.x.min()) <= float(episode.query.x.max()) <= 1


def test_later_loads_need_no_cifar(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is mapped from the cache; the fingerprint does not depend on the name of the folder."""
    first = cifar_fs(root=files, query=1)
    monkeypatch.setattr(tasks, "CIFAR100", CIFAR100)
    moved = files.rename(files.with_name("elsewhere"))
    assert cifar_fs(root=files, query=1).fingerprint == first.fingerprint
    monkeypatch.setenv("KSHOT_CACHE", str(moved.parent / "another cache"))
    monkeypatch.setenv("KSHOT_CIFAR100", str(moved))
    assert cifar_fs(query=1).fingerprint == first.fingerprint


def test_another_pixel_is_another_fingerprint(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results on other images must not pass for results on the same data, even if the labels are equal."""
    first = cifar_fs(root=files, query=1)
    part = files / "cifar-100-python" / "train"
    content = pickle.loads(part.read_bytes())
    content["data"][0, 0] += 1
    part.write_bytes(pickle.dumps(content))
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5(part)]])
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "another cache"))
    assert cifar_fs(root=files, query=1).fingerprint != first.fingerprint


def test_what_is_missing_or_damaged_is_said(files: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none, which has no complete CIFAR-100 .* download=True"):
        cifar_fs(root=tmp_path / "none")
    part = files / "cifar-100-python" / "train"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(DataError, match="no complete CIFAR-100"):
        cifar_fs(root=files)
    assert list((tmp_path / "cache").rglob("*.u8")) == []


def test_shape_may_vary_by_block(files: Path) -> None:
    """All episodes of a block have one way; the ways follow the seed."""
    made = [cifar_fs(way=(2, 4), query=1, block=4, seed=seed, root=files) for seed in (0, 1)]
    ways = [[tasks.sample("train", range(4 * b, 4 * b + 4)).support.way for b in range(12)] for tasks in made]
    assert set(ways[0]) == {2, 3, 4}
    assert ways[0] != ways[1]


def test_too_many_images_are_asked_for(files: Path) -> None:
    with pytest.raises(DataError, match="8"):
        cifar_fs(shot=4, query=5, root=files).sample("test", [0])


def test_the_download_is_checked(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data are fetched from a server, unpacked and used; a file with another checksum is refused."""
    served = tmp_path / "served"
    served.mkdir()
    archive = served / CIFAR100.filename
    with tarfile.open(archive, "w:gz") as made:
        made.add(files / "cifar-100-python", "cifar-100-python")
    with serve(served) as server:
        monkeypatch.setattr(CIFAR100, "url", f"{server.url}/{archive.name}")
        monkeypatch.setattr(CIFAR100, "tgz_md5", "0" * 32)
        with pytest.raises(DataError, match="no complete CIFAR-100"):
            cifar_fs(root=tmp_path / "fetched", download=True)
        monkeypatch.setattr(CIFAR100, "tgz_md5", md5(archive))
        assert cifar_fs(root=tmp_path / "fetched", download=True, query=1).pool("val").classes == 16


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_own_pictures_become_inputs(tmp_path: Path, mode: str) -> None:
    """An input is the middle square of a wide picture of any mode."""
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 200
    path = tmp_path / "own.png"
    Image.fromarray(wide).convert(mode).save(path)
    made = tasks.prepare([path, path])
    assert made.shape == (2, 3, 32, 32)
    assert torch.allclose(made, torch.full((), 200 / 255), atol=0.05)  # palettes round
    assert torch.equal(tasks.prepare(made), made)
    assert torch.equal(tasks.prepare(wide), tasks.prepare(Image.fromarray(wide)))


def test_what_is_transparent_is_white_and_16_bits_are_scaled(tmp_path: Path) -> None:
    """Transparent pixels must not become black, and 16-bit values must not be cut off at 255."""
    Image.new("RGBA", (32, 32), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((32, 32), 128 * 257, np.uint16)).save(tmp_path / "deep.png")
    made = tasks.prepare([tmp_path / "clear.png", tmp_path / "deep.png"])
    assert (made[0] == 1).all()
    assert torch.allclose(made[1], torch.full((), 128 / 255))


@pytest.mark.parametrize("raw", [np.zeros((4, 4)), np.zeros((2, 3, 32, 32)) + 2, 5, []])
def test_what_is_no_picture_is_refused(raw: Any) -> None:
    with pytest.raises(DataError, match="to prepare"):
        tasks.prepare(raw)


def test_a_text_file_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no")
    with pytest.raises(DataError, match=r"a\.png: got a file that can't be read as an image"):
        tasks.prepare(tmp_path / "a.png")
