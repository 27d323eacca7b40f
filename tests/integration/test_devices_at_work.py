"""Every learner trains on a device that is not the CPU as it does there: no tensor is made on the wrong device."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).with_name("learners_on_a_device.py")
pytestmark = pytest.mark.skipif(
    torch.__version__.startswith(("2.6", "2.7", "2.8")), reason="the device that stands in for a GPU needs torch 2.9"
)


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return for each case what is wrong on the device; in a process of its own, whose torch keeps the device."""
    folder = str(tmp_path_factory.mktemp("device"))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), folder], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_the_stand_in_refuses_what_a_gpu_refuses(wrong):
    """Otherwise the other tests prove nothing."""
    assert wrong["what a GPU refuses"] == ""


@pytest.mark.slow
def test_a_run_is_resumed_and_used_on_a_device(wrong):
    """Checkpoints are read on the CPU, and compared with parameters on the device."""
    assert wrong["a run"] == ""


@pytest.mark.slow
def test_every_learner_computes_on_a_device_what_it_computes_on_the_cpu(wrong):
    """Training in chunks, with validation, and a test."""
    assert {name: text for name, text in wrong.items() if text} == {}
    assert len(wrong) > 2
