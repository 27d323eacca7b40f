"""Provide what the benchmarks share: options, data, timing, processes, the printed table, and adapters for easyfsl.

Importing this module imports neither torch nor kshot, so that a parent process stays small. The memory benchmark
relies on this.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("images_background", "images_evaluation")


def arguments(description: str | None, part: bool = False, rows: bool = False) -> argparse.Namespace:
    """Parse the options that every benchmark has.

    Args:
        description: the docstring of the benchmark; ``--help`` shows its first line.
        part: whether to add the hidden options with which a benchmark starts itself in a new process.
        rows: whether to add ``--only`` and ``--processor-time``, for a benchmark of many rows.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only test the script; the figures mean nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    if rows:
        parser.add_argument("--only", default="", help="measure only the rows whose name begins with this")
        parser.add_argument("--processor-time", action="store_true", help="measure the time of the processor")
    if part:
        parser.add_argument("--part", default="", help=argparse.SUPPRESS)
        parser.add_argument("--options", default="{}", type=str, help=argparse.SUPPRESS)
    return parser.parse_args()


# -------------------- data


def find_omniglot() -> tuple[Path | None, str]:
    """Return the folder of Omniglot's two zips and a description of the data for the report.

    The folder is that of the environment variable ``KSHOT_OMNIGLOT``, otherwise ``../shared/data/omniglot`` beside the
    repository. If neither exists, it is None, and the benchmark uses the subset inside kshot-omniglot. kshot itself
    reads ``KSHOT_OMNIGLOT``, so the variable is set here for this process and the processes that it starts.
    """
    beside = ROOT.parent / "shared" / "data" / "omniglot"
    if not os.environ.get("KSHOT_OMNIGLOT") and beside.is_dir():
        os.environ["KSHOT_OMNIGLOT"] = str(beside)
    if place := os.environ.get("KSHOT_OMNIGLOT"):
        return Path(place), "the full Omniglot, Vinyals split"
    return None, "Omniglot's EMBEDDED SUBSET (no full data found; set KSHOT_OMNIGLOT)"


def picture_folders(root: Path | None, folder: Path) -> list[Path]:
    """Return the folders of Omniglot's background characters, each with PNG files of 105 x 105 pixels.

    Args:
        root: the folder of the zips, as ``find_omniglot`` returns it; None takes the subset inside kshot-omniglot.
        folder: where the files are unpacked to, if they are not unpacked already.
    """
    if root is None:
        from PIL import Image

        from kshot_omniglot.embedded import Embedded

        embedded = Embedded()
        drawings = iter(embedded.pixels(105, 1))
        for character in embedded.characters():
            place = folder / character.alphabet / character.number
            place.mkdir(parents=True)
            for i in range(character.drawings):
                Image.fromarray(255 - next(drawings)).save(place / f"{i:02d}.png")
    elif (root / f"{PARTS[0]}.zip").is_file():
        with zipfile.ZipFile(root / f"{PARTS[0]}.zip") as archive:
            archive.extractall(folder)
    else:
        folder = root / PARTS[0]
    return sorted({path.parent for path in folder.rglob("*.png")})


# -------------------- measuring


