"""Functions that the benchmarks share: options, data, timing, processes, the table, and adapters for easyfsl.

Importing this imports neither torch nor kshot, so that a parent process stays small; the memory benchmark relies on it.
"""

from __future__ import annotations

import argparse
import importlib
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


def arguments(description: str | None, part: bool = False) -> argparse.Namespace:
    """The options of every benchmark; ``part`` adds those by which a benchmark calls itself in a fresh process."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it runs, measures nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    if part:
        parser.add_argument("--part", default="", help=argparse.SUPPRESS)
        parser.add_argument("--options", default="{}", type=str, help=argparse.SUPPRESS)
    return parser.parse_args()


# -------------------- data


def find_omniglot() -> tuple[Path | None, str]:
    """Folder of Omniglot's two zips, and what to call the data; None stands for the subset inside kshot-omniglot.

    ``KSHOT_OMNIGLOT``, else ``../shared/data/omniglot`` beside the repository. kshot itself looks for the former, so
    it is set here for this process and its children.
    """
    beside = ROOT.parent / "shared" / "data" / "omniglot"
    if not os.environ.get("KSHOT_OMNIGLOT") and beside.is_dir():
        os.environ["KSHOT_OMNIGLOT"] = str(beside)
    if place := os.environ.get("KSHOT_OMNIGLOT"):
        return Path(place), "the full Omniglot, Vinyals split"
    return None, "Omniglot's EMBEDDED SUBSET (no full data found; set KSHOT_OMNIGLOT)"


def picture_folders(root: Path | None, folder: Path) -> list[Path]:
    """The characters of Omniglot's background part as folders of 105 x 105 PNG files, unpacked into ``folder``."""
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
    arms: Mapping[str, Callable[[], object]], rounds: int, *, warmup: int = 1, each: int = 1
) -> dict[str, list[float]]:
    """Seconds of each arm in each round, arms in turn (A B A B ..), so that a slow drift of the machine cancels.

    Args:
        warmup: rounds that aren't counted.
        each: what an arm does at a call, by which its time is divided.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    for r in range(warmup + rounds):
        for name, run in arms.items():
            started = time.perf_counter()
            run()
            taken = time.perf_counter() - started
            if r >= warmup:
                times[name].append(taken / each)
    return times


def ratio_of(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median over rounds of the ratio slow / fast within a round."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median, least and greatest as text."""
    return statistics.median(values), min(values), max(values)


