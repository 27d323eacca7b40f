"""``kshot_key_value_memory.memory``: where it writes, what it reads, and that both learners train with it."""

import math

import pytest
import torch

import kshot
from kshot.errors import MisfitError, OptionError
from kshot.testing import sample_tasks
from kshot_key_value_memory import KeyValueMemory


def interface(*parts: list[float]) -> torch.Tensor:
    """Return the interface of one episode in float64: a key, a value, a gate and the queries."""
    return torch.tensor([[number for part in parts for number in part]], dtype=torch.float64)


def test_a_value_is_read_by_its_key():
    """Three pairs are written with open gates; then, with a closed gate, each query reads the value of its key."""
    memory = KeyValueMemory(slots=4, width=2, reads=1).double()
    with torch.no_grad():
        memory.scale.fill_(100.0)
    pairs = [([9.0, 9.0], [1.0, 2.0]), ([9.0, -9.0], [3.0, 4.0]), ([-9.0, 9.0], [5.0, 6.0])]
    state = memory.initial_state(1)
    for key, value in pairs:
        _, state = memory.step(interface(key, value, [50.0], [0.0, 0.0]), state)
    for key, value in pairs:
        reads, _ = memory.step(interface([0.0, 0.0], [0.0, 0.0], [-50.0], key), state)
        assert reads[0].tolist() == pytest.approx(value, abs=1e-9)


def test_a_step_is_computed_by_hand():
    """Two slots, a gate of 1/2, a scale of 2: weights are written * exp(score), normalised."""
    memory = KeyValueMemory(slots=2, width=1, reads=1).double()
    with torch.no_grad():
        memory.scale.fill_(2.0)
    _, state = memory.step(interface([0.5], [1.0], [0.0], [0.0]), memory.initial_state(1))
    reads, state = memory.step(interface([-0.5], [3.0], [math.log(3)], [1.0]), state)
    # Gates of 1/2 and 3/4. Slots start at zero, so keys and values are the gates times those of the interface.
    keys, values, written = [math.tanh(0.5) / 2, -0.75 * math.tanh(0.5)], [0.5, 2.25], [0.5, 0.75]
    weights = [w * math.exp(2 * math.tanh(1.0) * k) for w, k in zip(written, keys, strict=True)]
    expected = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    assert state.written[0].tolist() == pytest.approx(written, abs=1e-12)
    assert state.keys[0, :, 0].tolist() == pytest.approx(keys, abs=1e-12)
    assert float(reads.detach()) == pytest.approx(expected, abs=1e-9)


def test_slots_are_filled_in_order_and_then_replaced():
    """The write weights are one-hot at slots 0, 1, 2 and 0 again; the fourth value replaces the first."""
    memory = KeyValueMemory(slots=3, width=1, reads=1).double()
    state, places = memory.initial_state(1), []
    for number in range(4):
        _, state = memory.step(interface([0.0], [float(number)], [50.0], [0.0]), state)
        places.append(state.write_weights[0, 0].tolist())
    assert places == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert state.values[0, :, 0].tolist() == pytest.approx([3, 1, 2])


def test_an_empty_slot_is_never_read():
    """Its key is 0, as is the query's score with it, and yet its weight is 0; of an empty memory zeros are read."""
    memory = KeyValueMemory(slots=5, width=2, reads=1).double()
    reads, state = memory.step(interface([-9.0, -9.0], [7.0, 8.0], [50.0], [9.0, 9.0]), memory.initial_state(1))
    assert reads[0].tolist() == pytest.approx([7.0, 8.0])
    assert state.read_weights[0, 0, 1:].tolist() == [0, 0, 0, 0]
    with torch.no_grad():
        memory.scale.fill_(1000.0)  # even if everything that was written is very unlike the query
    reads, _ = memory.step(interface([0.0, 0.0], [0.0, 0.0], [-800.0], [9.0, 9.0]), state)
    assert reads[0].tolist() == pytest.approx([7.0, 8.0])
    reads, _ = memory.step(interface([0.0, 0.0], [0.0, 0.0], [-800.0], [-9.0, 9.0]), state)
    assert reads[0].tolist() == pytest.approx([7.0, 8.0])
    reads, _ = memory.step(interface([0.0] * 2, [1.0] * 2, [-800.0], [0.0] * 2), memory.initial_state(1))
    assert reads.abs().max() < 1e-9


@pytest.mark.parametrize("learner", ["ntm", "mann"])
@pytest.mark.parametrize("tasks", [sample_tasks.Copying(), sample_tasks.LabelStream()])
def test_both_learners_train_with_it(learner, tasks):
    """One meta-batch is learned by either learner, which have no line about this memory; a trace shows its weights."""
    pytest.importorskip(f"kshot_{learner}")
    torch.manual_seed(0)
    model = kshot.learner(learner, tasks.spec, memory="key-value-memory", hidden=20)
    episodes = tasks.sample("train", range(4))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        losses.append(float(model.meta_gradient(episodes)["loss"]))
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    assert model.trace(episodes)["write_weights"].shape[2] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"slots": 0}, "got slots 0, expected at least 1"), ({"width": 0, "reads": -1}, "got width 0, reads -1")],
)
def test_sizes_that_make_no_memory_are_refused(options, message):
    """The message names each wrong size."""
    with pytest.raises(OptionError, match=f"key-value-memory: {message}"):
        KeyValueMemory(**options)


def test_an_interface_of_another_length_is_refused():
    """Cut at the wrong places it would be a memory of something else."""
    memory = KeyValueMemory(slots=3, width=2, reads=1)
    with pytest.raises(MisfitError, match="got an interface of 6 numbers, expected interface_size 7"):
        memory.step(torch.zeros(1, 6), memory.initial_state(1))
