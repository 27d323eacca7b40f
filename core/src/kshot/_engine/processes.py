"""Exchange values other than gradients between the processes that train together, and check that they agree.

Every rank must call these functions at the same point of its run. With a single process they cost nothing.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from kshot._engine.provenance import leaves
from kshot.errors import KshotError, MisfitError, TrainingError
from kshot.protocols import World

T = TypeVar("T")
E = TypeVar("E", bound=KshotError)


def everywhere(error: E) -> E:
    """Mark an error that every rank raises alike, so that it is enough if rank 0 reports it; return the error."""
    error.everywhere = True  # type: ignore[attr-defined]
    return error


@contextmanager
def meeting(world: World) -> Iterator[None]:
    """Wrap communication that needs all ranks.

    Raises:
        TrainingError: the communication failed, because another rank failed, was killed or did not answer in time.
    """
    try:
        yield
    except Exception as error:
        # Keep the first sentence of the library's message, without its source location in brackets.
        reason = re.sub(r"^\[\S*\]\s*", "", str(error).strip()).partition("\n")[0].partition(". ")[0]
        raise everywhere(
            TrainingError(
                f"rank {world.rank} of {world.size} lost the other processes: one of them failed and reports why, "
                f"or was killed, or kept the others waiting for too long ({reason or type(error).__name__})"
            )
        ) from error


def exchange(world: World, value: T) -> list[T]:
    """Return the values of all ranks, in order of rank.

    Args:
        value: this rank's; made of plain containers, numbers, strings and tensors.
    """
    if world.size == 1:
        return [value]
    packed = _packed(value)
    with meeting(world):
        # all_gather takes tensors of one shape, so exchange the lengths first and pad to the longest.
        lengths = [int(n) for n in world.all_gather(torch.tensor([len(packed)]))]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(packed)] = packed
        gathered = world.all_gather(padded)
    return [_unpacked(each[:n]) for each, n in zip(gathered, lengths, strict=True)]


def from_first(world: World, make: Callable[[], T]) -> T:
    """Call ``make`` on rank 0 and return its value on every rank, for what only one process may read or decide.

    Args:
        make: returns plain containers, numbers, strings and tensors, as for ``exchange``.
    """
    if world.size == 1:
        return make()
    value = make() if world.rank == 0 else None
    packed = _packed(value) if world.rank == 0 else torch.zeros(0, dtype=torch.uint8)
    with meeting(world):
        # The other ranks must know the length to receive, so it is sent first.
        length = int(world.broadcast(torch.tensor([len(packed)])))
        sent = world.broadcast(packed if world.rank == 0 else torch.zeros(length, dtype=torch.uint8))
    return value if world.rank == 0 else _unpacked(sent)  # type: ignore[return-value]


def first_then_rest(world: World, make: Callable[[], T]) -> T:
    """Call ``make`` on every rank, on rank 0 before the others, for files that are downloaded or decoded only once."""
    if world.rank == 0:
        value = make()
        from_first(world, lambda: None)  # lets the others go on
        return value
    from_first(world, lambda: None)  # waits for rank 0
    return make()


def agree(world: World, facts: Mapping[str, Any]) -> None:
    """Check that ``facts`` are the same on every rank; nested mappings are compared field by field.

    Raises:
        MisfitError: they differ; every rank raises the same message, which names each rank and field.
    """
    if world.size == 1:
        return
    # Every rank compares all ranks with rank 0, so that all of them come to the same conclusion.
    first, *others = exchange(world, dict(leaves(facts)))
    lines = [
        f"  - {name}: rank {rank} has {_short(theirs.get(name))}, rank 0 has {_short(first.get(name))}"
        for rank, theirs in enumerate(others, 1)
        for name in dict.fromkeys([*first, *theirs])
        if theirs.get(name) != first.get(name)
    ]
    if lines:
        raise everywhere(
            MisfitError(
                f"the {world.size} processes disagree, and nothing was computed:\n"
                + "\n".join(lines)
                + "\nstart all of them with the same command, packages and data, and with learners of the same seed"
            )
        )


def _short(value: Any) -> str:
    text = "none" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:50]}...{text[-25:]}"


def _packed(value: Any) -> Tensor:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> Any:
    return torch.load(io.BytesIO(packed.numpy().tobytes()), map_location="cpu", weights_only=True)
