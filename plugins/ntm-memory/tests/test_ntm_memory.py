"""``kshot_ntm_memory``: each equation of section 3, by hand or against a naive implementation, in float64."""

import math

import pytest
import torch

import kshot
from kshot.errors import MisfitError, OptionError
from kshot_ntm_memory import NTMMemory, NTMState
from kshot_ntm_memory.addressing import address, cosine, move, sharpen
from kshot_ntm_memory.memory import write


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def on(slot: int, slots: int, reach: int = 1) -> torch.Tensor:
    """Return weights of one head of one episode that are all on one slot."""
    return torch.nn.functional.one_hot(torch.tensor([[slot]]), slots).double()


STAY, UP, DOWN = ([0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0])


def addressed(memory, before, *, gate, shift, power=1.0, strength=2.0, key=None):
    """Call ``address`` with the same numbers for all heads."""
    B, H, _ = before.shape
    one = torch.ones(B, H, 1, dtype=torch.float64)
    shifts = torch.tensor(shift, dtype=torch.float64).expand(B, H, -1)
    key = numbers(B, H, memory.shape[-1], seed=9) if key is None else key
    return address(memory, before, key, strength * one, gate * one, shifts, power * one)


# --- Addressing ------------------------------------------------------------------------------------------------------


def test_with_gate_0_and_shift_0_the_weights_stay_what_they_were():
    """Pure addressing by location (section 3.3.2) changes nothing, up to rounding."""
    before = numbers(2, 3, 7).softmax(-1)
    assert torch.allclose(addressed(numbers(2, 7, 4), before, gate=0.0, shift=STAY), before, atol=1e-15, rtol=0)


@pytest.mark.parametrize(("shift", "by"), [(UP, 1), (DOWN, -1)])
def test_a_shift_is_a_roll_around_the_memory(shift, by):
    """Eq. 8 with a one-hot shift rolls the weights; the last slot is followed by the first."""
    before = numbers(2, 3, 7).softmax(-1)
    expected = torch.roll(before, by, -1)
    assert torch.allclose(addressed(numbers(2, 7, 4), before, gate=0.0, shift=shift), expected, atol=1e-15, rtol=0)


def test_moving_is_the_circular_convolution_of_equation_8():
    """The result is w~(i) = sum_j w(j) s(i - j), with indices modulo M, computed slot by slot for a reach of 2."""
    w, s = numbers(2, 3, 7).softmax(-1), numbers(2, 3, 5, seed=1).softmax(-1)
    expected = torch.zeros_like(w)
    for i in range(7):
        for j in range(7):
            for k in range(-2, 3):
                if (i - j - k) % 7 == 0:
                    expected[..., i] += w[..., j] * s[..., k + 2]
    assert torch.allclose(move(w, s), expected, atol=1e-15)


def test_with_gate_1_the_weights_are_a_softmax_of_cosines():
    """Eq. 5 and 6 by hand, for rows parallel, orthogonal and opposite to the key."""
    memory = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]], dtype=torch.float64)
    key = torch.tensor([[[5.0, 0.0]]], dtype=torch.float64)
    w = addressed(memory, on(1, 3), gate=1.0, shift=STAY, strength=2.0, key=key)
    parts = [math.exp(2), 1.0, math.exp(-2)]
    assert w[0, 0].tolist() == pytest.approx([p / sum(parts) for p in parts], abs=1e-12)


def test_the_gate_mixes_content_and_the_step_before():
    """Eq. 7 with a gate of a quarter."""
    memory, before = numbers(2, 7, 4), numbers(2, 3, 7, seed=1).softmax(-1)
    content = addressed(memory, before, gate=1.0, shift=STAY)
    mixed = addressed(memory, before, gate=0.25, shift=STAY)
    assert torch.allclose(mixed, 0.25 * content + 0.75 * before, atol=1e-14)


def test_sharpening_is_a_normalised_power():
    """Eq. 9 equals the naive formula, and gives valid weights where the naive formula is 0 / 0."""
    w, power = numbers(2, 3, 7).softmax(-1), 1 + numbers(2, 3, 1, seed=1).abs()
    assert torch.allclose(sharpen(w, power), w**power / (w**power).sum(-1, keepdim=True), atol=1e-14)
    flat = torch.full((1, 1, 128), 1 / 128)
    assert float((flat**30).sum()) == 0
    assert torch.allclose(sharpen(flat, torch.tensor(30.0)), flat)


def test_addressing_is_equations_5_to_9_in_a_row():
    """The weights of every slot by plain numbers: content, gate, shift, and the power of what was shifted."""
    memory, before, key = numbers(1, 5, 3), numbers(1, 1, 5, seed=1).softmax(-1), numbers(1, 1, 3, seed=2)
    strength, gate, power, shift = 3.0, 0.3, 2.5, [0.2, 0.5, 0.3]
    found = addressed(memory, before, gate=gate, shift=shift, power=power, strength=strength, key=key)
    rows, k, old = memory[0].tolist(), key[0, 0].tolist(), before[0, 0].tolist()
    cosines = [sum(a * b for a, b in zip(k, row, strict=True)) / math.hypot(*k) / math.hypot(*row) for row in rows]
    content = [math.exp(strength * c) / sum(math.exp(strength * c) for c in cosines) for c in cosines]
    gated = [gate * c + (1 - gate) * w for c, w in zip(content, old, strict=True)]
    shifted = [shift[0] * gated[(i + 1) % 5] + shift[1] * gated[i] + shift[2] * gated[i - 1] for i in range(5)]
    expected = [w**power / sum(v**power for v in shifted) for w in shifted]
    assert found[0, 0].tolist() == pytest.approx(expected, abs=1e-12)


