"""Plant faults in the sources one at a time, and see whether the tests notice; see README.md.

python tests/mutations/run.py                                  # all faults of all lists
python tests/mutations/run.py --list core.toml --only ID ID    # some of them
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from queue import Empty, Queue
from typing import TypeVar

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

SHARE = 0.95
"""Least share of the faults that must be caught."""

NOT_COPIED = (".git", ".tox", ".venv*", ".*_cache", "__pycache__", "*.egg-info")
NOT_COPIED_FROM_ROOT = ("build", "dist", "runs")

NEEDS_AN_INSTALLATION = ("tests/integration/test_runs.py::test_an_installed_package_is_allowed",)
"""Tests that can't pass where kshot is imported from a folder of sources."""


@dataclass(frozen=True)
class Fault:
    """Store one fault: a text of a file that is replaced by another.

    Attributes:
        id: a unique name in lower case, with hyphens.
        file: the file, relative to the repository.
        before: a text that occurs exactly once in the file.
        after: the text that replaces it.
        what: what is wrong then, as a sentence.
        tests: the test files, or single tests, that should notice.
        survives: why no test notices; empty if one must.
    """

    id: str
    file: str
    before: str
    after: str
    what: str
    tests: tuple[str, ...]
    survives: str = ""


@dataclass(frozen=True)
class Outcome:
    """Store what became of a fault: ``caught``, ``timed out``, which counts as caught too, or ``SURVIVED``."""

    id: str
    outcome: str
    seconds: float
    test: str = ""

    @property
    def caught(self) -> bool:
        """Whether the tests noticed the fault."""
        return self.outcome != "SURVIVED"


def lists() -> list[Path]:
    """Return the lists of faults beside this file."""
    return sorted(HERE.glob("*.toml"))


