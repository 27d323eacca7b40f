"""What the tests share: the same random numbers for each test, a fresh folder for examples, and the check that an
example leaves no global state.

Making a network draws from torch's random state, and an example may register a plugin; both are put back.
"""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest


def global_state() -> dict[str, Any]:
    """Return the state of the process that an example must not change."""
    import numpy as np
    import torch

    variables = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return {
        "the folder": os.getcwd(),
        "the environment variables": variables,
        "torch's default type": torch.get_default_dtype(),
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's threads": torch.get_num_threads(),
        "random's state": random.getstate(),
        "numpy's random state": np.random.get_state()[1].tolist(),
    }


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt: a process that a script starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _same_random_numbers_in_any_order(request: pytest.FixtureRequest) -> None:
    """Seed torch's generator by the name of the test, so that it draws the same numbers whichever tests ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(zlib.crc32(request.node.nodeid.encode()))


@contextmanager
def restored() -> Iterator[None]:
    """Put torch's random state and the plugins registered in this process back as they were."""
    import torch

    from kshot.registry import default

    registered, loaded = dict(default._registered), dict(default._loaded)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        default._registered, default._loaded = registered, {**default._loaded, **loaded}


@pytest.fixture
def stateless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[Path]]:
    """A context in an empty folder, which also has the cache; it requires that nothing inside changes global state.

    Import modules before entering it: some libraries set environment variables when they are imported.
    """

    @contextmanager
    def context() -> Iterator[Path]:
        with monkeypatch.context() as patched:
            patched.chdir(tmp_path)
            patched.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
            before = global_state()
            with restored():
                yield tmp_path
            after = global_state()
        # A library may set a variable when its first use imports it; what was set must stay.
        after["the environment variables"] = {
            name: after["the environment variables"].get(name) for name in before["the environment variables"]
        }
        assert [name for name in before if after[name] != before[name]] == [], "the examples changed these"

    return context


LIMIT = 30.0
"""Seconds that one hostile input may take."""

ROOM = 2 << 30
"""Bytes of addresses that a test of hostile inputs may use on top of those it begins with."""


class TooSlow(BaseException):
    """Raised if an input takes too long; nothing that catches errors takes it for one of its own."""


class Trials:
    """Try hostile inputs: each is accepted rightly, or refused by one error of kshot that leaves nothing behind.

    Faults are collected, so that one failure of a test shows all of them; ``finish`` reports them.

    Args:
        folder: the working folder of the test, in which a refused input must leave no file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.accepted = self.refused = 0
        self.faults: list[str] = []

    def attempt(
        self,
        label: str,
        work: Callable[[], Any],
        right: Callable[[Any], object] | None = None,
        *,
        named: str = "",
        must: bool = False,
        others: tuple[type[Exception], ...] = (),
        may_write: bool = False,
    ) -> bool:
        """Do the work with one input, and return whether it was accepted.

        Args:
            label: the input, for messages.
            work: uses the input, and returns what came of it.
            right: checks what came of it; it raises AssertionError, or returns False, if it is wrong. None if no value
                is right, so that the input must be refused.
            named: what a refusal must contain, such as the name of the file.
            must: whether the input has to be accepted.
            others: further types of errors that are a refusal, such as ValueError for scikit-learn.
            may_write: whether a refusal may leave files, such as those of a cache.
        """
        from kshot.errors import KshotError

        before = None if may_write else _files(self.folder)
        try:
            with _limited(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value = work()
        except (KshotError, *others) as error:
            self.refused += 1
            if must:
                self.faults.append(f"{label}: refused, expected to be accepted: {error!s:.300}")
            message = " ".join([str(error), *getattr(error, "__notes__", ())])
            if isinstance(error, KshotError):
                wanted = ("got|can't", "expected|invalid TOML", named)
                lacking = [word for word in wanted if not re.search(word, message)]
                if lacking or len(message) > 6000:
                    self.faults.append(f"{label}: lacks {lacking}: {type(error).__name__}: {message:.300}")
            if before is not None and (left := _files(self.folder)) != before:
                self.faults.append(f"{label}: left {sorted(left ^ before)[:5]} after {message:.200}")
            return False
        except (Exception, TooSlow) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(where.filename).name}:{where.lineno}"
            self.faults.append(f"{label}: {type(error).__name__} at {at}: {error!s:.300}")
            return False
        self.accepted += 1
        try:
            assert right is not None, "accepted, expected a refusal"
            assert right(value) is not False, f"got the wrong value {value!r:.300}"
        except Exception as error:
            self.faults.append(f"{label}: {type(error).__name__}: {error!s:.300}")
        return True

    def finish(self, inputs: int, *, accepted: float = 0.02, refused: float = 0.02) -> None:
        """Report the faults; there must have been this many inputs, and at least these shares of both outcomes."""
        kinds = Counter(re.sub(r"^[^:]*: ", "", fault)[:60] for fault in self.faults)
        if self.faults:
            shown = "\n".join("- " + fault.replace("\n", " ") for fault in self.faults[:60])
            pytest.fail(f"{len(self.faults)} faults, {kinds.most_common(12)}:\n{shown}", pytrace=False)
        assert self.accepted + self.refused == inputs
        assert self.accepted >= accepted * inputs
        assert self.refused >= refused * inputs


@contextmanager
def _limited() -> Iterator[None]:
    """Raise TooSlow in the block after ``LIMIT`` seconds."""

    def late(*_: object) -> None:
        raise TooSlow(f"took more than {LIMIT} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _files(folder: Path) -> set[tuple[str, int]]:
    """Return the files and folders in a folder, with their sizes."""
    found, waiting = set(), [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                found.add((entry.path, entry.stat(follow_symlinks=False).st_size))
    return found


@pytest.fixture
def trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trials]:
    """Try hostile inputs in an empty folder, within limited memory."""
    import resource

    import torch  # noqa: F401 -- its libraries are not to count

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("KSHOT_CACHE", str(tmp_path / "cache"))
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, hard))
    with restored():
        yield Trials(tmp_path / "work")
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
