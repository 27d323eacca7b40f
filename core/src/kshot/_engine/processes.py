"""What the processes that train together tell one another, beside gradients.

Every rank calls these at the same point of its run. Where there is only one process they cost nothing.
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
    """Mark an error that no rank keeps to itself: each raises it, and it is enough that rank 0 tells it."""
    error.everywhere = True  # type: ignore[attr-defined]
    return error


@contextmanager
def meeting(world: World) -> Iterator[None]:
    """Around what needs all ranks.

    Raises:
        TrainingError: one of them is no longer there.
    """
    try:
        yield
    except Exception as error:
        reason = re.sub(r"^\[\S*\]\s*", "", str(error).strip()).partition("\n")[0].partition(". ")[0]
        raise everywhere(
            TrainingError(
                f"rank {world.rank} of {world.size} lost the other processes: one of them failed and says why itself, "
                f"or was killed, or kept the others waiting for too long ({reason or type(error).__name__})"
            )
        ) from error


def exchange(world: World, value: T) -> list[T]:
    """Every rank's ``value``, in order of rank: plain containers, numbers, strings and tensors."""
    if world.size == 1:
        return [value]
    mine = _packed(value)
    with meeting(world):
        lengths = [int(n) for n in world.all_gather(torch.tensor([len(mine)]))]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(mine)] = mine
        gathered = world.all_gather(padded)
    return [_unpacked(each[:n]) for each, n in zip(gathered, lengths, strict=True)]


def from_first(world: World, make: Callable[[], T]) -> T:
    """What rank 0 makes (as for ``exchange``), on every rank; for what only one of them is to read or to decide."""
    if world.size == 1:
        return make()
    made = make() if world.rank == 0 else None
    packed = _packed(made) if world.rank == 0 else torch.zeros(0, dtype=torch.uint8)
    with meeting(world):
        length = int(world.broadcast(torch.tensor([len(packed)])))
        sent = world.broadcast(packed if world.rank == 0 else torch.zeros(length, dtype=torch.uint8))
    return made if world.rank == 0 else _unpacked(sent)  # type: ignore[return-value]


def first_then_rest(world: World, make: Callable[[], T]) -> T:
    """Each rank makes its own, rank 0 before the others: for what is downloaded or decoded once, and then shared."""
    if world.rank == 0:
        made = make()
        from_first(world, lambda: None)
        return made
    from_first(world, lambda: None)
    return make()


def agree(world: World, facts: Mapping[str, Any]) -> None:
    """Compare what must be the same on every rank; nested mappings are compared field by field.

    Raises:
        MisfitError: it is not; names each rank and field, the same on every rank.
    """
    if world.size == 1:
        return
    first, *others = exchange(world, dict(leaves(facts)))
    lines = [
        f"  - {name}: rank {rank} has {_short(theirs.get(name))}, rank 0 {_short(first.get(name))}"
        for rank, theirs in enumerate(others, 1)
        for name in dict.fromkeys([*first, *theirs])
        if theirs.get(name) != first.get(name)
    ]
    if lines:
        raise everywhere(
            MisfitError(
                f"the {world.size} processes disagree, and nothing was computed:\n"
                + "\n".join(lines)
                + "\nstart them all by the same command, with the same packages and data, and learners of the same seed"
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
