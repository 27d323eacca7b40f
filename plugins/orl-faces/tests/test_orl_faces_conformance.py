"""The tasks keep every rule for tasks, on twelve generated people and, if available, on the real ones."""

import tempfile
import zipfile
from pathlib import Path

import numpy as np

import kshot

_folder = tempfile.TemporaryDirectory(prefix="kshot-orl-faces-")
ARCHIVE = Path(_folder.name) / "att_faces.zip"
with zipfile.ZipFile(ARCHIVE, "w") as archive:
    for person in range(1, 13):
        for i in range(1, 11):
            pixels = np.random.default_rng(person * 100 + i).integers(0, 256, 112 * 92, np.uint8)
            archive.writestr(f"s{person}/{i}.pgm", b"P5\n92 112\n255\n" + pixels.tobytes())

OPTIONS = {"root": str(ARCHIVE), "people": (6, 3, 3), "way": 3, "size": (28, 23)}
plain = kshot.testing.suite(tasks="orl-faces", options=OPTIONS)
changed = kshot.testing.suite(tasks="orl-faces", options={**OPTIONS, "augment": 1.0})
