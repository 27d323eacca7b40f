"""Decide when the work on a meta-batch is traced, and replay it: less Python, the same numbers.

``Replays`` belongs to a ``Lift``. It counts how often the same function has run on tensors of the same shapes; then it
traces the function (``kshot.inner.tracing``), compares the trace with an ordinary run, and replays it from then on for
as long as nothing else has changed on which the function depends (``kshot.inner.guards``).

Letters: B meta-batch, n the tasks of one chunk.
"""

from __future__ import annotations

import contextlib
import functools
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from kshot.episode import Episode
from kshot.inner.chunks import Chunk
from kshot.inner.guards import Guard, Untraceable
from kshot.inner.programs import Program
from kshot.inner.rows import Rows

WAIT = 100
"""Number of runs without a trace. Tracing takes as long as some hundred runs, so a short training goes without it."""

MOST_TRACES = 16
"""Number of functions and shapes whose traces one ``Lift`` keeps; a new one replaces the one unused for longest."""

MOST_CHANGES = 3
"""How often a function is traced anew because a value changed on which it depends; then it is not traced any more."""


@attrs.define(eq=False)
class Work:
    """Represent one function on tensors of the same shapes, and its traces.

    Attributes:
        uses: how often it has run without a trace.
        changes: how often its traces became invalid.
        refused: whether it can't be traced.
        spec: the structure of its inputs.
        guard: what it depends on beside the inputs; None if there is no trace.
        traces: for each chunk, in order: its first and last task, and its trace.
        batched: for each input whether it begins with B.
    """

    uses: int = 0
    changes: int = 0
    refused: bool = False
    spec: Any = None
    guard: Guard | None = None
    traces: list[tuple[int, int, _Trace]] = attrs.field(factory=list)
    batched: list[bool] = attrs.field(factory=list)


@attrs.define(eq=False)
class _Trace:
    """Store the trace of a chunk.

    Attributes:
        run: computes the outputs of ``program`` from its inputs and ``outer``.
        program: what was traced.
        outer: tensors beside the inputs.
        copied: the outputs that share memory with others, and are copied to be kept.
    """

    run: Callable[..., Sequence[Tensor]]
    program: Program
    outer: list[Tensor]
    copied: set[int]