def test_sharpening_has_a_finite_slope_where_a_weight_is_0():
    """A new head is exactly at slot 0, so that the logarithm of every other weight is minus infinity."""
    w, power = on(0, 5).requires_grad_(), torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    sharpen(w, power)[0, 0, 0].backward()
    assert torch.isfinite(w.grad).all()
    assert torch.isfinite(power.grad).all()


def test_weights_are_weights():
    """Over many steps of random interfaces the weights are not negative and sum to 1."""
    memory = NTMMemory(9, 4, 2, writes=2, reach=2).double()
    state = memory.initial_state(3)
    for t in range(20):
        _, state = memory.step(5 * numbers(3, memory.interface_size, seed=t), state)
        for w in (state.read_weights, state.write_weights):
            assert w.min() >= 0
            assert torch.allclose(w.sum(-1), torch.ones(3, 2, dtype=torch.float64), atol=1e-12)


def test_the_cosine_of_a_zero_row_is_0_with_a_finite_gradient():
    """The naive formula is 0 / 0 if the memory, the key, or both are zero."""
    for key, memory in ((numbers(1, 2, 4), numbers(1, 3, 4) * 0), (numbers(1, 2, 4) * 0, numbers(1, 3, 4))):
        key, memory = key.requires_grad_(), memory.requires_grad_()
        found = cosine(key, memory)
        assert found.tolist() == [[[0.0] * 3] * 2]
        found.sum().backward()
        assert torch.isfinite(key.grad).all()
        assert torch.isfinite(memory.grad).all()


def test_the_cosine_is_torchs():
    """The cosine equals torch.nn.functional.cosine_similarity."""
    key, memory = numbers(2, 3, 4), numbers(2, 5, 4, seed=1)
    expected = torch.nn.functional.cosine_similarity(key[:, :, None], memory[:, None], dim=-1)
    assert torch.allclose(cosine(key, memory), expected, atol=1e-14)


# --- Writing and reading ---------------------------------------------------------------------------------------------


def test_a_sharp_head_that_erases_everything_replaces_a_row():
    """Eq. 3 and 4 with one-hot w and e = 1: the row becomes the added vector, the others do not change."""
    memory, added = numbers(1, 5, 3), numbers(1, 1, 3, seed=1)
    after = write(memory, on(2, 5), torch.ones_like(added), added)
    expected = memory.clone()
    expected[0, 2] = added[0, 0]
    assert torch.allclose(after, expected, atol=1e-15)


def test_writing_is_equations_3_and_4():
    """Two heads, number by number: all erase before any adds, so that their order does not matter."""
    memory, w = numbers(2, 5, 3), numbers(2, 2, 5, seed=1).softmax(-1)
    erase, add = numbers(2, 2, 3, seed=2).sigmoid(), numbers(2, 2, 3, seed=3)
    expected = torch.empty_like(memory)
    for b in range(2):
        for i in range(5):
            for c in range(3):
                kept = memory[b, i, c]
                for h in range(2):
                    kept = kept * (1 - w[b, h, i] * erase[b, h, c])
                expected[b, i, c] = kept + sum(w[b, h, i] * add[b, h, c] for h in range(2))
    assert torch.allclose(write(memory, w, erase, add), expected, atol=1e-14)
    swapped = write(memory, w.flip(1), erase.flip(1), add.flip(1))
    assert torch.allclose(swapped, expected, atol=1e-14)


def interface(memory: NTMMemory, **said) -> torch.Tensor:
    """Return an interface [1, interface_size] from its named parts, in their order; parts that are not given are 0."""
    heads, W = memory.reads + memory.writes, memory.width
    sizes = {
        "key": heads * W,
        "add": memory.writes * W,
        "strength": heads,
        "power": heads,
        "gate": heads,
        "erase": memory.writes * W,
        "shift": heads * 3,
    }
    assert sum(sizes.values()) == memory.interface_size
    parts = [torch.as_tensor(said.get(n, 0.0), dtype=torch.float64).flatten().expand(k) for n, k in sizes.items()]
    return torch.cat(parts)[None]


SURE = 50.0


