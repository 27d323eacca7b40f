"""Decide when the work on a meta-batch is traced, and replay the trace, which needs less Python.

``Replays`` belongs to a ``Lift``. It counts how often the same function has run on tensors of the same shapes; then it
traces the function (``kshot.inner.traces``), compares the trace with an ordinary run, and replays it from then on, as
long as nothing has changed on which the function depends (``kshot.inner.guards``).

Letters: B meta-batch, n the tasks of one chunk.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree

from kshot.episode import Episode
from kshot.inner.chunks import Chunk
from kshot.inner.guards import Guard, Untraceable
from kshot.inner.identity import facts_of, flatten, has_hooks, identity_of, same_structure, surroundings
from kshot.inner.programs import Gradient, Program, Results
from kshot.inner.traces import Trace, make_trace

WAIT = 100
"""Number of runs without a trace. Tracing takes as long as some hundred runs, so a short training goes without it."""

MOST_TRACES = 16
"""Number of functions and shapes whose traces one ``Lift`` keeps. A new one replaces the one unused for longest, but
none that was used in the last ``WAIT`` searches: if more shapes take turns, the others run without a trace."""

MOST_CHANGES = 3
"""How often a function is traced again because a value on which it depends has changed; then it is no longer traced."""


@attrs.frozen(eq=False)
class Variant:
    """Store the traces of one function under the same values of everything on which it depends beside its inputs.

    Attributes:
        guard: those values.
        traces: for each chunk, in order: its first and last task, and its trace.
    """

    guard: Guard
    traces: list[tuple[int, int, Trace]]


@attrs.define(eq=False)
class Work:
    """Represent one function on tensors of the same shapes, and its traces.

    Attributes:
        structure: of its inputs.
        shared: the number of inputs at the beginning that all tasks share; the others begin with B.
        tasks: B.
        uses: how often it has run without a trace.
        last_use: the number of the last search that found it.
        refused: whether it can't be traced.
        variants: what it has been traced for: a module in training and in evaluation, for example.
        current: the variant that is valid now; None if there is none.
    """

    structure: list[Any]
    shared: int
    tasks: int
    uses: int = 0
    last_use: int = 0
    refused: bool = False
    variants: list[Variant] = attrs.field(factory=list)
    current: Variant | None = None

    @property
    def traces(self) -> list[tuple[int, int, Trace]]:
        """For each chunk, in order: its first and last task, and its trace."""
        return self.current.traces if self.current else []

    @property
    def parallel(self) -> bool:
        """Whether the threads of torch share the chunks. Chunks that draw random numbers run in order."""
        traces = self.traces
        if len(traces) == 1 or torch.get_num_threads() == 1:
            return False
        return not any(trace.draws or trace.device != "cpu" for _, _, trace in traces)

    def of_chunk(self, leaves: Sequence[Tensor], first: int, last: int) -> list[Tensor]:
        """Return the inputs of the tasks ``first``, ..., ``last - 1``."""
        if last - first == self.tasks:
            return list(leaves)
        return [*leaves[: self.shared], *(t[first:last] for t in leaves[self.shared :])]


class Replays:
    """Keep the traces of a ``Lift``.

    Several threads may use it at once.

    Args:
        strategy: ``auto`` waits for some runs before it traces, ``traced`` traces after the first run, and ``compiled``
            before it, and compiles the trace. With other strategies nothing is traced.

    Example:
        >>> Replays("vmap").find("map", print, {}, {}, (), None) is None
        True
    """

    unguarded = True  # nothing in it changes what a function computes

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self._works: OrderedDict[Any, Work] = OrderedDict()
        self._searches = 0
        self._lock = threading.RLock()
        self._warned: set[str] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without the traces and the lock."""
        return Replays, (self.strategy,)

    def find(
        self, what: str, function: Callable[..., Any], parameters: Any, buffers: Any, values: Any, tasks: int | None
    ) -> tuple[Work, list[Any]] | None:
        """Return the work that these arguments belong to, and their tensors; None if nothing can be traced at present.

        Args:
            what: ``gradient`` or ``map``.
            function: the function of one task.
            parameters, buffers, values: its arguments.
            tasks: B if the parameters and buffers begin with B; None if all tasks share them.
        """
        if not self._traces():
            return None
        leaves: list[Any] = []
        structure: list[Any] = []
        for part in (parameters, buffers, values):
            flatten(part, leaves, structure)
        key = what, identity_of(function), surroundings(), tasks is None, tuple(map(facts_of, leaves))
        with self._lock:
            self._searches += 1
            work = self._work(key, structure)
            if work is None:
                shared = 0 if tasks else len(parameters) + len(buffers)
                work = Work(structure, shared, tasks or len(leaves[shared]))
                if not self._make_room():
                    return None
                self._works[key] = work
            work.last_use = self._searches
            if work.current is not None and not work.current.guard.holds():
                self._switch(work, function)
        return work, leaves

    def replay(self, work: Work, leaves: list[Tensor]) -> Iterator[tuple[int, Any]]:
        """Yield for each chunk its number of tasks, and its results; the program adds gradients to ``.grad``."""
        with contextlib.closing((_dealt if work.parallel else _in_order)(work, leaves)) as chunks:
            for tasks, inputs, trace, outputs in chunks:
                yield tasks, trace.program.finish(outputs, inputs)

    def ran(
        self,
        what: str,
        function: Callable[..., Any],
        arguments: tuple[Any, Any, Any],
        work: Work,
        leaves: list[Tensor],
        chunks: Sequence[tuple[int, int, Chunk]],
    ) -> None:
        """Count a run without a trace, and trace the function if it has run often enough.

        Args:
            what, function: as for ``find``.
            arguments: parameters, buffers and values.
            work, leaves: of ``find``.
            chunks: the chunks that have run: the first and the last task of each, and how it is run.
        """
        with self._lock:
            work.uses += 1
            if work.refused or work.traces or work.uses < (WAIT if self.strategy == "auto" else 1):
                return
            parameters, buffers, values = arguments
            values = tuple(attrs.evolve(v, origin=None) if isinstance(v, Episode) else v for v in values)
            _, spec = pytree.tree_flatten((parameters, buffers, values))
            made: dict[int, Trace] = {}
            try:
                if any(has_hooks(t) for t in leaves if isinstance(t, Tensor)):
                    raise Untraceable("a parameter has hooks")
                guard = Guard(function)
                for first, last, chunk in chunks:
                    if last - first not in made:
                        inputs = work.of_chunk(leaves, first, last)
                        program: Program
                        if what == "gradient":
                            program = Gradient(chunk, spec, inputs, (last - first) / work.tasks)
                        else:
                            program = Results(chunk, spec, torch.is_grad_enabled())
                        compiled = self.strategy == "compiled"
                        made[last - first] = make_trace(program, guard, inputs, compiled=compiled, warn=self._warn)
            except Exception as error:  # of torch, for example; the function itself has just run without one
                reason = next(iter(str(error).strip().splitlines()), "")[:200]
                self._refuse(
                    work, function, reason if isinstance(error, Untraceable) else f"{type(error).__name__}: {reason}"
                )
                return
            guard.leave_out(leaves)
            work.current = Variant(guard, [(first, last, made[last - first]) for first, last, _ in chunks])
            work.variants.append(work.current)

    # -------------------- When to trace

    def before_first_run(self, work: Work) -> bool:
        """Return whether to trace the work before it runs, so that a resumed training computes what it would have."""
        return self.strategy == "compiled" and not work.refused and not work.traces

    def _traces(self) -> bool:
        """Return whether a trace would record all that happens: no mode or tool intercepts the operations."""
        return (
            self.strategy in ("auto", "traced", "compiled")
            and not torch._C._len_torch_dispatch_stack()
            and not torch._C._len_torch_function_stack()
            and not torch.is_anomaly_enabled()
            and torch._C._functorch.peek_interpreter_stack() is None
            and not _has_any_global_hook()
        )

    def _work(self, key: Any, structure: list[Any]) -> Work | None:
        """Return the work of this key and structure, as the one used last; None if there is none."""
        work = self._works.get(key)
        if work is None or not same_structure(work.structure, structure):
            self._works.pop(key, None)
            return None
        self._works.move_to_end(key)
        return work

    def _make_room(self) -> bool:
        """Remove the work that was unused for longest if there are too many; return False if all are in use."""
        if len(self._works) >= MOST_TRACES:
            oldest = next(iter(self._works.values()))
            if oldest.traces and self._searches - oldest.last_use < WAIT:
                return False
            self._works.popitem(last=False)
        return True

    def _switch(self, work: Work, function: Callable[..., Any]) -> None:
        """Change to the variant that is valid now; after too many changes of a value, trace the work no longer."""
        assert work.current is not None
        changed = work.current.guard.changed()
        work.current = next((variant for variant in work.variants if variant.guard.holds()), None)
        if work.current is None and len(work.variants) > MOST_CHANGES:
            work.variants.clear()
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


