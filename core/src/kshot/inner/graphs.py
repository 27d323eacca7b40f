"""Capture a trace as a CUDA graph, whose kernels a GPU runs one after another without waiting for the processor.

A GPU computes an operation of a small network faster than the processor launches the next one. A CUDA graph records the
launches of all operations on fixed memory, so one launch replays them all.

This module has never run on a GPU: the tests replace ``record_cuda`` by another function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kshot.inner.cost import cost_of
from kshot.randomness import global_generators

Flat = Callable[..., Sequence[Tensor]]
Record = Callable[[Flat, Sequence[Tensor]], tuple[Callable[[], None], Sequence[Tensor]]]

LAUNCHES_BELOW = 4 * 2**20
"""Mean size of an operation's result, in bytes, below which a trace is captured. A GPU that moves some terabytes per
second reads and writes this much in the few microseconds of a launch, so larger operations do not wait for launches.
The number is computed from this, not measured."""


def captured(
    run: Flat,
    tensors: Sequence[Tensor],
    warn: Callable[[str], None],
    *,
    device: str = "cuda",
    record: Record | None = None,
) -> Flat:
    """Return a function that replays ``run`` as a CUDA graph if launches take most of its time, else ``run`` itself.

    A run that draws random numbers is not captured.

    Args:
        run: a function of tensors, without a graph of autograd, that does the same operations in every call.
        tensors: its arguments; those of later calls have the same shapes and strides.
        warn: called with the reason if it can't be captured.
        device: the type of device on which all tensors must be.
        record: see ``record_cuda``, which is the default.

    Example:
        >>> captured(torch.add, [torch.ones(2), torch.ones(2)], print) is torch.add  # on the CPU
        True
    """
    if not tensors or any(t.device.type != device for t in tensors):
        return run
    fixed = [t.detach().clone() for t in tensors]
    if any(a.stride() != b.stride() for a, b in zip(fixed, tensors, strict=True)):
        return run  # an expanded tensor, whose copy has other strides than the trace assumes
    generators = global_generators(fixed[0].device)
    states = [each.get_state() for each in generators]
    cost = cost_of(run, *fixed)
    run(*fixed)
    drawn = [each for each, state in zip(generators, states, strict=True) if not torch.equal(each.get_state(), state)]
    for each, state in zip(generators, states, strict=True):
        each.set_state(state)
    if drawn or cost.bytes / max(1, cost.operations) > LAUNCHES_BELOW:
        return run
    try:
        replay, outputs = (record or record_cuda)(run, fixed)
    except RuntimeError as error:  # for example an operation that waits for the device
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
        warn(f"Lift: a trace can't be captured as a CUDA graph ({reason}); its operations are launched one by one")
        return run

    def replayed(*inputs: Tensor) -> Sequence[Tensor]:
        torch._foreach_copy_(fixed, [t.detach() for t in inputs])
        replay()
        # The next replay writes to the same memory, so the outputs are copied.
        kept = [torch.empty_like(t) for t in outputs]
        torch._foreach_copy_(kept, list(outputs))
        return kept

    return replayed


def record_cuda(run: Flat, fixed: Sequence[Tensor]) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """Record the kernels of a run on fixed tensors.

    The function first calls it three times, on another stream as CUDA requires, because libraries choose their
    algorithms and reserve memory in the first calls.

    Returns:
        A function that runs the kernels again, on the present numbers of the fixed tensors, and the outputs, to which
        they write.

    Raises:
        RuntimeError: something in it can't be recorded.
    """
    here, other = torch.cuda.current_stream(), torch.cuda.Stream()
    other.wait_stream(here)
    with torch.cuda.stream(other):
        for _ in range(3):
            run(*fixed)
    here.wait_stream(other)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(*fixed)
    return graph.replay, outputs
