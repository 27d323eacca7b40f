"""``kshot list`` answers quickly, because it imports no plugin, no torch, and few other modules.

``benchmarks/startup.py`` measures how long it takes; a timed test would fail on a busy machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

MODULES = 220
"""The budget, including the standard library: a list needs a few modules of the core, attrs, click and importlib."""

LIST = """
import contextlib, io, json, sys
from kshot.cli import main
with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
    main(["list"])
print(json.dumps({"shown": shown.getvalue(), "modules": sorted(sys.modules)}))
"""


def listing() -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", LIST], check=True, capture_output=True, text=True)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_list_imports_no_plugin_and_no_torch() -> None:
    """A broken plugin must not break the list, and users do not want to wait for torch."""
    answer = listing()
    assert "cpu" in str(answer["shown"])  # it did list
    loaded = {str(module).partition(".")[0] for module in answer["modules"]}  # type: ignore[attr-defined]
    plugins = {d.name.replace("-", "_") for d in metadata.distributions() if d.name.startswith("kshot-")}
    assert loaded & ({"torch", "numpy", "PIL", "pytest"} | plugins) == set()


def test_list_imports_few_modules() -> None:
    """Every import adds to the start-up time."""
    modules = listing()["modules"]
    assert len(modules) <= MODULES, modules  # type: ignore[arg-type]
