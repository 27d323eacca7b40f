"""Every combination of learner, tasks, memory and backend runs, or is refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = str(Path(__file__).with_name("matrix.py"))
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LAUNCH = {
    "cpu": [sys.executable, SCRIPT, "cpu"],
    "distributed": [sys.executable, *TORCHRUN, SCRIPT, "distributed"],
}


@pytest.mark.slow
@pytest.mark.parametrize("backend", LAUNCH)
def test_every_combination_runs_or_is_refused_with_a_reason(backend: str) -> None:
    """A combination that crashes, or moves no parameter, fails by name; the combinations come from the registry."""
    if backend == "distributed":
        pytest.importorskip("kshot_distributed")
    done = subprocess.run(LAUNCH[backend], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    outcomes = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    assert any(outcome.startswith("ran") for outcome in outcomes.values())
    assert all(len(outcome) > len("refused: ") for outcome in outcomes.values())
