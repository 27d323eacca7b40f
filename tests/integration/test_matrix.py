"""Everything composes: every learner x tasks x memory runs or is refused with a reason."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("matrix.py")


def test_every_combination_runs_or_is_refused_with_a_reason():
    """Made from the registry; a combination that crashes, or trains nothing, fails here by name."""
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert any(outcome.startswith("ran") for outcome in found.values())
    assert all(len(outcome) > len("refused: ") for outcome in found.values())
