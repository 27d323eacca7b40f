"""Notice what importing a plugin changes in the process, and restore it.

Importing a component has no side effects: a plugin that seeds generators, changes torch's defaults or closes standard
output would change the results of all others, or hide them.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class _Setting(NamedTuple):
    """One setting of the process: its name in messages, and functions that read, compare and restore it."""

    name: str
    read: Callable[[], Any]
    restore: Callable[[Any], object]


@contextlib.contextmanager
def kept(report: Callable[[list[str]], None]) -> Iterator[None]:
    """Restore the settings of the process after the block, if it changed them.

    Args:
        report: called with the names of the settings that were changed, if there are any.
    """
    settings = _settings()
    before = [setting.read() for setting in settings]
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    copies = {number: _copy(number) for number in (1, 2)}
    try:
        yield
    finally:
        changed = []
        for setting, old in zip(settings, before, strict=True):
            if not _same(setting.read(), old):
                setting.restore(old)
                changed.append(setting.name)
        for number, copy in copies.items():
            if copy is not None:
                if _copy_of(number) is None:
                    os.dup2(copy, number)
                    changed.append(f"file descriptor {number}")
                os.close(copy)
        changed += [_NAMES[name] for name, stream in streams.items() if _restored(name, stream)]
        if changed:
            report(changed)


_NAMES = {"stdout": "standard output", "stderr": "standard error"}


def _settings() -> list[_Setting]:
    settings = [_Setting("the state of random", random.getstate, random.setstate)]
    settings.append(_Setting("the working directory", _folder, os.chdir))
    try:
        import numpy as np
        import torch
    except Exception:  # the plugin's own import then says what is wrong with them
        return settings
    return [
        *settings,
        _Setting("the state of numpy.random", np.random.get_state, np.random.set_state),
        _Setting("numpy's handling of errors", np.geterr, lambda old: np.seterr(**old)),
        _Setting("torch's random state", torch.random.get_rng_state, torch.random.set_rng_state),
        _Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        _Setting("torch's default device", torch.get_default_device, _restore_device),
        _Setting("torch's gradient mode", torch.is_grad_enabled, torch.set_grad_enabled),
        _Setting("torch's anomaly mode", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
        _Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        _Setting(
            "torch's deterministic algorithms",
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda old: torch.use_deterministic_algorithms(old[0], warn_only=old[1]),
        ),
        _Setting(
            "torch's precision of matrix products",
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        _Setting(
            "cuDNN's settings",
            lambda: (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
            _restore_cudnn,
        ),
    ]


def _same(now: Any, old: Any) -> bool:
    if isinstance(old, tuple):
        return len(now) == len(old) and all(map(_same, now, old))
    equal = now == old
    return bool(equal.all() if hasattr(equal, "all") else equal)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _restore_device(old: Any) -> None:
    import torch

    torch.set_default_device(None if old == torch.device("cpu") else old)  # None also ends the dispatch mode


def _restore_cudnn(old: tuple[bool, bool, bool]) -> None:
    import torch

    torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = old


# -------------------- standard output and standard error


def _copy(number: int) -> int | None:
    """Return a copy of a file descriptor, or None if it is closed."""
    try:
        return os.dup(number)
    except OSError:
        return None


def _copy_of(number: int) -> os.stat_result | None:
    try:
        return os.fstat(number)
    except OSError:
        return None


def _restored(name: str, stream: Any) -> bool:
    """Restore ``sys.stdout`` or ``sys.stderr``; return whether this was needed."""
    replaced = getattr(sys, name) is not stream
    closed = bool(getattr(stream, "closed", False))
    if closed:
        number = {"stdout": 1, "stderr": 2}[name]
        options = {"encoding": getattr(stream, "encoding", None), "errors": getattr(stream, "errors", None)}
        if _copy_of(number) is None:
            stream = io.StringIO()  # there is nothing to write to
        else:
            stream = open(number, "w", closefd=False, buffering=1, **options)  # noqa: SIM115
            setattr(sys, f"__{name}__", stream)
    setattr(sys, name, stream)
    return replaced or closed
