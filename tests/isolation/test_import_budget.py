"""``kshot list`` answers at once: it imports no plugin, no torch, and little else.

How long it takes is measured by ``benchmarks/startup.py``; a timed test would fail on a busy machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata

MODULES = 220
"""Standard library included. A list imports the core's own few modules, attrs, click and what reads entry points."""

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
    """A broken plugin must not break the list, and a second's wait for torch would make nobody ask again."""
    answer = listing()
    assert "cpu" in str(answer["shown"])  # it did list
    loaded = {str(module).partition(".")[0] for module in answer["modules"]}  # type: ignore[attr-defined]
    plugins = {d.name.replace("-", "_") for d in metadata.distributions() if d.name.startswith("kshot-")}
    assert loaded & ({"torch", "numpy", "PIL", "pytest"} | plugins) == set()


def test_list_imports_few_modules() -> None:
    """Start-up time is lost by one import at a time."""
    modules = listing()["modules"]
    assert len(modules) <= MODULES, modules  # type: ignore[arg-type]