class Replays:
    """Keep the traces of a ``Lift``.

    Args:
        strategy: ``auto`` waits for some runs before it traces; ``traced`` and ``compiled`` trace after the first run,
            and ``compiled`` compiles the trace. With other strategies nothing is traced.

    Example:
        >>> Replays("vmap").find(print, {}, {}, ()) is None
        True
    """

    unguarded = True  # nothing in it changes what a function computes

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self._works: OrderedDict[Any, Work] = OrderedDict()
        self._warned: set[str] = set()

    def find(
        self, function: Callable[..., Any], parameters: Any, buffers: Any, values: Any
    ) -> tuple[Work, list[Any]] | None:
        """Return the work that these arguments are, and their tensors; None if nothing is traced here and now."""
        if not self._traces():
            return None
        values = tuple(attrs.evolve(v, origin=None) if isinstance(v, Episode) else v for v in values)
        leaves, spec = pytree.tree_flatten((parameters, buffers, values))
        key = _identity(function), _surroundings(), tuple(map(_facts, leaves))
        work = self._works.get(key)
        if work is None or not _same_structure(work.spec, spec):
            work = self._works[key] = Work(spec=spec)
            while len(self._works) > MOST_TRACES:
                self._works.popitem(last=False)
        self._works.move_to_end(key)
        if work.guard is not None and not work.guard.holds():
            self._drop(work, function)
        return work, leaves

    def replay(self, work: Work, leaves: list[Tensor], tasks: int) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Add the gradient of the mean loss to ``.grad``, and return the metrics and the final buffers of all tasks."""
        rows = Rows(tasks)
        for first, last, made in work.traces:
            inputs = leaves
            if last - first < tasks:
                inputs = [t[first:last] if b else t for t, b in zip(leaves, work.batched, strict=True)]
            with torch.no_grad(), _without_autocast():
                outputs = made.run(*inputs, *made.outer)
            if made.copied:
                outputs = [t.clone() if i in made.copied else t for i, t in enumerate(outputs)]
            rows.add(made.program.finish(outputs, inputs))
        metrics, buffers = rows.joined
        return metrics, buffers

    def ran(
        self,
        function: Callable[..., Any],
        work: Work,
        leaves: list[Tensor],
        chunks: Sequence[tuple[int, int, Chunk]],
        shared: int,
    ) -> None:
        """Count a run without a trace, and trace the function if it is due.

        Args:
            function: of one task.
            work, leaves: of ``find``.
            chunks: the chunks that have run: the first and the last task of each, and how it is run.
            shared: the number of leaves at the beginning that all tasks share; the others begin with B.
        """
        work.uses += 1
        if work.refused or work.uses < (WAIT if self.strategy == "auto" else 1):
            return
        tasks = chunks[-1][1]
        work.batched = [i >= shared for i in range(len(leaves))]
        try:
            guard = Guard(function)
            made: dict[int, _Trace] = {}
            for first, last, chunk in chunks:
                if last - first not in made:
                    inputs = [t[first:last] if b else t for t, b in zip(leaves, work.batched, strict=True)]
                    program = Program(chunk, work.spec, inputs, (last - first) / tasks)
                    made[last - first] = self._make(program, guard, inputs)
        except Untraceable as reason:
            self._refuse(work, function, str(reason))
            return
        work.guard = guard
        work.traces = [(first, last, made[last - first]) for first, last, _ in chunks]

    # -------------------- when to trace

    def _traces(self) -> bool:
        """Return whether a trace would see all that happens: no mode or tool watches the operations."""
        return (
            self.strategy in ("auto", "traced", "compiled")
            and torch.is_grad_enabled()
            and not torch._C._len_torch_dispatch_stack()
            and not torch._C._len_torch_function_stack()
            and not torch.is_anomaly_enabled()
            and torch._C._functorch.peek_interpreter_stack() is None
        )

    def _drop(self, work: Work, function: Callable[..., Any]) -> None:
        """Forget traces that are not right any more."""
        assert work.guard is not None
        changed = work.guard.changed()
        work.guard, work.traces, work.changes = None, [], work.changes + 1
        if work.changes > MOST_CHANGES:
            self._refuse(work, function, f"{changed} changes from run to run; keep it in a buffer")

    def _refuse(self, work: Work, function: Callable[..., Any], reason: str) -> None:
        """Run without a trace from now on, and warn once with the reason."""
        work.refused = True
        name = getattr(getattr(function, "func", function), "__qualname__", type(function).__qualname__)
        self._warn(f"Lift: {name} can't be traced ({reason}); it runs as usual, which is slower")

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=6)

    # -------------------- making a trace

    def _make(self, program: Program, guard: Guard, inputs: list[Tensor]) -> _Trace:
        """Trace a program, and compare the trace with an ordinary run."""
        from kshot.inner.tracing import interpreter, trace  # here, because it imports much of torch

        outer = [t for t in guard.tensors if not any(t is other for other in inputs)]
        if not all(t.is_leaf for t in outer):
            raise Untraceable("its object keeps a tensor that was computed from others")
        program.learned = [t for t in outer if t.requires_grad]
        with _same_chance(inputs):
            expected = program(*inputs)
        with _same_chance(inputs):
            graph = trace(program, inputs, outer)
        if not guard.holds():
            raise Untraceable(f"running it changes {guard.changed()}")
        run = self._compiled(graph, [*inputs, *outer]) if self.strategy == "compiled" else interpreter(graph)
        for _ in range(3):  # an interpreter may optimise what it has run a few times
            with _same_chance(inputs), torch.no_grad(), _without_autocast():
                got = run(*inputs, *outer)
            if not _equal(got, expected, exactly=self.strategy != "compiled"):
                raise Untraceable("its trace computes other numbers, because something changes by itself")
        program.forget()
        places = [t.untyped_storage().data_ptr() for t in got]
        given = {t.untyped_storage().data_ptr() for t in (*inputs, *outer)}
        copied = {i for i, place in enumerate(places) if place in given or places.count(place) > 1}
        return _Trace(run, program, outer, copied)

    def _compiled(self, graph: Any, inputs: list[Tensor]) -> Callable[..., Sequence[Tensor]]:
        """Return the compiled graph, or the interpreted one and a warning if it can't be compiled."""
        from kshot.inner.tracing import interpreter

        try:
            compiled: Callable[..., Sequence[Tensor]] = torch.compile(graph, fullgraph=True, dynamic=False)
            with torch.no_grad(), _without_autocast(), _same_chance(inputs):
                compiled(*inputs)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
            self._warn(f"Lift: a trace can't be compiled ({reason}); it is interpreted instead, which is slower")
            return interpreter(graph)
        return compiled


def _identity(function: Any) -> Any:
    """Return what tells this function from others: its code, its object, and what it closes over."""
    if isinstance(function, functools.partial):
        named = sorted((name, _known(value)) for name, value in function.keywords.items())
        return _identity(function.func), tuple(map(_known, function.args)), tuple(named)
    if isinstance(function, types.MethodType):
        return _identity(function.__func__), id(function.__self__)
    if isinstance(function, types.FunctionType):
        cells = tuple(_known(cell.cell_contents) for cell in function.__closure__ or ())
        return function.__code__, cells, tuple(map(_known, function.__defaults__ or ()))
    return type(function), id(function)


def _known(value: Any) -> Any:
    return (type(value), value) if isinstance(value, bool | int | float | str | None) else id(value)


def _facts(t: Any) -> Any:
    """Return what a trace has built in of an input."""
    return (t.shape, t.stride(), t.dtype, t.device, t.requires_grad, t.is_leaf) if isinstance(t, Tensor) else t


def _same_structure(a: pytree.TreeSpec, b: pytree.TreeSpec) -> bool:
    """Return whether two structures have the same types, names and values that are no tensors."""
    try:
        return bool(a == b)
    except Exception:  # a value that can't be compared
        return False


def _surroundings() -> tuple[Any, ...]:
    """Return the settings of torch that a trace has built in."""
    autocast = [(d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
    return torch.get_default_dtype(), *autocast


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    """Run a trace, which has the casts of autocast in it already."""
    before = {d: torch.is_autocast_enabled(d) for d in ("cpu", "cuda")}
    if not any(before.values()):
        yield
        return
    with contextlib.ExitStack() as stack:
        for device, enabled in before.items():
            if enabled:
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def _same_chance(tensors: Sequence[Any]) -> Iterator[None]:
    """Restore torch's global random states at the end, so that the same numbers are drawn again."""
    devices = sorted({t.get_device() for t in tensors if isinstance(t, Tensor) and t.is_cuda})
    with torch.random.fork_rng(devices=devices):
        yield


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
