"""Memories are tried when a learner is built, so that wrong sizes are reported by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import kshot.nn
from kshot.errors import MisfitError, OptionError


class Row(nn.Module):
    """Store one row, which each step replaces.

    Args:
        cut: how many numbers of the interface it reads, if not ``width``.
        read_size: the size that it claims, if not ``width``.
    """

    def __init__(
        self, slots: int, width: int, reads: int, *, cut: int | None = None, read_size: int | None = None
    ) -> None:
        super().__init__()
        self.cut = cut or width
        self.interface_size, self.read_size = width, read_size or width

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, self.interface_size)

    def step(self, interface: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        (row,) = interface.split([self.cut], -1)
        return row, row


def test_a_memory_is_tried_before_it_is_used() -> None:
    """Sizes that disagree are reported when a learner is built, and not in the middle of its first step."""
    assert isinstance(kshot.nn.memory(Row, 3, 5, 1), Row)
    with pytest.raises(MisfitError, match=r"Row says interface_size 5 .* shape \(2, 5\) raised RuntimeError: .*\[4\]"):
        kshot.nn.memory(lambda *sizes: Row(*sizes, cut=4), 3, 5, 1)
    with pytest.raises(MisfitError, match=r"read_size 7, but got reads of shape \(2, 5\)"):
        kshot.nn.memory(lambda *sizes: Row(*sizes, read_size=7), 3, 5, 1)


def test_the_errors_of_a_memory_propagate() -> None:
    """Its own message is the better one, both when it is made and when it is tried."""

    class Refusing(Row):
        def step(self, interface: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            raise OptionError("a head is missing")

    def impossible(slots: int, width: int, reads: int) -> Row:
        raise OptionError("too few slots")

    with pytest.raises(OptionError, match=r"^a head is missing"):
        kshot.nn.memory(Refusing, 3, 5, 1)
    with pytest.raises(OptionError, match=r"^too few slots"):
        kshot.nn.memory(impossible, 3, 5, 1)
