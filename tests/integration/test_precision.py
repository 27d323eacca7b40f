"""Every learner with an inner loop computes in contiguous float32 unless the user chooses otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import kshot
from kshot.errors import PluginError
from kshot.testing import sample_tasks

IMAGES = sample_tasks.classification(way=3, shot=2, query=2, input_shape=(1, 16, 16))
NAMES = ("maml", "metasgd", "cavia", "taml", "adml", "anil", "boil", "protomaml", "reptile", "gradient-agreement")
OTHERS = {"l2l": ("quadratics", {"unroll": 4}), "maml-rl": ("bandits", {"hidden": (8,)})}
FULL = {"precision": "float32", "memory_format": "contiguous"}


def built(name: str) -> Any:
    """Build a learner for images, or for the kind of tasks that it learns; skip if a plugin is not installed."""
    try:
        if name in OTHERS:
            tasks, options = OTHERS[name]
            return kshot.learner(name, kshot.tasks(tasks).spec, **options)
        inner = {"inner": kshot.learner("maml", IMAGES.spec, width=4)} if name == "gradient-agreement" else {"width": 4}
        return kshot.learner(name, IMAGES.spec, **inner)
    except PluginError as missing:
        pytest.skip(str(missing))


def chosen(backend: Any, learner: Any) -> dict[str, Any]:
    """Return what a backend records after placing a learner."""
    backend.place(learner)
    return {key: backend.describe()[key] for key in FULL}


@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_an_inner_loop_keeps_all_digits_and_the_user_overrides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU and a GPU that compute with bfloat16, which a CPU plays here."""
    monkeypatch.setattr("kshot._engine.cpu.has_bfloat16", lambda: True)
    learner = built(name)
    format_of = {"l2l": "channels_last", "maml-rl": "channels_last"}.get(name, "contiguous")  # they have no images
    assert chosen(kshot.Cpu(), learner) == {**FULL, "memory_format": format_of}
    assert chosen(kshot.Cpu(precision="bfloat16"), learner)["precision"] == "bfloat16"
    cuda = pytest.importorskip("kshot_cuda.cuda")
    monkeypatch.setattr(cuda, "device_of", lambda index: torch.device("cpu"))
    monkeypatch.setattr(cuda, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(cuda, "free_bytes", lambda device: 1 << 30)
    monkeypatch.setattr(cuda, "device_name", lambda device: "a processor")
    assert chosen(cuda.Cuda(), learner) == {**FULL, "memory_format": format_of}
    assert chosen(cuda.Cuda(precision="bfloat16"), learner)["precision"] == "bfloat16"


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}])
def test_the_result_of_a_run_records_the_precision(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """result.json has precision and memory format, chosen or given."""
    monkeypatch.setattr("kshot._engine.cpu.has_bfloat16", lambda: True)
    engine = kshot.Engine(built("maml"), IMAGES, run=tmp_path / "run", backend=kshot.Cpu(**options))
    engine.train(1)
    engine.evaluate(2)
    recorded = json.loads((tmp_path / "run" / "result.json").read_text())["results"][0]["backend"]
    expected = {"precision": "bfloat16", "memory_format": "channels_last"} if options else FULL
    assert {key: recorded[key] for key in FULL} == expected
