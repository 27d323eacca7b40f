"""What the tests of examples share: a fresh folder, and the check that an example leaves no global state.

Making a network draws from torch's random state, and an example may register a plugin; both are put back.
"""

from __future__ import annotations

import os
import random
import signal
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
