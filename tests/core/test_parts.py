"""``kshot.inner.parts``: the inner loop for a part of the parameters, against its closed form in float64."""

import pytest
import torch
from torch import nn

from kshot.errors import TrainingError
from kshot.inner import State, descend, descend_part


def start(w: float, b: float) -> tuple[State, list[nn.Parameter]]:
    parameters = [nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (w, b)]
    return State(dict(zip("wb", parameters, strict=True)), {"seen": torch.zeros(())}), parameters


def square(state: State, goal: float) -> torch.Tensor:
    """Compute 1/2 (w b - goal)^2, and count the call."""
    state.buffers["seen"].add_(1)
    return 0.5 * (state.parameters["w"] * state.parameters["b"] - goal).square()


@pytest.mark.parametrize("second_order", [True, False])
def test_only_the_part_adapts_and_all_get_the_meta_gradient(second_order):
    """By hand: b' = b - alpha w (w b - 1), and d b'/dw = -alpha (2 w b - 1), which first order leaves out."""
    w, b, alpha = 2.0, 3.0, 0.1
    state, leaves = start(w, b)
    end, losses = descend_part(square, state, 1.0, ["b"], lr=alpha, steps=1, second_order=second_order)
    assert end.parameters["w"] is leaves[0]
    moved = b - alpha * w * (w * b - 1)
    assert float(end.parameters["b"].detach()) == pytest.approx(moved)
    assert losses.tolist() == pytest.approx([0.5 * (w * b - 1) ** 2])
    (end.parameters["w"] * end.parameters["b"]).backward()
    through = -alpha * (2 * w * b - 1) if second_order else 0.0
    assert float(leaves[0].grad) == pytest.approx(moved + w * through)
    assert float(leaves[1].grad) == pytest.approx(w * (1 - alpha * w * w if second_order else 1.0))


def test_with_all_names_it_is_descend():
    """The part may be everything; buffers that the loss writes are those of the last step."""
    state, _ = start(2.0, 3.0)
    part, _ = descend_part(square, state, 1.0, ["w", "b"], lr=0.01, steps=3)
    whole, _ = descend(square, state, 1.0, lr=0.01, steps=3)
    assert all(torch.equal(part.parameters[n], whole.parameters[n]) for n in "wb")
    assert (float(part.buffers["seen"]), float(state.buffers["seen"])) == (3.0, 0.0)


def test_no_step_and_no_scalar():
    """Without steps nothing changes; a loss that is no scalar is refused as in ``descend``."""
    state, leaves = start(2.0, 3.0)
    end, losses = descend_part(square, state, 1.0, ["b"], lr=0.1, steps=0)
    assert end.parameters["b"] is leaves[1]
    assert losses.shape == (0,)
    with pytest.raises(TrainingError, match="expected a scalar"):
        descend_part(lambda s, _: s.parameters["b"].expand(2), state, 1.0, ["b"], lr=0.1, steps=1)