def fresh(script: str, part: str, **options: Any) -> dict[str, Any]:
    """Run ``part`` of a benchmark in a process of its own; returns the JSON object of its last line."""
    command = [sys.executable, script, "--part", part, "--options", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{Path(script).name}, part {part} with {options} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def resident() -> dict[str, float]:
    """This process's resident memory in MB: all, anonymous (its own) and file (shared with the page cache)."""
    names = {"all": "VmRSS", "anonymous": "RssAnon", "file": "RssFile"}
    return {name: _status(key) for name, key in names.items()}


def _status(key: str) -> float:
    """Return a size from /proc/self/status, in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1024


def peak() -> float:
    """The most resident memory this process has had, in MB; unlike ru_maxrss, which exec keeps."""
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


# -------------------- telling


@dataclass
class Report:
    """What a benchmark has to tell.

    Attributes:
        name: of the benchmark.
        rows: of the table; the first one's keys are the head.
        notes: on data, machine and method.
        ratios: (value, what it is); the last one is the benchmark's answer.
    """

    name: str
    notes: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: list[tuple[float, str]] = field(default_factory=list)

    def finish(self, options: argparse.Namespace) -> None:
        """Print the report, as a table that ends with the ratios or as JSON."""
        if options.quick:
            self.notes.append("--quick: too few repetitions to measure anything")
        if options.json:
            ratios = [{"value": value, "what": what} for value, what in self.ratios]
            print(json.dumps({"benchmark": self.name, "quick": options.quick, "machine": machine(), "notes": self.notes,
                              "rows": self.rows, "ratios": ratios}))  # fmt: skip
            return
        print(f"{self.name}: {', '.join(f'{k} {v}' for k, v in machine().items())}")
        for note in self.notes:
            print(f"  {note}")
        cells = [list(self.rows[0]), *([show(v) for v in row.values()] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        for row in cells:
            first, *others = zip(row, widths, strict=True)
            print("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]))
        for value, what in self.ratios:
            print(f"ratio: {what.format(show(value))}")


def show(value: Any) -> str:
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
    found = {}
    for package in ("torch", "kshot", "easyfsl"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return {"processor": model, "cores": cores, "python": platform.python_version(), **found}


# -------------------- easyfsl


def has_easyfsl() -> bool:
    try:
        version("easyfsl")
    except PackageNotFoundError:
        return False
    return True


EASYFSL_PATCH = "easyfsl's TaskSampler is patched at run time: super().__init__(data_source=None) -> super().__init__()"


def easyfsl_sampler() -> Any:
    """easyfsl's ``TaskSampler``, with the one line mended that today's torch refuses: it passes ``data_source``."""
    if not has_easyfsl():
        raise SystemExit("easyfsl is not installed: pip install -r benchmarks/requirements.txt")
    module = importlib.import_module("easyfsl.samplers.task_sampler")
    source = inspect.getsource(module)
    line = "super().__init__(data_source=None)"
    if source.count(line) != 1:
        raise SystemExit(f"easyfsl {version('easyfsl')} is another one than 1.5.0: its sampler has no line {line!r}")
    exec(compile(source.replace(line, "super().__init__()"), str(module.__file__), "exec"), module.__dict__)
    return module.TaskSampler


def easyfsl_conv4() -> Any:
    """conv4-64 as papers draw it, 4 x [conv, batch norm, ReLU, max pool]; easyfsl has residual nets only."""
    from torch import nn

    layers: list[nn.Module] = []
    for channels in (1, 64, 64, 64):
        layers += [nn.Conv2d(channels, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten())


def easyfsl_in_memory(pool: Any, sampler: dict[str, int]) -> Any:
    """easyfsl's loader over the examples of a kshot pool, held as float32 tensors: the fastest it can be given.

    Args:
        sampler: n_way, n_shot, n_query, n_tasks.
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

    made = InMemory()
    tasks = easyfsl_sampler()(made, **sampler)
    return DataLoader(made, batch_sampler=tasks, num_workers=0, collate_fn=tasks.episodic_collate_fn)


def easyfsl_from_files(folders: Sequence[str], place: Path, workers: int, sampler: dict[str, int]) -> Any:
    """easyfsl's loader as its notebook on episodic training has it, over PNG files by its own ``EasySet``.

    The transform is the least there can be (grey, 28 x 28, tensor), so that no augmentation is counted against it.
    """
    from easyfsl.datasets import EasySet
    from torch.utils.data import DataLoader
    from torchvision import transforms

    specs = place / "specs.json"
    specs.write_text(json.dumps({"class_names": [str(f) for f in folders], "class_roots": [str(f) for f in folders]}))
    steps = [transforms.Grayscale(1), transforms.Resize((28, 28)), transforms.ToTensor()]
    made = EasySet(specs, transform=transforms.Compose(steps))
    tasks = easyfsl_sampler()(made, **sampler)
    return DataLoader(made, batch_sampler=tasks, num_workers=workers, collate_fn=tasks.episodic_collate_fn)


def easyfsl_step(model: Any, optimizer: Any, episode: Sequence[Any]) -> float:
    """A training step as easyfsl's notebook has it; returns the loss."""
    from torch import nn

    support_images, support_labels, query_images, query_labels = episode[:4]
    optimizer.zero_grad()
    model.process_support_set(support_images, support_labels)
    loss = nn.CrossEntropyLoss()(model(query_images), query_labels)
    loss.backward()
    optimizer.step()
    return float(loss.item())
