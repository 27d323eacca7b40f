"""Measure the time of processes: ``kshot list`` and ``import kshot`` against plain Python and ``import torch``."""

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
        raise SystemExit(f"no kshot beside {sys.executable}: install it into this environment")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        'python -c "import kshot"': [sys.executable, "-c", "import kshot"],
        "kshot list": [kshot, "list"],
        'python -c "import torch"': [sys.executable, "-c", "import torch"],
    }

    # As after an installation, which compiles: the run that isn't counted may keep the bytecode of a source tree.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def runner(command: list[str]) -> Callable[[], object]:
        return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)

    runs = {name: runner(command) for name, command in commands.items()}
    times = alternate(runs, 2 if options.quick else 7)
    report = Report("startup", ["whole processes, in turn, after one of each that isn't counted"])
    for name, values in times.items():
        middle, least, most = spread(values)
        report.rows.append({"run": name, "seconds": middle, "least": least, "most": most})
    empty, listed, torch = times["python -c pass"], times["kshot list"], times['python -c "import torch"']
    imported = times['python -c "import kshot"']
    report.ratios.append((ratio_of(imported, empty), "import kshot takes {} x an empty Python (whole processes)"))
    report.ratios.append((ratio_of(listed, empty), "kshot list takes {} x an empty Python (whole processes)"))
    report.ratios.append((ratio_of(torch, listed), "kshot list {} x as fast as import torch alone (whole processes)"))
    report.finish(options)


if __name__ == "__main__":
    main()