Chunks = Generator[tuple[int, list[Tensor], Trace, Sequence[Tensor]], None, None]
"""For each chunk, in order: its number of tasks, its inputs, its trace, and the outputs of the trace."""


def _in_order(work: Work, leaves: list[Tensor]) -> Chunks:
    """Run the traces of the chunks one after another."""
    for first, last, trace in work.traces:
        inputs = work.of_chunk(leaves, first, last)
        yield last - first, inputs, trace, trace.outputs(inputs)


def _dealt(work: Work, leaves: list[Tensor]) -> Chunks:
    """Run the traces of the chunks in several threads, each of them with one thread of torch.

    Operations run without Python, so the threads hardly wait for one another. Otherwise torch divides each operation
    among all threads, for which the operations of one task are too small. That includes this thread, which adds up the
    results: torch's own threads would spin for milliseconds after each sum, on the processors that the tasks need.
    """
    threads = torch.get_num_threads()
    waiting: deque[tuple[int, list[Tensor], Trace, Future[Sequence[Tensor]]]] = deque()
    todo = iter(work.traces)
    with ThreadPoolExecutor(threads, "kshot-tasks", partial(torch.set_num_threads, 1)) as pool:
        try:
            torch.set_num_threads(1)
            while True:
                # Compute only a few chunks ahead of the one that is added up, so that few results are in memory.
                for first, last, trace in itertools.islice(todo, 2 * threads - len(waiting)):
                    inputs = work.of_chunk(leaves, first, last)
                    waiting.append((last - first, inputs, trace, pool.submit(trace.outputs, inputs)))
                if not waiting:
                    break
                tasks, inputs, trace, outputs = waiting.popleft()
                yield tasks, inputs, trace, outputs.result()
        finally:
            torch.set_num_threads(threads)  # torch also remembers the number for threads that begin later
