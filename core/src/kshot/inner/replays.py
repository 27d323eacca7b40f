"""Decide when the work on a meta-batch is traced, and replay the trace, which needs less Python.

``Replays`` belongs to a ``Lift``. It counts how often the same function has run on tensors of the same shapes; then it
traces the function (``kshot.inner.traces``), compares the trace with an ordinary run, and replays it from then on, as
long as nothing has changed on which the function depends (``kshot.inner.guards``).

Letters: B meta-batch, n the tasks of one chunk.
"""

from __future__ import annotations

import contextlib
import itertools
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
"""Number of functions and shapes whose traces one ``Lift`` keeps; a new one replaces the one unused for longest."""

MOST_CHANGES = 3
"""How often a function is traced again because a value on which it depends has changed; then it is no longer traced."""


@attrs.define(eq=False)
class Work:
    """Represent one function on tensors of the same shapes, and its traces.

    Attributes:
        structure: of its inputs.
        shared: the number of inputs at the beginning that all tasks share; the others begin with B.
        tasks: B.
        uses: how often it has run without a trace.
        changes: how often its traces became invalid.
        refused: whether it can't be traced.
        guard: what it depends on beside the inputs; None if there is no trace.
        traces: for each chunk, in order: its first and last task, and its trace.
    """

    structure: list[Any]
    shared: int
    tasks: int
    uses: int = 0
    changes: int = 0
    refused: bool = False
    guard: Guard | None = None
    traces: list[tuple[int, int, Trace]] = attrs.field(factory=list)

    @property
    def parallel(self) -> bool:
        """Whether the threads of torch share the chunks. Chunks that draw random numbers run in order."""
        if len(self.traces) == 1 or torch.get_num_threads() == 1:
            return False
        return not any(trace.draws or trace.device != "cpu" for _, _, trace in self.traces)

    def of_chunk(self, leaves: Sequence[Tensor], first: int, last: int) -> list[Tensor]:
        """Return the inputs of the tasks ``first``, ..., ``last - 1``."""
        if last - first == self.tasks:
            return list(leaves)
        return [*leaves[: self.shared], *(t[first:last] for t in leaves[self.shared :])]


class Replays:
    """Keep the traces of a ``Lift``.

    Args:
        strategy: ``auto`` waits for some runs before it traces; ``traced`` and ``compiled`` trace after the first run,
            and ``compiled`` compiles the trace. With other strategies nothing is traced.

    Example:
        >>> Replays("vmap").find("map", print, {}, {}, (), None) is None
        True
    """

    unguarded = True  # nothing in it changes what a function computes

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self._works: OrderedDict[Any, Work] = OrderedDict()
        self._warned: set[str] = set()

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
        work = self._works.get(key)
        if work is None or not same_structure(work.structure, structure):
            shared = 0 if tasks else len(parameters) + len(buffers)
            work = self._works[key] = Work(structure, shared, tasks or len(leaves[shared]))
            while len(self._works) > MOST_TRACES:
                self._works.popitem(last=False)
        self._works.move_to_end(key)
        if work.guard is not None and not work.guard.holds():
            self._drop(work, function)
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
        work.uses += 1
        if work.refused or work.uses < (WAIT if self.strategy == "auto" else 1):
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
        work.guard = guard
        work.traces = [(first, last, made[last - first]) for first, last, _ in chunks]

    # -------------------- When to trace

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

    def _drop(self, work: Work, function: Callable[..., Any]) -> None:
        """Drop traces that are no longer valid."""
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
