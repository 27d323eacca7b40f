"""Run every learner on all tasks with every memory, for two iterations and an evaluation.

    python tests/integration/matrix.py                              (one process)
    torchrun --nproc-per-node 2 tests/integration/matrix.py distributed

Each combination must either run or be refused with a reason. The combinations follow from the registry alone: the
options of a learner or a view show what it can be composed with. The program prints a table and, as its last line, a
JSON object {"learner | tasks | memory": outcome}. Its exit status is 1 if a combination neither runs nor is refused."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
import traceback
import wave
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

import kshot
from kshot.errors import DataError, MisfitError

OF = "toy"
"""The tasks over which views are built."""

DATA_MAY_BE_ABSENT = {"orl-faces", "cats-dogs", "cifar-fs", "half-cheetah"}
"""Tasks on real data, which the repository may not contain, or in a simulator that may not be installed."""

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("KSHOT_SHARED", ROOT.parent / "shared" / "data"))


def write_files(scratch: Path) -> None:
    """Write folders of images, of sounds and of texts, each with one folder per class."""
    rng = np.random.default_rng(0)
    for c in range(15):
        for i in range(2):
            picture, sound, text = (scratch / kind / f"{c:02}" / str(i) for kind in ("images", "sounds", "texts"))
            for file in (picture, sound, text):
                file.parent.mkdir(parents=True, exist_ok=True)
            text.with_suffix(".txt").write_text(f"text {i} about matter {c}", encoding="utf-8")
            if find_spec("PIL"):
                from PIL import Image

                Image.fromarray(rng.integers(0, 256, (20, 16, 3), np.uint8)).save(picture.with_suffix(".png"))
            with wave.open(str(sound.with_suffix(".wav")), "wb") as recording:
                recording.setparams((1, 2, 8000, 1600, "NONE", "not compressed"))
                recording.writeframes(rng.integers(-9999, 9999, 1600, np.int16).tobytes())


def data(scratch: Path) -> dict[str, dict[str, Any]]:
    """Return the options of tasks that need data: the files that this program writes, and real data."""
    thirds = {"split": (0.4, 0.3, 0.3), "way": 3, "query": 1, "cache": scratch / "cache"}
    return {
        "imagefolder": {"root": scratch / "images", "size": 16, "mode": "L", **thirds},
        "audiofolder": {"root": scratch / "sounds", "seconds": 0.2, **thirds},
        "textfolder": {"root": scratch / "texts", "size": 64, **thirds},
        "semantics": {"of": {"name": "omniglot", "protocol": "embedded"}, "table": "drawings"},
        "pooled-nets": {"of": {"name": "omniglot", "protocol": "embedded"}},
        "embedded": {"of": {"name": OF}, "encoder": torch.nn.Flatten()},
        "degraded": {"of": {"name": OF}, "how": "noise"},
        "with-external": {"of": {"name": OF}, "source": {"name": OF}},
        "whitened": {"of": {"name": OF}, "components": 8},
        "cactus": {"of": {"name": OF}, "clusters": 8},
        "orl-faces": {"root": SHARED / "orl_faces" / "att_faces.zip", "size": (28, 23)},
        "cats-dogs": {"root": SHARED / "audio_cats_dogs" / "audio_cats_dogs.zip"},
        "cifar-fs": {},
    }


@attrs.frozen
class Cell:
    """Store one combination: the names that the table shows, and the options that build it."""

    learner: str
    tasks: str
    memory: str
    learner_options: dict[str, Any]
    tasks_options: dict[str, Any]


def nested(name: str) -> dict[str, str]:
    """Map each protocol to the option of a plugin that takes a component of this protocol."""
    options = {}
    for option in kshot.info(name).options:
        for protocol in ("Learner", "TaskDistribution", "Memory"):
            if protocol in option.type:
                options[protocol] = option.name
    return options


def cells(given: dict[str, dict[str, Any]]) -> Iterator[Cell]:
    """Yield all combinations of what is installed; ``given`` has the options of tasks that need some."""
    by_group: dict[str, list[str]] = {}
    for plugin in kshot.plugins():
        if plugin.state == "ok":
            by_group.setdefault(plugin.group, []).append(plugin.name)
    learners = []
    for name in by_group.get("learners", []):
        options = nested(name)
        if "Learner" in options:
            inner = [n for n in by_group["learners"] if "Learner" not in nested(n)]
            learners += [(f"{name}({n})", name, "", {options["Learner"]: {"name": n}}) for n in inner]
        elif "Memory" in options:
            memories = by_group.get("memories", [])
            learners += [(name, name, m, {options["Memory"]: {"name": m}}) for m in memories]
        else:
            learners.append((name, name, "", {}))
    for label, name, memory, learner_options in learners:
        for tasks in by_group.get("tasks", []):
            view = nested(tasks).get("TaskDistribution")
            tasks_options = {**({view: {"name": OF}} if view else {}), **given.get(tasks, {})}
            of = f"({tasks_options[view]['name']})" if view else ""
            yield Cell(label, tasks + of, memory, {"": name, **learner_options}, tasks_options)


def reason_of(misfit: MisfitError) -> str:
    """Return the first mismatch of an error, without the names of learner and tasks."""
    first, *mismatches = str(misfit).splitlines()
    return mismatches[0].strip(" -") if mismatches else first.partition("fit these tasks: ")[2] or first


def outcome(cell: Cell, backend: Any) -> str:
    """Run one combination.

    Returns:
        ``ran: `` and the result; ``refused: `` and the reason; or ``left out: `` and the reason, if real data are
        absent. Everything else raises an exception.
    """
    name = cell.tasks.partition("(")[0]
    try:
        tasks = kshot.tasks(name, **cell.tasks_options)
    except DataError as error:
        if name not in DATA_MAY_BE_ABSENT:
            raise
        return f"left out: {str(error).splitlines()[0]}"
    options = dict(cell.learner_options)
    try:
        learner = kshot.learner(options.pop(""), tasks.spec, **options)
        engine = kshot.Engine(learner, tasks, meta_batch=2, backend=backend, hooks=())
        before = [p.detach().clone() for p in learner.parameters()]
        engine.train(2)
    except MisfitError as misfit:
        return f"refused: {reason_of(misfit)}"
    result = engine.evaluate(2, split="test" if "test" in tasks.spec.splits else tasks.spec.splits[-1])
    if not all(bool(torch.isfinite(p).all()) for p in learner.parameters()):
        raise ArithmeticError("a parameter is not finite after two iterations")
    if before and all(torch.equal(p, b) for p, b in zip(learner.parameters(), before, strict=True)):
        raise ArithmeticError("no parameter moved in two iterations")
    return f"ran: {result}"


def main(backend_name: str) -> int:
    """Run all combinations on a backend; return the exit status."""
    backend = kshot.backend(backend_name)
    first_rank = backend.world.rank == 0
    outcomes, failed = {}, 0
    scratch = Path(tempfile.gettempdir()) / f"kshot-matrix-{os.environ.get('MASTER_PORT') or os.getpid()}"
    if first_rank:
        write_files(scratch)
    backend.world.all_reduce(torch.zeros(1))  # waits until the files are written
    for cell in cells(data(scratch)):
        name = " | ".join(part for part in (cell.learner, cell.tasks, cell.memory) if part)
        started = time.perf_counter()
        try:
            outcomes[name] = outcome(cell, backend)
        except Exception as error:
            failed += 1
            outcomes[name] = f"FAILED: {type(error).__name__}: {error}"
            traceback.print_exc()
        if first_rank:
            print(f"{name:<60} {time.perf_counter() - started:5.1f} s  {outcomes[name]}", flush=True)
    backend.world.all_reduce(torch.zeros(1))  # waits until no rank needs the files
    if first_rank:
        print(json.dumps(outcomes))
        shutil.rmtree(scratch)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "cpu"))