def faults_of(paths: Iterable[Path]) -> list[Fault]:
    """Read lists of faults.

    Raises:
        TypeError: an entry lacks a field or has an unknown one.
    """
    entries = [entry for path in paths for entry in tomllib.loads(path.read_text(encoding="utf-8"))["fault"]]
    return [Fault(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def mistakes(faults: Iterable[Fault], root: Path = ROOT) -> list[str]:
    """Return what is wrong with the faults themselves, a sentence each, without running any test."""
    faults, texts = list(faults), dict[Path, str]()
    found = [f"{name}: got this id {n} times" for name, n in Counter(f.id for f in faults).items() if n > 1]
    for fault in faults:
        path = root / fault.file
        if not path.is_file():
            found.append(f"{fault.id}: got {fault.file}, which does not exist")
            continue
        text = texts.setdefault(path, path.read_text(encoding="utf-8"))
        if (n := text.count(fault.before)) != 1:
            found.append(f"{fault.id}: `before` occurs {n} times in {fault.file}, expected once")
        if fault.before == fault.after:
            found.append(f"{fault.id}: `after` is the same as `before`")
        if not fault.tests or not fault.what:
            found.append(f"{fault.id}: got no tests, or no sentence in `what`")
        for test in fault.tests:
            if not (root / test.partition("::")[0]).exists():
                found.append(f"{fault.id}: got the tests {test}, which do not exist")
    return found


class Copy:
    """Copy the repository's sources into a temporary folder, in which faults are planted and tests are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "kshot"
        shutil.copytree(ROOT, self.folder, ignore=_left_out)
        plugins = sorted(source for of in ("plugins", "contrib") for source in (self.folder / of).glob("*/src"))
        sources = [self.folder / "core" / "src", *plugins]
        # Compiled files that are compared by content: by time, a file that changes twice in a second may be missed.
        for source in sources:
            compileall.compile_dir(source, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        shared = os.environ.get("KSHOT_SHARED") or str(ROOT.parent / "shared" / "data")
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, sources)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "KSHOT_CACHE": str(folder / "cache"),
            "KSHOT_SHARED": shared,
            "TMPDIR": str(folder / "tmp"),
        }
        (folder / "tmp").mkdir()

    def tested(self, tests: tuple[str, ...], limit: float | None) -> tuple[int | None, str]:
        """Run tests; return pytest's exit code, None if they took longer than the limit, and their output."""
        left_out = [f"--deselect={test}" for test in NEEDS_AN_INSTALLATION]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", *left_out]
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                [*command, *tests],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code: int | None
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
            output.seek(0)
            return code, output.read()

    def try_one(self, fault: Fault, limit: float) -> Outcome:
        """Plant a fault, run its tests, and restore the file."""
        path = self.folder / fault.file
        original = path.read_text(encoding="utf-8")
        started = time.monotonic()
        try:
            path.write_text(original.replace(fault.before, fault.after), encoding="utf-8")
            code, output = self.tested(fault.tests, limit)
        finally:
            path.write_text(original, encoding="utf-8")
        outcome = "timed out" if code is None else "SURVIVED" if code == 0 else "caught"
        failed = [line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        return Outcome(fault.id, outcome, round(time.monotonic() - started, 1), failed[0][:200] if failed else "")


def _left_out(folder: str, names: list[str]) -> set[str]:
    """Return which names in a folder are not copied."""
    more = NOT_COPIED_FROM_ROOT if Path(folder) == ROOT else ()
    return {str(name) for name in shutil.ignore_patterns(*NOT_COPIED, *more)(folder, names)}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started, which are in its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _taken(queue: Queue[T]) -> Iterator[T]:
    """Take the items of a queue from which several threads take, until there is none."""
    with contextlib.suppress(Empty):
        while True:
            yield queue.get_nowait()


def tried(faults: list[Fault], jobs: int) -> list[Outcome]:
    """Try all faults, and print a line for each.

    Raises:
        SystemExit: tests fail without any fault, or take too long.
    """
    outcomes: list[Outcome] = []
    durations: dict[str, float] = {}
    broken: list[str] = []
    unmutated: Queue[str] = Queue()
    for test in dict.fromkeys(test for fault in faults for test in fault.tests):
        unmutated.put(test)
    planned: Queue[Fault] = Queue()
    for fault in faults:
        planned.put(fault)
    measured = threading.Barrier(jobs)
    printing = threading.Lock()

    def work() -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="kshot-mutations-") as folder:
                copy = Copy(Path(folder))
                for test in _taken(unmutated):
                    if broken:
                        break
                    started = time.monotonic()
                    code, output = copy.tested((test,), 600)
                    durations[test] = time.monotonic() - started
                    with printing:
                        print(f"{durations[test]:6.1f} s  without a fault: {test}", flush=True)
                    if code != 0:
                        broken.append(f"{test}: fails without any fault\n{output[-3000:]}")
                measured.wait()  # from here on the durations of all tests are known
                for fault in [] if broken else _taken(planned):
                    outcome = copy.try_one(fault, 30 + 5 * sum(durations[test] for test in fault.tests))
                    with printing:
                        outcomes.append(outcome)
                        wrong = "" if outcome.caught else f"  {fault.what} {fault.survives}".rstrip()
                        print(f"{outcome.seconds:6.1f} s  {outcome.outcome:9}  {fault.id}{wrong}", flush=True)
        except Exception as error:
            broken.append(f"{type(error).__name__}: {error}")
            measured.abort()

    threads = [threading.Thread(target=work) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if broken:
        raise SystemExit("\n".join(broken))
    return outcomes


def main() -> None:
    """Run the command line; the exit code is 0 if enough faults were caught and the list says which ones are not."""
    parser = argparse.ArgumentParser(description="Plant faults in the sources one at a time, and run their tests.")
    parser.add_argument("--only", nargs="+", metavar="ID", help="try only these faults")
    parser.add_argument("--list", type=Path, metavar="FILE", help="a list of faults; by default all beside run.py")
    parser.add_argument("--jobs", type=int, default=1, help="number of tests at once, each in a copy of its own")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the outcomes into this file")
    asked = parser.parse_args()
    paths = lists() if asked.list is None else [asked.list if asked.list.exists() else HERE / asked.list]
    faults = faults_of(paths)
    if asked.only:
        if unknown := set(asked.only) - {fault.id for fault in faults}:
            parser.error(f"--only: got {', '.join(sorted(unknown))}, expected ids of the lists")
        faults = [fault for fault in faults if fault.id in asked.only]
    if found := mistakes(faults):
        raise SystemExit("\n".join(found))
    started = time.monotonic()
    outcomes = tried(faults, max(1, asked.jobs))
    if asked.json:
        asked.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1), encoding="utf-8")
    by_id = {fault.id: fault for fault in faults}
    caught = sum(outcome.caught for outcome in outcomes)
    print(f"\n{caught} of {len(outcomes)} faults were caught, {caught / len(outcomes):.1%}, ", end="")
    print(f"in {(time.monotonic() - started) / 60:.0f} minutes")
    unexplained = [o.id for o in outcomes if not o.caught and not by_id[o.id].survives]
    for outcome in outcomes:
        if not outcome.caught:
            print(f"  {outcome.id}: {by_id[outcome.id].survives or 'NO TEST NOTICES, and no reason is given'}")
    explained_away = [o.id for o in outcomes if o.caught and by_id[o.id].survives]
    for name in explained_away:
        print(f"  {name}: is caught, so remove `survives` from the list")
    enough = bool(asked.only) or caught >= SHARE * len(outcomes)
    sys.exit(0 if enough and not unexplained and not explained_away else 1)


if __name__ == "__main__":
    main()
