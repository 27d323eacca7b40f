"""Decide when a training saves its state: every so many iterations or seconds, and when it is asked to stop."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

TOGETHER = 1.0
"""Seconds within which several signals are one: a launcher forwards what the terminal has sent to all processes."""

SHARE = 20
"""Time between two checkpoints that are due by time, in durations of writing one: at most 5 % is spent on writing."""


class Schedule:
    """Say after which iterations a checkpoint is due.

    Args:
        every: number of iterations between checkpoints.
        seconds: time between checkpoints, which are written at the end of an iteration; None for no limit.
        keep: number of newest checkpoints to keep.
    """

    def __init__(self, every: int, seconds: float | None, keep: int) -> None:
        self.every, self.seconds, self.keep = every, seconds, keep
        self._written, self._pause = time.monotonic(), seconds or 0.0

    def due(self, iteration: int) -> bool:
        """Return whether a checkpoint is due on every process, by the number of iterations."""
        return iteration % self.every == 0

    def overdue(self) -> bool:
        """Return whether a checkpoint is due on this process, by the time since the last one."""
        return self.seconds is not None and time.monotonic() - self._written >= self._pause

    def written(self, started: float) -> None:
        """Record that a checkpoint was written, beginning at ``started`` by ``time.monotonic``."""
        self._written = time.monotonic()
        self._pause = max(self.seconds or 0.0, SHARE * (self._written - started))


class Stop:
    """Delay Ctrl-C and SIGTERM until the end of an iteration, within a ``with`` block.

    A checkpoint of a half-taken step would not continue as the unbroken training does. A second signal, at least a
    second later, acts at once. Signals are only taken over in the main thread, and only if nobody else handles them.

    Args:
        active: whether to take the signals over.
    """

    def __init__(self, active: bool) -> None:
        self.signal: int | None = None
        self._first = 0.0
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if self._active:
            usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
            for number, handler in usual.items():
                if signal.getsignal(number) == handler:
                    self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._first = number, time.monotonic()
        elif time.monotonic() - self._first >= TOGETHER:
            self.act("")

    def act(self, message: str) -> None:
        """Stop as the signal asks; if only another process got one, as after SIGTERM.

        Raises:
            KeyboardInterrupt: after Ctrl-C, with the message.
            SystemExit: after SIGTERM, with the exit code that shells give it.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise SystemExit(128 + (self.signal or signal.SIGTERM))
