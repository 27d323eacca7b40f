"""Measure how long ``kshot list`` and ``import kshot`` take, against plain Python and ``import torch``.

Each is measured as a complete process, from its start to its end; the processes take turns. The first two ratios are
the time of kshot over that of an empty Python; the last is the time of ``import torch`` over that of ``kshot list``.

Run ``python benchmarks/startup.py``; add ``--quick`` to test the script only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench import Report, alternate, arguments, ratio_of, spread


def main() -> None:
    options = arguments(__doc__)
    kshot = shutil.which("kshot", path=str(Path(sys.executable).parent))
    if kshot is None:
        raise SystemExit(f"got no kshot beside {sys.executable}, expected it in this environment; install it there")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        'python -c "import kshot"': [sys.executable, "-c", "import kshot"],
        "kshot list": [kshot, "list"],
        'python -c "import torch"': [sys.executable, "-c", "import torch"],
    }

    # pip compiles what it installs. For a source tree, the first run, which isn't counted, may write the bytecode.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def runner(command: list[str]) -> Callable[[], object]:
        return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)

    runs = {name: runner(command) for name, command in commands.items()}
    times = alternate(runs, 2 if options.quick else 7)
    report = Report("startup", ["complete processes in turn, after one of each that isn't counted"])
    for name, values in times.items():
        middle, least, most = spread(values)
        report.rows.append({"run": name, "seconds": middle, "least": least, "most": most})
    empty, listed, torch = times["python -c pass"], times["kshot list"], times['python -c "import torch"']
    imported = times['python -c "import kshot"']
    report.ratios.append((ratio_of(imported, empty), "import kshot takes {} times as long as an empty Python"))
    report.ratios.append((ratio_of(listed, empty), "kshot list takes {} times as long as an empty Python"))
    report.ratios.append((ratio_of(torch, listed), "kshot list is {} times as fast as import torch alone"))
    report.finish(options)


if __name__ == "__main__":
    main()
