"""Make the trace of a program, compare it with an ordinary run, and run it.

On the CPU a trace that is not compiled must compute the same numbers to the bit; otherwise rounding is allowed.

Letters: B meta-batch, n the tasks of one chunk.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from kshot.inner import graphs
from kshot.inner.cost import same_chance
from kshot.inner.guards import Guard, Untraceable
from kshot.inner.identity import AUTOCAST
from kshot.inner.programs import Program


@attrs.define(eq=False)
class Trace:
    """Store the trace of one chunk.

    Attributes:
        program: what was traced.
        outer: further tensors that it reads, such as parameters that are not inputs.
        draws: whether it draws from torch's global random generator.
        device: the type of device that computes its outputs.
    """

    program: Program
    outer: list[Tensor]
    draws: bool
    device: str
    _run: Callable[..., Sequence[Tensor]]
    _copied: set[int]  # the outputs that share memory with others, and are copied to be kept

    def outputs(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the outputs of the program, computed from its trace."""
        with torch.no_grad(), without_autocast():
            outputs = self._run(*inputs, *self.outer)
        return [t.clone() if i in self._copied else t for i, t in enumerate(outputs)] if self._copied else outputs


def make_trace(
    program: Program, guard: Guard, inputs: list[Tensor], *, compiled: bool, warn: Callable[[str], None]
) -> Trace:
    """Trace a program, and compare the trace with an ordinary run.

    Args:
        program: the work to trace; its reference to the function is dropped afterwards.
        guard: what the function depends on.
        inputs: those of the program.
        compiled: whether to compile the trace.
        warn: called with the reason if it can't be compiled, or captured on a GPU.

    Raises:
        Untraceable: the program can't be traced.
    """
    from kshot.inner.simplify import simplify  # here, because they import much of torch
    from kshot.inner.tracing import draws, interpreter, trace

    outer = [t for t in guard.tensors if not any(t is other for other in inputs)]
    if not all(t.is_leaf for t in outer):
        raise Untraceable("its object keeps a tensor that was computed from others")
    program.learned = [t for t in outer if t.requires_grad]
    with same_chance(inputs):
        before = _other_chance()
        expected = program(*inputs)
        if _other_chance() != before:
            raise Untraceable("it draws random numbers of Python or NumPy")
    with same_chance(inputs):
        graph = trace(program, inputs, outer)
    if not guard.holds():
        raise Untraceable(f"running it changes {guard.changed()}")
    simplify(graph)
    run = _compiled(graph, [*inputs, *outer], warn) if compiled else interpreter(graph)
    with torch.no_grad(), without_autocast():
        run = graphs.captured(run, [*inputs, *outer], warn)
    for _ in range(2):  # the second run shows whether the first one has changed anything
        with same_chance(inputs), torch.no_grad(), without_autocast():
            got = run(*inputs, *outer)
        if not _equal(got, expected, exactly=not compiled and got[0].device.type == "cpu"):
            raise Untraceable("its trace computes other numbers, because something changes between runs")
    program.forget()
    places = [t.untyped_storage().data_ptr() for t in got]
    given = {t.untyped_storage().data_ptr() for t in (*inputs, *outer)}
    copied = {i for i, place in enumerate(places) if place in given or places.count(place) > 1}
    return Trace(program, outer, draws(graph), got[0].device.type, run, copied)


def _compiled(graph: Any, inputs: list[Tensor], warn: Callable[[str], None]) -> Callable[..., Sequence[Tensor]]:
    """Return the compiled graph, or the interpreted one and a warning if it can't be compiled."""
    from kshot.inner.tracing import compiler, interpreter

    try:
        with torch.no_grad(), without_autocast(), same_chance(inputs):
            compiled = compiler(graph, inputs)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        warn(f"Lift: a trace can't be compiled ({reason}); it is interpreted instead, which is slower")
        return interpreter(graph)
    return compiled


_NO_CHANGE = contextlib.nullcontext()


def without_autocast() -> contextlib.AbstractContextManager[Any]:
    """Return the context in which to run a trace, which contains the casts of autocast already."""
    enabled = [d for d in AUTOCAST if torch.is_autocast_enabled(d)]
    if not enabled:
        return _NO_CHANGE
    stack = contextlib.ExitStack()
    for device in enabled:
        stack.enter_context(torch.autocast(device, enabled=False))
    return stack


def _other_chance() -> tuple[Any, ...]:
    """Return the states of the global random generators of Python and NumPy, to compare them."""
    kind, words, *rest = np.random.get_state()
    return random.getstate(), kind, np.asarray(words).tobytes(), *rest


def _equal(got: Sequence[Tensor], expected: Sequence[Tensor], *, exactly: bool) -> bool:
    """Return whether the outputs agree: to the bit, or to rounding of the greatest number among them."""
    if len(got) != len(expected):
        return False
    greatest = 0.0 if exactly else max((float(t.abs().max()) for t in expected if t.numel()), default=0.0)
    for a, b in zip(got, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        allowed = 0.0 if exactly or not a.is_floating_point() else 1e3 * torch.finfo(a.dtype).eps
        if not torch.allclose(a, b, rtol=allowed, atol=allowed * greatest, equal_nan=True):
            return False
    return True