def alternate(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 1,
    each: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds that each arm takes in each round.

    The arms run in turn (A B A B ...), so that a slow drift of the machine's speed affects all of them alike.

    Args:
        arms: name -> the function to be timed.
        rounds: how often each arm is timed.
        warmup: rounds before these that are not timed.
        each: how many units of work (steps, episodes) one call of an arm does; its time is divided by this number.
        clock: returns the time in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    for r in range(warmup + rounds):
        for name, run in arms.items():
            started = clock()
            run()
            taken = clock() - started
            if r >= warmup:
                times[name].append(taken / each)
    return times


def ratio_of(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median over rounds of the ratio ``slow / fast`` within a round: how many times as fast ``fast`` is."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, the least and the greatest of the values."""
    return statistics.median(values), min(values), max(values)


def fresh(script: str, part: str, **options: Any) -> dict[str, Any]:
    """Run one part of a benchmark in a new process, and return the JSON object that it prints as its last line."""
    command = [sys.executable, script, "--part", part, "--options", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{Path(script).name}, part {part} with {options} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def resident() -> dict[str, float]:
    """Return the resident memory of this process in MB.

    Returns:
        ``all`` of it; ``anonymous``, which belongs to the process alone; and ``file``, which is mapped from files and
        shared with the page cache.
    """
    names = {"all": "VmRSS", "anonymous": "RssAnon", "file": "RssFile"}
    return {name: _status(key) for name, key in names.items()}


def _status(key: str) -> float:
    """Return a size from /proc/self/status, in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1024


def peak() -> float:
    """Return the greatest resident memory that this process has had, in MB.

    On Linux this is VmHWM and not ``ru_maxrss``, because a process inherits the latter from its parent through exec.
    """
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# -------------------- reporting


@dataclass
class Report:
    """Collect the results of a benchmark and print them.

    Attributes:
        name: the name of the benchmark.
        notes: sentences about the data, the machine and the method, printed above the table.
        rows: the rows of the table; the keys of the first row are the column headings.
        ratios: pairs of a value and a sentence with ``{}`` where the value belongs. The last one answers the question
            of the benchmark.
    """

    name: str
    notes: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: list[tuple[float, str]] = field(default_factory=list)

    def finish(self, options: argparse.Namespace) -> None:
        """Print the report, as a table that ends with the ratios or as JSON."""
        if options.quick:
            self.notes.append("--quick: there were too few repetitions, so the figures mean nothing")
        if options.json:
            ratios = [{"value": value, "what": what} for value, what in self.ratios]
            print(json.dumps({"benchmark": self.name, "quick": options.quick, "machine": machine(), "notes": self.notes,
                              "rows": self.rows, "ratios": ratios}))  # fmt: skip
            return
        print(f"{self.name}: {', '.join(f'{k} {v}' for k, v in machine().items())}")
        for note in self.notes:
            print(f"  {note}")
        cells = [list(self.rows[0] if self.rows else ()), *([show(v) for v in row.values()] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        for row in cells if self.rows else ():
            first, *others = zip(row, widths, strict=True)
            print("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]))
        for value, what in self.ratios:
            print(f"ratio: {what.format(show(value))}")


def show(value: Any) -> str:
    """Format a cell: three significant digits for floats, and whole numbers from 1000 on."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """Describe the machine on which the benchmark ran."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {}
    for package in ("torch", "kshot", "easyfsl"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {"processor": model, "cores": cores, "python": platform.python_version(), **versions}


# -------------------- easyfsl


def require(*modules: str) -> None:
    """Exit with the command to type if a module that a benchmark compares with is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        command = "pip install -r benchmarks/requirements.txt"
        raise SystemExit(f"got no module {', '.join(missing)}, expected what kshot is compared with; type: {command}")


def has_easyfsl() -> bool:
    try:
        version("easyfsl")
    except PackageNotFoundError:
        return False
    return True


EASYFSL_PATCH = "easyfsl's TaskSampler is patched at run time: super().__init__(data_source=None) -> super().__init__()"


def easyfsl_sampler() -> Any:
    """Return easyfsl's ``TaskSampler`` with one line fixed: it passes ``data_source``, which today's torch refuses."""
    require("easyfsl")
    module = importlib.import_module("easyfsl.samplers.task_sampler")
    source = inspect.getsource(module)
    line = "super().__init__(data_source=None)"
    if source.count(line) != 1:
        got = f"got easyfsl {version('easyfsl')}, whose sampler has no line {line!r}"
        raise SystemExit(f"{got}, expected easyfsl 1.5.0; install that version")
    exec(compile(source.replace(line, "super().__init__()"), str(module.__file__), "exec"), module.__dict__)
    return module.TaskSampler


def easyfsl_conv4() -> Any:
    """Build the papers' conv4-64, 4 x [conv, batch norm, ReLU, max pool]; easyfsl has only residual networks."""
    from torch import nn

    layers: list[nn.Module] = []
    for channels in (1, 64, 64, 64):
        layers += [nn.Conv2d(channels, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


def easyfsl_in_memory(pool: Any, sampler: dict[str, int]) -> Any:
    """Build easyfsl's loader over the examples of a kshot pool, as float32 tensors in memory: its fastest data set.

    Args:
        pool: the kshot pool.
        sampler: the arguments of easyfsl's sampler: n_way, n_shot, n_query, n_tasks.
    """
    from easyfsl.datasets import FewShotDataset
    from torch.utils.data import DataLoader

    ids, y = pool.table()
    x, labels = list(pool.gather(ids)), y.tolist()

    class InMemory(FewShotDataset):  # type: ignore[misc]
        def __getitem__(self, item: int) -> tuple[Any, int]:
            return x[item], labels[item]

        def __len__(self) -> int:
            return len(labels)

        def get_labels(self) -> list[int]:
            return labels

    examples = InMemory()
    tasks = easyfsl_sampler()(examples, **sampler)
    return DataLoader(examples, batch_sampler=tasks, num_workers=0, collate_fn=tasks.episodic_collate_fn)


def easyfsl_from_files(folders: Sequence[str], place: Path, workers: int, sampler: dict[str, int]) -> Any:
    """Build easyfsl's loader as in its notebook on episodic training: over PNG files, by its own ``EasySet``.

    The transform does only what is necessary (grey, 28 x 28, tensor), so that no augmentation counts against easyfsl.
    """
    from easyfsl.datasets import EasySet
    from torch.utils.data import DataLoader
    from torchvision import transforms

    specs = place / "specs.json"
    specs.write_text(json.dumps({"class_names": [str(f) for f in folders], "class_roots": [str(f) for f in folders]}))
    steps = [transforms.Grayscale(1), transforms.Resize((28, 28)), transforms.ToTensor()]
    examples = EasySet(specs, transform=transforms.Compose(steps))
    tasks = easyfsl_sampler()(examples, **sampler)
    return DataLoader(examples, batch_sampler=tasks, num_workers=workers, collate_fn=tasks.episodic_collate_fn)


def easyfsl_step(model: Any, optimizer: Any, episode: Sequence[Any]) -> float:
    """Take a training step as in easyfsl's notebook, and return the loss."""
    from torch import nn

    support_images, support_labels, query_images, query_labels = episode[:4]
    optimizer.zero_grad()
    model.process_support_set(support_images, support_labels)
    loss = nn.CrossEntropyLoss()(model(query_images), query_labels)
    loss.backward()
    optimizer.step()
    return float(loss.item())