def test_a_tape_is_written_and_read_back():
    """The memory can do what copying needs: write a, b, c at slots 1, 2, 3, go back, and read them in order."""
    memory = NTMMemory(8, 3, 1).double()
    state = memory.initial_state(1)
    vectors = numbers(3, 3)
    up, back, stay = ([-SURE, -SURE, SURE], [SURE, -SURE, -SURE], [-SURE, SURE, -SURE])
    for v in vectors:
        said = interface(memory, add=v, erase=SURE, gate=-SURE, power=SURE, shift=[stay, up])
        _, state = memory.step(said, state)
    assert torch.allclose(state.memory[0, 1:4], vectors, atol=1e-12)
    for v in vectors:
        said = interface(memory, gate=-SURE, erase=-SURE, power=SURE, shift=[up, back])
        read, state = memory.step(said, state)
        assert torch.allclose(read[0], v, atol=1e-12)


def test_what_is_read_is_the_new_memory():
    """Eq. 2 sums over M_t: a vector can be read in the step that writes it."""
    memory = NTMMemory(4, 3, 1).double()
    v = numbers(3)
    stay = [[-SURE, SURE, -SURE]] * 2
    read, _ = memory.step(interface(memory, add=v, erase=SURE, gate=-SURE, shift=stay), memory.initial_state(1))
    assert torch.allclose(read[0], v, atol=1e-12)


def test_any_numbers_of_a_controller_are_squashed_into_their_ranges():
    """Section 3.3, head by head: beta >= 0 and gamma >= 1 by log(1 + e^z), g and e in (0, 1), shifts that sum to 1."""
    memory = NTMMemory(5, 3, 1).double()
    state = memory.initial_state(1)._replace(
        memory=numbers(1, 5, 3, seed=1),
        read_weights=numbers(1, 1, 5, seed=2).softmax(-1),
        write_weights=numbers(1, 1, 5, seed=3).softmax(-1),
    )
    key, strength, power, gate = (3 * numbers(2, n, seed=4 + n) for n in (3, 1, 2, 4))
    power, gate, shift = power[:, :1], gate[:, :1], 2 * numbers(2, 3, seed=9)
    erase, add = numbers(1, 1, 3, seed=10), numbers(1, 1, 3, seed=11)
    said = interface(memory, key=key, add=add, strength=strength, power=power, gate=gate, erase=erase, shift=shift)
    read, after = memory.step(said, state)
    for head, name in enumerate(("read_weights", "write_weights")):
        expected = address(
            state.memory,
            getattr(state, name),
            key[None, head, None],
            (1 + strength[head].exp()).log()[None, None],
            (1 / (1 + (-gate[head]).exp()))[None, None],
            (shift[head].exp() / shift[head].exp().sum())[None, None],
            1 + (1 + power[head].exp()).log()[None, None],
        )
        assert torch.allclose(getattr(after, name), expected, atol=1e-12)
    assert torch.allclose(after.memory, write(state.memory, after.write_weights, 1 / (1 + (-erase).exp()), add))
    assert torch.allclose(read, (after.read_weights @ after.memory)[:, 0], atol=1e-12)


def test_a_wiped_memory_is_constant_and_every_head_at_slot_0():
    """The state has the requested sizes and the precision of the module."""
    memory = NTMMemory(6, 4, 2, writes=3, initial=0.5).double()
    state = memory.initial_state(2)
    assert isinstance(state, NTMState)
    assert torch.equal(state.memory, torch.full((2, 6, 4), 0.5, dtype=torch.float64))
    for w, heads in ((state.read_weights, 2), (state.write_weights, 3)):
        assert torch.equal(w, torch.tensor([[[1.0] + [0.0] * 5] * heads] * 2, dtype=torch.float64))
    assert not list(memory.state_dict())


def test_autocast_does_not_round_the_memory():
    """Weights rounded to bfloat16 would sum to 1 only within 1 %, and the memory would be rounded at every step."""
    memory = NTMMemory(9, 4, 2)
    said = [5 * numbers(3, memory.interface_size, seed=t).float() for t in range(6)]
    states = []
    for enabled in (False, True):
        state = memory.initial_state(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for interface_t in said:
                _, state = memory.step(interface_t, state)
        states.append(state)
    for plain, cast in zip(*states, strict=True):
        assert cast.dtype == torch.float32
        assert torch.equal(plain, cast)


# --- Bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "got slots 0, expected at least 1"),
        ({"width": 0, "reads": 0}, "got width 0, reads 0"),
        ({"slots": 4, "reads": 5}, "got 5 read and 1 write heads for 4 slots"),
        ({"slots": 4, "writes": 5}, "1 read and 5 write heads"),
        ({"slots": 4, "reach": 2}, "got reach 2 for 4 slots, expected 0 to 1"),
        ({"reach": -1}, "got reach -1"),
    ],
)
def test_sizes_that_make_no_memory_are_refused(options, message):
    """The message gives the option, its value and what was expected, before any compute."""
    with pytest.raises(OptionError, match=message):
        kshot.memory("ntm-memory", **options)(6, 4, 1)


def test_an_interface_of_another_length_is_refused():
    """Such an interface would be cut at the wrong places."""
    memory = NTMMemory(6, 4, 1)
    with pytest.raises(MisfitError, match=f"got an interface of {memory.interface_size - 1} numbers"):
        memory.step(torch.zeros(2, memory.interface_size - 1), memory.initial_state(2))
